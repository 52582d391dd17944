//! Invariants I1 to I5 under kill -9.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::{Daemon, Receiver, body, ids_in, until};

/// Kills in one run; `CLOSEHOOK_TEST_KILLS` asks for more.
fn kills() -> u64 {
    std::env::var("CLOSEHOOK_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(10)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_whenever_it_is_killed() {
    let receiver = Receiver::start(200).await;
    let config = format!(
        "[log]\nsegment_size = \"64 KiB\"\n\
         [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n\
         [[sinks]]\nname = \"http\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nstart = \"beginning\"\n\
         retry = {{ initial = \"10ms\", max_delay = \"100ms\" }}\nbreaker = {{ probe = \"100ms\" }}\n",
        receiver.url
    );
    let mut daemon = Daemon::new(&config);
    let next = Arc::new(AtomicU64::new(1));
    // What was answered 200: the id and its Seq.
    let answered: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
    for round in 0..kills() {
        daemon.run().await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut senders = Vec::new();
        for _ in 0..8 {
            let (stop, next, answered) = (stop.clone(), next.clone(), answered.clone());
            let sender = Sender {
                client: daemon.client.clone(),
                url: daemon.url.clone(),
            };
            senders.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    if let Some(seq) = sender.send(id).await {
                        answered.lock().unwrap().insert(id, seq);
                    }
                }
            }));
        }
        // Not after a time but after so many answers: a different moment each round, on any machine.
        let goal = answered.lock().unwrap().len() + 40 + (round as usize * 37) % 200;
        until("enough is answered", async || answered.lock().unwrap().len() >= goal).await;
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.await.unwrap();
        }
    }
    daemon.run().await;
    let last = daemon.status()["log"]["last"].as_u64().unwrap();
    until("the sinks are done", async || {
        ["file", "http"].iter().all(|sink| daemon.sink(sink)["cursor"] == last)
    })
    .await;
    daemon.stop().await;

    let exported = daemon.lines(&["events", "export"]);
    let seqs: Vec<u64> = exported.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>(), "I3: gapless and in order");
    let mut stored = BTreeMap::new();
    for event in &exported {
        let text = event["body"].as_str().unwrap();
        let parsed: serde_json::Value = serde_json::from_str(text).unwrap();
        let id: u64 = parsed["event"]["id"]
            .as_str()
            .unwrap()
            .trim_start_matches("ev_")
            .parse()
            .unwrap();
        assert_eq!(text, body(id), "I5: byte for byte");
        assert!(
            stored.insert(id, event["seq"].as_u64().unwrap()).is_none(),
            "I2: event {id} is stored twice"
        );
    }
    for (id, seq) in answered.lock().unwrap().iter() {
        assert_eq!(stored.get(id), Some(seq), "I1: event {id} was answered 200");
    }
    let lines = ids_in(&daemon.path("events.jsonl"));
    let expected: Vec<String> = exported
        .iter()
        .map(|event| {
            serde_json::from_str::<serde_json::Value>(event["body"].as_str().unwrap()).unwrap()["event"]["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        lines, expected,
        "I4: the file sink has each event exactly once, in order"
    );
    let received: std::collections::BTreeSet<String> = receiver
        .received
        .lock()
        .unwrap()
        .iter()
        .map(|(_, body)| body.clone())
        .collect();
    assert_eq!(
        received,
        stored.keys().map(|id| body(*id)).collect(),
        "I4, I5: the receiver has every body"
    );
    assert!(daemon.ok(&["events", "verify"]).contains("events checked"));
}

struct Sender {
    client: reqwest::Client,
    url: String,
}

impl Sender {
    /// The Seq, if it was stored.
    async fn send(&self, id: u64) -> Option<u64> {
        let body = body(id);
        let key = closehook::verify::Key::from_hex(None, crate::harness::KEY).unwrap();
        let headers = key.sign(jiff::Timestamp::now(), body.as_bytes());
        let request = self
            .client
            .post(&self.url)
            .header(closehook::verify::TIMESTAMP_HEADER, headers.timestamp)
            .header(closehook::verify::HASH_HEADER, headers.hash);
        let response = request.body(body).send().await.ok()?;
        let stored = response.status() == 200;
        let answer: serde_json::Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
        if stored { answer["seq"].as_u64() } else { None }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_ends_well() {
    let mut daemon = Daemon::start("[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"").await;
    let answered = Arc::new(AtomicU64::new(0));
    let mut senders = Vec::new();
    for lane in 0..8_u64 {
        let answered = answered.clone();
        let sender = Sender {
            client: daemon.client.clone(),
            url: daemon.url.clone(),
        };
        senders.push(tokio::spawn(async move {
            for id in 0.. {
                if sender.send(lane * 1_000_000 + id).await.is_none() {
                    return;
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    until("enough is answered", async || answered.load(Ordering::Relaxed) > 200).await;
    daemon.stop().await;
    for sender in senders {
        sender.await.unwrap();
    }
    let stored = daemon.status()["log"]["last"].as_u64().unwrap();
    assert!(stored >= answered.load(Ordering::Relaxed));
    daemon.run().await;
    until("the sink is done", async || {
        ids_in(&daemon.path("events.jsonl")).len() as u64 == stored
    })
    .await;
}
