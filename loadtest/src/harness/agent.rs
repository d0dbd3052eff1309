//! podcred as a process, on the simulated node or on loopback.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

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
const LINES_KEPT: usize = 30;

/// The process of the agent that runs; 0 where none does.
static RUNNING: AtomicI32 = AtomicI32::new(0);

/// For an end that drops nothing: the agent, which is in a process group of its own, would run on.
pub(super) fn kill_now() {
    let pid = RUNNING.swap(0, Ordering::AcqRel);
    if pid > 0 {
        // It may have ended by itself.
        let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// podcred, which ends with this.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Where the kernel tells callers apart; without a node everything is loopback.
    node: Option<Arc<Node>>,
    endpoint: Endpoint,
    running: Option<(Process, JoinHandle<()>)>,
    /// Processor time of those that were stopped.
    former_cpu: f64,
    peak: u64,
    log: Arc<Log>,
    _home: tempfile::TempDir,
}

impl Agent {
    /// Returns when it serves. `more` are further flags.
    pub fn start(
        binary: &std::path::Path,
        more: &[String],
        eks: &SimulatedEks,
        node: Option<Arc<Node>>,
    ) -> Result<Agent> {
        let binary = binary.canonicalize().with_context(|| {
            format!(
                "{} is not there: cargo build --release -p podcred, or name another by --binary",
                binary.display()
            )
        })?;
        let home = tempfile::tempdir().context("a folder for the agent")?;
        let credentials = eks.node_credentials();
        let mut agent = Agent {
            binary,
            arguments: arguments(eks, node.as_deref(), &home, more),
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
            let address =
                serving["credentials"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
            agent.endpoint = Endpoint::at(address.context("the agent does not say where it serves")?);
            // Where it serves once it serves again: pods do not look for it.
            agent.arguments.extend(["--port".to_owned(), agent.endpoint.address.port().to_string()]);
        }
        Ok(agent)
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.endpoint.host, self.endpoint.path)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn command_line(&self) -> Vec<String> {
        let mut line = vec![self.binary.file_name().unwrap_or_default().to_string_lossy().into_owned()];
        line.extend(self.arguments.iter().cloned());
        line
    }

    pub(super) fn version(&self) -> String {
        let output = Command::new(&self.binary).arg("version").output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    /// Starts it, for the first time or again, and gives the log line that says where it serves.
    pub(super) fn run_again(&mut self) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A terminal's Ctrl-C is for the harness alone, which stops its agent last.
        command.process_group(0);
        let spawned = match &self.node {
            Some(node) => node.agent().spawn(&mut command),
            None => Process::spawn(&mut command),
        };
        let mut process = spawned.with_context(|| format!("cannot start {}", self.binary.display()))?;
        RUNNING.store(i32::try_from(process.id())?, Ordering::Release);
        let stderr = process.child().stderr.take().context("the agent's stderr is piped")?;
        self.log.begin();
        let follower = follow(stderr, Arc::clone(&self.log));
        self.running = Some((process, follower));
        match self.log.until_serving() {
            Some(serving) => Ok(serving),
            None => bail!("the agent does not serve; its last words:\n{}", self.log.last_words()),
        }
    }

    /// By SIGTERM, as the kubelet does it.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some((mut process, follower)) = self.running.take() else { return Ok(()) };
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
        RUNNING.store(0, Ordering::Release);
        // Its last line must not be taken for the next one's.
        follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    }

    /// Its listeners are up before it has the issuer's keys and has attached itself to the kernel.
    fn until_ready(&self, serving: &Value) -> Result<()> {
        let probes = serving["probes"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
        let probes = probes.context("the agent does not say where its probes are")?;
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
        let died =
            self.running.as_mut().is_some_and(|(process, _)| !matches!(process.child().try_wait(), Ok(None)));
        if died {
            RUNNING.store(0, Ordering::Release);
        }
        died
    }

    /// Processor time of all that were started.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let running =
            self.running.as_ref().and_then(|(process, _)| proc::cpu_seconds(&process.id().to_string()));
        self.former_cpu + running.unwrap_or_default()
    }

    pub(super) fn memory(&self) -> Option<proc::Memory> {
        let memory = proc::memory(&self.running.as_ref()?.0.id().to_string())?;
        Some(proc::Memory { peak: memory.peak.max(self.peak), ..memory })
    }

    /// The pods that presented another's token, and whose, as the log says: UIDs.
    pub(super) fn named_thieves(&self) -> BTreeSet<(String, String)> {
        self.log.lock().thieves.clone()
    }

    pub(super) fn last_words(&self) -> String {
        self.log.last_words()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its process is killed next, and its number may then be another's.
        RUNNING.store(0, Ordering::Release);
    }
}

fn arguments(
    eks: &SimulatedEks,
    node: Option<&Node>,
    home: &tempfile::TempDir,
    more: &[String],
) -> Vec<String> {
    let socket = home.path().join("control.sock").display().to_string();
    let mut line: Vec<String> = ["server", "--log-format", "json", "--cluster-name", eks.cluster_name()]
        .into_iter()
        .chain(["--endpoint", eks.url(), "--issuer", eks.issuer(), "--node-name", NODE_NAME])
        .chain(["--probe-port", "0", "--metrics-port", "0", "--metrics-address", "127.0.0.1"])
        .chain(["--control-socket", &socket])
        .map(str::to_owned)
        .collect();
    match node {
        Some(node) => {
            line.extend(["--bind-hosts".to_owned(), format!("{CREDENTIALS_V4},{CREDENTIALS_V6}")]);
            line.extend(["--cgroup-root".to_owned(), node.cgroup_mount().display().to_string()]);
            line.extend(["--kubepods-cgroup".to_owned(), node.kubepods().display().to_string()]);
        }
        None => {
            line.extend(["--bind-hosts".to_owned(), Ipv4Addr::LOCALHOST.to_string()]);
            line.extend(["--port", "0", "--verify", "off"].map(str::to_owned));
        }
    }
    line.extend_from_slice(more);
    line
}

/// What is of interest in the agent's log.
#[derive(Debug, Default)]
struct Log {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    serving: Option<Value>,
    ended: bool,
    thieves: BTreeSet<(String, String)>,
    last: VecDeque<String>,
}

impl Log {
    fn begin(&self) {
        let mut said = self.lock();
        (said.serving, said.ended) = (None, false);
    }

    fn line(&self, line: String) {
        let mut said = self.lock();
        // A busy agent writes thousands of lines, of which these are few.
        if line.contains("\"serving\"") || line.contains("\"other_pod_presents_token\"") {
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            if value["event"] == "serving" {
                said.serving = Some(value);
                self.changed.notify_all();
            } else if value["event"] == "other_pod_presents_token" {
                said.thieves.insert((text("caller_uid"), text("token_uid")));
            }
        }
        if said.last.len() == LINES_KEPT {
            said.last.pop_front();
        }
        said.last.push_back(line);
    }

    fn ended(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn until_serving(&self) -> Option<Value> {
        let waiting = |said: &mut Said| said.serving.is_none() && !said.ended;
        let (said, _) = self
            .changed
            .wait_timeout_while(self.lock(), READY, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        said.serving.clone()
    }

    fn last_words(&self) -> String {
        self.lock().last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log that nobody reads would stop the agent.
fn follow(stderr: ChildStderr, log: Arc<Log>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            log.line(line);
        }
        log.ended();
    })
}

fn readiness(probes: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&probes, READY)?;
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
