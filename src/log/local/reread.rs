//! The keys of a segment are in its events, too: they are read from these where what was kept of them is gone or damaged.

use super::block;
use super::fault::{self, SegmentError};
use super::journal::OpenSegment;
use super::known::{Identity, Table};
use super::sealed::SealedSegment;
use super::shared::Segment;
use crate::framefile;

/// Puts the keys of a segment's events into a table. What can't be read now is an error: it would be stored again later. `progress` tells whether this
/// is still wanted.
pub(super) fn keys_of(
    segment: &Segment,
    table: &mut Table,
    progress: &mut dyn FnMut() -> bool,
) -> Result<(), SegmentError> {
    match segment {
        Segment::Sealed(sealed) => keys_of_sealed(sealed, table, progress),
        Segment::Open(open) => keys_of_open(open, table, progress),
    }
}

/// The same of a sealed segment.
pub(super) fn keys_of_sealed(
    sealed: &SealedSegment,
    table: &mut Table,
    progress: &mut dyn FnMut() -> bool,
) -> Result<(), SegmentError> {
    for index in 0..sealed.manifest.packs.len() {
        fault::go_on(progress)?;
        match sealed.read(index) {
            Ok(block) => {
                for event in &block.events {
                    if let Some(identity) = Identity::of(event) {
                        table.insert(&identity, event.seq, event.received_at);
                    }
                }
            }
            Err(error) => unless_damaged(error)?,
        }
    }
    Ok(())
}

fn keys_of_open(open: &OpenSegment, table: &mut Table, progress: &mut dyn FnMut() -> bool) -> Result<(), SegmentError> {
    let _open = open.opened();
    for block in open.blocks() {
        fault::go_on(progress)?;
        match open.read(block) {
            Ok(bytes) => {
                let read = block::for_each(&bytes, |event, identity| {
                    table.insert(&identity, event.seq, event.received_at);
                });
                read.or_else(|error| unless_damaged(SegmentError::Damaged(error.to_string())))?;
            }
            Err(error) => unless_damaged(error)?,
        }
    }
    Ok(())
}

/// What is damaged is found, named and set aside when it is read for somebody.
fn unless_damaged(error: SegmentError) -> Result<(), SegmentError> {
    let is_damaged = match &error {
        SegmentError::Io(source) => framefile::is_bad_medium(source),
        SegmentError::Damaged(_) | SegmentError::Newer(_) => true,
        SegmentError::Retired => false,
    };
    if is_damaged { Ok(()) } else { Err(error) }
}
