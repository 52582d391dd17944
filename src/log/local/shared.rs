//! What the commit thread, the keeper and the readers share.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use lru::LruCache;
use tokio::sync::watch;

use super::block::{Block, Records};
use super::desk::Desk;
use super::gaps::Gaps;
use super::journal::OpenSegment;
use super::known::{self, Answer, Identity, KnownKeys, Recalled, Unit};
use super::options::Options;
use super::owed::Owed;
use super::sealed::{OpenDatabases, SealedSegment};
use crate::event::Seq;
use crate::log::{AppendError, Gap};
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

    /// Where it ends (one past its last Seq) and when its newest event was received; `None` while it is empty.
    pub fn extent(&self) -> Option<(Seq, i64)> {
        match self {
            Segment::Open(open) => {
                let newest_us = open.blocks().iter().map(|block| block.head.newest_us).max()?;
                Some((open.last()?.next(), newest_us))
            }
            Segment::Sealed(sealed) => Some((sealed.manifest.last.next(), sealed.manifest.newest_us)),
        }
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        match self {
            Segment::Sealed(sealed) => sealed.disk_bytes,
            Segment::Open(open) => open.disk_bytes(),
        }
    }

    /// Whether another form of it is to take its place, or has.
    pub fn is_retired(&self) -> bool {
        match self {
            Segment::Open(open) => open.is_retired(),
            Segment::Sealed(sealed) => sealed.is_retired(),
        }
    }

    /// Whether both are the same form of the same segment.
    pub fn is(&self, other: &Segment) -> bool {
        match (self, other) {
            (Segment::Open(one), Segment::Open(other)) => Arc::ptr_eq(one, other),
            (Segment::Sealed(one), Segment::Sealed(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// One log's common state.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: Options,
    pub log_dir: PathBuf,
    pub id: String,
    pub epoch: String,
    pub segments: RwLock<BTreeMap<Seq, Segment>>,
    pub known: RwLock<KnownKeys>,
    pub cache: Mutex<BlockCache>,
    pub gaps: Gaps,
    pub head: watch::Sender<Seq>,
    /// Why nothing can be stored now; `None` while all is well.
    pub trouble: RwLock<Option<AppendError>>,
    /// There was no room when that was last looked at. The commit loop, which alone says what the trouble is, looks again.
    pub seems_full: AtomicBool,
    /// Bytes on disk that the log may take up.
    pub room: AtomicU64,
    /// Bytes that the keeper may be writing beside what it is to replace.
    pub reserved: AtomicU64,
    started: Instant,
    /// Before this everything was dropped since the start, or damaged.
    passed: AtomicU64,
    /// Milliseconds after `started` at which the commit loop last turned.
    turned_ms: AtomicU64,
    /// The log is being closed: long work stops at the next good moment.
    pub closing: AtomicBool,
    pub databases: OpenDatabases,
    /// What there was no room for when it was opened.
    pub owed: Mutex<Owed>,
    /// What was found damaged by somebody who only looks, and is as it was: one sentence each. Whoever owns the directory puts it right.
    pub damage: Vec<String>,
    /// Nothing is stored until the log has gone on behind this Seq.
    pub held_until: AtomicU64,
    /// Where the keeper is asked.
    pub desk: Desk,
}

impl Shared {
    pub fn new(options: Options, id: String, epoch: String, known: KnownKeys, gaps: Gaps) -> Shared {
        Shared {
            log_dir: options.dir.join("log"),
            id,
            epoch,
            segments: RwLock::default(),
            known: RwLock::new(known),
            cache: Mutex::new(BlockCache::new(options.cache_bytes)),
            gaps,
            head: watch::Sender::new(Seq::ZERO),
            trouble: RwLock::default(),
            seems_full: AtomicBool::new(false),
            room: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            started: Instant::now(),
            turned_ms: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            databases: OpenDatabases::default(),
            owed: Mutex::default(),
            damage: Vec::new(),
            held_until: AtomicU64::new(0),
            desk: Desk::default(),
            options,
        }
    }

    /// The commit loop turned.
    pub fn turned(&self) {
        self.turned_ms
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the commit loop last turned.
    pub fn since_turned(&self) -> Duration {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned)
    }

    /// Whether the log is being closed.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub fn set_trouble(&self, trouble: Option<AppendError>) {
        let before = std::mem::replace(&mut *write_lock(&self.trouble), trouble.clone());
        match (before, trouble) {
            (None, Some(trouble)) => tracing::error!(%trouble, "no event can be stored: Close is asked to retry"),
            (Some(_), None) => tracing::info!("events can be stored again"),
            _ => {}
        }
    }

    /// What memory says of one of these identities. What damage took is not stored any more, so that it can come again.
    pub fn recall(&self, identity: &Identity, or: Option<&Identity>) -> Recalled {
        let known = read_lock(&self.known);
        let mut doubtful: Vec<Arc<Unit>> = Vec::new();
        for identity in std::iter::once(identity).chain(or) {
            match known.recall(identity, &|seq| self.gaps.holds(seq)) {
                Recalled::Known(seq) => return Recalled::Known(seq),
                Recalled::New => {}
                Recalled::Doubtful(units) => doubtful.extend(units),
            }
        }
        if doubtful.is_empty() {
            Recalled::New
        } else {
            Recalled::Doubtful(doubtful)
        }
    }

    /// The Seq under which one of these identities is stored, as memory and disk say. Blocking, and nobody else waits for it.
    pub fn look_up(&self, identity: &Identity, or: Option<&Identity>) -> io::Result<Answer> {
        let mut asked = Vec::new();
        for identity in std::iter::once(identity).chain(or) {
            let answer = known::find(&self.known, identity, &|seq| self.gaps.holds(seq))?;
            if answer.seq.is_some() {
                return Ok(answer);
            }
            asked.extend(answer.asked);
        }
        Ok(Answer { seq: None, asked })
    }

    /// Retention has dropped everything before this, as far as it can go.
    pub fn note_passed(&self, before: Seq) {
        let before = before.min(self.first());
        self.passed.fetch_max(before.0, Ordering::Relaxed);
    }

    /// Forgets the gaps that retention has passed, and of which no key can be known any more: while a lost event's key is known, the
    /// gap is what says that it can come again.
    ///
    /// That nothing is kept before a gap does not mean that retention has passed it: damage may have taken all there was, and then the gap is
    /// all that tells of it. It has passed what was lost
    /// - when it drops something behind that: by age and by size the oldest goes first, so this would have gone as well; or
    /// - when so much time has gone by since the loss was found as anything is kept: what was lost then came before.
    ///
    /// What was dropped is not remembered over a restart: then a gap goes with what is dropped next, or by its age.
    pub fn forget_gaps(&self) -> io::Result<()> {
        // Where the log is missing as a whole its gaps are all that tells of it: without one that holds where it begins it would be missed again.
        if read_lock(&self.segments).is_empty() {
            return Ok(());
        }
        // What is in damaged keys is not known before they are saved.
        if !lock(&self.owed).sets.is_empty() {
            return Ok(());
        }
        let known = read_lock(&self.known).oldest_segment();
        let first = self.first();
        let passed = Seq(self.passed.load(Ordering::Relaxed));
        // Keys are known for at least as long as events are kept.
        let kept = SignedDuration::try_from(self.options.keys_kept).unwrap_or(SignedDuration::MAX);
        let now = self.options.now.at_least();
        let cutoff = now.and_then(|now| now.checked_sub(kept).ok());
        let is_old = |gap: &Gap| cutoff.is_some_and(|cutoff| gap.found_at < cutoff);
        let is_over = |gap: &Gap| gap.skipped || gap.to < passed || is_old(gap);
        self.gaps
            .forget_before(known.map_or(first, |known| known.min(first)), &is_over)
    }

    /// Closes databases of known keys that nobody used for `idle`.
    pub fn close_idle_keys(&self, idle: Duration) {
        // Closing reads and writes: not under the lock that every commit needs.
        let units = read_lock(&self.known).units();
        for unit in units {
            unit.close_idle(idle);
        }
    }

    /// The segment that holds `seq` or would: the last one that begins at or before it.
    pub fn segment_for(&self, seq: Seq) -> Option<Segment> {
        read_lock(&self.segments)
            .range(..=seq)
            .next_back()
            .map(|(_, segment)| segment.clone())
    }

    /// The segment that begins with `first`.
    pub fn segment(&self, first: Seq) -> Option<Segment> {
        read_lock(&self.segments).get(&first).cloned()
    }

    /// Where a segment begins, if it is still what readers are given: it may have been dropped, or replaced.
    pub fn place_of(&self, segment: &Segment) -> Option<Seq> {
        let segments = read_lock(&self.segments);
        segments
            .iter()
            .find_map(|(first, current)| current.is(segment).then_some(*first))
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

    /// Every segment but the newest, which is being written.
    pub fn complete_segments(&self) -> Vec<(Seq, Segment)> {
        let mut segments = self.all_segments();
        segments.pop();
        segments
    }

    /// Bytes on disk of segments, without what the keeper may be writing beside them.
    pub fn segment_bytes(&self) -> u64 {
        read_lock(&self.segments).values().map(Segment::disk_bytes).sum()
    }

    /// Bytes that the keeper may be writing beside what it is to replace.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Bytes on disk of keys.
    pub fn key_bytes(&self) -> u64 {
        read_lock(&self.known).disk_bytes()
    }

    /// Bytes that the log may still take up.
    pub fn left(&self) -> u64 {
        let used = self.segment_bytes() + self.reserved_bytes() + self.key_bytes();
        self.room.load(Ordering::Relaxed).saturating_sub(used)
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
    /// How often everything was forgotten.
    age: u64,
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
            age: 0,
        }
    }

    fn get(&mut self, first: Seq) -> Option<Cached> {
        self.blocks.get(&first).map(|(cached, _)| cached.clone())
    }

    /// Forgets everything, so that what was erased is nowhere any more.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.weight = 0;
        self.age += 1;
    }

    /// To be handed back with what is read from now on.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// Keeps a block that was read since [`BlockCache::age`] said so, unless everything was forgotten in between: what was erased
    /// meanwhile must not come back by somebody who had just read it.
    pub fn put_unless_forgotten(&mut self, first: Seq, block: Arc<Block>, age: u64) {
        if self.age == age {
            self.put(first, block);
        }
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
