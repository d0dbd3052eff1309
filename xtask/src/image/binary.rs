//! Programs for one processor, statically linked: the image has no libraries.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::Arch;
use crate::build::{cargo, root, target};
use crate::clock::Stopwatch;
use crate::process::quietly;
use crate::report::step;
use crate::{setup, toolchain};

#[derive(Debug)]
pub(crate) struct Built {
    folder: PathBuf,
    pub(super) triple: String,
}

impl Built {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Or why they cannot be built here.
pub(crate) async fn build(arch: Arch, packages: &[&str]) -> Result<Result<Built, String>> {
    let triple = format!("{}-unknown-linux-gnu", arch.cpu());
    let mut command = cargo();
    if !arch.is_here() {
        if let Some(reason) = setup::cross_compiler(arch.cpu()).await? {
            return Ok(Err(reason));
        }
        let tool = |name: &str| format!("{}-linux-gnu-{name}", arch.cpu());
        let snake = triple.replace('-', "_");
        command
            .env(format!("CARGO_TARGET_{}_LINKER", snake.to_uppercase()), tool("gcc"))
            .env(format!("CC_{snake}"), tool("gcc"))
            .env(format!("AR_{snake}"), tool("ar"));
    } else if !has_static_libc().await? {
        return Ok(Err("there is no static C library to link with: install libc6-dev (Debian) or glibc-static (Fedora, Amazon Linux)"
            .to_owned()));
    }
    step(&format!(
        "Building {} for {}, statically linked (cargo, profile release; minutes)",
        packages.join(" and "),
        arch.name()
    ));
    let clock = Stopwatch::start();
    let sysroot = toolchain::sysroot().await?;
    let mut flags = vec![OsString::from("-Ctarget-feature=+crt-static")];
    flags.extend(toolchain::without_paths(root(), &sysroot)?);
    if arch == Arch::Amd64 && arch.is_here() {
        // Here rustc links by LLD, which can make equal functions one, and a relocation that moves an address two bits.
        flags.push(OsString::from("-Clink-arg=-Wl,--icf=safe,-z,pack-relative-relocs"));
    }
    command
        .args(["build", "--release", "--target", &triple])
        .args(packages.iter().flat_map(|package| ["--package", *package]))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsString::from("\x1f").as_os_str()))
        .kill_on_drop(true);
    let mut folder = target();
    if !toolchain::has_standard_library(&triple).await? {
        toolchain::rust_src(&sysroot).await?;
        // On the stable compiler. Build scripts look at the variable: in one folder with other builds, each would make cargo
        // begin the other anew.
        folder = folder.join("build-std");
        command.args(["-Z", "build-std"]).env("RUSTC_BOOTSTRAP", "1").arg("--target-dir").arg(&folder);
    }
    let status = command.status().await.context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build for {triple} ended with {status}");
    }
    step(&format!("Built in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(Ok(Built { folder: folder.join(&triple).join("release"), triple }))
}

async fn has_static_libc() -> Result<bool> {
    // It answers with a path, or with the name alone.
    let found = quietly("the C compiler", Command::new("cc").arg("-print-file-name=libc.a")).await?;
    Ok(Path::new(found.trim()).is_absolute())
}
