//! What the programs cost a connect() that is none of theirs. `cargo xtask bench-connect` runs this, and judges its numbers.
//!
//! A measurement is four lines: `control`, `empty` and `outward` for connections that leave the pod, over its veth to the node,
//! and `inward` for such that do not, where both ends pay. Each has the nanoseconds of a connect() in two rounds, which differ
//! by nothing (`control`), by programs that do nothing (`empty`) or by ours, then those of a connection from socket() to
//! close(). Needs root.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent_ebpf::Kind;
use anyhow::{Context, Result, ensure};
use loadtest::node::{CREDENTIALS_V4, CREDENTIALS_V6, IMDS_V4, IMDS_V6, Layout, Node, PodSpec};
use podcred::attribute::probe::{Probe, ProbeConfig, Upkeep};
use podcred::clock::since_boot;
use socket2::{Domain, Protocol, Socket, Type};

mod empty;

/// A round takes some 20 ms: what else the machine does changes more slowly.
const CONNECTIONS: usize = 512;

fn main() -> Result<()> {
    // cargo's own argument comes last.
    let measurements = std::env::args().nth(1).context("how many measurements?")?;
    let measurements: usize = measurements.parse().context("a number of measurements")?;
    let node = Node::start(Layout::default())?;
    let pod = node.pod(PodSpec::default())?;
    let probe = load(&node)?;
    probe.detach()?;
    // Neither a pod's nor the agent's.
    let outside = node.home()?.run(|| listen(node.ipv4()))??;
    let inside = pod.run(|| listen(Ipv4Addr::LOCALHOST))??;
    let measure = || {
        for _ in 0..measurements {
            report("control", &outside, || Ok(()))?;
            report("empty", &outside, || empty::attach(node.kubepods(), &node.agent().cgroup()))?;
            report("outward", &outside, || attach(&probe))?;
            report("inward", &inside, || attach(&probe))?;
        }
        Ok(())
    };
    pod.run(measure)?
}

fn listen(on: Ipv4Addr) -> Result<Socket> {
    let listener = socket()?;
    listener.bind(&SocketAddr::from((on, 0)).into())?;
    listener.listen(1)?;
    Ok(listener)
}

/// As an agent has it that looks at everything.
fn load(node: &Node) -> Result<Probe> {
    let (kubepods, agent) = (node.kubepods().to_owned(), node.agent().cgroup());
    let probe = Probe::load(&ProbeConfig {
        refuse_imds: true,
        learn_namespaces: true,
        ..ProbeConfig::new(kubepods, node.kubepods_level(), agent)
    })?;
    for (ip, kind) in [
        (CREDENTIALS_V4.into(), Kind::Credentials),
        (CREDENTIALS_V6.into(), Kind::Credentials),
        (IMDS_V4.into(), Kind::Imds),
        (IMDS_V6.into(), Kind::Imds),
    ] {
        probe.watch(SocketAddr::new(ip, 80), kind)?;
    }
    Ok(probe)
}

/// Four rounds: plain, changed, changed, plain. Whatever grows or shrinks evenly over them does so in both sums.
fn report<C>(name: &str, listener: &Socket, change: impl FnOnce() -> Result<C>) -> Result<()> {
    let before = round(listener)?;
    let change = change()?;
    let changed = [round(listener)?, round(listener)?];
    drop(change);
    let plain = [before, round(listener)?];
    let mean = |[one, other]: [Duration; 2]| (one + other).as_nanos() / 2;
    let connect = [changed, plain].map(|rounds| mean(rounds.map(|round| round.connect)));
    let whole = [changed, plain].map(|rounds| mean(rounds.map(|round| round.whole)));
    println!("{name} {} {} {} {}", connect[0], connect[1], whole[0], whole[1]);
    Ok(())
}

struct Attached<'a>(&'a Probe);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.detach().expect("they were attached");
    }
}

fn attach(probe: &Probe) -> Result<Attached<'_>> {
    let upkeep = probe.maintain();
    let attached = upkeep.iter().filter(|done| matches!(done, Upkeep::Reattached { .. })).count();
    ensure!(attached > 0, "the programs are not attached again: {upkeep:?}");
    Ok(Attached(probe))
}

/// Medians, which do not see the few calls in which another process had the processor.
#[derive(Clone, Copy)]
struct Round {
    connect: Duration,
    whole: Duration,
}

fn round(listener: &Socket) -> Result<Round> {
    let address = listener.local_addr()?;
    let (mut connect, mut whole) = (Vec::with_capacity(CONNECTIONS), Vec::with_capacity(CONNECTIONS));
    for _ in 0..CONNECTIONS {
        let start = since_boot();
        let client = socket()?;
        // Reset instead of a last word: 64,000 ports that wait would soon be all there are.
        client.set_linger(Some(Duration::ZERO))?;
        let before = since_boot();
        client.connect(&address)?;
        connect.push(since_boot() - before);
        let (accepted, _) = listener.accept()?;
        drop(client);
        drop(accepted);
        whole.push(since_boot() - start);
    }
    Ok(Round { connect: median(connect), whole: median(whole) })
}

fn median(mut times: Vec<Duration>) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

fn socket() -> Result<Socket> {
    Ok(Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?)
}
