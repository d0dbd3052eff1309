//! The ports of the agent: taken at once where they are free, and where another agent holds them, the moment that it lets
//! go. So a node changes from one agent to another, and from one version of podcred to the next, without being left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::attribute::Attribution;
use crate::clock::Clock;
use crate::locks::lock;
use crate::metrics::Metrics;
use crate::server;

/// Java's SDK spends its six attempts within 29 ms; no port may be closed that long between two agents. Two ports
/// that are waited for cost 2 % of a processor.
const CHANGEOVER: Duration = Duration::from_millis(5);
/// Where nobody's credentials wait for another agent to let go: probes, scrapes, addresses that are not there.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// What keeps a port away is said again, for those who did not read the first line.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Pods,
    Probes,
    Metrics,
}

/// What there is to say of the ports, to whoever asks whether the agent is ready.
#[derive(Debug, Default)]
pub struct Ports {
    problems: Mutex<BTreeMap<SocketAddr, Problem>>,
    /// Where pods are served.
    serving: Mutex<BTreeSet<SocketAddr>>,
}

#[derive(Debug)]
struct Problem {
    text: String,
    /// Pods that ask here have no answer, or somebody else's.
    leaves_pods_alone: bool,
}

/// One port: held, or tried for again and again.
#[derive(Debug)]
pub struct Port {
    purpose: Use,
    address: SocketAddr,
    state: State,
    /// Another process has been seen to have it.
    was_taken: bool,
    ports: Arc<Ports>,
    clock: Clock,
    tell_at: Instant,
}

#[derive(Debug)]
enum State {
    Held(TcpListener),
    /// Another process has it.
    Taken,
    /// A node without IPv6: nobody asks there.
    Absent(String),
    Failed(String),
}

impl Use {
    fn flag(self) -> &'static str {
        match self {
            Use::Pods => "--bind-hosts",
            Use::Probes => "--probe-port",
            Use::Metrics => "--metrics-port",
        }
    }
}

impl Ports {
    /// Whether pods ask at a port that is not held.
    pub fn leave_pods_alone(&self) -> bool {
        lock(&self.problems).values().any(|problem| problem.leaves_pods_alone)
    }

    pub fn problems(&self) -> String {
        lock(&self.problems).values().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// Whether the node still has the addresses that pods are served on, to be asked now and then: a listener hears nothing
    /// of it when somebody takes its address away, and serves on when that is back.
    pub fn look_after_addresses(&self, metrics: &Metrics) {
        for address in &*lock(&self.serving) {
            let Some(here) = is_here(address.ip()) else { continue };
            metrics.listener(address.ip(), here);
            let mut problems = lock(&self.problems);
            if here && problems.remove(address).is_some() {
                tracing::info!(event = "address_back", %address, "this node has the address again, and pods reach podcred there");
            } else if !here && !problems.contains_key(address) {
                let text = format!(
                    "{address} was taken away from this node, so no pod reaches podcred there; `podcred initialize`, which a \
                     new pod of the DaemonSet begins with, makes it again"
                );
                tracing::error!(event = "address_gone", problem = text, "pods get no connection");
                // As at the start: where IPv6 is gone altogether, no pod asks there.
                let leaves_pods_alone =
                    address.is_ipv4() || is_here(Ipv6Addr::LOCALHOST.into()) == Some(true);
                problems.insert(*address, Problem { text, leaves_pods_alone });
            }
        }
    }

    /// Tries for the port once. Why it cannot be had, other than for another process, is the caller's to tell.
    pub fn open(
        self: &Arc<Self>,
        purpose: Use,
        address: SocketAddr,
        clock: &Clock,
        attribution: &Attribution,
    ) -> Port {
        let mut port = Port {
            purpose,
            address,
            state: State::Taken,
            was_taken: false,
            ports: Arc::clone(self),
            clock: clock.clone(),
            tell_at: clock.now().mono,
        };
        port.attempt(attribution);
        if port.failure().is_some() {
            port.tell_at += TELL_AGAIN;
        }
        port
    }
}

impl Port {
    pub fn is_held(&self) -> bool {
        matches!(self.state, State::Held(_))
    }

    /// Why it cannot be had, where it is not for another process.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Held(_) | State::Taken => None,
            State::Absent(problem) | State::Failed(problem) => Some(problem),
        }
    }

    /// Where it listens, or is to listen.
    pub fn address(&self) -> SocketAddr {
        let bound = match &self.state {
            State::Held(listener) => listener.local_addr().ok(),
            State::Taken | State::Absent(_) | State::Failed(_) => None,
        };
        bound.unwrap_or(self.address)
    }

    /// Comes back when the port is held; None if it is not before `cancel`.
    pub async fn held(
        mut self,
        attribution: &Attribution,
        cancel: &CancellationToken,
    ) -> Option<TcpListener> {
        let trying = async move {
            loop {
                self.attempt_and_tell(attribution);
                if let State::Held(listener) = self.state {
                    return listener;
                }
                sleep(self.rest()).await;
            }
        };
        cancel.run_until_cancelled(trying).await
    }

    fn attempt(&mut self, attribution: &Attribution) {
        if self.is_held() {
            return;
        }
        let prepare = |socket: BorrowedFd<'_>, address| match self.purpose {
            Use::Pods => attribution.prepare(socket, address),
            // Who connects to the agent's own ports is nobody's matter.
            Use::Probes | Use::Metrics => Ok(()),
        };
        match server::listen(self.address, prepare) {
            Ok(listener) => self.hold(listener),
            Err(error) => self.miss(&error),
        }
    }

    fn hold(&mut self, listener: TcpListener) {
        let address = listener.local_addr().ok().filter(|_| self.purpose == Use::Pods);
        self.state = State::Held(listener);
        if lock(&self.ports.problems).remove(&self.address).is_some() {
            tracing::info!(
                event = "port_free",
                flag = self.purpose.flag(),
                address = %self.address,
                "podcred listens here now"
            );
        }
        lock(&self.ports.serving).extend(address);
    }

    fn miss(&mut self, error: &io::Error) {
        let (flag, address) = (self.purpose.flag(), self.address);
        let is_absent = error.kind() == ErrorKind::AddrNotAvailable;
        self.state = if error.kind() == ErrorKind::AddrInUse {
            self.was_taken = true;
            State::Taken
        } else if self.was_taken && is_absent {
            // Who had it took its link away as well; `podcred initialize` makes that again.
            State::Failed(format!("{address} was held by another process, and is no address here now"))
        } else {
            let problem = format!("{flag}: {address} cannot be bound: {error}");
            // Each node of EKS has IPv4, and `podcred initialize` makes its address.
            let is_without_ipv6 = is_absent || error.raw_os_error() == Some(libc::EAFNOSUPPORT);
            if address.is_ipv6() && is_without_ipv6 { State::Absent(problem) } else { State::Failed(problem) }
        };
        let text = match self.failure() {
            Some(problem) => problem.to_owned(),
            None => format!("{address} is held by another process; waiting for it"),
        };
        let leaves_pods_alone = self.purpose == Use::Pods && !matches!(self.state, State::Absent(_));
        lock(&self.ports.problems).insert(address, Problem { text, leaves_pods_alone });
    }

    fn rest(&self) -> Duration {
        if self.purpose == Use::Pods && self.was_taken { CHANGEOVER } else { TRY_AGAIN }
    }

    /// What is told is that all else is ready: from here on the port is tried for again and again.
    fn attempt_and_tell(&mut self, attribution: &Attribution) {
        self.attempt(attribution);
        let now = self.clock.now().mono;
        if now < self.tell_at {
            return;
        }
        let (flag, address) = (self.purpose.flag(), self.address);
        match &self.state {
            State::Held(_) | State::Absent(_) => return,
            State::Taken => tracing::warn!(
                event = "port_taken",
                flag,
                %address,
                "another process listens here; podcred takes the port as soon as it is free. If that is another \
                 agent, keep it off this node (docs/migrate.md); if not, give one of the two another port"
            ),
            State::Failed(problem) => tracing::error!(
                event = "listener_skipped",
                problem,
                "this address is not served; podcred tries again, and says so once a minute"
            ),
        }
        self.tell_at = now + TELL_AGAIN;
    }
}

/// Whether the node has this address; None where the kernel cannot be asked now. With `net.ipv4.ip_nonlocal_bind` it has all.
fn is_here(address: IpAddr) -> Option<bool> {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Some(false),
        // No IPv6 at all.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Some(false),
        Err(_) => None,
    }
}

/// Comes back when one of these is held.
pub async fn first_held(ports: &mut [Port], attribution: &Attribution) {
    loop {
        for port in &mut *ports {
            port.attempt_and_tell(attribution);
        }
        if ports.iter().any(Port::is_held) {
            return;
        }
        sleep(ports.iter().map(Port::rest).min().unwrap_or(TRY_AGAIN)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_addresses_are_told_from_others() {
        for own in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::"] {
            assert_eq!(is_here(own.parse().expect("an address")), Some(true), "{own}");
        }
        // For documentation: nobody has them.
        for other in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(is_here(other.parse().expect("an address")), Some(false), "{other}");
        }
    }
}
