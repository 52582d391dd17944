//! What PostgreSQL's type `jsonb` can hold.

use std::borrow::Cow;

/// JSON that PostgreSQL's `jsonb` takes: U+0000 and halves of surrogate pairs become U+FFFD, a number beyond what `numeric` holds
/// becomes a string of its text. Borrowed where nothing had to change.
pub(in crate::sinks) fn fit_for_jsonb(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut cleaned = String::new();
    // Up to here `text` is in `cleaned`, if anything is.
    let mut copied = 0;
    let mut at = 0;
    let mut in_string = false;
    while at < bytes.len() {
        let (end, replacement) = match bytes[at] {
            b'"' => {
                in_string = !in_string;
                (at + 1, None)
            }
            b'\\' if in_string => {
                let (len, holds) = escape(&bytes[at..]);
                (at + len, (!holds).then(|| "\u{fffd}".to_owned()))
            }
            _ if in_string => {
                let len = memchr::memchr2(b'"', b'\\', &bytes[at..]).unwrap_or(bytes.len() - at);
                (at + len, None)
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let len = bytes[at..].iter().take_while(|byte| is_of_number(byte)).count();
                let number = &text[at..at + len];
                (at + len, (!is_numeric(number)).then(|| format!("\"{number}\"")))
            }
            _ => (at + 1, None),
        };
        if let Some(replacement) = replacement {
            cleaned.push_str(&text[copied..at]);
            cleaned.push_str(&replacement);
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    cleaned.push_str(&text[copied..]);
    Cow::Owned(cleaned)
}

/// How long the escape is that the text begins with (both of them, where two make one character), and whether `jsonb` holds it.
fn escape(text: &[u8]) -> (usize, bool) {
    let unit = |at: usize| {
        let hex = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    match unit(0) {
        None => (2.min(text.len()), true),
        Some(0xD800..=0xDBFF) if matches!(unit(6), Some(0xDC00..=0xDFFF)) => (12, true),
        Some(0 | 0xD800..=0xDFFF) => (6, false),
        Some(_) => (6, true),
    }
}

/// Whether `numeric` holds a JSON number: at most 131,072 digits before the point and 16,383 behind it (PostgreSQL, 8.1.2).
fn is_numeric(number: &str) -> bool {
    const BEFORE_MAX: i64 = 131_072;
    const BEHIND_MAX: i64 = 16_383;
    // A short one without an exponent always does.
    if number.len() <= BEHIND_MAX as usize && !number.contains(['e', 'E']) {
        return true;
    }
    let unsigned = number.strip_prefix('-').unwrap_or(number);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // More than an i32 of it is refused before anything is counted, even of zero.
    let Ok(exponent) = exponent.parse::<i32>().map(i64::from) else {
        return false;
    };
    if exponent.abs() >= i64::from(i32::MAX / 2) || fraction.len() as i64 - exponent > BEHIND_MAX {
        return false;
    }
    let leading = [whole, fraction].concat().bytes().position(|digit| digit != b'0');
    leading.is_none_or(|zeros| whole.len() as i64 - zeros as i64 + exponent <= BEFORE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jsonb_cannot_hold_is_replaced_and_all_else_stays() {
        for same in [
            r#"{"a":"x","b":[1,-2.50,3e10,1e131071,1e-16383],"c":null}"#,
            r#""\\u0000 \\\\ud800 \ud83d\ude80 \u00e9 \" 1e999999""#,
            r#"{"\ud83d\ude80":"\u0001"}"#,
        ] {
            assert!(matches!(fit_for_jsonb(same), Cow::Borrowed(_)), "{same}");
        }
        for (text, cleaned) in [
            (r#"{"a\u0000b":"\u0000"}"#, "{\"a\u{fffd}b\":\"\u{fffd}\"}"),
            (r#""\\\u0000""#, "\"\\\\\u{fffd}\""),
            (r#""\ud800 \udc00""#, "\"\u{fffd} \u{fffd}\""),
            (r#""\ud800\ud83d\ude80\ud800""#, "\"\u{fffd}\\ud83d\\ude80\u{fffd}\""),
            (r#""\uD800\u0041""#, "\"\u{fffd}\\u0041\""),
            ("[1e131072,-1e999999999999]", r#"["1e131072","-1e999999999999"]"#),
            ("[1e-16384,0e-20000,2]", r#"["1e-16384","0e-20000",2]"#),
        ] {
            assert_eq!(fit_for_jsonb(text), cleaned, "{text}");
        }
    }
}
