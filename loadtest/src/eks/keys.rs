//! The issuer's signing keys and their rotation.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256};
use aws_lc_rs::{digest, error::Unspecified};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Serialize;

/// One RSA-2048 key.
pub(super) struct SigningKey {
    pub(super) kid: String,
    pair: RsaKeyPair,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl SigningKey {
    /// Takes a tenth of a second: never under the state's lock.
    pub(super) fn generate() -> Result<Arc<SigningKey>> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).ok().context("cannot make an RSA key")?;
        let public = pair.public_key();
        // The API server's own way to name a key: the hash of its public part.
        let spki = public.as_der().ok().context("cannot encode a public key")?;
        let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, spki.as_ref()));
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        Ok(Arc::new(SigningKey { kid, pair, modulus, exponent }))
    }

    /// RS256.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
        Ok(signature)
    }

    pub(super) fn decoding_key(&self) -> DecodingKey {
        DecodingKey::from_rsa_raw_components(&self.modulus, &self.exponent)
    }

    pub(super) fn private_pem(&self) -> Result<String> {
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&self.pair).ok().context("cannot encode a private key")?;
        Ok(pem::Pem::new("PRIVATE KEY", der.as_ref()).to_string())
    }

    fn jwk(&self) -> Jwk<'_> {
        Jwk {
            kty: "RSA",
            kid: &self.kid,
            use_: "sig",
            alg: "RS256",
            n: URL_SAFE_NO_PAD.encode(&self.modulus),
            e: URL_SAFE_NO_PAD.encode(&self.exponent),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Jwk<'a> {
    kty: &'static str,
    kid: &'a str,
    #[serde(rename = "use")]
    use_: &'static str,
    alg: &'static str,
    n: String,
    e: String,
}

#[derive(Serialize)]
struct JwkSet<'a> {
    keys: Vec<Jwk<'a>>,
}

struct Entry {
    key: Arc<SigningKey>,
    published: bool,
}

/// Every key that the issuer ever had; the last one signs.
pub(super) struct KeyRing {
    entries: Vec<Entry>,
}

impl KeyRing {
    pub(super) fn new(first: Arc<SigningKey>) -> KeyRing {
        KeyRing { entries: vec![Entry { key: first, published: true }] }
    }

    /// The key that signs now.
    pub(super) fn current(&self) -> Arc<SigningKey> {
        // `new` puts one in and nothing takes one out.
        Arc::clone(&self.entries[self.entries.len() - 1].key)
    }

    pub(super) fn rotate(&mut self, key: Arc<SigningKey>, publish: bool, retire_old: bool) {
        if retire_old {
            self.entries.iter_mut().for_each(|entry| entry.published = false);
        }
        self.entries.push(Entry { key, published: publish });
    }

    /// Publishes the key that signs, where [`KeyRing::rotate`] did not.
    pub(super) fn publish_current(&mut self) {
        if let Some(last) = self.entries.last_mut() {
            last.published = true;
        }
    }

    /// Published or not: EKS Auth knows the cluster's keys before the issuer's caches do.
    pub(super) fn find(&self, kid: &str) -> Option<Arc<SigningKey>> {
        self.entries.iter().find(|entry| entry.key.kid == kid).map(|entry| Arc::clone(&entry.key))
    }

    pub(super) fn published(&self) -> impl Serialize {
        JwkSet { keys: self.entries.iter().filter(|e| e.published).map(|e| e.key.jwk()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kids(ring: &KeyRing) -> Vec<String> {
        let set = serde_json::to_value(ring.published()).unwrap();
        set["keys"].as_array().unwrap().iter().map(|k| k["kid"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn rotation_signs_with_the_new_key_and_publishes_as_told() {
        let [a, b, c] = std::array::from_fn(|_| SigningKey::generate().unwrap());
        let mut ring = KeyRing::new(Arc::clone(&a));
        ring.rotate(Arc::clone(&b), false, false);
        assert_eq!(ring.current().kid, b.kid);
        assert_eq!(kids(&ring), [a.kid.as_str()]);
        ring.publish_current();
        assert_eq!(kids(&ring), [a.kid.as_str(), b.kid.as_str()]);
        ring.rotate(Arc::clone(&c), true, true);
        assert_eq!(kids(&ring), [c.kid.as_str()]);
        assert!(ring.find(&a.kid).is_some(), "a retired key is still known");
    }

    #[test]
    fn a_key_set_holds_nothing_private() {
        let ring = KeyRing::new(SigningKey::generate().unwrap());
        let set = serde_json::to_value(ring.published()).unwrap();
        let mut fields: Vec<_> = set["keys"][0].as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(fields, ["alg", "e", "kid", "kty", "n", "use"]);
        assert_eq!(URL_SAFE_NO_PAD.decode(set["keys"][0]["n"].as_str().unwrap()).unwrap().len(), 256);
        assert_eq!(set["keys"][0]["e"], "AQAB");
    }
}
