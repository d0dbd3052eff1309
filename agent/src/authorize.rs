//! May this caller have what its token says? The only way to a [`Permit`].

use std::net::IpAddr;
use std::sync::Arc;

use crate::authenticate::Authenticated;
#[cfg(test)]
use crate::claims::Scope;
use crate::claims::{Claims, RoleKey, TokenHash};
use crate::config::Sharing;
use crate::link;
use crate::reject::Rejection;

/// Proof that the caller was checked. The credential cache takes nothing else.
#[derive(Clone, Debug)]
pub struct Permit {
    claims: Arc<Claims>,
    key: RoleKey,
    token: TokenHash,
}

impl Permit {
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    pub fn key(&self) -> &RoleKey {
        &self.key
    }

    pub fn token_hash(&self) -> &TokenHash {
        &self.token
    }

    #[cfg(test)]
    pub(crate) fn for_test(claims: Arc<Claims>, scope: Scope, token: TokenHash) -> Self {
        Permit { key: RoleKey::new(Arc::clone(&claims), scope), claims, token }
    }
}

/// Leave to have EKS Auth check one token that nobody here could: it buys that token's own credentials and no others.
#[derive(Clone, Debug)]
pub struct UncheckedPermit {
    claims: Arc<Claims>,
    token: TokenHash,
}

impl UncheckedPermit {
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    pub fn token_hash(&self) -> &TokenHash {
        &self.token
    }

    #[cfg(test)]
    pub(crate) fn for_test(claims: Arc<Claims>, token: TokenHash) -> Self {
        UncheckedPermit { claims, token }
    }
}

#[derive(Clone, Debug)]
pub enum Authorized {
    Checked(Permit),
    Unchecked(UncheckedPermit),
}

/// Turns claims into a permit for the credentials they may share.
pub fn authorize(authenticated: Authenticated, sharing: &Sharing) -> Authorized {
    match authenticated {
        Authenticated::Verified(claims, token) => {
            let scope = sharing.scope(&claims.namespace, &claims.service_account);
            Authorized::Checked(Permit { key: RoleKey::new(Arc::clone(&claims), scope), claims, token })
        }
        Authenticated::Unchecked(claims, token) => Authorized::Unchecked(UncheckedPermit { claims, token }),
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
mod tests {
    use super::*;

    fn allowed(host: &str, local: &str) -> bool {
        check_host(Some(host), local.parse().expect("address")).is_ok()
    }

    #[test]
    fn the_link_local_addresses_are_welcome_with_any_port() {
        for host in [
            "169.254.170.23",
            "169.254.170.23:80",
            "[fd00:ec2::23]",
            "[fd00:ec2::23]:80",
            "[fd00:0ec2:0::23]",
        ] {
            assert!(allowed(host, "10.0.0.1"), "{host}");
        }
    }

    #[test]
    fn the_address_that_the_connection_came_in_on_is_welcome() {
        assert!(allowed("127.0.0.1:8080", "127.0.0.1"));
        assert!(allowed("127.0.0.1:8080", "::ffff:127.0.0.1"));
        assert!(allowed("localhost:8080", "127.0.0.1"));
        assert!(!allowed("127.0.0.2", "127.0.0.1"));
    }

    #[test]
    fn a_name_that_was_rebound_is_refused() {
        for host in [
            "evil.example",
            "evil.example:80",
            "169.254.170.23.evil.example",
            "localhost",
            "",
            "[fd00:ec2::23",
            "169.254.170.23:x",
            "[fd00:ec2::23]x",
        ] {
            assert!(!allowed(host, "169.254.170.23"), "{host:?}");
        }
        assert!(check_host(None, IpAddr::V4(link::IPV4)).is_err());
    }
}
