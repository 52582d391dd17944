//! What is left of a damaged file of known keys, when its head does not say any more where they are.
//!
//! A page of version 2 shows by itself where it ends, and has a checksum: whole ones are found wherever they lie. An entry of version
//! 1 names the hash of the key it leads to, and one begins where the key of the one before it ends: that tells how many
//! entries there are, and which of them still lead to their keys.

use super::disk::{long, word};
use super::first::{ENTRY_LEN, HEAD_LEN};
use super::identity::hash_of;
use super::page;
use crate::event::Seq;

/// Hands on the keys that can be made out in the bytes of a file of the segment that begins with `first` and ends before `end`.
pub(super) fn keys_in(bytes: &[u8], first: Seq, end: Seq, each: &mut dyn FnMut(&[u8], Seq)) {
    let mut found = 0_usize;
    page::for_each_whole(bytes, |key, seq| {
        found += 1;
        each(key, seq);
    });
    if found > 0 || bytes.len() < HEAD_LEN {
        return;
    }
    let fits = |count: &usize| *count <= (bytes.len() - HEAD_LEN) / ENTRY_LEN;
    let said = usize::try_from(long(bytes, 16)).ok().filter(fits);
    let whole = |count: usize| entries(bytes, count).filter(move |(_, seq)| first <= *seq && *seq < end);
    let best = said
        .into_iter()
        .chain([counted(bytes)])
        .max_by_key(|count| whole(*count).count());
    for (key, seq) in whole(best.unwrap_or_default()) {
        each(key, seq);
    }
}

/// How many entries of version 1 follow each other.
fn counted(bytes: &[u8]) -> usize {
    let mut key_at = 0;
    let follows = |entry: &&[u8]| {
        let is_next = word(entry, 16) == key_at;
        key_at = key_at.wrapping_add(word(entry, 20));
        is_next
    };
    bytes[HEAD_LEN..].chunks_exact(ENTRY_LEN).take_while(follows).count()
}

/// The keys that so many entries of version 1 lead to, each with its Seq; those of which the hash is right.
fn entries(bytes: &[u8], count: usize) -> impl Iterator<Item = (&[u8], Seq)> {
    let (entries, keys) = bytes[HEAD_LEN..].split_at(count * ENTRY_LEN);
    entries.chunks_exact(ENTRY_LEN).filter_map(|entry| {
        let at = word(entry, 16) as usize;
        let key = keys.get(at..at.checked_add(word(entry, 20) as usize)?)?;
        (hash_of(key) == long(entry, 0)).then(|| (key, Seq(long(entry, 8))))
    })
}
