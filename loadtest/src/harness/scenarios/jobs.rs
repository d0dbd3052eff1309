//! A job controller: bursts of pods of one service account, each of them soon over. Then silence.

use super::{Ask, Parts, s};
use crate::harness::plan::{Finding, Pace, Plan, Size, Step};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "Bursts of short-lived pods of one service account: do calls of EKS Auth grow with the pods, or go on for the dead?",
    needs_cgroups: Some("the agent knows by its cgroup that a pod is gone"),
    least: |short| if short { s(10) } else { s(60) },
    size,
    plan,
};

fn size(short: bool) -> Size {
    let (pods, duration, within) = if short { (300, 15, 1) } else { (6_000, 240, 6) };
    Size { pods, roles: 1, within: s(within), duration: s(duration), every: s(6 * within) }
}

/// The agent looks for pods that have ended every ten seconds.
const SWEEP: u64 = 10;

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["jobs"]);
    // The rest of the run sees nobody alive, for longer than the time after which credentials are renewed: half of their life.
    let (busy, life, silence) = if ask.short {
        // In so short a time a pod's end is known only by EKS Auth's refusal of its token, at the next renewal.
        (size.duration / 3, size.duration * 2 / 5, size.duration / 5 + s(2))
    } else {
        (size.duration * 2 / 3, size.duration / 2, s(SWEEP + 1))
    };
    plan.compress(s(life.as_secs()));
    let longest = (2 * size.within).min(busy / 2);
    let last_burst = busy - longest;
    let bursts = (last_burst.as_millis() / size.within.as_millis().max(1)).clamp(1, u128::from(size.pods));
    let bursts = u32::try_from(bursts).unwrap_or(1);
    for (pod, moment) in (0..).zip(spread(size.pods, size.within.min(longest) / 4, &mut ask.chance)) {
        let start = last_burst.mul_f64(f64::from(pod % bursts) / f64::from(bursts)) + moment;
        let end = start + longest.mul_f64(0.25 + 0.5 * ask.chance.f64());
        plan.visits.push(ask.visit(pod, start, end, Pace::Once).that_dies());
    }
    plan.steps.push((busy, Step::Say("the last pod is gone")));
    plan.expect(&["failed=0", "wrong=0"]);
    // The first, two renewals as credentials age, and as many that EKS Auth refuses because their pod has just died: nothing
    // that grows with the pods.
    plan.expect(&["eks_auth_calls<=8*roles"]);
    plan.findings.push(Finding::NoCallsAfter(busy + silence));
    plan
}
