//! Dead letters: which there are, one with its event, trying them again, and letting them go.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::Facade;
use super::agreed::Agreed;
use super::answers::{Out, Refusal, text};
use super::pick::Pick;
use super::reasons::group_of;
use super::replay::TELL_EVERY;
use super::transfer::Exported;
use crate::deliver::{DeadLetter, EngineError};
use crate::event::{Event, Kind, Seq};
use crate::rules::selection::Selection;
use crate::task;

/// Letters that are meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct List {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
    /// Only of this group ([`super::groups::Group::group`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// At most so many.
    pub limit: u64,
}

/// Letters with their events. Without an answer there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Event id or Seq.
    pub id: String,
}

/// A letter with its event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// As it is exported; `None` where it is not kept any more.
    #[serde(flatten)]
    pub event: Option<Exported>,
    /// Why and when it was given up.
    pub letter: DeadLetter,
}

/// Delivers letters again; those that succeed are removed.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "the macro that waits for one of several has it, no code here"
)]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retry {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
    /// Only of this group ([`super::groups::Group::group`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Those that were counted, and no more; `None`: whatever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Agreed>,
}

/// How a retry gets on; the last one is how it went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// Letters that were meant.
    pub total: u64,
    /// Delivered, and removed.
    pub delivered: u64,
    /// Still dead.
    pub failed: u64,
    /// Being tried for another retry already, which counts them.
    #[serde(default)]
    pub elsewhere: u64,
    /// No dead letters any more when they were to be tried: delivered or dropped meanwhile, and in none of the counts.
    #[serde(default)]
    pub gone: u64,
    /// Why the newest of those is.
    pub reason: Option<String>,
    /// Of the letters that are still dead those that were not tried at all, for their sinks take none now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
}

impl Retried {
    /// What has failed of it, for who keeps what was done; `None`: nothing.
    pub(super) fn failure(&self) -> Option<String> {
        if self.failed == 0 {
            return None;
        }
        let reason = self.reason.as_deref();
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        Some(format!("{} of {} stay dead{reason}", self.failed, self.total))
    }
}

/// A sink that takes none of its dead letters now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its name.
    pub sink: String,
    /// How many of those that were meant are its.
    pub letters: u64,
    /// Why, with what to do.
    pub reason: String,
}

/// Removes letters for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drop {
    /// Only of this sink.
    pub sink: Option<String>,
    /// Whose events are these.
    pub pick: Pick,
    /// Only of this group ([`super::groups::Group::group`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Those that were counted, and no more; `None`: whatever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Agreed>,
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Letters.
    pub dropped: u64,
}

/// The sinks that are configured no more and may have letters, in order of name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {}

/// A sink that is configured no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfRemoved {
    /// Its name.
    pub sink: String,
    /// How many letters it has.
    pub letters: u64,
}

/// Why nothing is delivered to a sink that is configured no more.
pub fn not_configured(sink: &str) -> Refusal {
    format!(
        "sink \"{sink}\" is configured no more: its dead letters can be looked at and dropped, and are tried again once it is configured again"
    )
}

impl Removed {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, OfRemoved>) -> Result<(), Refusal> {
        let engine = on.engine.clone();
        let find = move || engine.dead_removed();
        let found = Patience::default().aside(find).await;
        let found = found.map_err(|why| cannot_read(on, &why))?;
        for (sink, letters) in found.map_err(text)? {
            out.say(&OfRemoved { sink, letters }).await?;
        }
        Ok(())
    }
}

impl List {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, DeadLetter>) -> Result<(), Refusal> {
        let mut letters = Letters::of(on, self.sink.as_deref(), &self.pick)
            .await?
            .in_group(self.group);
        let mut said = 0;
        while said < self.limit
            && let Some(letter) = letters.next().await?
        {
            out.say(&letter).await?;
            said += 1;
        }
        // What can be read is shown first.
        letters.are_all()
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Shown>) -> Result<(), Refusal> {
        let id = &self.id;
        let mut letters = Letters::of(on, self.sink.as_deref(), &Pick::default()).await?;
        if let Ok(seq) = id.parse() {
            letters = letters.at(Seq(seq));
        }
        letters.are_all()?;
        while let Some(letter) = letters.next().await? {
            if letter.id != *id && letter.seq.to_string() != *id {
                continue;
            }
            if let Some((letter, event)) = on.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)? {
                let event = event.as_deref().map(Exported::of);
                out.say(&Shown { event, letter }).await?;
            }
        }
        Ok(())
    }
}

impl Retry {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Retried>) -> Result<(), Refusal> {
        let (mut running, mut refused) = (Vec::new(), Vec::new());
        for (sink, seqs) in by_sink(on, self.sink.as_deref(), &self.pick, self.group, self.agreed).await? {
            let letters = seqs.len() as u64;
            match on.engine.dead_retry(&sink, seqs).await {
                Ok(progress) => running.push(progress),
                // One that takes none now keeps those of no other from being tried.
                Err(error) => refused.push(Refused {
                    sink,
                    letters,
                    reason: error.to_string(),
                }),
            }
        }
        if running.is_empty() && !refused.is_empty() {
            let reasons: Vec<String> = refused.into_iter().map(|refused| refused.reason).collect();
            return Err(reasons.join("; "));
        }
        let untried: u64 = refused.iter().map(|refused| refused.letters).sum();
        loop {
            let why = running.iter().find_map(|progress| progress.why());
            let mut retried = Retried {
                total: untried,
                failed: untried,
                reason: why.or_else(|| refused.first().map(|refused| refused.reason.clone())),
                refused: refused.clone(),
                ..Retried::default()
            };
            for (total, delivered, failed) in running.iter().map(|progress| progress.counts()) {
                retried.total += total;
                retried.delivered += delivered;
                retried.failed += failed;
            }
            retried.gone = running.iter().map(|progress| progress.gone()).sum();
            retried.elsewhere = running.iter().map(|progress| progress.elsewhere()).sum();
            out.say(&retried).await?;
            if retried.delivered + retried.failed >= retried.total {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

/// A disk, or the servers, have so long to drop letters of one sink; many take their time.
const DROPPED_WITHIN: Duration = Duration::from_secs(120);

impl Drop {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Dropped>) -> Result<(), Refusal> {
        let (mut dropped, mut left) = (0, Vec::new());
        for (sink, seqs) in by_sink(on, self.sink.as_deref(), &self.pick, self.group, self.agreed).await? {
            let (engine, name) = (on.engine.clone(), sink.clone());
            let drop = task::begin_blocking(move || engine.dead_drop(&name, &seqs));
            let Ok(drop) = timeout(DROPPED_WITHIN, drop).await else {
                left.push(format!(
                    "whether those of sink \"{sink}\" are dropped is not known: where they are kept does not answer"
                ));
                continue;
            };
            match drop.map_err(text)? {
                Ok(count) => dropped += count,
                // Those of the others go all the same.
                Err(error) => left.push(format!("those of sink \"{sink}\" can't be dropped: {error}")),
            }
        }
        if left.is_empty() {
            return out.say(&Dropped { dropped }).await;
        }
        Err(format!("{dropped} dropped; {}", left.join("; ")))
    }
}

/// Letters that are read in one go.
const PAGE: usize = 512;

/// Goes through the letters of one sink or all that are meant, in Seq order; no more than a page of them is in memory.
pub(super) struct Letters<'f> {
    on: &'f Facade,
    /// `None`: every letter is meant.
    selection: Option<Selection>,
    /// `None`: those of every group are.
    group: Option<String>,
    /// Sinks whose letters are still to be read.
    sinks: VecDeque<String>,
    /// The next page of the first of them begins here.
    from: Seq,
    /// Only what is at this place is looked at.
    only: Option<Seq>,
    page: VecDeque<DeadLetter>,
    /// A sentence for each sink whose letters can't be read.
    left: Vec<String>,
    /// Also those that are still to be delivered for another sink.
    with_given: bool,
    patience: Patience,
}

/// What can't be read is waited for so long, over all that is read for one question.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer what can't be read is waited for.
struct Patience(Duration);

impl Default for Patience {
    fn default() -> Patience {
        Patience(WAIT)
    }
}

impl Patience {
    /// Reads on a thread of its own; what takes longer is left to itself.
    async fn aside<T: Send + 'static>(&mut self, read: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let began = Instant::now();
        let read = tokio::time::timeout(self.0, task::begin_blocking(read)).await;
        self.0 = self.0.saturating_sub(began.elapsed());
        let silent = |_| format!("no answer within {} seconds", WAIT.as_secs());
        read.map_err(silent)?.map_err(text)
    }
}

/// Why dead letters can't be read: the log's own reason says more, where they are kept with it.
fn cannot_read(on: &Facade, why: &str) -> Refusal {
    match on.log.ready() {
        Err(ready) if on.others.is_some() => format!("the dead letters can't be read now: {ready}"),
        _ => format!("the dead letters can't be read now: {why}"),
    }
}

impl<'f> Letters<'f> {
    pub async fn of(on: &'f Facade, sink: Option<&str>, pick: &Pick) -> Result<Letters<'f>, Refusal> {
        let selection = pick.compile()?;
        let (engine, sink) = (on.engine.clone(), sink.map(ToOwned::to_owned));
        let mut patience = Patience::default();
        let look = move || {
            let (_, left) = engine.dead_readable(sink.as_deref(), Seq::ZERO, 1)?;
            Ok::<_, EngineError>((engine.dead_sinks(sink.as_deref())?, left))
        };
        let looked = patience.aside(look).await.map_err(|why| cannot_read(on, &why))?;
        let (sinks, left) = looked.map_err(text)?;
        if left.is_empty() {
            patience = Patience::default();
        }
        Ok(Letters {
            on,
            selection: (!pick.is_empty()).then_some(selection),
            group: None,
            sinks: sinks.into(),
            from: Seq::ZERO,
            only: None,
            page: VecDeque::new(),
            left,
            with_given: false,
            patience,
        })
    }

    /// Also those that are still to be delivered for another sink: no dead letters, but kept.
    pub fn with_given(self) -> Letters<'f> {
        Letters {
            with_given: true,
            ..self
        }
    }

    /// Only those of the event at this place, however many others there are.
    pub fn at(self, seq: Seq) -> Letters<'f> {
        Letters {
            only: Some(seq),
            from: seq,
            ..self
        }
    }

    /// Only those that were given up for this reason.
    pub fn in_group(self, group: Option<String>) -> Letters<'f> {
        Letters { group, ..self }
    }

    /// The next one, as far as they can be read.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, Refusal> {
        loop {
            while let Some(letter) = self.page.pop_front() {
                if self.means(&letter).await? {
                    return Ok(Some(letter));
                }
            }
            let Some(sink) = self.sinks.front().cloned() else {
                return Ok(None);
            };
            let (engine, from) = (self.on.engine.clone(), self.from);
            let with_given = self.with_given;
            let max = if self.only.is_some() { 1 } else { PAGE };
            let read = move || engine.dead_page(&sink, from, max, with_given);
            let page = match self.patience.aside(read).await {
                Ok(page) => page.map_err(text),
                Err(why) => {
                    // The others would each be waited for as long.
                    self.sinks.truncate(1);
                    Err(cannot_read(self.on, &why))
                }
            };
            if page.is_ok() {
                self.patience = Patience::default();
            }
            let (mut letters, mut next) = page.unwrap_or_else(|why| {
                if !self.left.contains(&why) {
                    self.left.push(why);
                }
                (Vec::new(), None)
            });
            if let Some(only) = self.only {
                letters.retain(|letter| letter.seq == only);
                next = None;
            }
            if next.is_none() {
                self.sinks.pop_front();
            }
            self.from = next.or(self.only).unwrap_or_default();
            self.page = letters.into();
        }
    }

    /// A refusal where letters that may be meant can't be read.
    pub fn are_all(&self) -> Result<(), Refusal> {
        self.left.first().cloned().map_or(Ok(()), Err)
    }

    async fn means(&self, letter: &DeadLetter) -> Result<bool, Refusal> {
        if self.group.as_ref().is_some_and(|group| *group != group_of(letter)) {
            return Ok(false);
        }
        let Some(selection) = &self.selection else {
            return Ok(true);
        };
        let found = self.on.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)?;
        Ok(match found.and_then(|(_, event)| event) {
            Some(event) if event.kind != Kind::Erased => selection.selects(&event),
            // What the letter says itself is all that is left.
            gone => fits(selection, letter, gone.as_deref()),
        })
    }
}

async fn by_sink(
    on: &Facade,
    sink: Option<&str>,
    pick: &Pick,
    group: Option<String>,
    agreed: Option<Agreed>,
) -> Result<BTreeMap<String, Vec<Seq>>, Refusal> {
    let mut by_sink = BTreeMap::<String, Vec<Seq>>::new();
    let mut meant = 0;
    let mut letters = Letters::of(on, sink, pick).await?.in_group(group);
    while let Some(letter) = letters.next().await? {
        if agreed.is_some_and(|agreed| !agreed.has(&letter)) {
            continue;
        }
        meant += 1;
        by_sink.entry(letter.sink).or_default().push(letter.seq);
    }
    letters.are_all()?;
    agreed.map_or(Ok(()), |agreed| agreed.check(meant))?;
    Ok(by_sink)
}

/// Whether a letter whose event is a tombstone, or is not kept any more, is meant.
fn fits(selection: &Selection, letter: &DeadLetter, event: Option<&Event>) -> bool {
    let came = event.map(|event| event.received_at);
    let is_since = |since| came.is_some_and(|came| came >= since);
    let is_before = |until| came.is_some_and(|came| came < until);
    let types = &selection.types;
    selection.filter.is_none()
        && selection.quarantined.is_none()
        && selection.partial.is_none()
        && selection.since.is_none_or(is_since)
        && selection.until.is_none_or(is_before)
        && (selection.ids.is_empty() || selection.ids.contains(&letter.id))
        && (selection.lead.is_none() || selection.lead == letter.lead_id)
        && (types.is_empty()
            || types
                .iter()
                .any(|pattern| pattern.matches(letter.event_type.as_deref())))
}
