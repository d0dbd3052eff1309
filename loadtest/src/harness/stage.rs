//! What a run plays on: the simulated EKS, the simulated node, the pods with their tokens, and the agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::{Builder, Runtime};

use super::agent::Agent;
use super::check::{NAMESPACE, role_arn, service_account};
use super::http::Endpoint;
use super::options::{Options, Target};
use super::plan::{Plan, Step};
use super::tenant::{Tenant, tenants, tenants_of, token_files};
use crate::eks::{AssociationChange, Config, SimulatedEks};
use crate::node::{Layout, Node, Place};

/// This package's agent with the official one's contract, beside the harness.
const STAND_IN: &str = "stand-in-agent";

/// Fields end in this order: the agent before what it depends on, the pods before their node.
#[derive(Debug)]
pub(super) struct Stage {
    own: Option<Own>,
    tenants: Mutex<Vec<Option<Arc<Tenant>>>>,
    ground: Option<Ground>,
    endpoint: Endpoint,
}

/// What a run with somebody else's agent has not.
#[derive(Debug)]
struct Own {
    agent: Mutex<Agent>,
    eks: Arc<SimulatedEks>,
    associations: Vec<String>,
    changes: Mutex<u32>,
    _runtime: Runtime,
}

/// Where pods have cgroups.
#[derive(Debug)]
struct Ground {
    home: Place,
    node: Arc<Node>,
}

impl Stage {
    pub(super) fn set(options: &Options, plan: &Plan) -> Result<Stage> {
        match &options.agent {
            Target::Own => Stage::of_our_own(options, plan),
            Target::At(endpoint) => Stage::of_somebody(options, plan, endpoint),
        }
    }

    fn of_our_own(options: &Options, plan: &Plan) -> Result<Stage> {
        let ground = if has_cgroups(options) { Some(Ground::start()?) } else { None };
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("eks").enable_all().build()?;
        let start = || runtime.block_on(SimulatedEks::start(Config::default()));
        // A listener belongs to the network namespace that it was made in, whichever thread serves it.
        let eks = match &ground {
            Some(ground) => ground.node.agent().run(start)?,
            None => start(),
        };
        let eks = Arc::new(eks.context("the simulated EKS")?);
        let associations = (0..plan.roles)
            .map(|role| eks.create_association(NAMESPACE, &service_account(role), &role_arn(role, 0)))
            .collect();
        // Only now: a delay of associations is for those that change in the run.
        eks.settings(|settings| *settings = plan.eks.clone());
        let tenants = tenants(&eks, ground.as_ref().map(|ground| &*ground.node), plan, options.netns)?;
        let more = [plan.agent_args.as_slice(), &options.agent_args].concat();
        let node = ground.as_ref().map(|ground| Arc::clone(&ground.node));
        let agent = if plan.begins_with_stand_in {
            let stand_in = std::env::current_exe().context("where this program is")?.with_file_name(STAND_IN);
            Agent::start_stand_in(&stand_in, &options.binary, &more, &eks, node)?
        } else {
            Agent::start(&options.binary, &more, &eks, node)?
        };
        let endpoint = agent.endpoint().clone();
        let own =
            Own { agent: Mutex::new(agent), eks, associations, changes: Mutex::new(0), _runtime: runtime };
        Ok(Stage { own: Some(own), tenants: Mutex::new(tenants), ground, endpoint })
    }

    fn of_somebody(options: &Options, plan: &Plan, endpoint: &Endpoint) -> Result<Stage> {
        let folder = options
            .token_dir
            .as_deref()
            .context("--agent URL needs --token-dir, with a token file for each pod")?;
        let files = token_files(folder)?;
        let pods = usize::try_from(plan.pods())?;
        ensure!(!files.is_empty(), "{} has no token files", folder.display());
        if files.len() < pods {
            bail!(
                "{} has {} token files, and {pods} pods were asked for: give --pods {}",
                folder.display(),
                files.len(),
                files.len()
            );
        }
        let tenants = tenants_of(files.into_iter().take(pods));
        Ok(Stage { own: None, tenants: Mutex::new(tenants), ground: None, endpoint: endpoint.clone() })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn eks(&self) -> Option<&Arc<SimulatedEks>> {
        self.own.as_ref().map(|own| &own.eks)
    }

    pub(super) fn agent(&self) -> Option<MutexGuard<'_, Agent>> {
        self.own.as_ref().map(|own| lock(&own.agent))
    }

    pub(super) fn has_cgroups(&self) -> bool {
        self.ground.is_some()
    }

    /// Where threads belong that are no pod's at the moment.
    pub(super) fn home(&self) -> Option<&Place> {
        self.ground.as_ref().map(|ground| &ground.home)
    }

    /// None after it has died.
    pub(super) fn tenant(&self, pod: u32) -> Option<Arc<Tenant>> {
        lock(&self.tenants).get(pod as usize).cloned().flatten()
    }

    /// The pod is gone: its cgroup and its network, once the last who has it drops it, and what its token is worth.
    pub(super) fn bury(&self, pod: u32) -> Option<Arc<Tenant>> {
        let tenant = lock(&self.tenants).get_mut(pod as usize)?.take()?;
        if let Some(own) = &self.own {
            own.eks.delete_pod(&tenant.uid.to_string());
        }
        Some(tenant)
    }

    /// What `f` does as this pod. It must not wait: the thread is the pod's meanwhile.
    pub(super) fn as_pod<T>(
        &self,
        tenant: &Tenant,
        f: impl FnOnce() -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let (Some(pod), Some(home)) = (&tenant.place, self.home()) else { return f() };
        let entered = if pod.is_host_network() { pod.enter_cgroup() } else { pod.enter() };
        let done = entered.and_then(|()| f());
        // Also of a pod that was entered by half: a cgroup with a thread in it cannot be removed, and a thread that stays is
        // taken for this pod.
        let back = if pod.is_host_network() { home.enter_cgroup() } else { home.enter() };
        back.and(done)
    }

    pub(super) fn perform(&self, step: Step) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        match step {
            Step::EksAuth(outage) => own.eks.settings(|settings| settings.outage = outage),
            Step::Issuer(outage) => own.eks.settings(|settings| settings.issuer_outage = outage),
            Step::ChangeAssociations => own.change_associations()?,
            Step::StopAgent => lock(&own.agent).stop()?,
            Step::StartAgent => drop(lock(&own.agent).run_again()?),
            Step::ChangeToPodcred | Step::ChangeBack => lock(&own.agent).change_over()?,
            Step::Say(_) => {}
        }
        Ok(())
    }
}

impl Own {
    fn change_associations(&self) -> Result<()> {
        let mut changes = lock(&self.changes);
        *changes += 1;
        for (role, id) in (0..).zip(&self.associations) {
            let change = AssociationChange {
                role_arn: Some(role_arn(role, *changes)),
                ..AssociationChange::default()
            };
            self.eks.update_association(id, change).map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        Ok(())
    }
}

impl Ground {
    fn start() -> Result<Ground> {
        let node = Node::start(Layout::default()).context("the simulated node; without it, --loopback")?;
        Ok(Ground { home: node.home()?, node: Arc::new(node) })
    }
}

pub(super) fn has_cgroups(options: &Options) -> bool {
    let own = match options.agent {
        Target::Own => true,
        Target::At(_) => false,
    };
    own && !options.loopback && rustix::process::geteuid().is_root()
}

/// Longer than any agent takes to answer; a run ends this long after its pods want nothing any more.
pub(super) const GRACE: Duration = Duration::from_secs(12);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
