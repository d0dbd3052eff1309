//! Pods that go to IMDS for the node's own role: seen, and refused where that was asked for.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use loadtest::node::{IMDS_V4, IMDS_V6, Place, Pod};

use crate::agent::{Agent, Bpffs, Cluster, NODE_NAME, SHOP, WEB, runs, until};
use crate::harness::BROKEN;

const REFUSE: [&str; 2] = ["--imds", "refuse-pods"];
const CONNECTS: &str = "podcred_pod_imds_connects_total";

/// Nobody accepts: the handshake is all there is to see.
fn imds(cluster: &Cluster) -> [TcpListener; 2] {
    let listen = |address| cluster.node.agent().run(|| TcpListener::bind(address)).unwrap().unwrap();
    [listen(SocketAddr::from((IMDS_V4, 80))), listen(SocketAddr::from((IMDS_V6, 80)))]
}

fn connect_imds(from: &Place, imds: &TcpListener) -> io::Result<TcpStream> {
    let to = imds.local_addr()?;
    from.run(|| TcpStream::connect_timeout(&to, BROKEN))?
}

#[track_caller]
fn assert_refused(from: &Place, imds: &TcpListener) {
    let error = connect_imds(from, imds).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EPERM as i32), "{error}");
}

fn connects(agent: &Agent<'_>, pod: &Pod, result: &str) -> Option<f64> {
    agent.metric(CONNECTS, &[("pod_uid", pod.uid()), ("result", result)])
}

#[test]
fn attempts_at_imds_are_counted_by_pod() {
    let Some(cluster) = Cluster::start() else { return };
    let [asks, asks_not] = cluster.pods();
    let host = cluster.host_network_pod();
    let [v4, v6] = imds(&cluster);
    let agent = cluster.agent(&[]);
    for (pod, imds) in [(&asks, &v4), (&asks, &v6), (&host, &v4)] {
        connect_imds(pod, imds).unwrap();
    }
    drop((v4, v6));
    connect_imds(&asks, &imds(&cluster)[0]).unwrap();
    agent.ask(&asks_not, &cluster.token_of(&asks_not, WEB)).assert_credentials();

    let by_result = |pod| ["attempted", "established", "refused"].map(|result| connects(&agent, pod, result));
    assert_eq!(by_result(&asks), [Some(3.0), Some(3.0), Some(0.0)]);
    assert_eq!(by_result(&host), [Some(1.0), Some(1.0), Some(0.0)]);
    assert_eq!(by_result(&asks_not), [Some(0.0); 3]);
    assert_eq!(agent.count("podcred_imds_connects_total", "attempted"), 4.0);
}

#[test]
fn pods_are_refused_imds_and_host_network_pods_are_not() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let host = cluster.host_network_pod();
    let [v4, v6] = imds(&cluster);
    let agent = cluster.agent(&REFUSE);
    for imds in [&v4, &v6] {
        assert_refused(&pod, imds);
        connect_imds(&host, imds).unwrap();
        connect_imds(cluster.node.agent(), imds).unwrap();
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
    until("the excepted pod reaches IMDS", || connect_imds(&excepted, &imds).is_ok());
    assert_refused(&refused, &imds);
    assert_refused(&late, &imds);
    runs(&api, &late, WEB, NODE_NAME);
    until("the late pod reaches IMDS", || connect_imds(&late, &imds).is_ok());
    api.remove_pod(excepted.uid());
    until("the pod that is no more does not", || connect_imds(&excepted, &imds).is_err());
    connect_imds(&late, &imds).unwrap();
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
    let pinned = [REFUSE.as_slice(), &["--pin", bpffs.pins()]].concat();
    let excepting = |account| [&pinned[..], &["--imds-except", account]].concat();

    let agent = cluster.agent_that_watches(&api, &excepting("web/app"));
    until("the excepted pod reaches IMDS", || connect_imds(&excepted, &imds).is_ok());
    drop(agent);
    connect_imds(&excepted, &imds).unwrap();
    assert_refused(&other, &imds);

    let agent = cluster.agent_that_watches(&api, &excepting("shop/cart"));
    until("the other pod reaches IMDS", || connect_imds(&other, &imds).is_ok());
    until("the former exception has ended", || connect_imds(&excepted, &imds).is_err());
    drop(agent);

    let _agent = cluster.agent(&pinned);
    until("no exception is left", || connect_imds(&other, &imds).is_err());
}
