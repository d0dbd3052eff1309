//! What one pod may cost the agent, and that the others do not pay for it.

use std::time::Duration;

use loadtest::eks::Outage;
use podcred::clock::Clock;

use crate::agent::{Client, Cluster, SHOP, WEB, token_for};
use crate::harness::until;

#[test]
fn a_pod_that_opens_connections_without_end_pays_with_its_own() {
    let Some(cluster) = Cluster::start() else { return };
    let [greedy, other] = cluster.pods();
    let agent = cluster.agent(&["--pod-connections", "20"]);
    let (token, others) = (cluster.token_of(&greedy, WEB), cluster.token_of(&other, WEB));
    let mut kept = agent.connect(&other);
    let mut opened: Vec<Client> = Vec::new();
    for n in 0..200 {
        let mut client = agent.connect(&greedy);
        client.ask(&token).assert_credentials();
        opened.push(client);
        if n % 20 == 0 {
            kept.ask(&others).assert_credentials();
            let connections = agent.metric("podcred_pod_connections", &[("pod_uid", &greedy.uid())]);
            assert!(connections.is_some_and(|number| number <= 20.0), "{connections:?}");
        }
    }
    kept.ask(&others).assert_credentials();
    opened.pop().unwrap().ask(&token).assert_credentials();
    // The longest idle went first.
    until("its first 180 connections are closed", || opened[..180].iter_mut().all(Client::has_heard));
}

#[test]
fn a_pod_that_waits_for_all_its_places_keeps_nobody_else_from_being_answered() {
    let Some(cluster) = Cluster::start() else { return };
    let [waiting, other] = cluster.pods();
    let agent = cluster.agent(&["--eks-auth-wait", "10s"]);
    let (token, others) = (cluster.token_of(&waiting, WEB), cluster.token_of(&other, SHOP));
    agent.ask(&other, &others).assert_credentials();
    cluster.eks.settings(|settings| settings.outage = Outage::Hang);

    // The places are 16; the others wait for one.
    let mut clients: Vec<Client> = (0..40).map(|_| agent.connect(&waiting)).collect();
    clients.iter_mut().for_each(|client| client.send(&token));
    agent.ask(&other, &others).assert_credentials();
    assert!(!clients.iter_mut().any(Client::has_heard));

    cluster.eks.settings(|settings| settings.outage = Outage::Off);
    clients.iter_mut().for_each(|client| client.answer().assert_credentials());
    assert_eq!(agent.count("podcred_requests_total", "too_many_waiting"), 0.0);
}

#[test]
fn what_is_refused_without_a_look_at_its_token_takes_turns_as_well() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let agent = cluster.agent(&["--pod-requests", "10"]);
    let mut client = agent.connect(&pod);
    let clock = Clock::default();
    let start = clock.now().mono;
    for _ in 0..5 {
        client.get("/nothing", None);
        assert_eq!(client.answer().status, 404);
    }
    // Two at once, and then one each tenth of a second.
    let took = clock.now().mono - start;
    assert!(took >= Duration::from_millis(290), "{took:?}");
}

#[test]
fn a_flood_of_bad_tokens_leaves_the_pods_good_one_and_the_other_pods_alone() {
    let Some(cluster) = Cluster::start() else { return };
    let [noisy, other] = cluster.pods();
    let agent = cluster.agent(&["--pod-failures", "2"]);
    let token = cluster.token_of(&noisy, WEB);
    agent.ask(&noisy, &token).assert_credentials();
    let mut client = agent.connect(&noisy);
    let mut refused = 0;
    for _ in 0..60 {
        let bad = cluster.eks.mint(token_for(&noisy, WEB).signed_by_a_foreign_key()).token;
        let answer = client.ask(&bad);
        if answer.closes {
            answer.assert_refused(503, "ServiceUnavailable");
            refused += 1;
            client = agent.connect(&noisy);
        } else {
            assert_eq!(answer.status, 400, "{answer:?}");
        }
    }
    assert!(refused > 0, "60 within 29 s are more than two in each");
    assert_eq!(agent.count("podcred_requests_total", "too_many_failures"), f64::from(refused));
    agent.ask(&noisy, &token).assert_credentials();
    let bad = cluster.eks.mint(token_for(&other, WEB).signed_by_a_foreign_key()).token;
    assert_eq!(agent.ask(&other, &bad).status, 400);
    agent.ask(&other, &cluster.token_of(&other, WEB)).assert_credentials();
}

#[test]
fn a_pod_with_many_good_tokens_is_served_with_each_and_a_few_are_remembered() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, other] = cluster.pods();
    let agent = cluster.agent(&[]);
    let verified = || agent.metric("podcred_tokens_verified_total", &[]).unwrap();
    agent.ask(&other, &cluster.token_of(&other, WEB)).assert_credentials();
    let others = cluster.token_of(&other, WEB);
    agent.ask(&other, &others).assert_credentials();
    let tokens: Vec<String> = (0..10).map(|_| cluster.token_of(&pod, WEB)).collect();
    let mut client = agent.connect(&pod);
    tokens.iter().for_each(|token| client.ask(token).assert_credentials());
    assert_eq!(verified(), 12.0);
    tokens[6..].iter().for_each(|token| client.ask(token).assert_credentials());
    agent.ask(&other, &others).assert_credentials();
    assert_eq!(verified(), 12.0, "the last four are remembered, and another pod's");
    client.ask(&tokens[0]).assert_credentials();
    assert_eq!(verified(), 13.0);
}
