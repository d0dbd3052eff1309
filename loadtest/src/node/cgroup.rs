//! Cgroups that a process of tests makes for itself, and removes again.
//!
//! All of them are *threaded*: such a cgroup takes single threads. Threads of one process can be in different cgroups
//! only below one domain, so every node of a process lies in one cgroup, `podcred-test-<pid>`, and the process itself
//! moves there while it has nodes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;

const PREFIX: &str = "podcred-test-";
/// Threads that were joined and processes that were waited for leave their cgroup a moment later.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// This process's part in the cgroup of all its nodes; the last one to leave removes it.
#[derive(Debug)]
pub(super) struct Domain {
    mount: PathBuf,
    path: PathBuf,
}

#[derive(Debug)]
struct Joined {
    nodes: usize,
    /// Where the process lived before, and goes back to.
    former: PathBuf,
}

static JOINED: Mutex<Option<Joined>> = Mutex::new(None);

impl Domain {
    pub(super) fn join() -> Result<Domain> {
        let mount = cgroup2_mount()?;
        let path = mount.join(format!("{PREFIX}{}", std::process::id()));
        let mut joined = lock(&JOINED);
        match joined.as_mut() {
            Some(joined) => joined.nodes += 1,
            None => {
                sweep(&mount)?;
                let former = own_cgroup(&mount)?;
                make(&path)?;
                // A thread may move only within its process's domain, which the first threaded child makes of this.
                write(&path.join("cgroup.procs"), "0")?;
                *joined = Some(Joined { nodes: 1, former });
            }
        }
        Ok(Domain { mount, path })
    }

    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let mut joined = lock(&JOINED);
        let Some(here) = joined.as_mut() else { return };
        here.nodes -= 1;
        if here.nodes > 0 {
            return;
        }
        let former = here.former.join("cgroup.procs");
        let left = write(&former, "0").or_else(|_| write(&self.mount.join("cgroup.procs"), "0"));
        // Children that were made meanwhile, a browser or a server, are here by accident and go back as well.
        for child in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            // It may have ended by itself.
            let _ = write(&former, child);
        }
        *joined = None;
        tell(left.and_then(|()| remove(&self.path)));
    }
}

/// A cgroup that is removed with all below it, and with the processes that are left there.
#[derive(Debug)]
pub(super) struct OwnedCgroup(PathBuf);

impl OwnedCgroup {
    pub(super) fn threaded(parent: &Path, name: &str) -> Result<OwnedCgroup> {
        let owned = OwnedCgroup(parent.join(name));
        make_threaded(parent, Path::new(name))?;
        Ok(owned)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnedCgroup {
    fn drop(&mut self) {
        remove_or_tell(&self.0);
    }
}

/// Makes every missing cgroup of `path` below `parent`. Each is switched at once: a child that is still a domain below
/// a threaded parent can do nothing else.
pub(super) fn make_threaded(parent: &Path, path: &Path) -> Result<()> {
    let mut cgroup = parent.to_owned();
    for component in path {
        cgroup.push(component);
        if make(&cgroup)? {
            write(&cgroup.join("cgroup.type"), "threaded")?;
        }
    }
    Ok(())
}

/// What the kernel calls a cgroup: the inode of its directory.
pub(super) fn id(cgroup: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(cgroup).with_context(|| format!("{}", cgroup.display()))?.ino())
}

/// Removes a cgroup and those below it. What still runs there and is not of this process is killed; threads of this
/// process must have left, or leave soon.
pub(super) fn remove(cgroup: &Path) -> Result<()> {
    let until = clock::mono() + EMPTY_WITHIN;
    loop {
        match try_remove(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && clock::mono() < until => {
                kill_others_in(cgroup);
                sleep(LOOK_AGAIN);
            }
            Err(error) => return Err(error).with_context(|| format!("removing {}", cgroup.display())),
        }
    }
}

/// For guards, which have nobody to return an error to.
pub(super) fn remove_or_tell(cgroup: &Path) {
    tell(remove(cgroup));
}

fn tell(removed: Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(event = "cgroup_left_behind", error = %format!("{error:#}"), "a test cgroup stays");
    }
}

fn try_remove(cgroup: &Path) -> io::Result<()> {
    for child in children(cgroup)? {
        try_remove(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn children(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// A threaded cgroup lists no processes, only threads; a signal to any thread's id reaches its process.
fn kill_others_in(cgroup: &Path) {
    for child in children(cgroup).unwrap_or_default() {
        kill_others_in(&child);
    }
    let threads = fs::read_to_string(cgroup.join("cgroup.threads")).unwrap_or_default();
    // A thread that is just ending has no id any more and is listed as 0, which to kill() is all of our own process group.
    let ids = threads.lines().filter_map(|line| line.parse().ok()).filter(|&thread| thread > 0);
    for thread in ids.collect::<BTreeSet<i32>>() {
        if !Path::new(&format!("/proc/self/task/{thread}")).exists() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(thread), Signal::SIGKILL);
        }
    }
}

/// Removes what runs that were killed have left behind.
pub(super) fn sweep(mount: &Path) -> Result<()> {
    for cgroup in children(mount).with_context(|| format!("{}", mount.display()))? {
        if owner(&cgroup).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&cgroup)?;
        }
    }
    Ok(())
}

/// The process that made this cgroup, if it is one of a test's: `podcred-test-<pid>`, or `podcred-test-<pid>-<more>`.
fn owner(cgroup: &Path) -> Option<u32> {
    let name = cgroup.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    name.split('-').next()?.parse().ok()
}

/// Where cgroup v2 is mounted: for good, or beside version 1 on a hybrid node.
pub(super) fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.context("cgroup v2 is not mounted here: a simulated node needs it, at /sys/fs/cgroup or elsewhere")
}

fn own_cgroup(mount: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        bail!("this process is in no cgroup of version 2");
    };
    Ok(mount.join(path))
}

/// Whether it was made now.
fn make(cgroup: &Path) -> Result<bool> {
    match fs::create_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true).with_context(|| format!("making {}", cgroup.display())),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text:?} to {}", file.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves the count right: nothing here panics while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
