//! Looks at a database without changing anything.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Options;
use super::columns::{Declared, needed, prepare};
use super::faults::{missing, no_file, system};
use super::statements::OF_MARKS;
use super::writer::has_table;
use crate::sinks::Unavailable;
use crate::sinks::common::layout::Layout;
use crate::sinks::common::rows::MARK_TABLE;

/// Whether rows could be written, without changing anything, not even the files beside a database in WAL mode.
pub(super) fn look(kind: &Options) -> Result<String, Unavailable> {
    let (path, table) = (kind.path.as_path(), &kind.table);
    // What a program of the sink makes has no types.
    let create = kind.create && !matches!(*kind.layout, Layout::Events { has_program: true });
    let unavailable = |text: String| Err(Unavailable::new(format!("{}: {text}", path.display())));
    match is_there(path) {
        Err(error) => return unavailable(error),
        Ok(true) => {}
        Ok(false) if create => return Ok(format!("{} will be made", path.display())),
        Ok(false) => {
            return unavailable("there is no such database; make it with its tables, or set create = true".into());
        }
    }
    // What a daemon has not yet moved from the write-ahead log into the database can be read only with the daemon's own files.
    // Where they are not there, it is looked at as a file that nobody changes: anything else would make them.
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        std::fs::metadata(name).is_ok_and(|metadata| metadata.len() > 0)
    };
    let how = if beside("-wal") && beside("-shm") {
        ""
    } else {
        "?immutable=1"
    };
    let escaped = path
        .to_string_lossy()
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let seen = Connection::open_with_flags(format!("file:{escaped}{how}"), flags).and_then(|connection| {
        let (has_rows, has_marks) = (
            has_table(&connection, table.name())?,
            has_table(&connection, MARK_TABLE)?,
        );
        let rows = if has_rows {
            needed(&kind.layout, table, &Declared::read(&connection, table, &[])?)
        } else {
            Ok(Vec::new())
        };
        prepare(&connection, rows.iter().flatten().map(String::as_str))?;
        prepare(&connection, OF_MARKS.into_iter().filter(|_| has_marks))?;
        Ok((has_rows, has_marks, rows.err()))
    });
    match seen {
        Err(error) => Err(system(path, &error)),
        Ok((_, _, Some(lacks))) => unavailable(lacks),
        Ok((false, ..)) if !create => unavailable(missing(table, &kind.layout)),
        Ok((_, false, _)) if !kind.create => unavailable(missing(&table.sibling(MARK_TABLE), &kind.layout)),
        Ok((false, ..)) => Ok(format!("the table {table} will be made in {}", path.display())),
        Ok((true, ..)) => Ok(format!("{} has the table {table}", path.display())),
    }
}

/// Whether there is a file that may be written, as its directory may. An error is why it can't be used.
fn is_there(path: &Path) -> Result<bool, String> {
    let may_write = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    may_write(directory).map_err(|error| format!("its directory can't be written: {error}"))?;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.to_string()),
        Ok(_) => {}
    }
    may_write(path).map_err(|error| format!("it can't be written: {error}"))?;
    no_file(path).map_or(Ok(true), Err)
}
