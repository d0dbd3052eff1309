//! Who does this token say is calling, and is that true?

mod ended;
pub mod keys;
mod known;
pub mod last;
#[cfg(test)]
mod minting;
#[cfg(test)]
mod tests;
pub mod token;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::Algorithm;

use self::ended::Ended;
use self::keys::{KeySource, Keys, Lookup};
use self::known::Known;
use self::token::{MAX_TOKEN_BYTES, TokenError};
use crate::claims::{Claims, TokenHash};
use crate::clock::Now;

/// A token that passed.
#[derive(Clone, Debug)]
pub enum Authenticated {
    /// The signature is good and every claim was checked.
    Verified(Arc<Claims>),
    /// Issuer, audience and expiry fit, but EKS Auth is the one to check it: no key set could be had at all, so nobody
    /// checked the signature, or its pod has ended. These claims reach no label and no log.
    Unchecked(Arc<Claims>),
}

impl Authenticated {
    pub fn claims(&self) -> &Arc<Claims> {
        match self {
            Authenticated::Verified(claims) | Authenticated::Unchecked(claims) => claims,
        }
    }

    /// The claims where they are true, and may be told.
    pub fn verified(&self) -> Option<&Arc<Claims>> {
        match self {
            Authenticated::Verified(claims) => Some(claims),
            Authenticated::Unchecked(_) => None,
        }
    }
}

/// Checks tokens of one issuer. A signature is checked once; after that the token is known by its SHA-256 until it
/// expires, also when the key that signed it is gone by then.
pub struct Authenticator {
    issuer: Box<str>,
    keys: Arc<Keys>,
    known: Known,
    ended: Ended,
    /// Counts the times that known tokens were forgotten: what was remembered of one elsewhere is of no use then.
    epoch: AtomicU64,
    verified: AtomicU64,
}

impl Authenticator {
    pub fn new(issuer: String, keys: Arc<Keys>, capacity: usize, most_of_a_pod: usize) -> Self {
        Authenticator {
            issuer: issuer.into(),
            keys,
            known: Known::new(capacity, most_of_a_pod),
            ended: Ended::default(),
            epoch: AtomicU64::new(0),
            verified: AtomicU64::new(0),
        }
    }

    /// `token` is the raw value of the one `Authorization` header.
    pub async fn authenticate(&self, token: &[u8], now: Now) -> Result<Authenticated, TokenError> {
        // Before the hash: an attacker must not choose how much is hashed.
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let hash = sha256(token);
        if let Some(claims) = self.known.get(&hash) {
            token::check_expiry(claims.expires, now.wall)?;
            return Ok(Authenticated::Verified(claims));
        }
        // Boxed, as all that few requests wait for: each connection has room for a whole request's future.
        Box::pin(self.check(token, hash, now)).await
    }

    /// Whose token this is, if it was ever verified.
    pub fn pod_of(&self, token: &[u8]) -> Option<Arc<Claims>> {
        (token.len() <= MAX_TOKEN_BYTES).then(|| self.known.get(&sha256(token)))?
    }

    /// To be asked before [`Authenticator::authenticate`] by whoever remembers what that gave.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A token outlives its pod, and whoever took it from there could go on with it. From here on EKS Auth is asked about
    /// the tokens of those that have `ended`, as long as they are not among the `live`.
    pub fn pods_ended(&self, ended: &[Arc<str>], live: &HashSet<Arc<str>>, now: Now) {
        self.ended.note(ended, live, now);
        if !ended.is_empty() {
            self.known.forget(ended);
            self.epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// From here on every token is checked anew.
    pub fn forget_all(&self) {
        self.known.clear();
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The issuer may have withdrawn a key that is good here for hours. What passed by it is forgotten as well.
    pub async fn renew_keys(&self, now: Now) {
        self.keys.renewed(now).await;
        self.forget_all();
    }

    /// Signatures that were checked and good, since the start.
    pub fn tokens_verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    async fn check(&self, token: &[u8], hash: TokenHash, now: Now) -> Result<Authenticated, TokenError> {
        let unverified = token::parse(token, hash, &self.issuer, now.wall)?;
        let key = match self.keys.find(unverified.key_id(), now).await {
            Lookup::Found(key) => key,
            Lookup::Unknown => return Err(TokenError::UnknownKey),
            Lookup::CannotTell => return Err(TokenError::KeysUnavailable),
            Lookup::NoKeys => return Ok(Authenticated::Unchecked(Arc::new(unverified.into_claims()))),
        };
        // jsonwebtoken's own check of claims reads the clock; only its check of signatures is used.
        let good = jsonwebtoken::crypto::verify(
            unverified.signature(),
            unverified.signed_part(),
            &key,
            Algorithm::RS256,
        );
        if !matches!(good, Ok(true)) {
            return Err(TokenError::Signature);
        }
        self.verified.fetch_add(1, Ordering::Relaxed);
        Ok(self.known.remember(unverified.into_claims(), |pod_uid| self.ended.contains(pod_uid)))
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("issuer", &self.issuer)
            .field("keys", &self.keys)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// The issuer that the agent's own projected token names. The kubelet put that file there, so it can be trusted
/// without a signature; a token that a pod presents never names the issuer it is checked against.
pub fn issuer_from_token_file(path: &Path) -> Result<String, String> {
    let remedy = "project a service account token there, or give --issuer";
    let token = std::fs::read_to_string(path).map_err(|error| {
        format!("the agent's own token {} cannot be read: {error}; {remedy}", path.display())
    })?;
    let issuer = token::issuer_of(token.trim()).ok_or_else(|| {
        format!("{} holds no service account token that names its issuer; {remedy}", path.display())
    })?;
    KeySource::of_issuer(&issuer)
        .map_err(|problem| format!("the issuer {issuer:?} in {} {problem}; {remedy}", path.display()))?;
    Ok(issuer)
}

fn sha256(token: &[u8]) -> TokenHash {
    let mut hash = TokenHash::default();
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}
