//! The command line.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum, value_parser};
use hyper::Uri;
use hyper::http::uri::PathAndQuery;

use super::http::{CREDENTIALS, Endpoint};
use super::manners::Client;
use super::plan::Size;
use super::scenarios::Scenario;
use super::tenant::token_files;
use crate::report::Expectation;

const MOST_PODS: u32 = 50_000;

/// Load-test a podcred agent with thousands of simulated pods: one scenario, and a report.
///
/// As root each pod has its own cgroup on a simulated node, and the agent attributes its connections; without root all pods
/// are on loopback. Every run ends by itself. The exit status is 0 if all expectations held, 1 if one did not, and 2 if
/// there was no run.
#[derive(Clone, Debug, Parser)]
// xtask names --output and --binary itself: what a person names after it holds.
#[command(name = "loadtest", version, args_override_self = true)]
pub struct Options {
    #[arg(value_enum)]
    pub(super) scenario: Scenario,
    /// Number of pods [default: the scenario's own, or as many as --token-dir has files]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=i64::from(MOST_PODS)))]
    pods: Option<u32>,
    /// Number of service accounts, each with its own role
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=5_000))]
    roles: Option<u32>,
    /// How long pods ask for credentials, such as 500ms, 90s, 5m or 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Time within which the pods start, or those of one burst
    #[arg(long, value_name = "TIME", value_parser = time)]
    within: Option<Duration>,
    /// How long a pod waits between requests, if the scenario has a constant rate
    #[arg(long, value_name = "TIME", value_parser = time)]
    every: Option<Duration>,
    /// Run for some seconds only, as the tests do
    #[arg(long)]
    pub(super) short: bool,
    /// SDK that the pods behave like: its connections, time-outs, attempts, pauses and refreshes
    #[arg(long, value_enum, default_value_t = Clients::Mixed)]
    pub(super) client: Clients,
    /// Number of pods with their own network namespace; the others use the node's
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(0..=1_000))]
    pub(super) netns: u32,
    /// Use loopback and no cgroups, as without root
    #[arg(long, conflicts_with = "netns")]
    pub(super) loopback: bool,
    /// Agent to test: own, or the URL of a running one, such as http://169.254.170.23/v1/credentials
    #[arg(long, value_name = "own|URL", default_value = "own")]
    pub(super) agent: Target,
    /// Folder of token files, one for each pod (with --agent URL). An agent in enforce mode accepts them only if --delegate
    /// names the service account of the harness's pod
    #[arg(long, value_name = "DIR")]
    pub(super) token_dir: Option<PathBuf>,
    /// The podcred binary to start, with --agent own
    #[arg(long, value_name = "FILE", default_value = "target/release/podcred")]
    pub(super) binary: PathBuf,
    /// What must hold, such as p99<50ms or failed=0 (repeatable; replaces the scenario's own expectations)
    #[arg(long, value_name = "CONDITION")]
    pub(super) expect: Vec<Expectation>,
    /// Folder for the report [default: target/loadtest/SCENARIO]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Seed; the same one makes the same pods at the same moments
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Further flags for the agent
    #[arg(last = true, value_name = "AGENT FLAGS")]
    pub(super) agent_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Clients {
    Boto3,
    Js,
    Go,
    Java,
    Rust,
    Crt,
    /// All of them in turn
    Mixed,
}

impl Clients {
    pub(super) fn of(self, pod: u32) -> Client {
        match self {
            Clients::Boto3 => Client::Boto3,
            Clients::Js => Client::Js,
            Clients::Go => Client::Go,
            Clients::Java => Client::Java,
            Clients::Rust => Client::Rust,
            Clients::Crt => Client::Crt,
            Clients::Mixed => Client::ALL[pod as usize % Client::ALL.len()],
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Target {
    Own,
    At(Endpoint),
}

impl FromStr for Target {
    type Err = String;

    /// A name is looked up here, once.
    fn from_str(text: &str) -> std::result::Result<Target, String> {
        if text == "own" {
            return Ok(Target::Own);
        }
        let url: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(format!("{text:?} is neither \"own\" nor a URL such as http://169.254.170.23"));
        };
        if authority.as_str().contains('@') {
            return Err("agents ask for no user name and no password: leave them out of the URL".to_owned());
        }
        let port = match (authority.port_u16(), authority.as_str() == authority.host()) {
            (None, true) => 80,
            (Some(port), _) if port > 0 => port,
            (Some(_) | None, _) => return Err(format!("{authority} has no port between 1 and 65535")),
        };
        let path = match url.path_and_query().map_or("/", PathAndQuery::as_str) {
            "/" => CREDENTIALS,
            path => path,
        };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let addresses = (name, port).to_socket_addrs();
        let address = addresses.map_err(|error| format!("{name}: {error}"))?.next();
        let address = address.ok_or_else(|| format!("{name} has no address"))?;
        Ok(Target::At(Endpoint { address, host: authority.to_string(), path: path.to_owned() }))
    }
}

impl Options {
    pub(super) fn size(&self) -> Size {
        let usual = self.scenario.size(self.short);
        Size {
            pods: self.pods.or_else(|| self.token_files()).unwrap_or(usual.pods),
            roles: self.roles.unwrap_or(usual.roles),
            duration: self.duration.unwrap_or(usual.duration),
            within: self.within.unwrap_or(usual.within),
            every: self.every.unwrap_or(usual.every),
        }
    }

    fn token_files(&self) -> Option<u32> {
        // A folder that cannot be read is reported where its files are wanted.
        let files = token_files(self.token_dir.as_deref()?).ok()?.len();
        u32::try_from(files).ok().map(|files| files.clamp(1, MOST_PODS))
    }

    /// Refuses what would silently have no effect.
    pub(super) fn check(&self) -> Result<()> {
        let (flag, given) = match self.scenario.asks_at_a_rate() {
            true => ("--within", self.within.is_some()),
            false => ("--every", self.every.is_some()),
        };
        ensure!(!given, "{flag} has no effect in {}: leave it out", self.scenario.name());
        match self.agent {
            Target::Own => ensure!(
                self.token_dir.is_none(),
                "--token-dir goes with --agent URL: our own agent's pods get their tokens here"
            ),
            Target::At(_) => {
                for (flag, given) in [
                    ("--netns", self.netns > 0),
                    ("--roles", self.roles.is_some()),
                    ("--loopback", self.loopback),
                    ("flags of the agent", !self.agent_args.is_empty()),
                ] {
                    ensure!(!given, "with --agent URL the agent and its node are not ours: leave out {flag}");
                }
            }
        }
        Ok(())
    }

    pub fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| PathBuf::from("target/loadtest").join(self.scenario.name()))
    }
}

fn time(text: &str) -> std::result::Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("give a whole number with its unit: 500ms, 90s, 5m or 2h".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is no whole number"))?;
    let time = Duration::from_millis(number.saturating_mul(unit));
    if time.is_zero() || time > LONGEST {
        return Err("give more than nothing and at most 24h".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "5", "s", "0s", "25h", "1.5s", "-1s", "99999999999999999999s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_ours_or_a_url() {
        let endpoint = |text: &str| match text.parse::<Target>().unwrap() {
            Target::At(endpoint) => (endpoint.address.to_string(), endpoint.host, endpoint.path),
            Target::Own => panic!("{text} is a URL"),
        };
        let of =
            |address: &str, host: &str, path: &str| (address.to_owned(), host.to_owned(), path.to_owned());
        let path = "/v1/credentials";
        assert_eq!(endpoint("http://169.254.170.23"), of("169.254.170.23:80", "169.254.170.23", path));
        assert_eq!(endpoint("http://127.0.0.1:8080/x"), of("127.0.0.1:8080", "127.0.0.1:8080", "/x"));
        assert_eq!(
            endpoint("http://[fd00:ec2::23]/v1/credentials"),
            of("[fd00:ec2::23]:80", "[fd00:ec2::23]", path)
        );
        assert_eq!(endpoint("http://localhost:8080").1, "localhost:8080");
        assert_eq!(endpoint("http://127.0.0.1/x?y=z").2, "/x?y=z");
        for wrong in ["", "mine", "https://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1/a b"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
        for wrong in
            ["http://127.0.0.1:99999", "http://127.0.0.1:0", "http://[::1]:", "http://me:hush@127.0.0.1"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_would_have_no_effect_is_refused() {
        let checked = |line: &[&str]| {
            let line = ["loadtest", "steady"].iter().chain(line);
            Options::try_parse_from(line).unwrap().check().map_err(|error| error.to_string())
        };
        let url = "http://127.0.0.1:8080";
        assert_eq!(checked(&["--loopback", "--", "--verify", "off"]), Ok(()));
        assert_eq!(checked(&["--agent", url, "--token-dir", "tokens"]), Ok(()));
        assert!(checked(&["--token-dir", "tokens"]).is_err());
        for flag in [&["--netns", "1"][..], &["--roles", "2"], &["--loopback"], &["--", "--verify", "off"]] {
            let refused = checked(&[&["--agent", url], flag].concat()).unwrap_err();
            assert!(refused.contains("leave out"), "{refused}");
        }
    }

    #[test]
    fn a_scenario_has_one_of_every_and_within() {
        for scenario in Scenario::value_variants() {
            let accepted = |flag: &str| {
                let line = ["loadtest", &scenario.name(), flag, "3s"];
                Options::try_parse_from(line).unwrap().check().is_ok()
            };
            let rate = scenario.asks_at_a_rate();
            assert_eq!((accepted("--every"), accepted("--within")), (rate, !rate), "{}", scenario.name());
        }
    }

    #[test]
    fn pods_are_as_many_as_there_are_token_files_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        for pod in 0..3 {
            std::fs::write(folder.path().join(format!("pod-{pod}")), "t.o.k").unwrap();
        }
        let folder = folder.path().to_str().unwrap();
        let line = ["loadtest", "steady", "--agent", "http://127.0.0.1:8080", "--token-dir", folder];
        let pods = |more: &[&str]| Options::try_parse_from(line.iter().chain(more)).unwrap().size().pods;
        assert_eq!((pods(&[]), pods(&["--pods", "2"])), (3, 2));
    }

    #[test]
    fn of_a_flag_that_is_given_twice_the_later_holds() {
        let line = ["loadtest", "steady", "--output", "xtask's", "--output", "mine", "--expect", "failed=0"];
        let options = Options::try_parse_from(line.into_iter().chain(["--expect", "wrong=0"])).unwrap();
        assert_eq!((options.output(), options.expect.len()), (PathBuf::from("mine"), 2));
    }

    #[test]
    fn sizes_are_bounded() {
        for wrong in [
            ["--pods", "0"],
            ["--pods", "50001"],
            ["--roles", "5001"],
            ["--netns", "1001"],
            ["--every", "0s"],
        ] {
            let line = ["loadtest", "rollout"].into_iter().chain(wrong);
            assert!(Options::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }
}
