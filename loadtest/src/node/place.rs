//! A cgroup and a network namespace together: where threads and processes of a pod, or of the agent, live.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::cgroup::{self, make_threaded};
use super::network::Namespace;

#[derive(Debug)]
pub struct Place {
    cgroup_id: u64,
    /// Kept open: a load generator moves a thread for each connection. It also tells where the cgroup is, since the paths of ten
    /// thousand would be 2.5 MB.
    threads: File,
    namespace: Arc<Namespace>,
}

impl Place {
    pub(super) fn new(cgroup: &Path, namespace: Arc<Namespace>) -> Result<Place> {
        let threads = cgroup.join("cgroup.threads");
        let threads = File::options()
            .write(true)
            .open(&threads)
            .with_context(|| format!("opening {}", threads.display()))?;
        Ok(Place { cgroup_id: cgroup::id(cgroup)?, threads, namespace })
    }

    /// Where it was made, also when it is gone.
    #[expect(clippy::expect_used, reason = "a namespace, which each place has, was found in /proc as well")]
    pub fn cgroup(&self) -> PathBuf {
        let threads = fs::read_link(format!("/proc/self/fd/{}", self.threads.as_raw_fd()));
        let mut path = threads.expect("an open file has a path in /proc");
        path.pop();
        path
    }

    pub fn cgroup_id(&self) -> u64 {
        self.cgroup_id
    }

    /// Moves the calling thread here, for good or until it enters another place. It must have left, or ended, before
    /// this place's pod or node ends.
    pub fn enter(&self) -> io::Result<()> {
        self.enter_cgroup()?;
        self.namespace.enter()
    }

    /// As [`Place::enter`], in the network namespace where the thread is.
    pub fn enter_cgroup(&self) -> io::Result<()> {
        // Zero stands for the thread that writes.
        (&self.threads).write_all(b"0")
    }

    /// What `f` gives when a thread in this place runs it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(f())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A process in this place.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Process> {
        self.spawn_after(|| Ok(()), command)
    }

    /// A process that also has, or lacks, what `prepare` changes of the thread that makes it: capabilities, namespaces.
    pub fn spawn_after(
        &self,
        prepare: impl FnOnce() -> io::Result<()> + Send,
        command: &mut Command,
    ) -> io::Result<Process> {
        // A child starts in the cgroup and the namespaces of the thread that makes it.
        self.run(|| {
            prepare()?;
            Process::spawn(command)
        })?
    }

    /// Moves a process here, and leaves its network as it is.
    pub fn adopt(&self, process: &Process) -> io::Result<()> {
        fs::write(self.cgroup().join("cgroup.procs"), process.0.id().to_string())
    }

    /// A place with the same network in a cgroup below this one, as a container that may make cgroups makes it. It is
    /// removed with its pod.
    pub fn nested(&self, path: &str) -> Result<Place> {
        let own = self.cgroup();
        make_threaded(&own, Path::new(path))?;
        Place::new(&own.join(path), Arc::clone(&self.namespace))
    }

    /// Gives the loopback device of this place's network namespace addresses that may be somebody else's. For namespaces
    /// that an attacker made; a pod's own would lose its way to the node.
    pub fn pretend(&self, addresses: &[IpAddr]) -> Result<()> {
        self.namespace.pretend(addresses)
    }

    /// A place in this cgroup with another process's network namespace.
    pub fn with_network_of(&self, process: &Process) -> Result<Place> {
        let namespace = Namespace::of_process(process.0.id()).context("a process's network namespace")?;
        Place::new(&self.cgroup(), Arc::new(namespace))
    }
}

/// A child that is killed when its guard ends.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Where the calling thread is.
    pub fn spawn(command: &mut Command) -> io::Result<Process> {
        command.spawn().map(Process)
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}
