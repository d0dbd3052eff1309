//! The ports of the agent: taken at once where they are free, and the moment that another agent lets go of them where
//! they are not. Without that a node that changes from one agent to another has none while the kubelet backs off.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::attribute::Attribution;
use crate::clock::Clock;
use crate::config::ServerConfig;
use crate::metrics::Metrics;
use crate::server;

/// Java's SDK spends its six attempts within 29 ms; no port may be closed that long between two agents. An attempt to
/// bind costs some microseconds.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// Every port that the agent serves on.
#[derive(Debug)]
pub struct Listeners {
    pub pods: Vec<TcpListener>,
    /// What to say of the pods' addresses that this node does not have.
    pub skipped: Vec<String>,
    pub probes: TcpListener,
    pub scrapes: TcpListener,
}

impl Listeners {
    /// Binds what can be bound. A node without IPv6 has no fd00:ec2::23, and its pods do not ask there.
    pub async fn bind(
        config: &ServerConfig,
        attribution: &Attribution,
        metrics: &Metrics,
        clock: &Clock,
    ) -> Result<Listeners, String> {
        let mut patience = Patience { clock, until: clock.now().mono + config.port_wait, told: false };
        let (mut pods, mut skipped) = (Vec::new(), Vec::new());
        for host in &config.bind_hosts {
            let address = SocketAddr::new(*host, config.port);
            let prepare = |socket: BorrowedFd<'_>, address| attribution.prepare(socket, address);
            let listener = patience.listen("--bind-hosts", address, prepare).await;
            metrics.listener(&host.to_string(), listener.is_ok());
            match listener {
                Ok(listener) => pods.push(listener),
                Err(taken @ Unbound::Taken(_)) => return Err(taken.to_string()),
                Err(Unbound::Other(problem)) => {
                    tracing::warn!(
                        event = "listener_skipped",
                        %problem,
                        "an address is not served; `podcred initialize` makes the link-local ones"
                    );
                    skipped.push(problem);
                }
            }
        }
        if pods.is_empty() {
            return Err(format!(
                "--bind-hosts: no address can be served: {}. Run `podcred initialize` on this node first",
                skipped.join("; ")
            ));
        }
        let probes = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), config.probe_port);
        let scrapes = SocketAddr::new(config.metrics_address, config.metrics_port);
        let mut own = async |flag, address| {
            patience.listen(flag, address, |_, _| Ok(())).await.map_err(|unbound| unbound.to_string())
        };
        let (probes, scrapes) = (own("--probe-port", probes).await?, own("--metrics-port", scrapes).await?);
        Ok(Listeners { pods, skipped, probes, scrapes })
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
enum Unbound {
    #[error("{0}")]
    Taken(String),
    #[error("{0}")]
    Other(String),
}

/// How long the agent waits for its ports, all of them together.
struct Patience<'a> {
    clock: &'a Clock,
    until: Instant,
    told: bool,
}

impl Patience<'_> {
    async fn listen(
        &mut self,
        flag: &str,
        address: SocketAddr,
        prepare: impl Fn(BorrowedFd<'_>, SocketAddr) -> std::io::Result<()>,
    ) -> Result<TcpListener, Unbound> {
        loop {
            let error = match server::listen(address, &prepare) {
                Ok(listener) => return Ok(listener),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::AddrInUse {
                return Err(Unbound::Other(format!("{flag}: {address} cannot be bound: {error}")));
            }
            if self.clock.now().mono >= self.until {
                return Err(Unbound::Taken(format!(
                    "{flag}: another process listens on {address}. If it is another agent, keep it off this node (one \
                     node has one agent); if not, give it or podcred another port"
                )));
            }
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(
                    event = "port_taken",
                    %address,
                    "another process listens here, perhaps the agent that podcred is to follow: podcred takes the port \
                     as soon as it is free"
                );
            }
            sleep(TRY_AGAIN).await;
        }
    }
}
