//! Made-up identifiers in the shapes that AWS and Kubernetes give theirs.

const LOWER: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Access key ids and role ids are base32: no 0, 1, 8 or 9.
const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const HEX: &[u8] = b"0123456789ABCDEF";

pub(super) fn uuid() -> String {
    // RFC 9562: version 4 in the upper half of byte 6, variant 10 in the top bits of byte 8.
    let bits = (fastrand::u128(..) & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub(super) fn association_id() -> String {
    format!("a-{}", random(LOWER, 17))
}

/// `AKIA…` is a user's key, `ASIA…` a session's.
pub(super) fn access_key_id(prefix: &str) -> String {
    format!("{prefix}{}", random(BASE32, 16))
}

pub(super) fn role_id() -> String {
    format!("AROA{}", random(BASE32, 17))
}

pub(super) fn secret_access_key() -> String {
    random(BASE64, 40)
}

/// As long as real ones are: they make the answers what they are on the wire.
pub(super) fn session_token() -> String {
    format!("IQoJb3JpZ2luX2Vj{}==", random(BASE64, 900))
}

pub(super) fn issuer_id() -> String {
    random(HEX, 32)
}

fn random(alphabet: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(alphabet[fastrand::usize(..alphabet.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_4_and_differ() {
        let (one, two) = (uuid(), uuid());
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes()[14], b'4', "{one}");
        assert!(matches!(one.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{one}");
    }
}
