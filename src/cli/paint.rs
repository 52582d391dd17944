//! Colour, where it is looked at by a person: on a terminal, and not where `NO_COLOR` is set (<https://no-color.org>). It says nothing
//! that the words do not say.

use std::io::{self, IsTerminal, Write};

use super::{Outcome, unwritten};
use crate::plain;

/// What a line is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Bad,
    Attention,
    Aside,
}

impl Tone {
    /// Select Graphic Rendition (ECMA-48), without what begins and ends it.
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Good => Some("1;32"),
            Tone::Bad => Some("1;31"),
            Tone::Attention => Some("33"),
            Tone::Aside => Some("2"),
        }
    }
}

/// Prints lines in their tones. What somebody else wrote into them moves no terminal.
pub(super) fn print(lines: &[(Tone, String)]) -> Outcome {
    let stdout = io::stdout();
    let is_coloured = is_wanted(stdout.is_terminal(), |name| {
        std::env::var_os(name).is_some_and(|value| !value.is_empty())
    });
    let mut out = stdout.lock();
    let mut lines = lines.iter();
    let written = lines.try_for_each(|(tone, line)| writeln!(out, "{}", painted(*tone, line, is_coloured)));
    let written = written.and_then(|()| out.flush());
    written.map_err(|error| unwritten(&error))
}

fn is_wanted(is_terminal: bool, is_set: impl Fn(&str) -> bool) -> bool {
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn painted(tone: Tone, line: &str, is_coloured: bool) -> String {
    let line = plain::lines(line);
    match tone.code().filter(|_| is_coloured) {
        Some(code) => format!("\u{1b}[{code}m{line}\u{1b}[0m"),
        None => line.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it_and_for_our_own_words_only() {
        assert!(!is_wanted(false, |_| false));
        assert!(!is_wanted(true, |name| name == "NO_COLOR"));
        assert_eq!(
            painted(Tone::Bad, "a\u{1b}[0m", true),
            "\u{1b}[1;31ma\\u001b[0m\u{1b}[0m"
        );
        assert_eq!(painted(Tone::Bad, "a\u{1b}[0m", false), "a\\u001b[0m");
        assert_eq!(painted(Tone::Plain, "a", true), "a");
    }
}
