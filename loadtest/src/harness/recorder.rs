//! What is counted while pods ask, in memory that does not grow with them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::{Failure, Group, Latency, Second};

/// Microseconds; what takes longer is counted as this.
const LONGEST: u64 = 10 * 60 * 1_000_000;
/// Two digits are right to a hundredth, and a histogram has 30 kB.
const DIGITS: u8 = 2;
const MOST_CLASSES: usize = 100;
const MOST_CHARACTERS: usize = 200;
/// In seconds.
const LEAST_SECOND: f64 = 0.5;

type Times = Histogram<u32>;

/// One want that was settled.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) group: usize,
    /// From the beginning of the run.
    pub(super) at: Duration,
    /// From the intended time.
    pub(super) latency: Duration,
    pub(super) attempts: u32,
    pub(super) failure: Option<Failed>,
}

/// Why it failed, with nothing secret in it.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) class: String,
    pub(super) example: String,
    pub(super) wrong: bool,
}

impl Failed {
    /// A server that is not ours may say anything, at any length, and to the reader's terminal.
    pub(super) fn presentable(self) -> Failed {
        let shown = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
        let presentable = |text: &str| {
            let mut shown: String = text.chars().take(MOST_CHARACTERS).map(shown).collect();
            if text.chars().nth(MOST_CHARACTERS).is_some() {
                shown.push('…');
            }
            shown
        };
        Failed { class: presentable(&self.class), example: presentable(&self.example), wrong: self.wrong }
    }
}

#[derive(Debug)]
pub(super) struct Recorder(Mutex<Recorded>);

#[derive(Debug)]
struct Recorded {
    /// All pods, then the groups.
    groups: Vec<Counted>,
    failures: BTreeMap<(usize, String), (u64, String)>,
    second: Counted,
    timeline: Vec<Second>,
    started: HashSet<u32>,
    ended: u64,
    last: Duration,
    /// What the agent had used at the end of the second before, where that is known.
    agent_cpu_seconds: Option<f64>,
}

#[derive(Debug)]
struct Counted {
    name: String,
    pods: u64,
    requests: u64,
    attempts: u64,
    failed: u64,
    wrong: u64,
    times: Times,
}

/// What [`Recorder::second`] is told of besides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read {
    pub(super) eks_auth_calls: Option<u64>,
    /// Since it was started.
    pub(super) agent_cpu_seconds: Option<f64>,
    pub(super) agent_rss_bytes: Option<u64>,
}

impl Recorder {
    /// `groups`: their names, and how many pods each has.
    pub(super) fn new(pods: u64, groups: &[(String, u64)]) -> Recorder {
        let all = [("all pods".to_owned(), pods)];
        let counted = all.iter().chain(groups).map(|(name, pods)| Counted::new(name, *pods));
        Recorder(Mutex::new(Recorded {
            groups: counted.collect(),
            failures: BTreeMap::new(),
            second: Counted::new("", 0),
            timeline: Vec::new(),
            started: HashSet::new(),
            ended: 0,
            last: Duration::ZERO,
            agent_cpu_seconds: None,
        }))
    }

    /// It may have been here before.
    pub(super) fn pod_started(&self, pod: u32) {
        self.lock().started.insert(pod);
    }

    pub(super) fn pod_ended(&self) {
        self.lock().ended += 1;
    }

    pub(super) fn settled(&self, settled: &Settled) {
        let mut recorded = self.lock();
        recorded.last = recorded.last.max(settled.at);
        recorded.second.count(settled);
        for group in [0, settled.group + 1] {
            if let Some(group) = recorded.groups.get_mut(group) {
                group.count(settled);
            }
        }
        let Some(failed) = &settled.failure else { return };
        let key = (settled.group, failed.class.clone());
        if recorded.failures.len() < MOST_CLASSES || recorded.failures.contains_key(&key) {
            recorded.failures.entry(key).or_insert_with(|| (0, failed.example.clone())).0 += 1;
        }
    }

    /// What was before the first second.
    pub(super) fn begin(&self, read: Read) {
        self.lock().agent_cpu_seconds = read.agent_cpu_seconds;
    }

    /// Ends a second, which was counted until now.
    pub(super) fn second(&self, at: Duration, read: Read) -> Second {
        let mut recorded = self.lock();
        let second = recorded.end_second(at, read);
        recorded.timeline.push(second.clone());
        second
    }

    /// Ends the last second. What is left of it may be a few milliseconds, which would be drawn as the end of everything: it is
    /// added to the second before.
    pub(super) fn rest(&self, at: Duration, read: Read) {
        let mut recorded = self.lock();
        let rest = recorded.end_second(at, read);
        match recorded.timeline.last_mut() {
            Some(last) if rest.at_seconds - last.at_seconds < LEAST_SECOND => last.and(&rest),
            Some(_) | None => recorded.timeline.push(rest),
        }
    }

    /// Of all pods so far: requests and failures.
    pub(super) fn so_far(&self) -> (u64, u64) {
        let recorded = self.lock();
        recorded.groups.first().map_or((0, 0), |all| (all.requests, all.failed))
    }

    /// When the last want was settled.
    pub(super) fn last(&self) -> Duration {
        self.lock().last
    }

    pub(super) fn timeline(&self) -> Vec<Second> {
        self.lock().timeline.clone()
    }

    /// All pods first. A single group besides would say the same again.
    pub(super) fn groups(&self) -> Vec<Group> {
        let recorded = self.lock();
        let shown = if recorded.groups.len() == 2 { 1 } else { recorded.groups.len() };
        recorded.groups[..shown].iter().map(Counted::group).collect()
    }

    pub(super) fn failures(&self) -> Vec<Failure> {
        let recorded = self.lock();
        let name = |group: usize| recorded.groups.get(group + 1).map_or("", |group| &group.name).to_owned();
        let failure = |((group, class), (count, example)): (&(usize, String), &(u64, String))| Failure {
            class: class.clone(),
            group: name(*group),
            count: *count,
            example: example.clone(),
        };
        let mut failures: Vec<Failure> = recorded.failures.iter().map(failure).collect();
        failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
        failures
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorded {
    fn end_second(&mut self, at: Duration, read: Read) -> Second {
        let started = self.started.len() as u64;
        let before = std::mem::replace(&mut self.agent_cpu_seconds, read.agent_cpu_seconds);
        let second = Second {
            at_seconds: at.as_secs_f64(),
            pods: started - self.ended,
            requests: self.second.requests,
            failed: self.second.failed,
            p50_ms: self.second.quantile(0.5),
            p99_ms: self.second.quantile(0.99),
            eks_auth_calls: read.eks_auth_calls,
            one_call_a_pod: started,
            // Nobody knows any more what an agent used that died.
            agent_cpu: read.agent_cpu_seconds.zip(before).map(|(now, before)| (now - before).max(0.0)),
            agent_rss_bytes: read.agent_rss_bytes,
        };
        self.second.reset();
        second
    }
}

impl Second {
    /// Percentiles stay those of the greater part.
    fn and(&mut self, rest: &Second) {
        *self = Second {
            requests: self.requests + rest.requests,
            failed: self.failed + rest.failed,
            p50_ms: self.p50_ms.or(rest.p50_ms),
            p99_ms: self.p99_ms.or(rest.p99_ms),
            agent_cpu: self.agent_cpu.zip(rest.agent_cpu).map(|(one, other)| one + other),
            ..rest.clone()
        };
    }
}

impl Counted {
    fn new(name: &str, pods: u64) -> Counted {
        // The bounds are constants that hdrhistogram takes.
        #[expect(clippy::expect_used, reason = "the bounds are constants, and a test makes one")]
        let times = Times::new_with_bounds(1, LONGEST, DIGITS).expect("bounds that are in order");
        Counted { name: name.to_owned(), pods, requests: 0, attempts: 0, failed: 0, wrong: 0, times }
    }

    fn count(&mut self, settled: &Settled) {
        self.requests += 1;
        self.attempts += u64::from(settled.attempts);
        match &settled.failure {
            None => {
                let micros = u64::try_from(settled.latency.as_micros()).unwrap_or(u64::MAX);
                self.times.saturating_record(micros);
            }
            Some(failed) => {
                self.failed += 1;
                self.wrong += u64::from(failed.wrong);
            }
        }
    }

    fn reset(&mut self) {
        (self.requests, self.attempts, self.failed, self.wrong) = (0, 0, 0, 0);
        self.times.reset();
    }

    fn quantile(&self, quantile: f64) -> Option<f64> {
        (!self.times.is_empty()).then(|| millis(self.times.value_at_quantile(quantile)))
    }

    fn group(&self) -> Group {
        Group {
            name: self.name.clone(),
            pods: self.pods,
            requests: self.requests,
            attempts: self.attempts,
            failed: self.failed,
            wrong: self.wrong,
            latency: latency(&self.times),
        }
    }
}

fn latency(times: &Times) -> Latency {
    if times.is_empty() {
        return Latency::default();
    }
    let at = |quantile| millis(times.value_at_quantile(quantile));
    let mut up_to = 0;
    let distribution = times.iter_recorded().map(|step| {
        up_to += step.count_since_last_iteration();
        (millis(step.value_iterated_to()), up_to)
    });
    Latency {
        distribution: distribution.collect(),
        count: times.len(),
        mean_ms: times.mean() / 1000.0,
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: millis(times.max()),
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(group: usize, millis: u64, failure: Option<&str>) -> Settled {
        let failed = |class: &str| Failed {
            class: class.to_owned(),
            example: format!("an example of {class}"),
            wrong: class.starts_with("wrong"),
        };
        Settled {
            group,
            at: Duration::ZERO,
            latency: Duration::from_millis(millis),
            attempts: 2,
            failure: failure.map(failed),
        }
    }

    #[test]
    fn groups_are_counted_apart_and_together() {
        let recorder = Recorder::new(3, &[("a".to_owned(), 2), ("b".to_owned(), 1)]);
        recorder.settled(&settled(0, 10, None));
        recorder.settled(&settled(0, 20, None));
        recorder.settled(&settled(1, 0, Some("wrong: role")));
        recorder.settled(&settled(1, 0, Some("refused")));
        recorder.settled(&settled(1, 0, Some("refused")));
        let counts: Vec<_> = recorder
            .groups()
            .iter()
            .map(|group| {
                (group.name.clone(), group.pods, group.requests, group.attempts, group.failed, group.wrong)
            })
            .collect();
        assert_eq!(
            counts,
            [
                ("all pods".to_owned(), 3, 5, 10, 3, 1),
                ("a".to_owned(), 2, 2, 4, 0, 0),
                ("b".to_owned(), 1, 3, 6, 3, 1)
            ]
        );
        let failures: Vec<_> = recorder.failures().into_iter().map(|f| (f.class, f.group, f.count)).collect();
        assert_eq!(
            failures,
            [("refused".to_owned(), "b".to_owned(), 2), ("wrong: role".to_owned(), "b".to_owned(), 1)]
        );
        let all = &recorder.groups()[0].latency;
        assert_eq!((all.count, all.distribution.last().map(|last| last.1)), (2, Some(2)));
        assert!((9.9..=10.2).contains(&all.p50_ms) && (19.8..=20.3).contains(&all.max_ms), "{all:?}");
    }

    #[test]
    fn what_a_server_said_is_cut_between_characters_and_commands_no_terminal() {
        let class = "refused\n\u{1b}[31m".to_owned();
        let failed = Failed { class, example: "ü".repeat(201), wrong: false }.presentable();
        assert_eq!(
            (failed.class.as_str(), failed.example),
            ("refused\u{fffd}\u{fffd}[31m", format!("{}…", "ü".repeat(200)))
        );
    }

    #[test]
    fn each_second_begins_anew() {
        let recorder = Recorder::new(1, &[("a".to_owned(), 1)]);
        recorder.pod_started(0);
        recorder.pod_started(0);
        recorder.settled(&settled(0, 5, None));
        let first = recorder.second(Duration::from_secs(1), Read::default());
        assert_eq!((first.requests, first.failed, first.pods, first.one_call_a_pod), (1, 0, 1, 1));
        assert!(first.p99_ms.is_some());
        recorder.pod_ended();
        let second = recorder.second(Duration::from_secs(2), Read::default());
        assert_eq!((second.requests, second.pods, second.p99_ms, second.one_call_a_pod), (0, 0, None, 1));
        assert_eq!((recorder.timeline().len(), recorder.so_far()), (2, (1, 0)));
        assert_eq!(recorder.groups().len(), 1, "one group alone says the same as all pods");
    }

    #[test]
    fn a_short_rest_is_part_of_the_second_before_it() {
        let recorder = Recorder::new(1, &[("a".to_owned(), 1)]);
        let cpu = |seconds| Read { agent_cpu_seconds: Some(seconds), ..Read::default() };
        recorder.begin(cpu(2.0));
        recorder.settled(&settled(0, 5, None));
        recorder.second(Duration::from_secs(1), cpu(2.5));
        recorder.settled(&settled(0, 5, Some("late")));
        recorder.rest(Duration::from_millis(1_400), cpu(2.75));
        let timeline = recorder.timeline();
        let [second] = &timeline[..] else { panic!("{timeline:?}") };
        assert_eq!((second.at_seconds, second.requests, second.failed), (1.4, 2, 1));
        assert_eq!(second.agent_cpu, Some(0.75));
        recorder.rest(Duration::from_secs(2), cpu(2.75));
        assert_eq!(recorder.timeline().len(), 2, "what is long enough stands by itself");
    }
}
