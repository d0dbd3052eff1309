//! Cgroups like a node's, and threads that are pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use loadtest::left_out_without_root;
use podcred::attribute::probe::{Probe, ProbeConfig};
use std::os::unix::fs::MetadataExt;

/// For what the kernel does a moment later.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A cgroup that holds this process, with a `kubepods` below it. One at a time: a process is in one cgroup.
pub(crate) struct Node {
    root: PathBuf,
    /// Where this process was before.
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Node {
    pub(crate) fn new() -> Option<Node> {
        static ALONE: Mutex<()> = Mutex::new(());
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if left_out_without_root() {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mount = mount();
        let cgroup = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let home = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2 knows us");
        let home = mount.join(home);
        let name = format!("podcred-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let node = Node { root: mount.join(name), home, _alone: alone };
        fs::create_dir(&node.root).expect("root may make cgroups");
        enter(&node.root);
        node.cgroup("kubepods");
        node.cgroup("agent");
        Some(node)
    }

    /// Makes a cgroup below this node's root, with those above it. Threads may be in it.
    pub(crate) fn cgroup(&self, path: &str) -> PathBuf {
        let mut directory = self.root.clone();
        for name in Path::new(path) {
            directory.push(name);
            if !directory.exists() {
                fs::create_dir(&directory).expect("root may make cgroups");
                fs::write(directory.join("cgroup.type"), "threaded").expect("it has no controllers");
            }
        }
        directory
    }

    pub(crate) fn config(&self) -> ProbeConfig {
        ProbeConfig::new(self.cgroup("kubepods"), 2, self.root.clone())
    }

    pub(crate) fn load(&self) -> Probe {
        self.load_with(&self.config())
    }

    pub(crate) fn load_with(&self, config: &ProbeConfig) -> Probe {
        Probe::load(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `work` on a thread that is in this cgroup.
    pub(crate) fn inside<T: Send>(&self, cgroup: &str, work: impl FnOnce() -> T + Send) -> T {
        let directory = self.cgroup(cgroup);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
                fs::write(directory.join("cgroup.threads"), thread).expect("the process is above it");
                work()
            });
            thread.join().expect("the pod's work does not fail")
        })
    }

    pub(crate) fn id(&self, cgroup: &str) -> u64 {
        fs::metadata(self.cgroup(cgroup)).expect("it is there").ino()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        enter(&self.home);
        remove(&self.root);
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("root may move itself");
}

/// Waits for what the kernel does a moment later.
#[expect(clippy::disallowed_methods, reason = "a deadline of real time")]
pub(crate) fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it did not come");
        std::thread::yield_now();
    }
}

/// Removes a cgroup and those below it.
fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("cgroup2 is mounted");
    PathBuf::from(mount[1])
}
