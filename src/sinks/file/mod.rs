//! `file`: one JSON line per event, appended to a file; exactly once, also across crashes.
//!
//! How: the engine saves this sink's cursor together with a [`Position`], the length the file had when it was synced. After
//! a crash the file may be longer than that; the surplus holds events beyond the saved cursor, which will come again, so it
//! is cut off, also when the file was moved away meanwhile but not out of its directory. It is cut only if it is surely ours:
//! same file ([`FileId`]) and same log (epoch), and nothing but lines of our form in it. A file that somebody else has changed
//! is only ever appended to. Nor is anything cut off that the log does not have (any more), as where the data directory was put back from a
//! copy: it would be nowhere. What a template or transform makes has no form that could be told from somebody else's: behind a crash such
//! lines stay, and come once more.
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
//! temporary file that the next start removes, and the compression is done again. Where the path is a link, all of this
//! happens to what it leads to, in the directory where that is.
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it, and its keys |
//! | `open` | the file that is appended to: which one it is, what is cut off, whose it is |
//! | `rotation` | the files that were moved away: their names, how many stay, compressing |

pub(super) mod definition;
mod open;
mod rotation;

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use self::open::{FileId, OpenFile};
use self::rotation::{Rotate, rotated_name, tidy};
use super::common::line;
use super::common::place::{self, Instead};
use super::common::thread::{Claim, OwnThread};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Position, Sink, SinkKind, Unavailable,
};
use crate::config::{SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::framefile;
use crate::sync::lock;
use crate::task;

#[derive(Debug, Clone)]
struct Options {
    path: PathBuf,
    rotate: Rotate,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let path = table.needed("path");
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

#[async_trait]
impl SinkKind for Options {
    fn warning_of_programs(&self) -> Option<String> {
        let twice = "what a template or transform makes can't be told from lines of others: after a crash it may stand there twice";
        Some(format!(
            "{twice}; the event itself, without one, is written exactly once"
        ))
    }

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
        let path = place::target(&self.path).unwrap_or_else(|_| self.path.clone());
        // A file of several names.
        let linked = std::fs::metadata(&path).ok().filter(|metadata| metadata.nlink() > 1);
        let linked = linked.map(|metadata| format!("the file {}:{}", metadata.dev(), metadata.ino()));
        Some(linked.unwrap_or_else(|| path.display().to_string()))
    }

    fn writes(&self) -> Option<PathBuf> {
        Some(place::target(&self.path).unwrap_or_else(|_| self.path.clone()))
    }

    fn fault(&self) -> Option<String> {
        no_file(&self.path)
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
            spare: Mutex::default(),
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

/// What stands there, if it is no file that can be cut and rotated, and what to do about it.
fn no_file(path: &Path) -> Option<String> {
    let instead = place::what_it_is_instead(path)?;
    let advice = match &instead {
        Instead::Directory => "name a file in it",
        Instead::Pipe => "use type = \"stdout\" and let the reader take standard output",
        Instead::Stream => "use type = \"stdout\"",
        Instead::Other | Instead::Kernel(_) => "name a file, or use type = \"stdout\"",
        Instead::Circle | Instead::NoName => "name a file",
    };
    Some(format!("{} {instead}: {advice}", path.display()))
}

/// Whether what this process says goes into the file: its log would lie among the lines, and be cut off with them.
fn is_our_output(path: &Path) -> bool {
    let Ok(found) = std::fs::metadata(path) else {
        return false;
    };
    let is_it = |stream: rustix::fs::Stat| (stream.st_dev, stream.st_ino) == (found.dev(), found.ino());
    let streams = [
        rustix::fs::fstat(rustix::stdio::stdout()),
        rustix::fs::fstat(rustix::stdio::stderr()),
    ];
    streams.into_iter().flatten().any(is_it)
}

/// Whether the file could be appended to, or made; makes nothing.
fn look_at(path: &Path) -> Result<String, String> {
    use rustix::fs::{Access, access};
    if let Some(fault) = no_file(path) {
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
            let target = place::target(path).map_err(|error| refused(path, &error))?;
            let existing = target.ancestors().skip(1).find(|ancestor| ancestor.exists());
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
    /// What the last batch was written from, for the next one: fresh memory costs more than what is written into it.
    spare: Mutex<String>,
}

impl FileSink {
    /// An empty text with room. One that was kept is much larger only for as long as batches are large.
    fn take_spare(&self, room: usize) -> String {
        let mut spare = std::mem::take(&mut *lock(&self.spare));
        if spare.capacity() < room || spare.capacity() / 4 > room {
            return String::with_capacity(room + 1);
        }
        spare.clear();
        spare
    }

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
            if let Some(instead) = no_file(&path) {
                return Err(io::Error::other(instead));
            }
            let target = place::target(&path)?;
            if is_our_output(&target) {
                return Err(io::Error::other(
                    "the daemon's own log goes there: name another file, or send the log somewhere else",
                ));
            }
            let file = OpenFile::resume(&target, context.position.as_ref(), &context.epoch, context.kept)?;
            // What is in it is not waited for later: the position covers it.
            file.file.sync_all()?;
            let position = file.position(&context.epoch)?;
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

    /// Finishes what rotation began: deletes what is too many, and compresses.
    fn tidy_in_background(&self) {
        let (path, rotate, sink) = (
            self.options.path.clone(),
            self.options.rotate.clone(),
            self.name.clone(),
        );
        let tidying = move || {
            let Ok(path) = place::target(&path) else { return };
            for trouble in tidy(&path, &rotate) {
                tracing::warn!(
                    sink,
                    path = %trouble.path.display(),
                    error = %trouble.error,
                    "a rotated file could not be {}; the next rotation tries again",
                    trouble.what
                );
            }
        };
        if let Err(error) = task::begin_thread("tidy", tidying) {
            tracing::warn!(sink = self.name, %error, "rotated files are not tidied until the next rotation");
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let bodies = batch.deliveries().iter().map(|delivery| delivery.event.body.len());
        let room = bodies.map(|len| len + line::ENVELOPE_LEN).sum();
        let mut lines = self.take_spare(room);
        lines.push('\n');
        for delivery in batch.deliveries() {
            line::append(&mut lines, delivery);
        }
        let written = self.work(move |open| {
            let metadata = open.file.metadata()?;
            if metadata.nlink() == 0 {
                // What is written to it is lost.
                return Err(io::Error::other("somebody has deleted it; a new one is begun"));
            }
            let before = metadata.len();
            let bytes = if open.broken_line {
                lines.as_bytes()
            } else {
                &lines.as_bytes()[1..]
            };
            if let Err(error) = open.file.write_all(bytes) {
                // Half a batch must not stay: it comes again whole.
                open.file.set_len(before)?;
                return Err(error);
            }
            open.broken_line = false;
            Ok(lines)
        });
        *lock(&self.spare) = written.await?;
        Ok(vec![Outcome::Delivered; batch.deliveries().len()])
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        let epoch = self.epoch.clone();
        self.work(move |open| {
            open.file.sync_data()?;
            open.position(&epoch).map(Some)
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
                // What the path leads to is what is moved; the link stays what it is.
                let path = place::target(&path)?;
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
                // A link may lead somewhere else now.
                if let Some(instead) = no_file(&path).filter(|_| moved_away) {
                    return Err(io::Error::other(instead));
                }
                if !moved_away {
                    std::fs::rename(&path, rotated_name(&path, Timestamp::now()))?;
                    framefile::sync_parent(&path)?;
                }
                *open = OpenFile::create(&path, Some(&open.file))?;
                Ok((Some(open.position(&epoch)?), !moved_away))
            })
            .await?;
        if rotated || !self.tidied.swap(true, Ordering::Relaxed) {
            self.tidy_in_background();
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests;
