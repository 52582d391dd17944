//! How fast events are stored: 64 connections, a fresh signed event of 1.8 KB per request, beside a bare handler that reads the
//! body and checks the HMAC, in one run on the same cores. `cargo bench --bench ingest [-- EVENTS]`.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_sign_loss)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use closehook::eventlog::{EventLog, Options};
use closehook::ingress::listener::{Limits, serve};
use closehook::ingress::{Ingress, memory::Budget};
use closehook::verify::{Claim, HASH_HEADER, Key, TIMESTAMP_HEADER, Unverified, Verifier};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const CONNECTIONS: u64 = 64;
const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";

fn limits() -> Limits {
    let second = Duration::from_secs(60);
    Limits {
        connections_max: 1000,
        head_timeout: second,
        idle_timeout: second,
        drain_timeout: Duration::from_secs(1),
    }
}

fn verifier() -> Verifier {
    let tolerance = SignedDuration::from_hours(73);
    Verifier {
        keys: vec![Key::from_hex(None, KEY).unwrap()],
        tolerance,
        skew: tolerance,
    }
}

/// Sends `events` over all connections; gives events per second and the 99th percentile.
async fn load(address: std::net::SocketAddr, events: u64, tag: &'static str) -> (f64, Duration) {
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut lanes = Vec::new();
    for _ in 0..CONNECTIONS {
        let next = next.clone();
        lanes.push(tokio::spawn(async move {
            let template = include_str!("../fixtures/close/examples/lead.created.json");
            let key = Key::from_hex(None, KEY).unwrap();
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut latencies = Vec::new();
            let mut buffer = vec![0; 4096];
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id >= events {
                    return latencies;
                }
                let body = template.replacen("\"ev_", &format!("\"ev_{tag}{id}_"), 1);
                let headers = key.sign(Timestamp::now(), body.as_bytes());
                let request = format!(
                    "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\ncontent-length: {}\r\n\r\n{body}",
                    headers.timestamp, headers.hash, body.len()
                );
                let sent = Instant::now();
                stream.write_all(request.as_bytes()).await.unwrap();
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(buffer[..read].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
                latencies.push(sent.elapsed());
            }
        }));
    }
    let mut latencies = Vec::new();
    for lane in lanes {
        latencies.extend(lane.await.unwrap());
    }
    latencies.sort_unstable();
    (
        events as f64 / began.elapsed().as_secs_f64(),
        latencies[latencies.len() * 99 / 100],
    )
}

#[tokio::main]
async fn main() {
    let events = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(200_000);
    let stop = CancellationToken::new();

    let bare = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare_address = bare.local_addr().unwrap();
    let keys = Arc::new(verifier());
    let answer = move |request: Request<hyper::body::Incoming>, _| {
        let keys = keys.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let values = |name: &str| {
                head.headers
                    .get_all(name)
                    .into_iter()
                    .map(hyper::header::HeaderValue::as_bytes)
            };
            let claim = Claim::read(values(TIMESTAMP_HEADER), values(HASH_HEADER)).unwrap();
            keys.verify(Unverified { claim, body }, Timestamp::now()).unwrap();
            Ok::<_, Infallible>(Response::new(Full::default()))
        }
    };
    tokio::spawn(serve(bare, None, limits(), answer, stop.clone()));

    // Beside the build, not in a temporary directory that may be memory.
    let dir = tempfile::tempdir_in(".").unwrap();
    let log = EventLog::open(Options {
        dir: dir.path().join("data"),
        retention: Duration::from_secs(86_400),
        max_size: None,
        segment_size: 256 << 20,
        segment_age: Duration::from_secs(86_400),
        reserve: None,
        keys_kept: Duration::from_secs(86_400),
        cache_bytes: 24 << 20,
        read_only: false,
    })
    .unwrap();
    let ingress = Arc::new(Ingress {
        log: log.clone(),
        verifier: Arc::new(ArcSwap::from_pointee(verifier())),
        path: "/webhooks/close".into(),
        body_max: 4 << 20,
        body_timeout: Duration::from_secs(30),
        memory: Budget::new(64 << 20),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |request, peer| ingress.clone().answer(request, peer);
    tokio::spawn(serve(listener, None, limits(), answer, stop.clone()));

    load(bare_address, events / 10, "w").await;
    let (bare_rate, bare_p99) = load(bare_address, events, "b").await;
    let (rate, p99) = load(address, events, "s").await;
    println!("bare handler  {bare_rate:>8.0} /s   p99 {bare_p99:?}");
    println!(
        "stored        {rate:>8.0} /s   p99 {p99:?}   ratio {:.2}",
        rate / bare_rate
    );
    stop.cancel();
    let log = log.clone();
    tokio::task::spawn_blocking(move || {
        let stats = log.stats();
        println!(
            "on disk       {:.2} bytes a byte received",
            stats.disk_bytes as f64 / stats.received_bytes as f64
        );
        log.close();
    })
    .await
    .unwrap();
}
