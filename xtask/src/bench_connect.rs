//! `cargo xtask bench-connect`: what the kernel programs cost a connect() that is none of theirs.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::build::cargo;
use crate::process::is_root;
use crate::report::{Counts, step, table};

/// The programs may make an unrelated connect() this much slower than programs at the same hooks that do nothing. What the
/// hooks take by themselves is the kernel's: it is more than a hundredth where a connect() is as short as here, between two
/// namespaces of one machine.
const GOAL: f64 = 1.01;

/// With more, measurements without any change differ by as much as what is looked for.
const CONTROL: f64 = 0.005;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How many measurements; one takes about a quarter of a second
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(20..))]
    measurements: u32,
}

/// Which connections, and what two rounds of them differ by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Out of a pod; by nothing.
    Control,
    /// Out of a pod; by programs at the same places that do nothing.
    Empty,
    /// Out of a pod; by the programs.
    Outward,
    /// Within a pod, whose sockets are at both ends; by the programs.
    Inward,
}

/// What the bench program prints.
#[derive(Debug, PartialEq)]
struct Line {
    kind: Kind,
    connect: Pair,
    whole: Pair,
}

/// Nanoseconds of the median connection in two rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    changed: f64,
    plain: f64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if !is_root() {
        bail!("bench-connect loads eBPF programs, which takes root");
    }
    step("Building the bench program (cargo)");
    let mut command = cargo();
    // What is measured is the kernel's: how this program is compiled does not matter.
    command
        .args(["bench", "--quiet", "--profile", "dev", "--package", "podcred", "--bench", "connect", "--"])
        .arg(arguments.measurements.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("cannot run cargo")?;
    let mut lines = BufReader::new(child.stdout.take().context("cargo bench has no stdout")?).lines();
    let mut measured = Vec::new();
    while let Some(line) = lines.next_line().await? {
        if measured.is_empty() {
            step(&format!("Measuring {} times, with the programs and without", arguments.measurements));
        }
        measured.push(Line::parse(&line).with_context(|| format!("the bench program says {line:?}"))?);
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the bench program ended with {status}");
    }
    judge(&measured)
}

fn judge(measured: &[Line]) -> Result<Counts> {
    let series = |kind: Kind, pair: fn(&Line) -> Pair| {
        let lines = measured.iter().filter(move |line| line.kind == kind);
        Series::of(&lines.map(pair).collect::<Vec<_>>())
    };
    let control = series(Kind::Control, |line| line.connect);
    let empty = series(Kind::Empty, |line| line.connect);
    let connect = series(Kind::Outward, |line| line.connect);
    let rows = [
        ("connect() out of a pod, nothing attached", &control),
        ("connect() out of a pod, programs that do nothing", &empty),
        ("connect() out of a pod", &connect),
        ("  socket() to close()", &series(Kind::Outward, |line| line.whole)),
        ("connect() within a pod: both ends pay", &series(Kind::Inward, |line| line.connect)),
        ("  socket() to close()", &series(Kind::Inward, |line| line.whole)),
    ];
    let rows = rows.map(|(what, series)| {
        let [low, high] = series.interval;
        let plain = format!("{:.1} us", series.plain / 1000.0);
        let cost = format!("{:+.2} us", (series.ratio - 1.0) * series.plain / 1000.0);
        vec![what.to_owned(), plain, cost, format!("{:.4}", series.ratio), format!("{low:.4} to {high:.4}")]
    });
    println!("\n{}", table(&["what the programs cost", "without", "cost", "ratio", "95 %"], &rows));
    if (control.ratio - 1.0).abs() > CONTROL {
        bail!("this machine is too busy to tell: rounds that differ by nothing give {:.4}", control.ratio);
    }
    // Measured: 1.06 alone, 1.03 while another process held programs at a cgroup of its own. Rounds without ours then pay for
    // its as well, which no interval shows.
    println!(
        "Only true while nothing else on this machine has cgroup programs attached: beside others the cost looks half as high"
    );
    let ours = connect.ratio / empty.ratio;
    let passed = ours <= GOAL;
    let verdict = if passed { "passed" } else { "FAILED" };
    println!(
        "{verdict}: out of a pod a connect() takes {ours:.4} times what it takes with programs that do nothing; the goal is {GOAL}"
    );
    Ok(Counts { passed: passed.into(), failed: (!passed).into(), skipped: 0 })
}

/// Many pairs of rounds, by their medians.
#[derive(Debug)]
struct Series {
    plain: f64,
    ratio: f64,
    /// Where the ratio is with 95 % confidence, whatever its distribution: between the ranks within which as many heads of
    /// a fair coin fall.
    interval: [f64; 2],
}

impl Series {
    fn of(pairs: &[Pair]) -> Series {
        let sorted = |mut numbers: Vec<f64>| {
            numbers.sort_by(f64::total_cmp);
            numbers
        };
        let ratios = sorted(pairs.iter().map(|pair| pair.changed / pair.plain).collect());
        let plain = sorted(pairs.iter().map(|pair| pair.plain).collect());
        let middle = pairs.len() as f64 / 2.0;
        let away = 0.98 * (pairs.len() as f64).sqrt();
        let at = |numbers: &[f64], rank: f64| {
            let rank = (rank.max(0.0) as usize).min(numbers.len().saturating_sub(1));
            numbers.get(rank).copied().unwrap_or(f64::NAN)
        };
        let interval = [at(&ratios, (middle - away).floor()), at(&ratios, (middle + away).ceil())];
        Series { plain: at(&plain, middle), ratio: at(&ratios, middle), interval }
    }
}

impl Line {
    fn parse(line: &str) -> Result<Line> {
        let (name, numbers) = line.split_once(' ').context("one word")?;
        let kind = match name {
            "control" => Kind::Control,
            "empty" => Kind::Empty,
            "outward" => Kind::Outward,
            "inward" => Kind::Inward,
            _ => bail!("not a measurement"),
        };
        let numbers: Result<Vec<f64>, _> = numbers.split(' ').map(str::parse).collect();
        let [changed, plain, whole_changed, whole_plain] = numbers?[..] else { bail!("not four numbers") };
        let (connect, whole) = (Pair { changed, plain }, Pair { changed: whole_changed, plain: whole_plain });
        Ok(Line { kind, connect, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_lies_around_the_median_and_leaves_outliers_out() {
        let mut pairs: Vec<Pair> =
            (0..100).rev().map(|n| Pair { changed: f64::from(n), plain: 1.0 }).collect();
        pairs.push(Pair { changed: 1e9, plain: 1.0 });
        let series = Series::of(&pairs);
        assert_eq!((series.ratio, series.interval), (50.0, [40.0, 61.0]));
    }

    #[test]
    fn measurements_are_read_off_the_lines_of_the_bench_program() {
        let line = Line::parse("inward 3 2 7 5").unwrap();
        let (connect, whole) = (Pair { changed: 3.0, plain: 2.0 }, Pair { changed: 7.0, plain: 5.0 });
        assert_eq!(line, Line { kind: Kind::Inward, connect, whole });
        assert_eq!(Line::parse("control 3 2 7 5").unwrap().kind, Kind::Control);
        assert!(Line::parse("inward 3 2 7").is_err() && Line::parse("else 3 2 7 5").is_err());
    }

    #[test]
    fn a_cost_above_the_goal_fails_and_a_busy_machine_is_not_judged() {
        let line = |kind, changed| {
            let pair = Pair { changed, plain: 1000.0 };
            Line { kind, connect: pair, whole: pair }
        };
        let judged = |control, programs| {
            judge(&[
                line(Kind::Control, control),
                line(Kind::Empty, 1030.0),
                line(Kind::Outward, programs),
                line(Kind::Inward, 1900.0),
            ])
        };
        assert_eq!(judged(1001.0, 1035.0).unwrap(), Counts { passed: 1, failed: 0, skipped: 0 });
        assert_eq!(judged(1001.0, 1050.0).unwrap(), Counts { passed: 0, failed: 1, skipped: 0 });
        assert!(judged(1030.0, 1005.0).is_err());
    }
}
