use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::authenticate::minting::{EXPIRES, ISSUER, NOW, header, part, payload};

fn parsed(token: &[u8], now: u64) -> Result<Unverified<'_>, TokenError> {
    parse(token, TokenHash::default(), ISSUER, UnixTime(now))
}

fn checked(token: &str, now: u64) -> Result<Claims, TokenError> {
    parsed(token.as_bytes(), now).map(Unverified::into_claims)
}

/// The signature is nobody's business here.
fn token(header: &Value, payload: &Value) -> String {
    format!("{}.{}.c2lnbmF0dXJl", part(header), part(payload))
}

/// A good token, but for one claim (by JSON pointer; null takes it away).
fn with_claim(pointer: &str, value: Value) -> Result<Claims, TokenError> {
    checked(&token(&header("k"), &changed(payload(), pointer, value)), NOW)
}

fn with_header(pointer: &str, value: Value) -> Result<Claims, TokenError> {
    checked(&token(&changed(header("k"), pointer, value), &payload()), NOW)
}

fn changed(mut json: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), value);
    }
    json
}

#[test]
fn a_projected_token_says_who_its_pod_is() {
    let claims = checked(&token(&header("k"), &payload()), NOW).unwrap();
    assert_eq!((claims.namespace(), claims.service_account()), ("shop", "checkout"));
    assert_eq!(claims.service_account_uid(), "9d8f6a5e-0000-4000-8000-000000000002");
    assert_eq!(claims.pod_name(), "checkout-6b8f9-x2x7z");
    assert_eq!(claims.pod_uid(), "9d8f6a5e-0000-4000-8000-000000000001");
    assert_eq!(claims.node(), Some("ip-10-0-0-1.ec2.internal"));
    assert_eq!(claims.expires, UnixTime(EXPIRES));
}

#[test]
fn what_clusters_differ_in_is_accepted() {
    assert_eq!(with_claim("/kubernetes.io/node", Value::Null).unwrap().node(), None);
    assert!(with_claim("/kubernetes.io/node/uid", Value::Null).unwrap().node().is_some());
    assert!(with_claim("/aud", json!("pods.eks.amazonaws.com")).is_ok());
    assert!(with_claim("/aud", json!(["sts.amazonaws.com", "pods.eks.amazonaws.com"])).is_ok());
    assert!(with_claim("/nbf", Value::Null).is_ok());
    assert!(with_claim("/kubernetes.io/warnafter", json!(NOW)).is_ok());
}

#[test]
fn each_wrong_claim_has_its_own_reason() {
    for (pointer, value, reason) in [
        ("/iss", json!("https://oidc.example/id/2"), TokenError::Issuer),
        ("/iss", json!(format!("{ISSUER}/")), TokenError::Issuer),
        ("/iss", Value::Null, TokenError::Issuer),
        ("/aud", json!("sts.amazonaws.com"), TokenError::Audience),
        ("/aud", json!(["https://kubernetes.default.svc"]), TokenError::Audience),
        ("/aud", json!([]), TokenError::Audience),
        ("/aud", Value::Null, TokenError::Audience),
        ("/aud", json!(7), TokenError::Payload),
        ("/exp", Value::Null, TokenError::NoExpiry),
        ("/exp", json!("tomorrow"), TokenError::Payload),
        ("/exp", json!(-1), TokenError::Payload),
        ("/exp", json!(1e300), TokenError::Payload),
        ("/sub", Value::Null, TokenError::NotAServiceAccount),
        ("/sub", json!("system:node:ip-10-0-0-1"), TokenError::NotAServiceAccount),
        ("/sub", json!("system:serviceaccount:shop"), TokenError::NotAServiceAccount),
        ("/sub", json!("system:serviceaccount:shop:admin"), TokenError::SubjectMismatch),
        ("/sub", json!("system:serviceaccount:kube-system:checkout"), TokenError::SubjectMismatch),
        ("/kubernetes.io/namespace", json!("kube-system"), TokenError::SubjectMismatch),
        ("/kubernetes.io/serviceaccount/name", json!("admin"), TokenError::SubjectMismatch),
        ("/kubernetes.io/serviceaccount", Value::Null, TokenError::SubjectMismatch),
        ("/kubernetes.io", Value::Null, TokenError::NoPod),
        ("/kubernetes.io/pod", Value::Null, TokenError::NoPod),
        ("/kubernetes.io/pod/name", json!(""), TokenError::NoPod),
        ("/kubernetes.io/pod/uid", json!(""), TokenError::NoPod),
        ("/kubernetes.io/serviceaccount/uid", Value::Null, TokenError::NoServiceAccountUid),
        ("/kubernetes.io/serviceaccount/uid", json!(""), TokenError::NoServiceAccountUid),
        ("/kubernetes.io/serviceaccount/uid", json!("a b"), TokenError::Names),
        ("/kubernetes.io/pod/uid", json!("x".repeat(129)), TokenError::Names),
        ("/kubernetes.io/pod/name", json!("Checkout"), TokenError::Names),
        ("/kubernetes.io/pod/name", json!("a..b"), TokenError::Names),
        ("/kubernetes.io/pod/name", json!("-a"), TokenError::Names),
        ("/kubernetes.io/pod/name", json!("a\nb"), TokenError::Names),
        ("/kubernetes.io/pod/name", json!("a".repeat(254)), TokenError::Names),
        ("/kubernetes.io/node/name", json!("a\"b"), TokenError::Names),
    ] {
        assert_eq!(with_claim(pointer, value.clone()), Err(reason), "{pointer} = {value}");
    }
}

#[test]
fn a_namespace_is_one_dns_label() {
    for name in ["a.b", "", &"a".repeat(64)] {
        let payload = changed(payload(), "/sub", json!(format!("system:serviceaccount:{name}:checkout")));
        let payload = changed(payload, "/kubernetes.io/namespace", json!(name));
        assert_eq!(checked(&token(&header("k"), &payload), NOW), Err(TokenError::Names), "{name:?}");
    }
}

#[test]
fn each_wrong_header_has_its_own_reason() {
    for (pointer, value, reason) in [
        ("/alg", json!("none"), TokenError::Algorithm),
        ("/alg", json!("HS256"), TokenError::Algorithm),
        ("/alg", json!("RS512"), TokenError::Algorithm),
        ("/alg", json!("PS256"), TokenError::Algorithm),
        ("/alg", json!("rs256"), TokenError::Algorithm),
        ("/alg", Value::Null, TokenError::Algorithm),
        ("/alg", json!(256), TokenError::Header),
        ("/kid", Value::Null, TokenError::NoKeyId),
        ("/kid", json!(""), TokenError::NoKeyId),
        ("/crit", json!(["exp"]), TokenError::CriticalHeader),
    ] {
        assert_eq!(with_header(pointer, value.clone()), Err(reason), "{pointer} = {value}");
    }
    let null_crit = token(&json!({"alg": "RS256", "kid": "k", "crit": null}), &payload());
    assert_eq!(checked(&null_crit, NOW), Err(TokenError::CriticalHeader));
}

#[test]
fn a_token_does_not_choose_its_own_key() {
    for name in ["/jku", "/jwk", "/x5u", "/x5c"] {
        let token = token(&changed(header("k"), name, json!("https://evil.example/keys")), &payload());
        assert_eq!(parsed(token.as_bytes(), NOW).ok().unwrap().key_id(), "k", "{name}");
    }
}

#[test]
fn each_wrong_form_has_its_own_reason() {
    let good = token(&header("k"), &payload());
    let (header, rest) = good.split_once('.').unwrap();
    let (payload, _) = rest.split_once('.').unwrap();
    let array = part(&json!([]));
    for (token, reason) in [
        (String::new(), TokenError::NotThreeParts),
        ("garbage".to_owned(), TokenError::NotThreeParts),
        (format!("{header}.{payload}"), TokenError::NotThreeParts),
        (format!("{header}.{payload}."), TokenError::NotThreeParts),
        (format!(".{payload}.c2ln"), TokenError::NotThreeParts),
        (format!("{good}.more"), TokenError::NotThreeParts),
        (format!("Bearer {good}"), TokenError::Bearer),
        (format!("bearer {good}"), TokenError::Bearer),
        (format!("{header}=.{payload}.c2ln"), TokenError::NotBase64Url),
        (format!("{header}.{payload}+/.c2ln"), TokenError::NotBase64Url),
        (format!("{header}.{payload}.c2ln=="), TokenError::NotBase64Url),
        (format!(" {good}"), TokenError::NotBase64Url),
        (format!("e30x.{payload}.c2ln"), TokenError::Header),
        (format!("{array}.{payload}.c2ln"), TokenError::Header),
        (format!("{header}.{array}.c2ln"), TokenError::Payload),
        (format!("{header}.e30x.c2ln"), TokenError::Payload),
        (format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES)), TokenError::TooLong),
    ] {
        assert_eq!(checked(&token, NOW), Err(reason), "{token:.40}");
    }
    assert_eq!(parsed(b"a.\xff.c", NOW).err(), Some(TokenError::NotThreeParts));
}

/// Two parsers that take different ones of two equal fields are an old way past a check.
#[test]
fn a_field_that_comes_twice_is_refused() {
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"RS256","kid":"k"}"#);
    assert_eq!(checked(&format!("{twice}.{}.c2ln", part(&payload())), NOW), Err(TokenError::Header));
}

#[test]
fn clocks_may_differ_by_thirty_seconds_and_no_more() {
    let good = token(&header("k"), &payload());
    assert!(checked(&good, EXPIRES + 29).is_ok());
    assert_eq!(checked(&good, EXPIRES + 30), Err(TokenError::Expired));
    assert!(checked(&good, NOW - 30).is_ok());
    assert_eq!(checked(&good, NOW - 31), Err(TokenError::NotYetValid));
    assert!(with_claim("/exp", json!(u64::MAX)).is_ok());
}

#[test]
fn every_error_has_a_label_of_its_own_and_says_what_to_do() {
    let reasons: HashSet<_> = TokenError::ALL.iter().map(|error| error.reason()).collect();
    assert_eq!(reasons.len(), TokenError::ALL.len());
    for error in TokenError::ALL {
        assert!(error.reason().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
        let text = error.to_string();
        assert!(
            text.ends_with('.') && !text.contains("  ") && text.matches(['.', ':']).count() >= 2,
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parsed(&bytes, NOW);
    }

    #[test]
    fn no_json_makes_the_parser_panic(header in json_like(), payload in json_like()) {
        let token = format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let _ = parsed(token.as_bytes(), NOW);
    }

    #[test]
    fn no_name_that_passes_can_break_a_log_line_or_a_label(name in ".{0,80}") {
        if let Ok(claims) = with_claim("/kubernetes.io/pod/name", json!(name)) {
            prop_assert!(claims.pod_name().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'));
        }
    }
}

/// Texts with the words that the parser looks for.
fn json_like() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"alg\"",
        "\"RS256\"",
        "\"kid\"",
        "\"crit\"",
        "\"aud\"",
        "\"iss\"",
        "\"exp\"",
        "\"kubernetes.io\"",
        "\"pod\"",
        "\"name\"",
        "null",
        "-1",
        "1e999",
        "99999999999999999999",
        "\"\\ud800\"",
        "\"\"",
    ]);
    proptest::collection::vec(words, 0..30).prop_map(|words| words.concat())
}
