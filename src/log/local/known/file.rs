//! The keys of one sealed segment, in a file that never changes.
//!
//! Version 2 begins with a head: magic, version, CRC-32C of the rest of the head, its length, the file's length, how many keys,
//! when the newest was received, the length of the filter, how many pages; then the filter, and for each page its first hash
//! and where it ends. Opening reads the head, which is about two bytes a key; a page is read, and checked by its own checksum,
//! when one of its keys is asked for. The file is open only for as long as that takes: a directory may hold many.
//!
//! Files of version 1 (`first`) are read as well.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::super::options::SEGMENT_EVENTS_MAX;
use super::disk::{damage, long, read_at, word};
use super::filter::{Filter, Probe};
use super::first::V1;
use super::identity::Identity;
use super::left;
use super::page::{self, Pages, pages_of};
use super::part::Part;
use super::set::Known;
use super::table::Table;
use crate::event::Seq;
use crate::framefile;

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
        Head::read_whatever_version(file, &fixed)
    }

    /// Whether a file that passed by is a whole head with so many pages, and nothing else.
    pub fn is_all_of(file: &Part, magic: [u8; 8], pages: usize) -> bool {
        let begin = &file.begin;
        if begin.len() < FIXED_LEN || begin[..8] != magic || word(begin, 8) != VERSION {
            return false;
        }
        let field = |index: usize| long(begin, 16 + index * 8);
        (field(0), field(1)) == (file.len, file.len)
            && word(begin, 12) == file.crc_of_head
            && (field(5) >> 32) as usize == pages
    }

    /// Reads it where only its checksum tells whether it is one.
    fn read_whatever_version(file: &File, fixed: &[u8; FIXED_LEN]) -> io::Result<(Head, u64)> {
        let field = |index: usize| long(fixed, 16 + index * 8);
        let (head_len, len) = (field(0), field(1));
        if head_len < FIXED_LEN as u64 || head_len > HEAD_LEN_MAX || len != file.metadata()?.len() || head_len > len {
            return Err(damage("its length is wrong"));
        }
        let mut bytes = vec![0; head_len as usize];
        read_at(file, &mut bytes, 0)?;
        Ok((Head::decode(&bytes)?, head_len))
    }

    /// From its bytes, all of them: no fewer than are always there.
    fn decode(bytes: &[u8]) -> io::Result<Head> {
        let field = |index: usize| long(bytes, 16 + index * 8);
        if crc32c::crc32c(&bytes[16..]) != word(bytes, 12) {
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
        Ok(Head {
            count: field(2),
            newest_us: field(3).cast_signed(),
            filter: Filter::decode(filter).ok_or_else(short)?,
            firsts: longs(firsts),
            ends: longs(ends),
        })
    }
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

/// Writes a segment's key file durably.
pub(in crate::log::local) fn write_file(path: &Path, table: &Table) -> io::Result<()> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        framefile::make_dir(dir)?;
        framefile::sync_parent(dir)?;
    }
    framefile::replace_file(path, &encode(table)?)
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
    V2 {
        head: Head,
        pages_at: u64,
    },
    /// What could be made out in a damaged one.
    Left(Table),
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
            _ if has_another_version(&file)? => return Err(damage("its version is damaged")),
            _ => return Err(io::Error::other("it was written by a newer closehook")),
        };
        Ok(KeyFile {
            path: path.to_owned(),
            segment,
            bytes: file.metadata()?.len(),
            content,
        })
    }

    /// What can be made out in one that can't be opened. When its keys were received is not known any more: they count as old as the
    /// file is.
    pub fn of_what_is_left(path: &Path, segment: Seq) -> io::Result<KeyFile> {
        let bytes = framefile::read_what_is_there(path)?;
        let written = std::fs::metadata(path)?.modified()?;
        let written = Timestamp::try_from(written).unwrap_or(Timestamp::MAX);
        let mut left = Table::default();
        let end = Seq(segment.0.saturating_add(SEGMENT_EVENTS_MAX));
        left::keys_in(&bytes, segment, end, &mut |key, seq| {
            left.insert(&Identity::from_bytes(key), seq, written);
        });
        if left.len() == 0 {
            return Err(damage("nothing can be made out in it"));
        }
        Ok(KeyFile {
            path: path.to_owned(),
            segment,
            bytes: bytes.len() as u64,
            content: Content::Left(left),
        })
    }
}

/// Checks a file of known keys from outside, all of it.
pub(super) fn check_file(path: &Path, segment: Seq) -> io::Result<()> {
    let file = KeyFile::open(path, segment)?;
    (0..file.pages()).try_for_each(|number| file.page(number, &mut |_, _| ()))
}

/// Checks a file that was read, all of it.
pub(super) fn check_bytes(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < 12 || bytes[..8] != MAGIC {
        return Err(damage("it is not a file of known keys"));
    }
    match word(bytes, 8) {
        1 => V1::decode(bytes).map(drop),
        VERSION => check_pages(bytes),
        _ if V1::decode(bytes).is_ok() || check_pages(bytes).is_ok() => Err(damage("its version is damaged")),
        _ => Err(io::Error::other("it was written by a newer closehook")),
    }
}

fn check_pages(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < FIXED_LEN {
        return Err(damage("it is too short"));
    }
    let (head_len, len) = (long(bytes, 16), long(bytes, 24));
    if head_len < FIXED_LEN as u64 || head_len > len || len != bytes.len() as u64 {
        return Err(damage("its length is wrong"));
    }
    let (head, pages) = bytes.split_at(head_len as usize);
    let mut begin = 0;
    for (number, end) in Head::decode(head)?.ends.into_iter().enumerate() {
        let end = end as usize;
        let page = pages.get(begin..end);
        let page = page.ok_or_else(|| damage("it is shorter than it says"))?;
        page::for_each(page, number, |_, _| ())?;
        begin = end;
    }
    Ok(())
}

/// Whether a file whose version is unknown is whole as one of a known version: then the version is what is damaged.
fn has_another_version(file: &File) -> io::Result<bool> {
    let whole = |read: io::Result<()>| match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    };
    let mut fixed = [0; FIXED_LEN];
    let as_new = read_at(file, &mut fixed, 0).and_then(|()| Head::read_whatever_version(file, &fixed).map(drop));
    Ok(whole(as_new)? || whole(V1::open(file).map(drop))?)
}

impl Known for KeyFile {
    fn count(&self) -> u64 {
        match &self.content {
            Content::V1(content) => content.count,
            Content::V2 { head, .. } => head.count,
            Content::Left(keys) => keys.len() as u64,
        }
    }

    fn newest_us(&self) -> i64 {
        match &self.content {
            Content::V1(content) => content.newest_us,
            Content::V2 { head, .. } => head.newest_us,
            Content::Left(keys) => keys.newest_us,
        }
    }

    fn may_hold(&self, probe: &Probe) -> bool {
        match &self.content {
            Content::V1(content) => content.filter.may_hold(probe),
            Content::V2 { head, .. } => head.filter.may_hold(probe),
            Content::Left(_) => true,
        }
    }

    fn around(&self, hash: u64, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        match &self.content {
            Content::V1(content) => content.with_hash(&File::open(&self.path)?, hash, each),
            Content::V2 { head, pages_at } => {
                let file = File::open(&self.path)?;
                for number in pages_of(&head.firsts, hash) {
                    page::for_each(&read_page(&file, head, *pages_at, number)?, number, &mut *each)?;
                }
                Ok(())
            }
            Content::Left(keys) => {
                let same = keys.sorted().into_iter().filter(|(other, _, _)| *other == hash);
                same.for_each(|(_, key, seq)| each(key, seq));
                Ok(())
            }
        }
    }

    fn pages(&self) -> usize {
        match &self.content {
            Content::V1(content) => content.pages(),
            Content::V2 { head, .. } => head.firsts.len(),
            Content::Left(_) => 1,
        }
    }

    fn page(&self, number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> io::Result<()> {
        match &self.content {
            Content::V1(content) => content.page(&File::open(&self.path)?, number, each),
            Content::V2 { head, pages_at } => {
                let file = File::open(&self.path)?;
                page::for_each(&read_page(&file, head, *pages_at, number)?, number, each)
            }
            Content::Left(keys) => {
                keys.sorted().into_iter().for_each(|(_, key, seq)| each(key, seq));
                Ok(())
            }
        }
    }
}

fn read_page(file: &File, head: &Head, pages_at: u64, number: usize) -> io::Result<Vec<u8>> {
    let begin = number.checked_sub(1).map_or(0, |before| head.ends[before]);
    let mut page = vec![0; (head.ends[number] - begin) as usize];
    read_at(file, &mut page, pages_at + begin)?;
    Ok(page)
}
