//! `cargo xtask sdks`: each AWS SDK through podcred against the simulated EKS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use futures_util::future::join_all;

mod scenario;

use crate::agent::{Agent, Ports, free_ports};
use crate::build::{self, Profile, target};
use crate::client::World;
use crate::eks::Eks;
use crate::namespace::{Namespaces, batch};
use crate::place::Place;
use crate::process::is_root;
use crate::report::{Counts, is_ci, step, table};
use crate::sdk::Sdk;
use crate::setup;
use scenario::{Scenario, Stage};

/// The one IPv6 address that SDKs accept; it has to be spelled exactly so.
const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Only this SDK (repeatable)
    #[arg(long, value_enum, value_name = "SDK")]
    only: Vec<Sdk>,
    /// Use this podcred binary instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// One cell of the table.
#[derive(Clone, Debug)]
enum Outcome {
    Passed(String),
    Failed(String),
    Skipped(String),
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    let wanted = if arguments.only.is_empty() { Sdk::ALL.to_vec() } else { arguments.only.clone() };
    let (here, left_out) = setup::sdks(&wanted).await?;
    let mut binaries = build::binaries(Profile::Dev).await?;
    if let Some(agent) = &arguments.agent {
        binaries.agent = std::path::absolute(agent)?;
    }

    let network = Network::prepare()?;
    let logs = target().join("xtask/sdks");
    let eks_address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let eks = Eks::start(
        network.place.clone(),
        &binaries.simulated_eks,
        eks_address,
        &logs.join("simulated-eks.log"),
    )
    .await?;
    let agent_log = logs.join("podcred.log");
    let agent =
        Agent::start(network.place.clone(), &binaries.agent, &eks, &network.ports, &[], &agent_log).await?;
    for associated in join_all(here.iter().map(|&sdk| {
        let eks = &eks;
        async move { eks.associate(scenario::NAMESPACE, sdk.name(), &Eks::role_arn(sdk.name())).await }
    }))
    .await
    {
        associated?;
    }

    let world = World { eks: &eks, binaries: &binaries, sts: eks.url(), logs: &logs, cgroups: None };
    let stage = Stage { world, agent: &agent, place: &network.place, uris: network.uris() };
    let mut rows: Vec<(Sdk, Vec<Outcome>)> = here.iter().map(|&sdk| (sdk, Vec::new())).collect();
    for scenario in Scenario::ALL {
        step(scenario.title());
        for ((_, cells), outcome) in rows.iter_mut().zip(stage.play(scenario, &here).await?) {
            cells.push(outcome);
        }
    }
    rows.extend(left_out.into_iter().map(|(sdk, reason)| {
        let outcome = if is_ci() { Outcome::Failed(reason) } else { Outcome::Skipped(reason) };
        (sdk, vec![outcome; Scenario::ALL.len()])
    }));
    agent.stop().await?;
    eks.stop().await?;
    Ok(print(&rows))
}

/// Where simulated EKS, agent and clients run. As root a network namespace, because only there the IPv6 address can be ours.
#[derive(Debug)]
struct Network {
    place: Place,
    ports: Ports,
    ipv6: Result<(), String>,
    _namespaces: Option<Namespaces>,
}

impl Network {
    fn prepare() -> Result<Network> {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        if !is_root() {
            let [credentials, probe, metrics] = free_ports()?;
            let ports = Ports { hosts: vec![v4], credentials, probe, metrics };
            let ipv6 = Err("needs root, for a network namespace with the address".to_owned());
            return Ok(Network { place: Place::Host, ports, ipv6, _namespaces: None });
        }
        let namespaces = Namespaces::add(&["sdks".to_owned()])?;
        let name = namespaces.names()[0].clone();
        batch(Some(&name), "link set lo up\n")?;
        let ipv6 = batch(Some(&name), &format!("address add {IPV6}/128 dev lo nodad\n"))
            .map_err(|error| format!("this kernel has no IPv6: {error:#}"));
        let mut hosts = vec![v4];
        if ipv6.is_ok() {
            hosts.push(IpAddr::V6(IPV6));
        }
        let ports = Ports { hosts, credentials: 80, probe: 2703, metrics: 2705 };
        Ok(Network { place: Place::Namespace(name), ports, ipv6, _namespaces: Some(namespaces) })
    }

    fn uris(&self) -> scenario::Uris {
        scenario::Uris {
            v4: format!("http://127.0.0.1:{}/v1/credentials", self.ports.credentials),
            v6: self.ipv6.clone().map(|()| format!("http://[{IPV6}]/v1/credentials")),
        }
    }
}

fn print(rows: &[(Sdk, Vec<Outcome>)]) -> Counts {
    let mut counts = Counts::default();
    let mut failures = String::new();
    let mut lines = Vec::new();
    for (sdk, outcomes) in rows {
        let mut line = vec![sdk.title().to_owned()];
        for (scenario, outcome) in Scenario::ALL.into_iter().zip(outcomes) {
            line.push(match outcome {
                Outcome::Passed(note) => {
                    counts.passed += 1;
                    note.clone()
                }
                Outcome::Failed(reason) => {
                    counts.failed += 1;
                    failures += &format!("\nFAILED {}, {}: {reason}\n", sdk.title(), scenario.column());
                    "FAILED".to_owned()
                }
                Outcome::Skipped(reason) => {
                    counts.skipped += 1;
                    format!("skipped: {reason}")
                }
            });
        }
        lines.push(line);
    }
    let header: Vec<&str> = std::iter::once("SDK").chain(Scenario::ALL.map(Scenario::column)).collect();
    println!("\n{}{failures}\n{counts}", table(&header, &lines));
    counts
}
