use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podcred::attribute::cgroup::id_of;
use podcred::attribute::inet_diag::InetDiag;
use podcred::attribute::layout::Layout;
use podcred::attribute::proc::HostProc;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cgroups::{Cgroup, ID, Process, UID, v2};

fn own_cgroup() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    id_of(&Path::new(v2()).join(own)).unwrap()
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let IpAddr::V4(ip) = address.ip() else { return address };
    SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
}

#[test]
fn both_ends_of_a_connection_are_found_over_either_protocol() {
    let diag = InetDiag::open().unwrap();
    let own = own_cgroup();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        assert_eq!(diag.cgroup_of(local, remote).unwrap(), Some(own));
        assert_eq!(diag.cgroup_of(remote, local).unwrap(), Some(own));
        assert_eq!(diag.cgroup_of(mapped(local), mapped(remote)).unwrap(), Some(own));
    }
}

#[test]
fn a_v6_socket_that_speaks_v4_is_found_by_either_spelling() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let client = TcpStream::connect(mapped(server)).unwrap();
    let local = client.local_addr().unwrap();
    assert!(local.is_ipv6());
    let diag = InetDiag::open().unwrap();
    for (local, remote) in
        [(local, mapped(server)), (SocketAddr::new(local.ip().to_canonical(), local.port()), server)]
    {
        assert_eq!(diag.cgroup_of(local, remote).unwrap(), Some(own_cgroup()));
    }
}

#[test]
fn a_listener_on_the_port_is_not_taken_for_the_connection() {
    let diag = InetDiag::open().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    assert_eq!(diag.cgroup_of(listener.local_addr().unwrap(), nobody).unwrap(), None);
}

/// A pod with a network namespace: one process in its cgroup.
fn pod_with_a_namespace(cgroup: &Path) -> Process {
    let mut unshare = Command::new("unshare");
    let child = Process(unshare.args(["--net", "sleep", "600"]).stdout(Stdio::null()).spawn().unwrap());
    fs::write(cgroup.join("cgroup.procs"), child.0.id().to_string()).unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    for _ in 0..1000 {
        let namespace = fs::read_link(format!("/proc/{}/ns/net", child.0.id())).unwrap();
        if namespace != own {
            return child;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("unshare made no namespace within 5 s");
}

fn connection_in_the_namespace_of(pid: u32) -> (TcpStream, TcpStream) {
    let up = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-n", "ip", "link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
    let inside = move || {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let listener = TcpListener::bind(("127.0.0.23", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    std::thread::spawn(inside).join().unwrap()
}

#[test]
fn sockets_in_pods_namespaces_are_found_while_the_pod_lives() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let container = root.make(&format!("kubepods/pod{UID}/{ID}"));
    let kubepods = root.path().join("kubepods");
    let mut pod = pod_with_a_namespace(&container);
    let layout = Layout::find(Path::new("/sys/fs/cgroup"), Some(&kubepods), Path::new("/proc")).unwrap();
    let processes = HostProc::open(Path::new("/proc"), &layout).unwrap();
    let (client, server) = connection_in_the_namespace_of(pod.0.id());
    let (local, remote) = (client.local_addr().unwrap(), server.local_addr().unwrap());

    let diag = InetDiag::open().unwrap();
    assert_eq!(diag.cgroup_of(local, remote).unwrap(), None);
    for _ in 0..2 {
        let followed = diag.follow(&processes).unwrap();
        assert_eq!((followed.namespaces, followed.refused.map(|e| e.to_string())), (1, None));
        assert_eq!(diag.cgroup_of(local, remote).unwrap(), Some(own_cgroup()));
    }

    pod.0.kill().unwrap();
    pod.0.wait().unwrap();
    assert_eq!(diag.follow(&processes).unwrap().namespaces, 0);
    assert_eq!(diag.cgroup_of(local, remote).unwrap(), None);
}
