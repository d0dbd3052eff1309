//! What the issuer publishes, and how long it says that holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use reqwest::header::{CACHE_CONTROL, HeaderMap};
use serde::Deserialize;

/// Public RSA keys by key id.
pub(super) struct KeySet(HashMap<String, Arc<DecodingKey>>);

impl KeySet {
    /// Keys of other kinds are skipped: an issuer may publish some for others. A set without any is no set.
    pub(super) fn parse(body: &[u8]) -> Result<KeySet, String> {
        let document: Document = serde_json::from_slice(body)
            .map_err(|error| format!("the answer is not a JWKS document: {error}"))?;
        let published = document.keys.len();
        let mut keys = HashMap::new();
        for (key_id, key) in document.keys.into_iter().filter_map(usable) {
            keys.entry(key_id).or_insert_with(|| Arc::new(key));
        }
        if keys.is_empty() {
            return Err(format!(
                "none of the {published} keys published is an RS256 key of at least 2048 bits"
            ));
        }
        Ok(KeySet(keys))
    }

    pub(super) fn get(&self, key_id: &str) -> Option<Arc<DecodingKey>> {
        self.0.get(key_id).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// How long a key set is fresh. The issuer throttles, and keys rotate every seven days; between these limits it may
/// say what it likes.
pub(super) fn fresh_for(headers: &HeaderMap) -> Duration {
    const LEAST: u64 = 60;
    const MOST: u64 = 24 * 3600;
    const UNSAID: u64 = 3600;
    let directives = || {
        headers
            .get_all(CACHE_CONTROL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|directive| directive.trim().to_ascii_lowercase())
    };
    if directives().any(|directive| matches!(&*directive, "no-store" | "no-cache")) {
        return Duration::from_secs(LEAST);
    }
    let max_age = directives().find_map(|directive| {
        let digits = directive.strip_prefix("max-age=")?.trim_matches('"').to_owned();
        // A number that does not fit is a very long time.
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().unwrap_or(MOST))
    });
    Duration::from_secs(max_age.unwrap_or(UNSAID).clamp(LEAST, MOST))
}

#[derive(Deserialize)]
struct Document {
    /// Unparsed, so that one key of a kind not known here does not spoil the others.
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    n: String,
    e: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
}

fn usable(key: serde_json::Value) -> Option<(String, DecodingKey)> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    let for_this = jwk.kty == "RSA"
        && jwk.alg.is_none_or(|alg| alg == "RS256")
        && jwk.purpose.is_none_or(|purpose| purpose == "sig");
    if !for_this || jwk.kid.is_empty() {
        return None;
    }
    let n = unsigned(&jwk.n)?;
    let e = unsigned(&jwk.e)?;
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    // With the exponent 1 anyone could sign; an even one cannot be a key.
    let sound_exponent = e != [1] && e.last()? % 2 == 1;
    // 8192 is where the verifier stops.
    ((2048..=8192).contains(&bits) && sound_exponent)
        .then(|| (jwk.kid, DecodingKey::from_rsa_raw_components(&n, &e)))
}

/// A big-endian number without leading zeros, which some issuers write and the verifier refuses.
fn unsigned(base64url: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(base64url).ok()?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[start..].to_vec())
}
