//! The part of a feed that waits until objects have settled: of their changes only the newest goes. Pure.
//!
//! The newest event of an object is open and waits, as if for another try, with nothing in memory but its ids; it is read again when it is
//! due. A newer one that is read in time takes its place, and it is finished; an older one, which Close had sent before or the backfill found
//! late, is finished at once. So what is saved of a feed is all there is to go on with.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Feed, Item, Order, Stage, Tries, is_whole, kept};
use crate::event::{Event, Seq, Updated};

/// What is known of the object of an event that waits until the object has settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::deliver) struct Held {
    pub(super) object: String,
    /// When the first of the changes was received of which this is the newest.
    first: Timestamp,
    /// The moment of this one's revision; `None` where it says none that can be read, or an older closehook kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Timestamp>,
}

impl Held {
    /// The same with the object's id as it is kept.
    pub(super) fn kept(&self) -> Held {
        Held {
            object: kept(&self.object),
            first: self.first,
            revision: self.revision,
        }
    }
}

/// An object that goes on changing is delivered at the latest after so many times the span in which nothing may change.
const SETTLES_WITHIN: i32 = 10;

/// Events may be open at the most where the next ones have to be read before anything can go: of what has not settled only ids are held.
const CRAMMED_MAX: usize = 16_384;

/// Objects are remembered at the most whose next event is somewhere in the log. For one more the ten times begin anew with that event.
const HEIRS_MAX: usize = 16_384;

/// The changes of an object since it had settled before: when the first of them was received, and the newest, and the moment of that
/// one's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    first: Timestamp,
    newest: Timestamp,
    revision: Option<Timestamp>,
}

/// What the next event of an object is to the newest one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) enum Next {
    /// It takes its place.
    Newer,
    /// It is superseded by it.
    Older,
    /// It came when the object had settled.
    Later,
}

/// The moment of an event's revision.
fn revision(event: &Event) -> Option<Timestamp> {
    Updated::moment(&event.view()?.date_updated)
}

impl Span {
    /// What an event is that comes behind these in the log. Revisions of one moment, and those of which either names none, are in the
    /// order of the log.
    fn meets(self, event: &Event, span: SignedDuration) -> Next {
        if event.received_at >= self.settles_at(span) {
            return Next::Later;
        }
        match (revision(event), self.revision) {
            (Some(its), Some(newest)) if its < newest => Next::Older,
            _ => Next::Newer,
        }
    }

    /// When the object has settled.
    fn settles_at(self, span: SignedDuration) -> Timestamp {
        let settled = self.newest.checked_add(span).unwrap_or(Timestamp::MAX);
        let last = span
            .checked_mul(SETTLES_WITHIN)
            .and_then(|span| self.first.checked_add(span).ok());
        settled.min(last.unwrap_or(Timestamp::MAX))
    }
}

impl Item {
    /// The changes of its object, if it waits for that to settle.
    fn changed(&self) -> Option<Span> {
        let held = self.held.as_ref()?;
        Some(Span {
            first: held.first,
            newest: self.received_at.unwrap_or(held.first),
            revision: held.revision,
        })
    }
}

impl Feed {
    /// An event for this sink that goes at `due` at the earliest, and is read again then; in Seq order.
    pub fn put_off(&mut self, event: &Event, due: Timestamp) {
        self.put(event, due, None);
    }

    /// An event for a sink that waits until objects have settled; in Seq order. It is read again when it is due: `due` says when that
    /// is, a span after it was received. Gives the event that is superseded: an older one by this, or this by a newer one.
    ///
    /// Which events these are follows from what the log has of them alone, when they were received and the moments of their revisions: an
    /// event is superseded by the next newer one of its object that was received before it had been the newest for `span`, and within ten
    /// times that after the first of those that were superseded so. One that is older than what is waited with at that time is superseded
    /// by it, and it is not waited longer for that: nothing new came of the object.
    pub fn settle(
        &mut self,
        event: &Event,
        span: SignedDuration,
        due: impl Fn(SignedDuration) -> Timestamp,
    ) -> Option<Seq> {
        let received_at = event.received_at;
        let object = event.view().and_then(|view| view.object_id.as_deref()).map(kept);
        let Some(object) = object else {
            self.put(event, due(SignedDuration::ZERO), None);
            return None;
        };
        let open = self.objects.get(&object).and_then(|seq| {
            let item = self.open.get(seq)?;
            Some((Some(*seq), item.changed()?))
        });
        let heir = self.heirs.get(&object).map(|changed| (None, *changed));
        let met = open
            .or(heir)
            .map(|(seq, changed)| (seq, changed, changed.meets(event, span)));
        let before = match met {
            Some((_, _, Next::Older)) => {
                self.passed_over(event.seq);
                return Some(event.seq);
            }
            Some((seq, changed, Next::Newer)) => Some((seq, changed)),
            Some((_, _, Next::Later)) | None => None,
        };
        self.heirs.remove(&object);
        let first = before.map_or(received_at, |(_, changed)| changed.first);
        let before = before.and_then(|(seq, _)| seq);
        if let Some(seq) = before {
            self.finished(seq);
        }
        let changed = Span {
            first,
            newest: received_at,
            revision: revision(event),
        };
        let wait = changed.settles_at(span).duration_since(received_at);
        let due = due(wait.max(SignedDuration::ZERO));
        let held = Held {
            object,
            first,
            revision: changed.revision,
        };
        self.put(event, due, Some(held));
        before
    }

    /// This one was read, and is finished with that: it is not read again.
    pub fn passed_over(&mut self, seq: Seq) {
        debug_assert!(seq >= self.next, "I4: events are offered in order and once");
        self.next = seq.next();
        self.touched = self.touched.max(seq);
    }

    /// The objects that have settled, by the clock, each with its newest event. Those with overlong ids are not among them, nor those
    /// whose event waits behind another one's next try.
    pub fn due_objects(&mut self, now: Timestamp) -> Vec<(String, Seq)> {
        // What is due becomes ready.
        self.deliverable(now, 0);
        let due = self.objects.iter().filter(|(_, seq)| self.goes_soon(**seq));
        let due = due.filter(|(object, _)| is_whole(object));
        due.map(|(object, seq)| (object.clone(), *seq)).collect()
    }

    /// Whether it is ready, and nothing that goes before it waits for another try, or for its letter: it goes as soon as what is under way has ended.
    pub fn goes_soon(&self, seq: Seq) -> bool {
        let waits = |seq: &Seq| {
            let item = self.open.get(seq);
            item.is_some_and(|item| matches!(item.stage, Stage::Waiting(_) | Stage::Parked(_)))
        };
        let first = match self.order {
            Order::None => None,
            Order::Lead => {
                let lead = self.open.get(&seq).and_then(|item| item.lead.as_ref());
                lead.and_then(|lead| self.leads.get(lead)?.first())
            }
            Order::Strict => self.open.keys().next(),
        };
        self.ready.contains(&seq) && !first.is_some_and(waits)
    }

    /// Whether its object may have a newer one.
    pub fn is_settling(&self, seq: Seq) -> bool {
        let held = self.open.get(&seq).and_then(|item| item.held.as_ref());
        held.is_some_and(|held| is_whole(&held.object))
    }

    /// When the objects of these have settled, all of them: what was received then or later supersedes none.
    pub fn settled_by(&self, seqs: impl Iterator<Item = Seq>, span: SignedDuration) -> Option<Timestamp> {
        let settles_at = |seq: Seq| Some(self.open.get(&seq)?.changed()?.settles_at(span));
        seqs.filter_map(settles_at).max()
    }

    /// The next event of the object of this one, which is not read yet. If it is newer, and came before the object had settled, this one
    /// is finished: the next one takes its place when it is read.
    pub fn overtaken(&mut self, seq: Seq, next: &Event, span: SignedDuration) -> Next {
        let item = self.open.get(&seq);
        let Some((changed, object)) = item.and_then(|item| Some((item.changed()?, item.held.clone()?.object))) else {
            return Next::Later;
        };
        let met = changed.meets(next, span);
        if met == Next::Newer {
            self.finished(seq);
            if self.heirs.len() < HEIRS_MAX {
                self.heirs.insert(object, changed);
            }
        }
        met
    }

    /// Goes on with another span, or with none, or after the machine's clock, which shows `wall` at this moment, may have been set: what
    /// waits is due by what it says itself, and no later than if it had come just now.
    pub fn settle_anew(
        &mut self,
        span: Option<SignedDuration>,
        delay: SignedDuration,
        now: Timestamp,
        wall: Timestamp,
    ) {
        if span.is_none() {
            self.heirs.clear();
        }
        let held: Vec<Seq> = self.objects.values().copied().collect();
        for seq in held {
            let Some(item) = self.open.get_mut(&seq) else { continue };
            let Some(changed) = item.changed() else {
                continue;
            };
            let newest = changed.newest;
            let wait = span.map_or(SignedDuration::ZERO, |span| {
                changed.settles_at(span).duration_since(newest)
            });
            let wait = wait.max(delay).max(SignedDuration::ZERO);
            let left = (wait - wall.duration_since(newest)).clamp(SignedDuration::ZERO, wait);
            let due = now.checked_add(left).unwrap_or(Timestamp::MAX);
            let before = std::mem::replace(&mut item.stage, Stage::Waiting(due));
            self.leaves(seq, before);
            self.waiting.insert((due, seq));
            if span.is_none()
                && let Some(item) = self.open.get_mut(&seq)
            {
                let held = item.held.take();
                self.let_go(seq, held);
            }
        }
    }

    fn put(&mut self, event: &Event, due: Timestamp, held: Option<Held>) {
        debug_assert!(event.seq >= self.next, "I4: events are offered in order and once");
        self.next = event.seq.next();
        let item = Item {
            stage: Stage::Waiting(due),
            loaded: None,
            lead: self.lead_of(event),
            received_at: Some(event.received_at),
            tries: Tries::default(),
            held,
            erased: false,
            letter: None,
        };
        self.insert(event.seq, item);
    }

    /// How many more events may be offered where some of the next ones have to be read before anything can go.
    pub fn room_crammed(&self) -> usize {
        if self.has_memory() {
            CRAMMED_MAX.saturating_sub(self.open.len())
        } else {
            0
        }
    }

    /// Whether nothing more can be read even so.
    pub fn is_brimful(&self) -> bool {
        self.open.len() >= CRAMMED_MAX
    }

    /// How many objects have not settled yet.
    pub fn settling(&self) -> usize {
        self.objects.len()
    }

    /// It is not waited any more for the object of this event.
    pub(super) fn let_go(&mut self, seq: Seq, held: Option<Held>) {
        if let Some(held) = held
            && self.objects.get(&held.object) == Some(&seq)
        {
            self.objects.remove(&held.object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::super::Saved;
    use super::*;
    use crate::event::{Kind, Source};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn change(seq: u64, object: u64, second: i64) -> Event {
        revised(seq, object, second, 0)
    }

    /// The same of a revision of that second; 0: it says none.
    fn revised(seq: u64, object: u64, second: i64, revision: u8) -> Event {
        let object = if object == 0 {
            String::new()
        } else {
            format!(r#","object_id":"o_{object}""#)
        };
        let revision = match (revision, seq % 2) {
            (0, _) => String::new(),
            // One moment in two ways of writing it.
            (revision, 0) => format!(r#","date_updated":"2024-02-15T12:48:0{revision}.000000""#),
            (revision, _) => format!(r#","date_updated":"2024-02-15T13:48:0{revision}+01:00""#),
        };
        let body = format!(r#"{{"event":{{"id":"ev_{seq}"{object}{revision}}}}}"#);
        Event::new(Seq(seq), at(second), Source::Webhook, Kind::Event, None, body.into())
    }

    /// What each event comes to, by one timer for each object: when it goes, or `None` where it is superseded.
    fn timers(changes: &[(u64, i64, u8)], span: i64) -> Vec<Option<i64>> {
        let mut comes_to = vec![None; changes.len()];
        let mut running: HashMap<u64, (usize, i64, i64)> = HashMap::new();
        for (index, (object, second, revision)) in changes.iter().copied().enumerate() {
            if object == 0 {
                comes_to[index] = Some(second);
                continue;
            }
            let before = running.get(&object).copied();
            let rings = |newest: i64, first: i64| (newest + span).min(first + 10 * span);
            let is_older = |than: usize| revision != 0 && revision < changes[than].2;
            let first = match before {
                Some((than, newest, first)) if second < rings(newest, first) && is_older(than) => continue,
                Some((_, newest, first)) if second < rings(newest, first) => first,
                Some((newest, at, first)) => {
                    comes_to[newest] = Some(rings(at, first));
                    second
                }
                None => second,
            };
            running.insert(object, (index, second, first));
        }
        for (newest, at, first) in running.into_values() {
            comes_to[newest] = Some((at + span).min(first + 10 * span));
        }
        comes_to
    }

    #[test]
    fn what_is_overtaken_by_an_event_that_is_not_read_yet_hands_its_first_change_on() {
        let span = SignedDuration::from_secs(10);
        let mut feed = Feed::restore(
            &Saved {
                next: Seq(1),
                open: vec![],
            },
            Order::None,
        );
        let read = |feed: &mut Feed, seq: u64, second: i64| {
            feed.settle(&change(seq, 1, second), span, |wait| at(second) + wait)
        };
        assert_eq!(read(&mut feed, 1, 0), None);
        assert!(feed.due_objects(at(9)).is_empty());
        assert_eq!(feed.due_objects(at(10)), [("o_1".to_owned(), Seq(1))]);
        assert!(feed.is_settling(Seq(1)));
        let overtakes = |feed: &mut Feed, seq: u64, second: i64| {
            feed.overtaken(Seq(seq), &change(seq + 1, 1, second), span) == Next::Newer
        };
        assert!(!overtakes(&mut feed, 1, 10), "it had settled");
        assert!(overtakes(&mut feed, 1, 9));
        assert!(feed.is_idle() && !overtakes(&mut feed, 1, 9));
        // The heir has the ten times of the first one; again and again.
        for (seq, second) in (2..).zip((9..=90).step_by(9)) {
            assert_eq!(read(&mut feed, seq, second), None, "it was finished before");
            assert!(overtakes(&mut feed, seq, second + 9), "{second}");
        }
        assert_eq!(read(&mut feed, 12, 99), None);
        assert_eq!(feed.due_objects(at(100)), [("o_1".to_owned(), Seq(12))]);
        assert!(!overtakes(&mut feed, 12, 100), "ten times is the end of it");
        feed.finished(Seq(12));
        // An heir that comes too late begins anew.
        assert_eq!(read(&mut feed, 13, 200), None);
        assert!(overtakes(&mut feed, 13, 209));
        assert_eq!(read(&mut feed, 14, 210), None);
        assert!(feed.due_objects(at(219)).is_empty());
        assert!(feed.heirs.is_empty());
    }

    /// Close tries again what it could not bring, and a backfill may find late what a webhook had overtaken.
    #[test]
    fn an_older_revision_is_superseded_by_what_waits_which_waits_no_longer_for_it() {
        let span = SignedDuration::from_secs(10);
        let mut feed = feed_of(Order::None);
        let read = |feed: &mut Feed, seq: u64, second: i64, revision: u8| {
            let event = revised(seq, 1, second, revision);
            feed.settle(&event, span, |wait| at(second) + wait)
        };
        assert_eq!(read(&mut feed, 1, 0, 5), None);
        assert_eq!(read(&mut feed, 2, 3, 1), Some(Seq(2)));
        let mut feed = Feed::restore(&feed.save(), Order::None);
        assert_eq!((feed.next(), feed.has(Seq(2))), (Seq(3), false));
        assert_eq!(read(&mut feed, 3, 6, 4), Some(Seq(3)), "after a restart, too");
        assert_eq!(feed.due_objects(at(10)), [("o_1".to_owned(), Seq(1))]);
        // What is not read yet is no different, and an heir is as new as what it follows.
        assert_eq!(feed.overtaken(Seq(1), &revised(4, 1, 9, 4), span), Next::Older);
        assert!(feed.has(Seq(1)));
        assert_eq!(feed.overtaken(Seq(1), &revised(5, 1, 9, 6), span), Next::Newer);
        assert_eq!(read(&mut feed, 4, 9, 4), Some(Seq(4)));
        assert_eq!(read(&mut feed, 5, 9, 6), None);
        // Of one moment, or of one that none knows, the order of the log is that of the revisions.
        assert_eq!(read(&mut feed, 6, 12, 6), Some(Seq(5)));
        assert_eq!(read(&mut feed, 7, 12, 0), Some(Seq(6)));
        assert_eq!(read(&mut feed, 8, 12, 1), Some(Seq(7)));
        // It had settled: it is the first of a new series.
        assert_eq!(feed.overtaken(Seq(8), &revised(9, 1, 22, 0), span), Next::Later);
        assert_eq!(read(&mut feed, 9, 22, 0), None);
    }

    /// It is neither counted nor noted twice when the sink goes on from what was saved.
    #[test]
    fn what_is_superseded_when_it_is_read_is_not_read_again() {
        let span = SignedDuration::from_secs(10);
        let mut feed = feed_of(Order::None);
        assert_eq!(feed.settle(&revised(1, 1, 0, 5), span, |wait| at(0) + wait), None);
        feed.offer(&std::sync::Arc::new(change(2, 0, 0)), std::sync::Arc::from([]));
        assert_eq!(feed.next_saved(), Seq(2));
        assert_eq!(
            feed.settle(&revised(3, 1, 1, 4), span, |wait| at(1) + wait),
            Some(Seq(3))
        );
        assert_eq!(feed.next_saved(), Seq(4));
    }

    fn feed_of(order: Order) -> Feed {
        let saved = Saved {
            next: Seq(1),
            open: vec![],
        };
        Feed::restore(&saved, order)
    }

    /// An object that has settled and whose event waits behind the next try of another one of the same lead holds nothing up.
    #[test]
    fn what_waits_behind_another_try_is_not_about_to_go() {
        let span = SignedDuration::from_secs(10);
        let of_lead = |seq: u64, lead: u64| {
            let body = format!(r#"{{"event":{{"id":"ev_{seq}","object_id":"o_{seq}","lead_id":"lead_{lead}"}}}}"#);
            Event::new(Seq(seq), at(0), Source::Webhook, Kind::Event, None, body.into())
        };
        let objects = |feed: &mut Feed, second: i64| {
            let mut due: Vec<Seq> = feed.due_objects(at(second)).into_iter().map(|(_, seq)| seq).collect();
            due.sort();
            due
        };
        for (order, then) in [
            (Order::None, vec![Seq(2), Seq(3)]),
            (Order::Lead, vec![Seq(3)]),
            (Order::Strict, vec![]),
        ] {
            let mut feed = feed_of(order);
            for (seq, lead) in [(1, 1), (2, 1), (3, 2)] {
                assert_eq!(feed.settle(&of_lead(seq, lead), span, |wait| at(0) + wait), None);
            }
            let all = [Seq(1), Seq(2), Seq(3)];
            assert_eq!(feed.settled_by(all.into_iter(), span), Some(at(10)));
            assert_eq!(objects(&mut feed, 10), all, "one look for all of them: {order:?}");
            feed.started(Seq(1), at(10));
            assert_eq!(objects(&mut feed, 10), all[1..], "what is under way ends: {order:?}");
            feed.failed(Seq(1), at(60), "no".into());
            assert_eq!(objects(&mut feed, 10), then, "{order:?}");
            assert!(all.iter().all(|seq| feed.goes_soon(*seq) == then.contains(seq)));
            feed.deliverable(at(60), 0);
            feed.finished(Seq(1));
            assert_eq!(objects(&mut feed, 60), all[1..], "{order:?}");
        }
    }

    proptest! {
        /// However far behind the log is read, and wherever it goes on from what was saved: what goes, when, and what is superseded is
        /// what a timer for each object says.
        #[test]
        fn objects_settle_as_a_timer_for_each_of_them_says(
            changes in prop::collection::vec((0_u64..3, 0_i64..4, 0_u8..5), 1..250),
            span in 1_i64..12,
            looks in prop::collection::vec((1_i64..20, any::<bool>()), 0..80),
        ) {
            let mut second = 0;
            let changes = changes.into_iter().map(|(object, gap, revision)| { second += gap; (object, second, revision) });
            let changes: Vec<(u64, i64, u8)> = changes.collect();
            let wanted = timers(&changes, span);
            let (mut feed, mut now, mut read) = (Feed::restore(&Saved { next: Seq(1), open: vec![] }, Order::None), 0, 0);
            let (mut went, mut superseded) = (BTreeMap::new(), BTreeSet::new());
            let mut looked_before = -1;
            for (gap, is_new) in looks.into_iter().chain([(10_000, false)]) {
                now += gap;
                while let Some((object, second, revision)) = changes.get(read).copied().filter(|(_, second, _)| *second <= now) {
                    read += 1;
                    let event = revised(read as u64, object, second, revision);
                    let due = |wait: SignedDuration| at(second) + wait;
                    superseded.extend(feed.settle(&event, SignedDuration::from_secs(span), due));
                }
                for seq in feed.deliverable(at(now), usize::MAX) {
                    feed.started(seq, at(now));
                    feed.finished(seq);
                    let goes = wanted[seq.0 as usize - 1];
                    prop_assert!(goes.is_some_and(|goes| looked_before < goes && goes <= now), "{} went at {}, not {:?}", seq, now, goes);
                    prop_assert!(went.insert(seq, now).is_none(), "{} twice", seq);
                }
                if is_new {
                    feed = Feed::restore(&feed.save(), Order::None);
                }
                looked_before = now;
            }
            for (index, goes) in wanted.iter().enumerate() {
                let seq = Seq(index as u64 + 1);
                prop_assert_eq!((went.contains_key(&seq), superseded.contains(&seq)), (goes.is_some(), goes.is_none()), "{}", seq);
            }
            prop_assert!(feed.is_idle() && feed.objects.is_empty());
        }
    }
}
