//! A full disk: refused while it is full, healed when it is not.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Daemon, body, ids_in, skipped, until};

/// A small file system; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where this user may not mount.
    fn mount(at: PathBuf) -> Option<Small> {
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(&at)
            .output()
            .ok()?;
        mounted.status.success().then_some(Small(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_and_heals_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(dir.path().join("small")) else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    let data = small.0.join("data");
    let mut daemon = Daemon::within(
        dir,
        data,
        "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"",
    );
    daemon.run().await;
    daemon.store(1..=5).await;
    let ballast = small.0.join("ballast");
    // Fails when the disk is full, which is the point.
    let _ = std::fs::write(&ballast, vec![1_u8; 32 << 20]);
    let (status, answer) = daemon.send(body(6)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
    let ready = daemon
        .client
        .get(format!("{}/readyz", daemon.admin))
        .send()
        .await
        .unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(
        daemon
            .client
            .get(format!("{}/healthz", daemon.admin))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    let (status, answer) = daemon.send(body(3)).await.unwrap();
    assert_eq!(
        (status, answer["status"].as_str()),
        (200, Some("duplicate")),
        "what is stored is known all the same"
    );
    std::fs::remove_file(&ballast).unwrap();
    until("it is ready again", async || {
        daemon
            .client
            .get(format!("{}/readyz", daemon.admin))
            .send()
            .await
            .unwrap()
            .status()
            == 200
    })
    .await;
    daemon.store(6..=8).await;
    daemon.kill();
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["events"], 8);
    daemon.stop().await;
    drop(daemon);
    drop(small);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_keep_the_daemon_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(dir.path().join("small")) else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    let data = small.0.join("data");
    let mut daemon = Daemon::within(
        dir,
        data,
        "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"",
    );
    daemon.run().await;
    daemon.store(1..=5).await;
    // A good end leaves no room in the journal that the start could give back.
    daemon.stop().await;
    let ballast = small.0.join("ballast");
    // Fails when the disk is full, which is the point.
    let _ = std::fs::write(&ballast, vec![1_u8; 32 << 20]);
    daemon.run().await;
    let (status, answer) = daemon.send(body(6)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (503, Some("the disk is full")));
    std::fs::remove_file(&ballast).unwrap();
    daemon.store(6..=8).await;
    until("the file has everything, once", async || {
        daemon.sink("file")["cursor"] == 8
    })
    .await;
    daemon.stop().await;
    assert_eq!(ids_in(&daemon.path("events.jsonl")).len(), 8);
    drop(daemon);
    drop(small);
}

/// Without a reserve the disk is really full when a commit is written: in the middle of it, in its last page, and where a
/// sink's file and positions should be written.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_of_a_write_costs_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(dir.path().join("small")) else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    let data = small.0.join("data");
    let mut daemon = Daemon::within(
        dir,
        data,
        "[log]\nreserve = \"0 B\"\nsegment_size = \"128 KiB\"\n\
         [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/small/events.jsonl\"\nstart = \"beginning\"\n\
         retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n",
    );
    daemon.run().await;
    let ballast = small.0.join("ballast");
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
        // Fails when the disk is full, which is the point.
        let _ = std::fs::write(&ballast, vec![1_u8; 32 << 20]);
        for number in 0..10 {
            deliver(true, number).await;
        }
        assert!(refused > before, "it was full");
        if round % 2 == 1 {
            daemon.kill();
            std::fs::remove_file(&ballast).unwrap();
            daemon.run().await;
        } else {
            std::fs::remove_file(&ballast).unwrap();
        }
        until("it is ready again", async || {
            let ready = daemon.client.get(format!("{}/readyz", daemon.admin)).send().await;
            ready.is_ok_and(|ready| ready.status() == 200)
        })
        .await;
    }
    let last = daemon.status()["log"]["last"].clone();
    until("the file is done", async || daemon.sink("file")["cursor"] == last).await;
    // A failed try comes later than what came after it.
    let mut delivered = ids_in(&small.0.join("events.jsonl"));
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
    drop(daemon);
    drop(small);
}
