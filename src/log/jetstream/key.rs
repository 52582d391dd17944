//! By what an event is known, and where that puts it.
//!
//! The server knows one message a subject, so the subject is the key: `STREAM.ev.ID.REVISION`, both hashed. All revisions of an event are
//! found by `STREAM.ev.ID.*` without an index. Nothing else of the event is in the subject: whoever repeats one may spell the rest of
//! it otherwise, and it must meet the first all the same. The key itself stands in a header and is compared: a hash alone never says that
//! an event is known.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::event::{EventKey, Updated};
use crate::log::known_key::{KeyPart, KnownKey, KnownUpdated};
use crate::net::percent::decoded;

/// Longer parts of a key are written as their SHA-256: an id is some 25 bytes, a hostile sender's may be megabytes.
const PART_LEN_MAX: usize = 512;

/// Bytes of the hash of an id in a subject.
const ID_HASH_LEN: usize = 16;

/// Bytes of the hash of a revision in a subject: among those of one id.
const REVISION_HASH_LEN: usize = 8;

/// Where an id would be, of what can't be read.
const QUARANTINED: &str = "quarantined";

/// The key of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// What all revisions share, as it is written.
    id: String,
    /// Which of them.
    revision: String,
}

impl Key {
    /// Of an event that can be read.
    pub fn of_event(key: &EventKey) -> Key {
        Key::of_revision(key, "")
    }

    /// Of an event whose data was withheld: one of its own, so that the full event is no duplicate of it.
    pub fn of_partial(key: &EventKey) -> Key {
        Key::of_revision(key, "partial-")
    }

    fn of_revision(key: &EventKey, prefix: &str) -> Key {
        let revision = match &key.updated {
            Updated::Instant(nanoseconds) => format!("{prefix}at:{nanoseconds}"),
            Updated::Text(text) => format!("{prefix}text:{}", written(text)),
            Updated::Missing => format!("{prefix}none"),
        };
        Key {
            id: format!("id:{}", written(&key.id)),
            revision,
        }
    }

    /// Of a body that can't be read.
    pub fn of_quarantined(body: &[u8]) -> Key {
        Key {
            id: QUARANTINED.into(),
            revision: format!("body:{}", hex::encode(Sha256::digest(body))),
        }
    }

    /// Of what another log knows.
    pub fn of_known(key: &KnownKey) -> Key {
        let part = |part: &KeyPart| match part {
            KeyPart::Text(text) => written(text),
            KeyPart::Digest(digest) => format!("sha256:{}", hex::encode(digest)),
        };
        match key {
            KnownKey::Quarantined(digest) => Key {
                id: QUARANTINED.into(),
                revision: format!("body:{}", hex::encode(digest)),
            },
            KnownKey::Revision { id, updated, partial } => {
                let prefix = if *partial { "partial-" } else { "" };
                let revision = match updated {
                    KnownUpdated::Instant(nanoseconds) => format!("{prefix}at:{nanoseconds}"),
                    KnownUpdated::Text(text) => format!("{prefix}text:{}", part(text)),
                    KnownUpdated::Missing => format!("{prefix}none"),
                };
                Key {
                    id: format!("id:{}", part(id)),
                    revision,
                }
            }
        }
    }

    /// What a key in a header says; `None` where it is none of ours.
    pub fn read(text: &str) -> Option<KnownKey> {
        let (id, revision) = text.split_once(' ')?;
        let digest = |text: &str| <[u8; 32]>::try_from(hex::decode(text).ok()?).ok();
        if id == QUARANTINED {
            return Some(KnownKey::Quarantined(digest(revision.strip_prefix("body:")?)?));
        }
        let part = |text: &str| match text.strip_prefix("sha256:").and_then(digest) {
            Some(digest) => KeyPart::Digest(digest),
            None => KeyPart::Text(decoded(text)),
        };
        let (partial, revision) = match revision.strip_prefix("partial-") {
            Some(revision) => (true, revision),
            None => (false, revision),
        };
        let updated = match revision.split_once(':') {
            None if revision == "none" => KnownUpdated::Missing,
            Some(("at", nanoseconds)) => KnownUpdated::Instant(nanoseconds.parse().ok()?),
            Some(("text", text)) => KnownUpdated::Text(part(text)),
            _ => return None,
        };
        Some(KnownKey::Revision {
            id: part(id.strip_prefix("id:")?),
            updated,
            partial,
        })
    }

    /// As it stands in a header.
    pub fn text(&self) -> String {
        format!("{} {}", self.id, self.revision)
    }

    /// Whether the key in a header is of the same event, whichever revision.
    pub fn shares_id(&self, text: &str) -> bool {
        text.split_once(' ').is_some_and(|(id, _)| id == self.id)
    }

    /// Where it is. `salt` is 0, or counts the keys before it that are others with the same subject.
    pub fn subject(&self, stream: &str, salt: u32) -> String {
        let salted = if salt == 0 {
            self.revision.clone()
        } else {
            format!("{} {salt}", self.revision)
        };
        format!("{}.{}", self.id_subject(stream), hash(&salted, REVISION_HASH_LEN))
    }

    /// Where all revisions are.
    pub fn subjects(&self, stream: &str) -> String {
        format!("{}.*", self.id_subject(stream))
    }

    fn id_subject(&self, stream: &str) -> String {
        format!("{stream}.ev.{}", hash(&self.id, ID_HASH_LEN))
    }
}

fn hash(text: &str, len: usize) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..len])
}

/// A part of a key as it can stand in a header: visible ASCII without spaces; other bytes are `%` and two digits.
fn written(text: &str) -> String {
    if text.len() > PART_LEN_MAX {
        return format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes())));
    }
    escaped(text)
}

/// Any text as visible ASCII without spaces.
pub(super) fn escaped(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            written.push(char::from(byte));
        } else {
            let _ = write!(written, "%{byte:02X}");
        }
    }
    written
}

/// What every event is under.
pub(super) fn events(stream: &str) -> String {
    format!("{stream}.ev.>")
}

/// What stands where damage has taken events, from a Seq on; it is read with the events.
pub(super) fn lost(stream: &str, from: u64) -> String {
    format!("{stream}.ev.lost.{from}")
}

/// What says of every erased Seq that it is.
pub(super) fn erasures(stream: &str) -> String {
    format!("{stream}.er.>")
}

/// Places that hold nothing, while a log is copied; and all of them.
pub(super) fn filler(stream: &str, place: u64) -> String {
    format!("{stream}.er.skipped.copy.{place}")
}

/// See [`filler`].
pub(super) fn fillers(stream: &str) -> String {
    format!("{stream}.er.skipped.>")
}

/// What says of a Seq that it is erased.
pub(super) fn erasure(stream: &str, seq: u64) -> String {
    format!("{stream}.er.{seq}")
}

/// The stream of pieces of bodies that are too long for one message.
pub(super) fn parts_stream(stream: &str) -> String {
    format!("{stream}_parts")
}

/// Where a piece is.
pub(super) fn part(stream: &str, upload: &str, number: usize) -> String {
    format!("{stream}_parts.{upload}.{number}")
}

/// The stream of records of topics: dead letters.
pub(super) fn dead_stream(stream: &str) -> String {
    format!("{stream}_dead")
}

/// What every record of a topic is under. Letters, digits, `-` and `_` of its name stay as they are; every other byte is `=` and two digits.
pub(super) fn topic(dead_stream: &str, topic: &str) -> String {
    let mut subject = format!("{dead_stream}.");
    for byte in topic.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) {
            subject.push(char::from(byte));
        } else {
            let _ = write!(subject, "={byte:02X}");
        }
    }
    subject
}

/// The topic that a subject belongs to; `None` where it is none of ours.
pub(super) fn topic_of(dead_stream: &str, subject: &str) -> Option<String> {
    let rest = subject.strip_prefix(dead_stream)?.strip_prefix('.')?;
    let (token, _) = rest.split_once('.')?;
    let escaped = token.replace('%', "%25").replace('=', "%");
    Some(crate::net::percent::decoded(&escaped))
}

/// Where nodes say how far the stream goes; nothing keeps it.
pub(super) fn head(stream: &str) -> String {
    format!("{stream}_head")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, updated: &str) -> EventKey {
        EventKey {
            id: id.into(),
            updated: Updated::parse(updated),
        }
    }

    #[test]
    fn what_is_one_event_has_one_subject_and_what_is_another_has_another() {
        let subject = |id: &str, updated: &str| Key::of_event(&key(id, updated)).subject("s", 0);
        let first = subject("ev_1", "2024-02-15T12:48:23.395");
        assert_eq!(first, subject("ev_1", "2024-02-15T12:48:23.395000+00:00"));
        let others = [
            subject("ev_1", "2024-02-15T12:48:23.396"),
            subject("ev_2", "2024-02-15T12:48:23.395"),
            Key::of_partial(&key("ev_1", "2024-02-15T12:48:23.395")).subject("s", 0),
            Key::of_event(&key("ev_1", "2024-02-15T12:48:23.395")).subject("s", 1),
            Key::of_quarantined(b"ev_1").subject("s", 0),
        ];
        for other in &others {
            assert_ne!(&first, other);
        }
        let (beginning, _) = first.rsplit_once('.').unwrap();
        assert!(
            others[0].starts_with(beginning) && others[2].starts_with(beginning) && !others[1].starts_with(beginning)
        );
    }

    #[test]
    fn a_key_is_read_again_as_what_it_was() {
        let keys = [
            Key::of_event(&key("ev 1%\u{e9}", "2024-02-15T12:48:23.395")),
            Key::of_partial(&key("ev_1", "no date: at all")),
            Key::of_event(&key("", "")),
            Key::of_partial(&key(&"x".repeat(1 << 20), &"y".repeat(1 << 20))),
            Key::of_quarantined(b"ev_1"),
        ];
        for key in keys {
            let known = Key::read(&key.text()).unwrap();
            assert_eq!(Key::of_known(&known), key);
        }
        assert_eq!(Key::read("nonsense"), None);
    }

    #[test]
    fn every_topic_is_one_word_of_a_subject_and_comes_back() {
        assert_eq!(topic("s_dead", "crm-db"), "s_dead.crm-db");
        for name in ["a", "a.b", "a=b%41", "ä>*", "A_9-"] {
            let subject = topic("s_dead", name);
            assert_eq!(subject.split('.').count(), 2, "{subject}");
            assert!(!subject.contains(['*', '>', ' ']), "{subject}");
            let found = topic_of("s_dead", &format!("{subject}.note"));
            assert_eq!(found.as_deref(), Some(name), "{subject}");
        }
        assert_eq!(topic_of("s_dead", "s_parts.a.1"), None);
    }

    #[test]
    fn no_id_can_break_a_header_or_be_taken_for_another() {
        let text = |id: &str, updated: &str| Key::of_event(&key(id, updated)).text();
        let hostile = text("a b\r\nNats-Rollup: all\r\n%", "x\ny z");
        assert!(
            hostile.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '),
            "{hostile}"
        );
        assert_eq!(hostile.matches(' ').count(), 1, "{hostile}");
        assert_ne!(text("a%20b", ""), text("a b", ""));
        assert!(text(&"x".repeat(1 << 20), &"y".repeat(1 << 20)).len() < 200);
        let one = Key::of_event(&key("ev 1", ""));
        assert!(one.shares_id(&text("ev 1", "2024-02-15")) && !one.shares_id(&text("ev 11", "")));
    }
}
