//! The clock of a run: what is done when, what is read each second, the line that a person watches, and the end.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use super::recorder::Read;
use super::world::World;
use crate::clock;
use crate::report::Second;

const SECOND: Duration = Duration::from_secs(1);
/// Where nobody watches, a line is written this often.
const PLAIN_EVERY: u32 = 5;

/// Does the scenario's steps at their times.
pub(super) async fn perform(world: Arc<World>, beginning: Instant) -> Result<()> {
    for &(at, step) in &world.plan.steps {
        if world.over.run_until_cancelled(sleep_until(beginning + at)).await.is_none() {
            break;
        }
        world.mark(clock::mono().saturating_duration_since(beginning), step.to_string());
        let stage = Arc::clone(&world);
        joined(spawn_blocking(move || stage.stage.perform(step)).await)?;
    }
    Ok(())
}

/// Ends each second of the timeline, and the run when its last moment has come. Never returns by itself.
pub(super) async fn watch(world: Arc<World>, beginning: Instant, name: String) {
    let mut cpu = world.stage.agent().map(|agent| agent.cpu_seconds());
    let mut show = Progress::new(name, world.plan.duration);
    for number in 1.. {
        sleep_until(beginning + SECOND * number).await;
        let (second, used) = second(&world, beginning, cpu).await;
        cpu = used;
        show.second(number, &second, world.recorder.so_far());
        if second.at_seconds >= world.last_moment().as_secs_f64() {
            world.over.cancel();
        }
        if world.stage.agent().is_some_and(|mut agent| agent.has_died()) {
            world.over.cancel();
        }
    }
}

/// Ends a second of the timeline. `cpu` is what the agent had used at the end of the one before, where that is known.
pub(super) async fn second(
    world: &Arc<World>,
    beginning: Instant,
    cpu: Option<f64>,
) -> (Second, Option<f64>) {
    let at = clock::mono().saturating_duration_since(beginning);
    let reader = Arc::clone(world);
    let (read, used) = joined(spawn_blocking(move || read(&reader, cpu)).await);
    (world.recorder.second(at, read), used)
}

/// What is read each second: from the simulation, and from /proc.
fn read(world: &World, before: Option<f64>) -> (Read, Option<f64>) {
    let eks_auth_calls = world.stage.eks().map(|eks| eks.counts().total);
    let Some(agent) = world.stage.agent() else { return (Read { eks_auth_calls, ..Read::default() }, None) };
    let cpu = agent.cpu_seconds();
    let read = Read {
        eks_auth_calls,
        agent_cpu: before.map(|before| cpu - before),
        agent_rss_bytes: agent.memory().map(|memory| memory.resident),
    };
    (read, Some(cpu))
}

fn joined<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// One line that is written over each second, or plain lines where stderr is no terminal.
struct Progress {
    name: String,
    duration: Duration,
    terminal: bool,
}

impl Progress {
    fn new(name: String, duration: Duration) -> Progress {
        Progress { name, duration, terminal: std::io::stderr().is_terminal() }
    }

    fn second(&mut self, number: u32, second: &Second, (_, failed): (u64, u64)) {
        if !self.terminal && !number.is_multiple_of(PLAIN_EVERY) {
            return;
        }
        let p99 = second.p99_ms.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.1} ms"));
        let calls = second.eks_auth_calls.map_or_else(|| "-".to_owned(), |calls| calls.to_string());
        let line = format!(
            "{} {number}/{} s  {} pods  {} requests/s  p99 {p99}  {failed} failed  {calls} EKS Auth calls",
            self.name,
            self.duration.as_secs(),
            second.pods,
            second.requests,
        );
        let mut stderr = std::io::stderr().lock();
        // Who closes stderr wants no progress.
        let _written =
            if self.terminal { write!(stderr, "\r\x1b[K{line}") } else { writeln!(stderr, "{line}") };
        let _flushed = stderr.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprintln!();
        }
    }
}
