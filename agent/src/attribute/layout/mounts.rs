//! What is mounted where the node's cgroup file systems should be.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::FsWord;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::LayoutProblem;

// linux/magic.h
const CGROUP: FsWord = 0x0027_e0eb;
const CGROUP2: FsWord = 0x6367_7270;

/// Where systemd puts cgroup2 on nodes that have both.
const UNIFIED: &str = "unified";

#[derive(Debug)]
pub(super) struct Mounts {
    pub(super) cgroup2: Option<PathBuf>,
    /// The hierarchies of cgroup v1.
    pub(super) v1: Vec<PathBuf>,
}

impl Mounts {
    pub(super) fn at(root: &Path) -> Result<Self, LayoutProblem> {
        let kind = kind(root).map_err(|cause| LayoutProblem::unreadable(root, cause))?;
        if kind == CGROUP2 {
            return Ok(Mounts { cgroup2: Some(root.to_owned()), v1: Vec::new() });
        }
        if kind == CGROUP {
            return Ok(Mounts { cgroup2: None, v1: vec![root.to_owned()] });
        }
        let unified = root.join(UNIFIED);
        let mounts = Mounts {
            cgroup2: is(&unified, CGROUP2).then_some(unified),
            v1: v1_hierarchies(root).map_err(|cause| LayoutProblem::unreadable(root, cause))?,
        };
        if mounts.cgroup2.is_none() && mounts.v1.is_empty() {
            return Err(LayoutProblem::NotCgroup { root: root.to_owned() });
        }
        Ok(mounts)
    }
}

/// A cgroup2 mount that is in nobody's mount tables, for as long as the descriptor is open. The kernel keeps that
/// hierarchy also where all controllers are v1's, with every process in its root.
pub(super) fn detached_cgroup2() -> io::Result<(PathBuf, OwnedFd)> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok((format!("/proc/self/fd/{}", mount.as_raw_fd()).into(), mount))
}

fn v1_hierarchies(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // Links such as `cpu` lead to hierarchies that are listed anyway, as `cpu,cpuacct`.
        if entry.file_type()?.is_dir() && is(&entry.path(), CGROUP) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn is(path: &Path, wanted: FsWord) -> bool {
    kind(path).is_ok_and(|kind| kind == wanted)
}

fn kind(path: &Path) -> io::Result<FsWord> {
    Ok(rustix::fs::statfs(path)?.f_type)
}
