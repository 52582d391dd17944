//! Damage to known keys costs no more than its bytes, is never an absence, and what can't be read now is none.

use super::*;

/// Keys of four segments in one month's database.
fn merged_month(dir: &Path) -> PathBuf {
    for first in (0..8_000).step_by(2000) {
        write(dir, first..first + 2000, FEBRUARY, false);
    }
    let mut known = open(dir);
    merge_all(&mut known, FEBRUARY);
    dir.join(names(dir).remove(0))
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut content = std::fs::read(path).unwrap();
    let at = at(content.len());
    content[at] ^= 0x10;
    std::fs::write(path, content).unwrap();
}

#[test]
fn damage_in_a_month_costs_no_more_than_its_bytes_and_is_never_an_absence() {
    for in_database in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let month = merged_month(dir.path());
        if in_database {
            // Somewhere in the pages.
            flip(&month.join(month::DATABASE).join("db"), |len| len / 3);
        } else {
            flip(&month.join(month::INDEX), |len| len / 2);
        }
        let mut reports = 0;
        let mut known = KnownKeys::open(dir.path(), true, |_, _| reports += 1).unwrap();
        assert_eq!(reports, usize::from(!in_database), "the index is read at once");
        if in_database {
            assert!(!known.on_disk().verify().is_empty());
            let error = known.find(&key(5)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            // An unknown one is known to be none all the same, where the filter says so.
            let unknown = (10_000..10_100)
                .filter(|number| known.find(&key(*number)).is_ok())
                .count();
            assert!(unknown > 90);
            assert_eq!(merge_all(&mut known, FEBRUARY), 1);
        }
        let found = (0..8_000)
            .filter(|number| known.find(&key(*number)).unwrap() == Some(Seq(*number)))
            .count();
        // A page is 256 keys; sled's framing of a few of them may be hit.
        assert!(found > 8_000 - 3 * 1024 && (in_database || found == 8_000), "{found}");
        assert!(
            !known.has_file(Seq(0)) && !known.has_file(Seq(2000)),
            "what is kept is to be read from its events"
        );
        let aside = names(dir.path());
        assert!(
            aside.len() == 2 && aside.iter().any(|name| name.ends_with(".damaged")),
            "{aside:?}"
        );
        assert_eq!(open(dir.path()).sets(), 1);
    }
}

#[test]
fn what_was_saved_of_a_damaged_month_is_there_whatever_ends_the_saving() {
    let dir = tempfile::tempdir().unwrap();
    let month = merged_month(dir.path());
    flip(&month.join(month::INDEX), |len| len / 2);
    let reports = std::cell::Cell::new(0);
    let reopen = || KnownKeys::open(dir.path(), true, |_, _| reports.set(reports.get() + 1)).unwrap();
    check_known(&reopen(), 0..8_000);
    // As if the damaged one had not been set aside before the end.
    std::fs::rename(framefile::beside(&month, ".damaged"), &month).unwrap();
    for _ in 0..2 {
        check_known(&reopen(), 0..8_000);
    }
    assert_eq!(reports.get(), 2, "the third time all is in order");
    assert!(!dir.path().join(merge::STAGING).exists());
}

#[test]
fn a_damaged_manifest_is_replaced_by_the_second_and_two_of_them_cost_the_month() {
    let dir = tempfile::tempdir().unwrap();
    let month = merged_month(dir.path());
    flip(&month.join("manifest"), |len| len / 2);
    let visitor = KnownKeys::open(dir.path(), false, |path, error| panic!("{}: {error}", path.display())).unwrap();
    let said = visitor.on_disk().verify();
    assert!(said.len() == 1 && said[0].contains("manifest"), "{said:?}");
    let known = open(dir.path());
    check_known(&known, 0..8_000);
    assert_eq!(known.on_disk().verify(), [""; 0], "it was written anew");
    drop((visitor, known));
    for manifest in ["manifest", "manifest.second"] {
        flip(&month.join(manifest), |len| len / 2);
    }
    let mut reports = 0;
    let known = KnownKeys::open(dir.path(), true, |_, _| reports += 1).unwrap();
    assert_eq!((reports, known.sets()), (1, 0));
    assert!(names(dir.path())[0].ends_with(".damaged"));
}

#[test]
fn damage_in_the_head_of_a_file_costs_no_key() {
    for old in [true, false] {
        // Magic, version, checksum, lengths and counts; in a new one the filter, too.
        for byte in [3, 8, 9, 13, 17, 20, 26, 31, 45, 60, 300] {
            if old && byte >= 32 {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), 0..2_000, FEBRUARY, old);
            write(dir.path(), 2_000..2_100, FEBRUARY, old);
            flip(&dir.path().join(format!("{:020}", 0)), |_| byte);
            let mut reports = 0;
            let known = KnownKeys::open(dir.path(), true, |_, _| reports += 1).unwrap();
            assert_eq!(
                (reports, known.has_file(Seq(0))),
                (1, false),
                "byte {byte}: it may lack some"
            );
            check_known(&known, 0..2_100);
            let expired = known.expired(at(FEBRUARY + HOUR), |_| false);
            assert_eq!(expired.len(), 1, "what was saved counts as old as its file");
            let left = names(dir.path());
            assert_eq!(left.len(), 3, "{left:?}");
            assert!(left.contains(&format!("{:020}.damaged", 0)), "{left:?}");
            check_known(&open(dir.path()), 0..2_100);
        }
    }
}

#[test]
fn what_is_cut_off_or_overwritten_of_a_file_costs_those_keys_and_no_others() {
    for old in [true, false] {
        for hit in ["the beginning", "the end"] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), 0..4_000, FEBRUARY, old);
            let path = dir.path().join(format!("{:020}", 0));
            let mut content = std::fs::read(&path).unwrap();
            let len = content.len();
            if hit == "the end" {
                content.truncate(len - len / 20);
            } else {
                // Of the new one's head, most; of the old one's, all.
                content[..if old { 32 } else { 8_000 }].fill(0);
            }
            std::fs::write(&path, content).unwrap();
            let known = KnownKeys::open(dir.path(), true, |_, _| ()).unwrap();
            let found = (0..4_000)
                .filter(|number| known.find(&key(*number)).unwrap() == Some(Seq(*number)))
                .count();
            let expected = if hit == "the end" { 3_200 } else { 4_000 };
            assert!(found >= expected, "{found} of 4000 after {hit} went, old: {old}");
        }
    }
}

#[test]
fn a_file_of_which_nothing_is_left_is_set_aside_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 2_000..2_100, FEBRUARY, false);
    let path = dir.path().join(format!("{:020}", 0));
    for content in [&b""[..], b"nonsense", &[0; 10_000]] {
        std::fs::write(&path, content).unwrap();
        let mut reports = 0;
        let known = KnownKeys::open(dir.path(), true, |_, _| reports += 1).unwrap();
        assert_eq!((reports, known.sets(), path.exists()), (1, 1, false));
        assert_eq!(known.find(&key(2_050)).unwrap(), Some(Seq(2_050)));
    }
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_not_taken_for_damaged() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..100, FEBRUARY, false);
    let path = dir.path().join(format!("{:020}", 0));
    let mut content = std::fs::read(&path).unwrap();
    // Another version, and what it says is another thing.
    (content[8], content[20]) = (3, content[20] ^ 1);
    std::fs::write(&path, content).unwrap();
    let refused = KnownKeys::open(dir.path(), true, |_, error| panic!("no damage: {error}")).unwrap_err();
    assert!(refused.to_string().contains("newer"), "{refused}");
    assert_eq!(names(dir.path()).len(), 1);
}

#[test]
fn a_damaged_page_of_a_file_is_found_when_it_is_asked_for_and_the_others_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..2_000, FEBRUARY, false);
    flip(&dir.path().join(format!("{:020}", 0)), |len| len - 100);
    let mut known = open(dir.path());
    let lost = (0..2_000).filter(|number| known.find(&key(*number)).is_err()).count();
    assert!((1..=256).contains(&lost), "{lost}");
    assert_eq!(merge_all(&mut known, FEBRUARY), 1);
    let found = (0..2_000)
        .filter(|number| known.find(&key(*number)).unwrap().is_some())
        .count();
    assert_eq!(found, 2_000 - lost);
}

#[test]
fn what_can_not_be_read_now_is_neither_damage_nor_absence() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..100, FEBRUARY, false);
    let path = dir.path().join(format!("{:020}", 0));
    let known = open(dir.path());
    // No file there, as for a process that may open no more of them.
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(known.find(&key(5)).is_err(), "not told to be unknown");
    assert!(known.to_merge(at(FEBRUARY)).is_none(), "not taken for damaged");
    let reopened = KnownKeys::open(dir.path(), true, |_, error| panic!("no damage: {error}"));
    assert!(reopened.is_err());
    std::fs::rename(dir.path().join("elsewhere"), &path).unwrap();
    check_known(&open(dir.path()), 0..100);
}

#[test]
fn a_damaged_month_that_can_not_be_read_now_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let month = merged_month(dir.path());
    flip(&month.join(month::INDEX), |len| len / 2);
    let (db, kept) = (month.join(month::DATABASE).join("db"), dir.path().join("elsewhere"));
    std::fs::rename(&db, &kept).unwrap();
    std::os::unix::fs::symlink(&db, &db).unwrap();
    let before = names(dir.path());
    let refused = KnownKeys::open(dir.path(), true, |_, _| ()).unwrap_err();
    assert!(refused.to_string().contains("symbolic links"), "{refused}");
    let after: Vec<String> = names(dir.path())
        .into_iter()
        .filter(|name| name != merge::STAGING)
        .collect();
    assert_eq!(after, before, "nothing is set aside");
    std::fs::remove_file(&db).unwrap();
    std::fs::rename(&kept, &db).unwrap();
    check_known(&KnownKeys::open(dir.path(), true, |_, _| ()).unwrap(), 0..8_000);
}

#[test]
fn what_was_saved_of_keys_stays_as_long_as_some_of_their_events_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for first in (0..80).step_by(20) {
        write(dir.path(), first..first + 20, FEBRUARY, false);
    }
    let mut known = open(dir.path());
    merge_all(&mut known, FEBRUARY);
    known.units[0].damaged.store(true, Ordering::Relaxed);
    assert_eq!(merge_all(&mut known, FEBRUARY), 1);
    for known in [&known, &open(dir.path())] {
        check_known(known, 0..80);
        assert!(!known.has_file(Seq(20)), "it may lack some");
        let expired = |kept: Seq| known.expired(at(FEBRUARY + 1), |first| *first == kept).len();
        assert_eq!((expired(Seq(20)), expired(Seq(80))), (0, 1));
    }
    // Nor is that forgotten when it is merged with others.
    for first in (80..140).step_by(20) {
        write(dir.path(), first..first + 20, FEBRUARY, false);
    }
    let mut known = open(dir.path());
    assert_eq!(merge_all(&mut known, FEBRUARY), 1);
    assert_eq!(
        (known.sets(), known.has_file(Seq(20)), known.has_file(Seq(100))),
        (1, false, true)
    );
    assert!(known.expired(at(FEBRUARY + 1), |first| *first == Seq(20)).is_empty());
}
