//! Every way that a request can fail, and what its caller is told.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;

use crate::attribute::Unattributed;
use crate::authenticate::token::TokenError;
use crate::claims::Claims;
use crate::eks_auth::{Failure, Refusal, RefusalKind};

#[derive(Debug)]
pub enum Rejection {
    NotFound,
    MethodNotAllowed,
    HeadersTooLarge,
    WrongHost,
    /// Callers were to be refused by the kernel's word, and this node has none to go by.
    CannotEnforce,
    Token {
        error: TokenError,
        pod: Option<Arc<Claims>>,
    },
    /// The kernel cannot tell which pod is calling, and that is not allowed here.
    Unattributed(Unattributed),
    /// The token is another pod's than the one that connected.
    OtherPod {
        /// The UID of the pod that connected.
        caller: Arc<str>,
        /// Whose token it is, where that was verified.
        pod: Option<Arc<Claims>>,
    },
    /// Another pod's token, and nobody knows yet whether the caller is a delegate.
    DelegatesUnknown,
    /// The token is for a pod of another node.
    OtherNode {
        pod: Option<Arc<Claims>>,
    },
    /// This pod has too many requests waiting.
    TooManyWaiting,
    /// This pod has presented too many bad tokens.
    TooManyFailures,
    /// EKS Auth's own word, passed on.
    Upstream {
        refusal: Refusal,
        pod: Option<Arc<Claims>>,
    },
    /// No answer from EKS Auth within the wait, and nothing valid to serve meanwhile.
    NotYet {
        last: Option<Failure>,
        pod: Option<Arc<Claims>>,
    },
}

/// `Code` and `Message` are what most SDKs show; Java reads the lower-case `message` only.
#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "Code")]
    code: &'a str,
    #[serde(rename = "Message")]
    message: &'a str,
    #[serde(rename = "message")]
    message_for_java: &'a str,
}

impl Rejection {
    pub fn status(&self) -> StatusCode {
        match self {
            Rejection::NotFound => StatusCode::NOT_FOUND,
            Rejection::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Rejection::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Rejection::WrongHost | Rejection::OtherPod { .. } | Rejection::OtherNode { .. } => {
                StatusCode::FORBIDDEN
            }
            // Rust, Go and Java never retry a 403, so what may pass is none.
            Rejection::Unattributed(reason) if reason.is_passing() => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::Unattributed(_) => StatusCode::FORBIDDEN,
            // It may be good: nobody could find out.
            Rejection::Token { error: TokenError::KeysUnavailable, .. } => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::Token { .. } => StatusCode::BAD_REQUEST,
            Rejection::Upstream { refusal, .. } => {
                StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Rejection::CannotEnforce
            | Rejection::DelegatesUnknown
            | Rejection::TooManyWaiting
            | Rejection::TooManyFailures
            | Rejection::NotYet { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The metric label: a fixed set, whatever the caller sends.
    pub fn reason(&self) -> &'static str {
        match self {
            Rejection::NotFound => "not_found",
            Rejection::MethodNotAllowed => "method_not_allowed",
            Rejection::HeadersTooLarge => "headers_too_large",
            Rejection::WrongHost => "wrong_host",
            Rejection::CannotEnforce => "cannot_enforce",
            Rejection::Unattributed(reason) if reason.is_passing() => "unattributed_for_now",
            Rejection::Unattributed(_) => "unattributed",
            Rejection::OtherPod { .. } => "other_pod",
            Rejection::DelegatesUnknown => "delegates_unknown",
            Rejection::OtherNode { .. } => "other_node",
            Rejection::TooManyWaiting => "too_many_waiting",
            Rejection::TooManyFailures => "too_many_failures",
            Rejection::Token { error, .. } => error.reason(),
            Rejection::Upstream { refusal, .. } => refusal.kind.label(),
            Rejection::NotYet { last: None, .. } => "eks_auth_slow",
            Rejection::NotYet { last: Some(failure), .. } => failure.label(),
        }
    }

    /// The pod that was refused, where its token was verified.
    pub fn pod(&self) -> Option<&Claims> {
        match self {
            Rejection::Token { pod, .. }
            | Rejection::OtherPod { pod, .. }
            | Rejection::OtherNode { pod }
            | Rejection::Upstream { pod, .. }
            | Rejection::NotYet { pod, .. } => pod.as_deref(),
            Rejection::NotFound
            | Rejection::MethodNotAllowed
            | Rejection::HeadersTooLarge
            | Rejection::WrongHost
            | Rejection::Unattributed(_)
            | Rejection::DelegatesUnknown
            | Rejection::TooManyWaiting
            | Rejection::TooManyFailures
            | Rejection::CannotEnforce => None,
        }
    }

    pub fn body(&self) -> Vec<u8> {
        let code = self.code();
        let message = self.message();
        let body = ErrorBody { code, message: &message, message_for_java: &message };
        serde_json::to_vec(&body).unwrap_or_default()
    }

    fn code(&self) -> &str {
        match self {
            Rejection::NotFound => "NotFound",
            Rejection::MethodNotAllowed => "MethodNotAllowed",
            Rejection::HeadersTooLarge => "HeadersTooLarge",
            Rejection::WrongHost => "WrongHost",
            Rejection::Token { error, .. } => error.code(),
            Rejection::Unattributed(reason) if reason.is_passing() => "ServiceUnavailable",
            Rejection::Unattributed(_) => "UnknownCaller",
            Rejection::OtherPod { .. } => "TokenOfAnotherPod",
            Rejection::OtherNode { .. } => "TokenOfAnotherNode",
            Rejection::Upstream { refusal, .. } => &refusal.code,
            Rejection::CannotEnforce
            | Rejection::DelegatesUnknown
            | Rejection::TooManyWaiting
            | Rejection::TooManyFailures
            | Rejection::NotYet { .. } => "ServiceUnavailable",
        }
    }

    fn message(&self) -> String {
        match self {
            Rejection::NotFound => "podcred serves GET /v1/credentials only; check \
                                    AWS_CONTAINER_CREDENTIALS_FULL_URI in the pod."
                .to_owned(),
            Rejection::MethodNotAllowed => "Use GET (or HEAD) for /v1/credentials.".to_owned(),
            Rejection::HeadersTooLarge => "The request's headers are larger than 32 kB; a token is about 1 kB.".to_owned(),
            Rejection::WrongHost => "The Host header must be the agent's address, 169.254.170.23 or \
                                     [fd00:ec2::23]. Requests that reach it by any other name are refused."
                .to_owned(),
            Rejection::CannotEnforce => {
                "This agent must refuse callers that it cannot identify (--verify enforce, or --verify-unattributed deny), \
                 and kernel attribution does not work on this node: `podcred doctor` says why and what to do."
                    .to_owned()
            }
            Rejection::Unattributed(reason) => {
                format!(
                    "This agent serves only pods that the kernel can identify (--verify-unattributed deny), and the pod \
                     that opened this connection is not known: {reason}."
                )
            }
            Rejection::OtherPod { caller, pod } => format!(
                "The pod with UID {caller} opened this connection, but {} belongs to another pod: a token works for its own \
                 pod only. If the calling pod is a driver that presents other pods' tokens, the node's operator can allow \
                 its service account with --delegate.",
                match pod {
                    Some(pod) => format!("the token of {}", subject(Some(pod))),
                    None => "this token".to_owned(),
                }
            ),
            Rejection::DelegatesUnknown => {
                "This token belongs to another pod, and it is not known yet whether the caller is a delegate, because the \
                 API server has not listed the calling pod. Ask again."
                    .to_owned()
            }
            Rejection::OtherNode { pod } => format!(
                "{} belongs to a pod on another node: a token works on its pod's node only.",
                match pod {
                    Some(pod) => format!("The token of {}", subject(Some(pod))),
                    None => "This token".to_owned(),
                }
            ),
            Rejection::TooManyWaiting => {
                "This pod has too many requests waiting (--pod-waiting), or asks more often than it may in a second \
                 (--pod-requests). Ask again later, and find out why it asks so often."
                    .to_owned()
            }
            Rejection::TooManyFailures => {
                "This pod presented too many bad tokens in a second (--pod-failures). Ask again later."
                    .to_owned()
            }
            Rejection::Token { error, pod: None } => error.to_string(),
            Rejection::Token { error, pod } => format!("{error} It was the token of {}.", subject(pod.as_deref())),
            Rejection::Upstream { refusal, pod } => {
                format!(
                    "EKS Auth refused {}: {} {}",
                    subject(pod.as_deref()),
                    refusal.message,
                    refusal.kind.advice()
                )
            }
            Rejection::NotYet { last, pod } => {
                let cause = match last {
                    None => "EKS Auth has not answered yet".to_owned(),
                    Some(Failure::Throttled { .. }) => "EKS Auth throttles this account's calls".to_owned(),
                    Some(Failure::Unavailable { message, cause: _ }) => format!("EKS Auth gave no answer: {message}"),
                    Some(Failure::Refused(refusal)) => format!("EKS Auth refused: {}", refusal.message),
                };
                // Upstream's sentences may bring a full stop of their own.
                let cause = cause.trim_end_matches('.');
                format!(
                    "No credentials for {} yet: {cause}. The agent keeps trying; ask again.",
                    subject(pod.as_deref())
                )
            }
        }
    }
}

impl From<TokenError> for Rejection {
    fn from(error: TokenError) -> Self {
        Rejection::Token { error, pod: None }
    }
}

/// Every refusal as a Markdown table, for docs/reference.md: status, `Code`, reason, text.
pub fn table() -> String {
    let upstream = |kind: RefusalKind| {
        let code = match kind {
            RefusalKind::ResourceNotFound => "ResourceNotFoundException",
            RefusalKind::AccessDenied => "AccessDeniedException",
            RefusalKind::InvalidToken => "InvalidTokenException",
            RefusalKind::ExpiredToken => "ExpiredTokenException",
            RefusalKind::Invalid => "InvalidRequestException`, `InvalidParameterException",
        };
        let status = if kind == RefusalKind::ResourceNotFound { 404 } else { 400 };
        format!("| {status} | `{code}` | `{}` | EKS Auth refused. {} |\n", kind.label(), kind.advice())
    };
    let own = |rejection: &Rejection| {
        let (status, code) = (rejection.status().as_u16(), rejection.code());
        format!("| {status} | `{code}` | `{}` | {} |\n", rejection.reason(), rejection.message())
    };
    let not_yet = |last| own(&Rejection::NotYet { last, pod: None });
    let mut table =
        "| status | `Code` | `result` | what the caller is told |\n|---|---|---|---|\n".to_owned();
    for rejection in
        [Rejection::NotFound, Rejection::MethodNotAllowed, Rejection::HeadersTooLarge, Rejection::WrongHost]
    {
        table += &own(&rejection);
    }
    for error in TokenError::ALL {
        table += &own(&Rejection::from(error));
    }
    for kind in RefusalKind::ALL {
        table += &upstream(kind);
    }
    table += &not_yet(None);
    table += &not_yet(Some(Failure::Throttled { message: "".into() }));
    table += &not_yet(Some(Failure::Unavailable { message: "…", cause: "".into() }));
    for rejection in [
        Rejection::OtherPod { caller: "…".into(), pod: None },
        Rejection::DelegatesUnknown,
        Rejection::OtherNode { pod: None },
        Rejection::Unattributed(Unattributed::NoRecord),
        Rejection::Unattributed(Unattributed::NotYetKnown),
        Rejection::CannotEnforce,
        Rejection::TooManyWaiting,
        Rejection::TooManyFailures,
    ] {
        table += &own(&rejection);
    }
    table
}

fn subject(pod: Option<&Claims>) -> String {
    match pod {
        Some(c) => format!(
            "pod {}/{} (service account {}/{})",
            c.namespace(),
            c.pod_name(),
            c.namespace(),
            c.service_account()
        ),
        None => "this token".to_owned(),
    }
}
