//! A token is good for the pod that the kernel sees, as far as the agent was told to mind.

use std::net::TcpStream;

use loadtest::node::CREDENTIALS_V4;

use crate::agent::{Client, Cluster, NODE_NAME, WEB, name_of, token_for};
use crate::harness::until;

const COMPARED: &str = "podcred_callers_compared_total";

#[test]
fn a_stolen_token_buys_nothing_and_its_owner_is_served_all_the_while() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, thief, accomplice] = cluster.pods();
    let agent = cluster.agent(&["--verify", "enforce"]);
    let token = cluster.token_of(&owner, WEB);
    let mut owners = agent.connect(&owner);
    owners.ask(&token).assert_credentials();

    let message = agent.ask(&thief, &token).assert_refused(403, "TokenOfAnotherPod");
    assert!(message.contains(&thief.uid()) && message.contains(&name_of(&owner)), "{message}");
    owners.ask(&token).assert_credentials();
    agent.ask_over_ipv6(&thief, &token).assert_refused(403, "TokenOfAnotherPod");
    owners.ask(&token).assert_credentials();
    agent.ask(&accomplice, &token).assert_refused(403, "TokenOfAnotherPod");
    agent.ask_over_ipv6(&owner, &token).assert_credentials();

    assert_eq!(agent.count("podcred_requests_total", "other_pod"), 3.0);
    assert_eq!(agent.count(COMPARED, "other_pod"), 3.0);
    assert_eq!(agent.count(COMPARED, "same_pod"), 4.0);
    // The thief's second attempt came before the accomplice's: it would stand between them.
    let told = agent.until_logged("other_pod_presents_token", 2);
    let callers: Vec<_> = told.iter().map(|line| line["caller_uid"].as_str().unwrap()).collect();
    assert_eq!(callers, [thief.uid(), accomplice.uid()]);
    assert_eq!(told[0]["token_uid"], owner.uid());
    assert_eq!(told[0]["token_pod"], name_of(&owner));
}

#[test]
fn a_stolen_token_is_refused_also_where_the_agent_knows_it_from_the_thief_already() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, thief] = cluster.pods();
    let agent = cluster.agent(&["--verify", "enforce"]);
    let token = cluster.token_of(&owner, WEB);
    let mut kept = agent.connect(&thief);
    for _ in 0..4 {
        agent.ask(&thief, &token).assert_refused(403, "TokenOfAnotherPod");
        kept.ask(&token).assert_refused(403, "TokenOfAnotherPod");
        agent.ask(&owner, &token).assert_credentials();
    }
    let own = cluster.token_of(&thief, WEB);
    for _ in 0..4 {
        agent.ask(&thief, &own).assert_credentials();
    }
    kept.ask(&token).assert_refused(403, "TokenOfAnotherPod");
    assert_eq!(agent.count(COMPARED, "other_pod"), 9.0);
    assert_eq!(agent.count(COMPARED, "same_pod"), 8.0);
}

#[test]
fn audit_serves_a_stolen_token_and_tells() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, thief] = cluster.pods();
    let agent = cluster.agent(&[]);
    agent.ask(&thief, &cluster.token_of(&thief, WEB)).assert_credentials();
    agent.ask(&thief, &cluster.token_of(&owner, WEB)).assert_credentials();
    assert_eq!(agent.count(COMPARED, "other_pod"), 1.0);
    let told = agent.until_logged("other_pod_presents_token", 1);
    // By its own token the caller's name is known too.
    assert_eq!(told[0]["caller_pod"], name_of(&thief));
}

#[test]
fn a_stolen_token_is_worth_nothing_when_its_pod_has_ended_in_audit_either() {
    let Some(cluster) = Cluster::start() else { return };
    // It has no network of its own, whose end would be felt by the others on the bridge.
    let owner = cluster.host_network_pod();
    let [thief] = cluster.pods();
    let agent = cluster.agent(&[]);
    let token = cluster.token_of(&owner, WEB);
    agent.ask(&owner, &token).assert_credentials();
    let mut thieves = agent.connect(&thief);
    let mut nobodys = agent.connect(cluster.node.agent());
    for _ in 0..3 {
        thieves.ask(&token).assert_credentials();
        nobodys.ask(&token).assert_credentials();
    }
    cluster.eks.delete_pod(&owner.uid());
    drop(owner);
    // Whose a connection of nobody's is cannot be said, so EKS Auth is asked.
    until("the agent knows of its end", || {
        [&mut thieves, &mut nobodys].map(|it| it.ask(&token).status) == [403, 400]
    });
    agent.ask(&thief, &token).assert_refused(403, "TokenOfAnotherPod");
    agent.ask(cluster.node.agent(), &token).assert_refused(400, "InvalidTokenException");
}

#[test]
fn with_verification_off_nobody_looks() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, other] = cluster.pods();
    let agent = cluster.agent(&["--verify", "off"]);
    agent.ask(&other, &cluster.token_of(&owner, WEB)).assert_credentials();
    assert_eq!(agent.count(COMPARED, "not_compared"), 1.0);
    assert_eq!(agent.count("podcred_connections_attributed_total", "off"), 1.0);
}

#[test]
fn a_host_network_pod_is_known_although_its_address_is_the_agents_own() {
    let Some(cluster) = Cluster::start() else { return };
    let pod = cluster.host_network_pod();
    let [owner] = cluster.pods();
    let agent = cluster.agent(&["--verify", "enforce"]);
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    agent.ask(&pod, &cluster.token_of(&owner, WEB)).assert_refused(403, "TokenOfAnotherPod");
}

#[test]
fn a_process_of_the_node_is_refused_a_pods_token_unless_unattributed_callers_are_allowed() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner] = cluster.pods();
    let token = cluster.token_of(&owner, WEB);
    {
        let agent = cluster.agent(&["--verify", "enforce"]);
        // For two minutes after the agent's start it may be one that connected before the programs were there.
        let message = agent.ask(cluster.node.agent(), &token).assert_refused(503, "ServiceUnavailable");
        assert!(message.contains("the pod that opened this connection is not known"), "{message}");
        assert_eq!(agent.count("podcred_requests_total", "unattributed_for_now"), 1.0);
    }
    {
        let agent = cluster.agent(&["--verify", "enforce", "--verify-unattributed", "allow"]);
        agent.ask(cluster.node.agent(), &token).assert_credentials();
    }
    let agent = cluster.agent(&[]);
    agent.ask(cluster.node.agent(), &token).assert_credentials();
    assert_eq!(agent.count(COMPARED, "unattributed"), 1.0);
}

#[test]
fn a_token_of_another_node_is_refused_or_counted() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let elsewhere = cluster.eks.mint(token_for(&pod, WEB).node_name("ip-10-0-9-9")).token;
    let nowhere = cluster.eks.mint(token_for(&pod, WEB)).token;
    {
        let agent = cluster.agent(&["--verify", "enforce"]);
        agent.ask(&pod, &elsewhere).assert_refused(403, "TokenOfAnotherNode");
        // Clusters before 1.30 do not name it.
        agent.ask(&pod, &nowhere).assert_credentials();
        agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    }
    let agent = cluster.agent(&["--verify", "audit", "--node-name", NODE_NAME]);
    agent.ask(&pod, &elsewhere).assert_credentials();
    assert_eq!(agent.count(COMPARED, "other_node"), 1.0);
}

/// Who called connect() is what counts, for as long as the connection lives.
#[test]
fn a_connection_stays_its_pods_when_its_process_moves_and_its_token_is_renewed() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, other] = cluster.pods();
    let _agent = cluster.agent(&["--verify", "enforce"]);
    let (token, others) = (cluster.token_of(&pod, WEB), cluster.token_of(&other, WEB));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            pod.enter().unwrap();
            let stream = TcpStream::connect((CREDENTIALS_V4, 80)).unwrap();
            let mut client = Client::of(stream, CREDENTIALS_V4.into());
            client.ask(&token).assert_credentials();
            other.enter().unwrap();
            client.ask(&token).assert_credentials();
            client.ask(&cluster.token_of(&pod, WEB)).assert_credentials();
            client.ask(&others).assert_refused(403, "TokenOfAnotherPod");
        });
    });
}
