//! What an agent says of itself.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::process::ChildStderr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

const LINES_KEPT: usize = 30;

/// What is of interest in the agent's log.
#[derive(Debug, Default)]
pub(super) struct Log {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    /// Two processes write at one time while one takes the other's place; of interest is the later one's state.
    process: u32,
    serving: Option<Value>,
    waits_for_port: bool,
    ended: bool,
    thieves: BTreeSet<(String, String)>,
    last: VecDeque<String>,
}

impl Log {
    /// A log that nobody reads would stop the agent.
    pub(super) fn follow(self: &Arc<Self>, stderr: ChildStderr) -> JoinHandle<()> {
        let process = {
            let mut said = self.lock();
            (said.serving, said.waits_for_port, said.ended) = (None, false, false);
            said.process += 1;
            said.process
        };
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.line(line, process);
            }
            log.ended(process);
        })
    }

    fn line(&self, line: String, process: u32) {
        let mut said = self.lock();
        // A busy agent writes thousands of lines, of which these are few.
        let events = ["\"serving\"", "\"port_taken\"", "\"other_pod_presents_token\""];
        if events.iter().any(|event| line.contains(event)) {
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            let is_latest = process == said.process;
            if value["event"] == "serving" && is_latest {
                said.serving = Some(value);
                self.changed.notify_all();
            } else if value["event"] == "port_taken" && is_latest {
                said.waits_for_port = true;
                self.changed.notify_all();
            } else if value["event"] == "other_pod_presents_token" {
                said.thieves.insert((text("caller_uid"), text("token_uid")));
            }
        }
        if said.last.len() == LINES_KEPT {
            said.last.pop_front();
        }
        said.last.push_back(line);
    }

    fn ended(&self, process: u32) {
        let mut said = self.lock();
        if process == said.process {
            said.ended = true;
            self.changed.notify_all();
        }
    }

    /// What it says when it serves; None if it ends instead, or says nothing for so long.
    pub(super) fn until_serving(&self, patience: Duration) -> Option<Value> {
        self.until(patience, |said| said.serving.is_some()).serving.clone()
    }

    /// Whether it waits for ports that another process has.
    pub(super) fn until_it_waits_for_a_port(&self, patience: Duration) -> bool {
        self.until(patience, |said| said.waits_for_port || said.serving.is_some()).waits_for_port
    }

    fn until(&self, patience: Duration, reached: impl Fn(&Said) -> bool) -> MutexGuard<'_, Said> {
        let waiting = |said: &mut Said| !reached(said) && !said.ended;
        let said = self.changed.wait_timeout_while(self.lock(), patience, waiting);
        said.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The pods that presented another's token, and whose: UIDs.
    pub(super) fn thieves(&self) -> BTreeSet<(String, String)> {
        self.lock().thieves.clone()
    }

    pub(super) fn last_words(&self) -> String {
        self.lock().last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
