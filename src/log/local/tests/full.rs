//! Opening on a full disk: whatever is found there waits for room.

use std::process::Command;

use super::*;
use crate::event::{EventKey, Updated};
use crate::log::local::{known, space};
use crate::sync::{lock, read_lock};

/// A small file system; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, loudly, where this user may not mount.
    fn mount() -> Option<Disk> {
        Disk::of_mib(8)
    }

    fn of_mib(size: u64) -> Option<Disk> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"])
            .arg(at.path())
            .output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            skipped("mounting a tmpfs needs root");
            return None;
        }
        Some(Disk(at))
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn fill(&self) {
        // Fails when the disk is full, which is the point.
        let _ = std::fs::write(self.0.path().join("ballast"), vec![1_u8; 16 << 20]);
    }

    /// All but so many bytes.
    fn fill_but(&self, free: u64) {
        let ballast = space::of(self.0.path()).unwrap().free - free;
        std::fs::write(self.0.path().join("ballast"), vec![1_u8; ballast as usize]).unwrap();
    }

    fn heal(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn lost(log: &LocalLog) -> Vec<(u64, u64)> {
    let gaps = log.stats().gaps;
    let lost = gaps.iter().filter(|gap| !gap.skipped);
    lost.map(|gap| (gap.from.0, gap.to.0)).collect()
}

/// Damage in the middle of the newest journal, and damage of all of it: what is lost is on record, and what is damaged set aside, when
/// there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_a_damaged_log_from_being_opened() {
    for all in [false, true] {
        let Some(disk) = Disk::mount() else { return };
        let data = disk.data();
        let log = open(&data);
        store(&log, 1..=5).await;
        log.close();
        let journal = segment(&data, 1).join("journal");
        let mut bytes = std::fs::read(&journal).unwrap();
        let middle = bytes.len() / 2;
        let bad = if all { 0..bytes.len() } else { middle..middle + 1 };
        bytes[bad].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&journal, bytes).unwrap();
        let gaps = || std::fs::read(data.join("gaps")).unwrap();
        let empty = gaps();
        disk.fill();

        // It is found again each time, for it could not be written down.
        let mut seen = Vec::new();
        for _ in 0..2 {
            let log = open(&data);
            let full = log.append(incoming(body(6, 0))).await;
            assert!(matches!(full, Err(AppendError::Full(_))), "{full:?}");
            seen.push((lost(&log), seqs(&log, 1..=5)));
            assert_eq!(seen[0].0.len(), 1);
            assert_eq!(seen[0].1.len(), if all { 0 } else { 4 });
            log.close();
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(gaps(), empty);

        let log = open(&data);
        disk.heal();
        log.go_round().await.unwrap();
        let last = log.append(incoming(body(6, 0))).await.unwrap();
        let Appended::Stored(last) = last else {
            panic!("{last:?}")
        };
        assert_eq!(last, *log.head().borrow());
        // Also where nothing is kept before it.
        let on_record = seen[0].0.clone();
        assert_eq!(lost(&log), on_record);
        log.close();
        let log = open(&data);
        let kept: Vec<Seq> = seqs(&log, 1..=5).into_iter().filter(|seq| *seq < last).collect();
        assert_eq!((lost(&log), kept), (on_record, seen[0].1.clone()));
        assert_eq!(log.get(last).unwrap().unwrap().seq, last);
        assert!(data.join("damaged").exists(), "what could not be read is kept");
        log.close();
    }
}

/// What goes makes the room in which it is written down that it is not missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_on_a_full_disk_is_not_missing() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    let log = two_sealed(&data).await;
    disk.fill();
    assert_eq!(log.drop_before(Seq(11)).await, Ok(Seq(11)));
    assert_eq!(log.shared.gaps.begins(), Some(Seq(11)));
    assert!(!log.shared.gaps.is_owed());
    log.close();
    let names = std::fs::read_dir(data.join("log")).unwrap();
    assert_eq!(names.count(), 2, "nothing of it is left");
    for _ in 0..2 {
        let log = open(&data);
        assert_eq!((lost(&log), seqs(&log, 1..=20).len()), (vec![], 10));
        log.close();
    }
}

/// Its name tells of it until that is written down, however many starts that takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_is_not_missing_after_any_number_of_starts_on_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    two_sealed(&data).await.close();
    let log_dir = data.join("log");
    let name = log_dir.join(format!("removed-{:020}", 1));
    std::fs::rename(segment(&data, 1), &name).unwrap();
    sealed::swap::empty_dropped(&log_dir, Seq(1)).unwrap();
    disk.fill();
    for is_full in [true, true, false] {
        if !is_full {
            disk.heal();
        }
        let log = open(&data);
        assert_eq!((lost(&log), seqs(&log, 1..=20).len()), (vec![], 10));
        assert_eq!(log.shared.gaps.is_owed(), is_full);
        log.go_round().await.unwrap();
        assert_eq!(name.exists(), is_full);
        log.close();
    }
    let log = open(&data);
    assert_eq!((lost(&log), log.shared.gaps.begins()), (vec![], Some(Seq(11))));
    log.close();
}

/// A file of keys may be all that tells how far the journal went, and that another segment came behind it.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_keys_prove_is_as_certain_after_a_start_on_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    let log = open(&data);
    store(&log, 1..=5).await;
    log.close();
    let path = newest_journal(&data);
    let mut places = Vec::new();
    crate::framefile::scan(&path, journal::FORMAT, |frame| places.push(frame.offset as usize)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..places[4]]).unwrap();
    let keys = data.join(crate::log::key_file(Seq(1)));
    std::fs::create_dir_all(keys.parent().unwrap()).unwrap();
    write_keys(&keys, 1..=5);
    disk.fill();
    for is_full in [true, true, false] {
        if !is_full {
            disk.heal();
        }
        let log = open(&data);
        let gaps = log.stats().gaps;
        let found: Vec<_> = gaps.iter().map(|gap| (gap.from, gap.certain())).collect();
        assert_eq!(found, [(Seq(5), 1), (Seq(6), 0)]);
        log.close();
    }
}

/// Keys are in the events, too: where there is no room for a file of them they are in memory.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_missing_on_a_full_disk_are_known_and_written_when_there_is_room() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    let log = open(&data);
    store(&log, 1..=5).await;
    seal(&log).await;
    log.close();
    let keys = walk(&data.join("keys"));
    assert!(!keys.is_empty());
    for path in keys {
        std::fs::remove_file(path).unwrap();
    }
    disk.fill();
    let log = open(&data);
    assert_eq!(log.append(incoming(body(3, 0))).await, Ok(Appended::Duplicate(Seq(3))));
    disk.heal();
    log.go_round().await.unwrap();
    assert!(!walk(&data.join("keys")).is_empty());
    assert_eq!(log.append(incoming(body(3, 0))).await, Ok(Appended::Duplicate(Seq(3))));
    log.close();
}

/// What is known of events that have expired is nowhere else: nothing is stored before it is saved.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_on_a_full_disk_keep_nothing_from_being_read_and_everything_from_being_stored() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    damaged_keys_of_expired(&data, 20).await;
    disk.fill();
    let refuses = async |log: &LocalLog| {
        let refused = log.append(incoming(body(3, 0))).await;
        assert!(
            matches!(&refused, Err(AppendError::Full(why)) if why.contains("known keys")),
            "{refused:?}"
        );
    };
    for _ in 0..2 {
        let log = open(&data);
        assert!(log.ready().is_err());
        refuses(&log).await;
        assert_eq!(seqs(&log, 21..=21), [Seq(21)]);
        log.close();
    }
    let log = open(&data);
    let visitor = LocalLog::open(Options {
        read_only: true,
        ..options(&data)
    });
    // Whoever looks, compares or takes keys along hears of it.
    for log in [&log, &visitor.unwrap()] {
        let found = log.damaged_keys();
        assert!(found.len() == 1 && found[0].contains(".unsaved"), "{found:?}");
        assert_eq!(log.verify(&mut |_, _| ()), found);
        let taken = log.known_keys(&mut |_, _| ());
        assert_eq!(taken.unwrap_err().to_string(), found[0]);
    }
    disk.heal();
    refuses(&log).await;
    log.go_round().await.unwrap();
    assert_eq!(log.damaged_keys(), [""; 0]);
    let knows = async |log: LocalLog| {
        for id in [3, 21] {
            let again = log.append(incoming(body(id, 0))).await;
            assert_eq!(again, Ok(Appended::Duplicate(Seq(id))));
        }
        log.close();
    };
    knows(log).await;
    knows(open(&data)).await;
}

/// A log with event 21, and the keys of those from 1 on that have expired in a file that is damaged, of this length.
async fn damaged_keys_of_expired(data: &Path, count: u64) -> u64 {
    let file = keys_of_expired(data).await;
    if count > 20 {
        std::fs::remove_file(&file).unwrap();
        write_keys(&file, 1..=count);
    }
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3] ^= 0x55;
    std::fs::write(&file, &bytes).unwrap();
    bytes.len() as u64
}

/// A log with event 21; gives the file of the keys of those before it, which have expired.
async fn keys_of_expired(data: &Path) -> PathBuf {
    let log = open(data);
    store(&log, 1..=20).await;
    seal(&log).await;
    store(&log, 21..=21).await;
    assert_eq!(log.drop_before(Seq(21)).await, Ok(Seq(21)));
    log.close();
    let keys = walk(&data.join("keys"));
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

fn write_keys(file: &Path, numbers: std::ops::RangeInclusive<u64>) {
    let mut table = known::Table::default();
    for number in numbers {
        let key = EventKey {
            id: format!("ev_{number:060}"),
            updated: Updated::parse("2024-02-15T12:48:23.395"),
        };
        table.insert(&Identity::of_event(&key), Seq(number), Timestamp::now());
    }
    known::write_file(file, &table).unwrap();
}

/// The same log with so many keys in a month's database, whose index is damaged; gives the length of the database.
async fn damaged_month_of_expired(data: &Path, count: u64) -> u64 {
    std::fs::remove_file(keys_of_expired(data).await).unwrap();
    let quarter = count / 4;
    for number in 0..4 {
        let file = data.join(crate::log::key_file(Seq(number + 1)));
        write_keys(&file, number * quarter + 1..=(number + 1) * quarter);
    }
    let log = open(data);
    log.go_round().await.unwrap();
    log.close();
    let (index, database): (Vec<_>, Vec<_>) = walk(&data.join("keys"))
        .into_iter()
        .partition(|path| path.ends_with("index"));
    assert_eq!(index.len(), 1, "they are merged: {database:?}");
    flip(&index[0], 50);
    let len = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    database.iter().map(len).sum()
}

/// What is saved of them is little larger than they are.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_are_saved_where_there_is_room_for_them_once() {
    let Some(disk) = Disk::of_mib(64) else { return };
    let data = disk.data();
    let len = damaged_keys_of_expired(&data, 1_000_000).await;
    // What a database takes more than they do, and what is left free.
    let free = len / 4 * 5 + (5 << 20);
    assert!(free < 2 * len, "that is less than twice: {len}");
    disk.fill_but(free);
    let log = open(&data);
    assert_eq!(log.ready(), Ok(()));
    assert_eq!(log.find(&format!("ev_{:060}", 750_000)).unwrap(), [Seq(750_000)]);
    log.close();
}

/// What a log leaves free here.
const RESERVE: u64 = 32 << 20;

fn with_reserve(data: &Path) -> LocalLog {
    let reserve = Some(RESERVE);
    LocalLog::open(Options {
        reserve,
        ..options(data)
    })
    .unwrap()
}

/// Below its reserve the log stores nothing, and merging can wait.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_merged_where_that_leaves_the_reserve() {
    let Some(disk) = Disk::of_mib(64) else { return };
    let data = disk.data();
    let log = with_reserve(&data);
    // Nothing is merged while somebody copies them.
    let held = read_lock(&log.shared.known).on_disk();
    for first in [1, 6, 11, 16] {
        store(&log, first..=first + 4).await;
        seal(&log).await;
    }
    drop(held);
    let is_merged = || walk(&data.join("keys")).iter().any(|path| path.ends_with("index"));
    disk.fill_but(RESERVE + (768 << 10));
    log.go_round().await.unwrap();
    assert!(!is_merged());
    store(&log, 21..=21).await;
    disk.heal();
    log.go_round().await.unwrap();
    assert!(is_merged());
    log.close();
}

/// Below its reserve the log stores nothing, and a journal can be read just as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_sealed_where_that_leaves_the_reserve() {
    let Some(disk) = Disk::of_mib(64) else { return };
    let data = disk.data();
    let log = with_reserve(&data);
    store(&log, 1..=5).await;
    log.roll().await.unwrap();
    // A database alone would fit.
    disk.fill_but(RESERVE + (256 << 10));
    log.go_round().await.unwrap();
    assert_eq!(log.stats().unsealed, 2);
    store(&log, 6..=6).await;
    disk.heal();
    log.go_round().await.unwrap();
    assert_eq!(log.stats().unsealed, 1);
    log.close();
}

/// An erasure that would fill the disk says how much it needs, and has begun with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_begun_where_there_is_room_for_the_new_form() {
    let Some(disk) = Disk::of_mib(32) else { return };
    let data = disk.data();
    let log = open(&data);
    store_noise(&log, 1..=80, 100_000).await;
    seal(&log).await;
    let takes = sealed_segment(&log, 1).disk_bytes;
    assert!(takes > 4 << 20, "{takes}");
    disk.fill_but(3 << 20);
    let erase = async || {
        let doomed = Arc::new(|event: &Event| event.seq == Seq(3));
        LocalLog::erase(&log, Narrow::default(), doomed).await
    };
    let why = erase().await.map(|erased| erased.seqs).unwrap_err().to_string();
    assert!(why.contains("have to be free"), "{why}");
    let begun = walk(&data.join("log"));
    let is_begun = |path: &PathBuf| path.display().to_string().contains("/new-");
    assert!(!begun.iter().any(is_begun), "{begun:?}");
    assert_eq!(log.get(Seq(3)).unwrap().unwrap().kind, Kind::Event);
    disk.heal();
    assert_eq!(erase().await.unwrap().seqs, [Seq(3)]);
    assert_eq!(log.get(Seq(3)).unwrap().unwrap().kind, Kind::Erased);
    log.close();
}

/// Names the data directory to the process that opens it.
const DAMAGED_MONTH: &str = "CLOSEHOOK_TEST_DAMAGED_MONTH";

/// A copy of it is read. Where that is must not ask for more than what it is saved into: nothing is stored until there is so much. Another
/// process opens the log, one for which temporary files are on the same disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_month_is_saved_where_there_is_room_for_it_twice() {
    if let Some(data) = std::env::var_os(DAMAGED_MONTH) {
        let log = open(Path::new(&data));
        assert_eq!(log.ready(), Ok(()));
        assert_eq!(log.find(&format!("ev_{:060}", 300_000)).unwrap(), [Seq(300_000)]);
        log.close();
        return;
    }
    let Some(disk) = Disk::of_mib(160) else { return };
    let data = disk.data();
    let len = damaged_month_of_expired(&data, 400_000).await;
    // What the log keeps in reserve is 8 MiB; twice that would not be left.
    disk.fill_but(2 * len + (15 << 20));
    let here = module_path!().split_once("::").unwrap().1;
    let opened = Command::new(std::env::current_exe().unwrap())
        .arg("--exact")
        .arg(format!(
            "{here}::a_damaged_month_is_saved_where_there_is_room_for_it_twice"
        ))
        .env(DAMAGED_MONTH, &data)
        .env("TMPDIR", disk.0.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&opened.stdout);
    assert!(opened.status.success() && said.contains("1 passed"), "{said}");
}

/// Nothing that is as old comes again.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_that_would_be_forgotten_hold_nothing_back() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    damaged_keys_of_expired(&data, 20).await;
    disk.fill();
    let (now, days) = days_ahead();
    let log = reopen(&Options { now, ..options(&data) });
    let held_back = || lock(&log.shared.owed).holds_back();
    log.go_round().await.unwrap();
    let why = held_back().unwrap();
    assert!(why.contains("have to be free"), "{why}");
    days.store(80, Ordering::SeqCst);
    log.go_round().await.unwrap();
    assert_eq!(held_back(), None);
    log.close();
}

/// Which log it is, and which life of it, is made anew, and written when there is room: the same until then, as sinks know by it what
/// they were given.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_description_on_a_full_disk_keeps_nothing_from_being_read() {
    for damaged in [true, false] {
        let Some(disk) = Disk::mount() else { return };
        let data = disk.data();
        let log = open(&data);
        store(&log, 1..=5).await;
        log.close();
        let before = log.shared.epoch.clone();
        let description = data.join("closehook.json");
        if damaged {
            std::fs::write(&description, "{").unwrap();
        } else {
            std::fs::remove_file(&description).unwrap();
        }
        let stands = || std::fs::read(&description).ok();
        let stood = stands();
        disk.fill();
        let mut epochs = Vec::new();
        for _ in 0..2 {
            let log = open(&data);
            assert_eq!(seqs(&log, 1..=5).len(), 5);
            assert_eq!(stands(), stood, "it stays until its place is taken");
            epochs.push((log.shared.id.clone(), log.shared.epoch.clone()));
            log.close();
        }
        assert_eq!(epochs[0], epochs[1]);
        assert_ne!(epochs[0].1, before);
        let log = open(&data);
        disk.heal();
        log.go_round().await.unwrap();
        let written: serde_json::Value = serde_json::from_slice(&stands().unwrap()).unwrap();
        assert_eq!(
            (&written["id"], &written["epoch"]),
            (&json(&epochs[0].0), &json(&epochs[0].1))
        );
        let aside = std::fs::read(data.join("closehook.json.damaged")).ok();
        assert_eq!(aside, stood);
        assert_eq!(log.append(incoming(body(5, 0))).await, Ok(Appended::Duplicate(Seq(5))));
        log.close();
        // Another damage is another life.
        std::fs::write(&description, "{").unwrap();
        let log = open(&data);
        assert_ne!(log.shared.epoch, epochs[0].1);
        log.close();
    }
}

/// An older closehook reads the old list as long as the description says that it may.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_list_of_gaps_waits_until_the_description_says_that_there_is_one() {
    let Some(disk) = Disk::mount() else { return };
    let data = disk.data();
    two_sealed(&data).await.close();
    let description = data.join("closehook.json");
    let old = std::fs::read_to_string(&description).unwrap();
    let old = old.replace("\"gaps_begun\": true", "\"gaps_begun\": false");
    std::fs::write(&description, old.replace("\"format\": 3", "\"format\": 2")).unwrap();
    std::fs::remove_file(data.join("gaps")).unwrap();
    std::fs::write(data.join("gaps.json"), "[]").unwrap();
    disk.fill();
    let log = open(&data);
    disk.heal();
    log.shared.gaps.settle().unwrap_err();
    assert!(!data.join("gaps").exists() && data.join("gaps.json").exists());
    log.go_round().await.unwrap();
    let written = std::fs::read_to_string(&description).unwrap();
    assert!(written.contains("\"format\": 3"), "{written}");
    assert!(data.join("gaps").exists() && !data.join("gaps.json").exists());
    log.close();
}

fn json(text: &str) -> serde_json::Value {
    serde_json::Value::from(text)
}
