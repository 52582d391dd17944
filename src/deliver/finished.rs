//! What became of an event with which a sink is finished, put together from the sink's record and its dead letters.

use super::letters::Letters;
use super::mark::Record;
use super::types::EventState;
use crate::event::Seq;

/// What is known of an event with which the sink is finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finished {
    Is(EventState),
    /// There is a dead letter for it. Why, the letter says, and reading that may take its time.
    Dead,
    /// Another sink gave it up, and it waits here.
    Given,
    /// It was delivered if the rules with this digest wanted it, and else it was not for the sink.
    JudgedBy {
        rules: String,
        /// That the sink is finished with it is durable. Before that a sink that secures what it has at checkpoints may get it again.
        secured: bool,
        /// It had no letter that damage may have taken.
        sure: bool,
    },
}

/// What is known of an event with which a sink is finished. What is not known any more is said to be so, and nothing else is claimed of it.
pub(super) fn finished(record: &Record, letters: &Letters, seq: Seq) -> Finished {
    let fates = &record.fates;
    if letters.has(seq) {
        return Finished::Dead;
    }
    if fates.is_sent(seq) {
        return Finished::Is(EventState::Delivered);
    }
    match noted(record, letters, seq) {
        Finished::Is(state) if fates.is_sending_forgotten(seq) => Finished::Is(unless_sent(state)),
        known => known,
    }
}

/// The same as far as nothing has delivered it since.
fn noted(record: &Record, letters: &Letters, seq: Seq) -> Finished {
    let fates = &record.fates;
    Finished::Is(if fates.is_skipped(seq) {
        EventState::Skipped
    } else if fates.is_superseded(seq) {
        EventState::Superseded
    } else if letters.was_diverted(seq) {
        EventState::Diverted
    } else if let Some(state) = dropped(letters, seq) {
        state
    } else if record.has_lost(seq) {
        // Also what no rule sent here: another sink gave it up.
        lost("it was damaged or expired before the sink had it")
    } else if record.begin.is_some_and(|begin| seq < begin) || fates.is_unwanted(seq) {
        EventState::NotRouted
    } else if fates.is_forgotten(seq) {
        EventState::unknown("the sink is finished with it; so much has happened since that it was forgotten how")
    } else {
        match fates.judge(seq) {
            Some(_) if fates.is_skip_forgotten(seq) => EventState::unknown(
                "delivered, or skipped by its transform, or superseded, or not for the sink: so much was skipped or superseded since that it was forgotten which",
            ),
            Some(rules) => {
                return Finished::JudgedBy {
                    rules: rules.to_owned(),
                    secured: true,
                    sure: seq > record.letters_lost_upto,
                };
            }
            None => EventState::unknown(
                "delivered, or not wanted by the rules of then: which rules these were was not noted then, or has been forgotten",
            ),
        }
    })
}

/// What is said of an event of which it was forgotten whether a replay, or somebody who tried its dead letter again, has delivered it since.
fn unless_sent(state: EventState) -> EventState {
    let known = match state {
        EventState::Skipped => "its transform skipped it".to_owned(),
        EventState::Superseded => "a newer event of its object went out instead".to_owned(),
        EventState::Diverted => "it went to the sink's dead_to".to_owned(),
        EventState::NotRouted => "no rule sent it here".to_owned(),
        EventState::Lost { reason } => reason,
        state => return state,
    };
    EventState::unknown(&format!(
        "{known}; so much was delivered since by replays, and as dead letters, that it was forgotten whether this was"
    ))
}

fn lost(reason: &str) -> EventState {
    EventState::Lost {
        reason: reason.to_owned(),
    }
}

fn dropped(letters: &Letters, seq: Seq) -> Option<EventState> {
    if letters.was_dropped(seq) {
        return Some(lost(
            "its dead letter was dropped: by hand, or as one of the oldest beyond dead_max",
        ));
    }
    let is_forgotten = seq <= letters.forgotten_upto().max(letters.diverted_forgotten_upto());
    is_forgotten.then(|| {
        EventState::unknown("the sink is finished with it; of so old dead letters it was forgotten which were dropped or went to another sink")
    })
}

/// What is said of an event that is not for the sink by its rules, where another sink had given it up to this one, or may have. `givers`: the
/// letters of the sinks that do so.
pub(super) fn dropped_given(letters: &Letters, seq: Seq, givers: &[Letters]) -> Option<EventState> {
    if letters.was_given_and_dropped(seq) {
        return Some(lost(
            "another sink gave it up to this one, and that was dropped before it was delivered: by hand, or as one of the oldest beyond dead_max",
        ));
    }
    if seq <= letters.dropped_given_forgotten_upto() {
        return Some(EventState::unknown(
            "not for the sink, or given up to it by another sink and dropped: of so old ones it was forgotten which were",
        ));
    }
    letters
        .may_have_lost_given(seq, givers)
        .then(|| EventState::unknown("not for the sink, or given up to it by another sink and lost to damage"))
}

/// Whether that an event was delivered just now, by a replay or as a letter, has to be noted, although the rules with this digest, which are
/// in force, want it: it does not follow from what is known.
pub(super) fn has_to_be_noted(record: &Record, letters: &Letters, rules: &str, seq: Seq) -> bool {
    record.begin.is_some_and(|begin| seq < begin)
        || record.has_lost(seq)
        || letters.was_dropped(seq)
        || letters.was_given_and_dropped(seq)
        || seq <= letters.dropped_given_forgotten_upto()
        || letters.was_diverted(seq)
        || seq <= letters.diverted_forgotten_upto()
        || seq <= letters.forgotten_upto()
        // It may have had a letter that damage took.
        || seq <= record.letters_lost_upto
        || !record.fates.follows(seq, rules)
}

#[cfg(test)]
mod tests {
    use super::super::mark::LOST_RANGES_MAX;
    use super::*;

    #[test]
    fn ranges_of_lost_events_that_had_to_be_forgotten_are_known_not_to_be_known() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::open(dir.path(), "a", true).unwrap();
        let mut record = Record::default();
        record.fates.judged_by("x", Seq(1));
        for nth in 1..=LOST_RANGES_MAX as u64 + 1 {
            record.count_lost(Seq(nth * 10), Seq(nth * 10 + 1));
        }
        let state = |seq| finished(&record, &letters, Seq(seq));
        let is_unknown = |seq| matches!(state(seq), Finished::Is(EventState::Unknown { .. }));
        assert!(
            is_unknown(10) && is_unknown(9),
            "it may have been the range that was forgotten"
        );
        assert!(matches!(state(21), Finished::Is(EventState::Lost { .. })));
        assert!(matches!(state(22), Finished::JudgedBy { rules, .. } if rules == "x"));
    }

    /// Replays have delivered many an event that no rule sent to the sink, that another sink had got, or whose letter was dropped: so many
    /// that it was forgotten of the first ones.
    #[test]
    fn of_what_may_have_been_delivered_since_no_other_state_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::open(dir.path(), "a", false).unwrap();
        letters.divert(&[Seq(4), Seq(9000)], None).unwrap();
        let mut record = Record {
            begin: Some(Seq(5000)),
            ..Record::default()
        };
        record.fates.judged_by("x", Seq(5000));
        record.fates.skip([Seq(8), Seq(6000)]);
        record.count_lost(Seq(10), Seq(10));
        let state = |record: &Record, seq| match finished(record, &letters, Seq(seq)) {
            Finished::Is(state) => state,
            other => panic!("{seq}: {other:?}"),
        };
        assert_eq!(state(&record, 3), EventState::NotRouted);
        assert_eq!(state(&record, 4), EventState::Diverted);
        // Every other one, so that each is a range of its own.
        record.fates.sent((1..=2000).map(|nth| Seq(nth * 2)));
        for (seq, known) in [
            (2, "no rule sent it here"),
            (3, "no rule sent it here"),
            (4, "went to the sink's dead_to"),
            (8, "no rule sent it here"),
            (10, "damaged or expired"),
        ] {
            let state = state(&record, seq);
            let EventState::Unknown { reason } = &state else {
                panic!("{seq} is said to be {state:?}");
            };
            assert!(
                reason.contains(known) && reason.contains("forgotten"),
                "{seq}: {reason}"
            );
        }
        assert_eq!(state(&record, 4000), EventState::Delivered);
        assert_eq!(
            state(&record, 4001),
            EventState::NotRouted,
            "what is remembered still holds"
        );
        assert_eq!(state(&record, 6000), EventState::Skipped);
        assert_eq!(state(&record, 9000), EventState::Diverted);
    }
}
