//! What a platform team does with the chart, on this node: install it, ask its doctor, give pods credentials, take it away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::cluster::{Cluster, NODE};
use super::inside::CGROUPS;
use super::{BUSYBOX, Finding, Plan};
use crate::clock::until;
use crate::eks::Eks;
use crate::image::REFERENCE;
use crate::process::quietly;

const SYSTEM: &str = "kube-system";
const NAMESPACE: &str = "web";
const ACCOUNT: &str = "app";
const PATIENCE: Duration = Duration::from_secs(60);
const AGENT: &str = "app.kubernetes.io/instance=podcred,app.kubernetes.io/component=agent";
const TAINT: &str = "podcred/agent-not-ready";
const TOKEN_FOLDER: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
const TOKEN: &str = "eks-pod-identity-token";

/// Asks as an SDK does, with the token that is its argument. Its own end stays open: one that closes it has gone, to podcred.
const ASK: &str = r#"
busybox mkfifo /request && exec 3<>/request && busybox rm /request
busybox printf 'GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\nAuthorization: %s\r\nConnection: close\r\n\r\n' "$1" >&3
busybox nc 169.254.170.23 80 <&3"#;

/// Tells what it finds.
pub(super) async fn run(plan: &Plan, cluster: &Cluster, eks: &Eks) {
    let trial = Trial { plan, cluster, eks };
    // Each stands on those before it.
    let outcome = async {
        told("helm installs the chart, and its agent is ready", trial.install().await)?;
        told("podcred doctor finds nothing amiss", trial.doctor().await)?;
        told("the agent may do what the chart lists, and no more", trial.confined().await)?;
        told(
            "pods start that look as EKS's webhook makes them, once the startup taint is off",
            trial.pods().await,
        )?;
        told(
            "an agent may take its own node's startup taint off, and change nothing else",
            trial.held().await,
        )?;
        told("a pod has the credentials of its role", trial.serves().await)?;
        told("a pod with another's token is refused", trial.refuses().await)?;
        told("removed as the chart's README says, nothing is left", trial.remove().await)
    };
    if outcome.await.is_err() {
        eprintln!("{}", trial.story().await);
    }
}

/// To the process outside.
fn told(what: &str, outcome: Result<()>) -> Result<()> {
    let problem = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let finding = Finding { what: format!("on a Kubernetes node: {what}"), problem };
    println!("{}", serde_json::to_string(&finding)?);
    outcome
}

struct Trial<'a> {
    plan: &'a Plan,
    cluster: &'a Cluster,
    eks: &'a Eks,
}

impl Trial<'_> {
    async fn install(&self) -> Result<()> {
        let values = self.plan.scratch.join("values.json");
        std::fs::write(&values, self.values().to_string())?;
        // Without a toleration no pod comes to this node until its agent has taken the taint off.
        self.kubectl(&["taint", "node", NODE, &format!("{TAINT}=:NoSchedule")]).await?;
        self.helm("install", &["podcred", "CHART", "--values", &values.display().to_string()]).await?;
        self.rolled_out("daemonset/podcred", SYSTEM).await
    }

    /// All else is as in the chart. EKS would tell the agent its region, and the instance its credentials.
    fn values(&self) -> Value {
        let mut env: BTreeMap<&str, &str> = self.eks.node_environment().into_iter().collect();
        env.insert("AWS_EC2_METADATA_DISABLED", "true");
        json!({
            "clusterName": self.eks.cluster_name(),
            "image": { "override": REFERENCE },
            "agent": {
                "verify": "enforce",
                "endpoint": self.eks.url(),
                "kubepodsCgroup": self.kubepods(),
                "startupTaint": TAINT,
                "jwksUrl": "https://kubernetes.default.svc/openid/v1/jwks",
            },
            "env": env,
        })
    }

    /// As the agent sees it. It is told, because other tests on this machine may have a cgroup of that name.
    fn kubepods(&self) -> String {
        format!("{CGROUPS}/{}/kubepods", self.plan.cgroup)
    }

    async fn doctor(&self) -> Result<()> {
        let exec = ["exec", "-n", SYSTEM, "daemonset/podcred", "--", "podcred", "doctor"];
        self.kubectl(&exec).await.map(drop)
    }

    /// Its capabilities and its sandbox, as the kernel has them.
    async fn confined(&self) -> Result<()> {
        let pods = self.kubectl(&["get", "pods", "-n", SYSTEM, "-l", AGENT, "-o", "json"]).await?;
        let pods: Value = serde_json::from_str(&pods)?;
        let context = &pods["items"][0]["spec"]["containers"][0]["securityContext"];
        let listed = context["capabilities"]["add"].as_array().context("the chart adds no capabilities")?;
        let bits = listed.iter().map(|name| bit(name.as_str().unwrap_or_default()));
        let wanted = bits.sum::<Result<u64>>()?;

        let agent = process_named("podcred")?;
        let status = std::fs::read_to_string(agent.join("status"))?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            value.with_context(|| format!("no {name}"))
        };
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let has = u64::from_str_radix(field(set)?, 16)?;
            ensure!(has == wanted, "{set} is {has:#x} where the chart lists {listed:?} ({wanted:#x})");
        }
        ensure!(field("NoNewPrivs")? == "1", "it could get new privileges");
        ensure!(field("Seccomp")? == "2", "no seccomp filter: the runtime's default is not in force");
        let mounts = std::fs::read_to_string(agent.join("mounts"))?;
        let read_only = |place: &str| {
            let mut options = mounts.lines().filter_map(|line| {
                let mut fields = line.split(' ');
                (fields.nth(1)? == place).then(|| fields.nth(1))?
            });
            options.next_back().is_some_and(|options| options.split(',').any(|option| option == "ro"))
        };
        for place in ["/", "/sys/fs/cgroup"] {
            ensure!(read_only(place), "{place} is not read-only:\n{mounts}");
        }
        Ok(())
    }

    async fn pods(&self) -> Result<()> {
        self.eks.associate_quickly(NAMESPACE, ACCOUNT).await?;
        let objects = [
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }),
            account(ACCOUNT),
            account("thief"),
            pod(ACCOUNT),
            pod("thief"),
        ];
        let file = self.plan.scratch.join("pods.json");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        std::fs::write(&file, list.to_string())?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).await?;
        let names = [format!("pod/{ACCOUNT}"), "pod/thief".to_owned()];
        let wait = ["wait", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=60s", &names[0], &names[1]];
        self.kubectl(&wait).await.map(drop)
    }

    /// By whoever has taken over an agent: with its token.
    async fn held(&self) -> Result<()> {
        const OTHER: &str = "node2";
        // To the DaemonSet's controller it is no node of podcred's.
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": OTHER, "labels": { "eks.amazonaws.com/compute-type": "fargate" } },
            "spec": { "taints": [{ "key": TAINT, "effect": "NoSchedule" }] },
        });
        let file = self.plan.scratch.join("node2.json");
        std::fs::write(&file, node.to_string())?;
        self.kubectl(&["create", "-f", &file.display().to_string()]).await?;

        let agent = self.kubectl(&["get", "pods", "-n", SYSTEM, "-l", AGENT, "-o", "name"]).await?;
        let agent = agent.trim().trim_start_matches("pod/");
        let create = ["create", "token", "podcred", "-n", SYSTEM];
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", agent];
        let of_the_agent = self.kubectl(&[&create[..], &bound].concat()).await?;
        let of_no_pod = self.kubectl(&create).await?;
        let patch = async |token: &str, node: &str, patch: &str| {
            let token = format!("--token={}", token.trim());
            self.kubectl(&["patch", "node", node, "--type=merge", "-p", patch, &token]).await
        };

        const NO_TAINTS: &str = r#"{"spec":{"taints":null}}"#;
        const OTHER_TAINT: &str = r#"{"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}"#;
        const LABEL: &str = r#"{"metadata":{"labels":{"a":"b"}}}"#;
        const CORDON: &str = r#"{"spec":{"unschedulable":true}}"#;
        patch(&of_the_agent, NODE, NO_TAINTS).await.context("the agent's own node")?;
        for (token, node, change, reason) in [
            (&of_the_agent, OTHER, NO_TAINTS, "the node that it runs on, and no other"),
            (&of_no_pod, NODE, NO_TAINTS, "the node that it runs on, and no other"),
            (&of_the_agent, NODE, OTHER_TAINT, "of taints, podcred may take"),
            (&of_the_agent, NODE, LABEL, "nothing of a node but its taints"),
            (&of_the_agent, NODE, CORDON, "nothing of a node but its taints"),
        ] {
            match patch(token, node, change).await {
                Ok(_) => bail!("{change} was taken for {node}"),
                Err(error) => {
                    let said = format!("{error:#}");
                    ensure!(said.contains(reason), "{change} for {node} was refused otherwise: {said}");
                }
            }
        }
        self.kubectl(&["delete", "node", OTHER]).await.map(drop)
    }

    async fn serves(&self) -> Result<()> {
        let (status, answer) = self.ask(ACCOUNT, &self.token_of(ACCOUNT).await?).await?;
        ensure!(status == 200, "{status}: {answer}");
        let key = answer["AccessKeyId"].as_str().context("an answer without AccessKeyId")?;
        let role = self.eks.session(key).await?.role_arn;
        let wanted = Eks::role_arn(&format!("{NAMESPACE}-{ACCOUNT}"));
        ensure!(role == wanted, "the credentials are those of {role}");
        Ok(())
    }

    async fn refuses(&self) -> Result<()> {
        let (status, answer) = self.ask("thief", &self.token_of(ACCOUNT).await?).await?;
        ensure!(status != 200, "it got credentials");
        let said = answer.to_string();
        ensure!(said.contains("TokenOfAnotherPod"), "it was refused for another reason: {status}: {said}");
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        self.helm("upgrade", &["podcred", "CHART", "--reuse-values", "--set", "cleanup=true"]).await?;
        self.rolled_out("daemonset/podcred-cleanup", SYSTEM).await?;
        self.helm("uninstall", &["podcred"]).await?;
        until("the pods are gone", PATIENCE, async || {
            Ok(self.kubectl(&["get", "pods", "-n", SYSTEM, "-o", "name"]).await?.is_empty())
        })
        .await?;
        let kinds = "all,serviceaccounts,configmaps,secrets,clusterroles,clusterrolebindings,\
                     validatingadmissionpolicies,validatingadmissionpolicybindings";
        let label = "app.kubernetes.io/instance=podcred";
        let left = self.kubectl(&["get", kinds, "--all-namespaces", "-l", label, "-o", "name"]).await?;
        ensure!(left.is_empty(), "objects of the chart are left:\n{left}");
        ensure!(process_named("podcred").is_err(), "the agent still runs");
        let links = std::fs::read_dir("/sys/class/net")?.collect::<std::io::Result<Vec<_>>>()?;
        ensure!(links.iter().all(|link| link.file_name() != "pod-id-link0"), "pod-id-link0 is left");
        Ok(())
    }

    async fn token_of(&self, pod: &str) -> Result<String> {
        let file = format!("{TOKEN_FOLDER}/{TOKEN}");
        self.kubectl(&["exec", "-n", NAMESPACE, pod, "--", "busybox", "cat", &file]).await
    }

    /// The status and the JSON of the answer.
    async fn ask(&self, pod: &str, token: &str) -> Result<(u16, Value)> {
        let ask = ["exec", "-n", NAMESPACE, pod, "--", "busybox", "sh", "-c", ASK, "sh", token];
        let answer = self.kubectl(&ask).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok((status, serde_json::from_str(body).unwrap_or_else(|_| body.into())))
    }

    async fn rolled_out(&self, what: &str, namespace: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", what, "-n", namespace, "--timeout=60s"]).await.map(drop)
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(self.plan, arguments).await
    }

    /// `CHART` stands for the chart's folder.
    async fn helm(&self, verb: &str, arguments: &[&str]) -> Result<()> {
        let mut helm = Command::new(&self.plan.helm);
        helm.args([verb, "--namespace", SYSTEM]).env("KUBECONFIG", &self.cluster.kubeconfig);
        for argument in arguments {
            match *argument {
                "CHART" => helm.arg(&self.plan.chart),
                other => helm.arg(other),
            };
        }
        helm.env("HOME", &self.plan.scratch);
        quietly(&format!("helm {verb}"), &mut helm).await.map(drop)
    }

    /// What Kubernetes has to say when something went wrong.
    async fn story(&self) -> String {
        let mut story = String::new();
        for arguments in [
            &["get", "pods", "--all-namespaces", "-o", "wide"][..],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
            &["logs", "-n", SYSTEM, "-l", AGENT, "--all-containers", "--tail=30"],
        ] {
            match self.kubectl(arguments).await {
                Ok(text) => story += &text,
                Err(error) => story += &format!("{error:#}"),
            }
            story.push('\n');
        }
        story
    }
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": NAMESPACE } })
}

/// Of the service account of the same name.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "serviceAccountName": name,
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "app",
                "image": BUSYBOX,
                "env": [
                    { "name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": "http://169.254.170.23/v1/credentials" },
                    { "name": "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "value": format!("{TOKEN_FOLDER}/{TOKEN}") },
                    { "name": "PATH", "value": "/" },
                ],
                "volumeMounts": [{ "name": TOKEN, "mountPath": TOKEN_FOLDER, "readOnly": true }],
            }],
            "volumes": [{ "name": TOKEN, "projected": { "sources": [{ "serviceAccountToken": {
                "audience": "pods.eks.amazonaws.com", "expirationSeconds": 86400, "path": TOKEN,
            }}]}}],
        },
    })
}

/// A capability's place in the kernel's sets.
fn bit(capability: &str) -> Result<u64> {
    let number = match capability {
        "DAC_READ_SEARCH" => 2,
        "NET_BIND_SERVICE" => 10,
        "NET_ADMIN" => 12,
        "PERFMON" => 38,
        "BPF" => 39,
        other => bail!("the chart lists {other:?}, which this check does not know"),
    };
    Ok(1 << number)
}

/// Its folder in /proc.
fn process_named(name: &str) -> Result<std::path::PathBuf> {
    let is_it = |folder: &Path| {
        std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let mut folders = std::fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path()));
    folders.find(|folder| is_it(folder)).with_context(|| format!("no process {name}"))
}
