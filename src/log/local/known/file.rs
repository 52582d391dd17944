//! The keys of one sealed segment, in a file that never changes.
//!
//! Version 2 begins with a head: magic, version, CRC-32C of the rest of the head, its length, the file's length, how many keys,
//! when the newest was received, the length of the filter, how many pages; then the filter, and for each page its first hash
//! and where it ends. Opening reads the head, which is about two bytes a key; a page is read, and checked by its own checksum,
//! when one of its keys is asked for. The file is open only for as long as that takes: a directory may hold many.
//!
//! Version 1 had the keys as they are in memory, with their hashes, and no filter.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::filter::{Filter, Probe};
use super::page::{self, Pages, pages_of};
use super::table::Table;
use super::{Known, damage};
use crate::event::Seq;

pub(super) const MAGIC: [u8; 8] = *b"CLHKKEYS";
const VERSION: u32 = 2;
const FIXED_LEN: usize = 64;

/// No head claims to be longer: it would be that of a thousand million keys.
const HEAD_LEN_MAX: u64 = 4 << 30;

/// What is kept in memory of a set of keys.
#[derive(Debug)]
pub(super) struct Head {
    pub count: u64,
    pub newest_us: i64,
    pub filter: Filter,
    /// The first hash in each page.
    pub firsts: Vec<u64>,
    /// Where each page ends, counted from the end of the head; empty where pages lie elsewhere.
    pub ends: Vec<u64>,
}

impl Head {
    /// That of an empty set, with room for so many keys.
    pub fn new(keys: u64) -> Head {
        Head {
            count: 0,
            newest_us: i64::MIN,
            filter: Filter::new(keys),
            firsts: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// As stored, before the pages.
    pub fn encode(&self, magic: [u8; 8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_LEN];
        self.filter.encode(&mut bytes);
        bytes.extend(self.firsts.iter().flat_map(|first| first.to_le_bytes()));
        bytes.extend(self.ends.iter().flat_map(|end| end.to_le_bytes()));
        let head_len = bytes.len() as u64;
        let len = head_len + self.ends.last().copied().unwrap_or_default();
        let fields = [
            head_len,
            len,
            self.count,
            self.newest_us.cast_unsigned(),
            self.filter.len() as u64,
            (self.firsts.len() as u64) << 32 | self.ends.len() as u64,
        ];
        bytes[..8].copy_from_slice(&magic);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        for (field, place) in fields.iter().zip(bytes[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the head of a file; gives its length, too.
    pub fn read(file: &File, magic: [u8; 8]) -> io::Result<(Head, u64)> {
        let mut fixed = [0; FIXED_LEN];
        read_at(file, &mut fixed, 0)?;
        if fixed[..8] != magic || word(&fixed, 8) != VERSION {
            return Err(damage("it is not a file of known keys"));
        }
        let field = |index: usize| long(&fixed, 16 + index * 8);
        let (head_len, len) = (field(0), field(1));
        if head_len < FIXED_LEN as u64 || head_len > HEAD_LEN_MAX || len != file.metadata()?.len() || head_len > len {
            return Err(damage("its length is wrong"));
        }
        let mut bytes = vec![0; head_len as usize];
        read_at(file, &mut bytes, 0)?;
        if crc32c::crc32c(&bytes[16..]) != word(&fixed, 12) {
            return Err(damage("its checksum is wrong"));
        }
        let short = || damage("it is shorter than it says");
        let (firsts_len, ends_len) = ((field(5) >> 32) as usize, field(5) as u32 as usize);
        let rest = &bytes[FIXED_LEN..];
        let (filter, rest) = rest.split_at_checked(field(4) as usize).ok_or_else(short)?;
        let (firsts, ends) = rest.split_at_checked(firsts_len * 8).ok_or_else(short)?;
        if ends.len() != ends_len * 8 {
            return Err(short());
        }
        let longs = |bytes: &[u8]| {
            bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|bytes| u64::from_le_bytes(*bytes))
                .collect()
        };
        let head = Head {
            count: field(2),
            newest_us: field(3).cast_signed(),
            filter: Filter::decode(filter).ok_or_else(short)?,
            firsts: longs(firsts),
            ends: longs(ends),
        };
        Ok((head, head_len))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// A file that ends too early is not what it was.
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damage("it is too short"),
        _ => error,
    })
}

/// A table as the bytes of a file.
pub(super) fn encode(table: &Table) -> io::Result<Vec<u8>> {
    let keys = table.sorted();
    let mut head = Head {
        count: keys.len() as u64,
        newest_us: table.newest_us,
        ..Head::new(keys.len() as u64)
    };
    let (mut pages, mut content) = (Pages::default(), Vec::new());
    let mut add = |page: Option<Vec<u8>>, ends: &mut Vec<u64>| {
        if let Some(page) = page {
            content.extend_from_slice(&page);
            ends.push(content.len() as u64);
        }
    };
    for (hash, key, seq) in keys {
        head.filter.insert(hash);
        add(pages.push(hash, key, seq)?, &mut head.ends);
    }
    add(pages.take()?, &mut head.ends);
    head.firsts = pages.firsts;
    let mut bytes = head.encode(MAGIC);
    bytes.append(&mut content);
    Ok(bytes)
}

/// See the module's head.
#[derive(Debug)]
pub(in crate::log::local) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) segment: Seq,
    pub(super) bytes: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    V1(V1),
    V2 { head: Head, pages_at: u64 },
}

impl KeyFile {
    /// Opens the keys of a segment. Reads the head, or all of a file of version 1, checking it.
    pub fn open(path: &Path, segment: Seq) -> io::Result<KeyFile> {
        let file = File::open(path)?;
        let mut begin = [0; 12];
        read_at(&file, &mut begin, 0)?;
        let content = match word(&begin, 8) {
            _ if begin[..8] != MAGIC => return Err(damage("it is not a file of known keys")),
            1 => Content::V1(V1::open(&file)?),
            VERSION => {
                let (head, pages_at) = Head::read(&file, MAGIC)?;
                Content::V2 { head, pages_at }
            }
            _ => return Err(io::Error::other("it was written by a newer closehook")),
        };
        Ok(KeyFile {
            path: path.to_owned(),
            segment,
            bytes: file.metadata()?.len(),
            content,
        })
    }
}

impl Known for KeyFile {
    fn count(&self) -> u64 {
        match &self.content {
            Content::V1(content) => content.count,
            Content::V2 { head, .. } => head.count,
        }
    }

    fn newest_us(&self) -> i64 {
        match &self.content {
            Content::V1(content) => content.newest_us,
            Content::V2 { head, .. } => head.newest_us,
        }
    }

    fn may_hold(&self, probe: &Probe) -> bool {
        match &self.content {
            Content::V1(content) => content.filter.may_hold(probe),
            Content::V2 { head, .. } => head.filter.may_hold(probe),
        }
    }

    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        let file = File::open(&self.path)?;
        match &self.content {
            Content::V1(content) => content.with_hash(&file, hash, each),
            Content::V2 { head, pages_at } => {
                for number in pages_of(&head.firsts, hash) {
                    page::for_each(&read_page(&file, head, *pages_at, number)?, number, &mut *each)?;
                }
                Ok(())
            }
        }
    }

    fn pages(&self) -> usize {
        match &self.content {
            Content::V1(content) => (content.count as usize).div_ceil(V1_PAGE),
            Content::V2 { head, .. } => head.firsts.len(),
        }
    }

    fn page(&self, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        let file = File::open(&self.path)?;
        match &self.content {
            Content::V1(content) => content.page(&file, number, each),
            Content::V2 { head, pages_at } => page::for_each(&read_page(&file, head, *pages_at, number)?, number, each),
        }
    }
}

fn read_page(file: &File, head: &Head, pages_at: u64, number: usize) -> io::Result<Vec<u8>> {
    let begin = number.checked_sub(1).map_or(0, |before| head.ends[before]);
    let mut page = vec![0; (head.ends[number] - begin) as usize];
    read_at(file, &mut page, pages_at + begin)?;
    Ok(page)
}

/// Keys of version 1 that are read at a time.
const V1_PAGE: usize = 1024;

const V1_HEAD_LEN: usize = 32;
const V1_ENTRY_LEN: usize = 24;

/// A file of version 1: head, entries of hash, Seq, place and length in the order of hashes, keys.
#[derive(Debug)]
struct V1 {
    count: u64,
    newest_us: i64,
    filter: Filter,
}

struct V1Entry {
    hash: u64,
    seq: Seq,
    at: u32,
    len: u16,
}

impl V1 {
    /// Reads the whole file, checking it.
    fn open(file: &File) -> io::Result<V1> {
        let mut content = vec![0; file.metadata()?.len() as usize];
        read_at(file, &mut content, 0)?;
        if content.len() < V1_HEAD_LEN {
            return Err(damage("it is too short"));
        }
        if crc32c::crc32c(&content[16..]) != word(&content, 12) {
            return Err(damage("its checksum is wrong"));
        }
        let count = long(&content, 16);
        let entries = (count as usize)
            .checked_mul(V1_ENTRY_LEN)
            .and_then(|len| content.get(V1_HEAD_LEN..V1_HEAD_LEN.checked_add(len)?))
            .ok_or_else(|| damage("it is shorter than it says"))?;
        let mut filter = Filter::new(count);
        for entry in entries.chunks_exact(V1_ENTRY_LEN) {
            filter.insert(long(entry, 0));
        }
        Ok(V1 {
            count,
            newest_us: long(&content, 24).cast_signed(),
            filter,
        })
    }

    fn entries(file: &File, from: u64, count: usize) -> io::Result<Vec<V1Entry>> {
        let mut bytes = vec![0; V1_ENTRY_LEN * count];
        read_at(file, &mut bytes, V1_HEAD_LEN as u64 + from * V1_ENTRY_LEN as u64)?;
        let entry = |bytes: &[u8]| V1Entry {
            hash: long(bytes, 0),
            seq: Seq(long(bytes, 8)),
            at: word(bytes, 16),
            len: word(bytes, 20) as u16,
        };
        Ok(bytes.chunks_exact(V1_ENTRY_LEN).map(entry).collect())
    }

    fn key(&self, file: &File, entry: &V1Entry) -> io::Result<Vec<u8>> {
        let mut key = vec![0; entry.len.into()];
        let keys_at = V1_HEAD_LEN as u64 + self.count * V1_ENTRY_LEN as u64;
        read_at(file, &mut key, keys_at + u64::from(entry.at))?;
        Ok(key)
    }

    fn hash_at(file: &File, index: u64) -> io::Result<u64> {
        Ok(V1::entries(file, index, 1)?[0].hash)
    }

    fn with_hash(&self, file: &File, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
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

    fn page(&self, file: &File, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        let from = (number * V1_PAGE) as u64;
        let count = (self.count - from).min(V1_PAGE as u64) as usize;
        for entry in V1::entries(file, from, count)? {
            each(&self.key(file, &entry)?, entry.seq);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod old {
    use super::*;

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
