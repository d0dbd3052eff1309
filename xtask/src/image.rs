//! `cargo xtask image`: the image that `deploy/Dockerfile` makes, packed without a container daemon, for one processor or both.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

mod again;
mod archive;
pub(crate) mod binary;
mod contents;
mod sbom;

use crate::build::target;
use crate::report::{Counts, step, table};
pub(crate) use archive::REFERENCE;
use archive::{Archive, Layer};
use contents::Contents;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only for this processor (repeatable)
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Write the image's files into this folder instead, for a Dockerfile to copy (one processor only)
    #[arg(long, value_name = "FOLDER", requires = "arch")]
    files: Option<PathBuf>,
    /// Also build the last commit in another folder, and compare the two archives byte by byte
    #[arg(long, conflicts_with = "files")]
    twice: bool,
}

/// By the names that images have for them; `x86_64` and `aarch64` are accepted, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(alias = "x86_64")]
    Amd64,
    #[value(alias = "aarch64")]
    Arm64,
}

impl Arch {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }

    /// As Rust calls it.
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64",
            Arch::Arm64 => "aarch64",
        }
    }

    pub(crate) fn is_here(self) -> bool {
        self.cpu() == std::env::consts::ARCH
    }

    /// This machine's.
    pub(crate) fn here() -> Result<Arch> {
        let here = Arch::value_variants().iter().copied().find(|arch| arch.is_here());
        here.context("no images are made for this processor")
    }
}

/// What an image for one processor came to.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) arch: Arch,
    pub(crate) program: PathBuf,
    /// In bytes.
    pub(crate) binary: u64,
    pub(crate) layer: Layer,
}

impl Packed {
    pub(crate) fn is_small(&self) -> Result<()> {
        let Packed { arch, binary, layer, .. } = self;
        for (what, size, most) in
            [("binary", *binary, MOST_BINARY), ("compressed layer", layer.compressed, MOST_COMPRESSED)]
        {
            ensure!(
                size <= most,
                "the {what} for {} has {size} bytes where at most {most} are the goal",
                arch.name()
            );
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) archive: PathBuf,
    pub(crate) packed: Vec<Packed>,
    /// The processors that could not be built for, and why.
    pub(crate) left_out: Vec<String>,
}

const PACKAGE: &str = "podcred";
/// What a node has to fetch before it can start.
const MOST_COMPRESSED: u64 = 7_000_000;
const MOST_BINARY: u64 = 14_000_000;

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if let Some(folder) = &arguments.files {
        let [arch] = arguments.arch[..] else { bail!("--files takes one --arch") };
        let built = binary::build(arch, &[PACKAGE]).await?.map_err(anyhow::Error::msg)?;
        Contents::of(&built)?.write(folder)?;
        step(&format!("The image's files are in {}", folder.display()));
        return Ok(Counts::default());
    }
    let wanted = if arguments.arch.is_empty() { Arch::value_variants() } else { &arguments.arch };
    let image = pack(wanted, &folder()).await?;
    println!("\n{}", describe(&image));
    for reason in &image.left_out {
        println!("Left out: {reason}");
    }
    let mut counts = judge(&image);
    if arguments.twice {
        match again::gives_the_same(&image, wanted).await {
            Ok(()) => counts.passed += 1,
            Err(problem) => {
                println!("FAILED  {problem:#}");
                counts.failed += 1;
            }
        }
    }
    println!("{counts}");
    Ok(counts)
}

/// Where the archive is, and what is beside it.
pub(crate) fn folder() -> PathBuf {
    target().join("image")
}

/// One archive for these processors, and the list of crates of each beside it.
pub(crate) async fn pack(wanted: &[Arch], folder: &Path) -> Result<Image> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut archive = Archive::of_podcred();
    let (mut packed, mut left_out) = (Vec::new(), Vec::new());
    for &arch in wanted {
        let built = match binary::build(arch, &[PACKAGE]).await? {
            Ok(built) => built,
            Err(reason) => {
                left_out.push(reason);
                continue;
            }
        };
        let list = folder.join(format!("podcred-{}.cdx.json", arch.name()));
        std::fs::write(&list, sbom::of(&built)?)
            .with_context(|| format!("cannot write {}", list.display()))?;
        let layer = archive.add(arch, &Contents::of(&built)?)?;
        let program = built.program(PACKAGE);
        let binary = std::fs::metadata(&program)?.len();
        packed.push(Packed { arch, program, binary, layer });
    }
    if packed.is_empty() {
        bail!("{}", left_out.join("; "));
    }
    let file = folder.join("podcred.oci.tar");
    archive.write(&file)?;
    Ok(Image { archive: file, packed, left_out })
}

/// An image of one program for this machine, for what podcred is tried with.
pub(crate) fn pack_program(program: &Path, reference: &'static str, config: Value, to: &Path) -> Result<()> {
    let mut archive = Archive::new(reference, config);
    archive.add(Arch::here()?, &Contents::of_program(program)?)?;
    archive.write(to)
}

fn describe(image: &Image) -> String {
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let mut rows = Vec::new();
    for packed in &image.packed {
        rows.push(vec![
            packed.arch.name().to_owned(),
            megabytes(packed.binary),
            megabytes(packed.layer.compressed),
            packed.layer.digest.clone(),
        ]);
    }
    let table = table(&["arch", "binary", "compressed", "layer"], &rows);
    format!("{table}\n{}", image.archive.display())
}

fn judge(image: &Image) -> Counts {
    let mut counts = Counts { skipped: image.left_out.len(), ..Counts::default() };
    for packed in &image.packed {
        match packed.is_small() {
            Ok(()) => counts.passed += 1,
            Err(problem) => {
                println!("FAILED  {problem}");
                counts.failed += 1;
            }
        }
    }
    counts
}
