//! Going back through the log gives what going forwards gives, and costs what it shows.

use super::*;
use crate::log::{BatchBack, TakeBack};

/// One of five leads, one of three types; as long as few fill a pack.
async fn store_various(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        let noise: String = (0..2000).map(|_| fastrand::alphanumeric()).collect();
        let (lead, action) = (id % 5, ["created", "updated", "deleted"][id as usize % 3]);
        let body = format!(
            r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"{action}","lead_id":"lead_{lead}","data":"{noise}"}}}}"#
        );
        assert_eq!(log.append(incoming(body)).await, Ok(Appended::Stored(Seq(id))));
    }
}

fn all() -> TakeBack<'static> {
    TakeBack {
        from: Seq(1),
        events: usize::MAX,
        bytes: usize::MAX,
        within: Duration::from_secs(3600),
        narrow: None,
        since: None,
        until: None,
    }
}

/// All the way back, a batch at a time; how many events were given, and which of them are meant.
async fn back(log: &LocalLog, before: u64, take: TakeBack<'_>) -> (usize, Vec<u64>, Vec<(u64, u64)>) {
    let (mut given, mut meant, mut lost) = (0, Vec::new(), Vec::new());
    let mut before = Seq(before);
    while before > take.from {
        let batch: BatchBack = Log::read_back(log, before, take).await.unwrap();
        assert!(batch.reached < before, "it gets on: {before} {batch:?}");
        assert!(batch.events.len() <= take.events);
        for event in &batch.events {
            assert!(event.seq < before && event.seq >= batch.reached);
            before = event.seq;
            given += 1;
            let is_meant = take.narrow.is_none_or(|narrow| narrow.leaves(event))
                && take.since.is_none_or(|since| event.received_at >= since)
                && take.until.is_none_or(|until| event.received_at < until);
            meant.extend(is_meant.then_some(event.seq.0));
        }
        lost.extend(batch.lost.iter().map(|(from, to)| (from.0, to.0)));
        before = batch.reached;
    }
    (given, meant, lost)
}

/// Two sealed segments and an open one, of 20 events each, a day between them.
async fn log_of_three_days() -> (tempfile::TempDir, LocalLog, Vec<Timestamp>) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut begins = Vec::new();
    for (day, ids) in [1..=20, 21..=40, 41..=60].into_iter().enumerate() {
        let at = Timestamp::from_second(1_700_000_000 + 86_400 * day as i64).unwrap();
        begins.push(at);
        for id in ids {
            let noise: String = (0..20_000).map(|_| fastrand::alphanumeric()).collect();
            let (lead, action) = (id % 5, ["created", "updated", "deleted"][id as usize % 3]);
            let body = format!(
                r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"{action}","lead_id":"lead_{lead}","data":"{noise}"}}}}"#
            );
            let received_at = at + Duration::from_secs(60 * (id % 20));
            let event = Incoming::new(body.into(), received_at, Source::Webhook, None);
            assert_eq!(log.append(event).await, Ok(Appended::Stored(Seq(id))));
        }
        if day < 2 {
            seal(&log).await;
        }
    }
    (dir, log, begins)
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_gives_what_going_forwards_gives() {
    let (_dir, log, begins) = log_of_three_days().await;
    let of = |leads: &[&str], types: &[&str], ids: &[&str]| Narrow {
        ids: ids.iter().map(ToString::to_string).collect(),
        leads: leads.iter().map(ToString::to_string).collect(),
        types: types.iter().map(ToString::to_string).collect(),
        ..Narrow::default()
    };
    let narrows = [
        Narrow::default(),
        of(&["lead_2"], &[], &[]),
        of(&[], &["lead.deleted"], &[]),
        of(&["lead_2"], &["*.created"], &[]),
        of(&[], &[], &["ev_7", "ev_55"]),
        of(&["lead_9"], &[], &[]),
    ];
    let forwards = log.read(Seq(1), 100, usize::MAX).unwrap().events;
    for narrow in &narrows {
        for (since, until) in [
            (None, None),
            (Some(begins[1]), None),
            (None, Some(begins[2])),
            (
                Some(begins[1] + Duration::from_secs(300)),
                Some(begins[2] + Duration::from_secs(300)),
            ),
        ] {
            for (before, from) in [(61, 1), (1000, 1), (47, 13), (21, 20), (2, 1)] {
                for (events, bytes) in [
                    (1, usize::MAX),
                    (7, usize::MAX),
                    (1000, 1),
                    (1000, 100_000),
                    (1000, usize::MAX),
                ] {
                    let take = TakeBack {
                        from: Seq(from),
                        events,
                        bytes,
                        narrow: Some(narrow),
                        since,
                        until,
                        ..all()
                    };
                    let (_, meant, lost) = back(&log, before, take).await;
                    let wanted = forwards.iter().rev().filter(|event| {
                        (from..before).contains(&event.seq.0)
                            && narrow.leaves(event)
                            && since.is_none_or(|since| event.received_at >= since)
                            && until.is_none_or(|until| event.received_at < until)
                    });
                    let wanted: Vec<u64> = wanted.map(|event| event.seq.0).collect();
                    assert_eq!(
                        meant, wanted,
                        "{narrow:?} {since:?} {until:?} {before} {from} {events} {bytes}"
                    );
                    assert_eq!(lost, []);
                }
            }
        }
    }
}

/// What the index and the times rule out is not read.
#[tokio::test(flavor = "multi_thread")]
async fn going_back_reads_what_it_is_asked_for() {
    let (_dir, log, begins) = log_of_three_days().await;
    let narrow = Narrow {
        leads: ["lead_2".to_owned()].into(),
        ..Narrow::default()
    };
    let take = TakeBack {
        narrow: Some(&narrow),
        ..all()
    };
    // All of the segment that has no index yet, and of the others what is meant.
    let (given, meant, _) = back(&log, 61, take).await;
    assert_eq!((given, meant.len()), (20 + 8, 12));
    let take = TakeBack {
        until: Some(begins[1]),
        ..all()
    };
    let (given, meant, _) = back(&log, 61, take).await;
    assert_eq!((given, meant.len()), (20, 20));
    // A moment is enough for one step.
    let take = TakeBack {
        within: Duration::ZERO,
        narrow: Some(&narrow),
        ..all()
    };
    assert_eq!(back(&log, 61, take).await.1.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_says_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store_various(&log, 1..=10).await;
    seal(&log).await;
    store_various(&log, 11..=20).await;
    seal(&log).await;
    store_various(&log, 21..=30).await;
    write_lock(&log.shared.segments).remove(&Seq(11));
    let narrow = Narrow {
        leads: ["lead_2".to_owned()].into(),
        ..Narrow::default()
    };
    for narrow in [None, Some(&narrow)] {
        let (_, meant, lost) = back(&log, 31, TakeBack { narrow, ..all() }).await;
        assert_eq!(lost, [(11, 20)], "{narrow:?}");
        let expected = (1..=10).chain(21..=30).rev();
        let expected: Vec<u64> = expected.filter(|id| narrow.is_none() || id % 5 == 2).collect();
        assert_eq!(meant, expected);
    }
    // What has expired is not lost.
    write_lock(&log.shared.segments).remove(&Seq(1));
    let (_, meant, lost) = back(&log, 31, all()).await;
    assert_eq!((meant.len(), lost), (10, vec![]));
}
