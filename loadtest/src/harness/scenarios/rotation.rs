//! Tokens and credentials reach their end, again and again: hours in a minute.

use super::{Ask, Parts, s};
use crate::harness::plan::{Finding, Pace, Plan, Size, TokenLife};

pub(super) const PARTS: Parts = Parts {
    question: "Tokens and credentials reach their end: is there ever a gap, and do calls of EKS Auth come all at once?",
    needs_cgroups: None,
    least: |_| s(15),
    size,
    plan,
};

/// Three lives.
fn size(short: bool) -> Size {
    let (pods, roles, duration) = if short { (100, 10, 15) } else { (1_000, 100, 180) };
    Size { pods, roles, within: s(2), duration: s(duration), every: s(1) }
}

fn plan(ask: &mut Ask) -> Plan {
    let size = ask.size;
    let mut plan = Plan::new(size, &ask.client_groups());
    let life = s((size.duration.as_secs() / 3).max(5));
    plan.compress(life);
    plan.tokens = TokenLife::Short(life);
    // What takes hours in the world is renewed in seconds here. The agent is allowed to renew all at once: that it does not must come
    // of how it spreads renewals, not of its limit.
    plan.agent_args = vec!["--max-service-qps".to_owned(), size.roles.max(3).to_string()];
    plan.visits = ask.by_client(size.within, size.duration, Pace::Refresh);
    plan.notes
        .push(format!("Tokens live {} s; a pod has a new one after 0.6 to 0.8 of that.", life.as_secs()));
    plan.expect(&["failed=0", "wrong=0", "p99<200ms"]);
    if !ask.short {
        // All roles in one second would be thirty times. A short run's lives end before they spread.
        plan.findings.push(Finding::CallsSpread { after: life, times: 10 });
    }
    plan
}
