//! A simulated EKS in this process, the agent's binary beside it, and a client.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loadtest::eks::{Config, Minted, PodToken, SimulatedEks};
use reqwest::header::AUTHORIZATION;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/app";
/// Nothing here takes this long unless it is broken.
pub(crate) const BROKEN: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) eks: SimulatedEks,
    pub(crate) agent: Agent,
}

impl Node {
    /// A cluster with one association, web/app, and an agent with these extra arguments.
    pub(crate) async fn start(args: &[&str]) -> Node {
        Node::start_with(Config::default(), args).await
    }

    pub(crate) async fn start_with(config: Config, args: &[&str]) -> Node {
        let eks = SimulatedEks::start(config).await.expect("the simulated EKS starts");
        eks.create_association("web", "app", ROLE);
        let agent = Agent::start(&eks, args).await;
        Node { eks, agent }
    }

    pub(crate) fn pod(&self, name: &str) -> Minted {
        self.eks.mint(PodToken::new("web", "app", name))
    }

    pub(crate) async fn ask(&self, token: &str) -> Answer {
        self.agent.ask(token).await
    }
}

pub(crate) struct Agent {
    child: Child,
    pub(crate) credentials: SocketAddr,
    pub(crate) probes: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) control_socket: std::path::PathBuf,
    deaf: Arc<AtomicBool>,
    logs: Arc<Mutex<Vec<String>>>,
    events: Mutex<Receiver<Value>>,
    client: reqwest::Client,
    _home: tempfile::TempDir,
}

impl Agent {
    pub(crate) async fn start(eks: &SimulatedEks, args: &[&str]) -> Agent {
        Agent::start_with_env(eks, args, &[]).await
    }

    pub(crate) async fn start_with_env(eks: &SimulatedEks, args: &[&str], env: &[(&str, &OsStr)]) -> Agent {
        let agent = Agent::spawn(eks, &[&["--issuer", eks.issuer()], args].concat(), env);
        agent.until_ready().await;
        agent
    }

    /// An agent that is not waited for: it cannot become ready yet.
    pub(crate) fn start_unready(eks: &SimulatedEks, args: &[&str]) -> Agent {
        Agent::spawn(eks, &[&["--issuer", eks.issuer()], args].concat(), &[])
    }

    pub(crate) async fn start_without_issuer(eks: &SimulatedEks, args: &[&str]) -> Agent {
        let agent = Agent::spawn(eks, args, &[]);
        agent.until_ready().await;
        agent
    }

    fn spawn(eks: &SimulatedEks, args: &[&str], env: &[(&str, &OsStr)]) -> Agent {
        let mut agent = Agent::begin(eks, args, env);
        agent.until_serving();
        agent
    }

    /// An agent that may have to wait for its ports: the pods', the probes' and that of the metrics.
    pub(crate) fn begin_at(eks: &SimulatedEks, ports: [SocketAddr; 3]) -> Agent {
        Agent::begin_with_ports(eks, ports, &[])
    }

    /// Also on IPv6, at the same port.
    pub(crate) fn begin_at_both(eks: &SimulatedEks, ports: [SocketAddr; 3]) -> Agent {
        Agent::begin_with_ports(eks, ports, &["--bind-hosts", "::1"])
    }

    fn begin_with_ports(eks: &SimulatedEks, ports: [SocketAddr; 3], more: &[&str]) -> Agent {
        let [pods, probes, metrics] = ports.map(|address| address.port().to_string());
        let flags =
            ["--issuer", eks.issuer(), "--port", &pods, "--probe-port", &probes, "--metrics-port", &metrics];
        Agent::begin(eks, &[&flags[..], more].concat(), &[])
    }

    /// What an agent says of its readiness that does not serve yet.
    pub(crate) async fn until_probes(&mut self, probes: SocketAddr) -> String {
        self.probes = probes;
        let url = format!("http://{probes}/readyz");
        until(async || self.client.get(&url).send().await.is_ok()).await;
        self.probe("/readyz").await.1
    }

    fn begin(eks: &SimulatedEks, args: &[&str], env: &[(&str, &OsStr)]) -> Agent {
        let home = tempfile::tempdir().expect("a folder");
        let control_socket = home.path().join("run/control.sock");
        let node = eks.node_credentials();
        let mut command = Command::new(env!("CARGO_BIN_EXE_podcred"));
        command
            .args(["server", "--log-format", "json", "--cluster-name", eks.cluster_name()])
            .args([
                "--port",
                "0",
                "--probe-port",
                "0",
                "--metrics-port",
                "0",
                "--metrics-address",
                "127.0.0.1",
            ])
            .args(["--bind-hosts", "127.0.0.1"])
            // A machine that runs these tests may be a node, or have other tests' pods on it.
            .arg("--cgroup-root")
            .arg(home.path())
            // What comes later wins: a test may name another.
            .args(["--endpoint", eks.url(), "--control-socket"])
            .arg(&control_socket)
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .env("HOME", home.path())
            .env("AWS_REGION", eks.region())
            .env("AWS_ACCESS_KEY_ID", node.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", node.secret_access_key())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(token) = node.session_token() {
            command.env("AWS_SESSION_TOKEN", token);
        }
        let deaf = Arc::new(AtomicBool::new(false));
        let mut child = command.spawn().expect("the agent's binary starts");
        let (logs, events) = follow(child.stderr.take().expect("stderr is piped"), Arc::clone(&deaf));
        Agent {
            child,
            credentials: SocketAddr::from(([127, 0, 0, 1], 0)),
            probes: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            control_socket,
            deaf,
            logs,
            events: Mutex::new(events),
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
            _home: home,
        }
    }

    pub(crate) fn until_serving(&mut self) {
        let serving = self.event("serving");
        let address = |name: &str| {
            let text = serving[name].as_str().unwrap_or_default();
            text.split(',')
                .next()
                .and_then(|first| first.parse().ok())
                .unwrap_or_else(|| panic!("{name}: {serving}"))
        };
        self.credentials = address("credentials");
        self.probes = address("probes");
        self.metrics = address("metrics");
    }

    /// The next log line of this kind.
    pub(crate) fn event(&self, name: &str) -> Value {
        let events = self.events.lock().expect("one reader");
        loop {
            let event =
                events.recv_timeout(BROKEN).unwrap_or_else(|_| panic!("no event {name}:\n{}", self.logs()));
            if event["event"] == name {
                return event;
            }
        }
    }

    pub(crate) fn logs(&self) -> String {
        self.logs.lock().expect("no panic while logging").join("\n")
    }

    /// Readiness is a state to wait for: the first key set is on its way.
    pub(crate) async fn until_ready(&self) {
        let url = format!("http://{}/readyz", self.probes);
        until(async || self.client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()))
            .await;
    }

    pub(crate) async fn ask(&self, token: &str) -> Answer {
        Answer::of(self.request().header(AUTHORIZATION, token)).await
    }

    /// `GET /v1/credentials`, to be made into something else.
    pub(crate) fn request(&self) -> reqwest::RequestBuilder {
        self.client.get(format!("http://{}/v1/credentials", self.credentials))
    }

    pub(crate) async fn scrape(&self) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        self.client.get(url).send().await.expect("metrics").text().await.expect("text")
    }

    /// The sample whose name and labels are given as Prometheus writes them; 0 where there is none.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.scrape().await;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    pub(crate) async fn probe(&self, path: &str) -> (u16, String) {
        let answer = self.client.get(format!("http://{}{path}", self.probes)).send().await.expect("probe");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    /// `podcred flush …` beside this agent.
    pub(crate) fn flush(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_podcred"))
            .arg("flush")
            .arg("--control-socket")
            .arg(&self.control_socket)
            .args(args)
            .output()
            .expect("flush runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// All that it logs, to its end.
    pub(crate) fn whole_log(&mut self) -> String {
        self.terminate();
        self.wait();
        let events = self.events.lock().expect("one reader");
        let end = loop {
            if let Err(end) = events.recv_timeout(BROKEN) {
                break end;
            }
        };
        assert_eq!(end, RecvTimeoutError::Disconnected, "somebody else holds its stderr");
        self.logs()
    }

    /// From here on nobody reads the agent's log, and its pipe fills.
    pub(crate) fn stop_reading_the_log(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the agent runs");
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the agent was started here")
    }
}

/// Looks until it is so; a state that never comes ends the test.
pub(crate) async fn until(is_so: impl AsyncFn() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BROKEN, looking).await.expect("what was waited for did not come");
}

/// The names of all metric families, as the code has them: one that nothing feeds is in no scrape.
pub(crate) fn registered_metrics() -> BTreeSet<String> {
    let sources = [include_str!("../../src/metrics.rs"), include_str!("../../src/metrics/pods.rs")];
    let quoted = sources.iter().flat_map(|source| source.split('"'));
    let is_name = |text: &&str| {
        ["podcred_", "pod_identity_"].iter().any(|prefix| text.starts_with(prefix))
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let names: BTreeSet<String> = quoted.filter(is_name).map(str::to_owned).collect();
    assert!(names.len() > 30, "{names:?}");
    names
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.deaf.store(false, Ordering::Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps all lines, and passes on those that are events.
fn follow(
    stderr: impl Read + Send + 'static,
    deaf: Arc<AtomicBool>,
) -> (Arc<Mutex<Vec<String>>>, Receiver<Value>) {
    let logs = Arc::new(Mutex::new(Vec::new()));
    let (send, events) = channel();
    let kept = Arc::clone(&logs);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            while deaf.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let event = serde_json::from_str(&line).unwrap_or_default();
            kept.lock().expect("no panic while logging").push(line);
            // The test may have ended already.
            let _ = send.send(event);
        }
    });
    (logs, events)
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(request: reqwest::RequestBuilder) -> Answer {
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default();
        Answer { status, headers, body }
    }

    pub(crate) fn key(&self) -> &str {
        assert_eq!(self.status, 200, "{self:?}");
        self.body["AccessKeyId"].as_str().expect("AccessKeyId")
    }

    pub(crate) fn message(&self) -> &str {
        assert_eq!(self.body["Message"], self.body["message"], "{self:?}");
        self.body["Message"].as_str().expect("Message")
    }

    pub(crate) fn code(&self) -> &str {
        self.body["Code"].as_str().expect("Code")
    }
}
