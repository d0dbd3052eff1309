//! wrk: a client that costs little, and the same for each server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::place::Place;

/// Each request has the next token of a file. Requests are written before the time begins.
pub(crate) const SCRIPT: &str = r#"
local requests, last = {}, 0
function init(arguments)
  local headers = { ["Host"] = wrk.headers["Host"] }
  if arguments[2] == "close" then headers["Connection"] = "close" end
  for token in io.lines(arguments[1]) do
    headers["Authorization"] = token
    requests[#requests + 1] = wrk.format("GET", "/v1/credentials", headers)
  end
end
function request()
  last = last % #requests + 1
  return requests[last]
end
"#;

/// A shell knows what its children have cost, from their start to their end.
pub(crate) const TIMED: &str = r#""$@" && times"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// One for each request, as most SDKs do it
    Close,
    Keep,
}

impl Connections {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Connections::Close => "close",
            Connections::Keep => "keep-alive",
        }
    }
}

/// Where the client runs, and what it asks with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) place: &'a Place,
    pub(crate) cgroup: Option<&'a Path>,
    pub(crate) script: &'a Path,
    pub(crate) tokens: &'a Path,
    pub(crate) cpu: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ran {
    /// All of them answered with 200.
    pub(crate) requests: u64,
    /// wrk's own.
    pub(crate) cpu: Duration,
}

/// One run against this server.
pub(crate) async fn run(
    client: Client<'_>,
    url: &str,
    connections: Connections,
    seconds: u32,
) -> Result<Ran> {
    let mut command: Command = client.place.command_in(client.cgroup, "sh");
    command
        .args(["-c", TIMED, "sh", "taskset", "--cpu-list"])
        .arg(client.cpu.to_string())
        .args(["wrk", "-t1", "-c32"])
        .arg(format!("-d{seconds}s"))
        .arg("-s")
        .arg(client.script)
        .arg(url)
        .arg("--")
        .arg(client.tokens)
        .arg(connections.name())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.context("cannot run taskset and wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let ran = answered(&text).and_then(|requests| Ok(Ran { requests, cpu: children(&text)? }));
    ran.with_context(|| format!("wrk against {url}"))
}

/// The last line of `times`: `0m1.250000s 0m3.500000s`, in user space and in the kernel.
pub(crate) fn children(text: &str) -> Result<Duration> {
    let seconds = |time: &str| -> Option<f64> {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        Some(60.0 * minutes.parse::<f64>().ok()? + seconds.parse::<f64>().ok()?)
    };
    let line = text.lines().last().unwrap_or_default();
    let times: Option<Vec<f64>> = line.split_whitespace().map(seconds).collect();
    let times = times.filter(|times| times.len() == 2);
    let times = times.with_context(|| format!("the shell's `times` ends with {line:?}"))?;
    Ok(Duration::from_secs_f64(times.iter().sum()))
}

fn answered(text: &str) -> Result<u64> {
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors")) {
        bail!("it was not served: {}", line.trim());
    }
    let line = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = line.and_then(|(number, _)| number.parse().ok());
    requests.filter(|&requests| requests > 0).with_context(|| format!("wrk says nothing of requests: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read_and_failures_are_not_counted_as_requests() {
        let good = "Running 2s test\n  1 threads\n  24107 requests in 2.01s, 31.9MB read\nRequests/sec: 1\n";
        assert_eq!(answered(good).unwrap(), 24_107);
        let refused = format!("{good}  Non-2xx or 3xx responses: 7\n");
        assert!(answered(&refused).unwrap_err().to_string().contains("responses: 7"));
        assert!(answered("  0 requests in 2.01s").is_err());
        assert!(answered("").is_err());
    }

    #[test]
    fn what_wrk_cost_is_the_shell_s_last_line() {
        let text = "Requests/sec: 1\n0m0.000000s 0m0.010000s\n1m1.250000s 0m3.500s\n";
        assert_eq!(children(text).unwrap(), Duration::from_millis(64_750));
        assert!(children("Requests/sec: 1\n").is_err());
    }
}
