//! Which tokens are refused, and by what word.

use loadtest::eks::{Minted, PodToken};
use serde_json::{Value, json};

use crate::harness::{Answer, Node};

async fn refused(node: &Node, token: &str, reason: &str) {
    let sample = format!("podcred_tokens_refused_total{{reason=\"{reason}\"}}");
    let before = node.agent.metric(&sample).await;
    let answer = node.ask(token).await;
    assert_eq!(answer.status, 400, "{reason}: {answer:?}");
    assert!(!answer.message().is_empty());
    assert_eq!(node.agent.metric(&sample).await, before + 1.0, "{reason}: {answer:?}");
}

fn web_app() -> PodToken {
    PodToken::new("web", "app", "p")
}

#[tokio::test]
async fn each_way_a_token_can_be_wrong_has_its_own_reason() {
    let node = Node::start(&[]).await;
    let mint = |token: PodToken| node.eks.mint(token).token;
    let good = mint(web_app());
    let (signed, signature) = good.rsplit_once('.').expect("three parts");

    refused(&node, "rubbish", "token_not_three_parts").await;
    refused(&node, &format!("Bearer {good}"), "token_bearer").await;
    refused(&node, &format!("{signed}.{}", flipped(signature)), "token_bad_signature").await;
    refused(&node, &mint(web_app().signed_by_a_foreign_key()), "token_bad_signature").await;
    refused(&node, &mint(web_app().header("kid", "not-the-issuers")), "token_unknown_key").await;
    refused(&node, &mint(web_app().header("alg", "none")), "token_algorithm").await;
    refused(&node, &mint(web_app().header("alg", "HS256")), "token_algorithm").await;
    refused(&node, &mint(web_app().header("kid", Value::Null)), "token_no_key_id").await;
    refused(&node, &mint(web_app().header("crit", json!(["exp"]))), "token_critical_header").await;
    refused(&node, &mint(web_app().claim("/iss", "https://evil.example")), "token_wrong_issuer").await;
    refused(&node, &mint(web_app().audience("sts.amazonaws.com")), "token_wrong_audience").await;
    refused(&node, &mint(web_app().expires_in_seconds(-60)), "token_expired").await;
    refused(&node, &mint(web_app().claim("/nbf", 4_000_000_000_u64)), "token_not_yet_valid").await;
    refused(
        &node,
        &mint(web_app().claim("/sub", "system:serviceaccount:web:admin")),
        "token_subject_mismatch",
    )
    .await;
    refused(&node, &mint(web_app().claim("/kubernetes.io/pod", Value::Null)), "token_no_pod").await;
    refused(&node, &mint(web_app().claim("/kubernetes.io/pod/uid", "")), "token_no_pod").await;
    refused(
        &node,
        &mint(web_app().claim("/kubernetes.io/serviceaccount/uid", Value::Null)),
        "token_no_service_account_uid",
    )
    .await;
    assert_eq!(node.eks.counts().total, 0, "none of them reached EKS Auth");
    assert_eq!(node.ask(&good).await.status, 200);
}

#[tokio::test]
async fn a_token_must_come_once() {
    let node = Node::start(&[]).await;
    let Minted { token, .. } = node.pod("p");
    assert_eq!(Answer::of(node.agent.request()).await.status, 400);
    let twice = node.agent.request().header("authorization", &token).header("authorization", &token);
    assert_eq!(Answer::of(twice).await.status, 400);
    for reason in ["token_missing", "token_duplicate"] {
        let sample = format!("podcred_tokens_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(node.agent.metric(&sample).await, 1.0, "{reason}");
    }
}

#[tokio::test]
async fn keys_that_the_token_itself_brings_are_ignored() {
    let node = Node::start(&[]).await;
    let token = web_app().signed_by_a_foreign_key().header("jku", format!("{}/keys", node.eks.issuer()));
    refused(&node, &node.eks.mint(token).token, "token_bad_signature").await;
}

#[tokio::test]
async fn a_token_is_verified_once_and_then_known() {
    let node = Node::start(&[]).await;
    let token = node.pod("p").token;
    for _ in 0..5 {
        assert_eq!(node.ask(&token).await.status, 200);
    }
    assert_eq!(node.agent.metric("podcred_tokens_verified_total").await, 1.0);
}

/// The same signature with its first character changed.
fn flipped(signature: &str) -> String {
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{first}{}", &signature[1..])
}

#[tokio::test]
async fn on_a_connection_that_is_kept_each_token_is_judged_by_itself() {
    let node = Node::start(&[]).await;
    node.eks.create_association("web", "other", crate::harness::ROLE);
    let own = node.pod("p").token;
    let other = node.eks.mint(PodToken::new("web", "other", "q")).token;
    let (signed, signature) = own.rsplit_once('.').expect("three parts");
    let forged = format!("{signed}.{}", flipped(signature));
    let (key, others_key) = (node.ask(&own).await.key().to_owned(), node.ask(&other).await.key().to_owned());
    assert_ne!(key, others_key);
    for _ in 0..2 {
        // The third time it is known without a look among all tokens.
        for _ in 0..4 {
            assert_eq!(node.ask(&own).await.key(), key);
        }
        refused(&node, &forged, "token_bad_signature").await;
        assert_eq!(node.ask(&own).await.key(), key);
        assert_eq!(node.ask(&other).await.key(), others_key);
    }
    assert_eq!(node.agent.metric("podcred_connections_accepted_total").await, 1.0);
}
