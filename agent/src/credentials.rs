//! Credentials for permits: from the cache, or by one call to EKS Auth that everybody shares.
//!
//! [`Credentials::get`] is what a request does. [`Credentials::run`] is what goes on without one: renewals ahead of
//! time, and forgetting. The calls themselves are flights (`fetch.rs`); what is known of one role key is in `role.rs`.

mod denials;
mod fetch;
mod issued;
mod outages;
mod pace;
mod refusals;
mod role;
mod unchecked;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, Options, OptionsBuilder, UnitWeighter};
use secrecy::SecretString;
use tokio::time::{MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

pub use self::issued::Issued;
pub use self::role::Purpose;

use self::denials::Denials;
use self::outages::Outages;
use self::pace::Pace;
use self::refusals::{Memory, Refusals};
use self::role::{Answer, Departure, Role, Upkeep};
use self::unchecked::Unchecked;
use crate::authorize::{Permit, UncheckedPermit};
use crate::claims::RoleKey;
use crate::clock::{Clock, Now};
use crate::eks_auth::{Assumed, EksAuth, Failure, Refusal};
use crate::metrics::Metrics;
use crate::reject::Rejection;

/// A new pod waits this long for the association to be looked up again; then the credentials at hand serve.
const REVALIDATION_WAIT: Duration = Duration::from_millis(500);
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Settings {
    pub max_cache_size: usize,
    pub retention: Duration,
    pub renewals_per_second: u32,
    pub revalidate_after: Duration,
    pub wait: Duration,
}

/// Where an answer came from; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedFrom {
    /// At hand, at once.
    Cache,
    /// From a call that this request started or joined.
    EksAuth,
    /// Still valid, though the SDK would want better: none can be had.
    Stale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub fresh: usize,
    pub due: usize,
    pub low: usize,
    pub empty: usize,
    pub soonest_expiry: Option<Duration>,
    pub own_permission_suspected: bool,
    pub revalidate_after: Duration,
}

#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

type Roles = Cache<RoleKey, Arc<Role>, UnitWeighter, DefaultHashBuilder, KeepLive>;

struct Inner {
    roles: Roles,
    /// With `--max-cache-size 0` every request is a call of its own.
    caching: bool,
    refusals: Refusals,
    denials: Denials,
    outages: Outages,
    pace: Pace,
    unchecked: Unchecked,
    eks_auth: Arc<dyn EksAuth>,
    retention: Duration,
    wait: Duration,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// Eviction passes by the role keys of live pods: their number is bounded by what runs on the node.
#[derive(Clone, Debug)]
struct KeepLive;

impl Lifecycle<RoleKey, Arc<Role>> for KeepLive {
    type RequestState = ();

    fn is_pinned(&self, _key: &RoleKey, role: &Arc<Role>) -> bool {
        role.is_pinned()
    }
}

impl Credentials {
    pub fn new(settings: &Settings, eks_auth: Arc<dyn EksAuth>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let capacity = settings.max_cache_size.max(1);
        Credentials {
            inner: Arc::new(Inner {
                roles: new_cache(capacity),
                caching: settings.max_cache_size > 0,
                refusals: Refusals::new(),
                denials: Denials::default(),
                outages: Outages::default(),
                pace: Pace::new(settings.renewals_per_second, settings.revalidate_after, clock.now()),
                unchecked: Unchecked::new(),
                eks_auth,
                retention: settings.retention,
                wait: settings.wait,
                metrics,
                clock,
            }),
        }
    }

    /// The credentials of the permit's role key. `token` is the one that the permit was given for.
    pub async fn get(
        &self,
        permit: &Permit,
        token: &[u8],
        now: Now,
    ) -> Result<(Arc<Issued>, ServedFrom), Rejection> {
        let inner = &self.inner;
        let recheck = match inner.refusals.of(permit, now) {
            Memory::Nothing => false,
            Memory::Recheck => true,
            Memory::Refuse(refusal) => return Err(refuse(refusal, permit)),
        };
        let role = inner.role(permit, now);
        let (issued, from) = match role.ask(permit, token, now, inner.pace.revalidate_after(), recheck) {
            Answer::Serve(issued) => at_hand(issued, now),
            waiting @ Answer::Wait { .. } => Box::pin(self.wait(permit, token, &role, waiting, now)).await?,
        };
        if role.is_first_sight(permit.claims().pod_uid(), &issued) {
            issued.log_issued_to(permit.claims(), permit.key());
        }
        Ok((issued, from))
    }

    /// The credentials that this very token buys: EKS Auth is the one to check it.
    pub async fn get_unchecked(
        &self,
        permit: &UncheckedPermit,
        token: &[u8],
        now: Now,
    ) -> Result<(Arc<Issued>, ServedFrom), Rejection> {
        let inner = &self.inner;
        let deadline = now.mono + inner.wait;
        let mut ended = inner.unchecked.ended();
        let mut from = ServedFrom::Cache;
        loop {
            let now = inner.clock.now();
            let passed = inner.unchecked.passed(&permit.claims().token_hash, now);
            if let Some(issued) = passed.as_ref().filter(|issued| !issued.is_low_at(now)) {
                return Ok((Arc::clone(issued), from));
            }
            if let Memory::Refuse(refusal) = inner.refusals.of_token(&permit.claims().token_hash, now) {
                return Err(Rejection::Upstream { refusal, pod: None });
            }
            if let Some((turn, slot)) = inner.unchecked.turn(permit.claims(), now) {
                let token = role::secret(token);
                tokio::spawn(unchecked::check(Arc::clone(inner), permit.clone(), token, turn, slot));
            }
            from = ServedFrom::EksAuth;
            // Somebody's call has ended: it was this token's, or the turn may be this pod's now.
            if timeout_at(deadline, ended.changed()).await.is_err() {
                let stale = passed.map(|issued| (issued, ServedFrom::Stale));
                return stale.ok_or(Rejection::NotYet { last: None, pod: None });
            }
        }
    }

    /// Waits for flights until one brings credentials or a refusal, or until the request's time is up.
    async fn wait(
        &self,
        permit: &Permit,
        token: &[u8],
        role: &Arc<Role>,
        mut answer: Answer,
        asked: Now,
    ) -> Result<(Arc<Issued>, ServedFrom), Rejection> {
        let inner = &self.inner;
        let deadline = asked.mono + inner.wait;
        loop {
            let (mut flight, departing, briefly) = match answer {
                Answer::Serve(issued) => return Ok(at_hand(issued, inner.clock.now())),
                Answer::Wait { flight, departing, briefly } => (flight, departing, briefly),
            };
            let is_anothers = departing.is_none();
            if let Some(departure) = departing {
                inner.depart(role, departure);
            }
            let until = if briefly { deadline.min(asked.mono + REVALIDATION_WAIT) } else { deadline };
            let landed = timeout_at(until, flight.wait_for(Option::is_some)).await;
            let outcome = landed.map(|changed| changed.ok().and_then(|landed| (*landed).clone()));
            let now = inner.clock.now();

            // Whoever's call it was, this token may have been found wanting meanwhile, or good after all.
            let recheck = match inner.refusals.of(permit, now) {
                Memory::Nothing => false,
                Memory::Recheck => true,
                Memory::Refuse(refusal) => return Err(refuse(refusal, permit)),
            };
            if !recheck {
                if let Ok(Some(Ok(issued))) = outcome {
                    return Ok((issued, ServedFrom::EksAuth));
                }
                // Another pod's flight may have been about its own token alone, while this one's buys better than what is low.
                let asks_again =
                    |issued: &Issued| is_anothers && issued.is_low_at(now) && now.mono < deadline;
                if let Some(issued) = role.valid_at(now).filter(|issued| !asks_again(issued)) {
                    return Ok(at_hand(issued, now));
                }
            }
            if now.mono >= deadline {
                return Err(not_yet(role, permit));
            }
            // The flight brought nothing for this pod: others' tokens were refused, or its task died. With its own
            // token it can still be served.
            answer = role.ask(permit, token, now, inner.pace.revalidate_after(), recheck);
        }
    }

    /// Renews ahead of time and forgets, until `cancel`led.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut ticks = interval(UPKEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            self.upkeep(self.inner.clock.now());
        }
    }

    fn upkeep(&self, now: Now) {
        let inner = &self.inner;
        inner.refusals.upkeep(now);
        let mut due = Vec::new();
        for (key, role) in inner.roles.iter() {
            match role.upkeep(now) {
                Upkeep::Keep => {}
                // A pod may have asked since: then it goes on with this `Role`, and the next pod starts another.
                Upkeep::Forget => drop(inner.roles.remove(&key)),
                Upkeep::Renew(remaining) => due.push((remaining, role)),
            }
        }
        due.sort_by_key(|(remaining, _)| *remaining);
        for (_, role) in due {
            if !inner.pace.may_renew(now) {
                break;
            }
            inner.renew(&role);
        }
    }

    /// Drops the credentials of one service account, or all; says how many there were.
    pub fn flush(&self, service_account: Option<(&str, &str)>) -> usize {
        let now = self.inner.clock.now();
        let is_meant = |of: (&str, &str)| service_account.is_none_or(|named| named == of);
        let mut dropped =
            self.inner.unchecked.flush(|claims| is_meant((claims.namespace(), claims.service_account())));
        for (key, role) in self.inner.roles.iter() {
            if is_meant((key.namespace(), key.service_account())) && role.flush(now) {
                dropped += 1;
            }
        }
        self.inner.refusals.forget_roles();
        dropped
    }

    /// Where the kernel tells, a pod's end is known long before its token expires.
    pub fn pods_ended(&self, pods: &[Arc<str>]) {
        if pods.is_empty() {
            return;
        }
        for (_, role) in self.inner.roles.iter() {
            role.pods_ended(pods);
        }
    }

    /// What the cache holds, for the metrics.
    pub fn census(&self, now: Now) -> Census {
        let mut census = Census {
            own_permission_suspected: self.inner.denials.own_permission_suspected(),
            revalidate_after: self.inner.pace.revalidate_after(),
            ..Census::default()
        };
        for (_, role) in self.inner.roles.iter() {
            let Some(issued) = role.valid_at(now) else {
                census.empty += 1;
                continue;
            };
            let remaining = issued.remaining_at(now);
            census.soonest_expiry =
                Some(census.soonest_expiry.map_or(remaining, |least| least.min(remaining)));
            match (issued.is_low_at(now), issued.is_due_at(now)) {
                (true, _) => census.low += 1,
                (false, true) => census.due += 1,
                (false, false) => census.fresh += 1,
            }
        }
        census
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("role_keys", &self.inner.roles.len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn role(&self, permit: &Permit, now: Now) -> Arc<Role> {
        if !self.caching {
            return Arc::new(Role::new(permit.key().clone(), now));
        }
        if let Some(role) = self.roles.get(permit.key()) {
            return role;
        }
        let made = self.roles.get_or_insert_with(permit.key(), || {
            Ok::<_, std::convert::Infallible>(Arc::new(Role::new(permit.key().clone(), now)))
        });
        match made {
            Ok(role) => role,
            Err(never) => match never {},
        }
    }

    /// One call, timed, counted and told of if it brought no answer; and when it was over.
    async fn assume_role(&self, token: SecretString, purpose: Purpose) -> (Result<Assumed, Failure>, Now) {
        let called = self.clock.now();
        let answer = self.eks_auth.assume_role_for_pod_identity(token).await;
        let now = self.clock.now();
        let took = now.mono.saturating_duration_since(called.mono);
        self.metrics.eks_auth_call(purpose, answer.as_ref().err(), took);
        if let Err(failure) = &answer {
            self.outages.tell(failure, now);
        }
        (answer, now)
    }

    fn depart(self: &Arc<Self>, role: &Arc<Role>, departure: Departure) {
        tokio::spawn(fetch::fly(Arc::clone(self), Arc::clone(role), departure));
    }

    fn renew(self: &Arc<Self>, role: &Arc<Role>) {
        if let Some(departure) = role.renew() {
            self.depart(role, departure);
        }
    }

    fn others_live<'a>(&'a self, key: &'a RoleKey, now: Now) -> impl Iterator<Item = Arc<Role>> + 'a {
        let live = move |role: &Arc<Role>| role.key() != key && role.valid_at(now).is_some();
        self.roles.iter().map(|(_, role)| role).filter(live)
    }

    fn has_other_live_role(&self, key: &RoleKey, now: Now) -> bool {
        self.others_live(key, now).next().is_some()
    }

    /// Asks EKS Auth on behalf of another role key, to see whether it serves this agent at all.
    fn renew_another(self: &Arc<Self>, key: &RoleKey, now: Now) {
        if let Some(other) = self.others_live(key, now).next() {
            self.renew(&other);
        }
    }
}

fn new_cache(capacity: usize) -> Roles {
    // Few shards: a shard's share of a small capacity would be nothing.
    let shards = if capacity < 256 { 1 } else { 4 };
    Cache::with_options(options(capacity, shards), UnitWeighter, DefaultHashBuilder::default(), KeepLive)
}

fn options(capacity: usize, shards: usize) -> Options {
    OptionsBuilder::new()
        .estimated_items_capacity(capacity.min(2_000))
        .weight_capacity(capacity as u64)
        .shards(shards)
        .build()
        .unwrap_or_else(|_| unreachable!("both capacities are given"))
}

/// Credentials that were there already, and how they count.
fn at_hand(issued: Arc<Issued>, now: Now) -> (Arc<Issued>, ServedFrom) {
    let from = if issued.is_low_at(now) { ServedFrom::Stale } else { ServedFrom::Cache };
    (issued, from)
}

fn refuse(refusal: Refusal, permit: &Permit) -> Rejection {
    Rejection::Upstream { refusal, pod: Some(Arc::clone(permit.claims())) }
}

fn not_yet(role: &Role, permit: &Permit) -> Rejection {
    Rejection::NotYet { last: role.last_failure(), pod: Some(Arc::clone(permit.claims())) }
}

#[cfg(test)]
mod tests;
