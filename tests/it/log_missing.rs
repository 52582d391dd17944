//! What is missing in a data directory and does not show by itself: the end of the log, and known keys.

use std::path::PathBuf;

use crate::harness::{Daemon, until};

const FILE: &str = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

const SMALL: &str = "[log]\nsegment_size = \"64 KiB\"\n";

/// The directories of segments, oldest first.
fn segments(daemon: &Daemon) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(daemon.data().join("log")).unwrap();
    let mut segments: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    segments
}

fn newest_journal(daemon: &Daemon) -> PathBuf {
    segments(daemon).pop().unwrap().join("journal")
}

/// Stores events 1 to 60 in several segments, and waits until all that are complete are sealed.
async fn fill(daemon: &Daemon) {
    for id in 1..=60_u64 {
        // Does not compress to nothing, so that segments fill.
        let noise: String = (1..=200)
            .map(|n: u64| format!("{:x}", id.wrapping_mul(2_654_435_761).wrapping_mul(n * n)))
            .collect();
        let body =
            format!(r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23", "data": "{noise}"}}}}"#);
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    until("segments are sealed", async || {
        let status = daemon.status();
        let log = &status["log"];
        log["segments"].as_u64() > Some(1) && log["unsealed"].as_u64() <= Some(1)
    })
    .await;
}

/// Nothing is left in front of it that would tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_beginning_is_missing_is_told_of_and_counted() {
    let mut daemon = Daemon::start(&[SMALL, FILE].concat()).await;
    daemon.ok(&["sinks", "pause", "file"]);
    fill(&daemon).await;
    daemon.stop().await;
    let found = segments(&daemon);
    let second: u64 = found[1].file_name().unwrap().to_str().unwrap().parse().unwrap();
    let gone = second - 1;
    assert!(!daemon.ok(&["check"]).contains("are lost"));
    daemon.ok(&["events", "verify"]);
    std::fs::remove_dir_all(&found[0]).unwrap();

    let lost = format!("events 1 to {gone}");
    let list = daemon.data().join("gaps");
    let before = std::fs::read(&list).unwrap();
    let verified = daemon.run_command(&["events", "verify"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("lost: {lost}")), "{said}");
    let said = daemon.ok(&["check"]);
    assert!(said.contains(&format!("{lost} are lost")), "{said}");
    assert_eq!(std::fs::read(&list).unwrap(), before, "looking changes nothing");

    for _ in 0..2 {
        daemon.run().await;
        let status = daemon.status();
        let gaps = &status["log"]["gaps"];
        assert_eq!(gaps.as_array().map(Vec::len), Some(1), "{status}");
        assert_eq!(
            (gaps[0]["from"].as_u64(), gaps[0]["to"].as_u64()),
            (Some(1), Some(gone))
        );
        assert!((daemon.metric("closehook_log_gaps").await - 1.0).abs() < 0.1);
        daemon.stop().await;
    }
    daemon.run().await;
    daemon.ok(&["sinks", "resume", "file"]);
    daemon.done("file").await;
    assert_eq!(daemon.sink("file")["lost"], gone);
}

/// Only what sinks have seen tells that there was more, and nobody has put that right yet.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_too_a_log_whose_end_is_missing_is_told_of() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.store(1..=2).await;
    daemon.done("file").await;
    daemon.stop().await;
    let journal = newest_journal(&daemon);
    let earlier = std::fs::read(&journal).unwrap();
    assert!(!daemon.ok(&["check"]).contains("are lost"));
    daemon.ok(&["events", "verify"]);
    daemon.run().await;
    daemon.store(3..=5).await;
    daemon.done("file").await;
    daemon.stop().await;
    assert_eq!(newest_journal(&daemon), journal);
    std::fs::write(&journal, earlier).unwrap();

    let verified = daemon.run_command(&["events", "verify"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains("lost: events 3 to 5: sinks have seen them"), "{said}");
    let said = daemon.fails(1, &["events", "export"]);
    assert!(said.contains("events 3 to 5 can't be read"), "{said}");
    let said = daemon.ok(&["check"]);
    assert!(said.contains("events 3 to 5 are lost"), "{said}");
    // Looking has changed nothing: it is found again, and put right by who writes.
    daemon.run().await;
    let status = daemon.status();
    let gap = &status["log"]["gaps"][0];
    assert_eq!(
        (gap["from"].as_u64(), gap["to"].as_u64()),
        (Some(3), Some(5)),
        "{status}"
    );
}

/// Their keys are nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_made_again_of_events_are_not_those_of_what_is_gone() {
    let mut daemon = Daemon::start(SMALL).await;
    fill(&daemon).await;
    daemon.stop().await;
    std::fs::remove_dir_all(daemon.data().join("keys")).unwrap();
    daemon.run().await;
    let said = daemon.stderr();
    assert!(
        said.contains("a redelivery of such an event would be stored again"),
        "{said}"
    );
}
