//! `closehook log`

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::connect::{Access, Connection, with};
use super::copy;
use super::interrupt::unless_told_to_stop;
use super::output::{Mode, NewFile, cant, refuse_in_data_dir, refuse_to_overwrite};
use super::pick::{cant_read, open};
use super::term::confirm;
use super::{Failure, Global, Outcome, json_line, unwritten};
use crate::config::{Config, Engine, Size, Span};
use crate::control::erase;
use crate::control::transfer::{self, Exported, Import, Imported, Unread};
use crate::plain;

/// Lines sent at a time, and bytes of them (unless one line is longer): the daemon takes no query of any length.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 8 << 20;

/// Longest line of an export: a little less than the daemon takes in one request, and far more than any event has.
const LINE_LEN_MAX: u64 = 120 << 20;

/// Transfer the whole log to a file or another engine, or erase somebody's data from it
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  closehook log export events.jsonl\n  closehook log import events.jsonl")]
pub(super) enum Log {
    /// Write every event to a file, as `events export` does
    #[command(
        after_help = "The file holds personal data: it is readable by you only (mode 0600). It takes its name when it is complete.\n\nExamples:\n  closehook log export events.jsonl\n  closehook log export - | zstd > events.jsonl.zst"
    )]
    Export {
        /// Where to; - for standard output
        file: PathBuf,
        /// Overwrite the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Take events from a file; known ones are passed over
    #[command(
        after_help = "Imported events get new Seqs and keep their time of receipt. They are not
dispatched unless --dispatch is given; `closehook replay` sends them later, for
as long as they are kept. With it also sinks get them that no daemon has known
yet: those begin before them. What was received before log.retention is removed
within minutes, unless a sink still waits for it. So a file with such events is
refused without --dispatch or --expired: raise log.retention to keep them. With
`log.engine = \"jetstream\"` they are kept that long from the import on.

Example:
  closehook log import events.jsonl"
    )]
    Import {
        /// As `log export` or `events export` wrote it; - for standard input
        file: PathBuf,
        /// Send them to the sinks, like events that have just arrived
        #[arg(long)]
        dispatch: bool,
        /// Also take events that are older than log.retention, though they do not stay
        #[arg(long)]
        expired: bool,
    },
    /// Erase a lead's, a person's or single events' data, also from dead letters
    #[command(
        after_help = "The events' places stay, as tombstones; nothing of their content does. Bodies in quarantine go if the lead's id or the address stands in them.\nFiles that sinks wrote and backups are not touched; what was set aside as damaged is named.\nWhile anything is left the exit code is 1: run it again when that is put right.\n\nExample:\n  closehook log erase --email jane@example.com"
    )]
    Erase(Erase),
    Copy(copy::Copy),
    Reopen(copy::Reopen),
}

#[derive(Debug, Args)]
pub(super) struct Erase {
    /// Events of this lead
    #[arg(long, value_name = "LEAD_ID")]
    lead: Option<String>,
    /// Events in which this address stands, also within a text
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// Events with this id; may be repeated
    #[arg(long = "id", value_name = "EVENT_ID")]
    ids: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Log {
    /// Whether it changes anything.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Log::Export { .. })
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        match &self {
            Log::Copy(copy) => return copy.run(global).await,
            Log::Reopen(reopen) => return reopen.run(global).await,
            Log::Erase(erase) => drop(erase.whose()?),
            Log::Export { file, force } if file.as_os_str() != "-" => refuse_to_overwrite(file, *force)?,
            _ => {}
        }
        // Before a data directory is made for it.
        let source = match &self {
            Log::Import { file, .. } => Some(Source::open(file)?),
            _ => None,
        };
        let access = match self {
            Log::Export { .. } => Access::Read,
            Log::Import { .. } => Access::Begin,
            Log::Erase(_) | Log::Copy(_) | Log::Reopen(_) => Access::Write,
        };
        with(global, access, async |connection| match &self {
            Log::Export { file, force } => export(file, *force, global, connection).await,
            Log::Import { dispatch, expired, .. } => {
                let Some(source) = &source else { return Ok(()) };
                // What a sink waits for stays until it is delivered, and on servers what is imported is as old as its import.
                let is_local = connection.config.log.engine == Engine::Local;
                let kept = (is_local && !expired && !dispatch).then(|| Kept::by(&connection.config));
                import(source, *dispatch, kept, global, connection).await
            }
            Log::Erase(erase) => erase.run(global, connection).await,
            // They have the log alone.
            Log::Copy(_) | Log::Reopen(_) => Ok(()),
        })
        .await
    }
}

async fn export(file: &Path, force: bool, global: &Global, connection: &Connection) -> Outcome {
    if file.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        let (_, unread) = write_all(&mut out, connection, transfer::Export::default(), unwritten).await?;
        return missing(&unread);
    }
    refuse_in_data_dir(file, &connection.config.log.dir)?;
    let writing = async {
        let mut new = NewFile::begin(file, Mode::Private, force)?;
        let mut out = new.writer();
        let all = transfer::Export::default();
        let written = write_all(&mut out, connection, all, |error| cant(file, error)).await?;
        drop(out);
        new.finish()?;
        Ok(written)
    };
    let (count, unread) = unless_told_to_stop(writing).await?;
    global.print(&json!({ "exported": count }), |_| {
        format!("{count} events exported to {}", file.display())
    })?;
    missing(&unread)
}

/// Writes each event that is asked for as a line; gives how many there are, and what of them can't be read.
pub(super) async fn write_all(
    out: &mut dyn Write,
    connection: &Connection,
    asked: transfer::Export,
    cant: impl Fn(&std::io::Error) -> Failure,
) -> Result<(u64, Unread), Failure> {
    let mut answers = connection.ask(asked).await?;
    let (mut count, mut unread) = (0_u64, Unread::default());
    while let Some(line) = answers.next().await? {
        match line {
            transfer::Line::Event(event) => {
                writeln!(out, "{}", json_line(&event)?).map_err(|error| cant(&error))?;
                count += 1;
            }
            transfer::Line::Unread(more) => unread = more,
        }
    }
    out.flush().map_err(|error| cant(&error))?;
    Ok((count, unread))
}

/// An export that is not whole must not look as if it were.
pub(super) fn missing(unread: &Unread) -> Outcome {
    if unread.is_empty() {
        return Ok(());
    }
    Err(Failure::Work(format!(
        "{}, and are missing from what was exported; {WHAT_TO_DO}",
        unreadable(unread)
    )))
}

/// Who knows more of what is damaged, and who may have it.
pub(super) const WHAT_TO_DO: &str =
    "`closehook events verify` says why, and `closehook backfill` fetches what Close still has";

/// What can't be read, in words.
pub(super) fn unreadable(unread: &Unread) -> String {
    let ranges = unread.unread.iter().map(|lost| format!("{} to {}", lost.from, lost.to));
    let more = (unread.unread_more > 0).then(|| format!("{} more ranges", unread.unread_more));
    let ranges: Vec<String> = ranges.chain(more).collect();
    let certain = (!ranges.is_empty()).then(|| format!("events {} can't be read", ranges.join(", ")));
    let uncertain = unread.uncertain.iter();
    let uncertain = uncertain.map(|gap| format!("{} can't be read", gap.told()));
    let told: Vec<String> = certain.into_iter().chain(uncertain).collect();
    told.join("; ")
}

/// What the log keeps.
struct Kept {
    retention: Span,
    /// Older events are removed.
    since: Timestamp,
}

impl Kept {
    fn by(config: &Config) -> Kept {
        let retention = config.log.retention;
        Kept {
            retention,
            since: Timestamp::now().checked_sub(retention.0).unwrap_or(Timestamp::MIN),
        }
    }

    /// How many of a file's events are older, and how many there are. What can't be read is for the import itself to name.
    fn count(&self, input: impl BufRead) -> (u64, u64) {
        #[derive(serde::Deserialize)]
        struct Line {
            received_at: Timestamp,
        }
        let mut lines = Batches::new(input);
        let (mut older, mut all) = (0, 0);
        while let Ok(Some(text)) = lines.read_line() {
            if let Ok(line) = serde_json::from_slice::<Line>(&text) {
                all += 1;
                older += u64::from(line.received_at < self.since);
            }
        }
        (older, all)
    }

    fn refuse(&self, what: &str) -> Outcome {
        Err(Failure::Work(format!(
            "{what} received more than {} ago, which is log.retention: they would be removed within minutes. Raise log.retention to keep \
             them, have them delivered with --dispatch, or take them all the same with --expired",
            self.retention
        )))
    }
}

/// Where events are imported from.
struct Source {
    name: String,
    /// `None`: standard input.
    file: Option<File>,
}

impl Source {
    fn open(file: &Path) -> Result<Source, Failure> {
        if file.as_os_str() == "-" {
            return Ok(Source {
                name: "standard input".to_owned(),
                file: None,
            });
        }
        Ok(Source {
            name: file.display().to_string(),
            file: Some(open(file)?),
        })
    }
}

/// `kept`: what is older is refused.
async fn import(
    source: &Source,
    dispatch: bool,
    kept: Option<Kept>,
    global: &Global,
    connection: &Connection,
) -> Outcome {
    let name = &source.name;
    let input: Box<dyn BufRead + '_> = match &source.file {
        None => Box::new(BufReader::new(std::io::stdin())),
        Some(file) => {
            let mut opened = file;
            // A stream can be read once only.
            if let Some(kept) = &kept
                && opened.metadata().is_ok_and(|metadata| metadata.is_file())
            {
                let (older, all) = kept.count(BufReader::new(opened));
                if older > 0 {
                    return kept.refuse(&format!(
                        "nothing was imported: {older} of the {all} events in {name} were"
                    ));
                }
                opened.rewind().map_err(|error| cant_read(name, &error))?;
            }
            Box::new(BufReader::new(opened))
        }
    };
    let (mut stored, mut known) = (0, 0);
    let mut batches = Batches::new(input);
    loop {
        let batch = batches
            .next()
            .map_err(|(line, why)| Failure::Work(format!("{name}:{line}: {why}")))?;
        let Some((from, lines)) = batch else { break };
        let to = batches.line;
        if let Some(kept) = &kept {
            let older = lines.iter().filter(|line| line.received_at < kept.since).count();
            if older > 0 {
                let before = format!(
                    "{stored} events were imported, and no more: {older} of those in {name}:{from} to {to} were"
                );
                return kept.refuse(&before);
            }
        }
        let imported = connection.ask_one(Import { lines, dispatch }).await;
        let imported: Imported = imported.map_err(|failure| match failure {
            Failure::Work(why) if from == to => Failure::Work(format!("{name}:{from}: {why}")),
            Failure::Work(why) => Failure::Work(format!("{name}:{from} to {to}: {why}")),
            other => other,
        })?;
        stored += imported.stored;
        known += imported.known;
    }
    global.print(&json!({ "stored": stored, "known": known }), |_| {
        format!("{stored} events imported, {known} were known already")
    })
}

/// The number of the first of some lines, and these.
type Numbered = (u64, Vec<Exported>);

/// The lines of what is imported, so many at a time.
struct Batches<R> {
    input: R,
    /// The newest line that was read.
    line: u64,
}

impl<R: BufRead> Batches<R> {
    fn new(input: R) -> Batches<R> {
        Batches { input, line: 0 }
    }

    /// The next ones, with the number of the first; `None` at the end. An error has the number of its line.
    fn next(&mut self) -> Result<Option<Numbered>, (u64, String)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let from = self.line + 1;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(text) = self.read_line().map_err(|why| (self.line, why))? else {
                break;
            };
            bytes += text.len();
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line = serde_json::from_slice(&text);
            let line: Exported = line.map_err(|error| (self.line, format!("it is no line of an export: {error}")))?;
            if line.body.is_none() {
                line.bytes().map_err(|why| (self.line, why))?;
            }
            batch.push(line);
        }
        Ok((!batch.is_empty()).then_some((from, batch)))
    }

    fn read_line(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut text = Vec::new();
        self.line += 1;
        let mut limited = self.input.by_ref().take(LINE_LEN_MAX + 1);
        let read = limited.read_until(b'\n', &mut text);
        read.map_err(|error| format!("it can't be read: {error}"))?;
        if text.len() as u64 > LINE_LEN_MAX {
            let max = Size(LINE_LEN_MAX);
            return Err(format!(
                "it is too long for a line of an export, which has at most {max}: is this the right file?"
            ));
        }
        Ok((!text.is_empty()).then_some(text))
    }
}

impl Erase {
    /// Whose data. What names nobody is bad usage, whether or not there is anything to erase.
    fn whose(&self) -> Result<erase::Erase, Failure> {
        if self.lead.is_none() && self.email.is_none() && self.ids.is_empty() {
            return Err(Failure::Usage("say whose data: --lead, --email or --id".into()));
        }
        let given = erase::Erase {
            lead: self.lead.clone(),
            email: self.email.clone(),
            ids: self.ids.clone(),
        };
        given.checked().map_err(Failure::Usage)
    }

    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let whose = self.whose()?;
        if !self.yes {
            confirm("Erase this data for good?")?;
        }
        let result = connection.ask_one(whose).await?;
        global.print(&result, |result| {
            let mut lines = vec![format!(
                "{} events erased, {} dead letters dropped",
                result.erased.len(),
                result.dead_letters_dropped
            )];
            lines.extend(result.left.iter().map(|left| format!("left: {}", plain::line(left))));
            lines.join("\n")
        })?;
        if result.left.is_empty() {
            return Ok(());
        }
        Err(Failure::Work(
            "what is said to be left may still hold some of it: put that right, or remove it, and run the same command again, until nothing is left"
                .into(),
        ))
    }
}
