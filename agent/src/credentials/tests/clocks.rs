//! Wall clocks jump.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_does_not_lengthen_credentials() {
    let node = Node::new();
    let p = pod_with("web", "app", "sa", "p", 600, Scope::Role);
    node.key(&p).await;
    node.down();
    node.clock.jump(-24 * 3_600);
    pass(LIFE - 1).await;
    assert!(node.ask(&p).await.is_ok());
    pass(2).await;
    assert!(is_not_yet(&node.ask(&p).await));
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_past_the_expiry_fetches_anew() {
    let node = Node::new();
    let p = pod_with("web", "app", "sa", "p", 100 * HOUR, Scope::Role);
    node.key(&p).await;
    node.clock.jump(24 * 3_600);
    assert_eq!(node.key(&p).await, "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_expired_before_they_came_are_not_handed_out() {
    let node = Node::new();
    *node.eks.life.lock().unwrap() = Duration::ZERO;
    assert!(is_not_yet(&node.ask(&pod("web", "app", "p")).await));
}
