//! `cargo xtask bench-connect`: what the kernel programs cost a connect() that is none of theirs.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::bench::middle::Middle;
use crate::bench::row::{Control, Goal, Row, Unit};
use crate::build::cargo;
use crate::process::is_root;
use crate::report::{Counts, step, table};

/// The programs may make an unrelated connect() this much slower than programs at the same hooks that do nothing. What the
/// hooks take by themselves is the kernel's: it is more than a hundredth where a connect() is as short as here, between two
/// namespaces of one machine.
const GOAL: f64 = 1.01;

/// With more, measurements without any change differ by as much as what is looked for.
const CONTROL: f64 = 0.005;

const MEASUREMENTS: u32 = 150;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of measurements; each takes about a quarter of a second
    #[arg(long, value_name = "N", default_value_t = MEASUREMENTS, value_parser = clap::value_parser!(u32).range(20..))]
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
    judge(&measure(arguments.measurements).await?)
}

/// For the table of `cargo xtask bench`.
pub(crate) async fn row() -> Result<Row> {
    let Measured { control, outward, ours, .. } = Measured::of(&measure(MEASUREMENTS).await?);
    let Series { plain, ratio } = outward;
    Ok(Row {
        what: "unrelated connect(), kernel programs against such that do nothing".to_owned(),
        value: ours.median,
        unit: Unit::Ratio,
        interval: Some(ours.interval),
        control: Some(Control { ratio: control.ratio.median, tolerance: CONTROL }),
        goal: Some(Goal::AtMost(GOAL)),
        detail: format!(
            "{:.1} µs without any, {:+.2} µs with ours ({:.3})",
            plain / 1000.0,
            (ratio.median - 1.0) * plain / 1000.0,
            ratio.median
        ),
    })
}

async fn measure(measurements: u32) -> Result<Vec<Line>> {
    step("Building the bench program (cargo)");
    let mut command = cargo();
    // What is measured is the kernel's: how this program is compiled does not matter.
    command
        .args(["bench", "--quiet", "--profile", "dev", "--package", "podcred", "--bench", "connect", "--"])
        .arg(measurements.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("cannot run cargo")?;
    let mut lines = BufReader::new(child.stdout.take().context("cargo bench has no stdout")?).lines();
    let mut measured = Vec::new();
    while let Some(line) = lines.next_line().await? {
        if measured.is_empty() {
            step(&format!("Measuring {measurements} times, with the programs and without"));
        }
        measured.push(Line::parse(&line).with_context(|| format!("the bench program says {line:?}"))?);
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the bench program ended with {status}");
    }
    Ok(measured)
}

#[derive(Debug)]
struct Measured {
    control: Series,
    empty: Series,
    outward: Series,
    outward_whole: Series,
    inward: Series,
    inward_whole: Series,
    /// A connect() out of a pod with our programs, to one with programs that do nothing.
    ours: Middle,
}

impl Measured {
    fn of(lines: &[Line]) -> Measured {
        let pairs = |kind: Kind, pair: fn(&Line) -> Pair| {
            lines.iter().filter(move |line| line.kind == kind).map(pair).collect::<Vec<_>>()
        };
        let [control, empty, outward, inward] = [Kind::Control, Kind::Empty, Kind::Outward, Kind::Inward]
            .map(|kind| pairs(kind, |line| line.connect));
        let [outward_whole, inward_whole] =
            [Kind::Outward, Kind::Inward].map(|kind| pairs(kind, |line| line.whole));
        let slower = |pair: &Pair| pair.changed / pair.plain;
        let beside = outward.iter().zip(&empty);
        let beside: Vec<Pair> =
            beside.map(|(ours, empty)| Pair { changed: slower(ours), plain: slower(empty) }).collect();
        Measured {
            ours: Series::of(&beside).ratio,
            control: Series::of(&control),
            empty: Series::of(&empty),
            outward: Series::of(&outward),
            outward_whole: Series::of(&outward_whole),
            inward: Series::of(&inward),
            inward_whole: Series::of(&inward_whole),
        }
    }
}

fn judge(measured: &[Line]) -> Result<Counts> {
    let Measured { control, empty, outward, outward_whole, inward, inward_whole, ours } =
        Measured::of(measured);
    let rows = [
        ("connect() out of a pod, nothing attached", &control),
        ("connect() out of a pod, programs that do nothing", &empty),
        ("connect() out of a pod", &outward),
        ("  socket() to close()", &outward_whole),
        ("connect() within a pod: both ends pay", &inward),
        ("  socket() to close()", &inward_whole),
    ];
    let rows = rows.map(|(what, series)| {
        let [low, high] = series.ratio.interval;
        let plain = format!("{:.1} us", series.plain / 1000.0);
        let cost = format!("{:+.2} us", (series.ratio.median - 1.0) * series.plain / 1000.0);
        vec![
            what.to_owned(),
            plain,
            cost,
            format!("{:.4}", series.ratio.median),
            format!("{low:.4} to {high:.4}"),
        ]
    });
    println!("\n{}", table(&["what the programs cost", "without", "cost", "ratio", "95 %"], &rows));
    if (control.ratio.median - 1.0).abs() > CONTROL {
        bail!(
            "this machine is too busy to tell: rounds that differ by nothing give {:.4}",
            control.ratio.median
        );
    }
    // Measured: 1.06 alone, 1.03 while another process held programs at a cgroup of its own. Rounds without ours then pay for
    // its as well, which no interval shows.
    println!(
        "Only true while nothing else on this machine has cgroup programs attached: beside others the cost looks half as high"
    );
    let passed = ours.median <= GOAL;
    let verdict = if passed { "passed" } else { "FAILED" };
    println!(
        "{verdict}: out of a pod a connect() takes {:.4} times what it takes with programs that do nothing; the goal is {GOAL}",
        ours.median
    );
    Ok(Counts { passed: passed.into(), failed: (!passed).into(), skipped: 0 })
}

/// Many pairs of rounds, by their medians.
#[derive(Debug)]
struct Series {
    plain: f64,
    ratio: Middle,
}

impl Series {
    fn of(pairs: &[Pair]) -> Series {
        let plain = Middle::of(pairs.iter().map(|pair| pair.plain)).median;
        Series { plain, ratio: Middle::of(pairs.iter().map(|pair| pair.changed / pair.plain)) }
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
