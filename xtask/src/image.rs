//! `cargo xtask image`: the image that `deploy/Dockerfile` makes, packed without a container daemon, for one processor or both.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

mod archive;
mod binary;
mod contents;
mod sbom;

use crate::build::target;
use crate::report::{Counts, step, table};
use archive::{Archive, Layer};
use contents::Contents;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only for this processor (repeatable)
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Write the image's files into this folder instead, for one processor; a Dockerfile copies them
    #[arg(long, value_name = "FOLDER", requires = "arch")]
    files: Option<PathBuf>,
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
    fn cpu(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64",
            Arch::Arm64 => "aarch64",
        }
    }

    pub(crate) fn is_here(self) -> bool {
        self.cpu() == std::env::consts::ARCH
    }
}

/// What an image for one processor came to.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) arch: Arch,
    /// In bytes.
    pub(crate) binary: u64,
    pub(crate) layer: Layer,
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) archive: PathBuf,
    pub(crate) packed: Vec<Packed>,
    /// The processors that could not be built for, and why.
    pub(crate) left_out: Vec<String>,
}

/// What a node has to fetch before it can start.
const MOST_COMPRESSED: u64 = 7_000_000;
const MOST_BINARY: u64 = 14_000_000;

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if let Some(folder) = &arguments.files {
        let [arch] = arguments.arch[..] else { bail!("--files takes one --arch") };
        let built = binary::build(arch).await?.map_err(anyhow::Error::msg)?;
        Contents::of(&built)?.write(folder)?;
        step(&format!("The image's files are in {}", folder.display()));
        return Ok(Counts::default());
    }
    let wanted = if arguments.arch.is_empty() { Arch::value_variants() } else { &arguments.arch };
    let image = pack(wanted).await?;
    println!("\n{}", describe(&image));
    for reason in &image.left_out {
        println!("Left out: {reason}");
    }
    Ok(judge(&image))
}

/// One archive for these processors, and the list of crates of each beside it.
pub(crate) async fn pack(wanted: &[Arch]) -> Result<Image> {
    let folder = target().join("image");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut archive = Archive::default();
    let (mut packed, mut left_out) = (Vec::new(), Vec::new());
    for &arch in wanted {
        let built = match binary::build(arch).await? {
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
        let binary = std::fs::metadata(&built.file)?.len();
        packed.push(Packed { arch, binary, layer });
    }
    if packed.is_empty() {
        bail!("{}", left_out.join("; "));
    }
    let file = folder.join("podcred.oci.tar");
    archive.write(&file)?;
    Ok(Image { archive: file, packed, left_out })
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
        if packed.binary <= MOST_BINARY && packed.layer.compressed <= MOST_COMPRESSED {
            counts.passed += 1;
        } else {
            println!(
                "{}: too large; the binary may have {MOST_BINARY} bytes, compressed {MOST_COMPRESSED}",
                packed.arch.name()
            );
            counts.failed += 1;
        }
    }
    println!("{counts}");
    counts
}
