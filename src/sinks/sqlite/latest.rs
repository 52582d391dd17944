//! A row for each object: the statements, which leave alone whatever is newer.

use rusqlite::params;

use super::prepared::Prepared;
use crate::sinks::common::latest::{Merge, Revision, shown};
use crate::sinks::common::rows::TableName;

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Latest {
    pub(super) create: String,
    pub(super) revise: String,
    pub(super) merge: String,
}

impl Latest {
    pub(super) fn new(table: &TableName) -> Latest {
        let table = table.quoted();
        Latest {
            create: format!(
                "CREATE TABLE IF NOT EXISTS {table} (object_id TEXT PRIMARY KEY NOT NULL, type TEXT, lead_id TEXT, date_updated TEXT,
                 deleted_at TEXT, merged_into TEXT, seq INTEGER, event TEXT);"
            ),
            revise: format!(
                "INSERT INTO {table} AS old (object_id, type, lead_id, date_updated, deleted_at, seq, event)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (object_id) DO UPDATE SET type = excluded.type, lead_id = excluded.lead_id,
                 date_updated = excluded.date_updated, seq = excluded.seq, event = excluded.event,
                 deleted_at = CASE WHEN old.merged_into IS NULL THEN excluded.deleted_at ELSE old.deleted_at END
                 WHERE (COALESCE(excluded.date_updated, ''), excluded.seq) > (COALESCE(old.date_updated, ''), COALESCE(old.seq, -1))"
            ),
            merge: format!(
                "INSERT INTO {table} AS old (object_id, type, lead_id, deleted_at, merged_into) VALUES (?1, 'lead', ?1, ?2, ?3)
                 ON CONFLICT (object_id) DO UPDATE SET deleted_at = excluded.deleted_at, merged_into = excluded.merged_into
                 WHERE old.merged_into IS NULL OR (excluded.deleted_at, excluded.merged_into) > (COALESCE(old.deleted_at, ''), old.merged_into)"
            ),
        }
    }

    /// Writes a revision, and what it says of a merge: both or neither.
    pub(super) fn write(&self, prepared: &mut Prepared<'_>, row: &Revision) -> rusqlite::Result<()> {
        if row.merge.is_none() {
            return self.revise(prepared, row);
        }
        let connection = prepared.connection;
        connection.execute_batch("SAVEPOINT merge")?;
        let written = self
            .revise(prepared, row)
            .and_then(|()| self.merge(prepared, row.merge.as_ref()));
        // Where a conflict has rolled everything back, there is no savepoint any more.
        if written.is_err() && !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK TO merge")?;
        }
        if !connection.is_autocommit() {
            connection.execute_batch("RELEASE merge")?;
        }
        written
    }

    fn revise(&self, prepared: &mut Prepared<'_>, row: &Revision) -> rusqlite::Result<()> {
        let done = prepared.get(&self.revise)?.execute(params![
            row.object_id,
            row.object_type,
            row.lead_id,
            row.date_updated.map(shown),
            row.deleted_at.map(shown),
            row.seq,
            row.event,
        ]);
        done.map(drop)
    }

    fn merge(&self, prepared: &mut Prepared<'_>, merge: Option<&Merge>) -> rusqlite::Result<()> {
        let Some(merge) = merge else { return Ok(()) };
        let done = prepared
            .get(&self.merge)?
            .execute(params![merge.source, shown(merge.at), merge.into]);
        done.map(drop)
    }
}
