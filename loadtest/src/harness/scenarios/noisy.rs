//! One pod floods, by turns: what the others see beside it is compared with what they see alone in the turns between, so
//! that what else the machine does falls on both.

use super::{Ask, Parts, s};
use crate::harness::manners::Client;
use crate::harness::plan::{Pace, Plan, Size, Step, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts =
    Parts { question: "One pod floods the agent: are the others served as fast as without it?", size, plan };

const ALONE: usize = 0;
const BESIDE: usize = 1;
const NOISY: usize = 2;
/// As many connections as the agent lets one pod have.
const CONNECTIONS: u32 = 64;
/// On each of them. Together they leave the processors room: what a machine without any does to pods is not the agent's to
/// mend.
const FLOOD_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

fn size(short: bool) -> Size {
    let (pods, duration, every) = if short { (100, 10, 1) } else { (300, 120, 1) };
    Size { pods, roles: 5, within: s(every), duration: s(duration), every: s(every) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &["alone", "beside", "noisy"]);
    let turns = if ask.short { 5 } else { 20 };
    let turn = size.duration / (2 * turns);
    for (pod, start) in (0..).zip(spread(size.pods, size.every, &mut ask.chance)) {
        let pace = Pace::Every(size.every);
        let visit = ask.visit(pod, start, size.duration, pace).in_group(ALONE);
        plan.visits.push(Visit { by_turns: Some((turn, BESIDE)), ..visit });
    }
    let starts = spread(CONNECTIONS, FLOOD_EVERY, &mut ask.chance);
    for number in 0..turns {
        let (begin, end) = (turn * (2 * number + 1), turn * (2 * number + 2));
        plan.steps.push((begin, Step::Say("the flood begins")));
        plan.steps.push((end, Step::Say("the flood ends")));
        for &start in &starts {
            // JS connects anew for each request, which costs an agent most.
            let (client, pace) = (Client::Js, Pace::Every(FLOOD_EVERY));
            plan.visits.push(Visit::new(size.pods, 0, client, begin + start, end, pace).in_group(NOISY));
        }
    }
    plan.notes.push(format!(
        "The noisy pod has {CONNECTIONS} connections and asks {} times a second.",
        f64::from(CONNECTIONS) / FLOOD_EVERY.as_secs_f64()
    ));
    plan.expect(&["failed(alone)=0", "failed(beside)=0", "wrong=0"]);
    // A run of seconds has too few requests for its 99th percentile to be exact to a tenth.
    if ask.short {
        plan.expectations.push(ask.quick("p99(beside)"));
    } else {
        plan.expect(&["p99(beside)<=1.1*p99(alone)"]);
    }
    plan
}
