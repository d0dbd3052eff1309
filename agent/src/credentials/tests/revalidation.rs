//! New pods have a changed association looked up again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_recreated_pod_applies_a_changed_association() {
    let node = Node::new();
    node.key(&pod("web", "app", "old")).await;
    pass(61).await;
    assert_eq!(node.key(&pod("web", "app", "new")).await, "ASIA1");
    assert_eq!(node.calls_of("web/app/new"), 1, "with its own token");
}

#[tokio::test(start_paused = true)]
async fn young_credentials_and_known_pods_are_not_revalidated() {
    let node = Node::new();
    let p = pod("web", "app", "old");
    node.key(&p).await;
    pass(30).await;
    node.key(&pod("web", "app", "new")).await;
    pass(HOUR).await;
    node.key(&p).await;
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_waits_half_a_second_at_most() {
    let node = Node::new();
    node.key(&pod("web", "app", "old")).await;
    pass(61).await;
    node.rule(|_| (secs(4), Ok(())));
    let asked = node.clock.now();
    assert_eq!(node.key(&pod("web", "app", "new")).await, "ASIA0");
    assert_eq!(node.clock.now().mono - asked.mono, Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn churn_under_throttling_does_not_become_load() {
    let node = Node::new();
    node.key(&pod("web", "app", "old")).await;
    pass(61).await;
    node.rule(|_| (Duration::from_millis(50), Err(throttled())));
    for i in 0..600 {
        assert_eq!(node.key(&pod("web", "app", &format!("new{i}"))).await, "ASIA0");
        pass(1).await;
    }
    assert!(node.calls() < 25, "{} calls for 600 new pods", node.calls());
    assert!(node.credentials.census(node.clock.now()).revalidate_after > secs(60));
}
