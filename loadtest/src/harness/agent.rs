//! The agent of the simulated node, or on loopback: podcred as a process, and where a run changes over, the one before it.

mod log;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use self::log::Log;
use super::http::Endpoint;
use super::proc;
use crate::clock;
use crate::eks::SimulatedEks;
use crate::node::{CREDENTIALS_V4, CREDENTIALS_V6, Node, Process};

pub(super) const NODE_NAME: &str = "ip-10-0-1-17.eu-west-1.compute.internal";
const READY: Duration = Duration::from_secs(30);
/// Above the agent's own grace.
const GONE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The processes of agents that run, which are two while one takes the other's place; 0 where none does.
static RUNNING: [AtomicI32; 2] = [AtomicI32::new(0), AtomicI32::new(0)];

/// For an end that drops nothing: the agent, which is in a process group of its own, would run on.
pub(super) fn kill_now() {
    for running in &RUNNING {
        let pid = running.swap(0, Ordering::AcqRel);
        if pid > 0 {
            // It may have ended by itself.
            let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The agent that runs, which ends with this.
#[derive(Debug)]
pub struct Agent {
    /// podcred, or the one before it.
    program: Program,
    /// The one that is to take its place.
    other: Option<Program>,
    environment: Vec<(&'static str, String)>,
    /// Where the kernel tells callers apart; without a node everything is loopback.
    node: Option<Arc<Node>>,
    endpoint: Endpoint,
    running: Option<Running>,
    /// Processor time of those that were stopped.
    former_cpu: f64,
    peak: u64,
    log: Arc<Log>,
    _home: tempfile::TempDir,
}

#[derive(Debug)]
struct Program {
    kind: Kind,
    binary: PathBuf,
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Podcred,
    /// An agent with the official one's contract.
    StandIn,
}

#[derive(Debug)]
struct Running {
    process: Process,
    follower: JoinHandle<()>,
    /// Its place among the processes that [`kill_now`] knows.
    known: &'static AtomicI32,
}

impl Agent {
    /// Returns when it serves. `more` are further flags.
    pub fn start(
        binary: &Path,
        more: &[String],
        eks: &SimulatedEks,
        node: Option<Arc<Node>>,
    ) -> Result<Agent> {
        Agent::start_with(None, binary, more, eks, node)
    }

    /// Starts a stand-in for the official agent, which podcred is to follow.
    pub(super) fn start_stand_in(
        stand_in: &Path,
        binary: &Path,
        more: &[String],
        eks: &SimulatedEks,
        node: Option<Arc<Node>>,
    ) -> Result<Agent> {
        Agent::start_with(Some(stand_in), binary, more, eks, node)
    }

    fn start_with(
        before: Option<&Path>,
        binary: &Path,
        more: &[String],
        eks: &SimulatedEks,
        node: Option<Arc<Node>>,
    ) -> Result<Agent> {
        let found = |binary: &Path, package: &str| {
            binary.canonicalize().with_context(|| {
                format!(
                    "{} is not there: cargo build --release -p {package}, or name another by --binary",
                    binary.display()
                )
            })
        };
        let home = tempfile::tempdir().context("a folder for the agent")?;
        let credentials = eks.node_credentials();
        let podcred = Program {
            kind: Kind::Podcred,
            binary: found(binary, "podcred")?,
            arguments: [
                contract(eks, node.as_deref()),
                own_flags(eks, node.as_deref(), &home),
                more.to_vec(),
            ]
            .concat(),
        };
        let (program, other) = match before {
            None => (podcred, None),
            Some(stand_in) => {
                let arguments = contract(eks, node.as_deref());
                let binary = found(stand_in, "loadtest")?;
                (Program { kind: Kind::StandIn, binary, arguments }, Some(podcred))
            }
        };
        let mut agent = Agent {
            program,
            other,
            environment: vec![
                ("HOME", home.path().display().to_string()),
                ("AWS_REGION", eks.region().to_owned()),
                ("AWS_ACCESS_KEY_ID", credentials.access_key_id().to_owned()),
                ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key().to_owned()),
                ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ],
            node,
            endpoint: Endpoint::at(SocketAddr::from((CREDENTIALS_V4, 80))),
            running: None,
            former_cpu: 0.0,
            peak: 0,
            log: Arc::default(),
            _home: home,
        };
        let serving = agent.run_again()?;
        agent.until_ready(&serving)?;
        if agent.node.is_none() {
            agent.endpoint = Endpoint::at(address(&serving, "credentials")?);
        }
        // Where it serves once it serves again: pods do not look for it. And so that the next one finds its ports taken.
        for (flag, name) in
            [("--port", "credentials"), ("--probe-port", "probes"), ("--metrics-port", "metrics")]
        {
            let port = address(&serving, name)?.port().to_string();
            for program in [Some(&mut agent.program), agent.other.as_mut()].into_iter().flatten() {
                program.arguments.extend([flag.to_owned(), port.clone()]);
            }
        }
        Ok(agent)
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.endpoint.host, self.endpoint.path)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn podcred(&self) -> &Program {
        match (self.program.kind, &self.other) {
            (Kind::StandIn, Some(other)) => other,
            (Kind::Podcred, _) | (Kind::StandIn, None) => &self.program,
        }
    }

    pub(super) fn command_line(&self) -> Vec<String> {
        let podcred = self.podcred();
        let mut line = vec![podcred.binary.file_name().unwrap_or_default().to_string_lossy().into_owned()];
        line.extend(podcred.arguments.iter().cloned());
        line
    }

    pub(super) fn version(&self) -> String {
        let output = Command::new(&self.podcred().binary).arg("version").output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    /// Starts it, for the first time or again, and gives the log line that says where it serves.
    pub(super) fn run_again(&mut self) -> Result<Value> {
        self.running = Some(self.spawn()?);
        self.until_serving()
    }

    /// By SIGTERM, as the kubelet does it.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => self.end(running),
            None => Ok(()),
        }
    }

    /// The other program takes this one's place. podcred is there before the other ends, and waits for its ports: so does a
    /// node that is given podcred before the official agent is taken from it. That agent ends where a port is taken, so on
    /// the way back it is started when podcred has ended.
    pub(super) fn change_over(&mut self) -> Result<()> {
        let other = self.other.take().context("there is no agent to change over to")?;
        self.other = Some(std::mem::replace(&mut self.program, other));
        match self.program.kind {
            Kind::Podcred => {
                let next = self.spawn()?;
                let former = self.running.replace(next);
                if !self.log.until_it_waits_for_a_port(READY) {
                    bail!("podcred does not wait for its ports; its last words:\n{}", self.log.last_words());
                }
                former.map_or(Ok(()), |former| self.end(former))?;
                self.until_serving()?;
            }
            Kind::StandIn => {
                self.stop()?;
                self.run_again()?;
            }
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Running> {
        let mut command = Command::new(&self.program.binary);
        command.args(&self.program.arguments).env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A terminal's Ctrl-C is for the harness alone, which stops its agent last.
        command.process_group(0);
        let spawned = match &self.node {
            Some(node) => node.agent().spawn(&mut command),
            None => Process::spawn(&mut command),
        };
        let mut process =
            spawned.with_context(|| format!("cannot start {}", self.program.binary.display()))?;
        let pid = i32::try_from(process.id())?;
        let free =
            |known: &&AtomicI32| known.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_ok();
        let known = RUNNING.iter().find(free).context("two agents run already")?;
        let stderr = process.child().stderr.take().context("the agent's stderr is piped")?;
        Ok(Running { process, follower: self.log.follow(stderr), known })
    }

    fn until_serving(&self) -> Result<Value> {
        self.log
            .until_serving(READY)
            .with_context(|| format!("the agent does not serve; its last words:\n{}", self.log.last_words()))
    }

    fn end(&mut self, running: Running) -> Result<()> {
        let Running { mut process, follower, known } = running;
        let pid = process.id().to_string();
        self.former_cpu += proc::cpu_seconds(&pid).unwrap_or_default();
        self.peak = self.peak.max(proc::memory(&pid).map_or(0, |memory| memory.peak));
        kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM).context("SIGTERM")?;
        let until = clock::mono() + GONE;
        while process.child().try_wait()?.is_none() {
            if clock::mono() > until {
                process.kill()?;
                bail!("the agent did not stop within {} s of SIGTERM", GONE.as_secs());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        known.store(0, Ordering::Release);
        // What it said last is of the run as well.
        follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    }

    /// Its listeners are up before it has the issuer's keys and has attached itself to the kernel.
    fn until_ready(&self, serving: &Value) -> Result<()> {
        let probes = address(serving, "probes")?;
        let until = clock::mono() + READY;
        loop {
            let ready = || readiness(probes);
            let last = match &self.node {
                Some(node) => node.agent().run(ready)?,
                None => ready(),
            };
            match last {
                Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return Ok(()),
                last if clock::mono() > until => {
                    bail!("the agent is not ready: {last:?}; its last words:\n{}", self.log.last_words())
                }
                Ok(_) | Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_died(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let died = !matches!(running.process.child().try_wait(), Ok(None));
        if died {
            running.known.store(0, Ordering::Release);
        }
        died
    }

    /// Processor time of all that were started.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let running =
            self.running.as_ref().and_then(|running| proc::cpu_seconds(&running.process.id().to_string()));
        self.former_cpu + running.unwrap_or_default()
    }

    pub(super) fn memory(&self) -> Option<proc::Memory> {
        let memory = proc::memory(&self.running.as_ref()?.process.id().to_string())?;
        Some(proc::Memory { peak: memory.peak.max(self.peak), ..memory })
    }

    /// The pods that presented another's token, and whose, as the log says: UIDs.
    pub(super) fn named_thieves(&self) -> BTreeSet<(String, String)> {
        self.log.thieves()
    }

    pub(super) fn last_words(&self) -> String {
        self.log.last_words()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its process is killed next, and its number may then be another's.
        if let Some(running) = &self.running {
            running.known.store(0, Ordering::Release);
        }
    }
}

/// The flags that the official agent has too.
fn contract(eks: &SimulatedEks, node: Option<&Node>) -> Vec<String> {
    let mut line: Vec<String> = ["server", "--cluster-name", eks.cluster_name(), "--endpoint", eks.url()]
        .into_iter()
        .chain(["--probe-port", "0", "--metrics-port", "0", "--metrics-address", "127.0.0.1"])
        .map(str::to_owned)
        .collect();
    match node {
        Some(_) => line.extend(["--bind-hosts".to_owned(), format!("{CREDENTIALS_V4},{CREDENTIALS_V6}")]),
        None => line.extend(["--bind-hosts", "127.0.0.1", "--port", "0"].map(str::to_owned)),
    }
    line
}

fn own_flags(eks: &SimulatedEks, node: Option<&Node>, home: &tempfile::TempDir) -> Vec<String> {
    let socket = home.path().join("control.sock").display().to_string();
    let mut line: Vec<String> = ["--log-format", "json", "--issuer", eks.issuer(), "--node-name", NODE_NAME]
        .into_iter()
        .chain(["--control-socket", &socket])
        .map(str::to_owned)
        .collect();
    match node {
        Some(node) => {
            line.extend(["--cgroup-root".to_owned(), node.cgroup_mount().display().to_string()]);
            line.extend(["--kubepods-cgroup".to_owned(), node.kubepods().display().to_string()]);
        }
        None => line.extend(["--verify", "off"].map(str::to_owned)),
    }
    line
}

/// An address that the agent says it serves on, the first where there are several.
fn address(serving: &Value, name: &str) -> Result<SocketAddr> {
    let first = serving[name].as_str().and_then(|addresses| addresses.split(',').next());
    let address = first.and_then(|address| address.parse().ok());
    address.with_context(|| format!("the agent does not say where its {name} are"))
}

fn readiness(probes: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&probes, READY)?;
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
