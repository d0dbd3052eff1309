//! Drivers that may present other pods' tokens, known by the API server's word on their own pods.

use loadtest::api_server::Access;
use loadtest::node::Pod;

use crate::agent::{Agent, Cluster, NODE_NAME, WEB, runs};
use crate::harness::until;

const CSI: (&str, &str) = ("kube-system", "csi");
const ENFORCE: [&str; 4] = ["--verify", "enforce", "--delegate", "kube-system/csi"];

fn is_a_delegate(agent: &Agent<'_>, pod: &Pod, token: &str) -> bool {
    agent.ask(pod, token).status == 200
}

#[test]
fn a_delegate_presents_others_tokens_once_the_pods_are_listed_and_nobody_else_does() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, driver, liar, elsewhere] = cluster.pods();
    let api = cluster.api_server();
    api.set_access(Access::Down);
    runs(&api, &owner, WEB, NODE_NAME);
    runs(&api, &driver, CSI, NODE_NAME);
    runs(&api, &liar, WEB, NODE_NAME);
    runs(&api, &elsewhere, CSI, "another-node");
    let agent = cluster.agent_that_watches(&api, &ENFORCE);
    let token = cluster.token_of(&owner, WEB);

    let message = agent.ask(&driver, &token).assert_refused(503, "ServiceUnavailable");
    assert!(message.contains("delegate"), "{message}");
    assert_eq!(agent.count("podcred_requests_total", "delegates_unknown"), 1.0);
    agent.ask(&owner, &token).assert_credentials();
    assert!(agent.readiness().body.contains("pods: degraded"), "{}", agent.readiness().body);

    api.set_access(Access::Granted);
    until("the driver is known", || is_a_delegate(&agent, &driver, &token));
    assert!(agent.readiness().body.contains("pods: ok"), "{}", agent.readiness().body);
    assert_eq!(agent.count("podcred_callers_compared_total", "delegate"), 1.0);
    assert!(agent.logged("other_pod_presents_token").is_empty());
    // A token says who it is for, not who presents it.
    let unknown = (503, "ServiceUnavailable");
    for (other, refusal) in [(&liar, (403, "TokenOfAnotherPod")), (&elsewhere, unknown)] {
        let claimed = [cluster.token_of(other, CSI), cluster.token_of(&driver, CSI)];
        agent.ask(other, &claimed[1]).assert_refused(refusal.0, refusal.1);
        // Its own token, whatever account it names, makes it no delegate either. That account has no role.
        agent.ask(other, &claimed[0]).assert_refused(404, "ResourceNotFoundException");
        // One that this node's list does not have (yet) may be a delegate's.
        agent.ask(other, &token).assert_refused(refusal.0, refusal.1);
    }
}

#[test]
fn what_was_known_of_delegates_stays_known_while_the_api_server_is_away() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, first, second] = cluster.pods();
    let api = cluster.api_server();
    runs(&api, &first, CSI, NODE_NAME);
    let agent = cluster.agent_that_watches(&api, &ENFORCE);
    let token = cluster.token_of(&owner, WEB);
    until("the first driver is known", || is_a_delegate(&agent, &first, &token));

    let before = api.requests();
    api.set_access(Access::Down);
    api.remove_pod(&first.uid());
    runs(&api, &second, CSI, NODE_NAME);
    until("the agent has seen that the API server is away", || api.requests() > before);
    agent.until_logged("pods_not_watched", 1);
    agent.ask(&first, &token).assert_credentials();
    agent.ask(&second, &token).assert_refused(503, "ServiceUnavailable");

    api.set_access(Access::Granted);
    until("the second driver is known", || is_a_delegate(&agent, &second, &token));
    agent.ask(&first, &token).assert_refused(503, "ServiceUnavailable");
    // Through the watch alone, with no new list.
    let before = api.requests();
    runs(&api, &first, CSI, NODE_NAME);
    until("the first driver is known again", || is_a_delegate(&agent, &first, &token));
    api.remove_pod(&second.uid());
    until("the second driver is none any more", || !is_a_delegate(&agent, &second, &token));
    assert_eq!(api.requests(), before);
}

#[test]
fn without_leave_to_list_pods_the_agent_says_so_once_and_in_its_readiness() {
    let Some(cluster) = Cluster::start() else { return };
    let [owner, driver] = cluster.pods();
    let api = cluster.api_server();
    api.set_access(Access::Forbidden);
    let agent = cluster.agent_that_watches(&api, &ENFORCE);
    // The third comes after the second has failed.
    until("the agent has asked three times", || api.requests() >= 3);
    let told = agent.logged("pods_not_watched");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["error"].as_str().unwrap().contains("403 Forbidden"), "{told:?}");
    assert!(told[0]["message"].as_str().unwrap().contains("`list`"), "{told:?}");
    assert!(agent.readiness().body.contains("pods: degraded"), "{}", agent.readiness().body);
    let token = cluster.token_of(&owner, WEB);
    agent.ask(&driver, &token).assert_refused(503, "ServiceUnavailable");
}
