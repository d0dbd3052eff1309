//! The project's binaries, built by cargo.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio::process::Command;

use crate::clock::Stopwatch;
use crate::report::step;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// What users run; minutes to compile
    Release,
    /// Quick to compile
    Dev,
}

#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) simulated_eks: PathBuf,
    pub(crate) sdk_rust: PathBuf,
    pub(crate) loadtest: PathBuf,
    pub(crate) eks_auth_calls: PathBuf,
}

/// All of them whatever is wanted, so that cargo compiles their dependencies with one set of features; and without those of tests.
pub(crate) async fn binaries(profile: Profile) -> Result<Binaries> {
    let (name, folder) = match profile {
        Profile::Release => ("release", "release"),
        Profile::Dev => ("dev", "debug"),
    };
    step(&format!("Building podcred and what it is tried with (cargo, profile {name})"));
    let clock = Stopwatch::start();
    let packages = ["-p", "podcred", "-p", "loadtest", "-p", "sdk-rust"];
    let status = cargo()
        .args(["build", "--bins", "--profile", name])
        .args(packages)
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    let built = |program: &str| target().join(folder).join(program);
    Ok(Binaries {
        agent: built("podcred"),
        simulated_eks: built("simulated-eks"),
        sdk_rust: built("sdk-rust"),
        loadtest: built("loadtest"),
        eks_auth_calls: built("eks-auth-calls"),
    })
}

/// cargo, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}
