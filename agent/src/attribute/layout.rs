//! Where the pods' cgroups are on this node, and which cgroup version they are of.

mod find;
mod mounts;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(super) use self::find::{own_cgroup, shown_cgroup};
use self::mounts::Mounts;
use super::cgroup;

/// The hierarchy's own root, in every kernel since 5.5. Any other cgroup that shows itself as the root of a mount is
/// that of a cgroup namespace.
const ROOT_ID: u64 = 1;

/// A node whose cgroups can be used.
#[derive(Debug)]
pub struct Layout {
    /// A cgroup2 mount that shows the whole hierarchy.
    pub mount: PathBuf,
    /// Where the kernel programs are attached: the cgroup2 that all pods are below. Where pods live in v1 hierarchies,
    /// that is the root.
    pub kubepods: PathBuf,
    /// How many levels below the root `kubepods` is.
    pub kubepods_level: u32,
    /// The agent's own cgroup2.
    pub agent_cgroup: PathBuf,
    pub version: Version,
    /// Keeps `mount` there, on nodes that have none of their own.
    _detached: Option<OwnedFd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// The ids of cgroups lead to the pods.
    V2,
    /// They do not; the pods' own v1 cgroups do, which [`super::proc::HostProc`] reads.
    V1Pods(V1Pods),
}

/// Pods in hierarchies of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Pods {
    /// One of the hierarchies, such as `/sys/fs/cgroup/pids`.
    pub hierarchy: PathBuf,
    /// The cgroup in it that all pods are below.
    pub kubepods: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutProblem {
    #[error(
        "{} is no cgroup file system: mount the node's /sys/fs/cgroup into the container (a volume of the type \
         hostPath) and give its place by --cgroup-root",
        root.display()
    )]
    NotCgroup { root: PathBuf },
    #[error(
        "{} does not show the node's cgroups but those below the one with id {id}: it was mounted in a cgroup \
         namespace of its own, or is a folder inside the mount. Programs attached there would see this container \
         alone. Mount the node's /sys/fs/cgroup as a hostPath volume and give its place by --cgroup-root",
        mount.display()
    )]
    NotTheRoot { mount: PathBuf, id: u64 },
    #[error(
        "no kubepods cgroup below {}: the kubelet has not started yet, or uses another name, which \
         --kubepods-cgroup takes",
        root.display()
    )]
    NoKubepods { root: PathBuf },
    #[error(
        "more than one kubepods cgroup: {}. Say by --kubepods-cgroup which one is this kubelet's",
        found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    SeveralKubepods { found: Vec<PathBuf> },
    #[error(
        "--kubepods-cgroup: {} is not below {}: give the path from the cgroup mount on, without `..`",
        kubepods.display(), root.display()
    )]
    KubepodsElsewhere { kubepods: PathBuf, root: PathBuf },
    #[error(
        "the pods of this node are in cgroup v1, and no cgroup2 file system is mounted to which the kernel programs \
         could be attached; a mount of our own failed: {cause}. It takes CAP_SYS_ADMIN and the node's cgroup \
         namespace; or mount one on the node: mkdir {0}/unified && mount -t cgroup2 none {0}/unified",
        root.display()
    )]
    NoCgroup2 { root: PathBuf, cause: io::Error },
    #[error(
        "the agent's own cgroup is nowhere below {}: give the node's /sys/fs/cgroup by --cgroup-root",
        mount.display()
    )]
    NoOwnCgroup { mount: PathBuf },
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
}

impl Layout {
    /// `cgroup_root` is where the node's cgroup file systems are; `kubepods`, if given, is from there or from a
    /// hierarchy on, or absolute; `proc` is any mount of /proc that shows this process.
    pub fn find(cgroup_root: &Path, kubepods: Option<&Path>, proc: &Path) -> Result<Self, LayoutProblem> {
        let mounts = Mounts::at(cgroup_root)?;
        if let Some(mount) = &mounts.cgroup2 {
            check_root(mount)?;
        }
        let in_v2 = match &mounts.cgroup2 {
            Some(mount) => find::kubepods(mount, kubepods)?,
            None => None,
        };
        let in_v1 = v1_pods(&mounts.v1, kubepods)?;
        let no_kubepods = || LayoutProblem::NoKubepods { root: cgroup_root.to_owned() };
        let (version, in_v2) = choose(in_v2, in_v1).ok_or_else(no_kubepods)?;

        let (mount, detached) = match mounts.cgroup2 {
            Some(mount) => (mount, None),
            None => {
                let no_cgroup2 = |cause| LayoutProblem::NoCgroup2 { root: cgroup_root.to_owned(), cause };
                let (path, detached) = mounts::detached_cgroup2().map_err(no_cgroup2)?;
                check_root(&path)?;
                (path, Some(detached))
            }
        };
        let kubepods = in_v2.unwrap_or_else(|| mount.clone());
        let kubepods_level = kubepods.strip_prefix(&mount).map_or(0, |below| below.components().count());
        Ok(Layout {
            agent_cgroup: own_cgroup(&mount, proc, |controllers| controllers.is_empty())?,
            kubepods_level: kubepods_level.try_into().unwrap_or(u32::MAX),
            kubepods,
            mount,
            version,
            _detached: detached,
        })
    }
}

impl LayoutProblem {
    /// Whether it may go away by itself, so that waiting is better than giving up.
    pub fn may_pass(&self) -> bool {
        match self {
            LayoutProblem::NoKubepods { .. } => true,
            LayoutProblem::NotCgroup { .. }
            | LayoutProblem::NotTheRoot { .. }
            | LayoutProblem::SeveralKubepods { .. }
            | LayoutProblem::KubepodsElsewhere { .. }
            | LayoutProblem::NoCgroup2 { .. }
            | LayoutProblem::NoOwnCgroup { .. }
            | LayoutProblem::Unreadable { .. } => false,
        }
    }

    fn unreadable(path: &Path, cause: io::Error) -> Self {
        LayoutProblem::Unreadable { path: path.to_owned(), cause }
    }
}

/// In a cgroup namespace of one's own, a fresh mount shows a part as if it were the whole, and even lets ids from
/// outside be opened: as the path `/`.
fn check_root(mount: &Path) -> Result<(), LayoutProblem> {
    let id = cgroup::id_of(mount).map_err(|cause| LayoutProblem::unreadable(mount, cause))?;
    if id == ROOT_ID { Ok(()) } else { Err(LayoutProblem::NotTheRoot { mount: mount.to_owned(), id }) }
}

fn v1_pods(hierarchies: &[PathBuf], kubepods: Option<&Path>) -> Result<Option<V1Pods>, LayoutProblem> {
    for hierarchy in hierarchies {
        if let Some(kubepods) = find::kubepods(hierarchy, kubepods)? {
            return Ok(Some(V1Pods { hierarchy: hierarchy.clone(), kubepods }));
        }
    }
    Ok(None)
}

/// On hybrid nodes systemd makes the slices in both versions; the processes tell which one the pods use.
fn choose(in_v2: Option<PathBuf>, in_v1: Option<V1Pods>) -> Option<(Version, Option<PathBuf>)> {
    match (in_v2, in_v1) {
        (Some(v2), Some(v1)) if !is_populated(&v2) && find::has_pods(&v1.kubepods) => {
            Some((Version::V1Pods(v1), None))
        }
        (Some(v2), _) => Some((Version::V2, Some(v2))),
        (None, Some(v1)) => Some((Version::V1Pods(v1), None)),
        (None, None) => None,
    }
}

fn is_populated(cgroup2: &Path) -> bool {
    fs::read_to_string(cgroup2.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}
