//! Where it is measured: on this machine's loopback, or on a node and in a pod with network namespaces and cgroups.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::asking::Asking;
use super::contest::{Reference, Server};
use super::watched::Watched;
use super::wrk::{Client, SCRIPT};
use super::{CLIENTS, PATIENCE, Programs, SERVERS};
use crate::agent::{Agent, Ports, free_ports};
use crate::clock::until;
use crate::demo::network::Network;
use crate::demo::thief::Attribution;
use crate::eks::{Eks, PodName};
use crate::place::Place;
use crate::process::Process;

const NAMESPACE: &str = "bench";
/// What an agent does at these times is no cost of a request; and one pod asks for many.
const FLAGS: [&str; 4] = ["--revalidate-after", "24h", "--pod-requests", "1000000"];
/// About as many bytes as credentials take.
const BODY: usize = 1_100;
/// As many as the agent has unless it is told otherwise.
const WORKERS: usize = 2;
const AT_ONCE: usize = 16;

#[derive(Debug)]
pub(crate) struct Ground<'a> {
    programs: &'a Programs,
    pub(crate) eks: Eks,
    pub(crate) place: Place,
    flags: Vec<String>,
    logs: PathBuf,
    scratch: TempDir,
    script: PathBuf,
    node: Option<Node>,
}

/// Ends in this order.
#[derive(Debug)]
struct Node {
    attribution: Attribution,
    network: Network,
}

/// A file with a token in each line.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) all: Vec<String>,
    file: PathBuf,
    /// The pod that the kernel sees.
    cgroup: Option<PathBuf>,
}

/// A server under test, which ends with its guard.
#[derive(Debug)]
pub(crate) struct Running<T> {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) guard: T,
}

#[derive(Debug)]
pub(crate) struct Hyper {
    pub(crate) reference: Reference,
    _guards: [Process; 2],
}

impl<'a> Ground<'a> {
    pub(crate) async fn loopback(programs: &'a Programs, logs: &Path) -> Result<Ground<'a>> {
        Ground::on(programs, Place::Host, logs, vec!["--verify".to_owned(), "off".to_owned()], None).await
    }

    /// An agent there has to enforce; or the reason why it cannot be had.
    pub(crate) async fn node(programs: &'a Programs, logs: &Path) -> Result<Result<Ground<'a>, String>> {
        let network = Network::prepare(&programs.podcred, 1).await?;
        let attribution = Attribution::prepare(&network, &programs.podcred).await;
        if let Attribution::LeftOut(reason) = attribution {
            return Ok(Err(reason));
        }
        let (place, flags) = (network.node.clone(), attribution.flags());
        let node = Node { attribution, network };
        Ok(Ok(Ground::on(programs, place, logs, flags, Some(node)).await?))
    }

    async fn on(
        programs: &'a Programs,
        place: Place,
        logs: &Path,
        flags: Vec<String>,
        node: Option<Node>,
    ) -> Result<Ground<'a>> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let eks = Eks::start(
            place.clone(),
            &programs.others.simulated_eks,
            listen,
            &logs.join("simulated-eks.log"),
        )
        .await?;
        let scratch = tempfile::tempdir()?;
        let script = scratch.path().join("tokens.lua");
        std::fs::write(&script, SCRIPT)?;
        Ok(Ground { programs, eks, place, flags, logs: logs.to_owned(), scratch, script, node })
    }

    /// Tokens of as many pods, whose service accounts have as many roles in turn.
    pub(crate) async fn tokens(&self, name: &str, pods: usize, roles: usize) -> Result<Tokens> {
        let account = |role: usize| format!("{name}-{role}");
        stream::iter((0..roles).map(account))
            .map(|account| async move { self.eks.associate_quickly(NAMESPACE, &account).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let pod = |index: usize| PodName {
            namespace: NAMESPACE.to_owned(),
            service_account: account(index % roles),
            pod_name: format!("{name}-pod-{index}"),
        };
        let minted: Vec<_> = stream::iter((0..pods).map(pod))
            .map(|pod| async move { self.eks.mint(&pod).await })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let cgroups = self.node.as_ref().and_then(|node| node.attribution.cgroups());
        let cgroup = match (cgroups, minted.first()) {
            (Some(cgroups), Some(pod)) => Some(cgroups.container(&pod.pod_uid)?),
            (Some(_) | None, _) => None,
        };
        let all: Vec<String> = minted.into_iter().map(|minted| minted.token).collect();
        let file = self.scratch.path().join(name);
        std::fs::write(&file, all.join("\n"))?;
        Ok(Tokens { all, file, cgroup })
    }

    pub(crate) async fn agent(&self) -> Result<Running<Agent>> {
        let ports = match &self.node {
            Some(_) => Ports { hosts: Vec::new(), credentials: 80, probe: 2703, metrics: 2705 },
            None => {
                let [credentials, probe, metrics] = free_ports()?;
                Ports { hosts: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], credentials, probe, metrics }
            }
        };
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).chain(FLAGS).collect();
        let (place, log) = (self.place.clone(), self.log("podcred"));
        let guard = Agent::start(place, &self.programs.podcred, &self.eks, &ports, &flags, &log).await?;
        let address = SocketAddr::new(self.host(), ports.credentials);
        running(guard.id(), address, guard)
    }

    /// hyper alone, in two processes.
    pub(crate) async fn reference(&self) -> Result<Hyper> {
        let (one, two) = (self.hyper("one").await?, self.hyper("two").await?);
        let reference = Reference { one: one.server, two: two.server };
        Ok(Hyper { reference, _guards: [one.guard, two.guard] })
    }

    async fn hyper(&self, name: &str) -> Result<Running<Process>> {
        let mut command = self.place.command(&self.programs.bare_hyper.display().to_string());
        let address = SocketAddr::new(self.host(), 0).to_string();
        command.args([&address, &BODY.to_string(), &WORKERS.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let log = self.log(&format!("bare-hyper-{name}"));
        let mut guard = Process::spawn("bare-hyper", command, &log)?;
        let stdout = guard.child().stdout.take().context("no stdout")?;
        let address = BufReader::new(stdout).lines().next_line().await?;
        let Some(address) = address.and_then(|line| line.parse().ok()) else {
            bail!("bare-hyper did not start:\n{}", guard.log_tail());
        };
        running(guard.id(), address, guard)
    }

    /// Another agent, once it serves this token. The command is a shell's; what stands in braces in it is put in.
    pub(crate) async fn other(&self, command: &str, tokens: &Tokens) -> Result<Running<Process>> {
        ensure!(self.node.is_none(), "other agents are started on loopback");
        let [port, probe, metrics] = free_ports()?;
        // The shell makes way, so that the process that is measured is the agent; env takes variables before it.
        let mut line = format!("exec env {command}");
        for (name, value) in [
            ("{port}", port.to_string()),
            ("{probe-port}", probe.to_string()),
            ("{metrics-port}", metrics.to_string()),
            ("{endpoint}", self.eks.url().to_owned()),
            ("{issuer}", self.eks.issuer().to_owned()),
            ("{cluster}", self.eks.cluster_name().to_owned()),
            ("{scratch}", self.scratch.path().display().to_string()),
        ] {
            line = line.replace(name, &value);
        }
        let mut shell = self.place.command("sh");
        shell.args(["-c", &line]).envs(self.eks.node_environment()).env("AWS_EC2_METADATA_DISABLED", "true");
        shell.stdin(Stdio::null()).stdout(Stdio::null());
        let mut guard = Process::spawn("the other agent", shell, &self.log("against"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let token = tokens.all.first().context("no token")?;
        until(&format!("`{command}` serves credentials at {address}"), PATIENCE, async || {
            guard.check()?;
            Ok(match Asking::open(&self.place, address).await {
                Ok(mut asking) => asking.ask(token).await.is_ok(),
                Err(_) => false,
            })
        })
        .await?;
        running(guard.id(), address, guard)
    }

    pub(crate) fn client<'b>(&'b self, tokens: &'b Tokens) -> Client<'b> {
        let place = self.node.as_ref().and_then(|node| node.network.pods.first()).unwrap_or(&self.place);
        Client {
            place,
            cgroup: tokens.cgroup.as_deref(),
            script: &self.script,
            tokens: &tokens.file,
            cpu: CLIENTS,
        }
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn host(&self) -> IpAddr {
        match &self.node {
            Some(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

fn running<T>(id: Option<u32>, address: SocketAddr, guard: T) -> Result<Running<T>> {
    let process = Watched::new(id)?;
    process.pin(SERVERS)?;
    let url = format!("http://{address}/v1/credentials");
    Ok(Running { server: Server { process, url }, address, guard })
}
