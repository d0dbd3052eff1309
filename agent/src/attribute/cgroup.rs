//! From the id of a cgroup, which the kernel programs give, to the pod that it belongs to.

mod name;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use quick_cache::DefaultHashBuilder;
use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;

pub use self::name::parse;
use super::handle;
use crate::locks::{read, write};

/// Cgroups that are remembered of one pod. A container that may make cgroups below its own could else fill the
/// memory; those over the number cost their pod a look-up each.
const KNOWN_OF_ONE_POD: usize = 64;

/// Whose a cgroup is, as its place below the kubepods cgroup tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// As tokens spell it. Static pods have a hash here which is in no token.
    pub pod_uid: Arc<str>,
    /// None for the pod's own cgroup and for its helpers, such as cri-o's conmon.
    pub container_id: Option<Arc<str>>,
}

/// The cgroups of one pod: its own first, then those of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodGroups {
    pub pod_uid: Arc<str>,
    pub ids: Vec<u64>,
}

/// Why a cgroup's id leads to no pod.
#[derive(Debug, thiserror::Error)]
pub enum NoPod {
    #[error("its cgroup is gone: the container or the pod has ended")]
    Gone,
    #[error("its cgroup {} is no pod's", path.display())]
    NotAPod { path: PathBuf },
    #[error(
        "its cgroup cannot be looked up: {cause}. By its id that takes CAP_DAC_READ_SEARCH \
         (securityContext.capabilities.add: [DAC_READ_SEARCH])"
    )]
    CannotTell { cause: io::Error },
}

/// The cgroup2 hierarchy of this node. Ids are never used twice, so what was found holds until the cgroup dies.
#[derive(Debug)]
pub struct Cgroups {
    mount: OwnedFd,
    kubepods: PathBuf,
    /// `kubepods` as the kernel writes it in links, which differs where the mount is reached by a symbolic link, or
    /// is detached and so has no place among the others.
    shown: PathBuf,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<u64, PodCgroup, DefaultHashBuilder>,
    /// Pod UID → number of its entries in `pods`.
    counts: HashMap<Arc<str>, usize>,
}

impl Cgroups {
    /// `mount` shows the whole hierarchy, and `kubepods` is in it: [`super::layout::Layout`] has seen to both.
    pub fn open(mount: &Path, kubepods: &Path) -> io::Result<Self> {
        Ok(Cgroups {
            mount: File::open(mount)?.into(),
            kubepods: kubepods.to_owned(),
            shown: shown_path(&File::open(kubepods)?)?,
            known: RwLock::default(),
        })
    }

    /// The pod that the cgroup belongs to, also while a pod that was seen before is being torn down.
    pub fn pod_of(&self, id: u64) -> Result<PodCgroup, NoPod> {
        let known = read(&self.known).pods.get(&id).cloned();
        if let Some(pod) = known {
            return Ok(pod);
        }
        let path = self.path_of(id)?;
        let Some(pod) = path.strip_prefix(&self.shown).ok().and_then(parse) else {
            return Err(NoPod::NotAPod { path });
        };
        write(&self.known).remember(id, &pod);
        Ok(pod)
    }

    /// Where it is below kubepods, as long as it is alive. Not cached.
    pub fn place_of(&self, id: u64) -> Result<PathBuf, NoPod> {
        let path = shown_path(&self.open_live(id)?).map_err(no_pod)?;
        match path.strip_prefix(&self.shown) {
            Ok(place) => Ok(place.to_owned()),
            Err(_) => Err(NoPod::NotAPod { path }),
        }
    }

    /// False only when the kernel says so.
    pub fn is_alive(&self, id: u64) -> bool {
        !matches!(self.open_live(id), Err(NoPod::Gone))
    }

    /// Forgets the remembered cgroups that are gone, and returns them. A few microseconds each: for a sweep now and
    /// then, not for a request.
    pub fn forget_dead(&self) -> Vec<(u64, PodCgroup)> {
        let mut dead: Vec<u64> = read(&self.known).pods.keys().copied().collect();
        dead.retain(|id| !self.is_alive(*id));
        if dead.is_empty() {
            return Vec::new();
        }
        let mut known = write(&self.known);
        dead.into_iter().filter_map(|id| Some((id, known.forget(id)?))).collect()
    }

    /// All pods that have a cgroup now.
    pub fn groups_of_pods(&self) -> io::Result<Vec<PodGroups>> {
        let mut pods = Vec::new();
        for (level, id) in children(&self.kubepods)? {
            if let Some(pod) = self.groups_of_pod(&level, id)? {
                pods.push(pod);
                continue;
            }
            for (name, id) in children(&self.kubepods.join(&level))? {
                pods.extend(self.groups_of_pod(&level.join(name), id)?);
            }
        }
        Ok(pods)
    }

    fn groups_of_pod(&self, below: &Path, id: u64) -> io::Result<Option<PodGroups>> {
        let Some(PodCgroup { pod_uid, .. }) = parse(below) else { return Ok(None) };
        let mut ids = vec![id];
        ids.extend(children(&self.kubepods.join(below))?.into_iter().map(|(_, id)| id));
        Ok(Some(PodGroups { pod_uid, ids }))
    }

    fn path_of(&self, id: u64) -> Result<PathBuf, NoPod> {
        shown_path(&self.open_by_id(id)?).map_err(no_pod)
    }

    fn open_live(&self, id: u64) -> Result<OwnedFd, NoPod> {
        let cgroup = self.open_by_id(id)?;
        // Linux 5.10 opens a removed one as long as anything holds it, a socket for one, but it has no files any more.
        match accessat(&cgroup, "cgroup.procs", Access::EXISTS, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(NoPod::Gone),
            Ok(()) | Err(_) => Ok(cgroup),
        }
    }

    fn open_by_id(&self, id: u64) -> Result<OwnedFd, NoPod> {
        handle::open_cgroup(self.mount.as_fd(), id).map_err(no_pod)
    }
}

impl Known {
    fn remember(&mut self, id: u64, pod: &PodCgroup) {
        let count = self.counts.entry(Arc::clone(&pod.pod_uid)).or_default();
        if *count < KNOWN_OF_ONE_POD && self.pods.insert(id, pod.clone()).is_none() {
            *count += 1;
        }
    }

    fn forget(&mut self, id: u64) -> Option<PodCgroup> {
        let pod = self.pods.remove(&id)?;
        if let Some(count) = self.counts.get_mut(&pod.pod_uid) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&pod.pod_uid);
            }
        }
        Some(pod)
    }
}

/// The id of the cgroup at this path: its inode number.
pub fn id_of(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// The cgroups directly below one, with their ids. None, if it went away meanwhile.
pub(super) fn children(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = match entries {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // The kind is in the entry itself: no cgroup has to be there any more for it.
    let directories = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| (PathBuf::from(entry.file_name()), entry.ino())).collect())
}

/// Where the kernel says that an open file is.
fn shown_path(file: &impl AsRawFd) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    // A cgroup that was removed after it was opened. Its place is still the truth, and a container that calls one of
    // its own cgroups so changes nothing: what is parsed ends above it.
    let bytes = path.as_os_str().as_bytes();
    Ok(bytes.strip_suffix(b" (deleted)").map_or_else(|| path.clone(), |b| OsStr::from_bytes(b).into()))
}

fn no_pod(cause: io::Error) -> NoPod {
    match cause.raw_os_error() == Some(Errno::STALE.raw_os_error()) {
        true => NoPod::Gone,
        false => NoPod::CannotTell { cause },
    }
}
