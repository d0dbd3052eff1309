//! podcred as a process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::{Method, StatusCode};

use crate::clock::Stopwatch;
use crate::eks::Eks;
use crate::http;
use crate::place::Place;
use crate::process::Process;

const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Agent {
    process: Process,
    place: Place,
    metrics: SocketAddr,
    /// Holds the control socket: a path in the project's folder could be too long for one.
    _scratch: tempfile::TempDir,
}

/// Where the agent listens.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Empty for the agent's own default, the two link-local addresses.
    pub(crate) hosts: Vec<IpAddr>,
    pub(crate) credentials: u16,
    pub(crate) probe: u16,
    pub(crate) metrics: u16,
}

impl Agent {
    /// Returns when the agent says that it is ready.
    pub(crate) async fn start(
        place: Place,
        binary: &Path,
        eks: &Eks,
        ports: &Ports,
        more: &[&str],
        log: &Path,
    ) -> Result<Agent> {
        let scratch = tempfile::tempdir()?;
        let mut command = place.command(&binary.display().to_string());
        command
            .args(["server", "--cluster-name", eks.cluster_name()])
            .args(["--issuer", eks.issuer(), "--endpoint", eks.url()])
            .args(["--port", &ports.credentials.to_string(), "--probe-port", &ports.probe.to_string()])
            .args(["--metrics-address", "127.0.0.1", "--metrics-port", &ports.metrics.to_string()])
            .arg("--control-socket")
            .arg(scratch.path().join("control.sock"))
            .args(more)
            .env_clear()
            .envs(eks.node_environment())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for host in &ports.hosts {
            command.args(["--bind-hosts", &host.to_string()]);
        }
        let process = Process::spawn("podcred", command, log)?;
        let mut agent = Agent { process, place, metrics: loopback(ports.metrics), _scratch: scratch };
        agent.wait_until_ready(loopback(ports.probe)).await?;
        Ok(agent)
    }

    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }

    /// How many answers of this status the agent has given, by its own count.
    pub(crate) async fn responses(&self, status: StatusCode) -> Result<u64> {
        self.metric(&format!("pod_identity_http_response{{code=\"{}\"}}", status.as_u16())).await
    }

    /// A sample by its name and labels, as Prometheus writes them.
    pub(crate) async fn metric(&self, sample: &str) -> Result<u64> {
        let (code, text) =
            http::request(&self.place, self.metrics, Method::GET, "/metrics", Vec::new()).await?;
        if code != StatusCode::OK {
            bail!("podcred's /metrics answered {code}");
        }
        let text = String::from_utf8_lossy(&text);
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        // A series that was never fed is not there.
        value.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{sample} {value}")))
    }

    async fn wait_until_ready(&mut self, probe: SocketAddr) -> Result<()> {
        let clock = Stopwatch::start();
        loop {
            self.process.check()?;
            let last = match http::request(&self.place, probe, Method::GET, "/readyz", Vec::new()).await {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((status, body)) => format!("/readyz: {status} {}", String::from_utf8_lossy(&body)),
                Err(error) => format!("{error:#}"),
            };
            if clock.elapsed() > START {
                bail!(
                    "podcred is not ready after {} s ({last}):\n{}",
                    START.as_secs(),
                    self.process.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Ports that were free a moment ago.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    // All are held until the last is known, so that they differ.
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
