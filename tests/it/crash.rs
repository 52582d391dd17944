//! Invariants I1 to I5 under kill -9, and the good end under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::campaign::{self, Ledger, Sender};
use crate::harness::{Daemon, KEY, Receiver, body, ids_in, said_to_the_end, until};

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 10.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_whenever_it_is_killed() {
    let mut random = campaign::seed();
    let receiver = Receiver::start(200).await;
    let mut daemon = Daemon::new(&campaign::config(&receiver, &mut random));
    let ledger = Ledger::new();
    for round in 0..campaign::rounds("CLOSEHOOK_TEST_KILLS", 10) {
        // Every third time it is killed while it starts, too: recovery itself must survive that.
        if round % 3 == 2 {
            daemon.spawn();
            tokio::time::sleep(Duration::from_micros(random.u64(0..150_000))).await;
            daemon.kill();
        }
        daemon.configure(&campaign::config(&receiver, &mut random));
        daemon.run().await;
        let load = ledger.load(&daemon);
        campaign::random_moment(&ledger, &mut random).await;
        daemon.kill();
        load.stop().await;
    }
    daemon.run().await;
    let files = daemon.path("disk");
    ledger.reckon(&mut daemon, &receiver, &files).await;
    assert!(ledger.answered() > 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_ends_well() {
    let mut daemon = Daemon::start("[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"").await;
    let answered = Arc::new(AtomicU64::new(0));
    let mut senders = Vec::new();
    for lane in 0..8_u64 {
        let answered = answered.clone();
        let sender = Sender::to(&daemon);
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

/// A request whose head is in and whose body is waited for.
async fn begin(daemon: &Daemon, body: &str) -> TcpStream {
    let headers = Key::from_hex(None, KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), body.as_bytes());
    let head = format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\
         {TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\n\r\n",
        body.len(),
        headers.timestamp,
        headers.hash,
    );
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server says so when it waits for the body.
    let mut go_on = [0; 25];
    let read = tokio::time::timeout(std::time::Duration::from_secs(45), stream.read_exact(&mut go_on)).await;
    read.unwrap().unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_had_begun_before_sigterm_is_answered() {
    let mut daemon = Daemon::start("").await;
    let body = body(1);
    let mut stream = begin(&daemon, &body).await;
    daemon.store(2..=2).await;
    let idle = TcpStream::connect(daemon.address()).await.unwrap();
    daemon.signal(libc::SIGTERM);
    until("it takes no more connections", async || {
        TcpStream::connect(daemon.address()).await.is_err()
    })
    .await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = said_to_the_end(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"stored\""),
        "{answer}"
    );
    assert!(daemon.ended().await.success());
    assert!(
        !daemon.stderr().contains("were cut off"),
        "it ended before its drain time-out"
    );
    drop(idle);
    assert_eq!(daemon.status()["log"]["events"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_does_not_hold_up_the_end() {
    let mut daemon = Daemon::start("[server]\ndrain_timeout = \"300ms\"\nbody_timeout = \"10m\"").await;
    daemon.store(2..=2).await;
    let stream = begin(&daemon, &body(1)).await;
    daemon.signal(libc::SIGTERM);
    assert!(daemon.ended().await.success());
    assert!(daemon.stderr().contains("were cut off"));
    drop(stream);
    assert_eq!(daemon.status()["log"]["events"], 1);
}
