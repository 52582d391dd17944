//! Faults of the machine the daemon runs on: files that are damaged or gone, and a clock that jumps.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};

use crate::harness::{Daemon, KEY, Receiver, body, ids_in, skipped, until};

const CONFIG: &str = "[log]\nsegment_size = \"64 KiB\"\n\
    [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

/// A body that is large enough for a few of them to fill a segment.
fn large(id: u64) -> String {
    body(id).replace("\\u00e9", &"é".repeat(1500))
}

/// The directory of a daemon that has stored 1 to 60, three sealed segments at least, and has delivered everything.
async fn filled() -> Daemon {
    let mut daemon = Daemon::start(CONFIG).await;
    for id in 1..=60 {
        assert_eq!(daemon.send(large(id)).await.unwrap().0, 200);
    }
    until(
        "the file has all and all but the newest segment is sealed",
        async || {
            let log = &daemon.status()["log"];
            log["unsealed"] == 1 && log["segments"].as_u64() >= Some(3) && daemon.sink("file")["cursor"] == 60
        },
    )
    .await;
    daemon.stop().await;
    daemon
}

/// A daemon that is not running on a copy of everything.
fn copy_of(original: &Daemon) -> Daemon {
    let daemon = Daemon::new(CONFIG);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([original.data(), daemon.dir.path()])
        .status();
    assert!(copied.unwrap().success());
    daemon
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

/// Turns one byte of a file over, at so many hundredths of it.
fn flip(path: &Path, hundredths: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = (bytes.len() - 1) * hundredths / 100;
    bytes[at] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// The Seqs that can be read, and those named as gone; together they must be all.
fn readable_and_lost(daemon: &Daemon) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let exported = daemon.exported();
    let readable: BTreeSet<u64> = exported.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    for event in &exported {
        let seq = event["seq"].as_u64().unwrap();
        if seq <= 60 {
            assert_eq!(event["body"].as_str(), Some(large(seq).as_str()), "I5: event {seq}");
        }
    }
    let status = daemon.status();
    let gaps = status["log"]["gaps"].as_array().unwrap().clone();
    let lost = gaps
        .iter()
        .flat_map(|gap| gap["from"].as_u64().unwrap()..=gap["to"].as_u64().unwrap())
        .collect();
    (readable, lost)
}

/// A mishap, what may be lost to it, and how it comes about.
type Case<'a> = (&'a str, Range<u64>, Box<dyn Fn(&Path) + 'a>);

fn case<'a>(name: &'a str, may_lose: &Range<u64>, mishap: impl Fn(&Path) + 'a) -> Case<'a> {
    (name, may_lose.clone(), Box::new(mishap))
}

/// Starts on what was damaged: it starts by itself, everything but `may_lose` can be read, what is gone is named, nothing is
/// stored twice, and events go on being stored and delivered.
async fn survives(name: &str, daemon: &mut Daemon, may_lose: Range<u64>) {
    daemon.run().await;
    let (readable, lost) = readable_and_lost(daemon);
    let all: BTreeSet<u64> = readable.union(&lost).copied().filter(|seq| *seq <= 60).collect();
    assert_eq!(all, (1..=60).collect(), "{name}: every event is there or named");
    assert!(readable.is_disjoint(&lost), "{name}");
    assert!(
        lost.iter().filter(|seq| **seq <= 60).all(|seq| may_lose.contains(seq)),
        "{name}: {lost:?} are lost, and only {may_lose:?} may be"
    );
    for id in readable.iter().copied().filter(|seq| *seq <= 60) {
        let (_, answer) = daemon.send(large(id)).await.unwrap();
        assert_eq!(
            (answer["status"].as_str(), answer["seq"].as_u64()),
            (Some("duplicate"), Some(id)),
            "{name}: I2"
        );
    }
    let (status, answer) = daemon.send(large(61)).await.unwrap();
    assert_eq!((status, answer["status"].as_str()), (200, Some("stored")), "{name}");
    assert!(answer["seq"].as_u64() > Some(60), "{name}: no Seq is given out again");
    let file = daemon.path("events.jsonl");
    until("the new event is delivered", async || {
        ids_in(&file).iter().any(|id| id == "ev_61")
    })
    .await;
    daemon.kill();
    daemon.run().await;
    assert_eq!(readable_and_lost(daemon).1, lost, "{name}: damage is found once");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_sealed_segment_costs_what_is_damaged_and_is_named() {
    let original = filled().await;
    let log = original.data().join("log");
    let first = |dir: &PathBuf| -> u64 { dir.file_name().unwrap().to_str().unwrap().parse().unwrap() };
    let segments = names(&log);
    let segment = segments[1].strip_prefix(original.data()).unwrap().to_owned();
    let this_segment = first(&segments[1])..first(&segments[2]);
    let nothing = 0..0;
    let cases: Vec<Case> = vec![
        case("a flipped byte in the database", &this_segment, |dir| {
            flip(&dir.join("sled/db"), 40);
        }),
        case("a truncated database", &this_segment, |dir| {
            truncate(&dir.join("sled/db"));
        }),
        case("a missing database", &this_segment, |dir| {
            std::fs::remove_file(dir.join("sled/db")).unwrap();
        }),
        case("no database directory", &this_segment, |dir| {
            std::fs::remove_dir_all(dir.join("sled")).unwrap();
        }),
        case("a file instead of a database", &this_segment, |dir| {
            std::fs::remove_dir_all(dir.join("sled")).unwrap();
            std::fs::write(dir.join("sled"), b"nonsense").unwrap();
        }),
        case("a snapshot that was never finished", &nothing, |dir| {
            std::fs::write(dir.join("sled/snap.00000000.generating"), b"half").unwrap();
        }),
        case("a flipped byte in the manifest", &nothing, |dir| {
            flip(&dir.join("manifest"), 60);
        }),
        case("a missing manifest", &nothing, |dir| {
            std::fs::remove_file(dir.join("manifest")).unwrap();
        }),
        case("no manifest at all", &this_segment, |dir| {
            flip(&dir.join("manifest"), 0);
            flip(&dir.join("manifest.second"), 50);
        }),
        case("an empty segment", &this_segment, |dir| {
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::create_dir(dir).unwrap();
        }),
        case("a missing segment", &this_segment, |dir| {
            std::fs::remove_dir_all(dir).unwrap();
        }),
    ];
    for (name, may_lose, mishap) in cases {
        let mut daemon = copy_of(&original);
        mishap(&daemon.data().join(&segment));
        survives(name, &mut daemon, may_lose).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_any_other_file_costs_at_most_one_commit() {
    let original = filled().await;
    let newest = names(&original.data().join("log")).pop().unwrap();
    let in_newest = newest.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap()..61;
    let nothing = 0..0;
    let journal = newest.strip_prefix(original.data()).unwrap().join("journal");
    let newest_in = |dir: PathBuf| names(&dir).pop().unwrap();
    let cases: Vec<Case> = vec![
        case("a flipped byte in the journal", &in_newest, |data| {
            flip(&data.join(&journal), 50);
        }),
        case("a journal without its beginning", &in_newest, |data| {
            flip(&data.join(&journal), 0);
        }),
        case("a flipped byte in the state", &nothing, |data| {
            flip(&newest_in(data.join("state")), 50);
        }),
        case("a state without its beginning", &nothing, |data| {
            flip(&newest_in(data.join("state")), 0);
        }),
        case("an empty state", &nothing, |data| {
            std::fs::write(newest_in(data.join("state")), b"").unwrap();
        }),
        case("no state that can be read", &nothing, |data| {
            for file in names(&data.join("state")) {
                flip(&file, 0);
            }
        }),
        case("a flipped byte in a file of keys", &nothing, |data| {
            flip(&names(&data.join("keys"))[0], 50);
        }),
        case("no files of keys", &nothing, |data| {
            std::fs::remove_dir_all(data.join("keys")).unwrap();
        }),
        case("no list of gaps", &nothing, |data| {
            std::fs::remove_file(data.join("gaps")).unwrap();
        }),
        case("a flipped bit in the list of gaps", &nothing, |data| {
            flip(&data.join("gaps"), 50);
        }),
        case("a description that is none", &nothing, |data| {
            flip(&data.join("closehook.json"), 0);
        }),
        case("dead letters that are none", &nothing, |data| {
            std::fs::create_dir_all(data.join("dead")).unwrap();
            std::fs::write(data.join("dead/file"), b"nonsense").unwrap();
        }),
    ];
    for (name, may_lose, mishap) in cases {
        let mut daemon = copy_of(&original);
        mishap(daemon.data());
        survives(name, &mut daemon, may_lose).await;
    }
}

/// Puts itself in front of the C library's reading: bytes from `BAD_FROM` on of a file whose path ends with `BAD_FILE` are
/// bad sectors.
const BAD_SECTORS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_bad(int file, off64_t end) {
    const char *bad = getenv("BAD_FILE"), *from = getenv("BAD_FROM");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t len = readlink(link, path, sizeof path);
    ssize_t bad_len = bad ? strlen(bad) : 0;
    return bad && from && len >= bad_len && !memcmp(path + len - bad_len, bad, bad_len) && end > atoll(from);
}

ssize_t pread64(int file, void *buffer, size_t len, off64_t at) {
    ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    if (is_bad(file, at + len)) {
        errno = EIO;
        return -1;
    }
    return real(file, buffer, len, at);
}

ssize_t read(int file, void *buffer, size_t len) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    off64_t at = lseek64(file, 0, SEEK_CUR);
    if (at >= 0 && is_bad(file, at + len)) {
        errno = EIO;
        return -1;
    }
    return real(file, buffer, len);
}
"#;

/// Puts itself in front of the C library's `fdatasync`: where there is a file `ARMED`, that is removed, and the sync of the file whose path
/// ends with `BAD_FILE` fails. What was written since the last one is lost then, as on a disk that has dropped it, and the next one works.
const LOST_SYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static off_t secured;

int fdatasync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    const char *bad = getenv("BAD_FILE"), *armed = getenv("ARMED");
    char link[64], path[4096];
    struct stat found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t len = readlink(link, path, sizeof path), bad_len = strlen(bad);
    if (len < bad_len || memcmp(path + len - bad_len, bad, bad_len) || fstat(file, &found))
        return real(file);
    if (unlink(armed) == 0) {
        int again = open(link, O_WRONLY);
        for (off_t at = secured; at < found.st_size; at++)
            if (pwrite(again, "", 1, at) != 1)
                abort();
        close(again);
        errno = EIO;
        return -1;
    }
    int done = real(file);
    if (done == 0)
        secured = found.st_size;
    return done;
}
"#;

/// A1: after a sync that failed nothing is believed that was written since the last good one, whatever the next one says.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_sync_of_a_sink_s_file_has_lost_is_written_again() {
    let Some((_dir, library)) = preloaded(LOST_SYNC) else {
        return;
    };
    let sink = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n\
        retry = { initial = \"10ms\", max_delay = \"50ms\" }\nbreaker = { probe = \"50ms\" }\n";
    let mut daemon = Daemon::new(sink);
    let (file, armed) = (daemon.path("events.jsonl"), daemon.path("armed"));
    for (name, value) in [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("BAD_FILE", "/events.jsonl"),
        ("ARMED", armed.to_str().unwrap()),
    ] {
        daemon.environment.push((name.to_owned(), value.to_owned()));
    }
    daemon.run().await;
    let mut id = 0;
    for round in 0..3 {
        daemon.store(id + 1..=id + 10).await;
        id += 10;
        let is_whole = || {
            let is_whole = std::fs::read(&file).is_ok_and(|bytes| !bytes.contains(&0));
            is_whole && ids_in(&file).len() as u64 == id
        };
        if round == 0 {
            until("it is written and secured", async || {
                is_whole() && daemon.sink("file")["cursor"] == id
            })
            .await;
        } else {
            until("the sync has failed", async || !armed.exists()).await;
            until("what was lost is written again", async || is_whole()).await;
        }
        if round < 2 {
            std::fs::write(&armed, "").unwrap();
        }
    }
    daemon.stop().await;
    assert!(daemon.stderr().contains("os error 5"), "the disk's error is said");
    let expected: Vec<String> = (1..=id).map(|id| format!("ev_{id}")).collect();
    assert_eq!(ids_in(&file), expected, "each once");
}

fn bad_sectors() -> Option<(tempfile::TempDir, PathBuf)> {
    preloaded(BAD_SECTORS)
}

/// A library that is put in front of the C library's, in a directory of its own; `None` where there is no C compiler.
fn preloaded(code: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("bad.c"), dir.path().join("bad.so"));
    std::fs::write(&source, code).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    let Ok(compiled) = compiler.status() else {
        skipped("a disk that fails needs a C compiler");
        return None;
    };
    assert!(compiled.success());
    Some((dir, library))
}

/// Decision 2: the daemon always starts.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_does_not_give_back_is_set_aside_and_named() {
    let Some((_dir, library)) = bad_sectors() else { return };
    let original = filled().await;
    let newest = names(&original.data().join("log")).pop().unwrap();
    let in_newest = newest.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap()..61;
    let journal = newest.strip_prefix(original.data()).unwrap().join("journal");
    let half = std::fs::metadata(original.data().join(&journal)).unwrap().len() / 2;
    let state = names(&original.data().join("state")).pop().unwrap();
    let state = state.strip_prefix(original.data()).unwrap();
    for (file, from, may_lose) in [
        (journal.as_path(), half, in_newest.clone()),
        (&journal, 0, in_newest),
        (state, 0, 0..0),
        (Path::new("closehook.json"), 0, 0..0),
    ] {
        let name = format!("{} from byte {from} on", file.display());
        let mut daemon = copy_of(&original);
        let path = daemon.data().join(file);
        for (name, value) in [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("BAD_FILE", path.to_str().unwrap()),
            ("BAD_FROM", &from.to_string()),
        ] {
            daemon.environment.push((name.to_owned(), value.to_owned()));
        }
        let before = std::fs::read(&path).ok();
        survives(&name, &mut daemon, may_lose.clone()).await;
        assert!(daemon.stderr().contains("damage"), "{name}");
        if may_lose.is_empty() {
            continue;
        }
        // Whoever can read the disk still has all of it.
        let aside = names(&daemon.data().join("damaged")).remove(0);
        let kept = [aside.join("journal"), aside.join("segment/journal")].map(std::fs::read);
        let kept = kept.into_iter().find_map(Result::ok);
        assert!(
            kept.is_some() && kept == before,
            "{name}: the journal is kept as it was"
        );
    }
}

/// A sink's position that is lost must not be mistaken for a sink that is new: then `start = "now"` would skip what waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_position_repeats_deliveries_and_skips_none() {
    let receiver = Receiver::start(503).await;
    let config = format!(
        "[[sinks]]\nname = \"http\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nbreaker = {{ probe = \"100ms\" }}\n",
        receiver.url
    );
    let mut daemon = Daemon::start(&config).await;
    daemon.store(1..=5).await;
    daemon.stop().await;
    for file in names(&daemon.data().join("state")) {
        let len = std::fs::metadata(&file).unwrap().len();
        std::fs::write(&file, vec![0x55; usize::try_from(len).unwrap()]).unwrap();
    }
    receiver.answer_with(200);
    daemon.run().await;
    until("all have arrived", async || {
        let received = receiver.received.lock().unwrap();
        (1..=5).all(|id| received.iter().any(|(_, text)| *text == body(id)))
    })
    .await;
    assert!(daemon.stderr().contains("the sink's position is lost to damage"));
}

/// The daemon's clock, by libfaketime: what it shows is in a file and can be changed while the daemon runs.
pub struct Clock(PathBuf);

impl Clock {
    /// `None` where libfaketime is not installed.
    pub fn give(daemon: &mut Daemon) -> Option<Clock> {
        let library = std::fs::read_dir("/usr/lib")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .find(|path| path.exists());
        let Some(library) = library else {
            skipped("a clock that jumps needs the package libfaketime");
            return None;
        };
        let clock = Clock(daemon.path("clock"));
        clock.set(0);
        for (name, value) in [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", clock.0.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            // As on a real machine, where only the wall clock can be set.
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            daemon.environment.push((name.to_owned(), value.to_owned()));
        }
        Some(clock)
    }

    /// So many minutes off the true time.
    pub fn set(&self, minutes: i64) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{:+}\n", minutes * 60)).unwrap();
        std::fs::rename(&new, &self.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_holds_no_delivery_up_and_gives_none_up() {
    let receiver = Receiver::start(503).await;
    let config = format!(
        "[server]\nclock_skew = \"3h\"\n\
         [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nrate = \"200/s\"\nstart = \"beginning\"\n\
         rotate = {{ age = \"4h\" }}\n\
         [[sinks]]\nname = \"http\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         retry = {{ initial = \"50ms\", max_delay = \"100ms\", max_age = \"90m\" }}\nbreaker = {{ probe = \"100ms\" }}\n",
        receiver.url
    );
    let mut daemon = Daemon::new(&config);
    let Some(clock) = Clock::give(&mut daemon) else { return };
    daemon.run().await;
    let mut id = 0;
    // There and back while it runs, and an hour either way while it is down: there a jump forwards is as good as a rest.
    for (minutes, restart) in [(120, false), (0, false), (-60, false), (0, true), (-60, true)] {
        receiver.answer_with(503);
        let before = receiver.count();
        daemon.store(id + 1..=id + 20).await;
        id += 20;
        until("they have failed", async || {
            daemon.sink("http")["retrying"].as_u64() > Some(0)
        })
        .await;
        if restart {
            daemon.stop().await;
        }
        clock.set(minutes);
        if restart {
            daemon.run().await;
        }
        daemon.store(id + 1..=id + 20).await;
        id += 20;
        receiver.answer_with(200);
        until("all are delivered", async || {
            receiver.count() >= before + 40
                && daemon.sink("http")["cursor"] == id
                && ids_in(&daemon.path("events.jsonl")).len() as u64 == id
        })
        .await;
        let sink = daemon.sink("http");
        assert_eq!(sink["dead"], 0, "none is given up at {minutes} minutes: {sink}");
    }
    let seqs: Vec<u64> = daemon
        .lines(&["events", "export"])
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=id).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_and_signatures_follow_the_clock_there_and_back() {
    // A segment is complete after a tenth of the retention.
    let mut daemon = Daemon::new("[log]\nretention = \"3h\"");
    let Some(clock) = Clock::give(&mut daemon) else { return };
    daemon.run().await;
    daemon.store(1..=3).await;
    clock.set(60);
    until("the segment is complete by its age, and sealed", async || {
        let log = &daemon.status()["log"];
        log["segments"] == 2 && log["unsealed"] == 1
    })
    .await;
    // Signed an hour ago by now: well within the tolerance.
    daemon.store(4..=6).await;
    clock.set(-60);
    let (status, _) = daemon.send(body(7)).await.unwrap();
    assert_eq!(status, 401, "signed an hour from now: Close is asked to come again");
    assert!(daemon.metric("closehook_refused_total{reason=\"future\"}").await >= 1.0);
    clock.set(0);
    daemon.store(7..=9).await;
    let log = daemon.status()["log"].clone();
    assert_eq!(
        (log["first"].as_u64(), log["last"].as_u64()),
        (Some(1), Some(9)),
        "nothing has expired"
    );
    // By the clock here alone nothing is old.
    clock.set(5 * 60);
    until("it waits for the time", async || {
        daemon.status()["retention"]["waits_for_clock"].is_string()
    })
    .await;
    assert_eq!(daemon.status()["log"]["first"], 1);
    // What closehook has signed itself says what the clock here says.
    daemon.ok(&["trigger", "unsubscribed_email.created"]);
    assert!(daemon.status()["retention"]["waits_for_clock"].is_string());
    assert_eq!(daemon.status()["log"]["first"], 1);
    let signed_at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5);
    let headers = Key::from_hex(None, KEY).unwrap().sign(signed_at, body(10).as_bytes());
    let request = daemon.client.post(&daemon.url).body(body(10));
    let request = request
        .header(TIMESTAMP_HEADER, headers.timestamp)
        .header(HASH_HEADER, headers.hash);
    assert_eq!(request.send().await.unwrap().status(), 200);
    until("it has expired", async || {
        daemon.status()["log"]["first"].as_u64() > Some(3)
    })
    .await;
    daemon.kill();
    daemon.run().await;
    daemon.store(11..=11).await;
    assert_eq!(
        daemon.send(body(1)).await.unwrap().1["status"],
        "duplicate",
        "keys outlive segments"
    );
}
