//! What stands on the page, made harmless and readable: the one way by which a text gets into a template, and how times, counts and
//! lengths are written.

#![expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "templates hand everything on by reference"
)]

use std::fmt::{self, Write};

use askama::filters::{Escaper, Html};
use jiff::Timestamp;

use crate::event::{Kind, Source};
use crate::json;
use crate::net::percent;
use crate::plain;

/// How everything is written that a template is given. It is text and nothing else: markup stands there as it is written, and so does
/// what would turn the direction of the text, hide in it or move a cursor, as `\u202e` and the like. No template can forget it, since
/// `askama.toml` names it for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Inert;

impl Escaper for Inert {
    fn write_escaped_str<W: Write>(&self, out: W, text: &str) -> fmt::Result {
        Html.write_escaped_str(out, &plain::lines(text))
    }
}

/// A text that goes back to who typed it, in a field of a form: markup in it is text, and everything else stays as it is.
pub fn typed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Writing into a text can't fail.
    let _ = Html.write_escaped_str(&mut out, text);
    out
}

/// A sentence as markup, in which what stands between backticks is what one types.
pub fn coded(text: &str) -> String {
    let mut out = String::new();
    let parts: Vec<&str> = text.split('`').collect();
    for (index, part) in parts.iter().enumerate() {
        // One that is not closed is a backtick.
        let is_code = index % 2 == 1 && index + 1 < parts.len();
        let is_alone = index % 2 == 1 && !is_code;
        out.push_str(if is_code { "<code>" } else { "" });
        out.push_str(if is_alone { "`" } else { "" });
        // Writing into a text can't fail.
        let _ = Inert.write_escaped_str(&mut out, part);
        out.push_str(if is_code { "</code>" } else { "" });
    }
    out
}

/// Longest line of a body that is shown, in characters.
const LINE_MAX: usize = 2_000;

/// So much of a body is shown, in bytes.
const SHOWN_MAX: usize = 128 << 10;

/// A long text as it is shown, and how much of it that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// What is shown.
    pub text: String,
    /// Whether something is left out.
    pub is_cut: bool,
}

/// A text with its long lines cut, and cut as a whole where it is very long.
pub fn cut(text: &str) -> Cut {
    let mut shown = String::new();
    let mut is_cut = false;
    for line in text.split('\n') {
        if shown.len() > SHOWN_MAX {
            is_cut = true;
            break;
        }
        match line.char_indices().nth(LINE_MAX) {
            Some((end, _)) => {
                is_cut = true;
                shown.push_str(&line[..end]);
                let _ = write!(shown, "… ({} more bytes)", line.len() - end);
            }
            None => shown.push_str(line),
        }
        shown.push('\n');
    }
    shown.pop();
    Cut { text: shown, is_cut }
}

/// A text as a part of a URL.
pub fn in_url(text: &str) -> String {
    percent::encoded(text)
}

/// A body for people: with an indent, where it is JSON.
pub fn pretty(body: &str) -> String {
    match json::validate(body.as_bytes()) {
        Ok(text) => json::indented(text),
        Err(_) => body.to_owned(),
    }
}

/// The start of a text that has to fit in a cell.
pub fn brief(text: &str) -> String {
    const LEN_MAX: usize = 160;
    match text.char_indices().nth(LEN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `12:03:44`, with the date where that was another day; by UTC.
pub fn when(at: &Timestamp) -> String {
    seen_from(*at, Timestamp::now())
}

fn seen_from(at: Timestamp, now: Timestamp) -> String {
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    if day(at) == day(now) {
        at.strftime("%H:%M:%S").to_string()
    } else {
        dated(at)
    }
}

fn dated(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Two times of which the date is said of both or, where both are of today, of neither.
pub fn both(from: &Timestamp, to: &Timestamp) -> (String, String) {
    both_seen_from(*from, *to, Timestamp::now())
}

fn both_seen_from(from: Timestamp, to: Timestamp, now: Timestamp) -> (String, String) {
    let texts = (seen_from(from, now), seen_from(to, now));
    // One of today is shorter.
    if texts.0.len() == texts.1.len() {
        texts
    } else {
        (dated(from), dated(to))
    }
}

/// `2026-10-29 02:10:07 to 2026-11-28 02:11:07`
pub fn range(from: &Timestamp, to: &Timestamp) -> String {
    let (from, to) = both(from, to);
    format!("{from} to {to}")
}

/// A sentence of the daemon's with its times as they stand everywhere on the page.
pub fn with_times(text: &str) -> String {
    /// `2026-11-28T02:11:07Z`
    const LEN: usize = 20;
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(letter) = text[at..].chars().next() {
        let stamp = text
            .get(at..at + LEN)
            .filter(|part| letter.is_ascii_digit() && part.ends_with('Z'));
        if let Some(time) = stamp.and_then(|part| part.parse::<Timestamp>().ok()) {
            out.push_str(&when(&time));
            at += LEN;
        } else {
            out.push(letter);
            at += letter.len_utf8();
        }
    }
    out
}

/// A day, as an axis names it.
pub fn day(at: &Timestamp) -> String {
    at.strftime("%-d %b").to_string()
}

/// For machines.
pub fn stamp(at: &Timestamp) -> String {
    format!("{at:.3}")
}

/// How long ago, in the largest unit of which there are at least two.
pub fn ago(at: &Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(*at).as_secs();
    match seconds {
        0 => "just now".to_owned(),
        1.. => format!("{} ago", length(seconds.unsigned_abs())),
        _ => format!("in {}", length(seconds.unsigned_abs())),
    }
}

/// A length of time in whole seconds or the largest unit of which there are at least two.
pub fn length(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "days"), (3_600, "h"), (60, "min")];
    let (count, unit) = UNITS
        .into_iter()
        .find(|(unit, _)| seconds >= 2 * unit || (*unit == 60 && seconds >= 60))
        .map_or((seconds, "s"), |(unit, name)| (seconds / unit, name));
    format!("{count} {unit}")
}

/// The same for what is measured more finely.
#[expect(clippy::cast_sign_loss, reason = "a length of time is not negative")]
pub fn span(seconds: &f64) -> String {
    if *seconds > 0.0 && *seconds < 10.0 {
        format!("{seconds:.1} s")
    } else {
        length(*seconds as u64)
    }
}

/// `1,234,567`
pub fn count(number: &u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count with its noun.
pub fn counted(number: &u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if *number == 1 { "" } else { "s" })
}

/// How many there are, with their noun.
pub fn many<T>(list: &[T], noun: &str) -> String {
    counted(&(list.len() as u64), noun)
}

/// Bytes in the largest unit of which there is at least one.
pub fn size(bytes: &u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = *bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let unit = UNITS[unit];
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// What an event is, in a word.
pub fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Event => "event",
        Kind::Quarantined => "quarantined",
        Kind::Partial => "without its data",
        Kind::Erased => "erased",
    }
}

/// How it came, in a word.
pub fn source(source: &Source) -> &'static str {
    match source {
        Source::Webhook => "webhook",
        Source::Backfill => "backfill",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inert(text: &str) -> String {
        let mut out = String::new();
        Inert.write_escaped_str(&mut out, text).unwrap();
        out
    }

    #[test]
    fn what_is_put_into_a_page_is_text_and_does_nothing() {
        let markup = inert("<script>alert('x')</script> & \"y\"");
        for bad in ['<', '>', '\'', '"'] {
            assert!(!markup.contains(bad), "{markup}");
        }
        assert_eq!(
            inert("a\u{202e}b\u{2066}c\u{200b}d\u{1b}[1m\r"),
            r"a\u202eb\u2066c\u200bd\u001b[1m\u000d"
        );
        assert_eq!(inert("a\nb"), "a\nb");
    }

    #[test]
    fn what_one_types_is_told_apart_and_nothing_else_is_markup() {
        assert_eq!(
            coded("`a <b>` or `c`, <i>\u{202e}"),
            "<code>a &#60;b&#62;</code> or <code>c</code>, &#60;i&#62;\\u202e"
        );
        assert_eq!(coded("a ` b"), "a ` b");
        assert_eq!(coded(""), "");
    }

    #[test]
    fn what_somebody_typed_goes_back_as_it_was() {
        assert_eq!(typed("a\u{200d}b\t</textarea>").matches('<').count(), 0);
        assert!(typed("a\u{200d}b\tc").contains("a\u{200d}b\tc"));
    }

    #[test]
    fn long_lines_and_long_texts_are_cut_and_say_so() {
        let whole = "a\nb\n";
        assert_eq!(
            cut(whole),
            Cut {
                text: whole.into(),
                is_cut: false
            }
        );
        let line = "ä".repeat(1 << 20);
        let shown = cut(&line);
        assert!(shown.is_cut && shown.text.chars().count() < LINE_MAX + 40);
        let lines = "0123456789\n".repeat(100_000);
        let shown = cut(&lines);
        assert!(shown.is_cut && shown.text.len() < SHOWN_MAX + 100);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(&1_234_567), "1,234,567");
        assert_eq!(count(&999), "999");
        assert_eq!(counted(&1, "event"), "1 event");
        assert_eq!(counted(&1000, "event"), "1,000 events");
        assert_eq!(
            (size(&999), size(&1_500), size(&250_000_000)),
            ("999 B".into(), "1.5 KB".into(), "250 MB".into())
        );
        assert_eq!(
            (length(59), length(61), length(7_300)),
            ("59 s".into(), "1 min".into(), "2 h".into())
        );
        assert_eq!(span(&0.25), "0.2 s");
    }

    #[test]
    fn a_time_of_another_day_has_its_date() {
        let now: Timestamp = "2024-02-15T12:06:44.9Z".parse().unwrap();
        let told = |text: &str| seen_from(text.parse().unwrap(), now);
        assert_eq!(told("2024-02-15T12:03:44.395Z"), "12:03:44");
        assert_eq!(told("2024-02-14T12:00:00Z"), "2024-02-14 12:00:00");
        let range = |from: &str, to: &str| both_seen_from(from.parse().unwrap(), to.parse().unwrap(), now);
        let text = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(
            range("2024-02-15T12:03:44Z", "2024-02-15T12:04:00Z"),
            text("12:03:44", "12:04:00")
        );
        assert_eq!(
            range("2024-01-15T12:03:44Z", "2024-02-15T12:04:00Z"),
            text("2024-01-15 12:03:44", "2024-02-15 12:04:00")
        );
        assert_eq!(
            with_times("ä since 2024-02-14T12:00:00Z (at 2024-02-14T12:00:01Z), 7 x"),
            "ä since 2024-02-14 12:00:00 (at 2024-02-14 12:00:01), 7 x"
        );
    }
}
