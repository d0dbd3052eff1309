//! As fast as it goes: each pod asks again as soon as it was answered.

use super::{ANY, Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "How many requests a second does the agent answer, and what does one cost?",
    needs_cgroups: None,
    least: ANY,
    size,
    plan,
};

fn size(short: bool) -> Size {
    let (pods, duration) = if short { (16, 4) } else { (32, 30) };
    Size { pods, roles: 4, within: s(1), duration: s(duration), every: s(1) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    let starts = spread(size.pods, size.within.min(size.duration / 4), &mut ask.chance);
    for (pod, start) in (0..).zip(starts) {
        let visit = ask.visit(pod, start, size.duration, Pace::AtOnce);
        plan.visits.push(visit.in_group(ask.client_group(pod)));
    }
    plan.notes.push(
        "Pods wait for each other here, agent and harness share the processor: latency says what the machine can do, \
         not what pods wait for."
            .to_owned(),
    );
    plan.expect(&["failed=0", "wrong=0", "eks_auth_calls<=roles"]);
    plan
}
