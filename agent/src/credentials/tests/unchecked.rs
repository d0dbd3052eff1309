//! Tokens that nobody here could verify.

use super::*;
use crate::authorize::UncheckedPermit;

struct Stranger {
    permit: UncheckedPermit,
    token: String,
}

fn unchecked(name: &str) -> Stranger {
    let verified = pod("web", "app", name);
    let permit = UncheckedPermit::for_test(Arc::clone(verified.permit.claims()));
    Stranger { permit, token: verified.token }
}

impl Node {
    async fn ask_unchecked(&self, stranger: &Stranger) -> Got {
        self.credentials.get_unchecked(&stranger.permit, stranger.token.as_bytes(), self.clock.now()).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_verified_shares_with_nobody() {
    let node = Node::new();
    let (verified, unverified) = (pod("web", "app", "a"), unchecked("b"));
    let mut keys = vec![node.key(&verified).await];
    for _ in 0..2 {
        keys.push(node.ask_unchecked(&unverified).await.expect("credentials").0.access_key_id.clone());
    }
    assert_eq!(keys, ["ASIA0", "ASIA1", "ASIA1"]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_forgeries_is_two_calls_a_second_and_leaves_nothing_behind() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::InvalidToken))));
    let forged: Vec<Stranger> = (0..5_000).map(|i| unchecked(&format!("forged{i}"))).collect();
    let asked = node.clock.now();
    join_all(forged.iter().map(|stranger| node.ask_unchecked(stranger))).await;
    pass(8).await;
    let took = (node.clock.now().mono - asked.mono).as_secs_f64();
    assert!(node.calls() >= 3);
    assert!(node.calls() as f64 <= 2.0 * took + 1.0, "{} calls in {took} s", node.calls());
    let census = node.credentials.census(node.clock.now());
    assert_eq!(census.fresh + census.due + census.low + census.empty, 0, "no role key came of it");

    // A verified pod whose first call fails is none the slower for it.
    node.down();
    let honest = pod("web", "other", "p");
    let asked = node.clock.now();
    assert!(is_not_yet(&node.ask(&honest).await));
    node.works();
    while node.ask(&honest).await.is_err() {}
    assert!(node.clock.now().mono - asked.mono < secs(9));
}

#[tokio::test(start_paused = true)]
async fn a_pods_next_attempt_finds_what_its_slow_call_brought() {
    let node = Node::new();
    node.rule(|_| (secs(3), Ok(())));
    let stranger = unchecked("p");
    assert!(is_not_yet(&node.ask_unchecked(&stranger).await));
    assert!(node.ask_unchecked(&stranger).await.is_ok());
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flush_drops_what_such_tokens_of_the_service_account_bought() {
    let node = Node::new();
    let stranger = unchecked("p");
    let key = async || node.ask_unchecked(&stranger).await.expect("credentials").0.access_key_id.clone();
    assert_eq!(key().await, "ASIA0");
    assert_eq!(node.credentials.flush(Some(("web", "other"))), 0);
    assert_eq!(key().await, "ASIA0");
    assert_eq!(node.credentials.flush(Some(("web", "app"))), 1);
    assert_eq!(key().await, "ASIA1");
    assert_eq!(node.credentials.flush(None), 1);
}

#[tokio::test(start_paused = true)]
async fn what_such_a_token_was_about_to_buy_when_the_flush_came_is_not_kept() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(400), Ok(())));
    let stranger = unchecked("p");
    let (got, ()) = tokio::join!(node.ask_unchecked(&stranger), async {
        sleep(Duration::from_millis(100)).await;
        node.credentials.flush(Some(("web", "app")));
    });
    assert_eq!(got.expect("credentials").0.access_key_id, "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn its_pod_is_not_named_in_a_refusal() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::AccessDenied))));
    let rejection = node.ask_unchecked(&unchecked("p")).await.unwrap_err();
    assert!(rejection.pod().is_none());
    assert!(!String::from_utf8(rejection.body()).unwrap().contains("web"));
}
