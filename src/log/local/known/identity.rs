//! What makes an event the same event, as bytes that are stored and compared.

use sha2::{Digest, Sha256};

use crate::event::{Event, EventKey, Kind, Updated};

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
