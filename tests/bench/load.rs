//! The sender: fresh, signed, varied deliveries over kept-alive connections, plain or within TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The key both ends know.
pub const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";

/// Where every server under measurement is asked.
pub const PATH: &str = "/webhooks/close";

/// Different bodies; more than fit one compressed unit of the log, so that their order does not help it.
const BODIES: usize = 8192;

/// Digits of the counter that makes a body's event id a fresh one.
const FRESH_LEN: usize = 12;

/// Made-up lead updates of about 1.8 KB that differ as real ones do: ids, names, prose, numbers and times, all from a seed.
pub struct Bodies {
    key: Key,
    /// Each with the place of its counter.
    templates: Vec<(Vec<u8>, usize)>,
    next: AtomicU64,
}

impl Bodies {
    pub fn new(seed: u64) -> Bodies {
        let mut random = fastrand::Rng::with_seed(seed);
        let words: Vec<String> = (0..2000)
            .map(|_| (0..random.usize(3..11)).map(|_| letter(&mut random)).collect())
            .collect();
        let bodies = (0..BODIES)
            .map(|_| {
                let body = body(&mut random, &words);
                let place = body.find("ev_000000000000").map_or(0, |at| at + 3);
                (body.into_bytes(), place)
            })
            .collect();
        Bodies {
            key: Key::from_hex(None, KEY).unwrap(),
            templates: bodies,
            next: AtomicU64::new(0),
        }
    }

    /// A body that was never given before.
    pub fn fresh(&self) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (template, place) = &self.templates[number as usize % BODIES];
        let mut body = template.clone();
        body[*place..place + FRESH_LEN].copy_from_slice(format!("{number:012}").as_bytes());
        body
    }

    /// How many were given.
    pub fn given(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// A whole signed request for a fresh body.
    fn request(&self) -> Vec<u8> {
        let body = self.fresh();
        let headers = self.key.sign(Timestamp::now(), &body);
        let mut request = format!(
            "POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            headers.timestamp,
            headers.hash,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        request
    }
}

/// Letters as often as in English, more or less: compresses like prose and not like noise.
fn letter(random: &mut fastrand::Rng) -> char {
    const OFTEN: &[u8] = b"eeeeeeettttttaaaaaooooiiiinnnnsssshhhrrrrddlllluuccmmfyywwggppbvk";
    char::from(OFTEN[random.usize(..OFTEN.len())])
}

fn id(random: &mut fastrand::Rng, prefix: &str) -> String {
    let digits: String = (0..43).map(|_| random.alphanumeric()).collect();
    format!("{prefix}_{digits}")
}

fn prose(random: &mut fastrand::Rng, words: &[String], count: usize) -> String {
    let words: Vec<&str> = (0..count)
        // Few words are frequent and many are rare.
        .map(|_| words[(random.f64() * random.f64() * words.len() as f64) as usize].as_str())
        .collect();
    words.join(" ")
}

fn time(random: &mut fastrand::Rng) -> String {
    let at = Timestamp::from_microsecond(1_767_225_600_000_000 + random.i64(0..2_592_000_000_000)).unwrap();
    format!("{at:.6}").trim_end_matches('Z').to_owned()
}

fn body(random: &mut fastrand::Rng, words: &[String]) -> String {
    let (lead, user, contact) = (id(random, "lead"), id(random, "user"), id(random, "cont"));
    let (organization, field) = (
        "orga_XbVPx5fFbKlYTz9PW5Ih1XDhViV10YihIaEgMEb6fVW",
        "cf_rR9HjgjI4SYy1X1IlMOozK2VkxMgU5NnHquTR8DVxoQ",
    );
    let (name, before) = (prose(random, words, 3), prose(random, words, 2));
    let (created, updated) = (time(random), time(random));
    let fresh = format!("ev_{:012}{:010}", 0, random.u32(..));
    let phone = format!("+1{:010}", random.u64(2_000_000_000..9_999_999_999));
    let mail = format!("{}@{}.com", prose(random, words, 1), prose(random, words, 1));
    format!(
        r#"{{"event": {{"date_created": "{updated}", "date_updated": "{updated}", "organization_id": "{organization}", "user_id": "{user}", "request_id": "{request}", "api_key_id": null, "oauth_client_id": null, "oauth_scope": null, "lead_id": "{lead}", "changed_fields": ["name", "date_updated", "custom.{field}"], "previous_data": {{"name": "{before}", "custom.{field}": {old}, "date_updated": "{created}+00:00"}}, "meta": {{"request_path": "/api/v1/lead/{lead}/", "request_method": "PUT"}}, "id": "{fresh}", "object_type": "lead", "action": "updated", "object_id": "{lead}", "data": {{"id": "{lead}", "name": "{name}", "display_name": "{name}", "description": "{description}", "url": "https://{site}.example", "status_id": "{status}", "status_label": "{label}", "contact_ids": ["{contact}"], "addresses": [{{"label": "business", "address_1": "{number} {street}", "address_2": "", "city": "{city}", "state": "CA", "zipcode": "{zip}", "country": "US"}}], "phone": "{phone}", "email": "{mail}", "custom.{field}": {new}, "custom.cf_vwqYhEFwzPyfCErS8uQ77is1wFLvr9BgVi6cTfbFM48": ["{one}", "{two}"], "organization_id": "{organization}", "created_by": "{user}", "updated_by": "{user}", "date_created": "{created}+00:00", "date_updated": "{updated}+00:00"}}}}, "subscription_id": "whsub_8AmjKCZYT3zI8eZoi4HhFC"}}"#,
        request = id(random, "req"),
        old = random.u32(..100_000),
        new = random.u32(..100_000),
        description = prose(random, words, 12),
        site = prose(random, words, 1),
        status = id(random, "stat"),
        label = ["Potential", "Qualified", "Customer", "Lost"][random.usize(..4)],
        number = random.u16(1..9999),
        street = prose(random, words, 2),
        city = prose(random, words, 1),
        zip = random.u32(10_000..99_999),
        one = prose(random, words, 1),
        two = prose(random, words, 1),
    )
}

/// Where a server is asked, and whether within TLS.
#[derive(Clone)]
pub struct Door {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl From<SocketAddr> for Door {
    fn from(address: SocketAddr) -> Door {
        Door { address, tls: None }
    }
}

impl Door {
    /// Within TLS 1.3 and HTTP/1.1, checking the server's certificate against this one. Nothing is resumed.
    pub fn within_tls(address: SocketAddr, certificate: &Path) -> Door {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Door {
            address,
            tls: Some(Arc::new(config).into()),
        }
    }

    async fn open(&self) -> Pin<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        match &self.tls {
            None => Box::pin(stream),
            Some(tls) => {
                let name = ServerName::try_from("localhost").unwrap();
                Box::pin(tls.connect(name, stream).await.unwrap())
            }
        }
    }
}

/// Plain or not.
trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

/// What a load saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Answers a second.
    pub rate: f64,
    /// 99 of 100 answers came within this.
    pub p99: Duration,
}

/// As fast as `connections` can, each waiting for its answer before it asks again. Anything but 200 ends the run.
pub async fn flood(door: impl Into<Door>, bodies: &Arc<Bodies>, connections: u64, events: u64) -> Seen {
    let door = door.into();
    let left = Arc::new(AtomicU64::new(events));
    let began = Instant::now();
    let lanes: Vec<_> = (0..connections)
        .map(|_| {
            let (door, left, bodies) = (door.clone(), left.clone(), bodies.clone());
            tokio::spawn(async move {
                let mut lane = Lane::open(&door).await;
                let mut latencies = Vec::new();
                while take_one(&left) {
                    latencies.push(lane.ask(bodies.request()).await);
                }
                latencies
            })
        })
        .collect();
    seen(lanes, began).await
}

/// `rate` requests a second, started on time whatever the answers do (so that a stall is seen by all that it delays), over
/// connections that are open already.
pub async fn paced(door: impl Into<Door>, bodies: &Arc<Bodies>, rate: u64, events: u64) -> Seen {
    const LANES: u64 = 16;
    let door = door.into();
    let mut connections = Vec::new();
    for _ in 0..LANES {
        let mut connection = Lane::open(&door).await;
        connection.ask(bodies.request()).await;
        connections.push(connection);
    }
    let began = Instant::now();
    let lanes: Vec<_> = (0..)
        .zip(connections)
        .map(|(lane, mut connection)| {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                for number in (lane..events).step_by(LANES as usize) {
                    let due = due(began, rate, number);
                    tokio::time::sleep_until(due.into()).await;
                    let woken = Instant::now();
                    connection.ask(bodies.request()).await;
                    latencies.push(since(due, woken));
                }
                latencies
            })
        })
        .collect();
    seen(lanes, began).await
}

/// When number `number` of `rate` a second is to begin.
pub fn due(began: Instant, rate: u64, number: u64) -> Instant {
    began + Duration::from_nanos(1_000_000_000 / rate * number)
}

/// What something took that was due then and has now ended: counted from when it was due, so that a stall is seen by all that it
/// delays, unless it is only the timer that was late (its grain is a millisecond).
pub fn since(due: Instant, begun: Instant) -> Duration {
    let late = begun.saturating_duration_since(due);
    if late < Duration::from_millis(2) {
        begun.elapsed()
    } else {
        due.elapsed()
    }
}

/// Sends until the server is gone.
pub async fn flood_to_the_end(address: SocketAddr, bodies: Arc<Bodies>) {
    let mut lane = Lane::open(&address.into()).await;
    while let Ok(answer) = lane.try_ask(bodies.request()).await
        && !answer.is_empty()
    {}
}

/// New connections one after the other on so many lanes, each for one small request that is refused without much work; gives
/// how many a second were opened, asked over and answered.
pub async fn knock(door: &Door, lanes: u64, connections: u64) -> f64 {
    let left = Arc::new(AtomicU64::new(connections));
    let began = Instant::now();
    let lanes: Vec<_> = (0..lanes)
        .map(|_| {
            let (door, left) = (door.clone(), left.clone());
            tokio::spawn(async move {
                while take_one(&left) {
                    let request = b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec();
                    let answer = Lane::open(&door).await.try_ask(request).await.unwrap();
                    assert!(
                        answer.starts_with("HTTP/1.1 404"),
                        "another answer than wanted: {answer}"
                    );
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.unwrap();
    }
    connections as f64 / began.elapsed().as_secs_f64()
}

/// Whether there was one left.
fn take_one(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

async fn seen(lanes: Vec<tokio::task::JoinHandle<Vec<Duration>>>, began: Instant) -> Seen {
    let mut latencies = Vec::new();
    for lane in lanes {
        latencies.extend(lane.await.unwrap());
    }
    Seen {
        rate: latencies.len() as f64 / began.elapsed().as_secs_f64(),
        p99: p99(&mut latencies),
    }
}

/// The 99th percentile.
pub fn p99(latencies: &mut [Duration]) -> Duration {
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

/// One kept-alive connection. The answers are so short that they come in one piece.
struct Lane {
    stream: Pin<Box<dyn Stream>>,
    answer: Vec<u8>,
}

impl Lane {
    async fn open(door: &Door) -> Lane {
        Lane {
            stream: door.open().await,
            answer: vec![0; 4096],
        }
    }

    async fn ask(&mut self, request: Vec<u8>) -> Duration {
        let sent = Instant::now();
        let answer = self.try_ask(request).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "an event was refused: {answer}");
        sent.elapsed()
    }

    async fn try_ask(&mut self, request: Vec<u8>) -> std::io::Result<String> {
        self.stream.write_all(&request).await?;
        // TLS may keep something back.
        self.stream.flush().await?;
        let read = self.stream.read(&mut self.answer).await?;
        Ok(String::from_utf8_lossy(&self.answer[..read]).into_owned())
    }
}
