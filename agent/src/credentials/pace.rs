//! How fast this agent may call EKS Auth: one account's limit is shared by every node of the cluster.
//!
//! A role key's first call never waits here. Retries of calls that failed, and renewals of credentials that still
//! serve, share one pace that slows down when EKS Auth throttles and comes back as calls succeed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Now;
use crate::locks::lock;

const FASTEST_RETRIES: Duration = Duration::from_millis(10);
const SLOWEST_RETRIES: Duration = Duration::from_secs(2);
/// Nobody sleeps through the end of a throttling for longer.
const LONGEST_SPREAD: Duration = Duration::from_secs(5);
/// A burst of throttled calls says one thing, not a hundred: the pace slows once in this time.
const ONE_SLOWDOWN_IN: Duration = Duration::from_millis(500);
const SLOWEST_REVALIDATION: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
pub(super) struct Pace {
    renewal_gap: Duration,
    revalidate_floor: Duration,
    /// Flights that wait for a turn to retry.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    retry_gap: Duration,
    next_retry: Instant,
    next_renewal: Instant,
    revalidate_after: Duration,
    slowed_down: Option<Instant>,
}

impl Pace {
    pub(super) fn new(renewals_per_second: u32, revalidate_after: Duration, now: Now) -> Self {
        let state = State {
            retry_gap: FASTEST_RETRIES,
            next_retry: now.mono,
            next_renewal: now.mono,
            revalidate_after,
            slowed_down: None,
        };
        Pace {
            renewal_gap: Duration::from_secs(1) / renewals_per_second.max(1),
            revalidate_floor: revalidate_after,
            waiting: AtomicUsize::new(0),
            state: Mutex::new(state),
        }
    }

    /// Takes the turn for one retry, or says when to ask for it again.
    ///
    /// Turns are not given out ahead: a queue made while EKS Auth throttled would still stand when it no longer does.
    pub(super) fn take_retry(&self, jitter: f64, now: Now) -> Result<(), Instant> {
        let mut state = self.lock();
        if now.mono < state.next_retry {
            // Spread over the time that all who wait need, or thousands would wake for each turn.
            let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
            let spread = state.retry_gap.saturating_mul(waiting).min(LONGEST_SPREAD);
            return Err(state.next_retry + spread.mul_f64(jitter));
        }
        state.next_retry = now.mono + state.retry_gap;
        Ok(())
    }

    /// Counts one more flight that waits for its turn, until this is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Whether one more renewal may start now; if so, its place is taken.
    pub(super) fn may_renew(&self, now: Now) -> bool {
        let mut state = self.lock();
        if now.mono < state.next_renewal {
            return false;
        }
        let gap = self.renewal_gap.max(state.retry_gap);
        // A second's worth may be made up for: renewals are started by a timer of one second.
        let earliest = now.mono.checked_sub(Duration::from_secs(1)).unwrap_or(now.mono);
        state.next_renewal = state.next_renewal.max(earliest) + gap;
        true
    }

    /// How old credentials may be before a pod not seen before has them checked.
    pub(super) fn revalidate_after(&self) -> Duration {
        self.lock().revalidate_after
    }

    pub(super) fn throttled(&self, now: Now) {
        let mut state = self.lock();
        if state.may_slow_down(now) {
            state.retry_gap = (state.retry_gap * 2).min(SLOWEST_RETRIES);
            state.lengthen_revalidation();
        }
    }

    /// EKS Auth gave no answer: that is no reason to retry others' calls more slowly, but none to revalidate either.
    pub(super) fn failed(&self, now: Now) {
        let mut state = self.lock();
        if state.may_slow_down(now) {
            state.lengthen_revalidation();
        }
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        state.retry_gap = state.retry_gap.mul_f64(0.7).max(FASTEST_RETRIES);
        state.revalidate_after = state.revalidate_after.mul_f64(0.9).max(self.revalidate_floor);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn may_slow_down(&mut self, now: Now) -> bool {
        let recently =
            self.slowed_down.is_some_and(|at| now.mono.saturating_duration_since(at) < ONE_SLOWDOWN_IN);
        if !recently {
            self.slowed_down = Some(now.mono);
        }
        !recently
    }

    fn lengthen_revalidation(&mut self) {
        // From 0 ("always") doubling would lead nowhere.
        let doubled = (self.revalidate_after * 2).max(Duration::from_secs(1));
        self.revalidate_after = doubled.min(SLOWEST_REVALIDATION.max(self.revalidate_after));
    }
}
