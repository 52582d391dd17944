//! Every limit of the listener, each by what only it brings about: with any of them taken out, its test waits for something that
//! never comes, and fails. All other limits are far away in each.

use std::time::Duration;

use closehook::ingress::verify::{HASH_HEADER, TIMESTAMP_HEADER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Daemon, until};

/// Longest wait for what a limit must bring about; no other limit brings it about before.
const PATIENCE: Duration = Duration::from_secs(45);

const FAR: &str = "body_timeout = \"10m\"\nidle_timeout = \"10m\"\n";
const PROXIED: &str = "trusted_proxies = [\"127.0.0.0/8\"]\nproxy_protocol = true\n";

async fn daemon(limits: &str) -> Daemon {
    Daemon::start(&format!("[server]\n{limits}")).await
}

async fn connect(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(daemon.address()).await.unwrap()
}

/// A head whose signature looks right.
fn head(more: &str) -> String {
    format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{TIMESTAMP_HEADER}: 1\r\n{HASH_HEADER}: {}\r\n{more}\r\n",
        "0".repeat(64)
    )
}

/// What the server says before it closes; fails where it does not.
async fn end_of(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    assert!(read.is_ok(), "it is still open: {}", String::from_utf8_lossy(&said));
    String::from_utf8_lossy(&said).into_owned()
}

/// Sends begin, and then a byte now and then for as long as somebody takes it; gives what the server says meanwhile.
async fn trickle(stream: TcpStream, begin: &str) -> String {
    let (mut read, mut write) = stream.into_split();
    write.write_all(begin.as_bytes()).await.unwrap();
    let writing = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, read.read_to_end(&mut said)).await;
    writing.abort();
    assert!(ended.is_ok(), "it goes on and on");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_body_below_the_minimum_pace_is_refused() {
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"")).await;
    let said = trickle(connect(&daemon).await, &head("content-length: 100000\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
}

#[tokio::test]
async fn a_body_that_takes_too_long_at_a_good_pace_is_refused() {
    let daemon = daemon("body_timeout = \"3s\"\nidle_timeout = \"10m\"\nhead_timeout = \"10m\"").await;
    let (mut read, mut write) = connect(&daemon).await.into_split();
    write
        .write_all(head("content-length: 4000000\r\n").as_bytes())
        .await
        .unwrap();
    let writing = tokio::spawn(async move {
        // Two KiB twenty times a second: twenty times the minimum.
        while write.write_all(&[b'x'; 2048]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut said = vec![0; 12];
    let answered = tokio::time::timeout(PATIENCE, read.read_exact(&mut said)).await;
    writing.abort();
    assert!(answered.is_ok(), "it goes on");
    assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 408");
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let daemon = daemon(&format!("{FAR}head_timeout = \"2s\"")).await;
    let mut silent = connect(&daemon).await;
    silent
        .write_all(b"POST /webhooks/close HTTP/1.1\r\nhost")
        .await
        .unwrap();
    end_of(&mut silent).await;
    trickle(connect(&daemon).await, "POST /webhooks/close HTTP/1.1\r\nhost: ").await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_goes_on_is_closed() {
    let daemon = daemon("idle_timeout = \"2s\"\nhead_timeout = \"10m\"\nbody_timeout = \"10m\"").await;
    let mut stream = connect(&daemon).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let said = end_of(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 404"), "{said}");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let daemon = Daemon::new(&format!(
        "[server]\n{FAR}head_timeout = \"2s\"\n[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\""
    ));
    let mut daemon = daemon;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(daemon.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(daemon.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    daemon.run().await;
    end_of(&mut connect(&daemon).await).await;
    // Half of a first record, which never comes to its end.
    let mut half = connect(&daemon).await;
    half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        .await
        .unwrap();
    end_of(&mut half).await;
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_that_does_not_end_is_cut_off() {
    let daemon = daemon(&format!("{FAR}{PROXIED}head_timeout = \"2s\"")).await;
    for begin in [&b""[..], b"PROXY TCP4 198.51.", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"] {
        let mut stream = connect(&daemon).await;
        stream.write_all(begin).await.unwrap();
        assert_eq!(end_of(&mut stream).await, "");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"")).await;
    let many = "x-a: b\r\n".repeat(65);
    let long = format!("x-a: {}\r\n", "b".repeat(80 << 10));
    for more in [many, long] {
        let mut stream = connect(&daemon).await;
        // It need not take all of it.
        let _ = stream.write_all(head(&more).as_bytes()).await;
        let said = end_of(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
}

/// Bodies of a mebibyte less one byte from these addresses, one each; then how many are refused at once, for want of memory,
/// comes to be exactly `refused`.
async fn bodies_for_want_of_memory(daemon: &Daemon, addresses: &[&str], refused: u64) {
    const LEN: usize = 1 << 20;
    let mut open = Vec::new();
    for address in addresses {
        let mut stream = connect(daemon).await;
        let begin = format!(
            "PROXY TCP4 {address} 10.0.0.1 1 2\r\n{}",
            head(&format!("content-length: {LEN}\r\n"))
        );
        stream.write_all(begin.as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b'x'; LEN - 1]).await;
        open.push(stream);
    }
    let name = "closehook_requests_total{answer=\"unavailable\"}";
    until("the others are refused", async || daemon.count(name).await >= refused).await;
    assert_eq!(daemon.count(name).await, refused, "there is room for the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bodies_together_and_those_of_an_address_have_a_limit() {
    let limits = format!("{FAR}{PROXIED}head_timeout = \"10m\"\nmax_body = \"1 MiB\"\nmax_inflight = \"8 MiB\"");
    // Three quarters of it for all who never delivered.
    let all: Vec<String> = (1..=20).map(|n| format!("198.51.100.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    bodies_for_want_of_memory(&daemon(&limits).await, &all, 14).await;
    // Half of it for one.
    bodies_for_want_of_memory(&daemon(&limits).await, &["198.51.100.1"; 10], 6).await;
}

#[tokio::test]
async fn an_http2_client_is_told_its_limits_and_held_to_them() {
    const SETTINGS: u8 = 4;
    const RST_STREAM: u8 = 3;
    const REFUSED_STREAM: u32 = 7;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"")).await;
    let mut stream = connect(&daemon).await;
    let mut begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, b"")].concat();
    // `POST /webhooks/close`, whose bodies never come: as many as may be open, and one more.
    let mut block = vec![0x83, 0x86, 0x04, 15];
    block.extend(b"/webhooks/close");
    for (name, value) in [(TIMESTAMP_HEADER, "1".to_owned()), (HASH_HEADER, "0".repeat(64))] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    for number in 0..129 {
        begin.extend(frame(1, 4, number * 2 + 1, &block));
    }
    stream.write_all(&begin).await.unwrap();
    let (mut settings, mut refused) = (Vec::new(), None);
    let reading = async {
        while refused.is_none() {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await.unwrap();
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                SETTINGS if head[4] == 0 => {
                    settings = payload
                        .chunks(6)
                        .map(|one| (one[1], u32::from_be_bytes([one[2], one[3], one[4], one[5]])))
                        .collect();
                }
                RST_STREAM => refused = Some((id, u32::from_be_bytes(payload.try_into().unwrap()))),
                _ => {}
            }
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, reading).await.is_ok(),
        "all of them are open: {settings:?}"
    );
    // Streams at a time, bytes of one that may be on their way, bytes of a head.
    for limit in [(3, 128), (4, 256 << 10), (6, 32 << 10)] {
        assert!(settings.contains(&limit), "{limit:?} in {settings:?}");
    }
    assert_eq!(refused, Some((257, REFUSED_STREAM)));
}

#[tokio::test]
async fn a_connection_stays_open_between_requests_for_longer_than_a_head_may_take() {
    let daemon = daemon("idle_timeout = \"10m\"\nhead_timeout = \"1s\"\nbody_timeout = \"10m\"").await;
    let mut stream = connect(&daemon).await;
    for round in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut said = String::new();
        while !said.ends_with("here\"}\n") {
            let mut piece = [0; 512];
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut piece)).await;
            let len = read.unwrap().unwrap();
            assert!(len > 0, "it was closed in round {round}: {said:?}");
            said += std::str::from_utf8(&piece[..len]).unwrap();
        }
        assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
        // Three times what a head may take.
        let waited = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0])).await;
        assert!(waited.is_err(), "it was closed: {waited:?}");
    }
    // And a head that begins now has its limit.
    stream.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    assert_eq!(end_of(&mut stream).await, "");
}

#[tokio::test]
async fn who_never_says_anything_and_who_only_half_greets_is_cut_off() {
    let daemon = daemon(&format!("{FAR}head_timeout = \"2s\"")).await;
    for begin in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = connect(&daemon).await;
        stream.write_all(begin).await.unwrap();
        end_of(&mut stream).await;
    }
}

#[tokio::test]
async fn a_refused_sender_is_listened_to_for_a_moment_only() {
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"")).await;
    // Not signed: it is answered at once, and what it goes on to send is read for two seconds.
    let refused = "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    let said = trickle(connect(&daemon).await, refused).await;
    assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_refused_body_no_more_is_read_than_twice_what_one_may_have() {
    // What the kernel holds on its own, on both sides, comes on top.
    const READ_MAX: usize = 32 << 20;
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"\nmax_body = \"64 KiB\"")).await;
    let (mut read, mut write) = connect(&daemon).await.into_split();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let head = "POST /webhooks/close HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    write.write_all(head.as_bytes()).await.unwrap();
    let sending = async {
        let mut sent = 0;
        while sent <= READ_MAX && write.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
        sent
    };
    let mut said = Vec::new();
    let both = async { tokio::join!(sending, read.read_to_end(&mut said)).0 };
    let sent = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert!(sent <= READ_MAX, "{sent} bytes were read of what nobody wants");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_open_than_there_may_be() {
    const OPEN_MAX: f64 = 4.0;
    let daemon = daemon(&format!("{FAR}head_timeout = \"10m\"\nmax_connections = 4")).await;
    // Ten times as many, all of them taken by the kernel, and none with anything to say.
    let mut all = Vec::new();
    for _ in 0..40 {
        all.push(connect(&daemon).await);
    }
    // One after the other gets a place of one that was idle for a moment; in that time all of them would have been let in.
    let mut gone = 0;
    while gone < 4 {
        let open = daemon.metric("closehook_connections").await;
        assert!(open <= OPEN_MAX, "{open} are open");
        gone = 0;
        for stream in &all {
            gone += usize::from(matches!(stream.try_read(&mut [0]), Ok(0)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
