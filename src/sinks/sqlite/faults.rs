//! What is wrong with a database, for whoever has to mend it; and what is wrong with a row alone.

use std::path::Path;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::sinks::Unavailable;
use crate::sinks::common::layout::Layout;
use crate::sinks::common::place;
use crate::sinks::common::rows::{MARK_TABLE, TableName};

/// What an error of the database as a whole means to whoever has to mend it.
pub(super) fn system(path: &Path, error: &rusqlite::Error) -> Unavailable {
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
pub(super) fn is_about_the_row(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

pub(super) fn missing(table: &TableName, layout: &Layout) -> String {
    if matches!(layout, Layout::Events { has_program: true }) && table.name() != MARK_TABLE {
        return format!(
            "there is no table {table}; make it with the columns that the sink's template or transform makes, or name them in columns"
        );
    }
    format!("there is no table {table}; make it, or set create = true")
}

pub(super) fn silent(path: &Path, patience: Duration) -> Unavailable {
    Unavailable::new(format!(
        "{} did not answer within {:.1} s: is its disk or mount hanging?",
        path.display(),
        patience.as_secs_f64()
    ))
}

/// What is there, if it is something else than a file.
pub(super) fn no_file(path: &Path) -> Option<String> {
    let instead = place::what_it_is_instead(path)?;
    Some(format!("{} {instead}: a database is a file", path.display()))
}
