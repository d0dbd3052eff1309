//! EKS Auth's refusals, remembered for a few seconds, so that a pod that retries does not become a storm.

use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, UnitWeighter};
use tokio::time::Instant;

use crate::authorize::Permit;
use crate::claims::{Claims, RoleKey, TokenHash};
use crate::clock::{Now, UnixTime};
use crate::eks_auth::Refusal;

/// Long enough for an SDK's attempts, short enough for a person who has just made the association.
const REMEMBERED: Duration = Duration::from_secs(5);
/// An entry that is evicted is a condemned token forgiven, so there is room for more tokens than a node sees in a day.
const CAPACITY: usize = 16_384;

#[derive(Debug)]
pub(super) struct Refusals {
    entries: Cache<About, Remembered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Role(RoleKey),
    Token(TokenHash),
}

#[derive(Clone, Debug)]
struct Remembered {
    refusal: Refusal,
    until: Instant,
    /// When the token expires and needs no condemning any more; a role key's entry has none.
    token_expires: Option<UnixTime>,
}

#[derive(Debug)]
pub(super) enum Memory {
    Nothing,
    /// Refused a moment ago: the answer would be the same.
    Refuse(Refusal),
    /// EKS Auth did not take this very token. It may try again, but is served from no cache.
    Recheck,
}

impl Refusals {
    pub(super) fn new() -> Self {
        // One shard: each request asks whether there is anything, which takes every shard's lock, and by default there are
        // four for each processor.
        let options = super::options(CAPACITY, 1);
        let (hashing, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Refusals { entries: Cache::with_options(options, UnitWeighter, hashing, lifecycle) }
    }

    pub(super) fn of(&self, permit: &Permit, now: Now) -> Memory {
        // Nearly always empty, and then it costs the request little.
        if self.entries.is_empty() {
            return Memory::Nothing;
        }
        let of_token = self.of_token(&permit.claims().token_hash, now);
        if matches!(of_token, Memory::Refuse(_)) {
            return of_token;
        }
        // Whatever its token is worth, a role key without an association has nothing.
        match self.entries.get(&About::Role(permit.key().clone())) {
            Some(of_role) if now.mono < of_role.until => Memory::Refuse(of_role.refusal),
            Some(_) | None => of_token,
        }
    }

    pub(super) fn of_token(&self, token: &TokenHash, now: Now) -> Memory {
        match self.entries.get(&About::Token(*token)) {
            Some(entry) if now.mono < entry.until => Memory::Refuse(entry.refusal),
            Some(_) => Memory::Recheck,
            None => Memory::Nothing,
        }
    }

    pub(super) fn remember_token(&self, token: TokenHash, claims: &Claims, refusal: Refusal, now: Now) {
        let entry = Remembered { refusal, until: now.mono + REMEMBERED, token_expires: Some(claims.expires) };
        self.entries.insert(About::Token(token), entry);
    }

    pub(super) fn remember_role(&self, key: &RoleKey, refusal: Refusal, now: Now) {
        let entry = Remembered { refusal, until: now.mono + REMEMBERED, token_expires: None };
        self.entries.insert(About::Role(key.clone()), entry);
    }

    /// EKS Auth took this token after all.
    pub(super) fn lift(&self, key: &RoleKey, token: &TokenHash) {
        if !self.entries.is_empty() {
            self.entries.remove(&About::Token(*token));
            self.entries.remove(&About::Role(key.clone()));
        }
    }

    /// After a flush every service account may be asked about anew. Tokens stay condemned: that is about them, and
    /// this agent has no other way to turn one away.
    pub(super) fn forget_roles(&self) {
        self.entries.retain(|about, _| matches!(about, About::Token(_)));
    }

    /// Drops what is too long ago to matter; a condemned token must be rechecked for as long as it lives.
    pub(super) fn upkeep(&self, now: Now) {
        self.entries.retain(|_, entry| match entry.token_expires {
            None => now.mono < entry.until,
            Some(expires) => now.wall < expires,
        });
    }
}
