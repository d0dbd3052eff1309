//! The agent is stopped and started under load, as when its DaemonSet is rolled out.

use super::{Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size, Step};

pub(super) const PARTS: Parts = Parts {
    question: "The agent is stopped and started under load: what do pods see of it, with their SDKs' retries?",
    needs_cgroups: None,
    least: |_| s(6),
    size,
    plan,
};

pub(super) fn size(short: bool) -> Size {
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
    plan.visits = ask.by_client(size.every, size.duration, Pace::Every(size.every));
    plan.notes.push(
        "While the port is closed Java spends its six attempts within milliseconds, and its chain goes on to IMDS. Go and Rust pause \
         at random, up to 2 s and 1 s, then up to 4 s and 2 s, and seldom twice so briefly that they fail. boto3 and JS pause 1 s."
            .to_owned(),
    );
    plan.expect(&["wrong=0", "eks_auth_calls<=3*roles"]);
    for group in ask.client_groups() {
        match group {
            "boto3" | "js" => plan.expectations.push(format!("failed({group})=0")),
            // A short run is closed for a longer part of its time, and the agent may be a build that takes its time to start.
            _ if ask.short => {}
            _ => plan.expectations.push(format!("failed({group})<=0.01*requests({group})")),
        }
    }
    plan
}
