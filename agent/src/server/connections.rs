//! The open connections, and which of them makes room for a new one.
//!
//! Whoever opens connections and leaves them lying pays with the oldest of their own: a pod that asks and goes is never
//! the longest idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Now;

#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    slots: HashMap<u64, Arc<Slot>>,
}

#[derive(Debug)]
struct Slot {
    /// None while a request is being answered.
    idle_since: Mutex<Option<Instant>>,
    close: Notify,
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    slot: Arc<Slot>,
    connections: Arc<Connections>,
}

impl Connections {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Connections { max, open: Mutex::default() })
    }

    /// A place for a new connection. At the cap the one that has been idle longest is told to close; with all of
    /// them waiting for an answer there is none.
    pub(super) fn admit(self: &Arc<Self>, now: Now) -> Option<Place> {
        let mut open = lock(&self.open);
        if open.slots.len() >= self.max {
            let idle = open.slots.iter().filter_map(|(id, slot)| Some(((*lock(&slot.idle_since))?, *id)));
            let (_, longest) = idle.min()?;
            if let Some(slot) = open.slots.remove(&longest) {
                slot.close.notify_one();
            }
        }
        let id = open.next_id;
        open.next_id += 1;
        let slot = Arc::new(Slot { idle_since: Mutex::new(Some(now.mono)), close: Notify::new() });
        open.slots.insert(id, Arc::clone(&slot));
        Some(Place { id, slot, connections: Arc::clone(self) })
    }
}

impl Place {
    pub(super) fn busy(&self) {
        *lock(&self.slot.idle_since) = None;
    }

    pub(super) fn idle(&self, now: Now) {
        *lock(&self.slot.idle_since) = Some(now.mono);
    }

    /// Resolves when this connection must make room.
    pub(super) async fn evicted(&self) {
        self.slot.close.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.open).slots.remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::clock::Clock;

    fn later(now: Now, seconds: u64) -> Now {
        Now { mono: now.mono + Duration::from_secs(seconds), ..now }
    }

    #[tokio::test]
    async fn at_the_cap_the_longest_idle_makes_room_and_the_busy_stay() {
        let start = Clock::default().now();
        let connections = Connections::new(3);
        let busy = connections.admit(start).expect("room");
        busy.busy();
        let idle = connections.admit(later(start, 1)).expect("room");
        let recent = connections.admit(later(start, 0)).expect("room");
        recent.idle(later(start, 2));

        let new = connections.admit(later(start, 3)).expect("the longest idle makes room");
        assert!(idle.evicted().now_or_never().is_some());
        assert!(busy.evicted().now_or_never().is_none() && recent.evicted().now_or_never().is_none());
        // The evicted one gives back nothing that was not its own.
        drop(idle);
        new.busy();
        recent.busy();
        assert!(connections.admit(later(start, 4)).is_none(), "all three wait for an answer");
        drop(busy);
        assert!(connections.admit(later(start, 4)).is_some());
    }
}
