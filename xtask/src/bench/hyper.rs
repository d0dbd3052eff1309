//! What a request costs the agent, beside what HTTP alone costs.

use anyhow::Result;

use super::contest::{Contest, Server};
use super::ground::Ground;
use super::row::{Control, Goal, Row, Unit};
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
    let size = ground.body_size(agent.address, &tokens).await?;
    let (one, two) = (ground.hyper(size).await?, ground.hyper(size).await?);
    let other = match against {
        Some(command) => Some(ground.other(command, &tokens).await?),
        None => None,
    };
    let mut servers: Vec<Server> = [&one.server, &two.server, &agent.server].map(Server::clone).to_vec();
    servers.extend(other.as_ref().map(|other| other.server.clone()));

    let mut rows = Vec::new();
    let script = ground.script();
    for connections in [Connections::Close, Connections::Keep] {
        step(&format!("{} servers on one processor, {}, {how}", servers.len(), connections.name()));
        let contest = Contest::hold(&servers, ground.client(&script, &tokens), connections, rounds).await?;
        let (hyper, name) = (contest.microseconds(0), connections.name());
        let row = |server: usize, what: String, goal| {
            let ratio = contest.ratio(server);
            Row {
                what,
                value: ratio.median,
                unit: Unit::Ratio,
                interval: Some(ratio.interval),
                control: Some(Control::of_servers(contest.control())),
                goal,
                detail: format!("hyper {hyper:.1} µs, this {:.1} µs a request", contest.microseconds(server)),
            }
        };
        rows.push(row(2, format!("podcred against hyper, {name}, {how}"), Some(Goal::AtLeast(GOAL))));
        if against.is_some() {
            rows.push(row(3, format!("the other agent against hyper, {name}"), None));
        }
    }
    Ok(rows)
}
