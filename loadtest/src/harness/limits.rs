//! File descriptors: a run that has too few would hang, or measure that.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The agent keeps at most so many connections open.
const MOST_CONNECTIONS: u64 = 4096;
/// The simulated EKS, the runtimes, reports.
const OTHERS: u64 = 512;

/// Raises the limit as far as it goes, and refuses what it is too low for.
pub(super) fn allow(pods: u64, with_cgroups: bool) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Where it cannot be raised the check below tells.
        let _either_way =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    check(pods, needed(pods, with_cgroups), getrlimit(Resource::Nofile).current)
}

fn check(pods: u64, needed: u64, limit: Option<u64>) -> Result<()> {
    match limit {
        Some(limit) if limit < needed => bail!(
            "{pods} pods need {needed} file descriptors and this process may have {limit}: raise the hard limit (ulimit -Hn), or \
             ask for fewer pods"
        ),
        Some(_) | None => Ok(()),
    }
}

/// A connection for each pod, as far as the agent keeps them, and a descriptor for each cgroup.
fn needed(pods: u64, with_cgroups: bool) -> u64 {
    pods.min(MOST_CONNECTIONS) + if with_cgroups { pods } else { 0 } + OTHERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_descriptors_than_there_can_be_are_refused_with_the_number() {
        let refused = check(10_000, 14_608, Some(14_607)).unwrap_err().to_string();
        assert!(
            refused.contains("14608") && refused.contains("14607") && refused.contains("ulimit -Hn"),
            "{refused}"
        );
        for enough in [Some(14_608), None] {
            assert!(check(10_000, 14_608, enough).is_ok());
        }
    }

    #[test]
    fn descriptors_are_for_connections_as_far_as_they_are_kept_and_for_cgroups() {
        assert_eq!(needed(10_000, true), 14_608);
        assert_eq!(needed(100, false), 612);
    }
}
