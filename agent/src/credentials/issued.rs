//! One set of credentials, with the response body that hands it out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::authenticate::token::AUDIENCE;
use crate::claims::{Claims, RoleKey};
use crate::clock::{Now, UnixTime};
use crate::eks_auth::Assumed;

/// SDKs ask again when this much is left at most (boto3: 15 min), and then at every call.
const LOW_WATER: Duration = Duration::from_secs(15 * 60);

pub struct Issued {
    /// Made once, wiped when the last response that uses it is gone.
    pub body: Bytes,
    pub access_key_id: String,
    pub session_arn: String,
    pub association_id: String,
    pub expiration: UnixTime,
    pub obtained: Now,
    /// Whose token bought it: the pod that CloudTrail names.
    pub fetched_by: Arc<Claims>,
    /// After this time a refresh is due.
    pub refresh_after: Duration,
}

/// What SDKs read; the order of the official agent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    account_id: &'a str,
    expiration: String,
}

impl Issued {
    /// Refuses an answer that is not about the pod that asked, or that is of no use to it.
    pub fn new(
        assumed: &Assumed,
        asked_by: &Arc<Claims>,
        retention: Duration,
        jitter: f64,
        now: Now,
    ) -> Result<Self, &'static str> {
        if assumed.namespace != asked_by.namespace() || assumed.service_account != asked_by.service_account()
        {
            return Err("EKS Auth answered for another service account than the token's");
        }
        if assumed.audience != AUDIENCE {
            return Err("EKS Auth answered for another audience than the token's");
        }
        let life = assumed.expiration.remaining_at(now.wall);
        if life.is_zero() {
            return Err(
                "EKS Auth sent credentials that have expired by this node's clock; check the node's time",
            );
        }
        let text = Body {
            access_key_id: &assumed.access_key_id,
            secret_access_key: assumed.secret_access_key.expose_secret(),
            token: assumed.session_token.expose_secret(),
            account_id: account_of(&assumed.session_arn),
            expiration: assumed.expiration.to_string(),
        };
        let body = wiped_bytes(&text)?;
        Ok(Issued {
            body,
            access_key_id: assumed.access_key_id.clone(),
            session_arn: assumed.session_arn.clone(),
            association_id: assumed.association_id.clone(),
            expiration: assumed.expiration,
            obtained: now,
            fetched_by: Arc::clone(asked_by),
            // Up to a fifth earlier, so that roles fetched together do not come back together.
            refresh_after: (life / 2).min(retention).mul_f64(1.0 - 0.2 * jitter),
        })
    }

    /// By both clocks, whichever says less: wall time is what AWS goes by, monotonic time is what no one can set.
    pub fn remaining_at(&self, now: Now) -> Duration {
        let by_mono = self.life().saturating_sub(self.age_at(now));
        self.expiration.remaining_at(now.wall).min(by_mono)
    }

    pub fn age_at(&self, now: Now) -> Duration {
        now.mono.saturating_duration_since(self.obtained.mono)
    }

    pub fn life(&self) -> Duration {
        self.expiration.remaining_at(self.obtained.wall)
    }

    /// So little is left that the pod's SDK would ask again at every call.
    pub fn is_low_at(&self, now: Now) -> bool {
        self.remaining_at(now) < LOW_WATER.min(self.life() / 4)
    }

    pub fn is_due_at(&self, now: Now) -> bool {
        self.age_at(now) >= self.refresh_after || self.is_low_at(now)
    }

    /// The line that says who got what: sharing makes CloudTrail name one pod for all.
    pub fn log_issued_to(&self, pod: &Claims, key: &RoleKey) {
        tracing::info!(
            event = "issued",
            namespace = key.namespace(),
            service_account = key.service_account(),
            pod = pod.pod_name(),
            pod_uid = pod.pod_uid(),
            access_key_id = self.access_key_id,
            session = self.session_arn,
            association = self.association_id,
            fetched_by_pod_uid = self.fetched_by.pod_uid(),
            expiration = %self.expiration,
            "credentials issued",
        );
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("access_key_id", &self.access_key_id)
            .field("session_arn", &self.session_arn)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

/// Writes into a buffer that is wiped. It is big enough from the start: a buffer that grows leaves copies behind.
fn wiped_bytes(body: &Body<'_>) -> Result<Bytes, &'static str> {
    let room = 256 + 2 * (body.token.len() + body.secret_access_key.len());
    let mut buffer = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *buffer, body)
        .map_err(|_| "EKS Auth sent credentials that do not fit into JSON")?;
    Ok(Bytes::from_owner(buffer))
}

/// The account in `arn:aws:sts::<account>:assumed-role/…`; with a target role, the target's.
fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}
