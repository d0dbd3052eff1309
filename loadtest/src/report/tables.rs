//! What a run's pages have in common: its tables, before anybody knows how they are drawn.

use super::figures::{bytes, count, milliseconds, number};
use super::run::{Group, Run};

#[derive(Debug)]
pub(super) struct Table {
    pub(super) header: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

/// One number that a reader looks for first, and what to hold it against.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) beside: String,
}

const UNKNOWN: &str = "–";

/// In one sentence.
pub(super) fn verdict(run: &Run) -> String {
    let all = run.expected.len();
    let held = run.expected.iter().filter(|expected| expected.held).count();
    match (all, all - held) {
        (0, _) => "Nothing was expected of this run".to_owned(),
        (1, 0) => "Its expectation held".to_owned(),
        (_, 0) => format!("All {all} expectations held"),
        (_, missed) => format!("{missed} of {all} expectations did not hold"),
    }
}

pub(super) fn figures(run: &Run) -> Vec<Figure> {
    let figure = |name, value: String, beside: String| Figure { name, value, beside };
    let unknown = || UNKNOWN.to_owned();
    let totals = &run.totals;
    let all = run.all().filter(|latency| latency.count > 0);
    let latency = |of: fn(&super::Latency) -> f64| all.map_or_else(unknown, |all| milliseconds(of(all)));
    // Whose tokens somebody else's agent gets is not known.
    let roles =
        run.agent_command.as_ref().map_or_else(unknown, |_| format!("of {} roles", count(totals.roles)));
    let one_call_a_pod = run.timeline.last().map_or(0, |second| second.one_call_a_pod);
    let rate = run.requests_per_second().map_or_else(unknown, |rate| format!("{} a second", number(rate)));
    vec![
        figure("Pods", count(totals.pods), roles),
        figure("Requests", count(totals.requests), rate),
        figure("Failed", count(totals.failed), format!("{} wrong", count(totals.wrong))),
        figure("p50", latency(|all| all.p50_ms), format!("mean {}", latency(|all| all.mean_ms))),
        figure("p99", latency(|all| all.p99_ms), format!("longest {}", latency(|all| all.max_ms))),
        figure(
            "EKS Auth calls",
            totals.eks_auth_calls.map_or_else(unknown, count),
            format!("one a pod: {}", count(one_call_a_pod)),
        ),
        figure(
            "Agent CPU",
            run.agent_cpu_ms_per_request().map_or_else(unknown, milliseconds),
            "a request".to_owned(),
        ),
        figure(
            "Agent memory",
            totals.agent_peak_rss_bytes.map_or_else(unknown, |peak| bytes(peak as f64)),
            "at its peak".to_owned(),
        ),
    ]
}

pub(super) fn expectations(run: &Run) -> Table {
    let rows = run.expected.iter().map(|expected| {
        let held = if expected.held { "held" } else { "not held" };
        vec![expected.condition.clone(), expected.was.clone(), held.to_owned()]
    });
    Table { header: &["expected", "was", ""], rows: rows.collect() }
}

pub(super) fn groups(run: &Run) -> Table {
    let header =
        &["group", "pods", "requests", "attempts", "failed", "wrong", "p50", "p90", "p99", "p99.9", "max"];
    let row = |group: &Group| {
        let counts = [group.pods, group.requests, group.attempts, group.failed, group.wrong].map(count);
        let latency = &group.latency;
        let times = [latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms];
        let times = times.map(|time| match latency.count {
            0 => UNKNOWN.to_owned(),
            _ => milliseconds(time),
        });
        [vec![group.name.clone()], counts.to_vec(), times.to_vec()].concat()
    };
    Table { header, rows: run.groups.iter().map(row).collect() }
}

pub(super) fn failures(run: &Run) -> Table {
    let rows = run.failures.iter().map(|failure| {
        vec![failure.class.clone(), failure.group.clone(), count(failure.count), failure.example.clone()]
    });
    Table { header: &["failure", "group", "times", "one of them"], rows: rows.collect() }
}

pub(super) fn settings(run: &Run) -> Table {
    let rows = run.settings.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    Table { header: &["setting", "value"], rows: rows.collect() }
}

pub(super) fn versions(run: &Run) -> Table {
    let versions = &run.versions;
    let cpu = format!("{} × {}", versions.cpus, versions.cpu);
    let harness = format!(
        "{} s CPU, {} at its peak",
        number(run.totals.harness_cpu_seconds),
        bytes(run.totals.harness_peak_rss_bytes as f64)
    );
    // Of somebody else's agent neither is known.
    let podcred = match versions.podcred.as_str() {
        "" => UNKNOWN.to_owned(),
        podcred => format!("{podcred} ({})", versions.commit),
    };
    let rows = [
        ("podcred", podcred),
        ("goose", versions.goose.clone()),
        ("kernel", versions.kernel.clone()),
        ("CPUs", cpu),
        ("started", run.started.clone()),
        ("duration", format!("{} s", number(run.duration_seconds))),
        ("built as", versions.profile.clone()),
        ("harness", harness),
    ];
    Table { header: &["of", "is"], rows: rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec() }
}

/// As it is typed into a shell.
pub(super) fn command_line(words: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+[]".contains(&byte);
    let quoted = words.iter().map(|word| match !word.is_empty() && word.bytes().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_verdict_counts_what_did_not_hold() {
        let mut run = sample::outage();
        assert_eq!(verdict(&run), "1 of 3 expectations did not hold");
        run.expected.pop();
        assert_eq!(verdict(&run), "All 2 expectations held");
        run.expected.pop();
        assert_eq!(verdict(&run), "Its expectation held");
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let words = ["a", "--expect", "p99<50ms", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(&words), r"a --expect 'p99<50ms' 'it'\''s' ''");
    }
}
