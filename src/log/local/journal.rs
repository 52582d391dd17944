//! An unsealed segment: a journal of blocks, one block a group commit.
//!
//! Only the newest segment's journal is appended to, by the commit thread. Readers find a block by its place in a list in
//! memory and read it from the file (the page cache has it), so they need nothing from the writer but that list.
//!
//! Only the newest one's file stays open. A complete one's is opened when something is read of it, and closed after that: in a
//! flood more of them may pile up than a process may have files open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use jiff::Timestamp;

use super::block::{self, Encoder, Head};
use super::fault::{SegmentError, go_on};
use super::known::{Identity, Table};
use super::options::SEGMENT_EVENTS_MAX;
use crate::event::{Event, Seq};
use crate::framefile::{self, Damage, Format, Frame, FrameError, FrameFile, FrameReader, Scan};
use crate::sync::{lock, read_lock, write_lock};

/// The file's name in the segment's directory.
pub(super) const FILE_NAME: &str = "journal";

/// What a journal is.
pub(super) const FORMAT: Format = Format {
    magic: *b"CLHKJRNL",
    version: 1,
};

const TAG_BLOCK: u32 = 1;

/// zstd level of blocks: on the way to the 200, speed is all.
const LEVEL: i32 = 1;

/// The encoder of blocks.
pub(super) fn encoder() -> io::Result<Encoder> {
    Encoder::new(LEVEL)
}

/// Where a block is.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRef {
    pub head: Head,
    pub offset: u64,
}

/// An unsealed segment as readers see it.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub first: Seq,
    pub dir: PathBuf,
    /// The file, for as long as somebody has it open.
    reader: Mutex<Weak<FrameReader>>,
    /// Another one is in its place, or about to be.
    retired: AtomicBool,
    blocks: RwLock<Vec<BlockRef>>,
    /// Bytes on disk, as far as the writer has told.
    bytes: AtomicU64,
}

impl OpenSegment {
    fn new(first: Seq, dir: PathBuf, reader: &Weak<FrameReader>, blocks: Vec<BlockRef>, bytes: u64) -> OpenSegment {
        OpenSegment {
            first,
            dir,
            reader: Mutex::new(reader.clone()),
            retired: AtomicBool::new(false),
            blocks: RwLock::new(blocks),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// The block that holds `seq`, else the first one behind it.
    pub fn block_at(&self, seq: Seq) -> Option<BlockRef> {
        let blocks = read_lock(&self.blocks);
        blocks
            .get(blocks.partition_point(|block| block.head.last() < seq))
            .copied()
    }

    /// The last block that begins before `seq`.
    pub fn block_before(&self, seq: Seq) -> Option<BlockRef> {
        let blocks = read_lock(&self.blocks);
        blocks[..blocks.partition_point(|block| block.head.first < seq)]
            .last()
            .copied()
    }

    /// Every block, in order.
    pub fn blocks(&self) -> Vec<BlockRef> {
        read_lock(&self.blocks).clone()
    }

    /// The last Seq stored here; `None` while there is none.
    pub fn last(&self) -> Option<Seq> {
        read_lock(&self.blocks).last().map(|block| block.head.last())
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The file, open for as long as the answer is there: for whoever reads many blocks.
    pub fn opened(&self) -> Result<Arc<FrameReader>, SegmentError> {
        let mut reader = lock(&self.reader);
        // Who has it open goes on reading what was there, whatever takes its name.
        if let Some(open) = reader.upgrade() {
            return Ok(open);
        }
        if self.is_retired() {
            return Err(SegmentError::Retired);
        }
        let open = Arc::new(FrameReader::open(&self.dir.join(FILE_NAME)).map_err(of_frame)?);
        *reader = Arc::downgrade(&open);
        Ok(open)
    }

    /// Reads a block's bytes, checked. Only the keeper knows whether what seems to be damaged is, or has given way meanwhile.
    pub fn read(&self, block: BlockRef) -> Result<Vec<u8>, SegmentError> {
        let (_, bytes) = self.opened()?.read(block.offset).map_err(of_frame)?;
        // Another file may be in this one's place, with another block there.
        match Head::parse(&bytes) {
            Ok(head) if (head.first, head.count) == (block.head.first, block.head.count) => Ok(bytes),
            _ => Err(SegmentError::Damaged(format!(
                "{}: another block is at byte {}",
                self.dir.display(),
                block.offset
            ))),
        }
    }

    /// From now on whoever still holds it is told to look again. For the keeper.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// It is in force again: what was to take its place has not.
    pub fn reinstate(&self) {
        self.retired.store(false, Ordering::SeqCst);
    }

    /// Whether something else is to take its place, or has.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Readers and sealing step over this block from now on: it is damaged.
    pub fn leave_out(&self, damaged: BlockRef) {
        write_lock(&self.blocks).retain(|block| block.offset != damaged.offset);
    }

    fn push(&self, block: BlockRef) {
        let mut blocks = write_lock(&self.blocks);
        debug_assert!(
            blocks.last().is_none_or(|last| last.head.last() < block.head.first),
            "I3: blocks follow each other"
        );
        blocks.push(block);
    }
}

/// The journal as its writer has it.
#[derive(Debug)]
pub(super) struct Journal {
    frames: FrameFile,
    /// Keeps the file open for those who read what is written.
    reader: Arc<FrameReader>,
}

impl Journal {
    /// Makes the directory and the journal of a new segment, durably.
    pub fn create(log_dir: &Path, first: Seq) -> Result<(Journal, OpenSegment), FrameError> {
        let dir = segment_dir(log_dir, first);
        let fail = |source| FrameError::Io {
            path: dir.clone(),
            source,
        };
        crate::framefile::make_dir(&dir).map_err(fail)?;
        let frames = FrameFile::create(&dir.join(FILE_NAME), FORMAT)?;
        framefile::sync_dir(log_dir).map_err(fail)?;
        let reader = Arc::new(frames.reader().map_err(fail)?);
        let segment = OpenSegment::new(first, dir, &Arc::downgrade(&reader), Vec::new(), framefile::HEADER_LEN);
        Ok((Journal { frames, reader }, segment))
    }

    /// In place of one that could not be made: the first commit tries to make it again.
    pub fn nowhere(log_dir: &Path, first: Seq) -> io::Result<(Journal, OpenSegment)> {
        let dir = segment_dir(log_dir, first);
        let frames = FrameFile::nowhere(&dir.join(FILE_NAME))?;
        let reader = Arc::new(frames.reader()?);
        let segment = OpenSegment::new(first, dir, &Arc::downgrade(&reader), Vec::new(), 0);
        Ok((Journal { frames, reader }, segment))
    }

    /// Makes room ahead from now on, where there is some: enough that the slower commit which makes it is one in hundreds, and
    /// little beside a segment of this size. `left`: bytes that the log may still take up.
    pub fn make_room(&mut self, segment_size: u64, left: u64) {
        let room = (segment_size / 64).min(1 << 20);
        self.frames.set_room(if room > left { 0 } else { room });
    }

    /// Makes more room while nobody waits, where there is little left.
    pub fn top_up(&mut self, segment: &OpenSegment) -> Result<(), FrameError> {
        let topped_up = self.frames.top_up();
        segment.bytes.store(self.frames.disk_len(), Ordering::Relaxed);
        topped_up
    }

    /// Nothing more is appended: gives unused room back.
    pub fn trim(&mut self, segment: &OpenSegment) {
        self.frames.trim();
        segment.bytes.store(self.frames.disk_len(), Ordering::Relaxed);
    }

    /// Appends a block without syncing.
    pub fn append(&mut self, block: &[u8]) -> Result<u64, FrameError> {
        self.frames.append(TAG_BLOCK, &[block])
    }

    /// Makes what was appended durable, and only then shows it to readers.
    pub fn commit(&mut self, segment: &OpenSegment, offset: u64, head: Head) -> Result<(), FrameError> {
        let synced = self.frames.sync();
        segment.bytes.store(self.frames.disk_len(), Ordering::Relaxed);
        synced?;
        segment.push(BlockRef { head, offset });
        Ok(())
    }

    /// Makes everything appended durable, without showing it to readers.
    pub fn sync(&mut self) -> Result<(), FrameError> {
        self.frames.sync()
    }

    /// Whether the file takes no more blocks after a failure.
    pub fn is_poisoned(&self) -> bool {
        self.frames.is_poisoned()
    }

    /// Bytes on disk.
    pub fn len(&self) -> u64 {
        self.frames.len()
    }
}

/// The newest segment as the commit loop goes on with it.
#[derive(Debug)]
pub(super) struct Newest {
    pub journal: Journal,
    pub segment: Arc<OpenSegment>,
    pub events: u64,
    pub raw_bytes: u64,
    pub began: Option<Timestamp>,
}

/// What reading a journal back gave.
#[derive(Debug)]
pub(super) struct Recovered {
    pub segment: OpenSegment,
    /// Empty where nobody asked for them.
    pub keys: Table,
    pub events: u64,
    pub raw_bytes: u64,
    pub scan: Scan,
    /// Seqs (inclusive) that stood in damaged bytes.
    pub lost: Vec<(Seq, Seq)>,
    /// Bytes at the end that may have held more, and can't be read.
    pub unknown: u64,
}

/// Collects what is in the frames of a journal.
struct Collector {
    limit: Option<Seq>,
    expected: Seq,
    blocks: Vec<BlockRef>,
    /// Whether the keys are wanted. Without them blocks need not be decoded.
    with_keys: bool,
    keys: Table,
    events: u64,
    raw_bytes: u64,
    lost: Vec<(Seq, Seq)>,
}

impl Collector {
    fn new(first: Seq, limit: Option<Seq>, with_keys: bool) -> Collector {
        Collector {
            limit,
            expected: first,
            blocks: Vec::new(),
            with_keys,
            keys: Table::default(),
            events: 0,
            raw_bytes: 0,
            lost: Vec::new(),
        }
    }

    fn take(&mut self, frame: &Frame<'_>) {
        if frame.tag != TAG_BLOCK {
            return;
        }
        let Ok(head) = Head::parse(frame.payload) else { return };
        if head.first < self.expected || self.limit.is_some_and(|limit| head.first >= limit) {
            return;
        }
        if self.with_keys {
            let known = block::for_each(frame.payload, |event, identity| {
                self.keys.insert(&identity, event.seq, event.received_at);
            });
            if known.is_err() {
                return;
            }
        }
        if head.first > self.expected {
            self.lost.push((self.expected, head.first.prev()));
        }
        self.events += u64::from(head.count);
        self.raw_bytes += u64::from(head.raw_len);
        self.expected = head.last().next();
        self.blocks.push(BlockRef {
            head,
            offset: frame.offset,
        });
    }
}

/// Reads a journal back. `limit`: the first Seq of the next segment, if there is one; blocks from there on are leftovers of a
/// commit that failed after it was written, and were never acknowledged. `repair`: cut a torn tail off, and put a damaged header
/// back. `with_keys`: decode every block for the keys in it.
pub(super) fn recover(
    dir: &Path,
    first: Seq,
    limit: Option<Seq>,
    repair: bool,
    with_keys: bool,
) -> Result<(Recovered, Option<Journal>), FrameError> {
    let path = dir.join(FILE_NAME);
    let mut found = Collector::new(first, limit, with_keys);
    let opened = open_journal(&path, repair, &mut found);
    let (journal, scan) = match opened {
        Err(error @ FrameError::Alien(_)) => {
            found = Collector::new(first, limit, with_keys);
            let behind = framefile::scan_behind_header(&path, FORMAT, |frame| found.take(&frame))?;
            if found.blocks.is_empty() {
                return Err(error);
            }
            tracing::error!(%error, "the header of a journal is damaged; what is behind it is read");
            // Else what is in its place may be what is left of a block.
            let is_in_place = !behind.lacks_beginning()
                && found
                    .blocks
                    .first()
                    .is_some_and(|block| block.offset == framefile::HEADER_LEN);
            if repair && is_in_place && framefile::put_header_back(&path, FORMAT).is_ok() {
                found = Collector::new(first, limit, with_keys);
                open_journal(&path, repair, &mut found)?
            } else {
                (None, behind)
            }
        }
        opened => opened?,
    };
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let reader = journal.as_ref().map(|journal| Arc::downgrade(&journal.reader));
    let segment = OpenSegment::new(first, dir.to_owned(), &reader.unwrap_or_default(), found.blocks, bytes);
    Ok((
        Recovered {
            segment,
            keys: found.keys,
            events: found.events,
            raw_bytes: found.raw_bytes,
            unknown: if scan.ends_unreadable() { scan.unknown } else { 0 },
            scan,
            lost: found.lost,
        },
        journal,
    ))
}

fn open_journal(path: &Path, repair: bool, found: &mut Collector) -> Result<(Option<Journal>, Scan), FrameError> {
    if repair {
        let (frames, scan) = FrameFile::open(path, FORMAT, |frame| found.take(&frame))?;
        let reader = frames.reader().map_err(|source| FrameError::Io {
            path: path.to_owned(),
            source,
        })?;
        let reader = Arc::new(reader);
        Ok((Some(Journal { frames, reader }), scan))
    } else {
        Ok((None, framefile::scan(path, FORMAT, |frame| found.take(&frame))?))
    }
}

/// Builds a journal anew in `staging`, durably, with tombstones in the places of doomed events; it is read from the segment's own
/// place later. Each event keeps its identity.
pub(super) fn rewrite(
    open: &OpenSegment,
    staging: &Path,
    doomed: &dyn Fn(&Event) -> bool,
    progress: &mut dyn FnMut() -> bool,
) -> Result<OpenSegment, SegmentError> {
    let failed = |error: FrameError| SegmentError::Io(io::Error::other(error.to_string()));
    let mut frames = FrameFile::create(&staging.join(FILE_NAME), FORMAT).map_err(failed)?;
    let mut encoder = encoder()?;
    let mut blocks = Vec::new();
    let _open = open.opened()?;
    for block in open.blocks() {
        go_on(progress)?;
        let bytes = open.read(block)?;
        let each = |event: Event, identity: Identity| {
            let event = if doomed(&event) { event.erased() } else { event };
            encoder.push(&event, identity.as_bytes());
        };
        block::for_each(&bytes, each).map_err(|error| SegmentError::Damaged(error.to_string()))?;
        let block = encoder.finish()?;
        let head = Head::parse(block).map_err(|error| SegmentError::Damaged(error.to_string()))?;
        let offset = frames.append(TAG_BLOCK, &[block]).map_err(failed)?;
        blocks.push(BlockRef { head, offset });
    }
    frames.sync().map_err(failed)?;
    framefile::sync_dir(staging)?;
    Ok(OpenSegment::new(
        open.first,
        open.dir.clone(),
        &Weak::new(),
        blocks,
        frames.disk_len(),
    ))
}

/// What a read of a journal failed with, judged.
pub(super) fn of_frame(error: FrameError) -> SegmentError {
    match error {
        FrameError::Io { path, source } => {
            let gone = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            let why = format!("{}: {source}", path.display());
            if gone || framefile::is_bad_medium(&source) {
                SegmentError::Damaged(why)
            } else {
                SegmentError::Io(io::Error::new(source.kind(), why))
            }
        }
        error @ FrameError::Newer { .. } => SegmentError::Newer(error.to_string()),
        other => SegmentError::Damaged(other.to_string()),
    }
}

/// Copies damaged byte ranges of a journal next to it, before anything overwrites or drops them. Where they can't be read the
/// whole file is kept under a second name: who can read the disk better may still find them.
pub(super) fn set_aside(dir: &Path, aside: &Path, damage: &[Damage]) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    // Of what is missing there are no bytes.
    let mut damage = damage.iter().filter(|range| range.from < range.to).peekable();
    if damage.peek().is_none() {
        return Ok(());
    }
    crate::framefile::make_dir(aside)?;
    let path = dir.join(FILE_NAME);
    let file = std::fs::File::open(&path)?;
    for range in damage {
        let mut bytes = vec![0; (range.to - range.from) as usize];
        match file.read_exact_at(&mut bytes, range.from) {
            Ok(()) => framefile::replace_file(
                &aside.join(format!("journal-bytes-{}-{}", range.from, range.to)),
                &bytes,
            )?,
            Err(error) if framefile::is_bad_medium(&error) => {
                match framefile::name_again(&path, &aside.join(FILE_NAME)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => return framefile::sync_dir(aside),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The last Seq that a segment may hold which begins with `first`, `limit` being the first one of the next segment.
pub(super) fn last_possible(first: Seq, limit: Option<Seq>) -> Seq {
    limit.map_or_else(|| Seq(first.0.saturating_add(SEGMENT_EVENTS_MAX - 1)), Seq::prev)
}

/// `log/<first seq>`, zero-padded so that names sort as numbers.
pub(super) fn segment_dir(log_dir: &Path, first: Seq) -> PathBuf {
    log_dir.join(format!("{:020}", first.0))
}
