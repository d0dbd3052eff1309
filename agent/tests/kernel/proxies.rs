//! Node proxies that connect for pods from inside the pods' network namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use loadtest::node::{Place, Pod, Process};

use crate::agent::{Agent, Cluster, WEB};
use crate::harness::until;

/// What keeps a network namespace in reach, as the pause container does.
fn pause(pod: &Pod) -> Process {
    pod.spawn(Command::new("sleep").arg("1000")).unwrap()
}

/// The proxy inside this pod's network.
fn proxy_in(proxy: &Pod, pod: &Process) -> Place {
    proxy.with_network_of(pod).unwrap()
}

fn agent_that_trusts<'a>(cluster: &'a Cluster, cgroup: &Path) -> Agent<'a> {
    let cgroup = cgroup.to_str().unwrap();
    cluster.agent(&["--verify", "enforce", "--trusted-proxy-cgroup", cgroup])
}

fn the_pod_is_known_by_its_own_connections(trusted: impl Fn(&Pod) -> PathBuf) {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, proxy, other] = cluster.pods();
    let agent = agent_that_trusts(&cluster, &trusted(&proxy));
    let pause = pause(&pod);
    let inside = proxy_in(&proxy, &pause);
    let (token, others) = (cluster.token_of(&pod, WEB), cluster.token_of(&other, WEB));

    agent.ask(&inside, &token).assert_refused(503, "ServiceUnavailable");
    assert_eq!(agent.count("podcred_requests_total", "unattributed_for_now"), 1.0);
    agent.ask(&pod, &token).assert_credentials();
    agent.ask(&inside, &token).assert_credentials();
    let message = agent.ask(&inside, &others).assert_refused(403, "TokenOfAnotherPod");
    assert!(message.contains(&pod.uid()), "{message}");
}

#[test]
fn a_proxy_connects_for_a_pod_that_has_connected_itself() {
    the_pod_is_known_by_its_own_connections(|proxy| proxy.cgroup().parent().unwrap().to_owned());
}

/// A pod may hold more than its proxy; then the container is what is trusted.
#[test]
fn a_proxy_may_be_named_by_its_containers_cgroup() {
    the_pod_is_known_by_its_own_connections(|proxy| proxy.cgroup());
}

#[test]
fn a_proxy_in_the_hosts_network_connects_for_nobody() {
    let Some(cluster) = Cluster::start().filter(Cluster::host_network_is_known) else { return };
    let [pod, proxy] = cluster.pods();
    let host = cluster.host_network_pod();
    let agent = agent_that_trusts(&cluster, &proxy.cgroup());
    let token = cluster.token_of(&pod, WEB);
    // Whoever connected from there first must not own it.
    agent.ask(&host, &cluster.token_of(&host, WEB)).assert_credentials();
    let outside = proxy_in(&proxy, agent.process());
    agent.ask(&outside, &token).assert_refused(403, "UnknownCaller");
    agent.ask(&outside, &cluster.token_of(&host, WEB)).assert_refused(403, "UnknownCaller");
}

#[test]
fn a_pod_that_is_no_trusted_proxy_stays_itself_in_anothers_network() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, proxy, other] = cluster.pods();
    let agent = agent_that_trusts(&cluster, &proxy.cgroup());
    let pause = pause(&pod);
    let token = cluster.token_of(&pod, WEB);
    agent.ask(&pod, &token).assert_credentials();
    let inside = proxy_in(&other, &pause);
    agent.ask(&inside, &token).assert_refused(403, "TokenOfAnotherPod");
    agent.ask(&inside, &cluster.token_of(&other, WEB)).assert_credentials();
    // And has not taken the namespace.
    agent.ask(&proxy_in(&proxy, &pause), &token).assert_credentials();
}

/// A guaranteed pod is noted by its container.
#[test]
fn a_pod_whose_container_ended_is_learned_anew_by_its_next_one() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, proxy] = cluster.pods();
    let agent = agent_that_trusts(&cluster, &proxy.cgroup());
    let pause = pause(&pod);
    let inside = proxy_in(&proxy, &pause);
    let token = cluster.token_of(&pod, WEB);
    let ended = pod.nested(&format!("../cri-containerd-{}.scope", "0f".repeat(32))).unwrap();
    agent.ask(&ended, &token).assert_credentials();
    agent.ask(&inside, &token).assert_credentials();

    until("the container's threads have left", || fs::remove_dir(ended.cgroup()).is_ok());
    agent.ask(&inside, &token).assert_refused(503, "ServiceUnavailable");
    agent.ask(&pod, &token).assert_credentials();
    agent.ask(&inside, &token).assert_credentials();
}
