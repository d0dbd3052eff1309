//! What all pods of a run share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::check::Judge;
use super::plan::Plan;
use super::recorder::Recorder;
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
    /// Set when nobody may go on: the run's last moment, or somebody's Ctrl-C.
    pub(super) over: CancellationToken,
    arrived: AtomicUsize,
    began: watch::Sender<Option<Instant>>,
    marks: Mutex<Vec<Mark>>,
}

impl World {
    pub(super) fn new(plan: Plan, stage: Stage) -> World {
        let judge = Judge::new(stage.eks().cloned(), plan.least_life);
        let mut groups: Vec<(String, u64)> = plan.groups.iter().map(|name| (name.clone(), 0)).collect();
        let mut counted = std::collections::HashSet::new();
        for visit in &plan.visits {
            let other = visit.by_turns.map(|(_, group)| group);
            for group in [Some(visit.group), other].into_iter().flatten() {
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
            over: CancellationToken::new(),
            arrived: AtomicUsize::new(0),
            began: watch::Sender::new(None),
            marks: Mutex::default(),
        }
    }

    /// A goose user is there. The run begins with the last of them, so that starting them takes nothing from its time.
    pub(super) fn arrive(&self) {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.plan.visits.len() {
            self.began.send_replace(Some(clock::mono() + BREATH));
        }
    }

    /// None where it is over before it began.
    pub(super) async fn beginning(&self) -> Option<Instant> {
        let mut began = self.began.subscribe();
        let began = self.over.run_until_cancelled(began.wait_for(Option::is_some)).await?;
        began.ok().and_then(|began| *began)
    }

    /// What happens after the last pod has ended is of interest as well.
    pub(super) async fn until_planned_end(&self) {
        if let Some(beginning) = self.beginning().await {
            self.over.run_until_cancelled(sleep_until(beginning + self.plan.duration)).await;
        }
    }

    /// The longest that pods may take to settle what they wanted.
    pub(super) fn last_moment(&self) -> Duration {
        self.plan.duration + GRACE
    }

    pub(super) fn mark(&self, at: Duration, what: String) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push(Mark { at_seconds: at.as_secs_f64(), what });
    }

    pub(super) fn marks(&self) -> Vec<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
