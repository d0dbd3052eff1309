use serde_json::{Value, json};

use super::*;

const POD_IDENTITY: Principal<'_> = Principal::Service("pods.eks.amazonaws.com");
const ACTIONS: &[&str] = &["sts:AssumeRole", "sts:TagSession"];

fn attempt(context: &[(&str, &str)]) -> Attempt<'static> {
    let context = context.iter().map(|(key, value)| (key.to_lowercase(), (*value).to_owned())).collect();
    Attempt { principal: POD_IDENTITY, actions: ACTIONS, context }
}

fn statement(change: Value) -> Value {
    let mut statement = json!({
        "Effect": "Allow",
        "Principal": { "Service": "pods.eks.amazonaws.com" },
        "Action": ["sts:AssumeRole", "sts:TagSession"],
    });
    let Value::Object(change) = change else { panic!("a change is an object") };
    statement.as_object_mut().unwrap().extend(change);
    statement
}

fn policy(statements: &[Value]) -> TrustPolicy {
    TrustPolicy::parse(json!({ "Version": "2012-10-17", "Statement": statements })).unwrap()
}

fn refused(statements: &[Value], context: &[(&str, &str)]) -> Option<&'static str> {
    policy(statements).refuses(&attempt(context))
}

#[test]
fn the_documented_policy_allows_pod_identity() {
    assert_eq!(refused(&[statement(json!({}))], &[]), None);
    assert_eq!(refused(&[statement(json!({ "Action": "sts:*" }))], &[]), None);
    assert_eq!(refused(&[statement(json!({ "Principal": "*", "Action": "*" }))], &[]), None);
}

#[test]
fn the_action_that_is_missing_is_named() {
    assert_eq!(refused(&[statement(json!({ "Action": "sts:AssumeRole" }))], &[]), Some("sts:TagSession"));
    assert_eq!(refused(&[statement(json!({ "Action": "sts:TagSession" }))], &[]), Some("sts:AssumeRole"));
}

#[test]
fn another_principal_does_not_count() {
    let ec2 = statement(json!({ "Principal": { "Service": ["ec2.amazonaws.com"] } }));
    assert_eq!(refused(std::slice::from_ref(&ec2), &[]), Some("sts:AssumeRole"));
    assert_eq!(refused(&[ec2, statement(json!({}))], &[]), None);
}

#[test]
fn a_deny_wins_over_an_allow() {
    let deny = statement(json!({
        "Effect": "Deny",
        "Condition": { "StringEquals": { "aws:RequestTag/kubernetes-namespace": "kube-system" } },
    }));
    let statements = [statement(json!({})), deny];
    assert_eq!(refused(&statements, &[("aws:RequestTag/kubernetes-namespace", "shop")]), None);
    let context = [("aws:RequestTag/kubernetes-namespace", "kube-system")];
    assert_eq!(refused(&statements, &context), Some("sts:AssumeRole"));
}

#[test]
fn conditions_compare_as_their_operators_say() {
    let arn = "arn:aws:eks:eu-west-1:111122223333:cluster/demo";
    let cases = [
        ("StringEquals", "aws:SourceAccount", json!("111122223333"), true),
        ("StringEquals", "aws:SourceAccount", json!(["1", "111122223333"]), true),
        ("StringEquals", "AWS:sourceaccount", json!("111122223333"), true),
        ("StringEquals", "aws:SourceAccount", json!("1111*"), false),
        ("StringNotEquals", "aws:SourceAccount", json!("111122223333"), false),
        ("StringLike", "aws:SourceAccount", json!("1111*3?3"), true),
        ("StringLike", "aws:SourceAccount", json!("2*"), false),
        ("ArnLike", "aws:SourceArn", json!("arn:aws:eks:*:111122223333:cluster/*"), true),
        ("ArnEquals", "aws:SourceArn", json!("arn:aws:eks:eu-west-1:111122223333:cluster/dem?"), true),
        ("ArnLike", "aws:SourceArn", json!("arn:*:cluster/demo"), false),
        ("ArnNotLike", "aws:SourceArn", json!("arn:aws:eks:*:*:cluster/demo"), false),
        ("StringEquals", "aws:RequestTag/missing", json!("x"), false),
        ("StringNotEquals", "aws:RequestTag/missing", json!("x"), true),
        ("StringEqualsIfExists", "aws:RequestTag/missing", json!("x"), true),
        ("StringEqualsIfExists", "aws:SourceAccount", json!("x"), false),
        ("StringEqualsIgnoreCase", "aws:SourceArn", json!(arn.to_uppercase()), true),
    ];
    let context = [("aws:SourceAccount", "111122223333"), ("aws:SourceArn", arn)];
    for (operator, key, value, holds) in cases {
        let condition = json!({ operator: { key: value } });
        let refused = refused(&[statement(json!({ "Condition": condition }))], &context);
        assert_eq!(refused.is_none(), holds, "{condition}");
    }
}

#[test]
fn a_target_role_trusts_the_source_role_by_arn_or_account() {
    let role = "arn:aws:iam::111122223333:role/source";
    for (principal, trusted) in [
        (json!({ "AWS": role }), true),
        (json!({ "AWS": "111122223333" }), true),
        (json!({ "AWS": ["arn:aws:iam::111122223333:root"] }), true),
        (json!({ "AWS": "arn:aws:iam::999922223333:root" }), false),
        (json!({ "Service": "pods.eks.amazonaws.com" }), false),
    ] {
        let policy = policy(&[statement(json!({ "Principal": principal }))]);
        let attempt =
            Attempt { principal: Principal::Role(role), actions: ACTIONS, context: BTreeMap::default() };
        assert_eq!(policy.refuses(&attempt).is_none(), trusted, "{principal}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused_when_it_is_set() {
    let error = |change: Value| {
        TrustPolicy::parse(json!({ "Statement": statement(change) })).err().unwrap_or_default()
    };
    let numeric = error(json!({ "Condition": { "NumericLessThan": { "aws:X": "1" } } }));
    assert!(numeric.contains("NumericLessThan is not simulated"), "{numeric}");
    let variable = error(json!({ "Condition": { "StringLike": { "aws:X": "${aws:username}" } } }));
    assert!(variable.contains("policy variables"), "{variable}");
    assert!(error(json!({ "Principal": "pods.eks.amazonaws.com" })).contains("Principal is"));
    assert!(TrustPolicy::parse(json!({ "Statement": [], "NotAction": "x" })).is_err());
}

#[test]
fn wildcards_match_as_in_iam() {
    for (pattern, text, matches) in [
        ("*", "", true),
        ("a*b*c", "aXbYbc", true),
        ("a?c", "ac", false),
        ("", "a", false),
        ("ab*", "ab", true),
    ] {
        assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
    }
}
