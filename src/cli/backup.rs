//! `closehook backup` and `closehook restore`

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::connect::{Access, Connection, with};
use super::interrupt::{Stop, unless_told_to_stop};
use super::output::{Mode, NewFile, cant, refuse_in_data_dir, refuse_to_overwrite};
use super::term::bytes_bar;
use super::when::when;
use super::{Failure, Global, Outcome, print_line, report, unwritten};
use crate::app;
use crate::backup::{self, BackupError, Summary};
use crate::config::{Engine, Size};
use crate::control::backup as asked;
use crate::event::Seq;
use crate::task;

/// Keep a copy of the whole data directory in one file, also while the daemon runs
///
/// In it: events, positions of sinks, retries, dead letters, replays, known keys and signature keys. Not in it: the
/// configuration, and files that sinks wrote. Whatever was answered 200 before the command began is in it.
#[derive(Debug, Args)]
#[command(
    after_help = "The file holds keys and personal data: it is readable by you only (mode 0600).

To move to another machine: stop the daemon here, so that nothing is delivered after the backup; back up; restore there; copy
the configuration and what its sinks wrote; start the daemon there; point Close at it. Close sends again what it could not
deliver meanwhile.

What damage keeps out of it is named, and the exit code is 1; all else is in it. Without a daemon what is damaged is left as it
is: then it is named what a start would have put right first.

Examples:
  closehook backup /var/backups/closehook.backup
  closehook backup - | ssh backup-host 'cat > closehook.backup'
  closehook restore --check /var/backups/closehook.backup"
)]
pub(super) struct Backup {
    /// Where to; - for standard output
    file: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
}

/// Make a data directory from a backup
///
/// The restored log is another one than the original: its next event gets a Seq far beyond all that the original can have
/// given out, and files of sinks are appended to, never cut. Sinks go on where they were at the time of the backup.
#[derive(Debug, Args)]
#[command(
    after_help = "The directory must be empty or missing; an error leaves it so. Known keys that can't be opened are left
out; these, and dead letters that the backup lacks, are named, with exit code 1: all else is there.

Examples:
  closehook restore /var/backups/closehook.backup
  closehook restore closehook.backup --dir /srv/closehook
  closehook restore --check closehook.backup    # says what is in it
  ssh old-host closehook backup - | closehook restore -"
)]
pub(super) struct Restore {
    /// What `closehook backup` wrote; - for standard input
    file: PathBuf,
    /// The data directory to make [default: log.dir of the configuration]
    #[arg(long, conflicts_with = "check")]
    dir: Option<PathBuf>,
    /// Only read the backup to its end and check it
    #[arg(long)]
    check: bool,
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        Failure::Work(error.to_string())
    }
}

impl Backup {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let to_stdout = self.file.as_os_str() == "-";
        if to_stdout && io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "a backup is no text for a terminal: name a file, or pipe it somewhere".into(),
            ));
        }
        if !to_stdout {
            refuse_to_overwrite(&self.file, self.force)?;
        }
        with(global, Access::Read, async |connection| {
            if to_stdout {
                // Standard output is the backup: nothing else may get there.
                let mut out = io::stdout().lock();
                let summary = receive(connection, &mut out, |error| {
                    let what = Path::new("the backup on standard output");
                    match (cant(what, error), unwritten(error)) {
                        // Half a backup is none: that nobody reads it to its end is no reason to be quiet.
                        (Failure::Work(why), Failure::Unread) => {
                            report::notice(global.json, &why);
                            Failure::Unread
                        }
                        (said, _) => said,
                    }
                })
                .await?;
                return told(global, &summary);
            }
            refuse_in_data_dir(&self.file, &connection.config.log.dir)?;
            let summary = unless_told_to_stop(self.to_file(connection)).await?;
            global.print(&summary, |summary| {
                format!("{} backed up to {}", content(summary), self.file.display())
            })?;
            told(global, &summary)
        })
        .await
    }

    /// The file takes its name only when it is complete, on disk and read back.
    async fn to_file(&self, connection: &Connection) -> Result<Summary, Failure> {
        let mut file = NewFile::begin(&self.file, Mode::Private, self.force)?;
        let summary = receive(connection, &mut file.writer(), |error| cant(&self.file, error)).await?;
        let (written, name) = (file.read_back()?, self.file.clone());
        let read_back = task::begin_blocking(move || backup::check(written, &name));
        read_back.await.map_err(|error| Failure::Work(error.to_string()))??;
        file.finish()?;
        Ok(summary)
    }
}

/// Writes what arrives; gives the summary that ends it.
async fn receive(
    connection: &Connection,
    out: &mut dyn Write,
    cant: impl Fn(&io::Error) -> Failure,
) -> Result<Summary, Failure> {
    let mut answers = connection.ask(asked::Backup {}).await?;
    let bar = bytes_bar();
    let mut summary = None;
    while let Some(part) = answers.next().await? {
        match part {
            asked::Part::Estimate(estimate) => bar.set_length(estimate),
            asked::Part::Data(data) => {
                let bytes = asked::Part::bytes(&data)?;
                out.write_all(&bytes).map_err(|error| cant(&error))?;
                bar.inc(bytes.len() as u64);
                // The estimate is one.
                if bar.length().is_some_and(|length| length < bar.position()) {
                    bar.set_length(bar.position());
                }
            }
            asked::Part::Summary(end) => summary = Some(end),
        }
    }
    out.flush().map_err(|error| cant(&error))?;
    bar.finish_and_clear();
    summary.ok_or_else(|| Failure::Work("the backup did not come to its end: try again".into()))
}

fn content(summary: &Summary) -> String {
    let events = if summary.first == Seq::ZERO {
        "no events".to_owned()
    } else {
        format!("{} events ({} to {})", summary.events, summary.first, summary.last)
    };
    let bytes = Size(summary.bytes);
    format!("{events} and the positions of {} sinks ({bytes})", summary.sinks)
}

/// Says what damage had taken away already: the backup is good, and not all there was.
fn told(global: &Global, summary: &Summary) -> Outcome {
    for (first, last) in &summary.damaged {
        let notice = format!("events {first} to {last} are damaged in the log, and so not in the backup");
        report::notice(global.json, &notice);
    }
    for why in summary.damaged_keys.iter().chain(&summary.damaged_letters) {
        report::notice(global.json, &format!("not in the backup: {why}"));
    }
    for why in &summary.unrepaired {
        report::notice(global.json, why);
    }
    match but_for(summary) {
        None if summary.unrepaired.is_empty() => Ok(()),
        _ => Err(Failure::Found),
    }
}

/// What damage had taken of it, half a sentence; `None`: nothing.
fn but_for(summary: &Summary) -> Option<String> {
    let parts = [
        ("events", summary.damaged.is_empty()),
        ("known keys", summary.damaged_keys.is_empty()),
        ("dead letters", summary.damaged_letters.is_empty()),
    ];
    let parts = parts.into_iter().filter(|(_, is_whole)| !is_whole);
    let parts: Vec<&str> = parts.map(|(what, _)| what).collect();
    (!parts.is_empty()).then(|| format!("but for {} that are damaged", parts.join(" and ")))
}

/// What was restored, and where.
#[derive(Serialize)]
struct Restored<'a> {
    #[serde(flatten)]
    summary: Summary,
    dir: &'a Path,
    next: Seq,
}

impl Restore {
    /// The data directory that it makes.
    pub(super) fn makes(&self, global: &Global) -> Result<Option<PathBuf>, Failure> {
        match (&self.dir, self.check) {
            (_, true) => Ok(None),
            (Some(dir), _) => Ok(Some(dir.clone())),
            (None, _) => Ok(Some(global.load()?.log.dir)),
        }
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        let dir = self.makes(global)?;
        let (file, shown) = (self.file, dir.clone());
        let mut stop = Stop::listen()?;
        let is_told = Arc::new(AtomicBool::new(false));
        let told = is_told.clone();
        let mut work = task::begin_blocking(move || restore(&file, dir.as_deref(), &told));
        let restored = tokio::select! {
            restored = &mut work => restored,
            () = stop.told() => {
                // It stops reading, and takes away what it has made.
                is_told.store(true, Ordering::Relaxed);
                work.await
            }
        };
        let restored = restored.map_err(|error| Failure::Work(error.to_string()))?;
        let (summary, next) = match restored {
            Err(_) if is_told.load(Ordering::Relaxed) => {
                return Err(Failure::Work(
                    "interrupted: nothing was restored, and nothing is left of it".into(),
                ));
            }
            restored => restored?,
        };
        let Some(dir) = shown else {
            global.print(&summary, |summary| {
                let but_for = but_for(summary).map_or_else(String::new, |but_for| format!(" {but_for}"));
                format!(
                    "the backup of {} is whole{but_for}: {}",
                    when(summary.made_at),
                    content(summary)
                )
            })?;
            return lacking(global, "would not be restored", &summary);
        };
        let restored = Restored {
            summary,
            dir: &dir,
            next,
        };
        global.print(&restored, |restored| {
            format!(
                "{} of {} restored into {}; the next event gets Seq {}",
                content(&restored.summary),
                when(restored.summary.made_at),
                restored.dir.display(),
                restored.next
            )
        })?;
        if !global.json {
            let is_elsewhere = global.load().is_ok_and(|config| config.log.engine == Engine::JetStream);
            print_line(if is_elsewhere {
                "with log.engine = \"jetstream\" nothing here is served: set log.engine = \"local\" and start `closehook serve` on it; what the \
                 stream holds stays there, and is another log's, or this one's after the backup"
            } else {
                "start `closehook serve` on it; sinks go on where they were"
            })?;
        }
        lacking(global, "not restored", &restored.summary)
    }
}

/// Says which known keys and dead letters a backup lacks, or does not hold as they were: its events are whole.
fn lacking(global: &Global, what: &str, summary: &Summary) -> Outcome {
    for why in &summary.damaged_keys {
        report::notice(global.json, &format!("{what}: {why}"));
    }
    for why in &summary.damaged_letters {
        report::notice(global.json, &format!("not in the backup: {why}"));
    }
    for why in &summary.unrepaired {
        report::notice(global.json, &format!("when it was backed up: {why}"));
    }
    if summary.damaged_keys.is_empty() && summary.damaged_letters.is_empty() && summary.unrepaired.is_empty() {
        Ok(())
    } else {
        Err(Failure::Found)
    }
}

/// What is said where the backup itself is no good, and the directory is as it was.
fn not_restored(error: &BackupError) -> Failure {
    let is_about_it = matches!(
        error,
        BackupError::Unusable { .. } | BackupError::CutOff(_) | BackupError::Wrong { .. }
    );
    let left = if is_about_it { "; nothing was restored" } else { "" };
    Failure::Work(format!("{error}{left}"))
}

fn is_missing(dir: &Path) -> bool {
    // The empty path is where we are.
    !dir.as_os_str().is_empty() && dir.symlink_metadata().is_err()
}

/// Bytes that are read ahead of who takes them.
const PIECE_LEN: usize = 256 << 10;

/// So often it is looked whether the reading is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is read from a stream that may have nothing to say for ever; it ends with an error when it is told to.
struct Stoppable {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
    is_told: Arc<AtomicBool>,
}

impl Stoppable {
    fn new(mut input: impl Read + Send + 'static, is_told: &Arc<AtomicBool>) -> io::Result<Stoppable> {
        let (sender, pieces) = sync_channel(4);
        // It ends with the process at the latest.
        task::begin_thread("input", move || {
            loop {
                let mut piece = vec![0; PIECE_LEN];
                let read = input.read(&mut piece);
                let is_last = !matches!(read, Ok(1..));
                let piece = read.map(|len| {
                    piece.truncate(len);
                    piece
                });
                if sender.send(piece).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Stoppable {
            pieces,
            piece: io::Cursor::default(),
            is_told: is_told.clone(),
        })
    }
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.is_told.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            let len = self.piece.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            match self.pieces.recv_timeout(LOOK_EVERY) {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

/// Blocking. Without a directory the backup is only checked.
fn restore(file: &Path, dir: Option<&Path>, is_told: &Arc<AtomicBool>) -> Result<(Summary, Seq), Failure> {
    let bar = bytes_bar();
    let (input, name): (Box<dyn Read + Send>, &Path) = if file.as_os_str() == "-" {
        (Box::new(io::stdin()), Path::new("standard input"))
    } else {
        let opened = std::fs::File::open(file)
            .map_err(|error| Failure::Usage(format!("{} can't be read: {error}", file.display())))?;
        bar.set_length(opened.metadata()?.len());
        (Box::new(opened), file)
    };
    let input = bar.wrap_read(Stoppable::new(input, is_told)?);
    let done = match dir {
        None => backup::check(input, name).map(|summary| (summary, Seq::ZERO)),
        Some(dir) => {
            let missing: Vec<&Path> = dir.ancestors().take_while(|dir| is_missing(dir)).collect();
            let made = app::make_data_dir(dir).map_err(Failure::from);
            let restored = made.and_then(|()| backup::restore(input, name, dir).map_err(|error| not_restored(&error)));
            match &restored {
                Ok(_) => app::leave_to_owner(dir),
                // Innermost first; only what is empty goes.
                Err(_) => missing.iter().for_each(|made| drop(std::fs::remove_dir(made))),
            }
            bar.finish_and_clear();
            return restored;
        }
    };
    bar.finish_and_clear();
    Ok(done?)
}
