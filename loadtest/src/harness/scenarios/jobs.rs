//! A job controller: bursts of pods of one service account, each of them soon over. Then silence.

use super::{Ask, Parts, s};
use crate::harness::plan::{Finding, Pace, Plan, Size, Step, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "Bursts of short-lived pods of one service account: do calls of EKS Auth grow with the pods, or go on for the dead?",
    size,
    plan,
};

/// Renewals begin at 0.4 of a life, so the silence at the end is longer than that.
fn size(short: bool) -> Size {
    let (pods, duration, within) = if short { (300, 14, 1) } else { (6_000, 240, 6) };
    Size { pods, roles: 1, within: s(within), duration: s(duration), every: s(6 * within) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["jobs"]);
    // Two thirds are busy, and the last third sees nobody alive.
    let busy = size.duration * 2 / 3;
    let life = size.within.mul_f64(2.0);
    let last_start = busy.saturating_sub(life);
    plan.compress(size.duration.max(s(10)) / 2);
    let bursts = u32::try_from((last_start.as_millis() / size.within.as_millis().max(1)).max(1))
        .unwrap_or(u32::MAX)
        .min(size.pods);
    for (pod, moment) in (0..).zip(spread(size.pods, size.within / 4, &mut ask.chance)) {
        let burst = last_start.mul_f64(f64::from(pod % bursts) / f64::from(bursts));
        let start = burst + moment;
        let end = (start + life.mul_f64(0.25 + 0.75 * ask.chance.f64())).min(busy);
        let role = pod % size.roles;
        plan.visits.push(Visit::new(pod, role, ask.clients.of(pod), start, end, Pace::Once).that_dies());
    }
    plan.steps.push((busy, Step::Say("the last pod is gone")));
    plan.expect(&["failed=0", "wrong=0"]);
    // One for the first pod, and renewals as credentials age: nothing that grows with the pods.
    plan.expect(&["eks_auth_calls<=8*roles"]);
    plan.findings.push(Finding::NoCallsAfter(busy + s(1)));
    plan
}
