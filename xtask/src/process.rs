//! Processes that end with their owner.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

const GRACE: Duration = Duration::from_secs(15);

/// A process in a process group of its own (Ctrl-C is for us to pass on), logging to a file. Dropped, the whole group is killed.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// `command` keeps its stdin and stdout as they are set; stderr goes to `log`.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let file = create(log)?;
        command.stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// None once it has ended and that is known.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// An error once the process has ended, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}):\n{}", self.name, self.log_tail()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        tail(&std::fs::read_to_string(&self.log).unwrap_or_default(), 15)
    }

    /// SIGTERM, then a while for an orderly end, whose exit status is checked.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.check()?;
        self.signal(Signal::TERM);
        let Ok(status) = tokio::time::timeout(GRACE, self.child.wait()).await else {
            bail!("{} still runs {} s after SIGTERM; it is killed", self.name, GRACE.as_secs());
        };
        let status = status?;
        if !status.success() {
            bail!("{} ended with {status} after SIGTERM:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        // `id` is gone once the child has been waited for: no signal can reach another process of that number.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ended_meanwhile = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Runs a command to its end; its output is shown only if it fails.
pub(crate) async fn quietly(what: &str, command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{what}: cannot start {:?}", command.as_std().get_program()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let all = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        bail!("{what} failed ({}):\n{}", output.status, tail(&all, 25));
    }
    Ok(stdout.into_owned())
}

/// A program that becomes `command`, with the arguments that it is given besides.
pub(crate) fn write_launcher(file: &Path, command: &str) -> Result<()> {
    std::fs::write(file, format!("#!/bin/sh\nexec {command} \"$@\"\n"))?;
    Ok(std::fs::set_permissions(file, PermissionsExt::from_mode(0o755))?)
}

pub(crate) fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn create(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    File::create(log).with_context(|| format!("cannot write {}", log.display()))
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
