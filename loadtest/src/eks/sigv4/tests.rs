use bytes::Bytes;
use hyper::Request;

use super::super::callers;
use super::*;
use crate::clock;

const PATH: &str = "/clusters/demo/pod-identity-associations?namespace=shop&serviceAccount=a%20b";
const SCOPE: Scope<'_> = Scope { service: "eks", regions: &["eu-west-1"] };

fn credentials(session_token: Option<&str>, expiry: Option<SystemTime>) -> Credentials {
    Credentials::new("AKIDEXAMPLE", "secret", session_token.map(str::to_owned), expiry, "test")
}

fn caller(credentials: Credentials) -> Caller {
    let identity = callers::Identity::Admin { arn: "arn".into(), user_id: "id".into() };
    Caller { credentials, identity }
}

/// A request as AWS's Rust SDK signs it.
fn signed(
    credentials: &Credentials,
    service: &str,
    region: &str,
    at: SystemTime,
    body: &'static str,
) -> Received {
    let identity: Identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(at)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let headers = [("host", "127.0.0.1:80"), ("content-type", "application/json")];
    let uri = format!("http://127.0.0.1:80{PATH}");
    let signable =
        SignableRequest::new("POST", uri, headers.into_iter(), SignableBody::Bytes(body.as_bytes()));
    let (instructions, _) = sign(signable.unwrap(), &params).unwrap().into_parts();
    let mut request = Request::post(PATH);
    for (name, value) in headers.into_iter().chain(instructions.headers()) {
        request = request.header(name, value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    Received { parts, body: Bytes::from_static(body.as_bytes()) }
}

fn verdict(request: &Received, known: Credentials) -> Result<(), Invalid> {
    verify(request, &SCOPE, clock::wall(), |key| (key == "AKIDEXAMPLE").then(|| caller(known))).map(|_| ())
}

fn incorrect(verdict: Result<(), Invalid>, part: &str) {
    match verdict {
        Err(Invalid::Incorrect(reason)) => assert!(reason.contains(part), "{reason}"),
        other => panic!("{other:?} where {part:?} was expected"),
    }
}

#[test]
fn what_the_sdk_signs_passes_with_and_without_a_session_token() {
    for token in [None, Some("session")] {
        let known = credentials(token, None);
        let request = signed(&known, "eks", "eu-west-1", clock::wall(), "{}");
        assert_eq!(verdict(&request, known), Ok(()));
        assert_eq!(claimed_access_key(&request).unwrap(), "AKIDEXAMPLE");
    }
}

#[test]
fn a_header_added_on_the_way_does_no_harm_and_a_changed_one_does() {
    let known = credentials(None, None);
    let mut request = signed(&known, "eks", "eu-west-1", clock::wall(), "{}");
    request.parts.headers.insert("x-forwarded-for", "10.0.0.1".parse().unwrap());
    assert_eq!(verdict(&request, known.clone()), Ok(()));
    request.parts.headers.insert("content-type", "text/plain".parse().unwrap());
    incorrect(verdict(&request, known), "does not match");
}

#[test]
fn another_secret_body_or_path_is_found_out() {
    let known = credentials(None, None);
    let request = signed(&known, "eks", "eu-west-1", clock::wall(), "{}");
    let other = Credentials::new("AKIDEXAMPLE", "other", None, None, "test");
    incorrect(verdict(&request, other), "does not match");

    let mut changed = signed(&known, "eks", "eu-west-1", clock::wall(), "{}");
    changed.body = Bytes::from_static(b"{\"a\":1}");
    incorrect(verdict(&changed, known.clone()), "does not match");

    let mut changed = request;
    changed.parts.uri = PATH.replace("shop", "kube-system").parse().unwrap();
    incorrect(verdict(&changed, known), "does not match");
}

#[test]
fn service_and_region_must_be_those_that_are_called() {
    let known = credentials(None, None);
    let request = signed(&known, "eks-auth", "eu-west-1", clock::wall(), "{}");
    incorrect(verdict(&request, known.clone()), "should be eks in eu-west-1");
    let request = signed(&known, "eks", "us-east-1", clock::wall(), "{}");
    incorrect(verdict(&request, known), "scoped to service eks in us-east-1");
}

#[test]
fn a_clock_may_be_off_by_five_minutes_both_ways() {
    let known = credentials(None, None);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    for at in [clock::wall() - minutes(4), clock::wall() + minutes(4)] {
        assert_eq!(verdict(&signed(&known, "eks", "eu-west-1", at, ""), known.clone()), Ok(()));
    }
    for at in [clock::wall() - minutes(6), clock::wall() + minutes(6)] {
        incorrect(
            verdict(&signed(&known, "eks", "eu-west-1", at, ""), known.clone()),
            "away from the server's",
        );
    }
}

#[test]
fn a_session_token_is_part_of_the_key() {
    let known = credentials(Some("session"), None);
    let without = signed(&credentials(None, None), "eks", "eu-west-1", clock::wall(), "");
    assert_eq!(verdict(&without, known.clone()), Err(Invalid::UnknownKey));
    let wrong = signed(&credentials(Some("other"), None), "eks", "eu-west-1", clock::wall(), "");
    assert_eq!(verdict(&wrong, known), Err(Invalid::UnknownKey));
}

#[test]
fn expired_credentials_are_told_from_unknown_and_from_wrong_ones() {
    let known = credentials(None, Some(clock::wall()));
    let request = signed(&known, "eks", "eu-west-1", clock::wall(), "");
    assert_eq!(verdict(&request, known), Err(Invalid::Expired));
    assert_eq!(verify(&request, &SCOPE, clock::wall(), |_| None).err(), Some(Invalid::UnknownKey));
}

#[test]
fn a_request_without_a_signature_is_told_so() {
    let known = credentials(None, None);
    for (name, value) in [("authorization", "Bearer x"), ("authorization", ""), ("x-amz-date", "")] {
        let mut request = signed(&known, "eks", "eu-west-1", clock::wall(), "");
        match value {
            "" => drop(request.parts.headers.remove(name)),
            value => drop(request.parts.headers.insert(name, value.parse().unwrap())),
        }
        assert_eq!(verdict(&request, known.clone()), Err(Invalid::Unsigned), "{name} {value}");
    }
}

#[test]
fn a_signature_that_leaves_out_the_host_or_a_bad_date_is_refused() {
    let known = credentials(None, None);
    let mut request = signed(&known, "eks", "eu-west-1", clock::wall(), "");
    let authorization = request.headers()[AUTHORIZATION].to_str().unwrap().replace(";host;", ";");
    request.parts.headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    incorrect(verdict(&request, known.clone()), "host must be signed");
    for date in ["20261121T0413Z", "2026112+T041329Z", "yesterday", "20261321T041329Z"] {
        request.parts.headers.insert(DATE, date.parse().unwrap());
        incorrect(verdict(&request, known.clone()), "no dates");
    }
}
