//! What the commit thread, the keeper and the readers share.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use lru::LruCache;
use tokio::sync::watch;

use super::block::{Block, Records};
use super::gaps::Gaps;
use super::journal::OpenSegment;
use super::known::{Identity, KnownKeys};
use super::sealed::{OpenDatabases, SealedSegment};
use super::{AppendError, Options, Pins};
use crate::event::Seq;
use crate::sync::{lock, read_lock, write_lock};

/// A segment as readers see it.
#[derive(Debug, Clone)]
pub(super) enum Segment {
    /// Served from its journal.
    Open(Arc<OpenSegment>),
    /// Served from its database.
    Sealed(Arc<SealedSegment>),
}

impl Segment {
    /// The last Seq in it; `None` while it is empty.
    pub fn last(&self) -> Option<Seq> {
        match self {
            Segment::Open(open) => open.last(),
            Segment::Sealed(sealed) => Some(sealed.manifest.last),
        }
    }
}

impl Segment {
    /// Where it ends (one past its last Seq), when its newest event was received, and its bytes on disk; `None` while it is empty.
    pub fn extent(&self) -> Option<(Seq, i64, u64)> {
        match self {
            Segment::Open(open) => {
                let newest_us = open.blocks().iter().map(|block| block.head.newest_us).max()?;
                Some((open.last()?.next(), newest_us, open.disk_bytes()))
            }
            Segment::Sealed(sealed) => {
                let manifest = &sealed.manifest;
                Some((manifest.last.next(), manifest.newest_us, manifest.disk_bytes()))
            }
        }
    }
}

/// One log's common state.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: Options,
    pub log_dir: PathBuf,
    pub epoch: String,
    pub segments: RwLock<BTreeMap<Seq, Segment>>,
    pub known: RwLock<KnownKeys>,
    pub cache: Mutex<BlockCache>,
    pub gaps: Mutex<Gaps>,
    pub head: watch::Sender<Seq>,
    /// Why nothing can be stored now; `None` while all is well.
    pub trouble: RwLock<Option<AppendError>>,
    pub pins: RwLock<Option<Arc<dyn Pins>>>,
    /// Bytes on disk that the log may take up.
    pub room: AtomicU64,
    /// Length of the newest journal, for size accounting.
    pub journal_len: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` at which the commit loop last turned.
    turned_ms: AtomicU64,
    /// The log is being closed: long work stops at the next good moment.
    pub closing: AtomicBool,
    /// One repair at a time.
    pub repairing: Mutex<()>,
    pub databases: OpenDatabases,
}

impl Shared {
    pub fn new(options: Options, epoch: String, known: KnownKeys, gaps: Gaps) -> Shared {
        Shared {
            log_dir: options.dir.join("log"),
            epoch,
            segments: RwLock::default(),
            known: RwLock::new(known),
            cache: Mutex::new(BlockCache::new(options.cache_bytes)),
            gaps: Mutex::new(gaps),
            head: watch::Sender::new(Seq::ZERO),
            trouble: RwLock::default(),
            pins: RwLock::default(),
            room: AtomicU64::new(u64::MAX),
            journal_len: AtomicU64::new(0),
            started: Instant::now(),
            turned_ms: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            repairing: Mutex::default(),
            databases: OpenDatabases::default(),
            options,
        }
    }

    /// The commit loop turned.
    pub fn turned(&self) {
        self.turned_ms
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the commit loop last turned.
    pub fn since_turned(&self) -> std::time::Duration {
        let turned = std::time::Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned)
    }

    pub fn set_trouble(&self, trouble: Option<AppendError>) {
        let before = std::mem::replace(&mut *write_lock(&self.trouble), trouble.clone());
        match (before, trouble) {
            (None, Some(trouble)) => tracing::error!(%trouble, "no event can be stored: Close is asked to retry"),
            (Some(_), None) => tracing::info!("events can be stored again"),
            _ => {}
        }
    }

    /// The Seq under which one of these identities is stored. What damage took is not stored any more, so that it can come
    /// again.
    pub fn known_seq(&self, known: &KnownKeys, identity: &Identity, or: Option<&Identity>) -> io::Result<Option<Seq>> {
        for identity in std::iter::once(identity).chain(or) {
            if let Some(seq) = known.find(identity)?
                && !lock(&self.gaps).holds(seq)
            {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// The segment that holds `seq` or would: the last one that begins at or before it.
    pub fn segment_for(&self, seq: Seq) -> Option<Segment> {
        read_lock(&self.segments)
            .range(..=seq)
            .next_back()
            .map(|(_, segment)| segment.clone())
    }

    /// Whether this is still what readers are given for its Seqs: it may have expired, or been rewritten.
    pub fn holds(&self, sealed: &Arc<SealedSegment>) -> bool {
        read_lock(&self.segments)
            .values()
            .any(|segment| matches!(segment, Segment::Sealed(current) if Arc::ptr_eq(current, sealed)))
    }

    /// Where the next segment after `seq` begins.
    pub fn next_segment_after(&self, seq: Seq) -> Option<Seq> {
        read_lock(&self.segments)
            .range(seq.next()..)
            .next()
            .map(|(first, _)| *first)
    }

    /// The oldest Seq kept; one past the newest while nothing is.
    pub fn first(&self) -> Seq {
        let segments = read_lock(&self.segments);
        segments
            .iter()
            .find(|(_, segment)| segment.last().is_some())
            .map_or_else(|| self.head.borrow().next(), |(first, _)| *first)
    }

    /// Every segment, oldest first.
    pub fn all_segments(&self) -> Vec<(Seq, Segment)> {
        read_lock(&self.segments)
            .iter()
            .map(|(first, segment)| (*first, segment.clone()))
            .collect()
    }

    /// Bytes on disk: segments and keys.
    pub fn disk_bytes(&self) -> u64 {
        let segments: u64 = read_lock(&self.segments)
            .values()
            .map(|segment| match segment {
                Segment::Sealed(sealed) => sealed.manifest.disk_bytes(),
                Segment::Open(open) => open.disk_bytes(),
            })
            .sum();
        segments + read_lock(&self.known).disk_bytes()
    }

    /// A block by the Seq it begins with, if it holds `seq`.
    pub fn cached(&self, first: Seq, seq: Seq) -> Option<Arc<Block>> {
        // A pack may begin where a smaller journal block began, so the key alone does not tell.
        let cached = lock(&self.cache).get(first)?;
        // Without the lock, as it may have to be decoded.
        cached.block().filter(|block| block.get(seq).is_some())
    }
}

/// Blocks in memory, bounded by their weight; what was used last stays.
#[derive(Debug)]
pub(super) struct BlockCache {
    blocks: LruCache<Seq, (Cached, usize)>,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug, Clone)]
enum Cached {
    /// It was read.
    Block(Arc<Block>),
    /// It was written.
    Records(Arc<Records>),
}

impl Cached {
    fn block(self) -> Option<Arc<Block>> {
        match self {
            Cached::Block(block) => Some(block),
            Cached::Records(records) => records.block(),
        }
    }
}

impl BlockCache {
    fn new(weight_max: usize) -> BlockCache {
        BlockCache {
            blocks: LruCache::unbounded(),
            weight: 0,
            weight_max,
        }
    }

    fn get(&mut self, first: Seq) -> Option<Cached> {
        self.blocks.get(&first).map(|(cached, _)| cached.clone())
    }

    /// Forgets everything, so that what was erased is nowhere any more.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.weight = 0;
    }

    /// Keeps a block that was read; the ones used longest ago make room.
    pub fn put(&mut self, first: Seq, block: Arc<Block>) {
        let weight = block.weight();
        self.keep(first, Cached::Block(block), weight);
    }

    /// Keeps a block that was written.
    pub fn put_records(&mut self, first: Seq, records: Records) {
        let weight = records.weight();
        self.keep(first, Cached::Records(Arc::new(records)), weight);
    }

    fn keep(&mut self, first: Seq, cached: Cached, weight: usize) {
        self.weight += weight;
        if let Some((_, old_weight)) = self.blocks.put(first, (cached, weight)) {
            self.weight -= old_weight;
        }
        while self.weight > self.weight_max {
            let Some((_, (_, weight))) = self.blocks.pop_lru() else {
                break;
            };
            self.weight -= weight;
        }
    }
}
