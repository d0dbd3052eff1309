//! What a process costs, read from outside.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// A process that runs as long as its owner lets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pid: i32,
}

impl Watched {
    pub(crate) fn new(id: Option<u32>) -> Result<Watched> {
        let pid = id.and_then(|id| i32::try_from(id).ok()).context("the process has ended")?;
        Ok(Watched { pid })
    }

    /// All its threads, and those that they will start, on this processor alone.
    pub(crate) fn pin(self, cpu: usize) -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        let threads = format!("/proc/{}/task", self.pid);
        for thread in std::fs::read_dir(&threads).with_context(|| threads.clone())? {
            let id = thread?.file_name().to_str().and_then(|name| name.parse().ok());
            let id = id.and_then(rustix::process::Pid::from_raw).context("a thread without a number")?;
            sched_setaffinity(Some(id), &cpus).context("a server cannot be pinned to a processor")?;
        }
        Ok(())
    }

    /// Of all its threads, also those that have ended, to the nanosecond: /proc/PID/stat counts in ticks of 10 ms.
    pub(crate) fn cpu(self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid)).context("the process has no CPU clock")?;
        Ok(Duration::from(clock.now().context("the process's CPU clock cannot be read")?))
    }

    pub(crate) fn resident(self) -> Result<Resident> {
        let file = format!("/proc/{}/status", self.pid);
        let status = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let megabytes = |name: &str| {
            let kilobytes = status.lines().find_map(|line| line.strip_prefix(name)?.trim().split(' ').next());
            let kilobytes: Option<f64> = kilobytes.and_then(|number| number.parse().ok());
            kilobytes.map(|number| number * 1024.0 / 1e6).with_context(|| format!("{file} tells no {name}"))
        };
        Ok(Resident { all: megabytes("VmRSS:")?, anonymous: megabytes("RssAnon:")? })
    }
}

/// In MB. What is not anonymous are pages of the program's own file, which all that run it share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) all: f64,
    pub(crate) anonymous: f64,
}
