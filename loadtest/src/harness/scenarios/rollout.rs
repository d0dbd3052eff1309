//! Pods of a deployment start within a short time, as after a node has joined or a new version was rolled out.

use super::{ANY, Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size};

pub(super) const PARTS: Parts = Parts {
    question: "Thousands of pods start at once, and EKS Auth is slow and throttles: are all served, by one call for each role?",
    needs_cgroups: None,
    least: ANY,
    size,
    plan,
};

fn size(short: bool) -> Size {
    let (pods, roles, within) = if short { (300, 5, 3) } else { (2_000, 10, 10) };
    Size { pods, roles, within: s(within), duration: s(within + 2), every: s(60) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    plan.duration = size.duration.max(size.within + s(1));
    plan.eks.latency_ms = 200;
    plan.eks.latency_jitter_ms = 200;
    plan.eks.throttle_per_second = Some(20.0);
    plan.visits = ask.by_client(size.within, plan.duration, Pace::Once);
    plan.notes.push("EKS Auth takes 200 to 400 ms and 20 calls a second, as many at once.".to_owned());
    plan.expect(&["failed=0", "wrong=0", "p99<1s"]);
    // Beyond what EKS Auth takes at once a call is throttled, and made again.
    plan.expect(if size.roles <= 20 { &["eks_auth_calls<=roles"] } else { &["eks_auth_calls<=3*roles"] });
    plan
}
