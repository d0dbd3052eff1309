//! What a request costs the load harness, beside what it costs wrk: a harness that is busy with itself measures itself. And what
//! memory its pods take.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::CLIENTS;
use super::ground::{Ground, Tokens};
use super::middle::{FEWEST, Middle};
use super::row::{Control, Goal, Row, Unit};
use super::wrk::{self, Connections};
use crate::build::{Binaries, ONE_ARENA};
use crate::place::Place;
use crate::process::{is_root, quietly};
use crate::report::step;

const GOAL: f64 = 1.20;
const PODS: usize = 32;
const ROUNDS: u32 = FEWEST;
const SECONDS: u32 = 6;
/// Its pods close each connection, as wrk is told to.
const CLIENT: &str = "js";

const MANY_PODS: u32 = 10_000;
const MANY_PODS_GOAL: f64 = 95.0;

pub(crate) async fn processor(ground: &Ground<'_>, binaries: &Binaries) -> Result<Row> {
    let tokens = ground.tokens("harness", PODS, 1).await?;
    let agent = ground.agent().await?;
    let folder = tempfile::tempdir()?;
    for (pod, token) in tokens.all.iter().enumerate() {
        std::fs::write(folder.path().join(format!("pod-{pod}")), token)?;
    }
    step(&format!("The harness, wrk and wrk at the same time on one processor: {ROUNDS} rounds"));
    let url = &agent.server.url;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let round = tokio::try_join!(
            one_wrk(ground, &tokens, url),
            one_wrk(ground, &tokens, url),
            one_harness(binaries, folder.path(), url)
        );
        rounds.push(round?);
    }
    let ratio = Middle::of(rounds.iter().map(|(one, two, harness)| harness / ((one + two) / 2.0)));
    let control = Middle::of(rounds.iter().map(|(one, two, _)| one / two)).median;
    let wrk = Middle::of(rounds.iter().map(|(one, ..)| *one)).median;
    let harness = Middle::of(rounds.iter().map(|(.., harness)| *harness)).median;
    Ok(Row {
        what: "load harness against wrk, close".to_owned(),
        value: ratio.median,
        unit: Unit::Ratio,
        interval: Some(ratio.interval),
        control: Some(Control::of_servers(control)),
        goal: Some(Goal::AtMost(GOAL)),
        detail: format!("wrk {wrk:.1} µs, harness {harness:.1} µs a request"),
    })
}

/// CPU microseconds a request.
async fn one_wrk(ground: &Ground<'_>, tokens: &Tokens, url: &str) -> Result<f64> {
    let ran = wrk::run(ground.client(tokens), url, Connections::Close, SECONDS).await?;
    Ok(ran.cpu.as_secs_f64() * 1e6 / ran.requests as f64)
}

#[derive(Debug, Deserialize)]
struct Report {
    totals: Totals,
}

#[derive(Debug, Deserialize)]
struct Totals {
    attempts: u64,
    failed: u64,
    harness_peak_rss_bytes: u64,
}

impl Report {
    async fn of(output: &Path) -> Result<Totals> {
        let report = tokio::fs::read(output.join("report.json")).await;
        let Report { totals } = serde_json::from_slice(&report.context("the harness wrote no report")?)?;
        ensure!(totals.attempts > 0 && totals.failed == 0, "the harness was not served: {totals:?}");
        Ok(totals)
    }
}

async fn one_harness(binaries: &Binaries, tokens: &Path, url: &str) -> Result<f64> {
    let output = tempfile::tempdir()?;
    let mut command = Place::Host.command("sh");
    command
        .args(["-c", wrk::TIMED, "sh", "taskset", "--cpu-list", &CLIENTS.to_string()])
        .arg(&binaries.loadtest)
        .args(["saturate", "--client", CLIENT, "--agent", url, "--pods", &PODS.to_string()])
        .args(["--duration", &format!("{SECONDS}s"), "--within", "100ms", "--expect", "failed=0"])
        .arg("--token-dir")
        .arg(tokens)
        .arg("--output")
        .arg(output.path())
        .envs([ONE_ARENA])
        .stdin(Stdio::null());
    let cpu = wrk::children(&quietly("the load harness", &mut command).await?)?;
    Ok(cpu.as_secs_f64() * 1e6 / Report::of(output.path()).await?.attempts as f64)
}

/// As root each pod has a cgroup.
pub(crate) async fn memory(binaries: &Binaries) -> Result<Row> {
    step(&format!("The harness with {MANY_PODS} pods"));
    let output = tempfile::tempdir()?;
    let mut command = Command::new(&binaries.loadtest);
    command
        .args(["rollout", "--pods", &MANY_PODS.to_string(), "--expect", "failed=0", "--binary"])
        .arg(&binaries.agent)
        .arg("--output")
        .arg(output.path())
        .envs([ONE_ARENA]);
    quietly("the load harness", &mut command).await?;
    let peak = Report::of(output.path()).await?.harness_peak_rss_bytes as f64 / 1e6;
    Ok(Row {
        what: format!("load harness, memory with {MANY_PODS} pods"),
        value: peak,
        unit: Unit::Megabytes,
        interval: None,
        control: None,
        goal: Some(Goal::AtMost(MANY_PODS_GOAL)),
        detail: if is_root() { "a cgroup each" } else { "on loopback" }.to_owned(),
    })
}
