//! Every way that a request can fail, and what its caller is told.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;

use crate::authenticate::token::TokenError;
use crate::claims::Claims;
use crate::eks_auth::{Failure, Refusal, RefusalKind};

#[derive(Debug)]
pub enum Rejection {
    NotFound,
    MethodNotAllowed,
    HeadersTooLarge,
    WrongHost,
    /// `--verify enforce` was asked for, and this agent cannot tell who is calling.
    CannotEnforce,
    Token {
        error: TokenError,
        pod: Option<Arc<Claims>>,
    },
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
            Rejection::WrongHost => StatusCode::FORBIDDEN,
            // It may be good: nobody could find out.
            Rejection::Token { error: TokenError::KeysUnavailable, .. } => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::Token { .. } => StatusCode::BAD_REQUEST,
            Rejection::Upstream { refusal, .. } => {
                StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Rejection::CannotEnforce | Rejection::NotYet { .. } => StatusCode::SERVICE_UNAVAILABLE,
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
            | Rejection::Upstream { pod, .. }
            | Rejection::NotYet { pod, .. } => pod.as_deref(),
            Rejection::NotFound
            | Rejection::MethodNotAllowed
            | Rejection::HeadersTooLarge
            | Rejection::WrongHost
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
            Rejection::Upstream { refusal, .. } => &refusal.code,
            Rejection::CannotEnforce | Rejection::NotYet { .. } => "ServiceUnavailable",
        }
    }

    fn message(&self) -> String {
        match self {
            Rejection::NotFound => "podcred serves GET /v1/credentials only; check \
                                    AWS_CONTAINER_CREDENTIALS_FULL_URI in the pod."
                .to_owned(),
            Rejection::MethodNotAllowed => "Use GET (or HEAD) for /v1/credentials.".to_owned(),
            Rejection::HeadersTooLarge => "The request's headers are larger than 32 kB; a token is about 1 kB.".to_owned(),
            Rejection::WrongHost => "The Host header must be the address of the agent: 169.254.170.23 or \
                                     [fd00:ec2::23]. Requests that reached it by another name are refused."
                .to_owned(),
            Rejection::CannotEnforce => {
                "This agent was told to verify callers (--verify enforce) and has no kernel attribution to do it by; \
                 its operator must choose audit or off."
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
                    Some(Failure::Unavailable { message }) => format!("EKS Auth gave no answer: {message}"),
                    Some(Failure::Refused(refusal)) => format!("EKS Auth refused: {}", refusal.message),
                };
                // Upstream's sentences may bring a full stop of their own.
                let cause = cause.trim_end_matches('.');
                format!(
                    "No credentials for {} yet: {cause}. The agent goes on trying; ask again.",
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

/// Every refusal as a Markdown table, for README: status, `Code`, reason, text.
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
    table += &not_yet(Some(Failure::Unavailable { message: "…".into() }));
    table += &own(&Rejection::CannotEnforce);
    table
}

fn subject(pod: Option<&Claims>) -> String {
    match pod {
        Some(c) => format!(
            "pod {}/{} (service account {}/{})",
            c.namespace, c.pod_name, c.namespace, c.service_account
        ),
        None => "this token".to_owned(),
    }
}
