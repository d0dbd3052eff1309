//! The agent's binary on a simulated node, a simulated EKS on that node's loopback, and pods that ask with their tokens.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};

use loadtest::api_server::{ApiServer, RunningPod};
use loadtest::eks::{Config, PodToken, SimulatedEks};
use loadtest::left_out_without_root;
use loadtest::node::{CREDENTIALS_V4, CREDENTIALS_V6, Layout, Node, Place, Pod, PodSpec, Process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tokio::runtime::{Builder, Runtime};

use crate::harness::{BROKEN, Others, connect, until};

/// The agent's own variable for its flag of that name.
const EKS_AUTH_WAIT: &str = "PODCRED_EKS_AUTH_WAIT";

pub(crate) const NODE_NAME: &str = "ip-10-0-1-17.eu-west-1.compute.internal";

/// The service accounts that have a role.
pub(crate) const WEB: (&str, &str) = ("web", "app");
pub(crate) const SHOP: (&str, &str) = ("shop", "cart");

/// A node and what its agent depends on. Fields end in this order.
pub(crate) struct Cluster {
    pub(crate) eks: SimulatedEks,
    runtime: Runtime,
    pub(crate) node: Node,
    _others: Others,
}

impl Cluster {
    /// None where this test is left out.
    pub(crate) fn start() -> Option<Cluster> {
        Cluster::beside(Others::welcome())
    }

    /// As [`Cluster::start`], with no other test beside.
    pub(crate) fn alone() -> Option<Cluster> {
        Cluster::beside(Others::waiting())
    }

    fn beside(others: Others) -> Option<Cluster> {
        if left_out_without_root() {
            return None;
        }
        let node = Node::start(Layout::default()).expect("a simulated node");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        // A listener belongs to the network namespace that it was made in, whichever thread serves it.
        let eks = node.agent().run(|| runtime.block_on(SimulatedEks::start(Config::default())));
        let eks = eks.expect("the agent's place").expect("the simulated EKS starts");
        for (namespace, account) in [WEB, SHOP] {
            eks.create_association(namespace, account, &format!("arn:aws:iam::111122223333:role/{account}"));
        }
        Some(Cluster { eks, runtime, node, _others: others })
    }

    pub(crate) fn pods<const N: usize>(&self) -> [Pod; N] {
        self.node.pods(N).expect("pods").try_into().expect("as many as were asked for")
    }

    pub(crate) fn host_network_pod(&self) -> Pod {
        self.node.pod(PodSpec::default().host_network()).expect("a pod")
    }

    /// Whether the agent can tell the simulated node's network from a pod's. Real nodes' is the kernel's first, which every
    /// kernel tells; other namespaces have a number for user space since Linux 5.14.
    pub(crate) fn host_network_is_known(&self) -> bool {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let known = (numbers.next(), numbers.next()) >= (Some(5), Some(14));
        if !known {
            eprintln!("left out: Linux {release} does not tell which network namespace a process is in");
        }
        known
    }

    /// A token as the kubelet projects it into this pod.
    pub(crate) fn token_of(&self, pod: &Pod, account: (&str, &str)) -> String {
        self.eks.mint(token_for(pod, account).node_name(NODE_NAME)).token
    }

    pub(crate) fn api_server(&self) -> ApiServer {
        let api = self.node.agent().run(|| self.runtime.block_on(ApiServer::start()));
        api.expect("the agent's place").expect("the simulated API server starts")
    }

    /// An agent that is ready, with these arguments besides what it needs on this node.
    pub(crate) fn agent(&self, args: &[&str]) -> Agent<'_> {
        self.ready(None, args)
    }

    /// As [`Cluster::agent`], where the agent knows of this API server.
    pub(crate) fn agent_that_watches(&self, api: &ApiServer, args: &[&str]) -> Agent<'_> {
        self.ready(Some(api), args)
    }

    fn ready(&self, api: Option<&ApiServer>, args: &[&str]) -> Agent<'_> {
        let agent = Agent::start(self, api, &[&self.cgroups(), args].concat(), || Ok(()));
        agent.until_ready();
        agent
    }

    /// An agent that serves and may never be ready: where the cgroups are is for `args` to say, and `prepare` takes
    /// something from the thread that starts it.
    pub(crate) fn agent_after(
        &self,
        args: &[&str],
        prepare: impl FnOnce() -> io::Result<()> + Send,
    ) -> Agent<'_> {
        Agent::start(self, None, args, prepare)
    }

    /// What an agent is told of this node's cgroups.
    pub(crate) fn cgroups(&self) -> [&str; 4] {
        let [mount, kubepods] = [self.node.cgroup_mount(), self.node.kubepods()]
            .map(|path| path.to_str().expect("a readable path"));
        ["--cgroup-root", mount, "--kubepods-cgroup", kubepods]
    }

    fn command(&self, home: &TempDir, args: &[&str]) -> Command {
        let binary = std::env::var_os("PODCRED_BINARY").unwrap_or(env!("CARGO_BIN_EXE_podcred").into());
        let credentials = self.eks.node_credentials();
        let hosts = format!("{CREDENTIALS_V4},{CREDENTIALS_V6}");
        let mut command = Command::new(binary);
        command
            .args(["server", "--log-format", "json", "--cluster-name", self.eks.cluster_name()])
            .args(["--endpoint", self.eks.url(), "--issuer", self.eks.issuer(), "--node-name", NODE_NAME])
            .args(["--bind-hosts", &hosts, "--port", "80", "--probe-port", "0", "--metrics-port", "0"])
            .args(["--metrics-address", "127.0.0.1", "--control-socket"])
            .arg(home.path().join("control.sock"))
            .args(args)
            .env_clear()
            .env("HOME", home.path())
            .env("AWS_REGION", self.eks.region())
            .env("AWS_ACCESS_KEY_ID", credentials.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // Where the machine is slow, a first fetch takes longer than SDKs wait.
            .envs(std::env::var_os(EKS_AUTH_WAIT).map(|wait| (EKS_AUTH_WAIT, wait)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

/// A token of this pod's, to be made into something else.
pub(crate) fn token_for(pod: &Pod, (namespace, account): (&str, &str)) -> PodToken {
    PodToken::new(namespace, account, name_of(pod)).pod_uid(pod.uid())
}

pub(crate) fn name_of(pod: &Pod) -> String {
    format!("pod-{}", &pod.uid()[..8])
}

/// Tells the API server of a pod.
pub(crate) fn runs(api: &ApiServer, pod: &Pod, (namespace, account): (&str, &str), node: &str) {
    api.add_pod(&RunningPod {
        uid: pod.uid(),
        namespace: namespace.to_owned(),
        name: name_of(pod),
        service_account: account.to_owned(),
        node: node.to_owned(),
    });
}

/// A running agent. It is killed at the end, without a chance to say so.
pub(crate) struct Agent<'a> {
    cluster: &'a Cluster,
    process: Process,
    log: Arc<Mutex<Vec<Value>>>,
    port: u16,
    probes: SocketAddr,
    metrics: SocketAddr,
    _home: TempDir,
}

impl<'a> Agent<'a> {
    fn start(
        cluster: &'a Cluster,
        api: Option<&ApiServer>,
        args: &[&str],
        prepare: impl FnOnce() -> io::Result<()> + Send,
    ) -> Agent<'a> {
        let home = tempdir().expect("a folder");
        let mut command = cluster.command(&home, args);
        if let Some(api) = api {
            command.args(["--api-server", &api.url()]);
        }
        let process = cluster.node.agent().spawn_after(prepare, &mut command);
        let mut process = process.expect("the agent's binary starts");
        let log = follow(process.child().stderr.take().expect("it is piped"));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut agent =
            Agent { cluster, process, log, port: 0, probes: nowhere, metrics: nowhere, _home: home };
        let serving = agent.until_logged("serving", 1).remove(0);
        let address = |name: &str| -> SocketAddr {
            let first = serving[name].as_str().and_then(|addresses| addresses.split(',').next());
            first.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{name}: {serving}"))
        };
        agent.port = address("credentials").port();
        (agent.probes, agent.metrics) = (address("probes"), address("metrics"));
        agent
    }

    /// The first key set is on its way, for one.
    pub(crate) fn until_ready(&self) {
        until("the agent is ready", || self.readiness().status == 200);
    }

    /// What it said of its attribution.
    pub(crate) fn attribution(&self) -> Value {
        self.until_logged("attribution", 1).remove(0)
    }

    pub(crate) fn connect(&self, from: &Place) -> Client {
        Client::connect(from, (CREDENTIALS_V4, self.port).into())
    }

    /// Asks on a connection of its own.
    pub(crate) fn ask(&self, from: &Place, token: &str) -> Answer {
        self.connect(from).ask(token)
    }

    pub(crate) fn ask_over_ipv6(&self, from: &Place, token: &str) -> Answer {
        Client::connect(from, (CREDENTIALS_V6, self.port).into()).ask(token)
    }

    pub(crate) fn readiness(&self) -> Answer {
        self.page(self.probes, "/readyz")
    }

    pub(crate) fn scrape(&self) -> String {
        self.page(self.metrics, "/metrics").body
    }

    /// The sample of this family that has these labels, among others perhaps; None where there is none.
    pub(crate) fn metric(&self, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sample(&self.scrape(), family, labels)
    }

    /// What a counter says of this result; it has no sample before the first.
    pub(crate) fn count(&self, family: &str, result: &str) -> f64 {
        self.metric(family, &[("result", result)]).unwrap_or(0.0)
    }

    /// The log lines of this event so far.
    pub(crate) fn logged(&self, event: &str) -> Vec<Value> {
        let log = self.log.lock().expect("no panic while logging");
        log.iter().filter(|line| line["event"] == event).cloned().collect()
    }

    /// The log lines of this event, as soon as there are so many.
    pub(crate) fn until_logged(&self, event: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} log lines of {event}"), || self.logged(event).len() >= count);
        self.logged(event)
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    fn page(&self, address: SocketAddr, path: &str) -> Answer {
        let mut client = Client::connect(self.cluster.node.agent(), address);
        client.get(path, None);
        client.answer()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.log.lock().iter().flat_map(|log| log.iter()) {
                eprintln!("{line}");
            }
        }
    }
}

/// Keeps what the agent logs.
fn follow(stderr: ChildStderr) -> Arc<Mutex<Vec<Value>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            kept.lock().expect("no panic while logging").push(line);
        }
    });
    log
}

pub(crate) fn sample(text: &str, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(family)?;
        let (has, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let all =
            labels.iter().all(|(name, value)| has.split(',').any(|l| l == format!("{name}=\"{value}\"")));
        all.then(|| value.parse().expect("a number"))
    })
}

/// One connection, kept alive as the SDKs keep it.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    host: IpAddr,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) closes: bool,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn connect(from: &Place, to: SocketAddr) -> Client {
        Client::of(connect(from, to), to.ip())
    }

    pub(crate) fn of(stream: TcpStream, host: IpAddr) -> Client {
        stream.set_read_timeout(Some(BROKEN)).expect("a time-out");
        Client { stream: BufReader::new(stream), host }
    }

    pub(crate) fn ask(&mut self, token: &str) -> Answer {
        self.send(token);
        self.answer()
    }

    pub(crate) fn send(&mut self, token: &str) {
        self.get("/v1/credentials", Some(token));
    }

    pub(crate) fn get(&mut self, path: &str, token: Option<&str>) {
        let host = match self.host {
            IpAddr::V4(host) => host.to_string(),
            IpAddr::V6(host) => format!("[{host}]"),
        };
        let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{token}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).expect("a request");
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer")
    }

    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut length, mut closes) = (0, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            match header.split_once(": ") {
                Some(("content-length", value)) => length = value.parse().expect("a length"),
                Some(("connection", value)) => closes = value == "close",
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, closes, body: String::from_utf8(body).expect("UTF-8") })
    }

    /// Whether something has come: an answer, or the end of the connection. Does not wait.
    pub(crate) fn has_heard(&mut self) -> bool {
        let stream = self.stream.get_ref();
        stream.set_nonblocking(true).expect("a socket");
        let heard = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("a socket");
        heard.map_or_else(|error| error.kind() != io::ErrorKind::WouldBlock, |_| true)
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn assert_credentials(&self) {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.json()["AccessKeyId"].is_string(), "{self:?}");
    }

    /// Gives the message of this refusal.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, code: &str) -> String {
        let body = self.json();
        assert_eq!((self.status, body["Code"].as_str()), (status, Some(code)), "{self:?}");
        // Java and Go take a 5xx's connection for the next attempt, unless they are told not to.
        assert_eq!(self.closes, status >= 500, "{self:?}");
        body["Message"].as_str().expect("a message").to_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}
