//! Keys stay known, each under its Seq, however they are kept and whatever interrupts their moves.

mod damage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::super::sealed::database;
use super::copies::KeyFiles;
use super::*;
use crate::event::{EventKey, Seq, Updated};
use crate::framefile;

const HOUR: i64 = 3600;

/// Noon of 15 February 2024.
const FEBRUARY: i64 = 1_707_998_400;

fn identity(id: &str, updated: &str) -> Identity {
    Identity::of_event(&EventKey {
        id: id.to_owned(),
        updated: Updated::parse(updated),
    })
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn open(dir: &Path) -> KnownKeys {
    KnownKeys::open(dir, true, |path, error| panic!("{}: {error}", path.display())).unwrap()
}

/// As a log asks, on keys that nobody else changes.
trait Ask {
    fn find(&self, identity: &Identity) -> io::Result<Option<Seq>>;
    fn revisions(&self, id: &str) -> io::Result<Vec<Seq>>;
    fn files(&self) -> io::Result<KeyFiles>;
    fn close(&self);
}

impl Ask for KnownKeys {
    fn find(&self, identity: &Identity) -> io::Result<Option<Seq>> {
        let units = match self.recall(identity, &|_| false) {
            Recalled::Known(seq) => return Ok(Some(seq)),
            Recalled::New => return Ok(None),
            Recalled::Doubtful(units) => units,
        };
        let mut newest = None;
        let mut find = |key: &[u8], seq| {
            if key == identity.as_bytes() {
                newest = newest.max(Some(seq));
            }
        };
        assert!(look::ask(&|_| true, &units, identity.hash, &mut find)?);
        Ok(newest)
    }

    fn revisions(&self, id: &str) -> io::Result<Vec<Seq>> {
        let wanted = identity(id, "");
        let id_part = super::identity::id_part(wanted.as_bytes());
        let (mut found, units) = self.recall_revisions(&wanted);
        let mut add = |key: &[u8], seq| {
            if key.starts_with(id_part) {
                found.push(seq);
            }
        };
        assert!(look::ask(&|_| true, &units, wanted.hash, &mut add)?);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn files(&self) -> io::Result<KeyFiles> {
        self.on_disk().files()
    }

    fn close(&self) {
        for unit in self.units() {
            unit.close_idle(Duration::ZERO);
        }
    }
}

/// The key with this number: two revisions of each id.
fn key(number: u64) -> Identity {
    identity(
        &format!("ev_{}", number / 2),
        &format!("2024-02-15T12:48:23.{:06}", number % 2),
    )
}

/// A table of these keys, under Seqs with the same numbers.
fn table(numbers: std::ops::Range<u64>, received: i64) -> Table {
    let mut table = Table::default();
    for number in numbers {
        table.insert(&key(number), Seq(number), at(received));
    }
    table
}

/// The file of the keys of a segment that begins with the first of them, as this or the first version wrote it.
fn write(dir: &Path, numbers: std::ops::Range<u64>, received: i64, old: bool) {
    let table = table(numbers.clone(), received);
    let path = dir.join(format!("{:020}", numbers.start));
    if old {
        crate::framefile::make_dir(dir).unwrap();
        framefile::replace_file(&path, &first::old::encode(&table)).unwrap();
    } else {
        write_file(&path, &table).unwrap();
    }
}

/// Merges until nothing more is to be merged; gives how often.
fn merge_all(known: &mut KnownKeys, now: i64) -> usize {
    let mut count = 0;
    while let Some(order) = known.to_merge(at(now)) {
        order.stage(&known.dir.clone(), &mut || Ok(())).unwrap();
        let merged = Merged::open(&publish(&known.dir).unwrap().unwrap()).unwrap();
        for input in known.merged(&order, &merged).unwrap() {
            if order.saves() {
                input.set_aside()
            } else {
                input.remove()
            }
            .unwrap();
        }
        // As if there were no events any more from which to read what is lost.
        let doubted = known.doubted();
        known.end_doubts(&doubted);
        count += 1;
    }
    count
}

/// Each of these keys is known, under its own Seq and no other, and with it the other revision of its id.
fn check_known(known: &KnownKeys, numbers: std::ops::Range<u64>) {
    // All of a few, some of many.
    for number in numbers.clone().step_by(numbers.end as usize / 600 + 1) {
        assert_eq!(known.find(&key(number)).unwrap(), Some(Seq(number)), "{number}");
        let pair = [number & !1, number | 1];
        let pair: Vec<Seq> = pair
            .into_iter()
            .filter(|number| numbers.contains(number))
            .map(Seq)
            .collect();
        assert_eq!(known.revisions(&format!("ev_{}", number / 2)).unwrap(), pair);
    }
    for number in numbers.end..numbers.end + 50 {
        assert_eq!(known.find(&key(number + 2)).unwrap(), None);
    }
    // The next one may open the same files.
    known.close();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn copy_dir(from: &Path, to: &Path) {
    crate::framefile::make_dir(to).unwrap();
    for file in database::files_below(from).unwrap() {
        crate::framefile::make_dir(to.join(&file).parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

#[test]
fn the_same_instant_is_the_same_revision_however_it_is_written() {
    let texts = [
        "2024-02-15T12:48:23.395",
        "2024-02-15T12:48:23.395000",
        "2024-02-15T12:48:23.395Z",
        "2024-02-15T12:48:23.395+00:00",
        "2024-02-15T13:48:23.395+01:00",
    ];
    for text in texts {
        assert_eq!(identity("ev_1", text), identity("ev_1", texts[0]), "{text}");
    }
    assert_ne!(identity("ev_1", "2024-02-15T12:48:23.396"), identity("ev_1", texts[0]));
    assert_ne!(identity("ev_1", "yesterday"), identity("ev_1", "Yesterday"));
    assert_ne!(
        identity("ev_1", "2016-12-31T23:59:60"),
        identity("ev_1", "2016-12-31T23:59:59")
    );
    // No way to shift bytes between the id and the date.
    assert_ne!(identity("ev_1t", "x"), identity("ev_1", "tx"));
}

#[test]
fn huge_keys_are_bounded() {
    let huge = "x".repeat(1 << 20);
    let key = identity(&huge, &huge);
    assert!(key.as_bytes().len() < 100);
    assert_ne!(key, identity(&huge, "other"));
    assert_ne!(key.hash, identity("x", &huge).hash);
}

/// By this it is known which segments have to be read again for what it may lack.
#[test]
fn a_file_names_its_own_segment() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1000..1010, FEBRUARY, false);
    let file = KeyFile::open(&dir.path().join(format!("{:020}", 1000)), Seq(1000)).unwrap();
    let unit = unit::Unit::new(unit::Content::File(file));
    assert!(unit.names(Seq(1000)) && !unit.names(Seq(0)) && !unit.names(Seq(1010)));
}

#[test]
fn keys_are_found_in_tables_files_and_months_alike() {
    let dir = tempfile::tempdir().unwrap();
    let keys_dir = dir.path().join("keys");
    let mut known = open(&keys_dir);
    for first in (0..5_000).step_by(1000) {
        for number in first..first + 1000 {
            known.table(Seq(first)).insert(&key(number), Seq(number), at(FEBRUARY));
        }
    }
    check_known(&known, 0..5_000);
    for first in (0..5_000).map(Seq).step_by(1000) {
        let table = known.unwritten(first).unwrap();
        write_file(&known.file_path(first), &table).unwrap();
        let file = KeyFile::open(&known.file_path(first), first).unwrap();
        assert!(known.sealed(first, Some(file)).is_some() && known.unwritten(first).is_none());
    }
    check_known(&known, 0..5_000);
    check_known(&open(&keys_dir), 0..5_000);
    assert_eq!(merge_all(&mut known, FEBRUARY), 1);
    let segments: Vec<Seq> = (0..5_000).map(Seq).step_by(1000).collect();
    for known in [&known, &open(&keys_dir)] {
        check_known(known, 0..5_000);
        assert!(segments.iter().all(|segment| known.has_file(*segment)));
        assert_eq!(known.sets(), 1);
        assert!(known.disk_bytes() > 5_000 * 10);
    }
    assert_eq!(names(&keys_dir), [format!("2024-02-{:020}-{:020}-1", 0, 4000)]);
}

#[test]
fn keys_go_when_the_newest_of_them_is_old_enough_and_their_segments_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    for (first, received) in [(0, 0), (10, 10), (20, 20), (30, 30)] {
        write(dir.path(), first..first + 10, FEBRUARY + received, false);
    }
    let mut known = open(dir.path());
    for merged in [false, true] {
        if merged {
            assert_eq!(merge_all(&mut known, FEBRUARY), 1);
        }
        assert!(known.expired(at(FEBRUARY), |_| false).is_empty());
        assert_eq!(
            known.expired(at(FEBRUARY + 20), |_| false).len(),
            if merged { 0 } else { 2 }
        );
        assert_eq!(
            known.expired(at(FEBRUARY + 31), |_| false).len(),
            if merged { 1 } else { 4 }
        );
        assert_eq!(
            known.expired(at(FEBRUARY + 31), |first| *first == Seq(10)).len(),
            if merged { 0 } else { 3 }
        );
    }
    let expired = known.expired(at(FEBRUARY + 31), |_| false);
    // Not while they are copied.
    let files = known.files().unwrap();
    assert!(files.paths().len() > 3 && files.cover(Seq(30)) && !files.cover(Seq(40)));
    assert!(!known.forget(&expired[0]) && known.expired(at(FEBRUARY + 31), |_| false).is_empty());
    drop(files);
    assert!(known.forget(&expired[0]));
    expired[0].remove().unwrap();
    assert_eq!(known.find(&key(7)).unwrap(), None);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn few_sets_are_left_however_many_segments_there_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut known = open(dir.path());
    let mut merges = 0;
    // Two months of segments of two days each, the last ones large.
    for segment in 0..30_u64 {
        let numbers = segment * 100..segment * 100 + 100;
        let received = FEBRUARY + segment as i64 * 48 * HOUR;
        write(dir.path(), numbers.clone(), received, segment % 3 == 0);
        let file = KeyFile::open(&known.file_path(Seq(numbers.start)), Seq(numbers.start)).unwrap();
        assert!(known.sealed(Seq(numbers.start), Some(file)).is_none());
        merges += merge_all(&mut known, received);
        assert!(known.sets() <= 3 + 4, "{} sets after {segment}", known.sets());
    }
    assert!(merges <= 15, "{merges} merges of 30 segments");
    merge_all(&mut known, FEBRUARY + 4000 * HOUR);
    assert_eq!(known.sets(), 3, "one a month: {:?}", names(dir.path()));
    check_known(&known, 0..3_000);
    check_known(&open(dir.path()), 0..3_000);
}

#[test]
fn files_of_the_first_version_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    for first in (0..9_000).step_by(3000) {
        write(dir.path(), first..first + 3000, FEBRUARY, true);
    }
    let mut known = open(dir.path());
    check_known(&known, 0..9_000);
    let before = known.disk_bytes();
    assert_eq!(merge_all(&mut known, FEBRUARY + 4000 * HOUR), 1);
    check_known(&known, 0..9_000);
    check_known(&open(dir.path()), 0..9_000);
    assert!(known.disk_bytes() * 2 < before, "{} of {before}", known.disk_bytes());
}

/// What is on disk after each step of a merge, with the name of the step.
fn steps_of_a_merge(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let keys = dir.join("keys");
    for first in (0..4_000).step_by(1000) {
        write(&keys, first..first + 1000, FEBRUARY, first == 2000);
    }
    let known = open(&keys);
    let order = known.to_merge(at(FEBRUARY)).unwrap();
    let mut steps = Vec::new();
    let mut step = |name: &'static str| {
        let copy = dir.join(name);
        copy_dir(&keys, &copy);
        steps.push((name, copy));
    };
    // Given up at every third page or so.
    let mut pages = 0;
    let given_up = order.stage(&keys, &mut || {
        pages += 1;
        if pages == 3 {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    });
    assert_eq!(given_up.unwrap_err().kind(), io::ErrorKind::Interrupted);
    step("given up");
    order.stage(&keys, &mut || Ok(())).unwrap();
    step("made");
    let manifest = keys.join(merge::STAGING).join("manifest");
    std::fs::rename(&manifest, dir.join("aside")).unwrap();
    step("made, with one manifest");
    std::fs::rename(dir.join("aside"), &manifest).unwrap();
    let manifests = ["manifest", "manifest.second"].map(|name| keys.join(merge::STAGING).join(name));
    let contents = manifests.clone().map(|manifest| std::fs::read(manifest).unwrap());
    for manifest in &manifests {
        std::fs::remove_file(manifest).unwrap();
    }
    step("made, with none");
    for (manifest, content) in manifests.iter().zip(contents) {
        std::fs::write(manifest, content).unwrap();
    }
    publish(&keys).unwrap().unwrap();
    step("named");
    for (index, unit) in order.inputs.iter().enumerate() {
        unit.remove().unwrap();
        step(["one removed", "two removed", "three removed", "all removed"][index]);
    }
    steps
}

#[test]
fn a_merge_that_a_crash_ends_at_any_step_is_done_again_or_finished() {
    let dir = tempfile::tempdir().unwrap();
    let steps = steps_of_a_merge(dir.path());
    assert_eq!(steps.len(), 9);
    for (step, keys) in steps {
        // Who may not write sees all of it, too, and leaves it alone.
        let before = names(&keys);
        check_known(
            &KnownKeys::open(&keys, false, |_, error| panic!("{step}: {error}")).unwrap(),
            0..4_000,
        );
        assert_eq!(names(&keys), before, "{step}");
        let mut known = open(&keys);
        check_known(&known, 0..4_000);
        let entries: u64 = known.units.iter().map(|unit| unit.count()).sum();
        assert_eq!(entries, 4_000, "{step}: each key is there once");
        assert!(!keys.join(merge::STAGING).exists(), "{step}");
        merge_all(&mut known, FEBRUARY);
        check_known(&known, 0..4_000);
        assert_eq!(names(&keys).len(), 1, "{step}");
    }
}

#[test]
fn a_months_directory_is_removed_whole_whatever_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..10, FEBRUARY, false);
    let mut known = open(dir.path());
    merge_all(&mut known, FEBRUARY + 4000 * HOUR);
    let name = names(dir.path()).remove(0);
    assert!(is_month(&name), "{name}");
    std::fs::rename(dir.path().join(&name), dir.path().join(format!("removed-{name}"))).unwrap();
    assert_eq!(open(dir.path()).sets(), 0);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn no_file_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    for first in 0..40 {
        write(
            dir.path(),
            first * 10..first * 10 + 10,
            FEBRUARY + first as i64 * 800 * HOUR,
            first % 2 == 0,
        );
    }
    let known = open(dir.path());
    check_known(&known, 0..400);
    let open_below = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(dir.path())))
            .count()
    };
    assert_eq!(open_below(), 0);
    let mut known = known;
    merge_all(&mut known, FEBRUARY + 100_000 * HOUR);
    check_known(&known, 0..400);
    known.close();
    let patience = std::time::Instant::now();
    // sled's own threads let go a moment later.
    while open_below() > 0 {
        assert!(patience.elapsed() < Duration::from_secs(20), "databases stay open");
        std::thread::yield_now();
    }
}

#[test]
fn nothing_is_merged_while_the_files_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    for first in (0..40).step_by(10) {
        write(dir.path(), first..first + 10, FEBRUARY, false);
    }
    let mut known = open(dir.path());
    let order = known.to_merge(at(FEBRUARY)).unwrap();
    order.stage(dir.path(), &mut || Ok(())).unwrap();
    let merged = Merged::open(&publish(dir.path()).unwrap().unwrap()).unwrap();
    let files = known.files().unwrap();
    assert_eq!(files.paths().len(), 4);
    assert!(known.to_merge(at(FEBRUARY)).is_none() && known.merged(&order, &merged).is_none());
    merged.remove().unwrap();
    let parent = dir.path().parent().unwrap();
    assert!(files.paths().iter().all(|path| parent.join(path).exists()));
    drop(files);
    assert_eq!(merge_all(&mut known, FEBRUARY), 1);
    check_known(&known, 0..40);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_merged_when_each_key_is_known_under_its_newest_seq(
        segments in prop::collection::vec(
            (prop::collection::vec((0_u8..60, 0_u8..4), 1..30), 0_i64..90, any::<bool>(), 0_usize..3),
            1..12,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut known = open(dir.path());
        let mut expected: BTreeMap<(u8, u8), Vec<Seq>> = BTreeMap::new();
        let mut seq = 0;
        for (keys, day, old, after) in segments {
            let first = Seq(seq + 1);
            let mut table = Table::default();
            let received = FEBRUARY + day * 24 * HOUR;
            for (id, revision) in keys {
                seq += 1;
                table.insert(&identity(&format!("ev_{id}"), &revision.to_string()), Seq(seq), at(received));
                expected.entry((id, revision)).or_default().push(Seq(seq));
            }
            let path = known.file_path(first);
            if old {
                framefile::replace_file(&path, &first::old::encode(&table)).unwrap();
            } else {
                write_file(&path, &table).unwrap();
            }
            drop(known.sealed(first, Some(KeyFile::open(&path, first).unwrap())));
            match after {
                0 => {}
                1 => drop(merge_all(&mut known, received)),
                _ => known = open(dir.path()),
            }
            prop_assert!(known.has_file(first));
        }
        for id in 0..60_u8 {
            let mut revisions = Vec::new();
            for revision in 0..4_u8 {
                let seqs = expected.get(&(id, revision)).cloned().unwrap_or_default();
                let found = known.find(&identity(&format!("ev_{id}"), &revision.to_string())).unwrap();
                prop_assert_eq!(found, seqs.iter().max().copied());
                revisions.extend(seqs);
            }
            revisions.sort_unstable();
            prop_assert_eq!(known.revisions(&format!("ev_{id}")).unwrap(), revisions);
        }
    }
}

#[test]
fn a_merge_that_can_not_be_taken_up_leaves_no_second_set() {
    let dir = tempfile::tempdir().unwrap();
    for first in (0..8_000).step_by(2000) {
        write(dir.path(), first..first + 2000, FEBRUARY, false);
    }
    let known = open(dir.path());
    let before = names(dir.path());
    let order = known.to_merge(at(FEBRUARY)).unwrap();
    order.stage(dir.path(), &mut || Ok(())).unwrap();
    let named = publish(dir.path()).unwrap().unwrap();
    let index = named.join(month::INDEX);
    std::fs::remove_file(&index).unwrap();
    std::os::unix::fs::symlink(&index, &index).unwrap();
    assert!(Merged::open(&named).is_err());
    assert_eq!(names(dir.path()), before);
    check_known(&known, 0..8_000);
}
