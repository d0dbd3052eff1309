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
}

impl Profile {
    /// As cargo knows it, and the folder below `target/` that it builds into.
    fn name_and_folder(self) -> (&'static str, &'static str) {
        match self {
            Profile::Release => ("release", "release"),
            Profile::Dev => ("dev", "debug"),
        }
    }
}

pub(crate) async fn binaries(profile: Profile) -> Result<Binaries> {
    let packages = ["--bins", "-p", "podcred", "-p", "loadtest", "-p", "sdk-rust"];
    let folder = build("podcred, the simulated EKS and the Rust client", profile, &packages).await?;
    Ok(Binaries {
        agent: folder.join("podcred"),
        simulated_eks: folder.join("simulated-eks"),
        sdk_rust: folder.join("sdk-rust"),
    })
}

/// `cargo build`; gives the folder of what was built.
pub(crate) async fn build(what: &str, profile: Profile, arguments: &[&str]) -> Result<PathBuf> {
    let (name, folder) = profile.name_and_folder();
    step(&format!("Building {what} (cargo, profile {name})"));
    let clock = Stopwatch::start();
    let status = cargo()
        .args(["build", "--profile", name])
        .args(arguments)
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(target().join(folder))
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
