//! Finding packs in the bytes of a damaged database, past what reads it: that keeps many of them in one page, and a page with one bad byte gives
//! none of them.
//!
//! Values are written as they are, and in front of most of them (those that were not moved about since) their key and their
//! length. Where it has put values together without their keys, a pack is found by what it begins with, the head of its block and the
//! magic number of zstd. Either way the manifest's checksum tells whether all of it is there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::database::VALUE_LEN_MAX;
use super::database::files_below;
use super::manifest::Pack;
use crate::event::Seq;
use crate::log::local::block::{HEAD_LEN, Head};

/// What a zstd frame begins with (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Pieces into which packs were split by this closehook and older ones.
const CHUNK_LENS: [usize; 2] = [VALUE_LEN_MAX, 512 << 10];

/// No value is longer.
const VALUE_MAX: usize = 1 << 20;

/// Values that are tried for a pack at the most: older copies of some are left.
const CANDIDATES_MAX: usize = 16;

/// The length of a value is written in front of it: between two pieces there are at most so many bytes.
const BETWEEN_MAX: usize = 16;

/// Places of one key that are looked at, at the most: a few bytes may look like it anywhere.
const PLACES_MAX: usize = 4096;

/// Where packs may be in the files of a database. Looked for once, for all of them.
#[derive(Debug)]
pub(super) struct Ore {
    files: Vec<File>,
    /// Behind the keys of their pieces.
    values: HashMap<(Seq, u16), Vec<Place>>,
    /// Where they begin, by what they begin with.
    begins: HashMap<Seq, Vec<Place>>,
}

/// An offset in one of the files.
type Place = (usize, u64);

impl Ore {
    /// Looks through every file below a directory for these packs, which are in order.
    pub fn find(dir: &Path, packs: &[Pack]) -> io::Result<Ore> {
        let values = packs
            .iter()
            .flat_map(|pack| (0..pack.chunks).map(|chunk| ((pack.first, chunk), Vec::new())));
        let mut ore = Ore {
            files: Vec::new(),
            values: values.collect(),
            begins: packs.iter().map(|pack| (pack.first, Vec::new())).collect(),
        };
        let firsts = match packs {
            [first, .., last] => first.first..=last.first,
            [only] => only.first..=only.first,
            [] => return Ok(ore),
        };
        for name in files_below(dir)? {
            let file = File::open(dir.join(name))?;
            ore.look_through(&file, &firsts)?;
            ore.files.push(file);
        }
        Ok(ore)
    }

    fn look_through(&mut self, file: &File, firsts: &RangeInclusive<Seq>) -> io::Result<()> {
        /// What is looked for is no longer.
        const OVERLAP: usize = HEAD_LEN + ZSTD_MAGIC.len();
        let index = self.files.len();
        let mut window = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            let len = read_up_to(file, &mut window, at)?;
            let bytes = &window[..len];
            for found in memchr::memmem::find_iter(bytes, &ZSTD_MAGIC) {
                let Some(begin) = found.checked_sub(HEAD_LEN) else {
                    continue;
                };
                if let Ok(head) = Head::parse(&bytes[begin..])
                    && let Some(places) = self.begins.get_mut(&head.first)
                {
                    note(places, (index, at + begin as u64));
                }
            }
            self.note_keys(bytes, firsts, (index, at));
            if len < window.len() {
                return Ok(());
            }
            // Something may lie across the edge of the window.
            at += (len - OVERLAP) as u64;
        }
    }

    /// Notes what stands behind keys of pieces in these bytes, which begin at a place. Most bytes are told from a key by one
    /// comparison.
    fn note_keys(&mut self, bytes: &[u8], firsts: &RangeInclusive<Seq>, (index, at): Place) {
        let mut first = 0_u64;
        for (end, byte) in bytes.iter().enumerate() {
            first = first << 8 | u64::from(*byte);
            if !firsts.contains(&Seq(first)) {
                continue;
            }
            let Some((chunk, _)) = bytes[end + 1..].split_first_chunk::<2>() else {
                return;
            };
            let key = (Seq(first), u16::from_be_bytes(*chunk));
            if let Some(places) = self.values.get_mut(&key) {
                note(places, (index, at + (end + 1 + chunk.len()) as u64));
            }
        }
    }

    /// The bytes of a pack, if all of them are there.
    pub fn pack(&self, pack: Pack) -> io::Result<Option<Vec<u8>>> {
        if let Some(whole) = self.by_keys(pack)? {
            return Ok(Some(whole));
        }
        self.by_its_head(pack)
    }

    /// Out of values behind their keys.
    fn by_keys(&self, pack: Pack) -> io::Result<Option<Vec<u8>>> {
        let mut candidates = vec![Vec::new()];
        for chunk in 0..pack.chunks {
            let values = self.values(pack.first, chunk)?;
            let mut longer = Vec::new();
            for value in &values {
                for candidate in &candidates {
                    longer.push([candidate.as_slice(), value].concat());
                }
            }
            longer.truncate(CANDIDATES_MAX);
            candidates = longer;
        }
        Ok(candidates.into_iter().find(|bytes| crc32c::crc32c(bytes) == pack.crc))
    }

    /// What stands behind the key of a piece, wherever it is, different values only.
    fn values(&self, first: Seq, chunk: u16) -> io::Result<Vec<Vec<u8>>> {
        let mut values: Vec<Vec<u8>> = Vec::new();
        for (file, at) in self.values.get(&(first, chunk)).into_iter().flatten() {
            let file = &self.files[*file];
            let mut head = [0; 4];
            let read = read_up_to(file, &mut head, *at)?;
            let Some((len, head_len)) = value_len(&head[..read]) else {
                continue;
            };
            let mut value = vec![0; len];
            if read_up_to(file, &mut value, at + head_len)? == len && !values.contains(&value) {
                values.push(value);
            }
        }
        values.truncate(CANDIDATES_MAX);
        Ok(values)
    }

    /// Out of values that lie behind each other.
    fn by_its_head(&self, pack: Pack) -> io::Result<Option<Vec<u8>>> {
        for (file, at) in self.begins.get(&pack.first).into_iter().flatten() {
            let mut head = [0; HEAD_LEN];
            self.files[*file].read_exact_at(&mut head, *at)?;
            let Ok(head) = Head::parse(&head) else { continue };
            let most = HEAD_LEN
                + zstd::zstd_safe::compress_bound(head.raw_len as usize)
                + BETWEEN_MAX * usize::from(pack.chunks);
            let mut bytes = vec![0; most];
            let len = read_up_to(&self.files[*file], &mut bytes, *at)?;
            bytes.truncate(len);
            if let Some(whole) = joined(&bytes, pack) {
                return Ok(Some(whole));
            }
        }
        Ok(None)
    }
}

/// The length of a value as it is written in front of it, and how many bytes that takes.
fn value_len(head: &[u8]) -> Option<(usize, u64)> {
    match *head {
        [short @ 0..=240, ..] => Some((short.into(), 1)),
        [high @ 241..=248, low, ..] => Some((240 + (usize::from(high - 241) << 8) + usize::from(low), 2)),
        [249, low, high, ..] => Some((2288 + usize::from(u16::from_le_bytes([low, high])), 3)),
        [250, low, middle, high] => {
            let len = u32::from_le_bytes([low, middle, high, 0]) as usize;
            (len <= VALUE_MAX).then_some((len, 4))
        }
        _ => None,
    }
}

/// Notes a place; what is found twice, at the edge of two windows, is noted once.
fn note(places: &mut Vec<Place>, place: Place) {
    if places.len() < PLACES_MAX && places.last() != Some(&place) {
        places.push(place);
    }
}

/// The pack that begins here, its pieces joined whatever lies between them.
fn joined(bytes: &[u8], pack: Pack) -> Option<Vec<u8>> {
    for chunk_len in CHUNK_LENS {
        for between in 0..=BETWEEN_MAX {
            let mut candidate = Vec::with_capacity(bytes.len());
            let mut rest = bytes;
            while let Some((chunk, behind)) = rest.split_at_checked(chunk_len) {
                candidate.extend_from_slice(chunk);
                rest = behind.get(between..).unwrap_or_default();
            }
            candidate.extend_from_slice(rest);
            let frame = zstd::zstd_safe::find_frame_compressed_size(candidate.get(HEAD_LEN..)?);
            if let Ok(len) = frame
                && let Some(whole) = candidate.get(..HEAD_LEN + len)
                && crc32c::crc32c(whole) == pack.crc
            {
                return Some(whole.to_vec());
            }
            if pack.chunks == 1 {
                break;
            }
        }
    }
    None
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::super::packs::chunk_key;
    use super::*;

    /// Bytes that this thread has read from files so far.
    fn bytes_read() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse().unwrap()
    }

    #[test]
    fn a_database_is_looked_through_once_however_many_packs_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let mut noise = |len: usize| -> Vec<u8> { std::iter::repeat_with(|| random.u8(..)).take(len).collect() };
        let (mut content, mut packs, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..40_u64 {
            // In two pieces, with other bytes between them; the windows' edges lie anywhere.
            let pieces = [noise(60_000), noise(9_000)];
            let first = Seq(1_000 + number * 7);
            for (chunk, piece) in (0_u16..).zip(&pieces) {
                content.extend(noise(11_000));
                content.extend(chunk_key(first, chunk));
                content.extend([249, (piece.len() - 2288) as u8, ((piece.len() - 2288) >> 8) as u8]);
                content.extend(piece);
            }
            let whole = pieces.concat();
            packs.push(Pack {
                first,
                count: 7,
                chunks: 2,
                crc: crc32c::crc32c(&whole),
                newest_us: 0,
            });
            expected.push(whole);
        }
        std::fs::write(dir.path().join("db"), &content).unwrap();
        let before = bytes_read();
        let ore = Ore::find(dir.path(), &packs).unwrap();
        for (pack, expected) in packs.iter().zip(&expected) {
            assert_eq!(ore.pack(*pack).unwrap().as_ref(), Some(expected), "{}", pack.first);
        }
        let read = bytes_read() - before;
        assert!(read < content.len() as u64 * 3, "{read} bytes of {}", content.len());
    }
}
