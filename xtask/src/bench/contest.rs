//! Two servers at the same time on one processor, each with a client of its own on another: whatever else the machine does, it
//! does to both. What is compared is the CPU time that a request costs the server.

use anyhow::Result;
use futures_util::future::try_join_all;

use super::middle::Middle;
use super::row::Control;
use super::watched::Watched;
use super::wrk::{self, Client, Connections};

const SECONDS: u32 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) process: Watched,
    pub(crate) url: String,
}

/// The reference twice, as two processes: how far apart are two that are the same?
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) one: Server,
    pub(crate) two: Server,
}

/// CPU microseconds a request of the reference and of another, in the same seconds.
#[derive(Clone, Copy, Debug)]
struct Pair {
    reference: f64,
    other: f64,
}

impl Pair {
    /// How many requests the reference could have answered for one of the other's.
    fn ratio(&self) -> f64 {
        self.reference / self.other
    }
}

/// What came of it for one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    pub(crate) reference: f64,
    pub(crate) other: f64,
    pub(crate) ratio: Middle,
    pub(crate) control: Control,
}

/// Each server against the reference, in turn with the reference against itself.
pub(crate) async fn hold(
    reference: &Reference,
    others: &[&Server],
    client: Client<'_>,
    connections: Connections,
    rounds: u32,
) -> Result<Vec<Compared>> {
    let all: Vec<&Server> = others.iter().copied().chain([&reference.two]).collect();
    // Once for nothing: what only the first requests cost is not a request's cost.
    for server in &all {
        one_round([&reference.one, server], client, connections, 1).await?;
    }
    let mut pairs = vec![Vec::new(); all.len()];
    for _ in 0..rounds {
        for (server, pairs) in all.iter().zip(&mut pairs) {
            pairs.push(one_round([&reference.one, server], client, connections, SECONDS).await?);
        }
    }
    let control = pairs.pop().map(|same| Middle::of(same.iter().map(Pair::ratio)).median);
    let control = Control::of_servers(control.unwrap_or(f64::NAN));
    Ok(pairs.iter().map(|pairs| Compared::of(pairs, control)).collect())
}

impl Compared {
    fn of(pairs: &[Pair], control: Control) -> Compared {
        Compared {
            reference: Middle::of(pairs.iter().map(|pair| pair.reference)).median,
            other: Middle::of(pairs.iter().map(|pair| pair.other)).median,
            ratio: Middle::of(pairs.iter().map(Pair::ratio)),
            control,
        }
    }
}

async fn one_round(
    servers: [&Server; 2],
    client: Client<'_>,
    connections: Connections,
    seconds: u32,
) -> Result<Pair> {
    let clocks = || servers.iter().map(|server| server.process.cpu()).collect::<Result<Vec<_>>>();
    let before = clocks()?;
    let runs = servers.map(|server| wrk::run(client, &server.url, connections, seconds));
    let ran = try_join_all(runs).await?;
    let after = clocks()?;
    let cost =
        |server: usize| (after[server] - before[server]).as_secs_f64() * 1e6 / ran[server].requests as f64;
    Ok(Pair { reference: cost(0), other: cost(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_compared_with_the_reference_of_the_same_round() {
        let pairs = [(20.0, 25.0), (10.0, 10.0), (9.0, 10.0)];
        let pairs = pairs.map(|(reference, other)| Pair { reference, other });
        let compared = Compared::of(&pairs, Control::of_servers(1.0));
        assert_eq!(compared.ratio, Middle { median: 0.9, interval: [0.8, 1.0] });
        assert_eq!((compared.reference, compared.other), (10.0, 10.0));
    }
}
