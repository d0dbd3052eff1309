//! The pods of this node that ask, as the kernel tells them apart: what each of them may have at one time.
//!
//! An unattributed connection has no entry here; it is bounded by the node's limits alone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::attribute::Workload;
use crate::claims::Claims;
use crate::clock::Now;
use crate::config::PodLimits;

#[derive(Debug)]
pub struct Pods {
    limits: PodLimits,
    by_uid: Mutex<HashMap<Arc<str>, Arc<Pod>>>,
}

/// One pod, as long as one of its cgroups lives.
#[derive(Debug)]
pub struct Pod {
    uid: Arc<str>,
    limits: PodLimits,
    /// From a verified token of this very pod.
    name: OnceLock<Arc<Claims>>,
    cgroups: Mutex<HashSet<u64>>,
    waiting: AtomicUsize,
    failures: Mutex<Failures>,
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

/// One request's place among those of its pod that wait.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Pod);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pods {
    pub fn new(limits: PodLimits) -> Self {
        Pods { limits, by_uid: Mutex::default() }
    }

    pub fn limits(&self) -> PodLimits {
        self.limits
    }

    /// The entry of the pod that opened a connection.
    pub fn of(&self, workload: &Workload) -> Arc<Pod> {
        let mut pods = lock(&self.by_uid);
        let pod = pods
            .entry(Arc::clone(&workload.pod_uid))
            .or_insert_with(|| Arc::new(Pod::new(Arc::clone(&workload.pod_uid), self.limits)));
        lock(&pod.cgroups).insert(workload.cgroup_id);
        Arc::clone(pod)
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        lock(&self.by_uid).values().cloned().collect()
    }

    /// Forgets the pods that have no connection and none of whose cgroups `is_alive`; gives their UIDs.
    pub fn forget_dead(&self, is_alive: impl Fn(u64) -> bool) -> Vec<Arc<str>> {
        let mut dead = Vec::new();
        // Asking the kernel about each cgroup takes its time; new connections must not wait for it.
        for pod in self.all() {
            let mut cgroups = lock(&pod.cgroups);
            cgroups.retain(|cgroup| is_alive(*cgroup));
            if cgroups.is_empty() && pod.connections.load(Ordering::Relaxed) == 0 {
                dead.push(Arc::clone(&pod.uid));
            }
        }
        let mut pods = lock(&self.by_uid);
        dead.retain(|uid| {
            // It may have come back meanwhile with a new container.
            let still = pods.get(uid).is_some_and(|pod| lock(&pod.cgroups).is_empty());
            still && pods.remove(uid).is_some()
        });
        dead
    }
}

impl Pod {
    fn new(uid: Arc<str>, limits: PodLimits) -> Self {
        Pod {
            uid,
            limits,
            name: OnceLock::new(),
            cgroups: Mutex::default(),
            waiting: AtomicUsize::new(0),
            failures: Mutex::default(),
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

    /// A place among those that wait for an answer, or none while this pod has all of its own taken.
    pub fn wait(&self) -> Option<Waiting<'_>> {
        let place = Waiting(self);
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        (before < self.limits.waiting).then_some(place)
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn workload(uid: &str, cgroup_id: u64) -> Workload {
        Workload {
            pod_uid: uid.into(),
            container_id: None,
            cgroup_id,
            tgid: 1,
            netns: 2,
            host_network: false,
        }
    }

    #[test]
    fn a_pods_bad_tokens_are_bounded_by_the_second_and_leave_others_alone() {
        let pods = Pods::new(LIMITS);
        let (noisy, quiet) = (pods.of(&workload("noisy", 1)), pods.of(&workload("quiet", 2)));
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

    #[test]
    fn places_among_the_waiting_come_back() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&workload("a", 1));
        let (first, _second) = (pod.wait().expect("room"), pod.wait().expect("room"));
        assert!(pod.wait().is_none());
        assert!(pod.wait().is_none(), "being turned away takes no place");
        drop(first);
        assert!(pod.wait().is_some());
    }

    #[test]
    fn a_pod_is_forgotten_with_its_last_cgroup_and_connection() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&workload("a", 1));
        pods.of(&workload("a", 2));
        pods.of(&workload("b", 3));
        assert!(pods.forget_dead(|cgroup| cgroup != 1).is_empty(), "one container has ended, the pod lives");
        pod.connections.store(1, Ordering::Relaxed);
        assert!(pods.forget_dead(|cgroup| cgroup == 3).is_empty(), "a connection is still open");
        pod.connections.store(0, Ordering::Relaxed);
        assert_eq!(pods.forget_dead(|cgroup| cgroup == 3), [Arc::from("a")]);
        assert_eq!(pods.all().len(), 1);
    }

    #[test]
    fn a_pods_name_comes_from_its_own_token_only() {
        let pods = Pods::new(LIMITS);
        let pod = pods.of(&workload("a", 1));
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
