//! What must come of a run besides its figures, and what did.

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::Finding;
use super::world::World;
use crate::report::{Expected, Second};

pub(super) fn find(world: &World) -> Vec<Expected> {
    world.plan.findings.iter().map(|finding| found(world, *finding)).collect()
}

fn found(world: &World, finding: Finding) -> Expected {
    match finding {
        Finding::NoCallsAfter(at) => no_calls_after(&world.recorder.timeline(), at),
        Finding::CallsSpread { after, times } => calls_spread(&world.recorder.timeline(), after, times),
        Finding::ThievesNamed => {
            let named = world.stage.agent().map(|agent| agent.named_thieves()).unwrap_or_default();
            thieves_named(&pairs(world), &named)
        }
    }
}

fn no_calls_after(timeline: &[Second], at: Duration) -> Expected {
    let calls = |second: &Second| second.eks_auth_calls.unwrap_or_default();
    let before = timeline.iter().find(|second| second.at_seconds >= at.as_secs_f64()).map(calls);
    let later = timeline.last().map(calls).zip(before).map(|(last, before)| last - before);
    Expected {
        condition: format!("no EKS Auth call after {} s", at.as_secs()),
        was: later.map_or_else(|| "the run ended before".to_owned(), |later| format!("{later} calls")),
        held: later == Some(0),
    }
}

fn calls_spread(timeline: &[Second], after: Duration, times: u32) -> Expected {
    let from = timeline.partition_point(|second| second.at_seconds < after.as_secs_f64());
    let calls: Vec<(f64, f64)> = timeline[from..]
        .iter()
        .filter_map(|second| Some((second.at_seconds, second.eks_auth_calls? as f64)))
        .collect();
    // A second may have been longer than one.
    let rate = |from: &(f64, f64), to: &(f64, f64)| (to.1 - from.1) / (to.0 - from.0);
    let mean = calls.first().zip(calls.last()).map_or(0.0, |(first, last)| rate(first, last));
    let busiest = calls.windows(2).map(|two| rate(&two[0], &two[1])).fold(0.0, f64::max);
    Expected {
        condition: format!(
            "after {} s no second has more than {times} times the mean of EKS Auth calls",
            after.as_secs()
        ),
        was: format!("{busiest:.0} in the busiest second, {mean:.1} in the mean"),
        held: busiest > 0.0 && busiest <= f64::from(times) * mean,
    }
}

/// The UIDs of each thief and its victim.
fn pairs(world: &World) -> BTreeSet<(String, String)> {
    let uid = |pod: u32| world.stage.tenant(pod).map(|tenant| tenant.uid.to_string());
    world.plan.visits.iter().filter_map(|visit| Some((uid(visit.pod)?, uid(visit.thief_of?)?))).collect()
}

fn thieves_named(stole: &BTreeSet<(String, String)>, named: &BTreeSet<(String, String)>) -> Expected {
    let innocent = named.difference(stole).count();
    let unnamed = stole.difference(named).count();
    Expected {
        condition: "the agent's log names each thief and its victim, and nobody else".to_owned(),
        was: format!("{} named, {unnamed} not, {innocent} innocent", stole.len() - unnamed),
        held: innocent == 0 && unnamed == 0 && !stole.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(calls: &[u64]) -> Vec<Second> {
        let second = |(at, calls): (u32, &u64)| Second {
            at_seconds: f64::from(at),
            eks_auth_calls: Some(*calls),
            ..Second::default()
        };
        (1..).zip(calls).map(second).collect()
    }

    #[test]
    fn calls_after_the_moment_are_found_and_those_before_are_not() {
        let seconds = timeline(&[3, 5, 5, 5]);
        assert!(no_calls_after(&seconds, Duration::from_secs(2)).held);
        assert!(!no_calls_after(&seconds, Duration::from_secs(1)).held);
        assert!(!no_calls_after(&seconds, Duration::from_secs(9)).held, "nothing was seen of that time");
    }

    #[test]
    fn the_busiest_second_is_held_against_the_mean_of_what_comes_after_the_moment() {
        let spread =
            |calls: &[u64], times| calls_spread(&timeline(calls), Duration::from_secs(2), times).held;
        assert!(spread(&[0, 100, 102, 103, 106], 2), "3 of 2, and the first second's 100 are no matter");
        assert!(!spread(&[0, 100, 100, 106, 106], 2), "6 of 2");
        assert!(!spread(&[0, 100, 100, 100], 2) && !spread(&[0], 2), "nothing was seen");
    }

    #[test]
    fn thieves_are_all_to_be_named_and_nobody_else() {
        let pairs = |pairs: &[(&str, &str)]| -> BTreeSet<(String, String)> {
            pairs.iter().map(|&(thief, victim)| (thief.to_owned(), victim.to_owned())).collect()
        };
        let stole = pairs(&[("a", "b"), ("c", "d")]);
        assert!(thieves_named(&stole, &stole).held);
        assert!(!thieves_named(&stole, &pairs(&[("a", "b")])).held);
        assert!(!thieves_named(&stole, &pairs(&[("a", "b"), ("c", "d"), ("e", "f")])).held);
        assert!(!thieves_named(&pairs(&[]), &pairs(&[])).held);
    }
}
