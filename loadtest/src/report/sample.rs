//! A run that nobody made, for the tests of what is written about runs.

use std::collections::BTreeMap;

use super::run::{Expected, Failure, Group, Latency, Mark, Run, Second, Totals, Versions};

/// Nothing happened, and little is known of the agent.
pub(super) fn empty() -> Run {
    Run {
        scenario: "steady".to_owned(),
        question: "Does anything come of nothing?".to_owned(),
        command: vec!["cargo".to_owned(), "xtask".to_owned(), "loadtest".to_owned(), "steady".to_owned()],
        started: "2026-11-21T09:00:00Z".to_owned(),
        duration_seconds: 0.0,
        settings: BTreeMap::new(),
        agent_command: None,
        versions: Versions::default(),
        totals: Totals::default(),
        groups: Vec::new(),
        failures: Vec::new(),
        timeline: Vec::new(),
        marks: Vec::new(),
        expected: Vec::new(),
        notes: Vec::new(),
    }
}

/// EKS Auth is away for a while, and an impatient SDK fails meanwhile.
pub(super) fn outage() -> Run {
    let seconds = 120;
    let down = 40..75;
    let timeline: Vec<Second> = (1..=seconds).map(|at| second(at, down.contains(&at))).collect();
    let failed = timeline.iter().map(|second| second.failed).sum();
    let requests = timeline.iter().map(|second| second.requests).sum();
    let group = |name: &str, share: f64, middle: f64, failed: u64| {
        let requests = (requests as f64 * share) as u64;
        let latency = latency(requests - failed, middle);
        let attempts = requests + 3 * failed;
        Group {
            name: name.to_owned(),
            pods: (5000.0 * share) as u64,
            requests,
            attempts,
            failed,
            wrong: 0,
            latency,
        }
    };
    Run {
        scenario: "outage".to_owned(),
        question: "Are pods of known roles served while EKS Auth is down, and how do the others recover?"
            .to_owned(),
        command: ["cargo", "xtask", "loadtest", "outage", "--pods", "5000", "--roles", "50"]
            .map(str::to_owned)
            .to_vec(),
        duration_seconds: seconds as f64,
        settings: [("pods", "5000"), ("roles", "50"), ("client", "mixed"), ("duration", "2m")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        agent_command: Some(
            ["podcred", "server", "--cluster-name", "demo", "--verify", "enforce"]
                .map(str::to_owned)
                .to_vec(),
        ),
        versions: Versions {
            podcred: "0.1.0".to_owned(),
            commit: "0123abc".to_owned(),
            goose: "0.19.0".to_owned(),
            kernel: "Linux 6.18.0 x86_64".to_owned(),
            cpu: "AMD EPYC".to_owned(),
            cpus: 2,
            profile: "release".to_owned(),
        },
        totals: Totals {
            pods: 5000,
            roles: 50,
            requests,
            attempts: requests + 3 * failed,
            served: requests - failed,
            failed,
            wrong: 0,
            eks_auth_calls: timeline.last().and_then(|second| second.eks_auth_calls),
            agent_cpu_seconds: Some(9.1),
            agent_peak_rss_bytes: Some(17_800_000),
            harness_cpu_seconds: 31.5,
            harness_peak_rss_bytes: 61_000_000,
        },
        groups: vec![
            group("all", 1.0, 0.9, failed),
            group("known roles", 0.8, 0.7, 0),
            group("new roles", 0.2, 2.6, failed),
        ],
        failures: vec![Failure {
            class: "refused 503 ServiceUnavailable".to_owned(),
            group: "new roles".to_owned(),
            count: failed,
            example: "boto3 of pod new-17: 503 <ServiceUnavailable> & \"ask again\"".to_owned(),
        }],
        timeline,
        marks: vec![
            Mark { at_seconds: 40.0, what: "EKS Auth goes down".to_owned() },
            Mark { at_seconds: 75.0, what: "EKS Auth is back".to_owned() },
        ],
        expected: vec![
            Expected { condition: "failed(known roles)=0".to_owned(), was: "0".to_owned(), held: true },
            Expected { condition: "wrong=0".to_owned(), was: "0".to_owned(), held: true },
            Expected { condition: "p99(known roles)<5ms".to_owned(), was: "12.3 ms".to_owned(), held: false },
        ],
        notes: vec!["Harness and agent share 2 cores: latencies are theirs together.".to_owned()],
        ..empty()
    }
}

fn second(at: u64, down: bool) -> Second {
    let wave = (at as f64 / 7.0).sin();
    let starting = at <= 10;
    Second {
        at_seconds: at as f64,
        pods: (at * 500).min(5000),
        requests: if starting { 500 } else { (180.0 + 40.0 * wave) as u64 },
        failed: if down { 12 + at % 5 } else { 0 },
        p50_ms: Some(if down { 0.8 } else { 0.5 + 0.1 * wave }),
        p99_ms: Some(if down {
            1800.0
        } else if starting {
            55.0
        } else {
            3.0 + wave
        }),
        eks_auth_calls: Some(if at < 3 { 20 * at } else { 50 + if at > 75 { 10 } else { 0 } }),
        one_call_a_pod: (at * 500).min(5000) + at.saturating_sub(20) * 12,
        agent_cpu: Some(if starting { 0.22 } else { 0.07 + 0.01 * wave }),
        agent_rss_bytes: Some(9_000_000 + (at * 500).min(5000) * 1_700),
    }
}

/// Lognormal around its middle, as latencies are, in buckets a fifth of a decade wide.
fn latency(count: u64, middle_ms: f64) -> Latency {
    let bounds: Vec<f64> = (0..60).map(|step| middle_ms * 10_f64.powf(f64::from(step - 25) / 12.0)).collect();
    let share = |bound: f64| 1.0 / (1.0 + (-3.4 * (bound / middle_ms).log10() * 1.8).exp());
    let distribution: Vec<(f64, u64)> =
        bounds.iter().map(|&bound| (bound, (count as f64 * share(bound)) as u64)).collect();
    Latency {
        count,
        mean_ms: middle_ms * 1.3,
        p50_ms: middle_ms,
        p90_ms: middle_ms * 2.4,
        p99_ms: middle_ms * 5.7,
        p999_ms: middle_ms * 13.0,
        max_ms: middle_ms * 600.0,
        distribution,
    }
}
