//! What a letter and a copy of an event are as bytes.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::deliver::DeadLetter;
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};
use crate::framefile::{Format, FrameError, FrameFile};

pub(super) const FORMAT: Format = Format {
    magic: *b"CLHKDEAD",
    version: 3,
};

/// A letter with a copy of its event: Seq, length of the JSON, JSON, body. Only in files of version 1.
pub(super) const TAG_WITH_COPY: u32 = 1;
/// Letters that went: their Seqs.
pub(super) const TAG_REMOVE: u32 = 2;
/// A letter: Seq, JSON.
pub(super) const TAG_LETTER: u32 = 3;
/// Copies of events: their number, their Seqs, and the block of [`pack`].
pub(super) const TAG_COPIES: u32 = 4;

/// Letters that were dropped: their event is dead, and nothing is kept of it. Ranges of Seqs, each its first and last; no Seq is 0, and
/// what begins with it says up to where it was forgotten what was dropped.
pub(super) const TAG_DROPPED: u32 = 5;

/// A letter of another sink that is to be delivered here: as [`TAG_LETTER`], with the lease under which it was given.
pub(super) const TAG_GIVEN: u32 = 6;

/// Events of which another sink has durably got the letter: ranges, as [`TAG_DROPPED`].
pub(super) const TAG_DIVERTED: u32 = 7;

/// What a block of copies is compressed with; bodies of up to 64 MiB are in one.
const ZSTD_LEVEL: i32 = 3;
const BLOCK_LEN_MAX: usize = 128 << 20;

/// Letters of other sinks that were dropped before they were delivered here: as [`TAG_DROPPED`]. They say nothing of what this sink has to
/// deliver itself.
pub(super) const TAG_DROPPED_GIVEN: u32 = 8;

/// Letters of other sinks, given here, of which those are known to have let go: ranges, as [`TAG_DROPPED`].
pub(super) const TAG_RELEASED: u32 = 9;

/// Events of which a replay's deliveries went to another sink: the length of the replay's id, the id, and ranges as [`TAG_DROPPED`].
pub(super) const TAG_REPLAYED: u32 = 10;

/// Of a journal: who has the sink from now on; a number that rises. What others write under a smaller one does not count.
pub(super) const TAG_FENCE: u32 = 11;

/// Of a journal: everything that is known at this place, but for letters and copies.
pub(super) const TAG_WHOLE: u32 = 12;

/// What is kept of an event beside its body.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    seq: Seq,
    received_at: Timestamp,
    source: Source,
    kind: Kind,
    signature: Option<SignatureHeaders>,
}

/// A letter of version 1.
#[derive(Debug, Deserialize)]
struct OldRecord {
    letter: DeadLetter,
    received_at: Timestamp,
    source: Source,
    signature: Option<SignatureHeaders>,
}

/// The format version in a file's header.
pub(super) fn version_of(path: &Path) -> Result<u32, FrameError> {
    use std::os::unix::fs::FileExt;
    let fail = |source| FrameError::Io {
        path: path.to_owned(),
        source,
    };
    let mut version = [0; 4];
    let file = std::fs::File::open(path).map_err(fail)?;
    file.read_exact_at(&mut version, FORMAT.magic.len() as u64)
        .map_err(fail)?;
    Ok(u32::from_le_bytes(version))
}

pub(super) fn append_copies(file: &mut FrameFile, events: &[&Event]) -> Result<(u64, u64), FrameError> {
    let payload = copies_payload(events).map_err(|source| FrameError::Io {
        path: file.path().to_owned(),
        source,
    })?;
    let offset = file.append(TAG_COPIES, &[&payload])?;
    Ok((offset, payload.len() as u64))
}

/// The payload of a frame with [`TAG_COPIES`].
pub(super) fn copies_payload(events: &[&Event]) -> std::io::Result<Vec<u8>> {
    let count = (events.len() as u32).to_le_bytes();
    let seqs = events.iter().flat_map(|event| event.seq.0.to_le_bytes());
    let mut payload: Vec<u8> = count.into_iter().chain(seqs).collect();
    payload.extend(pack(events)?);
    Ok(payload)
}

/// The payload of a frame with [`TAG_LETTER`].
pub(super) fn letter_payload(letter: &DeadLetter) -> Vec<u8> {
    let json = serde_json::to_vec(letter).unwrap_or_default();
    [&letter.seq.0.to_le_bytes()[..], &json].concat()
}

/// The payload of a frame with [`TAG_GIVEN`]: the letter, and under which lease of its sink's it is given.
pub(super) fn given_payload(letter: &DeadLetter, fence: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct Given<'a> {
        #[serde(flatten)]
        letter: &'a DeadLetter,
        #[serde(skip_serializing_if = "is_none")]
        fence: u64,
    }
    let json = serde_json::to_vec(&Given { letter, fence }).unwrap_or_default();
    [&letter.seq.0.to_le_bytes()[..], &json].concat()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(fence: &u64) -> bool {
    *fence == 0
}

/// Who gives a letter that withholds it from the sink it is given to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Giver {
    /// The sink that gives it.
    pub sink: String,
    /// Under which lease.
    pub fence: u64,
}

impl Giver {
    /// Who gives this letter under a lease.
    pub fn of(letter: &DeadLetter, fence: u64) -> Giver {
        Giver {
            sink: letter.dead.as_ref().map(|dead| dead.sink.clone()).unwrap_or_default(),
            fence,
        }
    }

    /// Who gives the letter in a payload with [`TAG_GIVEN`].
    pub fn in_payload(payload: &[u8]) -> Giver {
        #[derive(Deserialize)]
        struct Sink {
            sink: String,
        }
        #[derive(Deserialize)]
        struct Given {
            dead: Option<Sink>,
            #[serde(default)]
            fence: u64,
        }
        let given = payload.get(8..).and_then(|json| serde_json::from_slice(json).ok());
        given.map_or_else(Giver::default, |given: Given| Giver {
            sink: given.dead.map(|dead| dead.sink).unwrap_or_default(),
            fence: given.fence,
        })
    }
}

/// Events in one compressed block: for each the length of its head, the head as JSON, the length of the body, the body.
fn pack(events: &[&Event]) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    for event in events {
        let head = Head {
            seq: event.seq,
            received_at: event.received_at,
            source: event.source,
            kind: event.kind,
            signature: event.signature.clone(),
        };
        let head = serde_json::to_vec(&head)?;
        raw.extend((head.len() as u32).to_le_bytes());
        raw.extend(head);
        raw.extend((event.body.len() as u32).to_le_bytes());
        raw.extend(&event.body[..]);
    }
    zstd::bulk::compress(&raw, ZSTD_LEVEL)
}

/// What a whole block holds; nothing where it is not what it should be.
fn unpack(block: &[u8]) -> Option<Vec<Event>> {
    let mut raw = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(block).ok()?;
    let limit = BLOCK_LEN_MAX as u64;
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut decoder, limit), &mut raw).ok()?;
    let mut rest = raw.as_slice();
    let mut part = || {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = after;
        Some(part)
    };
    let mut events = Vec::new();
    while let Some(head) = part() {
        let head: Head = serde_json::from_slice(head).ok()?;
        let body = part()?.to_vec().into();
        events.push(Event::new(
            head.seq,
            head.received_at,
            head.source,
            head.kind,
            head.signature,
            body,
        ));
    }
    Some(events)
}

/// The Seqs in front of a block, and the block.
pub(super) fn split_copies(payload: &[u8]) -> Option<(Vec<Seq>, &[u8])> {
    let (count, rest) = payload.split_first_chunk::<4>()?;
    let (seqs, block) = rest.split_at_checked(u32::from_le_bytes(*count) as usize * 8)?;
    Some((seqs.chunks_exact(8).filter_map(seq_of).collect(), block))
}

pub(super) fn events_in(tag: u32, payload: &[u8]) -> Vec<Event> {
    match tag {
        TAG_COPIES => split_copies(payload)
            .and_then(|(_, block)| unpack(block))
            .unwrap_or_default(),
        TAG_WITH_COPY => old_record(payload)
            .map(|(record, body)| {
                Event::new(
                    record.letter.seq,
                    record.received_at,
                    record.source,
                    Kind::Event,
                    record.signature,
                    body.to_vec().into(),
                )
            })
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

pub(super) fn letter_in(tag: u32, payload: &[u8]) -> Option<DeadLetter> {
    match tag {
        TAG_LETTER | TAG_GIVEN => serde_json::from_slice(payload.get(8..)?).ok(),
        TAG_WITH_COPY => old_record(payload).map(|(record, _)| record.letter),
        _ => None,
    }
}

/// When the event of a letter was given up; what has no end where that can't be read.
pub(super) fn died_at(payload: &[u8]) -> Timestamp {
    #[derive(Deserialize)]
    struct Died {
        died_at: Timestamp,
    }
    let died = payload.get(8..).and_then(|json| serde_json::from_slice(json).ok());
    died.map_or(Timestamp::MAX, |died: Died| died.died_at)
}

fn old_record(payload: &[u8]) -> Option<(OldRecord, &[u8])> {
    let rest = payload.get(8..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (json, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((serde_json::from_slice(json).ok()?, body))
}

/// The payload of a frame with [`TAG_DROPPED`].
pub(super) fn dropped_payload(ranges: &[(Seq, Seq)]) -> Vec<u8> {
    let pair = |(from, to): &(Seq, Seq)| [from.0.to_le_bytes(), to.0.to_le_bytes()].concat();
    ranges.iter().flat_map(pair).collect()
}

pub(super) fn dropped_in(payload: &[u8]) -> impl Iterator<Item = (Seq, Seq)> {
    let pair = |bytes: &[u8]| Some((seq_of(bytes)?, seq_of(&bytes[8..])?));
    payload
        .chunks_exact(16)
        .filter_map(pair)
        .filter(|(from, to)| from <= to)
}

/// The payload of a frame with [`TAG_REPLAYED`].
pub(super) fn replayed_payload(replay: &str, ranges: &[(Seq, Seq)]) -> Vec<u8> {
    let len = (replay.len() as u32).to_le_bytes();
    [&len[..], replay.as_bytes(), &dropped_payload(ranges)].concat()
}

/// The replay and the ranges of such a payload.
pub(super) fn replayed_in(payload: &[u8]) -> Option<(&str, impl Iterator<Item = (Seq, Seq)>)> {
    let (len, rest) = payload.split_first_chunk::<4>()?;
    let (id, ranges) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((std::str::from_utf8(id).ok()?, dropped_in(ranges)))
}

pub(super) fn seq_of(payload: &[u8]) -> Option<Seq> {
    payload.first_chunk::<8>().map(|bytes| Seq(u64::from_le_bytes(*bytes)))
}
