//! Commands that work without a daemon while one starts: they give way, and what they were told to do is done all the same.

use std::io::Write as _;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Daemon, Receiver, ids_in, lines_in, until};

const FILE: &str = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

/// A daemon that wants the data directory asks for it again and again.
struct Asking {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Asking {
    fn begin(daemon: &Daemon) -> Asking {
        let (over, request) = (Arc::new(AtomicBool::new(false)), daemon.data().join("give-way"));
        let is_over = over.clone();
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                std::fs::write(&request, "").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        Asking {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn begin(daemon: &Daemon, arguments: &[&str]) -> Child {
    let mut command = daemon.command();
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A command that a daemon interrupts which starts right then; gives what it said.
async fn interrupted(daemon: &mut Daemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    let asking = Asking::begin(daemon);
    let child = begin(daemon, arguments);
    // Who has the directory notes itself there.
    let (lock, pid) = (daemon.data().join("lock"), child.id().to_string());
    until("it has the directory", async || {
        std::fs::read_to_string(&lock).is_ok_and(|note| note.trim() == pid)
    })
    .await;
    daemon.run().await;
    drop(asking);
    said(&child.wait_with_output().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_a_starting_daemon_interrupts_is_carried_out() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.store(1..=5).await;
    daemon.stop().await;
    let (code, out, error) = interrupted(&mut daemon, &["log", "erase", "--id", "ev_3", "--yes", "--json"]).await;
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("\"erased\":[3]"), "{out}{error}");
    let shown = daemon.lines(&["events", "list"]);
    assert_eq!(shown[2]["kind"], "erased", "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_dropped_and_tried_although_a_daemon_interrupts_that() {
    let receiver = Receiver::start(422).await;
    let http = format!(
        "[[sinks]]\nname = \"http\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n",
        receiver.url
    );
    let mut daemon = Daemon::start(&http).await;
    daemon.store(1..=3).await;
    until("all are dead", async || daemon.sink("http")["dead"] == 3).await;
    daemon.stop().await;
    let (code, out, error) = interrupted(&mut daemon, &["dead", "drop", "--id", "ev_2", "--yes", "--json"]).await;
    assert_eq!((code, out.trim()), (Some(0), "{\"dropped\":1}"), "{error}");
    daemon.stop().await;
    receiver.answer_with(200);
    let (code, out, error) = interrupted(&mut daemon, &["dead", "retry", "--all", "--json"]).await;
    assert_eq!(code, Some(0), "{out}{error}");
    assert_eq!(daemon.sink("http")["dead"], 0);
    let mut ids: Vec<String> = receiver.bodies();
    ids.retain(|body| body.contains("ev_2"));
    assert_eq!((receiver.count(), ids.len()), (2, 0));
}

/// Lines of an export.
fn lines(ids: std::ops::RangeInclusive<u64>) -> String {
    let line = |id: u64| {
        let event = format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated"}}}}"#);
        let line = serde_json::json!({ "received_at": "2024-02-15T12:48:23Z", "source": "webhook", "body": event });
        format!("{line}\n")
    };
    ids.map(line).collect()
}

/// The daemon does not wait for whoever feeds the import either.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_at_a_daemon_that_starts_meanwhile() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.stop().await;
    let mut child = begin(&daemon, &["log", "import", "-", "--dispatch"]);
    let mut input = child.stdin.take().unwrap();
    // A batch is taken in, and more is waited for.
    input.write_all(lines(1..=256).as_bytes()).unwrap();
    input.flush().unwrap();
    until("the first are stored", async || daemon.status()["log"]["events"] == 256).await;
    daemon.run().await;
    input.write_all(lines(257..=300).as_bytes()).unwrap();
    drop(input);
    let (code, out, error) = said(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(
        out.contains("300 events imported, 0 were known already"),
        "{out}{error}"
    );
    assert!(error.contains("a daemon is starting"), "{error}");
    until("all are delivered", async || {
        lines_in(&daemon.path("events.jsonl")).len() == 300
    })
    .await;
    assert_eq!(ids_in(&daemon.path("events.jsonl"))[299], "ev_300");
}

/// What somebody asked for who has gone since stops nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_give_way_that_was_left_behind_stops_no_command() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.store(1..=2).await;
    daemon.stop().await;
    std::fs::write(daemon.data().join("give-way"), "").unwrap();
    let out = daemon.ok(&["log", "erase", "--id", "ev_2", "--yes"]);
    assert!(out.contains("1 events erased"), "{out}");
}

/// One sink that takes none of its dead letters now keeps those of no other from being tried.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_all_sinks_are_tried_but_for_those_of_one_that_takes_none() {
    let receiver = Receiver::start(422).await;
    let sink = |name: &str| {
        format!(
            "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n",
            receiver.url
        )
    };
    let all = ["a", "b", "c"].map(sink).concat();
    let mut daemon = Daemon::start(&all).await;
    daemon.store(1..=2).await;
    for name in ["a", "b", "c"] {
        until("all are dead", async || daemon.sink(name)["dead"] == 2).await;
    }
    daemon.ok(&["sinks", "pause", "b"]);
    daemon.configure(&["a", "b"].map(sink).concat());
    assert!(daemon.reload().await);
    let check = |daemon: &Daemon, id: &str| {
        let output = daemon.run_command(&["dead", "retry", "--id", id, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counts = ["total", "delivered", "failed"].map(|count| told[count].as_u64().unwrap());
        assert_eq!(counts, [3, 1, 2], "{told}");
        let refused = told["refused"].as_array().unwrap();
        let why = |at: usize| refused[at]["reason"].as_str().unwrap().to_owned();
        assert_eq!((&refused[0]["sink"], &refused[0]["letters"]), (&"b".into(), &1.into()));
        assert_eq!((&refused[1]["sink"], &refused[1]["letters"]), (&"c".into(), &1.into()));
        assert!(
            why(0).contains("is paused") && why(1).contains("not configured"),
            "{told}"
        );
    };
    receiver.answer_with(200);
    check(&daemon, "ev_1");
    assert_eq!(daemon.sink("a")["dead"], 1);
    daemon.stop().await;
    // The same without a daemon, in words.
    let output = daemon.run_command(&["dead", "retry", "--all"]);
    let (code, out, error) = said(&output);
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(out.contains("1 tried: 1 delivered, 0 still dead"), "{out}{error}");
    assert!(out.contains("2 not tried: \"b\" is paused"), "{out}{error}");
    // Where all are refused that is all there is to say.
    let error = daemon.fails(1, &["dead", "retry", "--all"]);
    assert!(
        error.contains("is paused") && error.contains("not configured"),
        "{error}"
    );
    assert_eq!(receiver.count(), 2);
}
