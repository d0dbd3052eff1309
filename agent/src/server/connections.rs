//! The open connections, and which of them makes room for a new one.
//!
//! Whoever opens connections and leaves them lying pays with the oldest of their own: a pod that asks and goes is never
//! the longest idle. A pod that the kernel knows has a cap of its own, and all connections that it knows no pod of have one
//! together: a pod can make itself unknown, and must not take the place of those that are known.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use quick_cache::DefaultHashBuilder;
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

/// Whose cap was reached with all connections waiting for an answer; a metric label.
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

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    slots: HashMap<u64, Arc<Slot>, DefaultHashBuilder>,
    /// The slots of each pod by its UID, and those of no known pod: one pod at its cap must not cost a look at everybody's.
    shares: HashMap<Option<Arc<str>>, BTreeSet<u64>, DefaultHashBuilder>,
}

#[derive(Debug)]
struct Slot {
    pod: Option<Arc<Pod>>,
    /// None while a request is being answered.
    idle_since: Mutex<Option<Instant>>,
    told: Mutex<Option<Told>>,
    /// The connection's task.
    listening: AtomicWaker,
}

/// What an open connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// To make room, at once.
    Leave,
    /// To end once its request is answered.
    Finish,
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
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
        let mut open = lock(&self.open);
        let sharer = sharer(pod.as_deref());
        let (cap, cap_of) = match sharer {
            Some(_) => (self.caps.pod, CapOf::Pod),
            None => (self.caps.unattributed, CapOf::Unattributed),
        };
        if let Some(share) = open.shares.get(&sharer)
            && share.len() >= cap
        {
            let longest = open.longest_idle(share.iter()).ok_or(cap_of)?;
            open.evict(longest);
        }
        if open.slots.len() >= self.caps.node {
            let longest = open.longest_idle(open.slots.keys()).ok_or(CapOf::Node)?;
            open.evict(longest);
        }
        let id = open.next_id;
        open.next_id += 1;
        open.shares.entry(sharer).or_default().insert(id);
        if let Some(pod) = &pod {
            pod.connections.fetch_add(1, Ordering::Relaxed);
        }
        let slot = Arc::new(Slot {
            pod,
            idle_since: Mutex::new(Some(now.mono)),
            told: Mutex::default(),
            listening: AtomicWaker::new(),
        });
        open.slots.insert(id, Arc::clone(&slot));
        Ok(Place { id, slot, connections: Arc::clone(self) })
    }

    /// Tells all that are open to finish.
    pub(super) fn finish(&self) {
        for slot in lock(&self.open).slots.values() {
            slot.tell(Told::Finish);
        }
    }
}

/// Under whose name a connection is in [`Open::shares`].
fn sharer(pod: Option<&Pod>) -> Option<Arc<str>> {
    pod.map(|pod| Arc::clone(pod.uid()))
}

impl Slot {
    fn tell(&self, told: Told) {
        *lock(&self.told) = Some(told);
        self.listening.wake();
    }
}

impl Open {
    fn longest_idle<'a>(&self, among: impl Iterator<Item = &'a u64>) -> Option<u64> {
        let idle = among.filter_map(|id| Some(((*lock(&self.slots.get(id)?.idle_since))?, *id)));
        idle.min().map(|(_, id)| id)
    }

    fn evict(&mut self, id: u64) {
        if let Some(slot) = self.remove(id) {
            slot.tell(Told::Leave);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Slot>> {
        let slot = self.slots.remove(&id)?;
        if let Some(pod) = &slot.pod {
            pod.connections.fetch_sub(1, Ordering::Relaxed);
        }
        let sharer = sharer(slot.pod.as_deref());
        if let Entry::Occupied(mut share) = self.shares.entry(sharer) {
            share.get_mut().remove(&id);
            if share.get().is_empty() {
                share.remove();
            }
        }
        Some(slot)
    }
}

impl Place {
    pub(super) fn busy(&self) {
        *lock(&self.slot.idle_since) = None;
    }

    pub(super) fn idle(&self, now: Now) {
        *lock(&self.slot.idle_since) = Some(now.mono);
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
        // One that was evicted has been removed already.
        lock(&self.connections.open).remove(self.id);
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
            pod("greedy").expect("a pod").connections.load(Ordering::Relaxed),
            0,
            "what was evicted is counted once"
        );
    }
}
