//! Authenticity: an [`Unverified`] request becomes [`Verified`] only here, and only what is verified can be stored.
//!
//! Close signs `timestamp text + raw body` with HMAC-SHA256 under the subscription's hex-decoded key and sends both as
//! `close-sig-timestamp` and `close-sig-hash` (Close's documentation, "Webhook signatures"). Every live key is tried, in
//! constant time and without stopping early, so the answer's timing tells nothing about which key came near.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;

use crate::event::{SignatureHeaders, View};

/// Header with the unix time of signing, in seconds.
pub const TIMESTAMP_HEADER: &str = "close-sig-timestamp";

/// Header with the HMAC, 64 hex digits.
pub const HASH_HEADER: &str = "close-sig-hash";

/// A signature key, decoded.
#[derive(Clone)]
pub struct Key {
    /// With it, the key counts only for deliveries of this subscription.
    pub subscription_id: Option<String>,
    /// The HMAC under the key, with nothing signed yet: every check begins with a copy of it.
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("subscription_id", &self.subscription_id)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Decodes a `signature_key` as Close gives it. The error does not contain it.
    pub fn from_hex(subscription_id: Option<String>, text: &str) -> Result<Key, String> {
        let bytes = hex::decode(text.trim()).map_err(|_| "a signature key is hex digits, as Close showed it")?;
        if bytes.len() < 16 {
            return Err("the signature key is too short to be one".into());
        }
        let mac = Hmac::new_from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok(Key { subscription_id, mac })
    }

    fn mac(&self, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(timestamp.as_bytes());
        mac.update(body);
        mac
    }

    /// The headers Close would send with this body: for `trigger` and tests.
    pub fn sign(&self, at: Timestamp, body: &[u8]) -> SignatureHeaders {
        let timestamp = at.as_second().to_string();
        let hash = hex::encode(self.mac(&timestamp, body).finalize().into_bytes());
        SignatureHeaders { timestamp, hash }
    }

    /// Whether the headers belong to the body, whatever the time is now: for checking what is stored.
    pub fn signed(&self, headers: &SignatureHeaders, body: &[u8]) -> bool {
        let mut hash = [0; 32];
        hex::decode_to_slice(&headers.hash, &mut hash).is_ok()
            && self.mac(&headers.timestamp, body).verify_slice(&hash).is_ok()
    }
}

/// Why a request is not authentic. For logs and metrics only: every sender gets the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A signature header is not there.
    #[error("missing header")]
    Missing,
    /// A signature header is there twice, or is not what it should look like.
    #[error("malformed")]
    Malformed,
    /// No live key gives this hash.
    #[error("bad signature")]
    BadSignature,
    /// Authentic, but older than the tolerance.
    #[error("stale")]
    Stale,
    /// Authentic, but from later than the skew allows.
    #[error("from the future")]
    Future,
    /// Signed with a key that is bound to another subscription than the body names.
    #[error("wrong subscription")]
    WrongSubscription,
}

impl Refusal {
    /// Whether it is authentic and only its time is wrong, or ours.
    pub fn is_about_time(self) -> bool {
        matches!(self, Refusal::Stale | Refusal::Future)
    }

    /// A stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::Missing => "missing",
            Refusal::Malformed => "malformed",
            Refusal::BadSignature => "bad_signature",
            Refusal::Stale => "stale",
            Refusal::Future => "future",
            Refusal::WrongSubscription => "wrong_subscription",
        }
    }
}

/// Signature headers that look right; nothing is proved yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    headers: SignatureHeaders,
    signed_at: i64,
    hash: [u8; 32],
}

impl Claim {
    /// When it says that it was signed, in seconds since the Unix epoch. Nobody has proved it yet.
    pub fn signed_at(&self) -> i64 {
        self.signed_at
    }

    /// Reads the two headers' values (all of them: a repeated header is malformed).
    pub fn read<'h>(
        timestamps: impl IntoIterator<Item = &'h [u8]>,
        hashes: impl IntoIterator<Item = &'h [u8]>,
    ) -> Result<Claim, Refusal> {
        let timestamp = single(timestamps)?;
        let hash_text = single(hashes)?;
        if timestamp.is_empty() || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::Malformed);
        }
        let signed_at = timestamp.parse().map_err(|_| Refusal::Malformed)?;
        let mut hash = [0; 32];
        hex::decode_to_slice(hash_text, &mut hash).map_err(|_| Refusal::Malformed)?;
        let headers = SignatureHeaders {
            timestamp: timestamp.to_owned(),
            hash: hash_text.to_owned(),
        };
        Ok(Claim {
            headers,
            signed_at,
            hash,
        })
    }
}

fn single<'h>(values: impl IntoIterator<Item = &'h [u8]>) -> Result<&'h str, Refusal> {
    let mut values = values.into_iter();
    let value = values.next().ok_or(Refusal::Missing)?;
    if values.next().is_some() || value.len() > 128 {
        return Err(Refusal::Malformed);
    }
    std::str::from_utf8(value).map_err(|_| Refusal::Malformed)
}

/// A request's body with what it claims.
#[derive(Debug)]
pub struct Unverified {
    /// From the headers.
    pub claim: Claim,
    /// Exactly as received.
    pub body: Bytes,
}

/// A body that Close signed. Made by [`Verifier::verify`] only.
#[derive(Debug)]
pub struct Verified {
    headers: SignatureHeaders,
    body: Bytes,
    view: Option<View>,
}

impl Verified {
    /// The signature headers, the body, and what was read in it (`None` where it can't be read).
    pub fn into_parts(self) -> (SignatureHeaders, Bytes, Option<View>) {
        (self.headers, self.body, self.view)
    }
}

/// The live keys and how far a timestamp may be off.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    /// From the configuration; several may be live during a rotation.
    pub keys: Vec<Key>,
    /// Of subscriptions made here: from the data directory.
    pub kept: Vec<Key>,
    /// Of subscriptions that are gone: what they signed is stored, and nothing new is accepted from them.
    pub retired: Vec<Key>,
    /// Of the configuration's keys those that can't be read now, a sentence each.
    pub unread: Vec<String>,
    /// Why those of the data directory can't be read; `None`: they can.
    pub unkept: Option<String>,
    /// How old an authentic delivery may be.
    pub tolerance: SignedDuration,
    /// How far in the future its timestamp may lie.
    pub skew: SignedDuration,
}

impl Verifier {
    /// Every key that counts for new deliveries.
    pub fn live(&self) -> impl Iterator<Item = &Key> + Clone {
        self.keys.iter().chain(&self.kept)
    }

    /// Whether a key that is or was live signed what is stored.
    pub fn signed(&self, headers: &SignatureHeaders, body: &[u8]) -> bool {
        self.live().chain(&self.retired).any(|key| key.signed(headers, body))
    }

    /// Why some keys are not known, a sentence each: what no known key signed, one of these may have.
    pub fn unknown(&self) -> impl Iterator<Item = &String> {
        self.unread.iter().chain(&self.unkept)
    }

    /// The key that signed what is stored, and whether only stored events are checked with it; `None`: no key that is or was live did.
    pub fn signed_by(&self, headers: &SignatureHeaders, body: &[u8]) -> Option<(&Key, bool)> {
        let live = self.live().map(|key| (key, false));
        let mut keys = live.chain(self.retired.iter().map(|key| (key, true)));
        keys.find(|(key, _)| key.signed(headers, body))
    }

    /// Checks the signature, then the time.
    pub fn verify(&self, unverified: Unverified, now: Timestamp) -> Result<Verified, Refusal> {
        let Unverified { claim, body } = unverified;
        let mut unbound = false;
        let mut bound_to: Vec<&str> = Vec::new();
        for key in self.live() {
            let mac = key.mac(&claim.headers.timestamp, &body);
            let fits = mac.verify_slice(&claim.hash).is_ok();
            match &key.subscription_id {
                Some(id) if fits => bound_to.push(id),
                None if fits => unbound = true,
                _ => {}
            }
        }
        if !unbound && bound_to.is_empty() {
            return Err(Refusal::BadSignature);
        }
        let view = View::read(&body).ok();
        if !unbound {
            // Of what is no delivery the subscription may be readable all the same. Where it is not, the body names no other one: it is
            // kept in quarantine.
            let of_no_delivery = match &view {
                Some(_) => None,
                None => View::subscription_id_in(&body),
            };
            let named = view
                .as_ref()
                .map_or(of_no_delivery.as_deref(), |view| view.subscription_id.as_deref());
            if named.is_some_and(|named| !bound_to.contains(&named)) {
                return Err(Refusal::WrongSubscription);
            }
        }
        let age = now.as_second().saturating_sub(claim.signed_at);
        if age > self.tolerance.as_secs() {
            return Err(Refusal::Stale);
        }
        if age.saturating_neg() > self.skew.as_secs() {
            return Err(Refusal::Future);
        }
        Ok(Verified {
            headers: claim.headers,
            body,
            view,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verifier(keys: &[(Option<&str>, &str)]) -> Verifier {
        let key = |(id, hex): &(Option<&str>, &str)| Key::from_hex(id.map(Into::into), hex).unwrap();
        Verifier {
            keys: keys.iter().map(key).collect(),
            tolerance: SignedDuration::from_secs(300),
            skew: SignedDuration::from_secs(300),
            ..Verifier::default()
        }
    }

    const ONE: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";
    const TWO: &str = "f2ca1bb6c7e907d06dafe4687e579fce76b37e4e93b7605022da52e6ccc26fd2";

    #[test]
    fn whose_key_signed_what_is_stored_is_told_and_whether_it_still_counts() {
        let key = |id: Option<&str>, hex| Key::from_hex(id.map(Into::into), hex).unwrap();
        let verifier = Verifier {
            kept: vec![key(Some("whsub_new"), ONE)],
            retired: vec![key(Some("whsub_old"), TWO)],
            ..Verifier::default()
        };
        let by = |hex, body: &[u8]| {
            let headers = key(None, hex).sign(Timestamp::UNIX_EPOCH, b"body");
            let signed = verifier.signed_by(&headers, body);
            signed.map(|(key, is_retired)| (key.subscription_id.clone().unwrap(), is_retired))
        };
        assert_eq!(by(ONE, b"body"), Some(("whsub_new".to_owned(), false)));
        assert_eq!(by(TWO, b"body"), Some(("whsub_old".to_owned(), true)));
        assert_eq!(by(ONE, b"another"), None);
        assert_eq!(by(&"ab".repeat(32), b"body"), None);
    }

    #[test]
    fn every_vector_is_accepted_or_refused_for_its_reason() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/close/signature-vectors.json")).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let keys: Vec<(Option<&str>, &str)> = case["keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| (None, key.as_str().unwrap()))
                .collect();
            let header = |name: &str| -> Vec<&[u8]> {
                let headers = case["headers"].as_object().unwrap();
                headers
                    .iter()
                    .filter(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.as_str().unwrap().as_bytes())
                    .collect()
            };
            let now = Timestamp::from_second(case["now"].as_i64().unwrap()).unwrap();
            let body = Bytes::from(case["body"].as_str().unwrap().to_owned());
            let verified = Claim::read(header(TIMESTAMP_HEADER), header(HASH_HEADER))
                .and_then(|claim| verifier(&keys).verify(Unverified { claim, body }, now));
            match verified {
                Ok(_) => assert!(case["accept"].as_bool().unwrap(), "{}", case["name"]),
                Err(refusal) => assert_eq!(
                    case["why"].as_str(),
                    Some(refusal.to_string().as_str()),
                    "{}",
                    case["name"]
                ),
            }
        }
    }

    #[test]
    fn a_bound_key_counts_for_its_subscription_only() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let check = |keys: &[(Option<&str>, &str)], body: &'static str| {
            let headers = Key::from_hex(None, ONE).unwrap().sign(now, body.as_bytes());
            let claim = Claim::read([headers.timestamp.as_bytes()], [headers.hash.as_bytes()]).unwrap();
            verifier(keys)
                .verify(
                    Unverified {
                        claim,
                        body: body.into(),
                    },
                    now,
                )
                .map(drop)
        };
        let named = r#"{"event":{"id":"ev_1"},"subscription_id":"whsub_1"}"#;
        assert_eq!(check(&[(Some("whsub_1"), ONE)], named), Ok(()));
        assert_eq!(check(&[(Some("whsub_2"), ONE)], named), Err(Refusal::WrongSubscription));
        assert_eq!(check(&[(Some("whsub_2"), ONE), (None, ONE)], named), Ok(()));
        assert_eq!(
            check(&[(Some("whsub_1"), TWO), (Some("whsub_2"), ONE)], named),
            Err(Refusal::WrongSubscription)
        );
        assert_eq!(
            check(&[(Some("whsub_2"), ONE)], r#"{"event":{"id":"ev_1"}}"#),
            Ok(()),
            "names none"
        );
        for none in [
            "not json",
            "[]",
            "{\"subscription_id\":7}",
            "{\"subscription_id\":null,\"event\":{}}",
        ] {
            assert_eq!(
                check(&[(Some("whsub_2"), ONE)], none),
                Ok(()),
                "goes to quarantine: {none}"
            );
        }
        // No delivery, and whose it is can be read.
        let no_id = r#"{"subscription_id":"whsub_1","event":{}}"#;
        assert_eq!(check(&[(Some("whsub_1"), ONE)], no_id), Ok(()), "goes to quarantine");
        assert_eq!(check(&[(Some("whsub_2"), ONE)], no_id), Err(Refusal::WrongSubscription));
        assert_eq!(check(&[(Some("whsub_2"), ONE), (None, ONE)], no_id), Ok(()));
        assert_eq!(check(&[], named), Err(Refusal::BadSignature));
    }

    #[test]
    fn a_retired_key_proves_what_is_stored_and_accepts_nothing_new() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut verifier = verifier(&[]);
        let key = || Key::from_hex(Some("whsub_1".into()), ONE).unwrap();
        let body = Bytes::from(r#"{"event":{"id":"ev_1"},"subscription_id":"whsub_1"}"#);
        let headers = key().sign(now, &body);
        let check = |verifier: &Verifier| {
            let claim = Claim::read([headers.timestamp.as_bytes()], [headers.hash.as_bytes()]).unwrap();
            let body = body.clone();
            (
                verifier
                    .verify(
                        Unverified {
                            claim,
                            body: body.clone(),
                        },
                        now,
                    )
                    .map(drop),
                verifier.signed(&headers, &body),
            )
        };
        assert_eq!(check(&verifier), (Err(Refusal::BadSignature), false));
        verifier.retired.push(key());
        assert_eq!(check(&verifier), (Err(Refusal::BadSignature), true));
        verifier.kept.push(key());
        assert_eq!(check(&verifier), (Ok(()), true));
    }

    #[test]
    fn a_repeated_header_is_malformed() {
        let hash = "a".repeat(64);
        let read = |times: &[&str], hashes: &[&str]| {
            Claim::read(times.iter().map(|t| t.as_bytes()), hashes.iter().map(|h| h.as_bytes())).map(drop)
        };
        assert_eq!(read(&["1"], &[&hash]), Ok(()));
        assert_eq!(read(&["1", "1"], &[&hash]), Err(Refusal::Malformed));
        assert_eq!(read(&["1"], &[&hash, &hash]), Err(Refusal::Malformed));
        assert_eq!(read(&[], &[&hash]), Err(Refusal::Missing));
        // However it is padded, a header is short.
        let padded = |zeros: usize| format!("{}1", "0".repeat(zeros));
        assert_eq!(read(&[&padded(127)], &[&hash]), Ok(()));
        assert_eq!(read(&[&padded(128)], &[&hash]), Err(Refusal::Malformed));
        assert_eq!(read(&[&padded(200)], &[&hash]), Err(Refusal::Malformed));
    }

    #[test]
    fn a_claim_says_when_it_was_signed() {
        let hash = "a".repeat(64);
        let claim = Claim::read([&b"1700000000"[..]], [hash.as_bytes()]).unwrap();
        assert_eq!(claim.signed_at(), 1_700_000_000);
    }

    #[test]
    fn a_key_is_long_enough_and_never_shown() {
        let key = |len: usize| Key::from_hex(Some("whsub_1".into()), &"ab".repeat(len));
        assert!(key(15).is_err() && key(16).is_ok() && key(17).is_ok() && key(0).is_err());
        let shown = format!("{:?}", key(16).unwrap());
        assert!(shown.contains("whsub_1") && !shown.contains("abab"), "{shown}");
    }

    #[test]
    fn what_is_stored_is_signed_by_its_own_key_and_as_it_is() {
        let (one, two) = (Key::from_hex(None, ONE).unwrap(), Key::from_hex(None, TWO).unwrap());
        let headers = one.sign(Timestamp::from_second(1_700_000_000).unwrap(), b"body");
        assert!(one.signed(&headers, b"body"));
        assert!(!two.signed(&headers, b"body") && !one.signed(&headers, b"bodY"));
        let with = |timestamp: &str, hash: &str| SignatureHeaders {
            timestamp: timestamp.into(),
            hash: hash.into(),
        };
        assert!(!one.signed(&with("1700000001", &headers.hash), b"body"));
        assert!(!one.signed(&with(&headers.timestamp, "not hex"), b"body"));
        assert!(!one.signed(&with(&headers.timestamp, &headers.hash[2..]), b"body"));
    }

    proptest! {
        #[test]
        fn only_what_was_signed_is_verified(body in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let now = Timestamp::from_second(1_700_000_000).unwrap();
            let headers = Key::from_hex(None, TWO).unwrap().sign(now, &body);
            let verify = |body: Vec<u8>| {
                let claim = Claim::read([headers.timestamp.as_bytes()], [headers.hash.as_bytes()]).unwrap();
                verifier(&[(None, ONE), (None, TWO)]).verify(Unverified { claim, body: body.into() }, now).map(drop)
            };
            prop_assert_eq!(verify(body.clone()), Ok(()));
            if !body.is_empty() {
                let mut altered = body.clone();
                let at = at.index(altered.len());
                altered[at] ^= flip;
                prop_assert_eq!(verify(altered), Err(Refusal::BadSignature));
            }
        }

        #[test]
        fn headers_never_panic(timestamp in prop::collection::vec(any::<u8>(), 0..40), hash in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Claim::read([timestamp.as_slice()], [hash.as_slice()]);
        }
    }
}
