//! Sinks that hang, die or lie, and what of it their users see.

use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Daemon, Receiver, body, ids_in, until};

const FILE: &str =
    "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/out/events.jsonl\"\nstart = \"beginning\"\n";

/// Stores many events at once, each with so many bytes of padding that does not compress well.
fn import(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>, pad: usize) {
    let random = letters(pad * 3 + 1);
    write_import(daemon, ids, |id| {
        let at = (id as usize * 7919) % (pad * 2 + 1);
        random[at..at + pad].to_owned()
    });
    let output = import_written(daemon);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// So many letters and digits that no compression finds anything in.
fn letters(len: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(len).collect()
}

/// Writes events to be imported, with what makes each of them so long.
fn write_import(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>, pad: impl Fn(u64) -> String) {
    let mut text = String::new();
    for id in ids {
        let pad = pad(id);
        let event = format!(
            r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"updated","lead_id":"lead_{}","pad":"{pad}"}}}}"#,
            id % 40
        );
        let line = serde_json::json!({ "received_at": "2024-02-15T12:48:23Z", "source": "webhook", "body": event });
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(daemon.path("import.jsonl"), text).unwrap();
}

fn import_written(daemon: &Daemon) -> std::process::Output {
    let path = daemon.path("import.jsonl");
    daemon.run_command(&["log", "import", "--dispatch", path.to_str().unwrap()])
}

/// The ids in all of a file sink's files, oldest file first.
fn ids_in_all(dir: &Path) -> Vec<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // Rotated ones are named by their time, and sort before the current one ("-" before ".").
    files.sort();
    files.iter().flat_map(|file| ids_in(file)).collect()
}

/// What is wrong with ids that should be those of the first so many events, each once.
fn faults(ids: &[String], count: u64) -> Vec<String> {
    let mut times: std::collections::HashMap<&str, u32> = std::collections::HashMap::new();
    for id in ids {
        *times.entry(id).or_default() += 1;
    }
    let expected = (1..=count).map(|id| format!("ev_{id}"));
    let mut faults: Vec<String> = expected.filter(|id| times.get(id.as_str()) != Some(&1)).collect();
    if ids.len() as u64 != count {
        faults.push(format!("{} instead of {count}", ids.len()));
    }
    faults.truncate(20);
    faults
}

/// A2: what is no regular file is a fault of `check`, before anything is lost in it.
#[test]
fn a_path_that_is_no_file_is_a_fault_that_says_what_to_use_instead() {
    let daemon = Daemon::new("");
    assert!(
        Command::new("mkfifo")
            .arg(daemon.path("pipe"))
            .status()
            .unwrap()
            .success()
    );
    for (path, says) in [
        ("/dev/stdout", "type = \"stdout\""),
        ("/dev/fd/1", "type = \"stdout\""),
        ("/dev/null", "type = \"stdout\""),
        ("DIR/pipe", "type = \"stdout\""),
        ("DIR", "is a directory"),
    ] {
        daemon.configure(&FILE.replace("DIR/out/events.jsonl", path));
        let error = daemon.fails(2, &["check"]);
        assert!(error.contains("sinks[0]") && error.contains(says), "{path}: {error}");
    }
}

/// D11, and a probe of what a running daemon has open.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_makes_no_file() {
    let mut daemon = Daemon::new(FILE);
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("can be made"), "{probed}");
    assert!(!daemon.path("out").exists());
    daemon.run().await;
    daemon.store(1..=1).await;
    until("it is written", async || {
        ids_in(&daemon.path("out/events.jsonl")).len() == 1
    })
    .await;
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("can be appended to"), "{probed}");
}

/// A9: what the kernel does not take is left out, and holds up nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_too_long_for_a_variable_reaches_the_program_in_the_event() {
    let script = r#"id=$(sed 's/.*"id": "\([^"]*\)".*/\1/' | head -c 200000 | wc -c); echo "$id ${CLOSEHOOK_EVENT_ID:-none}" >> DIR/seen"#;
    let config = format!(
        "[[sinks]]\nname = \"run\"\ntype = \"exec\"\norder = \"strict\"\nstart = \"beginning\"\n\
         command = [\"/bin/sh\", \"-c\", '''{script}''']\n"
    );
    let daemon = Daemon::start(&config).await;
    let long = "x".repeat(140_000);
    let (status, _) = daemon.send(body(1).replace("ev_1", &long)).await.unwrap();
    assert_eq!(status, 200);
    daemon.store(2..=2).await;
    until("both ran", async || daemon.sink("run")["cursor"] == 2).await;
    let seen = std::fs::read_to_string(daemon.path("seen")).unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines[0].ends_with("none") && lines[1].ends_with("ev_2"), "{seen}");
    let len: usize = lines[0].split(' ').next().unwrap().parse().unwrap();
    assert!(len >= long.len(), "{seen}");
    assert_eq!(daemon.sink("run")["dead"], 0);
}

/// G3: a busy file sink saves its cursor, honours the size of its files, and repeats nothing after kill -9.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_sink_that_catches_up_is_checkpointed_rotated_and_exact() {
    // A hundred megabytes.
    const EVENTS: u64 = 26_000;
    const LEN: usize = 4000;
    let mut daemon = Daemon::start("").await;
    for from in (1..=EVENTS).step_by(4000) {
        import(&daemon, from..=(from + 3999).min(EVENTS), LEN);
    }
    daemon.stop().await;
    daemon.configure(&format!("{FILE}rotate = {{ size = \"4 MiB\", compress = false }}\n"));
    daemon.spawn();
    until("it has begun", async || daemon.path("out").exists()).await;
    until("some is written", async || {
        ids_in_all(&daemon.path("out")).len() > 20_000
    })
    .await;
    daemon.kill();
    let written = ids_in_all(&daemon.path("out")).len() as u64;
    let cursor = daemon.sink("file")["cursor"].as_u64().unwrap();
    assert!(cursor > 0 && cursor <= written, "{cursor} of {written} are saved");
    // With 16 MiB of bodies a checkpoint is due, and nothing more is written before it; a batch of 4 MiB may go over that, and
    // what was written when the kill came is counted after it.
    let most = ((16 << 20) + 2 * (4 << 20)) / LEN as u64;
    assert!(written - cursor < most, "{cursor} of {written} are saved");
    daemon.run().await;
    until("all is written", async || daemon.sink("file")["cursor"] == EVENTS).await;
    // The last rotation may be under way until then.
    daemon.stop().await;
    assert_eq!(faults(&ids_in_all(&daemon.path("out")), EVENTS), [""; 0]);
    for entry in std::fs::read_dir(daemon.path("out")).unwrap() {
        let len = entry.unwrap().metadata().unwrap().len();
        assert!(len < 18 << 20, "a file of {len} bytes");
    }
}

/// G4: kill -9 while letters are tried again loses no letter and no line.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_dead_retry_loses_no_letter_and_no_line() {
    const EVENTS: u64 = 2000;
    let retry = "retry = { initial = \"10ms\", max_delay = \"20ms\", max_age = \"200ms\" }\n";
    let mut daemon = Daemon::new(&[FILE, retry].concat());
    // Something that is no directory stands in the way.
    std::fs::write(daemon.path("out"), "").unwrap();
    daemon.run().await;
    import(&daemon, 1..=EVENTS, 5000);
    until("all are dead", async || daemon.sink("file")["dead"] == EVENTS).await;
    assert_eq!(daemon.lines(&["dead", "list", "--limit", "1"]).len(), 1);
    std::fs::remove_file(daemon.path("out")).unwrap();
    let mut command = daemon.command();
    let mut retrying = command
        .args(["dead", "retry", "--all"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("some are written", async || {
        ids_in(&daemon.path("out/events.jsonl")).len() > 200
    })
    .await;
    daemon.kill();
    let _ = retrying.wait().unwrap();
    daemon.run().await;
    let (mut total, mut letters) = (Vec::new(), 0);
    until("every event is a line or a letter", async || {
        total = ids_in(&daemon.path("out/events.jsonl"));
        let dead = daemon.lines(&["dead", "list", "--limit", "100000"]);
        letters = dead.len();
        total.extend(dead.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()));
        total.len() as u64 == EVENTS
    })
    .await;
    assert!(
        daemon
            .ok(&["dead", "retry", "--all"])
            .contains(&format!("{letters} delivered"))
    );
    let delivered = ids_in(&daemon.path("out/events.jsonl"));
    assert_eq!(faults(&delivered, EVENTS), [""; 0]);
    assert_eq!(daemon.sink("file")["dead"], 0);
}

/// A sink on standard output.
const STDOUT: &str = "[[sinks]]\nname = \"out\"\ntype = \"stdout\"\nstart = \"beginning\"\ntimeout = \"500ms\"\n";

/// Starts a daemon whose standard output is a pipe that nobody reads; gives the end that does not.
async fn into_a_pipe(daemon: &mut Daemon) -> std::fs::File {
    let pipe = daemon.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&pipe)
        .unwrap();
    let plain = daemon.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"pipe=$1; shift; exec "$@" > "$pipe""#, "sh"])
        .arg(&pipe);
    command.arg(plain.get_program()).args(plain.get_args()).arg("serve");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    daemon.launch(command).await;
    reader
}

/// G5: a pipe that nobody reads holds up neither orders nor the end.
#[tokio::test(flavor = "multi_thread")]
async fn standard_output_that_nobody_reads_holds_up_nothing() {
    let mut daemon = Daemon::new(&[FILE, STDOUT].concat());
    let _reader = into_a_pipe(&mut daemon).await;
    import(&daemon, 1..=300, 2000);
    until("it says why it waits", async || {
        let sink = daemon.sink("out");
        sink["waits_for"]
            .as_str()
            .is_some_and(|why| why.contains("nobody reads"))
    })
    .await;
    until("the other sink has everything", async || {
        ids_in(&daemon.path("out/events.jsonl")).len() == 300
    })
    .await;
    assert!(daemon.metric("closehook_sink_waiting{sink=\"out\"}").await > 0.0);
    daemon.ok(&["sinks", "pause", "out"]);
    daemon.ok(&["sinks", "resume", "out"]);
    daemon.configure(&[FILE, &STDOUT.replace("500ms", "400ms")].concat());
    assert!(daemon.reload().await);
    daemon.stop().await;
}

/// G5: nor, at the size limit, what comes in: what the sink has not had becomes dead letters, and the log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn standard_output_that_nobody_reads_holds_up_nothing_at_the_size_limit() {
    const LIMIT: &str = "[log]\nsegment_size = \"64 KiB\"\nmax_size = \"4 MiB\"\n";
    let mut daemon = Daemon::new(&[LIMIT, STDOUT].concat());
    let _reader = into_a_pipe(&mut daemon).await;
    let mut id = 0;
    let mut stored_since = 0;
    until("old events go, and new ones are stored all the same", async || {
        let bodies: Vec<String> = (id..id + 50)
            .map(|id| body(id).replace("\\u00e9", &letters(8000)))
            .collect();
        id += 50;
        let sent = futures::future::join_all(bodies.iter().map(|body| daemon.send(body))).await;
        let statuses: Vec<u16> = sent.into_iter().map(|answer| answer.unwrap().0).collect();
        // One that is refused for a moment comes again.
        assert!(
            statuses.iter().all(|status| [200, 503].contains(status)),
            "{statuses:?}"
        );
        let is_at_the_limit = daemon.status()["log"]["first"].as_u64() > Some(1);
        if is_at_the_limit {
            stored_since += statuses.iter().filter(|status| **status == 200).count();
        }
        stored_since > 500 && daemon.sink("out")["buried"].as_u64() > Some(0)
    })
    .await;
    let sink = daemon.sink("out");
    assert_eq!(sink["lost"], 0, "{sink}");
    assert!(
        sink["waits_for"]
            .as_str()
            .is_some_and(|why| why.contains("nobody reads")),
        "{sink}"
    );
    daemon.ok(&["sinks", "pause", "out"]);
    daemon.ok(&["sinks", "resume", "out"]);
    daemon.stop().await;
}

/// G9: a dead sink behind a sparse rule costs what it holds, not the blocks that lies in.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sink_behind_a_sparse_rule_stays_small() {
    let daemon = Daemon::start("").await;
    for from in (1..=24_000).step_by(4000) {
        import(&daemon, from..=from + 3999, 6000);
    }
    let mut daemon = daemon;
    daemon.stop().await;
    let rule = "[[rules]]\nname = \"few\"\nsinks = [\"dead\"]\n\
        filter = { type = \"field_accessor\", field = \"lead_id\", filter = { type = \"equals\", value = \"lead_0\" } }\n";
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let sink = format!(
        "[[sinks]]\nname = \"dead\"\ntype = \"http\"\nurl = \"http://{closed}/\"\nallow_private = true\nstart = \"beginning\"\n"
    );
    daemon.configure(&[sink.as_str(), rule].concat());
    daemon.run().await;
    until("everything is read", async || {
        // What is open counts as lag; nothing else does.
        daemon.sink("dead")["lag_events"] == 600
    })
    .await;
    let held = daemon.anonymous();
    assert!(held < 90 << 20, "{} MiB", held >> 20);
}

/// G16: what was true of a removed sink is not true for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_of_a_removed_sink_go() {
    let receiver = Receiver::start(403).await;
    let dead = format!(
        "[[sinks]]\nname = \"dead\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\n",
        receiver.url
    );
    let daemon = Daemon::start(&[FILE, &dead].concat()).await;
    daemon.store(1..=1).await;
    let open = "closehook_sink_breaker_open{sink=\"dead\"}";
    until("it is seen", async || daemon.metric(open).await > 0.0).await;
    daemon.configure(FILE);
    assert!(daemon.reload().await);
    let metrics = daemon.metrics().await;
    assert!(!metrics.contains(open), "{metrics}");
    assert!(metrics.contains("closehook_sink_breaker_open{sink=\"file\"} 0"));
    assert!(
        metrics.contains("closehook_sink_dead_total{sink=\"dead\"}"),
        "what was counted stays"
    );
}

/// What the log had to drop before a replay came to it was not sent, and the replay does not say that it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_names_what_was_gone_before_it_could_be_sent() {
    let receiver = Receiver::start(200).await;
    let config = format!(
        "[log]\nsegment_size = \"64 KiB\"\nmax_size = \"4 MiB\"\n[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\n\
         allow_private = true\nstart = \"beginning\"\n",
        receiver.url
    );
    let daemon = Daemon::start(&config).await;
    import(&daemon, 1..=300, 2000);
    until("it has everything", async || daemon.sink("crm")["cursor"] == 300).await;
    let mut command = daemon.command();
    let child = command
        .args(["replay", "--sink", "crm", "--yes", "--rate", "10/s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let replay = || daemon.lines(&["replay", "list"]).last().cloned().unwrap_or_default();
    until("it runs", async || replay()["delivered"].as_u64() > Some(0)).await;
    let mut id = 300;
    until("the log drops what it has not sent yet", async || {
        // So much that the rest of it is beyond what fits, however well the log compresses.
        if id < 6300 {
            write_import(&daemon, id + 1..=id + 500, |_| letters(2000));
            // A log that is full takes the rest once it has dropped some.
            if import_written(&daemon).status.success() {
                id += 500;
            }
        }
        replay()["state"] == "done"
    })
    .await;
    let (sent, lost) = (
        replay()["delivered"].as_u64().unwrap(),
        replay()["lost"].as_u64().unwrap(),
    );
    assert!(sent > 0 && lost > 0 && sent + lost == 300, "{}", replay());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&format!("done: {sent} delivered, 0 dead, {lost} lost")),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("gone before they could be sent"));
    let listed = daemon.ok(&["replay", "list"]);
    let (head, row) = listed.split_once('\n').unwrap();
    assert!(head.trim_end().ends_with("LOST"), "{listed}");
    assert!(row.trim_end().ends_with(&lost.to_string()), "{listed}");
}

/// "Like events that have just arrived", also where no daemon has run yet and the sink begins "now".
#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_to_be_dispatched_before_a_daemon_ever_ran_is_delivered() {
    let mut daemon = Daemon::new(&FILE.replace("start = \"beginning\"\n", ""));
    import(&daemon, 1..=600, 10);
    daemon.run().await;
    let dir = daemon.path("out");
    until("all are delivered", async || {
        dir.is_dir() && ids_in_all(&dir).len() >= 600
    })
    .await;
    assert_eq!(faults(&ids_in_all(&dir), 600), Vec::<String>::new());
}
