//! Two nodes and a journal in memory that can be full, and lose answers. What servers make of it is tried in `tests/it/jetstream_dead.rs`.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::super::Letters;
use super::super::import::{import, is_imported};
use super::*;
use crate::deliver::DeadLetter;
use crate::event::{Event, Kind, Source};
use crate::state::journal::{Content, Page};

#[derive(Debug, Default)]
pub(in crate::deliver::letters) struct Memory {
    records: Mutex<BTreeMap<u64, (String, Record)>>,
    last: Mutex<u64>,
    /// What is appended is stored, and nobody is told.
    is_mute: AtomicBool,
    /// It can't be reached for anything else either.
    pub(in crate::deliver::letters) is_cut: AtomicBool,
    is_full: AtomicBool,
    /// Where only the rest of a record is.
    rest: Mutex<Option<u64>>,
    /// Where records are damaged.
    pub(in crate::deliver::letters) damaged: Mutex<std::collections::BTreeSet<u64>>,
}

impl Memory {
    fn cut(&self) -> Result<(), JournalError> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(JournalError::Failing("it can't be reached".into()));
        }
        Ok(())
    }

    fn end(&self, topic: &str) -> u64 {
        let records = lock(&self.records);
        let of = records.iter().rev().find(|(_, (of, _))| of == topic);
        of.map_or(0, |(place, _)| *place)
    }

    fn holds(&self, text: &str) -> bool {
        let records = lock(&self.records);
        let has = |bytes: &Bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let unpacked = |record: &Record| {
            let events = super::super::record::events_in(record.tag, &record.payload);
            events.iter().any(|event| has(&event.body))
        };
        records
            .values()
            .any(|(_, record)| has(&record.payload) || unpacked(record))
    }

    pub(in crate::deliver::letters) fn count(&self) -> usize {
        lock(&self.records).len()
    }
}

#[async_trait]
impl Journal for Memory {
    fn name(&self) -> String {
        "the journal".into()
    }

    async fn read(&self, topic: &str, behind: u64) -> Result<Page, JournalError> {
        self.cut()?;
        let end = self.end(topic);
        let records = lock(&self.records);
        let of = records.range(behind + 1..).filter(|(_, (of, _))| of == topic);
        // A page is short, so that there are several.
        let (rest, damaged) = (*lock(&self.rest), lock(&self.damaged).clone());
        let of = of.take(7).map(|(place, (_, record))| Kept {
            place: *place,
            len: 1,
            tag: record.tag,
            content: if rest == Some(*place) {
                Content::Rest
            } else if damaged.contains(place) {
                Content::Damaged
            } else {
                Content::Whole(record.payload.clone())
            },
        });
        Ok(Page {
            records: of.collect(),
            end,
        })
    }

    async fn get(&self, topic: &str, place: u64) -> Result<Option<Kept>, JournalError> {
        self.cut()?;
        let records = lock(&self.records);
        let found = records.get(&place).filter(|(of, _)| of == topic);
        Ok(found.map(|(_, record)| Kept {
            place,
            len: 1,
            tag: record.tag,
            content: Content::Whole(record.payload.clone()),
        }))
    }

    async fn append(&self, topic: &str, records: &[Record], end: u64) -> Result<Vec<(u64, u32)>, JournalError> {
        self.cut()?;
        if self.end(topic) != end {
            return Err(JournalError::Behind);
        }
        if self.is_full.load(Ordering::SeqCst) {
            return Err(JournalError::Full("there is no room".into()));
        }
        let (mut all, mut last) = (lock(&self.records), lock(&self.last));
        let places = records.iter().map(|record| {
            *last += 1;
            all.insert(*last, (topic.to_owned(), record.clone()));
            (*last, 1)
        });
        let places = places.collect();
        if self.is_mute.load(Ordering::SeqCst) {
            self.is_cut.store(true, Ordering::SeqCst);
            return Err(JournalError::Unsure("the answer was lost".into()));
        }
        Ok(places)
    }

    async fn remove(&self, place: u64, _len: u32) -> Result<(), JournalError> {
        self.cut()?;
        let gone = lock(&self.records).remove(&place);
        if let Some((topic, _)) = gone {
            assert!(self.end(&topic) > place, "the last record is what the end is known by");
            self.is_full.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn forget(&self, topic: &str) -> Result<(), JournalError> {
        self.cut()?;
        lock(&self.records).retain(|_, (of, _)| of != topic);
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<String>, JournalError> {
        self.cut()?;
        let records = lock(&self.records);
        let noted = records.values().filter(|(_, record)| record.name == "note");
        let topics: std::collections::BTreeSet<String> = noted.map(|(topic, _)| topic.clone()).collect();
        Ok(topics.into_iter().collect())
    }
}

/// Nodes that share a journal.
pub(in crate::deliver::letters) struct Nodes {
    pub(in crate::deliver::letters) memory: Arc<Memory>,
}

impl Nodes {
    pub(in crate::deliver::letters) fn new() -> Nodes {
        Nodes { memory: Arc::default() }
    }

    pub(in crate::deliver::letters) fn desk(&self) -> Arc<Desk> {
        Desk::new(self.memory.clone()).unwrap()
    }

    /// What one node knows of a sink's letters.
    pub(in crate::deliver::letters) fn of(&self, sink: &str) -> Letters {
        let letters = Letters::shared(&self.desk(), sink, false);
        letters.read().unwrap();
        letters
    }
}

fn letter(seq: u64) -> DeadLetter {
    DeadLetter {
        reason: format!("why {seq} is dead"),
        ..super::super::tests::letter(seq)
    }
}

pub(in crate::deliver::letters) fn letters(seqs: impl IntoIterator<Item = u64>) -> Vec<DeadLetter> {
    seqs.into_iter().map(letter).collect()
}

pub(in crate::deliver::letters) fn event(seq: u64) -> Arc<Event> {
    let body = format!(r#"{{"event":{{"id":"ev_{seq}","secret":"of {seq} alone"}}}}"#);
    let (at, kind) = (Timestamp::UNIX_EPOCH, Kind::Event);
    Arc::new(Event::new(Seq(seq), at, Source::Webhook, kind, None, body.into()))
}

pub(in crate::deliver::letters) fn copy(letters: &Letters, seq: u64) -> Option<Bytes> {
    let copy = letters.copy(Seq(seq)).unwrap();
    copy.map(|event| event.body.clone())
}

pub(in crate::deliver::letters) fn body(seq: u64) -> Bytes {
    event(seq).body.clone()
}

pub(in crate::deliver::letters) fn seqs(letters: &Letters) -> Vec<u64> {
    letters.read().unwrap();
    letters
        .all_seqs(Seq::ZERO, usize::MAX)
        .into_iter()
        .map(|seq| seq.0)
        .collect()
}

/// One has read the second record before it was damaged, and the nodes have the sink in turns.
#[test]
fn damage_that_was_noted_is_no_news_to_a_node_that_knows_less_of_it() {
    let nodes = Nodes::new();
    let all = nodes.of("a");
    all.add(&letters(1..=30)).unwrap();
    let damage = |seq: u64| {
        let place = all.index(|index| index.places[&Seq(seq)].offset);
        lock(&nodes.memory.damaged).insert(place);
        nodes.of("a")
    };
    let (one, two) = (damage(3), damage(20));
    let mut record = crate::deliver::mark::Record::default();
    record.begin_at(Seq(31));
    let mut is_news = |letters: &Letters, upto| record.doubt_letters(letters, Seq(upto));
    assert!(!is_news(&all, 30) && is_news(&one, 30) && is_news(&two, 31));
    for letters in [&one, &two, &one] {
        assert!(!is_news(letters, 40));
    }
    assert_eq!(record.letters_lost_upto, Seq(31));
}

/// It stays in the journal, where each node finds it as often as it begins.
#[test]
fn damage_that_somebody_has_seen_is_said_no_more_and_what_comes_later_is() {
    let nodes = Nodes::new();
    let all = nodes.of("a");
    all.add(&letters(1..=30)).unwrap();
    let damage = |seq: u64| {
        let place = all.index(|index| index.places[&Seq(seq)].offset);
        lock(&nodes.memory.damaged).insert(place);
        place
    };
    let seen = damage(3);
    let one = nodes.of("a");
    assert!(one.trouble().is_some());
    one.damage_is_seen(one.damage_mark());
    assert_eq!(one.trouble(), None);
    assert!(one.is_damaged(), "that somebody has seen it brings no letter back");
    let other = nodes.of("a");
    other.damage_is_seen(Some(seen));
    assert_eq!(other.trouble(), None);
    damage(20);
    let later = nodes.of("a");
    later.damage_is_seen(Some(seen));
    assert!(later.trouble().is_some());
}

#[test]
fn what_one_node_writes_every_node_knows() {
    let nodes = Nodes::new();
    let (one, two) = (nodes.of("a"), nodes.of("a"));
    one.add(&letters(1..=30)).unwrap();
    assert_eq!(seqs(&two), (1..=30).collect::<Vec<_>>());
    assert_eq!(two.get(Seq(7)).unwrap(), Some(letter(7)));
    assert_eq!(two.drop_for_good(&[Seq(7), Seq(8), Seq(99)]).unwrap(), 2);
    assert_eq!(one.get(Seq(7)).unwrap(), None, "who does not know yet finds out");
    assert!(one.was_dropped(Seq(8)) && one.is_dead(Seq(8)) && !one.has(Seq(8)));
    // Who is behind decides again, by what is there by then.
    assert_eq!(two.remove(&[Seq(1)]).unwrap(), 1);
    assert_eq!(one.remove(&[Seq(1), Seq(2)]).unwrap(), 1);
    assert_eq!(seqs(&two), seqs(&nodes.of("a")));
    assert_eq!((one.len(), nodes.of("b").len()), (26, 0));
    assert!(!nodes.memory.holds("why 7 is dead"), "what went is overwritten");
}

#[test]
fn a_node_that_has_lost_the_sink_makes_and_removes_no_letter() {
    let nodes = Nodes::new();
    let slow = nodes.of("a").under(1);
    assert!(slow.take_over(1).unwrap());
    slow.add(&letters([1, 2])).unwrap();
    let next = nodes.of("a").under(2);
    assert!(next.take_over(2).unwrap() && !slow.take_over(1).unwrap());
    for refused in [
        slow.add(&letters([3])).map(drop),
        slow.remove(&[Seq(1)]).map(drop),
        slow.divert(&[Seq(2)], None),
    ] {
        assert!(refused.unwrap_err().to_string().contains("another node has the sink"));
    }
    assert_eq!(seqs(&next), [1, 2]);
    next.remove(&[Seq(1)]).unwrap();
    // Whoever drives nothing may still drop one.
    assert_eq!(nodes.of("a").drop_for_good(&[Seq(2)]).unwrap(), 1);
    assert_eq!(seqs(&slow), [0; 0]);
}

#[test]
fn letters_of_which_it_was_not_known_whether_they_were_stored_do_not_count_unless_somebody_went_by_them() {
    for is_taken_over in [false, true] {
        let nodes = Nodes::new();
        let one = nodes.of("a").under(1);
        assert!(one.take_over(1).unwrap());
        one.add(&letters([1])).unwrap();
        nodes.memory.is_mute.store(true, Ordering::SeqCst);
        one.add(&letters([1, 2, 3])).unwrap_err();
        nodes.memory.is_mute.store(false, Ordering::SeqCst);
        nodes.memory.is_cut.store(false, Ordering::SeqCst);
        let next = nodes.of("a").under(2);
        if is_taken_over {
            assert!(next.take_over(2).unwrap());
        }
        let kept: &[u64] = if is_taken_over { &[1, 2, 3] } else { &[1] };
        assert_eq!(seqs(&one), kept);
        assert_eq!(seqs(&next), kept);
    }
}

#[test]
fn what_is_given_goes_when_whoever_gives_it_has_let_go_on_whichever_node() {
    let nodes = Nodes::new();
    let (giver, others) = (nodes.of("a"), nodes.of("b"));
    let elsewhere = nodes.of("b");
    others.give(&letters([1, 2]), 0).unwrap();
    elsewhere.read().unwrap();
    assert_eq!((elsewhere.given_len(), elsewhere.given(9, |_| false).len()), (2, 0));
    giver.divert(&[Seq(1)], Some("replay")).unwrap();
    others.release(&[Seq(1)]);
    elsewhere.read().unwrap();
    assert_eq!(elsewhere.given(9, |_| false), [(Seq(1), Timestamp::UNIX_EPOCH)]);
    others.give_back(&letters([1, 2]), 0).unwrap();
    assert_eq!(seqs(&elsewhere), [1], "what was released is not taken back");
    assert!(nodes.of("a").was_diverted_by("replay", Seq(1)));
}

#[test]
fn what_an_interrupted_removal_has_left_is_removed_and_is_no_damage() {
    let nodes = Nodes::new();
    nodes.of("a").add(&letters([1, 2, 3])).unwrap();
    let before = nodes.memory.count();
    // The letter of Seq 2 lies there: what counts of it was removed.
    *lock(&nodes.memory.rest) = Some(before as u64 - 1);
    let next = nodes.of("a");
    assert_eq!((seqs(&next), next.trouble()), (vec![1, 3], None));
    next.remove(&[Seq(1)]).unwrap();
    assert_eq!(nodes.memory.count(), before + 1 - 2, "it went along");
}

#[test]
fn one_sink_at_a_time_gives_a_letter_for_an_event() {
    let nodes = Nodes::new();
    let of = |sink: &str| {
        let mut letters = letters([1, 2]);
        for letter in &mut letters {
            letter.sink = sink.into();
        }
        letters.iter().map(|letter| letter.given_to("c")).collect::<Vec<_>>()
    };
    // On two nodes.
    let (to, elsewhere) = (nodes.of("c"), nodes.of("c"));
    to.give(&of("a")[..1], 1).unwrap();
    let refused = elsewhere.give(&of("b"), 1).unwrap_err().to_string();
    assert!(refused.contains("the sink \"a\" is just giving it"), "{refused}");
    assert_eq!(seqs(&to), [1], "all of them or none");
    // What it did not give it does not take back.
    elsewhere.give_back(&of("b"), 1).unwrap();
    assert_eq!(seqs(&to), [1]);
    to.give_back(&of("a"), 1).unwrap();
    elsewhere.give(&of("b"), 1).unwrap();
    elsewhere.release(&[Seq(1), Seq(2)]);
    to.give(&of("a"), 1).unwrap();
    to.give_back(&of("a"), 1).unwrap();
    assert_eq!(seqs(&to), [1, 2], "it is delivered once, for both");
    assert_eq!(to.given(9, |_| false).len(), 2);
}

#[test]
fn who_has_lost_the_sink_takes_nothing_back_that_the_next_one_has_claimed() {
    let nodes = Nodes::new();
    let given: Vec<DeadLetter> = letters([1, 2]).iter().map(|letter| letter.given_to("b")).collect();
    let (slow, next) = (nodes.of("b"), nodes.of("b"));
    slow.give(&given, 1).unwrap();
    // One of them is taken back before.
    slow.give_back(&given[..1], 1).unwrap();
    assert_eq!(next.claim(&given, 2).unwrap(), [Seq(2)]);
    slow.give_back(&given, 1).unwrap();
    assert_eq!(seqs(&next), [2]);
    assert_eq!(slow.claim(&given, 1).unwrap(), [], "it is a later one's");
    assert!(slow.give(&given, 1).is_err(), "it is another's by now");
    assert_eq!(slow.given(9, |_| false), [], "and withheld until that one has let go");
    next.release(&[Seq(2)]);
    assert_eq!(seqs(&slow), [2]);
    assert_eq!(slow.given(9, |_| false).len(), 1);
}

#[test]
fn who_is_far_behind_learns_all_of_it_after_notes_were_put_together() {
    let nodes = Nodes::new();
    let (one, behind) = (nodes.of("a"), nodes.of("a"));
    one.add(&letters(1..=10)).unwrap();
    assert_eq!(seqs(&behind).len(), 10);
    for seq in 11..=(11 + NOTES_MAX as u64 * 2) {
        one.add(&letters([seq])).unwrap();
        one.drop_for_good(&[Seq(seq)]).unwrap();
    }
    one.remove(&[Seq(4)]).unwrap();
    assert!(
        nodes.memory.count() < NOTES_MAX + 20,
        "{} records",
        nodes.memory.count()
    );
    for letters in [&behind, &nodes.of("a")] {
        assert_eq!(seqs(letters), [1, 2, 3, 5, 6, 7, 8, 9, 10]);
        assert!(letters.was_dropped(Seq(11)) && letters.was_dropped(Seq(500)) && !letters.was_dropped(Seq(4)));
    }
}

#[test]
fn a_copy_stays_with_a_letter_that_is_made_anew_and_goes_with_it() {
    let nodes = Nodes::new();
    let one = nodes.of("a");
    one.add(&letters(1..=3)).unwrap();
    one.keep_copies(&[event(1), event(2), event(9)]).unwrap();
    one.keep_copies(&[event(1)]).unwrap();
    one.add(&letters([1])).unwrap();
    one.remove(&[Seq(3)]).unwrap();
    let fresh = nodes.of("a");
    for letters in [&one, &fresh] {
        assert_eq!(copy(letters, 1), Some(body(1)));
        assert_eq!(letters.without_copy(Seq::ZERO, Seq(99), 9), [Seq(0); 0]);
    }
    assert_eq!(one.live_bytes(), fresh.live_bytes());
    fresh.remove(&[Seq(1)]).unwrap();
    fresh.scrub(&|| ()).unwrap();
    for text in ["of 1 alone", "why 1 is dead", "of 9 alone"] {
        assert!(!nodes.memory.holds(text), "{text}");
    }
    assert!(nodes.memory.holds("of 2 alone"));
    assert_eq!(copy(&one, 1), None);
}

/// A node was killed between noting that a letter went and removing it.
#[test]
fn what_was_noted_as_gone_and_left_is_removed_when_somebody_erases() {
    let nodes = Nodes::new();
    let one = nodes.of("a");
    one.add(&letters(1..=2)).unwrap();
    one.keep_copies(&[event(1)]).unwrap();
    let end = nodes.memory.end("a");
    let bytes = Bytes::copy_from_slice(&1_u64.to_le_bytes());
    let note = Record {
        name: "note".into(),
        tag: TAG_REMOVE,
        payload: bytes,
    };
    futures::executor::block_on(nodes.memory.append("a", &[note], end)).unwrap();
    assert_eq!(seqs(&one), [2]);
    assert!(nodes.memory.holds("of 1 alone"));
    nodes.of("a").scrub(&|| ()).unwrap();
    assert!(!nodes.memory.holds("of 1 alone") && !nodes.memory.holds("why 1 is dead"));
    assert_eq!(seqs(&one), [2]);
}

#[test]
fn while_there_is_no_room_nothing_comes_and_nothing_goes() {
    let nodes = Nodes::new();
    let one = nodes.of("a");
    one.add(&letters(1..=5)).unwrap();
    nodes.memory.is_full.store(true, Ordering::SeqCst);
    let refused = one.add(&letters([6])).unwrap_err().to_string();
    assert!(refused.contains("there is no room"), "{refused}");
    one.drop_for_good(&[Seq(2)]).unwrap_err();
    assert_eq!(seqs(&nodes.of("a")), [1, 2, 3, 4, 5]);
    nodes.memory.is_full.store(false, Ordering::SeqCst);
    assert_eq!(one.drop_for_good(&[Seq(2)]).unwrap(), 1);
    one.add(&letters([6])).unwrap();
    assert_eq!(seqs(&nodes.of("a")), [1, 3, 4, 5, 6]);
}

#[test]
fn letters_of_an_older_version_are_taken_over_from_the_disk_and_from_where_that_was_cut_off() {
    let (nodes, dir) = (Nodes::new(), tempfile::tempdir().unwrap());
    let old = Letters::open(dir.path(), "a", false).unwrap();
    old.add(&letters(1..=600)).unwrap();
    old.keep_copies(&[event(1), event(2)]).unwrap();
    old.drop_for_good(&[Seq(600)]).unwrap();
    old.divert(&[Seq(599)], None).unwrap();
    old.give(&letters([601]), 0).unwrap();
    drop(old);
    // Some had gone over when it was cut off.
    let all = nodes.of("a");
    all.add(&letters(1..=3)).unwrap();
    nodes.memory.is_cut.store(true, Ordering::SeqCst);
    import(dir.path(), &nodes.desk()).unwrap_err();
    assert!(!is_imported(dir.path()).unwrap());
    nodes.memory.is_cut.store(false, Ordering::SeqCst);
    assert_eq!(import(dir.path(), &nodes.desk()).unwrap(), 599);
    assert!(is_imported(dir.path()).unwrap());
    assert_eq!(import(dir.path(), &nodes.desk()).unwrap(), 0);
    assert_eq!(seqs(&all), (1..=598).chain([601]).collect::<Vec<_>>());
    assert_eq!(copy(&all, 2), Some(body(2)));
    assert!(all.was_dropped(Seq(600)) && all.was_diverted(Seq(599)) && all.is_given(Seq(601)));
}

/// Everything that a keeper is asked.
#[derive(Debug, Clone)]
enum Step {
    Add(Vec<u64>),
    Remove(Vec<u64>),
    Drop(Vec<u64>),
    Divert(Vec<u64>),
    Give(Vec<u64>),
    Release(Vec<u64>),
    Copy(Vec<u64>),
    Scrub,
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(1_u64..12, 1..4);
    prop_oneof![
        4 => some().prop_map(Step::Add),
        2 => some().prop_map(Step::Remove),
        2 => some().prop_map(Step::Drop),
        1 => some().prop_map(Step::Divert),
        2 => some().prop_map(Step::Give),
        1 => some().prop_map(Step::Release),
        2 => some().prop_map(Step::Copy),
        1 => Just(Step::Scrub),
    ]
}

fn obey(letters: &Letters, step: &Step) {
    let of = |seqs: &[u64]| seqs.iter().copied().map(Seq).collect::<Vec<_>>();
    match step {
        Step::Add(seqs) => letters.add(&self::letters(seqs.iter().copied())).unwrap(),
        Step::Remove(seqs) => drop(letters.remove(&of(seqs)).unwrap()),
        Step::Drop(seqs) => drop(letters.drop_for_good(&of(seqs)).unwrap()),
        Step::Divert(seqs) => letters.divert(&of(seqs), None).unwrap(),
        Step::Give(seqs) => drop(letters.give(&self::letters(seqs.iter().copied()), 0).unwrap()),
        Step::Release(seqs) => letters.release(&of(seqs)),
        Step::Copy(seqs) => letters
            .keep_copies(&seqs.iter().map(|seq| event(*seq)).collect::<Vec<_>>())
            .unwrap(),
        Step::Scrub => letters.scrub(&|| ()).unwrap(),
    }
}

type Seen = Vec<(u64, [bool; 7], Option<DeadLetter>, Option<Bytes>)>;

fn seen(letters: &Letters) -> Seen {
    letters.read().unwrap();
    let of = |seq: u64| {
        let at = Seq(seq);
        // Of what was dropped before it was diverted a file may still say that it was dropped.
        let diverted = letters.was_diverted(at);
        let facts = [
            letters.has(at),
            letters.is_given(at),
            letters.is_dead(at),
            letters.was_dropped(at) && !diverted,
            letters.was_given_and_dropped(at) && !diverted,
            diverted,
            letters.given(99, |_| false).iter().any(|(given, _)| *given == at),
        ];
        (seq, facts, letters.get(at).unwrap(), copy(letters, seq))
    };
    (1..12).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whoever writes, every node knows the same as if one machine had kept them.
    #[test]
    fn nodes_know_what_one_machine_would(steps in prop::collection::vec((step(), 0_usize..2), 1..40)) {
        let (nodes, dir) = (Nodes::new(), tempfile::tempdir().unwrap());
        let both = [nodes.of("a"), nodes.of("a")];
        let alone = Letters::open(dir.path(), "a", false).unwrap();
        for (step, node) in &steps {
            obey(&both[*node], step);
            obey(&alone, step);
        }
        let expected = seen(&alone);
        for letters in [&both[0], &both[1], &nodes.of("a")] {
            prop_assert_eq!(&seen(letters), &expected);
            prop_assert_eq!((letters.len(), letters.given_len()), (alone.len(), alone.given_len()));
        }
    }
}
