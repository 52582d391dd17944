//! Dead letters by what is wrong: one group for each sink and reason, whatever ids and numbers of single events a reason names.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::agreed::Agreed;
use super::answers::{Out, Refusal};
use super::dead::Letters;
use super::pick::Pick;
use super::reasons::group_of;
use crate::deliver::DeadLetter;
use crate::sorted;

/// Dead letters grouped by reason, the largest group first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Groups {
    /// Only of this sink.
    #[serde(default)]
    pub sink: Option<String>,
    /// Whose events are these.
    #[serde(default)]
    pub pick: Pick,
}

/// Letters of one sink that were given up for the same reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The sink.
    pub sink: String,
    /// The reason, with `…` where single events differ: what `retry` and `drop` take as `group`.
    pub group: String,
    /// How many.
    pub count: u64,
    /// When the first of them was given up.
    pub first: Timestamp,
    /// When the last of them was.
    pub last: Timestamp,
    /// How many by type, `object_type.action`; those without one, and rare ones beyond [`TYPES_MAX`], under the empty text.
    pub types: BTreeMap<String, u64>,
    /// The newest of them: with its own reason, and what the receiver answered.
    pub example: DeadLetter,
}

/// So many types of a group are told apart.
pub const TYPES_MAX: usize = 50;

/// So many groups are told apart; the letters of further ones are in one group of each sink, [`OTHERS`].
pub const GROUPS_MAX: usize = 500;

/// What the group of all further reasons is called. It can't be retried or dropped by this name.
pub const OTHERS: &str = "…";

/// How many letters are meant, before something is done to them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Count {
    /// Only of this sink.
    #[serde(default)]
    pub sink: Option<String>,
    /// Whose events are these.
    #[serde(default)]
    pub pick: Pick,
    /// Only of this group.
    #[serde(default)]
    pub group: Option<String>,
}

/// How many letters are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Altogether.
    pub letters: u64,
    /// By sink.
    pub sinks: BTreeMap<String, u64>,
    /// Of these, letters whose event has left the log: nothing else keeps it.
    #[serde(default)]
    pub only_copies: u64,
    /// What a retry or a drop takes, so that it does what was counted and no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Agreed>,
}

/// Letters as they are counted: what is given up meanwhile is not among them, unless the clock that says so can't be right.
#[derive(Debug)]
struct Counting {
    began: Timestamp,
    counted: Counted,
    /// Those that say they were given up after the beginning, and the newest of them.
    later: Counted,
    newest: Timestamp,
}

impl Counting {
    fn new(began: Timestamp) -> Counting {
        Counting {
            began,
            counted: Counted::default(),
            later: Counted::default(),
            newest: began,
        }
    }

    fn add(&mut self, letter: DeadLetter, is_only_copy: bool) {
        if letter.died_at <= self.began {
            self.counted.add(letter.sink, 1, u64::from(is_only_copy));
        } else {
            self.newest = self.newest.max(letter.died_at);
            self.later.add(letter.sink, 1, u64::from(is_only_copy));
        }
    }

    fn done(mut self, now: Timestamp) -> Counted {
        let mut upto = self.began;
        if self.newest > now {
            // Some node's clock is ahead of this one, or was: what it dates can't be told apart by time, and is there to be seen.
            upto = self.newest;
            self.counted.only_copies += self.later.only_copies;
            for (sink, letters) in self.later.sinks {
                self.counted.add(sink, letters, 0);
            }
        }
        let letters = self.counted.letters;
        self.counted.agreed = Some(Agreed { letters, upto });
        self.counted
    }
}

impl Counted {
    fn add(&mut self, sink: String, letters: u64, only_copies: u64) {
        self.letters += letters;
        self.only_copies += only_copies;
        *self.sinks.entry(sink).or_default() += letters;
    }
}

/// What is known of a group while letters are gone through.
struct Tally {
    group: Group,
}

impl Tally {
    fn new(group: String, letter: DeadLetter) -> Tally {
        let mut tally = Tally {
            group: Group {
                sink: letter.sink.clone(),
                group,
                count: 0,
                first: letter.died_at,
                last: letter.died_at,
                types: BTreeMap::new(),
                example: letter.clone(),
            },
        };
        tally.add(letter);
        tally
    }

    fn add(&mut self, letter: DeadLetter) {
        let group = &mut self.group;
        group.count += 1;
        group.first = group.first.min(letter.died_at);
        let mut name = letter.event_type.clone().unwrap_or_default();
        if group.types.len() >= TYPES_MAX && !group.types.contains_key(&name) {
            name = String::new();
        }
        *group.types.entry(name).or_default() += 1;
        if letter.died_at >= group.last {
            group.last = letter.died_at;
            group.example = letter;
        }
    }
}

impl Groups {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Group>) -> Result<(), Refusal> {
        let mut letters = Letters::of(on, self.sink.as_deref(), &self.pick).await?;
        let mut tallies: BTreeMap<(String, String), Tally> = BTreeMap::new();
        while let Some(letter) = letters.next().await? {
            if out.is_closed() {
                return Err(Refusal::new());
            }
            let mut key = (letter.sink.clone(), group_of(&letter));
            if tallies.len() >= GROUPS_MAX && !tallies.contains_key(&key) {
                OTHERS.clone_into(&mut key.1);
            }
            match tallies.get_mut(&key) {
                Some(tally) => tally.add(letter),
                None => drop(tallies.insert(key.clone(), Tally::new(key.1, letter))),
            }
        }
        let mut groups: Vec<Group> = tallies.into_values().map(|tally| tally.group).collect();
        // Those of equal size stay in order of their names.
        sorted::sort_by_key(&mut groups, |group| std::cmp::Reverse(group.count));
        for group in &groups {
            out.say(group).await?;
        }
        // What can be read is shown first.
        letters.are_all()
    }
}

impl Count {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Counted>) -> Result<(), Refusal> {
        let letters = Letters::of(on, self.sink.as_deref(), &self.pick).await?;
        let mut letters = letters.in_group(self.group);
        let mut counting = Counting::new(Timestamp::now());
        while let Some(letter) = letters.next().await? {
            if out.is_closed() {
                return Err(Refusal::new());
            }
            let is_only_copy = letter.seq < on.log.first();
            counting.add(letter, is_only_copy);
        }
        letters.are_all()?;
        out.say(&counting.done(Timestamp::now())).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::reasons::{ANY, normalised};
    use super::*;
    use crate::event::Seq;

    fn letter(seq: u64, id: &str, reason: &str) -> DeadLetter {
        DeadLetter {
            sink: "crm".into(),
            seq: Seq(seq),
            id: id.into(),
            event_type: Some("lead.updated".into()),
            lead_id: Some(format!("lead_{seq}")),
            reason: reason.into(),
            answer: None,
            attempts: 1,
            first_attempt: None,
            died_at: Timestamp::from_second(1_700_000_000 + seq as i64).unwrap(),
            dead: None,
            replay: None,
        }
    }

    #[test]
    fn what_single_events_differ_in_does_not_split_a_group() {
        for (one, other) in [
            ("lead_1 is unknown here", "lead_2 is unknown here"),
            ("no row 7 in part 12", "no row 512 in part 3"),
            (
                "lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68 has no owner",
                "lead_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa has no owner",
            ),
            (
                "it is 70001 bytes long, at most 65536",
                "it is 1234567 bytes long, at most 65536",
            ),
            ("since 2024-02-15T12:48:23.123456Z", "since 2025-11-01T00:00:00Z"),
            (
                "request 6ba7b810-9dad-11d1-80b4-00c04fd430c8 failed",
                "request a0000000-b1c2-e0f0-0000-a00000000001 failed",
            ),
            (
                "connected to 10.0.0.1:8080 in 3.5 s",
                "connected to 10.0.0.2:8080 in 12 s",
            ),
            ("key (ev_1, ev_x) is there", "key (ev_2, ev_x) is there"),
        ] {
            let of = |seq, text: &str| group_of(&letter(seq, &format!("ev_{seq}"), text));
            assert_eq!(of(1, one), of(2, other));
            assert!(of(1, one).contains(ANY), "{one}");
        }
    }

    #[test]
    fn what_is_wrong_tells_groups_apart() {
        let reasons = [
            "the receiver answered 400 Bad Request",
            "the receiver answered 422 Unprocessable Entity",
            "the database says: SQLSTATE 23505",
            "the database says: SQLSTATE 22P02",
            "exit code 1",
            "exit code 2",
            "it is not utf8",
            "it is not latin1",
            "column \"amount\" is no number",
            "column \"owner\" is no number",
        ];
        let groups: std::collections::BTreeSet<String> = reasons
            .iter()
            .map(|reason| group_of(&letter(1, "ev_1", reason)))
            .collect();
        assert_eq!(groups.len(), reasons.len(), "{groups:?}");
        for reason in reasons {
            assert_eq!(
                group_of(&letter(1, "ev_1", reason)),
                reason,
                "nothing of it is left out"
            );
        }
        // A group's name is a group's name.
        for reason in ["no row 7 in part 12", "a…b", ""] {
            let group = normalised(reason);
            assert_eq!(normalised(&group), group);
        }
    }

    #[test]
    fn what_was_counted_is_what_is_agreed_to() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let mut counting = Counting::new(at(5));
        // What is given up while it is counted is not among them.
        for seq in [1, 5, 6] {
            counting.add(letter(seq, "ev", "r"), seq == 1);
        }
        let counted = counting.done(at(7));
        let agreed = counted.agreed.unwrap();
        assert_eq!((counted.letters, counted.only_copies, agreed.letters), (2, 1, 2));
        let is_meant = |seq| agreed.has(&letter(seq, "ev", "r"));
        assert!(is_meant(5) && !is_meant(6));
        assert!(agreed.check(2).is_ok() && agreed.check(1).is_ok());
        assert!(agreed.check(3).unwrap_err().contains("count them again"));
        // What a clock that is ahead has dated can be meant all the same.
        let mut counting = Counting::new(at(5));
        for seq in [1, 9] {
            counting.add(letter(seq, "ev", "r"), false);
        }
        let counted = counting.done(at(7));
        assert_eq!((counted.letters, counted.agreed.unwrap().upto), (2, at(9)));
    }

    #[test]
    fn a_tally_keeps_the_newest_and_a_bounded_number_of_types() {
        let mut tally = Tally::new("r".into(), letter(5, "ev_5", "r"));
        for seq in 0..100 {
            let of_type = DeadLetter {
                event_type: Some(format!("type_{seq}.made")),
                ..letter(seq, "ev", "r")
            };
            tally.add(of_type);
        }
        let group = tally.group;
        assert_eq!((group.count, group.example.seq), (101, Seq(99)));
        assert_eq!(
            (group.first.as_second(), group.last.as_second()),
            (1_700_000_000, 1_700_000_099)
        );
        assert_eq!(group.types.values().sum::<u64>(), 101);
        assert_eq!(group.types.len(), TYPES_MAX + 1);
    }
}
