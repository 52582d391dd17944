//! What must stay in the log, whatever happens around it (faults G1, G11, A7).

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::harness::{Daemon, until};

/// Segments of a few events, and events that are old after a moment.
const BRIEF: &str = "[log]\nsegment_size = \"64 KiB\"\nretention = \"1s\"\n";

/// A receiver that takes a request and says nothing until it is let go; keeps the ids it was sent.
struct Hanging {
    url: String,
    hold: watch::Sender<bool>,
    waiting: watch::Receiver<usize>,
    ids: Arc<Mutex<Vec<String>>>,
}

impl Hanging {
    async fn start() -> Hanging {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (hold, held) = watch::channel(true);
        let (count, waiting) = watch::channel(0);
        let ids: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = ids.clone();
        let answer = move |body: String| async move {
            count.send_modify(|count| *count += 1);
            let mut held = held.clone();
            let _ = held.wait_for(|held| !held).await;
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            kept.lock()
                .unwrap()
                .push(body["event"]["id"].as_str().unwrap().to_owned());
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        Hanging {
            url,
            hold,
            waiting,
            ids,
        }
    }

    /// Somebody waits for its answer.
    async fn is_asked(&self) {
        let mut waiting = self.waiting.clone();
        waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    }

    /// Every event once it answers, each at least once.
    async fn has_all(&self, events: u64) {
        self.hold.send_replace(false);
        let ids = self.ids.clone();
        until("every event has arrived", async || {
            let mut ids = ids.lock().unwrap().clone();
            ids.sort();
            ids.dedup();
            ids.len() as u64 == events
        })
        .await;
    }

    fn sink(&self, more: &str) -> String {
        format!(
            "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
             timeout = \"20s\"\n{more}",
            self.url
        )
    }
}

fn large(id: u64) -> String {
    let noise: String = (0..600)
        .map(|n| format!("{:x}", id.wrapping_mul(7919) * (n + 1)))
        .collect();
    format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","data":"{noise}"}}}}"#)
}

async fn store(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        assert_eq!(daemon.send(large(id)).await.unwrap().0, 200);
    }
}

/// Everything but the newest segment is older than the retention, by the clock that counts.
async fn everything_is_old(daemon: &Daemon, events: u64) {
    until("every event is older than the retention", async || {
        let newest = &daemon.lines(&["events", "list", "--limit", "1"])[0];
        assert_eq!(newest["seq"], events);
        let at: jiff::Timestamp = newest["received_at"].as_str().unwrap().parse().unwrap();
        jiff::Timestamp::now().duration_since(at) > jiff::SignedDuration::from_secs(3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_receiver_hangs_removes_nothing_it_has_not_had() {
    const EVENTS: u64 = 120;
    let receiver = Hanging::start().await;
    let mut daemon = Daemon::start(&[BRIEF, &receiver.sink("concurrency = 1\n")].concat()).await;
    store(&daemon, 1..=EVENTS).await;
    receiver.is_asked().await;
    everything_is_old(&daemon, EVENTS).await;
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["first"], 1);
    receiver.has_all(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_changes_a_sink_removes_nothing_it_has_not_had() {
    const EVENTS: u64 = 120;
    let receiver = Hanging::start().await;
    let daemon = Daemon::start(&[BRIEF, &receiver.sink("concurrency = 1\n")].concat()).await;
    store(&daemon, 1..=EVENTS).await;
    receiver.is_asked().await;
    everything_is_old(&daemon, EVENTS).await;
    daemon.configure(&[BRIEF, &receiver.sink("concurrency = 2\n")].concat());
    assert!(daemon.reload().await);
    assert_eq!(daemon.status()["log"]["first"], 1);
    receiver.has_all(EVENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_without_a_daemon_remove_nothing() {
    const EVENTS: u64 = 60;
    let receiver = Hanging::start().await;
    let file = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";
    let mut daemon = Daemon::start(&[BRIEF, file, &receiver.sink("concurrency = 1\n")].concat()).await;
    store(&daemon, 1..=EVENTS).await;
    everything_is_old(&daemon, EVENTS).await;
    daemon.stop().await;
    daemon.ok(&["replay", "--sink", "file", "--limit", "8", "--rate", "2/s", "--yes"]);
    let listed = daemon.lines(&["events", "list", "--limit", "1000"]);
    assert_eq!(listed.len() as u64, EVENTS);
    daemon.run().await;
    receiver.has_all(EVENTS).await;
}

/// Bytes on disk below a directory, and of what.
fn taken(dir: &std::path::Path) -> (u64, String) {
    let used = |path: &std::path::Path| closehook::retention::used(path).unwrap();
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let parts = entries.filter(|path| path.is_dir()).map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        format!("{name} {}", used(&path))
    });
    let parts: Vec<String> = parts.collect();
    (used(dir), parts.join(", "))
}

/// A flood against a small limit, with a receiver that is gone: every event that was answered is there or a dead letter, and the
/// whole data directory keeps to the limit all the while.
#[tokio::test(flavor = "multi_thread")]
async fn the_size_limit_holds_under_a_flood_and_what_it_costs_is_named_for_each_sink() {
    const LIMIT: u64 = 24 << 20;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", nobody.local_addr().unwrap());
    drop(nobody);
    let sink = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\n\
         dead_max = \"1 MiB\"\n"
    );
    let daemon = Daemon::start(&format!("[log]\nmax_size = \"{} MiB\"\n{sink}", LIMIT >> 20)).await;
    let mut most = (0, String::new());
    let mut id = 0;
    let mut refused = 0;
    until("much more was sent than there is room for", async || {
        let bodies: Vec<String> = (0..200).map(|n| incompressible(id + n)).collect();
        let sent = futures::future::join_all(bodies.iter().map(|body| daemon.send(body))).await;
        for answer in sent {
            match answer.unwrap().0 {
                200 => id += 1,
                503 => refused += 1,
                other => panic!("answered {other}"),
            }
        }
        let now = taken(daemon.data());
        if now > most {
            most = now;
        }
        id >= 6_000
    })
    .await;
    let (bytes, parts) = most;
    // What is being sealed is there twice for a moment.
    assert!(
        bytes <= LIMIT + LIMIT / 8,
        "{bytes} bytes of {LIMIT} ({parts}), {refused} refused"
    );
    until("the oldest events are dead letters, and gone", async || {
        daemon.sink("crm")["buried"].as_u64() > Some(0) && daemon.status()["log"]["first"].as_u64() > Some(1)
    })
    .await;
    let status = daemon.status();
    let (first, last) = (
        status["log"]["first"].as_u64().unwrap(),
        status["log"]["last"].as_u64().unwrap(),
    );
    let sink = daemon.sink("crm");
    assert_eq!(sink["lost"], 0, "{sink}");
    assert!(sink["buried"].as_u64().unwrap() + 1 >= first && last >= first, "{sink}");
    let said = daemon.ok(&["sinks", "list"]);
    assert!(
        said.contains("became dead letters because the log reached its size limit"),
        "{said}"
    );
    assert!(said.contains("waits"), "{said}");
    let screen = String::from_utf8(daemon.run_command(&["status"]).stdout).unwrap();
    assert!(screen.contains("at most 24 MiB"), "{screen}");
}

/// G11: known keys, positions and what was set aside never alone cost events, and it is said where they leave them too little.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_what_is_no_event_takes_up_is_said_by_check_and_at_the_start() {
    const SAYS: &str = "the events themselves keep 1 MiB all the same";
    let mut daemon = Daemon::start("").await;
    store(&daemon, 1..=5).await;
    daemon.stop().await;
    let aside = daemon.data().join("damaged");
    std::fs::create_dir(&aside).unwrap();
    std::fs::write(aside.join("keys"), vec![7; 7 << 19]).unwrap();
    let check = |daemon: &Daemon| {
        let output = daemon.run_command(&["check"]);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    daemon.configure("[log]\nmax_size = \"40 MiB\"\n");
    assert!(!check(&daemon).contains("all the same"), "there is room enough");
    daemon.configure("[log]\nmax_size = \"4 MiB\"\nsegment_size = \"64 KiB\"\n");
    let said = check(&daemon);
    assert!(said.contains(SAYS) && said.contains("Raise log.max_size"), "{said}");
    daemon.run().await;
    until("the start says so as well", async || daemon.stderr().contains(SAYS)).await;
    assert_eq!(daemon.status()["log"]["first"], 1);
    store(&daemon, 6..=9).await;
    assert_eq!(daemon.lines(&["events", "list"]).len(), 9);
}

/// An event of some 4 KB that no compression makes much smaller.
fn incompressible(id: u64) -> String {
    let mut state = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut noise = String::new();
    while noise.len() < 8000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.push_str(&format!("{state:016x}"));
    }
    format!(r#"{{"event":{{"id":"ev_{id}","object_type":"lead","action":"updated","data":"{noise}"}}}}"#)
}
