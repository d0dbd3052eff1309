//! Tokens that nobody here could verify, while no key set can be had.
//!
//! EKS Auth checks each of them itself, and what it answers is that token's alone. Anybody can make up tokens, and what
//! they cost must become neither the account's throttling nor the node's memory: one call at a time for each pod that is
//! claimed, two a second for the node, a small cache, and nothing kept for a token that has not passed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::sync::Cache;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::issued::Issued;
use super::role::Purpose;
use crate::authorize::UncheckedPermit;
use crate::claims::{Claims, RoleKey, Scope, TokenHash};
use crate::clock::Now;
use crate::eks_auth::Failure;
use crate::locks::lock;

const GAP: Duration = Duration::from_millis(500);
/// Nobody queues longer than a request waits: then it is the next one's luck, not the place in a queue of forgeries.
const LONGEST_QUEUE: Duration = Duration::from_millis(1_500);
const CAPACITY: usize = 256;

#[derive(Debug)]
pub(super) struct Unchecked {
    gate: Arc<Mutex<Gate>>,
    passed: Cache<TokenHash, Arc<Issued>>,
    /// Counts the calls that have ended, for those who wait for one.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Gate {
    pods: HashSet<Arc<str>>,
    next: Option<Instant>,
    /// Counts the flushes: what was asked for before one must not be kept after it.
    epoch: u64,
}

/// Held while the call is under way.
#[derive(Debug)]
pub(super) struct Turn {
    pod_uid: Arc<str>,
    epoch: u64,
    gate: Arc<Mutex<Gate>>,
}

impl Unchecked {
    pub(super) fn new() -> Self {
        Unchecked { gate: Arc::default(), passed: Cache::new(CAPACITY), ended: watch::Sender::new(0) }
    }

    /// What this token bought, while it is valid.
    pub(super) fn passed(&self, token: &TokenHash, now: Now) -> Option<Arc<Issued>> {
        self.passed.get(token).filter(|issued| !issued.remaining_at(now).is_zero())
    }

    pub(super) fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// A turn and when it comes, or nothing while this pod has one or too many wait.
    pub(super) fn turn(&self, claims: &Claims, now: Now) -> Option<(Turn, Instant)> {
        let mut gate = lock(&self.gate);
        let slot = gate.next.map_or(now.mono, |next| next.max(now.mono));
        let pod_uid = Arc::from(claims.pod_uid());
        if slot > now.mono + LONGEST_QUEUE || !gate.pods.insert(Arc::clone(&pod_uid)) {
            return None;
        }
        gate.next = Some(slot + GAP);
        let turn = Turn { pod_uid, epoch: gate.epoch, gate: Arc::clone(&self.gate) };
        Some((turn, slot))
    }

    fn keep(&self, token: TokenHash, issued: Arc<Issued>, turn: &Turn) {
        // Under this lock, so that no flush comes between.
        let gate = lock(&self.gate);
        if gate.epoch == turn.epoch {
            self.passed.insert(token, issued);
        }
    }

    /// Drops what the tokens bought that are `meant`, and says how many there were.
    pub(super) fn flush(&self, meant: impl Fn(&Claims) -> bool) -> usize {
        let mut gate = lock(&self.gate);
        gate.epoch += 1;
        let before = self.passed.len();
        self.passed.retain(|_, issued| !meant(&issued.fetched_by));
        before - self.passed.len()
    }
}

/// One call for one token. It runs in a task of its own: its answer serves the pod's next attempt.
pub(super) async fn check(
    inner: Arc<Inner>,
    permit: UncheckedPermit,
    token: SecretString,
    turn: Turn,
    slot: Instant,
) {
    sleep_until(slot).await;
    let (answer, now) = inner.assume_role(token, Purpose::First).await;
    let claims = permit.claims();
    match answer {
        Ok(assumed) => match Issued::new(&assumed, claims, inner.retention, 0.0, now) {
            Ok(issued) => {
                // EKS Auth has verified the token, so by now the claims are true.
                issued.log_issued_to(claims, &RoleKey::new(Arc::clone(claims), Scope::Pod));
                inner.unchecked.keep(claims.token_hash, Arc::new(issued), &turn);
            }
            Err(problem) => {
                tracing::error!(event = "unusable_answer", association = assumed.association_id, "{problem}");
            }
        },
        Err(Failure::Refused(refusal)) => {
            // The claims are nobody's word, so they stay out of the log.
            tracing::warn!(
                event = "eks_auth_refused",
                code = %refusal.code,
                "a token that could not be verified here was refused"
            );
            inner.refusals.remember_token(claims.token_hash, claims, refusal, now);
        }
        Err(Failure::Throttled { .. }) => inner.pace.throttled(now),
        Err(Failure::Unavailable { .. }) => inner.pace.failed(now),
    }
    drop(turn);
    inner.unchecked.ended.send_modify(|ended| *ended += 1);
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.gate).pods.remove(&self.pod_uid);
    }
}
