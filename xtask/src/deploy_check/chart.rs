//! The chart: what it renders, what it refuses, and what Kubernetes says of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::process::Command;

use super::{Findings, deploy, promises};
use crate::process::{on_path, quietly};
use crate::setup::deploy::{Schemas, helm, kubeconform, schemas};

/// What `deploy/manifests` holds, and the values that each is rendered with beside those of its folder.
const MANIFESTS: [(&str, &[&str]); 2] = [("podcred.yaml", &[]), ("cleanup.yaml", &["--set", "cleanup=true"])];

pub(super) async fn check(findings: &mut Findings, write: bool) -> Result<()> {
    let chart = Chart { helm: helm().await?, folder: deploy().join("helm/podcred") };
    let rendered = tempfile::tempdir()?;
    for values in yaml_files("tests/values")? {
        let name = file_name(&values);
        let outcome = chart.lint_and_render(&values, &rendered.path().join(name)).await;
        findings.note(&format!("helm takes tests/values/{name}"), outcome);
    }
    let every_flag = std::fs::read_to_string(rendered.path().join("every-flag.yaml"));
    let outcome = every_flag.map_err(Into::into).and_then(|text| promises::renders_every_flag(&text));
    findings.note("every flag of tests/values/every-flag.yaml is an argument of the agent", outcome);
    for values in yaml_files("tests/refused")? {
        findings.note(
            &format!("helm refuses tests/refused/{}", file_name(&values)),
            chart.refuses(&values).await,
        );
    }
    for (name, arguments) in MANIFESTS {
        let what = format!("manifests/{name} is what the chart renders");
        findings.note(&what, chart.gives_manifest(name, arguments, write).await);
    }
    match on_path("python3") {
        true => conforms(findings, &chart).await?,
        false => findings.leave_out("Kubernetes' schemas: they come by pip, and python3 is not on the PATH"),
    }
    Ok(())
}

struct Chart {
    helm: PathBuf,
    folder: PathBuf,
}

impl Chart {
    /// Comments of such a file say what has to come of it: `# has: TEXT`, `# has not: TEXT`.
    async fn lint_and_render(&self, values: &Path, to: &Path) -> Result<()> {
        let mut lint = Command::new(&self.helm);
        quietly("helm lint", lint.args(["lint", "--strict"]).arg(&self.folder).arg("--values").arg(values))
            .await?;
        let rendered = self.render(values, &[]).await?;
        std::fs::write(to, &rendered)?;
        for line in std::fs::read_to_string(values)?.lines() {
            if let Some(text) = line.strip_prefix("# has: ") {
                ensure!(rendered.contains(text), "what is rendered has no {text:?}");
            }
            if let Some(text) = line.strip_prefix("# has not: ") {
                ensure!(!rendered.contains(text), "what is rendered has {text:?}");
            }
        }
        Ok(())
    }

    async fn render(&self, values: &Path, arguments: &[&str]) -> Result<String> {
        let mut template = Command::new(&self.helm);
        template.args(["template", "podcred"]).arg(&self.folder).args([
            "--namespace",
            "kube-system",
            "--values",
        ]);
        quietly("helm template", template.arg(values).args(arguments)).await
    }

    /// The first line of such a file, a comment, is what the refusal has to say.
    async fn refuses(&self, values: &Path) -> Result<()> {
        let text = std::fs::read_to_string(values)?;
        let reason = text.lines().next().and_then(|line| line.strip_prefix("# ")).context("no reason")?;
        match self.render(values, &[]).await {
            Ok(_) => bail!("it was taken"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains(reason), "it was refused for another reason than {reason:?}:\n{said}");
            }
        }
        Ok(())
    }

    async fn gives_manifest(&self, name: &str, arguments: &[&str], write: bool) -> Result<()> {
        let folder = deploy().join("manifests");
        let rendered = self.render(&folder.join("values.yaml"), arguments).await?;
        let path = folder.join(name);
        if write {
            std::fs::write(&path, &rendered)?;
        }
        let committed = std::fs::read_to_string(&path)?;
        let differing = committed.lines().zip(rendered.lines()).position(|(here, there)| here != there);
        ensure!(
            committed == rendered,
            "they differ from line {} on: `cargo xtask deploy-check --write` renders it anew",
            differing.unwrap_or_else(|| committed.lines().count().min(rendered.lines().count())) + 1
        );
        Ok(())
    }
}

/// Rendered for each version, because what a version does not have is left out for it.
async fn conforms(findings: &mut Findings, chart: &Chart) -> Result<()> {
    let kubernetes = Kubernetes { kubeconform: kubeconform().await?, schemas: schemas().await? };
    let mut versions = kubernetes.schemas.versions()?;
    for version in &versions {
        let outcome = kubernetes.knows_all_of(chart, version).await;
        findings.note(&format!("Kubernetes {version} knows every field"), outcome);
    }
    // That would be true of everything, too, if the schemas took everything.
    let newest = versions.pop().context("there are no schemas")?;
    let scratch = tempfile::tempdir()?;
    let misspelt = scratch.path().join("misspelt.yaml");
    let good = std::fs::read_to_string(deploy().join("manifests/podcred.yaml"))?;
    std::fs::write(&misspelt, good.replace("hostNetwork:", "hostNetwrk:"))?;
    let outcome = match kubernetes.knows(&newest, [misspelt.as_path()]).await {
        Err(error) if error.to_string().contains("'hostNetwrk' not allowed") => Ok(()),
        Err(error) => Err(error.context("it has another objection")),
        Ok(()) => Err(anyhow!("it has no objection")),
    };
    findings.note(&format!("Kubernetes {newest} does not know hostNetwrk"), outcome);
    Ok(())
}

struct Kubernetes {
    kubeconform: PathBuf,
    schemas: Schemas,
}

impl Kubernetes {
    async fn knows_all_of(&self, chart: &Chart, version: &str) -> Result<()> {
        let rendered = tempfile::tempdir()?;
        for values in yaml_files("tests/values")? {
            let text = chart.render(&values, &["--kube-version", version]).await?;
            std::fs::write(rendered.path().join(file_name(&values)), text)?;
        }
        let manifests = MANIFESTS.map(|(name, _)| deploy().join("manifests").join(name));
        self.knows(version, manifests.iter().map(PathBuf::as_path).chain([rendered.path()])).await
    }

    /// Strict: a field that the API server would drop is an error.
    async fn knows(&self, version: &str, files: impl IntoIterator<Item = &Path>) -> Result<()> {
        let mut command = Command::new(&self.kubeconform);
        command.args(["-strict", "-kubernetes-version", version]);
        for location in self.schemas.locations() {
            command.args(["-schema-location", &location]);
        }
        quietly("kubeconform", command.args(files)).await.map(drop)
    }
}

/// Of a folder of `deploy/`, in the order of their names.
fn yaml_files(folder: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(deploy().join(folder))?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "deploy/{folder} has no values");
    Ok(files)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
