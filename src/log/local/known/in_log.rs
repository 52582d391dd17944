//! Known keys as a whole log has them: merged behind it, taken along, taken over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::file;
use super::table::Table;
use crate::event::{EventKey, Seq, Source, Updated};
use crate::log::local::{Clock, LocalLog, Options, Piece, Restorer};
use crate::log::{Appended, Incoming};

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_size: 1 << 30,
        segment_age: Duration::from_secs(86_400),
        reserve: Some(0),
        keys_kept: Duration::from_secs(73 * 3600),
        cache_bytes: 1 << 20,
        read_only: false,
        round: Duration::from_millis(50),
        now: Clock::default(),
    }
}

fn incoming(id: u64) -> Incoming {
    let body = format!(r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15T12:48:23.395"}}}}"#);
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None)
}

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

async fn all_known(log: &LocalLog, ids: u64) {
    for id in 1..=ids {
        assert_eq!(log.append(incoming(id)).await, Ok(Appended::Duplicate(Seq(id))), "{id}");
    }
    assert_eq!(log.find("ev_3").unwrap(), [Seq(3)]);
    assert_eq!(log.find("ev_0").unwrap(), []);
}

fn names(dir: &Path) -> Vec<String> {
    let listing = std::fs::read_dir(dir.join("keys")).unwrap();
    let mut names: Vec<String> = listing
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A log of four sealed segments of ten events each, whose keys have been merged.
async fn merged_log(dir: &Path) -> LocalLog {
    let log = LocalLog::open(options(dir)).unwrap();
    for segment in 0..4 {
        for id in segment * 10 + 1..=segment * 10 + 10 {
            assert_eq!(log.append(incoming(id)).await, Ok(Appended::Stored(Seq(id))));
        }
        log.roll().await.unwrap();
    }
    let is_month = |names: &[String]| names.len() == 1 && super::is_month(&names[0]);
    wait_until("the keys of four segments are merged", || {
        log.stats().unsealed == 1 && is_month(&names(dir))
    });
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_merges_keys_and_a_backup_takes_them_along() {
    let dir = tempfile::tempdir().unwrap();
    let log = merged_log(dir.path()).await;
    all_known(&log, 40).await;
    let disk_bytes = log.stats().disk_bytes;
    // Offline, beside the running one.
    let looked_at = LocalLog::open(Options {
        read_only: true,
        ..options(dir.path())
    });
    assert_eq!(looked_at.unwrap().find("ev_17").unwrap(), [Seq(17)]);

    let elsewhere = tempfile::tempdir().unwrap();
    let mut restorer = Restorer::new(elsewhere.path()).unwrap();
    let files = log.key_files().unwrap();
    for path in files.paths() {
        assert!(Restorer::is_key_file(path), "{}", path.display());
        let to = elsewhere.path().join(path);
        crate::framefile::make_dir(to.parent().unwrap()).unwrap();
        std::fs::copy(dir.path().join(path), &to).unwrap();
        Restorer::check_key_file(&to).unwrap();
    }
    let head = *log.head().borrow();
    log.take(head, &mut |piece| match piece {
        Piece::Segment { first, sealed } => {
            assert!(!sealed || files.cover(first));
            restorer.segment(first, sealed)
        }
        Piece::Block(block) => restorer.block(block),
    })
    .unwrap();
    restorer.finish(head, Vec::new()).unwrap();
    drop((restorer, files));
    log.close();

    for dir in [dir.path(), elsewhere.path()] {
        let log = LocalLog::open(options(dir)).unwrap();
        all_known(&log, 40).await;
        assert_eq!(names(dir).len(), 1, "{:?}", names(dir));
        assert!(log.stats().disk_bytes <= disk_bytes + 4096);
        assert_eq!(log.verify(&mut |_, _| ()), Vec::<String>::new());
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn months_that_came_along_damaged_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = merged_log(dir.path()).await;
    let files = log.key_files().unwrap();
    let database = files.paths().iter().find(|path| path.ends_with("sled/db")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut restorer = Restorer::new(elsewhere.path()).unwrap();
    for path in files.paths() {
        let to = elsewhere.path().join(path);
        crate::framefile::make_dir(to.parent().unwrap()).unwrap();
        std::fs::copy(dir.path().join(path), &to).unwrap();
    }
    let mut content = std::fs::read(elsewhere.path().join(database)).unwrap();
    let middle = content.len() / 3;
    content[middle] ^= 1;
    std::fs::write(elsewhere.path().join(database), content).unwrap();
    assert!(restorer.finish(Seq(40), Vec::new()).is_err());
    drop(files);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_files_of_the_first_version_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    merged_log(dir.path()).await.close();
    // As a directory was before: a file a segment, and its own format.
    std::fs::remove_dir_all(dir.path().join("keys")).unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    for segment in 0..4_u64 {
        let mut table = Table::default();
        for id in segment * 10 + 1..=segment * 10 + 10 {
            let key = EventKey {
                id: format!("ev_{id}"),
                updated: Updated::parse("2024-02-15T12:48:23.395"),
            };
            table.insert(&super::Identity::of_event(&key), Seq(id), Timestamp::now());
        }
        let path: PathBuf = dir.path().join(crate::log::key_file(Seq(segment * 10 + 1)));
        std::fs::write(path, file::old::encode(&table)).unwrap();
    }
    let description = dir.path().join("closehook.json");
    let old = std::fs::read_to_string(&description)
        .unwrap()
        .replace("\"format\": 2", "\"format\": 1");
    std::fs::write(&description, old).unwrap();

    let log = LocalLog::open(options(dir.path())).unwrap();
    all_known(&log, 40).await;
    wait_until("they are merged", || names(dir.path()).len() == 1);
    all_known(&log, 40).await;
    log.close();
    let now = std::fs::read_to_string(&description).unwrap();
    assert!(
        now.contains("\"format\": 2"),
        "an earlier version is told that it can't read this: {now}"
    );
}
