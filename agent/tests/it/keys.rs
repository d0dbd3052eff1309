//! Where the issuer's keys come from, and what happens when they do not.

use futures_util::future::join_all;
use loadtest::eks::{Config, Outage, PodToken, SimulatedEks};
use podcred::clock::Clock;

use crate::harness::{Agent, Node, ROLE};

#[tokio::test]
async fn a_rotated_key_is_found_by_its_first_token() {
    let node = Node::start(&[]).await;
    assert_eq!(node.ask(&node.pod("old").token).await.status, 200);
    let old = node.pod("still-old").token;
    node.eks.rotate_keys(true, false).expect("rotates");
    assert_eq!(node.ask(&node.pod("new").token).await.status, 200);
    assert_eq!(node.ask(&old).await.status, 200);
    assert_eq!(node.agent.metric("podcred_jwks_keys").await, 2.0);
}

#[tokio::test]
async fn known_keys_serve_on_while_the_issuer_is_down() {
    let node = Node::start(&[]).await;
    node.eks.settings(|s| s.issuer_outage = Outage::Refuse);
    let known = node.pod("known-key").token;
    assert_eq!(node.ask(&known).await.status, 200);
    node.eks.rotate_keys(true, false).expect("rotates");
    let unknown: Vec<String> = (0..20).map(|i| node.pod(&format!("p{i}")).token).collect();
    let asked = Clock::default().now().mono;
    for answer in join_all(unknown.iter().map(|token| node.ask(token))).await {
        // Once the set is older than ten seconds, it may be that the key is new.
        assert!(matches!(answer.status, 400 | 503), "{answer:?}");
    }
    let took = Clock::default().now().mono - asked;
    let fetches = node.agent.metric("podcred_jwks_fetches_total{result=\"failed\"}").await;
    let most = 1.0 + took.as_secs_f64() / 10.0;
    assert!(
        (1.0..=most).contains(&fetches),
        "unknown keys share one fetch in ten seconds: {fetches} in {took:?}"
    );
    assert_eq!(node.ask(&known).await.status, 200);
}

#[tokio::test]
async fn without_any_key_set_eks_auth_checks_each_token_and_nothing_is_shared() {
    let eks = SimulatedEks::start(Config::default()).await.expect("starts");
    eks.settings(|s| s.issuer_outage = Outage::Refuse);
    eks.create_association("web", "app", ROLE);
    let agent = Agent::start_unready(&eks, &[]);
    let (a, b) =
        (eks.mint(PodToken::new("web", "app", "a")).token, eks.mint(PodToken::new("web", "app", "b")).token);
    let first = agent.ask(&a).await.key().to_owned();
    assert_eq!(agent.ask(&a).await.key(), first);
    assert_ne!(agent.ask(&b).await.key(), first);
    assert_eq!(agent.probe("/readyz").await.0, 503);
    assert_eq!(agent.probe("/healthz").await.0, 200);

    let forged = eks.mint(PodToken::new("web", "app", "c").signed_by_a_foreign_key()).token;
    let answer = agent.ask(&forged).await;
    assert_eq!((answer.status, answer.code()), (400, "InvalidTokenException"));
    assert!(!agent.logs().contains("\"c\""), "unverified claims reach no log");

    eks.settings(|s| s.issuer_outage = Outage::Off);
    agent.until_ready().await;
    assert_eq!(agent.ask(&a).await.key(), agent.ask(&b).await.key(), "verified now, and shared");
}

#[tokio::test]
async fn keys_come_over_https_by_a_certificate_authority_of_ones_own() {
    let config = Config {
        https_listen: Some(([127, 0, 0, 1], 0).into()),
        issuer_over_https: true,
        ..Config::default()
    };
    let eks = SimulatedEks::start(config).await.expect("starts");
    eks.create_association("web", "app", ROLE);
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, eks.ca_pem().expect("https has one")).expect("writes");
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let https = eks.https_url().expect("https is on");
        let agent = Agent::start_with_env(&eks, &["--endpoint", https], &[(variable, ca.as_os_str())]).await;
        assert_eq!(
            agent.ask(&eks.mint(PodToken::new("web", "app", "p")).token).await.status,
            200,
            "{variable}"
        );
    }
}

#[tokio::test]
async fn the_issuer_comes_from_the_agents_own_token_where_no_flag_names_it() {
    let node = Node::start(&[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, node.eks.mint(PodToken::new("kube-system", "podcred", "podcred-x")).token)
        .expect("writes");
    let agent = Agent::start_without_issuer(&node.eks, &["--token-file", file.to_str().expect("text")]).await;
    assert_eq!(agent.ask(&node.pod("p").token).await.status, 200);
}
