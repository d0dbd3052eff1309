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

/// From qemu's start to the last test, for what hangs: with nothing else on the machine, half of it is enough.
const DEADLINE: Duration = Duration::from_mins(12);

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
    /// The names of failed tests, and whatever else went wrong.
    pub(super) failures: Vec<String>,
    /// What the failed tests wrote.
    pub(super) output: String,
    binary: Option<Binary>,
    /// Said everything, and went down as it should.
    pub(super) done: bool,
}

/// A test binary that runs.
#[derive(Debug)]
struct Binary {
    name: String,
    counts: Counts,
    /// Tests that could not do their work here. libtest has no word for that: it says that they passed.
    left_out: usize,
    part: Part,
}

/// What libtest is writing: results, then what failed tests wrote below one `failures:`, then their names below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Results,
    Output,
    Names,
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
                let now = clock.elapsed();
                writeln!(log, "{:5.1} {line}", now.as_secs_f32())?;
                if let Some(news) = outcome.hear(line, now) {
                    step(&format!("{}: {news}", self.name));
                }
            }
            anyhow::Ok(())
        };
        let in_time = tokio::time::timeout(DEADLINE, read).await;
        let took = clock.elapsed();
        let cut_short = match in_time {
            Err(_) => Some(format!("not done after {} s; it is ended", DEADLINE.as_secs())),
            Ok(Err(error)) => return Err(error).context("cannot read the guest's console"),
            // qemu's own end says why there was nothing to hear.
            Ok(Ok(())) if outcome.release.is_empty() => {
                let status = qemu.child().wait().await?;
                Some(format!("it did not boot (qemu: {status}) {}", qemu.log_tail()))
            }
            Ok(Ok(())) if outcome.done => None,
            Ok(Ok(())) => Some("it went down before the tests were done".to_owned()),
        };
        outcome.end(took, cut_short);
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
            self.failures.push(format!("kernel panic{panic}"));
            return None;
        }
        let binary = self.binary.as_mut()?;
        binary.counts.add(test_result(line));
        if line == "failures:" {
            binary.part = if binary.part == Part::Results { Part::Output } else { Part::Names };
        } else if binary.part == Part::Output {
            self.output += line;
            self.output.push('\n');
        }
        if line.trim_start().starts_with("left out:") {
            binary.left_out += 1;
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
                self.binary = Some(Binary::named(rest));
                None
            }
            "end" => {
                let binary = self.binary.take()?;
                let counts = binary.counts();
                self.counts.add(counts);
                let status = rest.rsplit(' ').next().unwrap_or_default();
                if status != "0" && counts.failed == 0 {
                    self.fail(format!("{} ended with status {status} though no test failed", binary.name));
                }
                Some(format!("{}: {counts}", binary.name))
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

    fn end(&mut self, now: Duration, cut_short: Option<String>) {
        self.tests = now.saturating_sub(self.boot);
        if let Some(binary) = self.binary.take() {
            self.counts.add(binary.counts());
            self.failures.push(format!("{} did not end", binary.name));
        }
        if let Some(why) = cut_short {
            self.fail(why);
        }
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
        self.counts.failed += 1;
    }
}

impl Binary {
    fn named(name: &str) -> Binary {
        Binary { name: name.to_owned(), counts: Counts::default(), left_out: 0, part: Part::Results }
    }

    fn counts(&self) -> Counts {
        let Counts { passed, failed, skipped } = self.counts;
        Counts { passed: passed.saturating_sub(self.left_out), failed, skipped: skipped + self.left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(console: &str) -> Outcome {
        let mut outcome = Outcome::default();
        for line in console.lines() {
            outcome.hear(line, Duration::from_secs(3));
        }
        outcome.end(Duration::from_secs(8), None);
        outcome
    }

    #[test]
    fn results_are_added_up_and_tests_that_were_left_out_did_not_pass() {
        let outcome = heard(
            "guest: booted 5.10.0\n\
             guest: begin a\ntest one ... ok\n---- one stdout ----\nleft out: no MPTCP\ntest result: ok. 3 passed; 0 failed; 0 ignored;\n\
             guest: end a 0\n\
             guest: begin b\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured;\nguest: end b 0\nguest: done\n",
        );
        assert_eq!(outcome.counts, Counts { passed: 4, failed: 0, skipped: 2 });
        assert_eq!((outcome.release.as_str(), outcome.done), ("5.10.0", true));
        assert_eq!((outcome.boot, outcome.tests), (Duration::from_secs(3), Duration::from_secs(5)));
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    }

    #[test]
    fn a_failed_test_is_named_and_what_it_wrote_is_kept() {
        let outcome = heard(
            "guest: begin a\ntest one ... FAILED\n\nfailures:\n\n---- one ----\npanicked at one.rs\n\nfailures:\n    one\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored;\nguest: end a 101\n",
        );
        assert_eq!(outcome.counts, Counts { passed: 0, failed: 1, skipped: 0 });
        assert_eq!(outcome.failures, ["test one"]);
        assert_eq!(outcome.output, "\n---- one ----\npanicked at one.rs\n\n");
    }

    #[test]
    fn a_crashed_binary_and_a_crashed_kernel_have_failed() {
        let crashed = heard("guest: begin a\nguest: end a 139\n");
        assert_eq!(crashed.counts.failed, 1);
        assert_eq!(crashed.failures, ["a ended with status 139 though no test failed"]);
        let mut panicked = Outcome::default();
        panicked.hear("guest: begin a", Duration::ZERO);
        panicked.hear("[    9.1] Kernel panic - not syncing: Fatal exception", Duration::ZERO);
        panicked.end(Duration::ZERO, Some("it went down".to_owned()));
        assert_eq!(panicked.counts.failed, 1);
        assert_eq!(
            panicked.failures,
            ["kernel panic - not syncing: Fatal exception", "a did not end", "it went down"]
        );
        assert!(!panicked.done);
    }
}
