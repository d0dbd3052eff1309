//! Pods' cgroups, laid out as the kubelet does it, that end with their owner.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the kubelet's systemd driver calls the cgroup of all pods.
const KUBEPODS: &str = "kubepods.slice";
const PREFIX: &str = "podcred-demo-";

/// A kubepods cgroup of our own, below the cgroup2 mount.
#[derive(Debug)]
pub(crate) struct PodCgroups {
    root: PathBuf,
}

impl PodCgroups {
    pub(crate) fn make() -> Result<PodCgroups> {
        let mount = cgroup2_mount()?;
        sweep(&mount);
        let cgroups = PodCgroups { root: mount.join(format!("{PREFIX}{}", std::process::id())) };
        let kubepods = cgroups.kubepods();
        std::fs::create_dir_all(&kubepods).with_context(|| format!("cannot make {}", kubepods.display()))?;
        Ok(cgroups)
    }

    pub(crate) fn kubepods(&self) -> PathBuf {
        self.root.join(KUBEPODS)
    }

    /// The cgroup of this pod's only container; it ends with all of them.
    pub(crate) fn container(&self, pod_uid: &str) -> Result<PathBuf> {
        let (class, pod) = ("kubepods-burstable", pod_uid.replace('-', "_"));
        // An id as containerd's, of which nobody wants to know more than that there is one.
        let id = pod_uid.replace('-', "").repeat(2);
        let path =
            self.kubepods().join(format!("{class}.slice/{class}-pod{pod}.slice/cri-containerd-{id}.scope"));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for PodCgroups {
    fn drop(&mut self) {
        // What still runs in them was killed when its owner was dropped, but may not have ended yet; this waits for it.
        let _before_linux_5_14 = std::fs::write(self.root.join("cgroup.kill"), "1");
        for _ in 0..100 {
            remove(&self.root);
            if !self.root.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("cannot remove the cgroups below {}: processes still run in them", self.root.display());
    }
}

/// Where the node's cgroup2 hierarchy is.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    match mount {
        Some(mount) => Ok(mount),
        None => bail!("no cgroup2 file system is mounted"),
    }
}

/// Those of processes that were killed before they could remove them.
fn sweep(mount: &Path) {
    let Ok(entries) = std::fs::read_dir(mount) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let owner = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&path);
        }
    }
}

/// The deepest first: a cgroup with others below it cannot be removed. What is left, is left for the caller to see.
fn remove(cgroup: &Path) {
    let Ok(entries) = std::fs::read_dir(cgroup) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        remove(&path);
    }
    let _in_use = std::fs::remove_dir(cgroup);
}
