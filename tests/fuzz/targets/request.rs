//! Any bytes on a connection to the public listener, and any signed body: never a panic, never anything stored that was not
//! signed, and every signed body is.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use closehook::ingress::Ingress;
use closehook::ingress::memory::Budget;
use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER, Verifier};
use closehook::listener::abuse::Proven;
use closehook::log::{Clock, LocalLog, Log, Options};
use closehook::telemetry::door::Door;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Server {
    ingress: Arc<Ingress>,
    key: Key,
    runtime: tokio::runtime::Runtime,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let log = LocalLog::open(Options {
        dir: tempfile::tempdir_in(parent).unwrap().keep(),
        segment_size: 4 << 20,
        segment_age: Duration::from_secs(3600),
        reserve: Some(0),
        keys_kept: Duration::from_secs(3600),
        cache_bytes: 1 << 20,
        read_only: false,
        round: Duration::from_secs(2),
        now: Clock::default(),
    })
    .unwrap();
    // Nothing goes by itself: without this it would fill the memory.
    log.set_room(64 << 20);
    let key = Key::from_hex(None, "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c").unwrap();
    let verifier = Verifier {
        keys: vec![key.clone()],
        tolerance: SignedDuration::from_secs(300),
        skew: SignedDuration::from_secs(300),
        ..Verifier::default()
    };
    let ingress = Ingress {
        log: Arc::new(log),
        verifier: Arc::new(ArcSwap::from_pointee(verifier)),
        heard: Arc::default(),
        path: "/webhooks/close".into(),
        body_max: 4 << 20,
        body_timeout: Duration::from_secs(30),
        memory: Budget::new(64 << 20, 4 << 20, Proven::default()),
        door: Door::new(Arc::default()),
    };
    Server {
        ingress: Arc::new(ingress),
        key,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
    }
});

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn raw(bytes: &[u8]) {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let service = service_fn(|request| SERVER.ingress.clone().answer(request, PEER, None));
    // As the listener does, without its clock: time-outs would only slow this down.
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_headers(64);
    builder.http2().max_header_list_size(32 << 10);
    let connection = builder.serve_connection(TokioIo::new(server), service);
    let talking = async {
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    };
    let talk = async { tokio::join!(connection, talking) };
    let (served, ()) = tokio::time::timeout(Duration::from_secs(5), talk)
        .await
        .expect("a connection ends with its client");
    drop(served);
}

async fn signed(body: &[u8]) -> Response<Full<Bytes>> {
    let headers = SERVER.key.sign(Timestamp::now(), body);
    let request = Request::post("/webhooks/close")
        .header(TIMESTAMP_HEADER, headers.timestamp)
        .header(HASH_HEADER, headers.hash)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    let Ok(response) = SERVER.ingress.clone().answer(request, PEER, None).await;
    response
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let server = &*SERVER;
    server.runtime.block_on(async {
        if mode % 2 == 0 {
            let before = *server.ingress.log.head().borrow();
            raw(rest).await;
            assert_eq!(*server.ingress.log.head().borrow(), before, "nothing was signed");
        } else {
            assert_eq!(signed(rest).await.status(), 200);
        }
    });
});
