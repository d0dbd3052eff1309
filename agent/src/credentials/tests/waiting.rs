//! Requests that have to wait for EKS Auth.

use super::*;
use crate::testing::Log;

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_a_503_after_the_wait_and_fills_the_cache() {
    let node = Node::new();
    node.rule(|_| (secs(3), Ok(())));
    let p = pod("web", "app", "p");
    let asked = node.clock.now();
    assert!(is_not_yet(&node.ask(&p).await));
    assert_eq!(node.clock.now().mono - asked.mono, Duration::from_millis(1_800));
    pass(2).await;
    assert_eq!(node.key(&p).await, "ASIA0");
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_503_never_comes_at_once_while_an_answer_may_still_come() {
    let node = Node::new();
    node.down();
    let p = pod("web", "app", "p");
    for _ in 0..6 {
        let asked = node.clock.now();
        assert!(is_not_yet(&node.ask(&p).await));
        assert_eq!(node.clock.now().mono - asked.mono, Duration::from_millis(1_800));
    }
}

#[tokio::test(start_paused = true)]
async fn why_eks_auth_gives_no_answer_is_for_the_log_which_says_it_once_a_minute() {
    let log = Log::default();
    let _capture = log.capture(tracing::Level::WARN);
    let node = Node::new();
    node.down();
    for _ in 0..20 {
        let told = node.ask(&pod("web", "app", "p")).await.unwrap_err().body();
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains("EKS Auth cannot be reached") && !told.contains("proxy.internal"), "{told}");
    }
    assert_eq!(log.events(), ["eks_auth_unavailable"]);
    assert!(log.text().contains("proxy.internal:3128"), "{}", log.text());
    pass(60).await;
    assert!(is_not_yet(&node.ask(&pod("web", "app", "p")).await));
    assert_eq!(log.events().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_made_again_for_those_who_wait() {
    let node = Node::new();
    let tries = AtomicUsize::new(0);
    node.rule(move |_| {
        let first = tries.fetch_add(1, Ordering::Relaxed) == 0;
        (Duration::from_millis(20), if first { Err(unavailable()) } else { Ok(()) })
    });
    let pods: Vec<Pod> = (0..10).map(|i| pod("web", "app", &format!("p{i}"))).collect();
    let got = join_all(pods.iter().map(|pod| node.ask(pod))).await;
    assert!(got.iter().all(Result::is_ok));
    assert_eq!(node.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_strands_nobody() {
    let node = Node::new();
    let tries = AtomicUsize::new(0);
    node.rule(move |_| {
        assert!(tries.fetch_add(1, Ordering::Relaxed) > 0, "the first call dies");
        (Duration::from_millis(20), Ok(()))
    });
    assert!(node.ask(&pod("web", "app", "p")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn retries_stop_when_nobody_waits_any_more() {
    let node = Node::new();
    node.down();
    assert!(is_not_yet(&node.ask(&pod("web", "app", "p")).await));
    pass(60).await;
    let calls = node.calls();
    pass(600).await;
    assert_eq!(node.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn one_role_keys_retries_never_starve_anothers_first_call() {
    let node = Node::new();
    node.rule(|token| {
        let result = if token.starts_with("web/busy") { Err(throttled()) } else { Ok(()) };
        (Duration::from_millis(50), result)
    });
    let busy: Vec<Pod> = (0..100).map(|i| pod("web", &format!("busy{i}"), "p")).collect();
    let (got, first) = tokio::join!(join_all(busy.iter().map(|pod| node.ask(pod))), async {
        sleep(secs(1)).await;
        let asked = node.clock.now();
        node.key(&pod("web", "quiet", "p")).await;
        node.clock.now().mono - asked.mono
    });
    assert!(got.iter().all(is_not_yet));
    assert!(first < Duration::from_millis(60), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn throttled_role_keys_come_through_as_fast_as_eks_auth_lets_them() {
    let node = Node::new();
    let clock = node.clock.clone();
    let window = Mutex::new((clock.now().mono, 0));
    // 20 calls a second, as an account's limit would have it.
    node.rule(move |_| {
        let mut window = window.lock().unwrap();
        let now = clock.now().mono;
        if now - window.0 >= secs(1) {
            *window = (now, 0);
        }
        window.1 += 1;
        (Duration::from_millis(30), if window.1 > 20 { Err(throttled()) } else { Ok(()) })
    });
    let pods: Vec<Pod> = (0..100).map(|i| pod("web", &format!("app{i}"), "p")).collect();
    let asked = node.clock.now();
    let served = join_all(pods.iter().map(async |pod| while node.ask(pod).await.is_err() {})).await;
    let took = node.clock.now().mono - asked.mono;
    assert_eq!(served.len(), 100);
    assert!(took < secs(30), "100 role keys at 20/s took {took:?}");
    assert!(node.calls() < 400, "{} calls", node.calls());
}

#[tokio::test(start_paused = true)]
async fn when_throttling_ends_everybody_is_served_within_seconds() {
    for throttled_for in [10, 60] {
        let node = Node::new();
        node.rule(|_| (Duration::from_millis(30), Err(throttled())));
        let pods: Vec<Pod> = (0..100).map(|i| pod("web", &format!("app{i}"), "p")).collect();
        let ends = async {
            pass(throttled_for).await;
            node.works();
            node.clock.now()
        };
        let served = join_all(pods.iter().map(async |pod| while node.ask(pod).await.is_err() {}));
        let (ended, _) = tokio::join!(ends, served);
        let took = node.clock.now().mono - ended.mono;
        assert!(took < secs(20), "{throttled_for} s of throttling took {took:?} more");
    }
}
