//! What is said of damage is true: how much is lost, and where it is, also by somebody who only looks.

use super::*;
use crate::log::Gap;

fn only_gap(log: &LocalLog) -> Gap {
    let mut gaps = log.stats().gaps;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    gaps.remove(0)
}

/// Neither how few bytes are left nor how many there are instead says how many events there were.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_newest_journal_that_is_gone_no_number_is_made_up() {
    for left in [Vec::new(), vec![7_u8; 20], vec![7; 1 << 20]] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=5).await;
        log.close();
        std::fs::write(newest_journal(dir.path()), &left).unwrap();
        for _ in 0..2 {
            let log = open(dir.path());
            let gap = only_gap(&log);
            assert_eq!((gap.from, gap.certain(), gap.certain_to), (Seq(1), 0, Some(Seq(0))));
            assert!(gap.told().contains("nobody knows how many"), "{}", gap.told());
            assert!(gap.to >= Seq(5) && *log.head().borrow() == gap.to);
            assert_eq!(ids(&log), (vec![], vec![]), "none is counted as lost for anybody");
            log.close();
        }
    }
}

/// What a sink has had was there; what it has only passed need not have been.
#[tokio::test(flavor = "multi_thread")]
async fn what_sinks_have_seen_of_a_lost_journal_is_lost_for_certain() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.close();
    std::fs::write(newest_journal(dir.path()), b"").unwrap();
    let log = open(dir.path());
    let end = only_gap(&log).to;
    for (seen, certain) in [(Seq(3), 3), (Seq(2), 3), (end, 3), (Seq(4), 4)] {
        Log::note_seen(&log, seen).await;
        assert_eq!(only_gap(&log).certain(), certain, "{seen}");
    }
    log.close();
    let log = open(dir.path());
    assert_eq!(ids(&log), (vec![], vec![(1, 4)]));
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_tell_how_far_a_lost_segment_went() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    // As if the newest journal had never been begun.
    std::fs::remove_dir_all(segment(dir.path(), 21)).unwrap();
    for manifest in ["manifest", "manifest.second"] {
        std::fs::write(segment(dir.path(), 11).join(manifest), b"nonsense").unwrap();
    }
    for read_only in [true, false, false] {
        let log = reopen(&Options {
            read_only,
            ..options(dir.path())
        });
        let gap = only_gap(&log);
        assert_eq!((gap.from, gap.certain_to), (Seq(11), Some(Seq(20))), "{read_only}");
        assert_eq!(ids(&log), ((1..=10).collect(), vec![(11, 20)]));
        log.close();
    }
}

/// Where bytes are missing at the beginning, everything behind them has moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_has_lost_its_first_bytes_keeps_every_whole_block() {
    // The last time as much as the first block takes up: the second one is where that was.
    for (missing, lost) in [(Some(10), 0), (Some(32), 0), (Some(33), 1), (None, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=10).await;
        log.close();
        let journal = newest_journal(dir.path());
        let mut places = Vec::new();
        crate::framefile::scan(&journal, journal::FORMAT, |frame| places.push(frame.offset as usize)).unwrap();
        let missing = missing.unwrap_or_else(|| places[1] - places[0]);
        let bytes = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, &bytes[missing..]).unwrap();
        let expected = ((1 + lost..=10).collect::<Vec<u64>>(), (lost > 0).then_some((1, lost)));
        for _ in 0..2 {
            let log = open(dir.path());
            let (found, gone) = ids(&log);
            assert_eq!((found, gone.first().copied()), expected, "{missing}");
            assert_eq!(log.stats().gaps.len() as u64, lost);
            log.close();
        }
        let log = open(dir.path());
        store(&log, 11..=12).await;
        seal(&log).await;
        assert_eq!(ids(&log).0.len() as u64, 12 - lost);
        log.close();
    }
}

/// What is on record in front of the next segment was never in the one that is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_segment_held_nothing_of_what_is_on_record_behind_it() {
    for skips in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=5).await;
        seal(&log).await;
        if skips {
            log.skip_past(Seq(1000)).await.unwrap();
        }
        log.close();
        if !skips {
            // A journal of which nobody knows how long it was.
            std::fs::write(newest_journal(dir.path()), b"nonsense").unwrap();
        }
        let log = open(dir.path());
        let certain_of = |gaps: &[Gap]| gaps.iter().map(Gap::certain).sum::<u64>();
        let before = log.stats().gaps;
        let next = log.append(incoming(body(6, 0))).await.unwrap();
        assert!(matches!(next, Appended::Stored(seq) if seq > Seq(1000)), "{next:?}");
        // The empty segment in between goes.
        log.go_round().await.unwrap();
        log.close();
        for manifest in ["manifest", "manifest.second"] {
            std::fs::write(segment(dir.path(), 1).join(manifest), b"nonsense").unwrap();
        }
        for read_only in [true, false, false] {
            let log = reopen(&Options {
                read_only,
                ..options(dir.path())
            });
            let gaps = log.stats().gaps;
            let found = (gaps.len(), certain_of(&gaps));
            let expected = (before.len() + 1, certain_of(&before) + 5);
            assert_eq!(found, expected, "{skips} {read_only}: {gaps:?}");
            log.close();
        }
    }
}

/// Whether a hole between two segments was skipped or held events stood in the list alone.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_list_of_gaps_is_lost_a_hole_is_no_number_of_events() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=5).await;
    log.skip_past(Seq(1000)).await.unwrap();
    log.append(incoming(body(6, 0))).await.unwrap();
    log.close();
    std::fs::write(dir.path().join("gaps"), "[{").unwrap();
    for _ in 0..2 {
        let log = open(dir.path());
        let gap = only_gap(&log);
        assert_eq!((gap.from, gap.to, gap.certain()), (Seq(6), Seq(1000), 0));
        log.close();
    }
}

/// As when a daemon drops the oldest segments between the listing and the look at them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_while_somebody_looks_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    two_sealed(dir.path()).await.close();
    let log_dir = dir.path().join("log");
    let listed = sealed::swap::visible(&log_dir).unwrap();
    for (gone, left) in [(1, vec![Seq(11), Seq(21)]), (11, vec![Seq(21)])] {
        std::fs::remove_dir_all(segment(dir.path(), gone)).unwrap();
        let keys = dir.path().join("keys");
        let mut known = known::KnownKeys::open(&keys, false, |_, error| panic!("{error}")).unwrap();
        let gaps = gaps::Gaps::open(dir.path(), false, false).unwrap();
        let found = recovery::take_listed(&log_dir, &listed, None, &mut known, &gaps, false).unwrap();
        assert_eq!(gaps.list().len(), 0, "{gone}");
        assert_eq!(found.segments.keys().copied().collect::<Vec<_>>(), left);
        assert_eq!(found.next, Seq(21));
    }
}

/// It goes on behind what was seen before it takes anything.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_until_the_log_has_gone_on_behind_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    Log::hold_until_past(&log, Seq(9));
    let held = log.append(incoming(body(10, 0))).await.unwrap_err().to_string();
    assert!(held.contains("events up to 9"), "{held}");
    assert!(log.ready().is_err());
    log.skip_past(Seq(9)).await.unwrap();
    store(&log, 10..=10).await;
    wait_until("it is ready again", || log.ready().is_ok());
    log.close();
}

/// Behind the last ones there is no place for an event, and no segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_behind_no_seq_that_leaves_none_for_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=3).await;
    for seen in [u64::MAX, u64::MAX - 1, u64::MAX - 1000] {
        let refused = log.skip_past(Seq(seen)).await.unwrap_err().to_string();
        assert!(refused.contains(&seen.to_string()) || seen == u64::MAX, "{refused}");
    }
    store(&log, 4..=5).await;
    log.close();
    let log = open(dir.path());
    store(&log, 6..=6).await;
    log.close();
    let last = Seq(u64::MAX);
    assert_eq!(journal::last_possible(last.prev(), None), last);
}

fn visitor(dir: &Path) -> LocalLog {
    LocalLog::open(Options {
        read_only: true,
        ..options(dir)
    })
    .unwrap()
}

/// Each of these is damaged, is named where it is, and stays as it is; all events but these are there all the same.
fn named_by_a_visitor(dir: &Path, damaged: &[PathBuf], lost: u64) {
    let gaps = dir.join("gaps");
    let content = || -> Vec<Vec<u8>> {
        let files = damaged.iter().chain([&gaps]);
        files.map(|path| std::fs::read(path).unwrap()).collect()
    };
    let before = content();
    let log = visitor(dir);
    let faults = log.verify(&mut |_, _| ());
    assert_eq!(faults.len(), damaged.len(), "{faults:?}");
    for path in damaged {
        let path = path.display().to_string();
        assert!(faults.iter().any(|fault| fault.contains(&path)), "{path}: {faults:?}");
    }
    let (found, gone) = ids(&log);
    assert_eq!((found.len() as u64, gone.len() as u64), (20 - lost, lost));
    assert_eq!(log.stats().gaps.len() as u64, lost, "it is on record, if only here");
    assert!(before == content(), "nothing is changed");
}

/// What only a copy is opened of may be put right in the copy, and is no less damaged for that.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_only_looks_names_all_that_is_damaged_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    store(&log, 11..=20).await;
    log.close();
    assert_eq!(visitor(dir.path()).verify(&mut |_, _| ()), [""; 0]);
    let sealed = segment(dir.path(), 1);
    let small = |name: &str| {
        let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name);
        walk(&sealed.join("sled")).into_iter().filter(is_it).max().unwrap()
    };
    let mut damaged = Vec::new();
    for path in [
        small("conf"),
        small("snap"),
        sealed.join("manifest.second"),
        sealed.join("manifest"),
    ] {
        // One of the two manifests has to be left.
        if path.ends_with("manifest") {
            std::fs::copy(&path, sealed.join("manifest.second")).unwrap();
            damaged.pop();
        }
        flip(&path, 50);
        damaged.push(path);
        named_by_a_visitor(dir.path(), &damaged, 0);
    }
    let journal = newest_journal(dir.path());
    flip(&journal, 0);
    damaged.push(journal.clone());
    named_by_a_visitor(dir.path(), &damaged, 0);
    flip(&journal, 0);
    flip(&journal, 50);
    named_by_a_visitor(dir.path(), &damaged, 1);
}

/// It is named as long as it is damaged, and not for longer than until the keeper has looked.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_named_and_written_anew_from_the_other_one() {
    for (name, hundredths) in [
        ("manifest", 0),
        ("manifest", 90),
        ("manifest.second", 5),
        ("manifest.second", 100),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=10).await;
        seal(&log).await;
        log.close();
        let path = segment(dir.path(), 1).join(name);
        let whole = std::fs::read(&path).unwrap();
        flip(&path, hundredths);
        let faults = visitor(dir.path()).verify(&mut |_, _| ());
        let is_named = |fault: &String| fault.contains(&path.display().to_string());
        assert!(
            faults.len() == 1 && faults.iter().all(is_named),
            "{name} {hundredths}: {faults:?}"
        );
        let log = open(dir.path());
        log.go_round().await.unwrap();
        assert_eq!(log.verify(&mut |_, _| ()), [""; 0], "{name} {hundredths}");
        assert_eq!(std::fs::read(&path).unwrap(), whole, "{name} {hundredths}");
        assert_eq!(ids(&log), ((1..=10).collect(), vec![]));
        log.close();
    }
}
