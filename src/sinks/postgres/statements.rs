//! What is said to the server: making and looking at the tables, the mark, and the rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::columns::{self, Types};
use super::latest::Latest;
use super::session::{Patience, Session};
use crate::event::Seq;
use crate::sinks::common::layout::{Layout, Made};
use crate::sinks::common::rows::{EVENTS_COLUMNS, MARK_TABLE, Row, TableName};
use crate::sinks::{Context, Mark, Unavailable};
use crate::sync::lock;

/// The oldest server that has all that is used (`idle_in_transaction_session_timeout`).
const VERSION_MIN: i32 = 90_600;

/// Of several sinks one makes tables at a time, each having its turn until its transaction ends: IF NOT EXISTS does not see what another one
/// is about to make, and fails over it. The number is "closehoo" in ASCII.
pub(super) const IN_TURN: &str = "SELECT pg_catalog.pg_advisory_xact_lock(7164223648652881775)";

/// A moment behind the one in the mark, whatever the server's clock does. Who read the mark before does not know it.
const NEXT_MOMENT: &str = "GREATEST(clock_timestamp(), updated_at + interval '1 microsecond')";

/// The statements for one table.
pub(super) struct Statements {
    table: TableName,
    marks: TableName,
    layout: Arc<Layout>,
    latest: Latest,
    /// What columns the table was last seen to have.
    types: Mutex<Arc<Types>>,
    insert_new: String,
    insert_missing: String,
    replace: String,
    first_mark: String,
    move_mark: String,
    claim: String,
}

/// How live rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    /// None of them is there: the quickest way, and an error for all where one is.
    New,
    /// Those that are there stay.
    Missing,
}

/// What is known of the server.
struct Server {
    /// Which of the two tables are there.
    has_table: bool,
    has_marks: bool,
    /// Whether its commits are answered before they are safe.
    is_asynchronous: bool,
}

impl Statements {
    pub(super) fn new(table: &TableName, layout: Arc<Layout>) -> Statements {
        let marks = table.sibling(MARK_TABLE);
        let (events, mark) = (table.quoted(), marks.quoted());
        let insert = format!(
            "INSERT INTO {events} AS kept (seq, id, date_updated, received_at, type, object_id, lead_id, source, event) \
             SELECT r.seq, r.id, r.date_updated, r.received_at, r.type, r.object_id, r.lead_id, r.source, r.event::jsonb \
             FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[]) \
             AS r(seq, id, date_updated, received_at, type, object_id, lead_id, source, event)"
        );
        let conflict = "ON CONFLICT (id, date_updated) DO";
        let update = "UPDATE SET seq = EXCLUDED.seq, received_at = EXCLUDED.received_at, type = EXCLUDED.type, \
                      object_id = EXCLUDED.object_id, lead_id = EXCLUDED.lead_id, source = EXCLUDED.source, event = EXCLUDED.event";
        Statements {
            replace: format!("{insert} {conflict} {update}"),
            // Only an event without its data gives way to the whole one, which has the same key.
            insert_missing: format!(
                "{insert} {conflict} {update} WHERE NOT kept.event ? 'data' AND EXCLUDED.event ? 'data'"
            ),
            insert_new: insert,
            first_mark: format!(
                "INSERT INTO {mark} (log_id, sink, epoch, seq, mark, updated_at) VALUES ($1, $2, $3, $4, $5, clock_timestamp()) \
                 ON CONFLICT (log_id, sink) DO NOTHING RETURNING updated_at"
            ),
            move_mark: format!(
                "UPDATE {mark} SET epoch = $3, seq = $4, mark = $5, updated_at = {NEXT_MOMENT} \
                 WHERE log_id = $1 AND sink = $2 AND updated_at = $6 RETURNING updated_at"
            ),
            claim: format!(
                "UPDATE {mark} SET updated_at = {NEXT_MOMENT} WHERE log_id = $1 AND sink = $2 \
                 RETURNING epoch, seq, mark, updated_at"
            ),
            latest: Latest::new(table),
            types: Mutex::default(),
            layout,
            table: table.clone(),
            marks,
        }
    }

    /// Makes what is missing and may be made, looks whether all statements would work, and says how a transaction begins there.
    pub(super) async fn prepare_server(
        &self,
        session: &Session,
        patience: Patience,
        create: bool,
    ) -> Result<String, Unavailable> {
        let unavailable = |error: Error| session.unavailable(&error);
        let server = self.server(session).await?;
        let mut begin = patience.begin();
        if server.is_asynchronous {
            // Kept here only: the engine forgets what it was told is committed.
            begin += "; SET LOCAL synchronous_commit = local";
        }
        let client = session.client();
        client.batch_execute(&begin).await.map_err(unavailable)?;
        if create && !(server.has_table && server.has_marks) {
            Self::wait_for_turn(session, &begin).await?;
        }
        if create && !server.has_table {
            client.batch_execute(&self.create()?).await.map_err(unavailable)?;
        }
        if create && !server.has_marks {
            client.batch_execute(&self.create_marks()).await.map_err(unavailable)?;
        }
        self.learn(session).await?;
        self.explain(session).await?;
        client.batch_execute("COMMIT").await.map_err(unavailable)?;
        Ok(begin)
    }

    /// Waits until no other sink makes tables. Servers that are like PostgreSQL may have no such locks: there it is done without, in a
    /// new transaction.
    async fn wait_for_turn(session: &Session, begin: &str) -> Result<(), Unavailable> {
        let client = session.client();
        let Err(error) = client.batch_execute(IN_TURN).await else {
            return Ok(());
        };
        match error.code().map(SqlState::code) {
            Some("0A000" | "42883") => {
                // Each by itself: together they would be one transaction, which has failed.
                for statement in ["ROLLBACK", begin] {
                    let done = client.batch_execute(statement).await;
                    done.map_err(|error| session.unavailable(&error))?;
                }
                Ok(())
            }
            Some("55P03") => Err(Unavailable::new(
                "another session makes tables there, and has not come to an end: it is tried again",
            )),
            _ => Err(session.unavailable(&error)),
        }
    }

    /// Looks what columns the table has.
    pub(super) async fn learn(&self, session: &Session) -> Result<(), Unavailable> {
        let types = Types::read(session, &self.table).await;
        *lock(&self.types) = Arc::new(types.map_err(|error| session.unavailable(&error))?);
        Ok(())
    }

    /// The columns as they were last seen.
    pub(super) fn types(&self) -> Arc<Types> {
        lock(&self.types).clone()
    }

    /// The first of these names that no column of the table has, in a sentence.
    pub(super) fn missing<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<String> {
        let name = self.types().missing(names)?.to_owned();
        Some(format!("the table {} has no column \"{name}\"", self.table))
    }

    /// Why the table takes no row of events as they came. That it does not is no fault as long as something is made of each.
    pub(super) fn takes_no_events(&self) -> Option<Unavailable> {
        let missing = self.missing(EVENTS_COLUMNS)?;
        Some(Unavailable::new(format!(
            "the table has other columns than events need ({missing}): add them, or set columns, a template or a transform"
        )))
    }

    /// Whether events could be written, without writing anything.
    pub(super) async fn look(
        &self,
        session: &Session,
        patience: Patience,
        create: bool,
    ) -> Result<String, Unavailable> {
        let unavailable = |error: Error| session.unavailable(&error);
        let server = self.server(session).await?;
        let client = session.client();
        client
            .batch_execute(&format!("{}; SET TRANSACTION READ ONLY", patience.begin()))
            .await
            .map_err(unavailable)?;
        if server.has_table && server.has_marks {
            self.learn(session).await?;
            self.explain(session).await?;
            let only_made =
                matches!(*self.layout, Layout::Events { has_program: false }) && self.takes_no_events().is_some();
            let restriction = if only_made {
                ", but not with events as they came: it has other columns"
            } else {
                ""
            };
            return Ok(format!(
                "the table {} is there and can be written{restriction}",
                self.table
            ));
        }
        let missing: Vec<String> = [(server.has_table, &self.table), (server.has_marks, &self.marks)]
            .into_iter()
            .filter(|(is_there, _)| !is_there)
            .map(|(_, table)| table.to_string())
            .collect();
        let missing = missing.join(" and ");
        if create && !server.has_table {
            self.create()?;
        }
        if !create {
            return Err(Unavailable::new(format!(
                "there is no table {missing}: make it, or set create = true"
            )));
        }
        let may: Option<bool> = client
            .query_typed_one(
                "SELECT has_schema_privilege(COALESCE($1, current_schema()), 'CREATE')",
                &[(&self.table.schema(), Type::TEXT)],
            )
            .await
            .and_then(|row| row.try_get(0))
            .map_err(unavailable)?;
        if may != Some(true) {
            return Err(Unavailable::new(format!(
                "the table {missing} is missing, and this user may not make it: GRANT CREATE ON SCHEMA, or make it and set create = false"
            )));
        }
        Ok(format!("the server answers; {missing} will be made"))
    }

    async fn server(&self, session: &Session) -> Result<Server, Unavailable> {
        let row = session
            .client()
            .query_typed_one(
                "SELECT current_setting('server_version_num')::int, current_setting('synchronous_commit'), \
                 to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL, current_setting('transaction_read_only')",
                &[(&self.table.quoted(), Type::TEXT), (&self.marks.quoted(), Type::TEXT)],
            )
            .await
            .map_err(|error| session.unavailable(&error))?;
        let text = |index: usize| row.try_get::<_, String>(index).unwrap_or_default();
        let version: i32 = row.try_get(0).unwrap_or_default();
        if version < VERSION_MIN {
            return Err(Unavailable::new(
                "the server is too old: PostgreSQL 9.6 or newer is needed",
            ));
        }
        if text(4) == "on" {
            return Err(Unavailable::new(
                "the server takes no changes: is it a standby? Name the primary, or all of them with target_session_attrs=read-write",
            ));
        }
        Ok(Server {
            has_table: row.try_get(2).unwrap_or_default(),
            has_marks: row.try_get(3).unwrap_or_default(),
            is_asynchronous: text(1) == "off",
        })
    }

    /// Makes the table. What a template or transform makes has no types.
    fn create(&self) -> Result<String, Unavailable> {
        match &*self.layout {
            Layout::Events { has_program: false } => Ok(self.create_events()),
            Layout::Events { has_program: true } => Err(Unavailable::new(format!(
                "there is no table {}: make it with the columns that the sink's template or transform makes, or name them in columns",
                self.table
            ))),
            Layout::Columns(columns) => Ok(columns::create(&self.table, columns)),
            Layout::Latest => Ok(self.latest.create.clone()),
        }
    }

    fn create_events(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {} (seq bigint NOT NULL, id text NOT NULL, date_updated text NOT NULL, \
             received_at timestamptz NOT NULL, type text, object_id text, lead_id text, source text NOT NULL, event jsonb NOT NULL, \
             UNIQUE (id, date_updated))",
            self.table.quoted()
        )
    }

    fn create_marks(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {} (log_id text NOT NULL, sink text NOT NULL, epoch text NOT NULL, seq bigint NOT NULL, \
             mark text NOT NULL, updated_at timestamptz NOT NULL, PRIMARY KEY (log_id, sink))",
            self.marks.quoted()
        )
    }

    /// Has the server plan each statement, which shows tables, columns, constraints and rights that are missing, and does nothing.
    async fn explain(&self, session: &Session) -> Result<(), Unavailable> {
        let unavailable = |error: Error| session.unavailable(&error);
        let types = self.types();
        match &*self.layout {
            // Nothing may be made of events here, and it is seen with the first one that does not fit.
            Layout::Events { .. } if !types.is_empty() && types.missing(EVENTS_COLUMNS).is_some() => {}
            Layout::Events { .. } => self.explain_events(session).await.map_err(unavailable)?,
            Layout::Columns(_) => {
                let names = self.layout.names();
                if let Some(missing) = self
                    .missing(names.iter().map(String::as_str))
                    .filter(|_| !types.is_empty())
                {
                    return Err(Unavailable::new(format!(
                        "{missing}: add it, or take it out of columns"
                    )));
                }
                columns::explain(session, &self.table, &types, &names)
                    .await
                    .map_err(unavailable)?;
            }
            Layout::Latest => self.latest.explain(session).await.map_err(unavailable)?,
        }
        let mark = [
            Type::TEXT,
            Type::TEXT,
            Type::TEXT,
            Type::INT8,
            Type::TEXT,
            Type::TIMESTAMPTZ,
        ];
        let (text, seq, moment) = ("", 0_i64, Timestamp::UNIX_EPOCH);
        let values: [&(dyn ToSql + Sync); 6] = [&text, &text, &text, &seq, &text, &moment];
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = values.into_iter().zip(mark).collect();
        for (statement, count) in [(&self.first_mark, 5), (&self.move_mark, 6), (&self.claim, 2)] {
            let explained = format!("EXPLAIN {statement}");
            session
                .client()
                .query_typed(&explained, &parameters[..count])
                .await
                .map_err(unavailable)?;
        }
        Ok(())
    }

    async fn explain_events(&self, session: &Session) -> Result<(), Error> {
        for statement in [&self.insert_missing, &self.replace] {
            let columns = Columns::of(std::iter::empty());
            let explained = format!("EXPLAIN {statement}");
            session.client().query_typed(&explained, &columns.parameters()).await?;
        }
        Ok(())
    }

    /// Reads the mark and gives it a new moment, so that whoever read it before can't commit any more. Waits for a transaction
    /// that has moved it and is not over.
    pub(super) async fn claim(
        &self,
        session: &Session,
        begin: &str,
        context: &Context,
    ) -> Result<(Option<Mark>, Option<Timestamp>), Unavailable> {
        let unavailable = |error: Error| session.unavailable(&error);
        let client = session.client();
        client.batch_execute(begin).await.map_err(unavailable)?;
        let row = client
            .query_typed_opt(
                &self.claim,
                &[(&context.log_id, Type::TEXT), (&context.name, Type::TEXT)],
            )
            .await
            .map_err(unavailable)?;
        client.batch_execute("COMMIT").await.map_err(unavailable)?;
        let Some(row) = row else { return Ok((None, None)) };
        let read = || -> Result<(Mark, Timestamp), Error> {
            let mark = Mark {
                epoch: row.try_get(0)?,
                seq: Seq(row.try_get::<_, i64>(1)?.cast_unsigned()),
                text: row.try_get(2)?,
            };
            Ok((mark, row.try_get(3)?))
        };
        let (mark, moment) = read().map_err(|error| {
            Unavailable::new(format!(
                "the table {} has other columns than marks need: {error}",
                self.marks
            ))
        })?;
        Ok((Some(mark), Some(moment)))
    }

    /// Moves the mark of a sink of a log, if it has still the moment `before`; `None` if it has not.
    pub(super) async fn move_mark(
        &self,
        session: &Session,
        (log_id, sink): (&str, &str),
        mark: &Mark,
        before: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, Unavailable> {
        let seq = mark.seq.0 as i64;
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&log_id, Type::TEXT),
            (&sink, Type::TEXT),
            (&mark.epoch, Type::TEXT),
            (&seq, Type::INT8),
            (&mark.text, Type::TEXT),
        ];
        let statement = if let Some(before) = &before {
            parameters.push((before, Type::TIMESTAMPTZ));
            &self.move_mark
        } else {
            &self.first_mark
        };
        let row = session.client().query_typed_opt(statement, &parameters).await;
        row.and_then(|row| row.map(|row| row.try_get(0)).transpose())
            .map_err(|error| session.unavailable(&error))
    }

    /// Writes rows.
    pub(super) async fn insert(&self, session: &Session, rows: &[Made], how: Live) -> Result<(), Error> {
        if matches!(*self.layout, Layout::Latest) {
            let revisions = rows.iter().filter_map(|row| match row {
                Made::Revision(revision) => Some(&**revision),
                _ => None,
            });
            return self.latest.write(session, revisions).await;
        }
        let events = || {
            rows.iter().filter_map(|row| match row {
                Made::Event(row) => Some(row),
                _ => None,
            })
        };
        self.insert_events(session, events, how).await?;
        let others = rows.iter().filter_map(|row| match row {
            Made::Fields(fields) => Some(fields),
            _ => None,
        });
        columns::insert(session, &self.table, &self.types(), others).await
    }

    /// Writes rows of events: live ones as it is told, others in place of what is there.
    async fn insert_events<'r, R: Iterator<Item = &'r Row>>(
        &self,
        session: &Session,
        rows: impl Fn() -> R,
        how: Live,
    ) -> Result<(), Error> {
        let live = || rows().filter(|row| !row.replaces);
        let last = last_of(rows().filter(|row| row.replaces));
        let (insert, live) = match how {
            Live::New => (&self.insert_new, Columns::of(live())),
            Live::Missing => (&self.insert_missing, Columns::of(last_of(live()).into_iter())),
        };
        if !live.seq.is_empty() {
            session.client().execute_typed(insert, &live.parameters()).await?;
        }
        if !last.is_empty() {
            let again = Columns::of(last.into_iter());
            session
                .client()
                .execute_typed(&self.replace, &again.parameters())
                .await?;
        }
        Ok(())
    }
}

/// One statement can't replace a row twice: the last one for each key counts.
fn last_of<'r>(rows: impl Iterator<Item = &'r Row>) -> Vec<&'r Row> {
    let by_key: HashMap<_, _> = rows.map(|row| ((&row.id, &row.date_updated), row)).collect();
    let mut last: Vec<&Row> = by_key.into_values().collect();
    last.sort_unstable_by_key(|row| row.seq);
    last
}

/// Rows as arrays.
#[derive(Default)]
struct Columns<'r> {
    seq: Vec<i64>,
    id: Vec<&'r str>,
    date_updated: Vec<&'r str>,
    received_at: Vec<Timestamp>,
    type_action: Vec<Option<&'r str>>,
    object_id: Vec<Option<&'r str>>,
    lead_id: Vec<Option<&'r str>>,
    source: Vec<&'r str>,
    event: Vec<&'r str>,
}

impl<'r> Columns<'r> {
    fn of(rows: impl Iterator<Item = &'r Row>) -> Columns<'r> {
        let mut columns = Columns::default();
        for row in rows {
            columns.seq.push(row.seq);
            columns.id.push(&row.id);
            columns.date_updated.push(&row.date_updated);
            columns.received_at.push(row.received_at);
            columns.type_action.push(row.type_action.as_deref());
            columns.object_id.push(row.object_id.as_deref());
            columns.lead_id.push(row.lead_id.as_deref());
            columns.source.push(&row.source);
            columns.event.push(&row.event);
        }
        columns
    }

    fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 9] {
        [
            (&self.seq, Type::INT8_ARRAY),
            (&self.id, Type::TEXT_ARRAY),
            (&self.date_updated, Type::TEXT_ARRAY),
            (&self.received_at, Type::TIMESTAMPTZ_ARRAY),
            (&self.type_action, Type::TEXT_ARRAY),
            (&self.object_id, Type::TEXT_ARRAY),
            (&self.lead_id, Type::TEXT_ARRAY),
            (&self.source, Type::TEXT_ARRAY),
            (&self.event, Type::TEXT_ARRAY),
        ]
    }
}
