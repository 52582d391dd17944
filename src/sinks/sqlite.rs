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
mod latest;
mod prepared;
mod probe;

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags, OptionalExtension as _};

use self::columns::Declared;
use self::latest::Latest;
use self::prepared::Prepared;
use super::common::layout::{self, Case, Layout, Made};
use super::common::place;
use super::common::rows::{EVENTS_COLUMNS, EVENTS_TABLE, MARK_TABLE, Row, TableName};
use super::common::thread::{Claim, OwnThread};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Mark, Opened, Outcome, Preview, Sink, SinkKind, Unavailable,
};
use crate::config::{SinkOptions, Table};
use crate::event::{Delivery, Seq};
use crate::render::Template;
use crate::task;

/// Rows that are handed to the thread together.
const ROWS_AT_A_TIME: usize = 64;

/// Of a new database. An event is some two KB: of SQLite's usual pages each would fill one by itself and leave half of it empty.
const PAGE_BYTES: i64 = 16 << 10;

/// SQLite's memory for pages, in KiB: as much as the pages that a batch changes. With less, it writes them to the log before the end of
/// the transaction, and those of the index again and again.
const CACHE_KIB: i64 = 8192;

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

/// What is there, if it is something else than a file.
fn no_file(path: &Path) -> Option<String> {
    let instead = place::what_it_is_instead(path)?;
    Some(format!("{} {instead}: a database is a file", path.display()))
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
                let interrupt = writer.connection.get_interrupt_handle();
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

fn silent(path: &Path, patience: Duration) -> Unavailable {
    Unavailable::new(format!(
        "{} did not answer within {:.1} s: is its disk or mount hanging?",
        path.display(),
        patience.as_secs_f64()
    ))
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .query_row(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
            [name],
            |_| Ok(()),
        )
        .optional()
        .map(|found| found.is_some())
}

fn missing(table: &TableName, layout: &Layout) -> String {
    if matches!(layout, Layout::Events { has_program: true }) && table.name() != MARK_TABLE {
        return format!(
            "there is no table {table}; make it with the columns that the sink's template or transform makes, or name them in columns"
        );
    }
    format!("there is no table {table}; make it, or set create = true")
}

/// What an error of the database as a whole means to whoever has to mend it.
fn system(path: &Path, error: &rusqlite::Error) -> Unavailable {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program has locked it; it is tried again until that one is done"
        }
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::ReadOnly) => "it can't be written: give the daemon's user write access to it and its directory",
        Some(ErrorCode::CannotOpen) => {
            "it can't be opened: the directory must be there, and the daemon's user must be able to write in it"
        }
        Some(ErrorCode::NotADatabase) => "it is no SQLite database: set another path",
        Some(ErrorCode::DatabaseCorrupt) => "the database is damaged: restore it, or move it away",
        Some(ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => "access is denied",
        Some(ErrorCode::OperationInterrupted) => "the write took too long and was interrupted",
        _ => "",
    };
    let separator = if advice.is_empty() { "" } else { " " };
    Unavailable::new(format!("{}: {advice}{separator}({error})", path.display()))
}

/// Whether an error is about the row alone: what its columns, constraints or triggers do not take.
fn is_about_the_row(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
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

/// Rows that are handed over together.
type Rows = Vec<Made>;

/// What became of rows, and the rows themselves.
#[derive(Default)]
struct Written {
    outcomes: Vec<Outcome>,
    rows: Vec<Rows>,
}

/// What the thread is given.
struct Settings {
    path: PathBuf,
    table: TableName,
    layout: Arc<Layout>,
    create: bool,
    busy: Duration,
    log_id: String,
    sink: String,
}

/// The thread's side: the one connection.
struct Writer {
    settings: Settings,
    connection: Connection,
    insert: String,
    replace: String,
    latest: Latest,
    /// The table's columns as they were last seen.
    declared: RefCell<Declared>,
    /// The moment in this sink's mark as last read or written; `None` while there is no mark. If it is another one, somebody else
    /// has written it.
    moment: Option<String>,
    /// Device and inode of the database.
    file: (u64, u64),
}

impl Writer {
    fn open(settings: Settings) -> Result<(Writer, Option<Mark>), Unavailable> {
        let unavailable = |error: rusqlite::Error| system(&settings.path, &error);
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if settings.create {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        }
        if let Some(error) = no_file(&settings.path) {
            return Err(Unavailable::new(error));
        }
        let connection = Connection::open_with_flags(&settings.path, flags).map_err(unavailable)?;
        connection.busy_timeout(settings.busy).map_err(unavailable)?;
        // Counts for a database that is made here and now.
        connection
            .pragma_update(None, "page_size", PAGE_BYTES)
            .map_err(unavailable)?;
        // A file system that can't do WAL stays with its journal, which keeps the same promise more slowly.
        connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))
            .map_err(unavailable)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(unavailable)?;
        connection
            .pragma_update(None, "cache_size", -CACHE_KIB)
            .map_err(unavailable)?;
        // As SQLite has it by default. A deferred key that fails would fail the commit, and nobody could say for which row.
        connection
            .pragma_update(None, "foreign_keys", "OFF")
            .map_err(unavailable)?;
        let latest = Latest::new(&settings.table);
        if settings.create {
            let made = match &*settings.layout {
                Layout::Events { has_program: false } => events_table(&settings.table),
                // What its program makes has no types.
                Layout::Events { has_program: true } => String::new(),
                Layout::Columns(columns) => columns::create(&settings.table, columns),
                Layout::Latest => latest.create.clone(),
            };
            connection.execute_batch(&(made + MARKS)).map_err(unavailable)?;
        }
        for table in [&settings.table, &settings.table.sibling(MARK_TABLE)] {
            if !has_table(&connection, table.name()).map_err(unavailable)? {
                return Err(Unavailable::new(format!(
                    "{}: {}",
                    settings.path.display(),
                    missing(table, &settings.layout)
                )));
            }
        }
        let (insert, replace) = statements(&settings.table);
        let file = identity(&settings.path)?;
        let mut writer = Writer {
            settings,
            connection,
            insert,
            replace,
            latest,
            declared: RefCell::default(),
            moment: None,
            file,
        };
        writer.look()?;
        let mark = writer.claim().map_err(|error| system(&writer.settings.path, &error))?;
        Ok((writer, mark))
    }

    /// Reads the mark, and writes a new moment into it, so that whoever read it before can't commit any more. Waits for a
    /// transaction that is open.
    fn claim(&mut self) -> rusqlite::Result<Option<Mark>> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let found = self
            .connection
            .query_row(READ_MARK, [&self.settings.log_id, &self.settings.sink], |row| {
                let mark = Mark {
                    epoch: row.get(0)?,
                    seq: Seq(row.get::<_, i64>(1)?.cast_unsigned()),
                    text: row.get(2)?,
                };
                Ok((mark, row.get::<_, String>(3)?))
            })
            .optional()?;
        if let Some((_, moment)) = &found {
            let next = moment_after(Some(moment));
            self.connection
                .execute(CLAIM_MARK, [&self.settings.log_id, &self.settings.sink, &next])?;
            self.moment = Some(next);
        }
        self.connection.execute_batch("COMMIT")?;
        Ok(found.map(|(mark, _)| mark))
    }

    /// Begins a transaction and writes rows into it.
    fn write(&self, rows: &Receiver<Rows>) -> Result<Written, Unavailable> {
        let written = self.write_rows(rows);
        if written.is_err() {
            // Others need not wait until the connection is closed.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        written
    }

    fn write_rows(&self, rows: &Receiver<Rows>) -> Result<Written, Unavailable> {
        let unavailable = |error: rusqlite::Error| system(&self.settings.path, &error);
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(unavailable)?;
        if identity(&self.settings.path)? != self.file {
            return Err(Unavailable::new(format!(
                "{} was replaced while it was open: it is opened again",
                self.settings.path.display()
            )));
        }
        if self.current_moment().map_err(unavailable)? != self.moment {
            return Err(Unavailable::new(format!(
                "somebody else moved the mark of the sink \"{}\" in {}: does another closehook with a copy of this data directory write there?",
                self.settings.sink,
                self.settings.path.display()
            )));
        }
        let mut prepared = Prepared::of(&self.connection);
        let mut written = Written::default();
        for some in rows {
            for row in &some {
                written.outcomes.push(self.write_row(&mut prepared, row)?);
            }
            written.rows.push(some);
        }
        Ok(written)
    }

    fn write_row(&self, prepared: &mut Prepared<'_>, row: &Made) -> Result<Outcome, Unavailable> {
        let done = match row {
            Made::Skipped => return Ok(Outcome::Skipped),
            Made::Refused(reason) => {
                return Ok(Outcome::Reject {
                    reason: reason.as_str().into(),
                });
            }
            Made::Event(row) => self.write_event(prepared, row)?.map(|()| Outcome::Delivered),
            Made::Revision(revision) => {
                let written = self.latest.write(prepared, revision);
                written.map(|()| Outcome::Delivered)
            }
            Made::Fields(fields) => self.write_fields(prepared, fields)?,
        };
        match done {
            Ok(outcome) => Ok(outcome),
            // A table may say that a conflict rolls everything back. Then the rows before are gone too.
            Err(error) if is_about_the_row(&error) && !self.connection.is_autocommit() => Ok(Outcome::Reject {
                reason: format!("the table does not take it: {error}").into(),
            }),
            Err(error) => Err(system(&self.settings.path, &error)),
        }
    }

    fn write_event(&self, prepared: &mut Prepared<'_>, row: &Row) -> Result<rusqlite::Result<()>, Unavailable> {
        let statement = if row.replaces { &self.replace } else { &self.insert };
        let statement = match prepared.get(statement) {
            Ok(statement) => statement,
            Err(error) => {
                self.learn()?;
                return Err(match self.lacks(EVENTS_COLUMNS) {
                    Some(lacks) => Unavailable::new(format!(
                        "the table has other columns than events need ({lacks}): add them, or set columns, a template or a transform"
                    )),
                    None => system(&self.settings.path, &error),
                });
            }
        };
        let done = statement.execute(rusqlite::params![
            row.seq,
            row.id,
            row.date_updated,
            format!("{:.6}", row.received_at),
            row.type_action,
            row.object_id,
            row.lead_id,
            row.source,
            row.event,
        ]);
        Ok(done.map(drop))
    }

    fn current_moment(&self) -> rusqlite::Result<Option<String>> {
        self.connection
            .query_row(
                &format!("SELECT updated_at FROM {MARK_TABLE} WHERE log_id = ?1 AND sink = ?2"),
                [&self.settings.log_id, &self.settings.sink],
                |row| row.get(0),
            )
            .optional()
    }

    fn commit(&mut self, mark: &Mark) -> Result<(), Unavailable> {
        let unavailable = |error: rusqlite::Error| system(&self.settings.path, &error);
        let moment = moment_after(self.moment.as_deref());
        self.connection
            .execute(
                WRITE_MARK,
                rusqlite::params![
                    self.settings.log_id,
                    self.settings.sink,
                    mark.epoch,
                    mark.seq.0 as i64,
                    mark.text,
                    moment
                ],
            )
            .map_err(unavailable)?;
        self.connection.execute_batch("COMMIT").map_err(unavailable)?;
        self.moment = Some(moment);
        Ok(())
    }
}

/// Now, but always behind the moment before, whatever the clock does. Texts of one length, so that they sort.
fn moment_after(before: Option<&str>) -> String {
    let now = Timestamp::now();
    let least = before
        .and_then(|before| before.parse::<Timestamp>().ok())
        .and_then(|before| before.checked_add(jiff::SignedDuration::from_micros(1)).ok());
    format!("{:.6}", least.map_or(now, |least| least.max(now)))
}

/// Device and inode of the file.
fn identity(path: &Path) -> Result<(u64, u64), Unavailable> {
    let metadata = std::fs::metadata(path).map_err(|error| Unavailable::new(format!("{}: {error}", path.display())))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes the table of the marks where it is missing.
const MARKS: &str =
    "CREATE TABLE IF NOT EXISTS closehook_mark (log_id TEXT NOT NULL, sink TEXT NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL,
     mark TEXT NOT NULL, updated_at TEXT NOT NULL, PRIMARY KEY (log_id, sink));";

const READ_MARK: &str = "SELECT epoch, seq, mark, updated_at FROM closehook_mark WHERE log_id = ?1 AND sink = ?2";

const CLAIM_MARK: &str = "UPDATE closehook_mark SET updated_at = ?3 WHERE log_id = ?1 AND sink = ?2";

const WRITE_MARK: &str =
    "INSERT INTO closehook_mark (log_id, sink, epoch, seq, mark, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
     ON CONFLICT (log_id, sink) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, mark = excluded.mark,
     updated_at = excluded.updated_at";

/// Whatever is done with marks.
const OF_MARKS: [&str; 3] = [READ_MARK, CLAIM_MARK, WRITE_MARK];

/// Makes the table of the events where it is missing.
fn events_table(table: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (seq INTEGER NOT NULL, id TEXT NOT NULL, date_updated TEXT NOT NULL, received_at TEXT NOT NULL,
         type TEXT, object_id TEXT, lead_id TEXT, source TEXT NOT NULL, event TEXT NOT NULL, UNIQUE (id, date_updated));",
        table.quoted()
    )
}

/// How a live event is written, and how one that comes again.
fn statements(table: &TableName) -> (String, String) {
    let insert = format!(
        "INSERT INTO {} AS kept (seq, id, date_updated, received_at, type, object_id, lead_id, source, event)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id, date_updated) DO ",
        table.quoted()
    );
    let replace = format!(
        "{insert}UPDATE SET seq = excluded.seq, received_at = excluded.received_at, type = excluded.type,
         object_id = excluded.object_id, lead_id = excluded.lead_id, source = excluded.source, event = excluded.event"
    );
    // Only an event without its data gives way to the whole one, which has the same key.
    let live = format!(
        "{replace} WHERE json_valid(kept.event) AND json_type(kept.event, '$.data') IS NULL
         AND json_type(excluded.event, '$.data') IS NOT NULL"
    );
    (live, replace)
}

#[cfg(test)]
mod tests;
