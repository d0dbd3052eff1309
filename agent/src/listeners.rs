//! The ports of the agent: taken at once where they are free, and where another agent holds them, the moment that it lets
//! go. So a node changes from one agent to another, and from one version of podcred to the next, without being left alone.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::clock::Clock;
use crate::locks::lock;
use crate::server;

/// Java's SDK spends its six attempts within 29 ms; no port may be closed that long between two agents. An attempt to
/// bind costs some microseconds.
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// A port that is not given up is said again, for those who did not read the first line.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What a socket is given before any connection can come in on it.
pub type Prepare<'a> = &'a (dyn Fn(BorrowedFd<'_>, SocketAddr) -> io::Result<()> + Sync);

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
    serves_pods: AtomicBool,
    problems: Mutex<BTreeMap<SocketAddr, String>>,
}

/// One port: held, or waited for.
#[derive(Debug)]
pub struct Port {
    purpose: Use,
    address: SocketAddr,
    listener: Option<TcpListener>,
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
    /// On one address at least.
    pub fn serves_pods(&self) -> bool {
        self.serves_pods.load(Ordering::Relaxed)
    }

    pub fn problems(&self) -> Vec<String> {
        lock(&self.problems).values().cloned().collect()
    }

    /// There is no such address, or not yet.
    pub fn skip(&self, address: SocketAddr, problem: String) {
        lock(&self.problems).insert(address, problem);
    }

    /// Takes the port, or begins to wait for it. An error is what waiting does not mend.
    pub fn open(
        self: &Arc<Self>,
        purpose: Use,
        address: SocketAddr,
        clock: &Clock,
        prepare: Prepare<'_>,
    ) -> Result<Port, String> {
        let mut port = Port {
            purpose,
            address,
            listener: None,
            ports: Arc::clone(self),
            clock: clock.clone(),
            tell_at: clock.now().mono,
        };
        port.take(prepare)?;
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

    /// Comes back when the port is held.
    pub async fn held(mut self, prepare: Prepare<'_>) -> Result<TcpListener, String> {
        loop {
            self.take_or_tell(prepare)?;
            match self.listener {
                Some(listener) => return Ok(listener),
                None => sleep(TRY_AGAIN).await,
            }
        }
    }

    /// Where another process has it, nothing happens.
    fn take(&mut self, prepare: Prepare<'_>) -> Result<(), String> {
        if self.is_held() {
            return Ok(());
        }
        match server::listen(self.address, prepare) {
            Ok(listener) => {
                lock(&self.ports.problems).remove(&self.address);
                if self.purpose == Use::Pods {
                    self.ports.serves_pods.store(true, Ordering::Relaxed);
                }
                self.listener = Some(listener);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let problem = format!("{} is held by another process; waiting for it", self.address);
                self.ports.skip(self.address, problem);
                Ok(())
            }
            Err(error) => Err(format!("{}: {} cannot be bound: {error}", self.purpose.flag(), self.address)),
        }
    }

    /// What is told is that all else is ready: from here on the port is looked at every 5 ms.
    fn take_or_tell(&mut self, prepare: Prepare<'_>) -> Result<(), String> {
        self.take(prepare)?;
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
            "another process listens here; podcred takes the port the moment that it is free. If that is another agent, \
             keep it off this node (docs/migrate.md); if not, give one of the two another port"
        );
    }
}

/// Comes back when one of these is held.
pub async fn first_held(ports: &mut [Port], prepare: Prepare<'_>) -> Result<(), String> {
    loop {
        for port in &mut *ports {
            port.take_or_tell(prepare)?;
        }
        if ports.iter().any(Port::is_held) {
            return Ok(());
        }
        sleep(TRY_AGAIN).await;
    }
}
