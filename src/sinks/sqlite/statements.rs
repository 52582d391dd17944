//! The statements for marks and for rows of events.

use crate::sinks::common::rows::TableName;

/// Makes the table of the marks where it is missing.
pub(super) const MARKS: &str =
    "CREATE TABLE IF NOT EXISTS closehook_mark (log_id TEXT NOT NULL, sink TEXT NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL,
     mark TEXT NOT NULL, updated_at TEXT NOT NULL, PRIMARY KEY (log_id, sink));";

pub(super) const READ_MARK: &str =
    "SELECT epoch, seq, mark, updated_at FROM closehook_mark WHERE log_id = ?1 AND sink = ?2";

pub(super) const CLAIM_MARK: &str = "UPDATE closehook_mark SET updated_at = ?3 WHERE log_id = ?1 AND sink = ?2";

pub(super) const WRITE_MARK: &str =
    "INSERT INTO closehook_mark (log_id, sink, epoch, seq, mark, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
     ON CONFLICT (log_id, sink) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, mark = excluded.mark,
     updated_at = excluded.updated_at";

/// Whatever is done with marks.
pub(super) const OF_MARKS: [&str; 3] = [READ_MARK, CLAIM_MARK, WRITE_MARK];

/// Makes the table of the events where it is missing.
pub(super) fn events_table(table: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (seq INTEGER NOT NULL, id TEXT NOT NULL, date_updated TEXT NOT NULL, received_at TEXT NOT NULL,
         type TEXT, object_id TEXT, lead_id TEXT, source TEXT NOT NULL, event TEXT NOT NULL, UNIQUE (id, date_updated));",
        table.quoted()
    )
}

/// How a live event is written, and how one that comes again.
pub(super) fn statements(table: &TableName) -> (String, String) {
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
