//! A simulated node with a simulated EKS on it, and the agent's binary in its place.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use loadtest::eks::{Config, PodToken, SimulatedEks};
use loadtest::left_out_without_root;
use loadtest::node::{CREDENTIALS_V4, Layout, Node, Place, Pod, Process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::harness::{BROKEN, Others, until};

pub(crate) const PORT: u16 = 80;

pub(crate) struct Site {
    pub(crate) eks: SimulatedEks,
    /// Ends before the node: a thread that it started for the simulated EKS may be in the agent's cgroup.
    _runtime: Runtime,
    pub(crate) node: Node,
    _others: Others,
}

impl Site {
    /// None where this test is left out.
    pub(crate) fn new() -> Option<Site> {
        Site::beside(Others::welcome())
    }

    /// With no other test beside.
    pub(crate) fn alone() -> Option<Site> {
        Site::beside(Others::waiting())
    }

    fn beside(others: Others) -> Option<Site> {
        if left_out_without_root() {
            return None;
        }
        let node = Node::start(Layout::default()).expect("a simulated node");
        let runtime = Runtime::new().expect("a runtime");
        // It listens in the network namespace of the thread that starts it.
        let start = || runtime.block_on(SimulatedEks::start(Config::default()));
        let eks = node.agent().run(start).expect("the node's place").expect("the simulated EKS starts");
        eks.create_association("web", "app", "arn:aws:iam::111122223333:role/app");
        Some(Site { eks, node, _runtime: runtime, _others: others })
    }

    /// A pod of the associated service account and its token.
    pub(crate) fn pod(&self) -> (Pod, String) {
        let [pod]: [Pod; 1] = self.node.pods(1).expect("a pod").try_into().expect("one pod");
        let token = self.token_of(&pod);
        (pod, token)
    }

    pub(crate) fn token_of(&self, pod: &Pod) -> String {
        self.eks.mint(PodToken::new("web", "app", "app-0").pod_uid(pod.uid())).token
    }

    /// An agent with these arguments more, once it serves.
    pub(crate) fn agent(&self, args: &[&str]) -> Agent {
        let mount = self.node.cgroup_mount().to_str().expect("a readable path");
        let kubepods = self.node.kubepods().to_str().expect("a readable path");
        let args = [&["--cgroup-root", mount, "--kubepods-cgroup", kubepods], args].concat();
        self.agent_after(&args, || Ok(()))
    }

    /// With arguments of its own for where the cgroups are, on a thread that `prepare` takes something from.
    pub(crate) fn agent_after(
        &self,
        args: &[&str],
        prepare: impl FnOnce() -> io::Result<()> + Send,
    ) -> Agent {
        let home = tempfile::tempdir().expect("a folder");
        let credentials = self.eks.node_credentials();
        let binary = std::env::var_os("PODCRED_BINARY").unwrap_or(env!("CARGO_BIN_EXE_podcred").into());
        let mut command = Command::new(binary);
        command
            .args(["server", "--log-format", "json", "--cluster-name", self.eks.cluster_name()])
            .args(["--bind-hosts", &CREDENTIALS_V4.to_string(), "--port", &PORT.to_string()])
            .args(["--probe-port", "0", "--metrics-port", "0", "--metrics-address", "127.0.0.1"])
            .args(["--endpoint", self.eks.url(), "--issuer", self.eks.issuer(), "--control-socket"])
            .arg(home.path().join("control.sock"))
            .args(args)
            .env_clear()
            .env("HOME", home.path())
            .env("AWS_REGION", self.eks.region())
            .env("AWS_ACCESS_KEY_ID", credentials.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(credentials.session_token().map(|token| ("AWS_SESSION_TOKEN", token)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = self.node.agent().spawn_after(prepare, &mut command).expect("the agent starts");
        let log = Log::follow(process.child().stderr.take().expect("it is piped"));
        Agent::serving(process, log, home)
    }
}

/// A running agent; killed when its guard ends.
pub(crate) struct Agent {
    process: Process,
    pub(crate) attribution: Value,
    pub(crate) credentials: SocketAddr,
    probes: SocketAddr,
    metrics: SocketAddr,
    log: Log,
    _home: TempDir,
}

impl Agent {
    fn serving(process: Process, log: Log, home: TempDir) -> Agent {
        let attribution = log.event("attribution");
        let serving = log.event("serving");
        let address = |name: &str| {
            let text = serving[name].as_str().unwrap_or_default();
            text.split(',').next().and_then(|first| first.parse().ok()).unwrap_or_else(|| panic!("{serving}"))
        };
        Agent {
            process,
            attribution,
            credentials: address("credentials"),
            probes: address("probes"),
            metrics: address("metrics"),
            log,
            _home: home,
        }
    }

    pub(crate) fn event(&self, name: &str) -> Value {
        self.log.event(name)
    }

    /// `kill -9`
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it was running");
    }

    /// What this pod is answered: status and body.
    pub(crate) fn ask(&self, pod: &Place, token: &str) -> (u16, String) {
        get(pod, self.credentials, "/v1/credentials", token).expect("an answer")
    }

    pub(crate) fn readiness(&self, site: &Site) -> (u16, String) {
        get(site.node.agent(), self.probes, "/readyz", "").expect("an answer")
    }

    /// Readiness is a state to wait for: the first key set is on its way.
    pub(crate) fn until_ready(&self, site: &Site) {
        until("the agent is ready", || self.readiness(site).0 == 200);
    }

    /// The sum of the samples whose name and labels begin and end like this.
    pub(crate) fn metric(&self, site: &Site, name: &str, label: &str) -> f64 {
        let (_, text) = get(site.node.agent(), self.metrics, "/metrics", "").expect("metrics");
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// One request on one connection, from this place.
pub(crate) fn get(from: &Place, to: SocketAddr, path: &str, token: &str) -> io::Result<(u16, String)> {
    let request = || {
        let mut stream = TcpStream::connect_timeout(&to, BROKEN)?;
        stream.set_read_timeout(Some(BROKEN))?;
        let authorization =
            if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{authorization}\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
    };
    from.run(request)?
}

/// The agent's log, line by line as JSON.
struct Log {
    events: Mutex<Receiver<Value>>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    fn follow(stderr: impl Read + Send + 'static) -> Log {
        let (send, events) = channel();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_default();
                kept.lock().expect("nobody panics with it").push(line);
                // The test may have ended already.
                let _ = send.send(event);
            }
        });
        Log { events: Mutex::new(events), lines }
    }

    /// The next line of this kind.
    fn event(&self, name: &str) -> Value {
        let events = self.events.lock().expect("one reader");
        loop {
            let event = events.recv_timeout(BROKEN).unwrap_or_else(|_| {
                panic!("no event {name}:\n{}", self.lines.lock().expect("nobody panics with it").join("\n"))
            });
            if event["event"] == name {
                return event;
            }
        }
    }
}

/// A bpf file system of a test's own; what is pinned there ends with it.
pub(crate) struct Bpffs(TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Bpffs {
        let folder = tempfile::tempdir().expect("a folder");
        rustix::mount::mount("bpf", folder.path(), "bpf", rustix::mount::MountFlags::empty(), None)
            .expect("a bpf file system");
        Bpffs(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let detached = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        if let Err(error) = detached {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}
