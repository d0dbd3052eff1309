//! A constant rate, whatever the agent does.

use super::{ANY, Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size};

pub(super) const PARTS: Parts = Parts {
    question: "Each pod asks at a constant rate of its own: how long does it wait, counted from when it wanted to ask?",
    needs_cgroups: None,
    least: ANY,
    size,
    plan,
};

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (200, 6, 2) } else { (2_000, 60, 10) };
    Size { pods, roles: 10, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    plan.visits = ask.by_client(size.every, size.duration, Pace::Every(size.every));
    plan.expect(&["failed=0", "wrong=0", "eks_auth_calls<=roles"]);
    plan.expectations.push(ask.quick("p99"));
    plan
}
