//! Erasing, beside everybody else.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::retention::{self, Floor, Readers, Retention};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_in_no_file_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    let erased = erase(&log, |event| [Seq(3), Seq(17)].contains(&event.seq)).await;
    assert_eq!(erased, [Seq(3), Seq(17)]);
    log.go_round().await.unwrap();
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

/// An earlier erasure may have failed half way, or not everybody have heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_before_is_told_with_every_later_erasure() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    // The second segment can't be built anew: something that is no directory stands in the way.
    let in_the_way = dir.path().join(format!("log/new-{:020}", 11));
    std::fs::write(&in_the_way, "").unwrap();
    let erase = async || {
        let doomed = Arc::new(|event: &Event| [3, 17].contains(&event.seq.0));
        LocalLog::erase(&log, Narrow::default(), doomed).await.unwrap()
    };
    let erased = erase().await;
    assert_eq!(
        (erased.seqs, erased.before, erased.left.len()),
        (vec![Seq(3)], vec![], 1)
    );
    std::fs::remove_file(&in_the_way).unwrap();
    let erased = erase().await;
    assert_eq!((erased.seqs, erased.before), (vec![Seq(17)], vec![Seq(3)]));
    let erased = erase().await;
    assert_eq!((erased.seqs, erased.before), (vec![], vec![Seq(3), Seq(17)]));
    log.close();
}

const LAST: u64 = 3000;

#[tokio::test(flavor = "multi_thread")]
async fn erase_beside_readers_and_a_comparison_and_an_export_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    for part in 0..3 {
        let many = (part * 1000 + 1..=part * 1000 + 1000)
            .map(|id| incoming(body(id, 0)))
            .collect();
        log.append_in_order(many).await;
        seal(&log).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for reader in 0..4_u64 {
        let (log, stop) = (log.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut from = Seq(1 + reader * 100);
                while from <= Seq(LAST) {
                    let batch = log.read(from, 100, 1 << 20).unwrap();
                    assert_eq!(batch.lost, [], "reader {reader}");
                    assert!(!batch.events.is_empty());
                    from = batch.next;
                }
                rounds += 1;
            }
            assert!(rounds > 0);
        }));
    }
    {
        let (log, stop) = (log.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(log.verify(&mut |_, _| ()), [""; 0]);
                let mut events = 0;
                let taken = log
                    .take(Seq(LAST), &mut |piece| {
                        if let Piece::Block(_) = piece {
                            events += 1;
                        }
                        Ok(())
                    })
                    .unwrap();
                assert_eq!((taken.events, taken.damaged), (LAST, vec![]));
            }
        }));
    }
    let began = Instant::now();
    let mut victim = 5;
    while began.elapsed() < Duration::from_secs(4) {
        let erased = erase(&log, move |event| event.seq == Seq(victim)).await;
        assert_eq!(erased, [Seq(victim)]);
        victim = (victim + 503) % LAST + 1;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_delivery_is_erased_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(incoming("nobody@example.com wrote this")).await.unwrap();
    store(&log, 2..=3).await;
    let about = |event: &Event| event.body.windows(6).any(|text| text == b"nobody");
    assert_eq!(erase(&log, about).await, [Seq(1)]);
    assert_eq!(log.get(Seq(1)).unwrap().unwrap().kind, Kind::Erased);
    // Its identity was in the journal, and still is: it is not stored again after a restart.
    log.close();
    let log = open(dir.path());
    let again = log.append(incoming("nobody@example.com wrote this")).await.unwrap();
    assert_eq!(
        again,
        Appended::Quarantined {
            seq: Seq(1),
            repeated: true
        }
    );
    log.close();
}

/// Turns a byte of the first pack over, wherever the database has it.
fn damage_first_pack(segment: &Path) {
    const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
    let mut found = 0;
    for path in walk(&segment.join("sled")) {
        let mut bytes = std::fs::read(&path).unwrap();
        let begins = |at: &usize| {
            bytes[*at..].starts_with(&1_u64.to_le_bytes())
                && bytes
                    .get(at + 32..)
                    .is_some_and(|behind| behind.starts_with(&ZSTD_MAGIC))
        };
        let places: Vec<usize> = (0..bytes.len()).filter(begins).collect();
        for at in &places {
            bytes[at + 1000] ^= 4;
        }
        found += places.len();
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(found > 0);
}

/// A command may have been cut off in the middle of reading a copy, and nobody may run another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_a_dead_command_has_left_goes_with_an_erasure() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=2).await;
    let left = dir.path().join(super::scratch::DIR).join("closehook-copy-left");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("db"), "jane@example.com").unwrap();
    assert_eq!(erase(&log, |event| event.seq == Seq(1)).await, [Seq(1)]);
    assert!(!left.exists());
    // With the next start, too.
    std::fs::create_dir(&left).unwrap();
    log.close();
    let log = open(dir.path());
    assert!(!left.exists());
    log.close();
}

/// Neither form of the segment could take its name: nothing may be lost, and nothing is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_has_lost_its_name_is_whole_again_with_the_next_look_or_start() {
    for starts in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log = two_sealed(dir.path()).await;
        let place = segment(dir.path(), 1);
        let beside = |prefix: &str| place.with_file_name(format!("{prefix}{:020}", 1));
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .args([&place, &beside("new-")])
            .status();
        assert!(copied.unwrap().success());
        std::fs::rename(&place, beside("removed-")).unwrap();
        if !starts {
            // What it is built of is there again by then.
            assert_eq!(erase(&log, |event| event.seq == Seq(3)).await, [Seq(3)]);
        }
        log.close();
        let log = open(dir.path());
        assert_eq!(seqs(&log, 1..=20), (1..=20).map(Seq).collect::<Vec<_>>(), "{starts}");
        assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
        log.close();
    }
}

/// A few bytes are left of a block, in front of one that has moved to where the header was.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_block_in_front_of_others_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    log.close();
    let path = newest_journal(dir.path());
    let mut places = Vec::new();
    crate::framefile::scan(&path, journal::FORMAT, |frame| places.push(frame.offset as usize)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let aside = dir.path().join("damaged/before");
    std::fs::create_dir_all(&aside).unwrap();
    for (rest, named) in [(0, 0), (9, 1)] {
        std::fs::write(aside.join("journal"), &bytes[places[1] - rest..]).unwrap();
        let log = open(dir.path());
        let nobody = Arc::new(|_: &Event| false);
        let erased = LocalLog::erase(&log, Narrow::default(), nobody).await.unwrap();
        assert_eq!(erased.left.len(), named, "{:?}", erased.left);
        log.close();
    }
}

/// What was set aside may hold it, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_is_erased_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // Several packs, so that damage in one of them leaves others.
    store_noise(&log, 1..=12, 1 << 18).await;
    seal(&log).await;
    log.close();
    damage_first_pack(&segment(dir.path(), 1));
    let log = open(dir.path());
    let found = seqs(&log, 1..=12);
    let lost = log.stats().gaps;
    let count: u64 = lost.iter().map(|gap| gap.to.0 - gap.from.0 + 1).sum();
    assert!(
        (1..=5).contains(&count),
        "no more than the pack the byte lies in: {lost:?}"
    );
    assert_eq!(found.len() as u64, 12 - count);
    let aside = dir.path().join("damaged");
    let left = || std::fs::read_dir(&aside).unwrap().count();
    assert_eq!(left(), 1);

    // Nobody can say what is in the bytes that can't be read.
    let nobody = |event: &Event| event.seq == Seq(99);
    let erased = LocalLog::erase(&log, Narrow::default(), Arc::new(nobody))
        .await
        .unwrap();
    assert_eq!((erased.seqs, erased.left.len(), left()), (vec![], 1, 1));
    assert!(
        erased.left[0].contains("can't be read") && erased.left[0].contains("damaged/"),
        "{:?}",
        erased.left
    );

    // What can be read there, and is doomed, goes with all of it.
    let victim = found[0];
    let erased = LocalLog::erase(
        &log,
        Narrow::default(),
        Arc::new(move |event: &Event| event.seq == victim),
    )
    .await
    .unwrap();
    assert_eq!((erased.seqs, erased.left.len(), left()), (vec![victim], 0, 0));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_holds_no_more_than_a_few_databases_open() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for number in 0..8 {
        store(&log, number * 5 + 1..=number * 5 + 5).await;
        seal(&log).await;
    }
    // All of them are read, one is built anew.
    assert_eq!(erase(&log, |event| event.seq == Seq(40)).await, [Seq(40)]);
    let open_ones = log
        .shared
        .all_segments()
        .into_iter()
        .filter(|(_, segment)| match segment {
            Segment::Sealed(sealed) => sealed.is_open(),
            Segment::Open(_) => false,
        });
    assert!(open_ones.count() <= 2);
    assert_eq!(ids_or_erased_from(&log, 1), 40);
    log.close();
}

/// A command without the data directory's lock reads what the daemon rewrites and drops.
#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_loses_nothing_to_an_erasure() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    let reader = LocalLog::open(Options {
        read_only: true,
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    assert_eq!(erase(&log, |event| event.seq.0 % 10 == 3).await, [Seq(3), Seq(13)]);
    let batch = reader.read(Seq(1), 100, 1 << 20).unwrap();
    assert_eq!((batch.events.len(), batch.lost), (20, vec![]));
    assert_eq!(reader.get(Seq(13)).unwrap().unwrap().kind, Kind::Erased);
    log.drop_before(Seq(11)).await.unwrap();
    let batch = reader.read(Seq(1), 100, 1 << 20).unwrap();
    // What it has open it still gives.
    let gone: u64 = batch.lost.iter().map(|(from, to)| to.0 - from.0 + 1).sum();
    assert_eq!(batch.events.len() as u64 + gone, 20);
    log.close();
}

/// What makes room is not behind what takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_dropped_in_the_middle_of_an_erasure() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for first in [1, 11, 21] {
        store(&log, first..=first + 9).await;
        seal(&log).await;
    }
    let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
    let asked = Arc::new(AtomicBool::new(false));
    let is_asked = asked.clone();
    let doomed = move |event: &Event| {
        if event.seq == Seq(15) {
            let _ = begun.try_send(());
            wait_until("the drop is asked for", || is_asked.load(Ordering::SeqCst));
        }
        event.seq.0 % 10 == 5
    };
    let erasing = {
        let log = log.clone();
        tokio::spawn(async move { erase(&log, doomed).await })
    };
    tokio::task::block_in_place(|| has_begun.recv().unwrap());
    let dropping = Log::drop_before(&log, Seq(21));
    tokio::pin!(dropping);
    // Sent when it is polled first.
    assert!(futures::poll!(&mut dropping).is_pending());
    asked.store(true, Ordering::SeqCst);
    assert_eq!(dropping.await, Ok(Seq(21)));
    let erased = erasing.await.unwrap();
    assert!(erased.contains(&Seq(25)) && !erased.contains(&Seq(15)), "{erased:?}");
    assert_eq!(ids_or_erased_from(&log, 21), 10);
    log.close();
}

fn ids_or_erased_from(log: &LocalLog, first: u64) -> usize {
    let batch = log.read(Seq(first), 1000, 1 << 20).unwrap();
    assert_eq!(batch.lost, []);
    batch.events.len()
}

/// A reader that is done with nothing, and up to where events are to become dead letters for it.
#[derive(Debug, Default)]
struct Behind(AtomicU64);

#[async_trait::async_trait]
impl Readers for Behind {
    async fn floor(&self) -> Floor {
        Floor::Known(Seq(1))
    }

    fn bury(&self, upto: Seq) {
        self.0.store(upto.0, Ordering::SeqCst);
    }

    async fn secure_letters(&self, _before: Seq) -> Result<(), String> {
        Ok(())
    }
}

/// While a segment is built anew it is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_erasure_is_writing_makes_no_event_a_dead_letter() {
    const BEING_WRITTEN: u64 = 13 << 20;
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    let readers = Arc::new(Behind::default());
    let options = retention::Options {
        dir: dir.path().to_owned(),
        keep: Duration::from_secs(86_400),
        max_size: Some(16 << 20),
        on_servers: false,
        round: Duration::from_secs(3600),
    };
    let clock = crate::age::Clock::new(Timestamp::now);
    let retention = Retention::new(options, Arc::new(log.clone()), readers.clone(), clock);
    let staging = dir.path().join("log/beside");
    std::fs::write(&staging, vec![1; BEING_WRITTEN as usize]).unwrap();
    log.shared.reserved.store(BEING_WRITTEN, Ordering::SeqCst);
    retention.round().await.unwrap();
    assert_eq!(readers.0.load(Ordering::SeqCst), 0);
    assert!(log.shared.left() < 2 << 20, "new events find as much less room");
    log.close();
}
