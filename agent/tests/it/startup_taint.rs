//! The taint that keeps pods off a node until its agent is ready.

use std::io::{Read as _, Write as _};

use loadtest::api_server::{Access, ApiServer};
use loadtest::eks::{Config, Outage, SimulatedEks};
use serde_json::{Value, json};

use crate::harness::{Agent, until};

const NODE: &str = "ip-10-0-1-17.eu-west-1.compute.internal";
const KEY: &str = "podcred/agent-not-ready";

struct Cluster {
    eks: SimulatedEks,
    api: ApiServer,
}

impl Cluster {
    /// The issuer is away, without whose keys no agent is ready.
    async fn start(taints: Value, outruns: u32) -> Cluster {
        let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
        eks.settings(|s| s.issuer_outage = Outage::Refuse);
        let api = ApiServer::start().await.expect("the simulated API server starts");
        api.add_node(NODE, taints, outruns);
        Cluster { eks, api }
    }

    fn agent(&self) -> Agent {
        let flags = ["--node-name", NODE, "--startup-taint", KEY, "--api-server", &self.api.url()];
        Agent::start_unready(&self.eks, &flags)
    }

    fn issuer_comes_back(&self) {
        self.eks.settings(|s| s.issuer_outage = Outage::Off);
    }
}

fn taint(key: &str, effect: &str) -> Value {
    json!({ "key": key, "value": "x", "effect": effect, "timeAdded": "2026-11-21T10:00:00Z" })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_taken_off_when_the_agent_is_ready_and_others_stay_as_they_are() {
    let others = [taint("node.kubernetes.io/not-ready", "NoExecute"), taint("dedicated", "NoSchedule")];
    let taints = json!([others[0], taint(KEY, "NoSchedule"), others[1], taint(KEY, "NoExecute")]);
    let cluster = Cluster::start(taints.clone(), 2).await;
    let agent = cluster.agent();
    assert_eq!(agent.probe("/readyz").await.0, 503);
    assert_eq!((cluster.api.taints(NODE), cluster.api.requests()), (taints, 0), "the agent is not ready");
    cluster.issuer_comes_back();
    assert_eq!(agent.event("startup_taint_removed")["taint"], KEY);
    assert_eq!(agent.probe("/readyz").await.0, 200);
    assert_eq!(
        cluster.api.taints(NODE),
        json!(others),
        "also though others changed the node twice meanwhile"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_late_or_comes_back_is_taken_off_as_well() {
    let cluster = Cluster::start(json!([]), 0).await;
    let agent = cluster.agent();
    cluster.issuer_comes_back();
    until(async || cluster.api.requests() > 0).await;
    for _ in 0..2 {
        cluster.api.add_node(NODE, json!([taint(KEY, "NoSchedule")]), 0);
        agent.event("startup_taint_removed");
        assert_eq!(cluster.api.taints(NODE), json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_to_change_nodes_the_agent_says_so_once_and_goes_on_trying() {
    let cluster = Cluster::start(json!([taint(KEY, "NoSchedule")]), 0).await;
    cluster.api.set_access(Access::Forbidden);
    let agent = cluster.agent();
    cluster.issuer_comes_back();
    let told = agent.event("startup_taint_kept");
    assert_eq!(told["error"], "403 Forbidden");
    assert!(told["message"].as_str().unwrap().contains("`patch` on nodes"), "{told}");
    until(async || cluster.api.requests() >= 2).await;
    cluster.api.set_access(Access::Granted);
    agent.event("startup_taint_removed");
    assert_eq!(cluster.api.taints(NODE), json!([]));
    assert_eq!(agent.logs().matches("startup_taint_kept").count(), 1);
}

/// It accepts, and says nothing: as a connection that was lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_is_told_and_asked_again() {
    let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let flags = ["--node-name", NODE, "--startup-taint", KEY, "--api-server", &url];
    let agent = Agent::start_unready(&eks, &flags);
    let told = agent.event("startup_taint_kept");
    assert_eq!(told["error"], "the API server has not answered");
    let first = silent.accept().expect("the attempt that was told");
    let second = silent.accept().expect("the next one");
    assert_ne!(first.1, second.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_given_up_before_it_fills_the_memory() {
    const TAKEN_AT_MOST: usize = 64 << 20;
    let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
    let endless = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", endless.local_addr().expect("bound"));
    let served = std::thread::spawn(move || {
        let (mut asker, _) = endless.accept().expect("the agent connects");
        assert_ne!(asker.read(&mut [0; 4096]).expect("the agent asks"), 0);
        asker.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").expect("it listens");
        let blanks = [b' '; 1 << 16];
        (0..).map(|n| n * blanks.len()).find(|_| asker.write_all(&blanks).is_err()).unwrap_or_default()
    });
    let flags = ["--node-name", NODE, "--startup-taint", KEY, "--api-server", &url];
    let agent = Agent::start_unready(&eks, &flags);
    let told = agent.event("startup_taint_kept");
    assert!(told["error"].as_str().unwrap_or_default().contains("length limit exceeded"), "{told}");
    let taken = served.join().expect("it ends with the connection");
    assert!(taken < TAKEN_AT_MOST, "{taken} bytes were taken");
}
