//! `cargo xtask bench-connect`: what the kernel programs cost a connect() that is none of theirs.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::build::cargo;
use crate::process::is_root;
use crate::report::{Counts, step};

/// The programs may make an unrelated connect() this much slower.
const GOAL: f64 = 1.01;

/// With more, measurements without any change differ by as much as what is looked for.
const CONTROL: f64 = 0.005;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How many measurements; one takes about a quarter of a second
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(20..))]
    measurements: u32,
}

/// Ratios of two rounds that follow each other.
#[derive(Debug, Default)]
struct Ratios(Vec<f64>);

/// What the bench program prints for one measurement.
#[derive(Debug, PartialEq)]
enum Line {
    /// Two rounds that differ by nothing.
    Control(f64),
    /// A round with the programs attached, and one without, in nanoseconds.
    Programs { with: f64, without: f64 },
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
    let (mut control, mut programs, mut without) = (Ratios::default(), Ratios::default(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        match Line::parse(&line).with_context(|| format!("the bench program says {line:?}"))? {
            Line::Control(ratio) => control.0.push(ratio),
            Line::Programs { with, without: plain } => {
                programs.0.push(with / plain);
                without.push(plain);
            }
        }
        if programs.0.len() == 1 && without.len() == control.0.len() {
            step(&format!("Measuring {} times, with the programs and without", arguments.measurements));
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the bench program ended with {status}");
    }
    judge(control, programs, without)
}

fn judge(mut control: Ratios, mut programs: Ratios, mut without: Vec<f64>) -> Result<Counts> {
    without.sort_by(f64::total_cmp);
    let plain = without.get(without.len() / 2).context("nothing was measured")? / 1000.0;
    let (noise, [noise_low, noise_high]) = (control.median(), control.interval());
    let (ratio, [low, high]) = (programs.median(), programs.interval());
    println!("A connect() over loopback without the programs: {plain:.1} us");
    println!("control, nothing attached:   {noise:.4} (95 %: {noise_low:.4} to {noise_high:.4})");
    println!("with the programs, without:  {ratio:.4} (95 %: {low:.4} to {high:.4})");
    if (noise - 1.0).abs() > CONTROL {
        bail!(
            "the machine is too busy to tell: two rounds that differ by nothing differ by {:.1} %",
            (noise - 1.0) * 100.0
        );
    }
    let passed = ratio <= GOAL;
    let cost = (ratio - 1.0) * 100.0;
    let verdict = if passed { "passed" } else { "FAILED" };
    println!(
        "{verdict}: {cost:+.2} %, {:+.2} us; the goal is at most {:.0} %",
        (ratio - 1.0) * plain,
        (GOAL - 1.0) * 100.0
    );
    Ok(Counts { passed: passed.into(), failed: (!passed).into(), skipped: 0 })
}

impl Line {
    fn parse(line: &str) -> Result<Line> {
        let mut words = line.split(' ');
        let name = words.next();
        let mut number =
            || words.next().context("a number is missing")?.parse::<f64>().context("not a number");
        let (with, without) = (number()?, number()?);
        match name {
            Some("control") => Ok(Line::Control(with / without)),
            Some("programs") => Ok(Line::Programs { with, without }),
            Some(_) | None => bail!("not a measurement"),
        }
    }
}

impl Ratios {
    fn median(&mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Where the median is with 95 % confidence, whatever the distribution: by the ranks between which a fair coin's
    /// heads fall.
    fn interval(&mut self) -> [f64; 2] {
        self.0.sort_by(f64::total_cmp);
        let count = self.0.len() as f64;
        let away = 0.98 * count.sqrt();
        let at =
            |rank: f64| self.0.get(rank.max(0.0) as usize).or(self.0.last()).copied().unwrap_or(f64::NAN);
        [at((count / 2.0 - away).floor()), at((count / 2.0 + away).ceil())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_lies_around_the_median_and_leaves_outliers_out() {
        let mut ratios = Ratios((0..100).map(f64::from).rev().collect());
        ratios.0.push(1e9);
        assert_eq!(ratios.median(), 50.0);
        assert_eq!(ratios.interval(), [40.0, 61.0]);
    }

    #[test]
    fn measurements_are_read_off_the_lines_of_the_bench_program() {
        assert_eq!(Line::parse("control 300 200").unwrap(), Line::Control(1.5));
        assert_eq!(Line::parse("programs 3 2").unwrap(), Line::Programs { with: 3.0, without: 2.0 });
        assert!(Line::parse("programs 3").is_err() && Line::parse("else 3 2").is_err());
    }
}
