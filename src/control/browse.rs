//! Events from the newest back, a page at a time, at a price that is said: how far it was looked, and where to go on.
//!
//! What the log has indexes for (ids, leads, types) is looked up there; the rest is read, and only as much of it as [`Work`] allows. A
//! page that ends because of that is no page without events: it says so, and its cursor goes on behind what was looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Facade;
use super::answers::{Out, Refusal};
use super::back::Back;
use super::events::Line;
pub use super::looked::{Ended, LOST_MAX, Looked, Lost, Work};
use super::pick::Pick;
use super::walk::{meets, uncertain};
use crate::deliver::EventState;
use crate::event::{Event, Seq};

/// What became of all events of a page is known within this, or said to be unknown: sinks' workers have other things to do.
const WENT_WITHIN: Duration = Duration::from_secs(3);

/// A page of events, newest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Browse {
    /// Which.
    #[serde(default)]
    pub pick: Pick,
    /// Only those before this one: the `next` of the page before. `None`: from the newest on.
    #[serde(default)]
    pub before: Option<Seq>,
    /// Only those behind this one. `None`: as far back as the log goes.
    #[serde(default)]
    pub after: Option<Seq>,
    /// At most so many, [`PAGE_MAX`] at the most; `None`: [`PAGE`].
    #[serde(default)]
    pub limit: Option<u64>,
    /// Also what became of each at each sink.
    #[serde(default)]
    pub sinks: bool,
    /// How much may be looked at for it.
    #[serde(default)]
    pub work: Work,
}

/// Events of a page where nothing else is said.
pub const PAGE: u64 = 50;

/// Events of a page at the most.
pub const PAGE_MAX: u64 = 500;

/// How a page gets on, and the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Browsed {
    /// So far.
    Progress(Looked),
    /// At the end.
    Page(Box<Page>),
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Newest first.
    pub events: Vec<Line>,
    /// Where it was asked for: what became of each of them at each sink that it was meant for, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went: Option<Vec<BTreeMap<String, String>>>,
    /// How far it was looked.
    pub looked: Looked,
    /// The `before` of the next page; `None`: there is none, all of the log was looked at.
    pub next: Option<Seq>,
    /// Why it ends where it does.
    pub ended: Ended,
    /// The newest event of the log when the page was begun: a tail that begins behind it leaves no hole.
    pub head: Seq,
    /// What of the part that was looked at can't be read any more, newest first: damaged, or expired. At most [`LOST_MAX`].
    pub lost: Vec<Lost>,
    /// Gaps in that part of which nobody knows how many events they held: which, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncertain: Vec<String>,
}

/// A page ends when its lines come to so many bytes: ids are other people's text.
const LINES_BYTES_MAX: usize = 1 << 20;

impl Browse {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Browsed>) -> Result<(), Refusal> {
        let head = *on.log.head().borrow();
        let before = self.before.unwrap_or_else(|| head.next());
        let limit = self.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
        let mut back = Back::from(on, self.pick.compile()?, before, self.work).await?;
        back.go_no_further_than(self.after.unwrap_or_default().next());
        let mut go_on = |looked| {
            out.mention(&Browsed::Progress(looked));
            !out.is_closed()
        };
        let (mut events, mut went, mut bytes) = (Vec::new(), Vec::new(), 0);
        let until = Instant::now() + WENT_WITHIN;
        while events.len() < limit
            && bytes < LINES_BYTES_MAX
            && let Some(event) = back.next(&mut go_on).await?
        {
            let line = Line::of(&event);
            bytes += line.weight();
            if self.sinks {
                went.push(went_where(on, &event, until).await);
            }
            events.push(line);
        }
        let cursor = back.cursor();
        let reached = if cursor.is_none() && self.after.is_none() && self.pick.since.is_none() {
            // Also what was lost before the oldest event kept.
            Seq::ZERO
        } else {
            back.looked.to
        };
        let gaps = uncertain(on).into_iter().filter(|gap| meets(gap, reached, before));
        let told = gaps.map(|gap| gap.told().trim_end_matches(',').to_owned());
        let page = Page {
            events,
            went: self.sinks.then_some(went),
            looked: back.looked,
            next: cursor,
            uncertain: told.take(LOST_MAX).collect(),
            ended: match (back.ended, cursor) {
                (Some(ended), _) => ended,
                (None, Some(_)) => Ended::Full,
                (None, None) => Ended::Beginning,
            },
            head,
            lost: back.lost,
        };
        out.say(&Browsed::Page(Box::new(page))).await
    }
}

/// What became of an event, in a word for each sink; what is not known by then is unknown.
async fn went_where(on: &Facade, event: &Event, until: Instant) -> BTreeMap<String, String> {
    let asking = tokio::time::timeout_at(until, on.engine.event_states(event));
    let Ok(states) = asking.await else {
        let late = EventState::Unknown { reason: String::new() };
        let sinks = on.engine.driven_sinks().into_iter();
        return sinks.map(|sink| (sink, late.word().to_owned())).collect();
    };
    let meant = states
        .into_iter()
        .filter(|(_, state)| !matches!(state, EventState::NotRouted));
    meant.map(|(sink, state)| (sink, state.word().to_owned())).collect()
}
