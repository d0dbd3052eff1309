//! A pod that presents another pod's token, to an agent that asks the kernel who is calling.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Planned;
use super::network::Network;
use crate::agent::Agent;
use crate::cgroup::PodCgroups;
use crate::client::{Pod, World};
use crate::eks::PodName;
use crate::process::quietly;
use crate::report::{Counts, step};
use crate::sdk::Sdk;

/// The pods' cgroups, or why the kernel cannot tell pods apart here.
#[derive(Debug)]
pub(crate) enum Attribution {
    Enforced(PodCgroups),
    LeftOut(String),
}

impl Attribution {
    pub(crate) async fn prepare(network: &Network, agent: &Path) -> Attribution {
        if !network.in_namespaces() {
            return Attribution::LeftOut("it takes root".to_owned());
        }
        let cgroups = match PodCgroups::make() {
            Ok(cgroups) => cgroups,
            Err(error) => return Attribution::LeftOut(format!("{error:#}")),
        };
        let mut doctor = network.node.command(&agent.display().to_string());
        doctor.arg("doctor").arg("--kubepods-cgroup").arg(cgroups.kubepods());
        match quietly("podcred doctor", &mut doctor).await {
            Ok(_) => Attribution::Enforced(cgroups),
            Err(error) => Attribution::LeftOut(format!("{error:#}")),
        }
    }

    pub(crate) fn flags(&self) -> Vec<String> {
        match self {
            Attribution::Enforced(cgroups) => {
                let kubepods = cgroups.kubepods().display().to_string();
                ["--verify", "enforce", "--kubepods-cgroup", &kubepods].map(str::to_owned).to_vec()
            }
            Attribution::LeftOut(_) => Vec::new(),
        }
    }

    pub(crate) fn cgroups(&self) -> Option<&PodCgroups> {
        match self {
            Attribution::Enforced(cgroups) => Some(cgroups),
            Attribution::LeftOut(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Thief {
    /// What the thief's SDK said.
    Tried(Result<String>),
    LeftOut(String),
}

/// Steals the first pod's token. boto3 tells its user what the agent answered.
pub(super) async fn try_it(
    world: World<'_>,
    network: &Network,
    plan: &[Planned<'_>],
    agent: &Agent,
    attribution: &Attribution,
) -> Thief {
    let (victim, place) = match (attribution, plan.first(), network.pods.last()) {
        (Attribution::LeftOut(reason), ..) => return Thief::LeftOut(reason.clone()),
        (Attribution::Enforced(_), Some(victim), Some(place)) => (victim, place),
        (Attribution::Enforced(_), ..) => return Thief::LeftOut("there is no pod to steal from".to_owned()),
    };
    step("One more pod presents the token of the first");
    let thief = PodName {
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "thief-1".to_owned(),
    };
    let tried = async {
        let mut pod =
            Pod::start_with(world, place, Sdk::Python, &thief, &network.uri(false), &victim.name).await?;
        let answer = pod.ask("get").await?;
        ensure!(!answer.ok, "the thief got credentials");
        let said = answer.error.context("the SDK says nothing")?;
        ensure!(said.contains("TokenOfAnotherPod"), "the thief was refused, but not as one: {said}");
        let counted = agent.metric(r#"podcred_callers_compared_total{result="other_pod"}"#).await?;
        ensure!(counted > 0, "the agent did not count the thief");
        Ok(said)
    };
    Thief::Tried(tried.await)
}

impl Thief {
    pub(super) fn print(&self) -> Counts {
        match self {
            Thief::Tried(Ok(said)) => {
                println!("The thief was refused (--verify enforce), and its SDK says why:\n  {said}");
                Counts { passed: 1, ..Counts::default() }
            }
            Thief::Tried(Err(error)) => {
                println!("FAILED the thief: {error:#}");
                Counts { failed: 1, ..Counts::default() }
            }
            Thief::LeftOut(reason) => {
                println!(
                    "Left out: a pod that presents another's token; the kernel cannot tell pods apart here: {reason}"
                );
                Counts { skipped: 1, ..Counts::default() }
            }
        }
    }
}
