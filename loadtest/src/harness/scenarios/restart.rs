//! The agent is stopped and started under load, as when its DaemonSet is rolled out.

use super::{Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size, Step};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "The agent is stopped and started under load: what do pods see of it, with their SDKs' retries?",
    size,
    plan,
};

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (200, 9, 2) } else { (1_000, 60, 5) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    for restart in 1..=2 {
        let at = size.duration * restart / 3;
        // A step begins when the one before it is done.
        plan.steps.push((at, Step::StopAgent));
        plan.steps.push((at, Step::StartAgent));
    }
    for (pod, start) in (0..).zip(spread(size.pods, size.every, &mut ask.chance)) {
        let pace = Pace::Every(size.every);
        plan.visits.push(ask.visit(pod, start, size.duration, pace).in_group(ask.client_group(pod)));
    }
    plan.notes.push(
        "Java makes its six attempts without a pause: while the port is closed they are spent within milliseconds, and its chain \
         goes on to IMDS. The other SDKs wait about a second between two attempts."
            .to_owned(),
    );
    plan.expect(&["wrong=0", "eks_auth_calls<=3*roles"]);
    for group in ask.client_groups() {
        if group == "boto3" || group == "js" {
            plan.expectations.push(format!("failed({group})=0"));
        }
    }
    plan
}
