//! containerd with runc and a bridge for pods.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::process::Command;

use super::inside::{CGROUPS, MACHINE_CGROUPS};
use super::{BUSYBOX, Plan};
use crate::clock::until;
use crate::process::{Process, quietly, write_launcher};

pub(crate) const RUNTIME: &str = "node-runtime";

const SOCKET: &str = "/run/containerd/containerd.sock";
const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Runtime {
    _containerd: Process,
}

impl Runtime {
    /// Returns when it has the images.
    pub(super) async fn start(plan: &Plan) -> Result<Runtime> {
        let file = plan.scratch.join("containerd.toml");
        std::fs::write(&file, configuration(plan, &wrapper(plan)?))?;
        network(plan)?;
        let mut command = plan.command("containerd")?;
        command.arg("--config").arg(&file).stdout(Stdio::null());
        let mut containerd = Process::spawn("containerd", command, &plan.logs.join("containerd.log"))?;
        until("containerd answers", START, async || {
            containerd.check()?;
            Ok(quietly("ctr version", plan.command("ctr")?.args(["--address", SOCKET, "version"]))
                .await
                .is_ok())
        })
        .await?;
        for image in &plan.images {
            let mut ctr = plan.command("ctr")?;
            ctr.args(["--address", SOCKET, "--namespace", "k8s.io", "images", "import"]).arg(image);
            quietly("ctr images import", &mut ctr).await?;
        }
        Ok(Runtime { _containerd: containerd })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("unix://{SOCKET}")
    }
}

fn configuration(plan: &Plan, runtime: &Path) -> String {
    let plugins = plan.tools.network_plugins();
    format!(
        r#"version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX}"
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
# Its profile would stay in the machine's kernel.
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{}"
"#,
        plugins.display(),
        networks(plan).display(),
        runtime.display(),
    )
}

fn networks(plan: &Plan) -> PathBuf {
    plan.scratch.join("networks")
}

fn network(plan: &Plan) -> Result<()> {
    let pods = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni",
                "ranges": [[{ "subnet": "10.244.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    std::fs::create_dir(networks(plan))?;
    Ok(std::fs::write(networks(plan).join("10-pods.conflist"), pods.to_string())?)
}

/// A program by which containerd calls [`adapted`].
fn wrapper(plan: &Plan) -> Result<PathBuf> {
    let file = plan.scratch.join("runc-adapted");
    let this = std::env::current_exe()?;
    write_launcher(&file, &format!("'{}' {RUNTIME}", this.display()))?;
    Ok(file)
}

/// runc, with `arguments`. Two things of the container are not as containerd wants them, because this node has a machine around
/// it: no resource limits, since a machine whose controllers are bound to cgroup v1 can set none in cgroup v2; and who
/// mounts the node's cgroups gets the machine's, as on a node that is the machine.
pub(crate) fn adapted(arguments: &[OsString]) -> Result<()> {
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("update") {
        // There is nothing else that it could change.
        return Ok(());
    }
    if has("create") {
        let bundle = arguments.iter().position(|argument| argument == "--bundle").map(|place| place + 1);
        let bundle = bundle.and_then(|place| arguments.get(place)).context("create names no --bundle")?;
        let file = Path::new(bundle).join("config.json");
        let mut container: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        adapt(&mut container);
        std::fs::write(&file, container.to_string())?;
    }
    let error = std::process::Command::new("runc").args(arguments).exec();
    bail!("cannot run runc: {error}")
}

fn adapt(container: &mut Value) {
    if let Some(resources) = container["linux"]["resources"].as_object_mut() {
        // What devices a container may use is no limit.
        resources.retain(|name, _| name == "devices");
    }
    for mount in container["mounts"].as_array_mut().into_iter().flatten() {
        if mount["source"] == CGROUPS {
            mount["source"] = MACHINE_CGROUPS.into();
        }
    }
}

impl Plan {
    /// One of the node's programs, which finds the others.
    pub(super) fn command(&self, program: &str) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.tools.folders().into_iter().chain(std::env::split_paths(&path));
        let mut command = Command::new(self.tools.program(program)?);
        command.env("PATH", std::env::join_paths(folders)?);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_loses_its_limits_sees_the_machines_cgroups_and_keeps_all_else() {
        let container = |cgroups: &str, resources: Value| {
            json!({
                "process": { "noNewPrivileges": true },
                "mounts": [{ "source": "/run/a" }, { "source": cgroups, "options": ["rbind", "ro"] }],
                "linux": { "resources": resources, "seccomp": {} },
            })
        };
        let devices = json!([{ "allow": false }]);
        let mut adapted = container(CGROUPS, json!({ "devices": devices, "memory": { "limit": 1 } }));
        adapt(&mut adapted);
        assert_eq!(adapted, container(MACHINE_CGROUPS, json!({ "devices": devices })));
    }
}
