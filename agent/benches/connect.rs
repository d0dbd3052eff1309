//! What the programs cost a connect() that is none of theirs. `cargo xtask bench-connect` runs this, and judges its numbers.
//!
//! One line a measurement: `control` or `programs`, then the nanoseconds of a connect() in two rounds, which differ by nothing
//! or by the programs. Needs root.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent_ebpf::Kind;
use anyhow::{Context, Result, ensure};
use loadtest::node::{CREDENTIALS_V4, CREDENTIALS_V6, IMDS_V4, IMDS_V6, Layout, Node, PodSpec};
use podcred::attribute::probe::{Probe, ProbeConfig, Upkeep};
use podcred::clock::since_boot;
use socket2::{Domain, Protocol, Socket, Type};

/// A round takes some 20 ms: what else the machine does changes more slowly.
const CONNECTIONS: usize = 512;

fn main() -> Result<()> {
    // cargo's own argument comes last.
    let measurements = std::env::args().nth(1).context("how many measurements?")?;
    let measurements: usize = measurements.parse().context("a number of measurements")?;
    let node = Node::start(Layout::default())?;
    let pod = node.pod(PodSpec::default())?;
    let probe = load(&node)?;
    pod.run(|| measure(&probe, measurements))?
}

/// As an agent has it that looks at everything.
fn load(node: &Node) -> Result<Probe> {
    let probe = Probe::load(&ProbeConfig {
        kubepods: node.kubepods().to_owned(),
        kubepods_level: node.kubepods_level(),
        agent_cgroup: node.agent().cgroup().to_owned(),
        pins: None,
        host_netns: None,
        refuse_imds: true,
        learn_namespaces: true,
        log: false,
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

fn measure(probe: &Probe, measurements: usize) -> Result<()> {
    let listener = socket()?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    probe.detach()?;
    for _ in 0..measurements {
        report("control", probe, &listener, |_| Ok(()))?;
        report("programs", probe, &listener, attach)?;
    }
    Ok(())
}

/// Four rounds: plain, changed, changed, plain. Whatever grows or shrinks evenly over them does so in both sums.
fn report(
    name: &str,
    probe: &Probe,
    listener: &Socket,
    change: impl FnOnce(&Probe) -> Result<()>,
) -> Result<()> {
    let before = round(listener)?;
    change(probe)?;
    let changed = round(listener)? + round(listener)?;
    probe.detach()?;
    let plain = before + round(listener)?;
    println!("{name} {} {}", changed.as_nanos() / 2, plain.as_nanos() / 2);
    Ok(())
}

fn attach(probe: &Probe) -> Result<()> {
    let upkeep = probe.maintain();
    let attached = upkeep.iter().filter(|done| matches!(done, Upkeep::Reattached { .. })).count();
    ensure!(attached > 0, "the programs are not attached again: {upkeep:?}");
    Ok(())
}

/// The median, which does not see the few calls in which another process had the processor.
fn round(listener: &Socket) -> Result<Duration> {
    let address = listener.local_addr()?;
    let mut times = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let client = socket()?;
        // Reset instead of a last word: 64,000 ports that wait would soon be all there are.
        client.set_linger(Some(Duration::ZERO))?;
        let start = since_boot();
        client.connect(&address)?;
        times.push(since_boot() - start);
        let (accepted, _) = listener.accept()?;
        drop(client);
        drop(accepted);
    }
    let (_, median, _) = times.select_nth_unstable(CONNECTIONS / 2);
    Ok(*median)
}

fn socket() -> Result<Socket> {
    Ok(Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?)
}
