//! What /metrics says of each pod.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use loadtest::node::Pod;

use crate::agent::{Agent, Cluster, WEB, name_of, sample, token_for};
use crate::harness::{Bpffs, refuses, until};

const FAMILIES: [&str; 5] = [
    "podcred_pod_connections",
    "podcred_pod_requests_total",
    "podcred_pod_connects_total",
    "podcred_pod_connect_duration_seconds",
    "podcred_pod_imds_connects_total",
];

fn of(agent: &Agent<'_>, family: &str, pod: &Pod, more: &[(&str, &str)]) -> Option<f64> {
    agent.metric(family, &[&[("pod_uid", pod.uid().as_str())], more].concat())
}

#[test]
fn a_pod_has_its_connects_requests_and_latency_under_its_name() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod, nameless] = cluster.pods();
    let agent = cluster.agent(&[]);
    let token = cluster.token_of(&pod, WEB);
    let mut kept = agent.connect(&pod);
    for _ in 0..3 {
        kept.ask(&token).assert_credentials();
        agent.ask(&pod, &token).assert_credentials();
    }
    let bad = cluster.eks.mint(token_for(&nameless, WEB).signed_by_a_foreign_key()).token;
    assert_eq!(agent.ask(&nameless, &bad).status, 400);

    let name = name_of(&pod);
    let named = [("namespace", WEB.0), ("pod", &*name)];
    let result = |result| [named.as_slice(), &[("result", result)]].concat();
    until("closed connections are counted out", || {
        of(&agent, "podcred_pod_connections", &pod, &named) == Some(1.0)
    });
    assert_eq!(of(&agent, "podcred_pod_requests_total", &pod, &result("ok")), Some(6.0));
    assert_eq!(of(&agent, "podcred_pod_requests_total", &pod, &result("refused")), Some(0.0));
    assert_eq!(of(&agent, "podcred_pod_connects_total", &pod, &result("established")), Some(4.0));
    let duration = |suffix: &str| {
        of(&agent, &format!("podcred_pod_connect_duration_seconds_{suffix}"), &pod, &named).unwrap()
    };
    assert_eq!(duration("count"), 4.0);
    assert!(duration("sum") > 0.0);
    let all = [named.as_slice(), &[("le", "+Inf")]].concat();
    assert_eq!(of(&agent, "podcred_pod_connect_duration_seconds_bucket", &pod, &all), Some(4.0));
    // A name is what a good token says, nothing less.
    let unnamed = [("namespace", ""), ("pod", ""), ("result", "refused")];
    assert_eq!(of(&agent, "podcred_pod_requests_total", &nameless, &unnamed), Some(1.0));
    assert_eq!(agent.count("podcred_connects_total", "established"), 5.0);
}

#[test]
fn connects_while_no_agent_is_there_are_counted_where_the_programs_are_pinned() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let bpffs = Bpffs::mount();
    drop(cluster.agent(&bpffs.args()));
    for _ in 0..3 {
        assert!(refuses(&pod));
    }
    let agent = cluster.agent(&bpffs.args());
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    let connects = |result| of(&agent, "podcred_pod_connects_total", &pod, &[("result", result)]);
    assert_eq!((connects("refused"), connects("established")), (Some(3.0), Some(1.0)));
}

#[test]
fn a_pod_that_is_gone_is_in_no_family_and_still_in_the_nodes_numbers() {
    let Some(cluster) = Cluster::start() else { return };
    let [stays, goes] = cluster.pods();
    let agent = cluster.agent(&[]);
    for pod in [&stays, &goes] {
        agent.ask(pod, &cluster.token_of(pod, WEB)).assert_credentials();
    }
    let uid = goes.uid();
    assert!(agent.scrape().contains(&uid));
    drop(goes);
    until("the sweep has passed", || !agent.scrape().contains(&uid));
    let scrape = agent.scrape();
    assert!(
        FAMILIES[..2].iter().all(|family| sample(&scrape, family, &[("pod_uid", &stays.uid())]).is_some())
    );
    assert_eq!(sample(&scrape, "podcred_connects_total", &[("result", "established")]), Some(2.0));
}

#[test]
fn pods_over_the_cap_are_left_out_and_counted() {
    let Some(cluster) = Cluster::start() else { return };
    let [asks, first, second] = cluster.pods();
    let agent = cluster.agent(&["--pod-metrics-max", "1"]);
    for pod in [&first, &second] {
        agent.ask(pod, "no token at all");
    }
    agent.ask(&asks, &cluster.token_of(&asks, WEB)).assert_credentials();
    let scrape = agent.scrape();
    assert_eq!(sample(&scrape, "podcred_pods_left_out", &[]), Some(2.0));
    // Those that ask for credentials come first.
    assert!(
        scrape.contains(&asks.uid()) && !scrape.contains(&first.uid()) && !scrape.contains(&second.uid())
    );
}

#[test]
fn pod_metrics_can_be_turned_off() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let agent = cluster.agent(&["--pod-metrics", "off"]);
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    let scrape = agent.scrape();
    assert!(!scrape.contains(&pod.uid()) && !scrape.contains(&name_of(&pod)), "{scrape}");
    assert!(FAMILIES.iter().all(|family| !scrape.contains(family)), "{scrape}");
    assert_eq!(agent.count("podcred_connects_total", "established"), 1.0);
}

#[test]
fn prometheus_finds_nothing_wrong() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let agent = cluster.agent(&[]);
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    let scrape = agent.scrape();
    assert!(FAMILIES.iter().all(|family| scrape.contains(&format!("# HELP {family} "))), "{scrape}");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match promtool.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("left out: there is no promtool");
            return;
        }
        spawned => spawned.unwrap(),
    };
    // The official agent's names are as they are; promtool would object to them.
    let ours = scrape.lines().filter(|line| !line.contains("pod_identity_"));
    let ours: String = ours.flat_map(|line| [line, "\n"]).collect();
    promtool.stdin.take().unwrap().write_all(ours.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
