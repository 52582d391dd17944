//! Storing and finding.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_stored_once_and_comes_back_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=20).await;
    assert_eq!(
        log.append(incoming(body(7, 0))).await.unwrap(),
        Appended::Duplicate(Seq(7))
    );
    assert_eq!(
        log.append(incoming(body(7, 1))).await.unwrap(),
        Appended::Stored(Seq(21))
    );
    assert_eq!(log.find("ev_7").unwrap(), [Seq(7), Seq(21)]);
    let event = log.get(Seq(7)).unwrap().unwrap();
    assert_eq!(event.signature.as_ref().unwrap().timestamp, "1544271440");
    assert_eq!(log.first(), Seq(1));
    log.close();
    assert_eq!(log.append(incoming("x")).await, Err(AppendError::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_delivery_is_kept_once_in_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for (seq, text) in [(1, ""), (2, "[1]"), (3, r#"{"event":{"id":5}}"#), (4, "{\"event\":")] {
        for repeated in [false, true] {
            assert_eq!(
                log.append(incoming(text)).await.unwrap(),
                Appended::Quarantined {
                    seq: Seq(seq),
                    repeated
                },
                "{text}"
            );
        }
        let event = log.get(Seq(seq)).unwrap().unwrap();
        assert_eq!((event.kind, &event.body[..]), (Kind::Quarantined, text.as_bytes()));
        assert!(!event.is_dispatched());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_event_is_no_duplicate_of_its_part_and_a_part_is_one_of_the_full_event() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let part = |log: &LocalLog, id: u64| {
        let log = log.clone();
        async move { log.append(partial(body(id, 0))).await.unwrap() }
    };
    assert_eq!(part(&log, 1).await, Appended::Stored(Seq(1)));
    assert_eq!(part(&log, 1).await, Appended::Duplicate(Seq(1)), "the same part again");
    let key = View::read(body(1, 0).as_bytes()).unwrap().key();
    assert_eq!(log.find_revision(&key).unwrap(), None, "a part is not the event");
    log.close();
    let log = open(dir.path());
    assert_eq!(part(&log, 1).await, Appended::Duplicate(Seq(1)), "after a restart");
    assert_eq!(
        log.append(incoming(body(1, 0))).await.unwrap(),
        Appended::Stored(Seq(2))
    );
    assert_eq!(log.find_revision(&key).unwrap(), Some(Seq(2)));
    assert_eq!(part(&log, 1).await, Appended::Duplicate(Seq(1)));
    assert_eq!(
        log.append(incoming(body(1, 0))).await.unwrap(),
        Appended::Duplicate(Seq(2))
    );
    store(&log, 3..=3).await;
    seal(&log).await;
    assert_eq!(
        part(&log, 3).await,
        Appended::Duplicate(Seq(3)),
        "the full event makes its part superfluous"
    );
    assert_eq!(part(&log, 1).await, Appended::Duplicate(Seq(1)));
    // In one group commit too.
    let (first, second) = tokio::join!(log.append(incoming(body(9, 0))), log.append(partial(body(9, 0))));
    assert!(matches!(first.unwrap(), Appended::Stored(_)) && !matches!(second.unwrap(), Appended::Quarantined { .. }));
    assert_eq!(log.find("ev_1").unwrap(), [Seq(1), Seq(2)]);
    let kind = |seq| log.get(Seq(seq)).unwrap().unwrap().kind;
    assert_eq!((kind(1), kind(2)), (Kind::Partial, Kind::Event));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_in_order_is_stored_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let many = (1..=3000).map(|id| incoming(body(id, 0))).collect();
    let appended = log.append_in_order(many).await;
    let expected: Vec<_> = (1..=3000).map(|seq| Ok(Appended::Stored(Seq(seq)))).collect();
    assert_eq!(appended, expected);
    log.close();
    let closed = log.append_in_order(vec![incoming(body(1, 0))]).await;
    assert_eq!(closed, [Err(AppendError::Closed)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_took_can_come_again_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    // As if a sink had seen more than what is left.
    log.skip_past(Seq(5)).await.unwrap();
    write_lock(&log.shared.known).table(Seq(1)).insert(
        &Identity::of_event(&View::read(body(4, 0).as_bytes()).unwrap().key()),
        Seq(4),
        Timestamp::now(),
    );
    for expected in [Appended::Stored(Seq(6)), Appended::Duplicate(Seq(6))] {
        assert_eq!(log.append(incoming(body(4, 0))).await.unwrap(), expected);
    }
    assert_eq!(
        log.append(incoming(body(3, 0))).await.unwrap(),
        Appended::Duplicate(Seq(3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_deliveries_of_one_event_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut racers = Vec::new();
    for round in 0..40_u64 {
        for _ in 0..8 {
            let log = log.clone();
            racers.push(tokio::spawn(async move {
                (round, log.append(incoming(body(round, 0))).await.unwrap())
            }));
        }
    }
    let mut stored = std::collections::BTreeMap::new();
    let mut answers = Vec::new();
    for racer in racers {
        let (round, answer) = racer.await.unwrap();
        if let Appended::Stored(seq) = answer {
            assert!(
                stored.insert(round, seq).is_none(),
                "I2: event {round} was stored twice"
            );
        }
        answers.push((round, answer));
    }
    for (round, answer) in answers {
        assert!(answer == Appended::Stored(stored[&round]) || answer == Appended::Duplicate(stored[&round]));
    }
    assert_eq!(*log.head().borrow(), Seq(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_events_are_refused_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        reserve: Some(u64::MAX),
        ..options(dir.path())
    })
    .unwrap();
    assert!(matches!(
        log.append(incoming(body(1, 0))).await,
        Err(AppendError::Full(_))
    ));
    assert!(matches!(log.ready(), Err(AppendError::Full(_))));
    assert_eq!(*log.head().borrow(), Seq::ZERO);
    log.close();
    let log = open(dir.path());
    assert_eq!(
        log.append(incoming(body(1, 0))).await.unwrap(),
        Appended::Stored(Seq(1))
    );
    assert_eq!(log.ready(), Ok(()));
    log.close();
}

/// Somebody asks before the first delivery is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_room_says_so_before_anything_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        reserve: Some(u64::MAX),
        ..options(dir.path())
    })
    .unwrap();
    assert!(matches!(log.ready(), Err(AppendError::Full(_))), "at once");
    log.close();
    let log = open(dir.path());
    log.set_room(0);
    wait_until("there is no room", || matches!(log.ready(), Err(AppendError::Full(_))));
    log.set_room(1 << 30);
    wait_until("there is room again", || log.ready().is_ok());
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn seqs_that_sinks_have_seen_are_never_given_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    log.skip_past(Seq(2)).await.unwrap();
    store(&log, 4..=4).await;
    log.skip_past(Seq(9)).await.unwrap();
    assert_eq!(
        log.append(incoming(body(10, 0))).await.unwrap(),
        Appended::Stored(Seq(10))
    );
    for _ in 0..2 {
        let log = if log.ready().is_ok() {
            log.clone()
        } else {
            open(dir.path())
        };
        assert_eq!(ids(&log), (vec![1, 2, 3, 4, 10], vec![(5, 9)]));
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_found_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let base = Timestamp::now().as_second() - 3600;
    let at = |second: i64| Timestamp::from_second(base + second).unwrap();
    for id in 1..=30_u64 {
        let incoming = Incoming {
            received_at: at(id as i64 * 10),
            ..incoming(body(id, 0))
        };
        assert_eq!(log.append(incoming).await.unwrap(), Appended::Stored(Seq(id)));
        if id % 10 == 0 && id < 30 {
            seal(&log).await;
        }
    }
    for (second, seq) in [(0, 1), (10, 1), (11, 2), (100, 10), (101, 11), (300, 30), (301, 31)] {
        assert_eq!(log.seq_at(at(second)).unwrap(), Seq(seq), "{second}");
    }
    log.close();
}

/// In a flood more segments may be unsealed than a process may have files open.
#[tokio::test(flavor = "multi_thread")]
async fn a_complete_journal_keeps_no_file_open_and_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    let open_below = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let below =
            |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(dir.path()));
        fds.filter(below).count()
    };
    let before = open_below();
    for id in 1..=40 {
        store(&log, id..=id).await;
        log.roll().await.unwrap();
    }
    assert_eq!(log.stats().unsealed, 41);
    assert_eq!(ids(&log), ((1..=40).collect(), vec![]));
    assert_eq!(open_below(), before, "but for the newest none is open");
    log.close();
    let log = open(dir.path());
    assert_eq!(log.stats().unsealed, 41);
    assert_eq!(ids(&log), ((1..=40).collect(), vec![]));
    assert_eq!(open_below(), before);
    log.close();
}

/// Whoever holds a journal that has given way looks again, and finds what is there now.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_gave_way_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    let Some(Segment::Open(journal)) = log.shared.segment(Seq(1)) else {
        panic!("it is not sealed")
    };
    // Another offline look at the same directory, from before.
    let visitor = LocalLog::open(Options {
        read_only: true,
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    assert_eq!(erase(&log, |event| event.seq == Seq(4)).await, [Seq(4)]);
    let block = journal.blocks()[6];
    assert!(journal.is_retired() && journal.read(block).is_err());
    let erased = |log: &LocalLog| {
        let events = log.read(Seq(1), 100, 1 << 20).unwrap().events;
        let erased = events.iter().filter(|event| event.kind == Kind::Erased);
        (events.len(), erased.map(|event| event.seq.0).collect::<Vec<_>>())
    };
    assert_eq!(erased(&log), (10, vec![4]));
    assert_eq!(erased(&visitor), (10, vec![4]), "it sees the new one");
    seal(&log).await;
    assert_eq!(erased(&log), (10, vec![4]));
    assert_eq!(erased(&visitor), (10, vec![4]), "and the sealed one");
    assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
    // Dropped, it is just gone.
    store(&log, 11..=15).await;
    log.roll().await.unwrap();
    let visitor = LocalLog::open(Options {
        read_only: true,
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 16..=16).await;
    assert_eq!(log.drop_before(Seq(16)).await, Ok(Seq(16)));
    let batch = visitor.read(Seq(11), 100, 1 << 20).unwrap();
    assert_eq!((batch.events.len(), batch.lost), (0, vec![(Seq(11), Seq(15))]));
    assert!(log.stats().gaps.is_empty());
    log.close();
}

/// A question for a few events must not hold every block that one of them lies in.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_looked_up_holds_no_more_than_itself() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=200).await;
    seal(&log).await;
    let narrow = Narrow {
        ids: ["ev_7".into(), "ev_150".into()].into(),
        ..Narrow::default()
    };
    let take = crate::log::Take {
        events: 100,
        bytes: 1 << 20,
        narrow: Some(&narrow),
    };
    let batch = Log::read(&log, Seq(1), take).await.unwrap();
    let found = |seq: u64| batch.events.iter().find(|event| event.seq == Seq(seq));
    for seq in [7, 150] {
        assert!(found(seq).unwrap().body.is_unique(), "event {seq} holds its block");
    }
    log.close();
}
