//! Ways to fill the table of connections that wait for their server's side.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use loadtest::node::{Place, Pod};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use crate::harness::socket_for;

/// Connections that an attacker keeps at a time: well over what one pod may have pending, within the descriptors of
/// this process.
pub(crate) const HELD: usize = 500;
/// Cgroups below the attacker's own.
const NESTS: usize = 50;
/// Between two attempts. The load is bounded: it has the machine's other core at most.
const PACE: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Flood {
    /// Opened and closed, as fast as it goes.
    Handshakes,
    /// Kept open on the attacker's own loopback, where nobody takes them up.
    Held,
    /// The same from cgroups that the attacker's container makes below its own.
    Nested,
    /// TCP_REPAIR, to which a user namespace's root is entitled: connected without any handshake.
    Repair,
}

/// Runs until it is told to end.
#[derive(Debug, Default)]
pub(crate) struct Attack {
    ended: AtomicBool,
    paused: AtomicBool,
    attempts: AtomicUsize,
}

/// Ends the attack, also when its test fails meanwhile: its thread is waited for.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Attack {
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub(crate) fn ends_with_this(&self) -> Ends<'_> {
        Ends(&self.ended)
    }

    /// Of these kinds in turn, from a namespace in which the agent's address is the attacker's.
    pub(crate) fn run(&self, kinds: &[Flood], attacker: &Pod, poisoned: &Place, to: SocketAddr) {
        poisoned.enter().unwrap();
        let own = TcpListener::bind(to).unwrap();
        let nests: Vec<Place> = (0..NESTS).map(|n| attacker.nested(&format!("nest-{n}")).unwrap()).collect();
        let mut held = VecDeque::new();
        for n in 0.. {
            if self.ended.load(Ordering::Relaxed) {
                break;
            }
            if self.paused.load(Ordering::Relaxed) {
                std::thread::sleep(PACE);
                continue;
            }
            match kinds[n % kinds.len()] {
                Flood::Handshakes => drop(handshake(&own, to)),
                Flood::Held => held.push_back(handshake(&own, to)),
                Flood::Nested => {
                    nests[n % NESTS].enter_cgroup().unwrap();
                    held.push_back(handshake(&own, to));
                    attacker.enter_cgroup().unwrap();
                }
                Flood::Repair => repaired(to),
            }
            if held.len() > HELD {
                held.pop_front();
            }
            self.attempts.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PACE);
        }
    }
}

fn handshake(own: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(to).unwrap();
    // Its port is free at once: a namespace out of ports makes a slow flood.
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    let (server, _) = own.accept().unwrap();
    (client, server)
}

fn repaired(to: SocketAddr) {
    let socket = socket_for(to);
    setsockopt(&socket, sockopt::TcpRepair, &1).unwrap();
    socket.bind(&SocketAddr::new(to.ip(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
