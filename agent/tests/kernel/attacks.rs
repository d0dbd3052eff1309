//! What a pod can do to be taken for another one, or to keep another one from being recognised.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use loadtest::node::{CREDENTIALS_V4, Place, Pod, PodSpec, Process, Qos};
use socket2::Socket;

use self::flood::{Ends, Flood};
use self::raw_tcp::RawTcp;
use crate::harness::{Listener, Watched, connect, connections, socket_for, until};
use crate::load::{ask, open_connections, while_served};

mod fairness;
mod flood;
mod raw_tcp;

/// A user nobody gave anything.
const NOBODY: u32 = 65_534;

/// A network namespace that a process without any capability made for itself, in its own user namespace. There it is
/// root: it takes whatever addresses it wants, the agent's too.
pub(crate) struct Poisoned {
    pub(crate) place: Place,
    _owner: Process,
}

impl Poisoned {
    pub(crate) fn made_by(pod: &Pod, addresses: &[IpAddr]) -> Poisoned {
        let mut command = Command::new("unshare");
        command.args(["-U", "-r", "-n", "sleep", "100000"]).uid(NOBODY).gid(NOBODY);
        let owner = pod.spawn(&mut command).expect("unshare starts");
        let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
        let shared = pod.run(|| namespace("thread-self")).unwrap();
        until("the attacker has a namespace", || namespace(&owner.id().to_string()) != shared);
        let place = pod.with_network_of(&owner).unwrap();
        place.pretend(addresses).unwrap();
        Poisoned { place, _owner: owner }
    }
}

/// The dead pod had this address and this very port, and its connection may be remembered.
#[test]
fn raw_tcp_from_an_inherited_address_is_nobodys() {
    let Some(node) = Watched::node() else { return };
    let listener = node.listener();
    let SocketAddr::V4(to) = listener.address else { panic!("a listener of IPv4") };
    let [attacker] = node.pods();
    for port in 40_000..40_020 {
        let victim = node.node.pod(PodSpec::default()).unwrap();
        let from = SocketAddrV4::new(victim.ipv4(), port);
        let client = victim.run(|| connect_from(from.into(), listener.address));
        let accepted = listener.accept();
        assert_eq!(accepted.caller().cgroup_id, victim.cgroup_id());
        // Half of them die with their network, so that the agent's end never hears of it.
        if port % 2 == 0 {
            drop(accepted);
        } else {
            victim.cut_off().unwrap();
        }
        drop(client);
        drop(victim);

        attacker.attract((*from.ip()).into()).unwrap();
        let mut raw = attacker.run(|| RawTcp::connect(from, to)).unwrap().unwrap();
        let mut stolen = listener.accept();
        assert_eq!(stolen.peer, SocketAddr::from(from));
        assert_eq!(stolen.caller, None);
        attacker.run(|| raw.say(b"?")).unwrap().unwrap();
        // The connection is as good as any other: only the kernel's record of it is missing.
        stolen.answers();
    }
}

/// Both use the same few ports, and the attacker keeps half of them busy at any time: by addresses and ports alone,
/// every second connection of the victim would be taken for the attacker's.
#[test]
fn handshakes_in_a_poisoned_namespace_are_not_taken_for_the_victims() {
    const PORTS: u16 = 1_000;
    let Some(node) = Watched::node() else { return };
    let [attacker, victim] = node.pods();
    let source = |n: usize| SocketAddr::from((victim.ipv4(), 40_000 + (n % usize::from(PORTS)) as u16));
    let poisoned = Poisoned::made_by(&attacker, &[victim.ipv4().into(), CREDENTIALS_V4.into()]);
    let count = connections().div_ceil(4);
    let tally = while_served(&node, |[to, ..]| {
        let (done, handshakes) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                poisoned.place.enter().unwrap();
                let own = TcpListener::bind(to).unwrap();
                let mut held = VecDeque::new();
                while !done.load(Ordering::Relaxed) {
                    let n = handshakes.fetch_add(1, Ordering::Relaxed);
                    let client = connect_from(source(n), *to);
                    held.push_back((client, own.accept().unwrap()));
                    if held.len() >= usize::from(PORTS / 2) {
                        held.pop_front();
                    }
                }
            });
            let _ended = Ends(&done);
            until("the attack runs", || handshakes.load(Ordering::Relaxed) > usize::from(PORTS));
            let victims = || {
                (0..count).for_each(|n| ask(&mut connect_from(source(n), *to).into(), victim.cgroup_id()));
            };
            victim.run(victims).unwrap();
        });
    });
    tally.assert_all_right(count);
}

/// Its port is free as soon as it closes.
fn connect_from(from: SocketAddr, to: SocketAddr) -> Socket {
    let socket = socket_for(to);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket
}

/// A container that may write to its cgroup names those below it as it likes. Its own name stands above them.
#[test]
fn a_cgroup_named_like_another_pod_is_still_its_makers() {
    let Some(node) = Watched::node() else { return };
    let listener = node.listener();
    for class in [Qos::Guaranteed, Qos::Burstable] {
        let victim = node.node.pod(PodSpec::new(class)).unwrap();
        let attacker = node.node.pod(PodSpec::new(class)).unwrap();
        let victims = victim.cgroup();
        let name = victims.strip_prefix(node.node.kubepods()).unwrap();
        let own = {
            let _client = connect(&attacker, listener.address);
            listener.accept().caller().group
        };
        for path in [name.to_owned(), std::path::Path::new("kubepods.slice").join(name)] {
            let disguised = attacker.nested(path.to_str().unwrap()).unwrap();
            let _client = connect(&disguised, listener.address);
            let accepted = listener.accept();
            assert_eq!(accepted.caller().cgroup_id, disguised.cgroup_id());
            assert_eq!(accepted.caller().group, own, "limits and counters go by the pod, too");
            let found = node.pod_of(&accepted);
            assert_eq!(&*found.pod_uid, attacker.uid());
            assert_eq!(found.container_id.as_deref(), Some(&*attacker.container_id()));
        }
    }
}

/// As many as the descriptors of this process allow for, half of them at the server's end.
#[test]
fn a_pod_that_opens_all_the_connections_it_can_costs_the_others_nothing() {
    let Some(node) = Watched::node() else { return };
    let [greedy, victim] = node.pods();
    let count = connections().div_ceil(10);
    let tally = while_served(&node, |targets| {
        let open: Vec<_> =
            greedy.run(|| (0..2_000).map(|n| TcpStream::connect(targets[n % 3]).unwrap()).collect()).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| open_connections(&victim, count, targets)).join().unwrap();
        });
        assert_eq!(open.len(), 2_000);
    });
    tally.assert_all_right(count);
}

/// Victims that wait before they send give the flood time to push them out.
fn victims_survive(kind: Flood) {
    let Some(node) = Watched::node() else { return };
    // With one container in a pod of the class Guaranteed, the container's cgroup is what the numbers go by.
    let attacker = node.node.pod(PodSpec::new(Qos::Guaranteed)).unwrap();
    let [victim] = node.pods();
    let poisoned = Poisoned::made_by(&attacker, &[CREDENTIALS_V4.into()]);
    let listener = node.listener();
    let count = connections().div_ceil(200).max(20);
    let attack = flood::Attack::default();
    std::thread::scope(|threads| {
        threads.spawn(|| attack.run(&[kind], &attacker, &poisoned.place, listener.address));
        let _ended = attack.ends_with_this();
        until("the flood has begun", || attack.attempts() >= flood::HELD);
        for _ in 0..count {
            victim_is_attributed(&listener, &victim);
        }
    });
    let attempts = attack.attempts() as u64;
    let counters = node.counters_of(attacker.cgroup_id());
    assert!(counters.connects >= attempts, "the programs saw less than {attempts} attempts: {counters:?}");
    match kind {
        Flood::Held | Flood::Nested => assert!(counters.over_share > 0, "{counters:?}"),
        // These leave nothing behind that could fill up.
        Flood::Handshakes | Flood::Repair => assert_eq!(counters.over_share, 0, "{counters:?}"),
    }
    let lost = node.probe.lost().unwrap();
    assert_eq!(lost.pending, 0, "{lost:?}");
}

fn victim_is_attributed(listener: &Listener, victim: &Pod) {
    let mut client = connect(victim, listener.address);
    std::thread::sleep(Duration::from_millis(100));
    let mut accepted = listener.accept();
    assert_eq!(accepted.caller().cgroup_id, victim.cgroup_id());
    accepted.talks_with(&mut client);
}

#[test]
fn a_flood_of_handshakes_loses_no_victims() {
    victims_survive(Flood::Handshakes);
}

#[test]
fn a_flood_of_handshakes_that_are_held_loses_no_victims() {
    victims_survive(Flood::Held);
}

#[test]
fn a_flood_of_handshakes_from_many_nested_cgroups_loses_no_victims() {
    victims_survive(Flood::Nested);
}

#[test]
fn a_flood_of_connections_that_were_never_made_loses_no_victims() {
    victims_survive(Flood::Repair);
}
