use std::sync::Arc;

use super::super::keys::KeyRing;
use super::verify::{check, unchecked};
use super::*;

const ISSUER: &str = "http://127.0.0.1/id/TEST";

struct Cluster {
    keys: KeyRing,
    key: Arc<SigningKey>,
    objects: Objects,
}

impl Cluster {
    fn new() -> Cluster {
        let key = SigningKey::generate().unwrap();
        Cluster { keys: KeyRing::new(Arc::clone(&key)), key, objects: Objects::default() }
    }

    fn mint(&mut self, token: PodToken) -> Minted {
        let unsigned = token.prepare(ISSUER, &self.key.kid, clock::wall(), &mut self.objects).unwrap();
        unsigned.sign(&self.key).unwrap()
    }

    /// The code of the refusal, or "OK".
    fn verdict(&self, token: &str) -> String {
        let now = clock::epoch_seconds(clock::wall());
        match check(token, ISSUER, now, &self.keys, &self.objects) {
            Ok(_) => "OK".to_owned(),
            Err(error) => error.code.to_owned(),
        }
    }
}

fn a_pod() -> PodToken {
    PodToken::new("shop", "cart", "cart-1")
}

#[test]
fn a_minted_token_has_the_claims_of_a_projected_one() {
    let mut cluster = Cluster::new();
    let minted = cluster.mint(a_pod().node_name("node-a"));
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&minted.token).unwrap();
    assert_eq!(claims["aud"], json!(["pods.eks.amazonaws.com"]));
    assert_eq!(claims["sub"], "system:serviceaccount:shop:cart");
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), DAY);
    assert_eq!(claims["nbf"], claims["iat"]);
    assert_eq!(claims["jti"], minted.token_id.as_str());
    let kubernetes = &claims["kubernetes.io"];
    assert_eq!(kubernetes["namespace"], "shop");
    assert_eq!(kubernetes["pod"], json!({ "name": "cart-1", "uid": minted.pod_uid }));
    assert_eq!(kubernetes["serviceaccount"], json!({ "name": "cart", "uid": minted.service_account_uid }));
    assert_eq!(kubernetes["node"]["name"], "node-a");
    assert_eq!(cluster.verdict(&minted.token), "OK");
}

#[test]
fn uids_stay_until_the_object_is_made_again() {
    let mut cluster = Cluster::new();
    let (one, two) = (cluster.mint(a_pod()), cluster.mint(a_pod()));
    assert_eq!((&one.pod_uid, &one.service_account_uid), (&two.pod_uid, &two.service_account_uid));
    let uid = cluster.objects.recreate_service_account("shop", "cart");
    cluster.objects.delete_pod(&one.pod_uid);
    let three = cluster.mint(a_pod());
    assert_ne!(three.service_account_uid, one.service_account_uid);
    assert_eq!(three.service_account_uid, uid);
    assert_ne!(three.pod_uid, one.pod_uid);
}

#[test]
fn each_defect_of_a_token_is_refused() {
    let mut cluster = Cluster::new();
    let defects = [
        ("expired", a_pod().expires_in_seconds(0), "ExpiredTokenException"),
        ("audience", a_pod().audience("sts.amazonaws.com"), "InvalidTokenException"),
        ("issuer", a_pod().claim("/iss", "https://elsewhere.example"), "InvalidTokenException"),
        ("no audience", a_pod().claim("/aud", Value::Null), "InvalidTokenException"),
        ("no expiry", a_pod().claim("/exp", Value::Null), "InvalidTokenException"),
        ("not yet", a_pod().claim("/nbf", i64::from(u32::MAX)), "InvalidTokenException"),
        ("no pod", a_pod().claim("/kubernetes.io/pod", Value::Null), "InvalidTokenException"),
        ("no key", a_pod().header("kid", Value::Null), "InvalidTokenException"),
        ("unknown key", a_pod().header("kid", "other"), "InvalidTokenException"),
        ("algorithm", a_pod().header("alg", "HS256"), "InvalidTokenException"),
    ];
    for (defect, token, code) in defects {
        let minted = cluster.mint(token);
        assert_eq!(cluster.verdict(&minted.token), code, "{defect}");
    }
}

#[test]
fn a_foreign_signature_and_a_changed_claim_are_refused() {
    let mut cluster = Cluster::new();
    let foreign = SigningKey::generate().unwrap();
    let unsigned = a_pod().prepare(ISSUER, &cluster.key.kid, clock::wall(), &mut cluster.objects).unwrap();
    assert_eq!(cluster.verdict(&unsigned.sign(&foreign).unwrap().token), "InvalidTokenException");

    let (one, two) = (cluster.mint(a_pod()).token, cluster.mint(PodToken::new("shop", "admin", "x")).token);
    let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (one, two) = (parts(&one), parts(&two));
    let spliced = format!("{}.{}.{}", one[0], two[1], one[2]);
    assert_eq!(cluster.verdict(&spliced), "InvalidTokenException");
    assert_eq!(unchecked(&spliced).unwrap().kubernetes.serviceaccount.name, "admin");
}

#[test]
fn a_deleted_pods_token_is_refused() {
    let mut cluster = Cluster::new();
    let minted = cluster.mint(a_pod());
    cluster.objects.delete_pod(&minted.pod_uid);
    assert_eq!(cluster.verdict(&minted.token), "InvalidTokenException");
}

#[test]
fn a_token_by_a_rotated_key_passes_published_or_not() {
    let mut cluster = Cluster::new();
    let old = cluster.mint(a_pod());
    cluster.key = SigningKey::generate().unwrap();
    cluster.keys.rotate(Arc::clone(&cluster.key), false, true);
    let new = cluster.mint(a_pod());
    assert_eq!((cluster.verdict(&old.token), cluster.verdict(&new.token)), ("OK".into(), "OK".into()));
}

#[test]
fn a_wrong_pointer_is_named() {
    let mut objects = Objects::default();
    let token = a_pod().claim("iss", "x").prepare(ISSUER, "k", clock::wall(), &mut objects);
    assert!(token.err().unwrap().contains("iss is no JSON pointer"));
}

#[test]
fn debug_of_a_minted_token_does_not_show_it() {
    let minted = Cluster::new().mint(a_pod());
    assert!(!format!("{minted:?}").contains(&minted.token));
}
