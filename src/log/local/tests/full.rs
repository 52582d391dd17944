//! Opening on a full disk: whatever is found there waits for room.

use std::process::Command;

use super::*;

#[path = "../../../../tests/skip.rs"]
mod skip;
use skip::skipped;

/// A small file system; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, loudly, where this user may not mount.
    fn mount() -> Option<Disk> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
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
        assert!(!data.join("gaps.json").exists());

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
