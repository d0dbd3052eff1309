//! The Rust toolchain, where cargo alone is not enough.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::build::root;
use crate::process::quietly;
use crate::report::step;

pub(crate) async fn version() -> Result<String> {
    Ok(quietly("rustc --version", rustc().arg("--version")).await?.trim().to_owned())
}

pub(crate) async fn sysroot() -> Result<PathBuf> {
    let sysroot = quietly("rustc --print sysroot", rustc().args(["--print", "sysroot"])).await?;
    Ok(PathBuf::from(sysroot.trim()))
}

/// Whether the toolchain has the standard library for this target; elsewhere it is built from its source.
pub(crate) async fn has_standard_library(triple: &str) -> Result<bool> {
    let libraries = ["--print", "target-libdir", "--target", triple];
    let folder = quietly("rustc --print target-libdir", rustc().args(libraries)).await?;
    Ok(Path::new(folder.trim()).is_dir())
}

/// The standard library's source.
pub(crate) async fn rust_src(sysroot: &Path) -> Result<()> {
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if core.is_file() {
        return Ok(());
    }
    step("Installing rust-src (rustup)");
    let mut rustup = Command::new("rustup");
    quietly("rustup", rustup.args(["component", "add", "rust-src"])).await.with_context(|| {
        format!(
            "the standard library's source is missing: it belongs to {}, where `rustup component add rust-src` puts it",
            core.display()
        )
    })?;
    Ok(())
}

/// Flags by which the paths of this machine stay out of what is built, so that it is the same on another.
pub(crate) fn without_paths(source: &Path, sysroot: &Path) -> Result<Vec<OsString>> {
    let mut flags = Vec::new();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(source, "");
    remap(sysroot, "/toolchain");
    let home = std::env::home_dir().context("no home directory")?;
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    // One folder for each registry, named after it: a mirror's is called differently.
    for registry in std::fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten() {
        remap(&registry?.path(), "/crates");
    }
    Ok(flags)
}

fn rustc() -> Command {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(root());
    rustc
}
