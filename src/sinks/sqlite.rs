//! `sqlite`: a row for each event in a table of an SQLite database, exactly once: rows and mark are one transaction.
//!
//! SQLite blocks, so an opened sink has a thread of its own, which has the connection; the sink hands it rows and waits with a
//! deadline. The database is in WAL mode and each commit is synced (`synchronous = FULL`), so that what was committed survives a
//! power cut.
//!
//! | what happens | what follows |
//! |---|---|
//! | columns of the configuration, or an object that a transform made | values as the columns are declared; what comes again is inserted again |
//! | a row for each object | what is not newer changes nothing |
//! | a commit whose answer was lost, kill -9 | [`SinkKind::open`] reads the mark back, which tells whether it happened |
//! | a write that outlives its deadline | it is interrupted, and opening waits until its thread has ended ([`Claim`]) |
//! | somebody else moved this sink's mark | nothing of the batch is written, and the sink is opened again |
//! | the file was replaced or removed | the same: rows in a file that nobody sees would be lost |

mod columns;
pub(super) mod definition;
mod faults;
mod latest;
mod prepared;
mod probe;
mod statements;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::InterruptHandle;

use self::faults::{no_file, silent};
use self::writer::{Settings, Writer, Written};
use super::common::layout::{self, Case, Layout};
use super::common::place;
use super::common::rows::{EVENTS_TABLE, MARK_TABLE, TableName};
use super::common::thread::{Claim, OwnThread};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, Sink, SinkKind, Unavailable,
};
use crate::config::{SinkOptions, Table};
use crate::event::Delivery;
use crate::render::Template;
use crate::task;

/// Rows that are handed to the thread together.
const ROWS_AT_A_TIME: usize = 64;

#[derive(Debug)]
struct Options {
    path: PathBuf,
    table: TableName,
    layout: Arc<Layout>,
    create: bool,
    batch: Limits,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let path: Option<PathBuf> = table.needed("path");
    let layout = Layout::parse(table, Case::Folds);
    let name: Option<String> = table.optional("table");
    let name = name.unwrap_or_else(|| layout.as_ref().map_or(EVENTS_TABLE, Layout::table).to_owned());
    let create = table.or("create", true);
    let batch = layout::batch(table);
    let name = match TableName::parse(&name) {
        Ok(name) if name.schema().is_some() => {
            table.fault("table", "SQLite has no schemas: write the table's name alone");
            return None;
        }
        Ok(name) if name.name() == MARK_TABLE || name.name().to_ascii_lowercase().starts_with("sqlite_") => {
            table.fault("table", format!("\"{name}\" has another use: choose another name"));
            return None;
        }
        Ok(name) => name,
        Err(error) => {
            table.fault("table", error);
            return None;
        }
    };
    let path = path?;
    let text = path.to_string_lossy();
    if text == ":memory:" || text.starts_with("file:") {
        table.fault(
            "path",
            "must be the path of a file: a database in memory would forget everything, and URIs are not read",
        );
        return None;
    }
    Some(Arc::new(Options {
        path,
        table: name,
        layout: Arc::new(layout?),
        create,
        batch,
    }))
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            concurrency: 1,
            commit: Commit::Transaction,
        }
    }

    fn exclusive(&self) -> Option<String> {
        let path = place::target(&self.path).unwrap_or_else(|_| self.path.clone());
        // SQLite compares names of tables without case.
        let table = self.table.name().to_ascii_lowercase();
        Some(format!("the table {table} of {}", path.display()))
    }

    fn writes(&self) -> Option<PathBuf> {
        Some(place::target(&self.path).unwrap_or_else(|_| self.path.clone()))
    }

    fn templates(&self) -> Vec<(String, Template)> {
        self.layout.templates()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        self.layout.payload(delivery, Case::Folds)
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        Ok(Preview {
            row: Some(self.layout.row(delivery, Case::Folds)?),
            ..Preview::default()
        })
    }

    fn warning_of_programs(&self) -> Option<String> {
        self.layout.warning_of_programs()
    }

    fn fault(&self) -> Option<String> {
        no_file(&self.path)
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(format!("{self:?}"))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let patience = context.timeout.mul_f64(0.9);
        let began = Instant::now();
        let stuck = |_| self.silent(patience);
        let claim = format!("{} of {}", self.table, self.path.display());
        let claim = Claim::wait(&claim, patience).await.map_err(stuck)?;
        let thread = OwnThread::start("sqlite", None, claim);
        let thread = thread.map_err(|error| Unavailable::new(format!("no thread can be started: {error}")))?;
        let settings = Settings {
            path: self.path.clone(),
            table: self.table.clone(),
            layout: self.layout.clone(),
            create: self.create,
            busy: context.timeout.div_f64(3.0),
            log_id: context.log_id,
            sink: context.name,
        };
        let opening = thread.run(
            patience.saturating_sub(began.elapsed()),
            |place: &mut Option<Writer>| {
                let (writer, mark) = Writer::open(settings)?;
                let interrupt = writer.interrupt_handle();
                *place = Some(writer);
                Ok((interrupt, mark))
            },
        );
        let (interrupt, mark) = opening.await.map_err(stuck)??;
        let sink = Sqlite {
            path: self.path.clone(),
            layout: self.layout.clone(),
            patience,
            thread,
            interrupt,
        };
        Ok(Opened {
            sink: Box::new(sink),
            mark,
            position: None,
        })
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let kind = Options {
            layout: self.layout.clone(),
            table: self.table.clone(),
            path: self.path.clone(),
            create: self.create,
            batch: self.batch,
        };
        let looking = task::begin_blocking(move || probe::look(&kind));
        match tokio::time::timeout(context.timeout, looking).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) | Err(_) => Err(silent(&self.path, context.timeout)),
        }
    }
}

impl Options {
    fn silent(&self, patience: Duration) -> Unavailable {
        silent(&self.path, patience)
    }
}

/// An opened sink.
struct Sqlite {
    path: PathBuf,
    layout: Arc<Layout>,
    patience: Duration,
    thread: OwnThread<Option<Writer>>,
    interrupt: InterruptHandle,
}

impl Sqlite {
    /// Has the thread do something with the database, until this moment at the latest.
    async fn run<T: Send + 'static>(
        &self,
        until: Instant,
        work: impl FnOnce(&mut Writer) -> Result<T, Unavailable> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let work = |writer: &mut Option<Writer>| match writer {
            Some(writer) => work(writer),
            None => Err(Unavailable::new("the database is not open")),
        };
        let done = self
            .thread
            .run(until.saturating_duration_since(Instant::now()), work)
            .await;
        done.map_err(|_| silent(&self.path, self.patience))?
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // What a dropped call left behind ends as soon as SQLite can; opening waits for it.
        self.interrupt.interrupt();
    }
}

#[async_trait]
impl Sink for Sqlite {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let until = Instant::now() + self.patience;
        // The thread writes the first rows while the others are being made. Where this is dropped in between, it gets no more of them
        // and nobody commits those it has.
        let (some, rows) = channel();
        let writing = self.run(until, move |writer| writer.write(&rows));
        let making = async move {
            for deliveries in batch.deliveries().chunks(ROWS_AT_A_TIME) {
                let made = self.layout.make(deliveries, Case::Folds);
                // The thread may have given up already; it says why.
                let _ = some.send(made);
            }
        };
        // In two steps, because only the engine can tell the mark that the outcomes make.
        let (written, ()) = tokio::join!(writing, making);
        let Written { outcomes, rows } = written?;
        let mark = batch.mark_after(&outcomes);
        let committing = self.run(until, move |writer| writer.commit(&mark));
        // Freed where they were made: two threads that work on one part of the heap wait for each other all the time.
        let freeing = async move { drop(rows) };
        let (committed, ()) = tokio::join!(committing, freeing);
        committed?;
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
