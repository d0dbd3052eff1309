//! A first fetch: a token that was never seen, of a role that was never fetched, in turn with a call of EKS Auth by AWS's SDK
//! alone.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

use super::asking::Asking;
use super::ground::Ground;
use super::middle::Middle;
use super::row::{Row, Unit};
use super::watched::Watched;
use crate::build::Binaries;
use crate::clock::Stopwatch;
use crate::process::Process;
use crate::report::step;

const FETCHES: usize = 300;

/// Microseconds.
#[derive(Clone, Copy, Debug)]
struct Cost {
    time: f64,
    cpu: f64,
}

pub(crate) async fn measure(ground: &Ground<'_>, binaries: &Binaries) -> Result<Vec<Row>> {
    // The first of each connects to EKS Auth, and the agent's fetches the issuer's keys.
    let roles = FETCHES + 1;
    let (tokens, alone) =
        (ground.tokens("first", roles, roles).await?, ground.tokens("alone", roles, roles).await?);
    let agent = ground.agent().await?;
    let mut asking = Asking::open(&ground.place, agent.address).await?;
    let mut sdk = Sdk::start(ground, binaries)?;
    step(&format!("{FETCHES} first fetches, and as many calls of EKS Auth by the SDK alone"));
    let mut costs = Vec::new();
    for (token, alone) in tokens.all.iter().zip(&alone.all) {
        let cpu = agent.server.process.cpu()?;
        let clock = Stopwatch::start();
        asking.ask(token).await?;
        let fetch = Cost {
            time: microseconds(clock.elapsed()),
            cpu: microseconds(agent.server.process.cpu()? - cpu),
        };
        costs.push((sdk.call(alone).await?, fetch));
    }
    costs.remove(0);
    Ok(vec![row("time", &costs, |cost| cost.time), row("CPU", &costs, |cost| cost.cpu)])
}

fn row(what: &str, costs: &[(Cost, Cost)], of: fn(&Cost) -> f64) -> Row {
    let ratio = Middle::of(costs.iter().map(|(sdk, fetch)| of(sdk) / of(fetch)));
    let sdk = Middle::of(costs.iter().map(|(sdk, _)| of(sdk))).median;
    let fetch = Middle::of(costs.iter().map(|(_, fetch)| of(fetch))).median;
    Row {
        what: format!("first fetch against the SDK's call alone, {what}"),
        value: ratio.median,
        unit: Unit::Ratio,
        interval: Some(ratio.interval),
        control: None,
        goal: None,
        detail: format!("SDK {sdk:.0} µs, podcred {fetch:.0} µs"),
    }
}

/// The program that calls EKS Auth and nothing else.
#[derive(Debug)]
struct Sdk {
    process: Process,
    watched: Watched,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Sdk {
    fn start(ground: &Ground<'_>, binaries: &Binaries) -> Result<Sdk> {
        let mut command = ground.place.command(&binaries.eks_auth_calls.display().to_string());
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
        let stdin = process.child().stdin.take().context("no stdin")?;
        let answers = BufReader::new(process.child().stdout.take().context("no stdout")?).lines();
        Ok(Sdk { process, watched, stdin, answers })
    }

    /// Its time is taken in here and not there, as a fetch's is.
    async fn call(&mut self, token: &str) -> Result<Cost> {
        let cpu = self.watched.cpu()?;
        let clock = Stopwatch::start();
        self.stdin.write_all(format!("{token}\n").as_bytes()).await?;
        let Some(line) = self.answers.next_line().await? else {
            bail!("eks-auth-calls ended:\n{}", self.process.log_tail());
        };
        let time = microseconds(clock.elapsed());
        if line != "ok" {
            bail!("EKS Auth: {line}");
        }
        Ok(Cost { time, cpu: microseconds(self.watched.cpu()? - cpu) })
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
