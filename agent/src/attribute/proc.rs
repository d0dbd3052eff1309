//! From a process to the pod, by the node's own /proc: where pods live in hierarchies of cgroup v1, of which the kernel
//! programs know nothing.
//!
//! A process can end before it is looked up, and can have moved since it connected, so this is for audit and metrics:
//! never a reason to hand out or to refuse.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::cgroup::{self, NoPod, PodCgroup};
use super::layout::{Layout, LayoutProblem, Version, own_cgroup, shown_cgroup};

/// Clock ticks in a second, as /proc counts them: on every architecture that Linux still has for servers.
const USER_HZ: u64 = 100;
/// The parent of all kernel threads, which only the node's own pid namespace shows.
const KTHREADD: u32 = 2;
/// include/linux/sched.h
const PF_KTHREAD: u64 = 0x0020_0000;

/// The node's processes.
#[derive(Debug)]
pub struct HostProc {
    proc: PathBuf,
    hierarchy: Hierarchy,
}

#[derive(Debug, thiserror::Error)]
pub enum HostProcProblem {
    #[error(
        "{} is not the node's own /proc, so the processes that connect cannot be found in it: set hostPID: true, or \
         mount the node's /proc as a hostPath volume and give its place by --host-proc",
        proc.display()
    )]
    NotTheNodes { proc: PathBuf },
    #[error(transparent)]
    Cgroups(#[from] LayoutProblem),
}

/// Which of the lines in `/proc/<pid>/cgroup` tells the pod, and how it is read.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Names of its controllers; none for cgroup v2.
    controllers: Vec<String>,
    /// From the hierarchy's root on.
    kubepods: PathBuf,
    /// The root of the agent's own cgroup namespace, from which the paths in /proc are counted.
    namespace: PathBuf,
}

/// The oldest process in a pod's containers, which is the one that holds the pod's namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstProcess {
    pub pod_uid: Arc<str>,
    pub pid: u32,
}

impl HostProc {
    pub fn open(proc: &Path, layout: &Layout) -> Result<Self, HostProcProblem> {
        if !shows_kernel_threads(proc) {
            return Err(HostProcProblem::NotTheNodes { proc: proc.to_owned() });
        }
        Ok(HostProc { proc: proc.to_owned(), hierarchy: Hierarchy::of(layout, proc)? })
    }

    /// The pod of the process that connected at `connected_at`, counted from boot. A process that started later has only
    /// inherited the number, and is not taken.
    pub fn pod_of_tgid(&self, tgid: u32, connected_at: Duration) -> Result<PodCgroup, NoPod> {
        let process = Process::open(&self.proc, tgid).map_err(no_pod)?;
        if process.started().map_err(no_pod)? > connected_at {
            return Err(NoPod::Gone);
        }
        let path = self.hierarchy.path_of(&process.read("cgroup").map_err(no_pod)?).ok_or(NoPod::Gone)?;
        let below = path.strip_prefix(&self.hierarchy.kubepods).ok();
        below.and_then(cgroup::parse).ok_or(NoPod::NotAPod { path })
    }

    /// One process for each pod on the node. Reads all of /proc: for a sweep now and then.
    pub fn first_processes(&self) -> io::Result<Vec<FirstProcess>> {
        let mut oldest: HashMap<Arc<str>, (Duration, u32)> = HashMap::new();
        for entry in fs::read_dir(&self.proc)? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some((pod_uid, started)) = self.pod_and_start(pid) else { continue };
            let first = oldest.entry(pod_uid).or_insert((started, pid));
            *first = (*first).min((started, pid));
        }
        Ok(oldest.into_iter().map(|(pod_uid, (_, pid))| FirstProcess { pod_uid, pid }).collect())
    }

    /// The network namespace of a process, to be entered. It takes CAP_SYS_PTRACE.
    pub fn network_namespace(&self, pid: u32) -> io::Result<File> {
        File::open(self.proc.join(pid.to_string()).join("ns/net"))
    }

    /// None for whatever is no pod's, and for what has ended meanwhile.
    fn pod_and_start(&self, pid: u32) -> Option<(Arc<str>, Duration)> {
        let process = Process::open(&self.proc, pid).ok()?;
        let path = self.hierarchy.path_of(&process.read("cgroup").ok()?)?;
        let pod = cgroup::parse(path.strip_prefix(&self.hierarchy.kubepods).ok()?)?;
        // Beside its containers a pod has helpers of the runtime, such as cri-o's conmon, in the node's namespaces.
        pod.container_id.as_ref()?;
        Some((pod.pod_uid, process.started().ok()?))
    }
}

impl Hierarchy {
    fn of(layout: &Layout, proc: &Path) -> Result<Self, LayoutProblem> {
        let (root, kubepods) = match &layout.version {
            Version::V2 => (&layout.mount, &layout.kubepods),
            Version::V1Pods(v1) => (&v1.hierarchy, &v1.kubepods),
        };
        let controllers = match &layout.version {
            Version::V2 => Vec::new(),
            // The folder is called like the controllers, `cpu,cpuacct`, or `systemd` for `name=systemd`.
            Version::V1Pods(_) => {
                let name = root.file_name().unwrap_or_default().to_string_lossy();
                name.split(',').map(str::to_owned).collect()
            }
        };
        let mut hierarchy = Hierarchy {
            controllers,
            kubepods: Path::new("/").join(kubepods.strip_prefix(root).unwrap_or(kubepods)),
            namespace: PathBuf::from("/"),
        };
        let file = proc.join("self/cgroup");
        let lines =
            fs::read_to_string(&file).map_err(|cause| LayoutProblem::Unreadable { path: file, cause })?;
        let own = own_cgroup(root, proc, |controllers| hierarchy.is(controllers))?;
        let own = Path::new("/").join(own.strip_prefix(root).unwrap_or(&own));
        if let Some(shown) = hierarchy.path_of(&lines) {
            hierarchy.namespace = namespace_root(&own, &shown);
        }
        Ok(hierarchy)
    }

    fn is(&self, controllers: &str) -> bool {
        match self.controllers.first() {
            Some(first) => controllers.split(',').any(|c| c.strip_prefix("name=").unwrap_or(c) == first),
            None => controllers.is_empty(),
        }
    }

    /// The path of a process in this hierarchy, from the hierarchy's root on.
    fn path_of(&self, lines: &str) -> Option<PathBuf> {
        let shown = shown_cgroup(lines, |controllers| self.is(controllers))?;
        // A cgroup that was removed under its last process.
        let shown = shown.strip_suffix(" (deleted)").unwrap_or(shown);
        let mut path = self.namespace.clone();
        for component in Path::new(shown).components() {
            match component {
                Component::Normal(name) => path.push(name),
                // How the kernel shows what is outside of the reader's namespace.
                Component::ParentDir => {
                    path.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Some(path)
    }
}

/// One process, which cannot become another while it is read: the kernel answers ESRCH once it has ended, even when
/// its number is in use again.
struct Process {
    dir: OwnedFd,
}

impl Process {
    fn open(proc: &Path, pid: u32) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(Process { dir: openat(CWD, proc.join(pid.to_string()), flags, Mode::empty())? })
    }

    /// A container chooses the names of its own cgroups, and they need not be UTF-8.
    fn read(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Since boot, rounded down to a clock tick.
    fn started(&self) -> io::Result<Duration> {
        let ticks = stat_field(&self.read("stat")?, 22).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Duration::from_millis(ticks.saturating_mul(1000 / USER_HZ)))
    }
}

/// Whether this is /proc of the node's own pid namespace. The namespace's number would tell too, but to read that of
/// process 1 takes CAP_SYS_PTRACE.
fn shows_kernel_threads(proc: &Path) -> bool {
    let stat = Process::open(proc, KTHREADD).and_then(|process| process.read("stat"));
    stat.ok().and_then(|stat| stat_field(&stat, 9)).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// A number of `/proc/<pid>/stat`, counted from 1. The second field is the program's name in parentheses, which may hold
/// spaces and parentheses of its own.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(number - 3)?.parse().ok()
}

/// Where a cgroup namespace begins in which the cgroup `own` is shown as `shown`.
fn namespace_root(own: &Path, shown: &Path) -> PathBuf {
    let below = shown.strip_prefix("/").unwrap_or(shown);
    if !own.ends_with(below) {
        return PathBuf::from("/");
    }
    own.ancestors().nth(below.components().count()).unwrap_or(own).to_owned()
}

fn no_pod(cause: io::Error) -> NoPod {
    let gone = [Errno::NOENT, Errno::SRCH].map(Errno::raw_os_error).map(Some).contains(&cause.raw_os_error());
    if gone { NoPod::Gone } else { NoPod::CannotTell { cause } }
}
