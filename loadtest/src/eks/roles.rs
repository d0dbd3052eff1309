//! IAM roles: made when they are first named, trusting EKS Pod Identity until told otherwise.

use std::collections::HashMap;

use super::id;
use super::trust::{Attempt, TrustPolicy};

/// The parts of `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoleArn<'a> {
    partition: &'a str,
    account: &'a str,
    name: &'a str,
}

impl<'a> RoleArn<'a> {
    pub(super) fn parse(arn: &'a str) -> Option<RoleArn<'a>> {
        let (partition, rest) = arn.strip_prefix("arn:")?.split_once(":iam::")?;
        let (account, path) = rest.split_once(":role/")?;
        let name = path.rsplit('/').next()?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        let valid = partition.starts_with("aws")
            && partition.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && (1..=64).contains(&name.len())
            && path.bytes().all(|byte| legal(byte) || byte == b'/');
        valid.then_some(RoleArn { partition, account, name })
    }

    /// A session's ARN has the role's name without its path.
    pub(super) fn session(self, session_name: &str) -> String {
        let RoleArn { partition, account, name } = self;
        format!("arn:{partition}:sts::{account}:assumed-role/{name}/{session_name}")
    }
}

#[derive(Debug, Default)]
pub(super) struct Roles {
    by_arn: HashMap<String, Role>,
}

#[derive(Debug)]
struct Role {
    /// `AROA…`
    id: String,
    /// Without one the role trusts whoever comes.
    trust: Option<TrustPolicy>,
}

impl Roles {
    /// Sets or, with `None`, resets a role's trust policy.
    pub(super) fn set_trust(&mut self, arn: &str, trust: Option<TrustPolicy>) {
        self.role(arn).trust = trust;
    }

    pub(super) fn id(&mut self, arn: &str) -> String {
        self.role(arn).id.clone()
    }

    /// The first action that the role's trust policy does not allow, if any.
    pub(super) fn refuses<'a>(&self, arn: &str, attempt: &Attempt<'a>) -> Option<&'a str> {
        self.by_arn.get(arn)?.trust.as_ref()?.refuses(attempt)
    }

    fn role(&mut self, arn: &str) -> &mut Role {
        self.by_arn.entry(arn.to_owned()).or_insert_with(|| Role { id: id::role_id(), trust: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_arn_has_the_roles_account_and_no_path() {
        let role = RoleArn::parse("arn:aws-cn:iam::111122223333:role/a/b/cart").unwrap();
        assert_eq!(role.session("s"), "arn:aws-cn:sts::111122223333:assumed-role/cart/s");
    }

    #[test]
    fn what_is_no_role_is_refused() {
        for arn in [
            "",
            "cart",
            "arn:aws:iam::1:role/cart",
            "arn:aws:iam::111122223333:user/cart",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/ca rt",
            "arn:gcp:iam::111122223333:role/cart",
        ] {
            assert_eq!(RoleArn::parse(arn), None, "{arn}");
        }
    }
}
