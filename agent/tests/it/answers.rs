//! The contract of `/v1/credentials`.

use std::io::{Read, Write};
use std::net::TcpStream;

use loadtest::eks::PodToken;

use crate::harness::{Answer, BROKEN, Node};

#[tokio::test]
async fn a_pod_gets_its_roles_credentials_as_every_sdk_reads_them() {
    let node = Node::start(&[]).await;
    let answer = node.ask(&node.pod("p").token).await;
    let session = node.eks.session(answer.key()).expect("EKS Auth handed them out");
    assert!(session.session_arn.starts_with("arn:aws:sts::111122223333:assumed-role/app/eks-demo-p"));
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.headers.contains_key("content-length"));
    let body = answer.body.as_object().expect("an object");
    assert_eq!(
        body.keys().collect::<Vec<_>>(),
        ["AccessKeyId", "AccountId", "Expiration", "SecretAccessKey", "Token"]
    );
    assert_eq!(body["AccountId"], "111122223333");
    let expiration = body["Expiration"].as_str().expect("text");
    assert!(expiration.len() == 20 && expiration.ends_with('Z'), "{expiration}");
}

#[tokio::test]
async fn pods_of_one_role_cost_one_call_and_two_service_accounts_with_one_role_share_nothing() {
    let node = Node::start(&[]).await;
    node.eks.create_association("web", "other", crate::harness::ROLE);
    let asks = (0..40).map(|i| {
        let token = node
            .eks
            .mint(PodToken::new("web", if i % 2 == 0 { "app" } else { "other" }, format!("p{i}")))
            .token;
        let node = &node;
        async move { node.ask(&token).await.key().to_owned() }
    });
    let keys = futures_util::future::join_all(asks).await;
    assert!(keys.iter().step_by(2).all(|key| *key == keys[0]));
    assert!(keys.iter().skip(1).step_by(2).all(|key| *key == keys[1]));
    assert_ne!(keys[0], keys[1]);
    assert_eq!((node.eks.counts().of("web", "app"), node.eks.counts().of("web", "other")), (1, 1));
}

#[tokio::test]
async fn head_is_get_without_a_body_and_other_methods_and_paths_are_refused() {
    let node = Node::start(&[]).await;
    let token = node.pod("p").token;
    let url = format!("http://{}", node.agent.credentials);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");

    let head = client
        .head(format!("{url}/v1/credentials"))
        .header("authorization", &token)
        .send()
        .await
        .expect("HEAD");
    assert_eq!(head.status(), 200);
    assert!(
        head.headers()["content-length"].to_str().expect("a number").parse::<u32>().expect("a number") > 100
    );

    let post = Answer::of(client.post(format!("{url}/v1/credentials")).header("authorization", &token)).await;
    assert_eq!((post.status, post.code()), (405, "MethodNotAllowed"));
    assert_eq!(post.headers["allow"], "GET, HEAD");
    for path in ["/", "/v1/credentials/", "/v1", "/metrics"] {
        assert_eq!(Answer::of(client.get(format!("{url}{path}"))).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_the_agents_is_refused() {
    let node = Node::start(&[]).await;
    let token = node.pod("p").token;
    for (host, status) in [
        ("169.254.170.23", 200),
        ("169.254.170.23:80", 200),
        ("[fd00:ec2::23]:80", 200),
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("rebound.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ] {
        let answer = raw(
            &node,
            &format!("GET /v1/credentials HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\n\r\n"),
        );
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
    let absolute = format!(
        "GET http://rebound.example/v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n\r\n"
    );
    assert!(raw(&node, &absolute).starts_with("HTTP/1.1 403 "));
    let two = format!(
        "GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\nAuthorization: {token}\r\n\r\n"
    );
    assert!(raw(&node, &two).starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn headers_beyond_32_kb_are_refused_and_slow_ones_are_cut_off() {
    let node = Node::start(&[]).await;
    let long =
        format!("GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    assert!(raw(&node, &long).starts_with("HTTP/1.1 431 "));
    // Half a request, and then nothing: the agent ends it.
    assert_eq!(raw(&node, "GET /v1/credentials HTTP/1.1\r\nHost: 127."), "");
}

#[tokio::test]
async fn a_connection_serves_again_and_again_until_an_error_of_the_server() {
    let node = Node::start(&["--eks-auth-wait", "100ms"]).await;
    let token = node.pod("p").token;
    let request =
        format!("GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n\r\n");
    let mut stream = TcpStream::connect(node.agent.credentials).expect("connects");
    stream.set_read_timeout(Some(BROKEN)).expect("a timeout");
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).expect("writes");
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    }
    node.eks.create_association("web", "slow", crate::harness::ROLE);
    node.eks.settings(|s| s.latency_ms = 60_000);
    let slow = node.eks.mint(PodToken::new("web", "slow", "p")).token;
    let answer = raw(
        &node,
        &format!("GET /v1/credentials HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {slow}\r\n\r\n"),
    );
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
}

/// Sends these bytes and reads until the agent closes or a whole answer has come.
fn raw(node: &Node, request: &str) -> String {
    let mut stream = TcpStream::connect(node.agent.credentials).expect("connects");
    stream.set_read_timeout(Some(BROKEN)).expect("a timeout");
    // The agent may have refused before it read everything.
    let _ = stream.write_all(request.as_bytes());
    read_head(&mut stream)
}

/// Reads one answer; its body is swallowed so that the next can follow.
fn read_head(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => answer.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no end of the answer: {error}"),
        }
    }
    let head = String::from_utf8_lossy(&answer).into_owned();
    let length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).expect("the body follows");
    head
}
