//! What all pods of a run share.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::check::Judge;
use super::plan::Plan;
use super::recorder::{Recorder, Settled};
use super::stage::{GRACE, Stage};
use crate::clock;
use crate::report::Mark;

/// From the moment at which all pods are there until the first of them wants something.
const BREATH: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) stage: Stage,
    pub(super) judge: Judge,
    pub(super) recorder: Recorder,
    /// A signal came.
    stop: CancellationToken,
    /// Set when nobody may go on: the run's last moment, or a signal.
    pub(super) over: CancellationToken,
    arrived: AtomicUsize,
    left: AtomicUsize,
    /// For goose, which is told at its leisure.
    settled: Mutex<Vec<Settled>>,
    began: SetOnce<Instant>,
    marks: Mutex<Vec<Mark>>,
}

impl World {
    pub(super) fn new(plan: Plan, stage: Stage, stop: CancellationToken) -> World {
        let judge = Judge::new(stage.eks().cloned(), plan.least_life);
        let mut groups: Vec<(String, u64)> = plan.groups.iter().map(|name| (name.clone(), 0)).collect();
        let mut counted = std::collections::HashSet::new();
        for visit in &plan.visits {
            for &group in plan.groups_of(visit) {
                if counted.insert((group, visit.pod)) {
                    groups[group].1 += 1;
                }
            }
        }
        let recorder = Recorder::new(u64::from(plan.pods()), &groups);
        World {
            plan,
            stage,
            judge,
            recorder,
            over: stop.child_token(),
            stop,
            arrived: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            settled: Mutex::default(),
            began: SetOnce::new(),
            marks: Mutex::default(),
        }
    }

    /// A goose user is there. The run begins with the last of them, so that starting them takes nothing from its time.
    pub(super) fn arrive(&self) -> Presence<'_> {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.plan.visits.len() {
            // There is one who is the last.
            let _first = self.began.set(clock::mono() + BREATH);
        }
        Presence(self)
    }

    pub(super) fn all_have_left(&self) -> bool {
        self.left.load(Ordering::Acquire) == self.plan.visits.len()
    }

    pub(super) fn settled(&self, settled: Settled) {
        self.recorder.settled(&settled);
        lock(&self.settled).push(settled);
    }

    /// What was settled since this was asked before.
    pub(super) fn newly_settled(&self) -> Vec<Settled> {
        std::mem::take(&mut *lock(&self.settled))
    }

    /// None where it is over before it began.
    pub(super) fn beginning(&self) -> UnlessOver<'_, impl Future<Output = &Instant>> {
        self.unless_over(self.began.wait())
    }

    /// What `wanted` gives, or None where the run is over before.
    pub(super) fn unless_over<F: Future>(&self, wanted: F) -> UnlessOver<'_, F> {
        UnlessOver { wanted, over: self.over.cancelled() }
    }

    /// As [`World::beginning`], without waiting for it, and also when it is over.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began.get().copied()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// What happens after the last pod has ended is of interest as well.
    pub(super) async fn until_planned_end(&self) {
        if let Some(beginning) = self.beginning().await {
            self.unless_over(sleep_until(*beginning + self.plan.duration)).await;
        }
    }

    /// The longest that pods may take to settle what they wanted.
    pub(super) fn last_moment(&self) -> Duration {
        self.plan.duration + GRACE
    }

    pub(super) fn mark(&self, at: Duration, what: String) {
        lock(&self.marks).push(Mark { at_seconds: at.as_secs_f64(), what });
    }

    pub(super) fn marks(&self) -> Vec<Mark> {
        lock(&self.marks).clone()
    }
}

pin_project! {
    /// [`CancellationToken::run_until_cancelled`] in half the room: ten thousand pods wait in one.
    #[derive(Debug)]
    pub(super) struct UnlessOver<'a, F> {
        #[pin]
        wanted: F,
        #[pin]
        over: WaitForCancellationFuture<'a>,
    }
}

impl<F: Future> Future for UnlessOver<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let this = self.project();
        if this.over.poll(context).is_ready() {
            return Poll::Ready(None);
        }
        this.wanted.poll(context).map(Some)
    }
}

/// A goose user, until it is done or given up.
pub(super) struct Presence<'a>(&'a World);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
