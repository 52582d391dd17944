//! The keys of known events: what makes a second delivery of the same revision a duplicate (invariant I2).
//!
//! Every unsealed segment has a table in memory, rebuilt from its journal at start. When a segment is sealed its keys go
//! into a file of their own, `keys/<first seq>`, which outlives the segment: a duplicate is known for as long as Close may
//! send it again, however short the log's retention. Of such a file only a filter (about 2.3 bytes a key) stays in memory;
//! a filter's "maybe" is confirmed by comparing whole keys in the file, never by hash alone.
//!
//! Keys are found by the hash of the event's id, so the same files answer "which revisions of this id are there?".

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashTable;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use xorf::{BinaryFuse16, Filter};

use crate::event::{Event, EventKey, Kind, Seq, Updated};
use crate::framefile;

/// Longer keys are stored as their SHA-256: an id is some 25 bytes, a hostile sender's may be megabytes.
const KEY_LEN_MAX: usize = 512;

/// An event's identity as bytes: id and instant of its revision, or the hash of a quarantined body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    bytes: Box<[u8]>,
    /// Where to look for it: the same for all revisions of one event, and stable for ever, since it is stored.
    hash: u64,
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
            hash: hash_of(id_part(bytes)),
        }
    }

    /// To be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The part of an identity that all revisions of one event share.
fn id_part(identity: &[u8]) -> &[u8] {
    let len = match identity {
        [b'e', high, low, ..] => 3 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 33,
    };
    &identity[..len.min(identity.len())]
}

fn hash_of(id_part: &[u8]) -> u64 {
    let digest = Sha256::digest(id_part);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// The keys of one unsealed segment, in memory: about 60 bytes each.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    entries: HashTable<Entry>,
    arena: Vec<u8>,
    newest_us: i64,
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

    fn key(&self, entry: &Entry) -> &[u8] {
        &self.arena[entry.at as usize..][..usize::from(entry.len)]
    }

    fn find(&self, identity: &Identity, hash: u64) -> Option<Seq> {
        // Twice only where damage took the first one: the newer one counts.
        self.entries
            .iter_hash(hash)
            .filter(|entry| entry.hash == hash && self.key(entry) == identity.as_bytes())
            .map(|entry| Seq(entry.seq))
            .max()
    }

    fn revisions(&self, id_part: &[u8], hash: u64, found: &mut Vec<Seq>) {
        let same_id = |entry: &&Entry| entry.hash == hash && self.key(entry).starts_with(id_part);
        found.extend(self.entries.iter_hash(hash).filter(same_id).map(|entry| Seq(entry.seq)));
    }

    /// The table as the bytes of a key file.
    pub fn encode(&self) -> Vec<u8> {
        let mut entries: Vec<Entry> = self.entries.iter().copied().collect();
        entries.sort_unstable_by_key(|entry| (entry.hash, entry.seq));
        let mut content = Vec::with_capacity(FILE_HEAD_LEN + entries.len() * ENTRY_LEN + self.arena.len());
        content.extend_from_slice(&FILE_MAGIC);
        content.extend_from_slice(&FILE_VERSION.to_le_bytes());
        content.extend_from_slice(&[0; 4]);
        content.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        content.extend_from_slice(&self.newest_us.to_le_bytes());
        for entry in &entries {
            content.extend_from_slice(&entry.hash.to_le_bytes());
            content.extend_from_slice(&entry.seq.to_le_bytes());
            content.extend_from_slice(&entry.at.to_le_bytes());
            content.extend_from_slice(&u32::from(entry.len).to_le_bytes());
        }
        content.extend_from_slice(&self.arena);
        let crc = crc32c::crc32c(&content[16..]);
        content[12..16].copy_from_slice(&crc.to_le_bytes());
        content
    }
}

const FILE_MAGIC: [u8; 8] = *b"CLHKKEYS";
const FILE_VERSION: u32 = 1;
const FILE_HEAD_LEN: usize = 32;
const ENTRY_LEN: usize = 24;

/// The keys of one sealed segment, in a file that never changes.
#[derive(Debug)]
pub(super) struct KeyFile {
    file: File,
    path: PathBuf,
    count: u64,
    newest_us: i64,
    bytes: u64,
    /// `None` where a filter could not be built (a handful of keys): then the file is always asked.
    filter: Option<BinaryFuse16>,
}

impl KeyFile {
    /// Reads the whole file once, checking it, and keeps a filter of it.
    pub fn open(path: &Path) -> io::Result<KeyFile> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let content = std::fs::read(path)?;
        if content.len() < FILE_HEAD_LEN || content[..8] != FILE_MAGIC {
            return Err(bad("it is not a file of known keys"));
        }
        let word = |at: usize| u32::from_le_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(8) > FILE_VERSION {
            let newer = "it was written by a newer closehook";
            return Err(io::Error::new(io::ErrorKind::Unsupported, newer));
        }
        if crc32c::crc32c(&content[16..]) != word(12) {
            return Err(bad("its checksum is wrong"));
        }
        let count = long(16);
        let entries = (count as usize)
            .checked_mul(ENTRY_LEN)
            .and_then(|len| content.get(FILE_HEAD_LEN..FILE_HEAD_LEN.checked_add(len)?))
            .ok_or_else(|| bad("it is shorter than it says"))?;
        let mut hashes: Vec<u64> = (0..entries.len())
            .step_by(ENTRY_LEN)
            .map(|at| long(FILE_HEAD_LEN + at))
            .collect();
        hashes.dedup();
        Ok(KeyFile {
            file: File::open(path)?,
            path: path.to_owned(),
            count,
            newest_us: long(24).cast_signed(),
            bytes: content.len() as u64,
            filter: BinaryFuse16::try_from(&hashes).ok(),
        })
    }

    fn entry(&self, index: u64) -> io::Result<Entry> {
        let mut bytes = [0; ENTRY_LEN];
        self.file
            .read_exact_at(&mut bytes, FILE_HEAD_LEN as u64 + index * ENTRY_LEN as u64)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(Entry {
            hash: long(0),
            seq: long(8),
            at: word(16),
            len: word(20) as u16,
        })
    }

    /// Every entry with this hash, with its key.
    fn with_hash(&self, hash: u64) -> io::Result<Vec<(Vec<u8>, Seq)>> {
        if self.filter.as_ref().is_some_and(|filter| !filter.contains(&hash)) {
            return Ok(Vec::new());
        }
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.hash < hash {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut found = Vec::new();
        while low < self.count {
            let entry = self.entry(low)?;
            if entry.hash != hash {
                break;
            }
            let mut key = vec![0; entry.len.into()];
            let arena_at = FILE_HEAD_LEN as u64 + self.count * ENTRY_LEN as u64;
            self.file.read_exact_at(&mut key, arena_at + u64::from(entry.at))?;
            found.push((key, Seq(entry.seq)));
            low += 1;
        }
        Ok(found)
    }
}

/// All keys that are known, segment by segment (by the segment's first Seq).
#[derive(Debug)]
pub(super) struct KnownKeys {
    dir: PathBuf,
    /// Shared, so that a complete segment's keys are written without anybody waiting for it.
    tables: BTreeMap<Seq, Arc<Table>>,
    files: BTreeMap<Seq, KeyFile>,
}

impl KnownKeys {
    /// Opens the key files in `dir`. A damaged one is set aside under another name and reported; duplicates of its events
    /// can't be recognised any more.
    pub fn open(dir: &Path, mut report: impl FnMut(&Path, &io::Error)) -> io::Result<KnownKeys> {
        let mut files = BTreeMap::new();
        match std::fs::read_dir(dir) {
            Ok(listing) => {
                for entry in listing {
                    let path = entry?.path();
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    let Ok(first) = name.parse::<u64>() else { continue };
                    match KeyFile::open(&path) {
                        Ok(file) => drop(files.insert(Seq(first), file)),
                        Err(error) if framefile::is_damage(&error) => report(&path, &error),
                        // Nothing is known of it then: the keys in it must not count as unknown.
                        Err(error) => {
                            return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                        }
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(KnownKeys {
            dir: dir.to_owned(),
            tables: BTreeMap::new(),
            files,
        })
    }

    /// The table of an unsealed segment; made empty where there is none.
    pub fn table(&mut self, segment: Seq) -> &mut Table {
        // Only complete segments' tables are ever shared, and those do not change: nothing is copied here.
        Arc::make_mut(self.tables.entry(segment).or_default())
    }

    /// The Seq under which this identity is known.
    pub fn find(&self, identity: &Identity) -> io::Result<Option<Seq>> {
        let hash = identity.hash;
        // A repetition most likely repeats something recent.
        if let Some(seq) = self.tables.values().rev().find_map(|table| table.find(identity, hash)) {
            return Ok(Some(seq));
        }
        for file in self.files.values().rev() {
            let found = file.with_hash(hash)?;
            let same = found.iter().filter(|(key, _)| key == identity.as_bytes());
            if let Some(seq) = same.map(|(_, seq)| *seq).max() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// The Seqs of every known revision of an event id, in order.
    pub fn revisions(&self, id: &str) -> io::Result<Vec<Seq>> {
        let identity = Identity::of_event(&EventKey {
            id: id.to_owned(),
            updated: Updated::Missing,
        });
        let (id_part, hash) = (id_part(identity.as_bytes()), identity.hash);
        let mut found = Vec::new();
        for table in self.tables.values() {
            table.revisions(id_part, hash, &mut found);
        }
        for file in self.files.values() {
            let same_id = file
                .with_hash(hash)?
                .into_iter()
                .filter(|(key, _)| key.starts_with(id_part));
            found.extend(same_id.map(|(_, seq)| seq));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The keys of a complete segment that are in no file yet.
    pub fn unwritten(&self, segment: Seq) -> Option<Arc<Table>> {
        self.tables
            .get(&segment)
            .filter(|_| !self.files.contains_key(&segment))
            .cloned()
    }

    /// Where a segment's key file is.
    pub fn file_path(&self, segment: Seq) -> PathBuf {
        self.dir.join(format!("{:020}", segment.0))
    }

    /// The segment's key file is durable: its table gives way to it, and is handed back, since dropping it takes time.
    #[must_use]
    pub fn sealed(&mut self, segment: Seq, file: KeyFile) -> Option<Arc<Table>> {
        self.files.insert(segment, file);
        self.tables.remove(&segment)
    }

    /// Writes a segment's keys and lets its table give way to the file.
    pub fn seal(&mut self, segment: Seq) -> io::Result<()> {
        let path = self.file_path(segment);
        if let Some(table) = self.unwritten(segment) {
            write_file(&path, &table.encode())?;
        }
        drop(self.sealed(segment, KeyFile::open(&path)?));
        Ok(())
    }

    /// Whether the keys of a sealed segment are known from a file.
    pub fn has_file(&self, segment: Seq) -> bool {
        self.files.contains_key(&segment)
    }

    /// The segments whose keys were all received before `cutoff`.
    pub fn expired(&self, cutoff: Timestamp) -> Vec<Seq> {
        let old = |file: &KeyFile| file.newest_us < cutoff.as_microsecond();
        self.files
            .iter()
            .filter(|(_, file)| old(file))
            .map(|(seq, _)| *seq)
            .collect()
    }

    /// Forgets a sealed segment's keys; the file is the caller's to delete.
    pub fn forget(&mut self, segment: Seq) -> Option<PathBuf> {
        self.files.remove(&segment).map(|file| file.path)
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

/// Writes a segment's key file durably.
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        super::make_dir(dir)?;
        framefile::sync_parent(dir)?;
    }
    framefile::replace_file(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: &str, updated: &str) -> Identity {
        Identity::of_event(&EventKey {
            id: id.to_owned(),
            updated: Updated::parse(updated),
        })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_same_instant_is_the_same_revision_however_it_is_written() {
        let texts = [
            "2024-02-15T12:48:23.395",
            "2024-02-15T12:48:23.395000",
            "2024-02-15T12:48:23.395Z",
            "2024-02-15T12:48:23.395+00:00",
            "2024-02-15T13:48:23.395+01:00",
        ];
        for text in texts {
            assert_eq!(identity("ev_1", text), identity("ev_1", texts[0]), "{text}");
        }
        assert_ne!(identity("ev_1", "2024-02-15T12:48:23.396"), identity("ev_1", texts[0]));
        assert_ne!(identity("ev_1", "yesterday"), identity("ev_1", "Yesterday"));
        assert_ne!(
            identity("ev_1", "2016-12-31T23:59:60"),
            identity("ev_1", "2016-12-31T23:59:59")
        );
        // No way to shift bytes between the id and the date.
        assert_ne!(identity("ev_1t", "x"), identity("ev_1", "tx"));
    }

    #[test]
    fn keys_are_found_in_tables_and_in_files_alike() {
        let dir = tempfile::tempdir().unwrap();
        let keys_dir = dir.path().join("keys");
        let mut known = KnownKeys::open(&keys_dir, |_, _| panic!("nothing to report")).unwrap();
        let segment = Seq(1);
        for number in 0..5_000_u64 {
            let key = identity(&format!("ev_{}", number / 2), &format!("revision {}", number % 2));
            known.table(segment).insert(&key, Seq(number + 1), at(100));
        }
        let check = |known: &KnownKeys| {
            assert_eq!(known.find(&identity("ev_7", "revision 1")).unwrap(), Some(Seq(16)));
            assert_eq!(known.find(&identity("ev_7", "revision 2")).unwrap(), None);
            assert_eq!(known.find(&identity("ev_70000", "revision 1")).unwrap(), None);
            assert_eq!(known.revisions("ev_7").unwrap(), [Seq(15), Seq(16)]);
        };
        check(&known);
        let content = known.unwritten(segment).unwrap().encode();
        write_file(&known.file_path(segment), &content).unwrap();
        let file = KeyFile::open(&known.file_path(segment)).unwrap();
        assert!(known.sealed(segment, file).is_some() && known.unwritten(segment).is_none());
        check(&known);
        let mut reopened = KnownKeys::open(&keys_dir, |_, _| panic!("nothing to report")).unwrap();
        check(&reopened);
        assert_eq!(reopened.expired(at(100)), []);
        assert!(reopened.has_file(segment));
        assert_eq!(reopened.expired(at(101)), [segment]);
        assert_eq!(reopened.forget(segment), Some(known.file_path(segment)));
        assert_eq!(reopened.find(&identity("ev_7", "revision 1")).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_reported_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownKeys::open(dir.path(), |_, _| ()).unwrap();
        known.table(Seq(1)).insert(&identity("ev_1", ""), Seq(1), at(1));
        let mut content = known.unwritten(Seq(1)).unwrap().encode();
        *content.last_mut().unwrap() ^= 1;
        write_file(&known.file_path(Seq(1)), &content).unwrap();
        let mut reports = 0;
        let known = KnownKeys::open(dir.path(), |_, _| reports += 1).unwrap();
        assert_eq!((reports, known.has_file(Seq(1))), (1, false));
    }

    #[test]
    fn huge_keys_are_bounded() {
        let huge = "x".repeat(1 << 20);
        let key = identity(&huge, &huge);
        assert!(key.as_bytes().len() < 100);
        assert_ne!(key, identity(&huge, "other"));
        assert_ne!(key.hash, identity("x", &huge).hash);
    }
}
