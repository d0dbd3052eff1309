//! Pods that have ended, as the kernel tells.

use super::*;

fn job(n: usize) -> Pod {
    pod_with("batch", "jobs", "sa-uid", &format!("job{n}"), 24 * HOUR, Scope::Pod)
}

#[tokio::test(start_paused = true)]
async fn of_jobs_with_credentials_of_their_own_nothing_is_kept_when_they_have_ended() {
    let node = Node::with(|s| s.max_cache_size = 10);
    let lives = job(10_000);
    node.key(&lives).await;
    for hundred in 0..100 {
        let jobs: Vec<Pod> = (0..100).map(|n| job(100 * hundred + n)).collect();
        join_all(jobs.iter().map(|job| node.key(job))).await;
        assert_eq!(node.kept(), (101, 0));
        node.ended(&jobs);
        pass(2).await;
        assert_eq!(node.kept(), (1, 0));
    }
    assert_eq!(node.calls(), 10_001);
}

#[tokio::test(start_paused = true)]
async fn what_comes_for_a_pod_that_has_ended_meanwhile_is_not_kept_either() {
    let node = Node::new();
    node.rule(|_| (secs(5), Ok(())));
    assert!(is_not_yet(&node.ask(&job(0)).await));
    node.ended(&[job(0)]);
    pass(2).await;
    assert_eq!(node.kept(), (0, 1), "the call is under way");
    pass(4).await;
    assert_eq!((node.kept(), node.calls()), ((0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn the_next_job_of_a_service_account_finds_the_credentials_of_the_last() {
    let node = Node::new();
    for n in 0..50 {
        let job = pod("batch", "jobs", &format!("job{n}"));
        assert_eq!(node.key(&job).await, "ASIA0");
        node.ended(&[job]);
        pass(1).await;
    }
    assert_eq!(node.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn role_keys_without_a_live_pod_are_bounded_by_the_cache_size() {
    let node = Node::with(|s| s.max_cache_size = 10);
    let of = |n: usize| pod("web", &format!("app{n}"), "p");
    let lives = of(1_000);
    node.key(&lives).await;
    for n in 0..100 {
        node.key(&of(n)).await;
    }
    assert_eq!(node.kept(), (101, 0), "all of them live");
    node.ended(&(0..100).map(of).collect::<Vec<_>>());
    node.key(&of(1_001)).await;
    let (kept, _) = node.kept();
    assert!(kept <= 10, "{kept}");
    assert_eq!(node.key(&lives).await, "ASIA0");
}
