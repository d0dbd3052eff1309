//! The narrow gate for tokens that nobody here could verify.
//!
//! While no key set can be had, EKS Auth checks each token itself. Anybody can make up tokens, and what they cost must
//! not become the account's throttling: one call at a time for each pod that is claimed, two a second for the node.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Now;

const GAP: Duration = Duration::from_millis(500);
/// Nobody queues longer than a request waits: then it is the next one's luck, not the place in a queue of forgeries.
const LONGEST_QUEUE: Duration = Duration::from_millis(1_500);

#[derive(Debug)]
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashSet<Arc<str>>,
    next: Option<Instant>,
}

/// Held while the call is under way.
#[derive(Debug)]
pub(super) struct Turn {
    pod_uid: Arc<str>,
    state: Arc<Mutex<State>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Gate { state: Arc::default() }
    }

    /// A turn and when it comes, or nothing while this pod has one or too many wait.
    pub(super) fn turn(&self, pod_uid: &Arc<str>, now: Now) -> Option<(Turn, Instant)> {
        let mut state = lock(&self.state);
        let slot = state.next.map_or(now.mono, |next| next.max(now.mono));
        if slot > now.mono + LONGEST_QUEUE || !state.pods.insert(Arc::clone(pod_uid)) {
            return None;
        }
        state.next = Some(slot + GAP);
        Some((Turn { pod_uid: Arc::clone(pod_uid), state: Arc::clone(&self.state) }, slot))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.state).pods.remove(&self.pod_uid);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
