//! The way to a permit.

use super::*;
use crate::claims::{Names, TokenHash};
use crate::clock::UnixTime;
use crate::node_pods::NodePods;

fn claims(pod_uid: &str, node: Option<&str>) -> Arc<Claims> {
    let names = Names {
        namespace: "shop",
        service_account: "cart",
        service_account_uid: "sa-1",
        pod_name: "cart-1",
        pod_uid,
        node,
    };
    Arc::new(Claims::new(names, TokenHash::default(), UnixTime(0)))
}

fn verified(pod_uid: &str) -> Authenticated {
    Authenticated::Verified(claims(pod_uid, Some("here")))
}

fn pod(uid: &str) -> Caller {
    Ok(Workload {
        pod_uid: uid.into(),
        container_id: None,
        cgroup_id: 7,
        tgid: 1,
        netns: 2,
        host_network: false,
    })
}

fn policy(verify: Verify) -> Policy {
    let unattributed = match verify {
        Verify::Off | Verify::Audit => config::Unattributed::Allow,
        Verify::Enforce => config::Unattributed::Deny,
    };
    Policy {
        verify,
        unattributed,
        node_name: Some("here".to_owned()),
        delegates: Delegates::default(),
        sharing: Sharing::default(),
    }
}

/// The verdict, and the reason of the refusal.
fn decide(
    caller: &Caller,
    authenticated: Authenticated,
    policy: &Policy,
) -> (&'static str, Option<&'static str>) {
    let (verdict, result) = authorize(caller, authenticated, policy);
    (verdict.label(), result.err().map(|rejection| rejection.reason()))
}

#[test]
fn a_token_is_good_for_the_pod_that_the_kernel_names() {
    for mode in [Verify::Audit, Verify::Enforce] {
        assert_eq!(decide(&pod("a"), verified("a"), &policy(mode)), ("same_pod", None));
    }
}

#[test]
fn another_pods_token_is_counted_in_audit_and_refused_in_enforce() {
    assert_eq!(decide(&pod("b"), verified("a"), &policy(Verify::Audit)), ("other_pod", None));
    assert_eq!(decide(&pod("b"), verified("a"), &policy(Verify::Enforce)), ("other_pod", Some("other_pod")));
    assert_eq!(decide(&pod("b"), verified("a"), &policy(Verify::Off)), ("not_compared", None));
}

#[test]
fn a_refusal_names_the_tokens_pod_only_where_the_token_was_verified() {
    let enforce = policy(Verify::Enforce);
    let text = |authenticated| {
        let (_, result) = authorize(&pod("thief-uid"), authenticated, &enforce);
        String::from_utf8(result.expect_err("refused").body()).expect("text")
    };
    let known = text(verified("a"));
    assert!(known.contains("shop/cart-1") && known.contains("thief-uid"), "{known}");
    let unknown = text(Authenticated::Unchecked(claims("a", None)));
    assert!(!unknown.contains("cart") && unknown.contains("thief-uid"), "{unknown}");
}

#[test]
fn a_verdict_carries_the_tokens_pod_only_where_the_token_was_verified() {
    let token_of = |authenticated| {
        let (verdict, _) = authorize(&pod("b"), authenticated, &policy(Verify::Audit));
        let Verdict::OtherPod { token, .. } = verdict else { panic!("{verdict:?}") };
        token
    };
    assert_eq!(token_of(verified("a")), Some(claims("a", Some("here"))));
    assert_eq!(token_of(Authenticated::Unchecked(claims("a", None))), None);
}

#[test]
fn a_token_that_nobody_here_vouches_for_costs_a_call_only_if_the_kernels_pod_fits() {
    let unchecked = || Authenticated::Unchecked(claims("a", Some("here")));
    let audit = policy(Verify::Audit);
    assert_eq!(decide(&pod("a"), unchecked(), &audit), ("same_pod", None));
    assert_eq!(decide(&pod("b"), unchecked(), &audit), ("other_pod", Some("other_pod")));
    assert_eq!(decide(&Err(Unattributed::NoRecord), unchecked(), &audit), ("unattributed", None));
    let driver = config::ServiceAccount { namespace: "kube-system".to_owned(), name: "csi".to_owned() };
    let pods = Arc::new(NodePods::default());
    let delegates = Delegates::new(vec![driver.clone()], Arc::clone(&pods));
    let audit = Policy { delegates, ..audit };
    let unknown = ("delegates_unknown", Some("delegates_unknown"));
    assert_eq!(decide(&pod("driver"), unchecked(), &audit), unknown);
    pods.list(&[("driver", driver)]);
    assert_eq!(decide(&pod("driver"), unchecked(), &audit), ("delegate", None));
}

#[test]
fn a_pod_of_another_node_is_counted_in_audit_and_refused_in_enforce() {
    let elsewhere = || Authenticated::Verified(claims("a", Some("there")));
    assert_eq!(decide(&pod("a"), elsewhere(), &policy(Verify::Audit)), ("other_node", None));
    assert_eq!(decide(&pod("a"), elsewhere(), &policy(Verify::Enforce)), ("other_node", Some("other_node")));
    // Clusters that do not bind tokens to nodes, and agents that were not told their node's name.
    let unbound = Authenticated::Verified(claims("a", None));
    assert_eq!(decide(&pod("a"), unbound, &policy(Verify::Enforce)), ("same_pod", None));
    let nameless = Policy { node_name: None, ..policy(Verify::Enforce) };
    assert_eq!(decide(&pod("a"), elsewhere(), &nameless), ("same_pod", None));
}

#[test]
fn what_the_kernel_cannot_tell_follows_its_own_flag() {
    let unknown = Err(Unattributed::NoRecord);
    let for_now = Err(Unattributed::CannotTell);
    assert_eq!(decide(&unknown, verified("a"), &policy(Verify::Audit)), ("unattributed", None));
    let deny = |verify| Policy { unattributed: config::Unattributed::Deny, ..policy(verify) };
    for mode in [Verify::Audit, Verify::Enforce] {
        assert_eq!(decide(&unknown, verified("a"), &deny(mode)), ("unattributed", Some("unattributed")));
        assert_eq!(
            decide(&for_now, verified("a"), &deny(mode)),
            ("unattributed", Some("unattributed_for_now"))
        );
    }
    assert_eq!(Rejection::Unattributed(Unattributed::NoRecord).status(), 403);
    assert_eq!(Rejection::Unattributed(Unattributed::CannotTell).status(), 503);
    let allow = Policy { unattributed: config::Unattributed::Allow, ..policy(Verify::Enforce) };
    assert_eq!(decide(&unknown, verified("a"), &allow), ("unattributed", None));
    let elsewhere = Authenticated::Verified(claims("a", Some("there")));
    assert_eq!(decide(&unknown, elsewhere, &allow), ("other_node", Some("other_node")));
}

#[test]
fn whoever_one_of_the_rules_refuses_is_refused() {
    let here = || verified("a");
    let elsewhere = || Authenticated::Verified(claims("a", Some("there")));
    let unknown = || Err(Unattributed::NoRecord);
    let (nodes, pods, nobodys) = (Some("other_node"), Some("other_pod"), Some("unattributed"));
    // In audit, and in enforce; each with unattributed callers allowed, and denied.
    let table = [
        (pod("a"), here(), [None, None, None, None]),
        (pod("a"), elsewhere(), [None, None, nodes, nodes]),
        (pod("b"), here(), [None, None, pods, pods]),
        (pod("b"), elsewhere(), [None, None, pods, pods]),
        (unknown(), here(), [None, nobodys, None, nobodys]),
        (unknown(), elsewhere(), [None, nobodys, nodes, nodes]),
    ];
    for (who, token, refusals) in table {
        let modes = [Verify::Audit, Verify::Enforce].into_iter();
        let policies = modes.flat_map(|verify| {
            [config::Unattributed::Allow, config::Unattributed::Deny]
                .map(|unattributed| Policy { unattributed, ..policy(verify) })
        });
        let refused: Vec<_> = policies.map(|policy| decide(&who, token.clone(), &policy).1).collect();
        assert_eq!(refused, refusals, "{who:?} with {token:?}");
        let off = Policy { unattributed: config::Unattributed::Deny, ..policy(Verify::Off) };
        assert_eq!(decide(&who, token, &off), ("not_compared", None));
    }
}

#[test]
fn a_delegate_may_once_the_pods_of_the_node_are_listed() {
    let driver = config::ServiceAccount { namespace: "kube-system".to_owned(), name: "csi".to_owned() };
    let pods = Arc::new(NodePods::default());
    let delegates = Delegates::new(vec![driver.clone()], Arc::clone(&pods));
    let enforce = Policy { delegates, ..policy(Verify::Enforce) };
    assert_eq!(
        decide(&pod("driver"), verified("a"), &enforce),
        ("delegates_unknown", Some("delegates_unknown"))
    );
    let other = config::ServiceAccount { namespace: "shop".to_owned(), name: "b".to_owned() };
    pods.list(&[("driver", driver), ("b", other)]);
    assert_eq!(decide(&pod("driver"), verified("a"), &enforce), ("delegate", None));
    assert_eq!(decide(&pod("b"), verified("a"), &enforce), ("other_pod", Some("other_pod")));
}

fn allowed(host: &str, local: &str) -> bool {
    check_host(Some(host), local.parse().expect("address")).is_ok()
}

#[test]
fn the_link_local_addresses_are_welcome_with_any_port() {
    for host in
        ["169.254.170.23", "169.254.170.23:80", "[fd00:ec2::23]", "[fd00:ec2::23]:80", "[fd00:0ec2:0::23]"]
    {
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
