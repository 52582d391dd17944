//! Backup and restore from outside: under load, for a move, of damaged files, into the wrong place.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Daemon, Receiver, binary, body, ids_in, skipped, until};

const SINKS: &str = r#"
[log]
segment_size = "64 KiB"
[[sinks]]
name = "file"
type = "file"
path = "DIR/events.jsonl"
start = "beginning"
[[sinks]]
name = "http"
type = "http"
url = "URL"
allow_private = true
start = "beginning"
retry = { initial = "1h", max_delay = "2h" }
breaker = { failures = 1000000 }
"#;

/// An event that does not compress to nothing, so that segments fill.
fn large(id: u64) -> String {
    let noise: String = (1..=200)
        .map(|n: u64| format!("{:x}", id.wrapping_mul(2_654_435_761).wrapping_mul(n * n)))
        .collect();
    format!(r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23", "data": "{noise}"}}}}"#)
}

fn unsealed(daemon: &Daemon) -> u64 {
    daemon.status()["log"]["unsealed"].as_u64().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_holds_everything_acknowledged_before_it_and_is_restored() {
    let receiver = Receiver::start(200).await;
    let config = SINKS.replace("URL", &receiver.url);
    let one = Arc::new(Daemon::start(&config).await);
    let odd = b"no delivery \xff";
    one.send(odd).await.unwrap();
    for id in 1..=100 {
        assert_eq!(one.send(large(id)).await.unwrap().0, 200);
    }
    until("segments are sealed", async || unsealed(&one) <= 1).await;
    assert!(one.status()["log"]["segments"].as_u64().unwrap() > 2);

    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(100)));
    let load = tokio::spawn({
        let (one, stop, acknowledged) = (one.clone(), stop.clone(), acknowledged.clone());
        async move {
            for id in 101..=20_000 {
                assert_eq!(one.send(large(id)).await.unwrap().0, 200);
                acknowledged.store(id, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    until("the load runs", async || acknowledged.load(Ordering::SeqCst) > 150).await;
    let before = acknowledged.load(Ordering::SeqCst);
    let file = one.path("one.backup");
    let said = one.lines(&["backup", text(&file)]);
    stop.store(true, Ordering::SeqCst);
    load.await.unwrap();
    let summary = &said[0];
    assert!(summary["events"].as_u64().unwrap() > before, "{summary}");
    assert_eq!(summary["sinks"], 2);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(one.ok(&["restore", "--check", text(&file)]).contains("is whole"));

    let mut two = Daemon::new(&config);
    let said = two.ok(&["restore", text(&file)]);
    assert!(said.contains("the next event gets Seq 1000000001"), "{said}");
    for (path, mode) in modes(two.data()) {
        assert_eq!(mode & 0o077, 0, "{path} is readable by others: {mode:o}");
    }
    two.run().await;
    assert!(two.ok(&["events", "verify"]).contains("events checked"));
    let kept: BTreeSet<String> = two
        .lines(&["events", "export"])
        .iter()
        .map(|e| e["body"].to_string())
        .collect();
    for id in 1..=before {
        assert!(
            kept.contains(&serde_json::json!(large(id)).to_string()),
            "event {id} was acknowledged and is missing"
        );
    }
    let raw = two.run_command(&["events", "show", "1", "--raw"]);
    assert_eq!(raw.stdout, odd, "what can't be read, too");
    let (_, answer) = two.send(large(7)).await.unwrap();
    assert_eq!(answer["status"], "duplicate", "known keys came along");
    let (_, answer) = two.send(large(999_999)).await.unwrap();
    assert_eq!(
        (answer["status"].as_str(), answer["seq"].as_u64()),
        (Some("stored"), Some(1_000_000_001))
    );
    until("the sinks go on", async || {
        ["file", "http"]
            .iter()
            .all(|sink| two.sink(sink)["cursor"] == 1_000_000_001_u64)
    })
    .await;
    for sink in ["file", "http"] {
        assert_eq!(two.sink(sink)["lost"], 0, "Seqs that were never given out are not lost");
    }
    assert_eq!(
        two.lines(&["events", "list", "--limit", "3"]).len(),
        3,
        "also across the jump"
    );
    assert_eq!(two.status()["log"]["gaps"].as_array().unwrap().len(), 0);
    two.kill();
    two.run().await;
    assert_eq!(
        two.status()["log"]["gaps"].as_array().unwrap().len(),
        0,
        "nor after another start"
    );
    let (original, restored) = (identity(&one), identity(&two));
    assert_eq!(original["id"], restored["id"], "it is the same log");
    assert_ne!(original["epoch"], restored["epoch"], "in another life");
}

fn identity(daemon: &Daemon) -> serde_json::Value {
    let text = std::fs::read_to_string(daemon.data().join("closehook.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(identity["id"].is_string() && identity["epoch"].is_string(), "{text}");
    identity
}

/// Every file and directory below one, with its mode.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        found.push((path.display().to_string(), metadata.permissions().mode()));
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_move_every_sink_goes_on_where_it_was() {
    let receiver = Receiver::start(200).await;
    let config = SINKS.replace("URL", &receiver.url);
    let mut one = Daemon::start(&config).await;
    one.store(1..=20).await;
    until("the first are delivered", async || receiver.count() == 20).await;
    receiver.answer_with(400);
    one.store(21..=22).await;
    until("two are dead", async || one.sink("http")["dead"] == 2).await;
    receiver.answer_with(503);
    one.store(23..=25).await;
    until("three wait for another try", async || one.sink("http")["retrying"] == 3).await;
    one.ok(&["sinks", "pause", "http"]);
    one.store(26..=30).await;
    until("the file has all", async || {
        ids_in(&one.path("events.jsonl")).len() == 30
    })
    .await;
    one.stop().await;
    let keys = one.data().join("close/keys.json");
    std::fs::create_dir_all(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, r#"{"version":1,"keys":[],"intent":null,"rotation":null}"#).unwrap();
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);

    let mut two = Daemon::new(&config);
    std::fs::copy(one.path("events.jsonl"), two.path("events.jsonl")).unwrap();
    two.ok(&["restore", text(&file)]);
    let restored = std::fs::read(two.data().join("close/keys.json")).unwrap();
    assert_eq!(restored, std::fs::read(&keys).unwrap(), "keys from Close come along");
    receiver.answer_with(200);
    two.run().await;
    let http = two.sink("http");
    assert_eq!(
        (http["paused"].as_bool(), http["dead"].as_u64()),
        (Some(true), Some(2)),
        "{http}"
    );
    two.store(31..=32).await;
    two.ok(&["sinks", "resume", "http"]);
    // The tries that wait are due in an hour at the latest: a replay shows what they would send.
    two.ok(&["dead", "retry", "--all"]);
    until("what was not tried, what is new and the dead ones arrive", async || {
        receiver.count() == 20 + 7 + 2
    })
    .await;
    assert_eq!(two.sink("http")["retrying"], 3);
    until("the file has the new ones", async || {
        ids_in(&two.path("events.jsonl")).len() == 32
    })
    .await;
    let ids = ids_in(&two.path("events.jsonl"));
    assert_eq!(
        ids,
        (1..=32).map(|id| format!("ev_{id}")).collect::<Vec<_>>(),
        "each once, in order"
    );
    let delivered: BTreeSet<String> = receiver.bodies().into_iter().collect();
    assert_eq!(delivered.len(), 29, "none twice");
    assert!((1..=22).chain(26..=32).all(|id| delivered.contains(&body(id))));
}

/// Every file below `acme/` and `close/` of a data directory, with its content.
fn small_files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for below in ["acme", "close"] {
        for (path, mode) in modes(&dir.join(below)) {
            if mode & libc::S_IFMT == libc::S_IFREG {
                let name = Path::new(&path).strip_prefix(dir).unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Decision 14: what root restores must be the daemon's.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_brings_what_is_below_and_leaves_all_to_the_directory_s_owner() {
    let mut one = Daemon::start("").await;
    one.store(1..=3).await;
    one.stop().await;
    for file in [
        "acme/account.pem",
        "acme/staging/old/cert.pem",
        "close/keys.json",
        "close/archive/keys.json",
    ] {
        let path = one.data().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, file).unwrap();
    }
    let keys = r#"{"version":1,"keys":[],"intent":null,"rotation":null}"#;
    std::fs::write(one.data().join("close/keys.json"), keys).unwrap();
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);

    let two = Daemon::new("");
    std::fs::create_dir(two.data()).unwrap();
    std::fs::set_permissions(two.data(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(two.data(), Some(65534), Some(65533)).unwrap();
    } else {
        skipped("only root restores for somebody else");
    }
    two.ok(&["restore", text(&file)]);
    assert_eq!(small_files(two.data()), small_files(one.data()));
    for (path, mode) in modes(two.data()) {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(mode & 0o077, 0, "{path}");
        assert!(!is_root || (metadata.uid(), metadata.gid()) == (65534, 65533), "{path}");
    }
    if is_root {
        // A directory that is not there yet is made for the owner of what it is in.
        std::os::unix::fs::chown(two.dir.path(), Some(65532), Some(65531)).unwrap();
        let new = two.path("new");
        two.ok(&["restore", "--dir", text(&new), text(&file)]);
        for (path, _) in modes(&new) {
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (65532, 65531), "{path}");
        }
        // Whoever it belongs to can work on it, with a program that is where everybody reaches it.
        let program = two.path("closehook");
        std::fs::copy(binary(), &program).unwrap();
        for path in [two.dir.path(), &program, &two.config(), &two.path("key")] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let said = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65533", "--clear-groups"])
            .arg(program)
            .args(["log", "import", "/dev/null"])
            .env("CLOSEHOOK__LOG__DIR", two.data())
            .env("CLOSEHOOK_CONFIG", two.config())
            .output();
        match said {
            Ok(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr)),
            Err(_) => skipped("setpriv is not installed"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let mut one = Daemon::start("").await;
    one.store(1..=50).await;
    one.stop().await;
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);
    let good = std::fs::read(&file).unwrap();

    let two = Daemon::new("");
    let refused = |bytes: &[u8]| {
        let bad = two.path("bad.backup");
        std::fs::write(&bad, bytes).unwrap();
        let mut sentences = Vec::new();
        for arguments in [&["restore", text(&bad)][..], &["restore", "--check", text(&bad)]] {
            let output = two.run_command(arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            sentences.push(String::from_utf8(output.stderr).unwrap());
            let left: Vec<_> = std::fs::read_dir(two.data()).map(Iterator::collect).unwrap_or_default();
            assert!(left.is_empty(), "{left:?}");
        }
        // Where nothing was to be restored, that it was not is no news.
        let restoring = sentences.remove(0);
        assert!(!sentences[0].contains("restored"), "{sentences:?}");
        assert_eq!(restoring.replace("; nothing was restored", ""), sentences[0]);
        restoring
    };
    for len in [good.len() - 1, good.len() / 2, 40] {
        let said = refused(&good[..len]);
        assert!(said.contains("is cut off: its end is missing"), "{said}");
    }
    for at in [good.len() / 3, good.len() - 20, 50] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x20;
        let said = refused(&bytes);
        assert!(
            said.contains("is damaged") && said.contains("nothing was restored"),
            "{said}"
        );
    }
    assert!(refused(b"something else entirely, and long enough").contains("does not begin as a closehook file"));
    let mut newer = good.clone();
    newer[8] = 9;
    let crc = crc32c::crc32c(&newer[..28]).to_le_bytes();
    newer[28..32].copy_from_slice(&crc);
    assert!(refused(&newer).contains("run the newer version"));
    // A whole frame is missing in the middle: each of those left is fine.
    let mut shorter = good[..32].to_vec();
    let len = u32::from_le_bytes(good[36..40].try_into().unwrap()) as usize + 16;
    let second = u32::from_le_bytes(good[32 + len + 4..32 + len + 8].try_into().unwrap()) as usize + 16;
    shorter.extend_from_slice(&good[32..32 + len]);
    shorter.extend_from_slice(&good[32 + len + second..]);
    let said = refused(&shorter);
    assert!(said.contains("its checksum does not fit its parts"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_overwrites_nothing_and_is_restored_over_nothing() {
    let one = Daemon::start("").await;
    one.store(1..=3).await;
    let file = one.path("one.backup");
    std::fs::write(&file, "precious").unwrap();
    let refused = one.run_command(&["backup", text(&file)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("exists already"));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    one.ok(&["backup", "--force", text(&file)]);
    let piped = one.run_command(&["backup", "-"]);
    std::fs::write(one.path("piped"), &piped.stdout).unwrap();
    assert!(
        one.ok(&["restore", "--check", text(&one.path("piped"))])
            .contains("3 events (1 to 3)")
    );
    let leftovers = std::fs::read_dir(one.dir.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".partial")
    });
    assert_eq!(leftovers.count(), 0);

    let said = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let in_use = said(one.run_command(&["restore", text(&file)]));
    assert!(in_use.contains("is in use by another closehook"), "{in_use}");
    let elsewhere = one.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("mine"), "").unwrap();
    let full = said(one.run_command(&["restore", text(&file), "--dir", text(&elsewhere)]));
    assert!(full.contains("is not empty"), "{full}");
    assert!(elsewhere.join("mine").exists());

    // A restore that was killed half-way is no data directory.
    let mut two = Daemon::new("");
    std::fs::create_dir(two.data()).unwrap();
    std::fs::write(two.data().join("restore-unfinished"), "").unwrap();
    for arguments in [&["serve"][..], &["events", "list"]] {
        let unfinished = said(two.run_command(arguments));
        assert!(
            unfinished.contains("holds a restore that was cut off"),
            "{arguments:?}: {unfinished}"
        );
    }
    // It can be done again, whatever was there by then.
    std::fs::create_dir_all(two.data().join("log/00000000000000000001")).unwrap();
    std::fs::write(two.data().join("signature_key"), "half").unwrap();
    let again = two.run_command(&["restore", text(&file)]);
    assert!(again.status.success());
    assert!(String::from_utf8(again.stderr).unwrap().contains("was cut off"));
    two.run().await;
    assert_eq!(two.lines(&["events", "list"]).len(), 3);
}

/// Places that a restored log leaves out are nothing that is missing, nothing that a sink has still to get, and no age.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_log_lacks_nothing_and_its_sinks_lag_by_events() {
    let sink = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";
    let mut one = Daemon::start(sink).await;
    one.ok(&["sinks", "pause", "file"]);
    one.store(1..=5).await;
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);
    one.stop().await;
    let mut two = Daemon::new(sink);
    two.ok(&["restore", text(&file)]);
    let check = |daemon: &Daemon| {
        let listed = daemon.run_command(&["events", "list"]);
        assert_eq!(String::from_utf8_lossy(&listed.stderr), "");
        let sink = daemon.sink("file");
        assert_eq!(sink["lag_events"], 5, "{sink}");
        assert!(sink["lag_seconds"].as_f64().is_some_and(|age| age > 0.0), "{sink}");
    };
    check(&two);
    two.run().await;
    until("the age is found", async || two.sink("file")["lag_seconds"].is_f64()).await;
    check(&two);
    assert!((two.metric("closehook_sink_lag_events{sink=\"file\"}").await - 5.0).abs() < 0.1);
    assert!(two.metric("closehook_sink_lag_seconds{sink=\"file\"}").await > 0.0);
    two.store(6..=7).await;
    assert_eq!(two.sink("file")["lag_events"], 7);
    two.ok(&["sinks", "resume", "file"]);
    until("it has them", async || ids_in(&two.path("events.jsonl")).len() == 7).await;
    until("nothing is left", async || two.sink("file")["lag_events"] == 0).await;
}

/// Without a daemon what is damaged stays as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_a_daemon_says_that_a_start_comes_first() {
    let mut one = Daemon::start("").await;
    one.store(1..=9).await;
    one.stop().await;
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);
    one.ok(&["restore", "--check", text(&file)]);
    let journal = one.data().join("log/00000000000000000001/journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&journal, bytes).unwrap();
    let said = one.fails(1, &["backup", "--force", text(&file)]);
    for part in [
        "are damaged",
        "can't be read",
        "start `closehook serve` once, and back up again",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let said = one.fails(1, &["restore", "--check", text(&file)]);
    assert!(said.contains("when it was backed up: "), "{said}");
    one.run().await;
    one.ok(&["backup", "--force", text(&file)]);
    one.ok(&["restore", "--check", text(&file)]);
}

/// Nobody would know after a restore that there was more.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_names_the_dead_letters_that_damage_has_taken() {
    let receiver = Receiver::start(400).await;
    let mut one = Daemon::start(&SINKS.replace("URL", &receiver.url)).await;
    one.store(1..=3).await;
    until("all are dead", async || one.sink("http")["dead"].as_u64() == Some(3)).await;
    one.stop().await;
    let file = one.path("one.backup");
    one.ok(&["backup", text(&file)]);
    let whole = one.ok(&["restore", "--check", text(&file)]);
    assert!(whole.contains("is whole: 3 events"), "{whole}");

    std::fs::remove_file(one.data().join("dead/http")).unwrap();
    let said = one.fails(1, &["backup", "--force", text(&file)]);
    assert!(
        said.contains("not in the backup: dead letters of \"http\"") && said.contains("is gone"),
        "{said}"
    );
    let checked = one.run_command(&["restore", "--check", text(&file)]);
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("is whole but for dead letters that are damaged: 3 events"),
        "{said}"
    );
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(said.contains("not in the backup: dead letters of \"http\""), "{said}");
}
