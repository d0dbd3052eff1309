//! Signature Version 4, checked: the signature is computed again, by AWS's own crate, from the request as it arrived.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_types::date_time::{DateTime, Format};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST};

use super::callers::Caller;
use super::reply::{ApiError, Received};

/// How far a caller's clock may be off.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);
const DATE: &str = "x-amz-date";
const SECURITY_TOKEN: &str = "x-amz-security-token";

/// What a signature must be scoped to.
pub(super) struct Scope<'a> {
    pub(super) service: &'a str,
    pub(super) regions: &'a [&'a str],
}

/// Why a request has no valid signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    Unsigned,
    /// Unknown access key, or a session token that is not this key's.
    UnknownKey,
    Incorrect(String),
    Expired,
}

impl Invalid {
    /// In the words of a rest-json service.
    pub(super) fn rest_json(&self) -> ApiError {
        match self {
            Invalid::Unsigned => ApiError::forbidden("MissingAuthenticationTokenException", self.message()),
            Invalid::UnknownKey => ApiError::forbidden("UnrecognizedClientException", self.message()),
            Invalid::Incorrect(_) => ApiError::forbidden("InvalidSignatureException", self.message()),
            Invalid::Expired => ApiError::forbidden("ExpiredTokenException", self.message()),
        }
    }

    /// In the words of STS.
    pub(super) fn query(&self) -> ApiError {
        match self {
            Invalid::Unsigned => ApiError::forbidden("MissingAuthenticationToken", self.message()),
            Invalid::UnknownKey => ApiError::forbidden("InvalidClientTokenId", self.message()),
            Invalid::Incorrect(_) => ApiError::forbidden("SignatureDoesNotMatch", self.message()),
            Invalid::Expired => ApiError::forbidden("ExpiredToken", self.message()),
        }
    }

    fn message(&self) -> String {
        match self {
            Invalid::Unsigned => "The request has no AWS4-HMAC-SHA256 Authorization header.".to_owned(),
            Invalid::UnknownKey => "The security token included in the request is invalid.".to_owned(),
            Invalid::Incorrect(reason) => reason.clone(),
            Invalid::Expired => "The security token included in the request is expired.".to_owned(),
        }
    }
}

/// The caller that signed `request`, found by `lookup` of the access key id.
pub(super) fn verify(
    request: &Received,
    scope: &Scope<'_>,
    now: SystemTime,
    lookup: impl FnOnce(&str) -> Option<Caller>,
) -> Result<Caller, Invalid> {
    let headers = request.headers();
    let claimed =
        header(headers, AUTHORIZATION.as_str()).and_then(Authorization::parse).ok_or(Invalid::Unsigned)?;
    let date = header(headers, DATE).ok_or(Invalid::Unsigned)?;

    let caller = lookup(claimed.access_key_id).ok_or(Invalid::UnknownKey)?;
    if caller.credentials.session_token() != header(headers, SECURITY_TOKEN) {
        return Err(Invalid::UnknownKey);
    }
    if claimed.service != scope.service || !scope.regions.contains(&claimed.region) {
        return Err(Invalid::Incorrect(format!(
            "The credential is scoped to service {} in {}; it should be {} in {}.",
            claimed.service,
            claimed.region,
            scope.service,
            scope.regions.join(" or "),
        )));
    }
    let signed_at = amz_date(date).filter(|_| date.starts_with(claimed.date)).ok_or_else(|| {
        Invalid::Incorrect("The dates of X-Amz-Date and Credential are no dates or differ.".into())
    })?;
    let skew = now.duration_since(signed_at).unwrap_or_else(|future| future.duration());
    if skew > MAX_SKEW {
        return Err(Invalid::Incorrect(format!(
            "Signature expired or not yet valid: {date} is {} s away from the server's time.",
            skew.as_secs(),
        )));
    }
    for needed in [HOST.as_str(), DATE] {
        if !claimed.signed_headers().any(|name| name == needed) {
            return Err(Invalid::Incorrect(format!("The header {needed} must be signed.")));
        }
    }
    match expected_signature(request, &claimed, signed_at, &caller.credentials) {
        Some(expected) if expected == claimed.signature => {}
        Some(_) | None => {
            return Err(Invalid::Incorrect(
                "The request signature we calculated does not match the signature you provided. \
                 Check your AWS Secret Access Key and signing method."
                    .into(),
            ));
        }
    }
    // Last, as with AWS: who cannot sign learns nothing about the key.
    if caller.expired_at(now) { Err(Invalid::Expired) } else { Ok(caller) }
}

/// Whose key a request says it is signed with, unchecked.
pub(super) fn claimed_access_key(request: &Received) -> Option<String> {
    let claimed = Authorization::parse(header(request.headers(), AUTHORIZATION.as_str())?)?;
    Some(claimed.access_key_id.to_owned())
}

/// `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=HEX`
struct Authorization<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Option<Authorization<'a>> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256")?;
        let field =
            |name: &str| fields.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let mut credential = field("Credential")?.split('/');
        let mut next = || credential.next();
        let (access_key_id, date, region, service) = (next()?, next()?, next()?, next()?);
        (next()? == "aws4_request").then_some(())?;
        let (signed_headers, signature) = (field("SignedHeaders")?, field("Signature")?);
        Some(Authorization { access_key_id, date, region, service, signed_headers, signature })
    }

    fn signed_headers(&self) -> impl Iterator<Item = &'a str> {
        self.signed_headers.split(';')
    }
}

fn expected_signature(
    request: &Received,
    claimed: &Authorization<'_>,
    signed_at: SystemTime,
    credentials: &Credentials,
) -> Option<String> {
    let mut headers = Vec::new();
    for name in claimed.signed_headers() {
        for value in request.headers().get_all(name) {
            headers.push((name, value.to_str().ok()?));
        }
    }
    // The crate adds the session token to what it signs; a client that sent it unsigned (as some services want it)
    // gets it left out here too.
    let token_signed = claimed.signed_headers().any(|name| name == SECURITY_TOKEN);
    let credentials = Credentials::new(
        credentials.access_key_id(),
        credentials.secret_access_key(),
        credentials.session_token().filter(|_| token_signed).map(str::to_owned),
        None,
        "simulated-eks",
    );
    let identity: Identity = credentials.into();
    let mut settings = SigningSettings::default();
    // Whatever the client says that it signed is signed here.
    settings.excluded_headers = None;
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(claimed.region)
        .name(claimed.service)
        .time(signed_at)
        .settings(settings)
        .build()
        .ok()?;
    let host = request.headers().get(HOST)?.to_str().ok()?;
    let path = request.parts.uri.path_and_query()?;
    let body = SignableBody::Bytes(&request.body);
    let signable = SignableRequest::new(
        request.method().as_str(),
        format!("http://{host}{path}"),
        headers.into_iter(),
        body,
    );
    sign(signable.ok()?, &params.into()).ok().map(|output| output.signature().to_owned())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Reads `20261121T041329Z`.
fn amz_date(text: &str) -> Option<SystemTime> {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    (text.len() == 16 && text.get(8..9) == Some("T") && text.ends_with('Z')).then_some(())?;
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    let spelled = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    DateTime::from_str(&spelled, Format::DateTime).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
