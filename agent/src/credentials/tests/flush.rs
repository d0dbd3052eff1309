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
