//! Attribution and counters, from cgroups on this machine's loopback.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use agent_ebpf::SOCKETS_PER_GROUP;
use podcred::attribute::probe::{Counters, Kind, Probe, ProbeConfig};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::cgroups::{Node, until};

pub(crate) const POD: &str = "kubepods/burstable/pod0f5c7a1e-7a3f-4c5e-9a34-2a0d5a1c7b11";
pub(crate) const CONTAINER: &str = "kubepods/burstable/pod0f5c7a1e-7a3f-4c5e-9a34-2a0d5a1c7b11/container";

const OTHER: &str = "kubepods/besteffort/pod6d0c6a52-7d1c-4b5e-a7a5-7a3df7a4a6d2/container";
const GUARANTEED: &str = "kubepods/pod8be2a8c4-33f2-4b38-9d0c-6f4f4f1d6f0e/container";

pub(crate) const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// A socket with a free port, not listening yet.
fn bound(address: SocketAddr) -> (Socket, SocketAddr) {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.bind(&address.into()).expect("a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    (socket, address)
}

/// A listener whose callers are wanted.
pub(crate) fn listener(probe: &Probe, address: SocketAddr) -> (TcpListener, SocketAddr) {
    let (socket, address) = bound(address);
    probe.watch(address, Kind::Credentials).expect("there is room");
    probe.mark(&socket).expect("a marker");
    socket.listen(128).expect("listening");
    (socket.into(), address)
}

pub(crate) fn counters(probe: &Probe, group: u64) -> Counters {
    probe.counters().expect("readable").remove(&group).unwrap_or_default()
}

/// Opens one connection from the container, and says whose it is by the kernel's word.
pub(crate) fn attributed_to(node: &Node, probe: &Probe, listener: &(TcpListener, SocketAddr)) -> Option<u64> {
    let _client = node.inside(CONTAINER, || TcpStream::connect(listener.1)).expect("somebody listens");
    let (accepted, _) = listener.0.accept().expect("it is there");
    probe.caller(&accepted).expect("readable").map(|caller| caller.cgroup_id)
}

#[test]
fn a_connection_is_attributed_to_the_cgroup_that_opened_it() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    for address in [V4, V6] {
        let (listener, address) = listener(&probe, address);
        let _client = node.inside(CONTAINER, || TcpStream::connect(address).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        let caller = probe.caller(&accepted).unwrap().expect("attributed");
        assert_eq!((caller.cgroup_id, caller.group), (node.id(CONTAINER), node.id(POD)), "{address}");
        assert_eq!(caller.tgid, std::process::id());
        assert!(caller.host_network(), "this is the initial network namespace");
    }
}

#[test]
fn v4_mapped_addresses_meet_v4_ones_on_either_side() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let mapped = |port| SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port));

    let (v4_listener, address) = listener(&probe, V4);
    let _client = node.inside(CONTAINER, || {
        let client = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        client.connect(&mapped(address.port()).into()).unwrap();
        client
    });
    let (accepted, _) = v4_listener.accept().unwrap();
    assert_eq!(probe.caller(&accepted).unwrap().unwrap().cgroup_id, node.id(CONTAINER), "mapped to v4");

    let (both, address) = bound(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
    probe.watch(v4, Kind::Credentials).unwrap();
    probe.mark(&both).unwrap();
    both.listen(128).unwrap();
    let _client = node.inside(CONTAINER, || TcpStream::connect(v4).unwrap());
    let (accepted, _) = both.accept().unwrap();
    assert_eq!(
        probe.caller(&accepted).unwrap().unwrap().cgroup_id,
        node.id(CONTAINER),
        "v4 to a dual listener"
    );
}

#[test]
fn a_listener_that_is_not_marked_has_no_callers() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let (socket, address) = bound(V4);
    probe.watch(address, Kind::Credentials).unwrap();
    socket.listen(128).unwrap();
    assert_eq!(attributed_to(&node, &probe, &(socket.into(), address)), None);
    assert_eq!(counters(&probe, node.id(POD)).established, 1, "it was watched all the same");
}

#[test]
fn a_process_outside_kubepods_is_nobody() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let (listener, address) = listener(&probe, V4);
    let _client = TcpStream::connect(address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(probe.caller(&accepted).unwrap(), None);
}

#[test]
fn each_outcome_of_connect_is_counted_for_its_pod() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let (listener, address) = listener(&probe, V4);
    let (silent, refusing) = bound(V4);
    probe.watch(refusing, Kind::Credentials).unwrap();
    let pod = node.id(POD);
    node.inside(CONTAINER, || {
        TcpStream::connect(address).unwrap();
        UdpSocket::bind(V4).unwrap().connect(address).unwrap();
        assert_eq!(TcpStream::connect(refusing).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
    drop(listener);
    let after = counters(&probe, pod);
    assert_eq!((after.connects, after.established, after.refused, after.timed_out), (2, 1, 1, 0));
    assert_eq!(after.latency.iter().sum::<u64>(), 1);
    assert!(after.latency_sum > 0);

    // A listener with a full queue answers no SYN. One more than its backlog fit.
    silent.listen(0).unwrap();
    node.inside(CONTAINER, || {
        let _queued = TcpStream::connect(refusing).unwrap();
        let patience = Duration::from_millis(50);
        assert_eq!(TcpStream::connect_timeout(&refusing, patience).unwrap_err().kind(), ErrorKind::TimedOut);
    });
    let after = counters(&probe, pod);
    assert_eq!((after.connects, after.refused, after.timed_out), (4, 1, 1), "given up without an answer");

    probe.forget_group(pod).unwrap();
    assert_eq!(counters(&probe, pod), Counters::default());
}

#[test]
fn a_socket_that_goes_elsewhere_after_it_was_ours_counts_no_more() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let (_listener, address) = listener(&probe, V4);
    let (_silent, elsewhere) = bound(V4);
    node.inside(CONTAINER, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect(&address.into()).unwrap();
        rustix::net::connect_unspec(&socket).unwrap();
        socket.connect(&elsewhere.into()).unwrap_err();
    });
    let after = counters(&probe, node.id(POD));
    assert_eq!((after.connects, after.established, after.refused), (1, 1, 0));
    assert_eq!(after.sockets, 0);
}

/// The kernel charges the agent for what is written on each.
#[test]
fn one_pod_can_have_no_more_than_its_share_of_sockets() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let marked = listener(&probe, V4);
    // It has room for two and never accepts one: the others get no answer.
    let (silent, address) = bound(V4);
    probe.watch(address, Kind::Credentials).unwrap();
    silent.listen(1).unwrap();
    let pod = node.id(POD);
    let held = node.inside(CONTAINER, || {
        let connecting = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&address.into()).unwrap_err();
            socket
        };
        (0..SOCKETS_PER_GROUP + 6).map(connecting).collect::<Vec<_>>()
    });
    let full = counters(&probe, pod);
    assert_eq!((full.sockets, full.over_share), (SOCKETS_PER_GROUP, 6));
    assert_eq!(attributed_to(&node, &probe, &marked), None);

    let _neighbour = node.inside(OTHER, || TcpStream::connect(marked.1).unwrap());
    let (accepted, _) = marked.0.accept().unwrap();
    assert_eq!(probe.caller(&accepted).unwrap().unwrap().cgroup_id, node.id(OTHER), "others have their own");

    drop(held);
    assert_eq!(counters(&probe, pod).sockets, 0);
    assert_eq!(attributed_to(&node, &probe, &marked), Some(node.id(CONTAINER)));
}

#[test]
fn a_socket_counts_until_its_connection_is_over_or_it_is_closed() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let (listener, address) = listener(&probe, V4);
    let (_silent, nobody) = bound(V4);
    // Of documentation, with no route from a namespace that has only loopback.
    let unreachable = SocketAddr::from(([192, 0, 2, 1], 80));
    for watched in [nobody, unreachable] {
        probe.watch(watched, Kind::Credentials).unwrap();
    }
    let sockets = || counters(&probe, node.id(POD)).sockets;

    let connected = node.inside(CONTAINER, || TcpStream::connect(address).unwrap());
    assert_eq!(sockets(), 1);
    let (accepted, _) = listener.accept().unwrap();
    SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
    drop(accepted);
    until(|| sockets() == 0);
    drop(connected);
    assert_eq!(sockets(), 0, "once for both ends of it");

    let refused = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    node.inside(CONTAINER, || refused.connect(&nobody.into()).unwrap_err());
    assert_eq!(sockets(), 0);

    let without_route = node.inside(CONTAINER, || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect(&unreachable.into()).unwrap_err();
        socket
    });
    assert_eq!(sockets(), 1);
    drop(without_route);
    assert_eq!(sockets(), 0);
}

#[test]
fn one_pod_can_have_no_more_than_its_share_of_pending_connections() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let marked = listener(&probe, V4);
    // Nobody takes the callers of this one over, so that they stay pending.
    let (socket, address) = bound(V4);
    probe.watch(address, Kind::Credentials).unwrap();
    socket.listen(128).unwrap();
    let pod = node.id(POD);
    let held: Vec<_> =
        node.inside(CONTAINER, || (0..70).map(|_| TcpStream::connect(address).unwrap()).collect());
    assert_eq!(counters(&probe, pod).over_share, 70 - 64);

    let _neighbour = node.inside(OTHER, || TcpStream::connect(marked.1).unwrap());
    let (accepted, _) = marked.0.accept().unwrap();
    assert_eq!(probe.caller(&accepted).unwrap().unwrap().cgroup_id, node.id(OTHER), "others have their own");

    drop(held);
    // The kernel closes them a moment later.
    until(|| attributed_to(&node, &probe, &marked) == Some(node.id(CONTAINER)));
}

#[test]
fn imds_is_refused_to_pods_unless_their_cgroup_is_allowed() {
    let Some(node) = Node::new() else { return };
    // Any other cookie makes this namespace one that is not the host's.
    let config = ProbeConfig { refuse_imds: true, host_netns: Some(u64::MAX), ..node.config() };
    let probe = node.load_with(&config);
    let imds = TcpListener::bind(V4).unwrap();
    let address = imds.local_addr().unwrap();
    probe.watch(address, Kind::Imds).unwrap();
    let ask =
        |cgroup| node.inside(cgroup, || TcpStream::connect(address).map(drop).map_err(|error| error.kind()));
    for container in [CONTAINER, GUARANTEED] {
        assert_eq!(ask(container), Err(ErrorKind::PermissionDenied));
        let (pod, _) = container.rsplit_once('/').unwrap();
        for allowed in [pod, container] {
            probe.allow_imds(node.id(allowed)).unwrap();
            assert_eq!(probe.imds_allowed().unwrap(), [node.id(allowed)]);
            assert_eq!(ask(container), Ok(()), "{allowed}");
            probe.deny_imds(node.id(allowed)).unwrap();
        }
        assert_eq!(ask(container), Err(ErrorKind::PermissionDenied));
    }
    let after = counters(&probe, node.id(POD));
    assert_eq!((after.imds_connects, after.imds_refused, after.imds_established), (4, 2, 2));
    assert_eq!((after.connects, after.established), (0, 0), "IMDS is not the agent");
    assert_eq!(counters(&probe, node.id(GUARANTEED)).imds_refused, 2, "a guaranteed pod counts by container");
}

#[test]
fn imds_is_not_refused_in_the_hosts_network() {
    let Some(node) = Node::new() else { return };
    let probe = node.load_with(&ProbeConfig { refuse_imds: true, ..node.config() });
    let imds = TcpListener::bind(V4).unwrap();
    probe.watch(imds.local_addr().unwrap(), Kind::Imds).unwrap();
    node.inside(CONTAINER, || TcpStream::connect(imds.local_addr().unwrap()).unwrap());
}

#[test]
fn a_namespace_belongs_to_the_pod_that_connects_from_it_first() {
    let Some(node) = Node::new() else { return };
    let config = ProbeConfig { learn_namespaces: true, host_netns: Some(u64::MAX), ..node.config() };
    let probe = node.load_with(&config);
    let (listener, address) = listener(&probe, V4);
    let cookies = [CONTAINER, OTHER].map(|cgroup| {
        let _client = node.inside(cgroup, || TcpStream::connect(address).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        let caller = probe.caller(&accepted).unwrap().unwrap();
        assert!(!caller.host_network());
        assert_eq!(probe.namespace_owner(caller.netns).unwrap(), Some(node.id(POD)));
        caller.netns
    });
    probe.forget_namespace(cookies[0]).unwrap();
    assert_eq!(probe.namespace_owner(cookies[0]).unwrap(), None);
}
