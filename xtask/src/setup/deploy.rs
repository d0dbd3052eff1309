//! What `deploy-check` needs: helm and kubeconform, schemas that kubeconform can read, and Grafana's types.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use tokio::process::Command;

use super::{install, made_whole, on_path, quietly, system_packages};
use crate::build::{root, target};
use crate::clock::Stopwatch;
use crate::report::step;

const HELM: (&str, &str) = ("helm.sh/helm/v4/cmd/helm", "v4.3.1");
const KUBECONFORM: (&str, &str) = ("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0");
const PROMETHEUS_OPERATOR: (&str, &str) = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0");
/// The schemas that kubeconform would fetch by itself are on a host that not every machine reaches; this package has them.
const KUBERNETES_VALIDATE: (&str, &str) = ("kubernetes-validate", "1.37.0");
/// The chart's kubeVersion.
const OLDEST_MINOR: u32 = 29;
const OPERATOR_KINDS: [&str; 3] = ["servicemonitors", "podmonitors", "prometheusrules"];

/// Folders of schemas as kubeconform wants them named.
#[derive(Debug)]
pub(crate) struct Schemas {
    kubernetes: PathBuf,
    operator: PathBuf,
}

impl Schemas {
    /// Kubernetes' versions, oldest first.
    pub(crate) fn versions(&self) -> Result<Vec<String>> {
        let mut minors = Vec::new();
        for entry in std::fs::read_dir(&self.kubernetes)? {
            let name = entry?.file_name();
            let minor: Option<u32> =
                name.to_str().and_then(|n| n.strip_prefix("v1.")?.strip_suffix(".0-strict")?.parse().ok());
            minors.extend(minor);
        }
        minors.sort_unstable();
        Ok(minors.iter().map(|minor| format!("1.{minor}.0")).collect())
    }

    /// The values of `-schema-location`.
    pub(crate) fn locations(&self) -> [String; 2] {
        let kind = "{{.ResourceKind}}{{.KindSuffix}}.json";
        let kubernetes = self.kubernetes.display();
        [
            format!("{kubernetes}/{{{{.NormalizedKubernetesVersion}}}}{{{{.StrictSuffix}}}}/{kind}"),
            format!("{}/{kind}", self.operator.display()),
        ]
    }
}

/// Installs what can be had, and returns why the rest cannot.
pub(super) async fn all() -> Result<Vec<&'static str>> {
    let mut left_out = Vec::new();
    match on_path("go") {
        true => {
            helm().await?;
            kubeconform().await?;
        }
        false => left_out.push("helm and kubeconform: go is not on the PATH"),
    }
    match on_path("go") && on_path("python3") {
        true => drop(schemas().await?),
        false => left_out.push("Kubernetes' schemas: go or python3 is not on the PATH"),
    }
    match on_path("node") && on_path("npm") {
        true => drop(dashboard_check().await?),
        false => left_out.push("Grafana's types: node or npm is not on the PATH"),
    }
    Ok(left_out)
}

pub(crate) async fn helm() -> Result<PathBuf> {
    go_program(HELM).await
}

pub(crate) async fn kubeconform() -> Result<PathBuf> {
    go_program(KUBECONFORM).await
}

/// Go checks what it fetches against the public checksum database.
async fn go_program((module, version): (&str, &str)) -> Result<PathBuf> {
    let name = module.rsplit('/').next().unwrap_or(module);
    let folder = target().join("tools").join(format!("{name}-{version}"));
    let program = folder.join(name);
    if !program.is_file() {
        step(&format!("Building {name} {version} (go install) …"));
        let clock = Stopwatch::start();
        let mut go = Command::new("go");
        go.args(["install", &format!("{module}@{version}")]).env("GOBIN", &folder).env("CGO_ENABLED", "0");
        quietly("go install", &mut go).await?;
        step(&format!("Built {name} in {:.0} s", clock.elapsed().as_secs_f32()));
    }
    Ok(program)
}

pub(crate) async fn schemas() -> Result<Schemas> {
    let tools = target().join("tools");
    let kubernetes = tools.join(format!("kubernetes-schemas-{}", KUBERNETES_VALIDATE.1));
    if !kubernetes.is_dir() {
        made_whole(&kubernetes, kubernetes_schemas).await?;
    }
    let operator = tools.join(format!("prometheus-operator-schemas-{}", PROMETHEUS_OPERATOR.1));
    if !operator.is_dir() {
        made_whole(&operator, operator_schemas).await?;
    }
    Ok(Schemas { kubernetes, operator })
}

async fn kubernetes_schemas(to: &Path) -> Result<()> {
    let (package, version) = KUBERNETES_VALIDATE;
    step(&format!("Fetching Kubernetes' schemas (Python package {package} {version})"));
    system_packages().await?;
    let scratch = tempfile::tempdir()?;
    let (venv, packages) = (scratch.path().join("venv"), scratch.path().join("packages"));
    quietly("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--target",
    ]);
    quietly("pip install", pip.arg(&packages).arg(format!("{package}=={version}"))).await?;
    for entry in std::fs::read_dir(packages.join("kubernetes_validate/kubernetes-json-schema"))? {
        let folder = entry?;
        let name = folder.file_name().to_string_lossy().into_owned();
        let Some(version) = name.strip_suffix("-local-strict") else { continue };
        let minor = version.strip_prefix("v1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        if minor.is_some_and(|minor| minor >= OLDEST_MINOR) {
            readable_schemas(&folder.path(), &to.join(format!("{version}-strict")))?;
        }
    }
    Ok(())
}

/// The package's schemas name themselves and each other by paths of a server; kubeconform reads files.
fn readable_schemas(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let file = entry?;
        let mut schema: Map<String, Value> = serde_json::from_slice(&std::fs::read(file.path())?)?;
        schema.remove("$id");
        let text =
            serde_json::to_string(&schema)?.replace("\"/api/_definitions.json#", "\"_definitions.json#");
        std::fs::write(to.join(file.file_name()), text)?;
    }
    Ok(())
}

async fn operator_schemas(to: &Path) -> Result<()> {
    let (module, version) = PROMETHEUS_OPERATOR;
    step(&format!("Fetching the Prometheus operator's schemas (Go module {version})"));
    let mut go = Command::new("go");
    let downloaded =
        quietly("go mod download", go.args(["mod", "download", "-json", &format!("{module}@{version}")]))
            .await?;
    let downloaded: Value = serde_json::from_str(&downloaded)?;
    let sources = Path::new(downloaded["Dir"].as_str().context("go names no folder of the module")?);
    for kind in OPERATOR_KINDS {
        let path = sources.join(format!("jsonnet/prometheus-operator/{kind}-crd.json"));
        let crd: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let kind = crd["spec"]["names"]["kind"].as_str().context("a CRD has a kind")?.to_lowercase();
        let group =
            crd["spec"]["group"].as_str().and_then(|group| group.split('.').next()).context("a group")?;
        for version in crd["spec"]["versions"].as_array().context("versions")? {
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            forbid_unknown(&mut schema);
            // A CRD leaves what is in `metadata` to Kubernetes.
            schema["properties"]["metadata"] = serde_json::json!({ "type": "object" });
            let name = version["name"].as_str().context("a version has a name")?;
            std::fs::write(to.join(format!("{kind}-{group}-{name}.json")), serde_json::to_string(&schema)?)?;
        }
    }
    Ok(())
}

/// What a CRD does not name the API server drops without a word.
fn forbid_unknown(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties")
                && !fields.contains_key("x-kubernetes-preserve-unknown-fields")
            {
                fields.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            fields.values_mut().for_each(forbid_unknown);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unknown),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The folder with the check of the dashboard, and the packages that it needs.
pub(crate) async fn dashboard_check() -> Result<PathBuf> {
    let source = root().join("deploy/tests/dashboard");
    let folder = target().join("tools/dashboard");
    let files =
        ["package.json", "package-lock.json", "check.mjs", "dashboard.ts"].map(|file| source.join(file));
    let work = async {
        // Node looks for packages beside the file that imports them.
        for file in &files {
            let Some(name) = file.file_name() else { bail!("{} has no name", file.display()) };
            std::fs::copy(file, folder.join(name))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"]).current_dir(&folder);
        quietly("npm ci", &mut npm).await?;
        Ok(())
    };
    install("Grafana's types", &folder, &files, "node", work).await?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_refuses_what_it_does_not_name_unless_it_says_that_it_takes_anything() {
        let mut schema = json!({
            "properties": {
                "spec": { "properties": { "port": {} } },
                "labels": { "additionalProperties": { "type": "string" } },
                "open": { "properties": {}, "x-kubernetes-preserve-unknown-fields": true },
            },
        });
        forbid_unknown(&mut schema);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["spec"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["labels"]["additionalProperties"]["type"], "string");
        assert_eq!(schema["properties"]["open"].get("additionalProperties"), None);
    }
}
