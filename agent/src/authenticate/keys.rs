//! The issuer's public keys: fetched, refreshed ahead, and kept while the issuer is away.

mod set;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use self::set::KeySet;
pub use self::source::{KeySource, check_url};
pub(crate) use self::source::{SERVICE_ACCOUNT_FILES, read_certificates};
use crate::clock::{Clock, Now};
use crate::locks::lock;

/// An unknown key makes the agent ask the issuer, which throttles: forged key ids must not use that up.
const BETWEEN_UNKNOWN_KEYS: Duration = Duration::from_secs(10);
/// How long a request waits for keys. Like `--eks-auth-wait` (1.8 s) it counts from the request's arrival, so a call to EKS
/// Auth has 300 ms left after it; boto3 hangs up after 2 s.
const REQUEST_WAIT: Duration = Duration::from_millis(1500);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The key set of one issuer.
pub struct Keys {
    source: KeySource,
    http: reqwest::Client,
    state: Mutex<State>,
    fetches_ok: AtomicU64,
    fetches_failed: AtomicU64,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    /// Cancelled when the fetch is over, however it ended.
    running: Option<CancellationToken>,
    /// When an unknown key last made this agent ask. Its scheduled fetches do not count: a key that is new right after
    /// one of them is asked for at once.
    asked_for_unknown: Option<Instant>,
    /// Fetches that failed since the last good one.
    failures: u32,
}

struct Known {
    set: KeySet,
    /// When the fetch began: what the set says is at least as old.
    asked: Instant,
    fresh_for: Duration,
}

pub(super) enum Lookup {
    Found(Arc<DecodingKey>),
    /// There is a new key set, and this key is not in it.
    Unknown,
    /// This key is not in the set that is known, and a newer one cannot be had.
    CannotTell,
    /// There is no key set at all.
    NoKeys,
}

enum Next {
    Answer(Lookup),
    /// Asking the issuer may help.
    Fetch,
    /// It would, but the issuer was asked about an unknown key a moment ago.
    TooSoon,
}

/// Fetches since the start, by result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchCounts {
    pub ok: u64,
    pub failed: u64,
}

impl Keys {
    /// `http` is what [`KeySource::client`] gives. Nothing is fetched before [`Keys::run`] or the first look-up.
    pub fn new(source: KeySource, http: reqwest::Client) -> Self {
        Keys {
            source,
            http,
            state: Mutex::default(),
            fetches_ok: AtomicU64::new(0),
            fetches_failed: AtomicU64::new(0),
        }
    }

    /// Fetches the keys, and goes on doing so ahead of the moment when they become stale, until `cancel`led.
    pub async fn run(self: Arc<Self>, clock: Clock, cancel: CancellationToken) {
        let refresh = async {
            loop {
                self.fetch(clock.now()).cancelled().await;
                sleep(self.pause()).await;
            }
        };
        cancel.run_until_cancelled(refresh).await;
    }

    /// When this is over they were just fetched, or could not be.
    pub(super) async fn renewed(self: &Arc<Self>, now: Now) {
        self.fetch(now).cancelled().await;
    }

    /// How long ago the keys were fetched; None before the first time.
    pub fn age_at(&self, now: Now) -> Option<Duration> {
        let state = self.state();
        state.known.as_ref().map(|known| now.mono.saturating_duration_since(known.asked))
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.state().known.as_ref().map_or(0, |known| known.set.len())
    }

    pub fn fetches(&self) -> FetchCounts {
        FetchCounts {
            ok: self.fetches_ok.load(Ordering::Relaxed),
            failed: self.fetches_failed.load(Ordering::Relaxed),
        }
    }

    pub(super) async fn find(self: &Arc<Self>, key_id: &str, now: Now) -> Lookup {
        let deadline = now.mono + REQUEST_WAIT;
        match self.look_up(key_id, now) {
            Next::Answer(answer) => return answer,
            Next::Fetch => {
                // A wait that is over changes nothing: what is known by then is the answer.
                let _ = timeout_at(deadline, self.fetch(now).cancelled()).await;
            }
            Next::TooSoon => {}
        }
        let answer = self.known(key_id, now);
        if let Lookup::CannotTell = answer {
            // A quick 503 would be the end of Java's six attempts.
            sleep_until(deadline).await;
        }
        answer
    }

    fn look_up(&self, key_id: &str, now: Now) -> Next {
        let mut state = self.state();
        let Some(known) = &state.known else {
            // An issuer out of reach must not cost each request a wait; the background task goes on trying.
            return if state.failures > 0 { Next::Answer(Lookup::NoKeys) } else { Next::Fetch };
        };
        if let Some(key) = known.set.get(key_id) {
            return Next::Answer(Lookup::Found(key));
        }
        if state.is_fetching() {
            return Next::Fetch;
        }
        if !state.may_ask_for_unknown(now) {
            return Next::TooSoon;
        }
        state.asked_for_unknown = Some(now.mono);
        Next::Fetch
    }

    fn known(&self, key_id: &str, now: Now) -> Lookup {
        let state = self.state();
        let Some(known) = &state.known else { return Lookup::NoKeys };
        match known.set.get(key_id) {
            Some(key) => Lookup::Found(key),
            // Issuers publish a key before they sign by it, so a set as new as this would have it.
            None if known.asked + BETWEEN_UNKNOWN_KEYS > now.mono => Lookup::Unknown,
            None => Lookup::CannotTell,
        }
    }

    /// Joins the fetch that is running, or starts one. It runs in a task of its own, so that a request that gives up
    /// takes nothing from the others. The token is cancelled when the fetch is over and its result is known.
    fn fetch(self: &Arc<Self>, now: Now) -> CancellationToken {
        let mut state = self.state();
        if let Some(running) = state.running.as_ref().filter(|running| !running.is_cancelled()) {
            return running.clone();
        }
        let over = CancellationToken::new();
        state.running = Some(over.clone());
        let this = Arc::clone(self);
        // The guard cancels when it is dropped, also by a panic: no waiter hangs, and the next fetch can start.
        let guard = over.clone().drop_guard();
        tokio::spawn(async move {
            let result = this.source.fetch(&this.http).await;
            this.learn(result, now);
            drop(guard);
        });
        over
    }

    fn learn(&self, result: Result<(KeySet, Duration), String>, now: Now) {
        let mut state = self.state();
        match result {
            Ok((set, fresh_for)) => {
                self.fetches_ok.fetch_add(1, Ordering::Relaxed);
                let keys = set.len();
                if state.known.is_none() {
                    tracing::info!(event = "jwks_fetched", url = %self.source, keys, "fetched the issuer's keys");
                } else if state.failures > 0 {
                    tracing::info!(event = "jwks_recovered", url = %self.source, keys, failed = state.failures,
                        "can fetch the issuer's keys again");
                }
                state.failures = 0;
                state.known = Some(Known { set, asked: now.mono, fresh_for });
            }
            Err(error) => {
                self.fetches_failed.fetch_add(1, Ordering::Relaxed);
                if state.failures == 0 {
                    let meanwhile = match &state.known {
                        Some(_) => "known keys stay in use",
                        None => "EKS Auth verifies tokens, and no credentials are shared",
                    };
                    tracing::warn!(event = "jwks_failed", url = %self.source, error, meanwhile,
                        "cannot fetch the issuer's keys; retrying, without another line");
                }
                state.failures = state.failures.saturating_add(1);
            }
        }
    }

    /// How long the background task rests after a fetch.
    fn pause(&self) -> Duration {
        let state = self.state();
        match &state.known {
            Some(known) if state.failures == 0 => known.fresh_for.mul_f64(0.75 + 0.15 * fastrand::f64()),
            // Never fetched and no failure: the fetch panicked, which is one too.
            Some(_) | None => {
                let doubled = FIRST_RETRY * (1 << state.failures.saturating_sub(1).min(6));
                doubled.min(LAST_RETRY).mul_f64(0.5 + 0.5 * fastrand::f64())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn is_fetching(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_cancelled())
    }

    fn may_ask_for_unknown(&self, now: Now) -> bool {
        self.asked_for_unknown.is_none_or(|at| now.mono.saturating_duration_since(at) >= BETWEEN_UNKNOWN_KEYS)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("source", &self.source)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}
