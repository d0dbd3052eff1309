//! Credentials are renewed ahead of time, and outlive an outage.

use super::*;

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_ahead_at_half_their_life_without_a_request() {
    let node = Node::new();
    let p = pod("web", "app", "p");
    assert_eq!(node.key(&p).await, "ASIA0");
    pass(2 * HOUR).await;
    assert_eq!(node.calls(), 1, "not before 80 % of three hours");
    pass(HOUR + 5).await;
    assert_eq!(node.calls(), 2);
    assert_eq!(node.key(&p).await, "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn renewals_are_spread_and_paced() {
    let node = Node::new();
    for i in 0..200 {
        node.key(&pod("web", &format!("app{i}"), "p")).await;
    }
    pass(2 * HOUR + 24 * 60 - 30).await;
    let mut most = 0;
    for _ in 0..40 * 60 {
        let before = node.calls();
        pass(1).await;
        most = most.max(node.calls() - before);
    }
    assert_eq!(node.calls(), 400);
    assert!(most <= 4, "{most} in one second");
}

#[tokio::test(start_paused = true)]
async fn no_renewal_for_a_role_key_without_a_live_pod() {
    let node = Node::new();
    node.key(&pod_with("web", "app", "sa", "p", 100 * HOUR, Scope::Role)).await;
    pass(LIFE).await;
    // Renewed while the pod could still hold the first credentials; then silence.
    let calls = node.calls();
    assert!((2..=3).contains(&calls), "{calls}");
    pass(40 * HOUR).await;
    assert_eq!(node.calls(), calls);
    assert_eq!(
        node.credentials.census(node.clock.now()),
        Census { revalidate_after: secs(60), ..Census::default() }
    );
}

#[tokio::test(start_paused = true)]
async fn no_renewal_for_pods_that_have_ended() {
    let node = Node::new();
    let (ended, lives) = (pod("web", "app", "ended"), pod("web", "other", "lives"));
    for pod in [&ended, &lives] {
        node.key(pod).await;
    }
    node.ended(&[ended]);
    pass(3 * HOUR + 5).await;
    assert_eq!((node.calls_of("web/app/ended"), node.calls_of("web/other/lives")), (1, 2));
    // A new pod is served from what is still valid, and renewals go on with its token.
    assert_eq!(node.key(&pod("web", "app", "new")).await, "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_falls_back_from_a_dead_pods_token_to_a_live_ones() {
    let node = Node::new();
    let dead = pod_with("web", "app", "sa", "dead", 30 * HOUR, Scope::Role);
    let live = pod_with("web", "app", "sa", "live", 20 * HOUR, Scope::Role);
    node.key(&live).await;
    node.key(&dead).await;
    node.rule(|token| {
        let dead = token.ends_with("/dead");
        (Duration::from_millis(50), if dead { Err(refusal(RefusalKind::ExpiredToken)) } else { Ok(()) })
    });
    pass(3 * HOUR + 5).await;
    assert_eq!((node.calls_of("web/app/dead"), node.calls_of("web/app/live")), (1, 2));
    let (issued, from) = node.ask(&live).await.unwrap();
    assert_eq!((&*issued.access_key_id, from), ("ASIA2", ServedFrom::Cache));
}

#[tokio::test(start_paused = true)]
async fn an_outage_serves_old_and_new_pods_to_the_last_second_and_recovers_by_itself() {
    let node = Node::new();
    *node.eks.life.lock().unwrap() = secs(HOUR);
    let old = pod("web", "app", "old");
    node.key(&old).await;
    node.down();
    pass(HOUR - 2).await;
    let new = pod("web", "app", "new");
    assert_eq!(node.ask(&new).await.unwrap().1, ServedFrom::Stale);
    assert_eq!(node.key(&old).await, "ASIA0");
    pass(3).await;
    assert!(is_not_yet(&node.ask(&old).await));
    node.works();
    // At most one backoff later it is well again, with nobody's help.
    pass(6).await;
    assert!(node.ask(&old).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn credentials_near_their_end_are_not_handed_out_while_better_can_be_had() {
    let node = Node::with(|s| s.retention = secs(100 * HOUR));
    let p = pod("web", "app", "p");
    node.key(&p).await;
    node.down();
    pass(LIFE - 14 * 60).await;
    assert_eq!(node.ask(&p).await.unwrap().1, ServedFrom::Stale);
    node.works();
    pass(65).await;
    let (issued, _) = node.ask(&p).await.unwrap();
    assert!(issued.remaining_at(node.clock.now()) > secs(5 * HOUR));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_expired_buys_nothing() {
    let node = Node::new();
    let short = pod_with("web", "app", "sa", "p", 600, Scope::Role);
    node.key(&short).await;
    pass(4 * HOUR).await;
    assert_eq!(node.calls(), 1);
}
