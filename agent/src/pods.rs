//! The pods of this node that ask, as the kernel tells them apart: what each of them may have at one time.
//!
//! An unattributed connection has no entry here; it is bounded by the node's limits alone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::authenticate::last::LastToken;
use crate::claims::Claims;
use crate::clock::Now;
use crate::config::PodLimits;
use crate::locks::lock;

#[derive(Debug)]
pub struct Pods {
    limits: PodLimits,
    by_uid: Mutex<HashMap<Arc<str>, Arc<Pod>>>,
}

/// One pod, as long as it lives.
#[derive(Debug)]
pub struct Pod {
    uid: Arc<str>,
    limits: PodLimits,
    /// From a verified token of this very pod.
    name: OnceLock<Arc<Claims>>,
    waiting: Semaphore,
    failures: Mutex<Failures>,
    pub last_token: LastToken,
    pub connections: AtomicUsize,
    pub served: AtomicU64,
    pub refused: AtomicU64,
}

/// Tokens that were found bad: a bucket that holds one second's worth and refills within a second.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    /// When the bucket will be empty again.
    clear: Option<Instant>,
}

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
        let new = || Arc::new(Pod::new(Arc::clone(pod_uid), self.limits));
        Arc::clone(pods.entry(Arc::clone(pod_uid)).or_insert_with(new))
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        lock(&self.by_uid).values().cloned().collect()
    }

    /// Forgets those `among` the pods that are not `live` and have no connection; gives their UIDs. `live` must have been
    /// asked after `among` was taken: a pod that has started meanwhile is missing from both.
    pub fn forget_ended(&self, among: &[Arc<Pod>], live: &HashSet<Arc<str>>) -> Vec<Arc<str>> {
        let mut pods = lock(&self.by_uid);
        let is_idle = |pod: &Pod| pod.connections.load(Ordering::Relaxed) == 0;
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
            last_token: LastToken::default(),
            connections: AtomicUsize::new(0),
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
        if self.name.get().is_none() && claims.pod_uid == self.uid {
            // Another request was faster with the same name.
            let _ = self.name.set(Arc::clone(claims));
        }
    }

    /// A place among those that wait for an answer, as soon as this pod has one free before the deadline.
    pub async fn wait(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        // Nearly always there is one, and then a request needs no timer.
        if let Ok(place) = self.waiting.try_acquire() {
            return Some(place);
        }
        timeout_at(deadline, self.waiting.acquire()).await.ok()?.ok()
    }

    /// Whether another unknown token of this pod may be looked at.
    pub fn may_fail(&self, now: Now) -> bool {
        lock(&self.failures).used(now) + self.cost() <= Duration::from_secs(1)
    }

    pub fn failed(&self, now: Now) {
        let mut failures = lock(&self.failures);
        failures.clear = Some(now.mono + failures.used(now) + self.cost());
    }

    /// The part of the bucket that one bad token takes.
    fn cost(&self) -> Duration {
        Duration::from_secs(1) / self.limits.failures
    }
}

impl Failures {
    fn used(self, now: Now) -> Duration {
        self.clear.map_or(Duration::ZERO, |clear| clear.saturating_duration_since(now.mono))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixTime};
    use crate::config::Switch;

    const LIMITS: PodLimits = PodLimits {
        connections: 2,
        waiting: 2,
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
        let deadline = Clock::default().now().mono + Duration::from_secs(1);
        let (first, _second) =
            (pod.wait(deadline).await.expect("room"), pod.wait(deadline).await.expect("room"));
        assert!(pod.wait(deadline).await.is_none());
        let (_, third) = tokio::join!(async { drop(first) }, pod.wait(deadline + Duration::from_secs(1)));
        assert!(third.is_some());
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
        pod.connections.store(1, Ordering::Relaxed);
        assert!(pods.forget_ended(&all, &live(&["b"])).is_empty(), "a connection is still open");
        pod.connections.store(0, Ordering::Relaxed);
        assert_eq!(pods.forget_ended(&all, &live(&["b"])), [Arc::from("a")], "c came after the question");
        assert_eq!(pods.all().len(), 2);
    }

    #[test]
    fn a_pods_name_comes_from_its_own_token_only() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&"a".into());
        let claims = |uid: &str| {
            Arc::new(Claims {
                namespace: "shop".into(),
                service_account: "cart".into(),
                service_account_uid: "sa".into(),
                pod_name: format!("cart-{uid}").into(),
                pod_uid: uid.into(),
                node: None,
                expires: UnixTime(0),
            })
        };
        pod.learn_name(&claims("b"));
        assert!(pod.claims().is_none());
        pod.learn_name(&claims("a"));
        assert_eq!(pod.claims().map(|claims| &*claims.pod_name), Some("cart-a"));
    }
}
