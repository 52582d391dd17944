//! A block: the events of one group commit (in the journal) or of one pack (in a sealed segment), encoded once.
//!
//! Layout, little-endian: first Seq `u64`, count `u32`, length before compression `u32`, oldest and newest time of receipt
//! in µs `i64` each, then the zstd-compressed records. A record is a fixed head (times, marks, lengths) and then the
//! signature headers, the identity ([`super::known`]) and the body, each byte for byte. Seqs inside a block count up by one.
//! A block carries no checksum of its own: the frame around it (journal) or the manifest (sealed segment) does.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;

use super::known::Identity;
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};

/// Bytes of a block's head.
pub(super) const HEAD_LEN: usize = 32;
const RECORD_HEAD_LEN: usize = 19;

/// Bytes of a record beside its body, usually: its head, the signature headers, an identity.
const RECORD_OVERHEAD: usize = RECORD_HEAD_LEN + 10 + 64 + 64;

/// Bytes of an event in memory beside its body, its view included, roughly: for budgets.
const EVENT_OVERHEAD: usize = 768;

/// An encoder keeps buffers of this size between blocks.
const BUFFER_KEPT: usize = 4 << 20;

/// No block may claim to be larger than this when decompressed: larger is damage.
const RAW_LEN_MAX: usize = 128 << 20;

/// A block can't be decoded although its checksum was right: a defect, or a format this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a block can't be decoded: {0}")]
pub(super) struct BadBlock(&'static str);

/// What a block's head says, without decompressing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub first: Seq,
    pub count: u32,
    pub raw_len: u32,
    pub oldest_us: i64,
    pub newest_us: i64,
}

impl Head {
    /// Reads the head of an encoded block.
    pub fn parse(block: &[u8]) -> Result<Head, BadBlock> {
        let mut fields = Fields(block);
        let head = Head {
            first: Seq(u64::from_le_bytes(fields.array()?)),
            count: u32::from_le_bytes(fields.array()?),
            raw_len: u32::from_le_bytes(fields.array()?),
            oldest_us: i64::from_le_bytes(fields.array()?),
            newest_us: i64::from_le_bytes(fields.array()?),
        };
        let fits = head.count as usize <= head.raw_len as usize / RECORD_HEAD_LEN;
        let ends = head.first.0.checked_add(u64::from(head.count)).is_some();
        if head.count == 0 || !fits || !ends || head.raw_len as usize > RAW_LEN_MAX {
            return Err(BadBlock("its head makes no sense"));
        }
        Ok(head)
    }

    /// The last Seq in the block.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }
}

/// Collects events and encodes them as one block.
#[derive(Debug)]
pub(super) struct Encoder {
    first: Option<Seq>,
    count: u32,
    oldest_us: i64,
    newest_us: i64,
    raw: Vec<u8>,
    block: Vec<u8>,
    compressor: Compressor,
}

/// zstd with its working memory kept between blocks.
struct Compressor(zstd::bulk::Compressor<'static>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Encoder {
    /// `level` is zstd's.
    pub fn new(level: i32) -> std::io::Result<Encoder> {
        Ok(Encoder {
            first: None,
            count: 0,
            oldest_us: i64::MAX,
            newest_us: i64::MIN,
            raw: Vec::new(),
            block: Vec::new(),
            compressor: Compressor(zstd::bulk::Compressor::new(level)?),
        })
    }

    /// Adds the event that follows the last one added.
    pub fn push(&mut self, event: &Event, identity: &[u8]) {
        self.push_record(&Record {
            seq: event.seq,
            received_at: event.received_at,
            source: event.source,
            kind: event.kind,
            held: event.held,
            signature: event.signature.as_ref(),
            identity,
            body: &event.body,
        });
    }

    /// The same for what is no event yet.
    pub fn push_record(&mut self, record: &Record<'_>) {
        let first = *self.first.get_or_insert(record.seq);
        debug_assert_eq!(
            record.seq.0,
            first.0 + u64::from(self.count),
            "I3: Seqs in a block count up by one"
        );
        self.count += 1;
        let received_us = record.received_at.as_microsecond();
        self.oldest_us = self.oldest_us.min(received_us);
        self.newest_us = self.newest_us.max(received_us);
        let (timestamp, hash) = record
            .signature
            .map_or(("", ""), |s| (s.timestamp.as_str(), s.hash.as_str()));
        self.raw.extend_from_slice(&received_us.to_le_bytes());
        self.raw.push(source_mark(record.source));
        self.raw.push(kind_mark(record.kind));
        self.raw.push(u8::from(record.held));
        self.raw.push(short_len(timestamp));
        self.raw.push(short_len(hash));
        self.raw
            .extend_from_slice(&(record.identity.len() as u16).to_le_bytes());
        self.raw.extend_from_slice(&(record.body.len() as u32).to_le_bytes());
        self.raw
            .extend_from_slice(&timestamp.as_bytes()[..usize::from(short_len(timestamp))]);
        self.raw
            .extend_from_slice(&hash.as_bytes()[..usize::from(short_len(hash))]);
        self.raw.extend_from_slice(record.identity);
        self.raw.extend_from_slice(record.body);
    }

    /// Bytes collected so far, before compression.
    pub fn raw_len(&self) -> usize {
        self.raw.len()
    }

    /// Whether nothing is collected.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Makes room for bodies of so many bytes in all, and what belongs to them.
    pub fn reserve(&mut self, events: usize, body_bytes: usize) {
        self.raw.reserve_exact(body_bytes + events * RECORD_OVERHEAD);
    }

    /// Encodes what was collected as one block and starts the next one. Nothing collected gives an empty slice.
    pub fn finish(&mut self) -> std::io::Result<&[u8]> {
        let encoded = self.encode();
        self.raw.clear();
        // One huge body must not keep its buffers for ever.
        self.raw.shrink_to(BUFFER_KEPT);
        encoded?;
        Ok(&self.block)
    }

    /// The same, and hands out what was encoded.
    pub fn finish_with_records(&mut self) -> std::io::Result<(&[u8], Bytes)> {
        let encoded = self.encode();
        let records = Bytes::from(std::mem::take(&mut self.raw));
        encoded?;
        Ok((&self.block, records))
    }

    fn encode(&mut self) -> std::io::Result<()> {
        let block = &mut self.block;
        block.clear();
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        block.resize(HEAD_LEN + zstd::zstd_safe::compress_bound(self.raw.len()), 0);
        block[..8].copy_from_slice(&first.0.to_le_bytes());
        block[8..12].copy_from_slice(&self.count.to_le_bytes());
        block[12..16].copy_from_slice(&(self.raw.len() as u32).to_le_bytes());
        block[16..24].copy_from_slice(&self.oldest_us.to_le_bytes());
        block[24..32].copy_from_slice(&self.newest_us.to_le_bytes());
        self.count = 0;
        (self.oldest_us, self.newest_us) = (i64::MAX, i64::MIN);
        let compressed = self.compressor.0.compress_to_buffer(&self.raw, &mut block[HEAD_LEN..]);
        let len = HEAD_LEN + compressed?;
        block.truncate(len);
        block.shrink_to(BUFFER_KEPT.max(len));
        Ok(())
    }
}

/// What a block keeps of one event, to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub seq: Seq,
    pub received_at: Timestamp,
    pub source: Source,
    pub kind: Kind,
    pub held: bool,
    pub signature: Option<&'a SignatureHeaders>,
    pub identity: &'a [u8],
    pub body: &'a [u8],
}

/// The records of a block, before compression. They become events when somebody first wants one: of what is committed in a flood,
/// most is never read while it is still in memory.
#[derive(Debug)]
pub(super) struct Records {
    head: Head,
    raw: Bytes,
    block: OnceLock<Option<Arc<Block>>>,
}

impl Records {
    /// What [`Encoder::finish_with_records`] handed out, with the head of its block.
    pub fn new(head: Head, raw: Bytes) -> Records {
        Records {
            head,
            raw,
            block: OnceLock::new(),
        }
    }

    /// As events; `None` where they can't be decoded.
    pub fn block(&self) -> Option<Arc<Block>> {
        let decode = || Some(Arc::new(Block::of_records(self.head, &self.raw).ok()?));
        self.block.get_or_init(decode).clone()
    }

    /// Memory it holds once it is decoded, roughly.
    pub fn weight(&self) -> usize {
        self.raw.len() + self.head.count as usize * EVENT_OVERHEAD
    }
}

/// A decoded block.
#[derive(Debug)]
pub(super) struct Block {
    pub events: Vec<Arc<Event>>,
}

impl Block {
    /// Decodes a block whose checksum was right.
    pub fn decode(block: &[u8]) -> Result<Block, BadBlock> {
        let head = Head::parse(block)?;
        Block::of_records(head, &decompressed(head, block)?)
    }

    fn of_records(head: Head, raw: &Bytes) -> Result<Block, BadBlock> {
        let mut events = Vec::with_capacity(head.count as usize);
        for_each_record(head, raw, |event, _| events.push(Arc::new(event)))?;
        Ok(Block { events })
    }

    /// The event with this Seq, if it is in here.
    pub fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        let first = self.events.first()?.seq;
        self.events.get(seq.0.checked_sub(first.0)? as usize)
    }

    /// Memory it holds, roughly.
    pub fn weight(&self) -> usize {
        self.events.iter().map(|event| event.body.len() + EVENT_OVERHEAD).sum()
    }
}

/// A block of the events from `from` on.
pub(super) fn rest(block: &[u8], from: Seq) -> std::io::Result<Vec<u8>> {
    const LEVEL: i32 = 3;
    let mut encoder = Encoder::new(LEVEL)?;
    let each = |event: Event, identity: Identity| {
        if event.seq >= from {
            encoder.push(&event, identity.as_bytes());
        }
    };
    for_each(block, each).map_err(std::io::Error::other)?;
    Ok(encoder.finish()?.to_vec())
}

/// Decodes a block event by event, each with its identity.
pub(super) fn for_each(block: &[u8], mut each: impl FnMut(Event, Identity)) -> Result<(), BadBlock> {
    let head = Head::parse(block)?;
    for_each_record(head, &decompressed(head, block)?, |event, identity| {
        each(event, Identity::from_bytes(identity));
    })
}

fn decompressed(head: Head, block: &[u8]) -> Result<Bytes, BadBlock> {
    let raw = decompress(&block[HEAD_LEN..], head.raw_len as usize).map_err(|_| BadBlock("it does not decompress"))?;
    Ok(raw.into())
}

fn for_each_record(head: Head, raw: &Bytes, mut each: impl FnMut(Event, &[u8])) -> Result<(), BadBlock> {
    let mut at = 0;
    for index in 0..head.count {
        let record = raw.get(at..).unwrap_or_default();
        let mut fields = Fields(record);
        let received_us = i64::from_le_bytes(fields.array()?);
        let [source, kind, held_mark, timestamp_len, hash_len] = fields.array()?;
        let identity_len = u16::from_le_bytes(fields.array()?);
        let body_len = u32::from_le_bytes(fields.array()?) as usize;
        let timestamp = fields.text(timestamp_len)?;
        let hash = fields.text(hash_len)?;
        let identity = fields.slice(identity_len.into())?;
        let body_at =
            at + RECORD_HEAD_LEN + usize::from(timestamp_len) + usize::from(hash_len) + usize::from(identity_len);
        fields.slice(body_len)?;
        at = body_at + body_len;
        let signature = (!hash.is_empty()).then(|| SignatureHeaders {
            timestamp: timestamp.into(),
            hash: hash.into(),
        });
        let mut event = Event::new(
            Seq(head.first.0 + u64::from(index)),
            Timestamp::from_microsecond(received_us).map_err(|_| BadBlock("a time of receipt is out of range"))?,
            source_of(source)?,
            kind_of(kind)?,
            signature,
            raw.slice(body_at..at),
        );
        event.held = held_mark != 0;
        each(event, identity);
    }
    if at == raw.len() {
        Ok(())
    } else {
        Err(BadBlock("it is longer than its records"))
    }
}

/// zstd with its working memory kept between blocks, as it is a tenth of the work otherwise.
fn decompress(compressed: &[u8], len: usize) -> std::io::Result<Vec<u8>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress(compressed, len)
    })
}

fn short_len(text: &str) -> u8 {
    // The verifier lets only 19 digits and 64 hex digits through.
    text.len().min(255) as u8
}

fn source_mark(source: Source) -> u8 {
    match source {
        Source::Webhook => 0,
        Source::Backfill => 1,
    }
}

fn source_of(mark: u8) -> Result<Source, BadBlock> {
    match mark {
        0 => Ok(Source::Webhook),
        1 => Ok(Source::Backfill),
        _ => Err(BadBlock("it has a source this version does not know")),
    }
}

fn kind_mark(kind: Kind) -> u8 {
    match kind {
        Kind::Event => 0,
        Kind::Quarantined => 1,
        Kind::Partial => 2,
        Kind::Erased => 3,
    }
}

fn kind_of(mark: u8) -> Result<Kind, BadBlock> {
    match mark {
        0 => Ok(Kind::Event),
        1 => Ok(Kind::Quarantined),
        2 => Ok(Kind::Partial),
        3 => Ok(Kind::Erased),
        _ => Err(BadBlock("it has a kind this version does not know")),
    }
}

/// Takes fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&mut self, len: usize) -> Result<&'a [u8], BadBlock> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(BadBlock("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadBlock> {
        let taken = self.slice(N)?;
        let mut array = [0; N];
        array.copy_from_slice(taken);
        Ok(array)
    }

    fn text(&mut self, len: u8) -> Result<&'a str, BadBlock> {
        std::str::from_utf8(self.slice(len.into())?).map_err(|_| BadBlock("a header is not text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(seq: u64, body: Vec<u8>, signed: bool) -> Event {
        let signature = signed.then(|| SignatureHeaders {
            timestamp: "1544271440".into(),
            hash: "ab".repeat(32),
        });
        let received_at = Timestamp::from_microsecond(1_700_000_000_000_000 + seq as i64).unwrap();
        Event::new(
            Seq(seq),
            received_at,
            Source::Webhook,
            Kind::Event,
            signature,
            body.into(),
        )
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            first in 1_u64..u64::from(u32::MAX),
            bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..600), any::<bool>()), 1..20),
        ) {
            let mut encoder = Encoder::new(1).unwrap();
            for (index, (body, signed)) in bodies.iter().enumerate() {
                encoder.push(&event(first + index as u64, body.clone(), *signed), body.get(..9).unwrap_or_default());
            }
            let (bytes, records) = encoder.finish_with_records().unwrap();
            let (bytes, head) = (bytes.to_vec(), Head::parse(bytes).unwrap());
            prop_assert!(encoder.is_empty());
            let (decoded, kept) = (Block::decode(&bytes).unwrap(), Records::new(head, records).block().unwrap());
            let text = |block: &Block| format!("{:?}", block.events);
            prop_assert_eq!(text(&decoded), text(&kept), "read back, and kept in memory");
            prop_assert_eq!(Head::parse(&bytes).unwrap().last().0, first + bodies.len() as u64 - 1);
            let mut index = 0;
            for_each(&bytes, |decoded, identity| {
                let (body, signed) = &bodies[index];
                let original = event(first + index as u64, body.clone(), *signed);
                assert_eq!(decoded.seq, original.seq);
                assert_eq!(decoded.received_at, original.received_at);
                assert_eq!(decoded.signature, original.signature);
                assert_eq!(&decoded.body[..], &body[..]);
                assert_eq!(identity.as_bytes(), body.get(..9).unwrap_or_default());
                index += 1;
            }).unwrap();
            prop_assert_eq!(index, bodies.len());
        }

        #[test]
        fn nonsense_is_an_error_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Block::decode(&bytes);
        }
    }
}
