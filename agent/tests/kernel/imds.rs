//! Pods that go to IMDS for the node's own role: seen, and refused where that was asked for.

use std::net::{SocketAddr, TcpListener, TcpStream};

use loadtest::node::{IMDS_V4, IMDS_V6, Place, Pod};
use nix::errno::Errno;

use crate::agent::{Agent, Cluster, NODE_NAME, SHOP, WEB, runs};
use crate::harness::{BROKEN, Bpffs, until};

const REFUSE: [&str; 2] = ["--imds", "refuse-pods"];
const CONNECTS: &str = "podcred_pod_imds_connects_total";

fn imds(cluster: &Cluster) -> [TcpListener; 2] {
    let listen = |address| cluster.node.agent().run(|| TcpListener::bind(address)).unwrap().unwrap();
    [listen(SocketAddr::from((IMDS_V4, 80))), listen(SocketAddr::from((IMDS_V6, 80)))]
}

/// Whether connect() succeeds; any other failure than the refusal is none of ours.
fn reaches(from: &Place, imds: &TcpListener) -> bool {
    let to = imds.local_addr().unwrap();
    match from.run(|| TcpStream::connect_timeout(&to, BROKEN)).unwrap() {
        Ok(_) => imds.accept().is_ok(),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32), "{error}");
            false
        }
    }
}

fn connects(agent: &Agent<'_>, pod: &Pod, result: &str) -> Option<f64> {
    agent.metric(CONNECTS, &[("pod_uid", &pod.uid()), ("result", result)])
}

#[test]
fn attempts_at_imds_are_counted_by_pod() {
    let Some(cluster) = Cluster::start() else { return };
    let [asks, asks_not] = cluster.pods();
    let host = cluster.host_network_pod();
    let [v4, v6] = imds(&cluster);
    let agent = cluster.agent(&[]);
    for (pod, imds) in [(&asks, &v4), (&asks, &v6), (&host, &v4)] {
        assert!(reaches(pod, imds));
    }
    drop(v4);
    asks.run(|| TcpStream::connect((IMDS_V4, 80)).unwrap_err()).unwrap();
    agent.ask(&asks_not, &cluster.token_of(&asks_not, WEB)).assert_credentials();

    let by_result = |pod| ["attempted", "established", "refused"].map(|result| connects(&agent, pod, result));
    assert_eq!(by_result(&asks), [Some(3.0), Some(2.0), Some(0.0)]);
    assert_eq!(by_result(&host), [Some(1.0), Some(1.0), Some(0.0)]);
    assert_eq!(by_result(&asks_not), [Some(0.0); 3]);
    assert_eq!(agent.count("podcred_imds_connects_total", "attempted"), 4.0);
}

#[test]
fn pods_are_refused_imds_and_host_network_pods_are_not() {
    let Some(cluster) = Cluster::start().filter(Cluster::host_network_is_known) else { return };
    let [pod] = cluster.pods();
    let host = cluster.host_network_pod();
    let [v4, v6] = imds(&cluster);
    let agent = cluster.agent(&REFUSE);
    for imds in [&v4, &v6] {
        assert!(!reaches(&pod, imds));
        assert!(reaches(&host, imds));
        assert!(reaches(cluster.node.agent(), imds));
    }
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    assert_eq!(connects(&agent, &pod, "refused"), Some(2.0));
    assert_eq!(connects(&agent, &pod, "established"), Some(0.0));
}

#[test]
fn an_excepted_service_accounts_pods_reach_imds_once_the_pods_are_listed() {
    let Some(cluster) = Cluster::start() else { return };
    let [excepted, refused, late] = cluster.pods();
    let [imds, _] = imds(&cluster);
    let api = cluster.api_server();
    runs(&api, &excepted, WEB, NODE_NAME);
    runs(&api, &refused, SHOP, NODE_NAME);
    let args = [REFUSE.as_slice(), &["--imds-except", "web/app"]].concat();
    let _agent = cluster.agent_that_watches(&api, &args);
    until("the excepted pod reaches IMDS", || reaches(&excepted, &imds));
    assert!(!reaches(&refused, &imds));
    assert!(!reaches(&late, &imds));
    runs(&api, &late, WEB, NODE_NAME);
    until("the late pod reaches IMDS", || reaches(&late, &imds));
    api.remove_pod(&excepted.uid());
    until("the pod that is no more does not", || !reaches(&excepted, &imds));
    assert!(reaches(&late, &imds));
}

/// What is pinned outlives the agent: so do exceptions, and the next agent may have been told other ones.
#[test]
fn exceptions_hold_while_the_agent_is_away_and_end_with_the_flag() {
    let Some(cluster) = Cluster::start() else { return };
    let [excepted, other] = cluster.pods();
    let [imds, _] = imds(&cluster);
    let bpffs = Bpffs::mount();
    let api = cluster.api_server();
    runs(&api, &excepted, WEB, NODE_NAME);
    runs(&api, &other, SHOP, NODE_NAME);
    let pinned = [REFUSE, bpffs.args()].concat();
    let excepting = |account| [&pinned[..], &["--imds-except", account]].concat();

    let agent = cluster.agent_that_watches(&api, &excepting("web/app"));
    until("the excepted pod reaches IMDS", || reaches(&excepted, &imds));
    drop(agent);
    assert!(reaches(&excepted, &imds));
    assert!(!reaches(&other, &imds));

    let agent = cluster.agent_that_watches(&api, &excepting("shop/cart"));
    until("the other pod reaches IMDS", || reaches(&other, &imds));
    until("the former exception has ended", || !reaches(&excepted, &imds));
    drop(agent);

    let _agent = cluster.agent(&pinned);
    until("no exception is left", || !reaches(&other, &imds));
}
