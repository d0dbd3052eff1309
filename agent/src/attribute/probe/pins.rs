//! Programs and maps that outlive this process, on a bpffs.
//!
//! One folder for each version of the programs, named by the object's hash, with the maps and the links in it. Whoever starts
//! uses the maps that are there, makes those that are not, and puts its own programs behind the links: so whatever an agent
//! that was killed halfway has left is made whole. Programs and maps in use stay alive by their descriptors, so an agent of
//! another version that is still running does not mind that its folder is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aya::EbpfLoader;
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;

use super::{ProbeError, sys};
use crate::clock::since_boot;

/// What must be the same for all programs of one version. The others are constant, or read by one process only.
const MAPS: [&str; 11] = [
    "SETTINGS",
    "WATCHED",
    "DESTINATIONS",
    "IMDS_ALLOWED",
    "CALLER",
    "ATTRIBUTED",
    "PENDING",
    "SLOTS",
    "NAMESPACES",
    "COUNTERS",
    "LOST_EVENTS",
];

/// Hexadecimal digits of a folder's name.
const NAME: usize = 16;

const LINKS: &str = "links";
const LOCK: &str = "lock";

/// Nobody holds the lock so long who is not stuck.
const LONGEST_START: Duration = Duration::from_secs(10);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

pub(super) struct Pins {
    root: PathBuf,
    /// The folder of this version.
    own: PathBuf,
}

/// The pins, while no other agent changes them.
pub(super) struct Locked<'a> {
    pins: &'a Pins,
    _lock: File,
}

/// Takes away what agents of all versions have pinned there: without an agent that runs, the programs end. Whether there
/// was anything. What others have pinned beside it stays.
pub fn clear(root: &Path) -> Result<bool, ProbeError> {
    if !root.try_exists().map_err(|source| failed(root, source))? {
        return Ok(false);
    }
    // An agent that is just starting must not lose its pins under its feet.
    let _lock = lock(root)?;
    let cleared = remove_versions(root, |_| true)?;
    let _ = fs::remove_dir(root.join(LOCK));
    // Fails where others have something there, or where it is the bpffs itself.
    let _ = fs::remove_dir(root);
    Ok(cleared)
}

/// Waits for agents that are just starting; each takes a moment. The lock ends with what is given back, and with the process.
fn lock(root: &Path) -> Result<File, ProbeError> {
    let deadline = since_boot() + LONGEST_START;
    loop {
        match try_lock(root) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => {}
            // Somebody took it away between two calls.
            Err(ProbeError::Pins { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if since_boot() > deadline {
            return Err(ProbeError::PinsLocked { path: root.to_owned() });
        }
        thread::sleep(BETWEEN_TRIES);
    }
}

/// None where somebody has it, or had it and took its folder away with the pins.
fn try_lock(root: &Path) -> Result<Option<File>, ProbeError> {
    fs::create_dir_all(root).map_err(|source| failed(root, source))?;
    check_bpffs(root)?;
    let path = root.join(LOCK);
    let failed = |source| failed(&path, source);
    // Whoever can open a folder can lock it: this one is for root alone.
    DirBuilder::new().mode(0o700).recursive(true).create(&path).map_err(failed)?;
    let folder = File::open(&path).map_err(failed)?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_at(&folder, &path).map_err(failed)?.then_some(folder)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn is_at(folder: &File, path: &Path) -> io::Result<bool> {
    Ok(folder.metadata()?.ino() == fs::metadata(path)?.ino())
}

fn failed(path: &Path, source: io::Error) -> ProbeError {
    ProbeError::Pins { path: path.to_owned(), source }
}

fn check_bpffs(root: &Path) -> Result<(), ProbeError> {
    let kind = statfs(root).map_err(|errno| failed(root, errno.into()))?.f_type;
    match i128::from(kind) == i128::from(libc::BPF_FS_MAGIC) {
        true => Ok(()),
        false => Err(ProbeError::NoBpffs { path: root.to_owned() }),
    }
}

impl Pins {
    pub(super) fn of(object: &[u8], root: &Path) -> Pins {
        let hash = digest(&SHA256, object);
        let name: String = hash.as_ref().iter().take(NAME / 2).map(|byte| format!("{byte:02x}")).collect();
        Pins { root: root.to_owned(), own: root.join(name) }
    }

    pub(super) fn lock(&self) -> Result<Locked<'_>, ProbeError> {
        let locked = Locked { pins: self, _lock: lock(&self.root)? };
        fs::create_dir_all(self.own.join(LINKS)).map_err(|source| failed(&self.own, source))?;
        Ok(locked)
    }
}

impl Locked<'_> {
    /// The maps are taken from here, or made here.
    pub(super) fn use_maps(&self, loader: &mut EbpfLoader<'_>) {
        for map in MAPS {
            loader.map_pin_path(map, self.pins.own.join(map));
        }
    }

    pub(super) fn link(&self, name: &str) -> Result<Option<OwnedFd>, ProbeError> {
        let path = self.link_path(name);
        match sys::pinned(&path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ProbeError::Pins { path, source }),
        }
    }

    /// Pins a link in the place of any other of that name.
    pub(super) fn pin_link(&self, name: &str, link: BorrowedFd<'_>) -> Result<(), ProbeError> {
        let path = self.link_path(name);
        let pinned = remove(&path).and_then(|()| sys::pin(&path, link));
        pinned.map_err(|source| ProbeError::Pins { path, source })
    }

    /// Removes links to cgroups that are not ours any more.
    pub(super) fn remove_other_links(&self, ours: &[String]) -> Result<(), ProbeError> {
        for path in entries(&self.pins.own.join(LINKS))? {
            let name = path.file_name().and_then(|name| name.to_str());
            if !name.is_some_and(|name| ours.iter().any(|our| our == name)) {
                remove(&path).map_err(|source| failed(&path, source))?;
            }
        }
        Ok(())
    }

    /// Removes the folders of other versions, now that our own programs run.
    pub(super) fn remove_other_versions(&self) -> Result<(), ProbeError> {
        remove_versions(&self.pins.root, |path| path != self.pins.own).map(drop)
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.pins.own.join(LINKS).join(name)
    }
}

/// For who holds the lock. Whether there was one of them.
fn remove_versions(root: &Path, which: impl Fn(&Path) -> bool) -> Result<bool, ProbeError> {
    let mut versions = entries(root)?;
    versions.retain(|path| is_a_version(path) && which(path));
    for path in &versions {
        fs::remove_dir_all(path).map_err(|source| failed(path, source))?;
    }
    Ok(!versions.is_empty())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ProbeError> {
    let entries = fs::read_dir(folder).map_err(|source| failed(folder, source))?;
    entries.map(|entry| Ok(entry.map_err(|source| failed(folder, source))?.path())).collect()
}

/// Whether an agent made this folder. To remove it unpins all that is in it, and the one that it is in may be others', too:
/// so a name that looks like ours is not enough. An agent that was killed before it made the links has left an empty folder.
fn is_a_version(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_hash = name.len() == NAME && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hash && path.join(LINKS).is_dir()
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| match error.kind() == io::ErrorKind::NotFound {
        true => Ok(()),
        false => Err(error),
    })
}
