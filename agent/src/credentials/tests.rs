//! The cache against a scripted EKS Auth, on tokio's paused time and a wall clock that can jump.

mod model;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use prometheus::Registry;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{advance, sleep};

use super::*;
use crate::claims::TokenHash;
use crate::clock::UnixTime;
use crate::eks_auth::{Assumed, Failure, RefusalKind};

const HOUR: u64 = 3_600;
const LIFE: u64 = 6 * HOUR;
const START: u64 = 1_800_000_000;

type Rule = Box<dyn Fn(&str) -> (Duration, Result<(), Failure>) + Send + Sync>;

/// Answers by a rule that looks at the token, which here is `namespace/service account/pod`.
struct ScriptedEksAuth {
    rule: Mutex<Rule>,
    calls: Mutex<Vec<String>>,
    served: AtomicUsize,
    life: Mutex<Duration>,
    clock: Clock,
}

impl EksAuth for ScriptedEksAuth {
    fn assume_role_for_pod_identity(
        &self,
        token: SecretString,
    ) -> BoxFuture<'static, Result<Assumed, Failure>> {
        let token = token.expose_secret().to_owned();
        self.calls.lock().unwrap().push(token.clone());
        let (delay, result) = (self.rule.lock().unwrap_or_else(PoisonError::into_inner))(&token);
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        let life = *self.life.lock().unwrap();
        let clock = self.clock.clone();
        Box::pin(async move {
            sleep(delay).await;
            result?;
            let mut parts = token.split('/');
            Ok(Assumed {
                namespace: parts.next().unwrap().to_owned(),
                service_account: parts.next().unwrap().to_owned(),
                audience: "pods.eks.amazonaws.com".to_owned(),
                association_id: "a-1".to_owned(),
                session_arn: "arn:aws:sts::111122223333:assumed-role/shared/eks-demo".to_owned(),
                access_key_id: format!("ASIA{number}"),
                secret_access_key: "secret".into(),
                session_token: "session".into(),
                expiration: clock.now().wall.saturating_add(life),
            })
        })
    }
}

struct Node {
    credentials: Credentials,
    eks: Arc<ScriptedEksAuth>,
    clock: Clock,
    cancel: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[derive(Clone)]
struct Pod {
    permit: Permit,
    token: String,
}

type Got = Result<(Arc<Issued>, ServedFrom), Rejection>;

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            max_cache_size: 2_000,
            retention: Duration::from_secs(3 * HOUR),
            renewals_per_second: 3,
            revalidate_after: Duration::from_secs(60),
            wait: Duration::from_millis(1_800),
        };
        change(&mut settings);
        let clock = Clock::manual(START);
        let eks = Arc::new(ScriptedEksAuth {
            rule: Mutex::new(Box::new(|_| (Duration::from_millis(50), Ok(())))),
            calls: Mutex::default(),
            served: AtomicUsize::new(0),
            life: Mutex::new(Duration::from_secs(LIFE)),
            clock: clock.clone(),
        });
        let metrics = Arc::new(Metrics::new(Registry::new()).unwrap());
        let credentials =
            Credentials::new(&settings, Arc::clone(&eks) as Arc<dyn EksAuth>, metrics, clock.clone());
        let cancel = CancellationToken::new();
        let (running, cancelled) = (credentials.clone(), cancel.clone());
        tokio::spawn(async move { running.run(cancelled).await });
        Node { credentials, eks, clock, cancel }
    }

    async fn ask(&self, pod: &Pod) -> Got {
        self.credentials.get(&pod.permit, pod.token.as_bytes(), self.clock.now()).await
    }

    async fn key(&self, pod: &Pod) -> String {
        self.ask(pod).await.expect("credentials").0.access_key_id.clone()
    }

    fn rule(&self, rule: impl Fn(&str) -> (Duration, Result<(), Failure>) + Send + Sync + 'static) {
        *self.eks.rule.lock().unwrap() = Box::new(rule);
    }

    fn works(&self) {
        self.rule(|_| (Duration::from_millis(50), Ok(())));
    }

    fn down(&self) {
        self.rule(|_| (Duration::from_millis(5), Err(unavailable())));
    }

    fn calls(&self) -> usize {
        self.eks.calls.lock().unwrap().len()
    }

    fn calls_of(&self, token: &str) -> usize {
        self.eks.calls.lock().unwrap().iter().filter(|call| *call == token).count()
    }
}

fn pod(namespace: &str, service_account: &str, name: &str) -> Pod {
    pod_with(namespace, service_account, "sa-uid", name, 24 * HOUR, Scope::Role)
}

fn pod_with(ns: &str, sa: &str, sa_uid: &str, name: &str, token_life: u64, scope: Scope) -> Pod {
    let token = format!("{ns}/{sa}/{name}");
    let claims = Arc::new(Claims {
        namespace: ns.into(),
        service_account: sa.into(),
        service_account_uid: sa_uid.into(),
        pod_name: name.into(),
        pod_uid: format!("uid-{name}").into(),
        node: None,
        expires: UnixTime(START + token_life),
    });
    Pod { permit: Permit::for_test(claims, scope, hash(&token)), token }
}

fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    for (i, byte) in token.bytes().enumerate() {
        hash[i % 32] ^= byte.rotate_left(u32::try_from(i / 32 + i % 7).unwrap());
    }
    hash
}

fn unavailable() -> Failure {
    Failure::Unavailable { message: "connection refused".into() }
}

fn throttled() -> Failure {
    Failure::Throttled { message: "Rate exceeded".into() }
}

fn refusal(kind: RefusalKind) -> Failure {
    let status = if kind == RefusalKind::ResourceNotFound { 404 } else { 400 };
    Failure::Refused(Refusal { kind, status, code: "SomeException".into(), message: "no".into() })
}

fn is_refused(got: &Got, expected: RefusalKind) -> bool {
    matches!(got, Err(Rejection::Upstream { refusal, .. }) if refusal.kind == expected)
}

fn is_not_yet(got: &Got) -> bool {
    matches!(got, Err(Rejection::NotYet { .. }))
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Passes time in steps, so that timers in between run at their time.
async fn pass(seconds: u64) {
    sleep(secs(seconds)).await;
}

mod sharing {
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
}

mod waiting {
    use super::*;

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
}

mod renewal {
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
}

mod refusals {
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
        node.rule(|token| {
            let dead = token.ends_with("/dead");
            (Duration::from_millis(50), if dead { Err(refusal(RefusalKind::InvalidToken)) } else { Ok(()) })
        });
        let (of_dead, of_live) = tokio::join!(node.ask(&dead), node.ask(&live));
        assert!(is_refused(&of_dead, RefusalKind::InvalidToken));
        assert!(of_live.is_ok());
        // The memory has lapsed, the cache is warm, and still EKS Auth is asked about this token.
        pass(10).await;
        assert!(is_refused(&node.ask(&dead).await, RefusalKind::InvalidToken));
        assert_eq!(node.calls_of("web/app/dead"), 2);
        node.works();
        pass(10).await;
        assert!(node.ask(&dead).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn access_denied_keeps_what_is_valid_until_a_second_pods_token_confirms_it() {
        let node = Node::new();
        let (first, second, other) =
            (pod("web", "app", "a"), pod("web", "app", "b"), pod("web", "other", "p"));
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
}

mod revalidation {
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
}

mod clocks {
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
}

mod flush {
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
}

mod unchecked {
    use super::*;

    fn unchecked(name: &str) -> Pod {
        let token = format!("web/app/{name}");
        pod_with("web", "app", "sa", name, HOUR, Scope::UncheckedToken(hash(&token)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_nobody_verified_shares_with_nobody() {
        let node = Node::new();
        let (verified, unverified) = (pod("web", "app", "a"), unchecked("b"));
        let keys = [node.key(&verified).await, node.key(&unverified).await, node.key(&unverified).await];
        assert_eq!(keys, ["ASIA0", "ASIA1", "ASIA1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_forgeries_is_two_calls_a_second() {
        let node = Node::new();
        node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::InvalidToken))));
        let forged: Vec<Pod> = (0..500).map(|i| unchecked(&format!("forged{i}"))).collect();
        join_all(forged.iter().map(|pod| node.ask(pod))).await;
        pass(8).await;
        assert!(node.calls() <= 2 * 10, "{} calls in ten seconds", node.calls());
        assert!(node.calls() >= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn its_pod_is_not_named_in_a_refusal() {
        let node = Node::new();
        node.rule(|_| (Duration::from_millis(50), Err(refusal(RefusalKind::AccessDenied))));
        let rejection = node.ask(&unchecked("p")).await.unwrap_err();
        assert!(rejection.pod().is_none());
        assert!(!String::from_utf8(rejection.body()).unwrap().contains("web"));
    }
}

#[tokio::test(start_paused = true)]
async fn secrets_stay_out_of_debug_and_reach_the_body() {
    let node = Node::new();
    let (issued, _) = node.ask(&pod("web", "app", "p")).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&issued.body).unwrap();
    assert_eq!(body["SecretAccessKey"], "secret");
    assert_eq!(body["Token"], "session");
    assert_eq!(body["AccountId"], "111122223333");
    assert_eq!(body["Expiration"], issued.expiration.to_string());
    assert!(!format!("{issued:?}").contains("secret"));
    advance(secs(1)).await;
}
