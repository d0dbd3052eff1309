//! Pods present the tokens of others, beside honest ones.

use super::{ANY, Ask, Parts, s};
use crate::harness::plan::{Finding, Pace, Plan, Size, Visit};

pub(super) const PARTS: Parts = Parts {
    question: "A tenth of the pods present tokens that they stole from others: is any of them served, and is each named?",
    needs_cgroups: Some("the agent knows whose token a pod may present by its cgroup"),
    least: ANY,
    size,
    plan,
};

const HONEST: usize = 0;
const THIEVES: usize = 1;
/// One pod of so many is a thief.
const ONE_OF: u32 = 10;

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (60, 5, 1) } else { (500, 60, 5) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["honest", "thieves"]);
    plan.agent_args = ["--verify", "enforce"].map(str::to_owned).to_vec();
    for (pod, start) in (0..).zip(ask.starts(size.every)) {
        let visit = ask.visit(pod, start, size.duration, Pace::Every(size.every));
        let steals = pod % ONE_OF == ONE_OF - 1;
        // Of a neighbour, mostly with another role; each thief has one victim.
        plan.visits.push(if steals {
            Visit { thief_of: Some(pod - 1), group: THIEVES, ..visit }
        } else {
            visit.in_group(HONEST)
        });
    }
    plan.expect(&[
        "failed(honest)=0",
        "failed(thieves)=requests(thieves)",
        "requests(thieves)>=1",
        "wrong=0",
    ]);
    plan.expect(&["eks_auth_calls<=roles"]);
    plan.findings.push(Finding::ThievesNamed);
    plan.expectations.push(ask.quick("p99(honest)"));
    plan
}
