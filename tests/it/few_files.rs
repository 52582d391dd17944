//! A process that may have only a few files open, on a log that has many.

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

/// Runs a command under a limit of open files.
fn limited(daemon: &Daemon, limit: &str, command: &[&str]) -> Output {
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
    limited.output().unwrap()
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
    let listed = limited(&daemon, "-S -n 100", &["events", "list", "--json", "--limit", "3"]);
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
        let done = limited(&daemon, "-n 256", command);
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
