//! `cargo xtask bench`: what podcred costs, as ratios to what cannot be done without, in one table.
//!
//! Requests per second say how much else a machine does, so they are not in it. What is compared runs at the same time on one
//! processor, and two servers that are the same run beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::process::Command;

mod asking;
mod contest;
mod first_fetch;
mod ground;
mod growth;
mod harness;
mod hyper;
mod memory;
pub(crate) mod middle;
mod plot;
pub(crate) mod row;
mod watched;
mod wrk;

use crate::build::{self, Binaries, root, target};
use crate::clock::Stopwatch;
use crate::image::{self, Arch};
use crate::process::{is_root, quietly};
use crate::report::{Counts, step};
use crate::{bench_connect, setup};
use ground::Ground;
use growth::{Of, Point};
use row::{Row, Verdict};

/// The processor of the servers, and that of the clients.
const SERVERS: usize = 0;
const CLIENTS: usize = 1;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this part of the table (repeatable)
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Number of two-second rounds for each comparison
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(i64::from(middle::FEWEST)..=100))]
    rounds: u32,
    /// Start another agent with this shell command, and add it to the table. In the command, {port}, {probe-port},
    /// {metrics-port}, {endpoint} (of EKS Auth), {issuer}, {cluster} and {scratch} (a folder) are replaced
    #[arg(long, value_name = "COMMAND")]
    against: Option<String>,
    /// Measure this podcred binary instead of the image's
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

impl Arguments {
    fn measures(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A request against bare hyper, without attribution
    Hyper,
    /// The same with attribution: --verify enforce, in network namespaces and cgroups (root)
    Attribution,
    /// A first fetch against the SDK's call alone
    FirstFetch,
    /// Resident memory
    Memory,
    /// From 10 to 10,000 pods
    Pods,
    /// From 1 to 1,000 roles
    Roles,
    /// The load harness: its processor time beside that of wrk, and its memory with ten thousand pods
    Harness,
    /// An unrelated connect() with and without the kernel programs (root); `bench-connect` measures this with more rounds
    Connect,
}

#[derive(Debug, Default, Serialize)]
struct Machine {
    program: String,
    commit: String,
    kernel: String,
    processor: String,
    processors: usize,
}

#[derive(Debug, Default, Serialize)]
struct Results {
    machine: Machine,
    rows: Vec<Row>,
    pods: Vec<Point>,
    roles: Vec<Point>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if arguments.against.is_some() && !arguments.measures(Part::Hyper) {
        bail!("--against is part of `hyper`: name it by --only as well");
    }
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("bench needs two processors: one for the servers, one for their clients");
    }
    if let Some(reason) = setup::wrk().await? {
        bail!("{reason}");
    }
    let programs = Programs::build(arguments.agent.as_deref()).await?;
    let clock = Stopwatch::start();
    let mut results = Results { machine: machine(arguments.agent.as_deref()).await?, ..Results::default() };
    let (mut left_out, mut broken) = (Vec::new(), Vec::new());
    for &part in Part::value_variants() {
        if arguments.measures(part) {
            match Box::pin(part.measure(&programs, arguments, &mut results)).await {
                Ok(reason) => left_out.extend(reason),
                // What was measured before is still worth its time.
                Err(error) => broken.push(format!("{part:?}: {error:#}")),
            }
        }
    }
    println!("\n{}", row::text(&results.rows));
    for reason in &left_out {
        println!("Left out: {reason}");
    }
    for error in &broken {
        println!("Not measured: {error}");
    }
    let folder = write(&results)?;
    step(&format!(
        "Measured in {:.0} s; {}",
        clock.elapsed().as_secs_f32(),
        folder.join("bench.md").display()
    ));
    Ok(judge(&results.rows, broken.len(), left_out.len()))
}

/// What is measured, and what it is measured with.
#[derive(Debug)]
struct Programs {
    podcred: PathBuf,
    bare_hyper: PathBuf,
    others: Binaries,
}

impl Programs {
    /// podcred as it is in the image, which is what runs on nodes, and hyper in the same way.
    async fn build(agent: Option<&Path>) -> Result<Programs> {
        let others = build::static_binaries().await?;
        // Last: beside other packages podcred has more of its dependencies' features than in the image.
        let packages = ["podcred", "bare-hyper"];
        let built = image::binary::build(Arch::here()?, &packages).await?.map_err(Error::msg)?;
        let [podcred, bare_hyper] = packages.map(|package| built.program(package));
        let podcred = agent.map_or(Ok(podcred), std::path::absolute)?;
        Ok(Programs { podcred, bare_hyper, others })
    }
}

/// What the figures are of.
async fn machine(agent: Option<&Path>) -> Result<Machine> {
    let mut git = Command::new("git");
    let commit = quietly("git", git.args(["describe", "--always", "--dirty"]).current_dir(root())).await;
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Machine {
        program: agent
            .map_or("the image's program, statically linked".to_owned(), |agent| agent.display().to_string()),
        commit: commit.unwrap_or_default().trim().to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processor: model.map(|(_, model)| model.to_owned()).unwrap_or_default(),
        processors: std::thread::available_parallelism()?.get(),
    })
}

impl Results {
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.pods.iter().chain(&self.roles)
    }
}

impl Part {
    /// Or why it is left out.
    async fn measure(
        self,
        programs: &Programs,
        arguments: &Arguments,
        results: &mut Results,
    ) -> Result<Option<String>> {
        let rounds = arguments.rounds;
        let logs = target().join("xtask/bench");
        let loopback = async || Ground::loopback(programs, &logs).await;
        match self {
            Part::Attribution | Part::Connect if !is_root() => {
                return Ok(Some("what the kernel programs cost: it takes root".to_owned()));
            }
            Part::Hyper => {
                let against = arguments.against.as_deref();
                let ground = loopback().await?;
                results.rows.extend(hyper::measure(&ground, "not attributing", rounds, against).await?);
            }
            Part::Attribution => match Ground::node(programs, &logs).await? {
                Ok(ground) => results.rows.extend(hyper::measure(&ground, "enforcing", rounds, None).await?),
                Err(reason) => return Ok(Some(format!("attribution: {reason}"))),
            },
            Part::FirstFetch => {
                results.rows.extend(first_fetch::measure(&loopback().await?, &programs.others).await?);
            }
            Part::Memory => results.rows.extend(memory::measure(&loopback().await?).await?),
            Part::Pods => {
                let (row, points) = growth::measure(&loopback().await?, Of::Pods, rounds).await?;
                results.rows.push(row);
                results.pods = points;
            }
            Part::Roles => {
                let (row, points) = growth::measure(&loopback().await?, Of::Roles, rounds).await?;
                results.rows.push(row);
                results.roles = points;
            }
            Part::Harness => {
                results.rows.push(harness::processor(&loopback().await?, &programs.others).await?);
                results.rows.push(harness::memory(&programs.others).await?);
            }
            Part::Connect => results.rows.push(bench_connect::row().await?),
        }
        Ok(None)
    }
}

fn write(results: &Results) -> Result<PathBuf> {
    let folder = target().join("bench");
    // Nothing of another run beside it.
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let Machine { program, commit, kernel, processor, processors } = &results.machine;
    let machine =
        format!("podcred {commit} ({program}), Linux {kernel}, {processors} processors ({processor})\n\n");
    let tables = row::markdown(&results.rows) + &growth::markdown(results.points());
    std::fs::write(folder.join("bench.md"), machine + &tables)?;
    if !results.pods.is_empty() {
        std::fs::write(folder.join("pods.svg"), plot::svg(&results.pods, "pods", |point| point.pods)?)?;
    }
    if !results.roles.is_empty() {
        std::fs::write(folder.join("roles.svg"), plot::svg(&results.roles, "roles", |point| point.roles)?)?;
    }
    std::fs::write(folder.join("bench.json"), serde_json::to_string_pretty(results)?)?;
    Ok(folder)
}

fn judge(rows: &[Row], broken: usize, skipped: usize) -> Counts {
    let count = |verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
    let not_trusted = count(Verdict::NotTrusted);
    if not_trusted > 0 {
        println!(
            "{not_trusted} not to be trusted: servers that are the same differ by more than 2 %; is the machine busy?"
        );
    }
    let counts = Counts {
        passed: count(Verdict::Met),
        failed: count(Verdict::Missed) + not_trusted + broken,
        skipped,
    };
    println!("{counts}");
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_agent_that_would_not_be_measured_is_refused() {
        let against = Some("other --port {port}".to_owned());
        let arguments = Arguments { only: vec![Part::Memory], rounds: 8, against, agent: None };
        let refused = run(&arguments).await.unwrap_err();
        assert!(refused.to_string().starts_with("--against"), "{refused}");
    }
}
