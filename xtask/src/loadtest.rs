//! `cargo xtask loadtest`: one scenario of the load harness, against a podcred that is built for it.

use std::process::Stdio;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use tokio::process::Command;

use crate::build::{self, Profile, target};
use crate::process::{is_root, quietly, to_its_end};
use crate::report::{Counts, step};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(value_enum)]
    scenario: Scenario,
    /// The harness's flags, such as --pods 5000 --roles 50 --expect 'p99<50ms'; `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Pods start together while EKS Auth is slow and throttles
    Rollout,
    /// Bursts of short-lived pods of one service account
    Jobs,
    /// Each pod asks at its SDK's pace
    Steady,
    /// Applications ask at every request
    Chatty,
    /// Tokens and credentials reach their end, in compressed time
    Rotation,
    /// EKS Auth, then the issuer, go down and come back
    Outage,
    /// Pods are recreated after an association changed
    Churn,
    /// One pod floods
    Noisy,
    /// Pods present others' tokens
    Thief,
    /// The agent is stopped and started under load
    Restart,
    /// As fast as it goes
    Saturate,
}

/// The harness says where its report is. Its expectations pass or fail as a whole.
pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if !is_root() {
        step("Without root: all on loopback, nobody's cgroup is known, and no pod has a network of its own");
    }
    let binaries = build::binaries(Profile::Release).await?;
    let time = quietly("date", Command::new("date").args(["-u", "+%Y%m%d-%H%M%S"])).await?;
    let scenario = arguments.scenario.name();
    let folder = target().join(format!("loadtest/{scenario}-{}", time.trim()));
    let mut command = Command::new(&binaries.loadtest);
    command.arg(&scenario).arg("--output").arg(folder).arg("--binary").arg(&binaries.agent);
    command.args(&arguments.flags).stdin(Stdio::null());
    let status = to_its_end("the load harness", command).await?;
    match status.code() {
        Some(0) => Ok(Counts { passed: 1, ..Counts::default() }),
        Some(1) => Ok(Counts { failed: 1, ..Counts::default() }),
        Some(_) | None => bail!("{scenario}: the run was not made ({status})"),
    }
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn flags_and_what_follows_two_dashes_are_the_harness_s() {
        let line = ["x", "steady", "--pods", "7", "--expect", "p99<5ms", "--", "--workers", "1"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.arguments.scenario, Scenario::Steady);
        assert_eq!(cli.arguments.flags, line[2..]);
        assert_eq!(Cli::try_parse_from(["x", "steady", "--", "--help"]).unwrap().arguments.flags, ["--help"]);
        assert!(Cli::try_parse_from(["x", "sturdy"]).unwrap_err().to_string().contains("steady"));
    }
}
