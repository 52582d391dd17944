//! A row for each object: the statements, which leave alone whatever is newer.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::Error;
use tokio_postgres::types::{ToSql, Type};

use super::session::Session;
use crate::sinks::common::latest::{Merge, Revision};
use crate::sinks::common::rows::TableName;

/// The statements for one table.
pub(super) struct Latest {
    pub(super) create: String,
    revise: String,
    merge: String,
}

impl Latest {
    pub(super) fn new(table: &TableName) -> Latest {
        let table = table.quoted();
        Latest {
            create: format!(
                "CREATE TABLE IF NOT EXISTS {table} (object_id text PRIMARY KEY, type text, lead_id text, date_updated timestamptz, \
                 deleted_at timestamptz, merged_into text, seq bigint, event jsonb)"
            ),
            revise: format!(
                "INSERT INTO {table} AS old (object_id, type, lead_id, date_updated, deleted_at, seq, event) \
                 SELECT r.object_id, r.type, r.lead_id, r.date_updated, r.deleted_at, r.seq, r.event::jsonb \
                 FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::text[]) \
                 AS r(object_id, type, lead_id, date_updated, deleted_at, seq, event) \
                 ON CONFLICT (object_id) DO UPDATE SET type = EXCLUDED.type, lead_id = EXCLUDED.lead_id, \
                 date_updated = EXCLUDED.date_updated, seq = EXCLUDED.seq, event = EXCLUDED.event, \
                 deleted_at = CASE WHEN old.merged_into IS NULL THEN EXCLUDED.deleted_at ELSE old.deleted_at END \
                 WHERE (COALESCE(EXCLUDED.date_updated, '-infinity'), EXCLUDED.seq) \
                 > (COALESCE(old.date_updated, '-infinity'), COALESCE(old.seq, -1))"
            ),
            merge: format!(
                "INSERT INTO {table} AS old (object_id, type, lead_id, deleted_at, merged_into) \
                 SELECT r.object_id, 'lead', r.object_id, r.deleted_at, r.merged_into \
                 FROM UNNEST($1::text[], $2::timestamptz[], $3::text[]) AS r(object_id, deleted_at, merged_into) \
                 ON CONFLICT (object_id) DO UPDATE SET deleted_at = EXCLUDED.deleted_at, merged_into = EXCLUDED.merged_into \
                 WHERE old.merged_into IS NULL OR (EXCLUDED.deleted_at, EXCLUDED.merged_into COLLATE \"C\") \
                 > (COALESCE(old.deleted_at, '-infinity'), old.merged_into COLLATE \"C\")"
            ),
        }
    }

    /// Has the server plan both statements.
    pub(super) async fn explain(&self, session: &Session) -> Result<(), Error> {
        let (revisions, merges) = (Revisions::default(), Merges::default());
        let client = session.client();
        let explain = |statement: &str| format!("EXPLAIN {statement}");
        client
            .query_typed(&explain(&self.revise), &revisions.parameters())
            .await?;
        client.query_typed(&explain(&self.merge), &merges.parameters()).await?;
        Ok(())
    }

    /// Writes revisions, and what they say of merges. Neither statement can write a row twice, so of each object the newest goes.
    pub(super) async fn write(&self, session: &Session, rows: impl Iterator<Item = &Revision>) -> Result<(), Error> {
        let mut newest: HashMap<&str, &Revision> = HashMap::new();
        let mut ended: HashMap<&str, &Merge> = HashMap::new();
        for row in rows {
            let known = newest.entry(&row.object_id).or_insert(row);
            if row.place() > known.place() {
                *known = row;
            }
            if let Some(merge) = &row.merge {
                let known = ended.entry(&merge.source).or_insert(merge);
                if (merge.at, &merge.into) > (known.at, &known.into) {
                    *known = merge;
                }
            }
        }
        // In one order everywhere, so that two sessions that write the same rows wait and do not block each other.
        let mut newest: Vec<&Revision> = newest.into_values().collect();
        newest.sort_unstable_by_key(|row| &row.object_id);
        let mut ended: Vec<&Merge> = ended.into_values().collect();
        ended.sort_unstable_by_key(|merge| &merge.source);
        let client = session.client();
        if !newest.is_empty() {
            let revisions = Revisions::of(&newest);
            client.execute_typed(&self.revise, &revisions.parameters()).await?;
        }
        if !ended.is_empty() {
            let merges = Merges::of(&ended);
            client.execute_typed(&self.merge, &merges.parameters()).await?;
        }
        Ok(())
    }
}

/// Revisions as arrays.
#[derive(Default)]
struct Revisions<'r> {
    object_id: Vec<&'r str>,
    object_type: Vec<Option<&'r str>>,
    lead_id: Vec<Option<&'r str>>,
    date_updated: Vec<Option<Timestamp>>,
    deleted_at: Vec<Option<Timestamp>>,
    seq: Vec<i64>,
    event: Vec<&'r str>,
}

impl<'r> Revisions<'r> {
    fn of(rows: &[&'r Revision]) -> Revisions<'r> {
        let mut revisions = Revisions::default();
        for row in rows {
            revisions.object_id.push(&row.object_id);
            revisions.object_type.push(row.object_type.as_deref());
            revisions.lead_id.push(row.lead_id.as_deref());
            revisions.date_updated.push(row.date_updated);
            revisions.deleted_at.push(row.deleted_at);
            revisions.seq.push(row.seq);
            revisions.event.push(&row.event);
        }
        revisions
    }

    fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 7] {
        [
            (&self.object_id, Type::TEXT_ARRAY),
            (&self.object_type, Type::TEXT_ARRAY),
            (&self.lead_id, Type::TEXT_ARRAY),
            (&self.date_updated, Type::TIMESTAMPTZ_ARRAY),
            (&self.deleted_at, Type::TIMESTAMPTZ_ARRAY),
            (&self.seq, Type::INT8_ARRAY),
            (&self.event, Type::TEXT_ARRAY),
        ]
    }
}

/// Merges as arrays.
#[derive(Default)]
struct Merges<'r> {
    source: Vec<&'r str>,
    at: Vec<Timestamp>,
    into: Vec<&'r str>,
}

impl<'r> Merges<'r> {
    fn of(ended: &[&'r Merge]) -> Merges<'r> {
        let mut merges = Merges::default();
        for merge in ended {
            merges.source.push(&merge.source);
            merges.at.push(merge.at);
            merges.into.push(&merge.into);
        }
        merges
    }

    fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 3] {
        [
            (&self.source, Type::TEXT_ARRAY),
            (&self.at, Type::TIMESTAMPTZ_ARRAY),
            (&self.into, Type::TEXT_ARRAY),
        ]
    }
}
