//! The scenarios' names, which `cargo xtask loadtest` has from this file as well: it must not wait for this crate to be built.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
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
    /// podcred takes the place of an agent with the official one's contract, and that takes it back
    Changeover,
    /// As fast as it goes
    Saturate,
}

impl Scenario {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
