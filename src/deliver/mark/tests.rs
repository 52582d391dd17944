use super::*;
use crate::deliver::feed::{Feed, SavedItem, Tries};
use crate::sinks::Mark;

pub(in crate::deliver) fn saved(next: u64, open: &[u64]) -> Saved {
    let item = |seq: &u64| SavedItem {
        seq: Seq(*seq),
        tries: Tries::default(),
        due: None,
        lead: None,
        received_at: None,
        held: None,
        parked: None,
    };
    Saved {
        next: Seq(next),
        open: open.iter().map(item).collect(),
    }
}

pub(in crate::deliver) fn record(next: u64, open: &[u64]) -> Record {
    Record {
        main: Some(saved(next, open)),
        ..Record::default()
    }
}

#[test]
fn whoever_knows_more_of_the_receivers_transactions_is_believed() {
    let with = |commits, next, remove: &[u64]| Record {
        commits,
        remove: remove.iter().map(|seq| Seq(*seq)).collect(),
        ..record(next, &[])
    };
    let ours = with(5, 50, &[]);
    let settled = |theirs: &Record, epoch: &str| {
        let mark = theirs.to_mark(epoch);
        ours.settled_with(Some(&mark), "now", |_| false).unwrap()
    };
    assert_eq!(
        settled(&with(6, 60, &[3]), "now"),
        with(6, 60, &[3]),
        "a commit whose answer was lost"
    );
    assert_eq!(
        settled(&with(5, 40, &[3]), "now"),
        ours,
        "what came after it is known here only"
    );
    assert_eq!(
        settled(&with(4, 30, &[3]), "now"),
        with(4, 30, &[]),
        "the receiver was set back"
    );
    assert_eq!(settled(&with(9, 90, &[]), "before"), ours, "another life of the log");
    assert_eq!(ours.settled_with(None, "now", |_| false).unwrap(), ours);
    let damaged = Mark {
        text: "nonsense".into(),
        ..ours.to_mark("now")
    };
    assert!(ours.settled_with(Some(&damaged), "now", |_| false).is_err());
}

/// It was paused from the start, and another sink gives it what it gives up.
#[test]
fn damage_to_what_was_given_to_a_sink_that_has_read_nothing_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "letters once").unwrap();
    let letters = Letters::open(dir.path(), "a", false).unwrap();
    let mut record = record(1, &[]);
    assert!(record.compare_letters(&letters));
    assert!(record.letters_lost_upto > Seq::ZERO);
    // When it is not damaged any more that is all that is known.
    let clean = Letters::open(dir.path(), "a", false).unwrap();
    assert!(!record.compare_letters(&clean) && !clean.is_damaged());
    clean.note_lost_upto(record.letters_lost_upto);
    let giver = Letters::open(dir.path(), "giver", false).unwrap();
    giver.divert(&[Seq(7)], None).unwrap();
    assert!(clean.may_have_lost_given(Seq(7), &[giver]));
}

/// Each of a receiver's transactions has to write it.
#[test]
fn a_mark_with_all_that_waits_for_its_object_to_settle_stays_short_and_is_read_again() {
    let mut feed = Feed::restore(&saved(1, &[]), crate::config::Order::None);
    let now = Timestamp::UNIX_EPOCH;
    for seq in 1..=2048_u64 {
        // As long as Close's are, and as random.
        let object: String = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(seq.to_le_bytes()));
        let body = format!(
            r#"{{"event":{{"id":"ev_{seq}","object_id":"lead_{}"}}}}"#,
            &object[..43]
        );
        let (source, kind) = (crate::event::Source::Webhook, crate::event::Kind::Event);
        let event = crate::event::Event::new(Seq(seq), now, source, kind, None, body.into());
        feed.settle(&event, SignedDuration::from_secs(3600), |wait| {
            now.checked_add(wait).unwrap()
        });
    }
    let record = Record {
        main: Some(feed.save()),
        commits: 1,
        ..Record::default()
    };
    let plain = serde_json::to_string(&record).unwrap().len();
    let mark = record.to_mark("now");
    assert!(
        plain > 400_000 && mark.text.len() < plain / 4,
        "{plain} and {}",
        mark.text.len()
    );
    let settled = self::record(1, &[])
        .settled_with(Some(&mark), "now", |_| false)
        .unwrap();
    assert_eq!(settled.main, record.main);
    let short = self::record(5, &[]).to_mark("now");
    assert!(short.text.starts_with('{'), "as before");
}

#[test]
fn a_receivers_mark_says_that_another_node_has_had_the_sink_since() {
    let of = |fence| Record {
        fence,
        ..record(10, &[])
    };
    let mark = of(2).to_mark("now");
    assert!(of(1).is_behind(&mark, "now"));
    assert!(!of(2).is_behind(&mark, "now") && !of(3).is_behind(&mark, "now"));
    assert!(!of(1).is_behind(&mark, "then"), "another life of the log");
    let mut long = of(2);
    long.lost_ranges = (0..2000).map(|n| (Seq(n * 10), Seq(n * 10 + 1))).collect();
    let packed = long.to_mark("now");
    assert!(!packed.text.starts_with('{'), "it is long enough to be packed");
    assert!(of(1).is_behind(&packed, "now") && !of(2).is_behind(&packed, "now"));
    assert_eq!(of(3).settled_with(Some(&mark), "now", |_| false).unwrap().fence, 3);
    assert!(
        !serde_json::to_string(&of(0)).unwrap().contains("fence"),
        "a node that is alone has none"
    );
}

fn settle(ours: &Record, theirs: &Record, dead: &[u64]) -> Record {
    let mark = theirs.to_mark("now");
    ours.settled_with(Some(&mark), "now", |seq| dead.contains(&seq.0))
        .unwrap()
}

fn seqs(seqs: &[u64]) -> Vec<Seq> {
    seqs.iter().copied().map(Seq).collect()
}

/// The receiver has committed 12 and 14, and nobody heard of it; then 11 to 19 were buried.
#[test]
fn a_letter_made_in_doubt_goes_when_the_receiver_turns_out_to_have_the_event() {
    let mut theirs = record(18, &[11, 13, 15, 16, 17]);
    theirs.commits = 1;
    theirs.delivered.extend(seqs(&[9, 12, 14]));
    let ours = Record {
        remove: seqs(&[3]),
        buried: 9,
        ..record(20, &[])
    };
    let settled = settle(&ours, &theirs, &[11, 12, 13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(
        settled.main,
        Some(saved(20, &[])),
        "what is dead here is not delivered as well"
    );
    assert_eq!(settled.remove, seqs(&[3, 12, 14]), "and 9 is no letter");
    assert_eq!((settled.commits, settled.buried), (1, 9));
    assert!(settled.delivered.is_empty());
}

#[test]
fn what_either_side_has_finished_is_finished() {
    let mut theirs = Record {
        commits: 4,
        remove: seqs(&[2]),
        ..record(30, &[11, 12, 25])
    };
    theirs.count_lost(Seq(21), Seq(22));
    let mut ours = Record {
        commits: 3,
        ..record(20, &[12, 13, 14])
    };
    ours.main.as_mut().unwrap().open[0].tries.reason = "here".into();
    let settled = settle(&ours, &theirs, &[]);
    let main = settled.main.as_ref().unwrap();
    assert_eq!(
        (main.next, main.open.iter().map(|item| item.seq).collect::<Vec<_>>()),
        (Seq(30), seqs(&[12, 25])),
        "11 was finished here, 13 and 14 there"
    );
    assert_eq!(main.open[0].tries.reason, "here");
    assert_eq!(
        (settled.lost, settled.has_lost(Seq(21)), settled.remove),
        (2, true, seqs(&[2]))
    );
    // The other way around nobody has read further than the receiver's transaction was made with.
    theirs.main = Some(saved(15, &[11, 12]));
    assert_eq!(settle(&ours, &theirs, &[]).main.unwrap().open.len(), 1);
}

#[test]
fn a_sink_whose_receiver_kept_its_position_has_not_begun_anew() {
    let at = Some(Timestamp::UNIX_EPOCH);
    let lost = Record {
        begun_anew: at,
        ..record(1, &[])
    };
    let mut theirs = Record {
        commits: 7,
        ..record(50, &[])
    };
    let settled = settle(&lost, &theirs, &[]);
    assert_eq!((settled.cursor(), settled.begun_anew), (Some(Seq(49)), None));
    // What it has got since then it has got again.
    theirs.begun_anew = at;
    assert_eq!(settle(&lost, &theirs, &[]).begun_anew, at);
    let seen = Record {
        begun_anew: None,
        ..lost
    };
    assert_eq!(settle(&seen, &theirs, &[]).begun_anew, None, "somebody has seen it");
}

#[test]
fn a_replay_goes_on_from_what_both_sides_have_finished() {
    let replay = |next, open: &[u64], delivered, lost| ReplayRecord {
        saved: saved(next, open),
        delivered,
        lost,
        ..ReplayRecord::default()
    };
    let mut ours = record(50, &[]);
    ours.replays.insert("rp_1".into(), replay(20, &[12], 3, 7));
    ours.replays.insert("rp_2".into(), replay(5, &[], 0, 4));
    let mut theirs = record(50, &[]);
    theirs.commits = 1;
    theirs.replays.insert("rp_1".into(), replay(15, &[11], 5, 0));
    let settled = settle(&ours, &theirs, &[]);
    assert_eq!(settled.replays["rp_1"], replay(20, &[], 5, 7));
    assert_eq!(settled.replays["rp_2"], ours.replays["rp_2"], "begun since");
}

#[test]
fn a_receiver_that_was_set_back_has_the_letters_again_that_were_delivered_since() {
    let ours = Record {
        commits: 9,
        remove: seqs(&[3, 4]),
        buried: 2,
        ..record(50, &[])
    };
    let theirs = Record {
        commits: 7,
        remove: seqs(&[2, 3]),
        ..record(40, &[33])
    };
    let settled = settle(&ours, &theirs, &[33]);
    assert_eq!((settled.main, settled.commits), (Some(saved(40, &[33])), 7));
    assert_eq!(settled.remove, seqs(&[3]));
    assert_eq!(settled.buried, 2);
}

/// As written by the version before this one.
#[test]
fn an_older_record_is_read() {
    let text = r#"{"main":{"next":5,"open":[{"seq":3,"attempts":2,"first_attempt":"2024-02-15T12:00:00Z","reason":"no","due":null,"lead":null}]},
        "position":{"len":7},"paused":true,"lost":1,"replays":{"rp_1":{"saved":{"next":2,"open":[]},"delivered":1,"dead":0,"done":false}},
        "detached_at":null,"saved_at":"2024-02-15T12:00:00Z"}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!((record.cursor(), record.paused, record.lost), (Some(Seq(2)), true, 1));
    assert_eq!(record.replays["rp_1"].saved.next, Seq(2));
}

/// A record that was tried, and has held its sink up, for an hour when it was saved.
pub(in crate::deliver) fn waiting_for_an_hour(saved_at: Timestamp, saved_by: Option<&str>) -> Record {
    let began = Some(saved_at - SignedDuration::from_hours(1));
    let mut record = Record {
        saved_at: Some(saved_at),
        saved_by: saved_by.map(str::to_owned),
        held_since: began,
        held_counted_from: began,
        ..record(9, &[8])
    };
    let tries = &mut record.main.as_mut().unwrap().open[0].tries;
    (tries.attempts, tries.first_attempt, tries.counted_from) = (3, began, began);
    record
}

#[test]
fn what_another_process_has_counted_goes_on_from_here_once() {
    let now = schedule::now();
    let hour = SignedDuration::from_hours(1);
    let counted = |record: &Record| record.main.as_ref().unwrap().open[0].tries.counted_from;
    for (saved_at, saved_by, why) in [
        (now - hour * 50, Some("another"), "long ago"),
        (now, Some("another"), "its clock showed what this one's shows"),
        (now - hour * 50, None, "by an older closehook"),
    ] {
        let mut record = waiting_for_an_hour(saved_at, saved_by);
        record.follow_clock(now);
        assert_eq!(
            (counted(&record), record.held_counted_from),
            (Some(now - hour), Some(now - hour)),
            "{why}"
        );
        assert_eq!(
            (record.saved_at, record.saved_by.as_deref()),
            (Some(now), Some(schedule::process()))
        );
        let once = record.clone();
        record.follow_clock(now + hour);
        assert_eq!(record, once, "{why}: twice");
    }
    // What this process has counted is by its own clock.
    let own = waiting_for_an_hour(now, Some(schedule::process()));
    let mut followed = own.clone();
    followed.follow_clock(now + hour);
    assert_eq!(followed, own);
    // A clock that was ahead is followed once, too.
    let mut ahead = waiting_for_an_hour(now + hour * 5, Some("another"));
    ahead.main.as_mut().unwrap().open[0].due = Some(now + hour * 6);
    for _ in 0..2 {
        ahead.follow_clock(now);
        assert_eq!(ahead.main.as_ref().unwrap().open[0].due, Some(now + hour));
    }
}
