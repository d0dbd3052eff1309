//! What one file says of another: flags are values, queries name metrics that exist, the operator's guide has them all, and
//! links lead somewhere.
//!
//! docs/reference.md is the source: tests of the agent hold it to the code.

mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Findings;
use crate::build::root;

const REFERENCE: &str = "docs/reference.md";

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let reference = read(REFERENCE)?;
    let operate = read("docs/operate.md")?;
    let metrics = metrics(section(&reference, "metrics")?);
    let flags = flags(section(&reference, "flags")?);
    let values = read("deploy/helm/podcred/values.yaml")?;
    let schema = read("deploy/helm/podcred/values.schema.json")?;
    findings.note(
        "every flag is a value, with podcred's own default beside it",
        flags_are_values(&flags, &values),
    );
    findings.note("the schema knows every flag and nothing else", flags_are_known(&flags, &schema));

    let rules = read("deploy/prometheus/rules.yaml")?;
    let dashboard = read("deploy/grafana/podcred.json")?;
    for (what, text) in [("alerts query", &rules), ("the dashboard queries", &dashboard)] {
        findings.note(&format!("{what} metrics that exist"), known_metrics(text, &metrics));
    }
    let unshown: Vec<&String> =
        metrics.iter().filter(|m| m.starts_with("podcred_") && !dashboard.contains(*m)).collect();
    findings.note("the dashboard shows every metric", none(&unshown));

    let refusals = section(&reference, "refusals")?;
    let (codes, results) = (cells(refusals, 2), cells(refusals, 3));
    let events = cells(section(&reference, "events")?, 1);
    for (what, names) in
        [("metric", &metrics), ("refusal", &results), ("error code", &codes), ("log event", &events)]
    {
        let missing: Vec<&String> =
            names.iter().filter(|name| !operate.contains(&format!("`{name}`"))).collect();
        findings.note(&format!("docs/operate.md has every {what}"), none(&missing));
    }
    findings.note("every alert has its place in docs/operate.md", runbooks(&rules, &operate));
    findings.note("every link between the documents leads somewhere", links::check());
    Ok(())
}

/// That each flag of `podcred server` is an argument in a rendered DaemonSet.
pub(super) fn renders_every_flag(rendered: &str) -> Result<()> {
    let reference = read(REFERENCE)?;
    let flags = flags(section(&reference, "flags")?);
    let missing: Vec<&String> = flags
        .values()
        .map(|flag| &flag.name)
        .filter(|name| !rendered.contains(&format!("--{name}=")))
        .collect();
    none(&missing)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(Path::new(path))).with_context(|| format!("cannot read {path}"))
}

/// What stands between `<!-- name: … -->` and `<!-- /name -->`.
fn section<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    let begin = format!("<!-- {name}: ");
    let (_, rest) = text.split_once(&begin).with_context(|| format!("{begin}… is not in {REFERENCE}"))?;
    let end = format!("<!-- /{name} -->");
    Ok(rest.split_once(&end).with_context(|| format!("{end} is not in {REFERENCE}"))?.0)
}

fn none(names: &[&String]) -> Result<()> {
    ensure!(names.is_empty(), "missing: {names:?}");
    Ok(())
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn metrics(section: &str) -> BTreeSet<String> {
    let families =
        |name: &&str| is_word(name) && (name.starts_with("podcred_") || name.starts_with("pod_identity_"));
    quoted(section).filter(families).map(str::to_owned).collect()
}

/// The words in one column of a Markdown table.
fn cells(table: &str, column: usize) -> BTreeSet<String> {
    let rows = table.lines().filter_map(|line| line.split('|').nth(column));
    rows.flat_map(quoted).filter(|word| is_word(word)).map(str::to_owned).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Flag {
    name: String,
    default: String,
}

/// The flags by the names of their values, `clusterName` left out: it is a value of its own.
fn flags(table: &str) -> BTreeMap<String, Flag> {
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.split(" | ");
        let flag = quoted(cells.next()?).next()?.strip_prefix("--")?.split(' ').next()?;
        let default = quoted(cells.nth(1)?).next().unwrap_or_default();
        Some((camel_case(flag), Flag { name: flag.to_owned(), default: default.to_owned() }))
    });
    rows.filter(|(name, _)| name != "clusterName").collect()
}

fn camel_case(flag: &str) -> String {
    let mut words = flag.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(1);
        name + &initial.to_uppercase() + rest
    })
}

/// In `agent`, what is commented out shows podcred's default, and what is set is the chart's own choice.
fn flags_are_values(flags: &BTreeMap<String, Flag>, values: &str) -> Result<()> {
    let (_, agent) = values.split_once("\nagent:\n").context("values.yaml has no agent")?;
    let mut seen = BTreeSet::new();
    for line in agent.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let commented = line.trim_start().strip_prefix("# ");
        let Some((name, value)) = commented.unwrap_or(line.trim_start()).split_once(": ") else { continue };
        let Some(Flag { default, .. }) = flags.get(name) else {
            ensure!(name.contains(' ') || name == "additionalArgs", "agent.{name} is no flag");
            continue;
        };
        seen.insert(name.to_owned());
        let value = value.split(" #").next().unwrap_or_default();
        // As a list and as the words of a flag.
        let plain = |text: &str| text.replace(['"', '[', ']', ' '], "");
        ensure!(
            commented.is_none() || plain(value) == plain(default),
            "agent.{name} shows {value:?} as podcred's default, which is {default:?}"
        );
    }
    let missing: Vec<&String> = flags.keys().filter(|name| !seen.contains(*name)).collect();
    none(&missing)
}

fn flags_are_known(flags: &BTreeMap<String, Flag>, schema: &str) -> Result<()> {
    let schema: Value = serde_json::from_str(schema)?;
    let known = schema["properties"]["agent"]["properties"].as_object().context("the schema has no agent")?;
    let missing: Vec<&String> = flags.keys().filter(|name| !known.contains_key(*name)).collect();
    none(&missing)?;
    let extra: Vec<&String> =
        known.keys().filter(|name| !flags.contains_key(*name) && *name != "additionalArgs").collect();
    ensure!(extra.is_empty(), "no flags: {extra:?}");
    Ok(())
}

fn known_metrics(text: &str, metrics: &BTreeSet<String>) -> Result<()> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let used: BTreeSet<&str> = words.filter(|word| word.starts_with("podcred_")).collect();
    ensure!(used.len() > 5, "only {used:?} found");
    let known = |name: &&str| {
        let series = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        metrics.contains(*name) || series.is_some_and(|family| metrics.contains(family))
    };
    let unknown: Vec<&str> = used.into_iter().filter(|name| !known(name)).collect();
    ensure!(unknown.is_empty(), "{REFERENCE} has no {unknown:?}");
    Ok(())
}

/// An alert's link leads to the heading with its name.
fn runbooks(rules: &str, operate: &str) -> Result<()> {
    let mut alerts = rules.split("- alert: ").skip(1).peekable();
    ensure!(alerts.peek().is_some(), "there are no alerts");
    for alert in alerts {
        let name = alert.lines().next().unwrap_or_default();
        ensure!(operate.contains(&format!("\n### {name}\n")), "docs/operate.md has no heading {name}");
        let link = format!("/docs/operate.md#{}\n", name.to_lowercase());
        ensure!(alert.contains(&link), "{name} has no runbook_url that ends in {}", link.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
| flag | environment variable | default | meaning |
|---|---|---|---|
| `--cluster-name NAME`, `-c` | `PODCRED_CLUSTER_NAME` |  | Name |
| `--bind-hosts IP`, `-b` | `PODCRED_BIND_HOSTS` | `1.2.3.4,[fd00::1]` | Address |
| `--pin PATH` | `PODCRED_PIN` |  | Folder |
";

    #[test]
    fn flags_and_their_defaults_are_read_off_the_table() {
        let flag = |name: &str, default: &str| Flag { name: name.to_owned(), default: default.to_owned() };
        let expected = [("bindHosts", flag("bind-hosts", "1.2.3.4,[fd00::1]")), ("pin", flag("pin", ""))];
        assert_eq!(flags(TABLE), expected.map(|(value, flag)| (value.to_owned(), flag)).into());
    }

    #[test]
    fn values_must_show_the_flags_own_defaults() {
        let flags = flags(TABLE);
        let good =
            "x: 1\n\nagent:\n  # bindHosts: [\"1.2.3.4\", \"[fd00::1]\"]\n  # pin: \"\"   # /sys/…\n\ny: 2\n";
        flags_are_values(&flags, good).unwrap();
        let problem = |values: &str| flags_are_values(&flags, values).unwrap_err().to_string();
        assert!(problem(&good.replace("1.2.3.4", "1.2.3.5")).contains("shows"));
        assert!(problem(&good.replace("pin:", "pim:")).contains("agent.pim is no flag"));
        assert!(problem(&good.replace("  # pin: \"\"   # /sys/…\n", "")).contains("missing: [\"pin\"]"));
        // What is set is the chart's choice.
        flags_are_values(&flags, &good.replace("# pin: \"\"", "pin: /elsewhere")).unwrap();
    }

    #[test]
    fn words_are_read_off_one_column() {
        let table = "| status | `Code` | `result` |\n|---|---|---|\n| 400 | `Bad` | `a_b`, `c` |\n";
        assert_eq!(cells(table, 3), ["a_b", "c", "result"].map(str::to_owned).into());
        assert_eq!(cells(table, 2), ["Bad", "Code"].map(str::to_owned).into());
    }

    #[test]
    fn a_query_of_a_metric_that_is_not_there_is_found() {
        let metrics: BTreeSet<String> = (0..9).map(|n| format!("podcred_m{n}")).collect();
        let text: String = (0..7).map(|n| format!("rate(podcred_m{n}_bucket[5m]) ")).collect();
        known_metrics(&text, &metrics).unwrap();
        assert!(
            known_metrics(&(text + "podcred_other"), &metrics)
                .unwrap_err()
                .to_string()
                .contains("podcred_other")
        );
    }

    #[test]
    fn an_alert_without_its_heading_or_link_is_found() {
        let rules = "- alert: One\n  runbook_url: https://x/docs/operate.md#one\n";
        runbooks(rules, "## Alerts\n\n### One\n").unwrap();
        assert!(runbooks(rules, "### Two\n").is_err());
        assert!(runbooks(&rules.replace("#one", "#two"), "\n### One\n").is_err());
    }
}
