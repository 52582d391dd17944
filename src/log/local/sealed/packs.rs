//! Packs: events as they lie in a sealed segment's database, and how the database is built from them.

use std::path::Path;

use super::super::block::{Block, Encoder, Head};
use super::super::fault::{SegmentError, go_on};
use super::database::{self, DB_NAME, Database, Tree, VALUE_LEN_MAX};
use super::index::Collector;
use super::manifest::{Manifest, Pack};
use super::swap::remove_dir;
use crate::event::Seq;
use crate::framefile;

/// A pack is closed when it holds this much before compression: large enough to compress well, small enough that reading
/// one event out of it takes about a millisecond.
const PACK_LEN: usize = 1 << 20;

/// zstd level of packs: they are written once, in the background.
const PACK_LEVEL: i32 = 3;

/// Builds a database out of blocks in `dir`, checks it, syncs it and writes its manifest. `progress` answers `false` to stop.
pub(super) fn build(
    dir: &Path,
    mut next: impl FnMut() -> Result<Option<Block>, SegmentError>,
    progress: &mut dyn FnMut() -> bool,
) -> Result<Manifest, SegmentError> {
    let path = dir.join(DB_NAME);
    remove_dir(&path)?;
    let mut manifest = Manifest {
        first: Seq::ZERO,
        last: Seq::ZERO,
        events: 0,
        raw_bytes: 0,
        oldest_us: i64::MAX,
        newest_us: i64::MIN,
        packs: Vec::new(),
        index: None,
        files: Vec::new(),
    };
    let mut encoder = Encoder::new(PACK_LEVEL)?;
    let mut collector = Collector::default();
    let db = Database::open(&path)?;
    while let Some(block) = next()? {
        for event in &block.events {
            let follows = event.seq == manifest.last.next() || manifest.events == 0;
            if encoder.raw_len() >= PACK_LEN || (!follows && !encoder.is_empty()) {
                put_pack(&db, &mut encoder, &mut manifest)?;
            }
            if manifest.events == 0 {
                manifest.first = event.seq;
            }
            manifest.last = event.seq;
            manifest.events += 1;
            let received_us = event.received_at.as_microsecond();
            manifest.oldest_us = manifest.oldest_us.min(received_us);
            manifest.newest_us = manifest.newest_us.max(received_us);
            collector.note(event);
            // Identities are in the key file; the records of a pack need none.
            encoder.push(event, &[]);
        }
        go_on(progress)?;
    }
    put_pack(&db, &mut encoder, &mut manifest)?;
    manifest.index = collector.store(&db)?;
    drop(db);
    manifest.files = database::settle(&path, &mut |db| {
        for pack in &manifest.packs {
            get_pack(db, *pack)?;
            go_on(progress)?;
        }
        match &manifest.index {
            Some(index) => index.read_all(db),
            None => Ok(()),
        }
    })?;
    framefile::sync_dir(dir)?;
    manifest.store(dir)?;
    Ok(manifest)
}

pub(super) fn put_pack(db: &Database, encoder: &mut Encoder, manifest: &mut Manifest) -> Result<(), SegmentError> {
    manifest.raw_bytes += encoder.raw_len() as u64;
    let bytes = encoder.finish()?;
    if bytes.is_empty() {
        return Ok(());
    }
    let head = Head::parse(bytes).map_err(|error| SegmentError::Damaged(error.to_string()))?;
    let mut chunks = 0_u16;
    for chunk in bytes.chunks(VALUE_LEN_MAX) {
        db.put(Tree::Packs, &chunk_key(head.first, chunks), chunk)?;
        chunks += 1;
    }
    // Without it a leaf's whole content is rewritten again and again.
    db.flush()?;
    manifest.packs.push(Pack {
        first: head.first,
        count: head.count,
        chunks,
        crc: crc32c::crc32c(bytes),
        newest_us: head.newest_us,
    });
    Ok(())
}

pub(super) fn get_pack(db: &Database, pack: Pack) -> Result<Vec<u8>, SegmentError> {
    let damaged = |why: &str| SegmentError::Damaged(format!("events {} to {}: {why}", pack.first, pack.last()));
    let mut bytes = Vec::new();
    for chunk in 0..pack.chunks {
        match db.get(Tree::Packs, &chunk_key(pack.first, chunk)) {
            Ok(Some(value)) => bytes.extend_from_slice(&value),
            Ok(None) => return Err(damaged("they are not in the database")),
            Err(SegmentError::Damaged(why)) => return Err(damaged(&why)),
            Err(error) => return Err(error),
        }
    }
    if crc32c::crc32c(&bytes) != pack.crc {
        return Err(damaged("their checksum is wrong"));
    }
    Ok(bytes)
}

/// The key of a part of a pack.
pub(super) fn chunk_key(first: Seq, chunk: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&first.0.to_be_bytes());
    key[8..].copy_from_slice(&chunk.to_be_bytes());
    key
}
