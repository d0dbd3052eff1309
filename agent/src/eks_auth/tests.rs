use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_eksauth::config::{AsyncSleep, IdentityCache, SharedAsyncSleep, Sleep};
use loadtest::eks::{Config, ErrorCode, PodToken, SimulatedEks};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::client::http_client;
use super::rotation::RotatingProfile;
use super::*;
use crate::clock::Clock;
use crate::testing::{Log, Loopback, answer};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzZWNyZXQtcG9kIn0.c2lnbmF0dXJlLW9mLXRoZS1wb2Q";
const ROLE: &str = "arn:aws:iam::111122223333:role/checkout";

#[derive(Debug)]
struct TokioSleep;

impl AsyncSleep for TokioSleep {
    fn sleep(&self, duration: std::time::Duration) -> Sleep {
        Sleep::new(tokio::time::sleep(duration))
    }
}

fn sdk(credentials: impl ProvideCredentials + 'static) -> aws_types::sdk_config::Builder {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .identity_cache(IdentityCache::lazy().build())
        .sleep_impl(SharedAsyncSleep::new(TokioSleep))
        .http_client(http_client(None).unwrap())
}

fn config(endpoint: &str) -> ClientConfig {
    ClientConfig {
        cluster_name: "demo".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        rotate_credentials: false,
        node_name: Some("ip-10-0-0-1".to_owned()),
        instance_id: Some("i-0123456789abcdef0".to_owned()),
        zone: Some("euw1-az1".to_owned()),
    }
}

fn client(endpoint: &str, credentials: impl ProvideCredentials + 'static) -> EksAuthClient {
    EksAuthClient::new(&sdk(credentials).build(), &config(endpoint))
}

fn some_credentials() -> Credentials {
    Credentials::new("AKIDEXAMPLE", "secret", None, None, "test")
}

async fn call(client: &EksAuthClient) -> Result<Assumed, Failure> {
    client.assume_role_for_pod_identity(TOKEN.into()).await
}

fn refused(kind: RefusalKind, status: u16, code: &str, message: &str) -> Failure {
    Failure::Refused(Refusal { kind, status, code: code.into(), message: message.into() })
}

/// What pods are told, and after it what the log is.
fn unavailable(failure: Failure) -> String {
    let Failure::Unavailable { message, cause } = failure else { panic!("{failure:?}") };
    format!("{message}: {cause}")
}

fn good_answer() -> Value {
    json!({
        "subject": {"namespace": "shop", "serviceAccount": "checkout"},
        "audience": "pods.eks.amazonaws.com",
        "podIdentityAssociation": {"associationArn": "arn:aws:eks:a", "associationId": "a-1"},
        "assumedRoleUser": {"arn": "arn:aws:sts::111122223333:assumed-role/checkout/s", "assumeRoleId": "AROA:s"},
        "credentials": {
            "sessionToken": "session-secret", "secretAccessKey": "key-secret", "accessKeyId": "ASIAEXAMPLE",
            "expiration": 1_795_021_600,
        },
    })
}

#[tokio::test]
async fn the_request_says_which_node_asks_and_the_answer_is_taken_whole() {
    let server = Loopback::answering(|_| answer(200, &[], good_answer().to_string())).await;
    let assumed = call(&client(&server.url, some_credentials())).await.unwrap();
    assert_eq!((&*assumed.namespace, &*assumed.service_account), ("shop", "checkout"));
    assert_eq!((&*assumed.audience, &*assumed.association_id), ("pods.eks.amazonaws.com", "a-1"));
    assert_eq!(assumed.session_arn, "arn:aws:sts::111122223333:assumed-role/checkout/s");
    assert_eq!(assumed.access_key_id, "ASIAEXAMPLE");
    assert_eq!(assumed.secret_access_key.expose_secret(), "key-secret");
    assert_eq!(assumed.session_token.expose_secret(), "session-secret");
    assert_eq!(assumed.expiration, UnixTime(1_795_021_600));
    let shown = format!("{assumed:?}");
    assert!(!shown.contains("key-secret") && !shown.contains("session-secret"), "{shown}");

    let asked = server.asked();
    assert_eq!(asked[0].uri().path(), "/clusters/demo/assume-role-for-pod-identity");
    let sent: Value = serde_json::from_slice(asked[0].body()).unwrap();
    let node = json!({
        "token": TOKEN, "eksNodeName": "ip-10-0-0-1", "instanceId": "i-0123456789abcdef0", "zone": "euw1-az1",
    });
    assert_eq!(sent, node);
    let signed = asked[0].headers()["authorization"].to_str().unwrap();
    assert!(
        signed.contains("AKIDEXAMPLE/") && signed.contains("/eu-west-1/eks-auth/aws4_request"),
        "{signed}"
    );
}

#[tokio::test]
async fn each_error_says_whose_fault_it_is() {
    let server = Loopback::answering(|_| answer(500, &[], "")).await;
    let client = client(&server.url, some_credentials());
    let plain = |kind, status, code| (status, code, refused(kind, status, code, "why"));
    let throttled = |status, code| (status, code, Failure::Throttled { message: "why".into() });
    for (status, code, expected) in [
        plain(RefusalKind::AccessDenied, 400, "AccessDeniedException"),
        plain(RefusalKind::AccessDenied, 403, "AccessDeniedException"),
        plain(RefusalKind::InvalidToken, 400, "InvalidTokenException"),
        plain(RefusalKind::ExpiredToken, 400, "ExpiredTokenException"),
        plain(RefusalKind::ResourceNotFound, 404, "ResourceNotFoundException"),
        plain(RefusalKind::Invalid, 400, "InvalidRequestException"),
        plain(RefusalKind::Invalid, 400, "InvalidParameterException"),
        plain(RefusalKind::Invalid, 400, "SomethingNewException"),
        plain(RefusalKind::Invalid, 404, "UnknownOperationException"),
        throttled(429, "ThrottlingException"),
        throttled(429, "SomethingNewException"),
        throttled(400, "ThrottlingException"),
    ] {
        server.answer(move |_| answer(status, &[("x-amzn-errortype", code)], r#"{"message":"why"}"#));
        assert_eq!(call(&client).await.unwrap_err(), expected, "{status} {code}");
        // The code in the body, with a namespace, as other AWS servers have it.
        let body = json!({"__type": format!("com.amazonaws.eksauth#{code}"), "message": "why"}).to_string();
        server.answer(move |_| answer(status, &[], body.clone()));
        assert_eq!(call(&client).await.unwrap_err(), expected, "{status} {code} in __type");
    }
}

#[tokio::test]
async fn trouble_with_the_agents_own_credentials_condemns_no_pod() {
    let server = Loopback::answering(|_| answer(500, &[], "")).await;
    let signed = client(&server.url, some_credentials());
    for (status, code) in [
        (403, "UnrecognizedClientException"),
        (403, "InvalidSignatureException"),
        (403, "ExpiredTokenException"),
        (403, "InvalidTokenException"),
        (403, "MissingAuthenticationTokenException"),
        (401, "SomethingNewException"),
        (400, "InvalidClientTokenId"),
    ] {
        server.answer(move |_| answer(status, &[("x-amzn-errortype", code)], r#"{"message":"why"}"#));
        let message = unavailable(call(&signed).await.unwrap_err());
        assert!(message.contains("agent's own AWS credentials") && message.contains(code), "{message}");
    }

    let asked = server.asked().len();
    let without = client(&server.url, Failing);
    let message = unavailable(call(&without).await.unwrap_err());
    assert!(message.contains("agent's own AWS credentials") && message.contains("no role here"), "{message}");
    let none = sdk(some_credentials()).build().into_builder();
    let mut none = none;
    none.set_credentials_provider(None);
    let message =
        unavailable(call(&EksAuthClient::new(&none.build(), &config(&server.url))).await.unwrap_err());
    assert!(!message.is_empty());
    assert_eq!(server.asked().len(), asked);
}

#[derive(Debug)]
struct Failing;

impl ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("no role here")))
    }
}

#[tokio::test]
async fn what_is_no_answer_of_eks_auth_is_tried_again_later_and_by_the_agent_alone() {
    let server = Loopback::answering(|_| answer(500, &[], "")).await;
    let client = client(&server.url, some_credentials());
    for (status, headers, body, says) in [
        (
            500,
            &[("x-amzn-errortype", "InternalServerException")][..],
            r#"{"message":"why"}"#,
            "500 InternalServerException: why",
        ),
        (
            503,
            &[("x-amzn-errortype", "ServiceUnavailableException")],
            "{}",
            "503 ServiceUnavailableException",
        ),
        (500, &[("x-amzn-errortype", "AccessDeniedException")], "{}", "500 AccessDeniedException"),
        (408, &[("x-amzn-errortype", "SomethingNewException")], "{}", "408 SomethingNewException"),
        (400, &[("x-amzn-errortype", "RequestTimeoutException")], "{}", "400 RequestTimeoutException"),
        (502, &[], "<html>Bad Gateway</html>", "status 502"),
        (403, &[], "<html>proxy says no</html>", "status 403"),
        (407, &[], "", "status 407"),
        (404, &[], "nothing here", "status 404"),
        (200, &[], "<html>log in</html>", "not EKS Auth answered: status 200"),
        (200, &[], "{}", "a part of the credentials is missing"),
    ] {
        let before = server.asked().len();
        server.answer(move |_| answer(status, headers, body));
        let message = unavailable(call(&client).await.unwrap_err());
        assert!(message.contains(says) && !message.contains("<html"), "{status} {body}: {message}");
        assert_eq!(server.asked().len(), before + 1, "retried after {status} {body}");
    }
}

#[tokio::test]
async fn an_answer_that_lacks_a_part_is_none() {
    let server = Loopback::answering(|_| answer(500, &[], "")).await;
    let client = client(&server.url, some_credentials());
    let mut answers = vec![];
    for pointer in [
        "/subject",
        "/subject/namespace",
        "/assumedRoleUser",
        "/assumedRoleUser/arn",
        "/credentials",
        "/credentials/sessionToken",
        "/credentials/secretAccessKey",
        "/credentials/accessKeyId",
        "/credentials/expiration",
    ] {
        let mut body = good_answer();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
        answers.push(body);
    }
    let mut iso = good_answer();
    iso["credentials"]["expiration"] = json!("2026-11-21T04:13:29Z");
    answers.push(iso);
    for body in answers {
        let text = body.to_string();
        server.answer(move |_| answer(200, &[], text.clone()));
        let message = unavailable(call(&client).await.expect_err(&body.to_string()));
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn upstreams_words_are_passed_on_short_in_one_line_and_without_the_token() {
    let server = Loopback::answering(|_| answer(500, &[], "")).await;
    let client = client(&server.url, some_credentials());
    let message_for = async |message: String| {
        let body = json!({"__type": "InvalidTokenException", "message": message}).to_string();
        server.answer(move |_| answer(400, &[], body.clone()));
        let Err(Failure::Refused(refusal)) = call(&client).await else { panic!() };
        refusal.message
    };
    let message = message_for(format!("{TOKEN} is bad,\n\"{}\" too", TOKEN.split('.').nth(1).unwrap())).await;
    assert_eq!(&*message, "[token].[token].[token] is bad, \"[token]\" too");
    let message = message_for(format!("{}{TOKEN}", "é".repeat(290))).await;
    assert_eq!(message.chars().count(), 301);
    assert!(message.ends_with('…') && !message.contains("eyJ"), "{message}");
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let message = unavailable(call(&client("http://127.0.0.1:1", some_credentials())).await.unwrap_err());
    assert!(message.contains("cannot be reached") && message.contains("Connection refused"), "{message}");

    let server = Loopback::taking_its_time(|_| std::future::pending()).await;
    let message = unavailable(call(&client(&server.url, some_credentials())).await.unwrap_err());
    assert!(message.starts_with("EKS Auth did not answer in time: "), "{message}");
}

#[tokio::test]
async fn the_simulated_eks_is_understood_in_all_it_says() {
    let eks = SimulatedEks::start(Config::default()).await.unwrap();
    let client = client(eks.url(), eks.node_credentials().clone());
    let token = || eks.mint(PodToken::new("shop", "checkout", "checkout-1")).token;
    let call = async || client.assume_role_for_pod_identity(token().into()).await;

    let Err(Failure::Refused(refusal)) = call().await else { panic!() };
    assert_eq!((refusal.kind, refusal.status), (RefusalKind::ResourceNotFound, 404));

    let association = eks.create_association("shop", "checkout", ROLE);
    let assumed = call().await.unwrap();
    assert_eq!((&*assumed.namespace, &*assumed.service_account), ("shop", "checkout"));
    assert_eq!(assumed.association_id, association);
    let left = assumed.expiration.remaining_at(Clock::default().now().wall).as_secs();
    assert!((6 * 3600 - 60..=6 * 3600).contains(&left), "{left}");
    assert_eq!(eks.session(&assumed.access_key_id).unwrap().session_arn, assumed.session_arn);

    for (forced, expected) in [
        (ErrorCode::AccessDeniedException, Some(RefusalKind::AccessDenied)),
        (ErrorCode::InvalidTokenException, Some(RefusalKind::InvalidToken)),
        (ErrorCode::ExpiredTokenException, Some(RefusalKind::ExpiredToken)),
        (ErrorCode::InvalidParameterException, Some(RefusalKind::Invalid)),
        (ErrorCode::ThrottlingException, None),
        (ErrorCode::InternalServerException, None),
        (ErrorCode::ServiceUnavailableException, None),
    ] {
        eks.settings(|settings| settings.forced_error = Some(forced));
        match (call().await.unwrap_err(), expected) {
            (Failure::Refused(refusal), Some(kind)) => assert_eq!(refusal.kind, kind),
            (Failure::Throttled { .. }, None) => assert_eq!(forced, ErrorCode::ThrottlingException),
            (Failure::Unavailable { .. }, None) => assert_ne!(forced, ErrorCode::ThrottlingException),
            (failure, _) => panic!("{forced:?}: {failure:?}"),
        }
    }
    eks.settings(|settings| settings.forced_error = None);
    eks.set_node_credentials(some_credentials());
    assert!(unavailable(call().await.unwrap_err()).contains("agent's own AWS credentials"));
}

#[tokio::test]
async fn a_private_authority_is_trusted_by_the_bundle_that_names_it() {
    let config = Config { https_listen: Some("127.0.0.1:0".parse().unwrap()), ..Config::default() };
    let eks = SimulatedEks::start(config).await.unwrap();
    eks.create_association("shop", "checkout", ROLE);
    let token = eks.mint(PodToken::new("shop", "checkout", "checkout-1")).token;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, eks.ca_pem().unwrap()).unwrap();
    let call = async |bundle| {
        let sdk = sdk(eks.node_credentials().clone()).http_client(http_client(bundle).unwrap()).build();
        let client = EksAuthClient::new(&sdk, &self::config(eks.https_url().unwrap()));
        client.assume_role_for_pod_identity(token.as_str().into()).await
    };
    assert!(unavailable(call(None).await.unwrap_err()).contains("certificate"));
    assert!(call(Some(&bundle)).await.is_ok());

    std::fs::write(&bundle, "nothing").unwrap();
    let error = http_client(Some(&bundle)).unwrap_err();
    assert!(error.contains("AWS_CA_BUNDLE") && error.contains("no PEM certificate"), "{error}");
}

/// A profile in a file of its own.
#[expect(deprecated, reason = "its new name is in a crate that would be a dependency for this alone")]
fn rotating(file: std::path::PathBuf, clock: Clock) -> RotatingProfile {
    use aws_config::profile::ProfileFileCredentialsProvider;
    use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
    RotatingProfile::new(clock, move || {
        let files = ProfileFiles::builder().with_file(ProfileFileKind::Credentials, &file).build();
        SharedCredentialsProvider::new(ProfileFileCredentialsProvider::builder().profile_files(files).build())
    })
}

fn profile(access_key_id: &str) -> String {
    format!("[default]\naws_access_key_id = {access_key_id}\naws_secret_access_key = secret\n")
}

#[tokio::test]
async fn a_rotated_credentials_file_is_read_again_and_the_last_good_ones_bridge_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let clock = Clock::manual(1_000_000);
    let rotating = rotating(file.clone(), clock.clone());
    let load = async || rotating.provide_credentials().await;
    assert!(load().await.is_err());

    for (content, expected) in [
        (profile("FIRST"), "FIRST"),
        (profile("SECOND"), "SECOND"),
        ("[default".to_owned(), "SECOND"),
        (String::new(), "SECOND"),
        (profile("THIRD"), "THIRD"),
    ] {
        std::fs::write(&file, content).unwrap();
        clock.jump(50);
        let credentials = load().await.unwrap();
        assert_eq!(credentials.access_key_id(), expected);
        let expiry = credentials.expiry().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(expiry.as_secs(), clock.now().wall.0 + 60);
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(load().await.unwrap().access_key_id(), "THIRD");
}

#[tokio::test]
async fn calls_are_signed_by_what_the_rotated_file_says_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let server = Loopback::answering(|_| answer(200, &[], good_answer().to_string())).await;
    // Far in the past, what is stamped has expired by the SDK's own clock: it asks for each call.
    let client = client(&server.url, rotating(file.clone(), Clock::manual(1_000_000)));
    for access_key_id in ["FIRST", "SECOND"] {
        std::fs::write(&file, profile(access_key_id)).unwrap();
        call(&client).await.unwrap();
        let asked = server.asked();
        let signed = asked[asked.len() - 1].headers()["authorization"].to_str().unwrap();
        assert!(signed.contains(&format!("Credential={access_key_id}/")), "{signed}");
    }
}

#[tokio::test]
async fn no_secret_of_a_call_reaches_a_log() {
    let log = Log::default();
    let _capturing = log.capture(tracing::Level::TRACE);
    let server = Loopback::answering(|_| answer(200, &[], good_answer().to_string())).await;
    let credentials = Credentials::new("AKIDEXAMPLE", "own-secret", Some("own-session".into()), None, "test");
    let client = client(&server.url, credentials);
    call(&client).await.unwrap();
    server.answer(|_| answer(200, &[], format!("{{\"token\": \"{TOKEN}\"}}")));
    call(&client).await.unwrap_err();

    let text = log.text();
    assert!(text.contains("AssumeRoleForPodIdentity"), "{text}");
    for secret in
        [TOKEN.split('.').nth(2).unwrap(), "key-secret", "session-secret", "own-secret", "own-session"]
    {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

/// The settings of the process, which a test may not change: a child of this test has them and reports.
#[tokio::test]
async fn region_endpoint_and_credentials_come_from_the_environment() {
    const CHILD: &str = "PODCRED_TEST_CONNECTS";
    if let Ok(rotate) = std::env::var(CHILD) {
        let rotate_credentials = rotate == "rotate";
        let result =
            EksAuthClient::connect(&ClientConfig { endpoint: None, rotate_credentials, ..config("") }).await;
        match result {
            Ok(client) => println!("[called: {:?}]", call(&client).await.map(|assumed| assumed.namespace)),
            Err(error) => println!("[not connected: {error}]"),
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, profile("FROMTHEFILE")).unwrap();
    let server = Loopback::answering(|_| answer(200, &[], good_answer().to_string())).await;
    let child = async |kind: &str, settings: &[(&str, &str)]| {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "--nocapture"]);
        child.arg("eks_auth::tests::region_endpoint_and_credentials_come_from_the_environment");
        child
            .env_clear()
            .env(CHILD, kind)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(settings.iter().copied());
        String::from_utf8(child.output().await.unwrap().stdout).unwrap()
    };
    let file = file.to_str().unwrap();
    let region = ("AWS_REGION", "eu-north-1");
    let endpoint = ("AWS_ENDPOINT_URL_EKS_AUTH", &*server.url);
    let own = [("AWS_ACCESS_KEY_ID", "FROMTHEENVIRONMENT"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let file = ("AWS_SHARED_CREDENTIALS_FILE", file);

    let said = child("plain", &[endpoint, own[0], own[1]]).await;
    assert!(said.contains("[not connected: no AWS region is known: set AWS_REGION"), "{said}");
    let said = child("plain", &[region, endpoint, ("AWS_CA_BUNDLE", "/nowhere.pem")]).await;
    assert!(said.contains("[not connected: AWS_CA_BUNDLE: /nowhere.pem: No such file"), "{said}");
    for variable in ["AWS_ENDPOINT_URL_EKS_AUTH", "AWS_ENDPOINT_URL"] {
        let said = child("plain", &[region, (variable, "http://eks-auth.internal"), own[0], own[1]]).await;
        assert!(
            said.contains("[not connected: the endpoint of EKS Auth in AWS_ENDPOINT_URL_EKS_AUTH"),
            "{said}"
        );
        assert!(said.contains("use https"), "{said}");
    }
    assert_eq!(server.asked().len(), 0);

    for (kind, signer) in [("plain", "FROMTHEENVIRONMENT"), ("rotate", "FROMTHEFILE")] {
        let said = child(kind, &[region, endpoint, own[0], own[1], file]).await;
        assert!(said.contains("[called: Ok(\"shop\")]"), "{said}");
        let asked = server.asked();
        let signed = asked[asked.len() - 1].headers()["authorization"].to_str().unwrap();
        assert!(
            signed.contains(&format!("Credential={signer}/")) && signed.contains("/eu-north-1/"),
            "{signed}"
        );
    }
}
