//! Resident memory of one agent that is given more and more to hold.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::PATIENCE;
use super::asking::Asking;
use super::ground::{Ground, Running};
use super::row::{Goal, Row, Unit};
use crate::agent::Agent;
use crate::clock::until;
use crate::report::step;

const TOKENS: [usize; 2] = [1_000, 10_000];
const ROLES: usize = 10;
/// With all tokens.
const GOAL: f64 = 16.0;
const CONNECTIONS: usize = 1_000;
const BURST: usize = 10;
/// For memory that is given back only later: the agent does it every ten seconds.
const SETTLE: Duration = Duration::from_secs(12);

pub(crate) async fn measure(ground: &Ground<'_>) -> Result<Vec<Row>> {
    let most = TOKENS[TOKENS.len() - 1];
    step(&format!("Minting {most} tokens"));
    let tokens = ground.tokens("many", most, ROLES).await?;
    let agent = ground.agent().await?;
    sleep(SETTLE).await;
    let mut rows = vec![row(&agent, "at start", None)?];
    for (from, to) in [(0, TOKENS[0]), (TOKENS[0], TOKENS[1])] {
        let mut asking = Asking::open(&ground.place, agent.address).await?;
        for token in &tokens.all[from..to] {
            asking.ask(token).await?;
        }
        sleep(SETTLE).await;
        let goal = (to == most).then_some(Goal::AtMost(GOAL));
        rows.push(row(&agent, &format!("after {to} tokens of {ROLES} roles"), goal)?);
    }

    step(&format!("Opening {CONNECTIONS} connections"));
    let open = try_join_all(tokens.all.iter().take(CONNECTIONS).map(|token| async {
        let mut asking = Asking::open(&ground.place, agent.address).await?;
        asking.ask(token).await?;
        anyhow::Ok(asking)
    }))
    .await?;
    let idle = row(&agent, &format!("then with {CONNECTIONS} idle connections"), None)?;
    let held = agent.guard.metric("podcred_connections").await?;
    ensure!(
        held == CONNECTIONS as u64,
        "the agent has {held} connections, not {CONNECTIONS}: it closes idle ones"
    );
    rows.push(idle);
    try_join_all(open.into_iter().zip(&tokens.all).map(|(mut asking, token)| async move {
        for _ in 0..BURST {
            asking.ask(token).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    until("all connections are closed", PATIENCE, async || {
        Ok(agent.guard.metric("podcred_connections").await? == 0)
    })
    .await?;
    sleep(SETTLE).await;
    let what = format!("after a burst of {BURST} requests on each, all closed");
    rows.push(row(&agent, &what, None)?);
    Ok(rows)
}

fn row(agent: &Running<Agent>, what: &str, goal: Option<Goal>) -> Result<Row> {
    let resident = agent.server.process.resident()?;
    Ok(Row {
        what: format!("memory, not attributing, {what}"),
        value: resident.all,
        unit: Unit::Megabytes,
        interval: None,
        control: None,
        goal,
        detail: format!("{:.1} MB of it anonymous", resident.anonymous),
    })
}
