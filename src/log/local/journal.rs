//! An unsealed segment: a journal of blocks, one block a group commit.
//!
//! Only the newest segment's journal is appended to, by the commit thread. Readers find a block by its place in a list in
//! memory and read it from the file (the page cache has it), so they need nothing from the writer but that list.

use std::path::{Path, PathBuf};
use std::sync::RwLock;

use super::block::{self, Head};
use super::commit::SEGMENT_EVENTS_MAX;
use super::known::Table;
use crate::event::Seq;
use crate::framefile::{self, Damage, Format, Frame, FrameError, FrameFile, FrameReader, Scan};
use crate::sync::{read_lock, write_lock};

/// The file's name in the segment's directory.
pub(super) const FILE_NAME: &str = "journal";

/// What a journal is.
pub(super) const FORMAT: Format = Format {
    magic: *b"CLHKJRNL",
    version: 1,
};

const TAG_BLOCK: u32 = 1;

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
    reader: FrameReader,
    blocks: RwLock<Vec<BlockRef>>,
}

impl OpenSegment {
    /// The block that holds `seq`, else the first one behind it.
    pub fn block_at(&self, seq: Seq) -> Option<BlockRef> {
        let blocks = read_lock(&self.blocks);
        blocks
            .get(blocks.partition_point(|block| block.head.last() < seq))
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
        std::fs::metadata(self.dir.join(FILE_NAME)).map_or(0, |metadata| metadata.len())
    }

    /// Reads a block's bytes, checked.
    pub fn read(&self, block: BlockRef) -> Result<Vec<u8>, FrameError> {
        Ok(self.reader.read(block.offset)?.1)
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
}

impl Journal {
    /// Makes the directory and the journal of a new segment, durably.
    pub fn create(log_dir: &Path, first: Seq) -> Result<(Journal, OpenSegment), FrameError> {
        let dir = segment_dir(log_dir, first);
        let fail = |source| FrameError::Io {
            path: dir.clone(),
            source,
        };
        super::make_dir(&dir).map_err(fail)?;
        let frames = FrameFile::create(&dir.join(FILE_NAME), FORMAT)?;
        framefile::sync_dir(log_dir).map_err(fail)?;
        let reader = frames.reader().map_err(fail)?;
        Ok((
            Journal { frames },
            OpenSegment {
                first,
                dir,
                reader,
                blocks: RwLock::default(),
            },
        ))
    }

    /// Makes room ahead from now on: enough that the slower commit which makes it is one in hundreds, and little beside a
    /// segment of this size.
    #[must_use]
    pub fn with_room(self, segment_size: u64) -> Journal {
        let room = (segment_size / 64).min(1 << 20);
        Journal {
            frames: self.frames.with_room(room),
        }
    }

    /// Makes more room while nobody waits, where there is little left.
    pub fn top_up(&mut self) -> Result<(), FrameError> {
        self.frames.top_up()
    }

    /// Nothing more is appended: gives unused room back.
    pub fn trim(&mut self) {
        self.frames.trim();
    }

    /// Appends a block without syncing.
    pub fn append(&mut self, block: &[u8]) -> Result<u64, FrameError> {
        self.frames.append(TAG_BLOCK, &[block])
    }

    /// Makes what was appended durable, and only then shows it to readers.
    pub fn commit(&mut self, segment: &OpenSegment, offset: u64, head: Head) -> Result<(), FrameError> {
        self.frames.sync()?;
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

/// What reading a journal back gave.
#[derive(Debug)]
pub(super) struct Recovered {
    pub segment: OpenSegment,
    pub keys: Table,
    pub events: u64,
    pub raw_bytes: u64,
    pub scan: Scan,
    /// Seqs (inclusive) that stood in damaged bytes.
    pub lost: Vec<(Seq, Seq)>,
}

/// Reads a journal back. `limit`: the first Seq of the next segment, if there is one; blocks from there on are leftovers of a
/// commit that failed after it was written, and were never acknowledged. `repair`: cut a torn tail off.
pub(super) fn recover(
    dir: &Path,
    first: Seq,
    limit: Option<Seq>,
    repair: bool,
) -> Result<(Recovered, Option<Journal>), FrameError> {
    let path = dir.join(FILE_NAME);
    let mut blocks: Vec<BlockRef> = Vec::new();
    let mut keys = Table::default();
    let (mut events, mut raw_bytes) = (0, 0);
    let mut lost = Vec::new();
    let mut expected = first;
    let each = |frame: Frame<'_>| {
        if frame.tag != TAG_BLOCK {
            return;
        }
        let Ok(head) = Head::parse(frame.payload) else { return };
        if head.first < expected || limit.is_some_and(|limit| head.first >= limit) {
            return;
        }
        let known = block::for_each(frame.payload, |event, identity| {
            keys.insert(&identity, event.seq, event.received_at);
        });
        if known.is_err() {
            return;
        }
        if head.first > expected {
            lost.push((expected, head.first.prev()));
        }
        events += u64::from(head.count);
        raw_bytes += u64::from(head.raw_len);
        expected = head.last().next();
        blocks.push(BlockRef {
            head,
            offset: frame.offset,
        });
    };
    let (journal, scan) = if repair {
        let (frames, scan) = FrameFile::open(&path, FORMAT, each)?;
        (Some(Journal { frames }), scan)
    } else {
        (None, framefile::scan(&path, FORMAT, each)?)
    };
    if scan.ends_unreadable() && limit.is_none() {
        // How many events there were nobody knows, and their Seqs must not be given out again.
        lost.push((expected, last_possible(first, limit).max(expected)));
    }
    let reader = FrameReader::open(&path)?;
    let segment = OpenSegment {
        first,
        dir: dir.to_owned(),
        reader,
        blocks: RwLock::new(blocks),
    };
    Ok((
        Recovered {
            segment,
            keys,
            events,
            raw_bytes,
            scan,
            lost,
        },
        journal,
    ))
}

/// Copies damaged byte ranges of a journal next to it, before anything overwrites or drops them. Where they can't be read the
/// whole file is kept under a second name: who can read the disk better may still find them.
pub(super) fn set_aside(dir: &Path, aside: &Path, damage: &[Damage]) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    super::make_dir(aside)?;
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
                std::fs::hard_link(&path, aside.join(FILE_NAME))?;
                return framefile::sync_dir(aside);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The last Seq that a segment may hold which begins with `first`, `limit` being the first one of the next segment.
pub(super) fn last_possible(first: Seq, limit: Option<Seq>) -> Seq {
    limit.map_or_else(|| Seq(first.0 + SEGMENT_EVENTS_MAX - 1), Seq::prev)
}

/// `log/<first seq>`, zero-padded so that names sort as numbers.
pub(super) fn segment_dir(log_dir: &Path, first: Seq) -> PathBuf {
    log_dir.join(format!("{:020}", first.0))
}
