//! Programs and maps that outlive this process, on a bpffs.
//!
//! One folder for each version of the programs, named by the object's hash, with the maps and the links in it. Whoever starts
//! uses the maps that are there, makes those that are not, and puts its own programs behind the links: so whatever an agent
//! that was killed halfway has left is made whole. Programs and maps in use stay alive by their descriptors, so an agent of
//! another version that is still running does not mind that its folder is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
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
    directory: File,
    /// The folder of this version.
    own: PathBuf,
}

/// The pins, while no other agent changes them.
pub(super) struct Locked<'a> {
    pins: &'a Pins,
}

/// Takes away what agents of all versions have pinned there: without an agent that runs, the programs end. Whether there
/// was anything. What others have pinned beside it stays.
pub fn clear(root: &Path) -> Result<bool, ProbeError> {
    let failed = |source| ProbeError::Pins { path: root.to_owned(), source };
    if !root.try_exists().map_err(failed)? {
        return Ok(false);
    }
    check_bpffs(root)?;
    let lock = root.join(LOCK);
    match File::open(&lock) {
        // An agent that is just starting must not lose its pins under its feet.
        Ok(held) if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() => {
            return Err(ProbeError::PinsLocked { path: root.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut cleared = false;
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if is_a_version(&path) {
            fs::remove_dir_all(path).map_err(failed)?;
            cleared = true;
        }
    }
    let _ = fs::remove_dir(lock);
    // Fails where others have something there, or where it is the bpffs itself.
    let _ = fs::remove_dir(root);
    Ok(cleared)
}

fn check_bpffs(root: &Path) -> Result<(), ProbeError> {
    let failed = |errno: Errno| ProbeError::Pins { path: root.to_owned(), source: errno.into() };
    match i128::from(statfs(root).map_err(failed)?.f_type) == i128::from(libc::BPF_FS_MAGIC) {
        true => Ok(()),
        false => Err(ProbeError::NoBpffs { path: root.to_owned() }),
    }
}

impl Pins {
    pub(super) fn open(root: &Path, object: &[u8]) -> Result<Pins, ProbeError> {
        let failed = |source| ProbeError::Pins { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(failed)?;
        check_bpffs(root)?;
        // Whoever can open a folder can lock it: this one is for root alone.
        let lock = root.join(LOCK);
        DirBuilder::new().mode(0o700).recursive(true).create(&lock).map_err(failed)?;
        let directory = File::open(lock).map_err(failed)?;
        let hash = digest(&SHA256, object);
        let name: String = hash.as_ref().iter().take(NAME / 2).map(|byte| format!("{byte:02x}")).collect();
        Ok(Pins { root: root.to_owned(), directory, own: root.join(name) })
    }

    /// Waits for agents that are just starting; each takes a moment, and the lock ends with its process.
    pub(super) fn lock(&self) -> Result<Locked<'_>, ProbeError> {
        let failed = |source| ProbeError::Pins { path: self.own.clone(), source };
        let deadline = since_boot() + LONGEST_START;
        while let Err(errno) = flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            if errno != Errno::WOULDBLOCK {
                return Err(failed(errno.into()));
            }
            if since_boot() > deadline {
                return Err(ProbeError::PinsLocked { path: self.root.clone() });
            }
            thread::sleep(BETWEEN_TRIES);
        }
        let locked = Locked { pins: self };
        fs::create_dir_all(self.own.join(LINKS)).map_err(failed)?;
        Ok(locked)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Fails only where there is no lock to give back.
        let _ = flock(&self.pins.directory, FlockOperation::Unlock);
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
        let links = self.pins.own.join(LINKS);
        self.each(&links, |path| match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if ours.iter().any(|our| our == name) => Ok(()),
            Some(_) | None => remove(path),
        })
    }

    /// Removes the folders of other versions, now that our own programs run.
    pub(super) fn remove_other_versions(&self) -> Result<(), ProbeError> {
        self.remove_versions(|path| path != self.pins.own)
    }

    pub(super) fn remove_all(&self) -> Result<(), ProbeError> {
        self.remove_versions(|_| true)
    }

    fn remove_versions(&self, which: impl Fn(&Path) -> bool) -> Result<(), ProbeError> {
        self.each(&self.pins.root, |path| {
            if is_a_version(path) && which(path) { fs::remove_dir_all(path) } else { Ok(()) }
        })
    }

    fn each(&self, folder: &Path, act: impl Fn(&Path) -> io::Result<()>) -> Result<(), ProbeError> {
        let failed = |path: &Path, source| ProbeError::Pins { path: path.to_owned(), source };
        for entry in fs::read_dir(folder).map_err(|source| failed(folder, source))? {
            let path = entry.map_err(|source| failed(folder, source))?.path();
            act(&path).map_err(|source| failed(&path, source))?;
        }
        Ok(())
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.pins.own.join(LINKS).join(name)
    }
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
