//! The tests of deliveries, the log and Close's side once more, with the log in JetStream.
//!
//! With `CLOSEHOOK_TEST_ENGINE=jetstream` every daemon of the harness keeps its log in a stream of its own, on one server that all tests of
//! the process share ([`stream_for`]). In CI a chosen part is run so ([`CHOSEN`]); `CLOSEHOOK_TEST_SECOND=all` has all of it run that makes
//! sense, which is every test of [`ALL`] but for [`EXCEPT`].

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::skip::skipped;

/// What says that daemons keep their logs in JetStream.
const SWITCH: &str = "CLOSEHOOK_TEST_ENGINE";

/// Longest that either part may take.
const PATIENCE: Duration = Duration::from_secs(900);
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(3600);

/// Modules whose tests hold for every engine.
const ALL: [&str; 6] = ["delivery::", "log::", "close", "asks::", "state::", "status::"];

/// In CI: one or two of each promise.
const CHOSEN: [&str; 14] = [
    "delivery::a_dead_sink_does_not_delay_a_live_one",
    "delivery::a_refusal_is_a_dead_letter_and_an_expired_token_is_not_a_day_of_them",
    "delivery::the_body_is_forwarded_byte_for_byte_with_both_signatures",
    "delivery::order_holds_back_what_it_says",
    "delivery::positions_survive_pause_restart_and_reload",
    "delivery::rules_decide_and_the_rules_of_now_judge_a_backlog",
    "delivery::programs_get_events_and_their_exit_status_counts",
    "delivery::what_is_erased_is_not_delivered_any_more_and_leaves_no_letter",
    "delivery::a_replay_to_a_paused_sink_says_so_and_goes_on_when_it_is_resumed",
    "log::what_is_exported_can_be_imported_byte_for_byte",
    "log::bodies_that_are_no_text_are_exported_and_imported_byte_for_byte",
    "log::tail_shows_new_events_and_survives_a_restart",
    "close_rotation::",
    "close_backfill::",
];

/// What is only so where this machine keeps the log, and why.
const EXCEPT: [(&str, &str); 11] = [
    (
        "log::a_torn_tail_is_cut_off_and_nothing_is_lost",
        "damages the journal's file",
    ),
    ("log::damage_is_named_counted_and_passed", "damages a segment's file"),
    (
        "log::segments_are_sealed_and_expire",
        "there are no segments, and nothing leaves within 31 days",
    ),
    (
        "close_month::",
        "nothing leaves within 31 days (decision 34): its log has to shrink",
    ),
    (
        "close_histories::",
        "puts damage into the log's files, and kills between their writes",
    ),
    ("close_kept::", "reads the data directory's own files"),
    (
        "close_backfill::what_damage_takes_from_the_log_is_fetched_again",
        "damages a segment's file",
    ),
    (
        "close_backfill::subscribing_and_backfilling_need_no_daemon_that_ran_before",
        NEEDS_A_NODE,
    ),
    (
        "close_backfill::without_a_daemon_a_backfill_is_interrupted_and_resumed",
        NEEDS_A_NODE,
    ),
    (
        "delivery::a_replay_sends_again_counts_first_and_can_be_resumed",
        NEEDS_A_NODE,
    ),
    (
        "log::erased_data_is_gone",
        "what is erased has no place in lists, but is known by its id; and the other one puts a file into the log's directory",
    ),
];

/// Why what commands do on one machine without a daemon is not so where several share the log: they would be one more that does what a lease
/// gives to one.
const NEEDS_A_NODE: &str = "without a node that runs nobody carries out what a command asks for";

fn server_binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/nats/bin/nats-server")
}

/// The server that all daemons of this process share. It ends when the process does, for its standard input is closed then.
struct Shared {
    _dir: tempfile::TempDir,
    _child: Mutex<Child>,
    url: String,
    monitor: String,
}

fn shared() -> Option<&'static Shared> {
    static SHARED: OnceLock<Option<Shared>> = OnceLock::new();
    let start = || {
        if !server_binary().exists() {
            skipped("nats-server is not installed (tests/run.sh does)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let (port, monitor) = (crate::ports::free_port(), crate::ports::free_port());
            let text = format!(
                "server_name: shared\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\nmax_payload: 8MB\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
                dir.path().join("js").display()
            );
            std::fs::write(dir.path().join("nats.conf"), text).unwrap();
            let script = "\"$0\" -c \"$1\" >\"$2\" 2>&1 & server=$!; cat >/dev/null; kill -9 $server";
            let child = Command::new("sh")
                .args(["-c", script])
                .args([server_binary(), dir.path().join("nats.conf"), dir.path().join("log")])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let shared = Shared {
                url: format!("nats://127.0.0.1:{port}"),
                monitor: format!("http://127.0.0.1:{monitor}"),
                _child: Mutex::new(child),
                _dir: tempfile::tempdir().unwrap(),
            };
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(10) {
                if std::net::TcpStream::connect(("127.0.0.1", monitor)).is_ok() {
                    return Some(Shared { _dir: dir, ..shared });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the shared server does not start");
    };
    SHARED.get_or_init(start).as_ref()
}

/// What the environment of a daemon and of its commands says, so that its log is in a new stream; nothing where this machine keeps it.
pub fn stream_for(dir: &Path) -> Vec<(String, String)> {
    if std::env::var(SWITCH).as_deref() != Ok("jetstream") {
        return Vec::new();
    }
    let Some(shared) = shared() else { return Vec::new() };
    let stream = format!("t{:016x}", fastrand::u64(..));
    let environment: Vec<(String, String)> = [
        ("CLOSEHOOK__LOG__ENGINE", "jetstream"),
        ("CLOSEHOOK__LOG__JETSTREAM__SERVERS", &shared.url),
        ("CLOSEHOOK__LOG__JETSTREAM__MONITOR", &shared.monitor),
        ("CLOSEHOOK__LOG__JETSTREAM__REPLICAS", "1"),
        ("CLOSEHOOK__LOG__JETSTREAM__STREAM", &stream),
        ("CLOSEHOOK__LOG__JETSTREAM__SECRET", "0123456789abcdef0123456789abcdef"),
        ("CLOSEHOOK__NODE__NAME", "n0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    // What the streams are depends on nothing else in the configuration.
    let empty = dir.join("create.toml");
    std::fs::write(&empty, "").unwrap();
    let made = Command::new(crate::harness::binary())
        .args(["check", "--create", "-c"])
        .arg(&empty)
        .env("CLOSEHOOK__LOG__DIR", dir.join("data"))
        .envs(environment.iter().cloned())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    environment
}

/// A configuration with what sinks need that write to one machine.
pub fn with_nodes(config: &str) -> String {
    if std::env::var(SWITCH).as_deref() != Ok("jetstream") {
        return config.to_owned();
    }
    let mut text = config.to_owned();
    for kind in ["file", "stdout", "exec", "sqlite"] {
        let line = format!("type = \"{kind}\"\n");
        text = text.replace(&line, &format!("{line}node = \"n0\"\n"));
    }
    text
}

#[test]
fn the_promises_hold_with_the_log_in_jetstream_as_well() {
    if !server_binary().exists() {
        skipped("nats-server is not installed (tests/run.sh does)");
        return;
    }
    if std::env::var(SWITCH).is_ok() {
        return;
    }
    let is_all = std::env::var("CLOSEHOOK_TEST_SECOND").as_deref() == Ok("all");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(if is_all { &ALL[..] } else { &CHOSEN[..] });
    for (test, _) in EXCEPT {
        command.args(["--skip", test]);
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = command
        .args(["--test-threads", "3"])
        .env(SWITCH, "jetstream")
        .stdout(log.reopen().unwrap())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let (began, patience) = (Instant::now(), if is_all { PATIENCE_FOR_ALL } else { PATIENCE });
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break Some(ended);
        }
        if began.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let mut said = String::new();
    log.reopen().unwrap().read_to_string(&mut said).unwrap();
    assert!(
        ended.is_some_and(|ended| ended.success()),
        "after {:?}: {said}",
        began.elapsed()
    );
    let passed = said.matches(" ... ok").count();
    assert!(
        passed >= if is_all { ALL.len() } else { CHOSEN.len() },
        "too few ran: {said}"
    );
}
