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
const PLAIN_EVERY: u64 = 5;

/// Does the scenario's steps at their times.
pub(super) async fn perform(world: Arc<World>, beginning: Instant) -> Result<()> {
    for &(at, step) in &world.plan.steps {
        if world.unless_over(sleep_until(beginning + at)).await.is_none() {
            break;
        }
        world.mark(clock::mono().saturating_duration_since(beginning), step.to_string());
        let stage = Arc::clone(&world);
        joined(spawn_blocking(move || stage.stage.perform(step)).await)?;
    }
    Ok(())
}

/// Ends each second of the timeline, and the run when its last moment has come or the agent has died. Returns when it is over.
pub(super) async fn watch(world: Arc<World>, beginning: Instant, name: String) {
    let (before, _) = read(&world).await;
    world.recorder.begin(before);
    let mut show = Progress::new(name, world.plan.duration);
    let mut number = 1;
    while world.unless_over(sleep_until(beginning + SECOND * number)).await.is_some() {
        let (read, died) = read(&world).await;
        // Only now: reading waits as long as the agent is being stopped or started. What was missed meanwhile is one long second.
        let at = clock::mono().saturating_duration_since(beginning);
        number = u32::try_from(at.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        show.second(&world.recorder.second(at, read), world.recorder.so_far());
        if died || at >= world.last_moment() {
            world.over.cancel();
        }
    }
}

/// Ends the timeline, when nothing is counted any more.
pub(super) async fn rest(world: &Arc<World>) {
    let Some(beginning) = world.began() else { return };
    let (read, _) = read(world).await;
    world.recorder.rest(clock::mono().saturating_duration_since(beginning), read);
}

/// What is read each second, from the simulation and from /proc, and whether the agent has ended by itself.
async fn read(world: &Arc<World>) -> (Read, bool) {
    let world = Arc::clone(world);
    // A step may hold the agent for seconds.
    joined(spawn_blocking(move || read_now(&world)).await)
}

fn read_now(world: &World) -> (Read, bool) {
    let eks_auth_calls = world.stage.eks().map(|eks| eks.counts().total);
    let Some(mut agent) = world.stage.agent() else {
        return (Read { eks_auth_calls, ..Read::default() }, false);
    };
    let read = Read {
        eks_auth_calls,
        agent_cpu_seconds: Some(agent.cpu_seconds()),
        agent_rss_bytes: agent.memory().map(|memory| memory.resident),
    };
    (read, agent.has_died())
}

fn joined<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// One line that is written over each second, or plain lines where stderr is no terminal.
struct Progress {
    name: String,
    duration: Duration,
    terminal: bool,
    next_plain: u64,
}

impl Progress {
    fn new(name: String, duration: Duration) -> Progress {
        Progress { name, duration, terminal: std::io::stderr().is_terminal(), next_plain: PLAIN_EVERY }
    }

    fn second(&mut self, second: &Second, (_, failed): (u64, u64)) {
        let number = second.at_seconds as u64;
        if !self.terminal && number < self.next_plain {
            return;
        }
        self.next_plain = number + PLAIN_EVERY;
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
            super::tell("");
        }
    }
}
