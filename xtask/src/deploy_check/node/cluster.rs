//! The control plane, and the kubelet.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::runtime::Runtime;
use super::{ADDRESS, Plan};
use crate::clock::until;
use crate::process::{Process, quietly};

/// What tokens of service accounts name.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc";
/// The Service `kubernetes`: the first address of [`SERVICES`].
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICES: &str = "10.96.0.0/16";
pub(super) const NODE: &str = "node1";
/// Made by the API server itself, with its authority in the same file.
const CERTIFICATES: &str = "/run/certificates";
const START: Duration = Duration::from_secs(90);

/// Tokens of the users of the API server, which lives as long as the check: everybody in its network may be anybody.
const ADMINISTRATOR: &str = "administrator";
const KUBELET: &str = "kubelet";

#[derive(Debug)]
pub(super) struct Cluster {
    _processes: Vec<Process>,
    pub(super) kubeconfig: PathBuf,
}

impl Cluster {
    /// `key` signs the tokens of service accounts. Returns when the API server is ready.
    pub(super) async fn start(plan: &Plan, key: &Path) -> Result<Cluster> {
        let users = plan.scratch.join("users.csv");
        let mut known = format!("{ADMINISTRATOR},administrator,1,system:masters\n");
        writeln!(known, "{KUBELET},system:node:{NODE},2,system:nodes")?;
        std::fs::write(&users, known)?;
        let kubeconfig = kubeconfig(plan, ADMINISTRATOR)?;

        let etcd = ["--data-dir=/run/etcd", "--unsafe-no-fsync", "--log-level=warn"].map(str::to_owned);
        let (key, certificate) = (key.display(), format!("{CERTIFICATES}/apiserver.crt"));
        let api_server = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            // The port that the Service has, too: there is nobody to translate one into another.
            "--secure-port=443".to_owned(),
            format!("--advertise-address={ADDRESS}"),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--cert-dir={CERTIFICATES}"),
            format!("--token-auth-file={}", users.display()),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-signing-key-file={key}"),
            format!("--service-account-key-file={key}"),
        ];
        let mut processes = vec![start(plan, "etcd", &etcd)?, start(plan, "kube-apiserver", &api_server)?];
        until("the API server is ready", START, async || {
            processes.iter_mut().try_for_each(Process::check)?;
            let mut ready = plan.command("kubectl")?;
            ready.arg("--kubeconfig").arg(&kubeconfig).args(["get", "--raw", "/readyz"]);
            Ok(quietly("kubectl", &mut ready).await.is_ok())
        })
        .await?;
        let as_administrator = format!("--kubeconfig={}", kubeconfig.display());
        let controllers = [
            as_administrator.clone(),
            "--leader-elect=false".to_owned(),
            format!("--root-ca-file={certificate}"),
        ];
        processes.push(start(plan, "kube-controller-manager", &controllers)?);
        processes.push(start(
            plan,
            "kube-scheduler",
            &[as_administrator, "--leader-elect=false".to_owned()],
        )?);
        Ok(Cluster { _processes: processes, kubeconfig })
    }

    /// Starts the kubelet, and returns when its node is ready.
    pub(super) async fn join(&self, plan: &Plan, runtime: &Runtime) -> Result<Process> {
        let file = plan.scratch.join("kubelet.json");
        std::fs::write(&file, kubelet(&runtime.endpoint()).to_string())?;
        let arguments = [
            format!("--config={}", file.display()),
            format!("--kubeconfig={}", kubeconfig(plan, KUBELET)?.display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={ADDRESS}"),
            "--root-dir=/run/kubelet".to_owned(),
            "--cert-dir=/run/kubelet/pki".to_owned(),
        ];
        let mut kubelet = start(plan, "kubelet", &arguments)?;
        until("the node is ready", START, async || {
            kubelet.check()?;
            let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
            Ok(self.kubectl(plan, &["get", "nodes", "-o", path]).await? == "True")
        })
        .await
        .with_context(|| kubelet.log_tail())?;
        Ok(kubelet)
    }

    pub(super) async fn kubectl(&self, plan: &Plan, arguments: &[&str]) -> Result<String> {
        let mut kubectl = plan.command("kubectl")?;
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        quietly(&format!("kubectl {}", arguments.first().copied().unwrap_or_default()), &mut kubectl).await
    }
}

fn start(plan: &Plan, program: &str, arguments: &[String]) -> Result<Process> {
    let mut command = plan.command(program)?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    Process::spawn(program, command, &plan.logs.join(format!("{program}.log")))
}

/// JSON is YAML, here and below.
fn kubeconfig(plan: &Plan, user: &str) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        // Whom podcred believes is another matter: it has the authority that pods get.
        "clusters": [{ "name": "node", "cluster": {
            "server": "https://127.0.0.1:443", "insecure-skip-tls-verify": true,
        }}],
        "users": [{ "name": user, "user": { "token": user } }],
        "contexts": [{ "name": user, "context": { "cluster": "node", "user": user } }],
        "current-context": user,
    });
    let file = plan.scratch.join(format!("{user}.kubeconfig"));
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

fn kubelet(runtime: &str) -> Value {
    // Never full: the folders are in memory, and what the machine has is not the node's to judge.
    let nothing = json!({
        "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
        "imagefs.available": "0%", "imagefs.inodesFree": "0%",
    });
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": runtime,
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "resolvConf": "",
        "podLogsDir": "/run/pod-logs",
        "volumePluginDir": "/run/kubelet/volume-plugins",
        "evictionHard": nothing,
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
    })
}
