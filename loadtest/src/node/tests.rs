//! Needs root; without it the tests say that they were left out.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::left_out_without_root;

const BROKEN: Duration = Duration::from_secs(20);

fn node(layout: Layout) -> Option<Node> {
    if left_out_without_root() {
        return None;
    }
    Some(Node::start(layout).unwrap())
}

/// The addresses that both ends see of one connection from `pod` to `to` on the node.
fn connect(node: &Node, pod: &Place, to: IpAddr) -> (SocketAddr, SocketAddr) {
    let listener = node.agent().run(|| TcpListener::bind((to, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = pod.run(|| TcpStream::connect_timeout(&address, BROKEN)).unwrap().unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    client.set_read_timeout(Some(BROKEN)).unwrap();
    client.read_exact(&mut [0]).unwrap();
    (client.local_addr().unwrap(), peer)
}

#[test]
fn pods_reach_the_link_local_addresses_from_their_own() {
    let Some(node) = node(Layout::default()) else { return };
    let pods = node.pods(3).unwrap();
    for pod in &pods {
        for (to, from) in [
            (IpAddr::from(CREDENTIALS_V4), IpAddr::from(pod.ipv4())),
            (IMDS_V4.into(), pod.ipv4().into()),
            (CREDENTIALS_V6.into(), pod.ipv6().into()),
            (IMDS_V6.into(), pod.ipv6().into()),
        ] {
            let (local, peer) = connect(&node, pod, to);
            assert_eq!(local, peer);
            assert_eq!(peer.ip(), from);
        }
    }
}

#[test]
fn a_host_network_pod_connects_from_the_address_itself() {
    let Some(node) = node(Layout::default()) else { return };
    let pod = node.pod(PodSpec::default().host_network()).unwrap();
    for to in [IpAddr::from(CREDENTIALS_V4), CREDENTIALS_V6.into()] {
        let (_, peer) = connect(&node, &pod, to);
        assert_eq!(peer.ip(), to);
    }
}

#[test]
fn threads_and_processes_of_a_pod_are_in_its_cgroup() {
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let Some(node) = node(Layout { driver, runtime: Runtime::CriO }) else { return };
        let pods = node.pods(2).unwrap();
        for pod in &pods {
            let own = pod.run(|| std::fs::read_to_string("/proc/thread-self/cgroup").unwrap()).unwrap();
            assert!(own.contains(&pod.cgroup_in_proc(&node)), "{own}");
            let mut sleeper = pod.spawn(Command::new("sleep").arg("1000")).unwrap();
            let of_process = format!("/proc/{}/cgroup", sleeper.id());
            assert!(std::fs::read_to_string(of_process).unwrap().contains(&pod.cgroup_in_proc(&node)));
            sleeper.kill().unwrap();
        }
    }
}

impl Pod {
    fn cgroup_in_proc(&self, node: &Node) -> String {
        format!("0::/{}\n", self.cgroup().strip_prefix(node.cgroup_mount()).unwrap().display())
    }
}

#[test]
fn a_thread_that_goes_home_is_in_no_pod_and_on_the_node() {
    let Some(node) = node(Layout::default()) else { return };
    let (pod, home) = (node.pod(PodSpec::default()).unwrap(), node.home().unwrap());
    let network = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let of_node = node.agent().run(network).unwrap();
    let (cgroup, of_home) = pod
        .run(|| {
            home.enter().unwrap();
            (std::fs::read_to_string("/proc/thread-self/cgroup").unwrap(), network())
        })
        .unwrap();
    assert!(
        !cgroup.contains("kubepods") && cgroup.contains(&format!("podcred-test-{}", std::process::id())),
        "{cgroup}"
    );
    assert_eq!(of_home, of_node);
}

#[test]
fn the_address_of_a_dead_pod_can_be_inherited() {
    let Some(node) = node(Layout::default()) else { return };
    let first = node.pod(PodSpec::default()).unwrap();
    let spec = PodSpec::default().with_addresses_of(&first);
    let (_, peer) = connect(&node, &first, CREDENTIALS_V4.into());
    drop(first);
    let heir = node.pod(spec).unwrap();
    let (_, heirs) = connect(&node, &heir, CREDENTIALS_V4.into());
    assert_eq!(heirs.ip(), peer.ip());
}

#[test]
fn nothing_is_left_of_a_node_that_panicked_or_was_forgotten_by_its_processes() {
    let Some(node) = node(Layout::default()) else { return };
    let cgroup = node.cgroup().to_owned();
    let panicked = std::thread::spawn(move || {
        let pod = node.pod(PodSpec::default()).unwrap();
        let left = pod.spawn(Command::new("sleep").arg("1000")).unwrap();
        std::mem::forget(left);
        pod.nested("made/by/the/container").unwrap();
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(!cgroup.exists());
}

#[test]
fn what_a_killed_run_left_behind_is_swept() {
    if node(Layout::default()).is_none() {
        return;
    }
    let mut child = Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let mount = cgroup::cgroup2_mount().unwrap();
    let left = mount.join(format!("podcred-test-{dead}"));
    std::fs::create_dir(&left).unwrap();
    cgroup::make_threaded(&left, Path::new("node-0/kubepods/burstable")).unwrap();
    cgroup::sweep(&mount).unwrap();
    assert!(!left.exists());
}
