use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use podcred::attribute::probe::{Kind, Probe};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroups::Node;

const POD: &str = "kubepods/burstable/pod0f5c7a1e-7a3f-4c5e-9a34-2a0d5a1c7b11";

/// A listener whose callers are wanted.
fn listener(probe: &Probe, address: SocketAddr) -> (TcpListener, SocketAddr) {
    let (socket, address) = bound(address);
    probe.watch(address, Kind::Credentials).unwrap();
    probe.mark(&socket).unwrap();
    socket.listen(128).unwrap();
    (socket.into(), address)
}

fn bound(address: SocketAddr) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&address.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn a_connection_is_attributed_to_the_cgroup_that_opened_it() {
    let Some(node) = Node::new() else { return };
    let probe = node.load();
    let container = format!("{POD}/container");
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
        let (listener, address) = listener(&probe, address);
        let _client = node.inside(&container, || TcpStream::connect(address).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        let caller = probe.caller(&accepted).unwrap().expect("attributed");
        assert_eq!((caller.cgroup_id, caller.group), (node.id(&container), node.id(POD)), "{address}");
        assert_eq!(caller.tgid, std::process::id());
        assert!(caller.host_network(), "this is the initial network namespace");
    }
}
