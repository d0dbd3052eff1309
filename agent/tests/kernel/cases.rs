//! The ways of making a connection, and of losing it.

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use agent_ebpf::{Counters, Kind};
use loadtest::node::{CREDENTIALS_V4, IMDS_V4, Place, PodSpec};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::harness::{BROKEN, Watched, assert_opened_by, connect, socket_for, until};

/// Client and server, both without a cookie, and every listener whether it asks for it or not.
const FAST_OPEN_EVERYWHERE: &str = "1543";
const MSG_FASTOPEN: i32 = 0x2000_0000;

#[test]
fn v4_v6_and_mapped_connections_are_attributed() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    let (v4, v6) = (node.listener(), node.listener_v6());
    for (listener, to) in [(&v4, v4.address), (&v4, v4.mapped()), (&v6, v6.address)] {
        let mut client = connect(&pod, to);
        let mut accepted = listener.accept();
        assert_opened_by(&accepted, &pod);
        assert!(!accepted.caller().host_network());
        accepted.talks_with(&mut client);
    }
}

#[test]
fn a_connection_to_somebody_elses_port_is_no_business_of_the_agent() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    let foreign = node.foreign_listener(CREDENTIALS_V4.into());
    let mut client = connect(&pod, foreign.address);
    let mut accepted = foreign.accept();
    assert_eq!(accepted.caller, None);
    accepted.talks_with(&mut client);
}

#[test]
fn a_process_outside_every_pod_is_not_attributed() {
    let Some(node) = Watched::node() else { return };
    let listener = node.listener();
    let mut client = connect(node.node.agent(), listener.address);
    let mut accepted = listener.accept();
    assert_eq!(accepted.caller, None);
    accepted.talks_with(&mut client);
}

#[test]
fn a_connect_that_does_not_wait_is_attributed() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    let listener = node.listener();
    let client = pod.run(|| {
        let socket = socket_for(listener.address);
        socket.set_nonblocking(true).unwrap();
        // In progress, as a rule.
        let _ = socket.connect(&listener.address.into());
        socket
    });
    let mut accepted = listener.accept();
    assert_opened_by(&accepted, &pod);
    let client = client.unwrap();
    client.set_nonblocking(false).unwrap();
    accepted.talks_with(&mut TcpStream::from(client));
}

/// The client's side of TCP Fast Open; servers on this node have it turned on by a sysctl.
#[test]
fn data_in_the_syn_leaves_the_connection_attributed() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    turn_fast_open_on(&node, &pod);
    let listener = node.listener();

    let sent = send_in_syn(&pod, listener.address);
    let mut accepted = listener.accept();
    assert_opened_by(&accepted, &pod);
    accepted.answers();
    drop(sent);

    let deferred = pod.run(|| {
        let socket = socket_for(listener.address);
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true).unwrap();
        socket.connect(&listener.address.into()).unwrap();
        (&socket).write_all(b"?").unwrap();
        socket
    });
    let mut accepted = listener.accept();
    assert_opened_by(&accepted, &pod);
    accepted.answers();
    drop(deferred);
}

/// Why [`podcred::server::listen`] turns it off: the socket is handed out before the handshake has ended.
#[test]
fn a_listener_with_fast_open_would_not_be_attributed() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    turn_fast_open_on(&node, &pod);
    let listener = node.careless_listener();
    let sent = send_in_syn(&pod, listener.address);
    let mut accepted = listener.accept();
    assert_eq!(accepted.caller, None);
    accepted.answers();
    drop(sent);
}

fn turn_fast_open_on(node: &Watched, pod: &Place) {
    for place in [node.node.agent(), pod] {
        let write = || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN_EVERYWHERE);
        place.run(write).unwrap().unwrap();
    }
}

fn send_in_syn(pod: &Place, to: SocketAddr) -> Socket {
    let send = || {
        let socket = socket_for(to);
        socket.send_to_with_flags(b"?", &to.into(), MSG_FASTOPEN).unwrap();
        socket
    };
    pod.run(send).unwrap()
}

/// connect() to AF_UNSPEC takes a socket apart, and the next one may be made elsewhere.
#[test]
fn a_socket_connected_anew_belongs_to_who_connected_it_last() {
    let Some(node) = Watched::node() else { return };
    let [first, second] = node.pods();
    let listener = node.listener();
    let foreign = node.foreign_listener(CREDENTIALS_V4.into());
    for before in [&foreign, &listener] {
        let socket = first.run(|| {
            let socket = socket_for(before.address);
            socket.connect(&before.address.into()).unwrap();
            before.accept();
            rustix::net::connect_unspec(&socket).unwrap();
            socket
        });
        let socket = socket.unwrap();
        second.run(|| socket.connect(&listener.address.into()).unwrap()).unwrap();
        let accepted = listener.accept();
        assert_opened_by(&accepted, &second);
    }
}

#[test]
fn an_io_uring_connect_is_attributed() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    for listener in [node.listener(), node.listener_v6()] {
        pod.run(|| {
            tokio_uring::start(async {
                let client = tokio_uring::net::TcpStream::connect(listener.address).await.unwrap();
                let accepted = listener.accept();
                assert_opened_by(&accepted, &pod);
                drop(client);
            });
        })
        .unwrap();
    }
}

#[test]
fn a_multipath_connection_is_attributed() {
    let Some(node) = Watched::node() else { return };
    if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_err() {
        eprintln!("left out: this kernel has no MPTCP");
        return;
    }
    let [pod] = node.pods();
    for listener in [node.listener(), node.listener_v6()] {
        let domain = Domain::for_address(listener.address);
        let client = pod.run(|| {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
            socket.connect(&listener.address.into()).unwrap();
            socket
        });
        let mut accepted = listener.accept();
        assert_opened_by(&accepted, &pod);
        let mut client = client.unwrap();
        client.set_read_timeout(Some(BROKEN)).unwrap();
        accepted.talks_with(&mut client);
        let group = accepted.caller().group;
        let sockets = || node.counters_of(group).sockets;
        assert_eq!(sockets(), 1);
        // Its subflows have no descriptors, so there is no close() of theirs to count by.
        drop(client);
        drop(accepted);
        until("the socket counts no more", || sockets() == 0);
    }
}

/// By address it could not be told from the node itself: both ends have the listener's own.
#[test]
fn a_host_network_pod_is_attributed_and_known_as_such() {
    let Some(node) = Watched::node() else { return };
    let [own] = node.pods();
    let host = node.host_network_pod();
    let listener = node.listener();
    let _client = connect(&host, listener.address);
    let accepted = listener.accept();
    assert_eq!(accepted.peer.ip(), IpAddr::from(CREDENTIALS_V4));
    assert_opened_by(&accepted, &host);
    // The simulated node's namespace is not the kernel's first one, which a probe that is told nothing compares with.
    assert!(!accepted.caller().host_network());
    let namespace = accepted.caller().netns;
    drop(listener);

    let node = node.reloaded(|config| config.host_netns = Some(namespace));
    let listener = node.listener();
    for (pod, is_host) in [(&host, true), (&own, false)] {
        let _client = connect(pod, listener.address);
        let accepted = listener.accept();
        assert_opened_by(&accepted, pod);
        assert_eq!(accepted.caller().host_network(), is_host);
    }
}

#[test]
fn a_socket_inherited_by_a_child_stays_with_who_connected_it() {
    let Some(node) = Watched::node() else { return };
    let [pod, other] = node.pods();
    let listener = node.listener();
    let client = connect(&pod, listener.address);
    let socket = OwnedFd::from(client);
    let mut child =
        other.spawn(Command::new("sh").args(["-c", "printf '?' >&0"]).stdin(Stdio::from(socket))).unwrap();
    let mut accepted = listener.accept();
    assert_opened_by(&accepted, &pod);
    accepted.answers();
    assert!(child.child().wait().unwrap().success());
}

#[test]
fn a_socket_passed_to_another_pod_stays_with_who_connected_it() {
    let Some(node) = Watched::node() else { return };
    let [pod, other] = node.pods();
    let listener = node.listener();
    let (give, take) = UnixStream::pair().unwrap();
    pod.run(|| {
        let client = TcpStream::connect(listener.address).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        let descriptors = [std::os::fd::AsFd::as_fd(&client)];
        assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&give, &[IoSlice::new(b"x")], &mut rights, SendFlags::empty()).unwrap();
    })
    .unwrap();
    let received = other.run(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&take, &mut [IoSliceMut::new(&mut [0])], &mut rights, RecvFlags::empty()).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut descriptors)) = rights.drain().next() else {
            panic!("no descriptor came");
        };
        let mut client = TcpStream::from(descriptors.next().expect("a descriptor"));
        client.write_all(b"?").unwrap();
        client
    });
    let mut accepted = listener.accept();
    assert_opened_by(&accepted, &pod);
    accepted.answers();
    drop(received);
}

#[test]
fn who_moves_after_connect_stays_who_it_was() {
    let Some(node) = Watched::node() else { return };
    let [pod, other] = node.pods();
    let listener = node.listener();
    let thread = pod.run(|| {
        let client = TcpStream::connect(listener.address).unwrap();
        other.enter().unwrap();
        client
    });
    assert_opened_by(&listener.accept(), &pod);
    drop(thread);

    let client = OwnedFd::from(connect(&pod, listener.address));
    let process = pod.spawn(Command::new("sleep").arg("1000").stdin(Stdio::from(client))).unwrap();
    other.adopt(&process).unwrap();
    assert_opened_by(&listener.accept(), &pod);
}

#[test]
fn a_source_port_used_again_belongs_to_who_uses_it_now() {
    let Some(node) = Watched::node() else { return };
    let listener = node.listener();
    let mut pod = node.node.pod(PodSpec::default()).unwrap();
    let mut ends = Vec::new();
    for _ in 0..5 {
        let client = pod.run(|| {
            let socket = socket_for(listener.address);
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SockAddr::from(std::net::SocketAddr::from((pod.ipv4(), 40_000)))).unwrap();
            socket.connect(&listener.address.into()).unwrap();
            // No TIME_WAIT: the port is free at once.
            socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
            socket
        });
        let accepted = listener.accept();
        assert_opened_by(&accepted, &pod);
        ends.push((accepted.peer, pod.cgroup_id()));
        drop(client);
        let heir = PodSpec::default().with_addresses_of(&pod);
        drop(pod);
        pod = node.node.pod(heir).unwrap();
    }
    assert!(ends.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1), "{ends:?}");
}

/// The process dies, then its pod's cgroup and network go; the connection waits in the listener's queue meanwhile.
#[test]
fn a_connection_whose_pod_is_gone_before_accept_is_still_known_by_it() {
    let Some(node) = Watched::node() else { return };
    let listener = node.listener();
    let pod = node.node.pod(PodSpec::default()).unwrap();
    let cgroup = pod.cgroup_id();
    let client = OwnedFd::from(connect(&pod, listener.address));
    let mut holder = pod.spawn(Command::new("sleep").arg("1000").stdin(Stdio::from(client))).unwrap();
    holder.kill().unwrap();
    drop(pod);
    let accepted = listener.accept();
    assert_eq!(accepted.caller().cgroup_id, cgroup);
}

#[test]
fn datagrams_are_not_connections() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    let listener = node.listener();
    let group = {
        let _client = connect(&pod, listener.address);
        listener.accept().caller().group
    };
    let before = node.counters_of(group);
    assert_eq!(before.connects, 1);
    pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().connect(listener.address).unwrap()).unwrap();
    assert_eq!(node.counters_of(group), before);
}

#[test]
fn refused_connections_and_their_latency_are_counted_per_pod() {
    let Some(node) = Watched::node() else { return };
    let [pod] = node.pods();
    let listener = node.listener();
    let group = {
        let _client = connect(&pod, listener.address);
        listener.accept().caller().group
    };
    let address = listener.address;
    drop(listener);
    let refused = pod.run(|| TcpStream::connect(address)).unwrap();
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let Counters { connects, established, refused, timed_out, latency, .. } = node.counters_of(group);
    assert_eq!((connects, established, refused, timed_out), (2, 1, 1, 0));
    assert_eq!(latency.iter().sum::<u64>(), 1);
}

#[test]
fn imds_is_refused_to_pods_that_are_no_exception_and_counted_for_all() {
    let Some(node) = Watched::with(Default::default(), |config| config.refuse_imds = true) else { return };
    let [refused, allowed] = node.pods();
    let imds = node.foreign_listener(IMDS_V4.into());
    node.probe.watch(imds.address, Kind::Imds).unwrap();
    node.probe.allow_imds(allowed.cgroup_id()).unwrap();

    let error = refused.run(|| TcpStream::connect(imds.address)).unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let _client = connect(&allowed, imds.address);
    assert_eq!(imds.accept().caller, None);

    let counted = node.probe.counters().unwrap();
    let total = |of: fn(&Counters) -> u64| counted.values().map(of).sum::<u64>();
    assert_eq!(total(|counters| counters.imds_connects), 2);
    assert_eq!(total(|counters| counters.imds_refused), 1);
    assert_eq!(total(|counters| counters.imds_established), 1);
}
