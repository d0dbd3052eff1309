//! Projected service account tokens, minted as the API server does; [`verify`] checks them as EKS Auth does.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::id;
use super::keys::SigningKey;
use crate::clock;

pub(super) mod verify;

pub(super) const AUDIENCE: &str = "pods.eks.amazonaws.com";
const DAY: i64 = 24 * 3600;

/// A request for a token: what the kubelet asks for, and any way to break it. Also the body of `/control/tokens`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodToken {
    namespace: String,
    service_account: String,
    service_account_uid: Option<String>,
    pod_name: String,
    pod_uid: Option<String>,
    node_name: Option<String>,
    audience: Option<String>,
    expiration_seconds: Option<i64>,
    /// By JSON pointer (`/kubernetes.io/pod/uid`); null takes the claim away.
    #[serde(default)]
    claim_overrides: Map<String, Value>,
    /// By name; null takes the field away.
    #[serde(default)]
    header_overrides: Map<String, Value>,
    #[serde(default)]
    foreign_key: bool,
}

impl PodToken {
    /// A token as a pod of this service account has it: for a day, without a node.
    pub fn new(
        namespace: impl Into<String>,
        service_account: impl Into<String>,
        pod_name: impl Into<String>,
    ) -> PodToken {
        PodToken {
            namespace: namespace.into(),
            service_account: service_account.into(),
            service_account_uid: None,
            pod_name: pod_name.into(),
            pod_uid: None,
            node_name: None,
            audience: None,
            expiration_seconds: None,
            claim_overrides: Map::new(),
            header_overrides: Map::new(),
            foreign_key: false,
        }
    }

    /// Instead of the UID that the simulation keeps for this pod name.
    pub fn pod_uid(mut self, uid: impl Into<String>) -> PodToken {
        self.pod_uid = Some(uid.into());
        self
    }

    /// Instead of the UID that the simulation keeps for this service account.
    pub fn service_account_uid(mut self, uid: impl Into<String>) -> PodToken {
        self.service_account_uid = Some(uid.into());
        self
    }

    pub fn node_name(mut self, name: impl Into<String>) -> PodToken {
        self.node_name = Some(name.into());
        self
    }

    pub fn audience(mut self, audience: impl Into<String>) -> PodToken {
        self.audience = Some(audience.into());
        self
    }

    /// From now; zero or less makes a token that has already expired.
    pub fn expires_in_seconds(mut self, seconds: i64) -> PodToken {
        self.expiration_seconds = Some(seconds);
        self
    }

    /// Sets the claim at a JSON pointer, such as `/kubernetes.io/pod/uid`; null takes it away.
    pub fn claim(mut self, pointer: impl Into<String>, value: impl Into<Value>) -> PodToken {
        self.claim_overrides.insert(pointer.into(), value.into());
        self
    }

    /// Sets a header field; null takes it away.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> PodToken {
        self.header_overrides.insert(name.into(), value.into());
        self
    }

    /// Signs with a key that is not the issuer's, under the name of the one that is.
    pub fn signed_by_a_foreign_key(mut self) -> PodToken {
        self.foreign_key = true;
        self
    }

    pub(super) fn wants_foreign_key(&self) -> bool {
        self.foreign_key
    }
}

/// A token as TokenRequest answers it.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Minted {
    pub token: String,
    pub expiration_timestamp: String,
    /// Seconds since 1970.
    pub expires: i64,
    pub token_id: String,
    pub pod_uid: String,
    pub service_account_uid: String,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted")
            .field("token_id", &self.token_id)
            .field("pod_uid", &self.pod_uid)
            .field("service_account_uid", &self.service_account_uid)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// The objects that tokens name keep their UIDs until they are re-created.
#[derive(Debug, Default)]
pub(super) struct Objects {
    uids: HashMap<(Kind, String, String), String>,
    dead_pods: HashSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Pod,
    ServiceAccount,
    Node,
}

impl Objects {
    fn uid(&mut self, kind: Kind, namespace: &str, name: &str) -> String {
        self.uids.entry((kind, namespace.to_owned(), name.to_owned())).or_insert_with(id::uuid).clone()
    }

    /// EKS Auth refuses the tokens of this pod from now on, and its name is free for a pod with another UID.
    pub(super) fn delete_pod(&mut self, uid: &str) {
        self.uids.retain(|(kind, ..), known| *kind != Kind::Pod || known != uid);
        self.dead_pods.insert(uid.to_owned());
    }

    /// Tokens minted from now on carry another UID. Those minted before still pass EKS Auth: like the real one, it
    /// looks the association up by name.
    pub(super) fn recreate_service_account(&mut self, namespace: &str, name: &str) -> String {
        self.uids.remove(&(Kind::ServiceAccount, namespace.to_owned(), name.to_owned()));
        self.uid(Kind::ServiceAccount, namespace, name)
    }

    pub(super) fn is_dead_pod(&self, uid: &str) -> bool {
        self.dead_pods.contains(uid)
    }
}

/// A token ready to be signed, which is slow and so not done under the state's lock.
pub(super) struct Unsigned {
    header: Value,
    claims: Value,
    minted: Minted,
}

impl PodToken {
    pub(super) fn prepare(
        self,
        issuer: &str,
        kid: &str,
        now: SystemTime,
        objects: &mut Objects,
    ) -> Result<Unsigned, String> {
        let (namespace, account) = (self.namespace, self.service_account);
        let pod_uid = self.pod_uid.unwrap_or_else(|| objects.uid(Kind::Pod, &namespace, &self.pod_name));
        let service_account_uid = self
            .service_account_uid
            .unwrap_or_else(|| objects.uid(Kind::ServiceAccount, &namespace, &account));
        let now = clock::epoch_seconds(now);
        let expires = now.saturating_add(self.expiration_seconds.unwrap_or(DAY));
        let issued = if expires > now { now } else { expires.saturating_sub(3600) };
        let token_id = id::uuid();
        let mut claims = json!({
            "aud": [self.audience.as_deref().unwrap_or(AUDIENCE)],
            "exp": expires,
            "iat": issued,
            "iss": issuer,
            "jti": token_id,
            "kubernetes.io": {
                "namespace": namespace,
                "pod": { "name": self.pod_name, "uid": pod_uid },
                "serviceaccount": { "name": account, "uid": service_account_uid },
            },
            "nbf": issued,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        if let Some(name) = self.node_name {
            let uid = objects.uid(Kind::Node, "", &name);
            claims["kubernetes.io"]["node"] = json!({ "name": name, "uid": uid });
        }
        for (pointer, value) in self.claim_overrides {
            set_at(&mut claims, &pointer, value)?;
        }
        let mut header = Map::from_iter([("alg".to_owned(), json!("RS256")), ("kid".to_owned(), json!(kid))]);
        for (name, value) in self.header_overrides {
            if value.is_null() {
                header.remove(&name)
            } else {
                header.insert(name, value)
            };
        }
        let at = aws_smithy_types::DateTime::from_secs(expires);
        let expiration_timestamp = SystemTime::try_from(at).map(clock::rfc3339).map_err(|e| e.to_string())?;
        let minted = Minted {
            token: String::new(),
            expiration_timestamp,
            expires,
            token_id,
            pod_uid,
            service_account_uid,
        };
        Ok(Unsigned { header: Value::Object(header), claims, minted })
    }
}

impl Unsigned {
    pub(super) fn sign(self, key: &SigningKey) -> Result<Minted, String> {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&self.header), encode(&self.claims));
        let signature = key.sign(message.as_bytes()).map_err(|_| "the key does not sign".to_owned())?;
        Ok(Minted { token: format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)), ..self.minted })
    }
}

/// Sets the member at a JSON pointer, or takes it away for null.
fn set_at(claims: &mut Value, pointer: &str, value: Value) -> Result<(), String> {
    let wrong = || format!("{pointer} is no JSON pointer to a claim, such as /kubernetes.io/pod/uid");
    let (parent, name) = pointer.rsplit_once('/').ok_or_else(wrong)?;
    let parent = claims.pointer_mut(parent).and_then(Value::as_object_mut).ok_or_else(wrong)?;
    if value.is_null() {
        parent.remove(name)
    } else {
        parent.insert(name.to_owned(), value)
    };
    Ok(())
}

#[cfg(test)]
mod tests;
