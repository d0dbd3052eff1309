//! What a token says about its pod, and the key that credentials are shared under.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::clock::UnixTime;

/// SHA-256 of a raw token. A fast hash would let a forger search for a collision with a verified token.
pub type TokenHash = [u8; 32];

/// The claims of a projected service account token that podcred acts on. There is one of these for each token that is
/// remembered, so they are small: what many tokens say alike is shared, see [`SharedAccounts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Which token says so.
    pub token_hash: TokenHash,
    pub expires: UnixTime,
    account: Arc<Account>,
    /// The pod's UID and then its name, in one piece of memory.
    pod: Box<str>,
    uid_length: usize,
}

/// The names in a token.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub namespace: &'a str,
    pub service_account: &'a str,
    pub service_account_uid: &'a str,
    pub pod_name: &'a str,
    pub pod_uid: &'a str,
    /// Missing on clusters that do not bind tokens to nodes.
    pub node: Option<&'a str>,
}

/// What the tokens of a service account's pods on one node have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Account {
    namespace: Box<str>,
    name: Box<str>,
    uid: Box<str>,
    node: Option<Box<str>>,
}

impl Claims {
    pub fn new(names: Names<'_>, token_hash: TokenHash, expires: UnixTime) -> Self {
        let account = Account {
            namespace: names.namespace.into(),
            name: names.service_account.into(),
            uid: names.service_account_uid.into(),
            node: names.node.map(Box::from),
        };
        let pod = [names.pod_uid, names.pod_name].concat().into_boxed_str();
        Claims { token_hash, expires, account: Arc::new(account), pod, uid_length: names.pod_uid.len() }
    }

    pub fn namespace(&self) -> &str {
        &self.account.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.account.name
    }

    pub fn service_account_uid(&self) -> &str {
        &self.account.uid
    }

    pub fn pod_name(&self) -> &str {
        &self.pod[self.uid_length..]
    }

    pub fn pod_uid(&self) -> &str {
        &self.pod[..self.uid_length]
    }

    /// The node's name.
    pub fn node(&self) -> Option<&str> {
        self.account.node.as_deref()
    }
}

/// The service accounts of remembered tokens, each in memory once: their names are most of what a token says.
#[derive(Debug, Default)]
pub struct SharedAccounts {
    accounts: HashSet<Arc<Account>>,
    /// At this number those that no token has any more are dropped.
    tidy_at: usize,
}

impl SharedAccounts {
    pub fn share(&mut self, claims: &mut Claims) {
        match self.accounts.get(&claims.account) {
            Some(shared) => claims.account = Arc::clone(shared),
            None => drop(self.accounts.insert(Arc::clone(&claims.account))),
        }
        if self.accounts.len() > self.tidy_at {
            self.accounts.retain(|account| Arc::strong_count(account) > 1);
            self.tidy_at = 2 * self.accounts.len();
        }
    }
}

/// Any of a pod's claims, where they stand for the pod.
#[derive(Debug)]
pub struct OfPod(pub Arc<Claims>);

impl PartialEq for OfPod {
    fn eq(&self, other: &Self) -> bool {
        self.0.pod_uid() == other.0.pod_uid()
    }
}

impl Eq for OfPod {}

impl Hash for OfPod {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.pod_uid().hash(state);
    }
}

impl Borrow<str> for OfPod {
    fn borrow(&self) -> &str {
        self.0.pod_uid()
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

    /// Of the pod that it was made for; the others of a role key differ from it in what is theirs alone.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    pub fn namespace(&self) -> &str {
        self.claims.namespace()
    }

    pub fn service_account(&self) -> &str {
        self.claims.service_account()
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    fn parts(&self) -> (&str, &str, &str, Option<&str>) {
        let c = &self.claims;
        let pod = match self.scope {
            Scope::Role => None,
            Scope::Pod => Some(c.pod_uid()),
        };
        (c.namespace(), c.service_account(), c.service_account_uid(), pod)
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
        let names = Names {
            namespace: "web",
            service_account: account,
            service_account_uid: &format!("uid-of-{account}"),
            pod_name: pod,
            pod_uid: &format!("uid-of-{pod}"),
            node: Some("node-1"),
        };
        Claims::new(names, TokenHash::default(), UnixTime(0))
    }

    #[test]
    fn every_name_is_told_apart() {
        let claims = claims("app", "app-1");
        let account = (claims.namespace(), claims.service_account(), claims.service_account_uid());
        assert_eq!(account, ("web", "app", "uid-of-app"));
        assert_eq!((claims.pod_name(), claims.pod_uid()), ("app-1", "uid-of-app-1"));
        assert_eq!(claims.node(), Some("node-1"));
    }

    #[test]
    fn what_tokens_have_in_common_is_kept_once_and_no_longer_than_they_are() {
        let mut accounts = SharedAccounts::default();
        let mut shared = |account: &str, pod: &str| {
            let before = claims(account, pod);
            let mut claims = before.clone();
            accounts.share(&mut claims);
            assert_eq!(claims, before);
            claims
        };
        let (one, other) = (shared("app", "app-1"), shared("app", "app-2"));
        assert!(Arc::ptr_eq(&one.account, &other.account));
        for n in 0..10_000 {
            shared(&format!("app-{n}"), "pod");
        }
        let kept = accounts.accounts.len();
        assert!(kept < 30, "{kept} accounts of tokens that are gone");
        assert!(accounts.accounts.contains(&one.account));
    }
}
