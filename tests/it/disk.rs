//! A full disk: refused while it is full, healed when it is not.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Daemon, body, ids_in, skipped, until};

/// A small file system with the data directory of a daemon on it, which can be filled up; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// With a daemon that runs on it. `None`, loudly, where this user may not mount.
    async fn with_daemon(config: &str) -> Option<(Daemon, Disk)> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("small");
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(&at)
            .output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            skipped("mounting a tmpfs needs root");
            return None;
        }
        // Taken away before the test's directory is (the later of two is dropped first), so that nothing of it is left.
        let disk = Disk(at);
        let mut daemon = Daemon::within(dir, disk.0.join("data"), config);
        daemon.run().await;
        Some((daemon, disk))
    }

    fn fill(&self) {
        // Fails when the disk is full, which is the point.
        let _ = std::fs::write(self.0.join("ballast"), vec![1_u8; 32 << 20]);
    }

    fn heal(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const FILE: &str = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"";

async fn is_ready_again(daemon: &Daemon) {
    until("it is ready again", async || {
        daemon.ask_admin("/readyz").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_and_heals_by_itself() {
    let Some((mut daemon, disk)) = Disk::with_daemon(FILE).await else {
        return;
    };
    daemon.store(1..=5).await;
    disk.fill();
    let (status, answer) = daemon.send(body(6)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
    assert_eq!(daemon.ask_admin("/readyz").await.status(), 503);
    assert_eq!(daemon.ask_admin("/healthz").await.status(), 200);
    let (status, answer) = daemon.send(body(3)).await.unwrap();
    assert_eq!(
        (status, answer["status"].as_str()),
        (200, Some("duplicate")),
        "what is stored is known all the same"
    );
    disk.heal();
    is_ready_again(&daemon).await;
    daemon.store(6..=8).await;
    daemon.kill();
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["events"], 8);
    daemon.stop().await;
}

/// A2: and a sink that can't begin for it says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_the_daemon_from_starting() {
    let other = FILE
        .replace("\"file\"", "\"other\"")
        .replace("type = \"other\"", "type = \"file\"");
    let other = format!(
        "{}\nstart = \"beginning\"\n",
        other.replace("events.jsonl", "other.jsonl")
    );
    let Some((mut daemon, disk)) = Disk::with_daemon(FILE).await else {
        return;
    };
    daemon.store(1..=5).await;
    // A good end leaves no room in the journal that the start could give back.
    daemon.stop().await;
    disk.fill();
    // One that was not there before has to note where it begins.
    daemon.configure(&[FILE, "\n", &other].concat());
    daemon.run().await;
    assert_eq!(
        daemon.ask_admin("/readyz").await.status(),
        503,
        "from the first time on"
    );
    let (status, answer) = daemon.send(body(6)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
    until("it says why nothing is delivered", async || {
        let sink = daemon.sink("other");
        let says = |name: &str| sink[name].as_str().is_some_and(|why| why.contains("No space left"));
        says("waits_for") && says("last_error") && sink["lag_events"] == 5
    })
    .await;
    disk.heal();
    daemon.store(6..=8).await;
    for (sink, file) in [("file", "events.jsonl"), ("other", "other.jsonl")] {
        until("the file has everything, once", async || {
            daemon.sink(sink)["cursor"] == 8
        })
        .await;
        assert_eq!(ids_in(&daemon.path(file)).len(), 8);
    }
    daemon.stop().await;
}

/// The same where the last stop fell between making a segment's directory and its journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_the_daemon_from_starting_without_a_journal() {
    let Some((mut daemon, disk)) = Disk::with_daemon(FILE).await else {
        return;
    };
    daemon.store(1..=5).await;
    daemon.stop().await;
    let begun = daemon.data().join("log").join(format!("{:020}", 6));
    std::fs::create_dir(&begun).unwrap();
    std::fs::write(begun.join("journal.tmp"), "").unwrap();
    disk.fill();
    daemon.run().await;
    assert_eq!(daemon.ask_admin("/readyz").await.status(), 503);
    let (status, answer) = daemon.send(body(6)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
    assert_eq!(daemon.lines(&["events", "list"]).len(), 5);
    disk.heal();
    is_ready_again(&daemon).await;
    daemon.store(6..=8).await;
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["events"], 8);
    daemon.stop().await;
}

/// Neither does one on which damage is found: what was lost is on record as soon as there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_a_damaged_log_from_starting() {
    for whole in [false, true] {
        let Some((mut daemon, disk)) = Disk::with_daemon(FILE).await else {
            return;
        };
        daemon.store(1..=5).await;
        daemon.done("file").await;
        daemon.stop().await;
        let journal = daemon.data().join("log").join(format!("{:020}", 1)).join("journal");
        let mut bytes = std::fs::read(&journal).unwrap();
        let (from, to) = if whole {
            (0, bytes.len())
        } else {
            (bytes.len() / 2, bytes.len() / 2 + 1)
        };
        bytes[from..to].iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&journal, bytes).unwrap();
        disk.fill();
        daemon.run().await;
        let (status, answer) = daemon.send(body(6)).await.unwrap();
        assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
        let kept = daemon.lines(&["events", "list"]).len();
        assert_eq!(kept, if whole { 0 } else { 4 });
        // Found again, for it could not be written down.
        daemon.kill();
        daemon.run().await;
        let lost = |daemon: &Daemon| {
            let gaps = daemon.status()["log"]["gaps"].as_array().unwrap().clone();
            let lost = gaps.into_iter().filter(|gap| gap["skipped"] != true);
            lost.map(|gap| (gap["from"].clone(), gap["to"].clone()))
                .collect::<Vec<_>>()
        };
        let gaps = lost(&daemon);
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        disk.heal();
        is_ready_again(&daemon).await;
        daemon.store(6..=8).await;
        daemon.kill();
        daemon.run().await;
        assert_eq!(lost(&daemon), gaps);
        assert_eq!(daemon.lines(&["events", "list"]).len(), kept + 3);
        assert!(daemon.data().join("damaged").exists(), "what could not be read is kept");
        daemon.done("file").await;
        daemon.stop().await;
    }
}

/// Without a reserve the disk is really full when a commit is written: in the middle of it, in its last page, and where a
/// sink's file and positions should be written.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_of_a_write_costs_nothing_that_was_answered() {
    let config = "[log]\nreserve = \"0 B\"\nsegment_size = \"128 KiB\"\n\
         [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/small/events.jsonl\"\nstart = \"beginning\"\n\
         retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n";
    let Some((mut daemon, disk)) = Disk::with_daemon(config).await else {
        return;
    };
    let mut random = crate::campaign::seed();
    let mut stored: Vec<String> = Vec::new();
    let mut refused = 0;
    for round in 0..6 {
        let before = refused;
        // Something that can't be compressed away, of all sizes around a page.
        let mut deliver = async |full: bool, number: usize| {
            let noise: String = (0..random.usize(1..20_000)).map(|_| random.alphanumeric()).collect();
            let id = format!("ev_{round}_{full}_{number}");
            let (status, answer) = daemon
                .send(format!(r#"{{"event":{{"id":"{id}","data":"{noise}"}}}}"#))
                .await
                .unwrap();
            match status {
                200 => stored.push(id),
                503 if full => refused += 1,
                _ => panic!("{status}: {answer}"),
            }
        };
        for number in 0..10 {
            deliver(false, number).await;
        }
        disk.fill();
        for number in 0..10 {
            deliver(true, number).await;
        }
        assert!(refused > before, "it was full");
        if round % 2 == 1 {
            daemon.kill();
            disk.heal();
            daemon.run().await;
        } else {
            disk.heal();
        }
        is_ready_again(&daemon).await;
    }
    let last = daemon.status()["log"]["last"].clone();
    until("the file is done", async || daemon.sink("file")["cursor"] == last).await;
    // A failed try comes later than what came after it.
    let mut delivered = ids_in(&disk.0.join("events.jsonl"));
    delivered.sort();
    stored.sort();
    assert_eq!(delivered, stored, "everything, once");
    daemon.stop().await;
    let log = daemon.status()["log"].clone();
    assert_eq!(
        (log["events"].as_u64(), log["last"].as_u64()),
        (Some(stored.len() as u64), Some(stored.len() as u64))
    );
    assert_eq!(log["gaps"].as_array().map(Vec::len), Some(0));
    assert!(daemon.ok(&["events", "verify"]).contains("events checked"));
}
