//! A node changes from an agent with the official one's contract to podcred and back, as docs/migrate.md has it.

use super::{Ask, Parts, restart, s};
use crate::harness::plan::{Pace, Plan, Step};

pub(super) const PARTS: Parts = Parts {
    question: "podcred takes another agent's place and gives it back, under load: what do pods see of it, with their SDKs' retries?",
    needs_cgroups: None,
    least: |_| s(6),
    // To be compared with an agent that is stopped first.
    size: restart::size,
    plan,
};

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    plan.begins_with_stand_in = true;
    plan.steps.push((size.duration / 3, Step::ChangeToPodcred));
    plan.steps.push((size.duration * 2 / 3, Step::ChangeBack));
    plan.visits = ask.by_client(size.every, size.duration, Pace::Every(size.every));
    plan.notes.push(
        "The other agent is a stand-in with the official one's contract: it calls EKS Auth for each token, ends where a port is taken, \
         and closes its ports at once on SIGTERM. podcred is started beside it and has the ports some milliseconds after it. On the way \
         back the stand-in is started when podcred has ended, and nobody listens meanwhile: Java, whose six attempts take milliseconds, \
         then goes on to IMDS. All but a handful of the EKS Auth calls are the stand-in's, and CPU and memory are of both agents."
            .to_owned(),
    );
    plan.expect(&["wrong=0"]);
    // What Java and Rust see is shown as it is.
    let expected = ask.client_groups().into_iter().filter(|group| !matches!(*group, "java" | "rust"));
    plan.expectations.extend(expected.map(|group| format!("failed({group})=0")));
    plan
}
