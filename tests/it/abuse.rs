//! What one address can't do to the others, nor to a good sender behind the same address. Clients get the addresses they need
//! for it from the PROXY protocol.

use std::time::{Duration, Instant};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, body, said_to_the_end};

/// Longest wait for an answer, or for the end of a connection.
const PATIENCE: Duration = Duration::from_secs(45);

const PROXIED: &str = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\nproxy_protocol = true\n";

/// A client at an address.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn at(daemon: &Daemon, address: &str) -> Client {
        let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
        let family = if address.contains(':') { "TCP6" } else { "TCP4" };
        let destination = if address.contains(':') { "::1" } else { "10.0.0.1" };
        let line = format!("PROXY {family} {address} {destination} 1 2\r\n");
        stream.write_all(line.as_bytes()).await.unwrap();
        Client(BufReader::new(stream))
    }

    /// The head of the answer; empty where the connection was closed instead. Fails where there is neither.
    async fn request(&mut self, headers: &str, body: &str) -> String {
        tokio::time::timeout(PATIENCE, self.exchange(headers, body))
            .await
            .unwrap()
    }

    async fn exchange(&mut self, headers: &str, body: &str) -> String {
        let request = format!(
            "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut head = String::new();
        if self.0.write_all(request.as_bytes()).await.is_err() {
            return head;
        }
        while !head.ends_with("\r\n\r\n") {
            if !matches!(self.0.read_line(&mut head).await, Ok(1..)) {
                return String::new();
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut answer = vec![0; length.unwrap().parse().unwrap()];
        self.0.read_exact(&mut answer).await.unwrap();
        head
    }

    async fn unsigned(&mut self) -> String {
        self.request("", "").await
    }

    async fn signed(&mut self, id: u64) -> String {
        let body = body(id);
        let signature = Key::from_hex(None, KEY)
            .unwrap()
            .sign(jiff::Timestamp::now(), body.as_bytes());
        let headers = format!(
            "{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\n",
            signature.timestamp, signature.hash
        );
        self.request(&headers, &body).await
    }

    /// Waits for the server to close.
    async fn is_closed(&mut self) -> bool {
        let read = tokio::time::timeout(PATIENCE, self.0.read(&mut [0])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }
}

#[tokio::test]
async fn refusals_of_an_address_that_keeps_failing_wait_and_its_signed_deliveries_do_not() {
    let daemon = Daemon::start(&format!("{PROXIED}failures_per_address = \"1/h\"")).await;
    let mut attacker = Client::at(&daemon, "198.51.100.1").await;
    for _ in 0..60 {
        assert!(attacker.unsigned().await.contains(" 401 "));
    }
    assert_eq!(daemon.count("closehook_slowed_requests_total").await, 0);
    let began = Instant::now();
    let slowed = attacker.unsigned().await;
    // Two seconds, and nobody's machine is so slow as to make them shorter.
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
    assert!(
        slowed.contains(" 401 ") && slowed.contains("connection: close"),
        "{slowed}"
    );
    assert_eq!(daemon.count("closehook_slowed_requests_total").await, 1);

    // While many more of its refusals wait, a good sender behind the same address is served, and so is everybody else.
    let flood: Vec<_> = (0..20)
        .map(|_| {
            let address = daemon.address();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let request = "PROXY TCP4 198.51.100.1 10.0.0.1 1 2\r\nPOST /webhooks/close HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(request.as_bytes()).await.unwrap();
                said_to_the_end(&mut stream).await
            })
        })
        .collect();
    let mut good = Client::at(&daemon, "198.51.100.1").await;
    for id in 1..=10 {
        assert!(good.signed(id).await.contains(" 200 "));
    }
    let mut other = Client::at(&daemon, "198.51.100.2").await;
    assert!(other.unsigned().await.contains(" 401 "));
    assert!(other.signed(11).await.contains(" 200 "));
    for refused in flood {
        assert!(refused.await.unwrap().contains(" 401 "));
    }
    assert_eq!(daemon.count("closehook_slowed_requests_total").await, 21);
    let logged = daemon.stderr().matches("keeps failing").count();
    assert!((1..21).contains(&logged), "sampled, not one by one: {logged}");
}

#[tokio::test]
async fn connections_of_one_address_displace_each_other_and_nobody_who_delivers() {
    let daemon = Daemon::start(&format!("{PROXIED}connections_per_address = 3")).await;
    let mut good = Client::at(&daemon, "198.51.100.1").await;
    assert!(good.signed(1).await.contains(" 200 "));
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut client = Client::at(&daemon, "198.51.100.1").await;
        // Its answer shows that it has its place.
        assert!(client.unsigned().await.contains(" 401 "));
        idle.push(client);
    }
    let mut other = Client::at(&daemon, "198.51.100.2").await;
    assert!(other.signed(2).await.contains(" 200 "));
    for displaced in &mut idle[..2] {
        assert!(displaced.is_closed().await);
    }
    for kept in &mut idle[2..] {
        assert!(kept.unsigned().await.contains(" 401 "));
    }
    assert_eq!(daemon.count("closehook_displaced_connections_total").await, 2);
    // A sender that comes only now gets in too, and when all places are good senders', the next one does not.
    for id in 3..=4 {
        assert!(
            Client::at(&daemon, "198.51.100.1")
                .await
                .signed(id)
                .await
                .contains(" 200 ")
        );
    }
    assert!(good.signed(5).await.contains(" 200 "));
}

#[tokio::test]
async fn an_address_with_nothing_but_good_connections_gets_no_more_of_them() {
    let daemon = Daemon::start(&format!("{PROXIED}connections_per_address = 2")).await;
    let mut good = [
        Client::at(&daemon, "2001:db8::1").await,
        Client::at(&daemon, "2001:db8::2").await,
    ];
    for (client, id) in good.iter_mut().zip(1..) {
        assert!(client.signed(id).await.contains(" 200 "));
    }
    assert!(Client::at(&daemon, "2001:db8::3").await.is_closed().await);
    for (client, id) in good.iter_mut().zip(3..) {
        assert!(client.signed(id).await.contains(" 200 "));
    }
    let mut other = Client::at(&daemon, "2001:db8:0:1::1").await;
    assert!(other.signed(5).await.contains(" 200 "));
    let turned_away = daemon
        .count("closehook_turned_away_total{reason=\"connections\"}")
        .await;
    assert_eq!(turned_away, 1);
}

#[tokio::test]
async fn only_networks_that_may_send_do() {
    let daemon = Daemon::start(&format!("{PROXIED}allow = [\"198.51.100.0/24\", \"2001:db8::/32\"]")).await;
    for (address, id) in [("198.51.100.1", 1), ("2001:db8::1", 2)] {
        assert!(Client::at(&daemon, address).await.signed(id).await.contains(" 200 "));
    }
    assert_eq!(Client::at(&daemon, "203.0.113.1").await.signed(3).await, "");
    assert_eq!(daemon.count("closehook_turned_away_total{reason=\"network\"}").await, 1);

    // Behind a proxy that speaks HTTP it is one more sender that can't sign, whatever it asks for and however it is signed.
    let config = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\nallow = [\"198.51.100.0/24\"]";
    let daemon = Daemon::start(config).await;
    let ask = async |address: &str, method: &str, path: &str, is_signed: bool| {
        let url = daemon.url.replace("/webhooks/close", path);
        let mut request = daemon.client.request(method.parse().unwrap(), url);
        let body = body(4);
        if is_signed {
            let headers = Key::from_hex(None, KEY)
                .unwrap()
                .sign(jiff::Timestamp::now(), body.as_bytes());
            request = request
                .header(TIMESTAMP_HEADER, headers.timestamp)
                .header(HASH_HEADER, headers.hash);
        }
        let answer = request
            .header("x-forwarded-for", address)
            .body(body)
            .send()
            .await
            .unwrap();
        assert!(answer.headers().contains_key("x-request-id"));
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (outside, inside, hook) = ("203.0.113.1", "198.51.100.1", "/webhooks/close");
    for (method, path, expected) in [("POST", hook, 401), ("GET", hook, 405), ("POST", "/", 404)] {
        let unsigned = ask(inside, method, path, false).await;
        assert_eq!(unsigned.0, expected);
        assert_eq!(ask(outside, method, path, false).await, unsigned);
        assert_eq!(ask(outside, method, path, true).await, unsigned);
    }
    assert_eq!(daemon.count("closehook_turned_away_total{reason=\"network\"}").await, 6);
    assert_eq!(ask(inside, "POST", hook, true).await.0, 200);
}
