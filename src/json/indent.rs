//! JSON text for people to read: indented, with every token as it was written.

use super::{compact, is_white, string_end};

/// Columns a level is indented by.
const STEP: usize = 2;

/// What is nested deeper is shown on one line: nobody could read it, and a line for each of a million brackets is no small text.
const DEPTH_MAX: usize = 256;

/// Valid JSON text with a line for each member and element. Numbers, strings and their order stay as they are written, also where a
/// key is repeated.
pub fn indented(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len() * 2);
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'"' => {
                at = string_end(bytes, start);
                out.push_str(text.get(start..at).unwrap_or_default());
            }
            b'{' | b'[' => {
                out.push(byte.into());
                let inside = bytes.iter().skip(at).position(|byte| !is_white(*byte));
                let next = inside.map(|inside| at + inside);
                match next.filter(|next| matches!(bytes.get(*next), Some(b'}' | b']'))) {
                    // Nothing is in it.
                    Some(end) => {
                        out.push(bytes[end].into());
                        at = end + 1;
                    }
                    None if depth == DEPTH_MAX => return compact(text),
                    None => {
                        depth += 1;
                        break_line(&mut out, depth);
                    }
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut out, depth);
                out.push(byte.into());
            }
            b',' => {
                out.push(',');
                break_line(&mut out, depth);
            }
            b':' => out.push_str(": "),
            white if is_white(white) => {}
            _ => {
                let is_over = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b':') || is_white(*byte);
                let len = bytes.iter().skip(at).position(is_over).unwrap_or(bytes.len() - at);
                at += len;
                out.push_str(text.get(start..at).unwrap_or_default());
            }
        }
    }
    out
}

fn break_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', depth * STEP));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::validate;
    use super::*;

    #[test]
    fn every_token_stays_as_it_was_written() {
        let text = r#"{"n":12345678901234567890123, "d" :0.10,"e":1E+2,"k":1,"k":2,"s":"\u00e9\/ {[,:]}","o":{ },"a":[ ],"l":[true,null,[-0.0]]}"#;
        let shown = r#"{
  "n": 12345678901234567890123,
  "d": 0.10,
  "e": 1E+2,
  "k": 1,
  "k": 2,
  "s": "\u00e9\/ {[,:]}",
  "o": {},
  "a": [],
  "l": [
    true,
    null,
    [
      -0.0
    ]
  ]
}"#;
        assert_eq!(indented(text), shown);
        for scalar in ["1.50", "\"a b\"", " null "] {
            assert_eq!(indented(scalar), scalar.trim());
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_one_line() {
        let deep = format!("{}1{}", "[ ".repeat(300), "]".repeat(300));
        assert_eq!(indented(&deep), compact(&deep));
        let shallow = format!("{}1{}", "[".repeat(256), "]".repeat(256));
        assert_eq!(indented(&shallow).lines().count(), 2 * 256 + 1);
    }

    proptest! {
        /// Whatever is valid loses nothing and gains nothing but white space.
        #[test]
        fn it_is_the_same_text_but_for_white_space(
            keys in prop::collection::vec("[a-z\\\\\"{},\\[\\]: ]{0,6}", 0..6),
            numbers in prop::collection::vec("-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,5})?", 0..6),
        ) {
            let members = keys.iter().zip(numbers.iter().cycle());
            let members: Vec<String> = members.map(|(key, number)| format!("{}:{number}", serde_json::json!(key))).collect();
            let text = format!("[{{{}}},[{}],[]]", members.join(" , "), numbers.join(","));
            prop_assert!(validate(text.as_bytes()).is_ok());
            let shown = indented(&text);
            prop_assert!(validate(shown.as_bytes()).is_ok());
            prop_assert_eq!(compact(&shown), compact(&text));
            prop_assert_eq!(indented(&shown), shown);
        }
    }
}
