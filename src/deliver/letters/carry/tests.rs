//! There and back, and cut off in between. What servers make of it is tried in `tests/it/jetstream_copy.rs`.

use std::sync::atomic::Ordering;

use super::super::import::import;
use super::super::stream::tests::{Nodes, body, copy, event, letters, seqs};
use super::*;

/// A sink's file with something of everything.
fn fill(dir: &Path) -> Letters {
    let own = Letters::open(dir, "a", false).unwrap();
    own.add(&letters(1..=600)).unwrap();
    own.keep_copies(&[event(1), event(2), event(300)]).unwrap();
    own.drop_for_good(&[Seq(600)]).unwrap();
    own.divert(&[Seq(599)], Some("replay-1")).unwrap();
    own.give(&letters(601..=604), 0).unwrap();
    own.drop_for_good(&[Seq(604)]).unwrap();
    own.release(&[Seq(601)]);
    own.remove(&[Seq(3)]).unwrap();
    own
}

fn is_whole(letters: &Letters) {
    let kept: Vec<u64> = (1..=598).filter(|seq| *seq != 3).chain(601..=603).collect();
    assert_eq!(seqs(letters), kept);
    assert_eq!(copy(letters, 2), Some(body(2)));
    assert_eq!(copy(letters, 300), Some(body(300)));
    assert!(letters.was_dropped(Seq(600)) && letters.was_diverted(Seq(599)));
    assert!(letters.was_diverted_by("replay-1", Seq(599)) && letters.was_given_and_dropped(Seq(604)));
    assert!(letters.is_given(Seq(601)) && letters.is_released(Seq(601)) && !letters.is_released(Seq(602)));
    assert!(!letters.has(Seq(3)) && !letters.is_dead(Seq(3)));
}

fn expected() -> Carried {
    Carried {
        letters: 597,
        given: 3,
        damaged: Vec::new(),
    }
}

#[test]
fn letters_go_into_a_journal_and_back_with_all_that_is_known_of_those_that_went() {
    let (nodes, dir, back) = (Nodes::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(fill(dir.path()));
    let before = std::fs::read(dir.path().join("a")).unwrap();
    assert_eq!(carry_into(dir.path(), &nodes.desk()).unwrap(), expected());
    is_whole(&nodes.of("a"));
    assert_eq!(
        std::fs::read(dir.path().join("a")).unwrap(),
        before,
        "it is still of the log here"
    );
    assert_eq!(fetch_from(back.path(), &nodes.desk()).unwrap(), expected());
    is_whole(&Letters::open(back.path(), "a", false).unwrap());
}

#[test]
fn what_an_earlier_try_has_left_is_neither_twice_nor_in_the_way() {
    let (nodes, dir) = (Nodes::new(), tempfile::tempdir().unwrap());
    drop(fill(dir.path()));
    let own = nodes.of("a");
    own.add(&letters([1, 2, 3, 700])).unwrap();
    own.drop_for_good(&[Seq(5)]).unwrap();
    nodes.of("of-no-file").add(&letters([1])).unwrap();
    nodes.memory.is_cut.store(true, Ordering::SeqCst);
    carry_into(dir.path(), &nodes.desk()).unwrap_err();
    nodes.memory.is_cut.store(false, Ordering::SeqCst);
    assert_eq!(carry_into(dir.path(), &nodes.desk()).unwrap(), expected());
    is_whole(&nodes.of("a"));
    assert_eq!(seqs(&nodes.of("of-no-file")), [0; 0]);
    // What is whole already is not written again.
    let end = nodes.memory.count();
    assert_eq!(carry_into(dir.path(), &nodes.desk()).unwrap(), expected());
    assert_eq!(nodes.memory.count(), end);

    let back = tempfile::tempdir().unwrap();
    let left = Letters::open(back.path(), "a", false).unwrap();
    left.add(&letters([1, 3, 800])).unwrap();
    drop(left);
    let other = Letters::open(back.path(), "b", false).unwrap();
    other.add(&letters([1])).unwrap();
    drop(other);
    // The last one was cut off in the middle of a letter.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(back.path().join("a"))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() - 5).unwrap();
    assert_eq!(fetch_from(back.path(), &nodes.desk()).unwrap(), expected());
    is_whole(&Letters::open(back.path(), "a", false).unwrap());
    assert!(!back.path().join("b").exists());
}

#[test]
fn what_a_replay_has_given_to_other_sinks_is_taken_over_as_well() {
    let (nodes, dir) = (Nodes::new(), tempfile::tempdir().unwrap());
    drop(fill(dir.path()));
    assert_eq!(import(dir.path(), &nodes.desk()).unwrap(), 600);
    is_whole(&nodes.of("a"));
}

#[test]
fn what_damage_has_taken_of_a_journals_letters_is_noted_where_they_go() {
    let nodes = Nodes::new();
    let own = nodes.of("a");
    own.add(&letters(1..=9)).unwrap();
    let place = own.index(|index| index.places[&Seq(3)].offset);
    nodes.memory.damaged.lock().unwrap().insert(place);
    let mut record = crate::deliver::mark::Record::default();
    record.begin_at(Seq(31));
    let noted = |sink: &str, record: &crate::deliver::mark::Record| {
        let key = crate::deliver::mark::record_key(sink);
        let value = serde_json::to_vec(record).unwrap();
        let value = crate::deliver::carry::fetched_value(&nodes.desk(), &key, value).unwrap();
        let fetched: crate::deliver::mark::Record = serde_json::from_slice(&value).unwrap();
        assert_eq!((fetched.letters_doubted, fetched.cursor()), (None, Some(Seq(30))));
        fetched.letters_lost_upto
    };
    assert_eq!(noted("a", &record), Seq(30));
    assert_eq!(noted("b", &record), Seq::ZERO, "it has none");
    // It was noted when the sink had got as far as that.
    record.letters_lost_upto = Seq(12);
    record.letters_doubted = Some(place);
    assert_eq!(noted("a", &record), Seq(12));
}

#[test]
fn what_is_damaged_is_said_and_keeps_nothing_else_behind() {
    let (nodes, dir) = (Nodes::new(), tempfile::tempdir().unwrap());
    let own = Letters::open(dir.path(), "a", false).unwrap();
    own.add(&letters(1..=50)).unwrap();
    drop(own);
    let path = dir.path().join("a");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let carried = carry_into(dir.path(), &nodes.desk()).unwrap();
    assert_eq!((carried.letters, carried.damaged.len()), (49, 1), "{carried:?}");
    assert!(carried.damaged[0].contains("sink \"a\""), "{carried:?}");
    assert_eq!(seqs(&nodes.of("a")).len(), 49);
}
