//! EKS Auth: exchanging a pod's token for its role's credentials.

mod client;
mod failure;
mod rotation;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

pub use self::client::{ClientConfig, EksAuthClient};
use crate::clock::UnixTime;

/// What `AssumeRoleForPodIdentity` answered.
#[derive(Debug)]
pub struct Assumed {
    pub namespace: String,
    pub service_account: String,
    pub audience: String,
    pub association_id: String,
    /// `arn:aws:sts::<account>:assumed-role/<role>/<session>`
    pub session_arn: String,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: SecretString,
    pub expiration: UnixTime,
}

/// Why a call gave no credentials. Shared by everybody who waited for it, hence cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// EKS Auth's final word about this token or this association.
    Refused(Refusal),
    /// EKS Auth asks for fewer calls.
    Throttled { message: Arc<str> },
    /// No usable answer: 5xx, timeout, network, an unreadable answer, or the agent has no valid credentials of its own.
    /// The cause may name hosts, proxies and files, so it is for the log; pods are told the message.
    Unavailable { message: &'static str, cause: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The HTTP status that EKS Auth sent, passed on to the pod.
    pub status: u16,
    /// EKS Auth's own code, such as `AccessDeniedException`, passed on to the pod.
    pub code: Arc<str>,
    pub message: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// No association for this service account.
    ResourceNotFound,
    /// The role's trust policy, or the agent's own permission.
    AccessDenied,
    InvalidToken,
    ExpiredToken,
    /// InvalidRequest, InvalidParameter, or a client error that is not modelled.
    Invalid,
}

impl Failure {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Failure::Refused(refusal) => refusal.kind.label(),
            Failure::Throttled { .. } => "eks_auth_throttled",
            Failure::Unavailable { .. } => "eks_auth_unavailable",
        }
    }

    /// The HTTP status that EKS Auth answered with, if it did and said something that the agent understood.
    pub fn status(&self) -> Option<u16> {
        match self {
            Failure::Refused(refusal) => Some(refusal.status),
            Failure::Throttled { .. } => Some(429),
            Failure::Unavailable { .. } => None,
        }
    }
}

impl RefusalKind {
    pub const ALL: [RefusalKind; 5] = [
        RefusalKind::ResourceNotFound,
        RefusalKind::AccessDenied,
        RefusalKind::InvalidToken,
        RefusalKind::ExpiredToken,
        RefusalKind::Invalid,
    ];

    pub fn label(self) -> &'static str {
        match self {
            RefusalKind::ResourceNotFound => "eks_auth_resource_not_found",
            RefusalKind::AccessDenied => "eks_auth_access_denied",
            RefusalKind::InvalidToken => "eks_auth_invalid_token",
            RefusalKind::ExpiredToken => "eks_auth_expired_token",
            RefusalKind::Invalid => "eks_auth_invalid_request",
        }
    }

    /// What the owner of the pod can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            RefusalKind::ResourceNotFound => {
                "Create a pod identity association for this service account; a new one takes some seconds to arrive."
            }
            RefusalKind::AccessDenied => {
                "Check that the role's trust policy lets pods.eks.amazonaws.com do sts:AssumeRole and sts:TagSession, \
                 and that the node role allows eks-auth:AssumeRoleForPodIdentity."
            }
            RefusalKind::InvalidToken | RefusalKind::ExpiredToken => {
                "The token does not belong to a running pod of this cluster any more; recreate the pod."
            }
            RefusalKind::Invalid => "EKS Auth could not read the request; check the agent's --cluster-name.",
        }
    }
}

/// The one upstream call, as a trait so that the cache can be tested against scripted answers.
pub trait EksAuth: Send + Sync + 'static {
    fn assume_role_for_pod_identity(
        &self,
        token: SecretString,
    ) -> BoxFuture<'static, Result<Assumed, Failure>>;
}
