//! A full disk: refused while it is full, healed when it is not.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Daemon, body, until};

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
        eprintln!("SKIPPED: mounting a tmpfs needs root");
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
