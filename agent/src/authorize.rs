//! May this caller have what its token says? The only way to a [`Permit`].

use std::net::IpAddr;
use std::sync::Arc;

use crate::attribute::{Caller, Unattributed, Workload};
use crate::authenticate::Authenticated;
#[cfg(test)]
use crate::claims::Scope;
use crate::claims::{Claims, RoleKey};
use crate::config::{self, Sharing, Verify};
use crate::link;
use crate::node_pods::{Delegacy, Delegates};
use crate::reject::Rejection;

/// Proof that the caller was checked. The credential cache takes nothing else.
#[derive(Clone, Debug)]
pub struct Permit {
    key: RoleKey,
}

impl Permit {
    pub fn claims(&self) -> &Arc<Claims> {
        self.key.claims()
    }

    pub fn key(&self) -> &RoleKey {
        &self.key
    }

    #[cfg(test)]
    pub(crate) fn for_test(claims: Arc<Claims>, scope: Scope) -> Self {
        Permit { key: RoleKey::new(claims, scope) }
    }
}

/// Leave to have EKS Auth check one token that nobody here could: it buys that token's own credentials and no others.
#[derive(Clone, Debug)]
pub struct UncheckedPermit {
    claims: Arc<Claims>,
}

impl UncheckedPermit {
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    #[cfg(test)]
    pub(crate) fn for_test(claims: Arc<Claims>) -> Self {
        UncheckedPermit { claims }
    }
}

#[derive(Clone, Debug)]
pub enum Authorized {
    Checked(Permit),
    Unchecked(UncheckedPermit),
}

/// Who may use whose tokens on this node.
#[derive(Debug)]
pub struct Policy {
    pub verify: Verify,
    pub unattributed: config::Unattributed,
    /// Kubernetes' name of this node, where it was told.
    pub node_name: Option<String>,
    pub delegates: Delegates,
    pub sharing: Sharing,
}

/// What comparing the kernel's word with the token's came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `--verify off`.
    NotCompared,
    /// The pod that connected is the pod that the token is for.
    SamePod,
    /// A delegate's pod presents another pod's token, as it may.
    Delegate,
    /// Another pod presents the token; what it says is there where it was verified.
    OtherPod {
        caller: Box<Workload>,
        token: Option<Arc<Claims>>,
    },
    /// The pod is another's, and whether it is a delegate's is not known yet.
    DelegatesUnknown,
    /// The token is for a pod of another node. Who presents it may be unknown besides.
    OtherNode {
        unattributed: Option<Unattributed>,
    },
    Unattributed(Unattributed),
}

impl Verdict {
    /// A metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Verdict::NotCompared => "not_compared",
            Verdict::SamePod => "same_pod",
            Verdict::Delegate => "delegate",
            Verdict::OtherPod { .. } => "other_pod",
            Verdict::DelegatesUnknown => "delegates_unknown",
            Verdict::OtherNode { .. } => "other_node",
            Verdict::Unattributed(_) => "unattributed",
        }
    }
}

/// Compares who connected with whom the token is for, and turns the two into a permit for the credentials they may share.
pub fn authorize(
    caller: &Caller,
    authenticated: Authenticated,
    policy: &Policy,
) -> (Verdict, Result<Authorized, Rejection>) {
    let verdict = policy.compare(caller, &authenticated);
    if let Some(rejection) = policy.refusal(&verdict, &authenticated) {
        return (verdict, Err(rejection));
    }
    let authorized = match authenticated {
        Authenticated::Verified(claims) => {
            let scope = policy.sharing.scope(claims.namespace(), claims.service_account());
            Authorized::Checked(Permit { key: RoleKey::new(claims, scope) })
        }
        Authenticated::Unchecked(claims) => Authorized::Unchecked(UncheckedPermit { claims }),
    };
    (verdict, Ok(authorized))
}

impl Policy {
    /// Whether anybody is refused by the kernel's word, which then has to be had.
    pub fn refuses(&self) -> bool {
        match self.verify {
            Verify::Off => false,
            Verify::Audit => self.unattributed == config::Unattributed::Deny,
            Verify::Enforce => true,
        }
    }

    fn compare(&self, caller: &Caller, token: &Authenticated) -> Verdict {
        if self.verify == Verify::Off {
            return Verdict::NotCompared;
        }
        let claims = token.claims();
        let verdict = match caller {
            Ok(workload) if *workload.pod_uid == *claims.pod_uid() => Verdict::SamePod,
            Ok(workload) => match self.delegates.says(&workload.pod_uid) {
                Delegacy::Granted => Verdict::Delegate,
                Delegacy::None => {
                    Verdict::OtherPod { caller: Box::new(workload.clone()), token: token.verified().cloned() }
                }
                Delegacy::Unknown => Verdict::DelegatesUnknown,
            },
            Err(reason) => Verdict::Unattributed(*reason),
        };
        let elsewhere = match (&self.node_name, claims.node()) {
            (Some(here), Some(node)) => node != here,
            (None, _) | (_, None) => false,
        };
        if !elsewhere {
            return verdict;
        }
        match verdict {
            Verdict::NotCompared | Verdict::SamePod | Verdict::Delegate => {
                Verdict::OtherNode { unattributed: None }
            }
            Verdict::Unattributed(reason) => Verdict::OtherNode { unattributed: Some(reason) },
            Verdict::OtherPod { .. } | Verdict::DelegatesUnknown | Verdict::OtherNode { .. } => verdict,
        }
    }

    /// Nothing is refused that `enforce` was not asked for, unattributed connections excepted, which have a flag.
    fn refusal(&self, verdict: &Verdict, token: &Authenticated) -> Option<Rejection> {
        let enforced = |rejection| (self.verify == Verify::Enforce).then_some(rejection);
        // A token that nobody here vouches for costs a call, which is charged to the pod that it names: where that is not the
        // caller, it is not made in `audit` either.
        let vouched = token.verified().is_some();
        let unless_vouched = |rejection| if vouched { enforced(rejection) } else { Some(rejection) };
        let denied = |reason: &Unattributed| match self.unattributed {
            config::Unattributed::Allow => None,
            config::Unattributed::Deny => Some(Rejection::Unattributed(*reason)),
        };
        match verdict {
            Verdict::NotCompared | Verdict::SamePod | Verdict::Delegate => None,
            Verdict::OtherPod { caller, token } => unless_vouched(Rejection::OtherPod {
                caller: Arc::clone(&caller.pod_uid),
                pod: token.clone(),
            }),
            Verdict::DelegatesUnknown => unless_vouched(Rejection::DelegatesUnknown),
            Verdict::OtherNode { unattributed } => {
                enforced(Rejection::OtherNode { pod: token.verified().cloned() })
                    .or_else(|| unattributed.as_ref().and_then(denied))
            }
            Verdict::Unattributed(reason) => denied(reason),
        }
    }
}

/// A web page in a pod's browser can make a name of its own resolve to the link-local address (DNS rebinding), but it
/// cannot choose the `Host` header: it names the page's host, never this address.
pub fn check_host(host: Option<&str>, local: IpAddr) -> Result<(), Rejection> {
    let Some(host) = host else { return Err(Rejection::WrongHost) };
    // An authority is `host` or `host:port`; an IPv6 address has brackets.
    let address = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').and_then(|(address, port)| is_port(port).then_some(address)),
        None => match host.split_once(':') {
            Some((address, port)) => port.bytes().all(|b| b.is_ascii_digit()).then_some(address),
            None => Some(host),
        },
    };
    let address = address.and_then(|text| text.parse::<IpAddr>().ok());
    match address {
        Some(ip) if is_link_local(ip) || ip == local.to_canonical() => Ok(()),
        // SDKs accept `localhost` for a loopback agent, which is how one is tried out without root.
        None if local.to_canonical().is_loopback() && is_localhost(host) => Ok(()),
        Some(_) | None => Err(Rejection::WrongHost),
    }
}

/// The addresses that the pod identity webhook writes into pods.
fn is_link_local(ip: IpAddr) -> bool {
    ip == IpAddr::V4(link::IPV4) || ip == IpAddr::V6(link::IPV6)
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

fn is_localhost(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests;
