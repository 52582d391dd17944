//! Whatever the headers and the body are: no panic, and nothing is authentic but what was signed, within the times allowed.
#![no_main]

use closehook::ingress::verify::{Claim, Key, Unverified, Verifier};
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";
const SIGNED_AT: i64 = 1_700_000_000;

// The first byte says what is tampered with, the next two when it is looked at, a zero ends each header.
fuzz_target!(|data: &[u8]| {
    let [mode, high, low, rest @ ..] = data else { return };
    let key = Key::from_hex(None, KEY).unwrap();
    let bound = Key::from_hex(Some("whsub_1".into()), KEY).unwrap();
    let live = vec![if mode & 4 == 0 { key.clone() } else { bound }];
    let (keys, kept) = if mode & 8 == 0 {
        (live, Vec::new())
    } else {
        (Vec::new(), live)
    };
    let verifier = Verifier {
        keys,
        kept,
        tolerance: SignedDuration::from_secs(300),
        skew: SignedDuration::from_secs(60),
        ..Verifier::default()
    };
    let off = i64::from(i16::from_be_bytes([*high, *low]));
    let now = Timestamp::from_second(SIGNED_AT + off).unwrap();
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    let (timestamp, hash) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    let signed = key.sign(Timestamp::from_second(SIGNED_AT).unwrap(), body);
    let timestamp = if mode & 1 == 0 {
        signed.timestamp.as_bytes()
    } else {
        timestamp
    };
    let hash = if mode & 2 == 0 { signed.hash.as_bytes() } else { hash };
    let Ok(claim) = Claim::read([timestamp], [hash]) else {
        assert!(mode & 3 != 0, "what was signed can be read");
        return;
    };
    let authentic = timestamp == signed.timestamp.as_bytes() && hash.eq_ignore_ascii_case(signed.hash.as_bytes());
    let in_time = (-60..=300).contains(&off);
    let body = bytes::Bytes::copy_from_slice(body);
    let verified = verifier.verify(
        Unverified {
            claim,
            body: body.clone(),
        },
        now,
    );
    match verified {
        Ok(verified) => {
            assert!(authentic && in_time);
            assert_eq!(verified.into_parts().1, body);
        }
        Err(_) => assert!(!authentic || !in_time || mode & 4 != 0),
    }
});
