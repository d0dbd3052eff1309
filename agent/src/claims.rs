//! What a token says about its pod, and the key that credentials are shared under.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::clock::UnixTime;

/// SHA-256 of a raw token. A fast hash would let a forger search for a collision with a verified token.
pub type TokenHash = [u8; 32];

/// The claims of a projected service account token that podcred acts on. What many tokens say alike is shared, see
/// [`SharedNames`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    pub service_account_uid: Arc<str>,
    pub pod_name: Box<str>,
    pub pod_uid: Arc<str>,
    /// The node's name. Missing on clusters that do not bind tokens to nodes.
    pub node: Option<Arc<str>>,
    pub expires: UnixTime,
}

/// The names that the tokens of a node have in common, each in memory once: they are most of what a remembered token takes.
#[derive(Debug, Default)]
pub struct SharedNames {
    names: HashSet<Arc<str>>,
    /// At this number those that no token has any more are dropped.
    tidy_at: usize,
}

impl SharedNames {
    pub fn share(&mut self, claims: &mut Claims) {
        let Claims { namespace, service_account, service_account_uid, node, .. } = claims;
        for name in [namespace, service_account, service_account_uid].into_iter().chain(node) {
            match self.names.get(name) {
                Some(shared) => *name = Arc::clone(shared),
                None => drop(self.names.insert(Arc::clone(name))),
            }
        }
        if self.names.len() > self.tidy_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.tidy_at = 2 * self.names.len();
        }
    }
}

/// Who may share one set of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All pods of one service account (by UID): the default.
    Role,
    /// One pod, for service accounts whose policies look at pod name or UID.
    Pod,
}

/// The role key: which credentials a pod gets. One agent serves one cluster, so the cluster is not in it.
///
/// It includes the service account's UID: a namespace or service account that was deleted and made again inherits
/// nothing. It never includes the role's ARN: two associations with one role differ in session tags and policy.
#[derive(Clone, Debug)]
pub struct RoleKey {
    claims: Arc<Claims>,
    scope: Scope,
}

impl RoleKey {
    pub fn new(claims: Arc<Claims>, scope: Scope) -> Self {
        RoleKey { claims, scope }
    }

    pub fn namespace(&self) -> &str {
        &self.claims.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.claims.service_account
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    fn parts(&self) -> (&str, &str, &str, Option<&str>) {
        let c = &self.claims;
        let pod = match self.scope {
            Scope::Role => None,
            Scope::Pod => Some(&*c.pod_uid),
        };
        (&c.namespace, &c.service_account, &c.service_account_uid, pod)
    }
}

impl PartialEq for RoleKey {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for RoleKey {}

impl Hash for RoleKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(account: &str, pod: &str) -> Claims {
        Claims {
            namespace: "web".into(),
            service_account: account.into(),
            service_account_uid: format!("uid-of-{account}").as_str().into(),
            pod_name: pod.into(),
            pod_uid: format!("uid-of-{pod}").as_str().into(),
            node: Some("node-1".into()),
            expires: UnixTime(0),
        }
    }

    #[test]
    fn what_tokens_have_in_common_is_kept_once_and_no_longer_than_they_are() {
        let mut names = SharedNames::default();
        let mut shared = |account: &str, pod: &str| {
            let before = claims(account, pod);
            let mut claims = before.clone();
            names.share(&mut claims);
            assert_eq!(claims, before);
            claims
        };
        let (one, other) = (shared("app", "app-1"), shared("app", "app-2"));
        assert!(Arc::ptr_eq(&one.service_account_uid, &other.service_account_uid));
        assert!(Arc::ptr_eq(one.node.as_ref().unwrap(), other.node.as_ref().unwrap()));
        for n in 0..10_000 {
            shared(&format!("app-{n}"), "pod");
        }
        assert!(names.names.len() < 30, "{} names of tokens that are gone", names.names.len());
        assert!(names.names.contains(&*one.service_account));
    }
}
