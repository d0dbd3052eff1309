//! The pods of this node that have ended: by their signatures, their tokens would be good for up to a day more.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Now;
use crate::locks::lock;

/// EKS lets no token live longer than a day, and none is made for a pod that has ended.
const TOKENS_LIVE: Duration = Duration::from_secs(24 * 3600 + 60);
/// Then the earliest is forgotten.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct Ended {
    hashing: RandomState,
    /// When each ended, by a hash of its UID. If another pod's UID should have the same one, EKS Auth is asked about that pod's
    /// tokens, and takes them.
    pods: Mutex<HashMap<u64, Instant>>,
}

impl Ended {
    /// `live` are those that have a cgroup now. One that was taken for ended may be among them: then it is not.
    pub(super) fn note(&self, ended: &[Arc<str>], live: &HashSet<Arc<str>>, now: Now) {
        let mut pods = lock(&self.pods);
        for uid in ended {
            pods.insert(self.hashing.hash_one(&**uid), now.mono);
        }
        if pods.is_empty() {
            return;
        }
        for uid in live {
            pods.remove(&self.hashing.hash_one(&**uid));
        }
        pods.retain(|_, at| now.mono.saturating_duration_since(*at) < TOKENS_LIVE);
        while pods.len() > MOST
            && let Some(earliest) = pods.iter().min_by_key(|(_, at)| **at).map(|(uid, _)| *uid)
        {
            pods.remove(&earliest);
        }
    }

    pub(super) fn contains(&self, pod_uid: &str) -> bool {
        lock(&self.pods).contains_key(&self.hashing.hash_one(pod_uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixTime};

    fn uids(numbers: std::ops::Range<usize>) -> Vec<Arc<str>> {
        numbers.map(|n| format!("uid-{n}").into()).collect()
    }

    fn none() -> HashSet<Arc<str>> {
        HashSet::new()
    }

    #[test]
    fn a_pod_has_ended_until_its_last_token_has_expired_or_it_is_seen_alive() {
        let ended = Ended::default();
        let start = Clock::default().now();
        let later = |seconds| Now { wall: UnixTime(0), mono: start.mono + Duration::from_secs(seconds) };
        ended.note(&uids(0..2), &none(), start);
        assert!(ended.contains("uid-0") && ended.contains("uid-1") && !ended.contains("uid-2"));
        ended.note(&[], &uids(1..3).into_iter().collect(), later(10));
        assert!(ended.contains("uid-0") && !ended.contains("uid-1"));
        ended.note(&[], &none(), later(24 * 3600));
        assert!(ended.contains("uid-0"));
        ended.note(&[], &none(), later(25 * 3600));
        assert!(!ended.contains("uid-0"));
    }

    #[test]
    fn those_that_ended_first_make_room() {
        let ended = Ended::default();
        let start = Clock::default().now();
        ended.note(&uids(0..5), &none(), start);
        let later = Now { mono: start.mono + Duration::from_secs(10), ..start };
        ended.note(&uids(5..MOST + 3), &none(), later);
        let kept = |n| ended.contains(&format!("uid-{n}"));
        assert_eq!(lock(&ended.pods).len(), MOST);
        assert_eq!((0..5).filter(|n| kept(*n)).count(), 2);
        assert!((5..MOST + 3).all(kept));
    }
}
