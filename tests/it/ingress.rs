//! Contract, section 3: the answers of the public listener.

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, body, said_to_the_end};

/// Writes raw bytes and reads until the server has had enough.
async fn raw(daemon: &Daemon, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    said_to_the_end(&mut stream).await
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

/// Sends a body that Close signed so many seconds from now, and gives what it is answered.
async fn signed_in(daemon: &Daemon, seconds: i64, body: &str) -> (u16, String) {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let headers = Key::from_hex(None, KEY).unwrap().sign(at, body.as_bytes());
    let request = daemon.client.post(&daemon.url).body(body.to_owned());
    let request = request
        .header(TIMESTAMP_HEADER, headers.timestamp)
        .header(HASH_HEADER, headers.hash);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn an_authentic_delivery_at_the_wrong_time_is_said_to_be_that_with_both_times() {
    const MINUTE: i64 = 60;
    const DAY: i64 = 86_400;
    let daemon = Daemon::start("").await;
    let forged = daemon.client.post(&daemon.url).body(body(1)).send().await.unwrap();
    let forged = (forged.status().as_u16(), forged.text().await.unwrap());
    let before = jiff::Timestamp::now().as_second();
    // To a clock that is twenty minutes behind, and to one that is four days ahead.
    for (seconds, reason, counted) in [(20 * MINUTE, "future", "early"), (-4 * DAY, "stale", "stale")] {
        assert_eq!(
            signed_in(&daemon, seconds, &body(1)).await,
            forged,
            "nobody learns anything by it"
        );
        let received = daemon.status()["received"].clone();
        assert_eq!(received["refused"][reason], 1, "{received}");
        let clocks = &received["clocks"];
        assert_eq!(
            (&clocks[counted], &clocks["is_doubted"]),
            (&1.into(), &true.into()),
            "{clocks}"
        );
        let offset = clocks["last_offset_seconds"].as_i64().unwrap();
        assert!((-seconds..-seconds + 60).contains(&offset), "{offset}");
        let time = |name: &str| -> jiff::Timestamp { clocks["last"][name].as_str().unwrap().parse().unwrap() };
        assert_eq!(time("received_at").as_second() - time("signed_at").as_second(), offset);
        assert!(
            (before..before + 60).contains(&time("received_at").as_second()),
            "{clocks}"
        );
        let gauge = daemon.metric("closehook_clock_offset_seconds").await;
        assert!((gauge - offset as f64).abs() < 1.0, "{gauge}");
        let logged = daemon.stderr();
        let line = logged.lines().find(|line| line.contains(&format!("reason={reason}")));
        let line = line.or_else(|| {
            logged
                .lines()
                .find(|line| line.contains(&format!("reason=\"{reason}\"")))
        });
        let line = line.unwrap_or_else(|| panic!("{logged}"));
        assert!(
            line.contains("that Close did sign") && line.contains(&format!("offset_seconds={offset}")),
            "{line}"
        );
        let signed_at = format!("Close signed it at {:.0}", time("signed_at"));
        assert!(line.contains(&signed_at), "{line}");
    }
    let received = daemon.status()["received"].clone();
    assert!(received["last_delivery_at"].is_null(), "{received}");
    assert_eq!(received["refused"]["missing"], 1, "{received}");
    assert_eq!(
        daemon.count("closehook_refused_total{reason=\"bad_signature\"}").await,
        0
    );
    // One whose time is right shows that the clocks agree, and how well.
    daemon.store(2..=3).await;
    assert_eq!(daemon.send(body(2)).await.unwrap().1["status"], "duplicate");
    let received = daemon.status()["received"].clone();
    assert_eq!(
        (&received["stored"], &received["duplicate"]),
        (&2.into(), &1.into()),
        "{received}"
    );
    assert_eq!(received["clocks"]["is_doubted"], false);
    assert!(received["last_delivery_at"].is_string());
}

#[tokio::test]
async fn how_old_deliveries_look_shows_a_clock_that_is_ahead_before_one_is_refused() {
    let daemon = Daemon::start("").await;
    assert_eq!(signed_in(&daemon, -1200, &body(1)).await.0, 200, "within the tolerance");
    let clocks = daemon.status()["received"]["clocks"].clone();
    let least = clocks["least_age_seconds"].as_i64().unwrap();
    assert!(
        (1200..1260).contains(&least) && clocks["is_doubted"] == false,
        "{clocks}"
    );
}

/// "Every answer carries x-request-id", also to what is no request.
#[tokio::test]
async fn what_can_not_be_read_as_a_request_is_answered_like_all_else() {
    let daemon = Daemon::start("").await;
    let many: String = (0..200).map(|number| format!("x-{number}: x\r\n")).collect();
    for (head, status) in [
        ("garbage\r\n\r\n".to_owned(), 400),
        (
            "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n".to_owned(),
            400,
        ),
        (format!("POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{many}\r\n"), 431),
    ] {
        let answer = raw(&daemon, head.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        let begins = daemon.status()["daemon"]["request_ids"].as_str().unwrap().to_owned();
        assert!(id.is_some_and(|id| id.starts_with(&begins)), "{answer}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
        assert!(crate::harness::parsed(body)["error"].is_string(), "{answer}");
    }
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
    assert_eq!(raw(&daemon, b"POST /webhooks/close HTT").await, "");
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
    assert!(
        get("/other").await.1.contains("Sign in"),
        "all else is for who has signed in"
    );
    let (_, metrics) = get("/metrics").await;
    for line in [
        "closehook_stored_events_total 3",
        "closehook_log_last_seq 3",
        "closehook_requests_total{answer=\"stored\"} 3",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is missing in {metrics}"
        );
    }
}

#[tokio::test]
async fn a_fresh_scrape_has_every_metric_with_every_label_that_is_known() {
    use closehook::telemetry::known::{Begins, Kind, all};
    let sink = |name: &str| format!("[[sinks]]\nname = \"{name}\"\ntype = \"file\"\npath = \"DIR/{name}.jsonl\"\n");
    let daemon = Daemon::start(&(sink("one") + &sink("two"))).await;
    let scrape = daemon.metrics().await;
    // What every series is, without its value.
    let series: std::collections::BTreeMap<&str, &str> = scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let mut absent = Vec::new();
    for metric in all() {
        let name = metric.name;
        let expected: Vec<String> = match (metric.begins, metric.kind) {
            (Begins::Bare, Kind::Histogram) => vec![format!("{name}_count"), format!("{name}_sum")],
            (Begins::Bare, _) => vec![name.to_owned()],
            (Begins::Each(label, values), _) => values
                .iter()
                .map(|value| format!("{name}{{{label}=\"{value}\"}}"))
                .collect(),
            (Begins::WithSink, _) => ["one", "two"].map(|sink| format!("{name}{{sink=\"{sink}\"}}")).to_vec(),
            (Begins::WhenKnown, _) => {
                absent.push(name);
                vec![]
            }
        };
        for line in expected {
            let value = series
                .get(&*line)
                .unwrap_or_else(|| panic!("{line} is missing in {scrape}"));
            assert!(metric.kind != Kind::Counter || *value == "0", "{line} {value}");
        }
        assert!(
            metric.begins == Begins::WhenKnown || scrape.contains(&format!("# HELP {name} {}\n", metric.help)),
            "{name} is not described"
        );
    }
    // Zero would say of these that a certificate has expired, that Close can't be reached or asked, or that the clocks agree.
    assert_eq!(
        absent,
        [
            "closehook_clock_offset_seconds",
            "closehook_certificate_not_after_seconds",
            "closehook_certificate_next_renewal_seconds",
            "closehook_close_reachable",
            "closehook_close_complete_timestamp_seconds",
            "closehook_close_subscription_active",
            "closehook_close_held_events",
            "closehook_close_custom_fields_timestamp_seconds",
        ]
    );
    // And nothing is there that the table does not know.
    for line in series.keys() {
        let name = line.split('{').next().unwrap();
        let is_of = |metric: &closehook::telemetry::known::Metric| {
            let rest = name.strip_prefix(metric.name);
            rest.is_some_and(|rest| {
                rest.is_empty() || (metric.kind == Kind::Histogram && ["_bucket", "_count", "_sum"].contains(&rest))
            })
        };
        assert!(all().any(is_of), "{line} is in no table");
    }
    for part in ["worker", "opening", "delivery", "checkpoint"] {
        let line = format!("closehook_restarts_total{{task=\"{part}\",sink=\"one\"}}");
        assert_eq!(series.get(&*line), Some(&"0"), "{line}");
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
        let answer = said_to_the_end(&mut stream).await;
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
