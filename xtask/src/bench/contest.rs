//! Servers at the same time on one processor, each with a client of its own on another: whatever else the machine does, it
//! does to all of them. What is compared is the CPU time that a request costs the server.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

use super::middle::Middle;
use super::watched::Watched;
use super::wrk::{self, Client, Connections};

const SECONDS: u32 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) process: Watched,
    pub(crate) url: String,
}

/// A round's CPU time a request, in microseconds, of each server.
type Round = Vec<f64>;

#[derive(Debug)]
pub(crate) struct Contest {
    rounds: Vec<Round>,
}

impl Contest {
    /// The first two servers are the same, so that it is seen how far apart such ones are.
    pub(crate) async fn hold(
        servers: &[Server],
        client: Client<'_>,
        connections: Connections,
        rounds: u32,
    ) -> Result<Contest> {
        ensure!(servers.len() > 2, "there is nothing to compare");
        // Once for nothing: what only the first requests cost is not a request's cost.
        one_round(servers, client, connections, 1).await?;
        let mut done = Vec::new();
        for _ in 0..rounds {
            done.push(one_round(servers, client, connections, SECONDS).await?);
        }
        Ok(Contest { rounds: done })
    }

    pub(crate) fn microseconds(&self, server: usize) -> f64 {
        Middle::of(self.rounds.iter().map(|round| round[server])).median
    }

    /// How often the reference could do what this server does once; above 1 it is the cheaper.
    pub(crate) fn ratio(&self, server: usize) -> Middle {
        // Two servers that are the same are a better reference than one.
        Middle::of(self.rounds.iter().map(|round| (round[0] + round[1]) / 2.0 / round[server]))
    }

    pub(crate) fn control(&self) -> f64 {
        Middle::of(self.rounds.iter().map(|round| round[0] / round[1])).median
    }
}

async fn one_round(
    servers: &[Server],
    client: Client<'_>,
    connections: Connections,
    seconds: u32,
) -> Result<Round> {
    let clocks = || servers.iter().map(|server| server.process.cpu()).collect::<Result<Vec<_>>>();
    let before = clocks()?;
    let runs = servers.iter().map(|server| wrk::run(client, &server.url, connections, seconds));
    let requests = try_join_all(runs).await?;
    let costs = clocks()?.into_iter().zip(before).map(|(after, before)| after - before);
    Ok(costs.zip(requests).map(|(cost, requests)| cost.as_secs_f64() * 1e6 / requests as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_the_mean_of_the_pair_in_each_round() {
        let contest =
            Contest { rounds: vec![vec![20.0, 22.0, 24.0], vec![10.0, 12.0, 11.0], vec![9.0, 9.0, 10.0]] };
        assert_eq!(contest.ratio(2), Middle { median: 0.9, interval: [0.875, 1.0] });
        assert_eq!(contest.control(), 20.0 / 22.0);
        assert_eq!(contest.microseconds(2), 11.0);
    }
}
