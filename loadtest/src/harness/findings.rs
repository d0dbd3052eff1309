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
        Finding::CallsInASecond(most) => calls_in_a_second(&world.recorder.timeline(), most),
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

fn calls_in_a_second(timeline: &[Second], most: u64) -> Expected {
    let calls: Vec<u64> = timeline.iter().filter_map(|second| second.eks_auth_calls).collect();
    // The first second has the first calls of all roles, which nothing can spread.
    let busiest = calls.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
    Expected {
        condition: format!("at most {most} EKS Auth calls in any second but the first"),
        was: busiest.to_string(),
        held: busiest <= most,
    }
}

/// The UIDs of each thief and its victim.
fn pairs(world: &World) -> BTreeSet<(String, String)> {
    let uid = |pod: u32| world.stage.tenant(pod).map(|tenant| tenant.uid.clone());
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
    fn the_busiest_second_counts() {
        let seconds = timeline(&[100, 101, 105, 106]);
        assert!(calls_in_a_second(&seconds, 4).held);
        assert!(!calls_in_a_second(&seconds, 3).held);
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
