//! The scenarios: what happens in each, and what must come of it.

mod chatty;
mod churn;
mod jobs;
mod noisy;
mod outage;
mod restart;
mod rollout;
mod rotation;
mod saturate;
mod steady;
mod thief;

use std::time::Duration;

use clap::ValueEnum;

use super::options::Clients;
use super::plan::{Plan, Size};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Pods start within a short time, while EKS Auth is slow and throttles
    Rollout,
    /// Bursts of short-lived pods of one service account
    Jobs,
    /// Each pod asks at a constant rate
    Steady,
    /// Applications that ask at each request of theirs
    Chatty,
    /// Tokens and credentials reach their end, time compressed
    Rotation,
    /// EKS Auth, then the issuer, go down and come back; new pods come meanwhile
    Outage,
    /// Pods are recreated after their association changed
    Churn,
    /// One pod floods
    Noisy,
    /// Pods present others' tokens
    Thief,
    /// The agent is stopped and started under load
    Restart,
    /// As fast as it goes
    Saturate,
}

/// What a scenario is made from.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) size: Size,
    pub(super) clients: Clients,
    pub(super) chance: fastrand::Rng,
    pub(super) short: bool,
}

impl Ask {
    /// A pod that is served from the cache waits no longer than this, on a machine that has time for it. A short run is made
    /// on any machine, and of a build that need not be optimized.
    fn quick(&self, p99: &str) -> String {
        format!("{p99}<{}", if self.short { "1s" } else { "50ms" })
    }
}

/// A scenario as its file gives it.
struct Parts {
    question: &'static str,
    size: fn(bool) -> Size,
    plan: fn(&mut Ask) -> Plan,
}

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
            Scenario::Saturate => saturate::PARTS,
        }
    }

    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn question(self) -> &'static str {
        self.parts().question
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

/// Groups by SDK, where there are several: `mixed` tells them apart.
fn client_groups(clients: Clients) -> Vec<&'static str> {
    match clients {
        Clients::Mixed => super::manners::Client::ALL.iter().map(|client| client.manners().name).collect(),
        Clients::Boto3 | Clients::Js | Clients::Go | Clients::Java | Clients::Rust => {
            vec![clients.of(0).manners().name]
        }
    }
}

/// A pod's place among the [`client_groups`].
fn client_group(clients: Clients, pod: u32) -> usize {
    match clients {
        Clients::Mixed => pod as usize % super::manners::Client::ALL.len(),
        Clients::Boto3 | Clients::Js | Clients::Go | Clients::Java | Clients::Rust => 0,
    }
}

/// Roles are dealt out so that each client has all of them.
fn role_of(pod: u32, roles: u32) -> u32 {
    let clients = u32::try_from(super::manners::Client::ALL.len()).unwrap_or(1);
    (pod / clients + pod % clients) % roles
}

#[cfg(test)]
mod tests;
