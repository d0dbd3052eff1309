//! What each refusal of EKS Auth costs, and whom.

use super::*;

#[tokio::test(start_paused = true)]
async fn each_refusal_is_remembered_for_seconds_and_no_longer() {
    for kind in [
        RefusalKind::ResourceNotFound,
        RefusalKind::AccessDenied,
        RefusalKind::InvalidToken,
        RefusalKind::ExpiredToken,
        RefusalKind::Invalid,
    ] {
        let node = Node::new();
        node.rule(move |_| (Duration::from_millis(50), Err(refusal(kind))));
        let p = pod("web", "app", "p");
        for _ in 0..20 {
            assert!(is_refused(&node.ask(&p).await, kind), "{kind:?}");
        }
        assert_eq!(node.calls(), 1, "{kind:?}");
        node.works();
        pass(6).await;
        assert!(node.ask(&p).await.is_ok(), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_association_drops_what_it_gave() {
    let node = Node::new();
    let p = pod("web", "app", "p");
    node.key(&p).await;
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::ResourceNotFound))));
    pass(3 * HOUR + 5).await;
    assert!(is_refused(&node.ask(&p).await, RefusalKind::ResourceNotFound));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_costs_nobody_else_and_is_served_from_no_cache() {
    let node = Node::new();
    let (dead, live) = (pod("web", "app", "dead"), pod("web", "app", "live"));
    node.takes_no_token_of_the_dead();
    let (of_dead, of_live) = tokio::join!(node.ask(&dead), node.ask(&live));
    assert!(is_refused(&of_dead, RefusalKind::InvalidToken));
    assert!(of_live.is_ok());
    // The memory has lapsed, the cache is warm, and still EKS Auth is asked about this token.
    pass(10).await;
    assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
    assert_eq!((node.calls_of("web/app/dead"), node.calls()), (2, 3), "and about no other");
    // Nor is it one to renew by.
    pass(3 * HOUR).await;
    assert_eq!((node.calls_of("web/app/dead"), node.calls()), (2, 4));
    node.works();
    assert!(node.ask(&dead).await.is_ok());
    assert_eq!((node.calls_of("web/app/dead"), node.calls()), (3, 5));
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_the_flight_of_a_refused_token_goes_on_by_its_own() {
    let node = Node::new();
    let (dead, live) = (pod("web", "app", "dead"), pod("web", "app", "live"));
    node.takes_no_token_of_the_dead();
    assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
    pass(6).await;
    let asked = node.clock.now();
    let (of_dead, of_live) = tokio::join!(node.ask(&dead), node.ask(&live));
    assert!(is_refused(&of_dead, RefusalKind::InvalidToken) && of_live.is_ok());
    assert!(node.clock.now().mono - asked.mono < Duration::from_millis(200), "nobody backs off for it");
    assert_eq!((node.calls_of("web/app/dead"), node.calls()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_the_flight_of_a_refused_token_gets_better_than_what_is_low() {
    let node = Node::new();
    let (dead, live) = (pod("web", "app", "dead"), pod("web", "app", "live"));
    node.takes_no_token_of_the_dead();
    assert!(node.ask(&dead).await.is_err() && node.ask(&live).await.is_ok());
    // Nobody asks for so long that nothing is renewed any more.
    for _ in 0..12 * HOUR / 300 {
        pass(300).await;
        if node.credentials.census(node.clock.now()).low == 1 {
            break;
        }
    }
    let calls = node.calls();
    let (of_dead, of_live) = tokio::join!(node.ask(&dead), node.ask(&live));
    assert!(is_refused(&of_dead, RefusalKind::InvalidToken));
    assert!(!of_live.expect("credentials").0.is_low_at(node.clock.now()));
    assert_eq!(node.calls(), calls + 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_that_is_refused_otherwise_the_next_time_costs_one_call() {
    for kind in [RefusalKind::ResourceNotFound, RefusalKind::AccessDenied] {
        let node = Node::new();
        let (dead, live) = (pod("web", "app", "dead"), pod("web", "app", "live"));
        node.takes_no_token_of_the_dead();
        assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
        assert!(node.ask(&live).await.is_ok());
        pass(6).await;
        node.rule(move |_| (Duration::from_millis(50), Err(refusal(kind))));
        for _ in 0..3 {
            assert!(is_refused(&node.ask(&dead).await, kind), "{kind:?}");
        }
        assert_eq!((node.calls_of("web/app/dead"), node.calls()), (2, 3), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn access_denied_keeps_what_is_valid_until_a_second_pods_token_confirms_it() {
    let node = Node::new();
    let (first, second, other) = (pod("web", "app", "a"), pod("web", "app", "b"), pod("web", "other", "p"));
    node.key(&first).await;
    node.key(&other).await;
    node.rule(|token| {
        let denied = token.starts_with("web/app");
        (Duration::from_millis(50), if denied { Err(refusal(RefusalKind::AccessDenied)) } else { Ok(()) })
    });
    pass(3 * HOUR + 30).await;
    assert!(node.ask(&first).await.is_ok(), "one pod's denial proves nothing");
    assert!(node.calls_of("web/app/a") > 1);
    // The second pod asks; the next renewal tries its token too.
    let _ = node.ask(&second).await;
    pass(120).await;
    assert!(is_refused(&node.ask(&first).await, RefusalKind::AccessDenied));
    assert!(node.ask(&other).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lost_permission_of_the_agent_costs_no_pod_its_credentials() {
    let node = Node::new();
    let pods: Vec<Pod> = ["a", "b", "c"]
        .iter()
        .flat_map(|sa| [pod("web", sa, &format!("{sa}1")), pod("web", sa, &format!("{sa}2"))])
        .collect();
    for p in &pods {
        node.key(p).await;
    }
    node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::AccessDenied))));
    pass(5 * HOUR).await;
    for p in &pods {
        assert!(node.ask(p).await.is_ok());
    }
    assert!(node.credentials.census(node.clock.now()).own_permission_suspected);
    node.works();
    pass(120).await;
    let census = node.credentials.census(node.clock.now());
    assert_eq!((census.fresh, census.own_permission_suspected), (3, false));
}
