//! One kernel under qemu: its start, its console, its end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::clock::Stopwatch;
use crate::process::Process;
use crate::report::{Counts, step};
use crate::test::test_result;

/// From qemu's start to the last test. The slowest takes half of it on two cores that are shared with another guest.
const DEADLINE: Duration = Duration::from_mins(7);

#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) name: &'a str,
    pub(super) image: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) log: PathBuf,
}

/// What a guest's console has told.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    /// The guest's own name for its kernel.
    pub(super) release: String,
    pub(super) boot: Duration,
    pub(super) tests: Duration,
    /// What went wrong beside failed tests, and the names of those.
    pub(super) failures: Vec<String>,
    binary: Option<Binary>,
    done: bool,
}

/// A test binary that runs.
#[derive(Debug)]
struct Binary {
    name: String,
    counts: Counts,
}

impl Guest<'_> {
    /// Runs the guest to its end. Whatever it does in there is an outcome; an error is qemu's.
    pub(super) async fn run(&self) -> Result<Outcome> {
        let qemu_log = self.log.with_extension("qemu.log");
        let mut qemu = Process::spawn("qemu", self.command(), &qemu_log)?;
        let console = qemu.child().stdout.take().context("qemu has no stdout")?;
        let mut lines = BufReader::new(console).split(b'\n');
        let mut log = File::create(&self.log)?;
        let clock = Stopwatch::start();
        let mut outcome = Outcome::default();
        let read = async {
            while let Some(line) = lines.next_segment().await? {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                writeln!(log, "{line}")?;
                if let Some(news) = outcome.hear(line, clock.elapsed()) {
                    step(&format!("{}: {news}", self.name));
                }
            }
            anyhow::Ok(())
        };
        let in_time = tokio::time::timeout(DEADLINE, read).await;
        outcome.end(clock.elapsed());
        match in_time {
            Err(_) => outcome.fail(format!("not done after {} s; it is ended", DEADLINE.as_secs())),
            // qemu's own end says why there was nothing to hear.
            Ok(Ok(())) if outcome.release.is_empty() => {
                let status = qemu.child().wait().await?;
                outcome.fail(format!("it did not boot (qemu: {status}) {}", qemu.log_tail()));
            }
            Ok(Ok(())) if !outcome.done => outcome.fail("it went down before the tests were done".to_owned()),
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error).context("cannot read the guest's console"),
        }
        Ok(outcome)
    }

    fn command(&self) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        // One processor: with more, about one boot in ten dies in `int3` while the kernel patches its own text, which
        // attaching eBPF makes it do as well. No KVM: where it cannot be had it is no use, and where qemu is a guest itself it may hang.
        qemu.args(["-accel", "tcg", "-smp", "1", "-cpu", "max", "-m", "2048"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initrd)
            // Of the kernel's messages only those of a crash reach the console: others would cut into the tests' lines.
            .args(["-append", "console=ttyS0 loglevel=2 panic=-1 oops=panic"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        qemu
    }
}

impl Outcome {
    /// Takes in a line of the console; returns what is worth telling at once.
    fn hear(&mut self, line: &str, now: Duration) -> Option<String> {
        if let Some(said) = line.strip_prefix("guest: ") {
            return self.told(said, now);
        }
        // A kernel's message has its time before it.
        if let Some((_, panic)) = line.split_once("Kernel panic") {
            self.fail(format!("kernel panic{panic}"));
            return None;
        }
        let binary = self.binary.as_mut()?;
        binary.counts.add(test_result(line));
        // libtest has no word for a test that could not do its work here; ours say it in these.
        if line.trim_start().starts_with("left out:") {
            binary.counts.skipped += 1;
            binary.counts.passed = binary.counts.passed.saturating_sub(1);
        }
        if let Some(name) = line.strip_suffix(" ... FAILED") {
            self.failures.push(name.to_owned());
        }
        None
    }

    /// What the guest's init has to say, see init.sh.
    fn told(&mut self, said: &str, now: Duration) -> Option<String> {
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "booted" => {
                rest.clone_into(&mut self.release);
                self.boot = now;
                Some(format!("Linux {rest} is up after {:.0} s", now.as_secs_f32()))
            }
            "begin" => {
                self.binary = Some(Binary { name: rest.to_owned(), counts: Counts::default() });
                None
            }
            "end" => {
                let binary = self.binary.take()?;
                let status = rest.rsplit(' ').next().unwrap_or_default();
                self.counts.add(binary.counts);
                if status != "0" && binary.counts.failed == 0 {
                    self.fail(format!("{} ended with status {status} though no test failed", binary.name));
                }
                Some(format!("{}: {}", binary.name, binary.counts))
            }
            "done" => {
                self.done = true;
                None
            }
            _ => {
                self.fail(said.to_owned());
                None
            }
        }
    }

    fn end(&mut self, now: Duration) {
        self.tests = now.saturating_sub(self.boot);
        if let Some(binary) = self.binary.take() {
            self.counts.add(binary.counts);
            self.failures.push(format!("{} did not end", binary.name));
        }
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
        self.counts.failed += 1;
    }
}
