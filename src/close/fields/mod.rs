//! What custom fields are called at Close: fetched with its schema, kept on disk, and followed.
//!
//! Templates that use `named` see the names through a [`NameBook`]. What is kept from an earlier run counts at once. The schema is
//! fetched again when the daemon starts, every day, when an event in the log says that it has changed, and when a template meets a field
//! that it does not have; a failure keeps what there was. Nothing is fetched while no template of the configuration uses `named`.
//!
//! Without credentials there are no names, and ids stay. With credentials, and before the schema was ever fetched, templates that want a
//! name are told to wait. A field that no schema has after all keeps its id: it is not looked for again before it comes with the
//! schema. Where it can't be looked for, because Close does not answer, it keeps its id until Close does.

mod schema;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_retry::strategy::jitter;
use tokio_util::sync::CancellationToken;

use self::schema::{Kept, Schema};
use super::account::Account;
use super::api::client::Client;
use super::api::error::Error;
use super::seams::Seams;
use super::store::CloseStore;
use crate::config::Config;
use crate::event::Seq;
use crate::log::{Narrow, Take};
use crate::render::{NameBook, Names, Program, Template};

/// The schema is fetched again after so long, whatever happens.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Names that are older than this are worth a word.
const OLD: SignedDuration = SignedDuration::from_hours(48);

/// However often it changes, so much lies between the beginnings of two fetches.
const APART: Duration = Duration::from_secs(5);

/// After a failure it is tried again: somebody waits for it, or nobody does.
const RETRY_WAITING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));

/// Events that tell of a change of the schema.
const TELLS: [&str; 3] = ["custom_fields.*", "custom_activity_type.*", "custom_object_type.*"];

/// Whoever is so far behind the log does not read all of it, and fetches.
const BEHIND_MAX: u64 = 100_000;

/// Events of the log that are looked at together.
const EVENTS: usize = 1024;
const BYTES: usize = 4 << 20;

/// How the names of custom fields do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldsStatus {
    /// When they were fetched; `None`: never yet.
    pub fetched_at: Option<Timestamp>,
    /// How many there are.
    pub fields: u64,
    /// Whether that is so long ago that they may be others by now.
    pub is_old: bool,
    /// Why some of them are not there, though others are.
    pub lacking: Option<String>,
    /// Why they can't be fetched just now.
    pub trouble: Option<String>,
}

/// Whether a template of this configuration may ask for the names of custom fields.
pub(super) fn are_wanted(config: &Config) -> bool {
    let by_template = |template: &Template| template.source().contains("named");
    let by_program = |program: &Option<Program>| match program {
        Some(Program::Template(template)) => by_template(template),
        Some(Program::Transform(_)) | None => false,
    };
    let mut sinks = config.sinks.iter();
    let keys = |sink: &crate::config::SinkConfig| sink.options.templates().iter().any(|(_, one)| by_template(one));
    sinks.any(|sink| by_program(&sink.program) || keys(sink))
        || config.rules.iter().any(|rule| by_program(&rule.program))
}

/// The names that a data directory holds, for a command: nobody fetches others for it.
pub fn names_on_disk(config: &Config) -> Names {
    let store = CloseStore::open(&config.log.dir, true, Seams::default());
    let fields = Fields::open(config, &store, true);
    let names = fields.book.now();
    Names::clone(&names)
}

/// What is known of custom fields.
#[derive(Debug)]
pub(super) struct Fields {
    book: Arc<NameBook>,
    known: Mutex<Known>,
    /// The configuration is another.
    changed: Notify,
    dir: PathBuf,
    read_only: bool,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
struct Known {
    schema: Option<Schema>,
    trouble: Option<Error>,
    /// What can't be kept on disk, and why.
    unkept: Option<Error>,
    /// What is on disk is a newer closehook's.
    is_newer: bool,
    is_configured: bool,
    is_wanted: bool,
    is_followed: bool,
    /// Ids that are to be looked for.
    asked: BTreeSet<String>,
    /// Ids that no schema had when it was looked for them.
    strangers: BTreeSet<String>,
    /// Ids for which it could not be looked.
    given_up: BTreeSet<String>,
}

impl Known {
    fn names(&self, dir: &Path) -> Names {
        if !self.is_configured {
            return Names::default();
        }
        let mut names = self.schema.as_ref().map(Schema::names).unwrap_or_default();
        names.lacking = match &self.schema {
            None => Some(format!(
                "Close's schema of custom fields has not been fetched yet: {}",
                self.why_not(dir)
            )),
            Some(schema) => schema
                .lacking
                .as_ref()
                .map(|why| format!("Close's schema of custom fields could not be fetched as a whole: {why}")),
        };
        names.is_followed = self.is_followed;
        names.estrange(self.strangers.union(&self.given_up).cloned().collect());
        names
    }

    fn why_not(&self, dir: &Path) -> String {
        match &self.trouble {
            Some(trouble) if self.is_followed => format!("{trouble}; it is tried again"),
            Some(trouble) => trouble.to_string(),
            None if self.is_followed => "it is being fetched".to_owned(),
            None => format!(
                "a running daemon fetches it, and keeps it in {}; `closehook check --probe` tries it",
                dir.display()
            ),
        }
    }
}

impl Fields {
    /// Reads what is on disk; contacts nobody. `read_only`: writes nothing either.
    pub fn open(config: &Config, store: &CloseStore, read_only: bool) -> Fields {
        let ours = store.organization().ok().flatten().map(|organization| organization.id);
        let mut known = Known {
            is_configured: config.close.credentials.is_some(),
            is_wanted: are_wanted(config),
            ..Known::default()
        };
        let say = |error: &Error| {
            if known.is_wanted && !read_only {
                tracing::warn!("{error}; Close's schema of custom fields is fetched anew");
            }
        };
        match Kept::read(store.data_dir(), ours.as_deref()) {
            Kept::Nothing => {}
            Kept::Schema(schema) => known.schema = Some(schema),
            Kept::Damaged(error) => {
                say(&error);
                known.trouble = Some(error);
            }
            Kept::Newer(error) => {
                say(&error);
                known.is_newer = true;
                known.trouble = Some(error);
            }
        }
        let dir = store.data_dir().to_owned();
        Fields {
            book: Arc::new(NameBook::with(known.names(&dir))),
            known: Mutex::new(known),
            changed: Notify::new(),
            dir,
            read_only,
        }
    }

    pub fn book(&self) -> &Arc<NameBook> {
        &self.book
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells whoever renders.
    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known();
        let changed = change(&mut known);
        self.book.set(known.names(&self.dir));
        changed
    }

    /// The configuration is another one now. `is_other`: whoever is asked may be, too.
    pub fn reconfigure(&self, config: &Config, is_other: bool) {
        let (is_configured, is_wanted) = (config.close.credentials.is_some(), are_wanted(config));
        let is_new = self.change(|known| {
            let is_new = (is_configured && !known.is_configured) || (is_wanted && !known.is_wanted);
            (known.is_configured, known.is_wanted) = (is_configured, is_wanted);
            is_new
        });
        if is_new || is_other {
            self.changed.notify_one();
        }
    }

    /// Credentials come, or do not after all: until it is settled nothing goes out under an id that may have a name.
    pub fn expect_credentials(&self, are_coming: bool) {
        self.change(|known| known.is_configured = are_coming);
    }

    fn may_fetch(&self) -> bool {
        let known = self.known();
        known.is_configured && known.is_wanted
    }

    /// Somebody asked. Whether it is worth a fetch.
    fn take_up(&self) -> bool {
        let ids = self.book.take_asked();
        let mut known = self.known();
        known.is_wanted = true;
        let is_new = |id: &String| !known.strangers.contains(id) && !known.given_up.contains(id);
        let new: Vec<String> = ids.into_iter().filter(is_new).collect();
        let is_worth_it = known.schema.is_none() || !new.is_empty();
        known.asked.extend(new);
        is_worth_it
    }

    /// For people and metrics; `None` where nobody wants names, or nobody may ask for them.
    pub fn status(&self, now: Timestamp) -> Option<FieldsStatus> {
        let known = self.known();
        if !known.is_configured || !known.is_wanted {
            return None;
        }
        let schema = known.schema.as_ref();
        let trouble = known.trouble.as_ref().or(known.unkept.as_ref());
        Some(FieldsStatus {
            fetched_at: schema.map(|schema| schema.fetched_at),
            fields: schema.map_or(0, |schema| schema.len() as u64),
            is_old: schema.is_some_and(|schema| now.duration_since(schema.fetched_at) > OLD),
            lacking: schema.and_then(|schema| schema.lacking.clone()),
            trouble: trouble.map(ToString::to_string),
        })
    }

    /// A fetch has come to its end.
    async fn note(&self, fetched: Result<Schema, Error>, asked: BTreeSet<String>) {
        let schema = match fetched {
            Ok(schema) => schema,
            Err(error) => return self.note_failure(&error, asked),
        };
        let (schema, before, may_write) = self.change(|known| {
            let mut schema = schema;
            if let Some(before) = &known.schema {
                schema.keep_of(before);
            }
            known.schema = Some(schema.clone());
            known.given_up.clear();
            known.strangers.extend(asked);
            (schema, known.trouble.take(), !known.is_newer)
        });
        if before.is_some() {
            tracing::info!(fields = schema.len(), "Close's schema of custom fields is known again");
        }
        let dir = self.dir.clone();
        let write = move || schema::write(&dir, &schema);
        let written = if may_write && !self.read_only {
            let written = tokio::task::spawn_blocking(write).await;
            written.unwrap_or_else(|error| Err(Error::Local(error.to_string())))
        } else {
            Ok(())
        };
        let unkept = written.err();
        let before = std::mem::replace(&mut self.known().unkept, unkept.clone());
        if let Some(error) = unkept.filter(|_| before.is_none()) {
            tracing::warn!("{error}; the names of custom fields are known until closehook stops");
        }
    }

    fn note_failure(&self, error: &Error, asked: BTreeSet<String>) {
        let (before, is_known) = self.change(|known| {
            known.given_up.extend(asked);
            (known.trouble.replace(error.clone()), known.schema.is_some())
        });
        if before.is_some_and(|before| before.is_like(error)) {
            return;
        }
        if is_known {
            tracing::warn!("{error}; custom fields keep the names that they had, and it is tried again later");
        } else {
            tracing::warn!("{error}; sinks whose templates use `named` wait, and it is tried again");
        }
    }
}

/// When to try again after so many failures.
fn after(times: u32, (first, most): (Duration, Duration)) -> Duration {
    let bound = first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(most);
    jitter(bound).max(bound / 4)
}

/// Says for `check --probe` whether the schema can be read.
pub(super) async fn probe(client: &Client, store: &CloseStore) -> Result<String, Error> {
    let schema = Schema::fetch(client, store, Timestamp::now()).await?;
    match &schema.lacking {
        None => Ok(format!(
            "Close's schema of custom fields can be read: {} field(s)",
            schema.len()
        )),
        Some(why) => Err(Error::Missing(format!(
            "Close's schema of custom fields can be read in part only ({} field(s)): {why}",
            schema.len()
        ))),
    }
}

/// When the schema is fetched.
struct Plan {
    due: Option<Instant>,
    began: Option<Instant>,
    failures: u32,
}

impl Plan {
    /// Something asks for it: soon.
    fn hasten(&mut self) {
        let now = Instant::now();
        let soon = self.began.map_or(now, |began| (began + APART).max(now));
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    fn ended(&mut self, is_well: bool, is_waited_for: bool) {
        let wait = if is_well {
            self.failures = 0;
            EVERY
        } else {
            self.failures += 1;
            after(self.failures - 1, if is_waited_for { RETRY_WAITING } else { RETRY })
        };
        self.due = Some(Instant::now() + wait);
    }
}

/// Follows the schema until `stop`. `at_once`: else nothing is fetched before somebody asks.
pub(super) async fn follow(account: &Account, stop: &CancellationToken, at_once: bool) {
    let fields = &account.fields;
    fields.change(|known| known.is_followed = true);
    let mut head = account.log.head();
    let mut next = head.borrow_and_update().next();
    let mut plan = Plan {
        due: at_once.then(Instant::now),
        began: None,
        failures: 0,
    };
    loop {
        let due = plan.due.filter(|_| fields.may_fetch());
        let wake = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wake => {
                plan.began = Some(Instant::now());
                let fetched = tokio::select! {
                    () = stop.cancelled() => return,
                    is_whole = account.fetch_fields() => is_whole,
                };
                plan.ended(fetched, fields.known().schema.is_none());
            }
            () = fields.changed.notified() => {
                plan.failures = 0;
                plan.due = Some(Instant::now());
            }
            () = fields.book.asked() => {
                // What failed is tried again in its time.
                if fields.take_up() && (plan.failures == 0 || fields.known().schema.is_some()) {
                    plan.hasten();
                }
            }
            Ok(()) = head.changed() => {
                let upto = *head.borrow_and_update();
                if !fields.may_fetch() {
                    next = upto.next();
                } else if account.tells_of_fields(&mut next, upto).await {
                    plan.hasten();
                }
            }
        }
    }
}

impl Account {
    /// What custom fields are called, for whoever renders.
    pub fn names(&self) -> &Arc<NameBook> {
        self.fields.book()
    }

    /// Fetches the schema. Whether all of it is there.
    async fn fetch_fields(&self) -> bool {
        self.fields.take_up();
        let asked = std::mem::take(&mut self.fields.known().asked);
        let fetched = async {
            let client = self.client().await?;
            Schema::fetch(&client, &self.store, self.now()).await
        };
        let fetched = fetched.await;
        let is_whole = fetched.as_ref().is_ok_and(|schema| schema.lacking.is_none());
        self.fields.note(fetched, asked).await;
        is_whole
    }

    /// Whether events up to this one tell of a change of the schema, or may: where they can't be read it is fetched in any case.
    async fn tells_of_fields(&self, next: &mut Seq, upto: Seq) -> bool {
        let narrow = Narrow {
            types: TELLS.map(str::to_owned).to_vec(),
            ..Narrow::default()
        };
        if upto.0.saturating_sub(next.0) > BEHIND_MAX {
            *next = upto.next();
            return true;
        }
        let mut tells = false;
        while *next <= upto {
            let take = Take {
                events: EVENTS,
                bytes: BYTES,
                narrow: Some(&narrow),
            };
            let batch = match self.log.read(*next, take).await {
                Ok(batch) if batch.next > *next => batch,
                Ok(_) => return tells,
                Err(error) => {
                    tracing::debug!(%error, "it is not known whether events tell of custom fields");
                    *next = upto.next();
                    return true;
                }
            };
            tells |= batch.events.iter().any(|event| narrow.leaves(event));
            *next = batch.next;
        }
        tells
    }
}

#[cfg(test)]
mod tests;
