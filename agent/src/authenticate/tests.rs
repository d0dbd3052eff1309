use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tokio::runtime::Runtime;

use super::minting::{EXPIRES, ISSUER, KEY, NOW, OTHER_KEY, SigningKey, header, jwks, payload};
use super::*;
use crate::clock::{Clock, UnixTime};
use crate::testing::{Loopback, answer};

/// An authenticator that knows the keys that the server publishes.
async fn authenticator(issuer: &Loopback) -> Authenticator {
    let source = KeySource::of_issuer(&issuer.url).unwrap();
    let http = source.client().unwrap();
    Authenticator::new(ISSUER.to_owned(), Arc::new(Keys::new(source, http)), 100, 4)
}

async fn publishing(keys: &[&SigningKey]) -> Loopback {
    let body = jwks(&keys.iter().map(|key| key.jwk()).collect::<Vec<_>>());
    Loopback::answering(move |_| answer(200, &[], body.clone())).await
}

fn at(wall: u64) -> Now {
    Now { wall: UnixTime(wall), mono: Clock::default().now().mono }
}

#[tokio::test]
async fn a_token_of_the_issuer_is_verified_once() {
    let issuer = publishing(&[&KEY, &OTHER_KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let token = KEY.token();
    for _ in 0..3 {
        let passed = authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
        let Authenticated::Verified(claims) = passed else { panic!("{passed:?}") };
        assert_eq!(claims.pod_name(), "checkout-6b8f9-x2x7z");
        assert_eq!(claims.token_hash, sha256(token.as_bytes()));
    }
    assert_eq!(authenticator.tokens_verified(), 1);
    assert_eq!(issuer.asked().len(), 1);
    assert_eq!(issuer.asked()[0].uri(), "/keys");
}

#[tokio::test]
async fn a_verified_token_is_honoured_until_it_expires_and_no_longer() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let token = KEY.token();
    for (wall, passes) in [(NOW, true), (EXPIRES + 29, true), (EXPIRES + 30, false), (NOW, true)] {
        let result = authenticator.authenticate(token.as_bytes(), at(wall)).await;
        assert_eq!(result.is_ok(), passes, "{wall}: {result:?}");
        assert_eq!(result.err(), (!passes).then_some(TokenError::Expired));
    }
}

#[tokio::test]
async fn a_wrong_signature_is_refused() {
    let issuer = publishing(&[&KEY, &OTHER_KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let foreign = OTHER_KEY.sign(&header(KEY.key_id), &payload());
    let good = KEY.token();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other_claims = OTHER_KEY.sign(&header(KEY.key_id), &json!({"iss": ISSUER}));
    let (_, borrowed) = other_claims.rsplit_once('.').unwrap();
    for token in [
        foreign,
        format!("{signed}.{borrowed}"),
        format!("{signed}.{}", &signature[..signature.len() - 4]),
        format!("{signed}.AAAA"),
    ] {
        let result = authenticator.authenticate(token.as_bytes(), at(NOW)).await;
        assert_eq!(result.err(), Some(TokenError::Signature));
    }
    assert_eq!(authenticator.tokens_verified(), 0);
}

#[tokio::test]
async fn a_key_that_the_issuer_does_not_publish_verifies_nothing() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let result = authenticator.authenticate(OTHER_KEY.token().as_bytes(), at(NOW)).await;
    assert_eq!(result.err(), Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn without_any_key_set_a_fitting_token_goes_on_unchecked() {
    let issuer = Loopback::answering(|_| answer(503, &[], "")).await;
    let authenticator = authenticator(&issuer).await;
    let token = KEY.token();
    let passed = authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
    let Authenticated::Unchecked(claims) = passed else { panic!("{passed:?}") };
    assert_eq!((claims.namespace(), claims.token_hash), ("shop", sha256(token.as_bytes())));

    let result = authenticator.authenticate(token.as_bytes(), at(EXPIRES + 60)).await;
    assert_eq!(result.err(), Some(TokenError::Expired));
    let mut foreign = payload();
    foreign["iss"] = json!("https://evil.example");
    let foreign = KEY.sign(&header(KEY.key_id), &foreign);
    assert_eq!(authenticator.authenticate(foreign.as_bytes(), at(NOW)).await.err(), Some(TokenError::Issuer));
    assert_eq!(authenticator.tokens_verified(), 0);
}

#[tokio::test]
async fn a_token_that_went_on_unchecked_is_verified_once_there_are_keys() {
    let issuer = Loopback::answering(|_| answer(503, &[], "")).await;
    let authenticator = authenticator(&issuer).await;
    let token = KEY.token();
    let first = authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
    assert!(matches!(first, Authenticated::Unchecked(_)));

    let body = jwks(&[KEY.jwk()]);
    issuer.answer(move |_| answer(200, &[], body.clone()));
    let fetching = tokio::spawn(Arc::clone(&authenticator.keys).run(Clock::default(), Default::default()));
    issuer.was_asked(2).await;
    // The look-up of a token that nobody can verify joins the fetch that is on its way.
    let second = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap() {
                Authenticated::Verified(claims) => return claims,
                Authenticated::Unchecked(_) => tokio::task::yield_now().await,
            }
        }
    });
    assert_eq!(second.await.unwrap().namespace(), "shop");
    fetching.abort();
}

#[tokio::test]
async fn about_a_token_of_a_pod_that_has_ended_eks_auth_is_asked() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let mut fresher = payload();
    fresher["exp"] = json!(EXPIRES + 60);
    let [token, fresher] = [KEY.token(), KEY.sign(&header(KEY.key_id), &fresher)];
    let passed = async |token: &str| authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
    let uid = Arc::<str>::from(passed(&token).await.verified().unwrap().pod_uid());
    let other = ["another".into()];
    authenticator.pods_ended(&other, &HashSet::new(), at(NOW));
    assert!(passed(&token).await.verified().is_some());
    assert_eq!(authenticator.tokens_verified(), 1);

    let epoch = authenticator.epoch();
    authenticator.pods_ended(&[Arc::clone(&uid)], &HashSet::new(), at(NOW));
    assert_ne!(authenticator.epoch(), epoch);
    for token in [&token, &token, &fresher] {
        assert!(matches!(passed(token).await, Authenticated::Unchecked(_)));
        assert!(authenticator.pod_of(token.as_bytes()).is_none());
    }
    let forged = OTHER_KEY.sign(&header(KEY.key_id), &payload());
    let result = authenticator.authenticate(forged.as_bytes(), at(NOW)).await;
    assert_eq!(result.err(), Some(TokenError::Signature), "for a forgery nobody is asked");

    authenticator.pods_ended(&[], &HashSet::from([uid]), at(NOW));
    assert!(passed(&token).await.verified().is_some(), "it was seen alive");
}

#[tokio::test]
async fn after_a_flush_a_token_whose_key_was_removed_passes_no_more() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let token = KEY.token();
    authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
    let body = jwks(&[OTHER_KEY.jwk()]);
    issuer.answer(move |_| answer(200, &[], body.clone()));
    let epoch = authenticator.epoch();
    authenticator.forget_all();
    assert!(authenticator.authenticate(token.as_bytes(), at(NOW)).await.is_ok(), "by the key that is known");
    assert_eq!(authenticator.tokens_verified(), 2);
    authenticator.renew_keys(at(NOW)).await;
    assert_ne!(authenticator.epoch(), epoch);
    let result = authenticator.authenticate(token.as_bytes(), at(NOW)).await;
    assert_eq!(result.err(), Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn an_enormous_token_is_refused_before_it_is_looked_at() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let result = authenticator.authenticate(&vec![b'A'; MAX_TOKEN_BYTES + 1], at(NOW)).await;
    assert_eq!(result.err(), Some(TokenError::TooLong));
}

#[tokio::test]
async fn tokens_of_the_simulated_eks_pass() {
    use loadtest::eks::{Config, PodToken, SimulatedEks};
    let eks = SimulatedEks::start(Config::default()).await.unwrap();
    let source = KeySource::of_issuer(eks.issuer()).unwrap();
    let keys = Arc::new(Keys::new(source.clone(), source.client().unwrap()));
    let authenticator = Authenticator::new(eks.issuer().to_owned(), keys, 100, 4);
    let now = Clock::default().now();

    let minted = eks.mint(PodToken::new("shop", "checkout", "checkout-1").node_name("node-1"));
    let passed = authenticator.authenticate(minted.token.as_bytes(), now).await.unwrap();
    let Authenticated::Verified(claims) = passed else { panic!("{passed:?}") };
    assert_eq!(
        (claims.pod_uid(), claims.service_account_uid()),
        (&*minted.pod_uid, &*minted.service_account_uid)
    );

    let forged = eks.mint(PodToken::new("shop", "checkout", "checkout-1").signed_by_a_foreign_key());
    assert_eq!(
        authenticator.authenticate(forged.token.as_bytes(), now).await.err(),
        Some(TokenError::Signature)
    );
}

#[test]
fn the_issuer_is_read_from_the_agents_own_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let says = |content: &str| {
        std::fs::write(&file, content).unwrap();
        issuer_from_token_file(&file)
    };
    assert_eq!(says(&format!("{}\n", KEY.token())), Ok(ISSUER.to_owned()));
    let with_issuer = |issuer: &str| KEY.sign(&header("k"), &json!({"iss": issuer}));
    assert_eq!(says(&with_issuer("http://127.0.0.1:8/id")), Ok("http://127.0.0.1:8/id".to_owned()));
    for (content, wrong) in [
        (with_issuer("http://oidc.example"), "plain http to another host"),
        (with_issuer("kubernetes/serviceaccount"), "is not a URL"),
        (with_issuer("https://oidc.example/?id=1"), "has a query"),
        (KEY.sign(&header("k"), &json!({})), "names its issuer"),
        ("garbage".to_owned(), "names its issuer"),
    ] {
        let error = says(&content).unwrap_err();
        assert!(error.contains(wrong) && error.contains("--issuer") && !error.contains(&content), "{error}");
    }
    let error = issuer_from_token_file(&folder.path().join("none")).unwrap_err();
    assert!(error.contains("cannot be read") && error.contains("--issuer"), "{error}");
}

fn any_change() -> impl Strategy<Value = (usize, u8)> {
    (any::<usize>(), any::<u8>())
}

proptest! {
    #[test]
    fn a_changed_token_never_verifies(changes in proptest::collection::vec(any_change(), 1..4), cut in any::<u8>()) {
        static GOOD: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| KEY.token());
        thread_local! {
            static SETTING: (Runtime, Loopback, Authenticator) = {
                let runtime = Runtime::new().unwrap();
                let (issuer, authenticator) = runtime.block_on(async {
                    let issuer = publishing(&[&KEY]).await;
                    let authenticator = authenticator(&issuer).await;
                    (issuer, authenticator)
                });
                (runtime, issuer, authenticator)
            };
        }
        let mut token = GOOD.clone().into_bytes();
        for (place, byte) in changes {
            let place = place % token.len();
            // Mostly within the alphabet, where a change is not found by its form.
            token[place] = if cut < 200 { b"ABCDEFGHabcdefgh0123456789-_"[byte as usize % 28] } else { byte };
        }
        if cut > 240 {
            token.truncate(token.len() - cut as usize % 16);
        }
        prop_assume!(token != GOOD.as_bytes());
        let (good, result) = SETTING.with(|(runtime, _, authenticator)| {
            let passes = |token| runtime.block_on(authenticator.authenticate(token, at(NOW)));
            (passes(GOOD.as_bytes()), passes(&token))
        });
        // Where the good one fails, nothing is shown by the other.
        prop_assert!(matches!(good, Ok(Authenticated::Verified(_))));
        prop_assert!(result.is_err(), "{:?}", result);
    }
}

#[tokio::test]
async fn a_pod_with_many_tokens_pushes_out_its_own_and_nobody_elses() {
    let issuer = publishing(&[&KEY]).await;
    let authenticator = authenticator(&issuer).await;
    let token = |pod: &str, number: u64| {
        let mut payload = payload();
        payload["kubernetes.io"]["pod"]["uid"] = json!(pod);
        payload["iat"] = json!(NOW - number);
        KEY.sign(&header(KEY.key_id), &payload)
    };
    let knows = |token: &str| authenticator.pod_of(token.as_bytes()).is_some();
    let quiet = token("quiet", 0);
    authenticator.authenticate(quiet.as_bytes(), at(NOW)).await.unwrap();
    let many: Vec<String> = (0..20).map(|number| token("greedy", number)).collect();
    for token in &many {
        // Twice: a token that is known already takes no second place.
        for _ in 0..2 {
            authenticator.authenticate(token.as_bytes(), at(NOW)).await.unwrap();
        }
    }
    assert!(knows(&quiet));
    assert_eq!(
        many.iter().map(|token| knows(token)).collect::<Vec<_>>(),
        [vec![false; 16], vec![true; 4]].concat()
    );
    assert_eq!(authenticator.tokens_verified(), 21);
}
