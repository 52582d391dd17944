//! Segments that are gone as a whole, which leave nothing behind that could be read: at the beginning of the log and at its end.

use super::*;
use crate::log::Gap;

fn visitor(dir: &Path) -> LocalLog {
    LocalLog::open(Options {
        read_only: true,
        ..options(dir)
    })
    .unwrap()
}

fn remove(dir: &Path, first: u64) {
    std::fs::remove_dir_all(segment(dir, first)).unwrap();
}

fn lost(log: &LocalLog) -> Vec<(u64, u64)> {
    let gaps = log.stats().gaps;
    gaps.iter().map(|gap| (gap.from.0, gap.to.0)).collect()
}

fn only_gap(log: &LocalLog) -> Gap {
    let mut gaps = log.stats().gaps;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    gaps.remove(0)
}

/// Where the log begins by what is on disk.
fn begins(dir: &Path) -> Option<Seq> {
    gaps::Gaps::open(dir, false, false).unwrap().begins()
}

/// What is in the data directory, with its content, but for copies of what is looked at.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = walk(dir);
    files.retain(|path| !path.starts_with(dir.join(SCRATCH)));
    files.sort();
    let read = |path: PathBuf| (path.clone(), std::fs::read(&path).unwrap());
    files.into_iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_beginning_is_lost_and_said_once() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    remove(dir.path(), 1);
    let before = content(dir.path());
    let looked = visitor(dir.path());
    assert_eq!(lost(&looked), [(1, 10)]);
    assert_eq!(ids(&looked), ((11..=20).collect(), vec![(1, 10)]));
    assert_eq!(content(dir.path()), before, "looking changes nothing");
    for _ in 0..2 {
        let log = open(dir.path());
        assert_eq!(lost(&log), [(1, 10)]);
        assert_eq!(ids(&log), ((11..=20).collect(), vec![(1, 10)]));
        log.close();
    }
    let (now, days) = days_ahead();
    let log = reopen(&Options {
        now,
        ..options(dir.path())
    });
    assert_eq!(
        log.append(incoming(body(5, 0))).await.unwrap(),
        Appended::Stored(Seq(21)),
        "what is lost can come again"
    );
    // When retention has passed it, nobody misses it any more, nor when the next start looks.
    days.store(80, Ordering::SeqCst);
    assert_eq!(log.drop_before(Seq(21)).await, Ok(Seq(21)));
    log.go_round().await.unwrap();
    assert_eq!(lost(&log), []);
    log.close();
    let log = open(dir.path());
    assert_eq!(lost(&log), []);
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    assert_eq!(begins(dir.path()), Some(Seq(1)));
    assert_eq!(log.drop_before(Seq(15)).await, Ok(Seq(11)));
    assert_eq!(begins(dir.path()), Some(Seq(11)));
    assert_eq!(lost(&visitor(dir.path())), []);
    log.close();
    for first in [11, 21] {
        let log = open(dir.path());
        assert_eq!(lost(&log), []);
        assert_eq!(log.drop_before(Seq(1000)).await, Ok(Seq(21)), "{first}");
        log.close();
    }
    assert_eq!(begins(dir.path()), Some(Seq(21)));
}

/// A crash may come between any two steps of a drop.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_was_cut_off_is_no_loss() {
    // Written down, and nothing has gone yet; it has lost its name; its bytes are gone; all of it is.
    for steps in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        two_sealed(dir.path()).await.close();
        let list = gaps::Gaps::open(dir.path(), true, false).unwrap();
        list.begin_at(Seq(11)).unwrap();
        let (place, log_dir) = (segment(dir.path(), 1), dir.path().join("log"));
        if steps > 1 {
            std::fs::rename(&place, log_dir.join(format!("removed-{:020}", 1))).unwrap();
        }
        if steps > 2 {
            sealed::swap::empty_dropped(&log_dir, Seq(1)).unwrap();
        }
        if steps > 3 {
            sealed::swap::recover(&log_dir, false).unwrap();
        }
        assert_eq!(lost(&visitor(dir.path())), [], "{steps}");
        for _ in 0..2 {
            let log = open(dir.path());
            assert_eq!(lost(&log), [], "{steps}");
            let first = if steps > 1 { 11 } else { 1 };
            assert_eq!(ids(&log).0, (first..=20).collect::<Vec<_>>(), "{steps}");
            log.close();
            assert_eq!(begins(dir.path()), Some(Seq(first)), "{steps}");
        }
    }
}

/// There was no room to write it down before: the name of what goes tells it until there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_could_not_be_written_down_and_was_cut_off_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    let log_dir = dir.path().join("log");
    std::fs::rename(segment(dir.path(), 1), log_dir.join(format!("removed-{:020}", 1))).unwrap();
    sealed::swap::empty_dropped(&log_dir, Seq(1)).unwrap();
    assert_eq!(begins(dir.path()), Some(Seq(1)));
    assert_eq!(lost(&visitor(dir.path())), []);
    for _ in 0..2 {
        let log = open(dir.path());
        assert_eq!(lost(&log), []);
        log.close();
    }
    assert_eq!(begins(dir.path()), Some(Seq(11)));
}

/// What could not be dropped with the rest is missed when it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_fails_half_way_makes_the_log_begin_where_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    let in_the_way = dir.path().join("log").join(format!("removed-{:020}", 11));
    std::fs::write(&in_the_way, b"").unwrap();
    log.drop_before(Seq(21)).await.unwrap_err();
    assert_eq!(ids(&log).0, (11..=20).collect::<Vec<_>>());
    assert_eq!(begins(dir.path()), Some(Seq(11)));
    log.close();
    std::fs::remove_file(&in_the_way).unwrap();
    remove(dir.path(), 11);
    let log = open(dir.path());
    assert_eq!(lost(&log), [(11, 20)]);
    log.close();
}

/// Directories from before that was noted say nothing of where they begin.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_know_where_it_begins_begins_where_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    remove(dir.path(), 1);
    std::fs::remove_file(dir.path().join("gaps")).unwrap();
    std::fs::write(dir.path().join("gaps.json"), "[]").unwrap();
    let description = dir.path().join("closehook.json");
    let old = std::fs::read_to_string(&description).unwrap();
    let old = old.replace("\"gaps_begun\": true", "\"gaps_begun\": false");
    std::fs::write(&description, old.replace("\"format\": 3", "\"format\": 2")).unwrap();
    assert_eq!(lost(&visitor(dir.path())), []);
    let log = open(dir.path());
    assert_eq!(lost(&log), []);
    log.close();
    assert_eq!(begins(dir.path()), Some(Seq(11)));
    assert!(!dir.path().join("gaps.json").exists());
    // From then on it knows.
    remove(dir.path(), 11);
    let log = open(dir.path());
    assert_eq!(lost(&log), [(11, 20)]);
    log.close();
}

/// Seqs in front of the next segment that were left out are not missed with what is dropped before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_begins_behind_a_jump_has_lost_nothing_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (now, days) = days_ahead();
    let options = Options {
        now,
        ..options(dir.path())
    };
    let log = reopen(&options);
    store(&log, 1..=5).await;
    seal(&log).await;
    log.skip_past(Seq(1000)).await.unwrap();
    let next = log.append(incoming(body(6, 0))).await.unwrap();
    assert_eq!(next, Appended::Stored(Seq(1001)));
    log.go_round().await.unwrap();
    assert_eq!(log.drop_before(Seq(6)).await, Ok(Seq(1001)));
    days.store(80, Ordering::SeqCst);
    log.go_round().await.unwrap();
    log.drop_before(Seq(6)).await.unwrap();
    log.close();
    assert_eq!(begins(dir.path()), Some(Seq(1001)));
    let log = reopen(&options);
    assert_eq!(lost(&log), []);
    log.close();
}

/// What damage took of the beginning is on record, and not found once more when that is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_beginning_is_not_missing_as_well() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    std::fs::remove_dir_all(segment(dir.path(), 1).join("sled")).unwrap();
    let log = open(dir.path());
    assert_eq!(ids(&log).1, [(1, 10)]);
    assert_eq!(lost(&log), [(1, 10)]);
    log.shared.gaps.forget_before(Seq(11), &|_| true).unwrap();
    log.close();
    for _ in 0..2 {
        let log = open(dir.path());
        assert_eq!(lost(&log), []);
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_tell_of_segments_that_are_missing_at_the_end() {
    for all in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        two_sealed(dir.path()).await.close();
        for first in [11, 21].into_iter().chain(all.then_some(1)) {
            remove(dir.path(), first);
        }
        let from = if all { 1 } else { 11 };
        let before = content(dir.path());
        for read_only in [true, false, false] {
            let log = reopen(&Options {
                read_only,
                ..options(dir.path())
            });
            let gap = only_gap(&log);
            assert_eq!(
                (gap.from, gap.certain_to),
                (Seq(from), Some(Seq(20))),
                "{all} {read_only}"
            );
            assert_eq!(ids(&log), ((1..from).collect(), vec![(from, 20)]));
            log.close();
            assert!(!read_only || content(dir.path()) == before, "looking changes nothing");
        }
        let log = open(dir.path());
        let end = only_gap(&log).to;
        // What came behind the last one whose key is known is given out to nobody else.
        assert_eq!(end, journal::last_possible(Seq(21), None));
        assert_eq!(
            log.append(incoming(body(15, 0))).await.unwrap(),
            Appended::Stored(end.next())
        );
        log.close();
    }
}

/// Neither keys nor another segment: that there was one is on record, and how many events it held nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_missing_as_a_whole_is_lost_and_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.close();
    remove(dir.path(), 1);
    for _ in 0..2 {
        let log = open(dir.path());
        let gap = only_gap(&log);
        assert_eq!((gap.from, gap.certain_to), (Seq(1), Some(Seq(0))));
        assert!(gap.to >= Seq(5));
        log.close();
    }
}

/// Nothing is sealed before another segment has begun behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_newest_segment_is_lost_and_its_seqs_are_not_given_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    store(&log, 21..=30).await;
    log.close();
    remove(dir.path(), 21);
    let before = content(dir.path());
    for read_only in [true, false, false] {
        let log = reopen(&Options {
            read_only,
            ..options(dir.path())
        });
        let gap = only_gap(&log);
        assert_eq!(
            (gap.from, gap.to, gap.certain()),
            (Seq(21), journal::last_possible(Seq(21), None), 0),
            "{read_only}"
        );
        assert_eq!(ids(&log).0, (1..=20).collect::<Vec<_>>());
        log.close();
        assert!(!read_only || content(dir.path()) == before, "looking changes nothing");
    }
    let log = open(dir.path());
    let end = only_gap(&log).to;
    let stored = log.append(incoming(body(25, 0))).await;
    assert_eq!(stored, Ok(Appended::Stored(end.next())));
    seal(&log).await;
    log.close();
    let log = open(dir.path());
    assert_eq!(only_gap(&log).from, Seq(21), "and it is not missed again");
    log.close();
}

/// A directory that was made for it and nothing else: nothing was ever in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_newest_segment_that_was_only_begun_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    std::fs::remove_file(segment(dir.path(), 21).join("journal")).unwrap();
    let log = open(dir.path());
    assert_eq!(lost(&log), []);
    let stored = log.append(incoming(body(21, 0))).await;
    assert_eq!(stored, Ok(Appended::Stored(Seq(21))));
    log.close();
}

/// Keys outlive events: where it is not known where the log began, they may be of what was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn keys_alone_prove_no_loss_where_nobody_knows_where_the_log_began() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    for first in [1, 11, 21] {
        remove(dir.path(), first);
    }
    std::fs::write(dir.path().join("gaps"), "nonsense").unwrap();
    for _ in 0..2 {
        let log = open(dir.path());
        let gap = only_gap(&log);
        assert_eq!((gap.from, gap.certain()), (Seq(11), 0));
        assert_eq!(gap.to, journal::last_possible(Seq(21), None));
        log.close();
    }
    let log = open(dir.path());
    let again = log.append(incoming(body(5, 0))).await;
    assert_eq!(
        again,
        Ok(Appended::Duplicate(Seq(5))),
        "it was dropped, as far as anybody knows"
    );
    let again = log.append(incoming(body(15, 0))).await;
    assert!(matches!(again, Ok(Appended::Stored(_))), "it may be lost: {again:?}");
    log.close();
}

/// What is on record behind the end is given out to nobody, and what comes is in no segment of before.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_jump_that_was_cut_off_is_in_a_segment_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.close();
    let list = gaps::Gaps::open(dir.path(), true, false).unwrap();
    list.record_or_owe(Seq(6), Seq(1000), "skipped", gaps::Stood::Nothing)
        .unwrap();
    let log = open(dir.path());
    let stored = log.append(incoming(body(6, 0))).await;
    assert_eq!(stored, Ok(Appended::Stored(Seq(1001))));
    let firsts: Vec<Seq> = log.shared.all_segments().iter().map(|(first, _)| *first).collect();
    assert_eq!(firsts, [Seq(1), Seq(1001)]);
    log.close();
}

/// Else the next start would find nothing where something was, once more.
#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_all_is_not_forgotten_while_no_segment_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.close();
    remove(dir.path(), 1);
    let (now, days) = days_ahead();
    let log = reopen(&Options {
        now,
        ..options(dir.path())
    });
    days.store(80, Ordering::SeqCst);
    let segments = std::mem::take(&mut *write_lock(&log.shared.segments));
    log.shared.forget_gaps().unwrap();
    assert_eq!(only_gap(&log).from, Seq(1));
    *write_lock(&log.shared.segments) = segments;
    log.shared.forget_gaps().unwrap();
    assert_eq!(lost(&log), []);
    log.close();
}

/// What is on record behind the last segment that is there was recorded where the log ended then.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_before_a_jump_at_the_end_is_lost_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_sealed(dir.path()).await;
    log.skip_past(Seq(1000)).await.unwrap();
    log.close();
    for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let path = entry.unwrap().path();
        if path != segment(dir.path(), 1) {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    for read_only in [true, false, false] {
        let log = reopen(&Options {
            read_only,
            ..options(dir.path())
        });
        let mut all = lost(&log);
        all.sort_unstable();
        assert_eq!(all, [(11, 20), (21, 1000)], "{read_only}");
        log.close();
    }
}

/// Without the list nobody knows any more what was on it, nor where the log begins; that there is none is said all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_gaps_that_is_missing_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.skip_past(Seq(1000)).await.unwrap();
    log.append(incoming(body(6, 0))).await.unwrap();
    log.close();
    std::fs::remove_file(dir.path().join("gaps")).unwrap();
    let faults = visitor(dir.path()).verify(&mut |_, _| ());
    assert!(
        faults.len() == 1 && faults[0].contains("list of lost events") && faults[0].contains("missing"),
        "{faults:?}"
    );
    for _ in 0..2 {
        let log = open(dir.path());
        let gap = only_gap(&log);
        assert_eq!((gap.from, gap.to, gap.certain()), (Seq(6), Seq(1000), 0));
        assert_eq!(log.verify(&mut |_, _| ()), [""; 0]);
        log.close();
    }
}

/// A list of which a digit has changed is believed in nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_digit_in_the_list_of_gaps_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.skip_past(Seq(1000)).await.unwrap();
    log.append(incoming(body(6, 0))).await.unwrap();
    log.close();
    let path = dir.path().join("gaps");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = memchr::memmem::find(&bytes, b"1000").unwrap();
    bytes[at] = b'9';
    std::fs::write(&path, &bytes).unwrap();
    let faults = visitor(dir.path()).verify(&mut |_, _| ());
    assert!(
        faults.iter().any(|fault| fault.contains("list of lost events")),
        "{faults:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");
    let log = open(dir.path());
    let gap = only_gap(&log);
    assert_eq!(
        (gap.from, gap.to, gap.certain()),
        (Seq(6), Seq(1000), 0),
        "unknown is not none"
    );
    assert_eq!(std::fs::read(dir.path().join("gaps.damaged")).unwrap(), bytes);
    log.close();
}
