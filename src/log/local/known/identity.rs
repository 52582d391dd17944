//! What makes an event the same event, as bytes that are stored and compared.

use sha2::{Digest, Sha256};

use crate::event::{Event, EventKey, Kind, Updated};
use crate::log::known_key::{KeyPart, KnownKey, KnownUpdated};

/// Longer keys are stored as their SHA-256: an id is some 25 bytes, a hostile sender's may be megabytes.
const KEY_LEN_MAX: usize = 512;

/// An event's identity as bytes: id and instant of its revision, or the hash of a quarantined body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::log::local) struct Identity {
    bytes: Box<[u8]>,
    /// Where to look for it: the same for all revisions of one event, and stable for ever, since it is stored.
    pub(super) hash: u64,
}

impl std::hash::Hash for Identity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Identity {
    /// The identity of an entry of the log; `None` where it was erased.
    pub fn of(event: &Event) -> Option<Identity> {
        match (event.kind, event.view()) {
            (Kind::Quarantined, _) => Some(Identity::of_quarantined(&event.body)),
            (Kind::Partial, view) => view.map(|view| Identity::of_partial(&view.key())),
            (_, view) => view.map(|view| Identity::of_event(&view.key())),
        }
    }

    /// The identity of a readable event.
    pub fn of_event(key: &EventKey) -> Identity {
        Identity::of_revision(key, false)
    }

    /// The identity of an event whose data was withheld: one of its own, so that the full event is no duplicate of it.
    pub fn of_partial(key: &EventKey) -> Identity {
        Identity::of_revision(key, true)
    }

    fn of_revision(key: &EventKey, partial: bool) -> Identity {
        // A partial one has the same mark in upper case.
        let mark = |mark: u8| if partial { mark.to_ascii_uppercase() } else { mark };
        let mut bytes = Vec::with_capacity(key.id.len() + 20);
        if key.id.len() > KEY_LEN_MAX {
            bytes.push(b'l');
            bytes.extend_from_slice(&Sha256::digest(key.id.as_bytes()));
        } else {
            bytes.push(b'e');
            bytes.extend_from_slice(&(key.id.len() as u16).to_be_bytes());
            bytes.extend_from_slice(key.id.as_bytes());
        }
        match &key.updated {
            Updated::Instant(nanoseconds) => {
                bytes.push(mark(b'i'));
                bytes.extend_from_slice(&nanoseconds.to_be_bytes());
            }
            Updated::Text(text) if text.len() > KEY_LEN_MAX => {
                bytes.push(mark(b'h'));
                bytes.extend_from_slice(&Sha256::digest(text.as_bytes()));
            }
            Updated::Text(text) => {
                bytes.push(mark(b't'));
                bytes.extend_from_slice(text.as_bytes());
            }
            Updated::Missing => bytes.push(mark(b'm')),
        }
        Identity::from_bytes(&bytes)
    }

    /// The identity of a body that can't be read: its SHA-256.
    pub fn of_quarantined(body: &[u8]) -> Identity {
        let mut bytes = vec![b'q'];
        bytes.extend_from_slice(&Sha256::digest(body));
        Identity::from_bytes(&bytes)
    }

    /// As stored.
    pub fn from_bytes(bytes: &[u8]) -> Identity {
        Identity {
            bytes: bytes.into(),
            hash: hash_of(bytes),
        }
    }

    /// As another engine has written it.
    pub fn of_known(key: &KnownKey) -> Identity {
        let (id, updated, partial) = match key {
            KnownKey::Quarantined(digest) => return Identity::from_bytes(&[b"q", &digest[..]].concat()),
            KnownKey::Revision { id, updated, partial } => (id, updated, *partial),
        };
        let mark = |mark: u8| if partial { mark.to_ascii_uppercase() } else { mark };
        let mut bytes = match id {
            KeyPart::Digest(digest) => [b"l", &digest[..]].concat(),
            KeyPart::Text(id) => [b"e", &(id.len() as u16).to_be_bytes()[..], id.as_bytes()].concat(),
        };
        match updated {
            KnownUpdated::Instant(nanoseconds) => {
                bytes.push(mark(b'i'));
                bytes.extend_from_slice(&nanoseconds.to_be_bytes());
            }
            KnownUpdated::Text(KeyPart::Digest(digest)) => {
                bytes.push(mark(b'h'));
                bytes.extend_from_slice(digest);
            }
            KnownUpdated::Text(KeyPart::Text(text)) => {
                bytes.push(mark(b't'));
                bytes.extend_from_slice(text.as_bytes());
            }
            KnownUpdated::Missing => bytes.push(mark(b'm')),
        }
        Identity::from_bytes(&bytes)
    }

    /// What its bytes say; `None` where they are none of an identity.
    pub fn read(bytes: &[u8]) -> Option<KnownKey> {
        let (mark, rest) = bytes.split_first()?;
        let digest = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).ok();
        let text = |bytes: &[u8]| Some(KeyPart::Text(std::str::from_utf8(bytes).ok()?.to_owned()));
        let (id, rest) = match mark {
            b'q' => return digest(rest).map(KnownKey::Quarantined),
            b'l' => {
                let (id, rest) = rest.split_at_checked(32)?;
                (KeyPart::Digest(digest(id)?), rest)
            }
            b'e' => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                let (id, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                (text(id)?, rest)
            }
            _ => return None,
        };
        let (mark, rest) = rest.split_first()?;
        let updated = match mark.to_ascii_lowercase() {
            b'i' => KnownUpdated::Instant(i128::from_be_bytes(rest.try_into().ok()?)),
            b't' => KnownUpdated::Text(text(rest)?),
            b'h' => KnownUpdated::Text(KeyPart::Digest(digest(rest)?)),
            b'm' => KnownUpdated::Missing,
            _ => return None,
        };
        Some(KnownKey::Revision {
            id,
            updated,
            partial: mark.is_ascii_uppercase(),
        })
    }

    /// To be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The part of an identity that all revisions of one event share.
pub(super) fn id_part(identity: &[u8]) -> &[u8] {
    let len = match identity {
        [b'e', high, low, ..] => 3 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 33,
    };
    &identity[..len.min(identity.len())]
}

fn hash_of_id(id_part: &[u8]) -> u64 {
    let digest = Sha256::digest(id_part);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// Where to look for an identity.
pub(super) fn hash_of(identity: &[u8]) -> u64 {
    hash_of_id(id_part(identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_identity_says_is_what_the_other_engine_makes_of_the_event() {
        for (id, updated) in [
            ("ev_1", "2024-02-15T12:48:23.395"),
            ("ev_1", "no date"),
            ("", ""),
            (&*"x".repeat(1 << 10), &*"y".repeat(1 << 10)),
        ] {
            let key = EventKey {
                id: id.to_owned(),
                updated: if updated.is_empty() {
                    Updated::Missing
                } else {
                    Updated::parse(updated)
                },
            };
            for (identity, partial) in [(Identity::of_event(&key), false), (Identity::of_partial(&key), true)] {
                let read = Identity::read(identity.as_bytes()).unwrap();
                assert_eq!(Identity::of_known(&read), identity);
                assert!(
                    matches!(&read, KnownKey::Revision { partial: is, .. } if *is == partial),
                    "{read:?}"
                );
                #[cfg(feature = "engine-jetstream")]
                assert_eq!(
                    crate::log::jetstream::subject_of_known(&read),
                    crate::log::jetstream::subject_of_event(&key, partial)
                );
            }
        }
        assert!(matches!(
            Identity::read(Identity::of_quarantined(b"x").as_bytes()),
            Some(KnownKey::Quarantined(_))
        ));
        assert_eq!(Identity::read(b"e"), None);
    }
}
