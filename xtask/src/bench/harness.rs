//! What a request costs the load harness, beside what it costs wrk: a harness that is busy with itself measures itself.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::CLIENTS;
use super::ground::{Ground, Tokens};
use super::middle::{FEWEST, Middle};
use super::row::{Control, Goal, Row, Unit};
use super::wrk::{self, Connections};
use crate::build::Binaries;
use crate::place::Place;
use crate::process::quietly;
use crate::report::step;

const GOAL: f64 = 1.20;
const PODS: usize = 32;
const ROUNDS: u32 = FEWEST;
const SECONDS: u32 = 6;
/// Its pods close each connection, as wrk is told to.
const CLIENT: &str = "js";

pub(crate) async fn measure(ground: &Ground<'_>, binaries: &Binaries) -> Result<Row> {
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
        .stdin(Stdio::null());
    let cpu = wrk::children(&quietly("the load harness", &mut command).await?)?;
    let report = std::fs::read(output.path().join("report.json")).context("the harness wrote no report")?;
    let Report { totals } = serde_json::from_slice(&report)?;
    ensure!(totals.attempts > 0 && totals.failed == 0, "the harness was not served: {totals:?}");
    Ok(cpu.as_secs_f64() * 1e6 / totals.attempts as f64)
}
