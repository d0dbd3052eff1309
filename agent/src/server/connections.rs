//! The open connections, and which of them makes room for a new one.
//!
//! Whoever opens connections and leaves them lying pays with the oldest of their own: a pod that asks and goes is never
//! the longest idle. A pod that the kernel knows has a cap of its own, and all connections that it knows no pod of have one
//! together: a pod can make itself unknown, and must not take the place of those that are known.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::time::Instant;

use crate::clock::Now;
use crate::locks::lock;
use crate::pods::Pod;

#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    open: Mutex<Open>,
}

/// The most connections at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) node: usize,
    pub(super) pod: usize,
    pub(super) unattributed: usize,
}

/// Whose cap was reached; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapOf {
    Node,
    Pod,
    Unattributed,
}

impl CapOf {
    pub fn label(self) -> &'static str {
        match self {
            CapOf::Node => "node",
            CapOf::Pod => "pod",
            CapOf::Unattributed => "unattributed",
        }
    }
}

/// The connections that share a cap, by their keys among all slots: a pod at its cap must not cost a look at everybody's.
#[derive(Debug, Default)]
pub(crate) struct Share(Vec<usize>);

#[derive(Debug, Default)]
struct Open {
    slots: Slab<Arc<Slot>>,
    /// A pod has its own share; this is of those that the kernel knows no pod of.
    unattributed: Share,
}

#[derive(Debug)]
struct Slot {
    pod: Option<Arc<Pod>>,
    /// Where in its share its key is.
    in_share: AtomicUsize,
    /// None while a request is being answered.
    idle_since: Mutex<Option<Instant>>,
    told: Mutex<Option<Told>>,
    /// The connection's task.
    listening: AtomicWaker,
}

/// What an open connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// To end at once: it has made room, and is counted no more.
    Leave,
    /// To end if it is still idle.
    LeaveIfIdle,
    /// To end once its request is answered.
    Finish,
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// At whose cap another connection had to go for this one.
    pub(super) evicted_at: Option<CapOf>,
    key: usize,
    slot: Arc<Slot>,
    connections: Arc<Connections>,
}

impl Connections {
    pub(super) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Connections { caps, open: Mutex::default() })
    }

    /// A place for a new connection. At a cap the one that has been idle longest is told to close, of those that share this
    /// cap; with all of them waiting for an answer there is none.
    pub(super) fn admit(self: &Arc<Self>, pod: Option<Arc<Pod>>, now: Now) -> Result<Place, CapOf> {
        let (cap, cap_of) = match pod {
            Some(_) => (self.caps.pod, CapOf::Pod),
            None => (self.caps.unattributed, CapOf::Unattributed),
        };
        let mut open = lock(&self.open);
        let longest = open.share(pod.as_deref(), |share, slots| {
            (share.0.len() >= cap)
                .then(|| longest_idle(share.0.iter().filter_map(|key| Some((*key, slots.get(*key)?)))))
        });
        let mut evicted_at = None;
        if let Some(longest) = longest {
            open.evict(longest.ok_or(cap_of)?);
            evicted_at = Some(cap_of);
        }
        if open.slots.len() >= self.caps.node {
            let longest = longest_idle(open.slots.iter());
            open.evict(longest.ok_or(CapOf::Node)?);
            evicted_at = Some(CapOf::Node);
        }
        let slot = Arc::new(Slot {
            pod,
            in_share: AtomicUsize::default(),
            idle_since: Mutex::new(Some(now.mono)),
            told: Mutex::default(),
            listening: AtomicWaker::new(),
        });
        let key = open.insert(&slot);
        Ok(Place { evicted_at, key, slot, connections: Arc::clone(self) })
    }

    /// Tells all that are open to finish.
    pub(super) fn finish(&self) {
        self.tell_all(Told::Finish, |_| true);
    }

    /// Tells those to leave that have been idle for so long.
    pub(super) fn end_idle(&self, at_least: Duration, now: Now) {
        self.tell_all(Told::LeaveIfIdle, |slot| slot.is_idle(at_least, now));
    }

    fn tell_all(&self, told: Told, which: impl Fn(&Slot) -> bool) {
        let open = lock(&self.open);
        let slots: Vec<Arc<Slot>> =
            open.slots.iter().filter(|(_, slot)| which(slot)).map(|(_, slot)| Arc::clone(slot)).collect();
        for slot in &slots {
            slot.note(told);
        }
        drop(open);
        // Only now: each of them wants the lock, to give back its place.
        for slot in slots {
            slot.listening.wake();
        }
    }
}

impl Share {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn of_one() -> Share {
        Share(vec![0])
    }
}

fn longest_idle<'a>(among: impl Iterator<Item = (usize, &'a Arc<Slot>)>) -> Option<usize> {
    let idle = among.filter_map(|(key, slot)| Some(((*lock(&slot.idle_since))?, key)));
    idle.min().map(|(_, key)| key)
}

impl Slot {
    fn tell(&self, told: Told) {
        self.note(told);
        self.listening.wake();
    }

    fn note(&self, told: Told) {
        *lock(&self.told) = Some(told);
    }

    fn is_idle(&self, at_least: Duration, now: Now) -> bool {
        lock(&self.idle_since).is_some_and(|since| now.mono.saturating_duration_since(since) >= at_least)
    }
}

impl Open {
    fn share<R>(&mut self, pod: Option<&Pod>, see: impl FnOnce(&mut Share, &Slab<Arc<Slot>>) -> R) -> R {
        match pod {
            Some(pod) => see(&mut lock(&pod.connections), &self.slots),
            None => see(&mut self.unattributed, &self.slots),
        }
    }

    fn insert(&mut self, slot: &Arc<Slot>) -> usize {
        let key = self.slots.insert(Arc::clone(slot));
        self.share(slot.pod.as_deref(), |share, _| {
            slot.in_share.store(share.0.len(), Ordering::Relaxed);
            share.0.push(key);
        });
        key
    }

    fn remove(&mut self, key: usize) -> Option<Arc<Slot>> {
        let slot = self.slots.try_remove(key)?;
        self.share(slot.pod.as_deref(), |share, slots| {
            let position = slot.in_share.load(Ordering::Relaxed);
            if share.0.get(position) != Some(&key) {
                return;
            }
            share.0.swap_remove(position);
            // The last one has come here.
            if let Some(moved) = share.0.get(position).and_then(|key| slots.get(*key)) {
                moved.in_share.store(position, Ordering::Relaxed);
            }
        });
        Some(slot)
    }

    fn evict(&mut self, key: usize) {
        if let Some(slot) = self.remove(key) {
            slot.tell(Told::Leave);
        }
    }
}

impl Place {
    pub(super) fn busy(&self) {
        *lock(&self.slot.idle_since) = None;
    }

    pub(super) fn idle(&self, now: Now) {
        *lock(&self.slot.idle_since) = Some(now.mono);
    }

    pub(super) fn is_idle(&self, at_least: Duration, now: Now) -> bool {
        self.slot.is_idle(at_least, now)
    }

    /// Resolves when there is something to tell. For the connection's own task alone, which looks with each request: a
    /// `Notify` would make an entry in a list of its listeners for it, and take it out again.
    pub(super) async fn told(&self) -> Told {
        poll_fn(|context| {
            // Before the look: what is told after it wakes the task.
            self.slot.listening.register(context.waker());
            lock(&self.slot.told).take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.connections.open);
        // One that was evicted has been removed already, and another may have its key.
        if open.slots.get(self.key).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot)) {
            open.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{PodLimits, Switch};
    use crate::pods::Pods;

    const CAPS: Caps = Caps { node: 3, pod: 2, unattributed: 100 };

    fn later(now: Now, seconds: u64) -> Now {
        Now { mono: now.mono + Duration::from_secs(seconds), ..now }
    }

    #[tokio::test]
    async fn at_the_cap_the_longest_idle_makes_room_and_the_busy_stay() {
        let start = Clock::default().now();
        let connections = Connections::new(CAPS);
        let busy = connections.admit(None, start).expect("room");
        busy.busy();
        let idle = connections.admit(None, later(start, 1)).expect("room");
        let recent = connections.admit(None, later(start, 0)).expect("room");
        recent.idle(later(start, 2));

        let new = connections.admit(None, later(start, 3)).expect("the longest idle makes room");
        assert_eq!((new.evicted_at, busy.evicted_at), (Some(CapOf::Node), None));
        assert!(idle.told().now_or_never() == Some(Told::Leave));
        assert!(busy.told().now_or_never().is_none() && recent.told().now_or_never().is_none());
        // The evicted one gives back nothing that was not its own.
        drop(idle);
        new.busy();
        recent.busy();
        assert_eq!(
            connections.admit(None, later(start, 4)).err(),
            Some(CapOf::Node),
            "all three wait for an answer"
        );
        drop(busy);
        assert!(connections.admit(None, later(start, 4)).is_ok());
    }

    #[tokio::test]
    async fn those_that_are_idle_for_too_long_leave_and_the_busy_stay() {
        let start = Clock::default().now();
        let connections = Connections::new(CAPS);
        let [busy, silent, asking] = [(); 3].map(|()| connections.admit(None, start).expect("room"));
        busy.busy();
        asking.idle(later(start, 1));
        connections.end_idle(Duration::from_secs(5), later(start, 5));
        assert_eq!(silent.told().now_or_never(), Some(Told::LeaveIfIdle));
        assert!(busy.told().now_or_never().is_none() && asking.told().now_or_never().is_none());
        connections.end_idle(Duration::from_secs(5), later(start, 6));
        assert_eq!(asking.told().now_or_never(), Some(Told::LeaveIfIdle));
    }

    #[tokio::test]
    async fn an_evicted_ones_key_is_anothers_by_the_time_it_is_dropped() {
        let start = Clock::default().now();
        let connections = Connections::new(Caps { node: 1, ..CAPS });
        let evicted = connections.admit(None, start).expect("room");
        let next = connections.admit(None, start).expect("the idle one makes room");
        assert_eq!(evicted.key, next.key);
        drop(evicted);
        next.busy();
        assert_eq!(connections.admit(None, start).err(), Some(CapOf::Node), "the place is still taken");
    }

    #[tokio::test]
    async fn shares_hold_whoever_is_open_in_whatever_order_they_come_and_go() {
        let start = Clock::default().now();
        let connections = Connections::new(Caps { node: 20, pod: 8, unattributed: 10 });
        let pods = pods();
        let mut places: Vec<Place> = Vec::new();
        let (mut evicted, mut random) = (0, fastrand::Rng::with_seed(1));
        for second in 0..2_000 {
            if !places.is_empty() && random.usize(..5) < 2 {
                places.swap_remove(random.usize(..places.len()));
            } else {
                let pod =
                    random.choice([None, Some("a"), Some("b")]).flatten().map(|uid| pods.of(&uid.into()));
                places.push(connections.admit(pod, later(start, second)).expect("all are idle"));
            }
            let open = lock(&connections.open);
            let is_open =
                |place: &&Place| open.slots.get(place.key).is_some_and(|slot| Arc::ptr_eq(slot, &place.slot));
            let held = places.iter().filter(is_open).count();
            evicted = evicted.max(places.len() - held);
            let shares: Vec<Vec<usize>> =
                pods.all().iter().map(|pod| lock(&pod.connections).0.clone()).collect();
            for share in shares.iter().chain([&open.unattributed.0]) {
                for (position, key) in share.iter().enumerate() {
                    assert_eq!(open.slots[*key].in_share.load(Ordering::Relaxed), position);
                }
            }
            let shared = shares.iter().map(Vec::len).sum::<usize>() + open.unattributed.len();
            assert_eq!((shared, open.slots.len()), (held, held));
        }
        assert!(evicted > 10, "some are evicted before they are dropped: {evicted}");
    }

    #[tokio::test]
    async fn all_that_are_open_are_told_to_finish_once() {
        let start = Clock::default().now();
        let connections = Connections::new(CAPS);
        let open = [(); 2].map(|()| connections.admit(None, start).expect("room"));
        drop(connections.admit(None, start).expect("room"));
        connections.finish();
        for place in &open {
            assert_eq!(place.told().now_or_never(), Some(Told::Finish));
            assert_eq!(place.told().now_or_never(), None);
        }
    }

    fn pods() -> Pods {
        Pods::new(PodLimits {
            connections: 2,
            waiting: 16,
            requests: 1_000,
            failures: 50,
            tokens: 4,
            metrics: Switch::On,
            metrics_max: 500,
        })
    }

    #[tokio::test]
    async fn whoever_the_kernel_does_not_know_leaves_room_for_those_that_it_does() {
        let start = Clock::default().now();
        let connections = Connections::new(Caps { node: 100, unattributed: 2, ..CAPS });
        let pods = pods();
        let known = connections.admit(Some(pods.of(&"known".into())), start).expect("room");
        let [first, second] =
            [1, 2].map(|seconds| connections.admit(None, later(start, seconds)).expect("room"));
        let third = connections.admit(None, later(start, 3)).expect("the longest idle makes room");
        assert_eq!(first.told().now_or_never(), Some(Told::Leave));
        second.busy();
        third.busy();
        assert_eq!(connections.admit(None, later(start, 4)).err(), Some(CapOf::Unattributed));
        assert!(known.told().now_or_never().is_none());
        assert!(connections.admit(Some(pods.of(&"another".into())), later(start, 4)).is_ok());
    }

    #[tokio::test]
    async fn at_its_own_cap_a_pod_pays_with_its_own_connections() {
        let start = Clock::default().now();
        let connections = Connections::new(Caps { node: 100, unattributed: 100, ..CAPS });
        let pods = pods();
        let pod = |uid: &str| Some(pods.of(&uid.into()));
        let nobody = connections.admit(None, start).expect("room");
        let other = connections.admit(pod("other"), start).expect("room");
        let first = connections.admit(pod("greedy"), later(start, 1)).expect("room");
        let second = connections.admit(pod("greedy"), later(start, 2)).expect("room");
        let third = connections.admit(pod("greedy"), later(start, 3)).expect("its longest idle makes room");
        assert_eq!(third.evicted_at, Some(CapOf::Pod));
        assert!(first.told().now_or_never() == Some(Told::Leave));
        for left_alone in [&nobody, &other, &second] {
            assert!(left_alone.told().now_or_never().is_none());
        }
        second.busy();
        third.busy();
        assert_eq!(connections.admit(pod("greedy"), later(start, 4)).err(), Some(CapOf::Pod));
        assert!(connections.admit(pod("other"), later(start, 4)).is_ok());
        drop((first, second, third));
        assert_eq!(
            lock(&pod("greedy").expect("a pod").connections).len(),
            0,
            "what was evicted is counted once"
        );
    }
}
