//! Tokens that nobody here could verify.

use super::*;

fn unchecked(name: &str) -> Pod {
    let token = format!("web/app/{name}");
    pod_with("web", "app", "sa", name, HOUR, Scope::UncheckedToken(hash(&token)))
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_verified_shares_with_nobody() {
    let node = Node::new();
    let (verified, unverified) = (pod("web", "app", "a"), unchecked("b"));
    let keys = [node.key(&verified).await, node.key(&unverified).await, node.key(&unverified).await];
    assert_eq!(keys, ["ASIA0", "ASIA1", "ASIA1"]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_forgeries_is_two_calls_a_second() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::InvalidToken))));
    let forged: Vec<Pod> = (0..500).map(|i| unchecked(&format!("forged{i}"))).collect();
    join_all(forged.iter().map(|pod| node.ask(pod))).await;
    pass(8).await;
    assert!(node.calls() <= 2 * 10, "{} calls in ten seconds", node.calls());
    assert!(node.calls() >= 4);
}

#[tokio::test(start_paused = true)]
async fn its_pod_is_not_named_in_a_refusal() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::AccessDenied))));
    let rejection = node.ask(&unchecked("p")).await.unwrap_err();
    assert!(rejection.pod().is_none());
    assert!(!String::from_utf8(rejection.body()).unwrap().contains("web"));
}
