//! One pod floods, by turns: what the others see beside it is compared with what they see alone in the turns between, so
//! that what else the machine does falls on both.

use super::s;
use super::{Ask, Parts, role_of};
use crate::harness::plan::{Pace, Plan, Size, Step, Visit};
use crate::harness::schedule::spread;

pub(super) const PARTS: Parts =
    Parts { question: "One pod floods the agent: are the others served as fast as without it?", size, plan };

const ALONE: usize = 0;
const BESIDE: usize = 1;
const NOISY: usize = 2;
/// Of each kind.
const TURNS: u32 = 5;
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
    let turn = size.duration / (2 * TURNS);
    let others = spread(size.pods, size.every.min(turn), &mut ask.chance);
    let floods = spread(CONNECTIONS, FLOOD_EVERY, &mut ask.chance);
    for number in 0..2 * TURNS {
        let (begin, end) = (turn * number, turn * (number + 1));
        let group = if number % 2 == 0 { ALONE } else { BESIDE };
        for (pod, &start) in (0..).zip(&others) {
            let role = role_of(pod, size.roles);
            let pace = Pace::Every(size.every);
            plan.visits
                .push(Visit::new(pod, role, ask.clients.of(pod), begin + start, end, pace).in_group(group));
        }
        if group == BESIDE {
            plan.steps.push((begin, Step::Say("the flood begins")));
            plan.steps.push((end, Step::Say("the flood ends")));
            for &start in &floods {
                let pace = Pace::Every(FLOOD_EVERY);
                // JS connects anew for each request, which costs an agent most.
                let client = crate::harness::manners::Client::Js;
                plan.visits.push(Visit::new(size.pods, 0, client, begin + start, end, pace).in_group(NOISY));
            }
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
