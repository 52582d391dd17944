use super::*;
use crate::deliver::feed::{Saved, SavedItem, Tries};
use crate::deliver::types::{RetryProgress, Waiter};

/// One that was taken, and of which nothing else is known.
fn item(seq: u64) -> SavedItem {
    SavedItem {
        seq: Seq(seq),
        tries: Tries::default(),
        due: None,
        lead: None,
        received_at: None,
        held: None,
        parked: None,
    }
}

#[test]
fn every_lane_has_its_turn_however_busy_the_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let letters = Letters::open(dir.path(), "a", false).unwrap();
    let mut lanes = Lanes::restore(&Record::default(), &[], Order::None, &letters, &Memory::default());
    let go = |lanes: &mut Lanes, ready: &[Lane]| {
        let lane = lanes.turns().into_iter().find(|lane| ready.contains(lane)).unwrap();
        lanes.goes(&lane);
        lane
    };
    let both = [Lane::Main, Lane::Letters];
    let went: Vec<Lane> = (0..4).map(|_| go(&mut lanes, &both)).collect();
    assert_eq!(went, [Lane::Main, Lane::Letters, Lane::Main, Lane::Letters]);
    assert_eq!(
        go(&mut lanes, &[Lane::Letters]),
        Lane::Letters,
        "nobody waits for one that has nothing"
    );
    assert_eq!(go(&mut lanes, &[Lane::Main]), Lane::Main);
    assert_eq!(go(&mut lanes, &[Lane::Main]), Lane::Main);
    assert_eq!(go(&mut lanes, &both), Lane::Letters);
}

/// With the receiver set back, what became a dead letter since stays one.
#[test]
fn what_is_dead_is_not_open_again() {
    let dir = tempfile::tempdir().unwrap();
    let letters = Letters::open(dir.path(), "a", false).unwrap();
    let event = crate::event::Event::new(
        Seq(33),
        Timestamp::UNIX_EPOCH,
        crate::event::Source::Webhook,
        crate::event::Kind::Event,
        None,
        "{}".into(),
    );
    let letter = crate::deliver::types::dead_letter("a", &event, "no".into(), 1, None);
    letters.add(&[letter]).unwrap();
    let record = Record {
        main: Some(Saved {
            next: Seq(40),
            open: vec![item(33), item(34)],
        }),
        ..Record::default()
    };
    let lanes = Lanes::restore(&record, &[], Order::None, &letters, &Memory::default());
    assert_eq!(lanes.main.open_seqs(), [Seq(34)]);
}

/// Without a log to follow a sink is opened only for that.
#[test]
fn what_is_open_and_letters_that_are_to_be_tried_are_work() {
    let dir = tempfile::tempdir().unwrap();
    let letters = Letters::open(dir.path(), "a", false).unwrap();
    let restored = |record: &Record| Lanes::restore(record, &[], Order::None, &letters, &Memory::default());
    let mut lanes = restored(&Record::default());
    assert!(!lanes.any_work());
    let progress = Arc::new(RetryProgress::new(1));
    lanes.letters.ask(Waiter::each(vec![Seq(1)], &progress));
    assert!(lanes.any_work());
    let record = Record {
        main: Some(Saved {
            next: Seq(40),
            open: vec![item(34)],
        }),
        ..Record::default()
    };
    assert!(restored(&record).any_work());
}
