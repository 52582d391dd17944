//! Contract, section 3: the answers of the public listener.

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, body};

/// Writes raw bytes and reads until the server has had enough.
async fn raw(daemon: &Daemon, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that cuts the connection off may reset it.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_signed_event_is_stored_once() {
    let daemon = Daemon::start("").await;
    for example in std::fs::read_dir("tests/fixtures/close/examples").unwrap() {
        let text = std::fs::read_to_string(example.unwrap().path()).unwrap();
        let (status, first) = daemon.send(&*text).await.unwrap();
        assert_eq!((status, first["status"].as_str()), (200, Some("stored")));
        let (status, again) = daemon.send(&*text).await.unwrap();
        assert_eq!(
            (status, again["status"].as_str(), &again["seq"]),
            (200, Some("duplicate"), &first["seq"])
        );
        let shown = &daemon.lines(&["events", "show", &first["seq"].to_string()])[0];
        assert_eq!(
            (shown["body"].as_str(), shown["signature"].as_str()),
            (Some(text.as_str()), Some("valid"))
        );
    }
}

#[tokio::test]
async fn a_newer_revision_is_an_event_of_its_own() {
    let daemon = Daemon::start("").await;
    let revision = |date: &str| format!(r#"{{"event":{{"id":"ev_1","date_updated":"{date}"}}}}"#);
    let mut answers = Vec::new();
    for date in [
        "2024-02-15T12:48:23.395",
        "2024-02-15T12:48:23.395000Z",
        "2024-02-15T13:48:23.395+01:00",
        "2024-02-15T12:48:24",
    ] {
        answers.push(
            daemon.send(revision(date)).await.unwrap().1["status"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(answers, ["stored", "duplicate", "duplicate", "stored"]);
    assert_eq!(daemon.lines(&["events", "show", "ev_1"]).len(), 2);
}

#[tokio::test]
async fn what_can_not_be_read_is_quarantined() {
    let daemon = Daemon::start("[[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"DIR/all.jsonl\"").await;
    for text in [
        "",
        "nonsense",
        "[]",
        r#"{"event":{"id":7}}"#,
        r#"{"event":{"id":"ev_1"}"#,
    ] {
        for _ in 0..2 {
            let (status, answer) = daemon.send(text).await.unwrap();
            assert_eq!(
                (status, answer["status"].as_str()),
                (200, Some("quarantined")),
                "{text}"
            );
        }
    }
    assert_eq!(daemon.lines(&["events", "list", "--quarantined"]).len(), 5);
    let deep = format!(
        r#"{{"event":{{"id":"ev_deep","data":{}{}}}}}"#,
        "[".repeat(256),
        "]".repeat(256)
    );
    assert_eq!(daemon.send(deep).await.unwrap().1["status"], "stored");
}

#[tokio::test]
async fn a_wrong_signature_gets_one_answer_whatever_is_wrong() {
    let daemon = Daemon::start("[server]\nsignature_tolerance = \"5m\"").await;
    let key = Key::from_hex(None, KEY).unwrap();
    let now = jiff::Timestamp::now();
    let good = key.sign(now, body(1).as_bytes());
    let old = key.sign(now - jiff::SignedDuration::from_mins(6), body(1).as_bytes());
    let future = key.sign(now + jiff::SignedDuration::from_mins(6), body(1).as_bytes());
    let mut answers = std::collections::BTreeSet::new();
    let cases: Vec<Vec<(&str, String)>> = vec![
        vec![],
        vec![(TIMESTAMP_HEADER, good.timestamp.clone())],
        vec![(HASH_HEADER, good.hash.clone())],
        vec![
            (TIMESTAMP_HEADER, good.timestamp.clone()),
            (HASH_HEADER, "0".repeat(64)),
        ],
        vec![
            (TIMESTAMP_HEADER, good.timestamp.clone()),
            (HASH_HEADER, good.hash.clone()),
            (HASH_HEADER, good.hash.clone()),
        ],
        vec![(TIMESTAMP_HEADER, old.timestamp), (HASH_HEADER, old.hash)],
        vec![(TIMESTAMP_HEADER, future.timestamp), (HASH_HEADER, future.hash)],
    ];
    for headers in cases {
        let mut request = daemon.client.post(&daemon.url).body(body(1));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(response.headers().contains_key("x-request-id"));
        answers.insert(response.text().await.unwrap());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(daemon.status()["log"]["events"], 0);
}

#[tokio::test]
async fn other_paths_methods_and_sizes_are_told_so() {
    let daemon = Daemon::start("[server]\nmax_body = \"2 KiB\"").await;
    let elsewhere = daemon.url.replace("/webhooks/close", "/webhooks/other");
    assert_eq!(daemon.client.post(elsewhere).send().await.unwrap().status(), 404);
    let response = daemon.client.get(&daemon.url).send().await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()["allow"].to_str().unwrap()
        ),
        (405, "POST")
    );
    // Declared: answered before a byte of it is sent.
    let head = "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n";
    let answer = raw(&daemon, head.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("x-request-id"),
        "{answer}"
    );
    // Not declared: answered when it goes over.
    let signed = format!("{TIMESTAMP_HEADER}: 1\r\n{HASH_HEADER}: {}\r\n", "0".repeat(64));
    let chunked = format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{signed}\r\nC00\r\n{}\r\n",
        "x".repeat(0xC00)
    );
    let answer = raw(&daemon, chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let (status, answer) = daemon.send(body(1)).await.unwrap();
    assert_eq!((status, answer["status"].as_str()), (200, Some("stored")));
}

#[tokio::test]
async fn slow_heads_and_bodies_are_cut_off() {
    let daemon = Daemon::start("[server]\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"").await;
    assert!(!raw(&daemon, b"POST /webhooks/close HTT").await.contains("200"));
    let signed = format!("{TIMESTAMP_HEADER}: 1\r\n{HASH_HEADER}: {}\r\n", "0".repeat(64));
    let slow = format!("POST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n{signed}\r\nonly this");
    let answer = raw(&daemon, slow.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn requests_in_a_row_and_old_http_are_served() {
    let daemon = Daemon::start("").await;
    let request = |id: u64, version: &str, last: bool| {
        let body = body(id);
        let headers = Key::from_hex(None, KEY)
            .unwrap()
            .sign(jiff::Timestamp::now(), body.as_bytes());
        let close = if last { "connection: close\r\n" } else { "" };
        format!(
            "POST /webhooks/close HTTP/{version}\r\nhost: x\r\n{close}Close-Sig-Timestamp: {}\r\nCLOSE-SIG-HASH: {}\r\ncontent-length: {}\r\n\r\n{body}",
            headers.timestamp,
            headers.hash,
            body.len()
        )
    };
    let pipelined = [
        request(1, "1.1", false),
        request(2, "1.1", false),
        request(3, "1.1", true),
    ]
    .concat();
    let answer = raw(&daemon, pipelined.as_bytes()).await;
    assert_eq!(answer.matches("\"status\":\"stored\"").count(), 3, "{answer}");
    assert!(
        raw(&daemon, request(4, "1.0", true).as_bytes())
            .await
            .contains("\"stored\"")
    );
}

#[tokio::test]
async fn several_keys_live_and_a_bound_key_is_for_its_subscription() {
    const OTHER: &str = "f2ca1bb6c7e907d06dafe4687e579fce76b37e4e93b7605022da52e6ccc26fd2";
    let config = format!(
        "[[close.subscriptions]]\nid = \"whsub_1\"\nsignature_key = \"{KEY}\"\n[[close.subscriptions]]\nsignature_key = \"{OTHER}\""
    );
    let daemon = Daemon::start(&config).await;
    let (status, _) = daemon.send(body(1)).await.unwrap();
    assert_eq!(status, 200);
    let (status, _) = daemon.send(body(2).replace("whsub_1", "whsub_2")).await.unwrap();
    assert_eq!(status, 401);
    assert!(!daemon.stderr().contains(KEY), "no secret in the logs");
}

#[tokio::test]
async fn health_and_metrics_answer_on_the_admin_listener() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=3).await;
    let get = async |path: &str| {
        let response = daemon
            .client
            .get(format!("{}{path}", daemon.admin))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get("/healthz").await.0, 200);
    assert_eq!(get("/readyz").await.0, 200);
    assert_eq!(get("/other").await.0, 404);
    let (_, metrics) = get("/metrics").await;
    for line in [
        "closehook_stored_events_total 3",
        "closehook_log_last_seq 3",
        "closehook_requests_total{answer=\"stored\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}

#[tokio::test]
async fn a_sender_that_listens_only_at_the_end_still_hears_that_it_is_refused() {
    let daemon = Daemon::start("").await;
    // More than the kernel takes for a server that does not read.
    let body = vec![b'x'; 7 << 20];
    for (path, length, expected) in [
        ("/webhooks/close", body.len(), "HTTP/1.1 413"),
        ("/webhooks/close", 4 << 20, "HTTP/1.1 401"),
        ("/elsewhere", body.len(), "HTTP/1.1 404"),
    ] {
        let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body[..length]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn over_http_2_every_answer_arrives_whole() {
    let daemon = Daemon::start("[server]\nmax_body = \"2 KiB\"").await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let head = client.head(&daemon.url).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), head.headers()["allow"].as_bytes()),
        (405, &b"POST"[..])
    );
    assert_eq!(head.bytes().await.unwrap(), "");
    for (size, expected) in [(1, 401), (2000, 401), (3000, 413)] {
        let response = client.post(&daemon.url).body("x".repeat(size)).send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        assert_eq!(response.status(), expected);
        assert!(response.text().await.unwrap().contains("error"));
    }
}
