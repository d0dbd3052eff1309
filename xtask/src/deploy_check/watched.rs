//! A real Prometheus beside a running agent: the dashboard's queries find data, and an outage of EKS Auth raises its alerts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Findings, dashboard_queries, deploy};
use crate::agent::Agent;
use crate::build::{self, Profile, target};
use crate::cgroup::PodCgroups;
use crate::clock::until;
use crate::demo::network::Network;
use crate::demo::thief::Attribution;
use crate::eks::{Eks, PodName};
use crate::http;
use crate::place::Place;
use crate::process::{Process, is_root};
use crate::report::step;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "web";
/// Pods that come when EKS Auth is down, so that nothing is in the cache for them.
const LATE: usize = 3;
const OUTAGE: [&str; 2] = ["PodcredPodsWithoutCredentials", "PodcredEksAuthFailing"];
/// Of these families nothing is seen here: no connection is turned away or has to go, and no connect fails.
const IDLE: [&str; 3] =
    ["podcred_connections_evicted_total", "podcred_connections_refused_total", "podcred_pod_connects_total"];

const LEFT_OUT: &str =
    "Prometheus beside an agent: it takes Prometheus, root, and a kernel that can tell pods apart";

/// Asks for credentials with each of its arguments in turn, then for IMDS; again and again.
const POD: &str = r#"
ask() {
    exec 3<>/dev/tcp/169.254.170.23/80 || return
    printf 'GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.23\r\nAuthorization: %s\r\nConnection: close\r\n\r\n' "$1" >&3
    cat <&3
}
while true; do
    for token; do (ask "$token"); done
    (exec 3<>/dev/tcp/169.254.169.254/80)
    sleep 0.3
done >/dev/null 2>&1"#;

pub(super) async fn check(findings: &mut Findings, prometheus: &Path) -> Result<()> {
    if !is_root() || !prometheus.is_file() {
        findings.leave_out(LEFT_OUT);
        return Ok(());
    }
    let binaries = build::binaries(Profile::Dev).await?;
    let network = Network::prepare(&binaries.agent, 3 + LATE).await?;
    let attribution = Attribution::prepare(&network, &binaries.agent).await;
    let Some(cgroups) = attribution.cgroups() else {
        findings.leave_out(LEFT_OUT);
        return Ok(());
    };
    step("Running Prometheus beside an agent, a minute to the second");
    let logs = target().join("xtask/deploy-check");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let eks_log = logs.join("simulated-eks.log");
    let eks = Eks::start(network.node.clone(), &binaries.simulated_eks, listen, &eks_log).await?;
    let mut flags = attribution.flags();
    flags.extend(["--imds", "refuse-pods"].map(str::to_owned));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (node, ports) = (network.node.clone(), &network.ports);
    let agent = Agent::start(node, &binaries.agent, &eks, ports, &flags, &logs.join("podcred.log")).await?;
    let prometheus = Prometheus::start(&network, prometheus, &logs.join("prometheus.log")).await?;

    let node = Node { eks: &eks, network: &network, cgroups, logs: &logs };
    for account in ["app", "late"] {
        eks.associate_quickly(NAMESPACE, account).await?;
    }
    let good = node.pod(0, "app", &[]).await?;
    let thief = node.pod(1, "app", &[&good.token]).await?;
    let refused = node.pod(2, "unknown", &["rubbish"]).await?;
    until("pods are served", PATIENCE, async || {
        Ok(prometheus.value("podcred_served_total").await?.is_some())
    })
    .await?;

    eks.set(json!({ "outage": "refuse" })).await?;
    let mut late = Vec::new();
    for index in 0..LATE {
        late.push(node.pod(3 + index, "late", &[]).await?);
    }
    let fires =
        until("the alerts of an outage fire", PATIENCE, async || prometheus.all_fire(true).await).await;
    findings.note("an outage of EKS Auth raises its alerts in a real Prometheus", fires);
    findings
        .note("every query of the dashboard finds data of a running agent", prometheus.has_all_data().await);
    eks.set(json!({ "outage": "off" })).await?;
    let clear =
        until("the alerts of an outage end", PATIENCE, async || prometheus.all_fire(false).await).await;
    findings.note("its end ends them", clear);

    drop((good, thief, refused, late));
    agent.stop().await?;
    eks.stop().await
}

struct Node<'a> {
    eks: &'a Eks,
    network: &'a Network,
    cgroups: &'a PodCgroups,
    logs: &'a Path,
}

struct Pod {
    _process: Process,
    token: String,
}

impl Node<'_> {
    /// A pod that presents its own token and, after it, `others`.
    async fn pod(&self, index: usize, account: &str, others: &[&str]) -> Result<Pod> {
        let name = PodName {
            namespace: NAMESPACE.to_owned(),
            service_account: account.to_owned(),
            pod_name: format!("{account}-{index}"),
        };
        let minted = self.eks.mint(&name).await?;
        let cgroup = self.cgroups.container(&minted.pod_uid)?;
        let mut command = self.network.pods[index].command_in(Some(&cgroup), "bash");
        command.args(["-c", POD, "pod", &minted.token]).args(others);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::spawn(&name.pod_name, command, &self.logs.join(&name.pod_name))?;
        Ok(Pod { _process: process, token: minted.token })
    }
}

struct Prometheus {
    process: Process,
    _folder: TempDir,
    place: Place,
    address: SocketAddr,
}

impl Prometheus {
    async fn start(network: &Network, binary: &Path, log: &Path) -> Result<Prometheus> {
        let folder = tempfile::tempdir()?;
        let rules = std::fs::read_to_string(deploy().join("prometheus/rules.yaml"))?;
        std::fs::write(folder.path().join("rules.yaml"), minutes_to_seconds(&rules))?;
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{
                "job_name": "podcred",
                "honor_labels": true,
                "static_configs": [{ "targets": [format!("127.0.0.1:{}", network.ports.metrics)] }],
            }],
        });
        // JSON is YAML.
        let file: PathBuf = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        let mut command = network.node.command(&binary.display().to_string());
        command.arg("--config.file").arg(&file).arg("--storage.tsdb.path").arg(folder.path().join("data"));
        command.arg("--web.listen-address").arg(address.to_string()).stdout(Stdio::null());
        let process = Process::spawn("prometheus", command, log)?;
        let place = network.node.clone();
        let prometheus = Prometheus { process, _folder: folder, place, address };
        let answers = async || Ok(prometheus.value("vector(1)").await.is_ok());
        let ready = until("Prometheus is ready", PATIENCE, answers).await;
        ready.with_context(|| prometheus.process.log_tail())?;
        Ok(prometheus)
    }

    /// The values of a query's result, with their labels; None where there is none.
    async fn value(&self, query: &str) -> Result<Option<Vec<Value>>> {
        let path = format!("/api/v1/query?query={}", percent_encoded(query));
        let (status, body) = http::request(&self.place, self.address, Method::GET, &path, Vec::new()).await?;
        ensure!(status == StatusCode::OK, "{query}: {}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body)?;
        let result = answer["data"]["result"].as_array().context("Prometheus gives no result")?;
        Ok((!result.is_empty()).then(|| result.clone()))
    }

    /// Whether all alerts of an outage fire, or none.
    async fn all_fire(&self, fire: bool) -> Result<bool> {
        let firing = self.value(r#"ALERTS{alertstate="firing"}"#).await?.unwrap_or_default();
        let fires = |alert: &str| firing.iter().any(|one| one["metric"]["alertname"] == alert);
        Ok(OUTAGE.iter().all(|alert| fires(alert) == fire))
    }

    async fn has_all_data(&self) -> Result<()> {
        let mut without = dashboard_queries("10s", "1m")?;
        without.retain(|query| !IDLE.iter().any(|family| query.contains(family)));
        // A rate has two samples of a family that may have begun a moment ago.
        let outcome = until("all queries have data", PATIENCE, async || {
            let mut left = Vec::new();
            for query in std::mem::take(&mut without) {
                let result = self.value(&query).await?.unwrap_or_default();
                if !result.iter().any(|one| one["value"][1] != "NaN") {
                    left.push(query);
                }
            }
            without = left;
            Ok(without.is_empty())
        });
        outcome.await.with_context(|| format!("no data for {without:#?}"))
    }
}

/// The same rules sixty times as fast.
fn minutes_to_seconds(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().starts_with("for: ") || line.contains(" offset ") {
        true => line.strip_suffix('m').map_or_else(|| line.to_owned(), |short| format!("{short}s")),
        false => line.replace("m]", "s]"),
    };
    rules.lines().map(|one| line(one) + "\n").collect()
}

fn percent_encoded(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_durations_of_the_rules_become_seconds_and_nothing_else_changes() {
        let rules =
            "expr: |\n  rate(podcred_m[15m]) > 0\n  unless podcred_m offset 15m\nfor: 5m\nsummary: m\n";
        let fast =
            "expr: |\n  rate(podcred_m[15s]) > 0\n  unless podcred_m offset 15s\nfor: 5s\nsummary: m\n";
        assert_eq!(minutes_to_seconds(rules), fast);
    }

    #[test]
    fn a_query_survives_its_way_through_a_url() {
        assert_eq!(percent_encoded(r#"a{b=~"é"} > 0"#), "a%7Bb%3D%7E%22%C3%A9%22%7D%20%3E%200");
    }
}
