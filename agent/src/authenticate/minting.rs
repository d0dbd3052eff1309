//! For tests: signing keys, the documents that publish them, and tokens.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub(super) const ISSUER: &str = "https://oidc.example/id/1";
pub(super) const NOW: u64 = 1_795_000_000;
pub(super) const EXPIRES: u64 = NOW + 3600;

/// Made once: it takes a while.
pub(super) static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("first"));
pub(super) static OTHER_KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("second"));

pub(super) struct SigningKey {
    pub(super) key_id: &'static str,
    pair: KeyPair,
}

impl SigningKey {
    fn new(key_id: &'static str) -> Self {
        SigningKey { key_id, pair: KeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    pub(super) fn jwk(&self) -> Value {
        let public = self.pair.public_key();
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id,
            "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
            "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
        })
    }

    pub(super) fn token(&self) -> String {
        self.sign(&header(self.key_id), &payload())
    }

    pub(super) fn sign(&self, header: &Value, payload: &Value) -> String {
        let signed = format!("{}.{}", part(header), part(payload));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

pub(super) fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

pub(super) fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

pub(super) fn header(key_id: &str) -> Value {
    json!({"alg": "RS256", "kid": key_id})
}

pub(super) fn payload() -> Value {
    json!({
        "aud": ["pods.eks.amazonaws.com"], "iss": ISSUER, "exp": EXPIRES, "iat": NOW, "nbf": NOW,
        "sub": "system:serviceaccount:shop:checkout",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "ip-10-0-0-1.ec2.internal", "uid": "9d8f6a5e-0000-4000-8000-000000000003"},
            "pod": {"name": "checkout-6b8f9-x2x7z", "uid": "9d8f6a5e-0000-4000-8000-000000000001"},
            "serviceaccount": {"name": "checkout", "uid": "9d8f6a5e-0000-4000-8000-000000000002"},
        },
    })
}
