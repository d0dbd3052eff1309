//! What a Kubernetes node is made of: Kubernetes and etcd as one program that go builds, and Debian's container runtime.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{made_whole, on_path, quietly, unpacked};
use crate::build::{root, target};
use crate::clock::Stopwatch;
use crate::process::is_root;
use crate::report::step;

const PACKAGES: [&str; 4] = ["containerd", "runc", "containernetworking-plugins", "busybox-static"];
const PARTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Tools {
    /// The folder of Kubernetes' programs and etcd.
    kubernetes: PathBuf,
    /// What Debian's packages have.
    debian: PathBuf,
}

impl Tools {
    /// Folders for the PATH. Where a package has its programs depends on its release.
    pub(crate) fn folders(&self) -> [PathBuf; 4] {
        let [bin, usr_bin, sbin] = ["bin", "usr/bin", "usr/sbin"].map(|folder| self.debian.join(folder));
        [self.kubernetes.clone(), bin, usr_bin, sbin]
    }

    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.folders().into_iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        found.with_context(|| {
            format!("{} has no {name}: remove the folder, to have it made anew", self.debian.display())
        })
    }

    pub(crate) fn network_plugins(&self) -> PathBuf {
        self.debian.join("usr/lib/cni")
    }
}

/// Or why there can be no node here.
pub(crate) async fn tools() -> Result<Result<Tools, String>> {
    let what = "a whole Kubernetes node";
    let needed = ["go", "apt-get", "dpkg-deb", "unshare", "mount", "ip"];
    let missing: Vec<&str> = needed.into_iter().filter(|program| !on_path(program)).collect();
    if !missing.is_empty() {
        return Ok(Err(format!("{what}: {} not on the PATH", missing.join(", "))));
    }
    if !is_root() {
        return Ok(Err(format!("{what}: its namespaces take root")));
    }
    Ok(Ok(Tools { kubernetes: kubernetes().await?, debian: unpacked("node", &PACKAGES).await? }))
}

async fn kubernetes() -> Result<PathBuf> {
    let source = root().join("xtask/node");
    let version = version(&std::fs::read_to_string(source.join("go.mod"))?)?;
    let folder = target().join("tools").join(format!("kubernetes-{version}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    step(&format!("Building Kubernetes {version} (go build, some minutes) …"));
    let clock = Stopwatch::start();
    made_whole(&folder, async |folder| build(&source, &version, folder).await).await?;
    step(&format!("Built Kubernetes in {:.0} s", clock.elapsed().as_secs_f32()));
    Ok(folder)
}

async fn build(source: &Path, version: &str, to: &Path) -> Result<()> {
    let minor = version.split('.').nth(1).context("Kubernetes' version has a minor one")?;
    let variable = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    // The API server does not start with the version that a build without these has.
    let flags = [
        "-s -w".to_owned(),
        variable("gitVersion", version),
        variable("gitMajor", "1"),
        variable("gitMinor", minor),
    ];
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-trimpath", "-ldflags", &flags.join(" "), "-o"])
        .arg(to.join("kubernetes"))
        .arg(".")
        .current_dir(source)
        .env("CGO_ENABLED", "0");
    quietly("go build", &mut go).await?;
    for part in PARTS {
        symlink("kubernetes", to.join(part))?;
    }
    Ok(())
}

/// Kubernetes' own in a go.mod.
fn version(module: &str) -> Result<String> {
    let line = module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    Ok(line.context("go.mod does not require k8s.io/kubernetes")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_kubernetes_is_the_one_that_go_mod_requires() {
        let module = "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.34.4\n)\n";
        assert_eq!(version(module).unwrap(), "v1.34.4");
        assert!(version("module a\n").is_err());
    }
}
