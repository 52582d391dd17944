//! `closehook log`

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::connect::{Access, Connection, with};
use super::output::{Mode, NewFile, cant, refuse_to_overwrite};
use super::term::confirm;
use super::{Failure, Global, Outcome, json_line};
use crate::control::erase;
use crate::control::transfer::{self, Exported, Import, Imported};
use crate::plain;

/// Lines sent at a time, and bytes of them (unless one line is longer): the daemon takes no query of any length.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 8 << 20;

/// Transfer the whole log, or erase somebody's data from it
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
        after_help = "Imported events get new Seqs and keep their time of receipt. They are not dispatched unless --dispatch is given.\n\nExample:\n  closehook log import events.jsonl"
    )]
    Import {
        /// As `log export` or `events export` wrote it; - for standard input
        file: PathBuf,
        /// Send them to the sinks, like events that have just arrived
        #[arg(long)]
        dispatch: bool,
    },
    /// Erase a lead's, a person's or single events' data, also from dead letters
    #[command(
        after_help = "The events' places stay, as tombstones; nothing of their content does. Bodies in quarantine go if the lead's id or the address stands in them.\nFiles that sinks wrote and backups are not touched; what was set aside as damaged is named.\n\nExample:\n  closehook log erase --email jane@example.com"
    )]
    Erase(Erase),
}

#[derive(Debug, Args)]
pub(super) struct Erase {
    /// Events of this lead
    #[arg(long, value_name = "LEAD_ID")]
    lead: Option<String>,
    /// Events in which this address stands
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
            Log::Erase(erase) => erase.check()?,
            Log::Export { file, force } if file.as_os_str() != "-" => refuse_to_overwrite(file, *force)?,
            _ => {}
        }
        let access = match self {
            Log::Export { .. } => Access::Read,
            Log::Import { .. } => Access::Begin,
            Log::Erase(_) => Access::Write,
        };
        with(global, access, async |connection| match &self {
            Log::Export { file, force } => export(file, *force, global, connection).await,
            Log::Import { file, dispatch } => import(file, *dispatch, global, connection).await,
            Log::Erase(erase) => erase.run(global, connection).await,
        })
        .await
    }
}

async fn export(file: &Path, force: bool, global: &Global, connection: &Connection) -> Outcome {
    if file.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        write_all(&mut out, connection).await?;
        return Ok(());
    }
    // A killed process removes nothing, so a Ctrl-C must not kill it.
    let mut new = NewFile::begin(file, Mode::Private, force)?;
    let mut out = new.writer();
    let count = tokio::select! {
        count = write_all(&mut out, connection) => count.map_err(|failure| match failure {
            Failure::Work(error) => cant(file, &error),
            other => other,
        })?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Work("interrupted: nothing was written".into())),
    };
    drop(out);
    new.finish()?;
    global.print(&json!({ "exported": count }), |_| {
        format!("{count} events exported to {}", file.display())
    })
}

/// Writes every event as a line; gives how many there are.
async fn write_all(out: &mut dyn Write, connection: &Connection) -> Result<u64, Failure> {
    let mut answers = connection.ask(transfer::Export::default()).await?;
    let mut count = 0_u64;
    while let Some(event) = answers.next().await? {
        writeln!(out, "{}", json_line(&event)?)?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

async fn import(file: &PathBuf, dispatch: bool, global: &Global, connection: &Connection) -> Outcome {
    let input: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let opened =
            std::fs::File::open(file).map_err(|e| Failure::Usage(format!("{} can't be read: {e}", file.display())))?;
        Box::new(BufReader::new(opened))
    };
    let (mut stored, mut known) = (0, 0);
    let mut send = async |lines: Vec<Exported>| -> Outcome {
        let imported: Imported = connection.ask_one(Import { lines, dispatch }).await?;
        stored += imported.stored;
        known += imported.known;
        Ok(())
    };
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (number, line) in input.lines().enumerate() {
        let line = line?;
        let value =
            serde_json::from_str(&line).map_err(|error| Failure::Work(format!("line {}: {error}", number + 1)))?;
        batch.push(value);
        bytes += line.len();
        if batch.len() == BATCH || bytes >= BATCH_BYTES {
            send(std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        send(batch).await?;
    }
    global.print(&json!({ "stored": stored, "known": known }), |_| {
        format!("{stored} events imported, {known} were known already")
    })
}

impl Erase {
    /// Without a restriction nothing would be erased, and it would look done.
    fn check(&self) -> Outcome {
        if self.lead.is_none() && self.email.is_none() && self.ids.is_empty() {
            return Err(Failure::Usage("say whose data: --lead, --email or --id".into()));
        }
        Ok(())
    }

    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        if !self.yes {
            confirm("Erase this data for good?")?;
        }
        let whose = erase::Erase {
            lead: self.lead.clone(),
            email: self.email.clone(),
            ids: self.ids.clone(),
        };
        let result = connection.ask_one(whose).await?;
        global.print(&result, |result| {
            let mut lines = vec![format!(
                "{} events erased, {} dead letters dropped",
                result.erased.len(),
                result.dead_letters_dropped
            )];
            lines.extend(result.left.iter().map(|left| format!("left: {}", plain::line(left))));
            lines.join("\n")
        })
    }
}
