//! What dead letters have in common in why they were given up.

use crate::deliver::DeadLetter;

/// Stands in a group's reason for what single events differ in.
pub(super) const ANY: char = '…';

/// Words behind which a number says what is wrong, and not with which event.
const CODES: [&str; 12] = [
    "answered", "answers", "status", "code", "sqlstate", "state", "error", "http", "says", "said", "errno", "exit",
];

/// The group of a letter: its reason without what only this event has.
pub(super) fn group_of(letter: &DeadLetter) -> String {
    let own = [letter.id.as_str(), letter.lead_id.as_deref().unwrap_or_default()];
    let mut reason = letter.reason.clone();
    for id in own.into_iter().filter(|id| id.len() > 2) {
        reason = reason.replace(id, "…");
    }
    normalised(&reason)
}

/// A sentence without ids and numbers, but for those that are codes.
pub(super) fn normalised(reason: &str) -> String {
    let mut group = String::with_capacity(reason.len());
    let (mut before, mut rest) = (String::new(), reason);
    while let Some(first) = rest.chars().next() {
        let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
        if !is_of_word(first) {
            group.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        // What joins the parts of a time, a number, an address or an id belongs to it.
        let end = word_end(rest, is_of_word);
        let (word, behind) = rest.split_at(end);
        if is_of_one_event(word, &before) {
            if !group.ends_with(ANY) {
                group.push(ANY);
            }
        } else {
            group.push_str(word);
        }
        before = word.to_ascii_lowercase();
        rest = behind;
    }
    // An id of several parts is one.
    while group.contains("…-…") {
        group = group.replace("…-…", "…");
    }
    group
}

fn word_end(text: &str, is_of_word: impl Fn(char) -> bool) -> usize {
    let mut end = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_joined = matches!(c, '-' | '.' | ':' | '+' | ',')
            && text[..at].ends_with(|c: char| c.is_ascii_alphanumeric())
            && chars.peek().is_some_and(|(_, next)| next.is_ascii_digit());
        if !is_of_word(c) && !is_joined {
            break;
        }
        end = at + c.len_utf8();
    }
    end
}

/// Whether a word is an id or a number that another event would not have.
fn is_of_one_event(word: &str, before: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    if digits == 0 {
        // An id of Close's whose random part has no digit by chance is still long.
        return word
            .split_once('_')
            .is_some_and(|(_, random)| random.len() >= 20 && !random.contains('_'));
    }
    if CODES.contains(&before) && word.len() <= 6 && word.chars().all(|c| c.is_ascii_alphanumeric()) {
        return false;
    }
    // Names of things: utf8, http2, sha256, s3, 22P02 behind a bracket is none.
    let letters = word.chars().take_while(char::is_ascii_alphabetic).count();
    let is_name = letters > 0 && letters <= 6 && word.len() - letters <= 3 && word.len() == letters + digits;
    !is_name
}
