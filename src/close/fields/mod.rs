//! What custom fields are called at Close: fetched with its schema, kept on disk, and followed.
//!
//! Templates that use `named` see the names through a [`NameBook`]. What is kept from an earlier run counts at once. The schema is
//! fetched again when the daemon starts, every day, when an event in the log says that it has changed, and when a template meets a field
//! that it does not have; a failure keeps what there was. Nothing is fetched while no template of the configuration uses `named`.
//!
//! Without credentials there are no names, and ids stay. With credentials, and before the schema was ever fetched, templates that want a
//! name are told to wait. A field that no schema has after all keeps its id: it is not looked for again before it comes with the
//! schema. Where it can't be looked for, because Close does not answer, it keeps its id until Close does.

mod follow;
mod schema;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(super) use self::follow::follow;
use self::schema::{Kept, Schema};
use super::api::client::Client;
use super::api::error::Error;
use super::seams::Seams;
use super::store::CloseStore;
use crate::config::Config;
use crate::render::{NameBook, Names, Program, Template};
use crate::task;

/// Names that are older than this are worth a word.
const OLD: SignedDuration = SignedDuration::from_hours(48);

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

/// Whether what a data directory holds of them is whole. What a newer closehook has kept is. Blocking.
pub(super) fn readable(data_dir: &Path) -> Result<(), Error> {
    match Kept::read(data_dir, None) {
        Kept::Damaged(error) => Err(error),
        Kept::Nothing | Kept::Schema(_) | Kept::Newer(_) => Ok(()),
    }
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
            let written = task::begin_blocking(write).await;
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

#[cfg(test)]
mod tests;
