use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::set::fresh_for;
use super::source::Surroundings;
use super::*;
use crate::authenticate::minting::{KEY, OTHER_KEY, jwks};
use crate::testing::{Answer, Log, Loopback, answer};

fn keys_of(server: &Loopback) -> Arc<Keys> {
    // To make them takes longer than a request waits, on a machine that is busy.
    for key in [&KEY, &OTHER_KEY] {
        LazyLock::force(key);
    }
    let source = KeySource::at(&server.url).unwrap();
    let http = source.client().unwrap();
    Arc::new(Keys::new(source, http))
}

fn publish(keys: &[Value]) -> Answer {
    answer(200, &[], jwks(keys))
}

fn now() -> Now {
    Clock::default().now()
}

fn later(now: Now, by: Duration) -> Now {
    Now { wall: now.wall, mono: now.mono + by }
}

async fn has(keys: &Arc<Keys>, key_id: &str, now: Now) -> bool {
    matches!(keys.find(key_id, now).await, Lookup::Found(_))
}

async fn error_of(server: &Loopback) -> String {
    let source = KeySource::at(&server.url).unwrap();
    source.fetch(&source.client().unwrap()).await.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn a_rotated_key_is_found_by_the_first_token_that_it_signed() {
    let server = Loopback::answering(|_| publish(&[KEY.jwk()])).await;
    let keys = keys_of(&server);
    let start = now();
    assert!(has(&keys, "first", start).await);
    assert_eq!(keys.count(), 1);

    server.answer(|_| publish(&[KEY.jwk(), OTHER_KEY.jwk()]));
    let after = later(start, BETWEEN_UNKNOWN_KEYS);
    assert!(has(&keys, "second", after).await);
    assert!(has(&keys, "first", after).await);
    assert_eq!(keys.count(), 2);
    assert_eq!(keys.age_at(later(after, Duration::from_secs(7))), Some(Duration::from_secs(7)));
    assert_eq!(keys.fetches(), FetchCounts { ok: 2, failed: 0 });
}

#[tokio::test]
async fn unknown_keys_share_one_fetch_in_ten_seconds() {
    let server = Loopback::answering(|_| publish(&[KEY.jwk()])).await;
    let keys = keys_of(&server);
    let start = now();
    // The first is the one that brings keys at all.
    for (after, fetches) in [(0, 1), (5, 2), (14, 2), (15, 3), (24, 3)] {
        let at = later(start, Duration::from_secs(after));
        let look_ups = (0..20).map(|forged| {
            let keys = Arc::clone(&keys);
            async move { keys.find(&format!("forged-{forged}"), at).await }
        });
        for answer in futures_util::future::join_all(look_ups).await {
            assert!(matches!(answer, Lookup::Unknown));
        }
        assert_eq!(server.asked().len(), fetches, "after {after} s");
    }
    assert!(has(&keys, "first", start).await);
}

/// A server that publishes both keys, each time when the gate lets it.
async fn gated(gate: &Arc<Notify>) -> Loopback {
    let gate = Arc::clone(gate);
    Loopback::taking_its_time(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            publish(&[KEY.jwk(), OTHER_KEY.jwk()])
        }
    })
    .await
}

#[tokio::test]
async fn a_request_that_gives_up_takes_nothing_from_the_others() {
    let gate = Arc::new(Notify::new());
    let server = gated(&gate).await;
    let keys = keys_of(&server);
    let at = now();
    let find = || {
        let keys = Arc::clone(&keys);
        tokio::spawn(async move { has(&keys, "first", at).await })
    };
    let (gives_up, stays) = (find(), find());
    server.was_asked(1).await;
    gives_up.abort();
    assert!(gives_up.await.unwrap_err().is_cancelled());
    gate.notify_one();
    assert!(stays.await.unwrap());
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn all_pods_that_come_with_a_new_key_wait_for_the_one_fetch() {
    let gate = Arc::new(Notify::new());
    let server = gated(&gate).await;
    let keys = keys_of(&server);
    let start = now();
    let old = KeySet::parse(jwks(&[KEY.jwk()]).as_bytes()).unwrap();
    keys.learn(Ok((old, Duration::from_secs(60))), start);

    let mut pods = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let keys = Arc::clone(&keys);
        pods.spawn(async move { has(&keys, "second", start).await });
    }
    server.was_asked(1).await;
    gate.notify_one();
    assert_eq!(pods.join_all().await, [true; 5]);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_issuer_that_hangs_costs_a_request_its_wait_and_no_more() {
    let server = Loopback::taking_its_time(|_| std::future::pending()).await;
    let keys = keys_of(&server);
    let look_up = tokio::time::timeout(REQUEST_WAIT * 2, keys.find("first", now()));
    assert!(matches!(look_up.await.unwrap(), Lookup::NoKeys));
}

#[tokio::test]
async fn after_the_first_failure_nobody_waits_for_keys() {
    let server = Loopback::answering(|_| answer(503, &[], "")).await;
    let keys = keys_of(&server);
    let start = now();
    for after in [0, 1, 60] {
        let at = later(start, Duration::from_secs(after));
        assert!(matches!(keys.find("first", at).await, Lookup::NoKeys));
    }
    assert_eq!(server.asked().len(), 1);
    assert_eq!(keys.fetches(), FetchCounts { ok: 0, failed: 1 });
    assert_eq!((keys.age_at(start), keys.count()), (None, 0));
}

async fn failures(keys: &Keys, wanted: u64) {
    while keys.fetches().failed < wanted {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn old_keys_are_kept_while_the_issuer_is_down() {
    let server = Loopback::answering(|_| publish(&[KEY.jwk()])).await;
    let keys = keys_of(&server);
    let start = now();
    assert!(has(&keys, "first", start).await);
    for (day, broken) in ["", "{\"keys\":[]}", "<html>"].into_iter().enumerate() {
        server.answer(move |_| answer(200, &[], broken));
        let at = later(start, Duration::from_secs(86_400 * (day as u64 + 1)));
        // The request is held to its end, which is days away here; what it would be told is known before.
        tokio::select! {
            _ = keys.find("second", at) => panic!("answered at once"),
            () = failures(&keys, day as u64 + 1) => {}
        }
        assert!(matches!(keys.known("second", at), Lookup::CannotTell));
        assert!(has(&keys, "first", at).await);
        assert_eq!(keys.age_at(at), Some(at.mono - start.mono));
    }
    assert_eq!(keys.fetches(), FetchCounts { ok: 1, failed: 3 });
}

#[tokio::test]
async fn the_background_task_recovers_by_itself_and_logs_each_change_once() {
    let log = Log::default();
    let _capturing = log.capture(tracing::Level::INFO);
    let server = Loopback::answering(|_| answer(503, &[], "")).await;
    let keys = keys_of(&server);
    let cancel = CancellationToken::new();
    let run = tokio::spawn(Arc::clone(&keys).run(Clock::default(), cancel.clone()));
    server.was_asked(2).await;
    server.answer(|_| publish(&[KEY.jwk()]));
    server.was_asked(3).await;
    keys.fetch(now()).cancelled().await;
    assert!(has(&keys, "first", now()).await);
    cancel.cancel();
    run.await.unwrap();
    assert_eq!(keys.fetches().failed, 2);
    assert_eq!(log.events(), ["jwks_failed", "jwks_fetched"]);

    for (status, times) in [(500, 2), (200, 2)] {
        server.answer(move |_| if status == 200 { publish(&[KEY.jwk()]) } else { answer(status, &[], "") });
        for _ in 0..times {
            keys.fetch(now()).cancelled().await;
        }
    }
    assert_eq!(log.events(), ["jwks_failed", "jwks_fetched", "jwks_failed", "jwks_recovered"]);
}

#[tokio::test]
async fn keys_are_fetched_again_before_they_are_stale_and_failures_ever_more_slowly() {
    let server = Loopback::answering(|_| {
        answer(200, &[("cache-control", "public, max-age=1000")], jwks(&[KEY.jwk()]))
    })
    .await;
    let keys = keys_of(&server);
    keys.fetch(now()).cancelled().await;
    let pause = keys.pause().as_secs();
    assert!((750..=900).contains(&pause), "{pause}");

    server.answer(|_| answer(500, &[], ""));
    for longest in [1, 2, 4, 8, 16, 32, 60, 60] {
        keys.fetch(now()).cancelled().await;
        let pause = keys.pause();
        let longest = Duration::from_secs(longest);
        assert!((longest / 2..=longest).contains(&pause), "{pause:?}, {longest:?}");
    }
}

#[tokio::test]
async fn what_is_no_key_set_is_refused_with_the_reason() {
    let server = Loopback::answering(|_| answer(302, &[("location", "https://evil.example/keys")], "")).await;
    assert!(error_of(&server).await.contains("redirect"));
    assert_eq!(server.asked().len(), 1);

    let enormous = jwks(&[KEY.jwk(), json!({"padding": "x".repeat(1 << 20)})]);
    for (status, body, wrong) in [
        (404, String::new(), "404"),
        (204, String::new(), "204"),
        (200, String::new(), "not a JWKS document"),
        (200, "{}".to_owned(), "not a JWKS document"),
        (200, jwks(&[]), "none of the 0 keys"),
        (
            200,
            jwks(&[json!({"kty": "EC", "kid": "e", "crv": "P-256", "x": "x", "y": "y"})]),
            "none of the 1 keys",
        ),
        (200, enormous, "longer than 1048576 bytes"),
    ] {
        server.answer(move |_| answer(status, &[], body.clone()));
        let error = error_of(&server).await;
        assert!(error.contains(wrong), "{error}");
    }
    let nobody = KeySource::at("http://127.0.0.1:1").unwrap();
    let error = nobody.fetch(&nobody.client().unwrap()).await.map(|_| ()).unwrap_err();
    assert!(error.contains("Connection refused"), "{error}");
}

#[test]
fn only_rsa_keys_for_rs256_signatures_are_taken() {
    let with = |changes: Value| {
        let mut jwk = KEY.jwk();
        let fields = jwk.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                fields.remove(name);
            } else {
                fields.insert(name.clone(), value.clone());
            }
        }
        jwk
    };
    let taken = |jwk: &Value| {
        let set = KeySet::parse(jwks(&[jwk.clone(), OTHER_KEY.jwk()]).as_bytes()).unwrap();
        assert!(set.get("second").is_some(), "{jwk} spoils the other key");
        set.get("first").is_some()
    };
    let short = |bytes: usize| json!({"n": KEY.jwk()["n"].as_str().unwrap()[..bytes * 4 / 3]});
    for changes in
        [json!({}), json!({"alg": null}), json!({"use": null}), json!({"x5t": "more", "key_ops": 7})]
    {
        assert!(taken(&with(changes.clone())), "{changes}");
    }
    for changes in [
        json!({"kty": "EC"}),
        json!({"alg": "RS512"}),
        json!({"alg": "HS256"}),
        json!({"use": "enc"}),
        json!({"kid": null}),
        json!({"kid": ""}),
        json!({"n": null}),
        json!({"n": ""}),
        json!({"n": "+/+/"}),
        json!({"n": 7}),
        json!({"e": "AQ"}),
        json!({"e": "AAAB"}),
        json!({"e": "Ag"}),
        json!({"e": ""}),
        short(128),
        short(252),
    ] {
        assert!(!taken(&with(changes.clone())), "{changes}");
    }
    assert!(!taken(&json!("a text")));
}

#[test]
fn cache_control_is_honoured_within_reason() {
    let says = |values: &[&str]| {
        let mut headers = reqwest::header::HeaderMap::new();
        for value in values {
            headers.append(reqwest::header::CACHE_CONTROL, value.parse().unwrap());
        }
        fresh_for(&headers).as_secs()
    };
    for (values, seconds) in [
        (&[][..], 3600),
        (&["public, max-age=7200"], 7200),
        (&["Public,Max-Age=\"7200\""], 7200),
        (&["public", "max-age=7200"], 7200),
        (&["max-age=1"], 60),
        (&["max-age=0"], 60),
        (&["no-store"], 60),
        (&["max-age=7200, no-cache"], 60),
        (&["max-age=99999999"], 86_400),
        (&["max-age=99999999999999999999999"], 86_400),
        (&["max-age=-1"], 3600),
        (&["max-age=soon"], 3600),
        (&["s-maxage=9999"], 3600),
    ] {
        assert_eq!(says(values), seconds, "{values:?}");
    }
}

#[test]
fn keys_come_by_https_or_from_this_machine() {
    for url in [
        "https://oidc.eks.eu-west-1.amazonaws.com/id/A/keys",
        "https://10.0.0.1/openid/v1/jwks?a=b",
        "http://127.0.0.1:8080/keys",
        "http://127.9.9.9/keys",
        "http://[::1]:8080/keys",
        "http://localhost/keys",
    ] {
        assert!(check_url(url).is_ok(), "{url}");
    }
    for (url, wrong) in [
        ("http://10.0.0.1/keys", "use https"),
        ("http://localhost.evil.example/keys", "use https"),
        ("http://127.0.0.1.evil.example/keys", "use https"),
        ("http://0x7f.1.evil/keys", "use https"),
        ("file:///etc/passwd", "scheme file"),
        ("https://user:pass@oidc.example/", "user name"),
        ("https://oidc.example/#part", "fragment"),
        ("oidc.example/keys", "not a URL"),
        ("", "not a URL"),
    ] {
        let error = check_url(url).unwrap_err();
        assert!(error.contains(wrong), "{url}: {error}");
    }
    let issuer = KeySource::of_issuer("https://oidc.example/id/A/").unwrap();
    assert_eq!(issuer.to_string(), "https://oidc.example/id/A/keys");
    assert_eq!(
        KeySource::at("https://x.example/keys?secret=1").unwrap().to_string(),
        "https://x.example/keys"
    );
}

fn around(files: &Path, service_host: Option<&str>) -> Surroundings {
    Surroundings {
        service_host: service_host.map(str::to_owned),
        service_account_files: files.to_owned(),
        ca_bundle: None,
    }
}

#[tokio::test]
async fn the_service_accounts_token_goes_to_the_api_server_and_to_nobody_else() {
    let files = tempfile::tempdir().unwrap();
    let http = reqwest::Client::new();
    std::fs::write(files.path().join("token"), "first-token\n").unwrap();
    let sent_to = async |url: &str, service_host| {
        let source = KeySource::within(url, around(files.path(), service_host)).unwrap();
        let request = source.request(&http).await.unwrap();
        request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned())
    };
    let token = Some("Bearer first-token".to_owned());
    assert_eq!(sent_to("https://kubernetes.default.svc/openid/v1/jwks", None).await, token);
    assert_eq!(sent_to("https://172.20.0.1/openid/v1/jwks", Some("172.20.0.1")).await, token);
    assert_eq!(sent_to("https://[fd00::1]/openid/v1/jwks", Some("fd00::1")).await, token);
    for url in [
        "https://oidc.eks.eu-west-1.amazonaws.com/id/A/keys",
        "https://kubernetes.default.svc.evil.example/openid/v1/jwks",
        "https://172.20.0.2/openid/v1/jwks",
        "http://127.0.0.1/openid/v1/jwks",
    ] {
        assert_eq!(sent_to(url, Some("172.20.0.1")).await, None, "{url}");
    }
    assert_eq!(sent_to("http://127.0.0.1/openid/v1/jwks", Some("127.0.0.1")).await, None);

    std::fs::write(files.path().join("token"), "second-token").unwrap();
    let renewed = sent_to("https://172.20.0.1/openid/v1/jwks", Some("172.20.0.1")).await;
    assert_eq!(renewed.as_deref(), Some("Bearer second-token"));
}

#[tokio::test]
async fn private_authorities_are_trusted_where_they_are_named() {
    use loadtest::eks::{Config, SimulatedEks};
    let config = Config {
        https_listen: Some("127.0.0.1:0".parse().unwrap()),
        issuer_over_https: true,
        ..Config::default()
    };
    let eks = SimulatedEks::start(config).await.unwrap();
    let url = format!("{}/keys", eks.issuer());
    assert!(url.starts_with("https://"), "{url}");
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.crt");
    std::fs::write(&ca, eks.ca_pem().unwrap()).unwrap();
    std::fs::write(files.path().join("token"), "token").unwrap();
    let fetch = async |around| {
        let source = KeySource::within(&url, around).unwrap();
        source.fetch(&source.client()?).await.map(|(set, _)| set.len())
    };

    let error = fetch(around(files.path(), None)).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let host = reqwest::Url::parse(&url).unwrap().host_str().unwrap().to_owned();
    assert_eq!(fetch(around(files.path(), Some(&host))).await, Ok(1));
    let by_bundle =
        |path: &Path| Surroundings { ca_bundle: Some(path.to_owned()), ..around(files.path(), None) };
    assert_eq!(fetch(by_bundle(&ca)).await, Ok(1));

    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (content, wrong) in [("nothing", "no PEM certificate"), (broken, "unusable certificate")] {
        std::fs::write(&ca, content).unwrap();
        let error = fetch(by_bundle(&ca)).await.unwrap_err();
        assert!(error.contains("AWS_CA_BUNDLE") && error.contains(wrong), "{error}");
    }
    let error = fetch(by_bundle(&files.path().join("none"))).await.unwrap_err();
    assert!(error.contains("AWS_CA_BUNDLE") && error.contains("No such file"), "{error}");
}
