//! What is noted of the events that a sink is finished with, so that it can be told what became of them. Pure.
//!
//! For most of them it follows from the rules by which they were judged: what these wanted was delivered, and nothing else. So there is
//! noted from which event on which rules judged ([`Fates::judged_by`]), and each exception: what was read and then not wanted any
//! more, and what was delivered although it does not follow (a replay, a letter that was tried again). Dead letters, also those
//! that were dropped, are in the letters' file; what was lost is in the record itself.
//!
//! All of it is part of the sink's record, so it says at every moment what holds with the position beside it. It is bounded: what had to
//! be forgotten is known not to be known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::seqs::Seqs;
use super::trail::Last;
use crate::event::{Event, Seq};

/// Ranges that are remembered of each kind of exception.
const RANGES_MAX: usize = 512;

/// The same of what was skipped, which is no exception where a transform picks out what it wants.
const SKIPPED_RANGES_MAX: usize = 4096;

/// Events that are noted before they are read. None of them is forgotten: for more, some have to be read first.
const OUTDATED_MAX: usize = 4096;

/// Changes of the rules that are remembered.
const ERAS_MAX: usize = 64;

/// From this event on, these rules judged what was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Era {
    from: Seq,
    /// `Source::digest`.
    rules: String,
}

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fates {
    eras: Vec<Era>,
    /// Read for the sink, and not wanted any more when they were to go.
    #[serde(skip_serializing_if = "Seqs::is_empty")]
    unwanted: Seqs,
    /// Delivered, which does not follow from the rules.
    #[serde(skip_serializing_if = "Seqs::is_empty")]
    sent: Seqs,
    /// Wanted by the rules, and then not by a transform.
    #[serde(skip_serializing_if = "Seqs::is_empty")]
    skipped: Seqs,
    /// A newer event of its object went out instead.
    #[serde(skip_serializing_if = "Seqs::is_empty")]
    superseded: Seqs,
    /// Not read yet, and known to be older than what was delivered of its object meanwhile: with what tells it from another event to which
    /// its Seq is given when the log was set back.
    #[serde(rename = "outdated_events", skip_serializing_if = "BTreeMap::is_empty")]
    outdated: BTreeMap<Seq, String>,
    /// Up to here exceptions were forgotten.
    forgotten: Seq,
    /// Up to here it was forgotten what was delivered although it does not follow; `None` where an older closehook did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_forgotten: Option<Seq>,
    /// Up to here it was forgotten what was skipped or superseded.
    skips_forgotten: Seq,
}

impl Fates {
    /// The rules with this digest judge whatever is read from `next` on. Gives whether that is news.
    pub fn judged_by(&mut self, rules: &str, next: Seq) -> bool {
        let before = self.eras.clone();
        self.eras.retain(|era| era.from < next);
        if self.eras.last().is_none_or(|era| era.rules != rules) {
            self.eras.push(Era {
                from: next,
                rules: rules.to_owned(),
            });
        }
        let beyond = self.eras.len().saturating_sub(ERAS_MAX);
        self.eras.drain(..beyond);
        before != self.eras
    }

    /// It was read for the sink, and is not wanted any more.
    pub fn not_wanted(&mut self, seq: Seq) {
        self.unwanted.insert(seq);
        let forgotten = self.unwanted.trim(RANGES_MAX);
        self.forget(forgotten);
    }

    /// These were delivered, whatever the rules say.
    pub fn sent(&mut self, seqs: impl IntoIterator<Item = Seq>) {
        for seq in seqs {
            self.sent.insert(seq);
            self.skipped.remove(seq);
            self.superseded.remove(seq);
        }
        self.trim_sent();
    }

    fn trim_sent(&mut self) {
        if let Some(upto) = self.sent.trim(RANGES_MAX) {
            self.forget_sent(upto);
            self.forget(Some(upto));
        }
    }

    fn forget_sent(&mut self, upto: Seq) {
        let before = self.sent_forgotten.unwrap_or(self.forgotten);
        self.sent_forgotten = Some(before.max(upto));
    }

    /// Whether it was forgotten if it was delivered although that does not follow.
    pub fn is_sending_forgotten(&self, seq: Seq) -> bool {
        seq <= self.sent_forgotten.unwrap_or(self.forgotten)
    }

    /// Of these a transform wanted nothing delivered. What was delivered by then stays that.
    pub fn skip(&mut self, seqs: impl IntoIterator<Item = Seq>) {
        for seq in seqs {
            if !self.sent.has(seq) {
                self.skipped.insert(seq);
                self.superseded.remove(seq);
            }
        }
        self.trim_skipped();
    }

    /// A newer event of its object goes out instead. What was delivered before, by a replay, was delivered.
    pub fn supersede(&mut self, seq: Seq) {
        if !self.sent.has(seq) {
            self.superseded.insert(seq);
            self.trim_skipped();
        }
    }

    /// It stands behind what is read, and is older than what goes of its object before it is read. `false`: there is no room to note that
    /// before some of those that are noted are read.
    pub fn outdate(&mut self, event: &Event) -> bool {
        let has_room = self.outdated.len() < OUTDATED_MAX || self.outdated.contains_key(&event.seq);
        if has_room {
            self.outdated.insert(event.seq, Last::of(event).into_key());
        }
        has_room
    }

    /// It is read. Whether it was known by then that it is older than what went.
    pub fn was_outdated(&mut self, event: &Event) -> bool {
        let noted = self.outdated.remove(&event.seq);
        noted.is_some_and(|key| key == Last::of(event).into_key())
    }

    /// Whether so many are noted that some are read before it is worth while to look for more.
    pub fn has_many_outdated(&self) -> bool {
        self.outdated.len() > OUTDATED_MAX / 2
    }

    /// Whether any is noted.
    pub fn has_outdated(&self) -> bool {
        !self.outdated.is_empty()
    }

    /// What is before this place is not read any more: what was noted of it, and no rule wanted, or was gone, is of no use.
    pub fn none_outdated_before(&mut self, next: Seq) {
        if self.outdated.first_key_value().is_some_and(|(seq, _)| *seq < next) {
            self.outdated = self.outdated.split_off(&next);
        }
    }

    /// The log ends before this place: what comes there is another event.
    pub fn none_outdated_from(&mut self, end: Seq) {
        self.outdated.retain(|seq, _| *seq < end);
    }

    /// It is not waited any more until objects have settled: whatever is read goes.
    pub fn none_outdated(&mut self) {
        self.outdated.clear();
    }

    /// It is read again, and whether it is superseded is found out anew.
    pub fn reads_again(&mut self, seq: Seq) {
        self.superseded.remove(seq);
    }

    /// Whether it is noted that a newer event went out instead.
    pub fn is_superseded(&self, seq: Seq) -> bool {
        self.superseded.has(seq)
    }

    fn trim_skipped(&mut self) {
        let forgotten = self.skipped.trim(SKIPPED_RANGES_MAX);
        let forgotten = forgotten.max(self.superseded.trim(SKIPPED_RANGES_MAX));
        self.skips_forgotten = self.skips_forgotten.max(forgotten.unwrap_or_default());
    }

    /// Whether it is noted that it was skipped.
    pub fn is_skipped(&self, seq: Seq) -> bool {
        self.skipped.has(seq)
    }

    /// Whether it was forgotten if it was, or was superseded.
    pub fn is_skip_forgotten(&self, seq: Seq) -> bool {
        seq <= self.skips_forgotten
    }

    /// What is up to here is not known any more, but for what follows from something else.
    pub fn forget(&mut self, upto: Option<Seq>) {
        let upto = upto.unwrap_or_default();
        if upto > self.forgotten {
            self.sent_forgotten.get_or_insert(self.forgotten);
            self.forgotten = upto;
        }
    }

    /// The digests of all rules that judged anything.
    pub fn judges(&self) -> impl Iterator<Item = &str> {
        self.eras.iter().map(|era| era.rules.as_str())
    }

    /// Whether it is noted that it was delivered.
    pub fn is_sent(&self, seq: Seq) -> bool {
        self.sent.has(seq)
    }

    /// Whether it is noted that it was not wanted any more.
    pub fn is_unwanted(&self, seq: Seq) -> bool {
        self.unwanted.has(seq)
    }

    /// Whether what was noted of it may have been forgotten.
    pub fn is_forgotten(&self, seq: Seq) -> bool {
        seq <= self.forgotten
    }

    /// Whether it is not known by which rules it was judged.
    pub fn is_unjudged(&self, seq: Seq) -> bool {
        seq <= self.forgotten || self.judge(seq).is_none()
    }

    /// Whether it follows without a note that an event was delivered which these rules want.
    pub fn follows(&self, seq: Seq, rules: &str) -> bool {
        let judge = self.judge(seq);
        let is_excepted =
            self.unwanted.has(seq) || self.skipped.has(seq) || self.superseded.has(seq) || seq <= self.skips_forgotten;
        seq > self.forgotten && !is_excepted && judge.is_some_and(|judge| judge == rules)
    }

    /// The rules that judged it, as their digest; `None`: that is not known.
    pub fn judge(&self, seq: Seq) -> Option<&str> {
        let behind = self.eras.partition_point(|era| era.from <= seq);
        self.eras.get(behind.checked_sub(1)?).map(|era| era.rules.as_str())
    }

    /// Both began with one durable record. What the one that has read further says of the rules holds.
    pub fn united_with(&self, theirs: &Fates, ours_is_ahead: bool) -> Fates {
        let mut united = if ours_is_ahead { self.clone() } else { theirs.clone() };
        let other = if ours_is_ahead { theirs } else { self };
        for (from, to) in other.unwanted.ranges() {
            united.unwanted.insert_range(*from, *to);
        }
        for (from, to) in other.sent.ranges() {
            united.sent.insert_range(*from, *to);
        }
        for (from, to) in other.skipped.ranges() {
            united.skipped.insert_range(*from, *to);
        }
        for (from, to) in other.superseded.ranges() {
            united.superseded.insert_range(*from, *to);
        }
        for (seq, key) in &other.outdated {
            united.outdated.entry(*seq).or_insert_with(|| key.clone());
        }
        united.skips_forgotten = united.skips_forgotten.max(other.skips_forgotten);
        united.trim_skipped();
        let forgotten = united.unwanted.trim(RANGES_MAX);
        united.forget(forgotten);
        united.trim_sent();
        if other.is_sending_forgotten(Seq(1)) {
            united.forget_sent(other.sent_forgotten.unwrap_or(other.forgotten));
        }
        united.forget(Some(other.forgotten));
        united
    }

    /// A receiver that was set back has had only what it says.
    pub fn set_back_to(&self, theirs: &Fates) -> Fates {
        Fates {
            sent: theirs.sent.clone(),
            sent_forgotten: theirs.sent_forgotten,
            skipped: theirs.skipped.clone(),
            outdated: theirs.outdated.clone(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, id: &str) -> Event {
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        let body = format!(r#"{{"event":{{"id":"{id}"}}}}"#);
        Event::new(Seq(seq), jiff::Timestamp::UNIX_EPOCH, source, kind, None, body.into())
    }

    fn judges(fates: &Fates, seqs: &[u64]) -> Vec<Option<String>> {
        seqs.iter()
            .map(|seq| fates.judge(Seq(*seq)).map(str::to_owned))
            .collect()
    }

    fn some(rules: &[&str]) -> Vec<Option<String>> {
        rules.iter().map(|rules| Some((*rules).to_owned())).collect()
    }

    #[test]
    fn each_event_has_the_rules_that_were_in_force_when_it_was_read() {
        let mut fates = Fates::default();
        assert!(fates.judged_by("x", Seq(5)) && !fates.judged_by("x", Seq(9)));
        assert!(fates.judged_by("y", Seq(20)));
        assert_eq!(judges(&fates, &[5, 19, 20, 99]), some(&["x", "x", "y", "y"]));
        assert_eq!(fates.judge(Seq(4)), None);
        // It went back to an older mark, and what is read again is judged by the rules of now.
        assert!(fates.judged_by("y", Seq(12)));
        assert_eq!(judges(&fates, &[11, 12, 20]), some(&["x", "y", "y"]));
        // Nothing was judged by rules that were in force for a moment.
        assert!(fates.judged_by("z", Seq(12)) && fates.judged_by("x", Seq(12)));
        assert_eq!(fates.eras.len(), 1);
    }

    #[test]
    fn what_had_to_be_forgotten_is_known_not_to_be_known() {
        let mut fates = Fates::default();
        for change in 1..=ERAS_MAX as u64 * 2 {
            fates.judged_by(&change.to_string(), Seq(change * 10));
        }
        assert_eq!((fates.eras.len(), fates.judge(Seq(10))), (ERAS_MAX, None));
        fates.sent((1..=RANGES_MAX as u64 + 3).map(|seq| Seq(seq * 2)));
        assert_eq!((fates.forgotten, fates.sent.ranges().len()), (Seq(6), RANGES_MAX));
        fates.not_wanted(Seq(1));
        assert!(fates.unwanted.has(Seq(1)), "what is noted still holds");
    }

    #[test]
    fn what_either_side_has_noted_holds() {
        let (mut ours, mut theirs) = (Fates::default(), Fates::default());
        ours.judged_by("x", Seq(1));
        theirs.judged_by("x", Seq(1));
        theirs.judged_by("y", Seq(30));
        ours.not_wanted(Seq(3));
        theirs.sent([Seq(4)]);
        let united = ours.united_with(&theirs, false);
        assert_eq!(judges(&united, &[29, 30]), some(&["x", "y"]));
        assert!(united.unwanted.has(Seq(3)) && united.sent.has(Seq(4)));
        assert_eq!(judges(&ours.united_with(&theirs, true), &[30]), some(&["x"]));
        assert!(!united.set_back_to(&ours).sent.has(Seq(4)) && united.set_back_to(&ours).unwanted.has(Seq(3)));
    }

    #[test]
    fn what_was_delivered_is_not_skipped_by_a_later_try_and_what_was_set_back_is_neither() {
        let mut fates = Fates::default();
        fates.judged_by("x", Seq(1));
        let before = fates.clone();
        fates.sent([Seq(4)]);
        fates.skip([Seq(4), Seq(5)]);
        assert!(fates.is_sent(Seq(4)) && !fates.is_skipped(Seq(4)) && fates.is_skipped(Seq(5)));
        fates.sent([Seq(5)]);
        assert!(fates.is_sent(Seq(5)) && !fates.is_skipped(Seq(5)));
        fates.skip([Seq(6)]);
        let set_back = fates.set_back_to(&before);
        assert!((4..=6).all(|seq| !set_back.is_sent(Seq(seq)) && !set_back.is_skipped(Seq(seq))));
    }

    #[test]
    fn what_is_known_before_it_is_read_is_asked_for_once_and_goes_back_with_the_receiver() {
        let (mut ours, theirs) = (Fates::default(), Fates::default());
        assert!(ours.outdate(&event(7, "ev_7")) && ours.outdate(&event(9, "ev_9")));
        let text = serde_json::to_string(&ours).unwrap();
        assert_eq!(serde_json::from_str::<Fates>(&text).unwrap(), ours, "it is saved");
        let (seventh, ninth) = (event(7, "ev_7"), event(9, "ev_9"));
        assert!(theirs.united_with(&ours, false).was_outdated(&ninth));
        assert!(ours.united_with(&theirs, false).was_outdated(&ninth));
        assert!(!ours.set_back_to(&theirs).was_outdated(&ninth));
        assert!(ours.was_outdated(&seventh) && !ours.was_outdated(&seventh) && !ours.was_outdated(&event(8, "ev_8")));
        ours.none_outdated();
        assert_eq!(ours, Fates::default());
    }

    /// The log was set back, and gives the same Seqs out once more.
    #[test]
    fn another_event_at_the_seq_of_one_that_is_known_before_it_is_read_is_not_it() {
        let mut fates = Fates::default();
        for seq in 5..=9 {
            assert!(fates.outdate(&event(seq, &format!("ev_{seq}"))));
        }
        assert!(!fates.was_outdated(&event(5, "ev_105")) && !fates.was_outdated(&event(5, "ev_5")));
        fates.none_outdated_from(Seq(8));
        assert!(!fates.was_outdated(&event(8, "ev_8")) && !fates.was_outdated(&event(9, "ev_9")));
        // No rule wanted the sixth when it was read.
        fates.none_outdated_before(Seq(7));
        assert!(!fates.was_outdated(&event(6, "ev_6")) && fates.was_outdated(&event(7, "ev_7")));
        assert_eq!(fates, Fates::default(), "nothing stays");
    }

    #[test]
    fn of_what_is_known_before_it_is_read_nothing_is_forgotten_however_scattered_it_is() {
        let mut fates = Fates::default();
        let nth = |nth: usize| event(nth as u64 * 2, &format!("ev_{nth}"));
        assert!((1..=OUTDATED_MAX).all(|n| fates.outdate(&nth(n))));
        assert!(!fates.outdate(&nth(OUTDATED_MAX + 1)), "there is no room");
        assert!(fates.outdate(&nth(OUTDATED_MAX)), "it is noted");
        assert!(fates.has_many_outdated());
        assert!((1..=OUTDATED_MAX / 2).all(|n| fates.was_outdated(&nth(n))));
        assert!(!fates.has_many_outdated() && fates.outdate(&nth(OUTDATED_MAX + 1)));
    }

    /// As nobody but the version before this one wrote it.
    #[test]
    fn ranges_that_say_of_no_event_which_it_was_are_read_past() {
        let text = r#"{"eras":[],"outdated":[[7,9]],"forgotten":3}"#;
        let mut fates: Fates = serde_json::from_str(text).unwrap();
        assert!(fates.is_forgotten(Seq(3)) && !fates.was_outdated(&event(8, "ev_8")));
    }
}
