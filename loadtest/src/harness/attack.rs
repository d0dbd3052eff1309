//! goose: it starts the pods, counts what they tell it, and writes its own report.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use goose::GooseAttack;
use goose::client::{GooseClientBuilder, GooseClientConfig};
use goose::config::{GooseConfiguration, GooseDefault, GooseDefaultType};
use goose::goose::{GooseUser, Scenario, Transaction, TransactionFunction, TransactionResult};
use tokio::time::{sleep, timeout};

use super::pod;
use super::world::World;

/// goose starts users at a rate; ours wait for each other anyway. It tells itself of each, in 560 bytes that it keeps room for: more
/// at once than it has heard of.
const USERS_PER_SECOND: &str = "20000";
/// The user that tells goose what all pods had. Each user that does so holds counts of its own until it does so again, 4 kB a pod.
const CLERK: usize = 0;
/// How long goose waits to hear what pods had.
const TOLD_EVERY: Duration = Duration::from_millis(100);
/// What goose takes to start and to stop users and to write its report.
const OVERHEAD: Duration = Duration::from_secs(120);

/// Returns when all pods have ended.
pub(super) async fn attack(world: &Arc<World>, report: &Path) -> Result<()> {
    let users = world.plan.visits.len();
    let arguments = arguments(users, report);
    let configuration =
        GooseConfiguration::parse_args_default(&arguments).context("goose's configuration")?;
    let life = Arc::clone(world);
    let function: TransactionFunction = Arc::new(move |user| {
        let world = Arc::clone(&life);
        Box::pin(async move {
            let number = user.weighted_users_index;
            // What goose needed to start with, of which each user has a copy.
            user.config.report_file = Vec::new();
            user.config.increase_rate = None;
            if number == CLERK {
                // Boxed, as all users' futures have the same size.
                return Box::pin(async { tokio::join!(pod::live(&world, number), tell(&world, user)).1 })
                    .await;
            }
            pod::live(&world, number).await;
            Ok(())
        })
    });
    // Its own client is used for nothing, but a goose user has one: 128 kB, unless all share it.
    let client = GooseClientBuilder::new().without_cookies();
    let host = format!("http://{}", world.stage.endpoint().host);
    let attack = GooseAttack::initialize_with_config(configuration)?
        // As an argument, each user would have a copy of it.
        .set_default(GooseDefault::Host, host.as_str())?
        .set_client_builder_without_cookies(client)?
        .register_scenario(Scenario::new("pods").register_transaction(Transaction::new(function)));
    let longest = world.last_moment() + OVERHEAD;
    match timeout(longest, Box::pin(attack.execute())).await {
        // Its Display leaves out what was wrong.
        Ok(ended) => ended.map(drop).map_err(|error| anyhow!("goose: {error:?}")),
        Err(_) => bail!("goose had not ended after {} s", longest.as_secs()),
    }
}

/// Tells goose what all pods had, until the last of them has left.
async fn tell(world: &World, clerk: &mut GooseUser) -> TransactionResult {
    loop {
        let last = world.all_have_left();
        for settled in world.newly_settled() {
            let group = world.plan.groups.get(settled.group).map_or("pods", String::as_str);
            let class = settled.failure.as_ref().map(|failed| failed.class.as_str());
            let (latency, served) = (settled.latency, class.is_none());
            clerk.record_custom_request_duration("GET", group, latency, served, None, class).await?;
        }
        if last {
            return Ok(());
        }
        sleep(TOLD_EVERY).await;
    }
}

pub(super) fn version() -> String {
    let agent = GooseClientConfig::default().user_agent;
    agent.rsplit_once('/').map_or(agent.clone(), |(_, version)| version.to_owned())
}

fn arguments(users: usize, report: &Path) -> Vec<String> {
    let report = report.display().to_string();
    let mut arguments: Vec<String> = ["--iterations", "1", "--increase-rate", USERS_PER_SECOND, "-q", "-q"]
        .into_iter()
        .chain([
            "--no-print-metrics",
            "--no-transaction-metrics",
            "--no-scenario-metrics",
            "--no-error-summary",
            // It listens on a fixed port, and lets whoever is on this machine stop the run.
            "--no-telnet",
        ])
        .map(str::to_owned)
        .collect();
    arguments.extend(["--users".to_owned(), users.to_string()]);
    arguments.extend(["--report-file".to_owned(), report]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goose_listens_to_nobody() {
        let arguments = arguments(1, Path::new("goose.html"));
        let configuration = GooseConfiguration::parse_args_default(&arguments).unwrap();
        assert!(configuration.no_telnet && !configuration.websocket && !configuration.dashboard);
    }
}
