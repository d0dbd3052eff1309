//! The ports of the agent: taken at once where they are free, and where another agent holds them, the moment that it lets
//! go. So a node changes from one agent to another, and from one version of podcred to the next, without being left alone.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::attribute::Attribution;
use crate::clock::Clock;
use crate::locks::lock;
use crate::server;

/// Java's SDK spends its six attempts within 29 ms; no port may be closed that long between two agents. Two ports that are
/// waited for cost 2 % of a processor.
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// Nobody's credentials wait for probes and scrapes.
const TRY_OWN_AGAIN: Duration = Duration::from_millis(500);
/// A port that is not given up is said again, for those who did not read the first line.
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
}

#[derive(Debug)]
struct Problem {
    text: String,
    /// Pods that ask here ask somebody else.
    leaves_pods_alone: bool,
}

/// One port: held, or waited for.
#[derive(Debug)]
pub struct Port {
    purpose: Use,
    address: SocketAddr,
    listener: Option<TcpListener>,
    /// Somebody had it when it was wanted.
    waits: bool,
    ports: Arc<Ports>,
    clock: Clock,
    tell_at: Instant,
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
    /// Whether another process has a port that pods ask.
    pub fn leave_pods_alone(&self) -> bool {
        lock(&self.problems).values().any(|problem| problem.leaves_pods_alone)
    }

    pub fn problems(&self) -> String {
        lock(&self.problems).values().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// This node has no such address, so nobody asks there.
    pub fn skip(&self, address: SocketAddr, text: String) {
        lock(&self.problems).insert(address, Problem { text, leaves_pods_alone: false });
    }

    /// Takes the port, or begins to wait for it. An error is what waiting does not mend.
    pub fn open(
        self: &Arc<Self>,
        purpose: Use,
        address: SocketAddr,
        clock: &Clock,
        attribution: &Attribution,
    ) -> Result<Port, String> {
        let mut port = Port {
            purpose,
            address,
            listener: None,
            waits: false,
            ports: Arc::clone(self),
            clock: clock.clone(),
            tell_at: clock.now().mono,
        };
        port.take(attribution)?;
        Ok(port)
    }
}

impl Port {
    pub fn is_held(&self) -> bool {
        self.listener.is_some()
    }

    /// Where it listens, or is to listen.
    pub fn address(&self) -> SocketAddr {
        self.listener.as_ref().and_then(|held| held.local_addr().ok()).unwrap_or(self.address)
    }

    /// Comes back when the port is held; None if it is not before `cancel`, or cannot be.
    pub async fn held(self, attribution: &Attribution, cancel: &CancellationToken) -> Option<TcpListener> {
        match cancel.run_until_cancelled(self.waited_for(attribution)).await? {
            Ok(listener) => Some(listener),
            Err(problem) => {
                tracing::error!(event = "listener_skipped", %problem, "this address is not served");
                None
            }
        }
    }

    async fn waited_for(mut self, attribution: &Attribution) -> Result<TcpListener, String> {
        loop {
            self.take_or_tell(attribution)?;
            match self.listener {
                Some(listener) => return Ok(listener),
                None if self.purpose == Use::Pods => sleep(TRY_AGAIN).await,
                None => sleep(TRY_OWN_AGAIN).await,
            }
        }
    }

    /// Where another process has it, nothing happens.
    fn take(&mut self, attribution: &Attribution) -> Result<(), String> {
        if self.is_held() {
            return Ok(());
        }
        let prepare = |socket: BorrowedFd<'_>, address| match self.purpose {
            Use::Pods => attribution.prepare(socket, address),
            // Who connects to the agent's own ports is nobody's matter.
            Use::Probes | Use::Metrics => Ok(()),
        };
        match server::listen(self.address, prepare) {
            Ok(listener) => {
                lock(&self.ports.problems).remove(&self.address);
                self.listener = Some(listener);
                if self.waits {
                    tracing::info!(
                        event = "port_free",
                        flag = self.purpose.flag(),
                        address = %self.address,
                        "podcred listens here now"
                    );
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                self.wait(format!("{} is held by another process; waiting for it", self.address));
                Ok(())
            }
            // Who had it took its link away as well; `podcred initialize` makes that again.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && self.waits => {
                self.wait(format!(
                    "{} was held by another process, and is no address here now",
                    self.address
                ));
                Ok(())
            }
            Err(error) => Err(format!("{}: {} cannot be bound: {error}", self.purpose.flag(), self.address)),
        }
    }

    fn wait(&mut self, text: String) {
        self.waits = true;
        let leaves_pods_alone = self.purpose == Use::Pods;
        lock(&self.ports.problems).insert(self.address, Problem { text, leaves_pods_alone });
    }

    /// What is told is that all else is ready: from here on the port is looked at every 5 ms.
    fn take_or_tell(&mut self, attribution: &Attribution) -> Result<(), String> {
        self.take(attribution)?;
        if !self.is_held() {
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        let now = self.clock.now().mono;
        if now < self.tell_at {
            return;
        }
        self.tell_at = now + TELL_AGAIN;
        tracing::warn!(
            event = "port_taken",
            flag = self.purpose.flag(),
            address = %self.address,
            "another process listens here; podcred takes the port as soon as it is free. If that is another agent, keep it \
             off this node (docs/migrate.md); if not, give one of the two another port"
        );
    }
}

/// Comes back when one of these is held.
pub async fn first_held(ports: &mut [Port], attribution: &Attribution) -> Result<(), String> {
    loop {
        for port in &mut *ports {
            port.take_or_tell(attribution)?;
        }
        if ports.iter().any(Port::is_held) {
            return Ok(());
        }
        sleep(TRY_AGAIN).await;
    }
}
