//! A process that may have only a few files open, on a log that has many; or whose files may not grow.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Daemon, binary, body, until};

/// Known keys of segments that are long gone: many files.
const KEY_FILES: u64 = 300;

/// Everything below a directory, by name.
fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

/// A command under a limit of open files.
fn limited(daemon: &Daemon, limit: &str, command: &[&str]) -> Command {
    let plain = daemon.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), binary()]);
    limited.args(plain.get_args()).args(command);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Runs it.
fn run_limited(daemon: &Daemon, limit: &str, command: &[&str]) -> Output {
    limited(daemon, limit, command).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn few_open_files_are_enough_or_said_and_nothing_is_set_aside() {
    let mut daemon = Daemon::start("[log]\nsegment_size = \"64 KiB\"\n").await;
    for id in 1..=60 {
        let large = body(id).replace("\\u00e9", &"é".repeat(1500));
        assert_eq!(daemon.send(large).await.unwrap().0, 200);
    }
    until("segments are sealed", async || {
        let log = &daemon.status()["log"];
        log["unsealed"] == 1 && log["segments"].as_u64() >= Some(3)
    })
    .await;
    daemon.stop().await;
    let keys = daemon.data().join("keys");
    let first = std::fs::read_dir(&keys).unwrap().next().unwrap().unwrap().path();
    if first.is_file() {
        for number in 0..KEY_FILES {
            std::fs::copy(&first, keys.join(format!("{:020}", 1_000_000 + number))).unwrap();
        }
    }
    let damaged = |names: &[String]| names.iter().any(|name| name.contains("damaged"));

    // A limit that may be raised is raised, by commands too.
    let listed = run_limited(&daemon, "-S -n 100", &["events", "list", "--json", "--limit", "3"]);
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(listed.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 3);

    // One that may not be is enough, or said.
    let commands: [&[&str]; 3] = [
        &["events", "list", "--json", "--limit", "3"],
        &["log", "erase", "--id", "ev_none", "--yes"],
        &["events", "verify"],
    ];
    for command in commands {
        let done = run_limited(&daemon, "-n 256", command);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.status.success() || said.contains("open files"),
            "{command:?}: {:?} {said}",
            done.status
        );
        assert!(!said.contains("damaged"), "{command:?}: {said}");
        assert!(!damaged(&names(daemon.data())), "{command:?}");
    }
    // And nothing was forgotten.
    daemon.run().await;
    let large = body(7).replace("\\u00e9", &"é".repeat(1500));
    assert_eq!(daemon.send(large).await.unwrap().0, 200);
    assert_eq!(daemon.status()["log"]["events"], 60);
    assert!(daemon.status()["log"]["gaps"].as_array().unwrap().is_empty());
    daemon.stop().await;
}

/// Deliveries of a segment each, faster than they are sealed: more segments than the process may have files open.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_stored_however_few_files_may_be_open() {
    const SEGMENTS: u64 = 500;
    let mut daemon = Daemon::new("[log]\nsegment_size = \"64 KiB\"\n");
    daemon.launch(limited(&daemon, "-n 256", &["serve"])).await;
    let large = |id: u64| {
        let mut random = fastrand::Rng::with_seed(id);
        let noise: String = std::iter::repeat_with(|| random.alphanumeric()).take(66_000).collect();
        body(id).replace("\\u00e9", &noise)
    };
    let mut most_unsealed = 0;
    for id in 1..=SEGMENTS {
        let answer = daemon.send(large(id)).await;
        let status = answer.as_ref().map(|(status, _)| *status).unwrap_or_default();
        assert_eq!(status, 200, "delivery {id}: {answer:?}");
        if id % 50 == 0 {
            most_unsealed = daemon.status()["log"]["unsealed"].as_u64().unwrap().max(most_unsealed);
        }
    }
    let opened = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    assert!(opened < 100, "{opened} files are open");
    // Reading them all takes no more.
    let listed = run_limited(&daemon, "-n 256", &["events", "list", "--json", "--limit", "1000"]);
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).lines().count() as u64,
        SEGMENTS,
        "{said}"
    );
    // Nor does a start, or a look from outside.
    daemon.kill();
    let listed = run_limited(&daemon, "-n 256", &["events", "list", "--json", "--limit", "1000"]);
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).lines().count() as u64,
        SEGMENTS,
        "{said}"
    );
    daemon.launch(limited(&daemon, "-n 256", &["serve"])).await;
    let (status, answer) = daemon.send(large(7)).await.unwrap();
    assert_eq!(
        (status, answer["status"].as_str()),
        (200, Some("duplicate")),
        "{answer}"
    );
    assert_eq!(daemon.status()["log"]["events"], SEGMENTS);
    assert!(
        most_unsealed > 0 && !names(daemon.data()).iter().any(|name| name.contains("damaged")),
        "{most_unsealed} unsealed at the most"
    );
    daemon.stop().await;
}

/// As on a full disk; the signal that a write beyond the limit sends as well ends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_is_answered_503_and_ends_no_daemon() {
    let mut daemon = Daemon::new("");
    daemon.launch(limited(&daemon, "-f 300", &["serve"])).await;
    let mut answers = Vec::new();
    for id in 1..=3 {
        // What can be compressed takes no room.
        let large: String = std::iter::repeat_with(fastrand::alphanumeric).take(300_000).collect();
        answers.push(daemon.send(body(id).replace("\\u00e9", &large)).await.unwrap().0);
    }
    assert!(answers.contains(&503), "{answers:?}");
    let status = daemon.status();
    assert_eq!(status["daemon"]["running"], true);
    let stored = answers.iter().filter(|answer| **answer == 200).count();
    assert_eq!(status["log"]["events"], stored);
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["events"], stored, "what was answered is there");
}
