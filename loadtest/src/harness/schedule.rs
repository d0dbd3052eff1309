//! When pods want something. Time and chance are parameters.

use std::time::{Duration, SystemTime};

use super::manners::Manners;
use super::plan::Pace;

/// The moments, from the beginning of the run, at which one visit wants credentials.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    next: Option<Duration>,
    end: Duration,
}

/// What came of the last want.
#[derive(Clone, Copy, Debug)]
pub(super) struct Had {
    /// When it was settled, from the beginning of the run.
    pub(super) at: Duration,
    /// What is left of the credentials' life; nothing where there are none.
    pub(super) life: Option<Duration>,
}

/// What an SDK needs to know to refresh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refreshing<'a> {
    pub(super) manners: &'a Manners,
    pub(super) compression: f64,
    pub(super) chance: f64,
}

/// An application that got no credentials asks for them at its next request to AWS.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// Who asks again at once would ask a closed port a hundred thousand times a second.
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);

impl Schedule {
    pub(super) fn new(pace: Pace, start: Duration, end: Duration) -> Schedule {
        Schedule { pace, next: Some(start).filter(|&start| start < end), end }
    }

    /// When the next want is, if there is one.
    pub(super) fn next(&self) -> Option<Duration> {
        self.next
    }

    /// The wants of a constant rate that were due by now and were never come to.
    pub(super) fn overdue(self, now: Duration) -> impl Iterator<Item = Duration> {
        let period = match self.pace {
            Pace::Every(period) => Some(period),
            Pace::Once | Pace::AtOnce | Pace::Refresh => None,
        };
        let wants =
            std::iter::successors(self.next.filter(|_| period.is_some()), move |last| Some(*last + period?));
        wants.take_while(move |&wanted| wanted < self.end && wanted <= now)
    }

    /// The want of [`Schedule::next`] is settled.
    pub(super) fn had(&mut self, had: Had, refreshing: Refreshing<'_>) {
        let Some(last) = self.next else { return };
        let next = match self.pace {
            Pace::Once => None,
            // Not from when the answer came: a slow agent must not be asked less for it.
            Pace::Every(period) => Some(last + period),
            Pace::AtOnce => Some(had.at + had.life.map_or(AFTER_A_FAILURE, |_| Duration::ZERO)),
            Pace::Refresh => Some(had.at + refreshing.wait(had.life)),
        };
        self.next = next.filter(|&next| next < self.end);
    }
}

impl Refreshing<'_> {
    fn wait(&self, life: Option<Duration>) -> Duration {
        let Some(life) = life else { return NEXT_TRY };
        let wait = self.manners.refreshes_after(life, self.compression, self.chance);
        // What is below the threshold already is asked for anew at every request of the application.
        wait.max(NEXT_TRY)
    }
}

/// `count` moments within a time, evenly and without order: each in a slot of its own, at a random place in it.
pub(super) fn spread(count: u32, within: Duration, chance: &mut fastrand::Rng) -> Vec<Duration> {
    let slot = within.div_f64(f64::from(count.max(1)));
    let mut moments: Vec<Duration> = (0..count).map(|n| slot.mul_f64(f64::from(n) + chance.f64())).collect();
    chance.shuffle(&mut moments);
    moments
}

/// What is left of credentials at a moment.
pub(super) fn life_left(expires: SystemTime, now: SystemTime) -> Duration {
    expires.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::manners::Client;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wants(pace: Pace, settled_after: Duration, life: Option<Duration>) -> Vec<u64> {
        let mut schedule = Schedule::new(pace, s(10), s(100));
        let refreshing = Refreshing { manners: Client::Boto3.manners(), compression: 360.0, chance: 0.5 };
        let mut wants = Vec::new();
        while let Some(next) = schedule.next() {
            wants.push(next.as_secs());
            schedule.had(Had { at: next + settled_after, life }, refreshing);
        }
        wants
    }

    #[test]
    fn a_constant_rate_does_not_slow_down_for_slow_answers() {
        let quick = wants(Pace::Every(s(30)), s(0), None);
        assert_eq!(quick, [10, 40, 70]);
        assert_eq!(wants(Pace::Every(s(30)), s(50), None), quick);
    }

    #[test]
    fn the_other_paces_go_by_the_answers() {
        assert_eq!(wants(Pace::Once, s(0), None), [10]);
        assert_eq!(wants(Pace::AtOnce, s(30), Some(s(60))), [10, 40, 70]);
        assert_eq!(wants(Pace::AtOnce, s(0), None).len(), 900, "ten times a second after a failure");
        // 60 s of life less 15 min compressed to 2.5 s.
        assert_eq!(wants(Pace::Refresh, s(0), Some(s(60))), [10, 67]);
        assert_eq!(wants(Pace::Refresh, s(20), None), [10, 31, 52, 73, 94]);
    }

    #[test]
    fn what_a_constant_rate_never_came_to_is_known_and_ends_with_the_pod_or_now() {
        let overdue = |pace, now| Schedule::new(pace, s(10), s(100)).overdue(s(now)).collect::<Vec<_>>();
        assert!(overdue(Pace::Every(s(30)), 9).is_empty());
        assert_eq!(overdue(Pace::Every(s(30)), 40), [s(10), s(40)]);
        assert_eq!(overdue(Pace::Every(s(30)), 1_000), [s(10), s(40), s(70)]);
        assert!(overdue(Pace::AtOnce, 1_000).is_empty(), "it wants nothing before it was answered");
    }

    #[test]
    fn nothing_is_wanted_of_a_pod_that_ends_before_it_starts() {
        assert_eq!(Schedule::new(Pace::Once, s(5), s(5)).next(), None);
    }

    #[test]
    fn spread_moments_fill_their_time_evenly() {
        let mut moments = spread(100, s(100), &mut fastrand::Rng::with_seed(7));
        assert!(!moments.is_sorted());
        moments.sort_unstable();
        for (n, moment) in (0..).zip(moments) {
            assert!((s(n)..s(n + 1)).contains(&moment), "{n}: {moment:?}");
        }
    }
}
