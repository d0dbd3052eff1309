//! What a request costs the agent, beside what HTTP alone costs.

use anyhow::Result;

use super::contest::{self, Compared, Server};
use super::ground::Ground;
use super::row::{Goal, Row, Unit};
use super::wrk::Connections;
use crate::report::step;

const GOAL: f64 = 0.90;

/// `how` says what this agent does. `against` is started beside it.
pub(crate) async fn measure(
    ground: &Ground<'_>,
    how: &str,
    rounds: u32,
    against: Option<&str>,
) -> Result<Vec<Row>> {
    let tokens = ground.tokens("one", 1, 1).await?;
    let agent = ground.agent().await?;
    let hyper = ground.reference().await?;
    let other = match against {
        Some(command) => Some(ground.other(command, &tokens).await?),
        None => None,
    };
    let servers: Vec<&Server> =
        [&agent.server].into_iter().chain(other.as_ref().map(|other| &other.server)).collect();
    let mut rows = Vec::new();
    for connections in [Connections::Close, Connections::Keep] {
        let name = connections.name();
        step(&format!("A request against hyper, {name}, {how}: {rounds} rounds"));
        let client = ground.client(&tokens);
        let compared = contest::hold(&hyper.reference, &servers, client, connections, rounds).await?;
        let named = [
            (format!("podcred against hyper, {name}, {how}"), Some(Goal::AtLeast(GOAL))),
            (format!("the other agent against hyper, {name}"), None),
        ];
        rows.extend(
            compared.into_iter().zip(named).map(|(compared, (what, goal))| row(what, compared, goal)),
        );
    }
    Ok(rows)
}

fn row(what: String, compared: Compared, goal: Option<Goal>) -> Row {
    Row {
        what,
        value: compared.ratio.median,
        unit: Unit::Ratio,
        interval: Some(compared.ratio.interval),
        control: Some(compared.control),
        goal,
        detail: format!("hyper {:.1} µs, this {:.1} µs a request", compared.reference, compared.other),
    }
}
