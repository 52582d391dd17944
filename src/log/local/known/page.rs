//! Pages: some hundred keys whose hashes follow each other, written small.
//!
//! A key is some 45 bytes as it is compared; what tells it apart are 16 of an id and five of a time. So a page keeps texts and
//! numbers apart: the texts compressed, the numbers as steps from one key to the next in the order of Seqs, which is more or
//! less that of times. That makes about 25 bytes a key, hashes not kept.
//!
//! Layout: CRC-32C of what follows `u32`, the page's number `u32`, then as variable-length numbers how many keys, the length of the
//! texts before and after compression; the texts; the numbers. A key of the usual form (an event's id and an instant in whole
//! microseconds) gives the length of its id, the id, and the step of the instant; any other one gives 255, its length and
//! itself.

use std::io;

use super::super::varint::{put_varint, take_varint};
use crate::event::Seq;

/// Keys in a page at the most.
const KEYS_MAX: usize = 256;

/// A page is closed when its keys have so many bytes.
const KEYS_LEN: usize = 24 << 10;

/// zstd level of texts: ids do not compress but for their alphabet, and no level finds more.
const LEVEL: i32 = 1;

/// No page's texts claim to be longer.
const TEXTS_LEN_MAX: usize = 1 << 20;

/// Marks a key that is not of the usual form.
const UNUSUAL: u8 = 255;

/// Cuts keys that come in the order of their hashes into pages.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The first hash in each page. Keys of one hash may lie in several.
    pub firsts: Vec<u64>,
    keys: Vec<(Seq, Vec<u8>)>,
    len: usize,
}

impl Pages {
    /// Adds the next key; gives a page when one is full.
    pub fn push(&mut self, hash: u64, key: &[u8], seq: Seq) -> io::Result<Option<Vec<u8>>> {
        let full = self.keys.len() >= KEYS_MAX || self.len >= KEYS_LEN;
        let page = if full { self.take()? } else { None };
        if self.keys.is_empty() {
            self.firsts.push(hash);
        }
        self.len += key.len();
        self.keys.push((seq, key.to_vec()));
        Ok(page)
    }

    /// The page that is not full yet.
    pub fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        self.len = 0;
        self.keys.sort_unstable();
        let page = encode(self.firsts.len() - 1, &self.keys);
        self.keys.clear();
        page.map(Some)
    }
}

fn encode(number: usize, keys: &[(Seq, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let (mut texts, mut ids, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut last_seq, mut last_us) = (0, 0_i64);
    for (seq, key) in keys {
        put_varint(&mut numbers, seq.0 - last_seq);
        last_seq = seq.0;
        if let Some((id, us)) = usual(key) {
            texts.push(id.len() as u8);
            ids.extend_from_slice(id);
            let step = us.wrapping_sub(last_us);
            put_varint(&mut numbers, (step << 1 ^ step >> 63).cast_unsigned());
            last_us = us;
        } else {
            texts.push(UNUSUAL);
            put_varint(&mut numbers, key.len() as u64);
            ids.extend_from_slice(key);
        }
    }
    texts.append(&mut ids);
    let compressed = zstd::bulk::compress(&texts, LEVEL)?;
    let mut page = vec![0; 4];
    page.extend_from_slice(&(number as u32).to_le_bytes());
    put_varint(&mut page, keys.len() as u64);
    put_varint(&mut page, texts.len() as u64);
    put_varint(&mut page, compressed.len() as u64);
    page.extend_from_slice(&compressed);
    page.extend_from_slice(&numbers);
    let crc = crc32c::crc32c(&page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
    Ok(page)
}

/// Id and microseconds of a key of the usual form.
fn usual(key: &[u8]) -> Option<(&[u8], i64)> {
    let (mark, rest) = key.split_first()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len));
    let (id, rest) = rest.split_at_checked(len)?;
    let (kind, instant) = rest.split_first()?;
    let nanoseconds = i128::from_be_bytes(instant.try_into().ok()?);
    let is_usual = *mark == b'e' && *kind == b'i' && len < usize::from(UNUSUAL) && nanoseconds % 1000 == 0;
    let us = i64::try_from(nanoseconds / 1000).ok()?;
    is_usual.then_some((id, us))
}

/// Hands every key of a page to `each`; an error of the kind `InvalidData` where the page is not what it was.
pub(super) fn for_each(page: &[u8], number: usize, mut each: impl FnMut(&[u8], Seq)) -> io::Result<()> {
    decode(page, number, &mut each)
        .ok_or_else(|| super::disk::damage(&format!("page {number} of known keys is damaged")))
}

/// Hands every key of every whole page in these bytes to `each`, wherever they lie.
pub(super) fn for_each_whole(bytes: &[u8], mut each: impl FnMut(&[u8], Seq)) {
    let mut rest = bytes;
    while let Some((_, behind)) = rest.split_first() {
        rest = match whole(rest) {
            Some((number, page)) if decode(page, number, &mut each).is_some() => &rest[page.len()..],
            _ => behind,
        };
    }
}

/// The page that these bytes begin with, and its number, if it is whole: where it ends shows from what is in it.
fn whole(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (crc, content) = bytes.split_first_chunk::<4>()?;
    let (label, mut rest) = content.split_first_chunk::<4>()?;
    let count = take_varint(&mut rest)? as usize;
    let texts_len = take_varint(&mut rest)? as usize;
    if count == 0 || count > KEYS_MAX || texts_len > TEXTS_LEN_MAX {
        return None;
    }
    let compressed_len = take_varint(&mut rest)? as usize;
    let (_, mut numbers) = rest.split_at_checked(compressed_len)?;
    // Of each key its Seq, and either an instant or a length.
    for _ in 0..2 * count {
        take_varint(&mut numbers)?;
    }
    let page = &bytes[..bytes.len() - numbers.len()];
    let is_whole = crc32c::crc32c(&page[4..]).to_le_bytes() == *crc;
    is_whole.then_some((u32::from_le_bytes(*label) as usize, page))
}

fn decode(page: &[u8], number: usize, each: &mut dyn FnMut(&[u8], Seq)) -> Option<()> {
    let (crc, content) = page.split_first_chunk::<4>()?;
    if crc32c::crc32c(content).to_le_bytes() != *crc {
        return None;
    }
    let (label, mut rest) = content.split_first_chunk::<4>()?;
    if *label != (number as u32).to_le_bytes() {
        return None;
    }
    let count = take_varint(&mut rest)? as usize;
    let texts_len = take_varint(&mut rest)? as usize;
    let compressed_len = take_varint(&mut rest)? as usize;
    let (compressed, mut numbers) = rest.split_at_checked(compressed_len)?;
    if texts_len > TEXTS_LEN_MAX {
        return None;
    }
    let texts = zstd::bulk::decompress(compressed, texts_len).ok()?;
    let (lens, mut ids) = texts.split_at_checked(count)?;
    let (mut seq, mut us) = (0_u64, 0_i64);
    let mut key = Vec::new();
    for len in lens {
        seq = seq.checked_add(take_varint(&mut numbers)?)?;
        if *len == UNUSUAL {
            let (whole, rest) = ids.split_at_checked(take_varint(&mut numbers)? as usize)?;
            ids = rest;
            each(whole, Seq(seq));
            continue;
        }
        let (id, rest) = ids.split_at_checked(usize::from(*len))?;
        ids = rest;
        let step = take_varint(&mut numbers)?;
        us = us.wrapping_add((step >> 1).cast_signed() ^ -(step & 1).cast_signed());
        key.clear();
        key.push(b'e');
        key.extend_from_slice(&u16::from(*len).to_be_bytes());
        key.extend_from_slice(id);
        key.push(b'i');
        key.extend_from_slice(&(i128::from(us) * 1000).to_be_bytes());
        each(&key, Seq(seq));
    }
    Some(())
}

/// The pages that may hold a hash, by the first hash of each.
pub(super) fn pages_of(firsts: &[u64], hash: u64) -> std::ops::Range<usize> {
    // The page before the first one that begins with it may end with it.
    let begin = firsts.partition_point(|first| *first < hash).saturating_sub(1);
    begin..firsts.partition_point(|first| *first <= hash).max(begin)
}

#[cfg(test)]
mod tests {
    use super::super::identity::{Identity, hash_of};
    use super::*;
    use crate::event::{EventKey, Updated};
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        let id = prop_oneof![8 => any::<u64>().prop_map(|id| format!("ev_{id}")), 1 => Just(String::new()), 1 => Just("x".repeat(300))];
        let updated = prop_oneof![
            8 => any::<i64>().prop_map(|us| Updated::Instant(i128::from(us) * 1000)),
            1 => any::<i128>().prop_map(Updated::Instant),
            1 => any::<char>().prop_map(|c| Updated::Text(c.to_string())),
            1 => Just(Updated::Missing)
        ];
        let event = (id, updated).prop_map(|(id, updated)| EventKey { id, updated });
        prop_oneof![
            9 => event.clone().prop_map(|key| Identity::of_event(&key)),
            1 => event.prop_map(|key| Identity::of_partial(&key)),
            1 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|body| Identity::of_quarantined(&body)),
            1 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|any| Identity::from_bytes(&any))
        ]
        .prop_map(|identity| identity.as_bytes().to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn every_key_is_in_one_of_the_pages_that_its_hash_names(
            keys in prop::collection::vec((key(), any::<u64>()), 1..800),
        ) {
            let mut sorted: Vec<(u64, Vec<u8>, Seq)> =
                keys.into_iter().map(|(key, seq)| (hash_of(&key), key, Seq(seq))).collect();
            sorted.sort();
            let mut pages = Pages::default();
            let mut written = Vec::new();
            for (hash, key, seq) in &sorted {
                written.extend(pages.push(*hash, key, *seq).unwrap());
            }
            written.extend(pages.take().unwrap());
            prop_assert_eq!(written.len(), pages.firsts.len());
            for (hash, key, seq) in &sorted {
                let mut found = 0;
                for number in pages_of(&pages.firsts, *hash) {
                    for_each(&written[number], number, |other, at| found += usize::from(other == key && at == *seq)).unwrap();
                }
                prop_assert!(found > 0);
            }
            let mut all = 0;
            for (number, page) in written.iter().enumerate() {
                for_each(page, number, |_, _| all += 1).unwrap();
                let mut bad = page.clone();
                bad[all % page.len()] ^= 1;
                prop_assert!(for_each(&bad, number, |_, _| ()).is_err());
                prop_assert!(for_each(page, number + 1, |_, _| ()).is_err());
            }
            prop_assert_eq!(all, sorted.len());
            // Without knowing where pages begin; what a bad byte hits is one of them.
            let mut bytes = vec![7; 100];
            bytes.extend(written.iter().flatten());
            let mut found = 0;
            for_each_whole(&bytes, |_, _| found += 1);
            prop_assert_eq!(found, sorted.len());
            let hit = 100 + all * 31 % (bytes.len() - 100);
            bytes[hit] ^= 1;
            found = 0;
            for_each_whole(&bytes, |_, _| found += 1);
            prop_assert!(found < sorted.len() && found + KEYS_MAX >= sorted.len());
        }
    }
}
