use loadtest::eks::{Config, Outage, PodToken, SimulatedEks};
use reqwest::Client;
use serde_json::Value;

use crate::client::{HTTP, assume, get};
use crate::with_cart;

async fn kids(eks: &SimulatedEks) -> Vec<String> {
    let set: Value = get(format!("{}/keys", eks.issuer())).await.json().await.unwrap();
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn kid_of(eks: &SimulatedEks) -> String {
    let token = eks.mint(PodToken::new("shop", "cart", "cart-1")).token;
    jsonwebtoken::decode_header(token).unwrap().kid.unwrap()
}

#[tokio::test]
async fn discovery_leads_to_the_key_that_signs() {
    let eks = with_cart().await;
    let url = format!("{}/.well-known/openid-configuration", eks.issuer());
    let document: Value = get(url).await.json().await.unwrap();
    assert_eq!(document["issuer"], eks.issuer());
    let set: jsonwebtoken::jwk::JwkSet =
        get(document["jwks_uri"].as_str().unwrap()).await.json().await.unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(set.find(&kid_of(&eks)).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_audience(&["pods.eks.amazonaws.com"]);
    let token = eks.mint(PodToken::new("shop", "cart", "cart-1")).token;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims;
    assert_eq!(claims["sub"], "system:serviceaccount:shop:cart");
}

#[tokio::test]
async fn a_new_key_can_sign_before_it_is_published() {
    let eks = with_cart().await;
    let old = kid_of(&eks);
    let new = eks.rotate_keys(false, false).unwrap();
    assert_eq!(kid_of(&eks), new);
    assert_eq!(kids(&eks).await, [old.as_str()]);
    eks.publish_keys();
    assert_eq!(kids(&eks).await, [old, new]);
    let newest = eks.rotate_keys(true, true).unwrap();
    assert_eq!(kids(&eks).await, [newest]);
}

#[tokio::test]
async fn key_fetches_are_counted_and_their_age_is_told() {
    let eks = with_cart().await;
    let keys = format!("{}/keys", eks.issuer());
    assert!(get(&keys).await.headers().get("cache-control").is_none());
    eks.settings(|settings| settings.keys_max_age_seconds = Some(60));
    assert_eq!(get(&keys).await.headers()["cache-control"], "max-age=60");
    assert_eq!(eks.counts().issuer_key_fetches, 2);
}

#[tokio::test]
async fn the_issuers_outage_leaves_eks_auth_alone_and_the_other_way_round() {
    let eks = with_cart().await;
    let keys = format!("{}/keys", eks.issuer());
    let token = eks.mint(PodToken::new("shop", "cart", "cart-1")).token;
    eks.settings(|settings| settings.issuer_outage = Outage::Refuse);
    assert_eq!(get(&keys).await.status(), 503);
    assert_eq!(assume(&eks, &token).await.status, 200);
    eks.settings(|settings| {
        settings.issuer_outage = Outage::Off;
        settings.outage = Outage::Refuse;
    });
    assert_eq!(get(&keys).await.status(), 200);
    assert_eq!(assume(&eks, &token).await.status, 503);
}

#[tokio::test]
async fn another_clusters_issuer_is_not_here() {
    let eks = with_cart().await;
    let url = format!("{}/id/0123456789ABCDEF0123456789ABCDEF/keys", eks.url());
    assert_eq!(get(url).await.status(), 404);
}

#[tokio::test]
async fn the_issuer_can_be_served_over_https_by_the_simulations_own_authority() {
    let config = Config {
        https_listen: Some("127.0.0.1:0".parse().unwrap()),
        issuer_over_https: true,
        ..Config::default()
    };
    let eks = SimulatedEks::start(config).await.unwrap();
    assert!(eks.issuer().starts_with(eks.https_url().unwrap()));
    let keys = format!("{}/keys", eks.issuer());
    assert!(HTTP.get(&keys).send().await.is_err(), "nobody trusts that authority by itself");
    let authority = reqwest::Certificate::from_pem(eks.ca_pem().unwrap().as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([authority]).build().unwrap();
    assert_eq!(client.get(&keys).send().await.unwrap().status(), 200);
    let error =
        SimulatedEks::start(Config { issuer_over_https: true, ..Config::default() }).await.unwrap_err();
    assert!(error.to_string().contains("https"), "{error}");
}
