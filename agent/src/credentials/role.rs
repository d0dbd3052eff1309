//! What is known of one role key: its credentials, the call that is under way, and whose tokens can buy new ones.
//!
//! Nothing here waits or spawns. Each method is one decision under one short lock, taken at a given time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::Instant;

use super::issued::Issued;
use crate::authorize::Permit;
use crate::claims::{Claims, OfPod, RoleKey, Scope, TokenHash};
use crate::clock::Now;
use crate::eks_auth::Failure;
use crate::locks::lock;

/// Tokens kept for renewals. A few, because any of their pods may be gone by then; not all, because a thousand
/// pods of one role would keep a thousand.
const BEARERS: usize = 6;
/// Of these so many are of the pods that came first, and stay until EKS Auth refuses them: a burst of jobs, all of
/// them with fresher tokens and soon gone, must not crowd out the one pod that lives for days.
const FIRST_COMERS: usize = 3;
/// A pod's SDK gives up and starts again within this time (boto3: three attempts of 2 s, a second between them).
const STILL_WANTED: Duration = Duration::from_secs(15);
/// A role key with nothing to give is forgotten after this time.
const IDLE: Duration = Duration::from_secs(60);

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF_WHILE_PODS_WAIT: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

pub(super) type Outcome = Result<Arc<Issued>, Failure>;
/// Empty until the call has landed.
pub(super) type Flight = watch::Receiver<Option<Outcome>>;

#[derive(Debug)]
pub(super) struct Role {
    key: RoleKey,
    /// Read by the cache when it looks for something to evict, where no time is at hand.
    pinned: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    began: Instant,
    issued: Option<Arc<Issued>>,
    flight: Option<Flight>,
    bearers: Vec<Bearer>,
    seen: HashMap<OfPod, Seen>,
    last_asked: Instant,
    /// Calls that failed since one last worked.
    failures: u32,
    last_failure: Option<Failure>,
    /// Not before this is EKS Auth asked again on this role key's behalf.
    retry_at: Instant,
    /// Pods whose tokens were denied since a call last worked, and when the first was.
    denied: Option<(Instant, Vec<Arc<str>>)>,
    /// Counts the flushes: what was fetched before one must not be kept after it.
    epoch: u64,
}

/// A pod's token, and who it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Bearer {
    pub claims: Arc<Claims>,
    pub token: SecretString,
}

/// There is one for each pod, so it is small.
#[derive(Debug)]
struct Seen {
    /// In seconds since this role key began.
    asked: u32,
    /// Whether this pod has the credentials at hand: one line per pod and access key is written.
    given: bool,
}

#[derive(Debug)]
pub(super) enum Answer {
    Serve(Arc<Issued>),
    /// Join this flight. `departing` is set for the one caller who must start it.
    Wait {
        flight: Flight,
        departing: Option<Departure>,
        /// What is at hand is good, and soon better than to wait on.
        briefly: bool,
    },
}

#[derive(Debug)]
pub(super) struct Departure {
    pub landing: watch::Sender<Option<Outcome>>,
    pub tokens: Tokens,
    pub purpose: Purpose,
}

/// Whose tokens a flight may try.
#[derive(Debug)]
pub(super) enum Tokens {
    /// Any that is kept, the freshest first.
    Kept,
    /// This one, and when it is refused those that are kept.
    First(Bearer),
    /// This one: only what EKS Auth says to it was asked.
    Only(Bearer),
}

/// Why EKS Auth is called; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    First,
    Renewal,
    Revalidation,
}

impl Purpose {
    pub fn label(self) -> &'static str {
        match self {
            Purpose::First => "first",
            Purpose::Renewal => "renewal",
            Purpose::Revalidation => "revalidation",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Upkeep {
    Keep,
    /// A renewal is due; so much life is left.
    Renew(Duration),
    Forget,
}

impl Role {
    pub(super) fn new(key: RoleKey, now: Now) -> Self {
        let state = State {
            began: now.mono,
            issued: None,
            flight: None,
            bearers: Vec::new(),
            seen: HashMap::new(),
            last_asked: now.mono,
            failures: 0,
            last_failure: None,
            retry_at: now.mono,
            denied: None,
            epoch: 0,
        };
        Role { key, pinned: AtomicBool::new(true), state: Mutex::new(state) }
    }

    pub(super) fn key(&self) -> &RoleKey {
        &self.key
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// A pod asks. `recheck` is set when EKS Auth refused this very token before: then only EKS Auth's answer to this
    /// token will do.
    pub(super) fn ask(
        &self,
        permit: &Permit,
        token: &[u8],
        now: Now,
        revalidate_after: Duration,
        recheck: bool,
    ) -> Answer {
        let mut state = self.lock();
        let new_here = state.note_pod(permit, now);
        if new_here {
            self.pinned.store(true, Ordering::Relaxed);
        }
        // A token that EKS Auth refused is not one to renew by.
        if !recheck {
            state.note_token(permit, token);
        }
        let valid = state.valid_at(now);
        let backing_off = now.mono < state.retry_at;

        let (purpose, briefly) = match &valid {
            _ if recheck => (Purpose::Revalidation, false),
            Some(issued) if !issued.is_low_at(now) => {
                // Age is what a recreated pod would see of a changed association.
                let stale = new_here && issued.age_at(now) >= revalidate_after && !backing_off;
                if !stale {
                    return Answer::Serve(Arc::clone(issued));
                }
                (Purpose::Revalidation, true)
            }
            Some(issued) if backing_off => return Answer::Serve(Arc::clone(issued)),
            Some(_) => (Purpose::Renewal, false),
            None => (Purpose::First, false),
        };
        if let Some(flight) = &state.flight {
            return Answer::Wait { flight: flight.clone(), departing: None, briefly };
        }
        // Until it has landed nothing may evict this key: the next pod would start a second call.
        self.pinned.store(true, Ordering::Relaxed);
        let bearer = Bearer::new(permit, token);
        let tokens = if recheck { Tokens::Only(bearer) } else { Tokens::First(bearer) };
        let (flight, departure) = state.depart(tokens, purpose);
        Answer::Wait { flight, departing: Some(departure), briefly }
    }

    /// Starts a renewal, unless a call is under way.
    pub(super) fn renew(&self) -> Option<Departure> {
        let mut state = self.lock();
        if state.flight.is_some() {
            return None;
        }
        Some(state.depart(Tokens::Kept, Purpose::Renewal).1)
    }

    /// The freshest token that was not `tried` and has not expired.
    pub(super) fn next_bearer(&self, tried: &[TokenHash], now: Now) -> Option<Bearer> {
        let mut state = self.lock();
        state.bearers.retain(|b| b.claims.expires > now.wall);
        state
            .bearers
            .iter()
            .filter(|b| !tried.contains(&b.claims.token_hash))
            .max_by_key(|b| b.claims.expires)
            .cloned()
    }

    /// EKS Auth does not take this token any more.
    pub(super) fn condemn(&self, token: &TokenHash) {
        self.lock().bearers.retain(|b| b.claims.token_hash != *token);
    }

    /// These pods' cgroups are gone: their tokens buy nothing any more, and nothing is renewed or kept for them.
    pub(super) fn pods_ended(&self, pods: &[Arc<str>]) {
        let is_among = |claims: &Claims| pods.iter().any(|pod| **pod == *claims.pod_uid());
        let mut state = self.lock();
        state.bearers.retain(|bearer| !is_among(&bearer.claims));
        state.seen.retain(|OfPod(pod), _| !is_among(pod));
        if state.seen.is_empty() && state.flight.is_none() {
            self.pinned.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Keeps new credentials, unless a flush came after `epoch`: they may be what the operator wanted gone.
    pub(super) fn store(&self, issued: &Arc<Issued>, epoch: u64) -> bool {
        let mut state = self.lock();
        if state.epoch != epoch {
            return false;
        }
        state.issued = Some(Arc::clone(issued));
        state.seen.values_mut().for_each(|seen| seen.given = false);
        state.failures = 0;
        state.last_failure = None;
        state.denied = None;
        true
    }

    /// Drops the credentials; the pods that hold them keep them, but nobody gets them from here.
    pub(super) fn drop_credentials(&self, now: Now) {
        self.lock().forget_credentials(now);
    }

    pub(super) fn flush(&self, now: Now) -> bool {
        let mut state = self.lock();
        state.epoch += 1;
        state.forget_credentials(now)
    }

    /// Counts a pod among those denied, and says since when and how many there are.
    pub(super) fn denied(&self, pod_uid: &str, now: Now) -> (Instant, usize) {
        let mut state = self.lock();
        let (since, pods) = state.denied.get_or_insert_with(|| (now.mono, Vec::new()));
        // Two are enough to know; the rest need not be remembered.
        if pods.len() < 2 && !pods.iter().any(|pod| **pod == *pod_uid) {
            pods.push(pod_uid.into());
        }
        (*since, pods.len())
    }

    /// A call gave no answer, or one to sit out. Says when the next may be made.
    pub(super) fn failed(&self, failure: Failure, jitter: f64, now: Now) -> Instant {
        let mut state = self.lock();
        let urgent = state.valid_at(now).is_none_or(|issued| issued.is_low_at(now));
        let longest = if urgent { LONGEST_BACKOFF_WHILE_PODS_WAIT } else { LONGEST_BACKOFF };
        let backoff = FIRST_BACKOFF.saturating_mul(1 << state.failures.min(16)).min(longest);
        state.failures = state.failures.saturating_add(1);
        state.last_failure = Some(failure);
        state.retry_at = now.mono + backoff.mul_f64(0.5 + 0.5 * jitter);
        state.retry_at
    }

    pub(super) fn valid_at(&self, now: Now) -> Option<Arc<Issued>> {
        self.lock().valid_at(now)
    }

    pub(super) fn last_failure(&self) -> Option<Failure> {
        self.lock().last_failure.clone()
    }

    pub(super) fn retry_at(&self) -> Instant {
        self.lock().retry_at
    }

    /// Whether a pod may still be waiting for what a flight brings.
    pub(super) fn is_wanted_at(&self, now: Now) -> bool {
        now.mono.saturating_duration_since(self.lock().last_asked) < STILL_WANTED
    }

    /// Ends the flight. From here on the next caller starts a new one, so the state must be up to date before.
    pub(super) fn land(&self) {
        self.lock().flight = None;
    }

    /// True once per pod and access key: the pod's first sight of these credentials.
    pub(super) fn is_first_sight(&self, pod_uid: &str, issued: &Arc<Issued>) -> bool {
        let mut state = self.lock();
        // Others may have come while the request was on its way with these; then they are told once too often.
        let are_at_hand = state.issued.as_ref().is_some_and(|at_hand| Arc::ptr_eq(at_hand, issued));
        match state.seen.get_mut(pod_uid) {
            Some(seen) if are_at_hand => !std::mem::replace(&mut seen.given, true),
            Some(_) | None => true,
        }
    }

    /// Called now and then: forgets what is of no more use and says whether a renewal is due.
    pub(super) fn upkeep(&self, now: Now) -> Upkeep {
        let mut state = self.lock();
        let idle = now.mono.saturating_duration_since(state.last_asked);
        let Some(issued) = state.valid_at(now) else {
            state.issued = None;
            let forget = state.flight.is_none() && idle >= IDLE;
            self.pinned.store(state.flight.is_some(), Ordering::Relaxed);
            return if forget { Upkeep::Forget } else { Upkeep::Keep };
        };
        let life = issued.life();
        let seconds = state.seconds_at(now);
        state.seen.retain(|_, seen| Duration::from_secs(seconds.saturating_sub(seen.asked).into()) < life);
        // Who has not asked within a life cannot still hold credentials from here.
        let live = !state.seen.is_empty();
        let in_flight = state.flight.is_some();
        self.pinned.store(live || in_flight, Ordering::Relaxed);
        // The next pod of a service account finds its credentials here; one that has its own has no next.
        if !live && !in_flight && self.key.scope() == Scope::Pod {
            return Upkeep::Forget;
        }
        let renew = live
            && issued.is_due_at(now)
            && !in_flight
            && now.mono >= state.retry_at
            && state.bearers.iter().any(|b| b.claims.expires > now.wall);
        if renew { Upkeep::Renew(issued.remaining_at(now)) } else { Upkeep::Keep }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Remembers the pod; true if it was not known here.
    fn note_pod(&mut self, permit: &Permit, now: Now) -> bool {
        self.last_asked = now.mono;
        let asked = self.seconds_at(now);
        if let Some(seen) = self.seen.get_mut(permit.claims().pod_uid()) {
            seen.asked = asked;
            return false;
        }
        self.seen.insert(OfPod(Arc::clone(permit.claims())), Seen { asked, given: false });
        true
    }

    fn seconds_at(&self, now: Now) -> u32 {
        let seconds = now.mono.saturating_duration_since(self.began).as_secs();
        seconds.try_into().unwrap_or(u32::MAX)
    }

    /// Keeps one token a pod: of the first pods to come, and of those whose tokens live longest.
    fn note_token(&mut self, permit: &Permit, token: &[u8]) {
        let claims = permit.claims();
        let place = match self.bearers.iter().position(|b| b.claims.pod_uid() == claims.pod_uid()) {
            None if self.bearers.len() < BEARERS => {
                self.bearers.push(Bearer::new(permit, token));
                return;
            }
            None => self.bearers.iter_mut().skip(FIRST_COMERS).min_by_key(|b| b.claims.expires),
            Some(own) => self.bearers.get_mut(own),
        };
        if let Some(place) = place
            && place.claims.expires < claims.expires
        {
            *place = Bearer::new(permit, token);
        }
    }

    /// With the credentials goes the backoff that was chosen while they still served: whoever asks next has nothing.
    fn forget_credentials(&mut self, now: Now) -> bool {
        self.failures = 0;
        self.retry_at = now.mono;
        self.issued.take().is_some()
    }

    fn depart(&mut self, tokens: Tokens, purpose: Purpose) -> (Flight, Departure) {
        let (landing, flight) = watch::channel(None);
        self.flight = Some(flight.clone());
        (flight, Departure { landing, tokens, purpose })
    }

    fn valid_at(&self, now: Now) -> Option<Arc<Issued>> {
        self.issued.as_ref().filter(|issued| !issued.remaining_at(now).is_zero()).cloned()
    }
}

impl Bearer {
    fn new(permit: &Permit, token: &[u8]) -> Self {
        Bearer { claims: Arc::clone(permit.claims()), token: secret(token) }
    }
}

/// A token that passed is base64url and dots.
pub(super) fn secret(token: &[u8]) -> SecretString {
    SecretString::from(String::from_utf8_lossy(token).into_owned())
}
