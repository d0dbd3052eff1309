//! Whether a request costs more where there are more pods or more roles.

use anyhow::Result;
use serde::Serialize;

use super::contest::{Contest, Server};
use super::ground::Ground;
use super::middle::Middle;
use super::row::{Control, Goal, Row, Unit};
use super::wrk::Connections;
use crate::report::step;

/// Pods of ten roles, and roles of a thousand pods.
const PODS: [(usize, usize); 4] = [(10, 10), (100, 10), (1_000, 10), (10_000, 10)];
const ROLES: [(usize, usize); 4] = [(1_000, 1), (1_000, 10), (1_000, 100), (1_000, 1_000)];

/// What is called flat: the processor's caches know the difference, too.
const GOAL: f64 = 1.10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Pods,
    Roles,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) pods: usize,
    pub(crate) roles: usize,
    pub(crate) microseconds: f64,
    pub(crate) hyper_microseconds: f64,
}

pub(crate) async fn measure(ground: &Ground<'_>, of: Of, rounds: u32) -> Result<(Row, Vec<Point>)> {
    let (name, steps) = match of {
        Of::Pods => ("pods", PODS),
        Of::Roles => ("roles", ROLES),
    };
    let script = ground.script();
    let mut points = Vec::new();
    let mut ratios: Vec<Middle> = Vec::new();
    let mut control = 1.0;
    for (pods, roles) in steps {
        step(&format!("{pods} pods of {roles} roles"));
        let tokens = ground.tokens(&format!("{name}-{pods}-{roles}"), pods, roles).await?;
        let agent = ground.agent().await?;
        // Each is verified and fetched for before the first round: what is measured comes after that.
        let mut asking = super::asking::Asking::open(&ground.place, agent.address).await?;
        for token in &tokens.all {
            asking.ask(token).await?;
        }
        drop(asking);
        let size = ground.body_size(agent.address, &tokens).await?;
        let (one, two) = (ground.hyper(size).await?, ground.hyper(size).await?);
        let servers = [&one.server, &two.server, &agent.server].map(Server::clone);
        let contest =
            Contest::hold(&servers, ground.client(&script, &tokens), Connections::Keep, rounds).await?;
        let (microseconds, hyper_microseconds) = (contest.microseconds(2), contest.microseconds(0));
        points.push(Point { pods, roles, microseconds, hyper_microseconds });
        ratios.push(contest.ratio(2));
        if (contest.control() - 1.0).abs() > f64::abs(control - 1.0) {
            control = contest.control();
        }
    }
    // Each point beside hyper in the same rounds: the machine is not the same from one to the next.
    let (first, last) = (ratios[0], ratios[ratios.len() - 1]);
    let costs: Vec<String> = points.iter().map(|point| format!("{:.1}", point.microseconds)).collect();
    let row = Row {
        what: format!("cost of a request, 1,000 times as many {name}"),
        value: first.median / last.median,
        unit: Unit::Ratio,
        interval: Some([first.interval[0] / last.interval[1], first.interval[1] / last.interval[0]]),
        control: Some(Control::of_servers(control)),
        goal: Some(Goal::AtMost(GOAL)),
        detail: format!("{} µs", costs.join(", ")),
    };
    Ok((row, points))
}

/// The points as a table; nothing where there are none.
pub(crate) fn markdown<'a>(points: impl Iterator<Item = &'a Point>) -> String {
    let row = |point: &Point| {
        let Point { pods, roles, microseconds, hyper_microseconds } = point;
        format!("| {pods} | {roles} | {microseconds:.1} | {hyper_microseconds:.1} |\n")
    };
    let rows: String = points.map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => {
            format!("\n| pods | roles | podcred, µs a request | hyper |\n| --- | --- | --- | --- |\n{rows}")
        }
    }
}
