//! What the associations API accepts.

use super::super::reply::{ApiError, ErrorCode};
use super::NewAssociation;

pub(super) fn new(new: &NewAssociation) -> Result<(), ApiError> {
    name("namespace", &new.namespace, 63, "a DNS label")?;
    name("serviceAccount", &new.service_account, 253, "a DNS name")?;
    if let Some(tags) = &new.tags {
        if !(1..=50).contains(&tags.len()) {
            return Err(invalid(format!("tags has {} entries; 1 to 50 are allowed.", tags.len())));
        }
        if let Some((key, _)) = tags.iter().find(|(k, v)| k.is_empty() || k.len() > 128 || v.len() > 256) {
            return Err(invalid(format!(
                "The tag {key:?} is too long; keys have 1 to 128 characters, values up to 256."
            )));
        }
    }
    role_and_policy(
        &new.role_arn,
        new.target_role_arn.as_deref(),
        new.policy.as_deref(),
        new.disable_session_tags.unwrap_or(false),
    )
}

pub(super) fn role_and_policy(
    role: &str,
    target_role: Option<&str>,
    policy: Option<&str>,
    session_tags_disabled: bool,
) -> Result<(), ApiError> {
    role_arn("roleArn", role)?;
    target_role.map_or(Ok(()), |arn| role_arn("targetRoleArn", arn))?;
    let Some(policy) = policy else { return Ok(()) };
    if !session_tags_disabled {
        return Err(invalid(
            "policy requires disableSessionTags=true: session tags leave no room for a policy.",
        ));
    }
    match serde_json::from_str::<serde_json::Map<_, _>>(policy) {
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(format!("policy is not a JSON object: {error}"))),
    }
}

fn name(field: &str, value: &str, longest: usize, kind: &str) -> Result<(), ApiError> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || (longest > 63 && byte == b'.')
    };
    let bytes = value.as_bytes();
    if bytes.len() <= longest && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().copied().all(inner)
    {
        return Ok(());
    }
    Err(invalid(format!("{field} is {value:?}; it must be {kind} of at most {longest} characters.")))
}

fn role_arn(field: &str, arn: &str) -> Result<(), ApiError> {
    if super::super::roles::RoleArn::parse(arn).is_some() {
        return Ok(());
    }
    Err(invalid(format!(
        "{field} is {arn:?}; it must be a role's ARN, such as arn:aws:iam::111122223333:role/name."
    )))
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterException, message)
}
