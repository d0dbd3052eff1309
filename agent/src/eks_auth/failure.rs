//! What an error of the SDK means for pods.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_eksauth::config::http::HttpResponse;
use aws_sdk_eksauth::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_eksauth::operation::assume_role_for_pod_identity::AssumeRoleForPodIdentityError;

use super::{Failure, Refusal, RefusalKind};
use crate::causes::chain;

/// Enough for what EKS Auth says; no page of a proxy gets through.
const MAX_MESSAGE_CHARS: usize = 300;

const UNREADABLE: &str = "EKS Auth's answer is unreadable";

pub(super) fn failure(error: &SdkError<AssumeRoleForPodIdentityError, HttpResponse>, token: &str) -> Failure {
    if let SdkError::ServiceError(service) = error {
        let status = service.raw().status().as_u16();
        return answered(status, service.err().code(), service.err().message(), token);
    }
    let cause = public(&chain(error), token);
    if is_about_own_credentials(error) {
        return own_credentials(&cause);
    }
    match error.raw_response() {
        Some(response) => unavailable(UNREADABLE, &format!("status {}: {cause}", response.status().as_u16())),
        None if matches!(error, SdkError::TimeoutError(_)) => {
            unavailable("EKS Auth did not answer in time", &cause)
        }
        None => unavailable("EKS Auth cannot be reached", &cause),
    }
}

pub(super) fn unreadable(cause: &str) -> Failure {
    unavailable(UNREADABLE, cause)
}

fn unavailable(message: &'static str, cause: &str) -> Failure {
    Failure::Unavailable { message, cause: cause.into() }
}

/// An answer with an error in it, or with a status that is one.
fn answered(status: u16, code: Option<&str>, message: Option<&str>, token: &str) -> Failure {
    let Some(code) = code else {
        // No error of AWS's is without a code: this is a proxy, a load balancer or the wrong host.
        return unavailable("something that is not EKS Auth answered", &format!("status {status}"));
    };
    let code = public(code, token);
    let message = public(message.unwrap_or("no message"), token);
    let kind = match &*code {
        _ if status == 429 => return throttled(message),
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown" => {
            return throttled(message);
        }
        "RequestTimeout" | "RequestTimeoutException" => return passing(status, &code, &message),
        _ if status == 408 || !(400..500).contains(&status) => return passing(status, &code, &message),
        "AccessDeniedException" => RefusalKind::AccessDenied,
        "ResourceNotFoundException" => RefusalKind::ResourceNotFound,
        // About the pod's token these come with 400. With another status they, as all of 401 and 403, are about
        // the request's signature: the agent's own credentials, which must never condemn a pod.
        "InvalidTokenException" if status == 400 => RefusalKind::InvalidToken,
        "ExpiredTokenException" if status == 400 => RefusalKind::ExpiredToken,
        _ if status == 401 || status == 403 => {
            return own_credentials(&format!("{status} {code}: {message}"));
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "InvalidClientTokenId"
        | "InvalidClientTokenIdException"
        | "InvalidAccessKeyId"
        | "RequestExpired"
        | "ExpiredToken"
        | "NotAuthorized"
        | "OptInRequired" => return own_credentials(&format!("{status} {code}: {message}")),
        _ => RefusalKind::Invalid,
    };
    Failure::Refused(Refusal { kind, status, code: code.into(), message: message.into() })
}

/// Trouble that will pass by itself.
fn passing(status: u16, code: &str, message: &str) -> Failure {
    unavailable("EKS Auth has trouble of its own", &format!("{status} {code}: {message}"))
}

fn throttled(message: String) -> Failure {
    Failure::Throttled { message: message.into() }
}

fn own_credentials(cause: &str) -> Failure {
    unavailable(
        "the agent's own AWS credentials do not work, which is no fault of the pod's; check the node's IAM role or \
         profile, and its clock",
        cause,
    )
}

fn is_about_own_credentials(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| error.is::<CredentialsError>())
}

/// Upstream's words as they may reach pods and logs: short, in one line, and without the token.
fn public(text: &str, token: &str) -> String {
    // Scrubbed before it is cut: half a token would not be found.
    // By its parts, each of which says too much alone; what is shorter occurs in other words too.
    let parts = token.split('.').filter(|part| part.len() >= 16);
    let text = parts.fold(text.to_owned(), |text, part| text.replace(part, "[token]"));
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_MESSAGE_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}
