//! `postgres`: a row for each event in a table of a PostgreSQL database, exactly once: rows and mark are one transaction.
//!
//! A batch is one transaction: one statement moves this sink's row of `closehook_mark`, some more insert all rows from arrays
//! (`UNNEST`), without waiting in between. New events have no rows yet, so they are inserted plainly, which costs the server
//! less than looking for each; where one has, the batch is written again, leaving what is there. Nothing is kept in the session, so a pooler in transaction mode may stand in between.
//!
//! | what happens | what follows |
//! |---|---|
//! | a commit whose answer was lost, kill -9 of either side | [`SinkKind::open`] reads the mark back, which tells whether it happened; it waits for a transaction that still runs |
//! | an old connection, or another daemon with the same mark | the mark's `updated_at` is no longer the one it read: nothing of its batch is written |
//! | a row that is there already | it stays: the batch is written again, and until the sink is opened anew every one looks for rows first |
//! | columns of the configuration, or an object that a transform made | texts, cast to the columns' types; never looked for: what comes again is inserted again |
//! | a row for each object | what is not newer changes nothing |
//! | a bad row | the batch is sifted by halves within one transaction; only that row is refused |
//! | anything else (connection, rights, locks, full disk) | the sink is unavailable, and costs no event an attempt |

mod columns;
pub(super) mod definition;
mod latest;
mod outcomes;
mod session;
mod statements;
mod tls;
mod url;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::maybe_done;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use sha2::Digest as _;
use tokio_postgres_rustls::MakeRustlsConnect;

use self::outcomes::{UNREADABLE, readable, refused, settled, split};
use self::session::{Patience, Session, Trouble};
use self::statements::{Live, Statements};
use self::url::Place;
use super::common::identity;
use super::common::jsonb::fit_for_jsonb;
use super::common::layout::{self, Case, Layout, Made};
use super::common::rows::{EVENTS_TABLE, MARK_TABLE, Row, TableName};
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Limits, Mark, Opened, Outcome, Preview, Reason, Sink, SinkKind,
    Unavailable,
};
use crate::config::{Secret, SinkOptions, Table};
use crate::event::Delivery;
use crate::net::tls::{Identity, content};
use crate::render::Template;
use crate::sync::lock;

/// Rows in one statement.
const PART: usize = 250;

/// How long a connection may take to be made, where neither `connect_timeout` nor `timeout` says less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Options {
    place: Place,
    password: Option<Secret>,
    table: TableName,
    layout: Arc<Layout>,
    create: bool,
    batch: Limits,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let url: Option<String> = table.needed("url");
    let password = table.secret("password");
    let layout = Layout::parse(table, Case::Counts);
    let name: Option<String> = table.optional("table");
    let name = name.unwrap_or_else(|| layout.as_ref().map_or(EVENTS_TABLE, Layout::table).to_owned());
    let create = table.or("create", true);
    let batch = layout::batch(table);
    let paths = ["ca", "cert", "key"].map(|key| table.optional::<PathBuf>(key));
    let name = TableName::parse(&name).and_then(|parsed| {
        if parsed.name() == MARK_TABLE {
            return Err(format!("\"{parsed}\" holds the marks: choose another name"));
        }
        Ok(parsed)
    });
    let name = name.map_err(|error| table.fault("table", error)).ok();
    let url = url?;
    let place = Place::parse(&url).map_err(|error| table.fault("url", error)).ok()?;
    if password.is_some() && place.config.get_password().is_some() {
        table.fault("password", "is in url too: keep one of them (better not that in url)");
    }
    let [ca, cert, key] = paths;
    let in_url = [
        ("ca", &ca, &place.ca),
        ("cert", &cert, &place.cert),
        ("key", &key, &place.key),
    ];
    for (key, own, given) in in_url {
        if own.is_some() && given.is_some() {
            table.fault(key, "is in url too: keep one of them");
        }
    }
    let paths = [
        ca.or(place.ca.clone()),
        cert.or(place.cert.clone()),
        key.or(place.key.clone()),
    ];
    // What is in files counts as it is now: a reload has to see that it is another.
    let digest = sha2::Sha256::digest(format!(
        "{url}\n{:?}\n{name:?}\n{layout:?}\n{create}\n{batch:?}\n{paths:?}\n{:?}",
        password.as_ref().map(Secret::fingerprint),
        paths.iter().flatten().map(|path| content(path)).collect::<Vec<_>>(),
    ));
    let [ca, cert, key] = paths;
    let identity = identity::of(table, cert, key);
    Some(Arc::new(Options {
        ca,
        identity,
        fingerprint: Fingerprint(hex::encode(digest)),
        place,
        password,
        table: name?,
        layout: Arc::new(layout?),
        create,
        batch,
    }))
}

impl Options {
    async fn connect(&self, context: &Context, patience: Patience) -> Result<Session, Unavailable> {
        let mut config = self.place.config.clone();
        if let Some(secret) = &self.password {
            config.password(secret.resolve().map_err(Unavailable::new)?.expose_secret());
        }
        if config.get_application_name().is_none() {
            config.application_name(format!("closehook {}", context.name));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT.min(context.timeout.mul_f64(0.4)));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(context.timeout);
        }
        config.keepalives_idle(
            config
                .get_keepalives_idle()
                .min(context.timeout.max(Duration::from_secs(1))),
        );
        let tls = self.tls().map_err(Unavailable::new)?;
        let connecting = Session::connect(&config, &tls, self.place.sslmode.ways());
        tokio::time::timeout(patience.call, connecting)
            .await
            .map_err(|_| silent(patience.call))?
    }

    fn tls(&self) -> Result<MakeRustlsConnect, String> {
        tls::connector(self.place.sslmode, self.ca.as_deref(), self.identity.as_ref())
    }

    fn statements(&self) -> Statements {
        Statements::new(&self.table, self.layout.clone())
    }
}

fn silent(patience: Duration) -> Unavailable {
    Unavailable::new(format!(
        "the server did not answer within {:.1} s: does it run, and is the way to it open?",
        patience.as_secs_f64()
    ))
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
        // Without a schema it is nearly always this one.
        let schema = self.table.schema().unwrap_or("public");
        Some(format!(
            "the table {schema}.{} of {}",
            self.table.name(),
            self.place.name()
        ))
    }

    fn fault(&self) -> Option<String> {
        let secret = self.password.as_ref().and_then(|secret| secret.resolve().err());
        secret.or_else(|| self.tls().err())
    }

    fn templates(&self) -> Vec<(String, Template)> {
        self.layout.templates()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        self.layout.payload(delivery, Case::Counts)
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        Ok(Preview {
            row: Some(fit_for_jsonb(&self.layout.row(delivery, Case::Counts)?).into_owned()),
            ..Preview::default()
        })
    }

    fn warning_of_programs(&self) -> Option<String> {
        self.layout.warning_of_programs()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let patience = Patience::within(context.timeout);
        let opening = async {
            let session = self.connect(&context, patience).await?;
            let statements = self.statements();
            let begin = statements.prepare_server(&session, patience, self.create).await?;
            let (mark, moment) = statements.claim(&session, &begin, &context).await?;
            let sink = Postgres {
                session: Mutex::new(Some(Arc::new(session))),
                statements,
                layout: self.layout.clone(),
                begin,
                patience,
                log_id: context.log_id.clone(),
                name: context.name.clone(),
                moment: Mutex::new(moment),
                meets_rows: AtomicBool::new(false),
            };
            crate::telemetry::altered(&context.name, 0);
            Ok(Opened {
                sink: Box::new(sink),
                mark,
                position: None,
            })
        };
        let opened = tokio::time::timeout(patience.call, opening).await;
        opened.map_err(|_| silent(patience.call))?
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let patience = Patience::within(context.timeout);
        let looking = async {
            let session = self.connect(&context, patience).await?;
            self.statements().look(&session, patience, self.create).await
        };
        let seen = tokio::time::timeout(patience.call, looking).await;
        seen.map_err(|_| silent(patience.call))?
    }
}

/// An opened sink.
struct Postgres {
    /// `None` once a call has failed or was dropped: what that left behind is settled by opening again.
    session: Mutex<Option<Arc<Session>>>,
    statements: Statements,
    layout: Arc<Layout>,
    begin: String,
    patience: Patience,
    log_id: String,
    name: String,
    /// `updated_at` of the mark as last read or written; `None` while there is no mark.
    moment: Mutex<Option<Timestamp>>,
    /// Some row was there already: it is expected that more are.
    meets_rows: AtomicBool,
}

/// A transaction as far as it got: rows written, mark moved.
struct Written {
    outcomes: Vec<Outcome>,
    moment: Timestamp,
}

/// Rows as far as they were made and sent.
#[derive(Default)]
struct Sent {
    rows: Vec<Made>,
    /// Of them, those that `jsonb` can't hold as they came.
    altered: u64,
}

impl Postgres {
    /// Writes rows and mark in one transaction.
    async fn write(&self, session: &Session, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        // If all rows are good, the mark that then holds can go with them.
        let deliveries = batch.deliveries();
        let is_plain = deliveries.iter().all(|delivery| self.layout.is_plain(delivery));
        let made = if is_plain {
            None
        } else {
            Some(self.make(session, deliveries).await?)
        };
        if deliveries.iter().any(|delivery| self.layout.is_plain(delivery))
            && let Some(unavailable) = self.statements.takes_no_events()
        {
            return Err(unavailable);
        }
        let outcomes: Vec<Outcome> = match &made {
            Some(made) => made.rows.iter().map(|row| settled(row, Outcome::Delivered)).collect(),
            None => deliveries.iter().map(readable).collect(),
        };
        let mark = batch.mark_after(&outcomes);
        let (sent, moved) = self.send(session, deliveries, made, &mark).await?;
        let moved = match moved {
            Err(Trouble::AlreadyThere(_)) if is_plain => {
                self.meets_rows.store(true, Ordering::Relaxed);
                self.begin_again(session).await?;
                self.write_missing(session, &sent.rows, &mark).await
            }
            moved => moved,
        };
        let written = match moved {
            Ok(moment) => Written { outcomes, moment },
            Err(Trouble::Sink(unavailable)) => return Err(unavailable),
            Err(trouble) => {
                let reason = refused(trouble)?;
                self.begin_again(session).await?;
                if !is_plain {
                    self.see_other_types(session).await?;
                }
                self.sift(session, batch, &sent.rows, reason).await?
            }
        };
        self.run(session, "COMMIT").await?;
        *lock(&self.moment) = Some(written.moment);
        if sent.altered > 0 {
            crate::telemetry::altered(&self.name, sent.altered);
        }
        Ok(written.outcomes)
    }

    async fn run(&self, session: &Session, sql: &str) -> Result<(), Unavailable> {
        let done = session.client().batch_execute(sql).await;
        done.map_err(|error| session.unavailable(&error))
    }

    /// Gives up what was written so far.
    async fn begin_again(&self, session: &Session) -> Result<(), Unavailable> {
        self.run(session, "ROLLBACK").await?;
        self.run(session, &self.begin).await
    }

    /// Begins a transaction and sends the mark and all rows, a part at a time: while the server writes some, the next ones are made.
    /// Nothing but the beginning is waited for in between; gives how moving the mark ended, or what came of the rows.
    async fn send(
        &self,
        session: &Session,
        deliveries: &[Delivery],
        made: Option<Sent>,
        mark: &Mark,
    ) -> Result<(Sent, Result<Timestamp, Trouble>), Unavailable> {
        let how = if self.meets_rows.load(Ordering::Relaxed) {
            Live::Missing
        } else {
            Live::New
        };
        let is_made = made.is_some();
        let mut sent = made.unwrap_or_default();
        let mut made = std::mem::take(&mut sent.rows).into_iter();
        let mut beginning = pin!(maybe_done(self.run(session, &self.begin)));
        // To poll it is to send it.
        let _ = futures::poll!(&mut beginning);
        let mut moving = pin!(maybe_done(self.move_mark(session, mark)));
        let mut writing = Vec::new();
        for part in deliveries.chunks(PART) {
            let rows = if is_made {
                made.by_ref().take(part.len()).collect()
            } else {
                sent.make_events(part)
            };
            if writing.is_empty() {
                beginning.as_mut().await;
                beginning.as_mut().take_output().unwrap_or(Ok(()))?;
                let _ = futures::poll!(&mut moving);
            }
            let mut part = Box::pin(maybe_done(async move {
                let done = self.statements.insert(session, &rows, how).await;
                (rows, done)
            }));
            let _ = futures::poll!(&mut part);
            writing.push(part);
        }
        moving.as_mut().await;
        let mut moved = moving
            .as_mut()
            .take_output()
            .unwrap_or_else(|| Err(nothing_said()))
            .map_err(Trouble::Sink);
        for mut part in writing {
            part.as_mut().await;
            let Some((rows, done)) = part.as_mut().take_output() else {
                continue;
            };
            sent.rows.extend(rows);
            // What the first says is why the later ones failed.
            if let (Ok(_), Err(error)) = (&moved, done) {
                moved = Err(session.trouble(&error));
            }
        }
        Ok((sent, moved))
    }

    /// Moves the mark and writes those rows that are not there yet.
    async fn write_missing(&self, session: &Session, rows: &[Made], mark: &Mark) -> Result<Timestamp, Trouble> {
        let inserting = self.statements.insert(session, rows, Live::Missing);
        let (moment, inserted) = futures::join!(self.move_mark(session, mark), inserting);
        let moment = moment?;
        inserted.map_err(|error| session.trouble(&error))?;
        Ok(moment)
    }

    /// Rows were refused: perhaps because of what their columns were, and are not any more.
    async fn see_other_types(&self, session: &Session) -> Result<(), Unavailable> {
        let before = self.statements.types();
        self.statements.learn(session).await?;
        if *before == *self.statements.types() {
            return Ok(());
        }
        Err(Unavailable::new(
            "the table has other columns than before: it is opened again",
        ))
    }

    /// Makes rows of other kinds than events: before the transaction begins, as the table may have to be looked at again.
    async fn make(&self, session: &Session, deliveries: &[Delivery]) -> Result<Sent, Unavailable> {
        let mut rows = self.layout.make(deliveries, Case::Counts);
        let missing = |row: &Made| match row {
            Made::Fields(fields) => self.statements.missing(fields.names.iter().map(String::as_str)),
            _ => None,
        };
        if rows.iter().any(|row| missing(row).is_some()) {
            // Somebody may have added a column.
            self.statements.learn(session).await?;
        }
        let types = self.statements.types();
        let (mut altered, mut unfit) = (0, false);
        for row in &mut rows {
            if let Some(missing) = missing(row).filter(|_| !types.is_empty()) {
                if matches!(*self.layout, Layout::Columns(_)) {
                    return Err(Unavailable::new(format!(
                        "{missing}: add it, or take it out of columns"
                    )));
                }
                *row = Made::Refused(missing);
            }
            if let Made::Fields(fields) = row
                && let Err(why) = fields.write_for(|name| types.takes(name))
            {
                *row = Made::Refused(why);
                unfit = true;
            }
            let is_altered = match row {
                Made::Event(row) => row.fit_for_postgres(),
                Made::Fields(fields) => fields.fit_for_postgres(|name| types.takes(name)),
                Made::Revision(revision) => revision.fit_for_postgres(),
                Made::Skipped | Made::Refused(_) => false,
            };
            altered += u64::from(is_altered);
        }
        if unfit {
            // The server is not asked about those: somebody may have widened the column.
            self.see_other_types(session).await?;
        }
        Ok(Sent { rows, altered })
    }

    /// Finds the bad rows by halves, each under a savepoint, and writes the others.
    async fn sift(
        &self,
        session: &Session,
        batch: &Batch<'_>,
        rows: &[Made],
        reason: Reason,
    ) -> Result<Written, Unavailable> {
        let began = Instant::now();
        let untried = Outcome::Untried {
            reason: "an event beside it was refused, and there was no time to try this one".into(),
        };
        let mut outcomes: Vec<Outcome> = rows.iter().map(|row| settled(row, untried.clone())).collect();
        // The last one is tried first, so they stand in reverse. The whole was tried, and `reason` is what came of it.
        let mut ranges = Vec::new();
        split(&mut ranges, 0..rows.len(), &reason, &mut outcomes);
        while let Some(range) = ranges.pop() {
            if began.elapsed() > self.patience.sifting {
                break;
            }
            self.run(session, "SAVEPOINT half").await?;
            match self
                .statements
                .insert(session, &rows[range.clone()], Live::Missing)
                .await
            {
                Ok(()) => {
                    self.run(session, "RELEASE half").await?;
                    for index in range {
                        outcomes[index] = settled(&rows[index], Outcome::Delivered);
                    }
                }
                Err(error) => {
                    let reason = refused(session.trouble(&error))?;
                    self.run(session, "ROLLBACK TO half").await?;
                    split(&mut ranges, range, &reason, &mut outcomes);
                }
            }
        }
        let moment = self.move_mark(session, &batch.mark_after(&outcomes)).await?;
        Ok(Written { outcomes, moment })
    }

    /// Moves the mark, if it is still as it was last seen.
    async fn move_mark(&self, session: &Session, mark: &Mark) -> Result<Timestamp, Unavailable> {
        let before = *lock(&self.moment);
        let moved = self
            .statements
            .move_mark(session, (&self.log_id, &self.name), mark, before)
            .await?;
        moved.ok_or_else(|| {
            Unavailable::new(format!(
                "somebody else moved the mark of the sink \"{}\": does another closehook with a copy of this data directory write there?",
                self.name
            ))
        })
    }
}

impl Sent {
    /// The rows of some deliveries that become rows of events.
    fn make_events(&mut self, deliveries: &[Delivery]) -> Vec<Made> {
        let row = |delivery: &Delivery| {
            let Some(mut row) = Row::of(delivery) else {
                return Made::Refused(UNREADABLE.into());
            };
            self.altered += u64::from(row.fit_for_postgres());
            Made::Event(row)
        };
        deliveries.iter().map(row).collect()
    }
}

fn nothing_said() -> Unavailable {
    Unavailable::new("the server said nothing of the mark")
}

#[async_trait]
impl Sink for Postgres {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        // It goes back only after a commit: a call that fails or is dropped cuts the connection.
        let Some(session) = lock(&self.session).take() else {
            return Err(Unavailable::new(
                "the connection was given up: the sink has to be opened again",
            ));
        };
        let written = tokio::time::timeout(self.patience.call, self.write(&session, batch)).await;
        let outcomes = written.map_err(|_| silent(self.patience.call))??;
        *lock(&self.session) = Some(session);
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
