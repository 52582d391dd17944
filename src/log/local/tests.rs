//! The log's promises, tested on a real directory: what is answered stays, once, in order, whatever happens to the files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;
use crate::event::{SignatureHeaders, Source};
use bytes::Bytes;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        retention: Duration::from_secs(30 * 86_400),
        max_size: None,
        segment_size: 1 << 30,
        segment_age: Duration::from_secs(86_400),
        reserve: Some(0),
        keys_kept: Duration::from_secs(73 * 3600),
        cache_bytes: 1 << 20,
        read_only: false,
    }
}

fn open(dir: &Path) -> LocalLog {
    LocalLog::open(options(dir)).unwrap()
}

fn body(id: u64, revision: u64) -> String {
    // Some of it does not compress, as in life.
    let noise = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(id.to_be_bytes()));
    format!(
        r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23.{revision:06}", "data": {{"noise": "{noise}"}}}}}}"#
    )
}

fn incoming(body: impl Into<Bytes>) -> Incoming {
    let signature = SignatureHeaders {
        timestamp: "1544271440".into(),
        hash: "0a".repeat(32),
    };
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, Some(signature))
}

fn partial(body: impl Into<Bytes>) -> Incoming {
    Incoming {
        partial: true,
        ..incoming(body)
    }
}

async fn store(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        assert_eq!(
            log.append(incoming(body(id, 0))).await.unwrap(),
            Appended::Stored(Seq(id)),
            "{id}"
        );
    }
}

/// Waits on a condition the keeper brings about.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Instant::now();
    while !condition() {
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "waited too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

async fn seal(log: &LocalLog) {
    log.roll().await.unwrap();
    wait_until("all complete segments are sealed", || log.stats().unsealed == 1);
}

fn ids(log: &LocalLog) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    let mut from = Seq(1);
    loop {
        let batch = log.read(from, 7, 1 << 20).unwrap();
        if batch.next == from {
            return (found, lost);
        }
        for event in &batch.events {
            assert!(event.seq >= from, "I3");
            assert_eq!(std::str::from_utf8(&event.body).unwrap(), body(event.seq.0, 0), "I5");
            found.push(event.seq.0);
        }
        lost.extend(batch.lost.iter().map(|(from, to)| (from.0, to.0)));
        from = batch.next;
    }
}

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
async fn everything_is_there_after_every_kind_of_stop() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=30).await;
    seal(&log).await;
    store(&log, 31..=40).await;
    log.roll().await.unwrap();
    store(&log, 41..=50).await;
    log.close();
    let log = open(dir.path());
    assert_eq!(ids(&log), ((1..=50).collect(), vec![]));
    assert_eq!(
        log.append(incoming(body(5, 0))).await.unwrap(),
        Appended::Duplicate(Seq(5)),
        "known from a key file"
    );
    assert_eq!(
        log.append(incoming(body(45, 0))).await.unwrap(),
        Appended::Duplicate(Seq(45)),
        "known from a journal"
    );
    store(&log, 51..=60).await;
    wait_until("all complete segments are sealed", || log.stats().unsealed == 1);
    assert_eq!(ids(&log), ((1..=60).collect(), vec![]));
    let stats = log.stats();
    assert_eq!(
        (stats.first, stats.last, stats.events, stats.segments),
        (Seq(1), Seq(60), 60, 3)
    );
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_told_who_has_the_directory_and_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    let refused = LocalLog::open(options(dir.path())).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("(process {})", std::process::id())),
        "{refused}"
    );
    let files = |dir: &Path| {
        let mut names: Vec<PathBuf> = walk(dir);
        names.sort();
        names
    };
    let before = files(dir.path());
    let reader = LocalLog::open(Options {
        read_only: true,
        ..options(dir.path())
    })
    .unwrap();
    assert_eq!(ids(&reader), ((1..=20).collect(), vec![]));
    assert_eq!(reader.append(incoming("x")).await, Err(AppendError::Closed));
    assert_eq!(files(dir.path()), before, "a reader writes nothing");
    store(&log, 21..=22).await;
    log.close();
    open(dir.path()).close();
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn newest_journal(dir: &Path) -> PathBuf {
    walk(dir)
        .into_iter()
        .filter(|path| path.ends_with("journal"))
        .max()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_journal_tail_costs_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    log.close();
    let journal = newest_journal(dir.path());
    let whole = std::fs::read(&journal).unwrap();
    for torn in [
        &b"\xC1\x05\xE7\x0F"[..],
        &[0; 4096],
        &whole[whole.len() - 50..],
        &whole[32..100],
    ] {
        std::fs::write(&journal, [&whole[..], torn].concat()).unwrap();
        let log = open(dir.path());
        assert_eq!(ids(&log), ((1..=10).collect(), vec![]));
        assert_eq!(
            log.append(incoming(body(10, 0))).await.unwrap(),
            Appended::Duplicate(Seq(10))
        );
        log.close();
        assert!(std::fs::read(&journal).unwrap().starts_with(&whole));
    }
    let log = open(dir.path());
    store(&log, 11..=12).await;
    assert!(log.stats().gaps.is_empty());
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_inside_a_journal_costs_its_block_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    log.close();
    let journal = newest_journal(dir.path());
    let mut bytes = std::fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&journal, bytes).unwrap();
    for _ in 0..2 {
        let log = open(dir.path());
        let (found, lost) = ids(&log);
        assert_eq!((found.len(), lost.len()), (9, 1));
        let (from, to) = lost[0];
        assert_eq!(from, to);
        assert!(!found.contains(&from));
        assert_eq!(
            log.stats()
                .gaps
                .iter()
                .map(|gap| (gap.from.0, gap.to.0))
                .collect::<Vec<_>>(),
            lost
        );
        log.close();
    }
    let log = open(dir.path());
    assert_eq!(
        log.append(incoming(body(11, 0))).await.unwrap(),
        Appended::Stored(Seq(11)),
        "no Seq is given out twice"
    );
    seal(&log).await;
    assert_eq!(ids(&log).0.len(), 10);
    log.close();
}

/// As a disk does that loses a sector while the daemon runs.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_appears_while_the_log_is_open_costs_its_block_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    let journal = newest_journal(dir.path());
    // A journal that is open has room behind its last block.
    let flip = |hundredths: usize| {
        let mut bytes = std::fs::read(&journal).unwrap();
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[last * hundredths / 100] ^= 0x10;
        std::fs::write(&journal, bytes).unwrap();
    };
    flip(50);
    let (found, lost) = ids(&log);
    assert_eq!((found.len(), lost.len()), (9, 1));
    store(&log, 11..=12).await;
    // And damage that nobody has read yet is met by sealing.
    flip(100);
    seal(&log).await;
    let expected = (found.into_iter().chain([11]).collect::<Vec<_>>(), 2);
    for _ in 0..2 {
        assert_eq!((ids(&log).0, log.stats().gaps.len()), expected);
    }
    log.close();
    let log = open(dir.path());
    assert_eq!((ids(&log).0, log.stats().gaps.len()), expected);
    store(&log, 13..=13).await;
    log.close();
}

/// How many events a lost newest segment held is not known: its Seqs must stay taken, even if the next start dies at once.
#[tokio::test(flavor = "multi_thread")]
async fn seqs_of_a_lost_newest_segment_are_never_given_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.close();
    std::fs::write(newest_journal(dir.path()), b"nonsense").unwrap();
    let log = open(dir.path());
    log.close();
    // As if it had died before the new segment was made.
    for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    let log = open(dir.path());
    let Appended::Stored(seq) = log.append(incoming(body(6, 0))).await.unwrap() else {
        panic!("it is new")
    };
    assert!(seq > Seq(5));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_gone_are_read_from_the_events_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=20).await;
    log.append(incoming("nonsense")).await.unwrap();
    seal(&log).await;
    log.close();
    std::fs::write(walk(&dir.path().join("keys")).first().unwrap(), b"nonsense").unwrap();
    for _ in 0..2 {
        let log = open(dir.path());
        for id in 1..=20 {
            let again = log.append(incoming(body(id, 0))).await.unwrap();
            assert_eq!(again, Appended::Duplicate(Seq(id)));
        }
        let again = log.append(incoming("nonsense")).await.unwrap();
        assert_eq!(
            again,
            Appended::Quarantined {
                seq: Seq(21),
                repeated: true
            }
        );
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_segment_is_not_changed_by_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // Several of sled's own segments, of noise that does not compress.
    for id in 1..=120 {
        let noise: String = (0..1 << 18).map(|_| fastrand::alphanumeric()).collect();
        let body = format!(r#"{{"event": {{"id": "ev_{id}", "data": "{noise}"}}}}"#);
        log.append(incoming(body)).await.unwrap();
    }
    seal(&log).await;
    log.close();
    for _ in 0..4 {
        let log = open(dir.path());
        assert_eq!(log.verify(&mut |_, _| ()), [""; 0]);
        assert!(
            (1..=120).all(|seq| log.get(Seq(seq)).unwrap().is_some()),
            "each is there"
        );
        assert_eq!(log.verify(&mut |_, _| ()), [""; 0]);
        assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
        log.close();
    }
}

/// Damages one sealed segment between two others, and checks that the log starts, names what is gone, and goes on.
async fn survives_damage(damage: impl Fn(&Path), may_lose_nothing: bool) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for range in [1..=10, 11..=20, 21..=30] {
        store(&log, range).await;
        seal(&log).await;
    }
    log.close();
    let segment = dir.path().join("log").join(format!("{:020}", 11));
    damage(&segment);
    let mut gone = Vec::new();
    for round in 0..2 {
        let log = open(dir.path());
        let (found, lost) = ids(&log);
        gone = lost.iter().flat_map(|(from, to)| *from..=*to).collect::<Vec<u64>>();
        let mut all: Vec<u64> = found.iter().chain(&gone).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (1..=30).collect::<Vec<_>>(), "every Seq is there or named");
        assert!(
            gone.iter().all(|seq| (11..=20).contains(seq)),
            "only the damaged segment loses: {gone:?}"
        );
        assert!(may_lose_nothing || !gone.is_empty());
        let gaps: Vec<u64> = log.stats().gaps.iter().flat_map(|gap| gap.from.0..=gap.to.0).collect();
        assert_eq!(gaps, gone, "status names what is gone, round {round}");
        assert_eq!(
            log.append(incoming(body(25, 0))).await.unwrap(),
            Appended::Duplicate(Seq(25))
        );
        log.close();
    }
    let log = open(dir.path());
    store(&log, 31..=31).await;
    let again = if gone.contains(&15) {
        Appended::Stored(Seq(32))
    } else {
        Appended::Duplicate(Seq(15))
    };
    assert_eq!(
        log.append(incoming(body(15, 0))).await.unwrap(),
        again,
        "what is lost can come again"
    );
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_without_its_database_is_set_aside() {
    survives_damage(|segment| std::fs::remove_dir_all(segment.join("sled")).unwrap(), false).await;
    survives_damage(|segment| std::fs::write(segment.join("sled/db"), b"").unwrap(), false).await;
    survives_damage(
        |segment| std::fs::write(segment.join("sled/conf"), b"nonsense").unwrap(),
        true,
    )
    .await;
    survives_damage(
        |segment| {
            std::fs::write(segment.join("manifest"), b"nonsense").unwrap();
            std::fs::write(segment.join("manifest.second"), b"nonsense").unwrap();
        },
        false,
    )
    .await;
    survives_damage(
        |segment| {
            std::fs::remove_dir_all(segment.join("sled")).unwrap();
            std::fs::write(segment.join("sled"), b"nonsense").unwrap();
        },
        false,
    )
    .await;
    survives_damage(
        |segment| {
            std::fs::remove_dir_all(segment).unwrap();
            std::fs::create_dir(segment).unwrap();
        },
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_or_a_cut_anywhere_in_a_database_is_survived() {
    for step in 0..6 {
        let at = |len: usize| len * step / 6;
        survives_damage(
            |segment| {
                let path = segment.join("sled/db");
                let mut bytes = std::fs::read(&path).unwrap();
                let at = at(bytes.len());
                bytes[at] ^= 4;
                std::fs::write(&path, bytes).unwrap();
            },
            true,
        )
        .await;
        survives_damage(
            |segment| {
                let file = OpenOptions::new().write(true).open(segment.join("sled/db")).unwrap();
                file.set_len(at(file.metadata().unwrap().len() as usize) as u64)
                    .unwrap();
            },
            true,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sled_leaves_when_it_is_killed_while_opening_does_no_harm() {
    survives_nothing_lost(|segment| {
        std::fs::write(segment.join("sled/snap.0000000000000001.generating"), b"half").unwrap();
    })
    .await;
    // Killed between writing the manifest and dropping the journal.
    survives_nothing_lost(|segment| {
        std::fs::write(segment.join("journal"), b"left over").unwrap();
    })
    .await;
}

async fn survives_nothing_lost(mishap: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    log.close();
    mishap(&dir.path().join("log").join(format!("{:020}", 1)));
    let log = open(dir.path());
    assert_eq!(ids(&log), ((1..=10).collect(), vec![]));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_was_interrupted_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    log.close();
    // As if killed while the database was being built: it is there, in whatever state, and there is no manifest.
    let segment = dir.path().join("log").join(format!("{:020}", 1));
    std::fs::create_dir(segment.join("sled")).unwrap();
    std::fs::write(segment.join("sled/db"), b"half a database").unwrap();
    let log = open(dir.path());
    seal(&log).await;
    assert_eq!(ids(&log), ((1..=10).collect(), vec![]));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_only_begun_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    log.close();
    let begun = journal::segment_dir(&dir.path().join("log"), Seq(4));
    for leftover in [None, Some("journal.tmp")] {
        std::fs::create_dir(&begun).unwrap();
        if let Some(name) = leftover {
            std::fs::write(begun.join(name), b"CLHK").unwrap();
        }
        let log = open(dir.path());
        assert_eq!((log.stats().last, log.stats().gaps), (Seq(3), vec![]));
        log.close();
        std::fs::remove_dir_all(&begun).unwrap();
    }
}

#[derive(Debug, Default)]
struct TestPins {
    pinned: AtomicU64,
    expired: AtomicU64,
}

impl Pins for TestPins {
    fn pinned(&self) -> Seq {
        Seq(self.pinned.load(Ordering::SeqCst))
    }

    fn expire(&self, upto: Seq) -> bool {
        self.expired.store(upto.0, Ordering::SeqCst);
        self.pinned.store(upto.0, Ordering::SeqCst);
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_age_waits_for_the_sinks_and_gives_the_disk_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        retention: Duration::ZERO,
        ..options(dir.path())
    })
    .unwrap();
    let pins = Arc::new(TestPins::default());
    log.set_pins(pins.clone());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    seal(&log).await;
    assert_eq!(log.first(), Seq(1), "no sink has seen it");
    pins.pinned.store(10, Ordering::SeqCst);
    wait_until("the first segment is gone", || log.first() == Seq(11));
    let gone = journal::segment_dir(&dir.path().join("log"), Seq(1));
    wait_until("its disk space is given back", || !gone.exists());
    let batch = log.read(Seq(1), 100, 1 << 20).unwrap();
    assert_eq!((batch.lost.clone(), batch.events.len()), (vec![(Seq(1), Seq(10))], 10));
    assert_eq!(
        log.append(incoming(body(5, 0))).await.unwrap(),
        Appended::Duplicate(Seq(5)),
        "keys outlive segments"
    );
    assert!(log.get(Seq(5)).unwrap().is_none());
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_limit_is_hard_and_loud() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        max_size: Some(1 << 20),
        ..options(dir.path())
    })
    .unwrap();
    let pins = Arc::new(TestPins::default());
    log.set_pins(pins.clone());
    let mut next = 1;
    while pins.expired.load(Ordering::SeqCst) == 0 {
        store(&log, next..=next + 199).await;
        seal(&log).await;
        next += 200;
        assert!(next < 20_000, "the limit is never enforced");
    }
    wait_until("the log is below its limit", || log.stats().disk_bytes <= 1 << 20);
    assert!(log.first() > Seq(1));
    log.close();
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
async fn what_is_erased_is_in_no_file_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    let erased = log.erase(|event| [Seq(3), Seq(17)].contains(&event.seq)).await.unwrap();
    assert_eq!(erased, [Seq(3), Seq(17)]);
    for round in 0..2 {
        let log = if round == 0 { log.clone() } else { open(dir.path()) };
        let events = log.read(Seq(1), 100, 1 << 20).unwrap().events;
        assert_eq!(events.len(), 20, "Seqs stay");
        for event in events {
            let gone = erased.contains(&event.seq);
            assert_eq!((event.kind == Kind::Erased, event.body.is_empty()), (gone, gone));
        }
        assert_eq!(
            log.append(incoming(body(17, 0))).await.unwrap(),
            Appended::Duplicate(Seq(17)),
            "not stored again"
        );
        log.close();
    }
    // Blocks are compressed, so look for leftovers of the directories instead of the text.
    let names: Vec<String> = walk(dir.path()).iter().map(|path| path.display().to_string()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.contains("removed-") || name.contains("rewrite") || name.contains("copy-"))
    );
    assert_eq!(
        names.iter().filter(|name| name.ends_with("/journal")).count(),
        1,
        "{names:?}"
    );
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

/// Puts what a log holds into a new directory, with its files of known keys or without; gives what was taken.
fn transfer(log: &LocalLog, from: &Path, to: &Path, with_keys: bool, next: u64) -> Taken {
    let mut restorer = Restorer::new(to).unwrap();
    if with_keys {
        make_dir(&to.join("keys")).unwrap();
        for file in log.key_files().unwrap().paths() {
            std::fs::copy(from.join(&file), to.join(&file)).unwrap();
        }
    }
    let mut each = |piece: Piece<'_>| match piece {
        Piece::Segment { first, sealed } => restorer.segment(first, sealed),
        Piece::Block(block) => restorer.block(block),
    };
    let head = *log.head().borrow();
    let taken = log.take(head, &mut each).unwrap();
    assert_eq!(
        (restorer.taken().events, restorer.taken().last),
        (taken.events, taken.last)
    );
    assert!(
        matches!(LocalLog::open(options(to)), Err(OpenError::Locked { .. })),
        "nobody opens it half-way"
    );
    assert_eq!(restorer.finish(head, log.gaps()).unwrap(), Seq(next));
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_put_elsewhere_is_the_same_and_goes_on_beyond_a_jump() {
    for with_keys in [true, false] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = open(dir.path());
        for range in [1..=10, 11..=20] {
            store(&log, range).await;
            seal(&log).await;
        }
        store(&log, 21..=25).await;
        let gone = log.erase(|event| event.seq == Seq(7)).await.unwrap();
        assert_eq!(gone, [Seq(7)]);
        wait_until("all complete segments are sealed", || log.stats().unsealed == 1);
        let without_data = log.append(partial(body(26, 0))).await.unwrap();
        assert_eq!(without_data, Appended::Stored(Seq(26)));
        seal(&log).await;
        store(&log, 27..=30).await;
        let taken = transfer(&log, dir.path(), other.path(), with_keys, 1_000_000_001);
        assert_eq!((taken.events, taken.first, taken.last), (30, Seq(1), Seq(30)));
        let copy = open(other.path());
        assert_ne!(copy.epoch(), log.epoch());
        for seq in 1..=30 {
            let (one, two) = (
                log.get(Seq(seq)).unwrap().unwrap(),
                copy.get(Seq(seq)).unwrap().unwrap(),
            );
            assert_eq!(
                (&one.body, one.received_at, one.kind),
                (&two.body, two.received_at, two.kind)
            );
            assert_eq!(one.signature, two.signature);
            let again = if seq == 26 { partial } else { incoming };
            let known = copy.append(again(body(seq, 0))).await.unwrap();
            // Of an erased event only the file of keys knows.
            if with_keys || seq != 7 {
                assert_eq!(known, Appended::Duplicate(Seq(seq)), "{with_keys}");
            }
        }
        let appended = copy.append(incoming(body(31, 0))).await.unwrap();
        let first_new = 1_000_000_001 + u64::from(!with_keys);
        assert_eq!(appended, Appended::Stored(Seq(first_new)));
        let batch = copy.read(Seq(31), 10, 1 << 20).unwrap();
        assert_eq!(batch.lost, [], "what was never given out is not lost");
        assert_eq!(batch.events.last().unwrap().seq, Seq(first_new));
        assert_eq!(copy.last_before(Seq(1_000_000_001)), Some(Seq(30)));
        seal(&copy).await;
        copy.close();
        let again = open(other.path());
        assert_eq!((again.stats().gaps, again.verify(&mut |_, _| ())), (vec![], vec![]));
        // A copy of the copy jumps once more.
        let third = tempfile::tempdir().unwrap();
        transfer(&again, other.path(), third.path(), with_keys, 2_000_000_001);
        let third = open(third.path());
        assert_eq!(third.stats().gaps, vec![]);
        assert_eq!(third.read(Seq(31), 10, 1 << 20).unwrap().lost, []);
        for log in [log, again, third] {
            log.close();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_has_taken_is_named_when_the_log_is_taken_along() {
    for read_only in [false, true] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = open(dir.path());
        for range in [1..=10, 11..=20, 21..=30] {
            store(&log, range).await;
            seal(&log).await;
        }
        log.close();
        std::fs::write(dir.path().join("log").join(format!("{:020}", 11)).join("sled/db"), b"").unwrap();
        let log = LocalLog::open(Options {
            read_only,
            ..options(dir.path())
        })
        .unwrap();
        let taken = transfer(&log, dir.path(), other.path(), true, 1_000_000_001);
        log.close();
        // The keeper may have found it first: then it is a gap already.
        let gaps: Vec<_> = log.stats().gaps.iter().map(|gap| (gap.from, gap.to)).collect();
        let named = if taken.damaged.is_empty() {
            &gaps
        } else {
            &taken.damaged
        };
        assert_eq!(named, &[(Seq(11), Seq(20))]);
        assert_eq!(taken.events, 20);
        let copy = open(other.path());
        let (found, lost) = ids(&copy);
        assert_eq!((found.len(), lost), (20, vec![(11, 20)]));
        assert_eq!(copy.stats().gaps.len(), 1, "on record in the copy, too");
        copy.close();
    }
}
