//! Whether a request costs more where there are more pods or more roles.

use anyhow::{Context, Result};
use serde::Serialize;

use super::asking::Asking;
use super::contest::{self, Compared};
use super::ground::Ground;
use super::row::{Goal, Row, Unit};
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
    let mut points = Vec::new();
    let mut compared = Vec::new();
    for (pods, roles) in steps {
        step(&format!("A request where there are {pods} pods of {roles} roles: {rounds} rounds"));
        let tokens = ground.tokens(&format!("{name}-{pods}-{roles}"), pods, roles).await?;
        let agent = ground.agent().await?;
        // Each is verified and fetched for before the first round: what is measured comes after that.
        let mut asking = Asking::open(&ground.place, agent.address).await?;
        for token in &tokens.all {
            asking.ask(token).await?;
        }
        drop(asking);
        let hyper = ground.reference().await?;
        let client = ground.client(&tokens);
        // No connection is many pods': one that stayed open would carry each token in turn, which nobody's does.
        let one =
            contest::hold(&hyper.reference, &[&agent.server], client, Connections::Close, rounds).await?;
        let one = one.into_iter().next().context("nothing was compared")?;
        points.push(Point { pods, roles, microseconds: one.other, hyper_microseconds: one.reference });
        compared.push(one);
    }
    let far = |compared: &&Compared| (compared.control.ratio - 1.0).abs();
    let control =
        compared.iter().max_by(|one, other| far(one).total_cmp(&far(other))).map(|most| most.control);
    // Each point beside hyper in the same rounds: the machine is not the same from one to the next.
    let (first, last) = (compared[0].ratio, compared[compared.len() - 1].ratio);
    let costs: Vec<String> = points.iter().map(|point| format!("{:.1}", point.microseconds)).collect();
    let row = Row {
        what: format!("cost of a request, 1,000 times as many {name}"),
        value: first.median / last.median,
        unit: Unit::Ratio,
        interval: Some([first.interval[0] / last.interval[1], first.interval[1] / last.interval[0]]),
        control,
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
