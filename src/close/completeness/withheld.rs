//! Events whose data Close withholds from this key: how many there are, and fetching them again with a key that is shown it.
//!
//! That there may be some is on disk before the first is in the log, so that no stop in between lets a claim forget them. How many
//! there are is counted in the log itself, since what completes one can come from anywhere: an event counts while it, or any newer
//! revision of it, is not there with its data.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::backfill::{Added, Intake, Wanted};
use super::marks::{KEPT, Withheld};
use super::parts::Parts;
use super::walk::{Fetched, Walk, Window};
use super::witness::Witness as _;
use crate::close::account::Account;
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::organization;
use crate::close::subscriptions::scope::Scope;
use crate::event::{Event, Kind, Seq, Updated};
use crate::json::Node;
use crate::log::Take;

/// Events of the log that are looked at together.
const STEP: Take<'static> = Take {
    events: 512,
    bytes: 4 << 20,
    narrow: None,
};

impl Account {
    /// Stores what the log lacks of a batch, and notes it where data is lacking.
    pub(super) async fn take_in(
        &self,
        intake: &mut Intake<'_, Client>,
        events: Vec<Fetched>,
        missed_before: Timestamp,
    ) -> Result<Added, Error> {
        self.vouch_for(&events)?;
        let taken = intake.take(events).await?;
        let added = if taken.has_parts() {
            // They are not counted before they are there.
            let _not_counted = self.parts.lock().await;
            self.hold_state().call_for_refill();
            let next = self.log.head().borrow().next();
            self.expect_parts(next).await?;
            let added = taken.store(&*self.log, missed_before).await?;
            if let Some(first) = added.first_part {
                self.expect_parts(first).await?;
            }
            added
        } else {
            taken.store(&*self.log, missed_before).await?
        };
        if added.counts.stored > 0 {
            self.hold_state().is_stale = true;
        }
        Ok(added)
    }

    /// Refuses events of another organization.
    pub(super) fn vouch_for(&self, events: &[Fetched]) -> Result<(), Error> {
        for event in events {
            let text = std::str::from_utf8(&event.raw).unwrap_or_default();
            let id = Node::new(text).get("organization_id").and_then(Node::as_string);
            organization::vouch(&self.store, id.as_deref())?;
        }
        Ok(())
    }

    /// Notes that events without their data are in the log, or about to be, at this Seq or behind it.
    pub async fn expect_parts(&self, from: Seq) -> Result<(), Error> {
        let is_expected = |withheld: &Withheld| withheld.from <= from && !withheld.is_counted;
        if self.store.marks().withheld.as_ref().is_some_and(is_expected) {
            return Ok(());
        }
        self.store.change_marks(move |marks| marks.expect_withheld(from)).await
    }

    /// Counts the events whose data is withheld, where that may have changed.
    pub(super) async fn count_withheld(&self) -> Result<(), Error> {
        // Nobody stores any meanwhile: what is announced and not there yet would not be counted.
        let mut parts = self.parts.lock().await;
        let Some(before) = self.store.marks().withheld else {
            return Ok(());
        };
        let scope = self.policy().scope.clone();
        let scope_id = scope.id();
        if before.is_counted && !self.hold_state().is_due(&scope_id) {
            return Ok(());
        }
        // What is stored from here on may need another count.
        self.hold_state().is_stale = false;
        let counted = self.count_parts(&mut parts, before, &scope).await;
        let mut state = self.hold_state();
        match counted {
            Ok(()) => state.counted(scope_id),
            Err(_) => state.is_stale = true,
        }
        counted
    }

    async fn count_parts(&self, parts: &mut Parts, before: Withheld, scope: &Scope) -> Result<(), Error> {
        let head = *self.log.head().borrow();
        self.search_parts(parts, before.from.max(self.log.first()), head)
            .await?;
        let mut count = Withheld {
            is_counted: true,
            scope_id: scope.id(),
            ..before
        };
        (count.events, count.types) = (0, BTreeMap::new());
        (count.oldest, count.newest) = (None, None);
        let mut left = Vec::new();
        // A count that comes to no end leaves what was found.
        for seq in parts.seqs.clone() {
            let Some(event) = self.log.get(seq).await? else {
                continue;
            };
            if self.lacks_data(&event).await? {
                left.push(seq);
                add_to_count(&event, scope, &mut count);
            }
        }
        count.from = left.first().copied().unwrap_or_else(|| head.next());
        parts.seqs = left;
        let counted = (!parts.seqs.is_empty()).then_some(count);
        self.store
            .change_marks(move |marks| {
                // That some were released meanwhile is not to be forgotten.
                let released_to = marks.withheld.as_ref().map(|now| now.released_to);
                marks.withheld = counted.map(|count| Withheld {
                    released_to: released_to.unwrap_or(count.released_to),
                    ..count
                });
            })
            .await
    }

    /// Finds the parts in the log from this Seq on. What was found once need not be looked for again, unless there may be some in
    /// front of it.
    async fn search_parts(&self, parts: &mut Parts, from: Seq, head: Seq) -> Result<(), Error> {
        if parts.searched_from > from || parts.searched_to == Seq::ZERO {
            *parts = Parts {
                searched_from: from,
                searched_to: from.prev(),
                seqs: Vec::new(),
            };
        }
        let mut next = parts.searched_to.next();
        while next <= head {
            let batch = self.log.read(next, STEP).await?;
            let found = batch.events.iter().filter(|event| event.kind == Kind::Partial);
            parts.seqs.extend(found.map(|event| event.seq));
            if batch.next == next {
                break;
            }
            next = batch.next;
            parts.searched_to = next.prev();
            self.seen().got_on();
        }
        Ok(())
    }

    /// Whether nothing in the log has the event's data: neither this revision of it nor a newer one.
    async fn lacks_data(&self, part: &Event) -> Result<bool, Error> {
        let Some(view) = part.view().filter(|_| part.kind == Kind::Partial) else {
            return Ok(false);
        };
        if self.log.find_revision(&view.key()).await?.is_some() {
            return Ok(false);
        }
        let instant = |text: &str| match Updated::parse(text) {
            Updated::Instant(nanoseconds) => Some(nanoseconds),
            _ => None,
        };
        let updated = instant(&view.date_updated);
        for seq in self.log.find(&view.id).await? {
            if seq == part.seq {
                continue;
            }
            let other = self.log.get(seq).await?;
            let is_newer = |other: &Event| other.view().is_some_and(|view| instant(&view.date_updated) > updated);
            if other.is_some_and(|other| is_newer(&other)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fetches the events whose data is withheld once more, if this key is shown it.
    pub(super) async fn refill_withheld(&self, client: &Client) -> Result<(), Error> {
        // Begun before they are counted: what is found to lack its data from here on is a reason to come again.
        let Some(mut refill) = self.hold_state().refill() else {
            return Ok(());
        };
        self.count_withheld().await?;
        let Some(withheld) = self.store.marks().withheld.filter(|withheld| withheld.events > 0) else {
            return Ok(());
        };
        let (Some(oldest), Some(newest)) = (withheld.oldest, withheld.newest) else {
            return Ok(());
        };
        if !client.sees_old_data().await? {
            return Ok(());
        }
        tracing::info!(
            events = withheld.events,
            "this key is shown the data of old events: those that lack it are fetched again"
        );
        let policy = self.policy();
        let wanted = Wanted::all(policy.scope.clone());
        let kept_from = client.now().saturating_sub(KEPT).unwrap_or(oldest);
        let behind = newest.saturating_add(SignedDuration::from_micros(1)).unwrap_or(newest);
        let range = Window {
            from: oldest.max(kept_from).min(behind),
            to: behind,
        };
        let mut intake = Intake::new(&*self.log, client, &wanted, true);
        let mut walk = Walk::new(client, wanted.queries(), range);
        while let Some(batch) = walk.next().await? {
            if self.take_in(&mut intake, batch.events, Timestamp::MIN).await?.has_parts {
                refill.meet();
            }
            self.seen().got_on();
        }
        // What still lacks its data now, and was not stored by others meanwhile, is none that this key could bring.
        {
            let mut state = self.hold_state();
            state.refilled(&refill);
            state.is_stale = true;
        }
        self.count_withheld().await?;
        let left = self.store.marks().withheld.map_or(0, |withheld| withheld.events);
        tracing::info!(
            completed = withheld.events.saturating_sub(left),
            left,
            "events that lacked their data were fetched again"
        );
        Ok(())
    }

    /// Where events are that are held back for their missing data; `None` where there are none.
    pub fn held_parts(&self) -> Option<(Seq, Seq)> {
        let withheld = self.store.marks().withheld?;
        let (from, to) = (
            withheld.from.max(withheld.released_to.next()),
            *self.log.head().borrow(),
        );
        (from <= to).then_some((from, to))
    }

    /// They are released up to a Seq.
    pub async fn forget_held_parts(&self, to: Seq) -> Result<(), Error> {
        self.store
            .change_marks(move |marks| {
                if let Some(withheld) = &mut marks.withheld {
                    withheld.released_to = withheld.released_to.max(to);
                }
            })
            .await
    }
}

/// One that no rule wants waits for nothing.
fn add_to_count(event: &Event, scope: &Scope, count: &mut Withheld) {
    let Some(view) = event.view() else { return };
    let type_action = view.type_action();
    if !scope.takes(type_action.as_deref()) {
        return;
    }
    count.events += 1;
    *count.types.entry(type_action.unwrap_or_default()).or_default() += 1;
    if let Updated::Instant(nanoseconds) = Updated::parse(&view.date_updated)
        && let Ok(updated) = Timestamp::from_nanosecond(nanoseconds)
    {
        count.oldest = Some(count.oldest.map_or(updated, |oldest| oldest.min(updated)));
        count.newest = Some(count.newest.map_or(updated, |newest| newest.max(updated)));
    }
}
