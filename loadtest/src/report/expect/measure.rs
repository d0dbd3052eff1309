//! What can be expected of a run, by name.

use super::super::figures::Unit;
use super::super::run::{Group, Latency, Run, Totals};

#[derive(Debug)]
pub(super) struct Measure {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Count {
        all: fn(&Totals) -> u64,
        group: fn(&Group) -> u64,
    },
    Latency(fn(&Latency) -> f64),
    /// Of the run as a whole only; nothing where it was not measured.
    Run(fn(&Run) -> Option<f64>),
}

const fn count(name: &'static str, all: fn(&Totals) -> u64, group: fn(&Group) -> u64) -> Measure {
    Measure { name, unit: Unit::Count, of: Of::Count { all, group } }
}

const fn latency(name: &'static str, of: fn(&Latency) -> f64) -> Measure {
    Measure { name, unit: Unit::Milliseconds, of: Of::Latency(of) }
}

const fn run(name: &'static str, unit: Unit, of: fn(&Run) -> Option<f64>) -> Measure {
    Measure { name, unit, of: Of::Run(of) }
}

static MEASURES: [Measure; 23] = [
    count("pods", |all| all.pods, |group| group.pods),
    count("requests", |all| all.requests, |group| group.requests),
    count("attempts", |all| all.attempts, |group| group.attempts),
    count("failed", |all| all.failed, |group| group.failed),
    count("wrong", |all| all.wrong, |group| group.wrong),
    latency("mean", |latency| latency.mean_ms),
    latency("p50", |latency| latency.p50_ms),
    latency("p90", |latency| latency.p90_ms),
    latency("p99", |latency| latency.p99_ms),
    latency("p999", |latency| latency.p999_ms),
    latency("max", |latency| latency.max_ms),
    run("served", Unit::Count, |run| Some(run.totals.served as f64)),
    run("roles", Unit::Count, |run| Some(run.totals.roles as f64)),
    run("eks_auth_calls", Unit::Count, |run| Some(run.totals.eks_auth_calls? as f64)),
    run("one_call_a_pod", Unit::Count, |run| Some(run.timeline.last()?.one_call_a_pod as f64)),
    run("requests_per_second", Unit::Count, Run::requests_per_second),
    run("agent_cpu", Unit::Milliseconds, |run| Some(run.totals.agent_cpu_seconds? * 1e3)),
    run("agent_cpu_per_request", Unit::Milliseconds, Run::agent_cpu_ms_per_request),
    run("agent_memory", Unit::Bytes, |run| Some(run.totals.agent_peak_rss_bytes? as f64)),
    run("harness_cpu", Unit::Milliseconds, |run| Some(run.totals.harness_cpu_seconds * 1e3)),
    run("harness_cpu_per_request", Unit::Milliseconds, Run::harness_cpu_ms_per_request),
    run("harness_memory", Unit::Bytes, |run| Some(run.totals.harness_peak_rss_bytes as f64)),
    run("duration", Unit::Milliseconds, |run| Some(run.duration_seconds * 1e3)),
];

impl Measure {
    pub(super) fn named(name: &str) -> Option<&'static Measure> {
        MEASURES.iter().find(|measure| measure.name == name)
    }

    pub(super) fn names() -> String {
        MEASURES.iter().map(|measure| measure.name).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn is_by_group(&self) -> bool {
        match self.of {
            Of::Count { .. } | Of::Latency(_) => true,
            Of::Run(_) => false,
        }
    }

    pub(super) fn of_all(&self, run: &Run) -> Option<f64> {
        match self.of {
            Of::Count { all, .. } => Some(all(&run.totals) as f64),
            Of::Latency(of) => run.all().filter(|latency| latency.count > 0).map(of),
            Of::Run(of) => of(run),
        }
    }

    pub(super) fn of_group(&self, group: &Group) -> Option<f64> {
        match self.of {
            Of::Count { group: of, .. } => Some(of(group) as f64),
            Of::Latency(of) => Some(&group.latency).filter(|latency| latency.count > 0).map(of),
            Of::Run(_) => None,
        }
    }
}
