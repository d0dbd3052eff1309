//! The pods of this node that ask, as the kernel tells them apart: what each of them may have at one time.
//!
//! An unattributed connection has no entry here; it is bounded by the node's limits alone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quick_cache::DefaultHashBuilder;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::authenticate::last::LastToken;
use crate::claims::Claims;
use crate::clock::Now;
use crate::config::PodLimits;
use crate::locks::lock;
use crate::server::Share;

#[derive(Debug)]
pub struct Pods {
    limits: PodLimits,
    by_uid: Mutex<HashMap<Arc<str>, Arc<Pod>, DefaultHashBuilder>>,
}

/// One pod, as long as it lives.
#[derive(Debug)]
pub struct Pod {
    uid: Arc<str>,
    limits: PodLimits,
    /// From a verified token of this very pod.
    name: OnceLock<Arc<Claims>>,
    waiting: Semaphore,
    failures: Mutex<Bucket>,
    requests: Mutex<Bucket>,
    pub last_token: LastToken,
    pub(crate) connections: Mutex<Share>,
    pub served: AtomicU64,
    pub refused: AtomicU64,
}

/// A leaky bucket for what a pod may have N of in a second: each one adds 1/N of a second, and time drains it.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it will be empty again.
    clear: Option<Instant>,
}

/// What a pod may have of a second's requests at once, before they have to come one after the other. No longer: a flood that
/// is let through for a moment is a moment in which the other pods wait.
const AT_ONCE: Duration = Duration::from_millis(100);

impl Pods {
    pub fn new(limits: PodLimits) -> Self {
        Pods { limits, by_uid: Mutex::default() }
    }

    pub fn limits(&self) -> PodLimits {
        self.limits
    }

    /// The entry of the pod that opened a connection.
    pub fn of(&self, pod_uid: &Arc<str>) -> Arc<Pod> {
        let mut pods = lock(&self.by_uid);
        if let Some(pod) = pods.get(pod_uid) {
            return Arc::clone(pod);
        }
        let pod = Arc::new(Pod::new(Arc::clone(pod_uid), self.limits));
        pods.insert(Arc::clone(pod_uid), Arc::clone(&pod));
        pod
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        lock(&self.by_uid).values().cloned().collect()
    }

    /// Forgets those `among` the pods that are not `live` and have no connection; gives their UIDs. `live` must have been
    /// asked after `among` was taken: a pod that has started meanwhile is missing from both.
    pub fn forget_ended(&self, among: &[Arc<Pod>], live: &HashSet<Arc<str>>) -> Vec<Arc<str>> {
        let mut pods = lock(&self.by_uid);
        let is_idle = |pod: &Pod| lock(&pod.connections).is_empty();
        let ended = among.iter().filter(|pod| !live.contains(&pod.uid) && is_idle(pod));
        ended.filter_map(|pod| pods.remove(&pod.uid)).map(|pod| Arc::clone(&pod.uid)).collect()
    }
}

impl Pod {
    fn new(uid: Arc<str>, limits: PodLimits) -> Self {
        Pod {
            uid,
            limits,
            name: OnceLock::new(),
            waiting: Semaphore::new(limits.waiting),
            failures: Mutex::default(),
            requests: Mutex::default(),
            last_token: LastToken::default(),
            connections: Mutex::default(),
            served: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// What a verified token said of this pod.
    pub fn claims(&self) -> Option<&Arc<Claims>> {
        self.name.get()
    }

    /// Takes the pod's name from a verified token, if it is this pod's.
    pub fn learn_name(&self, claims: &Arc<Claims>) {
        if self.name.get().is_none() && *claims.pod_uid() == *self.uid {
            // Another request was faster with the same name.
            let _ = self.name.set(Arc::clone(claims));
        }
    }

    /// A place among those that wait for an answer, as soon as this pod has one free and its turn has come; None where that is
    /// not before the deadline. A pod that floods the agent waits here, and leaves the processors to the others.
    pub async fn wait(&self, now: Now, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        // Nearly always there is one, and then a request needs no timer.
        let place = match self.waiting.try_acquire() {
            Ok(place) => place,
            Err(_) => Box::pin(timeout_at(deadline, self.waiting.acquire())).await.ok()?.ok()?,
        };
        let turn = self.turn(now, deadline)?;
        if turn > now.mono {
            Box::pin(sleep_until(turn)).await;
        }
        Some(place)
    }

    /// When the next request may be answered.
    fn turn(&self, now: Now, deadline: Instant) -> Option<Instant> {
        let mut requests = lock(&self.requests);
        let used = requests.used(now);
        let turn = now.mono + used.saturating_sub(AT_ONCE);
        if turn > deadline {
            return None;
        }
        requests.add(now, Duration::from_secs(1) / self.limits.requests);
        Some(turn)
    }

    /// Whether another unknown token of this pod may be looked at.
    pub fn may_fail(&self, now: Now) -> bool {
        lock(&self.failures).used(now) + self.cost() <= Duration::from_secs(1)
    }

    pub fn failed(&self, now: Now) {
        lock(&self.failures).add(now, self.cost());
    }

    /// The part of the bucket that one bad token takes.
    fn cost(&self) -> Duration {
        Duration::from_secs(1) / self.limits.failures
    }
}

impl Bucket {
    fn used(self, now: Now) -> Duration {
        self.clear.map_or(Duration::ZERO, |clear| clear.saturating_duration_since(now.mono))
    }

    fn add(&mut self, now: Now, cost: Duration) {
        self.clear = Some(now.mono + self.used(now) + cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{Names, TokenHash};
    use crate::clock::{Clock, UnixTime};
    use crate::config::Switch;

    const LIMITS: PodLimits = PodLimits {
        connections: 2,
        waiting: 2,
        requests: 10,
        failures: 50,
        tokens: 4,
        metrics: Switch::On,
        metrics_max: 500,
    };

    #[test]
    fn a_pods_bad_tokens_are_bounded_by_the_second_and_leave_others_alone() {
        let pods = Pods::new(LIMITS);
        let (noisy, quiet) = (pods.of(&"noisy".into()), pods.of(&"quiet".into()));
        let start = Clock::default().now();
        let allowed = (0..200)
            .take_while(|_| {
                noisy.may_fail(start) && {
                    noisy.failed(start);
                    true
                }
            })
            .count();
        assert_eq!(allowed, 50);
        assert!(!noisy.may_fail(start) && quiet.may_fail(start));
        let later = |ms| Now { mono: start.mono + Duration::from_millis(ms), ..start };
        assert!(!noisy.may_fail(later(19)) && noisy.may_fail(later(20)), "one more every 20 ms");
    }

    #[tokio::test(start_paused = true)]
    async fn places_among_the_waiting_come_back() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&"a".into());
        let now = Clock::default().now();
        let deadline = now.mono + Duration::from_secs(1);
        let (first, _second) =
            (pod.wait(now, deadline).await.expect("room"), pod.wait(now, deadline).await.expect("room"));
        assert!(pod.wait(now, deadline).await.is_none());
        let (_, third) =
            tokio::join!(async { drop(first) }, pod.wait(now, deadline + Duration::from_secs(1)));
        assert!(third.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pods_requests_take_turns_and_leave_others_alone() {
        let pods = Pods::new(LIMITS);
        let (noisy, quiet) = (pods.of(&"noisy".into()), pods.of(&"quiet".into()));
        let clock = Clock::default();
        let start = clock.now();
        let deadline = start.mono + Duration::from_secs(1);
        // Ten a second: two at once, then one each tenth of a second.
        for tenths in [0, 0, 1, 2, 3] {
            drop(noisy.wait(start, deadline).await.expect("in time"));
            assert_eq!(clock.now().mono - start.mono, Duration::from_millis(100 * tenths));
        }
        let waited = clock.now();
        assert!(quiet.wait(waited, deadline).await.is_some());
        assert_eq!(clock.now().mono, waited.mono);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_too_late_is_not_taken() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&"noisy".into());
        let now = Clock::default().now();
        let soon = now.mono + Duration::from_millis(50);
        for is_in_time in [true, true, false, false, false] {
            assert_eq!(pod.wait(now, soon).await.is_some(), is_in_time);
        }
        let turn = pod.turn(now, now.mono + Duration::from_secs(1));
        assert_eq!(turn, Some(now.mono + Duration::from_millis(100)), "those that gave up delay nobody");
    }

    #[test]
    fn a_pod_is_forgotten_when_it_has_ended_and_its_connections_too() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&"a".into());
        pods.of(&"b".into());
        let all = pods.all();
        pods.of(&"c".into());
        let live = |uids: &[&str]| uids.iter().map(|uid| Arc::from(*uid)).collect();
        assert!(pods.forget_ended(&all, &live(&["a", "b"])).is_empty());
        *lock(&pod.connections) = Share::of_one();
        assert!(pods.forget_ended(&all, &live(&["b"])).is_empty(), "a connection is still open");
        *lock(&pod.connections) = Share::default();
        assert_eq!(pods.forget_ended(&all, &live(&["b"])), [Arc::from("a")], "c came after the question");
        assert_eq!(pods.all().len(), 2);
    }

    #[test]
    fn a_pods_name_comes_from_its_own_token_only() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&"a".into());
        let claims = |uid: &str| {
            let names = Names {
                namespace: "shop",
                service_account: "cart",
                service_account_uid: "sa",
                pod_name: &format!("cart-{uid}"),
                pod_uid: uid,
                node: None,
            };
            Arc::new(Claims::new(names, TokenHash::default(), UnixTime(0)))
        };
        pod.learn_name(&claims("b"));
        assert!(pod.claims().is_none());
        pod.learn_name(&claims("a"));
        assert_eq!(pod.claims().map(|claims| claims.pod_name()), Some("cart-a"));
    }
}
