//! Input that is meant to hurt: whatever it is, good deliveries are answered meanwhile and memory stays flat (invariant I6).

use std::time::Duration;

use closehook::ingress::verify::{HASH_HEADER, TIMESTAMP_HEADER};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::campaign::Sender;
use crate::harness::{Daemon, said_to_the_end, skipped, until};

/// More than what any flood below may add to the daemon's memory, in bytes; each of them sends more, or could.
const GROWTH_MAX: u64 = 64 << 20;

/// Good deliveries while attackers are at work, each on a connection of its own, and the daemon's memory all the while.
/// Ends when the attackers do.
async fn meanwhile(daemon: &Daemon, mut attackers: JoinSet<()>) {
    let before = daemon.resident();
    let mut sent = 0;
    while sent < 20 || !attackers.is_empty() {
        sent += 1;
        let fresh = Daemon::client();
        let answer = Sender::with(fresh, daemon).send(sent).await;
        assert_eq!(
            answer.map(|(status, _)| status).as_deref(),
            Some("stored"),
            "delivery {sent}"
        );
        let grown = daemon.resident().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "memory grew by {} MiB", grown >> 20);
        while let Some(ended) = attackers.try_join_next() {
            ended.unwrap();
        }
        // The good sender has had its say; what is left is to see the attackers end.
        if sent >= 20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn connect(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(daemon.address()).await.unwrap()
}

/// Writes until it is done or the server has had enough; without reading, so what the server answers piles up.
async fn pour(stream: &mut TcpStream, bytes: &[u8], times: usize) {
    for _ in 0..times {
        // A server that takes no more must not hold the test up: it has won.
        let written = tokio::time::timeout(Duration::from_secs(2), stream.write_all(bytes)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// A head whose signature looks right.
fn head(more: &str) -> String {
    format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{TIMESTAMP_HEADER}: 1\r\n{HASH_HEADER}: {}\r\n{more}\r\n",
        "0".repeat(64)
    )
}

const IMPATIENT: &str = "[server]\nhead_timeout = \"2s\"\nbody_timeout = \"3s\"\nidle_timeout = \"3s\"";

#[tokio::test(flavor = "multi_thread")]
async fn slow_endless_and_lying_requests_hurt_nobody() {
    let daemon = Daemon::start(IMPATIENT).await;
    let mut attackers = JoinSet::new();
    for number in 0..200 {
        let mut stream = connect(&daemon).await;
        attackers.spawn(async move {
            match number % 5 {
                // A head, and a body, byte by byte: cut off in spite of its progress.
                0 | 1 => {
                    let slow = if number % 5 == 0 {
                        String::new()
                    } else {
                        head("content-length: 9999999\r\n")
                    };
                    let _ = stream.write_all(slow.as_bytes()).await;
                    while stream.write_all(b"x").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                // A body without an end.
                2 => {
                    let _ = stream
                        .write_all(head("transfer-encoding: chunked\r\n").as_bytes())
                        .await;
                    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                    pour(&mut stream, chunk.as_bytes(), 500).await;
                }
                // Less than was announced, and then the end.
                3 => {
                    let _ = stream
                        .write_all((head("content-length: 100000\r\n") + "short").as_bytes())
                        .await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                // More than was announced: what follows is no request.
                _ => {
                    let _ = stream
                        .write_all((head("content-length: 5\r\n") + "longer than that\r\n\r\n").as_bytes())
                        .await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        });
    }
    meanwhile(&daemon, attackers).await;
    assert_eq!(
        daemon.status()["log"]["last"],
        daemon.status()["log"]["events"],
        "nothing else was stored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictory_lengths_are_refused() {
    let daemon = Daemon::start("").await;
    for (more, expected) in [
        ("content-length: 5\r\ncontent-length: 6\r\n", 400),
        ("content-length: -1\r\n", 400),
        ("content-length: 99999999999999999999999\r\n", 400),
        // The encoding counts (RFC 9112, 6.3): an empty body, which is not signed, and the end of the connection.
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", 401),
        ("transfer-encoding: gzip\r\n", 400),
        ("transfer-encoding: chunked, gzip\r\n", 400),
    ] {
        let mut stream = connect(&daemon).await;
        let request = head(&format!("connection: close\r\n{more}")) + "0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = said_to_the_end(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{more}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "nothing of it is another request: {answer}"
        );
    }
    daemon.store(1..=1).await;
}

/// More connections than the daemon takes at a time, none of which says anything: who comes with something to say is let in.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    const IDLE: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    let wanted = IDLE as u64 + 1000;
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        skipped(&format!(
            "open files: {wanted} are needed, and {:?} are allowed",
            limit.maximum
        ));
        return;
    }
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
    // Nobody goes by himself.
    let daemon =
        Daemon::start("[server]\nhead_timeout = \"10m\"\nidle_timeout = \"10m\"\nmax_connections = 10000").await;
    let before = daemon.resident();
    let mut idle = Vec::with_capacity(IDLE);
    for number in 0..IDLE {
        let mut stream = connect(&daemon).await;
        if number % 2 == 0 {
            // Half of them have begun to speak, and fallen silent.
            stream
                .write_all(b"POST /webhooks/close HTTP/1.1\r\nhost")
                .await
                .unwrap();
        }
        idle.push(stream);
    }
    // The last places are kept free by letting some of the idle go.
    until("nearly all are open", async || {
        daemon.metric("closehook_connections").await >= (IDLE - IDLE / 20) as f64
    })
    .await;
    meanwhile(&daemon, JoinSet::new()).await;
    let each = daemon.resident().saturating_sub(before) / IDLE as u64;
    assert!(each < 24 << 10, "a connection takes {each} bytes");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pipelined_requests_are_answered_at_the_readers_pace() {
    let daemon = Daemon::start(IMPATIENT).await;
    let mut attackers = JoinSet::new();
    let unsigned = "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".repeat(1000);
    let elsewhere = "GET /elsewhere HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let signed = (head("content-length: 4\r\n") + "null").repeat(1000);
    for number in 0..12 {
        let mut stream = connect(&daemon).await;
        let requests = [&unsigned, &elsewhere, &signed][number % 3].clone();
        attackers.spawn(async move {
            // Without reading an answer, and reading them all.
            if number < 6 {
                pour(&mut stream, requests.as_bytes(), 20).await;
            } else {
                let (mut read, mut write) = stream.into_split();
                let reading = tokio::spawn(async move {
                    let mut sink = tokio::io::sink();
                    let _ = tokio::io::copy(&mut read, &mut sink).await;
                });
                for _ in 0..4 {
                    if write.write_all(requests.as_bytes()).await.is_err() {
                        break;
                    }
                }
                drop(write);
                let _ = reading.await;
            }
        });
    }
    meanwhile(&daemon, attackers).await;
}

/// HTTP/2 frames by hand: a client library would not send these.
mod frames {
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A header that enters no table.
    pub fn literal(name: &str, value: &str) -> Vec<u8> {
        let mut bytes = vec![0];
        for text in [name, value] {
            if text.len() < 127 {
                bytes.push(text.len() as u8);
            } else {
                // Seven bits all set, and the rest in groups of seven.
                bytes.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    /// The head of a request.
    pub fn request() -> Vec<u8> {
        // `:method: POST` and `:scheme: http` are in the static table.
        [
            &[0x83, 0x86][..],
            &literal(":path", "/webhooks/close"),
            &literal(":authority", "x"),
        ]
        .concat()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http2_frames_hurt_nobody() {
    use frames::*;
    let daemon = Daemon::start(IMPATIENT).await;
    let odd = |number: u32| number * 2 + 1;
    let rapid_reset: Vec<u8> = (0..20_000)
        .flat_map(|number| {
            let headers = frame(HEADERS, END_HEADERS, odd(number), &request());
            [headers, frame(RST_STREAM, 0, odd(number), &8_u32.to_be_bytes())].concat()
        })
        .collect();
    let open_streams: Vec<u8> = (0..20_000)
        .flat_map(|number| frame(HEADERS, END_HEADERS, odd(number), &request()))
        .collect();
    let requests: Vec<u8> = (0..20_000)
        .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, odd(number), &request()))
        .collect();
    let continuation = [
        frame(HEADERS, 0, 1, &request()),
        frame(CONTINUATION, 0, 1, &literal("x-more", &"x".repeat(1000))).repeat(20_000),
    ]
    .concat();
    let empty_continuation = [
        frame(HEADERS, 0, 1, &request()),
        frame(CONTINUATION, 0, 1, b"").repeat(500_000),
    ]
    .concat();
    let large_heads: Vec<u8> = (0..1000)
        .flat_map(|number| {
            let head = [request(), literal("x-more", &"x".repeat(100)).repeat(150)].concat();
            frame(HEADERS, END_HEADERS, odd(number), &head)
        })
        .collect();
    let bodies: Vec<u8> = (0..100)
        .flat_map(|number| {
            let signature = [literal(TIMESTAMP_HEADER, "1"), literal(HASH_HEADER, &"0".repeat(64))].concat();
            let head = frame(HEADERS, END_HEADERS, odd(number), &[request(), signature].concat());
            [head, frame(DATA, 0, odd(number), &[b'x'; 16_000])].concat()
        })
        .collect();
    let floods = [
        rapid_reset,
        open_streams,
        requests,
        continuation,
        empty_continuation,
        large_heads,
        bodies,
        frame(PING, 0, 0, &[0; 8]).repeat(500_000),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(500_000),
        frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(500_000),
        frame(DATA, 0, 1, b"").repeat(500_000),
        frame(HEADERS, END_HEADERS, 0, &request()),
        vec![0xff; 1 << 20],
    ];
    let mut attackers = JoinSet::new();
    for reads in [false, true] {
        for flood in &floods {
            let stream = connect(&daemon).await;
            let bytes = [PREFACE, &frame(SETTINGS, 0, 0, b""), flood].concat();
            attackers.spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let reading = tokio::spawn(async move {
                    if reads {
                        let mut sink = tokio::io::sink();
                        let _ = tokio::io::copy(&mut read, &mut sink).await;
                    }
                    read
                });
                let _ = tokio::time::timeout(Duration::from_secs(5), write.write_all(&bytes)).await;
                // Open a while longer, for what the server may have piled up.
                let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
            });
        }
    }
    meanwhile(&daemon, attackers).await;
}
