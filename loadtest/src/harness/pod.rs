//! One goose user: a pod, from its start to its end, with the manners of its SDK.
#![expect(
    clippy::manual_async_fn,
    reason = "an async function's future has room for its arguments twice, and pods are many"
)]

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use pin_project_lite::pin_project;
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::check::Due;
use super::http::{Answer, Connection, NoAnswer, start_to_connect, token_of};
use super::manners::Manners;
use super::plan::{TokenLife, Visit};
use super::recorder::{Failed, Settled};
use super::schedule::{Had, Refreshing, Schedule, life_left};
use super::tenant::Tenant;
use super::world::{UnlessOver, World};
use crate::clock;

/// The kubelet has a token ready before a pod wants it; signing one takes a millisecond.
const AHEAD: Duration = Duration::from_millis(500);
const UNSETTLED: &str = "not settled when the run ended";

/// The whole life of goose user number `user`.
///
/// Each part of it is boxed: of ten thousand pods nearly all sleep, and what the other parts need would be held by each.
pub(super) fn live(world: &Arc<World>, user: usize) -> impl Future<Output = ()> + Send {
    async move {
        let _presence = world.arrive();
        let Some(visit) = world.plan.visits.get(user) else { return };
        let Some(&beginning) = Box::pin(world.beginning()).await else { return };
        let start = beginning + visit.start.saturating_sub(AHEAD);
        Box::pin(world.unless_over(sleep_until(start))).await;
        let Some(sdk) = Box::pin(retrieve_all(world, visit, beginning)).await else { return };
        let end = beginning + visit.end;
        if visit.dies {
            Box::pin(die(world, visit, end, sdk)).await;
        } else {
            Box::pin(Idle { end: world.unless_over(sleep_until(end)), sdk }).await;
        }
    }
}

/// All that the pod wants, each at its time; then its SDK, if it came to have one.
async fn retrieve_all<'a>(
    world: &'a Arc<World>,
    visit: &'a Visit,
    beginning: Instant,
) -> Option<Box<Sdk<'a>>> {
    let mut schedule = Schedule::new(visit.pace, visit.start, visit.end);
    let mut sdk: Option<Box<Sdk<'_>>> = None;
    let has_new_tokens = visit.dies || world.plan.tokens != TokenLife::Usual;
    while let Some(wanted) = schedule.next() {
        if has_new_tokens {
            wait(world, sdk.as_deref_mut(), beginning + wanted.saturating_sub(AHEAD)).await;
            prepare(world, visit.pod).await;
        }
        let intended = beginning + wanted;
        wait(world, sdk.as_deref_mut(), intended).await;
        if world.over.is_cancelled() {
            break;
        }
        let sdk = match &mut sdk {
            Some(sdk) => sdk,
            None => {
                let Some(tenant) = world.stage.tenant(visit.pod) else { break };
                world.recorder.pod_started(visit.pod);
                sdk.insert(Box::new(Sdk::new(world, visit, tenant)))
            }
        };
        let last = beginning + world.last_moment();
        let Some((attempts, outcome)) = Box::pin(sdk.retrieve(last)).await else { break };
        let settled = clock::mono();
        let life = outcome.as_ref().ok().map(|expires| life_left(*expires, clock::wall()));
        let at = settled.saturating_duration_since(beginning);
        let latency = settled.saturating_duration_since(intended);
        let failure = outcome.err().map(Failed::presentable);
        world.settled(Settled { group: world.plan.group_at(visit, wanted), at, latency, attempts, failure });
        let refreshing =
            Refreshing { manners: sdk.manners, compression: world.plan.compression, chance: fastrand::f64() };
        schedule.had(Had { at, life }, refreshing);
    }
    unsettled(world, visit, beginning, schedule);
    sdk
}

/// What the pod had no time to want any more, as its answers came so late, failed: left out, the slowest agent would have the fewest
/// failures. Who ends a run by a signal cuts it short for all.
fn unsettled(world: &World, visit: &Visit, beginning: Instant, schedule: Schedule) {
    if world.is_stopped() {
        return;
    }
    let at = clock::mono().saturating_duration_since(beginning);
    for wanted in schedule.overdue(at) {
        let failure = Failed {
            class: UNSETTLED.to_owned(),
            example: format!("pod {} had not come to ask", visit.pod),
            wrong: false,
        };
        let (group, latency) = (world.plan.group_at(visit, wanted), at - wanted);
        world.settled(Settled { group, at, latency, attempts: 0, failure: Some(failure) });
    }
}

async fn prepare(world: &Arc<World>, pod: u32) {
    let world = Arc::clone(world);
    let signed =
        tokio::task::spawn_blocking(move || world.stage.tenant(pod).map(|tenant| tenant.token().is_ok()));
    // A token that cannot be had is reported when it is wanted.
    let _either_way = signed.await;
}

/// Sleeps, and lets go of a connection that the agent closes meanwhile, as every SDK's pool does sooner or later.
fn wait<'a>(
    world: &'a World,
    mut sdk: Option<&'a mut Sdk<'_>>,
    until: Instant,
) -> impl Future<Output = ()> + Send {
    async move {
        if until <= clock::mono() {
            return;
        }
        let mut slept = pin!(world.unless_over(sleep_until(until)));
        poll_fn(|context| {
            if let Some(sdk) = &mut sdk {
                let _either_way = sdk.poll_closed(context);
            }
            slept.as_mut().poll(context)
        })
        .await;
    }
}

pin_project! {
    /// A pod that has what it wanted, and lives on until it ends. It is of no more interest once it has no connection, which a pool
    /// does not close before the agent does.
    struct Idle<'a> {
        #[pin]
        end: UnlessOver<'a, Sleep>,
        sdk: Box<Sdk<'a>>,
    }
}

impl Future for Idle<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.end.poll(context).is_ready() {
            return Poll::Ready(());
        }
        this.sdk.poll_closed(context)
    }
}

async fn die(world: &Arc<World>, visit: &Visit, end: Instant, mut sdk: Box<Sdk<'_>>) {
    wait(world, Some(&mut sdk), end).await;
    drop(sdk);
    let tenant = world.stage.bury(visit.pod);
    // Removing a cgroup waits for the kernel; nothing else does meanwhile.
    let removed = tokio::task::spawn_blocking(move || drop(tenant)).await;
    removed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    world.recorder.pod_ended();
}

/// A pod's SDK: what it keeps between two retrievals.
struct Sdk<'a> {
    world: &'a World,
    manners: &'static Manners,
    visit: &'a Visit,
    tenant: Arc<Tenant>,
    connection: Option<Connection>,
}

impl<'a> Sdk<'a> {
    fn new(world: &'a World, visit: &'a Visit, tenant: Arc<Tenant>) -> Sdk<'a> {
        Sdk { world, manners: visit.client.manners(), visit, tenant, connection: None }
    }

    /// Ready where no connection is kept, or no longer, as the agent has closed it.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = &self.connection {
            ready!(connection.poll_closed(context));
            self.connection = None;
        }
        Poll::Ready(())
    }

    /// The requests of all attempts that the SDK makes before it gives up, and what came of the last: when the credentials expire.
    /// None where a signal ended the run meanwhile.
    async fn retrieve(&mut self, last: Instant) -> Option<(u32, Result<SystemTime, Failed>)> {
        let (world, pod) = (self.world, self.visit.pod);
        let mut requests = 0;
        let attempts = timeout_at(last, self.attempts(&mut requests));
        let outcome = world.unless_over(attempts).await.and_then(Result::ok);
        if outcome.is_none() && world.is_stopped() {
            return None;
        }
        let unsettled = || {
            Err(Failed {
                class: UNSETTLED.to_owned(),
                example: format!("pod {pod} was at request {requests}"),
                wrong: false,
            })
        };
        let outcome = outcome.unwrap_or_else(unsettled);
        Some((requests, outcome))
    }

    async fn attempts(&mut self, requests: &mut u32) -> Result<SystemTime, Failed> {
        let mut attempts = 0;
        loop {
            // The file is read at each retrieval, by all SDKs; here at each attempt.
            let request = self.world.stage.endpoint().request(self.manners, &self.token()?);
            attempts += 1;
            let (failed, again) = match self.ask(&request, requests).await {
                Ok(answer) if answer.head.status == 200 => return self.judge(&answer),
                Ok(answer) => (
                    refusal(answer.head.status, answer.body(), token_of(&request)),
                    self.manners.tries_again_after(answer.head.status),
                ),
                Err(no_answer) => (no_answer.into(), true),
            };
            if !again || attempts >= self.manners.attempts {
                return Err(failed);
            }
            tokio::time::sleep(self.manners.pause_after(attempts, fastrand::f64())).await;
        }
    }

    /// Whose token it presents, where it is not its own.
    fn victim(&self) -> Option<Arc<Tenant>> {
        self.visit.thief_of.and_then(|pod| self.world.stage.tenant(pod))
    }

    fn token(&self) -> Result<Arc<str>, Failed> {
        self.victim().as_ref().unwrap_or(&self.tenant).token().map_err(|error| Failed {
            class: "no token".to_owned(),
            example: format!("{error:#}"),
            wrong: false,
        })
    }

    fn judge(&self, answer: &Answer) -> Result<SystemTime, Failed> {
        // A thief that is served is so with what is its victim's.
        let role = self.victim().map_or(self.visit.role, |victim| victim.role);
        let due = Due { role, generation: self.visit.generation };
        self.world.judge.judge(answer, due).map_err(|wrong| Failed {
            class: wrong.class().to_owned(),
            example: format!("pod {}: {wrong}", self.visit.pod),
            wrong: true,
        })
    }

    async fn ask(&mut self, request: &[u8], requests: &mut u32) -> Result<Answer, NoAnswer> {
        let within = self.manners.reads_within();
        let kept = self.connection.take();
        *requests += 1;
        if let Some(connection) = &kept {
            match connection.ask(request, within).await {
                Ok(answer) => {
                    self.keep(kept, &answer);
                    return Ok(answer);
                }
                // It had been closed, which an SDK's pool notices: it connects anew without counting an attempt. An answer that
                // was cut short is none of that.
                Err(NoAnswer::Ended(_)) => drop(kept),
                Err(other) => return Err(other),
            }
            *requests += 1;
        }
        let address = self.world.stage.endpoint().address;
        let socket = self.world.stage.as_pod(&self.tenant, || start_to_connect(address));
        let socket = socket.map_err(NoAnswer::Connect)?;
        let connection = Connection::finish(socket, self.manners.connect_timeout).await?;
        let answer = connection.ask(request, within).await?;
        self.keep(Some(connection), &answer);
        Ok(answer)
    }

    fn keep(&mut self, connection: Option<Connection>, answer: &Answer) {
        let keeps = !answer.head.closes && self.manners.keeps_connection(answer.head.status);
        self.connection = connection.filter(|_| keeps);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Refusal {
    code: String,
    message: String,
}

/// A server that quotes the token it refuses must not bring it into a report.
fn refusal(status: u16, body: &[u8], token: &str) -> Failed {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let [code, message] = [refusal.code, refusal.message].map(|text| text.replace(token, "[the token]"));
    let redirected = if (300..400).contains(&status) { " (a redirect is not followed)" } else { "" };
    Failed {
        class: format!("refused {status} {code}{redirected}").trim_end().to_owned(),
        example: message,
        wrong: false,
    }
}

impl From<NoAnswer> for Failed {
    fn from(no_answer: NoAnswer) -> Failed {
        Failed { class: no_answer.class(), example: no_answer.to_string(), wrong: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_quotes_the_token_does_not_tell_it() {
        let body = br#"{"Code":"Bad t.o.k","Message":"t.o.k is no good, t.o.k"}"#;
        let failed = refusal(401, body, "t.o.k");
        assert_eq!(failed.class, "refused 401 Bad [the token]");
        assert_eq!(failed.example, "[the token] is no good, [the token]");
        assert_eq!(refusal(302, b"no JSON", "t.o.k").class, "refused 302  (a redirect is not followed)");
    }
}
