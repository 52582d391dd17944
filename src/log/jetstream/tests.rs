//! What only servers can do to a log: die, stand still, lose an answer, be set up wrongly, be full.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{JetStreamLog, Options, check};
use crate::event::{Event, EventKey, Seq, Source, Updated};
use crate::log::tests::jetstream_cluster::Cluster;
use crate::log::tests::jetstream_options;
use crate::log::{AppendError, Appended, Incoming, Log, Narrow, Take};
use crate::net::nats::Server;

mod copied;
mod erased;
mod refused;
mod skipped;
mod times;
mod watched;

const PATIENCE: Duration = Duration::from_secs(120);

/// A frozen server's connection is noticed by the library after a minute.
const HELD_UP_MAX: Duration = Duration::from_secs(35);

async fn open(options: &Options) -> JetStreamLog {
    check::create(options).await.unwrap();
    JetStreamLog::open(options.clone()).await.unwrap()
}

fn incoming(id: u64) -> Incoming {
    long(id, 10)
}

fn long(id: u64, len: usize) -> Incoming {
    let body = format!(
        r#"{{"event": {{"id": "ev_{id}", "date_updated": "2024-02-15T12:48:23", "data": "{}"}}}}"#,
        "x".repeat(len)
    );
    Incoming::new(body.into(), Timestamp::now(), Source::Webhook, None)
}

fn key(id: u64) -> EventKey {
    EventKey {
        id: format!("ev_{id}"),
        updated: Updated::parse("2024-02-15T12:48:23"),
    }
}

async fn all(log: &JetStreamLog) -> Vec<Arc<Event>> {
    let take = Take {
        events: 500,
        bytes: 8 << 20,
        narrow: None,
    };
    let (mut from, mut events) = (Seq(1), Vec::new());
    while from <= *log.head().borrow() {
        let batch = log.read(from, take).await.unwrap();
        assert!(batch.lost.is_empty(), "{:?}", batch.lost);
        events.extend(batch.events);
        from = batch.next;
    }
    events
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Senders that repeat each event until it is answered, like Close does, and what they were answered.
struct Load {
    stop: CancellationToken,
    tasks: tokio::task::JoinSet<BTreeMap<u64, Seq>>,
    answered: Arc<AtomicU64>,
}

impl Load {
    fn start(log: &JetStreamLog, senders: u64) -> Load {
        let mut load = Load {
            stop: CancellationToken::new(),
            tasks: tokio::task::JoinSet::new(),
            answered: Arc::default(),
        };
        for sender in 0..senders {
            let (log, stop, answered) = (log.clone(), load.stop.clone(), load.answered.clone());
            load.tasks.spawn(async move {
                let mut seqs = BTreeMap::new();
                let mut id = sender;
                while !stop.is_cancelled() {
                    if let Ok(Appended::Stored(seq) | Appended::Duplicate(seq)) = log.append(incoming(id)).await {
                        seqs.insert(id, seq);
                        answered.fetch_add(1, Ordering::Relaxed);
                        id += senders;
                    } else {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                seqs
            });
        }
        load
    }

    /// Waits until so many more are answered.
    async fn more(&self, count: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        until("nothing is stored any more", async || {
            self.answered.load(Ordering::Relaxed) >= before + count
        })
        .await;
    }

    /// Ends it, and looks that what was answered is there, each event once and where it was said to be.
    async fn judge(mut self, log: &JetStreamLog) -> usize {
        self.stop.cancel();
        let mut answered = BTreeMap::new();
        while let Some(seqs) = self.tasks.join_next().await {
            answered.extend(seqs.unwrap());
        }
        let mut found = BTreeMap::new();
        for event in all(log).await {
            let id: u64 = event.view().unwrap().id.trim_start_matches("ev_").parse().unwrap();
            assert_eq!(found.insert(id, event.seq), None, "ev_{id} is there twice");
        }
        for (id, seq) in &answered {
            assert_eq!(found.get(id), Some(seq), "ev_{id} was answered");
        }
        answered.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_is_lost_whichever_servers_die() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let load = Load::start(&log, 16);
    load.more(100).await;
    for number in 0..3 {
        cluster.kill(number);
        load.more(50).await;
        cluster.run(number).await;
        load.more(50).await;
    }
    for number in 0..3 {
        cluster.kill(number);
    }
    until("it is not said that there are no servers", async || {
        log.ready().is_err()
    })
    .await;
    for number in 0..3 {
        cluster.run(number).await;
    }
    load.more(100).await;
    until("it does not heal", async || log.ready().is_ok()).await;
    let count = load.judge(&log).await;
    assert!(count >= 500, "{count}");
    assert_eq!(log.verify(&|_, _| {}).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_holds_up_nobody_for_long_and_two_are_said() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let load = Load::start(&log, 8);
    load.more(50).await;
    // The one that is asked, and the one that leads.
    for number in [0, cluster.leader("closehook").await] {
        cluster.freeze(number);
        let frozen = Instant::now();
        load.more(50).await;
        assert!(frozen.elapsed() < HELD_UP_MAX, "held up for {:?}", frozen.elapsed());
        cluster.thaw(number);
        load.more(50).await;
    }
    cluster.freeze(1);
    cluster.freeze(2);
    until("it is not said that a majority is missing", async || {
        log.ready().is_err()
    })
    .await;
    let Err(AppendError::Failing(why)) = log.ready() else {
        panic!("{:?}", log.ready());
    };
    assert!(why.contains("server"), "{why}");
    assert!(
        log.since_turned() < Duration::from_secs(5),
        "whatever the servers do, the loop turns"
    );
    cluster.thaw(1);
    cluster.thaw(2);
    load.more(50).await;
    until("it does not heal", async || log.ready().is_ok()).await;
    load.judge(&log).await;
}

/// A way to a server on which answers can be held back.
struct Proxy {
    address: SocketAddr,
    holds: Arc<AtomicBool>,
    cut: Arc<tokio::sync::Mutex<CancellationToken>>,
}

impl Proxy {
    async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            holds: Arc::default(),
            cut: Arc::default(),
        };
        let (holds, cut) = (proxy.holds.clone(), proxy.cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    continue;
                };
                let (holds, cut) = (holds.clone(), cut.lock().await.clone());
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let answers = async {
                        let mut bytes = vec![0; 1 << 16];
                        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                            // What is held back is never delivered.
                            if !holds.load(Ordering::SeqCst) && to_client.write_all(&bytes[..count]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        () = answers => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
        });
        proxy
    }

    async fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().await).cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_answer_was_lost_is_stored_once_and_known_as_stored() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let proxy = Proxy::to(cluster.nodes[0].port).await;
    let mut options = jetstream_options(&cluster);
    check::create(&options).await.unwrap();
    options.way.servers = vec![Server::parse(&proxy.address.to_string()).unwrap()];
    let log = JetStreamLog::open(options).await.unwrap();
    log.append(incoming(1)).await.unwrap();
    for round in 0..3_u64 {
        proxy.holds.store(true, Ordering::SeqCst);
        let appends: Vec<_> = (0..5)
            .map(|n| {
                let log = log.clone();
                tokio::spawn(async move { log.append(incoming(100 + 10 * round + n)).await })
            })
            .collect();
        until("nothing arrives", async || {
            let info = cluster.api(0, "STREAM.INFO.closehook", &Value::Null).await;
            info["state"]["messages"] == 1 + 5 * (round + 1)
        })
        .await;
        proxy.holds.store(false, Ordering::SeqCst);
        proxy.cut().await;
        for append in appends {
            let appended = append.await.unwrap();
            assert!(matches!(appended, Ok(Appended::Stored(_))), "{appended:?}");
        }
    }
    assert_eq!(all(&log).await.len(), 16);
    // Somebody else's is a duplicate as before.
    assert!(matches!(log.append(incoming(100)).await, Ok(Appended::Duplicate(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_long_for_a_message_is_kept_whole_or_not_at_all() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let mut options = jetstream_options(&cluster);
    let days = Arc::new(AtomicU64::new(0));
    let ahead = days.clone();
    options.now = crate::log::Clock::new(move || {
        Timestamp::now() + jiff::SignedDuration::from_hours(24 * ahead.load(Ordering::SeqCst) as i64)
    });
    options.servers_now = Some(options.now.clone());
    let log = open(&options).await;
    log.append(incoming(1)).await.unwrap();
    let sent = long(2, 4 << 20);
    let body = sent.body.clone();
    let Ok(Appended::Stored(seq)) = log.append(sent).await else {
        panic!("not stored");
    };
    let parts = async || {
        let info = cluster.api(0, "STREAM.INFO.closehook_parts", &Value::Null).await;
        info["state"]["messages"].as_u64().unwrap()
    };
    let count = parts().await;
    assert!(count > 4, "{count} pieces");
    let event = log.get(seq).await.unwrap().unwrap();
    assert_eq!((event.seq, &event.body), (seq, &body));
    let other = JetStreamLog::open(options.clone()).await.unwrap();
    let events = all(&other).await;
    assert_eq!((events.len(), &events[1].body), (2, &body));
    assert_eq!(log.append(long(2, 4 << 20)).await, Ok(Appended::Duplicate(seq)));
    assert_eq!(parts().await, count, "a duplicate leaves nothing behind");

    // Of an append that was cut off there are pieces, and no event.
    let headers = super::message::part("closehook.ev.a.b", "id:a b");
    let client = cluster.client(1).await;
    let orphan = client
        .request_with_headers("closehook_parts.orphan.0", headers, "half".into())
        .await;
    assert!(orphan.unwrap().payload.starts_with(b"{\"stream\""));
    assert_eq!(all(&log).await.len(), 2);
    let mut sweeper = super::sweep::Sweeper::default();
    sweeper.sweep(&log.shared).await;
    assert_eq!(parts().await, count + 1, "it may still become whole");
    days.store(1, Ordering::SeqCst);
    sweeper.sweep(&log.shared).await;
    assert_eq!(parts().await, count);
    assert_eq!(log.get(seq).await.unwrap().unwrap().body, body);

    let narrow = Narrow {
        ids: ["ev_2".to_owned()].into(),
        ..Narrow::default()
    };
    let erased = log.erase(
        narrow,
        Arc::new(|event: &Event| event.view().is_some_and(|view| view.id == "ev_2")),
    );
    assert_eq!(erased.await.unwrap().seqs, [seq]);
    assert_eq!(parts().await, 0, "its pieces went with it");

    // A reader gets no more of them at a time than it wants.
    let mut seqs = Vec::new();
    for id in 3..=5 {
        let Ok(Appended::Stored(seq)) = log.append(long(id, 4 << 20)).await else {
            panic!("not stored");
        };
        seqs.push(seq);
    }
    let take = Take {
        events: 500,
        bytes: 5 << 20,
        narrow: None,
    };
    let batch = log.read(seqs[0], take).await.unwrap();
    assert_eq!((batch.events.len(), batch.next), (1, seqs[1]));
    assert_eq!(all(&log).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_at_its_limit_says_so_and_heals() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let mut options = jetstream_options(&cluster);
    options.max_bytes = Some(256 << 10);
    let log = open(&options).await;
    let mut stored = 0;
    let why = loop {
        match log.append(long(stored, 10_000)).await {
            Ok(_) => stored += 1,
            Err(why) => break why,
        }
        assert!(stored < 100, "it has no limit");
    };
    let AppendError::Full(said) = &why else {
        panic!("{why:?}")
    };
    assert!(said.contains("max_bytes") && said.contains("10077"), "{said}");
    assert_eq!(log.ready(), Err(why.clone()));
    // What is there can be read, and is known.
    assert_eq!(all(&log).await.len() as u64, stored);

    let mut info = cluster.api(0, "STREAM.INFO.closehook", &Value::Null).await;
    info["config"]["max_bytes"] = json!(1 << 30);
    cluster.api(0, "STREAM.UPDATE.closehook", &info["config"]).await;
    until("it stays full", async || log.append(long(stored, 10_000)).await.is_ok()).await;
    assert_eq!(log.ready(), Ok(()));

    log.set_room(1);
    until("room is not heeded", async || {
        matches!(log.append(incoming(9999)).await, Err(AppendError::Full(_)))
    })
    .await;
    log.set_room(u64::MAX);
    until("room is not given back", async || {
        log.append(incoming(9999)).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_event_with_the_same_hash_is_stored_beside_it() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    let mut headers = super::message::tombstone("id:other at:1", 1, Timestamp::now());
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    let subject = super::key::Key::of_event(&key(7)).subject("closehook", 0);
    let client = cluster.client(0).await;
    client.request_with_headers(subject, headers, "".into()).await.unwrap();
    assert_eq!(
        log.find_revision(&key(7)).await.unwrap(),
        None,
        "a hash alone says nothing"
    );
    let Ok(Appended::Stored(seq)) = log.append(incoming(7)).await else {
        panic!("not stored");
    };
    assert_eq!(log.append(incoming(7)).await, Ok(Appended::Duplicate(seq)));
    assert_eq!(log.find_revision(&key(7)).await.unwrap(), Some(seq));
    assert_eq!(log.find("ev_7").await.unwrap(), [seq]);
}

/// As if a server's disk had lost them: the others have them, and what only one leaves out is nothing that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_leaves_out_is_read_from_the_leader() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    for id in 1..=30 {
        log.append(incoming(id)).await.unwrap();
    }
    let third = |event: &Event| event.seq.0 == 3;
    log.erase(Narrow::default(), Arc::new(third)).await.unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    let (shared, seqs) = (&log.shared, |found: &[super::message::Stored]| {
        found.iter().map(|stored| stored.seq).collect::<Vec<_>>()
    });
    let (all, _) = super::fetch::raw(shared, Seq(1)).await.unwrap();
    let events: Vec<u64> = (1..=30).filter(|seq| *seq != 3).collect();
    assert_eq!(&seqs(&all)[..29], events);
    for lacks in [1, 2, 10, 29] {
        let some = all.iter().filter(|stored| stored.seq != lacks).cloned().collect();
        let whole = super::fetch::without_holes(shared, Seq(1), some, until).await.unwrap();
        let upto: Vec<u64> = events.iter().copied().filter(|seq| *seq <= lacks).collect();
        assert_eq!(seqs(&whole), upto, "without {lacks}");
    }
    let whole = super::fetch::without_holes(shared, Seq(1), all.clone(), until)
        .await
        .unwrap();
    assert_eq!(seqs(&whole), seqs(&all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_no_server_can_give_any_more_is_lost_and_holds_up_nothing() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let log = open(&jetstream_options(&cluster)).await;
    for one in [incoming(1), long(2, 4 << 20), incoming(3)] {
        log.append(one).await.unwrap();
    }
    assert!(log.get(Seq(2)).await.unwrap().is_some());
    cluster
        .api(0, "STREAM.MSG.DELETE.closehook_parts", &json!({ "seq": 2 }))
        .await;
    assert!(log.get(Seq(2)).await.unwrap().is_none());
    let take = Take {
        events: 500,
        bytes: 8 << 20,
        narrow: None,
    };
    let batch = log.read(Seq(1), take).await.unwrap();
    assert_eq!((batch.events.len(), batch.lost), (2, vec![(Seq(2), Seq(2))]));
}
