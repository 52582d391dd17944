//! What goes, and when: never by itself, at once when told to, and the log keeps to its room.

use std::pin::pin;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_complete_goes_although_its_sealing_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        round: Duration::from_millis(50),
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (log, stop) = (log.clone(), stop.clone());
        tokio::spawn(async move {
            let mut id = 11;
            while !stop.load(Ordering::Relaxed) {
                let many = (id..id + 1000).map(|id| incoming(body(id, 0))).collect();
                log.append_in_order(many).await;
                id += 1000;
            }
        })
    };
    let begun = journal::segment_dir(&dir.path().join("log"), Seq(1)).join("sled");
    wait_until("sealing has begun", || begun.exists());
    let dropped = tokio::time::timeout(Duration::from_secs(3), Log::drop_before(&log, Seq(11))).await;
    stop.store(true, Ordering::Relaxed);
    flood.await.unwrap();
    assert_eq!(dropped.expect("it waits for no sealing"), Ok(Seq(11)));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_to_its_room() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    Log::set_room(&log, 1 << 20);
    let mut full = false;
    for round in 0..40 {
        let many = (round * 1000 + 1..=round * 1000 + 1000)
            .map(|id| incoming(body(id, 0)))
            .collect();
        full |= log
            .append_in_order(many)
            .await
            .iter()
            .any(|answer| matches!(answer, Err(AppendError::Full(_))));
        let used: u64 = walk(&dir.path().join("log"))
            .iter()
            .map(|path| std::fs::metadata(path).map_or(0, |m| m.len()))
            .sum();
        assert!(used < (1 << 20) + (512 << 10), "{used}");
    }
    assert!(full);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_by_itself_and_all_that_is_told_to_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (now, days) = days_ahead();
    let log = LocalLog::open(Options {
        now,
        segment_age: Duration::from_secs(3650 * 86_400),
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    log.roll().await.unwrap();
    store(&log, 21..=30).await;
    days.store(30, Ordering::SeqCst);
    log.go_round().await.unwrap();
    assert_eq!(log.first(), Seq(1), "however old it is");
    let cuts: Vec<u64> = log.cuts().iter().map(|cut| cut.before.0).collect();
    assert_eq!(cuts, [11, 21], "all but the newest can go");
    let (before, _) = log.disk_bytes();
    assert_eq!(log.drop_before(Seq(20)).await, Ok(Seq(11)), "whole segments only");
    assert!(!segment(dir.path(), 1).exists(), "its space is given back");
    // The second is a journal still where there was no round since; its keys outlive it all the same.
    assert_eq!(log.drop_before(Seq(1000)).await, Ok(Seq(21)), "the newest stays");
    assert!(log.disk_bytes().0 < before);
    let batch = log.read(Seq(1), 100, 1 << 20).unwrap();
    assert_eq!((batch.lost.clone(), batch.events.len()), (vec![(Seq(1), Seq(20))], 10));
    assert!(log.get(Seq(5)).unwrap().is_none());
    log.close();
    let log = LocalLog::open(options(dir.path())).unwrap();
    for id in [5, 15, 25] {
        let again = log.append(incoming(body(id, 0))).await.unwrap();
        assert_eq!(again, Appended::Duplicate(Seq(id)), "keys outlive segments");
    }
    assert!(log.stats().gaps.is_empty());
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_unsealed_segment_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    store(&log, 11..=20).await;
    assert_eq!(log.stats().unsealed, 2);
    assert_eq!(log.drop_before(Seq(11)).await, Ok(Seq(11)));
    log.close();
    let log = open(dir.path());
    assert_eq!(
        log.append(incoming(body(5, 0))).await.unwrap(),
        Appended::Duplicate(Seq(5))
    );
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_expire_when_nothing_can_come_again_and_their_events_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (now, days) = days_ahead();
    let log = LocalLog::open(Options {
        now,
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=11).await;
    days.store(40, Ordering::SeqCst);
    log.go_round().await.unwrap();
    assert_eq!(log.find("ev_5").unwrap(), [Seq(5)], "it is kept");
    log.drop_before(Seq(11)).await.unwrap();
    log.go_round().await.unwrap();
    assert_eq!(log.find("ev_5").unwrap(), []);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_do_not_expire_by_a_clock_that_nobody_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let days = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    let age = Arc::new(crate::age::Age::with_clocks(move || days(400), || Duration::ZERO));
    let log = LocalLog::open(Options {
        now: Clock::of(age.clone()),
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=11).await;
    log.drop_before(Seq(11)).await.unwrap();
    for told in [None, Some(days(3))] {
        if let Some(at) = told {
            age.told(at);
        }
        log.go_round().await.unwrap();
        assert_eq!(log.find("ev_5").unwrap(), [Seq(5)], "{told:?}");
    }
    age.told(days(40));
    log.go_round().await.unwrap();
    assert_eq!(log.find("ev_5").unwrap(), []);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_room_says_so_and_heals_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.set_room(200 << 10);
    let mut id = 0;
    let refused = loop {
        id += 1;
        match log.append(incoming(body(id, 0))).await {
            Ok(_) => assert!(id < 10_000, "the room is not kept to"),
            Err(refused) => break refused,
        }
    };
    assert!(
        matches!(&refused, AppendError::Full(why) if why.contains("log.max_size")),
        "{refused}"
    );
    assert!(log.ready().is_err());
    assert!(
        log.cuts().len() >= 5,
        "segments are small against the room: {:?}",
        log.cuts().len()
    );
    let third = log.cuts()[2];
    log.drop_before(third.before).await.unwrap();
    assert!(
        matches!(log.append(incoming(body(id, 0))).await, Ok(Appended::Stored(_))),
        "there is room again"
    );
    log.set_room(1 << 30);
    wait_until("it is ready again", || log.ready().is_ok());
    log.close();
}

/// What damage took can come again for as long as its keys are known, although retention has passed it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_events_can_come_again_as_long_as_their_keys_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    store(&log, 21..=21).await;
    log.close();
    std::fs::remove_dir_all(segment(dir.path(), 1).join("sled")).unwrap();
    let (now, days) = days_ahead();
    let log = LocalLog::open(Options {
        now,
        ..options(dir.path())
    })
    .unwrap();
    assert_eq!(ids(&log).1, [(1, 10)]);
    assert_eq!(log.drop_before(Seq(21)).await, Ok(Seq(21)));
    assert_eq!(log.stats().gaps.len(), 1, "damage is never silent");
    assert_eq!(
        log.append(incoming(body(5, 0))).await.unwrap(),
        Appended::Stored(Seq(22)),
        "it is nowhere any more"
    );
    assert_eq!(
        log.append(incoming(body(15, 0))).await.unwrap(),
        Appended::Duplicate(Seq(15)),
        "it was kept until it was dropped"
    );
    // With the keys the gap goes.
    days.store(80, Ordering::SeqCst);
    log.go_round().await.unwrap();
    assert!(log.shared.gaps.list().is_empty());
    log.close();
}

/// Where damage took everything before what is kept, the gap is all that tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_before_all_that_is_kept_stays_on_record_until_retention_passes_it() {
    for by_age in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=10).await;
        log.close();
        // No file has its keys, as it was the newest.
        let journal = segment(dir.path(), 1).join("journal");
        let mut bytes = std::fs::read(&journal).unwrap();
        for byte in &mut bytes {
            *byte ^= 0x55;
        }
        std::fs::write(&journal, bytes).unwrap();
        let (now, days) = days_ahead();
        let options = Options {
            now,
            ..options(dir.path())
        };
        let log = reopen(&options);
        let lost = log.stats().gaps;
        assert_eq!(lost.len(), 1, "{lost:?}");
        log.go_round().await.unwrap();
        assert_eq!(log.stats().gaps, lost);
        log.close();
        let log = reopen(&options);
        // Retention has nothing to drop, and what is new is not behind its end.
        for id in [11, 12] {
            assert!(matches!(
                log.append(incoming(body(id, 0))).await,
                Ok(Appended::Stored(_))
            ));
            log.roll().await.unwrap();
        }
        log.go_round().await.unwrap();
        assert_eq!(log.drop_before(Seq(1)).await, Ok(log.first()));
        assert_eq!(log.stats().gaps, lost);
        if by_age {
            days.store(80, Ordering::SeqCst);
            log.go_round().await.unwrap();
        } else {
            log.drop_before(log.cuts()[0].before).await.unwrap();
        }
        assert!(log.stats().gaps.is_empty());
        log.close();
    }
}

/// Else it would be old, and forgotten, as soon as the time is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_dated_after_what_was_stored_whatever_the_clock_says_when_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // As seen by a machine whose clock is far behind after a restart.
    let ahead = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 400);
    for id in 1..=10 {
        let incoming = Incoming {
            received_at: ahead,
            ..incoming(body(id, 0))
        };
        assert_eq!(log.append(incoming).await, Ok(Appended::Stored(Seq(id))));
    }
    seal(&log).await;
    store(&log, 11..=20).await;
    log.close();
    let journal = segment(dir.path(), 11).join("journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    for byte in &mut bytes {
        *byte ^= 0x55;
    }
    std::fs::write(&journal, bytes).unwrap();
    let log = open(dir.path());
    let gaps = log.stats().gaps;
    let lost = gaps.iter().find(|gap| !gap.skipped).unwrap();
    assert_eq!(lost.from, Seq(11));
    assert!(lost.found_at.as_microsecond() >= ahead.as_microsecond(), "{lost:?}");
    log.close();
}

/// A small sealed segment, and behind it one of several packs that is damaged, which nobody has found yet.
async fn damaged_behind_another(dir: &Path) -> LocalLog {
    let log = open(dir);
    store(&log, 1..=10).await;
    seal(&log).await;
    store_noise(&log, 11..=26, 1 << 18).await;
    seal(&log).await;
    let files = walk(&segment(dir, 11).join("sled"));
    let largest = files
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len());
    flip(&largest.unwrap(), 40);
    log
}

/// As soon as the keeper is at something, asks for a drop; says in which of the times that it was at that it was done, 0 for none.
fn drop_while(log: &LocalLog, doing: &'static str, before: Seq) -> Arc<AtomicI64> {
    use futures::FutureExt as _;
    let handle = tokio::runtime::Handle::current();
    let (asking, done) = (log.clone(), Arc::new(AtomicI64::new(0)));
    let done_in = done.clone();
    let (mut times, mut was_at) = (0, false);
    let mut dropping = Box::pin(async move { Log::drop_before(&asking, before).await });
    log.shared.desk.watch(move |at| {
        let _runtime = handle.enter();
        let is_at = at.starts_with(doing);
        times += i64::from(is_at && !was_at);
        was_at = is_at;
        if is_at
            && done_in.load(Ordering::SeqCst) == 0
            && let Some(dropped) = (&mut dropping).now_or_never()
        {
            assert!(dropped.is_ok(), "{dropped:?}");
            done_in.store(times, Ordering::SeqCst);
        }
    });
    done
}

/// What makes room is not behind what takes its time, whatever that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_dropped_while_another_is_checked_and_mended_and_what_was_set_aside_is_looked_through() {
    for doing in ["checking", "saving"] {
        let dir = tempfile::tempdir().unwrap();
        let log = damaged_behind_another(dir.path()).await;
        let done = drop_while(&log, doing, Seq(11));
        seqs(&log, 11..=26);
        assert!(
            done.load(Ordering::SeqCst) > 0,
            "nothing is dropped while the keeper is {doing}"
        );
        assert_eq!(log.first(), Seq(11));
        assert!(dir.path().join("damaged").exists(), "it was mended all the same");
        log.shared.desk.watch(|_| ());
        log.close();
    }
    let dir = tempfile::tempdir().unwrap();
    let log = damaged_behind_another(dir.path()).await;
    seqs(&log, 11..=26);
    let done = drop_while(&log, "looking through", Seq(11));
    LocalLog::erase(&log, Narrow::default(), Arc::new(|_: &Event| false))
        .await
        .unwrap();
    assert!(
        done.load(Ordering::SeqCst) > 0,
        "nothing is dropped while the keeper looks through what was set aside"
    );
    assert_eq!(log.first(), Seq(11));
    log.shared.desk.watch(|_| ());
    log.close();
}

/// Whoever has given up may have let somebody begin who needs it.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_is_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=11).await;
    // The keeper is held up until then.
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let doomed = move |_: &Event| {
        let _ = crate::sync::lock(&held).recv();
        false
    };
    let (erasing, asked) = (log.clone(), log.shared.desk.asked());
    let erasing = tokio::spawn(async move { LocalLog::erase(&erasing, Narrow::default(), Arc::new(doomed)).await });
    wait_until("the keeper is asked", || log.shared.desk.asked() > asked);
    assert!(futures::poll!(pin!(Log::drop_before(&log, Seq(11)))).is_pending());
    drop(go_on);
    erasing.await.unwrap().unwrap();
    log.go_round().await.unwrap();
    assert_eq!(log.first(), Seq(1));
    assert_eq!(Log::drop_before(&log, Seq(11)).await.unwrap(), Seq(11));
    log.close();
}

/// What is to go needs no mending.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_being_mended_can_be_dropped() {
    for doing in ["checking", "saving"] {
        let dir = tempfile::tempdir().unwrap();
        let log = damaged_behind_another(dir.path()).await;
        store(&log, 27..=27).await;
        drop_while(&log, doing, Seq(27));
        // The reader that made it look there is told what is there now.
        let batch = log.read(Seq(11), 100, 1 << 20).unwrap();
        assert_eq!(
            (batch.lost, batch.events.len()),
            (vec![(Seq(11), Seq(26))], 1),
            "{doing}"
        );
        assert_eq!(log.first(), Seq(27));
        assert!(!dir.path().join("damaged").exists() && log.stats().gaps.is_empty());
        log.shared.desk.watch(|_| ());
        log.close();
    }
}

/// In the middle of an erasure another segment is mended, and in the middle of that the first one is to go: not from under the
/// erasure, and not behind all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_being_erased_in_goes_when_the_erasure_has_let_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = damaged_behind_another(dir.path()).await;
    let (asking, met, begun) = (log.clone(), log.clone(), AtomicBool::new(false));
    let doomed = move |event: &Event| {
        if event.seq == Seq(1) && !begun.swap(true, Ordering::SeqCst) {
            let (before, reading) = (met.shared.desk.asked(), asking.clone());
            std::thread::spawn(move || seqs(&reading, 11..=26));
            wait_until("a reader has met the damage", || met.shared.desk.asked() > before);
        }
        event.seq.0 % 10 == 5
    };
    let done = drop_while(&log, "saving", Seq(11));
    let erased = LocalLog::erase(&log, Narrow::default(), Arc::new(doomed))
        .await
        .unwrap();
    log.shared.desk.watch(|_| ());
    let saved = seqs(&log, 11..=26);
    assert_eq!(
        (log.first(), log.read(Seq(1), 1, 1).unwrap().lost),
        (Seq(11), vec![(Seq(1), Seq(10))])
    );
    assert_eq!(
        erased.seqs,
        saved.iter().copied().filter(|seq| seq.0 % 10 == 5).collect::<Vec<_>>()
    );
    assert!(!saved.is_empty());
    // The first time the mending stopped for it, and so did the erasure; the second time the erasure itself has met the damage.
    assert_eq!(done.load(Ordering::SeqCst), 2, "not from under the erasure");
    log.close();
}
