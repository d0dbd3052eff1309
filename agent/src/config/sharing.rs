//! Which pods share one set of credentials.

use clap::ValueEnum;

use super::values::{Checked, Choice};
use crate::claims::Scope;

/// Which service accounts share credentials among their pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Sharing {
    /// Who shares credentials: all pods of a service account (role), or nobody (pod: one EKS Auth call per pod)
    #[arg(
        long = "sharing",
        env = "PODCRED_SHARING",
        value_name = "SCOPE",
        default_value = "role",
        value_parser = Choice::<SharingMode>::default(),
        help_heading = super::OWN
    )]
    mode: SharingMode,

    /// Service account whose pods do not share credentials, because policies use the pod name or UID; `*` matches any
    /// run of characters (repeatable, or comma-separated)
    #[arg(
        long = "pod-scoped",
        env = "PODCRED_POD_SCOPED",
        value_name = "NAMESPACE/SERVICEACCOUNT",
        value_delimiter = ',',
        value_parser = Checked(|text: &str| Pattern::parse(text)),
        help_heading = super::OWN
    )]
    pod_scoped: Vec<Pattern>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SharingMode {
    #[default]
    Role,
    Pod,
}

impl Sharing {
    pub fn scope(&self, namespace: &str, service_account: &str) -> Scope {
        match self.mode {
            SharingMode::Pod => Scope::Pod,
            SharingMode::Role if self.pod_scoped.iter().any(|p| p.matches(namespace, service_account)) => {
                Scope::Pod
            }
            SharingMode::Role => Scope::Role,
        }
    }
}

/// `NAMESPACE/SERVICEACCOUNT`, each part with `*` for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    namespace: String,
    service_account: String,
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (namespace, service_account) = split_service_account(text, true)?;
        Ok(Pattern { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }

    pub fn matches(&self, namespace: &str, service_account: &str) -> bool {
        glob(&self.namespace, namespace) && glob(&self.service_account, service_account)
    }
}

/// The two names of `NAMESPACE/SERVICEACCOUNT`, in the characters that Kubernetes allows (and `*` in patterns).
pub(crate) fn split_service_account(text: &str, pattern: bool) -> Result<(&str, &str), String> {
    let valid = |name: &str, longest: usize| {
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.') || (pattern && c == '*');
        !name.is_empty() && name.len() <= longest && name.chars().all(allowed)
    };
    match text.split_once('/') {
        Some((ns, sa)) if valid(ns, 63) && valid(sa, 253) => Ok((ns, sa)),
        _ => {
            let example =
                if pattern { ", where * matches any run of characters, such as team-*/runner" } else { "" };
            Err(format!(
                "is not NAMESPACE/SERVICEACCOUNT: give two names of lower-case letters, digits, '-' and '.'{example}"
            ))
        }
    }
}

/// Backtracks to the last `*` only, which is enough for globs and keeps the time at pattern × text.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_takes_its_service_accounts_out_of_sharing() {
        let patterns = ["prod/db-*", "*/runner", "a*b*c/x"].map(|p| Pattern::parse(p).unwrap());
        let sharing = Sharing { mode: SharingMode::Role, pod_scoped: patterns.to_vec() };
        for (ns, sa, scope) in [
            ("prod", "db-", Scope::Pod),
            ("prod", "db-writer", Scope::Pod),
            ("prod", "db", Scope::Role),
            ("preprod", "db-writer", Scope::Role),
            ("anything", "runner", Scope::Pod),
            ("anything", "runner2", Scope::Role),
            ("abc", "x", Scope::Pod),
            ("a-b-b-c", "x", Scope::Pod),
            ("a-c-b", "x", Scope::Role),
        ] {
            assert_eq!(sharing.scope(ns, sa), scope, "{ns}/{sa}");
        }
    }

    #[test]
    fn nobody_shares_where_sharing_is_by_pod() {
        assert_eq!(Sharing { mode: SharingMode::Pod, pod_scoped: vec![] }.scope("a", "b"), Scope::Pod);
        assert_eq!(Sharing::default().scope("a", "b"), Scope::Role);
    }

    #[test]
    fn a_pattern_that_could_match_nothing_is_refused() {
        let long = format!("{}/sa", "n".repeat(64));
        for text in ["", "ns", "/", "ns/", "/sa", "ns/sa/x", "NS/sa", "ns/s a", "ns/sa?", long.as_str()] {
            let problem = Pattern::parse(text).expect_err(text);
            assert!(problem.contains("NAMESPACE/SERVICEACCOUNT"), "{problem}");
        }
        assert!(split_service_account("ns/*", false).is_err(), "a plain name takes no pattern");
    }

    proptest! {
        #[test]
        fn glob_agrees_with_its_definition(pattern in "[ab*]{0,7}", text in "[ab]{0,9}") {
            fn by_definition(p: &[u8], t: &[u8]) -> bool {
                match p.split_first() {
                    None => t.is_empty(),
                    Some((b'*', rest)) => (0..=t.len()).any(|n| by_definition(rest, &t[n..])),
                    Some((c, rest)) => t.first() == Some(c) && by_definition(rest, &t[1..]),
                }
            }
            prop_assert_eq!(glob(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
