//! The event log, looked at: a line for each event, one event with what became of it, and whether what is stored is what was signed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::pick::Pick;
use super::transfer::{Exported, to_the_microsecond};
use super::walk::{Range, Unread, missing, read, tail, walk_on};
use crate::deliver::EventState;
use crate::event::{Event, Kind, Seq, Source, View};
use crate::log::Gap;

/// Events in Seq order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {
    /// Which.
    pub pick: Pick,
    /// At most so many; `None`: all.
    pub limit: Option<u64>,
    /// The newest `limit` of them.
    pub last: bool,
    /// Also those to come.
    pub follow: bool,
    /// Not before this one.
    pub from: Option<Seq>,
}

/// An event in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its place in the log.
    pub seq: Seq,
    /// When it came.
    #[serde(serialize_with = "to_the_microsecond")]
    pub received_at: Timestamp,
    /// How it came.
    pub source: Source,
    /// Whether it can be read, is whole, is still there.
    pub kind: Kind,
    /// `object_type.action`; `None` where it names none.
    #[serde(rename = "type")]
    pub type_action: Option<String>,
    /// Its id; `None` where it can't be read.
    pub id: Option<String>,
    /// The text of its `date_updated`; `None` where it can't be read.
    pub date_updated: Option<String>,
    /// Its lead, if any.
    pub lead_id: Option<String>,
}

impl Line {
    /// About how much memory it takes.
    pub(super) fn weight(&self) -> usize {
        let texts = [&self.type_action, &self.id, &self.date_updated, &self.lead_id];
        texts.into_iter().flatten().map(String::len).sum::<usize>() + 100
    }

    pub(super) fn of(event: &Event) -> Line {
        let view = event.view();
        Line {
            seq: event.seq,
            received_at: event.received_at,
            source: event.source,
            kind: event.kind,
            type_action: view.and_then(View::type_action),
            id: view.map(|view| view.id.clone()),
            date_updated: view.map(|view| view.date_updated.clone()),
            lead_id: view.and_then(|view| view.lead_id.clone()),
        }
    }
}

/// What is said of a list: its events, and what is missing among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Listed {
    /// What can't be read of what was gone through since the last time; said where there is any.
    Unread(Unread),
    /// An event.
    Event(Box<Line>),
}

/// One event: by its id every revision, or by its Seq.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {
    /// Event id or Seq.
    pub id: String,
}

/// An event and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// As it is exported.
    #[serde(flatten)]
    pub event: Exported,
    /// Whether it can be read, is whole, is still there.
    pub kind: Kind,
    /// Whether it was taken in without being dispatched; left out where not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What can be said about its signature now.
    pub signature: String,
    /// What became of it at each sink.
    pub sinks: BTreeMap<String, EventState>,
    /// The Seqs of all its revisions.
    pub revisions: Vec<Seq>,
}

/// Checks stored signatures and checksums again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verify {}

/// How a check gets on, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// So far.
    Progress {
        /// Parts of the log whose checksums are compared.
        segments: usize,
        /// How many there are.
        of: usize,
        /// Events whose signatures are checked.
        events: u64,
    },
    /// At the end.
    Done(Verified),
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Events looked at.
    pub checked: u64,
    /// Of these fetched from Close's event log, which signs nothing.
    pub unsigned: u64,
    /// Of these erased on request.
    pub erased: u64,
    /// What is wrong, one sentence each, as far as they are named.
    pub faults: Vec<String>,
    /// How many faults there are beside them.
    #[serde(default)]
    pub faults_more: u64,
    /// What damage took away.
    pub gaps: Vec<Gap>,
}

/// So many faults are named; of a log that nothing has signed each event is one.
const FAULTS_NAMED: usize = 300;

impl Verified {
    fn fault(&mut self, sentence: impl FnOnce() -> String) {
        if self.faults.len() < FAULTS_NAMED {
            self.faults.push(sentence());
        } else {
            self.faults_more += 1;
        }
    }
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Listed>) -> Result<(), Refusal> {
        let selection = self.pick.compile()?;
        let range = match self.limit.filter(|_| self.last) {
            Some(limit) => tail(on, &selection, limit).await?.range(),
            None => Range {
                limit: self.limit,
                follow: self.follow,
                from: self.from,
                ..Range::default()
            },
        };
        let line = |event: &Event| Some(Listed::Event(Box::new(Line::of(event))));
        let tell = |unread| Some(Listed::Unread(unread));
        let unread = walk_on(on, &selection, range, line, &out, tell).await?;
        match missing(on, &selection, unread).await? {
            Some(unread) => out.say(&Listed::Unread(unread)).await,
            None => Ok(()),
        }
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Shown>) -> Result<(), Refusal> {
        let id = &self.id;
        let seqs = match id.parse::<u64>() {
            Ok(seq) => vec![Seq(seq)],
            Err(_) => on.log.find(id).await.map_err(text)?,
        };
        let mut shown = false;
        for seq in &seqs {
            let Some(event) = on.log.get(*seq).await.map_err(text)? else {
                continue;
            };
            shown = true;
            let signature = match signature(on, &event) {
                UNCHECKED => format!("{UNCHECKED}: {}", on.receiving.unknown_keys().join("; ")),
                said => said.to_owned(),
            };
            let answer = Shown {
                event: Exported::of(&event),
                kind: event.kind,
                held: event.held,
                signature,
                sinks: on.engine.event_states(&event).await,
                revisions: seqs.clone(),
            };
            out.say(&answer).await?;
        }
        let head = *on.log.head().borrow();
        let is_unknown = || seqs.iter().all(|seq| *seq > head || *seq == Seq::ZERO);
        if shown {
            Ok(())
        } else if is_unknown() {
            Err(format!("there is no event {id} in the log"))
        } else {
            Err(format!("event {id} was stored once, but is not kept any more"))
        }
    }
}

/// What is said of a good signature.
const VALID: &str = "valid";
/// What is said of an event that was fetched.
const UNSIGNED: &str = "unsigned (backfill)";
/// What is said of a tombstone.
const ERASED: &str = "erased";
/// What is said of what was delivered without one, or has lost it.
const MISSING: &str = "missing";

/// What is said where a key that can't be read may have signed it; the keys are named behind it.
pub(super) const UNCHECKED: &str = "it can't be checked now";

/// What can be said about an event's signature now.
fn signature(on: &Facade, event: &Event) -> &'static str {
    match (&event.signature, event.source, event.kind) {
        (_, _, Kind::Erased) => ERASED,
        (None, Source::Backfill, _) => UNSIGNED,
        (None, Source::Webhook, _) => MISSING,
        (Some(headers), ..) => {
            if on.receiving.is_signed(headers, &event.body) {
                VALID
            } else if on.receiving.unknown_keys().is_empty() {
                "no known key signed it"
            } else {
                UNCHECKED
            }
        }
    }
}

impl Verify {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Checked>) -> Result<(), Refusal> {
        let progress = |segments, of| {
            out.mention(&Checked::Progress {
                segments,
                of,
                events: 0,
            });
        };
        let mut found = Verified {
            checked: 0,
            unsigned: 0,
            erased: 0,
            faults: Vec::new(),
            faults_more: 0,
            gaps: Vec::new(),
        };
        for sentence in on.log.verify(&progress).await {
            found.fault(|| sentence);
        }
        // A key with which nothing can be checked is no proof that something is forged.
        for why in on.receiving.unknown_keys() {
            found.fault(|| format!("what this key has signed can't be checked: {why}"));
        }
        let mut next = on.log.first();
        loop {
            let batch = read(on, next, 1024, None).await?;
            if batch.next == next {
                break;
            }
            next = batch.next;
            for event in &batch.events {
                found.checked += 1;
                match signature(on, event) {
                    VALID => {}
                    UNSIGNED => found.unsigned += 1,
                    ERASED => found.erased += 1,
                    MISSING => found.fault(|| format!("event {}: it has no signature", event.seq)),
                    other => found.fault(|| format!("event {}: {other}", event.seq)),
                }
            }
            out.mention(&Checked::Progress {
                segments: 0,
                of: 0,
                events: found.checked,
            });
        }
        found.gaps = on.log.stats().gaps;
        out.say(&Checked::Done(found)).await
    }
}
