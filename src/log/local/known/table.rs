//! The keys of a segment that are in no file yet, in memory.

use hashbrown::HashTable;
use jiff::Timestamp;

use super::identity::Identity;
use crate::event::Seq;

/// The keys of one segment, in memory: about 60 bytes each.
#[derive(Debug, Default, Clone)]
pub(in crate::log::local) struct Table {
    entries: HashTable<Entry>,
    arena: Vec<u8>,
    pub(super) newest_us: i64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    seq: u64,
    at: u32,
    len: u16,
}

impl Table {
    /// Remembers one event's identity.
    pub fn insert(&mut self, identity: &Identity, seq: Seq, received_at: Timestamp) {
        let hash = identity.hash;
        let entry = Entry {
            hash,
            seq: seq.0,
            at: self.arena.len() as u32,
            len: identity.as_bytes().len() as u16,
        };
        self.arena.extend_from_slice(identity.as_bytes());
        self.entries.insert_unique(hash, entry, |entry| entry.hash);
        self.newest_us = self.newest_us.max(received_at.as_microsecond());
    }

    /// How many keys.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, entry: &Entry) -> &[u8] {
        &self.arena[entry.at as usize..][..usize::from(entry.len)]
    }

    /// The Seq under which an identity is known; what `is_gone` counts for nothing.
    pub(super) fn find(&self, identity: &Identity, hash: u64, is_gone: &dyn Fn(Seq) -> bool) -> Option<Seq> {
        // Twice only where damage took the first one: the newer one counts.
        self.entries
            .iter_hash(hash)
            .filter(|entry| entry.hash == hash && self.key(entry) == identity.as_bytes())
            .map(|entry| Seq(entry.seq))
            .filter(|seq| !is_gone(*seq))
            .max()
    }

    pub(super) fn revisions(&self, id_part: &[u8], hash: u64, found: &mut Vec<Seq>) {
        let same_id = |entry: &&Entry| entry.hash == hash && self.key(entry).starts_with(id_part);
        found.extend(self.entries.iter_hash(hash).filter(same_id).map(|entry| Seq(entry.seq)));
    }

    /// Every key with its hash and Seq, in the order of hashes.
    pub(super) fn sorted(&self) -> Vec<(u64, &[u8], Seq)> {
        let mut keys: Vec<_> = self
            .entries
            .iter()
            .map(|entry| (entry.hash, self.key(entry), Seq(entry.seq)))
            .collect();
        keys.sort_unstable_by_key(|(hash, _, seq)| (*hash, *seq));
        keys
    }
}
