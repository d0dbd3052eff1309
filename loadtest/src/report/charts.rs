//! Which charts tell of a run.

use super::chart::{Axis, Chart, Ink, Series};
use super::figures::{milliseconds, number};
use super::run::{Group, Latency, Run, Second};

#[derive(Debug)]
pub(super) struct Titled {
    pub(super) title: &'static str,
    pub(super) chart: Chart,
}

/// Of the distribution: from the fastest request to the slowest.
const BARS: u32 = 60;

/// Those for which the run has something to show.
pub(super) fn of(run: &Run) -> Vec<Titled> {
    let charts = [
        ("Latency: share of requests", distribution(run)),
        ("Latency over time", percentiles(run)),
        ("Requests a second", requests(run)),
        ("EKS Auth calls since the start", calls(run)),
        ("Agent CPU, of one core", cpu(run)),
        ("Agent memory, resident", memory(run)),
    ];
    charts.into_iter().filter_map(|(title, chart)| Some(Titled { title, chart: chart? })).collect()
}

/// Groups beside each other where there are any, else all.
fn distribution(run: &Run) -> Option<Chart> {
    let apart: Vec<&Group> = match &run.groups[..] {
        [all] => vec![all],
        [_, apart @ ..] => apart.iter().take(3).collect(),
        [] => return None,
    };
    let apart: Vec<&Group> = apart.into_iter().filter(|group| group.latency.count > 0).collect();
    let edges = apart.iter().filter_map(|group| edges(&group.latency));
    let (least, greatest) = edges.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))?;
    let x = Axis::milliseconds(least, greatest);
    let inks = [Ink::Blue, Ink::Orange, Ink::Green];
    let series: Vec<Series> = apart
        .iter()
        .zip(inks)
        .map(|(group, ink)| {
            let lines = vec![shares(&group.latency, least, greatest)];
            Series { name: group.name.clone(), ink, filled: true, lines }
        })
        .collect();
    let marks = match apart[..] {
        [one] => [("p50", one.latency.p50_ms), ("p99", one.latency.p99_ms)]
            .map(|(name, at)| (at, format!("{name} {}", milliseconds(at))))
            .to_vec(),
        _ => Vec::new(),
    };
    let y = Axis::from_zero(greatest_of(&series), |share| format!("{} %", number(share)));
    Some(Chart { x, y, series, marks })
}

/// Below which and up to which there are requests.
fn edges(latency: &Latency) -> Option<(f64, f64)> {
    let first = latency.distribution.iter().position(|(_, count)| *count > 0)?;
    let last = latency.distribution.iter().position(|(_, count)| *count >= latency.count);
    let lower = lower_edge(latency, first);
    let upper = last.map_or(latency.max_ms, |last| latency.distribution[last].0);
    (upper > lower).then_some((lower, upper))
}

/// A bucket begins where the one before it ends. The first could begin at nothing, which no logarithm has.
fn lower_edge(latency: &Latency, bucket: usize) -> f64 {
    let upper = latency.distribution[bucket].0;
    let before = bucket.checked_sub(1).map_or(0.0, |before| latency.distribution[before].0);
    if before > 0.0 { before } else { upper / 2.0 }
}

/// How many in a hundred fall between two points that are equally far from each other on the axis. Whatever buckets the
/// run was counted in, each is spread over its width.
fn shares(latency: &Latency, least: f64, greatest: f64) -> Vec<(f64, f64)> {
    let (from, width) = (least.ln(), (greatest / least).ln() / f64::from(BARS));
    let mut bars = vec![0.0; BARS as usize];
    let mut before = 0;
    for (bucket, &(upper, up_to)) in latency.distribution.iter().enumerate() {
        let requests = up_to.saturating_sub(before) as f64;
        before = up_to.max(before);
        let (lower, upper) = (lower_edge(latency, bucket).ln(), upper.ln());
        if requests == 0.0 || upper <= lower {
            continue;
        }
        for (bar, share) in (0..BARS).zip(&mut bars) {
            let start = from + width * f64::from(bar);
            let common = (start + width).min(upper) - start.max(lower);
            *share += requests * common.max(0.0) / (upper - lower);
        }
    }
    let middle = |bar: u32| (from + width * (f64::from(bar) + 0.5)).exp();
    (0..BARS).zip(bars).map(|(bar, share)| (middle(bar), 100.0 * share / latency.count as f64)).collect()
}

fn percentiles(run: &Run) -> Option<Chart> {
    let series = vec![
        over_time(run, "p99", Ink::Orange, false, |second| second.p99_ms),
        over_time(run, "p50", Ink::Blue, false, |second| second.p50_ms),
    ];
    let values = || series.iter().flat_map(|series| series.lines.iter().flatten()).map(|(_, value)| *value);
    let least = values().filter(|value| *value > 0.0).min_by(f64::total_cmp)?;
    let y = Axis::milliseconds(least / 1.5, greatest_of(&series) * 1.5);
    Some(timed(run, y, series))
}

fn requests(run: &Run) -> Option<Chart> {
    let series = vec![
        a_second(run, "requests", Ink::Blue, |second| Some(second.requests as f64)),
        a_second(run, "failed", Ink::Red, |second| Some(second.failed as f64)),
    ];
    from_zero(run, number, series)
}

fn calls(run: &Run) -> Option<Chart> {
    let series = vec![
        over_time(run, "with one call a pod", Ink::Orange, false, |second| {
            Some(second.one_call_a_pod as f64)
        }),
        over_time(run, "made", Ink::Blue, true, |second| Some(second.eks_auth_calls? as f64)),
    ];
    run.timeline.iter().any(|second| second.eks_auth_calls.is_some()).then_some(())?;
    from_zero(run, number, series)
}

fn cpu(run: &Run) -> Option<Chart> {
    let series = vec![a_second(run, "CPU", Ink::Blue, |second| Some(second.agent_cpu? * 100.0))];
    from_zero(run, |share| format!("{} %", number(share)), series)
}

fn memory(run: &Run) -> Option<Chart> {
    let series =
        vec![over_time(run, "memory", Ink::Blue, true, |second| Some(second.agent_rss_bytes? as f64 / 1e6))];
    from_zero(run, |size| format!("{} MB", number(size)), series)
}

fn from_zero(run: &Run, label: fn(f64) -> String, series: Vec<Series>) -> Option<Chart> {
    series.iter().any(|series| !series.lines.is_empty()).then_some(())?;
    let y = Axis::from_zero(greatest_of(&series), label);
    Some(timed(run, y, series))
}

fn timed(run: &Run, y: Axis, series: Vec<Series>) -> Chart {
    let last = run.timeline.last().map_or(0.0, |second| second.at_seconds);
    let marks = run.marks.iter().zip(1..).map(|(mark, number)| (mark.at_seconds, format!("{number}")));
    Chart { x: Axis::seconds(last), y, series, marks: marks.collect() }
}

fn over_time(run: &Run, name: &str, ink: Ink, filled: bool, of: impl Fn(&Second) -> Option<f64>) -> Series {
    series(name, ink, filled, run.timeline.iter().map(|second| (second.at_seconds, of(second))))
}

/// What was counted in each second, which may have been longer than one.
fn a_second(run: &Run, name: &str, ink: Ink, of: impl Fn(&Second) -> Option<f64>) -> Series {
    let mut before = 0.0;
    let points = run.timeline.iter().map(|second| {
        let length = second.at_seconds - std::mem::replace(&mut before, second.at_seconds);
        (second.at_seconds, of(second).map(|value| value / length))
    });
    series(name, ink, true, points)
}

/// A new line after each second that has no value.
fn series(name: &str, ink: Ink, filled: bool, points: impl Iterator<Item = (f64, Option<f64>)>) -> Series {
    let points: Vec<(f64, Option<f64>)> = points.collect();
    let lines = points
        .split(|(_, value)| value.is_none())
        .filter(|line| !line.is_empty())
        .map(|line| line.iter().filter_map(|&(at, value)| Some((at, value?))).collect());
    Series { name: name.to_owned(), ink, filled, lines: lines.collect() }
}

fn greatest_of(series: &[Series]) -> f64 {
    let values = series.iter().flat_map(|series| series.lines.iter().flatten()).map(|(_, value)| *value);
    values.max_by(f64::total_cmp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn shares_add_up_to_all_whatever_the_buckets() {
        for distribution in [vec![(1.0, 10), (3.0, 90), (1000.0, 100)], vec![(0.5, 0), (2.0, 100)]] {
            let latency = Latency { count: 100, distribution, ..Latency::default() };
            let (least, greatest) = edges(&latency).unwrap();
            let sum: f64 = shares(&latency, least, greatest).iter().map(|(_, share)| share).sum();
            assert!((sum - 100.0).abs() < 1e-6, "{sum}");
        }
    }

    #[test]
    fn a_second_without_a_value_is_a_gap() {
        let mut run = sample::outage();
        run.timeline.truncate(5);
        run.timeline[2].p50_ms = None;
        let series = over_time(&run, "p50", Ink::Blue, false, |second| second.p50_ms);
        assert_eq!(series.lines.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn longer_seconds_count_as_such() {
        let mut run = sample::outage();
        run.timeline.truncate(2);
        for (second, at) in run.timeline.iter_mut().zip([1.0, 3.0]) {
            (second.at_seconds, second.requests) = (at, 100);
        }
        let series = a_second(&run, "requests", Ink::Blue, |second| Some(second.requests as f64));
        assert_eq!(series.lines, [[(1.0, 100.0), (3.0, 50.0)]]);
    }

    #[test]
    fn charts_without_anything_to_show_are_left_out() {
        assert!(of(&sample::empty()).is_empty());
        let mut run = sample::outage();
        assert_eq!(of(&run).len(), 6);
        for second in &mut run.timeline {
            (second.eks_auth_calls, second.agent_cpu, second.agent_rss_bytes) = (None, None, None);
        }
        assert_eq!(of(&run).len(), 3, "of an agent that is somebody else's");
    }
}
