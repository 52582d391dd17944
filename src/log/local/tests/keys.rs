//! Known keys as a whole log has them: merged behind it, taken along, taken over.

use super::*;
use crate::event::{EventKey, Updated};
use crate::log::local::known::{self, Table, old};
use crate::sync::read_lock;

/// As [`super::options`], with a keeper that goes round by itself.
fn options(dir: &Path) -> Options {
    Options {
        round: Duration::from_millis(50),
        ..super::options(dir)
    }
}

fn incoming(id: u64) -> Incoming {
    let body = format!(r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15T12:48:23.395"}}}}"#);
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None)
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
    let is_month = |names: &[String]| names.len() == 1 && known::is_month(&names[0]);
    wait_until("the keys of four segments are merged", || {
        log.stats().unsealed == 1 && is_month(&names(dir))
    });
    log
}

/// A flood puts sealing off, and segments without room are not sealed at all: their keys must not pile up in memory.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_complete_segment_are_on_disk_before_it_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(super::options(dir.path())).unwrap();
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    store(&log, 11..=20).await;
    log.roll().await.unwrap();
    // Nothing can be sealed in so little room.
    log.set_room(64 << 10);
    log.go_round().await.unwrap();
    for first in [1, 11] {
        assert!(
            matches!(log.shared.segment(Seq(first)), Some(Segment::Open(_))),
            "{first}"
        );
        assert!(read_lock(&log.shared.known).has_file(Seq(first)), "{first}");
    }
    log.set_room(1 << 30);
    let again = async |log: &LocalLog| log.append(super::incoming(body(5, 0))).await;
    assert_eq!(again(&log).await, Ok(Appended::Duplicate(Seq(5))));
    log.close();
    drop(log);
    let log = LocalLog::open(super::options(dir.path())).unwrap();
    assert_eq!(again(&log).await, Ok(Appended::Duplicate(Seq(5))), "after a restart");
    seal(&log).await;
    assert_eq!(again(&log).await, Ok(Appended::Duplicate(Seq(5))), "sealed");
    log.close();
}

/// A log with the keys of a complete segment, of events 1 to 10, in a file; it is not sealed, as there is no room for that.
async fn log_with_keys_before_sealing(dir: &Path) -> LocalLog {
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..super::options(dir)
    })
    .unwrap();
    store(&log, 1..=10).await;
    log.roll().await.unwrap();
    store(&log, 11..=12).await;
    write_keys(&log).await;
    assert!(read_lock(&log.shared.known).has_file(Seq(1)));
    log
}

/// Has the keys of complete segments written, and nothing sealed.
async fn write_keys(log: &LocalLog) {
    log.set_room(64 << 10);
    log.go_round().await.unwrap();
    log.set_room(1 << 30);
    assert!(matches!(log.shared.segment(Seq(1)), Some(Segment::Open(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_in_a_file_are_not_in_memory_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    log_with_keys_before_sealing(dir.path()).await.close();
    for read_only in [true, false] {
        let log = LocalLog::open(Options {
            read_only,
            ..super::options(dir.path())
        })
        .unwrap();
        let in_memory = read_lock(&log.shared.known).in_memory();
        assert_eq!(in_memory, [Seq(11)], "the newest segment's, and no others");
        assert_eq!(log.find("ev_5").unwrap(), [Seq(5)]);
        assert_eq!(ids(&log), ((1..=12).collect(), vec![]));
        if read_only {
            continue;
        }
        for sealed in [false, true] {
            for id in 1..=12 {
                let again = log.append(super::incoming(body(id, 0))).await;
                assert_eq!(again, Ok(Appended::Duplicate(Seq(id))), "sealed: {sealed}");
            }
            seal(&log).await;
        }
        log.close();
    }
}

/// What damage took can come again; then it is known, whatever remembers where it was before.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_memory_of_a_lost_event_hides_no_key_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with_keys_before_sealing(dir.path()).await;
    for seq in (1..=10).map(Seq) {
        let event = log.get(seq).unwrap().unwrap();
        let identity = Identity::of(&event).unwrap();
        let mut known = write_lock(&log.shared.known);
        known.table(Seq(1)).insert(&identity, seq, event.received_at);
    }
    flip(&segment(dir.path(), 1).join("journal"), 50);
    let (_, lost) = ids(&log);
    let [(id, _)] = lost[..] else {
        panic!("one is lost: {lost:?}")
    };
    let again = || log.append(super::incoming(body(id, 0)));
    assert_eq!(again().await, Ok(Appended::Stored(Seq(13))), "it is lost");
    assert_eq!(again().await, Ok(Appended::Duplicate(Seq(13))), "from memory");
    log.roll().await.unwrap();
    for first in [1, 11] {
        let path = dir.path().join(crate::log::key_file(Seq(first)));
        let known = read_lock(&log.shared.known).unwritten(Seq(first));
        if let Some(table) = known {
            known::write_file(&path, &table).unwrap();
            let file = known::KeyFile::open(&path, Seq(first)).unwrap();
            drop(write_lock(&log.shared.known).sealed(Seq(first), Some(file)));
        }
    }
    assert_eq!(read_lock(&log.shared.known).in_memory(), [Seq(1)]);
    assert_eq!(again().await, Ok(Appended::Duplicate(Seq(13))), "from its file");
    log.close();
}

/// Stores new events wherever they come; gives their Seqs.
async fn store_anywhere(log: &LocalLog, ids: std::ops::RangeInclusive<u64>) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for id in ids {
        let Ok(Appended::Stored(seq)) = log.append(super::incoming(body(id, 0))).await else {
            panic!("{id} is new")
        };
        seqs.push(seq);
    }
    seqs
}

/// The last segment that is there has its keys in a month's database, where they can't be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_after_a_segment_whose_keys_are_merged_is_known_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for first in [1, 4, 7, 10] {
        store(&log, first..=first + 2).await;
        log.roll().await.unwrap();
    }
    write_keys(&log).await;
    assert!(known::is_month(&names(dir.path())[0]), "{:?}", names(dir.path()));
    log.close();
    std::fs::remove_dir_all(segment(dir.path(), 13)).unwrap();
    let log = open(dir.path());
    assert_eq!(read_lock(&log.shared.known).in_memory(), []);
    let stored = store_anywhere(&log, 13..=14).await;
    seal(&log).await;
    log.close();
    let log = open(dir.path());
    for (id, seq) in (1..=14).zip((1..=12).map(Seq).chain(stored)) {
        let again = log.append(super::incoming(body(id, 0))).await;
        assert_eq!(again, Ok(Appended::Duplicate(seq)));
    }
    log.close();
}

/// The next segment is gone, and nobody knows what it held.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_after_a_segment_whose_keys_are_in_a_file_is_known_as_well() {
    let dir = tempfile::tempdir().unwrap();
    log_with_keys_before_sealing(dir.path()).await.close();
    std::fs::remove_dir_all(segment(dir.path(), 11)).unwrap();
    let log = LocalLog::open(super::options(dir.path())).unwrap();
    let stored = store_anywhere(&log, 20..=22).await;
    assert!(stored[0] > Seq(12), "no Seq is given out twice");
    let again = async |log: &LocalLog| {
        for (id, seq) in (1..=10)
            .chain(20..=22)
            .zip((1..=10).map(Seq).chain(stored.iter().copied()))
        {
            let appended = log.append(super::incoming(body(id, 0))).await;
            assert_eq!(appended, Ok(Appended::Duplicate(seq)), "{id}");
        }
    };
    again(&log).await;
    seal(&log).await;
    again(&log).await;
    log.close();
    let log = LocalLog::open(super::options(dir.path())).unwrap();
    again(&log).await;
    log.close();
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

/// Opening a month reads its index alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_of_a_month_is_not_taken_along_and_is_named() {
    for name in ["sled/conf", "sled/db"] {
        let dir = tempfile::tempdir().unwrap();
        merged_log(dir.path()).await.close();
        let files = walk(&dir.path().join("keys"));
        flip(files.iter().find(|path| path.ends_with(name)).unwrap(), 40);
        let log = LocalLog::open(Options {
            read_only: true,
            ..options(dir.path())
        })
        .unwrap();
        assert_eq!(log.damaged_keys(), [""; 0]);
        let files = log.key_files().unwrap();
        assert!(
            files.damaged().len() == 1 && files.damaged()[0].contains("it is not what it was"),
            "{:?}",
            files.damaged()
        );
        assert!(files.paths().is_empty(), "{:?}", files.paths());
        assert!(!files.cover(Seq(1)) && files.leave_out(Seq(1)));
    }
}

/// What passes by is judged as what is on disk.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_in_a_month_that_passes_by() {
    let dir = tempfile::tempdir().unwrap();
    let log = merged_log(dir.path()).await;
    let files = log.key_files().unwrap();
    let found = |damaged: &str| {
        let mut carried = CarriedKeys::default();
        for path in files.paths() {
            let mut bytes = std::fs::read(dir.path().join(path)).unwrap();
            if path.ends_with(damaged) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            carried.file(Restorer::below_keys(path));
            bytes.chunks(7).for_each(|bytes| carried.data(bytes));
        }
        carried.damaged().unwrap()
    };
    // Of two manifests one is enough.
    for name in ["none", "manifest", "manifest.second"] {
        assert_eq!(found(name), [""; 0], "{name}");
    }
    for name in ["sled/conf", "sled/db", "index"] {
        let found = found(name);
        assert!(found.len() == 1 && found[0].contains("not what it was"), "{found:?}");
    }
    drop(files);
    log.close();
}

/// Older backups have a file for each segment, and newer ones for those that are in no month yet.
#[test]
fn damage_is_found_in_a_segment_s_keys_that_pass_by() {
    let mut table = Table::default();
    for id in 1..=600 {
        let key = EventKey {
            id: format!("ev_{id}"),
            updated: Updated::parse("2024-02-15T12:48:23.395"),
        };
        table.insert(&Identity::of_event(&key), Seq(id), Timestamp::now());
    }
    let dir = tempfile::tempdir().unwrap();
    known::write_file(&dir.path().join("new"), &table).unwrap();
    let path = crate::log::key_file(Seq(1));
    let found = |content: &[u8]| {
        let mut carried = CarriedKeys::default();
        carried.file(Restorer::below_keys(&path));
        content.chunks(7).for_each(|bytes| carried.data(bytes));
        carried.damaged().unwrap()
    };
    for whole in [std::fs::read(dir.path().join("new")).unwrap(), old::encode(&table)] {
        assert_eq!(found(&whole), [""; 0]);
        for at in [0, 20, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            let said = found(&damaged);
            assert!(said.len() == 1 && said[0].contains("known keys 0"), "{at}: {said:?}");
        }
        assert_eq!(found(&whole[..whole.len() - 1]).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn months_that_came_along_damaged_are_left_out_and_what_is_kept_is_known() {
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
    log.take(Seq(40), &mut |piece| match piece {
        Piece::Segment { first, sealed } => restorer.segment(first, sealed),
        Piece::Block(block) => restorer.block(block),
    })
    .unwrap();
    restorer.finish(Seq(40), Vec::new()).unwrap();
    let left_out = restorer.left_out();
    assert!(
        left_out.len() == 1 && left_out[0].contains("it is not what it was"),
        "{left_out:?}"
    );
    drop((restorer, files));
    log.close();
    let log = LocalLog::open(options(elsewhere.path())).unwrap();
    all_known(&log, 40).await;
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
            table.insert(&Identity::of_event(&key), Seq(id), Timestamp::now());
        }
        let path: PathBuf = dir.path().join(crate::log::key_file(Seq(segment * 10 + 1)));
        std::fs::write(path, old::encode(&table)).unwrap();
    }
    let description = dir.path().join("closehook.json");
    let old = std::fs::read_to_string(&description)
        .unwrap()
        .replace("\"format\": 3", "\"format\": 1");
    std::fs::write(&description, old).unwrap();

    let log = LocalLog::open(options(dir.path())).unwrap();
    all_known(&log, 40).await;
    wait_until("they are merged", || names(dir.path()).len() == 1);
    all_known(&log, 40).await;
    log.close();
    let now = std::fs::read_to_string(&description).unwrap();
    assert!(
        now.contains("\"format\": 3"),
        "an earlier version is told that it can't read this: {now}"
    );
}

/// Puts a pipe into a file's place: opening it takes until somebody opens its other end. Gives where the file is kept.
fn put_a_pipe(path: &Path) -> PathBuf {
    let kept = path.with_extension("kept");
    std::fs::rename(path, &kept).unwrap();
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
    kept
}

/// Puts the file back, and lets go of whoever waits at the pipe for as long as the answer is there.
fn put_back(path: &Path, kept: &Path) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    let pipe = path.with_extension("pipe");
    std::fs::hard_link(path, &pipe).unwrap();
    std::fs::rename(kept, path).unwrap();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = || {
        std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(nonblocking)
            .open(&pipe)
    };
    let mut other_end = None;
    wait_until("somebody waits at the pipe", || {
        other_end = open().ok();
        other_end.is_some()
    });
    other_end.unwrap()
}

/// Asks for a key where the disk does not answer, and has it repeated as well: whoever is new is stored all the same.
async fn goes_on_while_a_key_is_asked_for(log: &LocalLog, file: &Path, known: u64, fresh: u64) {
    let kept = put_a_pipe(file);
    let (told, answer) = std::sync::mpsc::channel();
    let asking = log.clone();
    std::thread::spawn(move || {
        told.send(None).unwrap();
        let found = asking.find(&format!("ev_{known}"));
        told.send(Some(found)).unwrap();
    });
    assert!(answer.recv().unwrap().is_none(), "it begins");
    let mut repeated = std::pin::pin!(log.append(incoming(known)));
    assert!(futures::poll!(&mut repeated).is_pending());
    // Long enough for both to be at the pipe.
    for id in fresh..fresh + 300 {
        let stored = tokio::time::timeout(Duration::from_secs(20), log.append(incoming(id))).await;
        assert_eq!(stored.expect("others wait for it"), Ok(Appended::Stored(Seq(id))));
    }
    let next = fresh + 300;
    let in_order = log.append_in_order((next..next + 20).map(incoming).collect());
    let in_order = tokio::time::timeout(Duration::from_secs(20), in_order).await;
    let expected: Vec<_> = (next..next + 20).map(|id| Ok(Appended::Stored(Seq(id)))).collect();
    assert_eq!(in_order.expect("others wait for it"), expected);
    assert!(answer.try_recv().is_err(), "the question waits");
    assert!(futures::poll!(&mut repeated).is_pending(), "and so does the repetition");
    let _open = put_back(file, &kept);
    let found = answer.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    assert!(found.is_err() || found == Ok(vec![Seq(known)]), "{found:?}");
    let repeated = tokio::time::timeout(Duration::from_secs(30), repeated).await.unwrap();
    assert!(
        matches!(repeated, Ok(Appended::Duplicate(_)) | Err(AppendError::Failing(_))),
        "{repeated:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_stored_while_a_question_to_a_file_of_keys_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(options(dir.path())).unwrap();
    for id in 1..=10 {
        assert_eq!(log.append(incoming(id)).await, Ok(Appended::Stored(Seq(id))));
    }
    log.roll().await.unwrap();
    log.go_round().await.unwrap();
    let file = dir.path().join(crate::log::key_file(Seq(1)));
    goes_on_while_a_key_is_asked_for(&log, &file, 5, 11).await;
    all_known(&log, 10).await;
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_stored_while_the_first_question_to_a_months_database_hangs() {
    let dir = tempfile::tempdir().unwrap();
    merged_log(dir.path()).await.close();
    // Nothing of it is open.
    let log = LocalLog::open(options(dir.path())).unwrap();
    let file = dir.path().join("keys").join(&names(dir.path())[0]).join("sled/db");
    goes_on_while_a_key_is_asked_for(&log, &file, 5, 41).await;
    log.close();
    let log = LocalLog::open(options(dir.path())).unwrap();
    all_known(&log, 40).await;
    log.close();
}

/// What may be known goes a way round, and neither order nor number suffers from it.
#[tokio::test(flavor = "multi_thread")]
async fn repetitions_and_new_events_in_one_order_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let log = merged_log(dir.path()).await;
    let mixed: Vec<u64> = (1..=40).flat_map(|id| [id, id + 40, id]).collect();
    let appended = log.append_in_order(mixed.iter().copied().map(incoming).collect()).await;
    let expected: Vec<_> = mixed
        .iter()
        .map(|id| {
            Ok(if *id <= 40 {
                Appended::Duplicate(Seq(*id))
            } else {
                Appended::Stored(Seq(*id))
            })
        })
        .collect();
    assert_eq!(appended, expected);
    // Side by side each is stored once, whoever repeats it.
    let mut side_by_side = tokio::task::JoinSet::new();
    for id in (1..=80).chain(1001..=1200).chain(1001..=1200) {
        let log = log.clone();
        side_by_side.spawn(async move { (id, log.append(incoming(id)).await) });
    }
    let mut stored = 0;
    while let Some(ended) = side_by_side.join_next().await {
        match ended.unwrap() {
            (1001.., Ok(Appended::Stored(_))) => stored += 1,
            (_, Ok(Appended::Duplicate(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((stored, log.stats().events), (200, 280));
    log.close();
}
