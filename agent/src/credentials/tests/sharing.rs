//! Who shares credentials, and who never does.

use super::*;

#[tokio::test(start_paused = true)]
async fn concurrent_misses_of_one_role_key_make_one_call() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..50).map(|i| pod("web", "app", &format!("p{i}"))).collect();
    let got = join_all(pods.iter().map(|pod| node.ask(pod))).await;
    assert!(got.iter().all(|got| got.as_ref().unwrap().0.access_key_id == "ASIA0"));
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_who_hangs_up_takes_nothing_with_it() {
    let node = Node::new();
    let (first, second) = (pod("web", "app", "a"), pod("web", "app", "b"));
    let waiting = tokio::spawn({
        let credentials = node.credentials.clone();
        let now = node.clock.now();
        async move { credentials.get(&first.permit, first.token.as_bytes(), now).await }
    });
    sleep(Duration::from_millis(10)).await;
    waiting.abort();
    assert_eq!(node.key(&second).await, "ASIA0");
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_service_accounts_of_one_role_never_share() {
    let node = Node::new();
    let (a, b) = (node.key(&pod("web", "app", "p")).await, node.key(&pod("web", "other", "p")).await);
    assert_ne!(a, b);
    assert_eq!(node.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_service_account_made_again_inherits_nothing() {
    let node = Node::new();
    let old = pod_with("web", "app", "uid-1", "p", HOUR, Scope::Role);
    let new = pod_with("web", "app", "uid-2", "q", HOUR, Scope::Role);
    assert_ne!(node.key(&old).await, node.key(&new).await);
}

#[tokio::test(start_paused = true)]
async fn in_pod_scope_each_pod_has_its_own() {
    let node = Node::new();
    let a = pod_with("web", "app", "sa", "a", HOUR, Scope::Pod);
    let b = pod_with("web", "app", "sa", "b", HOUR, Scope::Pod);
    assert_ne!(node.key(&a).await, node.key(&b).await);
    assert_eq!(node.key(&a).await, "ASIA0");
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_somebody_else_is_not_handed_out() {
    let node = Node::new();
    let honest = pod("web", "app", "p");
    let mut crossed = pod("web", "app", "q");
    crossed.token = "web/other/p".to_owned();
    assert!(is_not_yet(&node.ask(&crossed).await));
    assert_eq!(node.key(&honest).await.get(..4), Some("ASIA"));
}

#[tokio::test(start_paused = true)]
async fn with_cache_size_0_every_request_is_a_call() {
    let node = Node::with(|s| s.max_cache_size = 0);
    let p = pod("web", "app", "p");
    assert_ne!(node.key(&p).await, node.key(&p).await);
}

#[tokio::test(start_paused = true)]
async fn the_cache_keeps_its_size_but_never_at_a_live_pods_cost() {
    let node = Node::with(|s| s.max_cache_size = 2);
    let live: Vec<Pod> = (0..4).map(|i| pod("web", &format!("live{i}"), "p")).collect();
    for p in &live {
        node.key(p).await;
    }
    for p in &live {
        node.key(p).await;
    }
    assert_eq!(node.calls(), 4, "all four are live");
    // Nobody asks for a life: none is live, and newcomers find two places.
    pass(LIFE + 120).await;
    for i in 0..4 {
        let _ = node.ask(&pod_with("web", &format!("new{i}"), "sa", "p", 48 * HOUR, Scope::Role)).await;
    }
    pass(2).await;
    let census = node.credentials.census(node.clock.now());
    assert_eq!((census.fresh, census.empty), (4, 0));
}
