//! What is where in a sealed segment: which events have this id, lead, object or type, so that only their packs are read.
//!
//! Each kind has a tree of its own, of numbered pages. A page holds entries, sorted by a number that stands for the text looked
//! for (a few bits of its checksum, or of a type its place in a dictionary), each with the places of the events that have it.
//! Two texts may share a number: an index gives candidates, and may give some too many, never one too few. It costs about 4
//! bytes an event for each of ids, leads and objects, and less than one for types.
//!
//! Every page has a checksum of its own and says which one it is. Where one is not what it should be nothing is concluded from
//! it: the segment is read whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::fault::SegmentError;
use super::super::varint::{put_varint, take_varint};
use super::database::{Database, Tree};
use crate::event::{Event, EventPattern, Seq};
use crate::log::Narrow;

/// A page is closed when its entries have so many bytes before compression.
const PAGE_LEN: usize = 16 << 10;

/// Places in one entry at the most; a text that is at more places has several entries.
const ENTRY_PLACES_MAX: usize = 2048;

/// So many bits more than tell the texts of a segment apart: one text in 64 that is not there looks as if it were.
const SPARE_BITS: u32 = 6;

/// The texts of types that a dictionary holds, in bytes; events of further types are candidates for every type.
const DICTIONARY_LEN_MAX: usize = 32 << 10;

/// zstd level of pages.
const PAGE_LEVEL: i32 = 3;

/// No page claims to be longer than this.
const PAGE_RAW_MAX: usize = 1 << 20;

/// Where the pages are; a part of the manifest, which has a checksum.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::log::local) struct Index {
    /// The Seq that places count from.
    first: Seq,
    ids: Pages,
    leads: Pages,
    objects: Pages,
    types: Pages,
    /// The texts of types; a text's place in it is its number. Events of all other types have the number behind the last one.
    dictionary: Vec<String>,
}

/// The pages of one tree.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Pages {
    /// How many bits of a checksum are not looked at.
    shift: u32,
    /// The first number in each page.
    firsts: Vec<u32>,
}

/// Collects what the index of a segment is made of, in the order of the events.
#[derive(Debug, Default)]
pub(super) struct Collector {
    first: Option<Seq>,
    ids: Vec<(u32, u32)>,
    leads: Vec<(u32, u32)>,
    objects: Vec<(u32, u32)>,
    types: Vec<(u32, u32)>,
    dictionary: BTreeMap<String, u32>,
    dictionary_len: usize,
    /// The segment spans more Seqs than a place can tell apart.
    too_wide: bool,
}

/// The number of what the dictionary has no room for, until it is known how many are in it.
const OTHER: u32 = u32::MAX;

impl Collector {
    /// Notes where an event is found.
    pub fn note(&mut self, event: &Event) {
        let first = *self.first.get_or_insert(event.seq);
        let Ok(place) = u32::try_from(event.seq.0 - first.0) else {
            self.too_wide = true;
            return;
        };
        // Nobody looks for what was erased, or never was a delivery, by what is in it.
        let Some(view) = event.view() else { return };
        self.ids.push((checksum(&view.id), place));
        if let Some(lead) = &view.lead_id {
            self.leads.push((checksum(lead), place));
        }
        if let Some(object) = &view.object_id {
            self.objects.push((checksum(object), place));
        }
        if let Some(text) = view.type_action() {
            let number = self.number_of(text);
            self.types.push((number, place));
        }
    }

    fn number_of(&mut self, text: String) -> u32 {
        if let Some(number) = self.dictionary.get(&text) {
            return *number;
        }
        if self.dictionary_len + text.len() > DICTIONARY_LEN_MAX {
            return OTHER;
        }
        self.dictionary_len += text.len();
        let number = self.dictionary.len() as u32;
        self.dictionary.insert(text, number);
        number
    }

    /// Puts the index into the segment's database; `None` where none can be made.
    pub fn store(mut self, db: &Database) -> Result<Option<Index>, SegmentError> {
        let Some(first) = self.first.filter(|_| !self.too_wide) else {
            return Ok(None);
        };
        let mut dictionary = vec![String::new(); self.dictionary.len()];
        for (text, number) in self.dictionary {
            dictionary[number as usize] = text;
        }
        for (number, _) in &mut self.types {
            *number = (*number).min(dictionary.len() as u32);
        }
        let index = Index {
            first,
            ids: store_hashed(db, Tree::Ids, self.ids)?,
            leads: store_hashed(db, Tree::Leads, self.leads)?,
            objects: store_hashed(db, Tree::Objects, self.objects)?,
            types: store_pages(db, Tree::Types, 0, self.types)?,
            dictionary,
        };
        db.flush()?;
        Ok(Some(index))
    }
}

fn checksum(text: &str) -> u32 {
    crc32c::crc32c(text.as_bytes())
}

/// Keeps as few bits of the checksums as tell the texts apart.
fn store_hashed(db: &Database, tree: Tree, mut found: Vec<(u32, u32)>) -> Result<Pages, SegmentError> {
    found.sort_unstable();
    let distinct = found.chunk_by(|one, next| one.0 == next.0).count() as u32;
    let bits = (u32::BITS - distinct.leading_zeros() + SPARE_BITS).min(u32::BITS);
    let shift = u32::BITS - bits;
    for (number, _) in &mut found {
        *number >>= shift;
    }
    store_pages(db, tree, shift, found)
}

fn store_pages(db: &Database, tree: Tree, shift: u32, mut found: Vec<(u32, u32)>) -> Result<Pages, SegmentError> {
    found.sort_unstable();
    found.dedup();
    let mut pages = Pages {
        shift,
        firsts: Vec::new(),
    };
    let mut page = Vec::new();
    let mut last = 0;
    let entries = found
        .chunk_by(|one, next| one.0 == next.0)
        .flat_map(|same| same.chunks(ENTRY_PLACES_MAX));
    for entry in entries {
        let number = entry[0].0;
        if page.is_empty() {
            pages.firsts.push(number);
            last = number;
        }
        put_varint(&mut page, (number - last).into());
        last = number;
        put_places(&mut page, entry);
        if page.len() >= PAGE_LEN {
            store_page(db, tree, pages.firsts.len() - 1, &page)?;
            page.clear();
        }
    }
    if !page.is_empty() {
        store_page(db, tree, pages.firsts.len() - 1, &page)?;
    }
    Ok(pages)
}

/// The first place with a mark whether there are more, then how many more, then the steps between them.
fn put_places(page: &mut Vec<u8>, entry: &[(u32, u32)]) {
    let mut place = entry[0].1;
    let more = entry.len() - 1;
    put_varint(page, u64::from(place) << 1 | u64::from(more > 0));
    if more > 0 {
        put_varint(page, more as u64);
    }
    for (_, next) in &entry[1..] {
        put_varint(page, (next - place).into());
        place = *next;
    }
}

/// A page as it is kept: checksum of all that follows, which page of which tree it is, length before compression, content.
fn store_page(db: &Database, tree: Tree, number: usize, raw: &[u8]) -> Result<(), SegmentError> {
    let compressed = zstd::bulk::compress(raw, PAGE_LEVEL)?;
    let mut value = vec![0; 4];
    value.extend_from_slice(&page_label(tree, number));
    value.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    value.extend_from_slice(&compressed);
    let crc = crc32c::crc32c(&value[4..]);
    value[..4].copy_from_slice(&crc.to_le_bytes());
    db.put(tree, &(number as u32).to_be_bytes(), &value)
}

fn page_label(tree: Tree, number: usize) -> [u8; 5] {
    let mut label = [tree as u8; 5];
    label[1..].copy_from_slice(&(number as u32).to_le_bytes());
    label
}

fn load_page(db: &Database, tree: Tree, number: usize) -> Result<Vec<u8>, SegmentError> {
    let bad = || SegmentError::Damaged(format!("page {number} of {tree:?} is not what it was"));
    let value = db.get(tree, &(number as u32).to_be_bytes())?.ok_or_else(bad)?;
    let (crc, labelled) = value.split_at_checked(4).ok_or_else(bad)?;
    let (label, rest) = labelled.split_at_checked(5).ok_or_else(bad)?;
    if crc != crc32c::crc32c(labelled).to_le_bytes() || label != page_label(tree, number) {
        return Err(bad());
    }
    let (len, compressed) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > PAGE_RAW_MAX {
        return Err(bad());
    }
    let raw = zstd::bulk::decompress(compressed, len).map_err(|_| bad())?;
    if raw.len() == len { Ok(raw) } else { Err(bad()) }
}

impl Index {
    /// Reads every page, checking it.
    pub fn read_all(&self, db: &Database) -> Result<(), SegmentError> {
        for (tree, pages) in self.trees() {
            for number in 0..pages.firsts.len() {
                load_page(db, tree, number)?;
            }
        }
        Ok(())
    }

    fn trees(&self) -> [(Tree, &Pages); 4] {
        [
            (Tree::Ids, &self.ids),
            (Tree::Leads, &self.leads),
            (Tree::Objects, &self.objects),
            (Tree::Types, &self.types),
        ]
    }

    /// The Seqs of the events that `narrow` leaves, perhaps with some others, and how many bytes were read for it; `None` where
    /// it restricts nothing that is looked up here.
    pub fn look_up(&self, db: &Database, narrow: &Narrow) -> Result<(Option<Vec<Seq>>, usize), SegmentError> {
        let mut candidates: Option<Vec<u32>> = None;
        let mut read = 0;
        let texts = [&narrow.ids, &narrow.leads, &narrow.objects];
        let mut wanted: Vec<(Tree, &Pages, BTreeSet<u32>)> = Vec::new();
        for ((tree, pages), texts) in self.trees().into_iter().zip(texts) {
            if !texts.is_empty() {
                let numbers = texts.iter().map(|text| checksum(text) >> pages.shift).collect();
                wanted.push((tree, pages, numbers));
            }
        }
        if let Some(numbers) = self.numbers_of(&narrow.types) {
            wanted.push((Tree::Types, &self.types, numbers));
        }
        for (tree, pages, numbers) in wanted {
            // What is ruled out already needs no further look.
            if candidates.as_ref().is_some_and(Vec::is_empty) {
                break;
            }
            let found = pages.find(db, tree, &numbers, &mut read)?;
            candidates = Some(match candidates {
                None => found,
                Some(before) => before
                    .into_iter()
                    .filter(|place| found.binary_search(place).is_ok())
                    .collect(),
            });
        }
        let seqs = |places: Vec<u32>| places.into_iter().map(|place| Seq(self.first.0 + u64::from(place)));
        Ok((candidates.map(|places| seqs(places).collect()), read))
    }

    /// The numbers of the types that one of the patterns stands for; `None` where they restrict nothing.
    fn numbers_of(&self, patterns: &[String]) -> Option<BTreeSet<u32>> {
        if patterns.is_empty() {
            return None;
        }
        // A pattern that can't be read is for the reader to judge.
        let patterns: Vec<EventPattern> = patterns
            .iter()
            .map(|text| EventPattern::parse(text).ok())
            .collect::<Option<_>>()?;
        // Events without a type are in no page.
        if patterns.iter().any(EventPattern::is_all) {
            return None;
        }
        let matching = (0..).zip(&self.dictionary).filter_map(|(number, text)| {
            let matches = patterns.iter().any(|pattern| pattern.matches(Some(text)));
            matches.then_some(number)
        });
        Some(matching.chain([self.dictionary.len() as u32]).collect())
    }
}

impl Pages {
    /// The places of everything that has one of these numbers, in order.
    fn find(
        &self,
        db: &Database,
        tree: Tree,
        numbers: &BTreeSet<u32>,
        read: &mut usize,
    ) -> Result<Vec<u32>, SegmentError> {
        let mut found = Vec::new();
        let mut page: Option<(usize, Vec<u8>)> = None;
        for number in numbers {
            // The page before the first one that begins with it may end with it.
            let mut at = self.firsts.partition_point(|first| first < number).saturating_sub(1);
            while self.firsts.get(at).is_some_and(|first| first <= number) {
                let raw = match page.take() {
                    Some((loaded, raw)) if loaded == at => raw,
                    _ => load_page(db, tree, at)?,
                };
                *read += raw.len();
                let bad = || SegmentError::Damaged(format!("page {at} of {tree:?} makes no sense"));
                places_in(&raw, self.firsts[at], *number, &mut found).ok_or_else(bad)?;
                page = Some((at, raw));
                at += 1;
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// Adds the places of a number in a page; `None` where the page makes no sense.
fn places_in(mut page: &[u8], first: u32, wanted: u32, found: &mut Vec<u32>) -> Option<()> {
    let mut number = first;
    while !page.is_empty() {
        number = number.checked_add(u32::try_from(take_varint(&mut page)?).ok()?)?;
        if number > wanted {
            return Some(());
        }
        let head = take_varint(&mut page)?;
        let mut place = u32::try_from(head >> 1).ok()?;
        let more = if head & 1 == 1 { take_varint(&mut page)? } else { 0 };
        if number == wanted {
            found.push(place);
        }
        for _ in 0..more {
            place = place.checked_add(u32::try_from(take_varint(&mut page)?).ok()?)?;
            if number == wanted {
                found.push(place);
            }
        }
    }
    Some(())
}
