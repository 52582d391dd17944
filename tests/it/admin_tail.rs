//! `/api/v1/tail`: what comes, as it comes; without a hole, within limits, and at no price where nobody looks.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::admin_api::event;
use crate::admin_door::{ACT, READ, TOKENS, cookie};
use crate::harness::{Daemon, until};

/// One server-sent event.
#[derive(Debug, Clone)]
pub struct Said {
    pub name: String,
    pub id: u64,
    pub data: Value,
}

/// Reads a stream event by event.
pub struct Reader {
    answer: Response,
    text: String,
}

impl Reader {
    pub async fn begin(daemon: &Daemon, query: &str, last: Option<u64>) -> Reader {
        let mut request = daemon
            .admin_request(Method::GET, &format!("/api/v1/tail{query}"))
            .bearer_auth(READ);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let text = String::new();
        Reader { answer, text }
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some((one, rest)) = self.text.split_once("\n\n") {
                let (one, rest) = (one.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    one.lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                        .map(str::to_owned)
                };
                // What is no event says that it is there.
                let Some(name) = field("event") else { continue };
                return Some(Said {
                    name,
                    id: field("id").and_then(|id| id.parse().ok()).unwrap_or_default(),
                    data: serde_json::from_str(&field("data").unwrap()).unwrap(),
                });
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.answer.chunk())
                .await
                .unwrap();
            self.text.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// The Seqs of the next so many events.
    pub async fn seqs(&mut self, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let said = self.next().await.unwrap();
            if said.name == "event" {
                assert_eq!(said.data["seq"], said.id);
                seqs.push(said.id);
            }
        }
        seqs
    }
}

async fn store(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>, kind: &str) {
    for id in ids {
        let (status, _) = daemon.send(event(&format!("ev_{id}"), kind, &json!({}))).await.unwrap();
        assert_eq!(status, 200);
    }
}

async fn nobody_looks(daemon: &Daemon) {
    until("nobody looks", async || {
        daemon.metric("closehook_admin_streams").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn who_connects_again_goes_on_without_a_hole() {
    let daemon = Daemon::start(TOKENS).await;
    store(&daemon, 1..=3, "note").await;
    let mut reader = Reader::begin(&daemon, "", None).await;
    let begin = reader.next().await.unwrap();
    assert_eq!((begin.name.as_str(), begin.id), ("begin", 3), "from what comes next on");
    store(&daemon, 4..=5, "note").await;
    assert_eq!(reader.seqs(2).await, [4, 5]);
    drop(reader);
    store(&daemon, 6..=9, "note").await;
    // The page's address still says where it once began.
    let mut again = Reader::begin(&daemon, "?after=0", Some(5)).await;
    assert_eq!(again.seqs(4).await, [6, 7, 8, 9]);
    store(&daemon, 10..=10, "note").await;
    assert_eq!(again.seqs(1).await, [10]);
    // A page of events says its head, behind which the tail begins.
    let mut behind = Reader::begin(&daemon, "?after=7", None).await;
    assert_eq!(behind.seqs(3).await, [8, 9, 10]);
    drop((again, behind));
    nobody_looks(&daemon).await;
    // Of a log that was restored to less, nobody waits for what came once.
    let mut ahead = Reader::begin(&daemon, "", Some(1_000_000)).await;
    assert_eq!(ahead.next().await.unwrap().id, 10);
    store(&daemon, 11..=11, "note").await;
    assert_eq!(ahead.seqs(1).await, [11]);
    let bad = daemon
        .admin_request(Method::GET, "/api/v1/tail")
        .bearer_auth(READ)
        .header("last-event-id", "x");
    assert_eq!(bad.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

/// Who was away until events had expired is told which.
#[tokio::test]
async fn what_the_log_keeps_no_more_is_told_to_be_left_out() {
    let daemon = Daemon::start(&format!(
        "{TOKENS}[log]\nsegment_size = \"64 KiB\"\nretention = \"1s\"\n"
    ))
    .await;
    let noise: String = (0..8000_u64)
        .map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let mut id = 0;
    until("the first events have expired", async || {
        id += 1;
        let data = json!({ "noise": format!("{noise}{id}") });
        let (status, _) = daemon.send(event(&format!("ev_{id}"), "note", &data)).await.unwrap();
        assert_eq!(status, 200);
        daemon.status()["log"]["first"].as_u64() > Some(5)
    })
    .await;
    let mut reader = Reader::begin(&daemon, "", Some(1)).await;
    assert_eq!(reader.next().await.unwrap().id, 1, "it begins");
    let left_out = reader.next().await.unwrap();
    assert_eq!((left_out.name.as_str(), &left_out.data["from"]), ("skipped", &json!(2)));
    assert!(left_out.data["to"].as_u64() >= Some(4), "{}", left_out.data);
    assert_eq!(left_out.id, left_out.data["to"].as_u64().unwrap());
}

#[tokio::test]
async fn only_what_is_meant_is_told() {
    let daemon = Daemon::start(TOKENS).await;
    let mut reader = Reader::begin(&daemon, "?type=lead.*", None).await;
    assert_eq!(reader.next().await.unwrap().name, "begin");
    store(&daemon, 1..=5, "note").await;
    store(&daemon, 6..=6, "lead").await;
    assert_eq!(reader.seqs(1).await, [6]);
}

/// So many events are in the log, each of the kind that is said.
fn imported(daemon: &Daemon, events: u64, kind: impl Fn(u64) -> &'static str) {
    let line = |id: u64| {
        let body = event(&format!("ev_{id}"), kind(id), &json!({}));
        json!({ "received_at": "2024-02-15T10:00:00Z", "source": "backfill", "headers": {}, "body": body }).to_string()
            + "\n"
    };
    std::fs::write(daemon.path("events.jsonl"), (1..=events).map(line).collect::<String>()).unwrap();
    let file = daemon.path("events.jsonl");
    daemon.ok(&["log", "import", "--expired", file.to_str().unwrap()]);
    assert_eq!(daemon.status()["log"]["last"], events);
}

/// What is seldom meant is no flood, however far it is behind the newest event; and where nothing is meant, the place moves on.
#[tokio::test]
async fn what_is_seldom_meant_is_told_however_far_behind_it_is() {
    const EVENTS: u64 = 6000;
    let daemon = Daemon::start(TOKENS).await;
    imported(
        &daemon,
        EVENTS,
        |id| if [10, 3000].contains(&id) { "lead" } else { "note" },
    );
    // By its index, and by what has to be read.
    let filter = r#"{"type":"field_accessor","field":"object_type","filter":{"type":"equals","value":"lead"}}"#;
    let by_filter = format!("?after=0&filter={}", closehook::net::percent::encoded(filter));
    for query in ["?after=0&type=lead.*", &by_filter] {
        let mut reader = Reader::begin(&daemon, query, None).await;
        let mut told = Vec::new();
        loop {
            let said = reader.next().await.unwrap();
            match said.name.as_str() {
                "begin" => assert_eq!(said.id, 0),
                "event" => told.push(said.id),
                "looked" if said.id == EVENTS => break,
                "looked" => {}
                other => panic!("{other}: {said:?}"),
            }
        }
        assert_eq!(told, [10, 3000], "{query}");
    }
    // Whoever was cut off then goes on from there.
    let mut again = Reader::begin(&daemon, "?after=0&type=lead.*", Some(EVENTS)).await;
    assert_eq!(again.next().await.unwrap().id, EVENTS);
    store(&daemon, 6001..=6001, "lead").await;
    assert_eq!(again.seqs(1).await, [6001]);
}

#[tokio::test]
async fn what_is_too_much_to_be_read_is_counted_and_every_event_is_told_or_counted() {
    const EVENTS: u64 = 6000;
    let daemon = Daemon::start(TOKENS).await;
    // All of it is there when the reader comes: it is as far behind as one that stood still meanwhile.
    imported(&daemon, EVENTS, |_| "note");
    let last = EVENTS;
    let mut reader = Reader::begin(&daemon, "?after=0", None).await;
    let (mut told, mut counted, mut at) = (0, 0, 0);
    while at < last {
        let said = reader.next().await.unwrap();
        match said.name.as_str() {
            "begin" => assert_eq!(said.id, 0),
            "event" => {
                assert_eq!(said.id, at + 1, "no hole");
                (told, at) = (told + 1, said.id);
            }
            "skipped" => {
                assert_eq!(said.data["from"], at + 1, "no hole");
                assert_eq!(said.data["to"], said.id);
                counted += said.data["count"].as_u64().unwrap();
                at = said.id;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(told + counted, last);
    assert!(counted > last / 2 && told >= 100, "{told} told, {counted} counted");
}

#[tokio::test]
async fn a_reader_that_stands_still_costs_nothing_and_holds_nobody_up() {
    let daemon = Daemon::start(TOKENS).await;
    let address = daemon.admin.strip_prefix("http://").unwrap().to_owned();
    let mut still = tokio::net::TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /api/v1/tail HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {READ}\r\n\r\n");
    still.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    still.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    // It reads no further. Everything goes on beside it.
    let mut reader = Reader::begin(&daemon, "", None).await;
    assert_eq!(reader.next().await.unwrap().name, "begin");
    store(&daemon, 1..=300, "note").await;
    assert_eq!(reader.seqs(300).await.len(), 300);
    assert!((daemon.metric("closehook_admin_streams").await - 2.0).abs() < 0.5);
    // What it holds ends with it.
    drop((still, reader));
    nobody_looks(&daemon).await;
}

#[tokio::test]
async fn the_daemon_stops_and_signs_out_whoever_looks() {
    let mut daemon = Daemon::start(TOKENS).await;
    let viewer = cookie(daemon.type_token(READ).await.headers());
    let request = daemon
        .admin_request(Method::GET, "/api/v1/tail")
        .header("cookie", &viewer);
    let answer = request.send().await.unwrap();
    let mut reader = Reader {
        answer,
        text: String::new(),
    };
    assert_eq!(reader.next().await.unwrap().name, "begin");
    // Signing out ends it.
    let out = daemon
        .admin_request(Method::POST, "/sign-out")
        .header("cookie", &viewer)
        .header("origin", &daemon.admin);
    assert_eq!(out.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    assert!(reader.next().await.is_none());
    // So does a token that goes.
    let mut reader = Reader::begin(&daemon, "", None).await;
    assert_eq!(reader.next().await.unwrap().name, "begin");
    daemon.configure(&format!("[admin]\ntoken = \"{ACT}\"\n"));
    assert!(daemon.reload().await);
    assert!(reader.next().await.is_none());
    nobody_looks(&daemon).await;
    // And the daemon's end, which nobody who looks holds up.
    let request = daemon.admin_request(Method::GET, "/api/v1/tail").bearer_auth(ACT);
    let mut reader = Reader {
        answer: request.send().await.unwrap(),
        text: String::new(),
    };
    assert_eq!(reader.next().await.unwrap().name, "begin");
    daemon.stop().await;
    assert!(reader.next().await.is_none());
    assert!(!daemon.stderr().contains("were cut off"), "{}", daemon.stderr());
}

#[tokio::test]
async fn there_are_only_so_many_streams_and_they_are_given_back() {
    let daemon = Daemon::start(TOKENS).await;
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = Reader::begin(&daemon, "", None).await;
        assert_eq!(reader.next().await.unwrap().name, "begin");
        readers.push(reader);
    }
    let more = daemon.with_token(READ, Method::GET, "/api/v1/tail").await;
    assert_eq!(more.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(more.headers().contains_key("retry-after"));
    // Somebody else's are their own, and whatever else is asked is answered.
    let other = daemon.with_token(ACT, Method::GET, "/api/v1/tail").await;
    assert_eq!(other.status(), StatusCode::OK);
    assert_eq!(
        daemon.with_token(READ, Method::GET, "/api/v1/status").await.status(),
        StatusCode::OK
    );
    drop((readers, other));
    nobody_looks(&daemon).await;
    Reader::begin(&daemon, "", None).await;
}
