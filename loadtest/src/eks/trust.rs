//! Roles' trust policies: the part of IAM's language that decides who may assume a role.
//!
//! What this cannot evaluate is refused when the policy is set, never passed over: a condition that is silently not
//! looked at would make a test pass that should fail.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

mod condition;

use condition::Conditions;

/// A policy document that was read and understood.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct TrustPolicy {
    #[serde(rename = "Version")]
    _version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMany<Statement>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    principal: Principals,
    action: OneOrMany<String>,
    #[serde(default)]
    condition: Conditions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "Principal is \"*\" or an object with Service, AWS or Federated")]
enum Principals {
    Anyone(Star),
    Named(NamedPrincipals),
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Star {
    #[serde(rename = "*")]
    Star,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedPrincipals {
    #[serde(rename = "Service", default)]
    service: OneOrMany<String>,
    #[serde(rename = "AWS", default)]
    aws: OneOrMany<String>,
    /// Never EKS Auth; read because roles of IRSA have it beside the statement that counts.
    #[serde(rename = "Federated", default)]
    _federated: OneOrMany<String>,
}

/// IAM takes a list of one without its brackets.
#[derive(Clone, Debug)]
struct OneOrMany<T>(Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany(Vec::new())
    }
}

/// By hand, because serde's untagged enums do not tell what was wrong inside.
impl<'de, T: DeserializeOwned> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Value::deserialize(deserializer)? {
            Value::Array(many) => many,
            one @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                vec![one]
            }
        };
        let read: Result<Vec<T>, _> = values.into_iter().map(serde_json::from_value).collect();
        read.map(OneOrMany).map_err(D::Error::custom)
    }
}

/// Who wants to assume the role.
#[derive(Clone, Copy, Debug)]
pub(super) enum Principal<'a> {
    Service(&'a str),
    /// A role's ARN.
    Role(&'a str),
}

/// One attempt, with the values that conditions can look at.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) principal: Principal<'a>,
    pub(super) actions: &'a [&'a str],
    /// By lower-case condition key: IAM compares keys without regard to case.
    pub(super) context: BTreeMap<String, String>,
}

impl TrustPolicy {
    /// Reads a policy document; the error says what in it cannot be used.
    pub(super) fn parse(document: Value) -> Result<TrustPolicy, String> {
        serde_json::from_value(document).map_err(|error| format!("the trust policy cannot be used: {error}"))
    }

    /// The first action that the policy does not allow, if any.
    pub(super) fn refuses<'a>(&self, attempt: &Attempt<'a>) -> Option<&'a str> {
        attempt.actions.iter().copied().find(|action| !self.allows(action, attempt))
    }

    fn allows(&self, action: &str, attempt: &Attempt<'_>) -> bool {
        let mut matching = self.statement.0.iter().filter(|s| s.matches(action, attempt)).peekable();
        matching.peek().is_some() && matching.all(|statement| statement.effect == Effect::Allow)
    }
}

impl Statement {
    fn matches(&self, action: &str, attempt: &Attempt<'_>) -> bool {
        let action = action.to_ascii_lowercase();
        self.action.0.iter().any(|pattern| glob(&pattern.to_ascii_lowercase(), &action))
            && self.principal.includes(attempt.principal)
            && self.condition.hold(&attempt.context)
    }
}

impl Principals {
    fn includes(&self, principal: Principal<'_>) -> bool {
        match (self, principal) {
            (Principals::Anyone(Star::Star), _) => true,
            (Principals::Named(named), Principal::Service(name)) => {
                named.service.0.iter().any(|allowed| allowed == name)
            }
            (Principals::Named(named), Principal::Role(arn)) => {
                let account = arn.split(':').nth(4).unwrap_or_default();
                named.aws.0.iter().any(|allowed| {
                    allowed == "*"
                        || allowed == arn
                        || allowed == account
                        || allowed.strip_suffix(":root").is_some_and(|a| a.ends_with(&format!("::{account}")))
                })
            }
        }
    }
}

/// IAM's wildcards: `*` for any number of characters, `?` for one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood, and how far the text was when it was taken to match nothing.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => match star {
                Some((at, matched)) => {
                    star = Some((at, matched + 1));
                    p = at + 1;
                    t = matched + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests;
