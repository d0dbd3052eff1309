//! The project's binaries, built by cargo.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use clap::ValueEnum;
use tokio::process::Command;

use crate::clock::Stopwatch;
use crate::image::{Arch, binary};
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

/// All of them whatever is wanted, so that cargo compiles their dependencies with one set of features.
const PACKAGES: [&str; 3] = ["podcred", "loadtest", "sdk-rust"];

/// Linked as podcred is in the image, which is what runs on nodes. The load harness is smaller so, and can be copied into any container.
pub(crate) async fn static_binaries() -> Result<Binaries> {
    let built = binary::build(Arch::here()?, &PACKAGES).await?.map_err(Error::msg)?;
    Ok(Binaries::of(|program| built.program(program)))
}

pub(crate) async fn binaries(profile: Profile) -> Result<Binaries> {
    let (name, folder) = match profile {
        Profile::Release => ("release", "release"),
        Profile::Dev => ("dev", "debug"),
    };
    step(&format!("Building podcred and what it is tried with (cargo, profile {name})"));
    let clock = Stopwatch::start();
    let status = cargo()
        // Without the features of tests.
        .args(["build", "--bins", "--profile", name])
        .args(PACKAGES.iter().flat_map(|package| ["-p", *package]))
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(Binaries::of(|program| target().join(folder).join(program)))
}

impl Binaries {
    fn of(built: impl Fn(&str) -> PathBuf) -> Binaries {
        Binaries {
            agent: built("podcred"),
            simulated_eks: built("simulated-eks"),
            sdk_rust: built("sdk-rust"),
            loadtest: built("loadtest"),
            eks_auth_calls: built("eks-auth-calls"),
        }
    }
}

/// For the load harness. glibc's allocator gives each thread an arena of its own, and what one has free the others cannot use: one
/// for all is 2 MB less with 10,000 pods, and takes no more time.
pub(crate) const ONE_ARENA: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

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
