//! What a run plays on: the simulated EKS, the simulated node, the pods with their tokens, and the agent.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::agent::{Agent, NODE_NAME};
use super::check::{NAMESPACE, role_arn, service_account};
use super::http::Endpoint;
use super::options::{Options, Target};
use super::plan::{Plan, Step, TokenLife, Visit};
use crate::clock;
use crate::eks::{AssociationChange, Config, PodToken, SimulatedEks};
use crate::node::{Layout, Node, Place, Pod, PodSpec, Qos};

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
    tokens: TokenLife,
    _runtime: Runtime,
}

/// Where pods have cgroups.
#[derive(Debug)]
struct Ground {
    home: Place,
    node: Arc<Node>,
}

/// One pod, as long as it lives.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) uid: String,
    role: u32,
    name: String,
    place: Option<Pod>,
    token: Token,
}

#[derive(Debug)]
enum Token {
    Minted(Mutex<Minted>),
    /// Of a pod that runs elsewhere; read anew each time, as SDKs do.
    File(PathBuf),
}

struct Minted {
    text: Arc<str>,
    /// When the kubelet has another one for it.
    until: Option<Instant>,
}

impl Minted {
    /// When it is first read.
    fn later() -> Minted {
        Minted { text: "".into(), until: Some(clock::mono()) }
    }
}

impl std::fmt::Debug for Minted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Stage {
    pub(super) fn set(options: &Options, plan: &Plan) -> Result<Stage> {
        match &options.agent {
            Target::Own => Stage::of_our_own(options, plan),
            Target::At(endpoint) => Stage::of_somebody(options, plan, endpoint),
        }
    }

    fn of_our_own(options: &Options, plan: &Plan) -> Result<Stage> {
        ensure!(
            options.token_dir.is_none(),
            "--token-dir goes with --agent URL: our own agent's pods get their tokens here"
        );
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
        let tenants = tenants(&eks, ground.as_ref(), plan, options.netns)?;
        let more = [plan.agent_args.as_slice(), &options.agent_args].concat();
        let node = ground.as_ref().map(|ground| Arc::clone(&ground.node));
        let agent = Agent::start(&options.binary, &more, &eks, node)?;
        let endpoint = agent.endpoint().clone();
        let own = Own {
            agent: Mutex::new(agent),
            eks,
            associations,
            changes: Mutex::new(0),
            tokens: plan.tokens,
            _runtime: runtime,
        };
        Ok(Stage { own: Some(own), tenants: Mutex::new(tenants), ground, endpoint })
    }

    fn of_somebody(options: &Options, plan: &Plan, endpoint: &Endpoint) -> Result<Stage> {
        ensure!(
            !plan.needs_own_agent(),
            "{} changes EKS Auth, the issuer or the agent, which only an agent of our own allows: leave --agent out",
            options.scenario.name()
        );
        let folder = options
            .token_dir
            .as_deref()
            .context("--agent URL needs --token-dir, with a token file for each pod")?;
        let files = token_files(folder)?;
        let pods = usize::try_from(plan.pods())?;
        if files.len() < pods {
            bail!(
                "{} has {} token files, and {pods} pods were asked for: give --pods {}",
                folder.display(),
                files.len(),
                files.len()
            );
        }
        let tenant = |file: PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Some(Arc::new(Tenant {
                uid: String::new(),
                role: 0,
                name,
                place: None,
                token: Token::File(file),
            }))
        };
        let tenants = files.into_iter().take(pods).map(tenant).collect();
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
            own.eks.delete_pod(&tenant.uid);
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
        let done = if pod.is_host_network() {
            pod.enter_cgroup()?;
            f()
        } else {
            pod.enter()?;
            f()
        };
        // A cgroup with a thread in it cannot be removed, and a thread that stays is taken for this pod.
        let back = if pod.is_host_network() { home.enter_cgroup() } else { home.enter() };
        back.and(done)
    }

    /// The content of the pod's token file at this moment.
    pub(super) fn token(&self, tenant: &Tenant) -> Result<Arc<str>> {
        match (&tenant.token, &self.own) {
            (Token::File(file), _) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
                Ok(text.trim_end().into())
            }
            (Token::Minted(minted), Some(own)) => {
                let mut minted = lock(minted);
                if minted.until.is_some_and(|until| until <= clock::mono()) {
                    *minted = mint(&own.eks, &tenant.name, &tenant.uid, tenant.role, own.tokens);
                }
                Ok(Arc::clone(&minted.text))
            }
            (Token::Minted(_), None) => bail!("a token that was minted here has its simulated EKS"),
        }
    }

    pub(super) fn perform(&self, step: Step) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        match step {
            Step::EksAuth(outage) => own.eks.settings(|settings| settings.outage = outage),
            Step::Issuer(outage) => own.eks.settings(|settings| settings.issuer_outage = outage),
            Step::ChangeAssociations => own.change_associations()?,
            Step::StopAgent => lock(&own.agent).stop()?,
            Step::StartAgent => drop(lock(&own.agent).run_again()?),
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

fn tenants(
    eks: &SimulatedEks,
    ground: Option<&Ground>,
    plan: &Plan,
    own_networks: u32,
) -> Result<Vec<Option<Arc<Tenant>>>> {
    let mut first_visits = vec![None; plan.pods() as usize];
    for visit in plan.visits.iter().rev() {
        first_visits[visit.pod as usize] = Some(visit);
    }
    let make = |visit: &Visit| Body::make(ground, visit, visit.pod < own_networks);
    let bodies: Result<Vec<Body>> = first_visits.into_iter().flatten().map(make).collect();
    let bodies = bodies?;
    // Signing takes most of the time: all processors do it.
    let share = bodies.len().div_ceil(thread::available_parallelism()?.get()).max(1);
    let tokens: Vec<Minted> = thread::scope(|scope| {
        let sign = |bodies: &[Body]| -> Vec<Minted> {
            let sign = |body: &Body| mint(eks, &body.name, &body.uid, body.role, plan.tokens);
            bodies.iter().map(|body| if body.comes_later { Minted::later() } else { sign(body) }).collect()
        };
        let threads: Vec<_> = bodies.chunks(share).map(|bodies| scope.spawn(move || sign(bodies))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<Minted>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    let tenant = |(body, minted)| {
        let Body { uid, role, name, place, .. } = body;
        Some(Arc::new(Tenant { uid, role, name, place, token: Token::Minted(Mutex::new(minted)) }))
    };
    Ok(bodies.into_iter().zip(tokens).map(tenant).collect())
}

/// A pod without a token.
struct Body {
    uid: String,
    role: u32,
    name: String,
    place: Option<Pod>,
    /// It dies within the run, so it is made in it, and its token with it.
    comes_later: bool,
}

impl Body {
    fn make(ground: Option<&Ground>, visit: &Visit, own_network: bool) -> Result<Body> {
        let Visit { pod, role, dies, .. } = *visit;
        let spec = PodSpec::new([Qos::Guaranteed, Qos::Burstable, Qos::BestEffort][pod as usize % 3]);
        let spec = if own_network { spec } else { spec.host_network() };
        let uid = spec.own_uid().to_owned();
        let place = ground.map(|ground| ground.node.pod(spec)).transpose()?;
        let name = format!("{}-{pod}", service_account(role));
        Ok(Body { uid, role, name, place, comes_later: dies })
    }
}

fn mint(eks: &SimulatedEks, name: &str, uid: &str, role: u32, life: TokenLife) -> Minted {
    let token = PodToken::new(NAMESPACE, service_account(role), name).pod_uid(uid).node_name(NODE_NAME);
    let (token, until) = match life {
        TokenLife::Usual => (token, None),
        TokenLife::Short(life) => {
            let token = token.expires_in_seconds(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
            // Pods whose tokens were made together do not get the next ones together.
            (token, Some(clock::mono() + life.mul_f64(0.6 + 0.2 * fastrand::f64())))
        }
    };
    Minted { text: eks.mint(token).token.into(), until }
}

fn token_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("--token-dir {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What no agent answers longer than; a run ends this long after its pods want nothing any more.
pub(super) const GRACE: Duration = Duration::from_secs(12);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
