//! What a store promises, of the one on this disk and the one in a bucket of JetStream; and what only the second can meet: answers that
//! are lost, values that are too large, buckets that are none.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use closehook::net::nats::{Server as Address, Way};
use closehook::state::jetstream::Options;
use closehook::state::{Entry, Expected, JetStreamStore, LocalStore, Revision, Store, StoreError};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::nats_server::Server;

fn way(port: u16) -> Way {
    let servers = vec![Address::parse(&format!("nats://127.0.0.1:{port}")).unwrap()];
    Way::plain(servers, "test")
}

fn handle(port: u16) -> JetStreamStore {
    JetStreamStore::new(Options {
        way: way(port),
        bucket: "test_state".into(),
        replicas: 1,
        patience: None,
    })
}

async fn bucket(server: &Server) -> JetStreamStore {
    let store = handle(server.port);
    store.create().await.unwrap();
    assert_eq!(store.faults().await.unwrap(), [""; 0]);
    store
}

async fn value(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(key).await.unwrap().map(|entry: Entry| entry.value.to_vec())
}

/// Both keep this.
async fn keeps_what_a_store_promises(store: Arc<dyn Store>) {
    let put = async |key: &str, value: &str, expected| store.put(key, value.into(), expected).await;
    let conflict = |key: &str| Err(StoreError::Conflict(key.to_owned()));
    assert_eq!(value(&*store, "sink/a").await, None);
    let first = put("sink/a", "1", Expected::Nothing).await.unwrap();
    assert_ne!(first, Revision(0));
    assert_eq!(put("sink/a", "2", Expected::Nothing).await, conflict("sink/a"));
    let second = put("sink/a", "2", Expected::Revision(first)).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(put("sink/a", "3", Expected::Revision(first)).await, conflict("sink/a"));
    let entry = store.get("sink/a").await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.revision), (&b"2"[..], second));
    let third = put("sink/a", "3", Expected::Anything).await.unwrap();
    assert_eq!(put("sink/b", "x", Expected::Revision(third)).await, conflict("sink/b"));

    let strange = [
        "",
        ".",
        "a.b",
        "*",
        ">",
        "a b",
        "übergroß",
        "=",
        "=41",
        "sink/",
        "replay/rp_1",
        "sink/a.b",
    ];
    for key in strange {
        put(key, key, Expected::Nothing).await.unwrap();
    }
    for key in strange {
        assert_eq!(value(&*store, key).await, Some(key.into()), "{key:?}");
    }
    assert_eq!(store.keys("sink/").await.unwrap(), ["sink/", "sink/a", "sink/a.b"]);
    let mut all: Vec<String> = strange
        .iter()
        .map(|key| (*key).to_owned())
        .chain(["sink/a".into()])
        .collect();
    all.sort();
    assert_eq!(store.keys("").await.unwrap(), all);
    assert_eq!(store.all().await.unwrap().len(), all.len());

    assert_eq!(
        store.remove("sink/a", Expected::Revision(first)).await,
        Err(StoreError::Conflict("sink/a".into()))
    );
    assert_eq!(
        store.remove("sink/a", Expected::Nothing).await,
        Err(StoreError::Conflict("sink/a".into()))
    );
    store.remove("sink/a", Expected::Revision(third)).await.unwrap();
    assert_eq!(value(&*store, "sink/a").await, None);
    assert_eq!(
        store.remove("sink/a", Expected::Revision(third)).await,
        Err(StoreError::Conflict("sink/a".into()))
    );
    store.remove("sink/a", Expected::Anything).await.unwrap();
    assert_eq!(store.keys("sink/a").await.unwrap(), ["sink/a.b"]);
    let again = put("sink/a", "4", Expected::Nothing).await.unwrap();
    assert!(
        ![first, second, third].contains(&again),
        "a revision is never given twice"
    );
    for key in strange {
        store.remove(key, Expected::Anything).await.unwrap();
    }
    assert_eq!(store.keys("").await.unwrap(), ["sink/a"]);

    let large: String = (0..300_000_u32).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    put("large", &large, Expected::Anything).await.unwrap();
    assert_eq!(value(&*store, "large").await, Some(large.into_bytes()));
    store.remove("large", Expected::Anything).await.unwrap();
    counts_without_losing_any(&store).await;
}

/// Those who change one key at once can't undo each other.
async fn counts_without_losing_any(store: &Arc<dyn Store>) {
    let conflicts = Arc::new(AtomicUsize::new(0));
    let count = |store: Arc<dyn Store>, conflicts: Arc<AtomicUsize>| async move {
        for _ in 0..10 {
            loop {
                let entry = store.get("count").await.unwrap();
                let now: u64 = entry.as_ref().map_or(0, |entry| entry.json().unwrap());
                let expected = entry.map_or(Expected::Nothing, |entry| Expected::Revision(entry.revision));
                match store.put("count", (now + 1).to_string().into(), expected).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict(_)) => drop(conflicts.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let counting: Vec<_> = (0..6)
        .map(|_| tokio::spawn(count(store.clone(), conflicts.clone())))
        .collect();
    for task in counting {
        task.await.unwrap();
    }
    assert_eq!(store.get("count").await.unwrap().unwrap().json::<u64>().unwrap(), 60);
    assert!(
        conflicts.load(Ordering::Relaxed) > 0,
        "they were to be in each other's way"
    );
    store.remove("count", Expected::Anything).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_on_this_disk_keeps_what_a_store_promises() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::open(dir.path(), false).unwrap());
    keeps_what_a_store_promises(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_a_bucket_keeps_what_a_store_promises() {
    let Some(mut server) = Server::start("").await else {
        return;
    };
    let store = bucket(&server).await;
    keeps_what_a_store_promises(Arc::new(store.clone())).await;
    // Another handle, and another life of the server.
    let before = value(&store, "sink/a").await;
    assert_eq!(before.as_deref(), Some(&b"4"[..]));
    server.kill();
    server.run().await;
    assert_eq!(value(&handle(server.port), "sink/a").await, before);
    assert_eq!(value(&store, "sink/a").await, before, "it connects anew by itself");
    store.close().await;
    assert_eq!(store.get("sink/a").await, Err(StoreError::Closed));
}

/// A way to a server on which what has connected goes deaf when it is told so: what it says arrives, and no answer comes back.
struct DeafWay {
    port: u16,
    deaf: tokio::sync::watch::Sender<usize>,
}

impl DeafWay {
    async fn to(port: u16) -> DeafWay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (deaf, told) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let told = told.clone();
                let born = *told.borrow();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(count) = from_server.read(&mut buffer).await {
                        let hears = *told.borrow() == born;
                        if count == 0 || hears && to_client.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        DeafWay { port: own, deaf }
    }

    fn go_deaf(&self) {
        self.deaf.send_modify(|count| *count += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_answer_is_lost_is_read_back_and_made_once() {
    let Some(server) = Server::start("").await else { return };
    let store = bucket(&server).await;
    let way = DeafWay::to(server.port).await;
    let far = handle(way.port);
    assert_eq!(value(&far, "a").await, None);
    way.go_deaf();
    let first = far.put("a", b"1".to_vec(), Expected::Nothing).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, first);
    assert_eq!(server.count("KV_test_state").await, 1);
    way.go_deaf();
    let second = far.put("a", b"2".to_vec(), Expected::Revision(first)).await.unwrap();
    way.go_deaf();
    let third = far.put("a", b"3".to_vec(), Expected::Anything).await.unwrap();
    assert_eq!((second.0, third.0), (first.0 + 1, first.0 + 2), "each was made once");
    way.go_deaf();
    far.remove("a", Expected::Revision(third)).await.unwrap();
    assert_eq!(value(&store, "a").await, None);
    // Somebody else is faster while the answer is lost.
    far.put("b", b"1".to_vec(), Expected::Nothing).await.unwrap();
    let theirs = store.put("b", b"theirs".to_vec(), Expected::Anything).await.unwrap();
    way.go_deaf();
    let late = far
        .put("b", b"late".to_vec(), Expected::Revision(Revision(theirs.0 - 1)))
        .await;
    assert_eq!(late, Err(StoreError::Conflict("b".into())));
    assert_eq!(value(&store, "b").await.as_deref(), Some(&b"theirs"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said_in_a_sentence_and_in_time() {
    let Some(server) = Server::start("max_payload: 8192\n").await else {
        return;
    };
    let none = handle(server.port);
    let missing = none.get("a").await.unwrap_err().to_string();
    assert!(
        missing.contains("there is no bucket test_state") && missing.contains("check --create"),
        "{missing}"
    );
    assert!(none.faults().await.unwrap_err().contains("check --create"));
    let store = bucket(&server).await;
    let mut noise = vec![0; 20_000];
    fastrand::fill(&mut noise);
    let large = store.put("a", noise, Expected::Anything).await.unwrap_err().to_string();
    assert!(large.contains("\"a\" is ") && large.contains("max_payload"), "{large}");
    assert_eq!(value(&store, "a").await, None);

    let hasty = JetStreamStore::new(Options {
        way: way(crate::ports::free_port()),
        bucket: "test_state".into(),
        replicas: 1,
        patience: Some(Duration::from_secs(1)),
    });
    let began = std::time::Instant::now();
    let unreachable = hasty.get("a").await;
    assert!(matches!(unreachable, Err(StoreError::Unreadable(_))), "{unreachable:?}");
    let unreachable = hasty.put("a", b"1".to_vec(), Expected::Anything).await;
    assert!(matches!(unreachable, Err(StoreError::Failing(_))), "{unreachable:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "each had a second");

    let history = json!({ "max_msgs_per_subject": 5, "max_age": 1_000_000_000_000_u64, "allow_rollup_hdrs": true, "discard": "new" });
    server.stream("KV_weak", &["$KV.weak.>"], &history).await;
    let weak = JetStreamStore::new(Options {
        way: way(server.port),
        bucket: "weak".into(),
        replicas: 3,
        patience: None,
    });
    let faults = weak.faults().await.unwrap().join("; ");
    for what in ["on 1 server", "history", "max_age"] {
        assert!(faults.contains(what), "{what}: {faults}");
    }
}
