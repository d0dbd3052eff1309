//! A run as it is written down.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::SystemTime;

use super::findings;
use super::options::{Options, Target};
use super::world::World;
use super::{attack, proc};
use crate::clock;
use crate::report::{Expectation, Expected, Run, Totals, Versions};

/// What was before the first pod asked.
#[derive(Debug)]
pub(super) struct Before {
    started: SystemTime,
    harness_cpu: f64,
}

impl Before {
    pub(super) fn now() -> Before {
        Before { started: clock::wall(), harness_cpu: proc::cpu_seconds("self").unwrap_or_default() }
    }
}

pub(super) fn summarize(
    world: &World,
    options: &Options,
    before: &Before,
    expectations: &[Expectation],
    error: Option<&anyhow::Error>,
) -> Run {
    let groups = world.recorder.groups();
    let timeline = world.recorder.timeline();
    let seen = timeline.last().map_or(0.0, |second| second.at_seconds);
    let planned = world.plan.duration.max(world.recorder.last()).as_secs_f64();
    let mut run = Run {
        scenario: options.scenario.name(),
        question: options.scenario.question().to_owned(),
        command: std::env::args().collect(),
        started: clock::rfc3339(before.started),
        duration_seconds: if world.is_stopped() || error.is_some() { seen } else { planned },
        settings: settings(options),
        agent_command: world.stage.agent().map(|agent| agent.command_line()),
        versions: versions(world, options),
        totals: Totals::default(),
        groups,
        failures: world.recorder.failures(),
        timeline,
        marks: world.marks(),
        expected: Vec::new(),
        notes: notes(world),
    };
    run.totals = totals(world, &run, before);
    run.expected = expectations.iter().map(|expectation| expectation.judge(&run)).collect();
    run.expected.extend(findings::find(world));
    // What cuts a run short is told by itself.
    let whole = !world.is_stopped() && error.is_none();
    run.expected.extend(missing(world.plan.steps.len(), run.marks.len()).filter(|_| whole));
    if world.is_stopped() {
        let condition = format!("the run lasts {} s", world.plan.duration.as_secs_f64());
        let was = format!("stopped by a signal after {seen:.1} s");
        run.expected.push(Expected { condition, was, held: false });
    }
    if let Some(error) = error {
        let condition = "the run goes through".to_owned();
        run.expected.push(Expected { condition, was: format!("{error:#}"), held: false });
    }
    run
}

/// A step waits for the one before it, and a run may be over meanwhile: then it has not shown what it is there for.
fn missing(planned: usize, done: usize) -> Option<Expected> {
    (done < planned).then(|| Expected {
        condition: "all happens that is to happen".to_owned(),
        was: format!("{done} of {planned} steps began before the run was over"),
        held: false,
    })
}

fn settings(options: &Options) -> BTreeMap<String, String> {
    let size = options.size();
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs_f64());
    let mut settings = vec![
        ("pods", size.pods.to_string()),
        ("duration", seconds(size.duration)),
        ("within", seconds(size.within)),
        ("every", seconds(size.every)),
        ("client", format!("{:?}", options.client).to_lowercase()),
        ("seed", options.seed.to_string()),
        ("short", options.short.to_string()),
    ];
    match options.agent {
        Target::Own => {
            settings.extend([("roles", size.roles.to_string()), ("netns", options.netns.to_string())]);
        }
        // Whose tokens they are is not known.
        Target::At(_) => {}
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn totals(world: &World, run: &Run, before: &Before) -> Totals {
    let all = run.groups.first();
    let count = |of: fn(&crate::report::Group) -> u64| all.map_or(0, of);
    let agent = world.stage.agent();
    let harness = proc::memory("self").unwrap_or_default();
    Totals {
        pods: count(|all| all.pods),
        roles: world.plan.roles_of_pods() as u64,
        requests: count(|all| all.requests),
        attempts: count(|all| all.attempts),
        served: count(|all| all.requests - all.failed),
        failed: count(|all| all.failed),
        wrong: count(|all| all.wrong),
        eks_auth_calls: world.stage.eks().map(|eks| eks.counts().total),
        agent_cpu_seconds: agent.as_ref().map(|agent| agent.cpu_seconds()),
        agent_peak_rss_bytes: agent.as_ref().and_then(|agent| agent.memory()).map(|memory| memory.peak),
        harness_cpu_seconds: proc::cpu_seconds("self").unwrap_or_default() - before.harness_cpu,
        harness_peak_rss_bytes: harness.peak,
    }
}

fn versions(world: &World, options: &Options) -> Versions {
    let system = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let harness = if cfg!(debug_assertions) { "debug" } else { "release" };
    let podcred = world.stage.agent().map(|agent| agent.version());
    let profile = match podcred {
        Some(_) => format!("harness {harness}, agent {}", options.binary.display()),
        None => format!("harness {harness}"),
    };
    Versions {
        podcred: podcred.unwrap_or_default(),
        commit: output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"])),
        goose: attack::version(),
        kernel: system.release().to_string_lossy().into_owned(),
        cpu: model.map_or(system.machine().to_string_lossy().into_owned(), |(_, model)| model.to_owned()),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        profile,
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn notes(world: &World) -> Vec<String> {
    let mut notes = world.plan.notes.clone();
    let place = match (world.stage.has_cgroups(), world.stage.eks().is_some()) {
        (true, _) => {
            "Each pod has a cgroup of its own on a simulated node, and the agent attributes its connections."
        }
        (false, true) => "All is on loopback: no cgroups, and the agent attributes nothing.",
        (false, false) => "The pods are this machine's own network, and the agent is where it was found.",
    };
    notes.push(place.to_owned());
    if let Some(eks) = world.stage.eks() {
        let counts = eks.counts();
        let results: Vec<String> =
            counts.by_result.iter().map(|(result, count)| format!("{count} {result}")).collect();
        let fetches = counts.issuer_key_fetches;
        notes.push(format!(
            "EKS Auth's answers: {}. The issuer's keys were fetched {fetches} times.",
            results.join(", ")
        ));
    }
    notes.push(
        "Latency is that of the wants that were served, from when the pod wanted credentials. The harness's processor time \
         has the simulated EKS's in it."
            .to_owned(),
    );
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_never_come_to_is_a_condition_that_did_not_hold() {
        assert!(missing(4, 4).is_none() && missing(0, 0).is_none());
        assert!(missing(4, 1).is_some_and(|missing| !missing.held && missing.was.starts_with("1 of 4")));
    }
}
