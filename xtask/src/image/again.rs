//! The same commit in another folder, which has to give the same archive.

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::{Arch, Image};
use crate::build::{cargo, root};
use crate::process::quietly;
use crate::report::step;

pub(super) async fn gives_the_same(image: &Image, wanted: &[Arch]) -> Result<()> {
    let git = || {
        let mut git = Command::new("git");
        git.arg("-C").arg(root());
        git
    };
    let changed = quietly("git status", git().args(["status", "--porcelain"])).await?;
    ensure!(
        changed.is_empty(),
        "there are changes that no other folder would get; commit them first:\n{changed}"
    );
    let elsewhere = tempfile::tempdir()?;
    let clone = elsewhere.path().join("podcred");
    quietly("git clone", git().args(["clone", "--quiet"]).arg(root()).arg(&clone)).await?;

    step(&format!("Building the same in {} (minutes; nothing is shown)", clone.display()));
    let mut again = cargo();
    again.current_dir(&clone).env_remove("CARGO_TARGET_DIR").args(["xtask", "image"]);
    for arch in wanted {
        again.args(["--arch", arch.name()]);
    }
    quietly("cargo xtask image", &mut again).await?;
    let name = image.archive.file_name().context("an archive has a name")?;
    let other = std::fs::read(clone.join("target/image").join(name))?;
    ensure!(std::fs::read(&image.archive)? == other, "another folder gives another archive");
    println!("Another folder gives the same archive, byte by byte");
    Ok(())
}
