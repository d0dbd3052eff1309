//! The tokens that were verified, found by their SHA-256.
//!
//! There are thousands of them, so each is in memory once, with its hash among its claims, and both tables hold pointers.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock};

use hashbrown::HashTable;

use super::Authenticated;
use crate::claims::{Claims, SharedAccounts, TokenHash};
use crate::locks::{read, write};

pub(super) struct Known {
    capacity: usize,
    most_of_a_pod: usize,
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    by_token: HashTable<Arc<Claims>>,
    /// Nobody's many tokens may push out another's: those of one pod are found by its UID, numbered as they came.
    by_pod: HashTable<(u64, Arc<Claims>)>,
    remembered: u64,
    accounts: SharedAccounts,
    hashing: RandomState,
}

impl Known {
    pub(super) fn new(capacity: usize, most_of_a_pod: usize) -> Self {
        Known { capacity, most_of_a_pod, tables: RwLock::default() }
    }

    pub(super) fn get(&self, token: &TokenHash) -> Option<Arc<Claims>> {
        read(&self.tables).get(token).cloned()
    }

    /// Whether its pod `has_ended` is asked under the lock, so that none is remembered when those of its pod have just been
    /// forgotten.
    pub(super) fn remember(&self, mut claims: Claims, has_ended: impl FnOnce(&str) -> bool) -> Authenticated {
        let mut tables = write(&self.tables);
        if has_ended(claims.pod_uid()) {
            return Authenticated::Unchecked(Arc::new(claims));
        }
        // Two requests may have verified one token at the same time.
        if let Some(claims) = tables.get(&claims.token_hash) {
            return Authenticated::Verified(Arc::clone(claims));
        }
        while let Some(first) = tables.first_of(claims.pod_uid(), self.most_of_a_pod) {
            tables.remove(&first);
        }
        if tables.by_token.len() >= self.capacity {
            tables.make_room();
        }
        tables.accounts.share(&mut claims);
        let claims = Arc::new(claims);
        tables.insert(&claims);
        Authenticated::Verified(claims)
    }

    pub(super) fn forget(&self, pods: &[Arc<str>]) {
        let mut tables = write(&self.tables);
        for pod in pods {
            while let Some(claims) = tables.first_of(pod, 1) {
                tables.remove(&claims);
            }
        }
    }

    pub(super) fn clear(&self) {
        *write(&self.tables) = Tables::default();
    }
}

impl Tables {
    fn get(&self, token: &TokenHash) -> Option<&Arc<Claims>> {
        self.by_token.find(spread(token), |claims| claims.token_hash == *token)
    }

    fn insert(&mut self, claims: &Arc<Claims>) {
        self.remembered += 1;
        let Tables { by_token, by_pod, remembered, hashing, .. } = self;
        let of_pod = |claims: &Claims| hashing.hash_one(claims.pod_uid());
        by_token.insert_unique(spread(&claims.token_hash), Arc::clone(claims), |claims| {
            spread(&claims.token_hash)
        });
        let numbered = (*remembered, Arc::clone(claims));
        by_pod.insert_unique(of_pod(claims), numbered, |(_, claims)| of_pod(claims));
    }

    fn remove(&mut self, claims: &Arc<Claims>) {
        let of_pod = self.hashing.hash_one(claims.pod_uid());
        let by_token = self.by_token.find_entry(spread(&claims.token_hash), |one| Arc::ptr_eq(one, claims));
        by_token.ok().map(|entry| entry.remove());
        let by_pod = self.by_pod.find_entry(of_pod, |(_, one)| Arc::ptr_eq(one, claims));
        by_pod.ok().map(|entry| entry.remove());
    }

    /// Where this pod has so many tokens.
    fn first_of(&self, pod_uid: &str, most: usize) -> Option<Arc<Claims>> {
        let same_hash = self.by_pod.iter_hash(self.hashing.hash_one(pod_uid));
        let own: Vec<_> = same_hash.filter(|(_, claims)| claims.pod_uid() == pod_uid).collect();
        let (_, first) = own.iter().min_by_key(|(number, _)| number).filter(|_| own.len() >= most)?;
        Some(Arc::clone(first))
    }

    /// The tenth that expires first goes, at once, because it takes a look at all of them. A token that is still in use is
    /// verified another time.
    fn make_room(&mut self) {
        let mut ends: Vec<_> = self.by_token.iter().map(|claims| claims.expires).collect();
        let tenth = ends.len() / 10;
        let (_, &mut end, _) = ends.select_nth_unstable(tenth);
        self.by_token.retain(|claims| claims.expires > end);
        self.by_pod.retain(|(_, claims)| claims.expires > end);
    }
}

/// A SHA-256 needs no hashing, and who could choose some of its bytes would still have to have the token signed.
fn spread(token: &TokenHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *token;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("tokens", &read(&self.tables).by_token.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Names;
    use crate::clock::UnixTime;

    const CAPACITY: usize = 100;

    fn claims(pod: usize, token: usize, expires: usize) -> Claims {
        let names = Names {
            namespace: "shop",
            service_account: "cart",
            service_account_uid: "sa",
            pod_name: &format!("cart-{pod}"),
            pod_uid: &format!("uid-{pod}"),
            node: None,
        };
        Claims::new(names, hash(pod, token), UnixTime(expires as u64))
    }

    fn hash(pod: usize, token: usize) -> TokenHash {
        let mut hash = [7; 32];
        hash[8..16].copy_from_slice(&pod.to_ne_bytes());
        hash[16..24].copy_from_slice(&token.to_ne_bytes());
        hash
    }

    fn known(all: impl IntoIterator<Item = Claims>) -> Known {
        let known = Known::new(CAPACITY, 4);
        for claims in all {
            assert!(known.remember(claims, |_| false).verified().is_some());
        }
        known
    }

    fn size(known: &Known) -> [usize; 2] {
        let tables = read(&known.tables);
        [tables.by_token.len(), tables.by_pod.len()]
    }

    #[test]
    fn a_token_is_found_by_its_whole_hash() {
        let known = known((0..10).map(|pod| claims(pod, 0, 0)));
        for pod in 0..10 {
            let found = known.get(&hash(pod, 0)).expect("remembered");
            assert_eq!(found.pod_uid(), format!("uid-{pod}"));
            assert_eq!(known.get(&hash(pod, 1)), None, "it begins with the same bytes");
        }
    }

    #[test]
    fn a_token_that_two_requests_verified_takes_one_place() {
        let known = known([claims(1, 1, 5), claims(1, 1, 5)]);
        assert_eq!(size(&known), [1, 1]);
    }

    #[test]
    fn a_pod_keeps_the_last_of_its_tokens() {
        let known = known((0..20).map(|token| claims(1, token, 5)).chain([claims(2, 0, 0)]));
        let kept = |token| known.get(&hash(1, token)).is_some();
        assert!((16..20).all(kept) && !(0..16).any(kept));
        known.remember(claims(1, 20, 3), |_| false);
        assert!(kept(20) && !kept(16));
        assert!(known.get(&hash(2, 0)).is_some(), "another pod's");
        assert_eq!(size(&known), [5, 5]);
    }

    #[test]
    fn a_pod_that_has_ended_is_forgotten_with_all_its_tokens_and_no_more_is_remembered_of_it() {
        let known = known((0..12).map(|n| claims(n % 4, n, n)));
        known.forget(&["uid-1".into(), "uid-9".into()]);
        assert!((0..12).all(|n| known.get(&hash(n % 4, n)).is_some() == (n % 4 != 1)));
        let late = known.remember(claims(1, 20, 20), |pod_uid| pod_uid == "uid-1");
        assert!(late.verified().is_none() && known.get(&hash(1, 20)).is_none());
        assert_eq!(size(&known), [9, 9]);
        known.clear();
        assert_eq!(size(&known), [0, 0]);
    }

    #[test]
    fn when_there_is_no_more_room_those_that_expire_first_make_it() {
        let known = known((0..=CAPACITY).map(|pod| claims(pod, 0, pod)));
        let kept = |pod| known.get(&hash(pod, 0)).is_some();
        assert!(!(0..=10).any(kept) && (11..=CAPACITY).all(kept));
        assert_eq!(size(&known), [CAPACITY - 10; 2]);
    }
}
