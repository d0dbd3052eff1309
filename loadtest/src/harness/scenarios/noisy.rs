//! One pod asks far too often, then floods, by turns: what the others see beside it is compared with what they see alone in the
//! turns between, so that what else the machine does falls on all.

use super::{Ask, Parts, s};
use crate::harness::manners::Client;
use crate::harness::plan::{Pace, Plan, Size, Step, Turns, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts = Parts {
    question: "One pod asks six hundred times a second, then floods the agent: are the others served as fast as without it?",
    needs_cgroups: Some("the agent knows a pod's share by its cgroup"),
    least: |short| if short { s(5) } else { s(20) },
    size,
    plan,
};

const ALONE: usize = 0;
const BESIDE: usize = 1;
const FLOODED: usize = 2;
/// What the flood left waiting is served in this turn, and belongs to nothing that is compared.
const AFTERWARDS: usize = 3;
const BUSY: usize = 4;
const FLOOD: usize = 5;
const TURNS: [usize; 4] = [ALONE, BESIDE, FLOODED, AFTERWARDS];
/// As many connections as the agent lets one pod have.
const CONNECTIONS: u32 = 64;
/// On each of them, while it is busy: it leaves the processors room.
const BUSY_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (100, 10, 1) } else { (300, 120, 1) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["alone", "beside", "flooded", "afterwards", "busy", "flood"]);
    let rounds = if ask.short { 5 } else { 20 };
    let turn = size.duration / (4 * rounds);
    plan.turns = Turns { each: turn, groups: &TURNS };
    for (pod, start) in (0..).zip(ask.starts(size.every)) {
        let visit = ask.visit(pod, start, size.duration, Pace::Every(size.every));
        plan.visits.push(Visit { by_turns: true, ..visit });
    }
    let starts = spread(CONNECTIONS, BUSY_EVERY, &mut ask.chance);
    for round in 0..rounds {
        let [busy, flood, end] = [1, 2, 3].map(|number| turn * (4 * round + number));
        plan.steps.push((busy, Step::Say("one pod is busy")));
        plan.steps.push((flood, Step::Say("it floods")));
        plan.steps.push((end, Step::Say("it is silent")));
        for &start in &starts {
            // JS connects anew for each request, which costs an agent most.
            let visit = |begin, end, pace| Visit::new(size.pods, 0, Client::Js, begin + start, end, pace);
            plan.visits.push(visit(busy, flood, Pace::Every(BUSY_EVERY)).in_group(BUSY));
            plan.visits.push(visit(flood, end, Pace::AtOnce).in_group(FLOOD));
        }
    }
    plan.notes.push(format!(
        "The noisy pod has {CONNECTIONS} connections. Busy, it asks {} times a second in all. Flooding, it asks on each as soon as \
         it was answered, which the agent does --pod-requests times a second: beyond them requests take turns, and none fails.",
        f64::from(CONNECTIONS) / BUSY_EVERY.as_secs_f64()
    ));
    // Beside a flood that nobody was served in, nothing is shown.
    plan.expect(&["failed(busy)<requests(busy)", "failed(flood)<requests(flood)"]);
    plan.expect(&["failed(alone)=0", "failed(beside)=0", "failed(flooded)=0", "wrong=0"]);
    for group in ["beside", "flooded"] {
        // A run of seconds has too few requests for its 99th percentile to be exact to a tenth.
        if ask.short {
            plan.expectations.push(ask.quick(&format!("p99({group})")));
        } else {
            plan.expect(&[&format!("p99({group})<=1.1*p99(alone)")]);
        }
    }
    plan
}
