//! What each message says of its event beside the event itself: the `closehook-*` headers or attributes.
//!
//! Whatever an event's id holds, what is said of it can be sent as a header, and two ids never look alike: all but visible ASCII is
//! written with percent signs (`é` is `%C3%A9`, `%` is `%25`), and of what is longer than 512 bytes the end is replaced by `~` and the
//! SHA-256 of all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::fmt::temporal::DateTimePrinter;
use sha2::{Digest, Sha256};

use crate::event::{Delivery, Event, View};

/// A header is no place for more of an id.
const LEN_MAX: usize = 512;

/// `~` and a SHA-256 in hex.
const DIGEST_LEN: usize = 65;

/// Headers of one message, or attributes: more than any receiver is known to take of them.
const HEADERS_MAX: usize = 256;

/// Bytes of their names and values together.
const HEADERS_LEN_MAX: usize = 64 << 10;

/// Why another sink gave it up.
pub(in crate::sinks) const DEAD_REASON: &str = "closehook-dead-reason";

/// Microseconds, whatever they are.
static RECEIVED_AT: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// The idempotency key as it is.
pub(in crate::sinks) fn key(event: &Event) -> String {
    event
        .view()
        .map_or_else(|| format!("seq_{}", event.seq), View::idempotency_key)
}

/// When it came.
pub(in crate::sinks) fn received_at(event: &Event) -> String {
    RECEIVED_AT.timestamp_to_string(&event.received_at)
}

/// What several events that travel as one are known by (decision 42): of their keys in order, each followed by a line feed.
pub(in crate::sinks) fn batch_id<'k>(keys: impl Iterator<Item = &'k str>) -> String {
    let mut digest = Sha256::new();
    for key in keys {
        digest.update(key);
        digest.update("\n");
    }
    format!("b_{}", &hex::encode(digest.finalize())[..32])
}

/// `closehook-seq`, `-type`, `-event-id`, `-key`, `-lead-id`, `-received-at` and `-source`, as they are; what an event does not have is
/// left out. Behind them, of what another sink gave up, `-dead-reason`, `-dead-sink` and `-dead-attempts`.
pub(in crate::sinks) fn attributes(delivery: &Delivery) -> Vec<(&'static str, String)> {
    let event = &delivery.event;
    let (view, dead) = (event.view(), delivery.dead());
    let known = [
        ("closehook-seq", Some(event.seq.to_string())),
        ("closehook-type", view.and_then(View::type_action)),
        ("closehook-event-id", view.map(|view| view.id.clone())),
        ("closehook-key", Some(key(event))),
        ("closehook-lead-id", view.and_then(|view| view.lead_id.clone())),
        ("closehook-received-at", Some(received_at(event))),
        ("closehook-source", Some(event.source.to_string())),
        (DEAD_REASON, dead.map(|dead| dead.reason.clone())),
        ("closehook-dead-sink", dead.map(|dead| dead.sink.clone())),
        ("closehook-dead-attempts", dead.map(|dead| dead.attempts.to_string())),
    ];
    let known = known.into_iter();
    known.filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The headers that a transform adds, which an event may have had a part in. An error is one sentence: they are more than can be sent,
/// and always will be.
pub(in crate::sinks) fn made(delivery: &Delivery) -> Result<&BTreeMap<String, String>, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let headers = delivery.rendered.as_deref().map_or(&NONE, |rendered| &rendered.headers);
    let len = headers.iter().map(|(name, value)| name.len() + value.len());
    fits("headers from its transform", headers.len(), len.sum())?;
    Ok(headers)
}

/// Whether a message can have so many of `what`, with so many bytes. An error is one sentence.
pub(in crate::sinks) fn fits(what: &str, count: usize, len: usize) -> Result<(), String> {
    if count > HEADERS_MAX {
        return Err(format!("there are {count} {what}: at most {HEADERS_MAX} are sent"));
    }
    if len > HEADERS_LEN_MAX {
        let most = HEADERS_LEN_MAX >> 10;
        return Err(format!(
            "the {what} have {len} bytes together: at most {most} KiB are sent"
        ));
    }
    Ok(())
}

/// A header's value as it can be sent: what a template or transform fills in may hold anything. Characters that control something have
/// percent signs then, all else stays as it is (RFC 9110, 5.5).
pub(in crate::sinks) fn value(text: &str) -> String {
    let is_illegal = |c: char| c.is_ascii_control() && c != '\t';
    let mut legal = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if is_illegal(c) {
            // Writing to a String can't fail.
            let _ = write!(legal, "%{:02X}", u32::from(c));
        } else {
            legal.push(c);
        }
    }
    legal
}

/// The text as a header takes it.
pub(in crate::sinks) fn legal(text: String) -> String {
    // Nearly all are so already.
    if text.len() <= LEN_MAX && text.bytes().all(is_legal) {
        return text;
    }
    let mut legal = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_legal(byte) {
            legal.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(legal, "%{byte:02X}");
        }
    }
    if legal.len() <= LEN_MAX {
        return legal;
    }
    let mut end = LEN_MAX - DIGEST_LEN;
    // What a percent sign begins is not cut in two.
    if let Some(percent) = legal[end - 2..end].find('%') {
        end = end - 2 + percent;
    }
    format!("{}~{}", &legal[..end], hex::encode(Sha256::digest(text)))
}

fn is_legal(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_header_can_be_sent_and_no_two_ids_look_alike() {
        for (text, said) in [
            ("ev_1:2024-02-15T12:48:23.395000", "ev_1:2024-02-15T12:48:23.395000"),
            ("é\r\n\0 %", "%C3%A9%0D%0A%00%20%25"),
            ("", ""),
        ] {
            assert_eq!(legal(text.to_owned()), said);
        }
        let long = |last: &str| legal(format!("{}{last}", "é".repeat(5000)));
        for pad in 0..3 {
            let said = legal(format!("{}{}", "a".repeat(pad), "é".repeat(5000)));
            let (cut, digest) = said.split_once('~').unwrap();
            assert!(said.len() <= LEN_MAX && digest.len() == 64, "{said}");
            assert!(cut.as_bytes()[cut.len() - 3] == b'%', "a whole one: {cut}");
        }
        assert_ne!(long("a"), long("b"));
    }

    #[test]
    fn a_batch_is_known_by_its_keys_in_order() {
        let id = |keys: &[&str]| batch_id(keys.iter().copied());
        // printf 'a:1\nb:2\n' | sha256sum
        assert_eq!(id(&["a:1", "b:2"]), "b_6408fdc5c36df5df57957e7b230e4b48");
        assert_ne!(id(&["b:2", "a:1"]), id(&["a:1", "b:2"]));
        assert_ne!(id(&["a", "b"]), id(&["ab"]));
    }
}
