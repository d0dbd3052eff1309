use std::collections::BTreeSet;

use aws_credential_types::Credentials;
use loadtest::eks::{AssociationChange, ErrorCode, NewAssociation, PodToken, SimulatedEks};
use serde_json::{Value, json};

use crate::client::{Answer, assume, assume_as, caller_identity};
use crate::{ROLE, with_cart};

const TARGET: &str = "arn:aws:iam::999922223333:role/target";

fn cart(eks: &SimulatedEks) -> String {
    eks.mint(PodToken::new("shop", "cart", "cart-1")).token
}

async fn assume_cart(eks: &SimulatedEks) -> Answer {
    assume(eks, &cart(eks)).await
}

fn trust(condition: &Value) -> Option<Value> {
    Some(json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": { "Service": "pods.eks.amazonaws.com" },
        "Action": ["sts:AssumeRole", "sts:TagSession"],
        "Condition": condition,
    }]}))
}

#[tokio::test]
async fn a_pods_token_becomes_credentials_of_its_role() {
    let eks = with_cart().await;
    let minted = eks.mint(PodToken::new("shop", "cart", "cart-1"));
    let answer = assume(&eks, &minted.token).await;
    assert_eq!(answer.outcome(), (200, ""), "{}", answer.body);
    let body = &answer.body;
    assert_eq!(body["subject"], json!({ "namespace": "shop", "serviceAccount": "cart" }));
    assert_eq!(body["audience"], "pods.eks.amazonaws.com");
    let arn = body["assumedRoleUser"]["arn"].as_str().unwrap();
    assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/cart/eks-demo-cart-1-"), "{arn}");
    let life = body["credentials"]["expiration"].as_i64().unwrap() - (minted.expires - 24 * 3600);
    assert!((6 * 3600..6 * 3600 + 10).contains(&life), "{life} s");

    let session = eks.session(body["credentials"]["accessKeyId"].as_str().unwrap()).unwrap();
    assert_eq!((session.role_arn.as_str(), session.session_arn.as_str()), (ROLE, arn));
    let tags: Vec<_> = session.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("eks-cluster-arn", "arn:aws:eks:eu-west-1:111122223333:cluster/demo"),
        ("eks-cluster-name", "demo"),
        ("kubernetes-namespace", "shop"),
        ("kubernetes-pod-name", "cart-1"),
        ("kubernetes-pod-uid", &minted.pod_uid),
        ("kubernetes-service-account", "cart"),
    ];
    assert_eq!(tags, expected);
    assert_eq!(session.transitive_tag_keys.len(), 6);
}

#[tokio::test]
async fn get_caller_identity_names_the_role_session_and_the_node() {
    let eks = with_cart().await;
    let answer = assume_cart(&eks).await;
    let identity = caller_identity(&eks, &answer.credentials()).await;
    assert_eq!(identity.status, 200);
    let arn = answer.body["assumedRoleUser"]["arn"].as_str().unwrap();
    assert!(identity.body.as_str().unwrap().contains(&format!("<Arn>{arn}</Arn>")), "{}", identity.body);
    let node = caller_identity(&eks, eks.node_credentials()).await;
    assert!(node.body.as_str().unwrap().contains("assumed-role/node/"), "{}", node.body);
}

#[tokio::test]
async fn sts_refuses_wrong_and_expired_sessions() {
    let eks = with_cart().await;
    let good = assume_cart(&eks).await.credentials();
    let token = good.session_token().map(str::to_owned);
    let wrong = Credentials::new(good.access_key_id(), "wrong", token, None, "test");
    let answer = caller_identity(&eks, &wrong).await;
    assert_eq!(answer.status, 403);
    assert!(answer.body.as_str().unwrap().contains("<Code>SignatureDoesNotMatch</Code>"), "{}", answer.body);

    eks.settings(|settings| settings.credential_life_seconds = 0);
    let answer = caller_identity(&eks, &assume_cart(&eks).await.credentials()).await;
    assert_eq!(answer.status, 403);
    assert!(answer.body.as_str().unwrap().contains("<Code>ExpiredToken</Code>"), "{}", answer.body);
}

#[tokio::test]
async fn the_caller_must_be_known_sign_rightly_and_be_allowed() {
    let eks = with_cart().await;
    let body = json!({ "token": cart(&eks) });
    let unknown = Credentials::new("AKIAUNKNOWN", "x", None, None, "test");
    let answer = assume_as(&eks, &unknown, body.clone()).await;
    assert_eq!(answer.outcome(), (403, "UnrecognizedClientException"));

    let wrong = Credentials::new(eks.node_credentials().access_key_id(), "wrong", None, None, "test");
    let answer = assume_as(&eks, &wrong, body.clone()).await;
    assert_eq!(answer.outcome(), (403, "InvalidSignatureException"));

    let pod = assume_cart(&eks).await.credentials();
    assert_eq!(assume_as(&eks, &pod, body.clone()).await.outcome(), (400, "AccessDeniedException"));

    eks.settings(|settings| settings.node_permission = false);
    let answer = assume_cart(&eks).await;
    assert_eq!(answer.outcome(), (400, "AccessDeniedException"));
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains("eks-auth:AssumeRoleForPodIdentity"), "{message}");
}

#[tokio::test]
async fn node_credentials_can_be_rotated() {
    let eks = with_cart().await;
    let new = Credentials::new("ASIANEW", "secret", Some("session".to_owned()), None, "test");
    eks.set_node_credentials(new.clone());
    let body = json!({ "token": cart(&eks) });
    assert_eq!(assume_as(&eks, &new, body.clone()).await.status, 200);
    let old = assume_as(&eks, eks.node_credentials(), body).await;
    assert_eq!(old.outcome(), (403, "UnrecognizedClientException"));
}

#[tokio::test]
async fn each_bad_token_has_its_own_error() {
    let eks = with_cart().await;
    let a_pod = || PodToken::new("shop", "cart", "cart-1");
    let dead = eks.mint(PodToken::new("shop", "cart", "dead"));
    eks.delete_pod(&dead.pod_uid);
    let bad = [
        (eks.mint(a_pod().expires_in_seconds(0)).token, (400, "ExpiredTokenException")),
        (eks.mint(a_pod().audience("sts.amazonaws.com")).token, (400, "InvalidTokenException")),
        (eks.mint(a_pod().signed_by_a_foreign_key()).token, (400, "InvalidTokenException")),
        (dead.token, (400, "InvalidTokenException")),
        (eks.mint(PodToken::new("shop", "nobody", "x")).token, (404, "ResourceNotFoundException")),
        ("a.b".to_owned(), (400, "InvalidParameterException")),
        (String::new(), (400, "InvalidParameterException")),
    ];
    for (token, outcome) in bad {
        let answer = assume(&eks, &token).await;
        assert_eq!(answer.outcome(), outcome, "{}", answer.body);
        assert_eq!(answer.body["__type"], outcome.1);
    }
}

#[tokio::test]
async fn the_trust_policy_decides_by_account_cluster_and_tags() {
    let eks = with_cart().await;
    let cases = [
        (json!({ "StringEquals": { "aws:SourceAccount": "111122223333" } }), true),
        (json!({ "StringEquals": { "aws:SourceAccount": "999999999999" } }), false),
        (json!({ "ArnLike": { "aws:SourceArn": "arn:aws:eks:*:111122223333:cluster/demo" } }), true),
        (json!({ "ArnEquals": { "aws:SourceArn": "arn:aws:eks:eu-west-1:111122223333:cluster/x" } }), false),
        (json!({ "StringEquals": { "aws:RequestTag/kubernetes-namespace": "shop" } }), true),
        (json!({ "StringLike": { "aws:RequestTag/kubernetes-pod-name": "pay-*" } }), false),
    ];
    for (condition, allowed) in cases {
        eks.set_trust_policy(ROLE, trust(&condition)).unwrap();
        let expected = if allowed { (200, "") } else { (400, "AccessDeniedException") };
        assert_eq!(assume_cart(&eks).await.outcome(), expected, "{condition}");
    }
    eks.set_trust_policy(ROLE, None).unwrap();
    assert_eq!(assume_cart(&eks).await.status, 200);
}

#[tokio::test]
async fn a_role_of_irsa_or_ec2_is_access_denied() {
    let eks = with_cart().await;
    let policy = json!({ "Statement": [
        { "Effect": "Allow", "Principal": { "Service": "ec2.amazonaws.com" }, "Action": "sts:AssumeRole" },
        { "Effect": "Allow", "Principal": { "Federated": "arn:aws:iam::111122223333:oidc-provider/x" },
          "Action": "sts:AssumeRoleWithWebIdentity" },
    ]});
    eks.set_trust_policy(ROLE, Some(policy)).unwrap();
    let answer = assume_cart(&eks).await;
    assert_eq!(answer.outcome(), (400, "AccessDeniedException"));
    assert!(answer.body["message"].as_str().unwrap().contains("pods.eks.amazonaws.com"), "{}", answer.body);
}

#[tokio::test]
async fn a_target_role_lends_its_account_for_59_minutes_and_must_trust_the_source() {
    let eks = with_cart().await;
    let association = eks
        .associate(NewAssociation {
            namespace: "shop".into(),
            service_account: "chained".into(),
            role_arn: ROLE.into(),
            target_role_arn: Some(TARGET.into()),
            ..NewAssociation::default()
        })
        .unwrap();
    let minted = eks.mint(PodToken::new("shop", "chained", "c-1"));
    let answer = assume(&eks, &minted.token).await;
    let arn = answer.body["assumedRoleUser"]["arn"].as_str().unwrap();
    assert!(arn.starts_with("arn:aws:sts::999922223333:assumed-role/target/"), "{arn}");
    let life = answer.body["credentials"]["expiration"].as_i64().unwrap() - (minted.expires - 24 * 3600);
    assert!((59 * 60..59 * 60 + 10).contains(&life), "{life} s");
    let session = eks.session(answer.credentials().access_key_id()).unwrap();
    assert_eq!((session.role_arn.as_str(), session.source_role_arn.as_deref()), (TARGET, Some(ROLE)));

    let external_id = association.external_id.unwrap();
    for (id, outcome) in [("another", (400, "AccessDeniedException")), (&external_id, (200, ""))] {
        let policy = json!({ "Statement": {
            "Effect": "Allow",
            "Principal": { "AWS": ROLE },
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": { "StringEquals": { "sts:ExternalId": id } },
        }});
        eks.set_trust_policy(TARGET, Some(policy)).unwrap();
        assert_eq!(assume(&eks, &minted.token).await.outcome(), outcome);
    }
}

#[tokio::test]
async fn without_session_tags_there_are_none_and_a_policy_may_be_there() {
    let eks = with_cart().await;
    let association = eks
        .associate(NewAssociation {
            namespace: "shop".into(),
            service_account: "untagged".into(),
            role_arn: ROLE.into(),
            disable_session_tags: Some(true),
            policy: Some("{\"Version\":\"2012-10-17\"}".into()),
            ..NewAssociation::default()
        })
        .unwrap();
    // Without tags nothing asks for sts:TagSession.
    let policy = json!({ "Statement": {
        "Effect": "Allow", "Principal": { "Service": "pods.eks.amazonaws.com" }, "Action": "sts:AssumeRole",
    }});
    eks.set_trust_policy(ROLE, Some(policy)).unwrap();
    let token = eks.mint(PodToken::new("shop", "untagged", "u-1")).token;
    let session = eks.session(assume(&eks, &token).await.credentials().access_key_id()).unwrap();
    assert!(session.tags.is_empty());
    assert_eq!(session.policy, association.policy);
    assert_eq!(assume_cart(&eks).await.outcome(), (400, "AccessDeniedException"), "tags need sts:TagSession");
}

#[tokio::test]
async fn an_association_reaches_eks_auth_only_after_its_delay() {
    let eks = with_cart().await;
    eks.settings(|settings| settings.association_delay_ms = 3_600_000);
    let id = eks.create_association("shop", "pay", ROLE);
    let token = eks.mint(PodToken::new("shop", "pay", "pay-1")).token;
    assert_eq!(assume(&eks, &token).await.outcome(), (404, "ResourceNotFoundException"));
    let change = AssociationChange { role_arn: Some(TARGET.into()), ..AssociationChange::default() };
    eks.update_association(&id, change).unwrap();
    assert_eq!(assume(&eks, &token).await.status, 404);
    let cart = eks.delete_association(&id);
    assert!(cart.is_ok());
    assert_eq!(assume_cart(&eks).await.status, 200, "the older association is not touched");
}

#[tokio::test]
async fn calls_are_logged_and_counted_with_what_the_node_sent() {
    let eks = with_cart().await;
    let minted = eks.mint(PodToken::new("shop", "cart", "cart-1"));
    let body = json!({ "token": minted.token, "eksNodeName": "node-a", "instanceId": "i-1", "zone": "a" });
    let granted = assume_as(&eks, eks.node_credentials(), body).await;
    let nobody = eks.mint(PodToken::new("shop", "nobody", "x")).token;
    assume(&eks, &nobody).await;

    let calls = eks.calls();
    assert_eq!(calls.len(), 2);
    let call = &calls[0];
    assert_eq!((call.role.as_str(), call.result.as_str()), ("shop/cart", "OK"));
    assert_eq!((&call.pod_uid, &call.token_id), (&minted.pod_uid, &minted.token_id));
    assert_eq!(call.eks_node_name.as_deref(), Some("node-a"));
    assert_eq!((call.instance_id.as_deref(), call.zone.as_deref()), (Some("i-1"), Some("a")));
    assert_eq!(call.access_key_id.as_deref(), Some(granted.credentials().access_key_id()));
    let counts = eks.counts();
    assert_eq!((counts.total, counts.of("shop", "cart"), counts.of("shop", "nobody")), (2, 1, 1));
    assert_eq!((counts.result("OK"), counts.result("ResourceNotFoundException")), (1, 1));
    eks.reset_calls();
    assert_eq!((eks.calls().len(), eks.counts().total), (0, 0));
}

#[tokio::test]
async fn every_error_of_the_model_can_be_forced() {
    let eks = with_cart().await;
    for (code, status) in [
        (ErrorCode::ThrottlingException, 429),
        (ErrorCode::InternalServerException, 500),
        (ErrorCode::ServiceUnavailableException, 503),
        (ErrorCode::InvalidRequestException, 400),
        (ErrorCode::InvalidParameterException, 400),
        (ErrorCode::AccessDeniedException, 400),
        (ErrorCode::InvalidTokenException, 400),
        (ErrorCode::ExpiredTokenException, 400),
        (ErrorCode::ResourceNotFoundException, 404),
    ] {
        eks.settings(|settings| settings.forced_error = Some(code));
        let answer = assume_cart(&eks).await;
        assert_eq!((answer.status, answer.error), (status, format!("{code:?}")));
    }
}

#[tokio::test]
async fn every_call_gives_other_credentials() {
    let eks = with_cart().await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        seen.insert(assume_cart(&eks).await.credentials().access_key_id().to_owned());
    }
    assert_eq!(seen.len(), 3);
}
