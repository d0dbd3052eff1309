//! The image: its size, what its programs know of the machine that built them, and that they start, also on the other processor.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hyper::StatusCode;
use serde_json::Value;
use tokio::process::Command;

use super::Findings;
use crate::agent::{Agent, Ports, free_ports};
use crate::build::{self, Profile, root, target};
use crate::eks::{Eks, PodName};
use crate::http;
use crate::image::{self, Arch, Packed};
use crate::place::Place;
use crate::process::{quietly, write_launcher};

pub(super) async fn check(findings: &mut Findings) -> Result<()> {
    let image = image::pack(Arch::value_variants(), &image::folder()).await?;
    for reason in image.left_out {
        findings.leave_out(reason);
    }
    let binaries = build::binaries(Profile::Dev).await?;
    for packed in &image.packed {
        let name = packed.arch.name();
        // A goal and no promise; `cargo xtask image` ends with an error.
        if let Err(missed) = packed.is_small() {
            println!("large   {missed}");
        }
        findings.note(&format!("the program for {name} names no folder of this machine"), no_paths(packed));
        let outcome = serves(packed, &binaries.simulated_eks).await;
        findings.note(&format!("the program for {name} serves one token and refuses another"), outcome);
    }
    Ok(())
}

/// Or it would be another one where another folder has the sources.
fn no_paths(packed: &Packed) -> Result<()> {
    let program = std::fs::read(&packed.program)?;
    let home = std::env::home_dir().context("no home directory")?;
    for folder in [root(), &home] {
        let path = folder.as_os_str().as_encoded_bytes();
        let found = program.windows(path.len()).position(|bytes| bytes == path);
        ensure!(found.is_none(), "{} is in it, from byte {found:?} on", folder.display());
    }
    Ok(())
}

async fn serves(packed: &Packed, simulated_eks: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let program = startable(packed, scratch.path())?;
    let version = quietly("podcred version", Command::new(&program).arg("version")).await?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "`podcred version` says {version:?}");
    quietly("podcred --help", Command::new(&program).arg("--help")).await?;

    let logs = target().join("xtask/image").join(packed.arch.name());
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let eks = Eks::start(Place::Host, simulated_eks, free, &logs.join("simulated-eks.log")).await?;
    eks.associate_quickly("web", "app").await?;
    let name = PodName {
        namespace: "web".to_owned(),
        service_account: "app".to_owned(),
        pod_name: "app-1".to_owned(),
    };
    let good = eks.mint(&name).await?.token;
    let [credentials, probe, metrics] = free_ports()?;
    let ports = Ports { hosts: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], credentials, probe, metrics };
    // An emulated program has no way to the kernel's BPF.
    let off = ["--verify", "off"];
    let log = logs.join("podcred.log");
    let agent = Agent::start(Place::Host, &program, &eks, &ports, &off, &log).await?;

    let agent_at = SocketAddr::from((Ipv4Addr::LOCALHOST, credentials));
    let (status, answer) = http::ask(&Place::Host, agent_at, &good).await?;
    ensure!(status == StatusCode::OK, "a good token: {status}: {}", String::from_utf8_lossy(&answer));
    let answer: Value = serde_json::from_slice(&answer)?;
    eks.session(answer["AccessKeyId"].as_str().unwrap_or_default()).await?;
    let (status, _) = http::ask(&Place::Host, agent_at, &forged(&good)).await?;
    ensure!(status.is_client_error(), "a token with a wrong signature: {status}");
    agent.stop().await?;
    eks.stop().await
}

/// The same claims with another signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or_default();
    format!("{signed}.{}", signature.chars().rev().collect::<String>())
}

/// On another processor's machine an emulator starts it.
fn startable(packed: &Packed, scratch: &Path) -> Result<PathBuf> {
    if packed.arch.is_here() {
        return Ok(packed.program.clone());
    }
    let file = scratch.join("podcred");
    let (cpu, program) = (packed.arch.cpu(), packed.program.display());
    write_launcher(&file, &format!("qemu-{cpu}-static '{program}'"))?;
    Ok(file)
}
