//! Close's signature: HMAC-SHA256 over the timestamp's text and the body, by the hex-decoded key of the subscription.

use ring::hmac;

/// The header that says when a delivery was signed, in Unix seconds.
pub const TIMESTAMP_HEADER: &str = "close-sig-timestamp";

/// The header with the signature, in lower-case hex.
pub const HASH_HEADER: &str = "close-sig-hash";

/// What the two headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// For [`TIMESTAMP_HEADER`].
    pub timestamp: String,
    /// For [`HASH_HEADER`].
    pub hash: String,
}

/// Signs a body at a time. `None` where the key is not in hex.
pub fn sign(key: &str, unix_seconds: i64, body: &str) -> Option<Signature> {
    let timestamp = unix_seconds.to_string();
    let hash = hash(key, &timestamp, body.as_bytes())?;
    Some(Signature { timestamp, hash })
}

/// What the hash of a delivery has to be. `None` where the key is not in hex.
pub fn hash(key: &str, timestamp: &str, body: &[u8]) -> Option<String> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &hex::decode(key).ok()?);
    let mut context = hmac::Context::with_key(&key);
    context.update(timestamp.as_bytes());
    context.update(body);
    Some(hex::encode(context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that closehook's verification is held against too.
    #[test]
    fn what_is_signed_is_what_the_vectors_accept() {
        let vectors = include_str!("../../fixtures/close/signature-vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let mut accepted = 0;
        for case in vectors["cases"].as_array().unwrap() {
            let header = |name: &str| {
                let headers = case["headers"].as_object().unwrap();
                let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.and_then(|(_, value)| value.as_str()).unwrap_or_default()
            };
            let (Some(body), true) = (case["body"].as_str(), case["accept"] == true) else {
                continue;
            };
            let keys = case["keys"].as_array().unwrap().iter();
            let hashes: Vec<String> = keys
                .filter_map(|key| hash(key.as_str()?, header(TIMESTAMP_HEADER), body.as_bytes()))
                .collect();
            assert!(hashes.contains(&header(HASH_HEADER).to_lowercase()), "{case}");
            accepted += 1;
        }
        assert!(accepted >= 3, "{accepted}");
    }
}
