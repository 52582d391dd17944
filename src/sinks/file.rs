//! `file`: one JSON line per event, appended to a file; exactly once, also across crashes.
//!
//! How: the engine saves this sink's cursor together with a [`Position`], the length the file had when it was synced. After
//! a crash the file may be longer than that; the surplus holds events beyond the saved cursor, which will come again, so it
//! is cut off, also when the file was moved away meanwhile but not out of its directory. It is cut only if it is surely ours:
//! same file ([`FileId`]) and same log (epoch), and nothing but lines of our form in it. A file that somebody else has changed
//! is only ever appended to.
//!
//! Moving on to a new file happens in [`Sink::committed`] only, when everything written so far is saved:
//!
//! | step | after a crash right behind it |
//! |---|---|
//! | position of the old file is durable | nothing happened yet |
//! | the old file is renamed | the path is missing: a new file is begun; the old one was complete |
//! | the new file is made, directory synced | the path is another file than the position's: it is appended to, and it is empty |
//! | position of the new file is durable | the usual rule |
//!
//! After any failure (a write, a sync, a thread that does not come back) the engine drops the sink and opens it anew from the last
//! position that is durable, so nothing that a failed sync was to secure is believed. A thread of its own does all the work, because
//! a dead mount blocks for ever; a new one waits until the old one has come back.
//!
//! The engine delivers nothing between these steps, so the new file is empty until its position is saved. The same holds
//! when somebody else moved the file away (logrotate). A rotated file is compressed in the background; a crash leaves a
//! temporary file that the next start removes, and the compression is done again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::common::line;
use super::common::thread::{Claim, OwnThread};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Position, Sink, SinkKind, Unavailable,
};
use crate::config::{SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::framefile;
use crate::json::Node;

#[derive(Debug, Clone)]
struct Options {
    path: PathBuf,
    rotate: Rotate,
}

/// `rotate = { size, age, keep, compress }`
#[derive(Debug, Clone)]
struct Rotate {
    size: Option<Size>,
    age: Option<Span>,
    keep: Option<usize>,
    compress: bool,
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let path = table.required("path", "\"/var/log/closehook/events.jsonl\"");
    let rotate = table.table("rotate", |table| Rotate {
        size: table.optional("size"),
        age: table.optional("age"),
        keep: table.optional("keep"),
        compress: table.or("compress", true),
    });
    Some(Arc::new(Options { path: path?, rotate }))
}

/// Bytes of lines in one write, roughly.
const BATCH_BYTES: usize = 4 << 20;

impl Options {
    fn absolute(&self) -> String {
        let absolute = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let canonical = std::fs::canonicalize(&absolute).unwrap_or(absolute);
        canonical.display().to_string()
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 1024,
                bytes: BATCH_BYTES,
                wait: Duration::ZERO,
            },
            concurrency: 1,
            commit: Commit::Checkpoint,
        }
    }

    fn exclusive(&self) -> Option<String> {
        Some(self.absolute())
    }

    fn fault(&self) -> Option<String> {
        what_it_is_instead(&self.path)
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        line::payload(delivery)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(format!("{self:?}"))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let path = self.path.display().to_string();
        let stuck = |_| Unavailable::new(format!("{path} takes nothing: an earlier write has not come back yet"));
        let claim = Claim::wait(&path, context.timeout).await.map_err(stuck)?;
        let thread = OwnThread::start("file", None, claim);
        let thread = thread.map_err(|error| Unavailable::new(format!("a thread can't be started: {error}")))?;
        let sink = FileSink {
            name: context.name.clone(),
            epoch: context.epoch.clone(),
            options: self.clone(),
            timeout: context.timeout,
            thread,
            tidied: AtomicBool::new(false),
        };
        let position = sink.resume(context).await?;
        Ok(Opened {
            sink: Box::new(sink),
            mark: None,
            position: Some(position),
        })
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let path = self.path.clone();
        let name = format!("probe of {}", path.display());
        let stuck = |_| Unavailable::new(format!("{} does not answer", self.path.display()));
        let claim = Claim::wait(&name, context.timeout).await.map_err(stuck)?;
        let thread = OwnThread::start("probe", (), claim);
        let thread = thread.map_err(|error| Unavailable::new(format!("a thread can't be started: {error}")))?;
        let looked = thread.run(context.timeout, move |()| look_at(&path)).await;
        looked.map_err(stuck)?.map_err(Unavailable::new)
    }
}

/// Whether the file could be appended to, or made; makes nothing.
fn look_at(path: &Path) -> Result<String, String> {
    use rustix::fs::{Access, access};
    if let Some(fault) = what_it_is_instead(path) {
        return Err(fault);
    }
    let refused = |at: &Path, error: &dyn std::fmt::Display| format!("{} can't be written: {error}", at.display());
    match std::fs::metadata(path) {
        Ok(metadata) => {
            access(path, Access::WRITE_OK).map_err(|error| refused(path, &error))?;
            Ok(format!(
                "{} can be appended to ({})",
                path.display(),
                Size(metadata.len())
            ))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let absolute = std::path::absolute(path).map_err(|error| refused(path, &error))?;
            let existing = absolute.ancestors().skip(1).find(|ancestor| ancestor.exists());
            let existing = existing.unwrap_or(Path::new("/"));
            if !existing.is_dir() {
                return Err(refused(path, &format!("{} is no directory", existing.display())));
            }
            access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| refused(existing, &error))?;
            Ok(format!("{} can be made", path.display()))
        }
        Err(error) => Err(refused(path, &error)),
    }
}

/// What stands at a path where a file should be, if it is something else. What can't be looked at is no fault: it may be there later.
fn what_it_is_instead(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let shown = path.display();
    let standard = [
        "/dev/stdout",
        "/dev/fd/1",
        "/proc/self/fd/1",
        "/dev/stderr",
        "/dev/fd/2",
        "/proc/self/fd/2",
    ];
    if standard.iter().any(|name| path == Path::new(name)) {
        return Some(format!(
            "{shown} is no file that can be cut and rotated: use type = \"stdout\""
        ));
    }
    let kind = std::fs::metadata(path).ok()?.file_type();
    if kind.is_dir() {
        Some(format!("{shown} is a directory: name a file in it"))
    } else if kind.is_fifo() {
        Some(format!(
            "{shown} is a pipe: use type = \"stdout\" and let the reader take standard output"
        ))
    } else if !kind.is_file() {
        Some(format!(
            "{shown} is no regular file: name a file, or use type = \"stdout\""
        ))
    } else {
        None
    }
}

struct FileSink {
    name: String,
    epoch: String,
    options: Options,
    /// How long a piece of work may take.
    timeout: Duration,
    /// `None` until it is open.
    thread: OwnThread<Option<OpenFile>>,
    /// What an earlier run left to compress is compressed once, by whoever delivers: not by a probe beside it.
    tidied: AtomicBool,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    id: FileId,
    /// When the first line was written to it, as far as is known.
    since: Timestamp,
    /// The file does not end with a line end: the next write begins with one.
    broken_line: bool,
}

/// Which file it is, whatever its name. Not the device's number: that can change when the machine starts again. The time of
/// birth tells a file from a later one that was given the same inode.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct FileId {
    inode: u64,
    /// `None` where the file system does not keep it.
    born: Option<Timestamp>,
}

impl FileId {
    fn of(metadata: &std::fs::Metadata) -> FileId {
        FileId {
            inode: metadata.ino(),
            born: metadata.created().ok().and_then(|at| Timestamp::try_from(at).ok()),
        }
    }

    fn is(self, other: FileId) -> bool {
        let both_known = self.born.is_some() && other.born.is_some();
        self.inode == other.inode && (self.born == other.born || !both_known)
    }
}

/// What is saved with the cursor.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    id: FileId,
    len: u64,
    since: Timestamp,
    epoch: String,
}

impl OpenFile {
    fn create(path: &Path) -> io::Result<OpenFile> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            std::fs::create_dir_all(parent)?;
        }
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        if is_new && rustix::process::geteuid().is_root() {
            // What a command run by root makes must not lock the daemon out.
            let owner = std::fs::metadata(parent.unwrap_or(Path::new(".")))?;
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        let metadata = file.metadata()?;
        framefile::sync_parent(path)?;
        let mut last = [b'\n'];
        if metadata.len() > 0 {
            file.read_exact_at(&mut last, metadata.len() - 1)?;
        }
        Ok(OpenFile {
            file,
            id: FileId::of(&metadata),
            since: Timestamp::now(),
            broken_line: last != [b'\n'],
        })
    }

    fn resume(path: &Path, position: Option<&Position>, epoch: &str) -> io::Result<OpenFile> {
        let mut open = OpenFile::create(path)?;
        let saved: Option<Saved> = position.and_then(|position| serde_json::from_value(position.0.clone()).ok());
        let Some(saved) = saved.filter(|saved| saved.epoch == epoch) else {
            return Ok(open);
        };
        if saved.id.is(open.id) {
            open.since = saved.since;
            tell_what_is_missing(&open.file, path, saved.len)?;
            if cut_off(&mut open.file, path, saved.len)? {
                open.broken_line = false;
            }
        } else if let Some(moved) = find(path, saved.id)? {
            // Moved away by a rotation that did not come to its end, or by somebody else, and written to since.
            let mut file = OpenOptions::new().read(true).write(true).open(&moved)?;
            cut_off(&mut file, &moved, saved.len)?;
        }
        Ok(open)
    }
}

/// The file in the directory of `path` that is this one.
fn find(path: &Path, id: FileId) -> io::Result<Option<PathBuf>> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    for entry in std::fs::read_dir(dir.unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() && FileId::of(&metadata).is(id) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A file that is shorter than it was when its length was saved has lost lines, and not by this sink. They do not come again, so
/// somebody has to hear of it; what is new goes on behind what is there.
fn tell_what_is_missing(file: &File, path: &Path, saved: u64) -> io::Result<u64> {
    let missing = saved.saturating_sub(file.metadata()?.len());
    if missing > 0 {
        tracing::error!(
            path = %path.display(),
            bytes = missing,
            "the file is shorter than when it was last secured: somebody has cut it, or it was damaged, and the lines that are gone are not written again"
        );
    }
    Ok(missing)
}

/// Cuts off what is behind `len`, if it is surely ours; `true` if anything was.
fn cut_off(file: &mut File, path: &Path, len: u64) -> io::Result<bool> {
    let surplus = file.metadata()?.len().saturating_sub(len);
    if surplus == 0 {
        return Ok(false);
    }
    if !is_ours(file, len)? {
        tracing::warn!(
            path = %path.display(),
            "somebody else has written to the file: nothing is cut off, and the newest events may stand in it twice"
        );
        return Ok(false);
    }
    tracing::debug!(path = %path.display(), bytes = surplus, "cut off lines that were not saved yet; they come again");
    file.set_len(len)?;
    file.sync_all()?;
    Ok(true)
}

/// Whether everything behind `from` is lines as this sink writes them; the last one may be torn.
fn is_ours(file: &mut File, from: u64) -> io::Result<bool> {
    // What is written between two checkpoints; more than this is not ours to judge.
    const SURPLUS_MAX: u64 = 1 << 30;
    if from > 0 {
        let mut before = [0];
        file.read_exact_at(&mut before, from - 1)?;
        if before != [b'\n'] {
            return Ok(false);
        }
    }
    if file.metadata()?.len() - from > SURPLUS_MAX {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(from))?;
    let mut reader = io::BufReader::new(file);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = io::BufRead::read_until(&mut reader, b'\n', &mut text)?;
        if read == 0 {
            return Ok(true);
        }
        // A power cut leaves zeros where the length was on disk and the data was not.
        if text.contains(&0) {
            continue;
        }
        let start: &[u8] = br#"{"seq":"#;
        if text.last() != Some(&b'\n') {
            return Ok(text.starts_with(start) || start.starts_with(&text));
        }
        let ours = crate::json::validate(&text).is_ok_and(|text| {
            let node = Node::new(text);
            ["seq", "received_at", "source", "rules", "event"]
                .iter()
                .all(|key| node.get(key).is_some())
        });
        if !ours {
            return Ok(false);
        }
    }
}

impl FileSink {
    /// Has a piece of file work done on the sink's thread.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut OpenFile) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let path = self.options.path.display();
        let done = self.thread.run(self.timeout, |open| open.as_mut().map(work)).await;
        match done {
            Ok(Some(Ok(done))) => Ok(done),
            Ok(Some(Err(error))) => Err(Unavailable::new(format!("{path} can't be written: {error}"))),
            Ok(None) => Err(Unavailable::new(format!("{path} is not open"))),
            Err(_) => Err(Unavailable::new(format!(
                "{path} does not take what is written to it within {}",
                Span(self.timeout)
            ))),
        }
    }

    /// Opens the file, and cuts off what the saved position does not cover; gives where it stands then.
    async fn resume(&self, context: Context) -> Result<Position, Unavailable> {
        let path = self.options.path.clone();
        let shown = path.display().to_string();
        let opened = self.thread.run(self.timeout, move |open| -> io::Result<Position> {
            if let Some(instead) = what_it_is_instead(&path) {
                return Err(io::Error::other(instead));
            }
            let file = OpenFile::resume(&path, context.position.as_ref(), &context.epoch)?;
            // What is in it is not waited for later: the position covers it.
            file.file.sync_all()?;
            let position = FileSink::position(&file, &context.epoch)?;
            *open = Some(file);
            Ok(position)
        });
        match opened.await {
            Ok(opened) => {
                opened.map_err(|error| Unavailable::new(format!("{shown} can't be opened for appending: {error}")))
            }
            Err(_) => Err(Unavailable::new(format!(
                "{shown} can't be opened within {}",
                Span(self.timeout)
            ))),
        }
    }

    fn position(open: &OpenFile, epoch: &str) -> io::Result<Position> {
        let saved = Saved {
            id: open.id,
            len: open.file.metadata()?.len(),
            since: open.since,
            epoch: epoch.to_owned(),
        };
        Ok(Position(serde_json::to_value(saved)?))
    }

    /// Finishes what rotation began: compresses, and deletes what is too many.
    fn tidy_in_background(&self) {
        let (path, rotate, name) = (
            self.options.path.clone(),
            self.options.rotate.clone(),
            self.name.clone(),
        );
        std::thread::spawn(move || {
            if let Err(error) = tidy(&path, &rotate) {
                tracing::warn!(sink = name, %error, "a rotated file could not be compressed or removed; the next rotation tries again");
            }
        });
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut lines = String::from("\n");
        for delivery in batch.deliveries() {
            line::append(&mut lines, delivery);
        }
        self.work(move |open| {
            let metadata = open.file.metadata()?;
            if metadata.nlink() == 0 {
                // What is written to it is lost.
                return Err(io::Error::other("somebody has deleted it; a new one is begun"));
            }
            let before = metadata.len();
            let lines = if open.broken_line {
                lines.as_bytes()
            } else {
                &lines.as_bytes()[1..]
            };
            if let Err(error) = open.file.write_all(lines) {
                // Half a batch must not stay: it comes again whole.
                open.file.set_len(before)?;
                return Err(error);
            }
            open.broken_line = false;
            Ok(())
        })
        .await?;
        Ok(vec![Outcome::Delivered; batch.deliveries().len()])
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        let epoch = self.epoch.clone();
        self.work(move |open| {
            open.file.sync_data()?;
            FileSink::position(open, &epoch).map(Some)
        })
        .await
    }

    async fn committed(&self) -> Result<Option<Position>, Unavailable> {
        let (path, rotate, epoch) = (
            self.options.path.clone(),
            self.options.rotate.clone(),
            self.epoch.clone(),
        );
        let (position, rotated) = self
            .work(move |open| {
                let moved_away = match std::fs::metadata(&path) {
                    Ok(metadata) => !FileId::of(&metadata).is(open.id),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                    Err(error) => return Err(error),
                };
                let len = open.file.metadata()?.len();
                let age = Timestamp::now().duration_since(open.since);
                let due = len > 0
                    && (rotate.size.is_some_and(|size| len >= size.0)
                        || rotate
                            .age
                            .is_some_and(|limit| age.unsigned_abs() >= limit.0 && age.is_positive()));
                if !moved_away && !due {
                    return Ok((None, false));
                }
                if !moved_away {
                    std::fs::rename(&path, rotated_name(&path, Timestamp::now()))?;
                    framefile::sync_parent(&path)?;
                }
                *open = OpenFile::create(&path)?;
                Ok((Some(FileSink::position(open, &epoch)?), !moved_away))
            })
            .await?;
        if rotated || !self.tidied.swap(true, Ordering::Relaxed) {
            self.tidy_in_background();
        }
        Ok(position)
    }
}

/// `events.jsonl` becomes `events-20260102T030405Z.jsonl`, with a number where that is taken.
fn rotated_name(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = stem_and_extension(path);
    let stamp = now.strftime("%Y%m%dT%H%M%SZ");
    (0..u32::MAX)
        .map(|number| {
            let suffix = if number == 0 {
                String::new()
            } else {
                format!("-{number}")
            };
            path.with_file_name(format!("{stem}-{stamp}{suffix}{extension}"))
        })
        .find(|candidate| !candidate.exists() && !framefile::beside(candidate, ".gz").exists())
        .unwrap_or_else(|| path.to_owned())
}

fn stem_and_extension(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = text(path.extension());
    (
        text(path.file_stem()),
        if extension.is_empty() {
            extension
        } else {
            format!(".{extension}")
        },
    )
}

/// Files that this sink has rotated away, oldest first; of one second, in the order of their numbers.
fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (stem, extension) = stem_and_extension(path);
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(&format!("{stem}-")) else {
            continue;
        };
        let rest = rest.strip_suffix(".tmp").unwrap_or(rest);
        let rest = rest.strip_suffix(".gz").unwrap_or(rest);
        let Some(stamp) = rest.strip_suffix(&extension) else {
            continue;
        };
        let (stamp, number) = stamp.split_once('-').unwrap_or((stamp, "0"));
        let Ok(number) = number.parse::<u32>() else { continue };
        let is_stamp = stamp.len() == 16
            && stamp.bytes().enumerate().all(|(index, byte)| match index {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
        if is_stamp {
            found.push((stamp.to_owned(), number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
}

/// One at a time in the whole process: two sinks never share files, but a restart of one may overlap.
static TIDYING: Mutex<()> = Mutex::new(());

fn tidy(path: &Path, rotate: &Rotate) -> io::Result<()> {
    let _one_at_a_time = TIDYING.lock().unwrap_or_else(PoisonError::into_inner);
    for file in rotated_files(path)? {
        let name = file.to_string_lossy();
        if name.ends_with(".gz.tmp") {
            std::fs::remove_file(&file)?;
        } else if rotate.compress && !name.ends_with(".gz") {
            compress(&file)?;
        }
    }
    if let Some(keep) = rotate.keep {
        let files = rotated_files(path)?;
        for file in files.iter().take(files.len().saturating_sub(keep)) {
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let temporary = framefile::beside(file, ".gz.tmp");
    let mut source = File::open(file)?;
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&temporary)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            read => encoder.write_all(&buffer[..read])?,
        }
    }
    encoder.finish()?.sync_all()?;
    std::fs::rename(&temporary, framefile::beside(file, ".gz"))?;
    framefile::sync_parent(file)?;
    std::fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::super::common::line::tests::delivery;
    use super::*;
    use crate::event::Delivery;
    use crate::sinks::tests::deliver;

    fn options(path: &Path, rotate: &str) -> Options {
        let mut faults = Vec::new();
        let rotate: serde_json::Value = serde_json::from_str(rotate).unwrap();
        let value = serde_json::json!({"path": path, "rotate": rotate});
        let mut table = Table::new("sinks[0]", value, &mut faults);
        assert!(parse(&mut table).is_some());
        let size = rotate.get("size").map(|s| s.as_str().unwrap().parse().unwrap());
        let keep = rotate.get("keep").map(|k| k.as_u64().unwrap() as usize);
        Options {
            path: path.to_owned(),
            rotate: Rotate {
                size,
                age: None,
                keep,
                compress: true,
            },
        }
    }

    async fn build(options: &Options, position: Option<Position>) -> Box<dyn Sink> {
        build_in("one", options, position).await
    }

    async fn build_in(epoch: &str, options: &Options, position: Option<Position>) -> Box<dyn Sink> {
        let context = Context {
            name: "t".into(),
            timeout: Duration::from_secs(60),
            log_id: "log".into(),
            epoch: epoch.into(),
            position,
            answers: None,
        };
        options.open(context).await.unwrap().sink
    }

    #[test]
    fn rotated_files_of_one_second_are_in_the_order_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let made: Vec<PathBuf> = (0..12)
            .map(|number| {
                let plain = rotated_name(&path, now);
                let file = if number % 2 == 0 {
                    plain
                } else {
                    framefile::beside(&plain, ".gz")
                };
                std::fs::write(&file, "").unwrap();
                file
            })
            .collect();
        std::fs::write(dir.path().join("events-20231114T221320Z-x.jsonl"), "").unwrap();
        assert_eq!(rotated_files(&path).unwrap(), made);
    }

    async fn write(sink: &dyn Sink, seqs: std::ops::RangeInclusive<u64>) {
        let batch: Vec<Delivery> = seqs
            .map(|seq| delivery(seq, &format!(r#"{{"event":{{"id":"ev_{seq}"}}}}"#)))
            .collect();
        let outcomes = deliver(sink, &batch).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered));
    }

    fn seqs(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                    .as_u64()
                    .unwrap()
            })
            .collect()
    }

    #[tokio::test]
    async fn what_was_not_saved_is_cut_off_and_comes_again_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/events.jsonl");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let saved = sink.checkpoint().await.unwrap();
        write(&*sink, 4..=6).await;
        drop(sink);
        // Torn in the middle of a line, as a crash may leave it.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 9).unwrap();
        let sink = build(&options, saved).await;
        assert_eq!(seqs(&path), [1, 2, 3]);
        write(&*sink, 4..=6).await;
        assert_eq!(seqs(&path), [1, 2, 3, 4, 5, 6]);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_noticed_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let saved = sink.checkpoint().await.unwrap();
        drop(sink);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        assert_eq!(tell_what_is_missing(&file, &path, len).unwrap(), 0);
        file.set_len(len - 9).unwrap();
        assert_eq!(tell_what_is_missing(&file, &path, len).unwrap(), 9);
        let sink = build(&options, saved).await;
        write(&*sink, 4..=4).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().last().unwrap().starts_with("{\"seq\":4,"), "{text}");
    }

    #[tokio::test]
    async fn what_was_not_saved_is_cut_off_in_a_file_that_was_moved_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let moved = dir.path().join("events.jsonl.1");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let saved = sink.checkpoint().await.unwrap();
        std::fs::rename(&path, &moved).unwrap();
        write(&*sink, 4..=5).await;
        drop(sink);
        let sink = build(&options, saved).await;
        write(&*sink, 4..=5).await;
        assert_eq!((seqs(&moved), seqs(&path)), (vec![1, 2, 3], vec![4, 5]));
    }

    /// An inode is given out again when its file is gone; the new file's lines are not ours to cut.
    #[test]
    fn a_later_file_with_the_same_inode_is_another_file() {
        let at = |second| Timestamp::from_second(second).ok();
        let id = |inode, born| FileId { inode, born };
        assert!(id(7, at(1)).is(id(7, at(1))) && id(7, at(1)).is(id(7, None)));
        assert!(!id(7, at(1)).is(id(7, at(2))) && !id(7, at(1)).is(id(8, at(1))));
    }

    #[tokio::test]
    async fn zeros_that_a_power_cut_left_are_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=3).await;
        let saved = sink.checkpoint().await.unwrap();
        write(&*sink, 4..=4).await;
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[&[0; 5000][..], b"end of a line\n", br#"{"seq":9"#, &[0; 10]].concat())
            .unwrap();
        drop(sink);
        let sink = build(&options, saved).await;
        write(&*sink, 4..=4).await;
        assert_eq!(seqs(&path), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn what_others_wrote_is_never_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "no line end").unwrap();
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=1).await;
        let saved = sink.checkpoint().await.unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"somebody was here\n").unwrap();
        drop(sink);
        let sink = build(&options, saved.clone()).await;
        write(&*sink, 2..=2).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("no line end\n{\"seq\":1,"), "{text}");
        assert!(text.contains("somebody was here\n{\"seq\":2,"), "{text}");
        // Another epoch is another log: its Seqs mean nothing here.
        drop(sink);
        let before = std::fs::metadata(&path).unwrap().len();
        build_in("two", &options, saved).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    }

    #[tokio::test]
    async fn rotation_loses_and_repeats_nothing_whichever_step_it_dies_at() {
        for dies_after in ["checkpoint", "committed", "save"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            let options = options(&path, r#"{"size": "1 B"}"#);
            let sink = build(&options, None).await;
            write(&*sink, 1..=3).await;
            let mut saved = sink.checkpoint().await.unwrap();
            if dies_after != "checkpoint" {
                let moved = sink.committed().await.unwrap();
                assert!(moved.is_some());
                if dies_after == "save" {
                    saved = moved;
                    write(&*sink, 4..=5).await;
                }
            }
            drop(sink);
            let sink = build(&options, saved).await;
            write(&*sink, 4..=5).await;
            let mut all = Vec::new();
            for file in rotated_files(&path).unwrap() {
                if file.to_string_lossy().ends_with(".gz") {
                    let mut text = String::new();
                    flate2::read::GzDecoder::new(File::open(&file).unwrap())
                        .read_to_string(&mut text)
                        .unwrap();
                    all.extend(text.lines().map(|line| {
                        serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                            .as_u64()
                            .unwrap()
                    }));
                } else if file.extension().is_some_and(|extension| extension == "jsonl")
                    && !framefile::beside(&file, ".gz").exists()
                {
                    all.extend(seqs(&file));
                }
            }
            all.extend(seqs(&path));
            assert_eq!(all, [1, 2, 3, 4, 5], "died after {dies_after}");
        }
    }

    #[tokio::test]
    async fn a_file_moved_away_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, "{}");
        let sink = build(&options, None).await;
        write(&*sink, 1..=1).await;
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        write(&*sink, 2..=2).await;
        assert!(sink.committed().await.unwrap().is_some());
        write(&*sink, 3..=3).await;
        assert_eq!((seqs(&dir.path().join("moved")), seqs(&path)), (vec![1, 2], vec![3]));
    }

    #[test]
    fn old_files_are_compressed_and_limited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let options = options(&path, r#"{"keep": 1}"#);
        for name in [
            "events.jsonl",
            "moved",
            "events-20200101T000000Z.jsonl",
            "events-20200102T000000Z.jsonl",
            "events-other.jsonl",
            "events-20200103T000000Z.jsonl.gz.tmp",
        ] {
            std::fs::write(dir.path().join(name), "x\n").unwrap();
        }
        tidy(&path, &options.rotate).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "events-20200102T000000Z.jsonl.gz",
                "events-other.jsonl",
                "events.jsonl",
                "moved"
            ]
        );
    }
}
