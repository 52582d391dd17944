//! What goes, and when: never by itself, at once when told to, and the log keeps to its room.

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
    assert_eq!(dropped.expect("it is quick"), Ok(Seq(11)));
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
    let days = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = days.clone();
    let now =
        Clock::new(move || Timestamp::now() + jiff::SignedDuration::from_hours(24 * clock.load(Ordering::SeqCst)));
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
    let days = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = days.clone();
    let now =
        Clock::new(move || Timestamp::now() + jiff::SignedDuration::from_hours(24 * clock.load(Ordering::SeqCst)));
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
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    seal(&log).await;
    store(&log, 21..=21).await;
    log.close();
    std::fs::remove_dir_all(segment(dir.path(), 1).join("sled")).unwrap();
    let days = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let clock = days.clone();
    let now =
        Clock::new(move || Timestamp::now() + jiff::SignedDuration::from_hours(24 * clock.load(Ordering::SeqCst)));
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
