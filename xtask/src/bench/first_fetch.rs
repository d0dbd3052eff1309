//! A first fetch: a token that was never seen, of a role that was never fetched, beside the call of EKS Auth alone.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::Tools;
use super::asking::Asking;
use super::ground::Ground;
use super::middle::Middle;
use super::row::{Row, Unit};
use super::watched::Watched;
use crate::clock::Stopwatch;
use crate::process::Process;
use crate::report::step;

const FETCHES: usize = 200;

/// Microseconds of a fetch, and what it costs.
#[derive(Debug)]
struct Cost {
    times: Vec<f64>,
    cpu: f64,
}

pub(crate) async fn measure(ground: &Ground<'_>, tools: &Tools) -> Result<Vec<Row>> {
    step(&format!("{FETCHES} first fetches, and as many calls of EKS Auth by the SDK alone"));
    let agent = agent(ground).await?;
    let sdk = sdk(ground, tools).await?;
    let row = |what: &str, sdk: f64, agent: f64| Row {
        what: format!("first fetch against the SDK's call alone, {what}"),
        value: sdk / agent,
        unit: Unit::Ratio,
        interval: None,
        control: None,
        goal: None,
        detail: format!("SDK {sdk:.0} µs, podcred {agent:.0} µs"),
    };
    let median = |cost: &Cost| Middle::of(cost.times.iter().copied()).median;
    Ok(vec![row("time", median(&sdk), median(&agent)), row("CPU", sdk.cpu, agent.cpu)])
}

async fn agent(ground: &Ground<'_>) -> Result<Cost> {
    let tokens = ground.tokens("first", FETCHES + 1, FETCHES + 1).await?;
    let agent = ground.agent().await?;
    let mut asking = Asking::open(&ground.place, agent.address).await?;
    let mut times = Vec::new();
    let mut before = agent.server.process.cpu()?;
    for (at, token) in tokens.all.iter().enumerate() {
        let clock = Stopwatch::start();
        asking.ask(token).await?;
        match at {
            // Has the agent connect to EKS Auth and fetch the issuer's keys.
            0 => before = agent.server.process.cpu()?,
            _ => times.push(clock.elapsed().as_secs_f64() * 1e6),
        }
    }
    let cpu = agent.server.process.cpu()? - before;
    Ok(Cost { cpu: cpu.as_secs_f64() * 1e6 / times.len() as f64, times })
}

async fn sdk(ground: &Ground<'_>, tools: &Tools) -> Result<Cost> {
    let tokens = ground.tokens("sdk", FETCHES + 1, FETCHES + 1).await?;
    let mut command = ground.place.command(&tools.eks_auth_calls.display().to_string());
    command
        .args([ground.eks.cluster_name(), ground.eks.url()])
        .env_clear()
        .envs(ground.eks.node_environment())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = Process::spawn("eks-auth-calls", command, &ground.log("eks-auth-calls"))?;
    let watched = Watched::new(process.id())?;
    watched.pin(super::SERVERS)?;
    let mut stdin = process.child().stdin.take().context("no stdin")?;
    let mut answers = BufReader::new(process.child().stdout.take().context("no stdout")?).lines();
    let mut times = Vec::new();
    let mut before = watched.cpu()?;
    for (at, token) in tokens.all.iter().enumerate() {
        stdin.write_all(format!("{token}\n").as_bytes()).await?;
        let Some(line) = answers.next_line().await? else {
            bail!("eks-auth-calls ended:\n{}", process.log_tail());
        };
        let time: f64 = line.parse().with_context(|| format!("EKS Auth: {line}"))?;
        match at {
            0 => before = watched.cpu()?,
            _ => times.push(time),
        }
    }
    let cpu = watched.cpu()? - before;
    Ok(Cost { cpu: cpu.as_secs_f64() * 1e6 / times.len() as f64, times })
}
