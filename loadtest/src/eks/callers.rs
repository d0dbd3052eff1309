//! Who may sign a request: the node role, an administrator, and the role sessions that EKS Auth handed out.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use aws_credential_types::Credentials;
use serde::Serialize;

use crate::clock;

/// An access key that the simulation knows. `Credentials` redacts itself.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) credentials: Credentials,
    pub(super) identity: Identity,
}

impl Caller {
    pub(super) fn expired_at(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_some_and(|end| end <= now)
    }
}

#[derive(Clone, Debug)]
pub(super) enum Identity {
    /// A node's instance role.
    Node { arn: String, user_id: String },
    /// Somebody who may use the associations API.
    Admin { arn: String, user_id: String },
    /// A pod's role session.
    Session(Box<Session>),
}

impl Identity {
    pub(super) fn arn(&self) -> &str {
        match self {
            Identity::Node { arn, .. } | Identity::Admin { arn, .. } => arn,
            Identity::Session(session) => &session.session_arn,
        }
    }

    pub(super) fn user_id(&self) -> &str {
        match self {
            Identity::Node { user_id, .. } | Identity::Admin { user_id, .. } => user_id,
            Identity::Session(session) => &session.assumed_role_id,
        }
    }
}

/// One role session: what IAM would know about it, without its secrets.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub access_key_id: String,
    /// The role whose permissions the session has: the target role where there is one.
    pub role_arn: String,
    pub session_arn: String,
    /// `AROA…:session-name`
    pub assumed_role_id: String,
    /// The association's role, where it was only a step towards the target role.
    pub source_role_arn: Option<String>,
    pub association_id: String,
    pub namespace: String,
    pub service_account: String,
    pub pod_uid: String,
    /// The session tags; all of them are transitive.
    pub tags: BTreeMap<String, String>,
    pub transitive_tag_keys: Vec<String>,
    /// The session policy.
    pub policy: Option<String>,
    /// Seconds since 1970.
    pub expiration: i64,
}

/// All callers by access key id. Expired ones stay for a while: STS tells "expired" from "unknown".
#[derive(Debug, Default)]
pub(super) struct Callers {
    by_key: HashMap<String, Caller>,
    swept_at_size: usize,
}

impl Callers {
    pub(super) fn insert(&mut self, caller: Caller) {
        self.by_key.insert(caller.credentials.access_key_id().to_owned(), caller);
    }

    pub(super) fn remove_nodes(&mut self) {
        self.by_key.retain(|_, caller| !matches!(caller.identity, Identity::Node { .. }));
    }

    pub(super) fn get(&self, access_key_id: &str) -> Option<Caller> {
        self.by_key.get(access_key_id).cloned()
    }

    /// Adds a role session, and now and then forgets those that ended an hour ago, so that a long load run does not
    /// grow without end. Doubling the size between two sweeps keeps their cost per call constant.
    pub(super) fn insert_session(&mut self, caller: Caller, now: SystemTime) {
        if self.by_key.len() > (2 * self.swept_at_size).max(10_000) {
            let hour_ago = clock::epoch_seconds(now) - 3600;
            self.by_key.retain(
                |_, caller| !matches!(&caller.identity, Identity::Session(s) if s.expiration < hour_ago),
            );
            self.swept_at_size = self.by_key.len();
        }
        self.insert(caller);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(number: usize, expires: SystemTime) -> Caller {
        let key = format!("ASIA{number}");
        let session = Session {
            access_key_id: key.clone(),
            role_arn: String::new(),
            session_arn: String::new(),
            assumed_role_id: String::new(),
            source_role_arn: None,
            association_id: String::new(),
            namespace: String::new(),
            service_account: String::new(),
            pod_uid: String::new(),
            tags: BTreeMap::new(),
            transitive_tag_keys: Vec::new(),
            policy: None,
            expiration: clock::epoch_seconds(expires),
        };
        let credentials = Credentials::new(key, "s", None, Some(expires), "test");
        Caller { credentials, identity: Identity::Session(Box::new(session)) }
    }

    #[test]
    fn sessions_long_over_are_forgotten_and_the_others_kept() {
        let mut callers = Callers::default();
        let now = clock::wall();
        let long_ago = now - Duration::from_secs(7200);
        let node = Credentials::new("NODE", "s", None, None, "test");
        let identity = Identity::Node { arn: String::new(), user_id: String::new() };
        callers.insert(Caller { credentials: node, identity });
        callers.insert_session(session(0, now), now);
        for number in 1..=10_000 {
            callers.insert_session(session(number, long_ago), now);
        }
        assert!(callers.get("ASIA10000").is_some(), "the last one came after the sweep");
        assert!(callers.get("ASIA1").is_none());
        assert!(callers.get("ASIA0").is_some() && callers.get("NODE").is_some());
    }
}
