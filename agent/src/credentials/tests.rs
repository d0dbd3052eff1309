//! The cache against a scripted EKS Auth, on tokio's paused time and a wall clock that can jump.

mod clocks;
mod ended;
mod flush;
mod model;
mod refusals;
mod renewal;
mod revalidation;
mod sharing;
mod unchecked;
mod waiting;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use prometheus::Registry;
use secrecy::ExposeSecret;
use tokio::time::{advance, sleep};

use super::*;
use crate::claims::{Claims, Names, Scope, TokenHash};
use crate::clock::UnixTime;
use crate::eks_auth::RefusalKind;

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

    /// EKS Auth refuses the token of the pod `dead`, and takes all others.
    fn takes_no_token_of_the_dead(&self) {
        self.rule(|token| {
            let dead = token.ends_with("/dead");
            (Duration::from_millis(50), if dead { Err(refusal(RefusalKind::InvalidToken)) } else { Ok(()) })
        });
    }

    fn ended(&self, pods: &[Pod]) {
        let uids: Vec<_> = pods.iter().map(|pod| Arc::from(pod.permit.claims().pod_uid())).collect();
        self.credentials.pods_ended(&uids);
    }

    /// Role keys with credentials and without.
    fn kept(&self) -> (usize, usize) {
        let census = self.credentials.census(self.clock.now());
        (census.fresh + census.due + census.low, census.empty)
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
    let names = Names {
        namespace: ns,
        service_account: sa,
        service_account_uid: sa_uid,
        pod_name: name,
        pod_uid: &format!("uid-{name}"),
        node: None,
    };
    let claims = Arc::new(Claims::new(names, hash(&token), UnixTime(START + token_life)));
    Pod { permit: Permit::for_test(claims, scope), token }
}

fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    for (i, byte) in token.bytes().enumerate() {
        hash[i % 32] ^= byte.rotate_left(u32::try_from(i / 32 + i % 7).unwrap());
    }
    hash
}

fn unavailable() -> Failure {
    Failure::Unavailable { message: "EKS Auth cannot be reached", cause: "proxy.internal:3128".into() }
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
