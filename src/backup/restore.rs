//! Reading a backup: to see whether it is whole, and to make a data directory of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use super::format::{
    BackupError, DIRECTORIES, End, FILES, FORMAT, FileHead, Frames, Head, STATE_VALUES_MAX, Segment, Summary,
    TAG_BLOCK, TAG_DATA, TAG_END, TAG_FILE, TAG_GAPS, TAG_HEAD, TAG_SEGMENT, TAG_STATE,
};
use crate::deliver;
use crate::event::Seq;
use crate::framefile::{self, StreamReader};
use crate::log::{CarriedKeys, Gap, Restorer};

/// Whether a backup may bring this file: below the data directory, at a place where it makes sense.
fn may_bring(path: &Path) -> bool {
    let plain = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let known = FILES.iter().any(|file| path == Path::new(file))
        || DIRECTORIES
            .iter()
            .any(|directory| path.starts_with(directory) && path != Path::new(directory));
    plain && (known || deliver::is_dead_letters(path) || Restorer::is_key_file(path))
}

/// What is done with a backup's parts, front to back.
trait Taker {
    fn state(&mut self, key: String, value: Vec<u8>) -> Result<(), BackupError>;
    fn gaps(&mut self, gaps: Vec<Gap>);
    fn file(&mut self, path: &Path) -> Result<(), BackupError>;
    fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError>;
    fn segment(&mut self, first: Seq, sealed: bool) -> Result<(), BackupError>;
    fn block(&mut self, block: &[u8]) -> Result<(), BackupError>;
}

/// Reads a backup to its end, checking everything about it that a stream can tell; `name` is what errors call it.
fn read(input: impl Read, name: &Path, taker: &mut dyn Taker) -> Result<(Head, Summary), BackupError> {
    let unusable = |error| BackupError::Unusable { error };
    let wrong = |why: &str| BackupError::Wrong {
        path: name.to_owned(),
        why: why.to_owned(),
    };
    let json_wrong = |_| wrong("a part of it can't be read");
    let mut bytes = 0;
    let input = io::BufReader::with_capacity(1 << 18, input);
    let mut frames = StreamReader::new(input, name, FORMAT).map_err(unusable)?;
    let mut digest = Frames::default();
    let mut head: Option<Head> = None;
    let mut in_file = false;
    let mut sinks = 0;
    loop {
        let Some((tag, payload)) = frames.next_frame().map_err(unusable)? else {
            return Err(BackupError::CutOff(name.to_owned()));
        };
        bytes += framefile::FRAME_OVERHEAD + payload.len() as u64;
        if tag == TAG_END {
            let end: End = serde_json::from_slice(payload).map_err(json_wrong)?;
            if end.sha256 != digest.hex() {
                return Err(wrong("its checksum does not fit its parts"));
            }
            let head = head.ok_or_else(|| wrong("it has no beginning"))?;
            let summary = Summary {
                made_at: head.made_at,
                events: end.events,
                first: end.first,
                last: end.last,
                sinks,
                bytes: bytes + framefile::HEADER_LEN,
                damaged: end.damaged,
                expired: end.expired,
                damaged_keys: end.damaged_keys,
                damaged_letters: end.damaged_letters,
                unrepaired: end.unrepaired,
            };
            return Ok((head, summary));
        }
        digest.add(tag, &[payload]);
        if head.is_none() && tag != TAG_HEAD {
            return Err(wrong("it has no beginning"));
        }
        in_file = in_file && tag == TAG_DATA || tag == TAG_FILE;
        match tag {
            TAG_HEAD => head = Some(serde_json::from_slice(payload).map_err(json_wrong)?),
            TAG_STATE => {
                let (key, value) = split(payload).ok_or_else(|| wrong("a part of it can't be read"))?;
                sinks += u64::from(key.starts_with("sink/"));
                taker.state(key, value.to_vec())?;
            }
            TAG_GAPS => taker.gaps(serde_json::from_slice(payload).map_err(json_wrong)?),
            TAG_FILE => {
                let file: FileHead = serde_json::from_slice(payload).map_err(json_wrong)?;
                if !may_bring(&file.path) {
                    return Err(wrong("it names a file that no backup holds"));
                }
                taker.file(&file.path)?;
            }
            TAG_DATA if in_file => taker.data(payload)?,
            TAG_SEGMENT => {
                let segment: Segment = serde_json::from_slice(payload).map_err(json_wrong)?;
                taker.segment(segment.first, segment.sealed)?;
            }
            TAG_BLOCK => taker.block(payload)?,
            _ => return Err(wrong("it has a part that this version does not know")),
        }
    }
}

fn split(payload: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = payload.split_first_chunk::<4>()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((String::from_utf8(key.to_vec()).ok()?, value))
}

/// Takes nothing: reading is checking, but for what several files make together.
#[derive(Default)]
struct Check {
    keys: CarriedKeys,
}

impl Taker for Check {
    fn state(&mut self, _: String, _: Vec<u8>) -> Result<(), BackupError> {
        Ok(())
    }

    fn gaps(&mut self, _: Vec<Gap>) {}

    fn file(&mut self, path: &Path) -> Result<(), BackupError> {
        self.keys.file(Restorer::below_keys(path));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.keys.data(bytes);
        Ok(())
    }

    fn segment(&mut self, _: Seq, _: bool) -> Result<(), BackupError> {
        Ok(())
    }

    fn block(&mut self, _: &[u8]) -> Result<(), BackupError> {
        Ok(())
    }
}

/// Reads a whole backup and says what is in it; writes nothing. Blocking.
pub fn check(input: impl Read, name: &Path) -> Result<Summary, BackupError> {
    let mut check = Check::default();
    let (_, mut summary) = read(input, name, &mut check)?;
    let damaged = check.keys.damaged();
    let damaged = damaged.map_err(|error| BackupError::Data(error.to_string()))?;
    summary.damaged_keys.extend(damaged);
    Ok(summary)
}

/// Puts parts into a data directory.
struct Restore {
    dir: PathBuf,
    log: Restorer,
    state: Vec<(String, Vec<u8>)>,
    gaps: Vec<Gap>,
    open: Option<(PathBuf, File)>,
}

impl Restore {
    fn run(&mut self, input: impl Read, name: &Path) -> Result<(Summary, Seq), BackupError> {
        let (head, mut summary) = read(input, name, self)?;
        self.close_file()?;
        let taken = self.log.taken();
        if (taken.events, taken.last) != (summary.events, summary.last) {
            return Err(BackupError::Wrong {
                path: name.to_owned(),
                why: "it holds other events than it says".into(),
            });
        }
        deliver::restore_state(&self.dir, std::mem::take(&mut self.state))
            .map_err(|error| BackupError::Data(error.to_string()))?;
        self.log.keep_id(head.log_id().to_owned());
        self.log.lacks(&summary.damaged, &summary.expired);
        let next = self
            .log
            .finish(head.last, std::mem::take(&mut self.gaps))
            .map_err(|source| write_error(&self.dir, source))?;
        summary.damaged_keys.extend_from_slice(self.log.left_out());
        Ok((summary, next))
    }

    fn close_file(&mut self) -> Result<(), BackupError> {
        let Some((path, file)) = self.open.take() else {
            return Ok(());
        };
        let full = self.dir.join(&path);
        let close = || -> io::Result<()> {
            file.sync_all()?;
            framefile::sync_parent(&full)
        };
        close().map_err(|source| write_error(&full, source))
    }
}

fn write_error(what: &Path, source: io::Error) -> BackupError {
    BackupError::Write {
        what: what.display().to_string(),
        source,
    }
}

impl Taker for Restore {
    fn state(&mut self, key: String, value: Vec<u8>) -> Result<(), BackupError> {
        if self.state.len() >= STATE_VALUES_MAX {
            return Err(BackupError::Data(
                "the backup holds more state than any daemon has".into(),
            ));
        }
        self.state.push((key, value));
        Ok(())
    }

    fn gaps(&mut self, gaps: Vec<Gap>) {
        self.gaps = gaps;
    }

    fn file(&mut self, path: &Path) -> Result<(), BackupError> {
        use std::os::unix::fs::OpenOptionsExt;
        self.close_file()?;
        let full = self.dir.join(path);
        let make = || -> io::Result<File> {
            if let Some(parent) = full.parent() {
                framefile::make_dir(parent)?;
            }
            // Each directory's name stands in the one above it.
            for parent in path.ancestors().skip(2) {
                framefile::sync_dir(&self.dir.join(parent))?;
            }
            File::options().write(true).create_new(true).mode(0o600).open(&full)
        };
        let file = make().map_err(|source| write_error(&full, source))?;
        self.open = Some((path.to_owned(), file));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        match &mut self.open {
            Some((path, file)) => file.write_all(bytes).map_err(|source| write_error(path, source)),
            None => Ok(()),
        }
    }

    fn segment(&mut self, first: Seq, sealed: bool) -> Result<(), BackupError> {
        self.close_file()?;
        self.log
            .segment(first, sealed)
            .map_err(|source| write_error(&self.dir.join("log"), source))
    }

    fn block(&mut self, block: &[u8]) -> Result<(), BackupError> {
        self.log
            .block(block)
            .map_err(|source| write_error(&self.dir.join("log"), source))
    }
}

/// Restores a backup into an empty (or new) data directory; gives what was restored and the Seq of the next event. Nothing is
/// left behind by an error. Blocking.
pub fn restore(input: impl Read, name: &Path, dir: &Path) -> Result<(Summary, Seq), BackupError> {
    let mut restore = Restore {
        dir: dir.to_owned(),
        log: Restorer::new(dir)?,
        state: Vec::new(),
        gaps: Vec::new(),
        open: None,
    };
    let restored = restore.run(input, name);
    if restored.is_err()
        && let Err(left) = restore.log.abandon()
    {
        tracing::error!(dir = %dir.display(), error = %left, "what was restored so far could not be removed");
    }
    restored
}
