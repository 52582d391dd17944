//! Keys of any text as subjects of a bucket, and back.
//!
//! Letters, digits, `-`, `_` and `/` stay as they are, so that a person who looks into the bucket sees what is what; every other byte is
//! `=` and two digits. A key is one token, and the empty one is `=` alone.

/// What begins every subject of a bucket.
fn head(bucket: &str) -> String {
    format!("$KV.{bucket}.")
}

/// Every subject of a bucket.
pub(super) fn all_of(bucket: &str) -> String {
    head(bucket) + ">"
}

/// Where a key's value is.
pub(super) fn subject(bucket: &str, key: &str) -> String {
    let mut subject = head(bucket);
    if key.is_empty() {
        subject.push('=');
    }
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_/".contains(&byte) {
            subject.push(char::from(byte));
        } else {
            subject.push('=');
            subject.push_str(&hex::encode_upper([byte]));
        }
    }
    subject
}

/// The key of a subject; `None` where it is none of ours.
pub(super) fn of_subject(bucket: &str, subject: &str) -> Option<String> {
    let token = subject.strip_prefix(&head(bucket))?;
    if token == "=" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'=' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_key_is_one_token_and_comes_back(key in ".{0,40}") {
            let subject = subject("b", &key);
            let token = subject.strip_prefix("$KV.b.").unwrap();
            prop_assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/=".contains(&byte)));
            prop_assert_eq!(of_subject("b", &subject), Some(key));
        }
    }

    #[test]
    fn a_persons_eye_finds_a_sink_in_it() {
        assert_eq!(subject("b", "sink/crm-db"), "$KV.b.sink/crm-db");
        assert_eq!(subject("b", "sink/a.b"), "$KV.b.sink/a=2Eb");
        for strange in ["$KV.b.a=", "$KV.b.a=2", "$KV.b.=FF", "$KV.c.a", "other"] {
            assert_eq!(of_subject("b", strange), None, "{strange}");
        }
    }
}
