//! The token that a pod presented last; or, where the kernel cannot say whose a connection is, that the connection did. It is the
//! same one for hours, and its SHA-256 would be a tenth of what a request costs on a connection that is kept, and a fortieth on
//! one of its own.
//!
//! The cache of known tokens does not hear of it. Where that is full, the busiest token may fall out of it, and costs another
//! check of its signature once it comes by another way.

use std::fmt;
use std::sync::{Arc, Mutex};

use zeroize::Zeroizing;

use super::Authenticated;
use super::token::check_expiry;
use crate::claims::Claims;
use crate::clock::Now;
use crate::locks::lock;

/// It only ever says yes, and only to what the authenticator passed before: everything else is for that to judge.
#[derive(Default)]
pub struct LastToken(Mutex<Option<Last>>);

struct Last {
    claims: Arc<Claims>,
    /// The authenticator's, when it passed this token.
    epoch: u64,
    /// Where it came twice: most connections, and many pods, ask once, and need no copy.
    token: Option<Zeroizing<Box<[u8]>>>,
}

impl LastToken {
    /// Where this is the token that was verified before, in this epoch of the authenticator, and has not expired since.
    pub fn again(&self, token: &[u8], epoch: u64, now: Now) -> Option<Authenticated> {
        let last = lock(&self.0);
        let Last { claims, epoch: passed_in, token: Some(last) } = last.as_ref()? else { return None };
        let passes =
            *passed_in == epoch && are_same(last, token) && check_expiry(claims.expires, now.wall).is_ok();
        passes.then(|| Authenticated::Verified(Arc::clone(claims)))
    }

    /// `token` was just authenticated, no earlier than in this epoch.
    pub fn note(&self, token: &[u8], epoch: u64, authenticated: &Authenticated) {
        let Authenticated::Verified(claims) = authenticated else { return };
        let mut last = lock(&self.0);
        let has_come_before = last.as_ref().is_some_and(|last| last.claims.token_hash == claims.token_hash);
        let token = has_come_before.then(|| Zeroizing::new(token.into()));
        *last = Some(Last { claims: Arc::clone(claims), epoch, token });
    }
}

impl fmt::Debug for LastToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastToken").finish_non_exhaustive()
    }
}

/// In a time that does not tell how much of it is right: a proxy's clients share its connections. Unlike aws-lc's, which goes
/// byte by byte and takes as long as SHA-256, the compiler makes vectors of this loop.
fn are_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).fold(0, |different, (one, other)| different | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::minting::{EXPIRES, NOW};
    use crate::claims::Names;
    use crate::clock::{Clock, UnixTime};

    fn at(wall: u64) -> Now {
        Now { wall: UnixTime(wall), mono: Clock::default().now().mono }
    }

    fn claims(hash: u8) -> Arc<Claims> {
        let names = Names {
            namespace: "shop",
            service_account: "cart",
            service_account_uid: "sa",
            pod_name: "cart-1",
            pod_uid: "uid",
            node: None,
        };
        Arc::new(Claims::new(names, [hash; 32], UnixTime(EXPIRES)))
    }

    fn verified(hash: u8) -> Authenticated {
        Authenticated::Verified(claims(hash))
    }

    fn remembers(last: &LastToken, token: &[u8]) -> bool {
        last.again(token, 0, at(NOW)).is_some()
    }

    #[test]
    fn a_token_that_came_twice_passes_until_it_expires() {
        let last = LastToken::default();
        last.note(b"a.b.c", 0, &verified(1));
        assert!(!remembers(&last, b"a.b.c"), "most connections ask once");
        last.note(b"a.b.c", 0, &verified(1));
        for (wall, passes) in [(NOW, true), (EXPIRES + 29, true), (EXPIRES + 30, false), (NOW, true)] {
            let passed = last.again(b"a.b.c", 0, at(wall));
            assert_eq!(passed.is_some(), passes, "{wall}");
            if let Some(passed) = passed {
                let Authenticated::Verified(passed) = passed else { panic!("{passed:?}") };
                assert_eq!(passed, claims(1));
            }
        }
    }

    #[test]
    fn another_token_is_for_the_authenticator() {
        let last = LastToken::default();
        for _ in 0..2 {
            last.note(b"a.b.c", 0, &verified(1));
        }
        for other in [&b"a.b.d"[..], b"A.b.c", b"a.b.cc", b"a.b.", b""] {
            assert!(!remembers(&last, other), "{other:?}");
        }
        last.note(b"x.y.z", 0, &verified(2));
        assert!(!remembers(&last, b"a.b.c") && !remembers(&last, b"x.y.z"));
        last.note(b"a.b.c", 0, &verified(1));
        assert!(!remembers(&last, b"a.b.c"), "another one came between");
    }

    #[test]
    fn a_token_of_another_epoch_is_for_the_authenticator() {
        let last = LastToken::default();
        for _ in 0..2 {
            last.note(b"a.b.c", 0, &verified(1));
        }
        assert!(remembers(&last, b"a.b.c"));
        assert!(last.again(b"a.b.c", 1, at(NOW)).is_none());
        last.note(b"a.b.c", 1, &verified(1));
        assert!(last.again(b"a.b.c", 1, at(NOW)).is_some());
    }

    #[test]
    fn what_nobody_verified_is_not_remembered() {
        let last = LastToken::default();
        for _ in 0..3 {
            last.note(b"a.b.c", 0, &Authenticated::Unchecked(claims(1)));
        }
        assert!(!remembers(&last, b"a.b.c"));
    }

    #[test]
    fn the_token_is_not_in_debug_output() {
        let last = LastToken::default();
        for _ in 0..2 {
            last.note(b"eyJh.b.c", 0, &verified(1));
        }
        assert!(remembers(&last, b"eyJh.b.c"));
        assert_eq!(format!("{last:?}"), "LastToken { .. }");
    }
}
