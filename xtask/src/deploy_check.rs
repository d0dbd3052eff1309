//! `cargo xtask deploy-check`: what `deploy/` holds, looked at by the tools of those who will use it.

mod chart;
mod image;
pub(crate) mod node;
mod promises;
mod watched;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::build::root;
use crate::process::{on_path, quietly};
use crate::report::Counts;
use crate::setup;

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Regenerate deploy/manifests instead of comparing it with what the chart renders
    #[arg(long)]
    pub(crate) write: bool,
    /// Only this part (repeatable)
    #[arg(long, value_enum, value_name = "PART")]
    pub(crate) only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Documents, flags, values, metrics, alerts and links agree with each other
    Promises,
    /// helm, kubeconform, and deploy/manifests
    Chart,
    /// promtool, and a Prometheus beside a running agent
    Alerts,
    /// Grafana's types
    Dashboard,
    /// cargo xtask image, and its arm64 program under qemu
    Image,
    /// The chart with that image on a whole Kubernetes node
    Node,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    let (counts, left_out) = check(arguments).await?;
    for reason in left_out {
        println!("Left out: {reason}");
    }
    println!("\n{counts}");
    Ok(counts)
}

/// All that can be checked with what is here, and why the rest cannot.
pub(crate) async fn check(arguments: &Arguments) -> Result<(Counts, Vec<String>)> {
    let mut findings = Findings::default();
    for part in Part::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(part) {
            Box::pin(part.check(&mut findings, arguments.write)).await?;
        }
    }
    Ok((findings.counts, findings.left_out))
}

impl Part {
    async fn check(self, findings: &mut Findings, write: bool) -> Result<()> {
        match self {
            Part::Promises => promises::check(findings),
            Part::Chart if !on_path("go") => {
                findings.leave_out("the chart: helm is built by go, which is not on the PATH");
                Ok(())
            }
            Part::Chart => chart::check(findings, write).await,
            Part::Alerts => match setup::promtool().await? {
                Some(promtool) => {
                    alerts(findings, &promtool).await;
                    watched::check(findings, &promtool.with_file_name("prometheus")).await
                }
                None => {
                    findings.leave_out("the alerts: no promtool and no apt-get");
                    Ok(())
                }
            },
            Part::Dashboard if !(on_path("node") && on_path("npm")) => {
                findings.leave_out("the dashboard: node or npm is not on the PATH");
                Ok(())
            }
            Part::Dashboard => dashboard(findings).await,
            Part::Image => image::check(findings).await,
            Part::Node => node::check(findings).await,
        }
    }
}

#[derive(Debug, Default)]
struct Findings {
    counts: Counts,
    left_out: Vec<String>,
}

impl Findings {
    fn note(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                self.counts.passed += 1;
                println!("ok      {what}");
            }
            Err(problem) => {
                self.counts.failed += 1;
                println!("FAILED  {what}\n        {}", format!("{problem:#}").replace('\n', "\n        "));
            }
        }
    }

    fn leave_out(&mut self, reason: impl Into<String>) {
        self.counts.skipped += 1;
        self.left_out.push(reason.into());
    }
}

fn deploy() -> PathBuf {
    root().join("deploy")
}

async fn alerts(findings: &mut Findings, promtool: &Path) {
    for (what, arguments) in [
        ("alerts are rules that Prometheus reads", ["check", "rules", "rules.yaml"]),
        ("each alert fires when it should, and no other", ["test", "rules", "rules_test.yaml"]),
    ] {
        let mut command = Command::new(promtool);
        command.args(arguments).current_dir(deploy().join("prometheus"));
        findings.note(what, quietly("promtool", &mut command).await.map(drop));
    }
    findings.note("the dashboard's queries are PromQL", queries(promtool).await);
}

/// promtool reads queries in rules alone, so each becomes one. JSON is YAML.
async fn queries(promtool: &Path) -> Result<()> {
    let queries = dashboard_queries("5m", "1h")?;
    let rule = |(index, query): (usize, String)| json!({ "record": format!("query:{index}"), "expr": query });
    let rules: Vec<Value> = queries.into_iter().enumerate().map(rule).collect();
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::fs::write(file.path(), json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string())?;
    quietly("promtool", Command::new(promtool).args(["check", "rules"]).arg(file.path())).await.map(drop)
}

/// As Grafana would send them, of all agents.
fn dashboard_queries(rate_interval: &str, range: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(deploy().join("grafana/podcred.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let variables = [("$__rate_interval", rate_interval), ("$__range", range), ("$instance", ".*")];
    let queries: Vec<String> = targets
        .filter_map(|target| target["expr"].as_str())
        .map(|expr| variables.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value)))
        .collect();
    ensure!(!queries.is_empty(), "the dashboard has no queries");
    let strange = queries.iter().find(|query| query.contains('$'));
    ensure!(strange.is_none(), "a variable that Grafana does not know: {strange:?}");
    Ok(queries)
}

async fn dashboard(findings: &mut Findings) -> Result<()> {
    let folder = setup::deploy::dashboard_check().await?;
    let mut node = Command::new("node");
    node.arg("check.mjs").arg(deploy().join("grafana/podcred.json")).current_dir(folder);
    findings.note("the dashboard is as Grafana's types say", quietly("node", &mut node).await.map(drop));
    Ok(())
}
