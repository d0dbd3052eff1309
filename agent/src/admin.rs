//! What operators and the kubelet ask: probes, metrics, and `podcred flush`.

pub mod control;
mod http;

use std::fmt::Write as _;
use std::future::ready;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::http::{Limits, Page};
use crate::clock::Clock;

/// A kubelet asks twice in a period; more than a few connections at once are somebody's mistake.
const PROBE_CONNECTIONS: usize = 32;

/// What each part of the agent has to say about being ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Vec<(&'static str, State)>,
}

#[derive(Clone, Debug)]
enum State {
    Ok,
    Degraded(String),
    Failing(String),
}

impl Readiness {
    pub fn ok(self, part: &'static str) -> Self {
        self.with(part, State::Ok)
    }

    /// Something that an operator should know of, while pods are served all the same.
    pub fn degraded(self, part: &'static str, problem: impl Into<String>) -> Self {
        self.with(part, State::Degraded(problem.into()))
    }

    /// Something without which this agent cannot serve pods.
    pub fn failing(self, part: &'static str, problem: impl Into<String>) -> Self {
        self.with(part, State::Failing(problem.into()))
    }

    pub fn is_ready(&self) -> bool {
        !self.parts.iter().any(|(_, state)| matches!(state, State::Failing(_)))
    }

    fn with(mut self, part: &'static str, state: State) -> Self {
        self.parts.push((part, state));
        self
    }

    fn page(&self) -> Page {
        let mut body = String::new();
        for (part, state) in &self.parts {
            let text = match state {
                State::Ok => "ok".to_owned(),
                State::Degraded(problem) => format!("degraded: {problem}"),
                State::Failing(problem) => problem.clone(),
            };
            // A problem's text may come from a library and have line breaks; a part has one line.
            let _ = writeln!(body, "{part}: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        let status = if self.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Page { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// Serves `/healthz` and `/readyz` until `cancel`.
///
/// `/healthz` says that this process runs its event loop, and nothing else: a liveness probe that looked at load or
/// at EKS Auth would have the kubelet restart agents, and lose their caches, exactly when those are needed.
pub async fn serve_probes(
    listener: TcpListener,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    cancel: CancellationToken,
) {
    let respond = move |path: &str| {
        ready(match path {
            "/healthz" => Some(Page::text("ok\n".to_owned())),
            "/readyz" => Some(readiness().page()),
            _ => None,
        })
    };
    http::serve(listener, Limits::of(PROBE_CONNECTIONS), respond, cancel).await;
}

/// Serves `/metrics` until `cancel`; `gather` gives Prometheus' text format.
pub async fn serve_metrics(
    listener: TcpListener,
    gather: impl Fn() -> String + Send + Sync + 'static,
    max_connections: usize,
    clock: Clock,
    cancel: CancellationToken,
) {
    let scrapes = Scrapes { gather: Arc::new(gather), next: Arc::new(Mutex::new(clock.now().mono)), clock };
    let respond = move |path: &str| {
        let scrapes = (path == "/metrics").then(|| scrapes.clone());
        async move { Some(scrapes?.page().await) }
    };
    http::serve(listener, Limits::of(max_connections), respond, cancel).await;
}

/// For hundreds of pods the text takes tens of milliseconds, and whoever is in reach may ask for it without end.
#[derive(Clone)]
struct Scrapes {
    gather: Arc<dyn Fn() -> String + Send + Sync>,
    /// From when on the next one may be gathered. Held meanwhile: there is one at a time.
    next: Arc<Mutex<Instant>>,
    clock: Clock,
}

/// All scrapes together take a quarter of one processor at most.
const REST: u32 = 3;

impl Scrapes {
    /// Gathered on a thread that serves nobody's credentials.
    async fn page(self) -> Page {
        let mut next = Arc::clone(&self.next).lock_owned().await;
        sleep_until(*next).await;
        // It keeps the turn until it ends, also where who asked has hung up.
        let gathered = spawn_blocking(move || {
            let begun = self.clock.now().mono;
            let text = (self.gather)();
            let ended = self.clock.now().mono;
            *next = ended + (ended - begun) * REST;
            text
        });
        match gathered.await {
            Ok(text) => Page { content_type: "text/plain; version=0.0.4; charset=utf-8", ..Page::text(text) },
            Err(error) => {
                tracing::error!(event = "metrics_failed", %error, "the metrics cannot be gathered");
                Page::text("the metrics cannot be gathered\n".to_owned())
                    .with(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failing_part_makes_the_agent_unready() {
        let readiness =
            Readiness::default().ok("issuer keys").degraded("listener", "no fd00:ec2::23:\nno such address");
        let page = readiness.page();
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(page.body, "issuer keys: ok\nlistener: degraded: no fd00:ec2::23: no such address\n");

        let page = readiness.failing("attribution", "no probe").page();
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(page.body.ends_with("\nattribution: no probe\n"), "{}", page.body);
    }
}
