//! Applications that make a new SDK client for each request of theirs, and so ask for credentials each time.

use super::{ANY, Ask, Parts, s};
use crate::harness::plan::{Pace, Plan, Size};

pub(super) const PARTS: Parts = Parts {
    question: "A tenth of the pods ask at each request of their application: are they served from the cache, and the others as ever?",
    needs_cgroups: None,
    least: ANY,
    size,
    plan,
};

const CHATTY: usize = 0;
const OTHERS: usize = 1;
const ONE_OF: u32 = 10;
const APPLICATION: std::time::Duration = std::time::Duration::from_millis(50);

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (100, 5, 1) } else { (300, 60, 5) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["chatty", "others"]);
    for (pod, start) in (0..).zip(ask.starts(size.every)) {
        let (pace, group) = if pod % ONE_OF == 0 {
            (Pace::Every(APPLICATION), CHATTY)
        } else {
            (Pace::Every(size.every), OTHERS)
        };
        plan.visits.push(ask.visit(pod, start, size.duration, pace).in_group(group));
    }
    plan.notes.push(format!("A chatty pod asks {:.0} times a second.", 1.0 / APPLICATION.as_secs_f64()));
    plan.expect(&["failed=0", "wrong=0", "eks_auth_calls<=roles"]);
    plan.expectations.push(ask.quick("p99(chatty)"));
    plan.expectations.push(ask.quick("p99(others)"));
    plan
}
