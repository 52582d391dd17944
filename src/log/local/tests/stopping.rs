//! What a stop of any kind leaves.

use super::*;

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
    log.go_round().await.unwrap();
    assert_eq!(log.stats().unsealed, 1);
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
    // Its own copies of databases aside, which go with it.
    let copies = dir.path().join(super::super::scratch::DIR);
    let files = |dir: &Path| {
        let mut names: Vec<PathBuf> = walk(dir);
        names.retain(|name| !name.starts_with(&copies));
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
    drop(reader);
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0, "and leaves nothing");
    store(&log, 21..=22).await;
    log.close();
    open(dir.path()).close();
}

/// Root's command may be cut off at any time; the daemon has to find a place that it can use.
#[test]
fn the_place_for_copies_is_of_whose_the_data_directory_is_at_once() {
    use std::os::unix::fs::{MetadataExt, lchown};
    if !rustix::process::geteuid().is_root() {
        skipped("giving a directory away needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    lchown(dir.path(), Some(4321), Some(4322)).unwrap();
    let copies = dir.path().join(super::super::scratch::DIR);
    // Also one that was left to root before.
    for left in [false, true] {
        if left {
            lchown(&copies, Some(0), Some(0)).unwrap();
        }
        let log = open(dir.path());
        let found = std::fs::metadata(&copies).unwrap();
        assert_eq!((found.uid(), found.gid()), (4321, 4322));
        log.close();
    }
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
async fn a_sealed_segment_is_not_changed_by_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // Several of sled's own segments, of noise that does not compress.
    store_noise(&log, 1..=120, 1 << 18).await;
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
