//! goose: it starts the pods, counts what they tell it, and writes its own report.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use goose::GooseAttack;
use goose::client::{GooseClientBuilder, GooseClientConfig};
use goose::config::GooseConfiguration;
use goose::goose::{Scenario, Transaction, TransactionFunction};
use tokio::time::timeout;

use super::pod;
use super::world::World;

/// goose starts users at a rate; ours wait for each other anyway.
const USERS_PER_SECOND: &str = "1000000";
/// What goose takes to start and to stop users and to write its report.
const OVERHEAD: Duration = Duration::from_secs(120);

/// Returns when all pods have ended.
pub(super) async fn attack(world: &Arc<World>, report: &Path) -> Result<()> {
    let users = world.plan.visits.len();
    let arguments = arguments(&world.stage.endpoint().host, users, report);
    let configuration =
        GooseConfiguration::parse_args_default(&arguments).context("goose's configuration")?;
    let life = Arc::clone(world);
    let function: TransactionFunction = Arc::new(move |user| {
        let world = Arc::clone(&life);
        Box::pin(async move { pod::live(&world, user).await })
    });
    // Its own client is used for nothing, but a goose user has one: 128 kB, unless all share it.
    let client = GooseClientBuilder::new().without_cookies();
    let attack = GooseAttack::initialize_with_config(configuration)?
        .set_client_builder_without_cookies(client)?
        .register_scenario(Scenario::new("pods").register_transaction(Transaction::new(function)));
    let longest = world.last_moment() + OVERHEAD;
    match timeout(longest, Box::pin(attack.execute())).await {
        // Its Display leaves out what was wrong.
        Ok(ended) => ended.map(drop).map_err(|error| anyhow!("goose: {error:?}")),
        Err(_) => bail!("goose had not ended after {} s", longest.as_secs()),
    }
}

pub(super) fn version() -> String {
    let agent = GooseClientConfig::default().user_agent;
    agent.rsplit_once('/').map_or(agent.clone(), |(_, version)| version.to_owned())
}

fn arguments(host: &str, users: usize, report: &Path) -> Vec<String> {
    let report = report.display().to_string();
    let mut arguments: Vec<String> = ["--iterations", "1", "--increase-rate", USERS_PER_SECOND, "-q", "-q"]
        .into_iter()
        .chain([
            "--no-print-metrics",
            "--no-transaction-metrics",
            "--no-scenario-metrics",
            "--no-error-summary",
        ])
        .map(str::to_owned)
        .collect();
    arguments.extend([
        "--host".to_owned(),
        format!("http://{host}"),
        "--users".to_owned(),
        users.to_string(),
    ]);
    arguments.extend(["--report-file".to_owned(), report]);
    arguments
}
