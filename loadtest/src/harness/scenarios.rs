//! The scenarios: what happens in each, and what must come of it.

mod changeover;
mod chatty;
mod churn;
mod jobs;
mod name;
mod noisy;
mod outage;
mod restart;
mod rollout;
mod rotation;
mod saturate;
mod steady;
mod thief;

use std::time::Duration;

pub(super) use self::name::Scenario;
use super::manners::Client;
use super::options::Clients;
use super::plan::{Pace, Plan, Size, Visit};
use super::schedule::spread;

/// What a scenario is made from.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) size: Size,
    pub(super) clients: Clients,
    pub(super) chance: fastrand::Rng,
    pub(super) short: bool,
}

impl Ask {
    /// A pod of the service account and with the SDK that its number deals out to it.
    fn visit(&self, pod: u32, start: Duration, end: Duration, pace: Pace) -> Visit {
        Visit::new(pod, role_of(pod, self.size.roles), self.clients.of(pod), start, end, pace)
    }

    /// Each pod once, in the group of its SDK.
    fn by_client(&mut self, within: Duration, end: Duration, pace: Pace) -> Vec<Visit> {
        let starts = (0..).zip(self.starts(within));
        starts
            .map(|(pod, start)| self.visit(pod, start, end, pace).in_group(self.client_group(pod)))
            .collect()
    }

    /// When each pod starts: within this, but never after all is over.
    fn starts(&mut self, within: Duration) -> Vec<Duration> {
        spread(self.size.pods, within.min(self.size.duration), &mut self.chance)
    }

    /// Groups by SDK, where there are several: `mixed` tells them apart.
    fn client_groups(&self) -> Vec<&'static str> {
        match self.clients {
            Clients::Mixed => Client::ALL.iter().map(|client| client.manners().name).collect(),
            Clients::Boto3 | Clients::Js | Clients::Go | Clients::Java | Clients::Rust | Clients::Crt => {
                vec![self.clients.of(0).manners().name]
            }
        }
    }

    /// A pod's place among the [`Ask::client_groups`].
    fn client_group(&self, pod: u32) -> usize {
        pod as usize % self.client_groups().len()
    }

    /// A pod that is served from the cache waits no longer than this, on a machine that has time for it. A short run is made
    /// on any machine, and of a build that need not be optimized.
    fn quick(&self, p99: &str) -> String {
        format!("{p99}<{}", if self.short { "1s" } else { "50ms" })
    }
}

/// A scenario as its file gives it.
struct Parts {
    question: &'static str,
    /// Why pods must have cgroups, where they must.
    needs_cgroups: Option<&'static str>,
    /// The least duration that there is time in for what happens.
    least: fn(bool) -> Duration,
    size: fn(bool) -> Size,
    plan: fn(&mut Ask) -> Plan,
}

/// There is time for everything in any duration.
const ANY: fn(bool) -> Duration = |_| Duration::ZERO;

impl Scenario {
    fn parts(self) -> Parts {
        match self {
            Scenario::Rollout => rollout::PARTS,
            Scenario::Jobs => jobs::PARTS,
            Scenario::Steady => steady::PARTS,
            Scenario::Chatty => chatty::PARTS,
            Scenario::Rotation => rotation::PARTS,
            Scenario::Outage => outage::PARTS,
            Scenario::Churn => churn::PARTS,
            Scenario::Noisy => noisy::PARTS,
            Scenario::Thief => thief::PARTS,
            Scenario::Restart => restart::PARTS,
            Scenario::Changeover => changeover::PARTS,
            Scenario::Saturate => saturate::PARTS,
        }
    }

    pub(super) fn question(self) -> &'static str {
        self.parts().question
    }

    pub(super) fn needs_cgroups(self) -> Option<&'static str> {
        self.parts().needs_cgroups
    }

    pub(super) fn least(self, short: bool) -> Duration {
        (self.parts().least)(short)
    }

    /// Whether it is `--every` that says how often pods ask; if not, `--within` says when they start.
    pub(super) fn asks_at_a_rate(self) -> bool {
        match self {
            Scenario::Rollout | Scenario::Jobs | Scenario::Rotation | Scenario::Saturate => false,
            Scenario::Steady
            | Scenario::Chatty
            | Scenario::Outage
            | Scenario::Churn
            | Scenario::Noisy
            | Scenario::Thief
            | Scenario::Restart
            | Scenario::Changeover => true,
        }
    }

    pub(super) fn size(self, short: bool) -> Size {
        (self.parts().size)(short)
    }

    pub(super) fn plan(self, ask: &mut Ask) -> Plan {
        (self.parts().plan)(ask)
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Roles are dealt out so that each client has all of them.
fn role_of(pod: u32, roles: u32) -> u32 {
    let clients = u32::try_from(Client::ALL.len()).unwrap_or(1);
    (pod / clients + pod % clients) % roles
}

#[cfg(test)]
mod tests;
