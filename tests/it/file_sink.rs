//! The file sink from outside: what it makes of the paths that people name.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Daemon, ids_in, until};

/// A file sink that moves on to a new file after each event.
fn restless(path: &str) -> String {
    format!(
        "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"{path}\"\nstart = \"beginning\"\n\
         rotate = {{ size = \"1 B\", compress = false }}\n"
    )
}

/// The files in a directory, but for the one with this name.
fn others(dir: &Path, name: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap() != name).collect()
}

/// D2
#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_leads_to_is_rotated_beside_itself() {
    let mut daemon = Daemon::new(&restless("DIR/events.jsonl"));
    let (link, elsewhere) = (daemon.path("events.jsonl"), daemon.path("elsewhere"));
    std::fs::create_dir(&elsewhere).unwrap();
    symlink("elsewhere/real.jsonl", &link).unwrap();
    daemon.run().await;
    daemon.store(1..=1).await;
    until("the first file was moved away", async || {
        !others(&elsewhere, "real.jsonl").is_empty()
    })
    .await;
    daemon.store(2..=2).await;
    until("the second one was", async || {
        others(&elsewhere, "real.jsonl").len() == 2
    })
    .await;
    daemon.stop().await;
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "the link stays");
    let mut ids: Vec<String> = others(&elsewhere, "").iter().flat_map(|file| ids_in(file)).collect();
    ids.sort();
    assert_eq!(ids, ["ev_1", "ev_2"], "nothing stands anywhere else");
}

/// D3
#[tokio::test(flavor = "multi_thread")]
async fn mode_and_group_go_along_when_the_file_is_rotated() {
    let mut daemon = Daemon::new(&restless("DIR/out/events.jsonl"));
    let path = daemon.path("out/events.jsonl");
    std::fs::create_dir(daemon.path("out")).unwrap();
    std::fs::write(&path, "").unwrap();
    // Only root may give it to others; anybody can give it a mode.
    let _ = std::os::unix::fs::chown(&path, None, Some(4));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    let whose = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    let before = whose(&path);
    daemon.run().await;
    daemon.store(1..=1).await;
    until("the file was moved away", async || {
        !others(&daemon.path("out"), "events.jsonl").is_empty() && path.exists()
    })
    .await;
    daemon.stop().await;
    assert_eq!(whose(&path), before);
    let moved = others(&daemon.path("out"), "events.jsonl");
    assert_eq!(whose(&moved[0]), before);
}

/// A2, and its kin: whatever is no regular file, and no place for one, also through links, is a fault that names it.
#[test]
fn what_can_be_no_file_is_a_fault_of_check() {
    let daemon = Daemon::new("");
    let at = |name: &str| daemon.path(name);
    std::fs::write(at("file"), "").unwrap();
    let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    for (name, to) in [
        ("to-pipe", "pipe"),
        ("to-mem", "/proc/self/mem"),
        ("to-out", "/dev/stdout"),
        ("to-null", "/dev/null"),
        ("twice", "to-mem"),
        ("circle", "circle"),
    ] {
        symlink(to, at(name)).unwrap();
    }
    let sinks = |path: &str| {
        let sqlite = "[[sinks]]\nname = \"db\"\ntype = \"sqlite\"\npath";
        [restless(path), format!("{sqlite} = \"{path}\"\n")]
    };
    for path in [
        "/proc/self/mem",
        "/proc/self/fd/1",
        "/proc/new",
        "/sys/kernel/new",
        "/dev/full",
        "/dev/new",
        "DIR/pipe",
        "DIR/to-pipe",
        "DIR/to-mem",
        "DIR/to-out",
        "DIR/to-null",
        "DIR/twice",
        "DIR/circle",
        "DIR/new/",
        "DIR",
    ] {
        for config in sinks(path) {
            daemon.configure(&config);
            let shown = path.replace("DIR", &daemon.dir.path().display().to_string());
            let error = daemon.fails(2, &["check"]);
            assert!(
                error.contains("sinks[0]") && error.contains(&shown),
                "{config}: {error}"
            );
        }
    }
    for path in ["DIR/file", "DIR/new", "DIR/new/file"] {
        for config in sinks(path) {
            daemon.configure(&config);
            daemon.ok(&["check"]);
        }
    }
}
