//! What all requests share: the cluster, the settings, and one state behind one lock.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use tokio::sync::watch;
use tokio::time::Instant;

use super::associations::{Association, AssociationChange, Associations, Cluster, Moment, NewAssociation};
use super::callers::{Caller, Callers, Identity};
use super::calls::CallLog;
use super::id;
use super::keys::{KeyRing, SigningKey};
use super::reply::{ApiError, ErrorCode};
use super::roles::{RoleArn, Roles};
use super::settings::{Outage, Settings};
use super::token::{Minted, Objects, PodToken};
use crate::clock;

pub(super) struct App {
    pub(super) cluster: Cluster,
    pub(super) issuer: String,
    /// Watched, so that a request that hangs in an outage goes on when the outage ends.
    pub(super) settings: watch::Sender<Settings>,
    /// Signs tokens that nobody should believe.
    foreign_key: Arc<SigningKey>,
    state: Mutex<State>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("cluster", &self.cluster)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// Everything that changes, except the settings. Nothing slow is done under its lock.
pub(super) struct State {
    pub(super) keys: KeyRing,
    pub(super) objects: Objects,
    pub(super) callers: Callers,
    pub(super) roles: Roles,
    pub(super) associations: Associations,
    pub(super) calls: CallLog,
    pub(super) throttle: Bucket,
}

/// A service in an outage of [`Outage::Reset`] answers by this, and its connection by a TCP reset.
#[derive(Debug)]
pub(super) struct ConnectionReset;

impl fmt::Display for ConnectionReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated outage resets the connection")
    }
}

impl std::error::Error for ConnectionReset {}

/// What an outage leaves of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Open,
    Refused,
}

impl App {
    pub(super) fn new(cluster: Cluster, issuer: String, settings: Settings) -> anyhow::Result<App> {
        let state = State {
            keys: KeyRing::new(SigningKey::generate()?),
            objects: Objects::default(),
            callers: Callers::default(),
            roles: Roles::default(),
            associations: Associations::default(),
            calls: CallLog::default(),
            throttle: Bucket::default(),
        };
        Ok(App {
            cluster,
            issuer,
            settings: watch::Sender::new(settings),
            foreign_key: SigningKey::generate()?,
            state: Mutex::new(state),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A handler that panicked left at worst a call that is not logged.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current_settings(&self) -> Settings {
        self.settings.borrow().clone()
    }

    /// Waits out, or falls victim to, the outage that `which` picks.
    pub(super) async fn pass_outage(
        &self,
        which: fn(&Settings) -> Outage,
    ) -> Result<Passage, ConnectionReset> {
        let mut settings = self.settings.subscribe();
        // The sender is a field of `self`: it cannot be gone.
        let settled = settings.wait_for(|settings| which(settings) != Outage::Hang).await;
        match settled.map_or(Outage::Off, |settings| which(&settings)) {
            Outage::Reset => Err(ConnectionReset),
            Outage::Refuse => Ok(Passage::Refused),
            Outage::Off | Outage::Hang => Ok(Passage::Open),
        }
    }

    pub(super) fn cluster_named(&self, name: &str) -> Result<&Cluster, ApiError> {
        if name == self.cluster.name {
            return Ok(&self.cluster);
        }
        let message =
            format!("No cluster found for name: {name}. This simulation has one: {}.", self.cluster.name);
        Err(ApiError::new(ErrorCode::ResourceNotFoundException, message))
    }

    pub(super) fn mint(&self, token: PodToken) -> Result<Minted, String> {
        let foreign = token.wants_foreign_key();
        let (unsigned, key) = {
            let mut state = self.state();
            let key = state.keys.current();
            (token.prepare(&self.issuer, &key.kid, clock::wall(), &mut state.objects)?, key)
        };
        unsigned.sign(if foreign { &self.foreign_key } else { &key })
    }

    pub(super) fn associate(&self, new: NewAssociation) -> Result<Association, ApiError> {
        let limit = self.settings.borrow().association_limit;
        self.state().associations.create(&self.cluster, new, limit, self.moment())
    }

    pub(super) fn update_association(
        &self,
        id: &str,
        change: AssociationChange,
    ) -> Result<Association, ApiError> {
        self.state().associations.update(id, change, self.moment())
    }

    pub(super) fn delete_association(&self, id: &str) -> Result<Association, ApiError> {
        self.state().associations.delete(id, self.moment())
    }

    pub(super) fn add_admin(&self, credentials: Credentials) {
        let arn = format!("arn:aws:iam::{}:user/admin", self.cluster.account_id);
        let identity = Identity::Admin { arn, user_id: "AIDASIMULATEDADMIN123".to_owned() };
        self.state().callers.insert(Caller { credentials, identity });
    }

    /// Makes these the node role's credentials, in place of all that it had.
    pub(super) fn set_node_credentials(&self, credentials: Credentials) {
        let mut state = self.state();
        let role = format!("arn:aws:iam::{}:role/node", self.cluster.account_id);
        let user_id = format!("{}:i-0123456789abcdef0", state.roles.id(&role));
        let arn = RoleArn::parse(&role).map(|role| role.session("i-0123456789abcdef0")).unwrap_or_default();
        state.callers.remove_nodes();
        state.callers.insert(Caller { credentials, identity: Identity::Node { arn, user_id } });
    }

    fn moment(&self) -> Moment {
        let delay = Duration::from_millis(self.settings.borrow().association_delay_ms);
        Moment { wall: clock::wall(), mono: clock::mono(), delay }
    }
}

/// Credentials that were made up here, long-lived ones as of a user.
pub(super) fn long_lived_credentials() -> Credentials {
    Credentials::new(id::access_key_id("AKIA"), id::secret_access_key(), None, None, "simulated-eks")
}

/// A token bucket that holds one second's worth of calls.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    level: f64,
    filled: Option<Instant>,
}

impl Bucket {
    pub(super) fn take(&mut self, per_second: f64, now: Instant) -> bool {
        let full = per_second.max(1.0);
        self.level = match self.filled {
            None => full,
            Some(before) => (self.level + now.duration_since(before).as_secs_f64() * per_second).min(full),
        };
        self.filled = Some(now);
        let taken = self.level >= 1.0;
        if taken {
            self.level -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_gives_one_seconds_worth_at_once_and_then_its_rate() {
        let mut bucket = Bucket::default();
        let start = clock::mono();
        let taken = |bucket: &mut Bucket, at: f64| {
            let now = start + Duration::from_secs_f64(at);
            (0..100).take_while(|_| bucket.take(5.0, now)).count()
        };
        assert_eq!(taken(&mut bucket, 0.0), 5);
        assert_eq!(taken(&mut bucket, 0.5), 2);
        assert_eq!(taken(&mut bucket, 60.0), 5);
    }

    #[test]
    fn a_rate_below_one_still_lets_a_call_through() {
        let mut bucket = Bucket::default();
        let start = clock::mono();
        assert!(bucket.take(0.5, start));
        assert!(!bucket.take(0.5, start + Duration::from_secs(1)));
        assert!(bucket.take(0.5, start + Duration::from_secs(2)));
    }
}
