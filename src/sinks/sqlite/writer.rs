//! The thread's side: the one connection, which writes rows and mark in one transaction.

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, InterruptHandle, OpenFlags, OptionalExtension as _};

use super::columns::{self, Declared, insert, needed, prepare};
use super::faults::{is_about_the_row, missing, no_file, system};
use super::latest::Latest;
use super::prepared::Prepared;
use super::statements::{CLAIM_MARK, MARKS, OF_MARKS, READ_MARK, WRITE_MARK, events_table, statements};
use crate::event::Seq;
use crate::sinks::common::layout::{Column, Fields, Layout, Made};
use crate::sinks::common::rows::{EVENTS_COLUMNS, MARK_TABLE, Row, TableName};
use crate::sinks::{Mark, Outcome, Unavailable};

/// Of a new database. An event is some two KB: of SQLite's usual pages each would fill one by itself and leave half of it empty.
pub(super) const PAGE_BYTES: i64 = 16 << 10;

/// SQLite's memory for pages, in KiB: as much as the pages that a batch changes. With less, it writes them to the log before the end of
/// the transaction, and those of the index again and again.
const CACHE_KIB: i64 = 8192;

/// Rows that are handed over together.
pub(super) type Rows = Vec<Made>;

/// What became of rows, and the rows themselves.
#[derive(Default)]
pub(super) struct Written {
    pub outcomes: Vec<Outcome>,
    pub rows: Vec<Rows>,
}

/// What the thread is given.
pub(super) struct Settings {
    pub path: PathBuf,
    pub table: TableName,
    pub layout: Arc<Layout>,
    pub create: bool,
    pub busy: Duration,
    pub log_id: String,
    pub sink: String,
}

/// The thread's side: the one connection.
pub(super) struct Writer {
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
    /// Opens the database, and reads the mark back.
    pub fn open(settings: Settings) -> Result<(Writer, Option<Mark>), Unavailable> {
        let connection = connect(&settings)?;
        let latest = Latest::new(&settings.table);
        make_tables(&connection, &settings, &latest)?;
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

    /// Says what a table that somebody else made lacks, before there is a row.
    fn look(&self) -> Result<(), Unavailable> {
        self.learn()?;
        let Settings {
            layout, table, path, ..
        } = &self.settings;
        let needed = needed(layout, table, &self.declared.borrow()).map_err(Unavailable::new)?;
        let statements = needed.iter().map(String::as_str).chain(OF_MARKS);
        prepare(&self.connection, statements).map_err(|error| system(path, &error))
    }

    /// Looks what columns the table has.
    fn learn(&self) -> Result<(), Unavailable> {
        let given: &[Column] = match &*self.settings.layout {
            Layout::Columns(columns) => columns,
            Layout::Events { .. } | Layout::Latest => &[],
        };
        let declared = Declared::read(&self.connection, &self.settings.table, given);
        *self.declared.borrow_mut() = declared.map_err(|error| system(&self.settings.path, &error))?;
        Ok(())
    }

    /// The first of these names that no column of the table has, in a sentence.
    fn lacks<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<String> {
        let declared = self.declared.borrow();
        let name = declared.missing(names)?;
        Some(format!("the table {} has no column \"{name}\"", self.settings.table))
    }

    /// What ends a call that lasts too long.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
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
    pub fn write(&self, rows: &Receiver<Rows>) -> Result<Written, Unavailable> {
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

    /// Writes a row of other columns than those of events. The outer error is the sink's trouble.
    fn write_fields(
        &self,
        prepared: &mut Prepared<'_>,
        fields: &Fields,
    ) -> Result<rusqlite::Result<Outcome>, Unavailable> {
        let names = || fields.names.iter().map(String::as_str);
        let write = |prepared: &mut Prepared<'_>| {
            let declared = self.declared.borrow();
            let written = insert(prepared, &self.settings.table, &declared, fields);
            written.map(|()| Outcome::Delivered)
        };
        if self.lacks(names()).is_none() {
            match write(prepared) {
                Err(error) if !is_about_the_row(&error) => {}
                written => return Ok(written),
            }
        }
        // Somebody may have added a column, or taken one away.
        self.learn()?;
        match self.lacks(names()) {
            None => Ok(write(prepared)),
            Some(lacks) if matches!(*self.settings.layout, Layout::Columns(_)) => {
                Err(Unavailable::new(format!("{lacks}: add it, or take it out of columns")))
            }
            Some(lacks) => Ok(Ok(Outcome::Reject { reason: lacks.into() })),
        }
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

    /// Writes the mark beside the rows, and commits both.
    pub fn commit(&mut self, mark: &Mark) -> Result<(), Unavailable> {
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

pub(super) fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .query_row(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
            [name],
            |_| Ok(()),
        )
        .optional()
        .map(|found| found.is_some())
}

/// Opens the database so that what is committed survives a power cut.
fn connect(settings: &Settings) -> Result<Connection, Unavailable> {
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
    Ok(connection)
}

/// Makes the tables that are missing, where they are to be made; an error says which one is missing still.
fn make_tables(connection: &Connection, settings: &Settings, latest: &Latest) -> Result<(), Unavailable> {
    let unavailable = |error: rusqlite::Error| system(&settings.path, &error);
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
        if !has_table(connection, table.name()).map_err(unavailable)? {
            return Err(Unavailable::new(format!(
                "{}: {}",
                settings.path.display(),
                missing(table, &settings.layout)
            )));
        }
    }
    Ok(())
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
