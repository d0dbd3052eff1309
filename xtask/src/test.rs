//! `cargo xtask test`: everything that is checked, and what was left out.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::build::{Profile, cargo, target};
use crate::clock::Stopwatch;
use crate::process::{is_root, quietly};
use crate::report::{Counts, step, table};
use crate::sdk::Sdk;
use crate::{build_ebpf, demo, deploy_check, kernels, sdks, setup};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this step (repeatable)
    #[arg(long, value_enum, value_name = "STEP")]
    only: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// cargo fmt --check
    Format,
    /// cargo clippy, all targets, warnings denied
    Clippy,
    /// cargo xtask build-ebpf --check: the committed kernel programs are what their source gives
    Ebpf,
    /// cargo test: unit, integration and doc tests; AWS's own clients, promtool and a short run of each load test among them
    Tests,
    /// cargo xtask sdks
    Sdks,
    /// cargo xtask demo, short
    Demo,
    /// cargo xtask kernels, on the oldest
    Kernels,
    /// cargo xtask deploy-check: chart, alerts, dashboard, image, and all of it on a Kubernetes node
    Deploy,
    /// cargo deny check
    Deny,
}

/// What a step did not do, and why.
type LeftOut = Option<String>;

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    let mut rows = Vec::new();
    let mut total = Counts::default();
    let mut left_out = Vec::new();
    for &one in Step::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(&one) {
            continue;
        }
        let name = one.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("\n━━━ {name}");
        let clock = Stopwatch::start();
        // A step that cannot be carried out has failed; the others are still worth their while.
        let (counts, reason) = one.run().await.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            (Counts { failed: 1, ..Counts::default() }, None)
        });
        total.add(counts);
        left_out.extend(reason.map(|reason| format!("{name}: {reason}")));
        let numbers = [counts.passed, counts.failed, counts.skipped].map(|number| number.to_string());
        let time = format!("{:.0} s", clock.elapsed().as_secs_f32());
        rows.push([vec![name], numbers.to_vec(), vec![time]].concat());
    }
    println!("\n{}", table(&["step", "passed", "failed", "skipped", "time"], &rows));
    for reason in left_out {
        println!("Left out: {reason}");
    }
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total)
}

impl Step {
    async fn run(self) -> Result<(Counts, LeftOut)> {
        match self {
            Step::Format => one(cargo().args(["fmt", "--all", "--check"])).await,
            Step::Clippy => {
                let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
                one(cargo().args(arguments)).await
            }
            Step::Ebpf => Ok((build_ebpf::run(&build_ebpf::Arguments { check: true }).await?, None)),
            Step::Tests => tests().await,
            Step::Sdks => Ok((Box::pin(sdks::run(&sdks::Arguments::default())).await?, None)),
            Step::Demo => {
                let (pods, roles) = (12, 3);
                let short = demo::Arguments { keep: false, pods, roles, profile: Profile::Dev, agent: None };
                Ok((Box::pin(demo::run(&short)).await?, None))
            }
            Step::Kernels => kernels().await,
            Step::Deploy => deploy().await,
            Step::Deny => deny().await,
        }
    }
}

/// A command that passes or fails as a whole.
async fn one(command: &mut Command) -> Result<(Counts, LeftOut)> {
    let passed = command.stdin(Stdio::null()).kill_on_drop(true).status().await?.success();
    Ok((Counts { passed: passed.into(), failed: (!passed).into(), skipped: 0 }, None))
}

/// `cargo test`, its output passed through and its results added up.
async fn tests() -> Result<(Counts, LeftOut)> {
    setup::sdks(&[Sdk::Python, Sdk::Cli]).await?;
    let promtool = setup::promtool().await?;
    let no_browser = setup::chromium().await?;
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("PODCRED_AWS_CLIENTS", setup::venv())
        // Built by the same command, for the agent's own tests.
        .env("PODCRED_BINARY", target().join("debug/podcred"))
        .env("PATH", with_folder_of(promtool.as_deref())?);
    let mut left_out = Vec::new();
    left_out.extend(no_browser.as_deref());
    if promtool.is_none() {
        left_out.push("promtool's check of /metrics: no promtool and no apt-get");
    }
    if !is_root() {
        left_out.push("what needs root: the tests of the kernel programs, the simulated node and its pods, load tests in cgroups and namespaces, `podcred initialize`, and `podcred flush` by another user; they are counted but did nothing");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("cargo test has no stdout")?).lines();
    let mut counts = Counts::default();
    while let Some(line) = lines.next_line().await? {
        println!("{line}");
        counts.add(test_result(&line));
    }
    let status = child.wait().await?;
    if !status.success() && counts.failed == 0 {
        step(&format!(
            "cargo test ended with {status} though no test failed: something did not compile or crashed"
        ));
        counts.failed = 1;
    }
    counts.skipped += left_out.len();
    Ok((counts, (!left_out.is_empty()).then(|| left_out.join("; "))))
}

/// The PATH, with the folder of this program as its last.
fn with_folder_of(program: Option<&Path>) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = program.and_then(Path::parent).map(Path::to_owned);
    Ok(std::env::join_paths(std::env::split_paths(&path).chain(folder))?)
}

/// The numbers of `test result: ok. 12 passed; 0 failed; 1 ignored; …`; none of any other line.
pub(crate) fn test_result(line: &str) -> Counts {
    let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
        return Counts::default();
    };
    let number = |word: &str| {
        let mut parts = numbers.split("; ");
        parts.find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or_default()
    };
    Counts { passed: number("passed"), failed: number("failed"), skipped: number("ignored") }
}

async fn kernels() -> Result<(Counts, LeftOut)> {
    if let Some(reason) = setup::emulator().await? {
        return Ok((Counts { skipped: 1, ..Counts::default() }, Some(reason)));
    }
    let arguments = kernels::Arguments {
        only: vec![kernels::oldest()],
        keep_going: false,
        connections: kernels::CONNECTIONS,
        filters: Vec::new(),
    };
    Ok((Box::pin(kernels::run_here(&arguments)).await?, None))
}

async fn deploy() -> Result<(Counts, LeftOut)> {
    let (counts, left_out) = deploy_check::check(&deploy_check::Arguments::default()).await?;
    Ok((counts, (!left_out.is_empty()).then(|| left_out.join("; "))))
}

async fn deny() -> Result<(Counts, LeftOut)> {
    if quietly("cargo deny", cargo().args(["deny", "--version"])).await.is_err() {
        let reason = "cargo-deny is not installed (cargo install cargo-deny)".to_owned();
        return Ok((Counts { skipped: 1, ..Counts::default() }, Some(reason)));
    }
    let (counts, _) = one(cargo().args(["deny", "check", "licenses", "bans", "sources"])).await?;
    // The database is a git repository, which not every machine can reach.
    let advisories = quietly("cargo deny", cargo().args(["deny", "fetch", "db"])).await;
    match advisories {
        Ok(_) => {
            let mut all = one(cargo().args(["deny", "check", "advisories"])).await?.0;
            all.add(counts);
            Ok((all, None))
        }
        Err(_) => {
            let reason = "advisories: their database cannot be fetched from here".to_owned();
            Ok((Counts { skipped: counts.skipped + 1, ..counts }, Some(reason)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_cargo_test_are_read_off_its_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(test_result(line), Counts { passed: 12, failed: 3, skipped: 1 });
        assert_eq!(test_result("test config::tests::a ... ok"), Counts::default());
    }
}
