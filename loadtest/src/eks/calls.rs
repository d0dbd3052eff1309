//! The log of EKS Auth calls, and their counts.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// The log keeps the latest; the counts are of all.
const KEPT: usize = 100_000;

/// One call of `AssumeRoleForPodIdentity`, as it was answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Call {
    /// When it came in.
    pub time: String,
    /// `namespace/serviceaccount` as the token says, which for a refused token nobody checked; empty where it cannot
    /// be read.
    pub role: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// The token's `jti`.
    pub token_id: String,
    pub eks_node_name: Option<String>,
    pub instance_id: Option<String>,
    pub zone: Option<String>,
    /// The caller's access key id, as it claims.
    pub caller: Option<String>,
    /// `OK`, the error's code, `reset` in an outage, or `abandoned` where the client left before the answer.
    pub result: String,
    /// Of the credentials handed out.
    pub access_key_id: Option<String>,
    pub duration_ms: f64,
}

/// Calls by role and by result, and what the issuer was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Counts {
    pub total: u64,
    /// By `namespace/serviceaccount`, refused calls included.
    pub by_role: BTreeMap<String, u64>,
    pub by_result: BTreeMap<String, u64>,
    pub issuer_key_fetches: u64,
    /// Calls that have come in and are not answered yet: a test of a hanging EKS Auth waits for them. Not in `total`.
    pub in_flight: u64,
}

impl Counts {
    /// Calls for one role key.
    pub fn of(&self, namespace: &str, service_account: &str) -> u64 {
        self.by_role.get(&format!("{namespace}/{service_account}")).copied().unwrap_or_default()
    }

    /// Calls that ended so: `OK`, or an error's code.
    pub fn result(&self, result: &str) -> u64 {
        self.by_result.get(result).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub(super) struct CallLog {
    calls: VecDeque<Call>,
    counts: Counts,
}

impl CallLog {
    /// A call has come in; [`CallLog::record`] follows.
    pub(super) fn begun(&mut self) {
        self.counts.in_flight += 1;
    }

    pub(super) fn record(&mut self, call: Call) {
        self.counts.in_flight -= 1;
        self.counts.total += 1;
        *self.counts.by_role.entry(call.role.clone()).or_default() += 1;
        *self.counts.by_result.entry(call.result.clone()).or_default() += 1;
        if self.calls.len() == KEPT {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }

    pub(super) fn keys_fetched(&mut self) {
        self.counts.issuer_key_fetches += 1;
    }

    /// Forgets everything but the calls that are still to be recorded.
    pub(super) fn reset(&mut self) {
        let counts = Counts { in_flight: self.counts.in_flight, ..Counts::default() };
        *self = CallLog { calls: VecDeque::new(), counts };
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.clone()
    }
}
