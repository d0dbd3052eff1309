//! EKS Auth's check of a token.

use jsonwebtoken::{Algorithm, Validation, dangerous::insecure_decode_claims, decode, decode_header};
use serde::Deserialize;

use super::super::keys::KeyRing;
use super::super::reply::{ApiError, ErrorCode};
use super::{AUDIENCE, Objects};

/// The claims that EKS Auth acts on.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Claims {
    #[serde(default)]
    pub(in super::super) jti: String,
    exp: i64,
    #[serde(default)]
    nbf: i64,
    #[serde(rename = "kubernetes.io")]
    pub(in super::super) kubernetes: Kubernetes,
}

#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Kubernetes {
    pub(in super::super) namespace: String,
    pub(in super::super) pod: Named,
    pub(in super::super) serviceaccount: Named,
}

#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Named {
    pub(in super::super) name: String,
    pub(in super::super) uid: String,
}

/// What a token says, unchecked: for the log of calls, which names also those that are refused.
pub(in super::super) fn unchecked(token: &str) -> Option<Claims> {
    insecure_decode_claims(token).ok()
}

/// Signature by any key the issuer ever had, issuer, audience, times, and that the pod still lives.
pub(in super::super) fn check(
    token: &str,
    issuer: &str,
    now: i64,
    keys: &KeyRing,
    objects: &Objects,
) -> Result<Claims, ApiError> {
    let invalid = |why: &str| {
        ApiError::new(
            ErrorCode::InvalidTokenException,
            format!("The token included in the request is invalid: {why}."),
        )
    };
    let header = decode_header(token).map_err(|_| invalid("its header cannot be read"))?;
    let kid = header.kid.ok_or_else(|| invalid("it names no key"))?;
    let key = keys.find(&kid).ok_or_else(|| invalid("its key is not the cluster's"))?;

    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    // Times are compared below, against the time that was handed in.
    validation.validate_exp = false;
    let claims: Claims = decode(token, &key.decoding_key(), &validation)
        .map_err(|error| invalid(&error.to_string().to_lowercase()))?
        .claims;

    if claims.exp <= now {
        let message = format!("The token included in the request has expired {} s ago.", now - claims.exp);
        return Err(ApiError::new(ErrorCode::ExpiredTokenException, message));
    }
    if claims.nbf > now {
        return Err(invalid("it is not valid yet"));
    }
    if objects.is_dead_pod(&claims.kubernetes.pod.uid) {
        return Err(invalid("its pod was deleted"));
    }
    Ok(claims)
}
