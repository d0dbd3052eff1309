//! An operator drops credentials.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_flush_drops_one_service_account_or_all() {
    let node = Node::new();
    let (a, b) = (pod("web", "a", "p"), pod("web", "b", "p"));
    node.key(&a).await;
    node.key(&b).await;
    assert_eq!(node.credentials.flush(Some(("web", "a"))), 1);
    assert_eq!((node.key(&a).await, node.key(&b).await), ("ASIA2".to_owned(), "ASIA1".to_owned()));
    assert_eq!(node.credentials.flush(None), 2);
    assert_eq!(node.credentials.flush(None), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_when_the_flush_came_is_not_kept() {
    let node = Node::new();
    node.rule(|_| (Duration::from_millis(400), Ok(())));
    let p = pod("web", "app", "p");
    let (key, ()) = tokio::join!(node.key(&p), async {
        sleep(Duration::from_millis(100)).await;
        node.credentials.flush(None);
    });
    assert_eq!(key, "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_revalidation_when_the_flush_comes_waits_on() {
    let node = Node::new();
    node.key(&pod("web", "app", "old")).await;
    pass(61).await;
    node.rule(|_| (Duration::from_millis(600), Ok(())));
    let new = pod("web", "app", "new");
    let (got, ()) = tokio::join!(node.ask(&new), async {
        sleep(Duration::from_millis(100)).await;
        node.credentials.flush(None);
    });
    assert_eq!(got.expect("credentials").0.access_key_id, "ASIA2");
}

#[tokio::test(start_paused = true)]
async fn a_flush_forgives_no_condemned_token() {
    let node = Node::new();
    let (dead, live) = (pod("web", "app", "dead"), pod("web", "app", "live"));
    node.takes_no_token_of_the_dead();
    assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
    assert!(node.ask(&live).await.is_ok());
    node.credentials.flush(Some(("web", "other")));
    pass(10).await;
    assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
}

#[tokio::test(start_paused = true)]
async fn after_a_flush_no_old_backoff_stands_in_the_way() {
    let node = Node::new();
    let p = pod("web", "app", "p");
    node.key(&p).await;
    node.down();
    pass(4 * HOUR).await;
    node.works();
    node.credentials.flush(None);
    let asked = node.clock.now();
    node.key(&p).await;
    assert!(node.clock.now().mono - asked.mono < secs(1));
}
