//! `cargo xtask build-ebpf`: the kernel programs, to the same bytes on every machine.
//!
//! The object is committed, so that podcred itself builds with stable Rust alone. What goes into its bytes is pinned here:
//! rustc by rust-toolchain's version check below, bpf-linker by its version, crates by Cargo.lock, and paths are mapped away.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::process::Command;

use crate::build::{cargo, root, target};
use crate::clock::Stopwatch;
use crate::process::quietly;
use crate::report::{Counts, step};
use crate::toolchain;

mod object;

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Build in another folder, and fail if the committed object is not what comes out
    #[arg(long)]
    pub(crate) check: bool,
}

/// What the agent embeds.
const OBJECT: &str = "agent-ebpf/probe.o";

/// Its LLVM and the compiler's must be of one version: 0.10 goes with LLVM 22.
const BPF_LINKER: &str = "0.10.0";
const RUSTC: &str = "1.95.";

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    let version = toolchain::version().await?;
    if !version.starts_with(&format!("rustc {RUSTC}")) {
        bail!("the kernel programs are built with rustc {RUSTC}x, this is {version}");
    }
    let sysroot = toolchain::sysroot().await?;
    toolchain::rust_src(&sysroot).await?;
    let linker = bpf_linker().await?;
    let committed = root().join(OBJECT);
    if !arguments.check {
        let object = build(root(), &target().join("ebpf"), &sysroot, &linker).await?;
        std::fs::write(&committed, &object)?;
        step(&format!("{OBJECT}: {} bytes", object.len()));
        return Ok(Counts::default());
    }
    let elsewhere = target().join("ebpf-check");
    let source = elsewhere.join("source");
    copy_sources(&source)?;
    let object = build(&source, &elsewhere.join("target"), &sysroot, &linker).await?;
    if std::fs::read(&committed).with_context(|| format!("{} cannot be read", committed.display()))? == object
    {
        step(&format!("{OBJECT} is what its source gives"));
        return Ok(Counts { passed: 1, ..Counts::default() });
    }
    step(&format!("{OBJECT} is not what its source gives: run `cargo xtask build-ebpf` and commit it"));
    Ok(Counts { failed: 1, ..Counts::default() })
}

/// Compiles and links the programs from the workspace in `source`.
async fn build(source: &Path, target: &Path, sysroot: &Path, linker: &Path) -> Result<Vec<u8>> {
    step("Building the kernel programs (cargo, for bpfel-unknown-none, with a core library of their own)");
    let clock = Stopwatch::start();
    let mut command = cargo();
    command
        .current_dir(source)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "bpf",
            "--package",
            "agent-ebpf",
            "--bin",
            "probe",
        ])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(source, sysroot)?)
        // -Z build-std, and inline assembly for BPF, on the stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", with_folder_of(linker)?)
        // Those of the xtask's own build.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTUP_TOOLCHAIN");
    let status =
        command.stdin(Stdio::null()).kill_on_drop(true).status().await.context("cannot run cargo")?;
    if !status.success() {
        bail!("the kernel programs do not build");
    }
    let linked = std::fs::read(target.join("bpfel-unknown-none/bpf/probe"))?;
    let object = object::finish(&linked).context("the linked object is not as expected")?;
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(object)
}

/// The compiler's flags, joined as cargo wants them.
fn flags(source: &Path, sysroot: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> = ["-Cdebuginfo=2", "-Clink-arg=--btf"].map(OsString::from).into();
    // Otherwise aya-ebpf takes the kernel's bindings of the machine that builds, whose names end up in the object. The programs
    // touch nothing that differs.
    flags.push("--cfg=bpf_target_arch=\"x86_64\"".into());
    flags.extend(toolchain::without_paths(source, sysroot)?);
    Ok(flags.join(OsString::from("\x1f").as_os_str()))
}

async fn bpf_linker() -> Result<PathBuf> {
    let folder = target().join("tools");
    let linker = folder.join("bin/bpf-linker");
    let version = quietly("bpf-linker", Command::new(&linker).arg("--version")).await.unwrap_or_default();
    if version.trim() == format!("bpf-linker {BPF_LINKER}") {
        return Ok(linker);
    }
    step(&format!("Installing bpf-linker {BPF_LINKER} (cargo install; a minute or two)"));
    let clock = Stopwatch::start();
    let mut install = cargo();
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            &format!("={BPF_LINKER}"),
            "--locked",
            "--force",
            "--root",
        ])
        .arg(&folder)
        .env_remove("CARGO_TARGET_DIR");
    quietly("cargo install bpf-linker", &mut install).await?;
    step(&format!("Installed bpf-linker in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(linker)
}

fn with_folder_of(program: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = program.parent().map(Path::to_owned);
    Ok(std::env::join_paths(first.into_iter().chain(std::env::split_paths(&path)))?)
}

/// The workspace, without what was built.
fn copy_sources(to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir_all(to)?;
    for name in ["Cargo.toml", "Cargo.lock", "agent", "agent-ebpf", "bare-hyper", "loadtest", "xtask"] {
        copy(&root().join(name), &to.join(name)).with_context(|| format!("{name} cannot be copied"))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        std::fs::copy(from, to)?;
        return Ok(());
    }
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "target" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
