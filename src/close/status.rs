//! How Close's side does, for people and metrics: typed, and as true as what it was made from.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::api::identity::Organization;
use super::api::setbacks::Setback;
use super::completeness::marks::{BackfillJob, Complete, JobState, Marks, Withheld};
use super::completeness::walk::eta;
use super::damaged::DamagedFile;
use super::fields::FieldsStatus;
use super::seen::{Condition, DeliverySilence, FoundSubscription};
use super::store::Rotation;
use crate::sorted;

/// Close's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloseStatus {
    /// Whether there are credentials.
    pub configured: bool,
    /// Whose all of it is; `None` while that is not known.
    pub organization: Option<Organization>,
    /// The node that looks after it; `None` where there is one only, or none does. What was last seen there is known to that one alone.
    #[serde(default)]
    pub looked_after_by: Option<String>,
    /// Why Close can't be used just now.
    pub trouble: Option<String>,
    /// When it is tried again then; `None`: it is being tried, or that is not known here.
    #[serde(default)]
    pub tried_again_at: Option<Timestamp>,
    /// What it has answered to a request that is made again.
    #[serde(default)]
    pub set_back: Option<Setback>,
    /// Files of what is known of it that can't be used. Whoever waits for the disk fills it in.
    #[serde(default)]
    pub damaged: Vec<DamagedFile>,
    /// For how many seconds a look at it has not got on, where that is overdue; known to the node that looks after it.
    #[serde(default)]
    pub overdue_seconds: Option<u64>,
    /// Why the newest OAuth refresh token can't be written; until it is, it goes with the process.
    #[serde(default)]
    pub token_unsaved: Option<String>,
    /// Close's rate limit is used up, and the next request goes then; `None`: soon.
    #[serde(default)]
    pub next_request_at: Option<Timestamp>,
    /// When the subscriptions were last looked at.
    pub checked_at: Option<Timestamp>,
    /// When the log was last compared with Close's.
    pub reconciled_at: Option<Timestamp>,
    /// What concerns us of the subscriptions.
    pub subscriptions: Vec<FoundSubscription>,
    /// Close delivers nothing although there is something.
    pub silence: Option<DeliverySilence>,
    /// What is claimed; `None` before the first comparison.
    pub complete: Option<Claim>,
    /// Events that lack their data; `None`: there are none.
    pub held: Option<Held>,
    /// The newest backfill, unless it is over.
    pub backfill: Option<BackfillStatus>,
    /// The newest backfill, where it is over: what came of it.
    #[serde(default)]
    pub last_backfill: Option<BackfillStatus>,
    /// A new key that has not delivered yet.
    pub rotation: Option<Rotating>,
    /// What custom fields are called; `None` where no template asks for it.
    pub custom_fields: Option<FieldsStatus>,
}

/// How far the log is complete, and what that does not mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The claim.
    #[serde(flatten)]
    pub complete: Complete,
    /// What was before this has left the log since; `None`: all that is claimed is still in it. Whoever has the log fills it in.
    #[serde(default)]
    pub kept_from: Option<Timestamp>,
    /// Some of these events are there without their data.
    pub lacks: Option<Held>,
}

/// Events in the log without their data, since Close withholds it from this key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub events: u64,
    /// Of these by type, `object_type.action`.
    pub types: BTreeMap<String, u64>,
    /// `date_updated` of the oldest.
    pub oldest: Option<Timestamp>,
    /// `date_updated` of the newest.
    pub newest: Option<Timestamp>,
    /// False: there may be more, they are being counted.
    pub is_counted: bool,
    /// Whether they go out as they are, by `partial = "dispatch"`; else they wait for their data.
    pub are_dispatched: bool,
}

/// A backfill and its pace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackfillStatus {
    /// The backfill.
    #[serde(flatten)]
    pub job: BackfillJob,
    /// How much of the range is done, from 0 to 1.
    pub fraction: f64,
    /// Time left at the pace so far; `None` before there is one, and where it is not running.
    pub eta_seconds: Option<u64>,
    /// Why it did not get on before this process had it to carry out: whether that still holds is not known before it was tried.
    #[serde(default)]
    pub earlier_trouble: Option<String>,
}

/// Two subscriptions of which one takes over from the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotating {
    /// It goes when the new one has delivered.
    pub old: String,
    /// It has not delivered yet.
    pub new: String,
    /// When it was made.
    pub begun_at: Timestamp,
}

impl From<Rotation> for Rotating {
    fn from(rotation: Rotation) -> Rotating {
        Rotating {
            old: rotation.old,
            new: rotation.new,
            begun_at: rotation.begun_at,
        }
    }
}

/// How Close's side does, in a few numbers.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// The last look went well.
    pub reachable: bool,
    /// See `status`.
    pub silent: bool,
    /// A backfill is under way.
    pub backfilling: bool,
    /// The completeness mark; `None` before the first comparison.
    pub complete_upto: Option<Timestamp>,
    /// Events that lack their data.
    pub held_events: u64,
    /// When the names of custom fields were fetched; `None`: never, or nobody asks for them.
    pub names_of: Option<Timestamp>,
    /// Each of our subscriptions that is to deliver here: whether it is active and points here. One that is being replaced is not.
    pub active: BTreeMap<String, bool>,
}

impl Claim {
    /// From when on what is claimed is in the log.
    pub fn since(&self) -> Timestamp {
        self.kept_from.unwrap_or(self.complete.from)
    }

    /// `uncounted`: what is known of the events that lack their data, where they were counted for other events than the claim is for.
    fn of(complete: Complete, held: Option<&Held>, uncounted: Option<Held>) -> Claim {
        if uncounted.is_some() {
            return Claim {
                complete,
                kept_from: None,
                lacks: uncounted,
            };
        }
        let concerns = |held: &&Held| {
            !held.is_counted
                || held.newest.is_none_or(|newest| newest >= complete.from)
                    && held.oldest.is_none_or(|oldest| oldest < complete.upto)
        };
        Claim {
            lacks: held.filter(concerns).cloned(),
            kept_from: None,
            complete,
        }
    }
}

impl Account {
    /// The newest backfill with its pace, for people who watch it.
    pub fn job_status(&self) -> Option<BackfillStatus> {
        let mut job = self.job()?;
        let earlier_trouble = self.earlier_trouble(&mut job);
        let elapsed = Duration::try_from(self.now().duration_since(job.begun_at)).unwrap_or_default();
        let fraction = job.fraction();
        let left = (job.state == JobState::Running)
            .then(|| eta(elapsed, fraction))
            .flatten();
        Some(BackfillStatus {
            fraction,
            eta_seconds: left.map(|left| left.as_secs()),
            earlier_trouble,
            job,
        })
    }

    /// Takes out of a backfill why it did not get on, where that is of an earlier process: it may not hold any more.
    fn earlier_trouble(&self, job: &mut BackfillJob) -> Option<String> {
        // Not by when it was: the clock may have been set since.
        let holds = if self.is_supervised.load(Ordering::Relaxed) {
            self.seen().job_troubled
        } else {
            // Another node may carry it out; where there is none, nobody does.
            self.store.shared().is_some()
        };
        if holds {
            return None;
        }
        let trouble = job.trouble.take()?;
        let at = job.troubled_at.take();
        Some(match at {
            Some(at) => format!("{trouble} (at {at:.0})"),
            None => trouble,
        })
    }

    pub(super) fn held(&self, marks: &Marks) -> Option<Held> {
        let waits = |withheld: &&Withheld| withheld.events > 0 || !withheld.is_counted;
        Some(self.held_of(marks.withheld.as_ref().filter(waits)?))
    }

    fn held_of(&self, withheld: &Withheld) -> Held {
        Held {
            events: withheld.events,
            types: withheld.types.clone(),
            oldest: withheld.oldest,
            newest: withheld.newest,
            is_counted: withheld.is_counted,
            are_dispatched: self.policy().dispatches_parts,
        }
    }

    /// The claim stays what it was until the next comparison. Where the rules have changed since, and the events that lack their data
    /// were counted for the new ones, nobody knows how many the claim is without.
    fn claim(&self, marks: &Marks, held: Option<&Held>) -> Option<Claim> {
        let complete = marks.complete.clone()?;
        let of_others = |withheld: &&Withheld| withheld.scope_id != complete.scope_id;
        let uncounted = marks.withheld.as_ref().filter(of_others).map(|withheld| Held {
            is_counted: false,
            ..self.held_of(withheld)
        });
        Some(Claim::of(complete, held, uncounted))
    }

    /// Events that wait for their data, by the sinks that some rule would send them to by their type. What goes out as it is does
    /// not wait.
    pub fn held_by_sink(&self) -> BTreeMap<String, u64> {
        let policy = self.policy();
        let held = self.held(&self.store.marks()).filter(|held| !held.are_dispatched);
        let types = held.map(|held| held.types).unwrap_or_default();
        let count = |patterns: &Vec<_>| {
            let is_wanted = |type_action: &str| super::account::wants(patterns, type_action);
            let counts = types.iter().filter(|(type_action, _)| is_wanted(type_action));
            counts.map(|(_, count)| count).sum()
        };
        let sinks = policy.sinks.iter();
        sorted::map(sinks.map(|(sink, patterns)| (sink.clone(), count(patterns))))
    }

    /// For people. Who looks after it where there are several nodes is not known here.
    pub fn status(&self) -> CloseStatus {
        let marks = self.store.marks();
        let held = self.held(&marks);
        let (last_backfill, backfill) = match self.job_status() {
            Some(status) if status.job.state == JobState::Done => (Some(status), None),
            status => (None, status),
        };
        let client = self.connection.client();
        let seen = self.seen();
        let organization = self.store.organization();
        CloseStatus {
            configured: self.is_configured(),
            looked_after_by: None,
            next_request_at: self.next_request_at(),
            trouble: seen.trouble.as_ref().map(ToString::to_string),
            tried_again_at: seen.tried_again_at.filter(|_| seen.trouble.is_some()),
            set_back: client.and_then(|client| client.setbacks().newest()),
            damaged: Vec::new(),
            overdue_seconds: self.overdue(&seen).map(|overdue| overdue.as_secs()),
            token_unsaved: self.store.unsaved().why(),
            checked_at: seen.checked_at,
            reconciled_at: seen.reconciled_at,
            subscriptions: seen.found.clone(),
            silence: seen.silence,
            organization: organization.unwrap_or_default(),
            complete: self.claim(&marks, held.as_ref()),
            held,
            backfill,
            last_backfill,
            rotation: self.store.keys().rotation.map(Rotating::from),
            custom_fields: self.fields.status(self.now()),
        }
    }

    /// For metrics.
    pub fn health(&self) -> Vitals {
        let marks = self.store.marks();
        let held_events = self.held(&marks).map_or(0, |held| held.events);
        let seen = self.seen();
        let is_to_deliver =
            |found: &&FoundSubscription| !matches!(found.state, Condition::BeingReplaced | Condition::Gone);
        let found = seen.found.iter().filter(is_to_deliver);
        let active = found.map(|found| (found.id.clone(), found.state == Condition::Active));
        Vitals {
            reachable: seen.trouble.is_none() && seen.checked_at.is_some() && self.overdue(&seen).is_none(),
            silent: seen.silence.is_some(),
            backfilling: marks.job.is_some_and(|job| job.state == JobState::Running),
            complete_upto: marks.complete.map(|complete| complete.upto),
            held_events,
            names_of: self.fields.status(self.now()).and_then(|fields| fields.fetched_at),
            active: sorted::map(active),
        }
    }
}
