//! An association is changed and its pods are recreated, which is how a change is applied.

use super::{Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size, Step, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "Pods come and go, and are recreated after their association changed: when do they get the new role?",
    needs_cgroups: None,
    least: |short| if short { s(12) } else { s(50) },
    size,
    plan,
};

const BEFORE: usize = 0;
const MEANWHILE: usize = 1;
const RECREATED: usize = 2;

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (200, 12, 1) } else { (1_000, 120, 5) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

/// The change is made at half time. EKS Auth knows of it a second later, and from the revalidation after that on a new pod has
/// the new role. Pods of the time between may have either.
fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["before the change", "meanwhile", "recreated"]);
    let change = size.duration / 2;
    let (propagation, revalidation) = (s(1), if ask.short { s(2) } else { s(20) });
    plan.eks.association_delay_ms = 1_000;
    plan.agent_args = vec!["--revalidate-after".to_owned(), format!("{}s", revalidation.as_secs())];
    plan.steps.push((change, Step::ChangeAssociations));
    let sure = change + propagation + revalidation + s(1);
    plan.steps.push((sure, Step::Say("from here on a new pod must have the new role")));
    let life = size.duration / 4;
    for (pod, start) in (0..).zip(spread(size.pods, size.duration - s(1), &mut ask.chance)) {
        let (group, generation) = if start < change {
            (BEFORE, 0)
        } else if start < sure {
            (MEANWHILE, 0)
        } else {
            (RECREATED, 1)
        };
        let end = (start + life).min(size.duration);
        let visit = ask.visit(pod, start, end, Pace::Every(size.every)).in_group(group);
        plan.visits.push(Visit { generation, dies: true, ..visit });
    }
    plan.notes.push(format!(
        "EKS Auth knows of a changed association after {} s; the agent's --revalidate-after is {} s (60 s by default).",
        propagation.as_secs(),
        revalidation.as_secs()
    ));
    plan.expect(&["failed=0", "wrong=0", "requests(recreated)>=1"]);
    plan
}
