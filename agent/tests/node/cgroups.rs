//! Cgroups of a test's own, removed with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use loadtest::left_out_without_root;

pub(crate) const V1: &str = "/sys/fs/cgroup/pids";

/// Where cgroup2 is mounted: on hybrid machines below the hierarchies of version 1.
pub(crate) fn v2() -> &'static str {
    let hybrid = "/sys/fs/cgroup/unified";
    if Path::new(hybrid).exists() { hybrid } else { "/sys/fs/cgroup" }
}

pub(crate) const UID: &str = "0d9b2a68-7a50-4a52-b9fd-1d7e3a2c9f10";
pub(crate) const OTHER_UID: &str = "77777777-7777-4777-8777-777777777777";
pub(crate) const ID: &str = "3f1c6d1f4a0b6b7e0f9d5c2b8a7e6f5d4c3b2a190817263544536271809fabcd";

pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// None, said aloud, where the machine does not allow this test.
    pub(crate) fn new(hierarchy: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if left_out_without_root() {
            return None;
        }
        if !Path::new(hierarchy).join("cgroup.procs").exists() {
            eprintln!("left out: no cgroups at {hierarchy}");
            return None;
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(hierarchy).join(format!("podcred-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup can be made");
        Some(Cgroup(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn make(&self, below: &str) -> PathBuf {
        let path = self.0.join(below);
        fs::create_dir_all(&path).expect("a cgroup can be made");
        path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A process that was just killed leaves its cgroup a moment later.
    for _ in 0..200 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    eprintln!("{} could not be removed", path.display());
}

/// Ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
