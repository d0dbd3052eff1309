//! What an operator does and sees: probes, metrics, logs, flush, signals.

use std::io::ErrorKind::WouldBlock;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use loadtest::eks::{Config, Outage, PodToken, SimulatedEks};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Agent, BROKEN, Node, registered_metrics, until};

#[tokio::test]
async fn sigterm_drains_and_exits_0() {
    let mut node = Node::start(&[]).await;
    node.eks.settings(|s| s.latency_ms = 700);
    let token = node.pod("p").token;
    let request = node.agent.request().header("authorization", &token);
    let running = tokio::spawn(crate::harness::Answer::of(request));
    until(async || node.eks.counts().in_flight + node.eks.counts().total > 0).await;
    node.agent.terminate();
    assert_eq!(running.await.expect("no panic").status, 200, "what was running is finished");
    assert_eq!(node.agent.wait().code(), Some(0));
}

/// Its successor has the port a moment later; these would have been reset.
#[tokio::test]
async fn who_had_asked_before_sigterm_is_answered() {
    const CLIENTS: usize = 300;
    let mut node = Node::start(&[]).await;
    let token = node.pod("p").token;
    // From now on from the cache: EKS Auth answers nobody while this thread waits.
    node.ask(&token).await.key();
    let request = format!(
        "GET /v1/credentials HTTP/1.1\r\nhost: {}\r\nauthorization: {token}\r\n\r\n",
        node.agent.credentials
    );
    // While the agent stands still, the kernel connects them and takes what they ask.
    node.agent.signal(Signal::STOP);
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut client = TcpStream::connect(node.agent.credentials).expect("connects");
            client.write_all(request.as_bytes()).expect("writes");
            client.set_read_timeout(Some(BROKEN)).expect("a timeout");
            client
        })
        .collect();
    node.agent.terminate();
    node.agent.signal(Signal::CONT);
    let answered = clients.into_iter().filter_map(|mut client| {
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    });
    assert_eq!(answered.count(), CLIENTS);
    assert_eq!(node.agent.wait().code(), Some(0));
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_skipped_and_reported_as_long_as_another_binds() {
    let node = Node::start(&["--bind-hosts", "[fd00:ec2::23]"]).await;
    assert_eq!(node.ask(&node.pod("p").token).await.status, 200);
    assert_eq!(node.agent.metric("podcred_listener_bound{address=\"fd00:ec2::23\"}").await, 0.0);
    assert_eq!(node.agent.metric("podcred_listener_bound{address=\"127.0.0.1\"}").await, 1.0);
    let (status, text) = node.agent.probe("/readyz").await;
    assert_eq!(status, 200);
    assert!(text.contains("fd00:ec2::23"), "{text}");
    assert!(node.agent.logs().contains("listener_skipped"));
}

/// Each node has IPv4, so pods ask there.
#[tokio::test]
async fn an_agent_without_one_of_the_pods_ipv4_addresses_is_not_ready() {
    let node = Node::start(&[]).await;
    let agent = Agent::start_unready(&node.eks, &["--bind-hosts", "192.0.2.1"]);
    assert_eq!(agent.ask(&node.pod("p").token).await.status, 200);
    let (status, text) = agent.probe("/readyz").await;
    assert!(status == 503 && text.contains("listeners: --bind-hosts: 192.0.2.1:0 cannot be bound"), "{text}");
    assert_eq!(agent.logs().matches("listener_skipped").count(), 1);
}

#[test]
fn addresses_that_this_machine_has_not_are_clear_errors() {
    let (status, text) = server(&["--port", "0", "--bind-hosts", "192.0.2.1"]);
    assert!(status == Some(1) && text.contains("--bind-hosts: 192.0.2.1:0"), "{text}");
    assert!(text.contains("podcred initialize"), "{text}");
    let (status, text) =
        server(&["--port", "0", "--bind-hosts", "127.0.0.1", "--metrics-address", "192.0.2.1"]);
    assert!(status == Some(1) && text.contains("--metrics-port: 192.0.2.1:0"), "{text}");
}

/// As while a node changes from one agent to another.
#[tokio::test]
async fn ports_that_another_agent_holds_are_taken_when_they_are_free() {
    let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
    eks.create_association("web", "app", crate::harness::ROLE);
    let hold = || TcpListener::bind("127.0.0.1:0").expect("binds");
    let held = [hold(), hold(), hold()];
    let [pods, probes, metrics] = held.each_ref().map(|other| other.local_addr().expect("bound"));
    let mut agent = Agent::begin_at(&eks, [pods, probes, metrics]);
    let told = [(); 3].map(|()| agent.event("port_taken"));
    for (flag, address) in [("--bind-hosts", pods), ("--probe-port", probes), ("--metrics-port", metrics)] {
        let is_it = |told: &&Value| told["flag"] == flag && told["address"] == address.to_string();
        assert_eq!(told.iter().filter(is_it).count(), 1, "{flag}: {told:?}");
    }
    let [other_pods, other_probes, other_metrics] = held;
    drop(other_probes);
    let unready = agent.until_probes(probes).await;
    assert!(unready.contains(&format!("{pods} is held by another process")), "{unready}");
    drop(other_pods);
    agent.until_serving();
    assert_eq!(agent.credentials, pods);
    agent.ask(&eks.mint(PodToken::new("web", "app", "p")).token).await.key();
    agent.until_ready().await;
    let (_, ready) = agent.probe("/readyz").await;
    assert!(
        ready.contains(&format!("listeners: degraded: {metrics} is held")),
        "nobody waits for scrapes: {ready}"
    );
    drop(other_metrics);
    until(async || agent.probe("/readyz").await.1.contains("listeners: ok")).await;
    assert_eq!(agent.metric("podcred_listener_bound{address=\"127.0.0.1\"}").await, 1.0);
    assert_eq!(agent.logs().matches("port_taken").count(), 3, "it says so once of each");
    assert_eq!(agent.logs().matches("port_free").count(), 3);
}

/// Pods that ask on the other address are not the agent's, who must not be taken for ready.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_not_ready_while_another_process_has_one_of_the_pods_addresses() {
    let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
    let other = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = other.local_addr().expect("bound");
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut agent = Agent::begin_at_both(&eks, [address, any, any]);
    agent.until_serving();
    assert!(agent.credentials.is_ipv6(), "{}", agent.credentials);
    until(async || agent.probe("/readyz").await.1.contains("keys: ok")).await;
    let (status, text) = agent.probe("/readyz").await;
    assert!(status == 503 && text.contains(&format!("{address} is held")), "{text}");
    drop(other);
    agent.event("port_free");
    agent.until_ready().await;
}

#[tokio::test]
async fn an_agent_that_waits_for_its_port_ends_by_sigterm() {
    let eks = SimulatedEks::start(Config::default()).await.expect("the simulated EKS starts");
    let other = TcpListener::bind("127.0.0.1:0").expect("binds");
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut agent = Agent::begin_at(&eks, [other.local_addr().expect("bound"), any, any]);
    agent.event("port_taken");
    agent.terminate();
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn a_start_that_waits_for_its_region_ends_by_sigterm() {
    let imds = TcpListener::bind("127.0.0.1:0").expect("binds");
    let home = tempfile::tempdir().expect("a folder");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_podcred"));
    agent
        .args(["server", "--cluster-name", "demo", "--issuer", "http://127.0.0.1:1/id/x", "--verify", "off"])
        .args(["--bind-hosts", "127.0.0.1", "--port", "0", "--probe-port", "0", "--metrics-port", "0"])
        .arg("--control-socket")
        .arg(home.path().join("control.sock"))
        .env_clear()
        .env("HOME", home.path())
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", imds.local_addr().expect("bound")));
    let mut agent = agent.stderr(Stdio::null()).spawn().expect("the binary runs");
    let _unanswered = imds.accept().expect("it asks for its region");
    kill_process(Pid::from_child(&agent), Signal::TERM).expect("it runs");
    // Without the region, which it would have given up to find some seconds later, it were an error.
    assert_eq!(agent.wait().expect("it was started here").code(), Some(0));
}

#[tokio::test]
async fn half_a_request_for_a_probe_has_no_longer_than_the_grace() {
    let mut node = Node::start(&["--shutdown-grace", "100ms"]).await;
    let mut half = TcpStream::connect(node.agent.probes).expect("connects");
    half.write_all(b"GET /healthz HTTP/1.1\r\n").expect("writes");
    assert_eq!(node.agent.probe("/healthz").await.0, 200, "by now the half is there, too");
    node.agent.terminate();
    assert_eq!(node.agent.event("drain_cut_short")["open"], 1);
    assert_eq!(node.agent.wait().code(), Some(0));
}

#[tokio::test]
async fn half_a_request_for_credentials_does_not_use_the_grace_up() {
    let mut node = Node::start(&["--shutdown-grace", "10m"]).await;
    let token = node.pod("p").token;
    let mut half = TcpStream::connect(node.agent.credentials).expect("connects");
    half.write_all(b"GET /v1/credentials HTTP/1.1\r\n").expect("writes");
    node.ask(&token).await.key();
    node.agent.terminate();
    assert_eq!(node.agent.wait().code(), Some(0));
}

fn server(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_podcred"))
        .args([
            "server",
            "--cluster-name",
            "demo",
            "--issuer",
            "http://127.0.0.1:1/id/x",
            "--metrics-port",
            "0",
        ])
        .args(args)
        .env_clear()
        .env("AWS_REGION", "eu-west-1")
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn flush_drops_what_it_names() {
    let node = Node::start(&[]).await;
    node.eks.create_association("web", "other", crate::harness::ROLE);
    let (app, other) = (node.pod("p").token, node.eks.mint(PodToken::new("web", "other", "p")).token);
    let before = [node.ask(&app).await.key().to_owned(), node.ask(&other).await.key().to_owned()];
    let (ok, text) = node.agent.flush(&["web/app"]);
    assert!(ok && text.contains('1'), "{text}");
    assert_ne!(node.ask(&app).await.key(), before[0]);
    assert_eq!(node.ask(&other).await.key(), before[1]);
    let (ok, text) = node.agent.flush(&[]);
    assert!(ok && text.contains('2'), "{text}");
    let (ok, text) = node.agent.flush(&["no-slash"]);
    assert!(!ok && text.contains("NAMESPACE/SERVICEACCOUNT"), "{text}");
}

#[tokio::test]
async fn one_issued_line_for_each_pod_and_access_key() {
    let node = Node::start(&[]).await;
    let (a, b) = (node.pod("a"), node.pod("b"));
    for pod in [&a, &b, &a, &b] {
        node.ask(&pod.token).await.key();
    }
    node.agent.flush(&[]);
    node.ask(&a.token).await.key();
    // A line may be read after the answer that it is about; a line too many would come before the third.
    let issued = [(); 3].map(|()| node.agent.event("issued"));
    let of = |uid: &str| issued.iter().filter(|event| event["pod_uid"] == *uid).count();
    assert_eq!((of(&a.pod_uid), of(&b.pod_uid)), (2, 1), "{issued:?}");
    let keys: std::collections::HashSet<_> =
        issued.iter().map(|event| event["access_key_id"].to_string()).collect();
    assert_eq!(keys.len(), 2, "{issued:?}");
}

#[tokio::test]
async fn no_secret_of_a_run_is_in_its_logs_and_metrics() {
    let mut node = Node::start(&["-v", "trace"]).await;
    let mut secrets = vec![node.eks.node_credentials().secret_access_key().to_owned()];
    for name in ["a", "b"] {
        let token = node.pod(name).token;
        let answer = node.ask(&token).await;
        secrets.push(answer.body["SecretAccessKey"].as_str().expect("text").to_owned());
        secrets.push(answer.body["Token"].as_str().expect("text").to_owned());
        // Both the signature alone and the claims alone are the token's.
        secrets.extend(token.split('.').skip(1).map(str::to_owned));
    }
    let refused = node.eks.mint(PodToken::new("web", "none", "p")).token;
    assert_eq!(node.ask(&refused).await.status, 404);
    secrets.extend(refused.split('.').skip(1).map(str::to_owned));
    let bad = format!("{refused}x");
    let message = node.ask(&bad).await.message().to_owned();
    let metrics = node.agent.scrape().await;
    let log = node.agent.whole_log();
    assert!(log.contains("\"issued\"") && log.contains("\"stopped\""), "the log was read:\n{log}");
    let told = format!("{log}\n{metrics}\n{message}");
    for secret in secrets {
        assert!(!told.contains(&secret), "a secret got out: {}…", &secret[..8]);
    }
}

#[tokio::test]
async fn every_family_is_fed_and_promtool_has_nothing_to_say() {
    let node = Node::start(&["--eks-auth-wait", "200ms"]).await;
    let pod = node.pod("p").token;
    node.ask(&pod).await.key();
    node.ask("rubbish").await;
    node.ask(&node.eks.mint(PodToken::new("web", "none", "p")).token).await;
    let text = node.agent.scrape().await;
    let full = Agent::start(&node.eks, &["--max-connections", "1", "--eks-auth-wait", "10s"]).await;
    let idle = [(); 2].map(|()| TcpStream::connect(full.credentials).expect("connects"));
    until(async || full.metric("podcred_connections_evicted_total{cap_of=\"node\"}").await > 0.0).await;
    drop(idle);
    // Only an agent all of whose connections wait turns one away.
    node.eks.settings(|s| s.outage = Outage::Hang);
    let waits = tokio::spawn(crate::harness::Answer::of(full.request().header("authorization", &pod)));
    until(async || node.eks.counts().in_flight > 0).await;
    until(async || {
        drop(TcpStream::connect(full.credentials).expect("connects"));
        full.metric("podcred_connections_refused_total{cap_of=\"node\"}").await > 0.0
    })
    .await;
    waits.abort();
    let scrapes = format!("{text}{}", full.scrape().await);
    // What only the kernel counts is looked at in the tests that have its programs.
    let of_the_kernel = ["podcred_connects_total", "podcred_imds_connects_total", "podcred_probe_lost_total"];
    let is_fed = |name: &str| {
        scrapes.lines().any(|line| line.starts_with(&format!("# TYPE {name} ")))
            || of_the_kernel.contains(&name)
            || name.starts_with("podcred_pod_")
    };
    let unfed: Vec<String> = registered_metrics().into_iter().filter(|name| !is_fed(name)).collect();
    assert!(unfed.is_empty(), "{unfed:?}");
    // The official agent's names are as they are; promtool would object to them.
    let ours: String =
        text.lines().filter(|line| !line.contains("pod_identity_")).map(|line| format!("{line}\n")).collect();
    let Some(promtool) = promtool() else {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing");
        eprintln!("left out: promtool is not installed (Debian's package `prometheus`)");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metrics");
    std::fs::write(&file, ours).expect("writes");
    let stdin = std::fs::File::open(&file).expect("opens");
    let checked =
        Command::new(promtool).args(["check", "metrics"]).stdin(stdin).output().expect("promtool runs");
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn promtool() -> Option<&'static str> {
    Command::new("promtool").arg("--version").output().is_ok().then_some("promtool")
}

#[tokio::test]
async fn probes_say_what_is_missing_and_liveness_does_not_depend_on_it() {
    let node = Node::start(&[]).await;
    assert_eq!(node.agent.probe("/healthz").await.0, 200);
    let (status, text) = node.agent.probe("/readyz").await;
    assert_eq!(status, 200);
    assert!(text.contains("keys: ok"), "{text}");
    assert_eq!(node.agent.probe("/other").await.0, 404);
}

#[tokio::test]
async fn enforce_without_attribution_serves_nobody_and_says_so() {
    let node = Node::start(&[]).await;
    let agent = Agent::start_unready(&node.eks, &["--verify", "enforce"]);
    let answer = agent.ask(&node.pod("p").token).await;
    assert_eq!(answer.status, 503);
    assert!(answer.message().contains("--verify enforce"), "{answer:?}");
    let (status, text) = agent.probe("/readyz").await;
    assert!(
        status == 503 && text.contains("attribution: callers cannot be verified, so none is served: "),
        "{text}"
    );
    assert!(text.contains("is no cgroup file system"), "the reason and the mend: {text}");
    assert_eq!(agent.metric(r#"podcred_attribution{source="none"}"#).await, 1.0);
    assert!(agent.logs().contains("--verify enforce is impossible on this node"), "{}", agent.logs());
}

#[tokio::test]
async fn audit_without_attribution_serves_and_says_what_it_lacks() {
    let node = Node::start(&[]).await;
    node.ask(&node.pod("p").token).await.key();
    let (status, text) = node.agent.probe("/readyz").await;
    assert!(status == 200 && text.contains("attribution: degraded"), "{text}");
    assert!(node.agent.logs().contains("is no cgroup file system"), "{}", node.agent.logs());
    assert_eq!(node.agent.metric(r#"podcred_connections_attributed_total{result="no_probe"}"#).await, 1.0);
    assert_eq!(node.agent.metric(r#"podcred_callers_compared_total{result="unattributed"}"#).await, 1.0);
}

#[tokio::test]
async fn nobody_can_be_denied_for_what_this_node_cannot_tell_of_anybody() {
    let node = Node::start(&[]).await;
    let agent = Agent::start_unready(&node.eks, &["--verify-unattributed", "deny"]);
    let answer = agent.ask(&node.pod("p").token).await;
    assert_eq!((answer.status, answer.code()), (503, "ServiceUnavailable"));
    assert!(answer.message().contains("podcred doctor"), "{answer:?}");
    assert_eq!(agent.probe("/readyz").await.0, 503);
}

#[tokio::test]
async fn with_verify_off_nobody_looks() {
    let node = Node::start(&["--verify", "off"]).await;
    node.ask(&node.pod("p").token).await.key();
    let (status, text) = node.agent.probe("/readyz").await;
    assert!(status == 200 && text.contains("attribution: ok"), "{text}");
    assert_eq!(node.agent.metric(r#"podcred_attribution{source="off"}"#).await, 1.0);
    assert_eq!(node.agent.metric(r#"podcred_callers_compared_total{result="not_compared"}"#).await, 1.0);
}

#[tokio::test]
async fn a_second_agent_does_not_take_over_the_first_ones_control_socket() {
    let node = Node::start(&[]).await;
    let path = node.agent.control_socket.to_str().expect("text");
    let second = Agent::start(&node.eks, &["--control-socket", path]).await;
    assert!(second.logs().contains("control_socket_missing"), "{}", second.logs());
    let pod = node.pod("p").token;
    node.ask(&pod).await.key();
    assert!(node.agent.flush(&[]).1.contains('1'), "still the first one's");
}

#[tokio::test]
async fn whoever_holds_all_connections_shuts_nobody_out() {
    let node = Node::start(&["--max-connections", "20"]).await;
    let token = node.pod("p").token;
    let held: Vec<_> =
        (0..60).map(|_| TcpStream::connect(node.agent.credentials).expect("connects")).collect();
    for _ in 0..5 {
        node.ask(&token).await.key();
    }
    assert!(node.agent.metric("podcred_connections").await <= 20.0);
    assert_eq!(node.agent.metric("podcred_connections_refused_total").await, 0.0);
    drop(held);
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let node = Node::start(&[]).await;
    let mut greedy = TcpStream::connect(node.agent.credentials).expect("connects");
    greedy.set_nonblocking(true).expect("set");
    let cut_off = async {
        // Pipelines until the agent's answers, which nobody takes, have filled all buffers, and the agent gives up.
        while !matches!(greedy.write(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)), Err(e) if e.kind() != WouldBlock)
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BROKEN, cut_off).await.expect("the agent ends it");
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    let mut node = Node::start(&[]).await;
    node.agent.stop_reading_the_log();
    // An `issued` line for each of them: several times what a pipe holds.
    for i in 0..500 {
        node.ask(&node.pod(&format!("p{i}")).token).await.key();
    }
    assert_eq!(node.agent.probe("/healthz").await.0, 200);
    node.agent.terminate();
    assert_eq!(node.agent.wait().code(), Some(0));
}
