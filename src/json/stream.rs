//! JSON values out of a text in which they stand one behind the other: a line each, over many lines, or without anything between
//! them. What is no JSON is passed over up to the end of its line, and named with its line.

use std::io::{self, BufRead};

use super::validate;

/// More than this is not one value of ours any more.
const VALUE_MAX: usize = 128 << 20;

/// So many unclosed values are begun anew in the line behind their first; a text with more of them is no JSON.
const RESTARTS_MAX: usize = 100;

/// Something found in a stream, with the line on which it begins (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'s> {
    /// A valid value, as it stands there.
    Value {
        /// Its text, without white space around it.
        text: &'s str,
        /// Where.
        line: u64,
    },
    /// No JSON.
    Fault {
        /// Where.
        line: u64,
        /// What is wrong.
        why: String,
    },
}

/// Goes through a text; the first error of `each` ends it.
pub fn read<E: From<io::Error>>(
    mut source: impl BufRead,
    mut each: impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = Reader {
        pending: Vec::new(),
        first: 1,
        brackets: Brackets::default(),
        restarts: 0,
    };
    let mut number = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        if source.read_until(b'\n', &mut line)? == 0 {
            return reader.end(&mut each);
        }
        number += 1;
        reader.take(&line, number, &mut each)?;
    }
}

/// A value that takes several lines, as far as it has come.
struct Reader {
    pending: Vec<u8>,
    /// The line it begins on.
    first: u64,
    brackets: Brackets,
    restarts: usize,
}

impl Reader {
    fn take<E>(
        &mut self,
        line: &[u8],
        number: u64,
        each: &mut impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.pending.is_empty() {
            self.first = number;
        }
        self.pending.extend_from_slice(line);
        self.brackets.feed(line);
        // No string of JSON goes over the end of a line.
        let is_torn = self.brackets.is_in_string();
        if self.brackets.are_closed() || is_torn || self.pending.len() > VALUE_MAX {
            self.settle(is_torn, each)?;
        }
        Ok(())
    }

    /// What is pending is whole, or never will be.
    fn settle<E>(&mut self, is_torn: bool, each: &mut impl FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
        let pending = std::mem::take(&mut self.pending);
        self.brackets = Brackets::default();
        // A line that is torn within a string is the last one pending: the lines before it may have begun what it ends.
        let is_one_line = !pending[..pending.len().saturating_sub(1)].contains(&b'\n');
        if is_torn && !is_one_line {
            return self.restart(&pending, each);
        }
        split(&pending, self.first, each)
    }

    /// The value that begins on the first pending line has no end: its line is no JSON, and the ones behind it are looked at anew.
    fn restart<E>(&mut self, pending: &[u8], each: &mut impl FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
        let first = self.first;
        let mut lines = pending.split_inclusive(|byte| *byte == b'\n');
        let why = "it has no end".to_owned();
        lines.next();
        each(Found::Fault { line: first, why })?;
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            return Ok(());
        }
        for (number, line) in (first + 1..).zip(lines) {
            self.take(line, number, each)?;
        }
        Ok(())
    }

    fn end<E>(mut self, each: &mut impl FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
        while !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.brackets = Brackets::default();
            self.restart(&pending, each)?;
        }
        Ok(())
    }
}

/// Gives each of the values that stand one behind the other in some whole lines.
fn split<E>(text: &[u8], first: u64, each: &mut impl FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
    let mut line = first;
    let mut rest = text;
    loop {
        let white = rest.len() - rest.trim_ascii_start().len();
        line += newlines(&rest[..white]);
        rest = &rest[white..];
        if rest.is_empty() {
            return Ok(());
        }
        // Most often it is one.
        let (end, whole) = match validate(rest) {
            Ok(value) => (rest.len(), Ok(value)),
            Err(error) => {
                let end = super::value_end(rest, 0).max(1);
                (end, validate(&rest[..end]).map_err(|_| error))
            }
        };
        let end = match whole {
            Ok(value) => {
                let text = value.trim_ascii();
                each(Found::Value { text, line })?;
                end
            }
            Err(error) => {
                // Where one thing is no JSON, its whole line is none: half a line of a log is no event.
                each(Found::Fault { line, why: error.0 })?;
                let line_end = rest.iter().position(|byte| *byte == b'\n');
                line_end.map_or(rest.len(), |at| at + 1)
            }
        };
        line += newlines(&rest[..end]);
        rest = &rest[end..];
    }
}

fn newlines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Whether brackets are open in a text that comes in pieces: tells when a value that takes many lines may be whole, without
/// validating all of it again at each line.
#[derive(Debug, Clone, Copy, Default)]
struct Brackets {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Brackets {
    /// Takes the next piece.
    fn feed(&mut self, piece: &[u8]) {
        for &byte in piece {
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'"' => self.in_string = !self.in_string,
                b'\\' => self.escaped = self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// Whether a string is open, which in JSON no line end may be in.
    fn is_in_string(self) -> bool {
        self.in_string
    }

    /// Whether every bracket and string so far is closed.
    fn are_closed(self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(text: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        let done: io::Result<()> = read(text, |found| {
            all.push(match found {
                Found::Value { text, line } => format!("{line}: {text}"),
                Found::Fault { line, .. } => format!("{line}: no"),
            });
            Ok(())
        });
        done.unwrap();
        all
    }

    #[test]
    fn values_are_found_however_they_stand_behind_each_other() {
        for (text, wanted) in [
            ("{\"a\":1}\n{\"b\":2}\n", &["1: {\"a\":1}", "2: {\"b\":2}"][..]),
            (
                "{\"a\":1}{\"b\":2} [3]4",
                &["1: {\"a\":1}", "1: {\"b\":2}", "1: [3]", "1: 4"],
            ),
            (
                "{\n\"a\":\n1\n}{\"b\"\n:2}\n",
                &["1: {\n\"a\":\n1\n}", "4: {\"b\"\n:2}"],
            ),
            ("\n\n \"x\"\n", &["3: \"x\""]),
            ("", &[]),
        ] {
            assert_eq!(found(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_costs_its_line_and_no_other() {
        for (text, wanted) in [
            ("not json\n{\"a\":1}\n", &["1: no", "2: {\"a\":1}"][..]),
            ("{\"torn\":\"in a str\n{\"a\":1}\n", &["1: no", "2: {\"a\":1}"]),
            (
                "{\"torn\":[1,\n{\"a\":1}\n{\"b\":2}",
                &["1: no", "2: {\"a\":1}", "3: {\"b\":2}"],
            ),
            ("{\"a\":1}\n{\"open\":", &["1: {\"a\":1}", "2: no"]),
            ("{\"a\":}\n{\"b\":2}\n", &["1: no", "2: {\"b\":2}"]),
            ("}\n{\"b\":2}\n", &["1: no", "2: {\"b\":2}"]),
            ("[\n[\n[\n", &["1: no", "2: no", "3: no"]),
        ] {
            assert_eq!(found(text.as_bytes()), wanted, "{text}");
        }
        assert_eq!(found(b"{\"a\":\"\xff\"}\n{\"b\":2}\n"), ["1: no", "2: {\"b\":2}"]);
    }

    #[test]
    fn a_text_of_nothing_but_openings_ends() {
        let found = found("[\n".repeat(10_000).as_bytes());
        assert_eq!(found.len(), RESTARTS_MAX + 1);
    }

    proptest! {
        #[test]
        fn a_value_is_whole_when_its_brackets_are_closed(value in super::super::tests::values(), cut in any::<prop::sample::Index>()) {
            let text = serde_json::to_string_pretty(&serde_json::json!([value])).unwrap();
            let at = cut.index(text.len());
            let mut brackets = Brackets::default();
            brackets.feed(&text.as_bytes()[..at]);
            prop_assert_eq!(brackets.are_closed(), at == 0 || at == text.len());
            brackets.feed(&text.as_bytes()[at..]);
            prop_assert!(brackets.are_closed());
        }
    }
}
