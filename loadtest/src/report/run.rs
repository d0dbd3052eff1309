//! A run as it is written down: `report.json` is this, and the pages are drawn from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    pub scenario: String,
    /// What was to be shown.
    pub question: String,
    /// The command that does it again.
    pub command: Vec<String>,
    /// RFC 3339.
    pub started: String,
    pub duration_seconds: f64,
    /// Flags of the scenario, with their values.
    pub settings: BTreeMap<String, String>,
    /// The agent's command line, where the harness started it.
    pub agent_command: Option<Vec<String>>,
    pub versions: Versions,
    pub totals: Totals,
    /// All pods first, then the groups that the scenario sets apart.
    pub groups: Vec<Group>,
    pub failures: Vec<Failure>,
    pub timeline: Vec<Second>,
    /// What the scenario did, and when.
    pub marks: Vec<Mark>,
    pub expected: Vec<Expected>,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Versions {
    pub podcred: String,
    pub commit: String,
    pub goose: String,
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub profile: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Totals {
    pub pods: u64,
    pub roles: u64,
    /// What pods wanted: one each time that an SDK had to have credentials, whatever attempts it took.
    pub requests: u64,
    /// HTTP requests that it took.
    pub attempts: u64,
    pub served: u64,
    pub failed: u64,
    /// Answered 200 with what is not this pod's: another role's credentials, ill-formed ones, too little life left.
    pub wrong: u64,
    /// Absent where the target is somebody else's agent.
    pub eks_auth_calls: Option<u64>,
    pub agent_cpu_seconds: Option<f64>,
    pub agent_peak_rss_bytes: Option<u64>,
    pub harness_cpu_seconds: f64,
    pub harness_peak_rss_bytes: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Group {
    pub name: String,
    pub pods: u64,
    pub requests: u64,
    pub attempts: u64,
    pub failed: u64,
    pub wrong: u64,
    pub latency: Latency,
}

/// From the moment at which the pod wanted credentials, not from that at which it came to ask.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Upper bound in milliseconds and how many were up to it, cumulative; bounds rise.
    pub distribution: Vec<(f64, u64)>,
}

/// By class: `wrong: role of others`, `refused 403 TokenOfAnotherPod`, `connect: connection refused`, `no answer within 2 s`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    pub class: String,
    pub group: String,
    pub count: u64,
    /// One of them, with nothing secret in it.
    pub example: String,
}

/// What was counted within one second, and what was read at its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Second {
    pub at_seconds: f64,
    pub pods: u64,
    pub requests: u64,
    pub failed: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Since the run began.
    pub eks_auth_calls: Option<u64>,
    /// Calls of an agent that asks for each pod by itself, since the run began.
    pub one_call_a_pod: u64,
    /// Processor time within it, in seconds.
    pub agent_cpu: Option<f64>,
    pub agent_rss_bytes: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Mark {
    pub at_seconds: f64,
    pub what: String,
}

/// `p99<50ms`, and what it was.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Expected {
    pub condition: String,
    pub was: String,
    pub held: bool,
}

impl Run {
    /// The latency of all pods.
    pub(super) fn all(&self) -> Option<&Latency> {
        self.groups.first().map(|group| &group.latency)
    }

    pub(super) fn requests_per_second(&self) -> Option<f64> {
        (self.duration_seconds > 0.0).then(|| self.totals.requests as f64 / self.duration_seconds)
    }

    pub(super) fn agent_cpu_ms_per_request(&self) -> Option<f64> {
        self.ms_per_request(self.totals.agent_cpu_seconds?)
    }

    pub(super) fn harness_cpu_ms_per_request(&self) -> Option<f64> {
        self.ms_per_request(self.totals.harness_cpu_seconds)
    }

    fn ms_per_request(&self, seconds: f64) -> Option<f64> {
        (self.totals.requests > 0).then(|| seconds * 1e3 / self.totals.requests as f64)
    }
}
