//! Pods' cgroups, laid out as the kubelet does it, that end with their owner.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the kubelet's systemd driver calls the cgroup of all pods.
const KUBEPODS: &str = "kubepods.slice";
const PREFIX: &str = "podcred-xtask-";

/// A cgroup of our own, below the cgroup2 mount; dropped, it is removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn make() -> Result<Cgroup> {
        let mount = cgroup2_mount()?;
        sweep(&mount);
        let path = mount.join(format!("{PREFIX}{}", std::process::id()));
        let cgroup = Cgroup { path };
        std::fs::create_dir_all(&cgroup.path)
            .with_context(|| format!("cannot make {}", cgroup.path.display()))?;
        Ok(cgroup)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> Result<String> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        Ok(name.context("a cgroup has a name")?.to_owned())
    }

    pub(crate) fn mount(&self) -> Result<&Path> {
        self.path.parent().context("a cgroup is below a mount")
    }

    /// Whether the mount shows the machine's whole hierarchy, and not a cgroup namespace's.
    pub(crate) fn shows_the_machine(&self) -> Result<bool> {
        // The number that the kernel gives the first cgroup.
        Ok(std::fs::metadata(self.mount()?)?.ino() == 1)
    }
}

/// A kubepods cgroup of our own.
#[derive(Debug)]
pub(crate) struct PodCgroups {
    root: Cgroup,
}

impl PodCgroups {
    pub(crate) fn make() -> Result<PodCgroups> {
        let cgroups = PodCgroups { root: Cgroup::make()? };
        let kubepods = cgroups.kubepods();
        std::fs::create_dir_all(&kubepods).with_context(|| format!("cannot make {}", kubepods.display()))?;
        Ok(cgroups)
    }

    pub(crate) fn kubepods(&self) -> PathBuf {
        self.root.path.join(KUBEPODS)
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

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What still runs in them was killed when its owner was dropped, but may not have ended yet; this waits for it.
        let _before_linux_5_14 = std::fs::write(self.path.join("cgroup.kill"), "1");
        for _ in 0..100 {
            remove(&self.path);
            if !self.path.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("cannot remove the cgroups below {}: processes still run in them", self.path.display());
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
