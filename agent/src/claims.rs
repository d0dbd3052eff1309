//! What a token says about its pod, and the key that credentials are shared under.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::clock::UnixTime;

/// SHA-256 of a raw token. A fast hash would let a forger search for a collision with a verified token.
pub type TokenHash = [u8; 32];

/// The claims of a projected service account token that podcred acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub namespace: Box<str>,
    pub service_account: Box<str>,
    pub service_account_uid: Box<str>,
    pub pod_name: Box<str>,
    pub pod_uid: Arc<str>,
    /// Missing on clusters that do not bind tokens to nodes.
    pub node: Option<Node>,
    pub expires: UnixTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Box<str>,
    /// Empty where the token names the node without its UID.
    pub uid: Box<str>,
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
