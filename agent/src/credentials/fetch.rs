//! One flight: the calls to EKS Auth that one role key's waiting pods share.
//!
//! A flight runs in a task of its own. A caller that hangs up takes nothing with it, and what arrives after the last
//! caller has gone fills the cache for the next.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::denials::Verdict;
use super::issued::Issued;
use super::role::{Bearer, Departure, Outcome, Purpose, Role, Tokens};
use crate::claims::{Scope, TokenHash};
use crate::clock::{Clock, Now};
use crate::eks_auth::{Assumed, Failure, Refusal, RefusalKind};

/// What one call's answer means for the flight.
enum Step {
    Land(Outcome),
    /// Not this token, but perhaps the next pod's.
    NextBearer(Refusal),
    /// No answer this time.
    Later(Failure),
}

/// Lands the flight also when its task panics: nobody may wait for a call that nobody makes.
struct InFlight {
    role: Arc<Role>,
    landing: watch::Sender<Option<Outcome>>,
    clock: Clock,
}

impl InFlight {
    fn land(self, outcome: Outcome) {
        self.role.land();
        self.landing.send_replace(Some(outcome));
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.landing.borrow().is_none() {
            let died = unavailable("the agent's call to EKS Auth died; see its log");
            // Those who waited start the next flight at once: without a pause they would spin.
            self.role.failed(died, fastrand::f64(), self.clock.now());
            self.role.land();
        }
    }
}

pub(super) async fn fly(inner: Arc<Inner>, role: Arc<Role>, departure: Departure) {
    let Departure { landing, tokens, purpose } = departure;
    let in_flight = InFlight { role: Arc::clone(&role), landing, clock: inner.clock.clone() };
    let (mut first, only) = match tokens {
        Tokens::Kept => (None, None),
        Tokens::First(bearer) => (Some(bearer), None),
        Tokens::Only(bearer) => (None, Some(bearer)),
    };
    let mut tried: Vec<TokenHash> = Vec::new();
    let mut refusal = None;

    // The role key may have been in trouble before this flight: then its first call is a retry like any other.
    sleep_until(role.retry_at()).await;

    let outcome = loop {
        let kept = || role.next_bearer(&tried, inner.clock.now());
        let bearer = only.clone().or_else(|| first.take()).or_else(kept);
        let Some(bearer) = bearer else {
            let failure = out_of_tokens(refusal);
            role.failed(failure.clone(), fastrand::f64(), inner.clock.now());
            break Err(failure);
        };
        tried.push(bearer.claims.token_hash);
        match call(&inner, &role, &bearer, purpose).await {
            Step::Land(outcome) => break outcome,
            // The role key is none the worse for it, and whoever asked is not to ask the same again at once.
            Step::NextBearer(why) if only.is_some() => {
                let Bearer { claims, .. } = &bearer;
                inner.refusals.remember_token(claims.token_hash, claims, why.clone(), inner.clock.now());
                break Err(Failure::Refused(why));
            }
            Step::NextBearer(why) => refusal = Some(why),
            Step::Later(failure) => {
                let now = inner.clock.now();
                let backoff = role.failed(failure.clone(), fastrand::f64(), now);
                // What is valid serves meanwhile, and the upkeep tries again; only pods with nothing wait on.
                if role.valid_at(now).is_some() || !retry_turn(&inner, &role, backoff).await {
                    break Err(failure);
                }
                tried.clear();
            }
        }
    };
    in_flight.land(outcome);
}

/// Waits for the backoff and for a turn among all retries of this agent; false once no pod waits for it any more.
async fn retry_turn(inner: &Inner, role: &Role, backoff: Instant) -> bool {
    let _waiting = inner.pace.wait();
    let mut wake = backoff;
    loop {
        sleep_until(wake).await;
        let now = inner.clock.now();
        if !role.is_wanted_at(now) {
            return false;
        }
        match inner.pace.take_retry(fastrand::f64(), now) {
            Ok(()) => return true,
            Err(again) => wake = again,
        }
    }
}

fn out_of_tokens(refusal: Option<Refusal>) -> Failure {
    match refusal {
        Some(refusal) => Failure::Refused(refusal),
        None => unavailable("no live pod's token is at hand to ask with"),
    }
}

/// For reasons that the agent knows, and has logged where an operator can mend them.
fn unavailable(message: &'static str) -> Failure {
    Failure::Unavailable { message, cause: "".into() }
}

/// Makes one call and draws its conclusions.
async fn call(inner: &Arc<Inner>, role: &Arc<Role>, bearer: &Bearer, purpose: Purpose) -> Step {
    let epoch = role.epoch();
    let (answer, now) = inner.assume_role(bearer.token.clone(), purpose).await;
    match answer {
        Ok(assumed) => accept(inner, role, bearer, &assumed, epoch, now),
        Err(Failure::Refused(refusal)) => refused(inner, role, bearer, refusal, now),
        Err(failure @ Failure::Throttled { .. }) => {
            inner.pace.throttled(now);
            Step::Later(failure)
        }
        Err(failure @ Failure::Unavailable { .. }) => {
            inner.pace.failed(now);
            Step::Later(failure)
        }
    }
}

fn accept(inner: &Inner, role: &Role, bearer: &Bearer, assumed: &Assumed, epoch: u64, now: Now) -> Step {
    inner.pace.succeeded();
    inner.denials.succeeded(now);
    match Issued::new(assumed, &bearer.claims, inner.retention, fastrand::f64(), now) {
        Ok(issued) => {
            let issued = Arc::new(issued);
            if !role.store(&issued, epoch) {
                let flushed = "an operator flushed these credentials while they were on their way";
                return Step::Later(unavailable(flushed));
            }
            inner.refusals.lift(role.key(), &bearer.claims.token_hash);
            Step::Land(Ok(issued))
        }
        Err(problem) => {
            tracing::error!(event = "unusable_answer", association = assumed.association_id, "{problem}");
            Step::Later(unavailable(problem))
        }
    }
}

/// A refusal means what it says, and no more.
fn refused(inner: &Arc<Inner>, role: &Arc<Role>, bearer: &Bearer, refusal: Refusal, now: Now) -> Step {
    match refusal.kind {
        // The association is gone: so is what it gave.
        RefusalKind::ResourceNotFound => drop_role(
            inner,
            role,
            bearer,
            refusal,
            now,
            "no association: credentials of this service account are dropped",
        ),
        // That token only. What other pods' tokens bought is theirs.
        RefusalKind::InvalidToken | RefusalKind::ExpiredToken | RefusalKind::Invalid => {
            role.condemn(&bearer.claims.token_hash);
            inner.refusals.remember_token(bearer.claims.token_hash, &bearer.claims, refusal.clone(), now);
            log_refusal(role, bearer, &refusal, "token refused: another pod's is tried");
            Step::NextBearer(refusal)
        }
        RefusalKind::AccessDenied => denied(inner, role, bearer, refusal, now),
    }
}

/// EKS Auth's final word on a role key.
fn drop_role(inner: &Inner, role: &Role, bearer: &Bearer, refusal: Refusal, now: Now, meaning: &str) -> Step {
    role.drop_credentials(now);
    inner.refusals.remember_role(role.key(), refusal.clone(), now);
    log_refusal(role, bearer, &refusal, meaning);
    Step::Land(Err(Failure::Refused(refusal)))
}

fn denied(inner: &Arc<Inner>, role: &Arc<Role>, bearer: &Bearer, refusal: Refusal, now: Now) -> Step {
    inner.denials.denied(role.key(), now);
    let (since, pods) = role.denied(bearer.claims.pod_uid(), now);
    if role.valid_at(now).is_none() {
        return drop_role(inner, role, bearer, refusal, now, "access denied");
    }
    // In pod scope there is no second pod to confirm it.
    let confirmed = pods > 1 || role.key().scope() != Scope::Role;
    if !confirmed {
        log_refusal(
            role,
            bearer,
            &refusal,
            "access denied: what is valid stays until a second pod's token confirms it",
        );
        return Step::NextBearer(refusal);
    }
    match inner.denials.verdict(since, inner.has_other_live_role(role.key(), now)) {
        Verdict::TheRole => drop_role(
            inner,
            role,
            bearer,
            refusal,
            now,
            "access denied: credentials of this service account are dropped",
        ),
        Verdict::OwnPermission => Step::Later(Failure::Refused(refusal)),
        Verdict::AskAnother => {
            inner.renew_another(role.key(), now);
            Step::Later(Failure::Refused(refusal))
        }
    }
}

fn log_refusal(role: &Role, bearer: &Bearer, refusal: &Refusal, meaning: &str) {
    tracing::warn!(
        event = "eks_auth_refused",
        code = %refusal.code,
        message = %refusal.message,
        namespace = role.key().namespace(),
        service_account = role.key().service_account(),
        pod_uid = bearer.claims.pod_uid(),
        "{meaning}"
    );
}
