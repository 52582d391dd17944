//! What damage takes is as large as its bytes, is named, and only what is proven counts.

use super::*;

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
async fn a_flipped_byte_in_a_small_file_of_a_database_costs_nothing() {
    for name in ["conf", "snap"] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=50).await;
        seal(&log).await;
        log.close();
        let files = walk(dir.path());
        let path = files
            .iter()
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(name))
            .max()
            .unwrap();
        flip(path, 50);
        let log = open(dir.path());
        assert_eq!(ids(&log), ((1..=50).collect(), vec![]), "{name}");
        assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
        log.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header_of_the_newest_journal_costs_nothing_but_the_header() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=50).await;
    log.close();
    let path = newest_journal(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let log = open(dir.path());
    assert_eq!(ids(&log), ((1..=50).collect(), vec![]));
    assert!(log.stats().gaps.is_empty());
    store(&log, 51..=52).await;
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_opened_is_no_damage() {
    for name in [
        "keys/00000000000000000001",
        "log/00000000000000000001/manifest",
        "log/00000000000000000011/journal",
        "gaps",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=10).await;
        seal(&log).await;
        store(&log, 11..=12).await;
        log.skip_past(Seq(15)).await.unwrap();
        log.close();
        let path = dir.path().join(name);
        let kept = dir.path().join("kept");
        std::fs::rename(&path, &kept).unwrap();
        if name.ends_with("manifest") {
            std::fs::remove_file(path.with_extension("second")).unwrap();
            std::os::unix::fs::symlink(path.with_extension("second"), path.with_extension("second")).unwrap();
        }
        // Following it ends with ELOOP, which is no fault of any medium.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let before = walk(dir.path());
        let refused = LocalLog::open(options(dir.path()))
            .map(|log| log.close())
            .unwrap_err()
            .to_string();
        assert!(refused.contains("symbolic links"), "{refused}");
        assert_eq!(walk(dir.path()), before, "nothing is set aside");
    }
}

/// An older closehook did not keep the small files in the manifest.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_small_file_of_an_old_segment_costs_nothing_either_and_is_kept_from_then_on() {
    for name in ["conf", "snap"] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        store(&log, 1..=50).await;
        seal(&log).await;
        log.close();
        let place = segment(dir.path(), 1);
        for manifest in ["manifest", "manifest.second"] {
            strip_manifest(&place.join(manifest));
        }
        let files = walk(&place);
        let is_it = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name);
        flip(files.iter().filter(is_it).max().unwrap(), 50);
        let log = open(dir.path());
        assert_eq!(ids(&log), ((1..=50).collect(), vec![]), "{name}");
        assert!(log.stats().gaps.is_empty());
        log.close();
        // One that was whole is brought up to date by its first check.
        for manifest in ["manifest", "manifest.second"] {
            strip_manifest(&place.join(manifest));
        }
        let log = open(dir.path());
        log.go_round().await.unwrap();
        log.close();
        let files = walk(&place);
        flip(files.iter().filter(is_it).max().unwrap(), 50);
        let log = open(dir.path());
        let before = walk(&dir.path().join("damaged")).len();
        assert_eq!(ids(&log), ((1..=50).collect(), vec![]), "{name}");
        assert_eq!(walk(&dir.path().join("damaged")).len(), before, "it was put back");
        log.close();
    }
}

/// Makes a manifest what an older closehook wrote.
fn strip_manifest(path: &Path) {
    let format = |version| crate::framefile::Format {
        magic: *b"CLHKMNFT",
        version,
    };
    let mut json = Vec::new();
    crate::framefile::scan(path, format(2), |frame| {
        if frame.tag == 0 {
            json = frame.payload.to_vec();
        }
    })
    .unwrap();
    let mut file = crate::framefile::FrameFile::create(path, format(1)).unwrap();
    file.append(0, &[&json]).unwrap();
    file.sync().unwrap();
}

/// Files that are as they were sealed are not damaged, whatever a read of them failed with.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_now_is_an_error_and_no_absence() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(Options {
        cache_bytes: 0,
        ..options(dir.path())
    })
    .unwrap();
    store(&log, 1..=10).await;
    seal(&log).await;
    let db = segment(dir.path(), 1).join("sled/db");
    let kept = dir.path().join("kept");
    std::fs::rename(&db, &kept).unwrap();
    std::os::unix::fs::symlink(&db, &db).unwrap();
    for _ in 0..2 {
        let error = log.get(Seq(5)).unwrap_err().to_string();
        assert!(error.contains("symbolic links"), "{error}");
        assert!(log.read(Seq(1), 10, 1 << 20).is_err());
    }
    let reader = LocalLog::open(Options {
        read_only: true,
        ..options(dir.path())
    })
    .unwrap();
    assert!(reader.get(Seq(5)).is_err() && reader.read(Seq(1), 10, 1 << 20).is_err());
    std::fs::rename(&kept, &db).unwrap();
    assert_eq!(ids(&log), ((1..=10).collect(), vec![]), "and it is there again");
    assert_eq!(ids(&reader), ((1..=10).collect(), vec![]));
    assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
    log.close();
}

/// A suspicion is not enough: the keeper compares the files first.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspicion_that_is_wrong_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    let sealed = sealed_segment(&log, 1);
    let suspect = desk::Suspect::Sealed(sealed.clone(), "so it seems".into());
    tokio::task::block_in_place(|| log.shared.desk.have_looked_at(suspect.clone())).unwrap();
    assert!(
        log.shared.place_of(&Segment::Sealed(sealed)).is_some(),
        "it is the same"
    );
    // Nor does one about a form that has given way.
    erase(&log, |event| event.seq == Seq(3)).await;
    tokio::task::block_in_place(|| log.shared.desk.have_looked_at(suspect)).unwrap();
    assert!(log.stats().gaps.is_empty() && !dir.path().join("damaged").exists());
    log.close();
}

/// Whatever a bad medium is called, and nothing else.
#[test]
fn every_word_of_a_bad_medium_is_damage_and_no_other_is() {
    use rustix::io::Errno;
    let judged = |errno: Errno| {
        journal::of_frame(crate::framefile::FrameError::Io {
            path: "journal".into(),
            source: errno.into(),
        })
    };
    for errno in [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG] {
        assert!(matches!(judged(errno), SegmentError::Damaged(_)), "{errno}");
    }
    for errno in [
        Errno::MFILE,
        Errno::NFILE,
        Errno::ACCESS,
        Errno::NOMEM,
        Errno::INTR,
        Errno::NOSPC,
    ] {
        assert!(matches!(judged(errno), SegmentError::Io(_)), "{errno}");
    }
}

/// sled keeps much in one page; what it gives up with a page is still there in its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_byte_of_a_database_costs_no_more_than_its_place() {
    let original = tempfile::tempdir().unwrap();
    let log = open(original.path());
    store_noise(&log, 1..=40, 100_000).await;
    seal(&log).await;
    log.close();
    let below = |dir: &Path| {
        let mut files = walk(&segment(dir, 1).join("sled"));
        files.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
        files
    };
    let files = below(original.path());
    for (number, hundredths) in [(0, 30), (0, 70), (1, 50), (files.len() / 2, 50), (files.len() - 1, 90)] {
        let dir = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(format!("{}/.", original.path().display()))
            .arg(dir.path())
            .status();
        assert!(copied.unwrap().success());
        flip(
            &dir.path().join(files[number].strip_prefix(original.path()).unwrap()),
            hundredths,
        );
        let log = open(dir.path());
        let found = seqs(&log, 1..=40).len();
        // A pack holds a mebibyte, about eleven of these; one that is only partly in the same page may go with it.
        assert!(
            found >= 17,
            "{found} of 40 after a byte of {} at {hundredths} %",
            files[number].display()
        );
        log.close();
    }
}

/// Damage, and then no way to copy what is damaged: nobody knows yet what can be saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_that_can_not_be_copied_is_an_error_and_nothing_lost() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=50).await;
    seal(&log).await;
    let sealed = sealed_segment(&log, 1);
    let staging = tempfile::tempdir().unwrap();
    // As a disk without room, or a process without file handles, would refuse it.
    std::fs::write(staging.path().join("copy-0"), b"").unwrap();
    let saved = sealed::salvage(&sealed, staging.path(), &mut || true);
    assert!(matches!(saved, Err(SegmentError::Io(_))), "{saved:?}");
    // A read that fails, neither.
    let db = segment(dir.path(), 1).join("sled/db");
    let kept = dir.path().join("kept");
    std::fs::rename(&db, &kept).unwrap();
    std::os::unix::fs::symlink(&db, &db).unwrap();
    let staging = tempfile::tempdir().unwrap();
    let saved = sealed::salvage(&sealed, staging.path(), &mut || true);
    assert!(matches!(saved, Err(SegmentError::Io(_))), "{saved:?}");
    std::fs::remove_file(&db).unwrap();
    std::fs::rename(&kept, &db).unwrap();
    let staging = tempfile::tempdir().unwrap();
    let saved = sealed::salvage(&sealed, staging.path(), &mut || true);
    assert_eq!(saved.unwrap().map(|manifest| manifest.events), Some(50));
    log.close();
}

/// Nobody may wait for the whole of a salvage that is not wanted any more, whatever cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn saving_what_can_not_be_read_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=50).await;
    seal(&log).await;
    let sealed = sealed_segment(&log, 1);
    std::fs::write(segment(dir.path(), 1).join("sled/db"), b"").unwrap();
    let staging = tempfile::tempdir().unwrap();
    let mut asked = 0;
    let saved = sealed::salvage(&sealed, staging.path(), &mut || {
        asked += 1;
        false
    });
    assert!(
        matches!(&saved, Err(SegmentError::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted),
        "{saved:?}"
    );
    assert_eq!(asked, 1);
    log.close();
}

/// What the keeper left between two forms when it panicked.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_stays_between_two_forms_is_a_fault_and_no_endless_wait() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    let sealed = sealed_segment(&log, 1);
    sealed.retire();
    let (told, faults) = std::sync::mpsc::channel();
    let verified = log.clone();
    std::thread::spawn(move || told.send(verified.verify(&mut |_, _| ())));
    let faults = faults.recv_timeout(Duration::from_secs(30)).expect("it ends");
    assert!(faults.len() == 1 && faults[0].contains("segment"), "{faults:?}");
    sealed.reinstate();
    assert_eq!(log.verify(&mut |_, _| ()), [""; 0]);
    log.close();
}

/// Keys on a disk that does not answer: whoever compares them waits, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_stored_while_known_keys_are_compared() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    store(&log, 1..=10).await;
    seal(&log).await;
    // Opening a pipe takes until somebody opens its other end.
    let keys = dir.path().join("keys").join(format!("{:020}", 1));
    std::fs::remove_file(&keys).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&keys).status();
    assert!(made.unwrap().success());
    let (told, done) = std::sync::mpsc::channel();
    let verified = log.clone();
    std::thread::spawn(move || {
        let progress = told.clone();
        let faults = verified.verify(&mut |done, of| progress.send(done < of).unwrap());
        told.send(!faults.is_empty()).unwrap();
    });
    while done.recv_timeout(Duration::from_secs(30)).unwrap() {}
    // It is at the keys, or about to be.
    let stored = tokio::time::timeout(Duration::from_secs(20), store(&log, 11..=200)).await;
    assert!(stored.is_ok(), "nothing is stored while keys are read");
    let other_end = || OpenOptions::new().write(true).custom_flags(libc_nonblock()).open(&keys);
    wait_until("it reads the keys", || other_end().is_ok());
    assert!(
        done.recv_timeout(Duration::from_secs(30)).unwrap(),
        "a pipe is no file of keys"
    );
    log.close();
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}
