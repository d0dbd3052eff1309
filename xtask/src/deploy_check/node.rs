//! A whole Kubernetes node (etcd, API server, kubelet, containerd, runc) in namespaces of this machine: the chart goes on it with the
//! image as it was packed, serves pods, and goes off it again.
//!
//! The node's process 1 is this program once more ([`inside`]). With it ends everything that it started; its network, its
//! mounts and its files are in namespaces that end with it as well.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Findings, deploy};
use crate::build::{self, Profile, target};
use crate::cgroup::Cgroup;
use crate::image::{self, Arch};
use crate::place::Place;
use crate::report::step;
use crate::setup::deploy::helm;
use crate::setup::node::{Tools, tools};

mod cluster;
pub(crate) mod inside;
pub(crate) mod runtime;
mod trial;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The image that pods are made of. As the node's pause image it sleeps, too.
const BUSYBOX: &str = "localhost/busybox:1";

/// What the node's process 1 needs to know.
#[derive(Debug, Deserialize, Serialize)]
struct Plan {
    tools: Tools,
    helm: PathBuf,
    chart: PathBuf,
    images: [PathBuf; 2],
    simulated_eks: PathBuf,
    /// The machine's cgroup file system, and the name below it of the node's cgroup.
    cgroup_mount: PathBuf,
    cgroup: String,
    /// Only while the node is there.
    scratch: PathBuf,
    logs: PathBuf,
}

/// As process 1 tells it, one in a line.
#[derive(Debug, Deserialize, Serialize)]
struct Finding {
    what: String,
    problem: Option<String>,
}

pub(super) async fn check(findings: &mut Findings) -> Result<()> {
    let tools = match tools().await? {
        Ok(tools) => tools,
        Err(reason) => {
            findings.leave_out(reason);
            return Ok(());
        }
    };
    let binaries = build::binaries(Profile::Dev).await?;
    let cgroup = Cgroup::make()?;
    // podcred verifies nothing where it cannot see the whole hierarchy.
    if !cgroup.shows_the_machine()? {
        findings.leave_out("a whole Kubernetes node: this machine is itself in a cgroup namespace");
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let image = image::pack(&[Arch::here()?], scratch.path()).await?;
    let busybox = scratch.path().join("busybox.tar");
    let started = json!({ "Entrypoint": ["/busybox"], "Cmd": ["sleep", "1000000"] });
    image::pack_program(&tools.program("busybox")?, BUSYBOX, started, &busybox)?;
    let plan = Plan {
        helm: helm().await?,
        chart: deploy().join("helm/podcred"),
        images: [image.archive, busybox],
        simulated_eks: binaries.simulated_eks,
        cgroup_mount: cgroup.mount()?.to_owned(),
        cgroup: cgroup.name()?,
        scratch: scratch.path().to_owned(),
        logs: target().join("xtask/node"),
        tools,
    };
    std::fs::create_dir_all(&plan.logs)?;
    step(&format!("Starting a Kubernetes node (its logs: {})", plan.logs.display()));
    run(findings, &plan, &cgroup).await
}

async fn run(findings: &mut Findings, plan: &Plan, cgroup: &Cgroup) -> Result<()> {
    let file = plan.scratch.join("plan.json");
    std::fs::write(&file, serde_json::to_vec(plan)?)?;
    let mut command = Place::Host.command_in(Some(cgroup.path()), "unshare");
    command
        .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--propagation", "private"])
        // Killed, unshare takes process 1 along, and process 1 all others of its namespace.
        .args(["--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .arg(inside::COMMAND)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C is for us to pass on.
        .process_group(0)
        .kill_on_drop(true);
    let mut node = command.spawn().context("cannot start the node")?;
    let mut lines = BufReader::new(node.stdout.take().context("the node has no stdout")?).lines();
    while let Some(line) = lines.next_line().await? {
        let finding: Finding =
            serde_json::from_str(&line).with_context(|| format!("the node says {line:?}"))?;
        findings.note(&finding.what, finding.problem.map_or(Ok(()), |problem| Err(anyhow!(problem))));
    }
    let status = node.wait().await?;
    if !status.success() {
        findings.note("the node does what it is asked to", Err(anyhow!("it ended with {status}; see above")));
    }
    Ok(())
}
