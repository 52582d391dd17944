//! What a receiver or a program said of an event, as it is kept for people.

use crate::plain;

/// So much is kept, of its bytes.
pub(in crate::sinks) const LEN_MAX: usize = 2 << 10;

/// Shorter ones would be found where they are not.
const SECRET_LEN_MIN: usize = 6;

/// The text, without what could move a terminal, and without the sender's own secrets, which some send back. `None` where nothing was
/// said.
pub(in crate::sinks) fn cleaned(bytes: &[u8], secrets: &[String]) -> Option<String> {
    let bytes = &bytes[..bytes.len().min(LEN_MAX)];
    // A character that the end cuts apart is left out.
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    };
    let mut text = String::from_utf8_lossy(whole).replace("\r\n", "\n").replace('\t', " ");
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_LEN_MIN) {
        text = text.replace(secret.as_str(), "(secret)");
    }
    let text = plain::lines(text.trim());
    // Shown escaped, hostile bytes need more room than they had.
    let end = text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= LEN_MAX)
        .last()?;
    Some(text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_short_plain_and_holds_no_secret() {
        let said = |text: &str| cleaned(text.as_bytes(), &["hunter22".to_owned(), "x".to_owned()]);
        assert_eq!(said(""), None);
        assert_eq!(said(" \r\n"), None);
        assert_eq!(said("no\r\n\tsuch field\n").unwrap(), "no\n such field");
        assert_eq!(said("\u{1b}[2Ja\u{202e}b\u{9b}").unwrap(), "\\u001b[2Ja\\u202eb\\u009b");
        assert_eq!(said("you sent hunter22, x").unwrap(), "you sent (secret), x");
        assert_eq!(said(&"é".repeat(3000)).unwrap().len(), LEN_MAX);
        assert_eq!(said(&format!("a{}", "é".repeat(3000))).unwrap().len(), LEN_MAX - 1);
        assert!(said(&"\u{1b}".repeat(3000)).unwrap().len() <= LEN_MAX);
        assert_eq!(cleaned(b"a\xff\xfeb", &[]).unwrap(), "a\u{fffd}\u{fffd}b");
    }
}
