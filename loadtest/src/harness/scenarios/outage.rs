//! EKS Auth goes down and comes back, then the issuer; pods of known roles, and of new ones, start all the while.

use super::{Ask, Parts, s};
use crate::eks::Outage;
use crate::harness::plan::{Pace, Plan, Size, Step, Turns, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "EKS Auth, then the issuer, go down and come back, and new pods come meanwhile: who is served when?",
    needs_cgroups: None,
    least: |_| s(8),
    size,
    plan,
};

const KNOWN: usize = 0;
const NEW_PODS: usize = 1;
const NEW_ROLES: usize = 2;
const RECOVERED: usize = 3;
/// What pods of new roles want in each eighth of the run: EKS Auth is back for the fifth, in which the agent may still wait before it
/// calls again.
const EIGHTHS: [usize; 8] =
    [NEW_ROLES, NEW_ROLES, NEW_ROLES, NEW_ROLES, NEW_ROLES, RECOVERED, RECOVERED, RECOVERED];

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (100, 14, 1) } else { (1_000, 180, 10) };
    Size { pods, roles: 10, within: s(every), duration: s(duration), every: s(every) }
}

/// Half of the pods are there from the beginning, the other half comes in the course of the run; a tenth of these are of roles that
/// nobody asked for before.
fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["known roles", "new pods", "new roles", "recovered"]);
    let eighth = size.duration / 8;
    plan.turns = Turns { each: eighth, groups: &EIGHTHS };
    for (at, step) in [
        (1, Step::EksAuth(Outage::Refuse)),
        (2, Step::EksAuth(Outage::Hang)),
        (3, Step::EksAuth(Outage::Reset)),
        (4, Step::EksAuth(Outage::Off)),
        (5, Step::Issuer(Outage::Hang)),
        (7, Step::Issuer(Outage::Off)),
    ] {
        plan.steps.push((eighth * at, step));
    }
    let known = size.pods.div_ceil(2);
    let new_roles = (size.pods / 20).max(1);
    plan.roles = size.roles + new_roles;
    for (pod, start) in (0..).zip(spread(known, size.every.min(eighth / 2), &mut ask.chance)) {
        let pace = Pace::Every(size.every);
        plan.visits.push(ask.visit(pod, start, size.duration, pace).in_group(KNOWN));
    }
    let comers = spread(size.pods - known, size.duration - eighth - s(1), &mut ask.chance);
    for (number, start) in (0..).zip(comers) {
        let pod = known + number;
        let visit = ask.visit(pod, eighth + start, size.duration, Pace::Every(size.every));
        plan.visits.push(if number < new_roles {
            Visit { role: size.roles + number, by_turns: true, ..visit }
        } else {
            visit.in_group(NEW_PODS)
        });
    }
    plan.notes.push(
        "A role that nobody asked for before the outage cannot be served in it; its pods are counted apart, and ask again at \
         their usual rate. An eighth of the run after EKS Auth is back they have to be served."
            .to_owned(),
    );
    plan.expect(&["failed(known roles)=0", "failed(new pods)=0", "wrong=0"]);
    plan.expect(&["failed(recovered)=0", "requests(recovered)>=1"]);
    plan.expectations.push(ask.quick("p99(known roles)"));
    plan
}
