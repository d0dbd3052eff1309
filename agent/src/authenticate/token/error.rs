use std::fmt;

/// Why a token was refused. No variant carries anything, so no text can give away what a token said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenError {
    Missing,
    Duplicate,
    TooLong,
    Bearer,
    NotThreeParts,
    NotBase64Url,
    Header,
    Algorithm,
    CriticalHeader,
    NoKeyId,
    Payload,
    Issuer,
    Audience,
    NoExpiry,
    Expired,
    NotYetValid,
    NotAServiceAccount,
    SubjectMismatch,
    NoPod,
    NoServiceAccountUid,
    Names,
    UnknownKey,
    KeysUnavailable,
    Signature,
}

impl TokenError {
    /// All of them, for what is written about them.
    pub const ALL: [TokenError; 24] = [
        TokenError::Missing,
        TokenError::Duplicate,
        TokenError::TooLong,
        TokenError::Bearer,
        TokenError::NotThreeParts,
        TokenError::NotBase64Url,
        TokenError::Header,
        TokenError::Algorithm,
        TokenError::CriticalHeader,
        TokenError::NoKeyId,
        TokenError::Payload,
        TokenError::Issuer,
        TokenError::Audience,
        TokenError::NoExpiry,
        TokenError::Expired,
        TokenError::NotYetValid,
        TokenError::NotAServiceAccount,
        TokenError::SubjectMismatch,
        TokenError::NoPod,
        TokenError::NoServiceAccountUid,
        TokenError::Names,
        TokenError::UnknownKey,
        TokenError::KeysUnavailable,
        TokenError::Signature,
    ];

    /// The metric label.
    pub fn reason(self) -> &'static str {
        self.entry().0
    }

    /// The `Code` of the answer.
    pub fn code(self) -> &'static str {
        match self {
            TokenError::Missing => "MissingToken",
            TokenError::Expired => "ExpiredToken",
            TokenError::KeysUnavailable => "ServiceUnavailable",
            TokenError::Duplicate
            | TokenError::TooLong
            | TokenError::Bearer
            | TokenError::NotThreeParts
            | TokenError::NotBase64Url
            | TokenError::Header
            | TokenError::Algorithm
            | TokenError::CriticalHeader
            | TokenError::NoKeyId
            | TokenError::Payload
            | TokenError::Issuer
            | TokenError::Audience
            | TokenError::NoExpiry
            | TokenError::NotYetValid
            | TokenError::NotAServiceAccount
            | TokenError::SubjectMismatch
            | TokenError::NoPod
            | TokenError::NoServiceAccountUid
            | TokenError::Names
            | TokenError::UnknownKey
            | TokenError::Signature => "InvalidToken",
        }
    }

    /// Reason and public text, side by side so that neither is forgotten.
    fn entry(self) -> (&'static str, &'static str) {
        match self {
            TokenError::Missing => (
                "token_missing",
                "The request has no token. Send the content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE in the \
                 Authorization header; SDKs that are too old for EKS Pod Identity do not.",
            ),
            TokenError::Duplicate => (
                "token_duplicate",
                "The request has more than one Authorization header. Send exactly one; a proxy or a wrapper \
                 around the SDK may be adding its own.",
            ),
            TokenError::TooLong => (
                "token_too_long",
                "The token is longer than 16384 bytes, which no projected service account token is. Send the \
                 content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE and nothing else.",
            ),
            TokenError::Bearer => (
                "token_bearer",
                "The Authorization header starts with \"Bearer\". EKS Pod Identity takes the token alone: remove \
                 the prefix.",
            ),
            TokenError::NotThreeParts => (
                "token_not_three_parts",
                "The token is not a JWT: it must be three parts joined by dots. Send the content of \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, whole and without anything around it.",
            ),
            TokenError::NotBase64Url => (
                "token_not_base64url",
                "A part of the token is not base64url without padding. The token was changed or cut on the way; \
                 send the content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE as it is.",
            ),
            TokenError::Header => (
                "token_header_unreadable",
                "The token's header is not a JSON object of the kind that a JWT has. Send the token that \
                 Kubernetes projected into the pod.",
            ),
            TokenError::Algorithm => (
                "token_algorithm",
                "The token is not signed by RS256, the only algorithm that EKS signs by and this agent accepts. \
                 Send the token that Kubernetes projected into the pod.",
            ),
            TokenError::CriticalHeader => (
                "token_critical_header",
                "The token's header has \"crit\": extensions that must be understood, and this agent knows none. \
                 Send the token that Kubernetes projected into the pod.",
            ),
            TokenError::NoKeyId => (
                "token_no_key_id",
                "The token's header does not name its key (\"kid\"). Send the token that Kubernetes projected \
                 into the pod.",
            ),
            TokenError::Payload => (
                "token_payload_unreadable",
                "The token's payload is not a JSON object of the kind that a service account token has. Send the \
                 token that Kubernetes projected into the pod.",
            ),
            TokenError::Issuer => (
                "token_wrong_issuer",
                "The token comes from another issuer than this cluster's. Use a token of the cluster that the pod \
                 runs in; if this one is, the agent's --issuer is wrong.",
            ),
            TokenError::Audience => (
                "token_wrong_audience",
                "The token is not meant for pods.eks.amazonaws.com. Use the token in \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, not the pod's Kubernetes API token or one for IRSA.",
            ),
            TokenError::NoExpiry => (
                "token_no_expiry",
                "The token has no expiration time. Use the projected token, not one from a Secret.",
            ),
            TokenError::Expired => (
                "token_expired",
                "The token has expired. The kubelet renews the file it comes from: read that file again for each \
                 request. If the file holds an expired token too, check the kubelet and the node's clock.",
            ),
            TokenError::NotYetValid => (
                "token_not_yet_valid",
                "The token is not valid yet. Check the node's clock: it is more than 30 seconds behind the one \
                 of the cluster.",
            ),
            TokenError::NotAServiceAccount => (
                "token_not_a_service_account",
                "The token's subject is not a Kubernetes service account. Send the token that Kubernetes \
                 projected into the pod.",
            ),
            TokenError::SubjectMismatch => (
                "token_subject_mismatch",
                "The token's subject and its kubernetes.io claims name different service accounts. Send the \
                 token that Kubernetes projected into the pod.",
            ),
            TokenError::NoPod => (
                "token_no_pod",
                "The token is not bound to a pod by name and UID. Use the token projected into the pod, not one \
                 from a Secret or from kubectl create token.",
            ),
            TokenError::NoServiceAccountUid => (
                "token_no_service_account_uid",
                "The token does not name its service account's UID. Use the token projected into the pod.",
            ),
            TokenError::Names => (
                "token_bad_names",
                "The token holds a name or UID that Kubernetes would not have given. Send the token that \
                 Kubernetes projected into the pod.",
            ),
            TokenError::UnknownKey => (
                "token_unknown_key",
                "The token is signed by a key that the cluster's issuer does not publish, as far as this agent \
                 could learn (it asks at most once in 10 seconds). Ask again shortly; if it stays so, check that \
                 the agent can reach the issuer, or set --jwks-url.",
            ),
            TokenError::KeysUnavailable => (
                "token_keys_unavailable",
                "The token is signed by a key that this agent does not know, and the cluster's issuer, which could \
                 tell, does not answer. Ask again; if it stays so, check that the agent can reach the issuer, or set \
                 --jwks-url.",
            ),
            TokenError::Signature => (
                "token_bad_signature",
                "The token's signature is wrong: it was changed, cut, or not made by this cluster. Send the \
                 content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE as it is.",
            ),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().1)
    }
}

impl std::error::Error for TokenError {}
