//! Restarts that nobody notices: the socket is held outside, handed over at each start, and what was accepted is answered.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, body, until};

/// Sends a delivery and reads its answer; `close`: this is to be the connection's last. Gives the answer's first line and
/// body, and the connection where it lives on.
async fn deliver(
    mut stream: BufReader<TcpStream>,
    id: u64,
    close: bool,
) -> std::io::Result<(String, Option<BufReader<TcpStream>>)> {
    let body = body(id);
    let signature = Key::from_hex(None, KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), body.as_bytes());
    let request = format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{}{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\ncontent-length: {}\r\n\r\n{body}",
        if close { "connection: close\r\n" } else { "" },
        signature.timestamp,
        signature.hash,
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let value = |name: &str| {
        let line = head.lines().find(|line| line.starts_with(name));
        line.map_or("", |line| line[name.len()..].trim())
    };
    let mut answer = vec![0; value("content-length:").parse().unwrap()];
    stream.read_exact(&mut answer).await?;
    let is_last = close || value("connection:") == "close";
    let first = head.lines().next().unwrap_or_default();
    let answer = format!("{first} {}", String::from_utf8_lossy(&answer));
    Ok((answer, (!is_last).then_some(stream)))
}

/// Sends one delivery after the other until told to stop; nothing is ever tried twice, and everything must be stored.
async fn send_on(address: SocketAddr, keep_alive: bool, next_id: Arc<AtomicU64>, enough: Arc<AtomicBool>) {
    let mut kept = None;
    while !enough.load(Ordering::SeqCst) {
        let id = next_id.fetch_add(1, Ordering::SeqCst);
        let stream = if let Some(stream) = kept.take() {
            stream
        } else {
            let connected = TcpStream::connect(address).await;
            BufReader::new(connected.unwrap_or_else(|error| panic!("a connection is refused: {error}")))
        };
        let (answer, stream) = deliver(stream, id, !keep_alive)
            .await
            .unwrap_or_else(|error| panic!("delivery {id} got no answer: {error}"));
        assert!(answer.contains(" 200 ") && answer.contains("\"stored\""), "{answer}");
        kept = stream;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_under_load_refuse_nothing_fail_nothing_and_lose_nothing() {
    let restarts: u32 = std::env::var("CLOSEHOOK_RESTARTS").map_or(5, |count| count.parse().unwrap());
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut daemon = Daemon::new("");
    let command = daemon.with_socket("closehook.socket", socket.try_clone().unwrap().into());
    daemon.launch(command).await;
    assert!(daemon.url.contains(&address.to_string()), "{}", daemon.url);

    let (next_id, enough) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let senders: Vec<_> = (0..8)
        .map(|index| tokio::spawn(send_on(address, index % 2 == 0, next_id.clone(), enough.clone())))
        .collect();
    for _ in 0..restarts {
        let begun = next_id.load(Ordering::SeqCst);
        until("deliveries flow", async || next_id.load(Ordering::SeqCst) > begun + 50).await;
        daemon.stop().await;
        let command = daemon.with_socket("closehook.socket", socket.try_clone().unwrap().into());
        daemon.launch(command).await;
    }
    enough.store(true, Ordering::SeqCst);
    for sender in senders {
        sender.await.unwrap();
    }

    let sent = next_id.load(Ordering::SeqCst) - 1;
    let mut stored: Vec<String> = daemon
        .lines(&["events", "list", "--since", "1h", "--limit", &(sent + 1).to_string()])
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    stored.sort();
    let mut expected: Vec<String> = (1..=sent).map(|id| format!("ev_{id}")).collect();
    expected.sort();
    assert_eq!(stored, expected, "every delivery is kept once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_called_admin_is_the_admin_listener() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut daemon = Daemon::new("");
    let command = daemon.with_socket("admin", socket.into());
    daemon.launch(command).await;
    assert_eq!(daemon.admin, format!("http://{address}"));
    daemon.store(1..=1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_arrive_through_a_unix_socket_that_was_passed_on() {
    let mut daemon = Daemon::new("");
    let path = daemon.path("public.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let command = daemon.with_socket("", socket.into());
    daemon.launch(command).await;
    let client = reqwest::Client::builder().unix_socket(path).build().unwrap();
    let answer = client.post("http://x/webhooks/close").send().await.unwrap();
    assert_eq!(answer.status(), 401);
}

#[test]
fn what_is_no_listening_socket_is_refused_with_a_reason() {
    let daemon = Daemon::new("");
    let file = std::fs::File::open("/dev/null").unwrap();
    let output = daemon.with_socket("", file.into()).output().unwrap();
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{says}");
    assert!(says.contains("pass on a listening"), "{says}");
}

/// SIGTERM in the middle of a reload that waits for a sink: it ends, and what was reached is saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_a_reload_is_a_good_end() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let sinks = |timeout: &str| {
        format!(
            "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"http://{}/hook\"\nallow_private = true\n\
             start = \"beginning\"\ntimeout = \"{timeout}\"\n\
             [[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n",
            hanging.local_addr().unwrap()
        )
    };
    let mut daemon = Daemon::start(&sinks("10m")).await;
    daemon.store(1..=3).await;
    until("one sink hangs, and the other has all", async || {
        daemon.sink("crm")["in_flight"].as_u64() > Some(0) && daemon.sink("file")["cursor"] == 3
    })
    .await;
    daemon.configure(&sinks("11m"));
    daemon.signal(libc::SIGHUP);
    until("the reload waits for it", async || {
        daemon.sink("crm")["waits_for"] == "it is stopping"
    })
    .await;
    daemon.store(4..=4).await;
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(daemon.sink("crm")["cursor"], 0);
    until("the other goes on", async || daemon.sink("file")["cursor"] == 4).await;
    assert_eq!(
        crate::harness::ids_in(&daemon.path("events.jsonl")),
        ["ev_1", "ev_2", "ev_3", "ev_4"]
    );
}
