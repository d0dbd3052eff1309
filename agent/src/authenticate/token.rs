//! What a token must look like before anyone looks at its signature.
//!
//! The checks run from cheap to dear, so that garbage costs little: size, form, header, issuer, audience, times, and
//! last the claims that name the pod.

mod error;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

pub use self::error::TokenError;
use crate::claims::{Claims, Names, TokenHash};
use crate::clock::UnixTime;

pub const AUDIENCE: &str = "pods.eks.amazonaws.com";
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far the node's clock and the API server's may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// `system:serviceaccount:<namespace>:<service account>`
const SUBJECT_PREFIX: &str = "system:serviceaccount:";

/// A token whose claims all fit, and whose signature nobody has looked at.
///
/// It has no `Debug`: it holds the token.
pub(super) struct Unverified<'a> {
    signed_part: &'a str,
    signature: &'a str,
    key_id: String,
    claims: Claims,
}

impl Unverified<'_> {
    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    pub(super) fn signature(&self) -> &str {
        self.signature
    }

    pub(super) fn signed_part(&self) -> &[u8] {
        self.signed_part.as_bytes()
    }

    pub(super) fn into_claims(self) -> Claims {
        self.claims
    }
}

pub(super) fn parse<'a>(
    token: &'a [u8],
    hash: TokenHash,
    issuer: &str,
    now: UnixTime,
) -> Result<Unverified<'a>, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    if token.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"bearer ")) {
        return Err(TokenError::Bearer);
    }
    let token = std::str::from_utf8(token).map_err(|_| TokenError::NotThreeParts)?;
    let (header, payload, signature) = three_parts(token).ok_or(TokenError::NotThreeParts)?;
    let signed_part = &token[..header.len() + 1 + payload.len()];

    let header = decode(header)?;
    let key_id = check_header(&header)?;
    let payload = decode(payload)?;
    if !is_base64url(signature) {
        return Err(TokenError::NotBase64Url);
    }
    let payload: Payload<'_> = serde_json::from_slice(&payload).map_err(|_| TokenError::Payload)?;
    if payload.iss.as_deref() != Some(issuer) {
        return Err(TokenError::Issuer);
    }
    if !payload.aud.as_ref().is_some_and(|aud| aud.contains(AUDIENCE)) {
        return Err(TokenError::Audience);
    }
    let expires = UnixTime(payload.exp.ok_or(TokenError::NoExpiry)?);
    check_expiry(expires, now)?;
    if payload.nbf.is_some_and(|nbf| UnixTime(nbf) > now.saturating_add(LEEWAY)) {
        return Err(TokenError::NotYetValid);
    }
    let claims = pod_claims(payload, hash, expires)?;
    Ok(Unverified { signed_part, signature, key_id, claims })
}

pub(super) fn check_expiry(expires: UnixTime, now: UnixTime) -> Result<(), TokenError> {
    if expires.saturating_add(LEEWAY) <= now { Err(TokenError::Expired) } else { Ok(()) }
}

/// The `iss` of a token, nothing else of it checked.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    let (_, payload, _) = three_parts(token)?;
    let payload = decode(payload).ok()?;
    let payload: Payload<'_> = serde_json::from_slice(&payload).ok()?;
    payload.iss.map(Cow::into_owned)
}

fn three_parts(token: &str) -> Option<(&str, &str, &str)> {
    let mut parts = token.split('.');
    let three = (parts.next()?, parts.next()?, parts.next()?);
    let none_empty = !three.0.is_empty() && !three.1.is_empty() && !three.2.is_empty();
    (none_empty && parts.next().is_none()).then_some(three)
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::NotBase64Url)
}

/// The signature is decoded where it is checked; here only its alphabet is.
fn is_base64url(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Fields that name keys (`jku`, `jwk`, `x5u`, …) are not even read: the token does not choose its own key.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(default)]
    crit: Present,
}

/// Whether a field is there, with any value, `null` included.
#[derive(Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Present(true))
    }
}

fn check_header(header: &[u8]) -> Result<String, TokenError> {
    let header: Header<'_> = serde_json::from_slice(header).map_err(|_| TokenError::Header)?;
    if header.alg.as_deref() != Some("RS256") {
        return Err(TokenError::Algorithm);
    }
    if header.crit.0 {
        return Err(TokenError::CriticalHeader);
    }
    header.kid.filter(|kid| !kid.is_empty()).map(Cow::into_owned).ok_or(TokenError::NoKeyId)
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    iss: Option<Cow<'a, str>>,
    #[serde(borrow)]
    aud: Option<Audience<'a>>,
    exp: Option<u64>,
    nbf: Option<u64>,
    #[serde(borrow)]
    sub: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience<'a> {
    One(#[serde(borrow)] Cow<'a, str>),
    Many(#[serde(borrow)] Vec<Cow<'a, str>>),
}

impl Audience<'_> {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Audience::One(one) => one == wanted,
            Audience::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

#[derive(Deserialize)]
struct Kubernetes<'a> {
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    serviceaccount: Option<Object<'a>>,
    #[serde(borrow)]
    pod: Option<Object<'a>>,
    #[serde(borrow)]
    node: Option<Object<'a>>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
}

fn pod_claims(payload: Payload<'_>, hash: TokenHash, expires: UnixTime) -> Result<Claims, TokenError> {
    let (namespace, service_account) = payload
        .sub
        .as_deref()
        .and_then(|sub| sub.strip_prefix(SUBJECT_PREFIX)?.split_once(':'))
        .ok_or(TokenError::NotAServiceAccount)?;
    let kubernetes = payload.kubernetes.ok_or(TokenError::NoPod)?;
    let (account_name, account_uid) = parts(kubernetes.serviceaccount);
    let (pod_name, pod_uid) = parts(kubernetes.pod);
    if kubernetes.namespace.as_deref() != Some(namespace) || account_name.as_deref() != Some(service_account)
    {
        return Err(TokenError::SubjectMismatch);
    }
    let (Some(pod_name), Some(pod_uid)) = (pod_name, pod_uid) else { return Err(TokenError::NoPod) };
    let account_uid = account_uid.ok_or(TokenError::NoServiceAccountUid)?;
    let (node, _) = parts(kubernetes.node);

    // These reach labels, logs and messages.
    let fit = is_dns_label(namespace)
        && is_dns_name(service_account)
        && is_dns_name(&pod_name)
        && is_uid(&account_uid)
        && is_uid(&pod_uid)
        && node.as_deref().is_none_or(is_dns_name);
    if !fit {
        return Err(TokenError::Names);
    }
    let names = Names {
        namespace,
        service_account,
        service_account_uid: &account_uid,
        pod_name: &pod_name,
        pod_uid: &pod_uid,
        node: node.as_deref(),
    };
    Ok(Claims::new(names, hash, expires))
}

/// Name and UID; an empty one is as good as none.
fn parts(object: Option<Object<'_>>) -> (Option<Cow<'_, str>>, Option<Cow<'_, str>>) {
    let Some(object) = object else { return (None, None) };
    (object.name.filter(|name| !name.is_empty()), object.uid.filter(|uid| !uid.is_empty()))
}

fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|label| !label.is_empty() && label_fits(label))
}

/// A namespace's name.
fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && !name.is_empty() && label_fits(name)
}

fn label_fits(label: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
}

/// A UUID, or what a static pod has instead. Kubernetes promises no form, so only what is safe to write is asked for.
fn is_uid(uid: &str) -> bool {
    uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
