//! EKS Auth's refusals, remembered for a few seconds, so that a pod that retries does not become a storm.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::authorize::Permit;
use crate::claims::{RoleKey, TokenHash};
use crate::clock::Now;
use crate::eks_auth::Refusal;

/// Long enough for an SDK's attempts, short enough for a person who has just made the association.
const REMEMBERED: Duration = Duration::from_secs(5);
const CAPACITY: usize = 1_024;

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
        Refusals { entries: Cache::new(CAPACITY) }
    }

    pub(super) fn of(&self, permit: &Permit, now: Now) -> Memory {
        // Nearly always empty, and then it costs the request nothing.
        if self.entries.is_empty() {
            return Memory::Nothing;
        }
        if let Some(of_token) = self.entries.get(&About::Token(*permit.token_hash())) {
            return if now.mono < of_token.until {
                Memory::Refuse(of_token.refusal)
            } else {
                Memory::Recheck
            };
        }
        match self.entries.get(&About::Role(permit.key().clone())) {
            Some(of_role) if now.mono < of_role.until => Memory::Refuse(of_role.refusal),
            Some(_) | None => Memory::Nothing,
        }
    }

    pub(super) fn remember_token(&self, token: TokenHash, refusal: Refusal, now: Now) {
        self.entries.insert(About::Token(token), Remembered { refusal, until: now.mono + REMEMBERED });
    }

    pub(super) fn remember_role(&self, key: &RoleKey, refusal: Refusal, now: Now) {
        self.entries.insert(About::Role(key.clone()), Remembered { refusal, until: now.mono + REMEMBERED });
    }

    /// EKS Auth took this token after all.
    pub(super) fn lift(&self, key: &RoleKey, token: &TokenHash) {
        if !self.entries.is_empty() {
            self.entries.remove(&About::Token(*token));
            self.entries.remove(&About::Role(key.clone()));
        }
    }

    pub(super) fn clear(&self) {
        self.entries.clear();
    }

    /// Drops what a role key was refused, once that is too long ago to matter. A token's stays: it must be rechecked.
    pub(super) fn upkeep(&self, now: Now) {
        self.entries.retain(|about, entry| match about {
            About::Role(_) => now.mono < entry.until,
            About::Token(_) => true,
        });
    }
}
