//! `cargo xtask demo`: a node's pods with real AWS SDKs, podcred, and a simulated EKS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};

pub(crate) mod network;
mod outcome;
pub(crate) mod thief;

use crate::agent::Agent;
use crate::build::{self, Profile, target};
use crate::client::{Answer, Pod, World};
use crate::clock::Stopwatch;
use crate::eks::{Eks, PodName};
use crate::report::{Counts, step};
use crate::sdk::Sdk;
use crate::setup;
use network::Network;
use outcome::{Outcome, PodOutcome};
use thief::Attribution;

/// Pods that start at one time: a JVM and a few interpreters are what two cores and a small machine's memory bear.
const AT_ONCE: usize = 6;

/// Pods of this demo are new to the agent for as long as the slowest machine takes to start them all. A refresh because of
/// `--revalidate-after` (60 s by default) would be right, and would blur what is shown here.
const REVALIDATE_AFTER: &str = "1h";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Keep everything running until Ctrl-C, and print commands to try it with
    #[arg(long)]
    pub(crate) keep: bool,
    /// Number of pods
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) pods: u16,
    /// Number of service accounts, each with its own role
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) roles: u16,
    /// Build profile of podcred and the simulated EKS
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    pub(crate) profile: Profile,
    /// Use this podcred binary instead of building one
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

/// A service account and its role.
#[derive(Clone, Debug)]
struct Role {
    namespace: String,
    account: String,
    arn: String,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Counts> {
    let (sdks, left_out) = setup::sdks(&Sdk::ALL).await?;
    for (sdk, reason) in &left_out {
        step(&format!("No pods with {}: {reason}", sdk.title()));
    }
    let mut binaries = build::binaries(arguments.profile).await?;
    if let Some(agent) = &arguments.agent {
        binaries.agent = std::path::absolute(agent)?;
    }
    let pods = usize::from(arguments.pods);
    // A role without a pod would show nothing.
    let roles: Vec<Role> = (0..usize::from(arguments.roles).min(pods)).map(role).collect();

    // One more place, for the thief.
    let network = Network::prepare(&binaries.agent, pods + 1).await?;
    let logs = target().join("xtask/demo");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let eks_log = logs.join("simulated-eks.log");
    let eks = Eks::start(network.node.clone(), &binaries.simulated_eks, listen, &eks_log).await?;
    let attribution = Attribution::prepare(&network, &binaries.agent).await;
    let mut more = vec!["--revalidate-after".to_owned(), REVALIDATE_AFTER.to_owned()];
    more.extend(attribution.flags());
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let agent_log = logs.join("podcred.log");
    let mut agent =
        Agent::start(network.node.clone(), &binaries.agent, &eks, &network.ports, &more, &agent_log).await?;
    step(match network.in_namespaces() {
        true => {
            "Node and pods have network namespaces of their own; podcred serves 169.254.170.23 and fd00:ec2::23"
        }
        false => "Without root: everything on loopback (as root: network namespaces and the real addresses)",
    });

    step(&format!("Creating {} associations: aws eks create-pod-identity-association", roles.len()));
    stream::iter(&roles)
        .map(|role| eks.associate(&role.namespace, &role.account, &role.arn))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;

    let sts = network.publish_sts(eks.address()).await?;
    let cgroups = attribution.cgroups();
    let world = World { eks: &eks, binaries: &binaries, sts: &sts.url, logs: &logs, cgroups };
    let plan: Vec<Planned<'_>> = (0..pods).map(|index| plan(index, &roles, &sdks, &network)).collect();
    step(&format!("Running {pods} pods, {AT_ONCE} at a time"));
    let clock = Stopwatch::start();
    let done = stream::iter(plan.iter().enumerate())
        .map(|(index, planned)| run_pod(world, &network, index, planned))
        .buffer_unordered(AT_ONCE);
    let outcomes: Vec<PodOutcome> = with_progress(done, pods).await;
    let took = clock.elapsed();
    let thief = thief::try_it(world, &network, &plan, &agent, &attribution).await;
    agent.check()?;
    let calls = eks.counts().await?;
    let outcome = Outcome { roles: &roles, pods: &outcomes, calls: &calls, took };
    let mut counts = outcome.print();
    counts.add(thief.print());
    println!("\n{counts}");

    if arguments.keep {
        keep(world, &network, &plan).await?;
    }
    agent.stop().await?;
    eks.stop().await?;
    Ok(counts)
}

#[derive(Debug)]
struct Planned<'a> {
    role: &'a Role,
    sdk: Sdk,
    name: PodName,
    uri: String,
}

/// Every role gets every SDK, before any gets one twice; every other round goes by IPv6.
fn plan<'a>(index: usize, roles: &'a [Role], sdks: &[Sdk], network: &Network) -> Planned<'a> {
    let role = &roles[index % roles.len()];
    let round = index / roles.len();
    // Shifted from role to role, so that few pods show many SDKs too.
    let sdk = sdks[(round + index % roles.len()) % sdks.len()];
    let name = PodName {
        namespace: role.namespace.clone(),
        service_account: role.account.clone(),
        pod_name: format!("{}-{}", role.account, round + 1),
    };
    Planned { role, sdk, name, uri: network.uri(network.ipv6 && round % 2 == 1) }
}

fn role(index: usize) -> Role {
    const KNOWN: [(&str, &str); 6] = [
        ("shop", "cart"),
        ("shop", "checkout"),
        ("billing", "invoices"),
        ("media", "thumbnails"),
        ("search", "indexer"),
        ("data", "exports"),
    ];
    let (namespace, account) = match KNOWN.get(index) {
        Some(&(namespace, account)) => (namespace.to_owned(), account.to_owned()),
        None => (format!("team-{}", index + 1), format!("app-{}", index + 1)),
    };
    let arn = Eks::role_arn(&format!("{namespace}-{account}"));
    Role { namespace, account, arn }
}

async fn run_pod(world: World<'_>, network: &Network, index: usize, planned: &Planned<'_>) -> PodOutcome {
    let result = async {
        let mut pod =
            Pod::start(world, &network.pods[index], planned.sdk, &planned.name, &planned.uri).await?;
        let answer = pod.ask("get").await?;
        let session = world.eks.session(answer.key()?).await?;
        anyhow::ensure!(
            session.role_arn == planned.role.arn,
            "got credentials of {}, its role is {}",
            session.role_arn,
            planned.role.arn
        );
        let identity: Answer = pod.ask("identity").await?;
        let told = identity.key().map(|_| identity.arn.as_deref()).context("GetCallerIdentity")?;
        anyhow::ensure!(
            told == Some(session.session_arn.as_str()),
            "STS says {told:?}, the credentials are those of {}",
            session.session_arn
        );
        Ok((answer.ms, session.session_arn))
    };
    PodOutcome {
        role: format!("{}/{}", planned.role.namespace, planned.role.account),
        sdk: planned.sdk,
        name: planned.name.pod_name.clone(),
        result: result.await,
    }
}

async fn with_progress(pods: impl stream::Stream<Item = PodOutcome>, of: usize) -> Vec<PodOutcome> {
    let mut outcomes = Vec::with_capacity(of);
    let mut pods = std::pin::pin!(pods);
    while let Some(outcome) = pods.next().await {
        outcomes.push(outcome);
        if outcomes.len().is_multiple_of(12) && outcomes.len() < of {
            step(&format!("{} of {of} pods done", outcomes.len()));
        }
    }
    outcomes
}

/// Holds a pod per role, and never returns: whoever interrupts the demo drops it all.
async fn keep(world: World<'_>, network: &Network, plan: &[Planned<'_>]) -> Result<()> {
    let first_of_each = plan.iter().enumerate().filter(|(_, planned)| planned.name.pod_name.ends_with("-1"));
    let mut kept = Vec::new();
    println!("\nEverything goes on running. A pod's way to its credentials:");
    for (index, planned) in first_of_each {
        // Rust, Go and the interpreters would all do: what is wanted is the pod's token, in its namespace.
        let pod = Pod::start(world, &network.pods[index], planned.sdk, &planned.name, &planned.uri).await?;
        let token = pod.token_file();
        let curl = format!("curl -sg -H \"Authorization: $(cat {})\" \"{}\"", token.display(), planned.uri);
        println!("  # {}\n  {}", planned.name.pod_name, network.pods[index].shell(pod.cgroup(), &curl));
        kept.push(pod);
    }
    let on_node = |what: &str, url: String| {
        println!("{what}\n  {}", network.node.shell(None, &format!("curl -s {url}")));
    };
    on_node("The agent's metrics:", format!("http://127.0.0.1:{}/metrics", network.ports.metrics));
    on_node("The EKS Auth calls so far:", format!("{}/control/counts", world.eks.url()));
    let outage = r#"-X PATCH -d '{"outage":"refuse"}'"#;
    on_node(
        "An outage of EKS Auth (\"off\" ends it):",
        format!("{outage} {}/control/settings", world.eks.url()),
    );
    println!("Logs: {}\nCtrl-C ends it all.", world.logs.display());
    std::future::pending().await
}
