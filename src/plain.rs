//! What came from somebody else, made plain for people to read: in a terminal, in a line of a log, in an error.
//!
//! A text can hold what moves a terminal's cursor, sets its title, ends a line that goes on, or turns the direction in which the
//! rest is shown. Such characters are shown as `\u001b` and the like, as JSON writes them, so that a line of JSON stays one
//! that says the same. This is the one place that knows which they are.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character must not reach a terminal as it is: controls, line ends of other worlds, what turns the direction of text,
/// and what cannot be seen at all.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Directions: marks, embeddings, overrides, isolates.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Invisible: zero widths, joiners, fillers, annotations, tags, language and variation marks.
            | '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}'
            | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text as one line.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hostile)
}

/// The same for a text of our own making that may have several lines: its line ends stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_hostile(c))
}

/// The text in lines of so many characters at the most. Its own line ends stay; a line that begins with two spaces is to be copied,
/// and a word that is too long is one: these are not broken.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        if paragraph.starts_with("  ") {
            lines.push(paragraph.to_owned());
            continue;
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let len = line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && len > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Nearly always there is nothing to do.
    let Some(first) = text.find(&is_bad) else {
        return Cow::Borrowed(text);
    };
    let mut plain = text[..first].to_owned();
    for c in text[first..].chars() {
        if is_bad(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string does not fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_that_moves_a_terminal_or_turns_text_round_is_left() {
        assert_eq!(line("Zoë, 東京 and \u{1f600}"), "Zoë, 東京 and \u{1f600}");
        assert_eq!(line("\u{1b}[2J\u{7}\u{9b}1m"), "\\u001b[2J\\u0007\\u009b1m");
        assert_eq!(line("a\nb\r\tc\u{7f}\0"), "a\\u000ab\\u000d\\u0009c\\u007f\\u0000");
        assert_eq!(
            line("\u{202e}gnp.exe\u{2066}\u{200f}\u{2028}"),
            "\\u202egnp.exe\\u2066\\u200f\\u2028"
        );
        assert_eq!(line("\u{e0041}"), "\\udb40\\udc41");
        assert_eq!(lines("a\nb\r"), "a\nb\\u000d");
    }

    #[test]
    fn a_wrapped_text_keeps_its_paragraphs_and_what_is_to_be_copied() {
        let text = "one two three\nfour-and-more\n  as it is, with  spaces\n\nfive";
        assert_eq!(
            wrapped(text, 9),
            [
                "one two",
                "three",
                "four-and-more",
                "  as it is, with  spaces",
                "",
                "five"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_line_of_json_says_the_same(text in any::<String>(), c in prop::sample::select(vec!['\u{9b}', '\u{202e}', '\u{7f}', '\u{e0041}', '\u{feff}', '\n'])) {
            let value = serde_json::json!({ format!("{text}{c}"): format!("{c}{text}") });
            let shown = line(&value.to_string()).into_owned();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            prop_assert!(!shown.chars().any(is_hostile));
        }
    }
}
