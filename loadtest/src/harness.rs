//! Thousands of pods on one machine.
//!
//! A scenario is a [`plan`]: pods, what is done to what they depend on, and what must come of it. The [`stage`] has all that it needs
//! in this process, except the agent. [`attack`] has goose start a user for each pod, and [`pod`] is such a user: it asks as
//! its SDK would ([`manners`], [`http`]), on a schedule of its own ([`schedule`]), as a pod of its own in the eyes of the
//! kernel. Each answer is [`check`]ed, and counted by the [`recorder`].

mod agent;
mod attack;
mod check;
mod director;
mod findings;
mod http;
mod limits;
mod manners;
mod options;
mod plan;
mod pod;
mod proc;
mod recorder;
mod scenarios;
mod schedule;
mod stage;
mod summary;
mod tenant;
mod world;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

pub use self::agent::Agent;
pub use self::options::Options;
use self::options::Target;
use self::scenarios::Ask;
use self::stage::Stage;
use self::world::World;
use crate::report::{Expectation, Run};

/// What was never come to is counted one by one when a run ends: this many times its duration must fit into memory.
const MOST_WANTS_PER_SECOND: f64 = 100_000.0;

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub run: Run,
    /// What went wrong in it, or why its report could not be written.
    pub error: Option<Error>,
}

/// Runs the scenario, and writes its report to [`Options::output`]. SIGINT, SIGTERM and SIGHUP end it early, with a report of
/// what was seen, as does what goes wrong in it. An error where there was no run.
pub fn run(options: &Options) -> Result<Outcome> {
    options.check()?;
    let plan = plan(options)?;
    let expectations = expectations(options, &plan)?;
    let stop = stopped_by_signals()?;
    limits::allow(u64::from(plan.pods()), stage::has_cgroups(options))?;
    let output = options.output();
    crate::report::prepare(&output)?;
    let name = options.scenario.name();
    tell(&format!("{name}: {} pods of {} roles are made", plan.pods(), plan.roles_of_pods()));
    let stage = Stage::set(options, &plan)?;
    ensure!(!stop.is_cancelled(), "stopped before it began");
    let world = Arc::new(World::new(plan, stage, stop));
    let before = summary::Before::now();
    let result = std::thread::scope(|scope| {
        // A thread of its own: it, and those that it makes, are on the simulated node for good.
        let thread = scope.spawn(|| on_the_node(&world, &name, &output.join(crate::report::GOOSE)));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    // What was seen until it went wrong is what tells why.
    let run = summary::summarize(&world, options, &before, &expectations, result.as_ref().err());
    let written = crate::report::write(&run, &output);
    Ok(Outcome { run, error: result.and(written).err() })
}

/// To a person who watches. eprintln! would panic where stderr is a pipe that nobody reads, and end the thread that hears signals.
fn tell(line: &str) {
    let _told = writeln!(std::io::stderr(), "{line}");
}

/// From now on: pods and their cgroups, made before anything runs, have to be removed as well.
fn stopped_by_signals() -> Result<CancellationToken> {
    const INTERRUPTED: i32 = 130;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let handler = move || {
        if told.is_cancelled() {
            agent::kill_now();
            std::process::exit(INTERRUPTED);
        }
        told.cancel();
        tell("\nstopping; once more kills the agent and ends at once, and leaves cgroups to the next run");
    };
    ctrlc::set_handler(handler).context("signals")?;
    Ok(stop)
}

fn plan(options: &Options) -> Result<plan::Plan> {
    let (size, least) = (options.size(), options.scenario.least(options.short));
    ensure!(
        size.duration >= least,
        "{} has no time for what happens in it: give --duration {}s at least",
        options.scenario.name(),
        least.as_secs()
    );
    if let Some(why) = options.scenario.needs_cgroups()
        && !stage::has_cgroups(options)
    {
        bail!(
            "{} needs pods with cgroups, as {why}: run it as root, without --loopback and --agent",
            options.scenario.name()
        );
    }
    let mut ask = Ask {
        size,
        clients: options.client,
        chance: fastrand::Rng::with_seed(options.seed),
        short: options.short,
    };
    let mut plan = options.scenario.plan(&mut ask);
    plan.steps.sort_by_key(|(at, _)| *at);
    let rate = plan.wants_per_second();
    ensure!(
        rate <= MOST_WANTS_PER_SECOND,
        "{} pods would want credentials {rate:.0} times a second in all, and {MOST_WANTS_PER_SECOND:.0} are allowed: ask for fewer \
         --pods, or a longer --every",
        plan.pods()
    );
    if let Target::At(_) = options.agent {
        ensure!(
            !plan.needs_own_agent(),
            "{} changes EKS Auth, the issuer or the agent, which only an agent of our own allows: leave --agent out",
            options.scenario.name()
        );
        // Of somebody else's agent only what pods see is known.
        plan.expectations.retain(|condition| !condition.starts_with("eks_auth_calls"));
        plan.notes.push(
            "The agent is not ours: whose credentials it gave cannot be checked, only that they are well-formed and have life \
             left. In enforce mode it takes these tokens from the harness only as from a --delegate. To an agent that attributes \
             connections all these pods are one, the harness's: --pod-connections, --pod-waiting and --pod-requests apply to all \
             of them together."
                .to_owned(),
        );
    }
    Ok(plan)
}

fn expectations(options: &Options, plan: &plan::Plan) -> Result<Vec<Expectation>> {
    if !options.expect.is_empty() {
        return Ok(options.expect.clone());
    }
    let parse = |text: &String| text.parse().with_context(|| format!("the scenario's own {text:?}"));
    plan.expectations.iter().map(parse).collect()
}

fn on_the_node(world: &Arc<World>, name: &str, goose_report: &std::path::Path) -> Result<()> {
    if let Some(home) = world.stage.home() {
        home.enter().context("the simulated node")?;
    }
    let entering = Arc::clone(world);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("pods")
        .enable_all()
        .on_thread_start(move || {
            // New threads are where their maker is; one that was made by a pod's thread would be that pod.
            if let Some(home) = entering.stage.home() {
                home.enter()
                    .unwrap_or_else(|error| panic!("a thread cannot enter the simulated node: {error}"));
            }
        })
        .build()?;
    runtime.block_on(async {
        let directed = tokio::spawn(direct(Arc::clone(world), name.to_owned()));
        let attacked = attack::attack(world, goose_report).await;
        if attacked.is_ok() {
            world.until_planned_end().await;
        }
        world.over.cancel();
        let directed = directed.await;
        // Only now: wants that the end cut short were settled after it.
        director::rest(world).await;
        attacked?;
        directed?
    })
}

async fn direct(world: Arc<World>, name: String) -> Result<()> {
    let Some(&beginning) = world.beginning().await else { return Ok(()) };
    let watching = tokio::spawn(director::watch(Arc::clone(&world), beginning, name));
    let performed = director::perform(Arc::clone(&world), beginning).await;
    if performed.is_err() {
        world.over.cancel();
    }
    watching.await?;
    if let Some(mut agent) = world.stage.agent()
        && agent.has_died()
    {
        bail!("the agent has ended by itself; its last words:\n{}", agent.last_words());
    }
    performed
}
