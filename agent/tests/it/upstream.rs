//! What EKS Auth says and does, as a pod sees it.

use std::cell::Cell;
use std::time::Duration;

use loadtest::eks::{AssociationChange, ErrorCode, NewAssociation, Outage, PodToken};
use podcred::clock::Clock;
use serde_json::json;

use crate::harness::{Node, ROLE, until};

#[tokio::test]
async fn refusals_keep_their_status_and_code_and_name_the_pod() {
    for (code, status) in [
        (ErrorCode::ResourceNotFoundException, 404),
        (ErrorCode::AccessDeniedException, 400),
        (ErrorCode::InvalidTokenException, 400),
        (ErrorCode::ExpiredTokenException, 400),
        (ErrorCode::InvalidRequestException, 400),
        (ErrorCode::InvalidParameterException, 400),
    ] {
        let node = Node::start(&[]).await;
        node.eks.settings(|s| s.forced_error = Some(code));
        let answer = node.ask(&node.pod("some-pod").token).await;
        assert_eq!((answer.status, answer.code()), (status, &*format!("{code:?}")));
        assert!(answer.message().contains("web/some-pod"), "{}", answer.message());
        // Remembered: the SDK's next attempts cost no call.
        node.ask(&node.pod("some-pod").token).await;
        assert!(node.eks.counts().total <= 2, "{code:?}");
    }
}

#[tokio::test]
async fn what_may_pass_is_a_503_after_the_wait_and_never_at_once() {
    for code in [
        ErrorCode::ThrottlingException,
        ErrorCode::InternalServerException,
        ErrorCode::ServiceUnavailableException,
    ] {
        let node = Node::start(&["--eks-auth-wait", "700ms"]).await;
        node.eks.settings(|s| s.forced_error = Some(code));
        let (answer, took) = timed(&node, "p").await;
        assert_eq!((answer.status, answer.code()), (503, "ServiceUnavailable"), "{code:?}");
        assert_eq!(answer.headers["connection"], "close");
        assert!(took >= Duration::from_millis(690), "{code:?}: {took:?}");
    }
}

#[tokio::test]
async fn why_eks_auth_cannot_be_reached_is_not_for_pods_but_for_the_log() {
    let node = Node::start(&["--eks-auth-wait", "200ms", "--endpoint", "http://127.0.0.1:1"]).await;
    let answer = node.ask(&node.pod("p").token).await;
    assert_eq!(answer.status, 503);
    assert!(answer.message().contains("EKS Auth cannot be reached. "), "{answer:?}");
    let told = node.agent.event("eks_auth_unavailable");
    assert!(told["cause"].as_str().is_some_and(|cause| cause.contains("refused")), "{told}");
}

#[tokio::test]
async fn a_slow_eks_auth_is_a_503_and_then_success_by_the_same_call() {
    let node = Node::start(&["--eks-auth-wait", "300ms"]).await;
    node.eks.settings(|s| s.latency_ms = 800);
    let token = node.pod("p").token;
    assert_eq!(node.ask(&token).await.status, 503);
    until(async || node.ask(&token).await.status == 200).await;
    assert_eq!(node.eks.counts().total, 1);
}

#[tokio::test]
async fn an_outage_is_outlived_by_known_roles_for_pods_old_and_new() {
    for outage in [Outage::Refuse, Outage::Hang, Outage::Reset] {
        let node = Node::start(&["--eks-auth-wait", "300ms"]).await;
        let key = node.ask(&node.pod("old").token).await.key().to_owned();
        node.eks.settings(|s| s.outage = outage);
        for i in 0..20 {
            assert_eq!(node.ask(&node.pod(&format!("new{i}")).token).await.key(), key, "{outage:?}");
        }
        node.eks.create_association("web", "unknown", ROLE);
        let unknown = node.eks.mint(PodToken::new("web", "unknown", "p")).token;
        assert_eq!(node.ask(&unknown).await.status, 503);
        node.eks.settings(|s| s.outage = Outage::Off);
        until(async || node.ask(&unknown).await.status == 200).await;
    }
}

#[tokio::test]
async fn short_lived_credentials_are_renewed_without_anybody_asking() {
    let node = Node::start(&[]).await;
    node.eks.settings(|s| s.credential_life_seconds = 8);
    let token = node.pod("p").token;
    let first = node.ask(&token).await.key().to_owned();
    until(async || node.eks.counts().total >= 2).await;
    let renewed = node.ask(&token).await.key().to_owned();
    assert_ne!(first, renewed);
}

#[tokio::test]
async fn credentials_serve_to_their_last_second_in_an_outage_and_come_back_by_themselves() {
    let node = Node::start(&["--eks-auth-wait", "200ms"]).await;
    node.eks.settings(|s| s.credential_life_seconds = 5);
    let token = node.pod("p").token;
    let expiration = node.ask(&token).await.body["Expiration"].as_str().expect("text").to_owned();
    node.eks.settings(|s| s.outage = Outage::Refuse);
    until(async || {
        let answer = node.ask(&token).await;
        if answer.status == 200 {
            assert_eq!(answer.body["Expiration"], *expiration, "nothing else can be had");
        }
        answer.status == 503
    })
    .await;
    node.eks.settings(|s| s.outage = Outage::Off);
    until(async || node.ask(&token).await.status == 200).await;
}

#[tokio::test]
async fn a_lost_permission_of_the_node_role_costs_no_pod_its_credentials() {
    let node = Node::start(&[]).await;
    node.eks.create_association("web", "other", ROLE);
    node.eks.settings(|s| s.credential_life_seconds = 20);
    let pods: Vec<String> = ["app", "other"]
        .iter()
        .flat_map(|sa| [1, 2].map(|n| node.eks.mint(PodToken::new("web", *sa, format!("{sa}-{n}"))).token))
        .collect();
    for pod in &pods {
        node.ask(pod).await.key();
    }
    let suspected = async || node.agent.metric("podcred_eks_auth_permission_suspected_lost").await;
    node.eks.settings(|s| s.node_permission = false);
    until(async || suspected().await == 1.0).await;
    for pod in &pods {
        node.ask(pod).await.key();
    }
    node.eks.settings(|s| s.node_permission = true);
    until(async || suspected().await == 0.0).await;
}

#[tokio::test]
async fn rotated_or_wrong_credentials_of_the_node_are_never_the_pods_fault() {
    let node = Node::start(&["--eks-auth-wait", "300ms"]).await;
    let token = node.pod("p").token;
    let key = node.ask(&token).await.key().to_owned();
    node.eks.create_association("web", "later", ROLE);
    let stranger =
        aws_credential_types::Credentials::new("AKIDSTRANGER", "another-secret", None, None, "a test");
    node.eks.set_node_credentials(stranger);
    let later = node.ask(&node.eks.mint(PodToken::new("web", "later", "p")).token).await;
    assert_eq!(later.status, 503);
    assert!(later.message().contains("agent's own"), "{}", later.message());
    assert_eq!(node.ask(&token).await.key(), key);
}

#[tokio::test]
async fn a_target_role_passes_through_with_its_own_account_and_life() {
    let node = Node::start(&[]).await;
    let new = NewAssociation {
        namespace: "data".to_owned(),
        service_account: "reader".to_owned(),
        role_arn: ROLE.to_owned(),
        target_role_arn: Some("arn:aws:iam::444455556666:role/lake".to_owned()),
        ..NewAssociation::default()
    };
    node.eks.associate(new).expect("an association");
    let answer = node.ask(&node.eks.mint(PodToken::new("data", "reader", "p")).token).await;
    assert_eq!(answer.body["AccountId"], "444455556666");
}

#[tokio::test]
async fn a_recreated_pod_gets_the_role_that_its_association_was_changed_to() {
    let node = Node::start(&["--revalidate-after", "1s"]).await;
    let id = node.eks.create_association("web", "moved", ROLE);
    let role_of = async |name: &str| {
        let token = node.eks.mint(PodToken::new("web", "moved", name)).token;
        let answer = node.ask(&token).await;
        node.eks.session(answer.key()).expect("handed out").role_arn
    };
    assert_eq!(role_of("before").await, ROLE);
    let role = "arn:aws:iam::111122223333:role/new";
    let change = AssociationChange { role_arn: Some(role.to_owned()), ..AssociationChange::default() };
    node.eks.update_association(&id, change).expect("changed");
    let pods = Cell::new(0);
    let next = || format!("after{}", pods.replace(pods.get() + 1));
    until(async || role_of(&next()).await == role).await;
    node.eks.delete_association(&id).expect("deleted");
    until(async || node.ask(&node.eks.mint(PodToken::new("web", "moved", next())).token).await.status == 404)
        .await;
}

#[tokio::test]
async fn in_pod_scope_the_session_tags_are_each_pods_own() {
    let node = Node::start(&["--pod-scoped", "web/*"]).await;
    for name in ["a", "b"] {
        let answer = node.ask(&node.pod(name).token).await;
        let session = node.eks.session(answer.key()).expect("handed out");
        assert_eq!(session.tags.get("kubernetes-pod-name").map(String::as_str), Some(name));
    }
    assert_eq!(node.eks.counts().total, 2);
}

#[tokio::test]
async fn a_role_that_does_not_trust_pod_identity_is_a_refusal_that_says_so() {
    let node = Node::start(&[]).await;
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"}}]});
    node.eks.set_trust_policy(ROLE, Some(policy)).expect("a policy");
    let answer = node.ask(&node.pod("p").token).await;
    assert_eq!((answer.status, answer.code()), (400, "AccessDeniedException"));
    assert!(answer.message().contains("pods.eks.amazonaws.com"), "{}", answer.message());
}

#[tokio::test]
async fn the_node_is_named_to_eks_auth() {
    let node =
        Node::start(&["--node-name", "ip-10-0-0-1", "--instance-id", "i-0abc", "--zone", "eu-west-1a"]).await;
    node.ask(&node.pod("p").token).await.key();
    let call = &node.eks.calls()[0];
    assert_eq!(call.eks_node_name.as_deref(), Some("ip-10-0-0-1"));
    assert_eq!((call.instance_id.as_deref(), call.zone.as_deref()), (Some("i-0abc"), Some("eu-west-1a")));
}

async fn timed(node: &Node, name: &str) -> (crate::harness::Answer, Duration) {
    let token = node.pod(name).token;
    let asked = Clock::default().now().mono;
    let answer = node.ask(&token).await;
    (answer, Clock::default().now().mono - asked)
}
