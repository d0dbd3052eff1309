//! `cargo xtask loadtest`: one scenario of the load harness, against a podcred that is built for it.

#[path = "../../loadtest/src/harness/scenarios/name.rs"]
mod name;

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result};
use clap::Args;
use tokio::process::Command;

use self::name::Scenario;
use crate::build::{self, ONE_ARENA, target};
use crate::process::{is_root, quietly};
use crate::report::{Counts, step};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(value_enum)]
    scenario: Scenario,
    /// The harness's flags, such as --pods 5000 --roles 50 --expect 'p99<50ms'; `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Returns only where it fails: from then on this process is the harness, and so are its signals and its exit status.
pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    if !is_root() {
        step("Without root: all on loopback, nobody's cgroup is known, and no pod has a network of its own");
    }
    let binaries = build::static_binaries().await?;
    let time = quietly("date", Command::new("date").args(["-u", "+%Y%m%d-%H%M%S"])).await?;
    let scenario = arguments.scenario.name();
    let folder = target().join(format!("loadtest/{scenario}-{}", time.trim()));
    let mut command = std::process::Command::new(&binaries.loadtest);
    command.envs([ONE_ARENA]);
    command.arg(&scenario).arg("--output").arg(folder).arg("--binary").arg(&binaries.agent);
    Err(command.args(&arguments.flags).stdin(Stdio::null()).exec()).context("the load harness")
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
