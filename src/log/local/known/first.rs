//! Version 1 of a segment's file of keys: as they are in memory, with their hashes, and no filter. It is read, and merged into what
//! came after it.

use std::fs::File;
use std::io;

use super::disk::{damage, long, read_at, word};
use super::filter::Filter;
use crate::event::Seq;

/// Keys that are read at a time.
const PAGE: usize = 1024;

/// Bytes of the head: magic, version, CRC-32C of what follows, how many keys, when the newest was received.
pub(super) const HEAD_LEN: usize = 32;

/// Bytes of an entry: hash, Seq, place and length of the key.
pub(super) const ENTRY_LEN: usize = 24;

/// A file of version 1: head, entries of hash, Seq, place and length in the order of hashes, keys.
#[derive(Debug)]
pub(super) struct V1 {
    pub count: u64,
    pub newest_us: i64,
    pub filter: Filter,
}

struct Entry {
    hash: u64,
    seq: Seq,
    at: u32,
    len: u16,
}

impl V1 {
    /// Reads the whole file, checking it.
    pub fn open(file: &File) -> io::Result<V1> {
        let mut content = vec![0; file.metadata()?.len() as usize];
        read_at(file, &mut content, 0)?;
        V1::decode(&content)
    }

    /// The same of one that was read.
    pub fn decode(content: &[u8]) -> io::Result<V1> {
        if content.len() < HEAD_LEN {
            return Err(damage("it is too short"));
        }
        if crc32c::crc32c(&content[16..]) != word(content, 12) {
            return Err(damage("its checksum is wrong"));
        }
        let count = long(content, 16);
        let entries = (count as usize)
            .checked_mul(ENTRY_LEN)
            .and_then(|len| content.get(HEAD_LEN..HEAD_LEN.checked_add(len)?))
            .ok_or_else(|| damage("it is shorter than it says"))?;
        let mut filter = Filter::new(count);
        for entry in entries.chunks_exact(ENTRY_LEN) {
            filter.insert(long(entry, 0));
        }
        Ok(V1 {
            count,
            newest_us: long(content, 24).cast_signed(),
            filter,
        })
    }

    fn entries(file: &File, from: u64, count: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; ENTRY_LEN * count];
        read_at(file, &mut bytes, HEAD_LEN as u64 + from * ENTRY_LEN as u64)?;
        let entry = |bytes: &[u8]| Entry {
            hash: long(bytes, 0),
            seq: Seq(long(bytes, 8)),
            at: word(bytes, 16),
            len: word(bytes, 20) as u16,
        };
        Ok(bytes.chunks_exact(ENTRY_LEN).map(entry).collect())
    }

    fn key(&self, file: &File, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut key = vec![0; entry.len.into()];
        let keys_at = HEAD_LEN as u64 + self.count * ENTRY_LEN as u64;
        read_at(file, &mut key, keys_at + u64::from(entry.at))?;
        Ok(key)
    }

    fn hash_at(file: &File, index: u64) -> io::Result<u64> {
        Ok(V1::entries(file, index, 1)?[0].hash)
    }

    /// Hands on every key with this hash.
    pub fn with_hash(&self, file: &File, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if V1::hash_at(file, middle)? < hash {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for index in low..self.count {
            let entry = &V1::entries(file, index, 1)?[0];
            if entry.hash != hash {
                break;
            }
            each(&self.key(file, entry)?, entry.seq);
        }
        Ok(())
    }

    /// How many pages.
    pub fn pages(&self) -> usize {
        (self.count as usize).div_ceil(PAGE)
    }

    /// Hands on the keys of one page.
    pub fn page(&self, file: &File, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        let from = (number * PAGE) as u64;
        let count = (self.count - from).min(PAGE as u64) as usize;
        for entry in V1::entries(file, from, count)? {
            each(&self.key(file, &entry)?, entry.seq);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::log::local) mod old {
    use super::super::table::Table;

    const MAGIC: [u8; 8] = *b"CLHKKEYS";

    /// A table as version 1 was written.
    pub fn encode(table: &Table) -> Vec<u8> {
        let keys = table.sorted();
        let (mut entries, mut arena) = (Vec::new(), Vec::new());
        for (hash, key, seq) in &keys {
            entries.extend_from_slice(&hash.to_le_bytes());
            entries.extend_from_slice(&seq.0.to_le_bytes());
            entries.extend_from_slice(&(arena.len() as u32).to_le_bytes());
            entries.extend_from_slice(&(key.len() as u32).to_le_bytes());
            arena.extend_from_slice(key);
        }
        let mut content = MAGIC.to_vec();
        content.extend_from_slice(&1_u32.to_le_bytes());
        content.extend_from_slice(&[0; 4]);
        content.extend_from_slice(&(keys.len() as u64).to_le_bytes());
        content.extend_from_slice(&table.newest_us.to_le_bytes());
        content.extend_from_slice(&entries);
        content.extend_from_slice(&arena);
        let crc = crc32c::crc32c(&content[16..]);
        content[12..16].copy_from_slice(&crc.to_le_bytes());
        content
    }
}
