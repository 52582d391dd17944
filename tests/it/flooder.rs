//! Servers that send without end, and what must go on beside them (I7).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ConnectionTrafficSecrets, ServerConfig, ServerConnection, Stream};

use crate::harness::{Daemon, Receiver, until};

/// Events for each sink, and so flooded requests at a time.
pub const EVENTS: u64 = 8;

/// Far more than a flooded delivery may take (its `timeout` is two seconds), on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(25);

pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// What it does with a connection; it ends when the other side has closed it.
pub type Deed = fn(&mut dyn Wire) -> std::io::Result<()>;

/// A receiver on threads of its own, which nothing but its peer holds up.
pub struct Flooder {
    pub port: u16,
    /// Connections that are open now.
    open: Arc<AtomicUsize>,
    /// Those there were.
    seen: Arc<AtomicUsize>,
}

impl Flooder {
    pub fn start(tls: Option<Arc<ServerConfig>>, deed: Deed) -> Flooder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let flooder = Flooder {
            port: listener.local_addr().unwrap().port(),
            open: Arc::default(),
            seen: Arc::default(),
        };
        let (open, seen) = (flooder.open.clone(), flooder.seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (open, tls) = (open.clone(), tls.clone());
                open.fetch_add(1, Ordering::SeqCst);
                seen.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let _ = serve(stream, tls, deed);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        flooder
    }
}

fn serve(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, deed: Deed) -> std::io::Result<()> {
    let Some(config) = tls else {
        return deed(&mut stream);
    };
    let mut connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    deed(&mut Stream::new(&mut connection, &mut stream))
}

/// Reads one request of HTTP/1.1.
pub fn request(wire: &mut dyn Wire) -> std::io::Result<()> {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let len = wire.read(&mut buffer)?;
        if len == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&buffer[..len]);
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
            return Ok(());
        }
    }
}

/// Says `first`, and then the same again and again.
pub fn endless(wire: &mut dyn Wire, first: &[u8], again: &[u8]) -> std::io::Result<()> {
    wire.write_all(first)?;
    let much = again.repeat((64 << 10) / again.len());
    loop {
        wire.write_all(&much)?;
    }
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// What there is in HTTP/1.1, and whether the event was taken: a status that was read is the answer.
pub const FLOODS: [(&str, bool, Deed); 8] = [
    ("interim", false, |wire| {
        request(wire)?;
        endless(wire, b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    }),
    ("hints", false, |wire| {
        request(wire)?;
        endless(
            wire,
            b"",
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-a: b\r\nx-c: d\r\n\r\n",
        )
    }),
    ("head", false, |wire| {
        request(wire)?;
        endless(wire, b"HTTP/1.1 200 OK\r\n", b"x: y\r\n")
    }),
    ("line", false, |wire| {
        request(wire)?;
        endless(wire, b"HTTP/1.1 200 OK\r\nx: ", b"y")
    }),
    ("unasked", false, |wire| {
        endless(wire, b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    }),
    ("trailers", true, |wire| {
        request(wire)?;
        endless(wire, &[CHUNKED, b"0\r\n"].concat(), b"x: y\r\n")
    }),
    ("chunks", true, |wire| {
        request(wire)?;
        endless(wire, CHUNKED, b"1\r\nx\r\n")
    }),
    ("body", true, |wire| {
        request(wire)?;
        endless(wire, b"HTTP/1.1 200 OK\r\n\r\n", b"x")
    }),
];

/// Frames of HTTP/2, each again and again, and whether the event was taken.
pub const FRAMES: [(&str, bool, Deed); 9] = [
    ("ping", false, |wire| frames(wire, &[], &frame(6, 0, 0, b"12345678"))),
    ("settings", false, |wire| frames(wire, &[], &frame(4, 0, 0, b""))),
    ("settings-of-all", false, |wire| {
        frames(wire, &[], &frame(4, 0, 0, &[0, 4, 0, 0, 255, 255]))
    }),
    ("window", false, |wire| {
        frames(wire, &[], &frame(8, 0, 0, &[0, 0, 0, 1]))
    }),
    ("unknown", false, |wire| frames(wire, &[], &frame(0xee, 0, 0, b""))),
    // :status: 100
    ("interim", false, |wire| {
        frames(wire, &[], &frame(1, 4, 1, b"\x08\x03100"))
    }),
    ("continuation", false, |wire| {
        frames(wire, &frame(1, 0, 1, b"\x88"), &frame(9, 0, 1, b""))
    }),
    ("continued", false, |wire| {
        frames(wire, &frame(1, 0, 1, b"\x88"), &frame(9, 0, 1, b"\x00\x01x\x01y"))
    }),
    ("data", true, |wire| {
        frames(wire, &frame(1, 4, 1, b"\x88"), &frame(0, 0, 1, b""))
    }),
];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// As a server begins, and then frames without end, once it was asked.
pub fn frames(wire: &mut dyn Wire, first: &[u8], again: &[u8]) -> std::io::Result<()> {
    wire.write_all(&frame(4, 0, 0, b""))?;
    // Up to the headers of the first request, whatever is in them; what else is asked is not read.
    let mut read = Vec::new();
    let (preface, mut at) = (24, 24);
    loop {
        let mut buffer = [0; 4096];
        let len = wire.read(&mut buffer)?;
        if len == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&buffer[..len]);
        while read.len() >= at.max(preface) + 9 {
            if read[at + 3] == 1 {
                return endless(wire, first, again);
            }
            at += 9 + u32::from_be_bytes([0, read[at], read[at + 1], read[at + 2]]) as usize;
        }
    }
}

/// A certificate for localhost, and who shows it.
pub fn server(protocol: &[u8]) -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    (cert.pem(), Arc::new(config))
}
/// For [`changes_keys`] and [`says_nothing`].
static SEALED: OnceLock<(String, Arc<ServerConfig>)> = OnceLock::new();

/// The certificate that these two show.
pub fn sealed() -> &'static (String, Arc<ServerConfig>) {
    SEALED.get_or_init(|| {
        let (pem, mut config) = server(b"http/1.1");
        Arc::get_mut(&mut config).unwrap().enable_secret_extraction = true;
        (pem, config)
    })
}

/// TLS that says again and again that it goes on with other keys: records that hold nothing for HTTP.
pub fn changes_keys(wire: &mut dyn Wire) -> std::io::Result<()> {
    let mut connection = ServerConnection::new(sealed().1.clone()).map_err(std::io::Error::other)?;
    let mut wire = wire;
    request(&mut Stream::new(&mut connection, &mut wire))?;
    loop {
        connection.refresh_traffic_keys().map_err(std::io::Error::other)?;
        while connection.wants_write() {
            connection.write_tls(&mut wire)?;
        }
    }
}

/// TLS whose records are genuine and hold nothing.
pub fn says_nothing(wire: &mut dyn Wire) -> std::io::Result<()> {
    let mut connection = ServerConnection::new(sealed().1.clone()).map_err(std::io::Error::other)?;
    let mut wire = wire;
    request(&mut Stream::new(&mut connection, &mut wire))?;
    let secrets = connection.dangerous_extract_secrets().map_err(std::io::Error::other)?;
    let (mut number, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets.tx else {
        return Err(std::io::Error::other("another cipher"));
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
    loop {
        let mut records = Vec::new();
        while records.len() < 64 << 10 {
            // RFC 8446, 5.2 and 5.3: the type of what it holds, and nothing before it.
            let head = [0x17, 3, 3, 0, 17];
            let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
            for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
                *byte ^= of_number;
            }
            let mut sealed = vec![0x17];
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut sealed)
                .unwrap();
            records.extend(head);
            records.extend(sealed);
            number += 1;
        }
        wire.write_all(&records)?;
    }
}
/// A sink that gives up after two seconds, and tries again in an hour.
pub fn sink(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\nstart = \"beginning\"\nallow_private = true\ntimeout = \"2s\"\n\
         retry = {{ initial = \"1h\", max_delay = \"1h\" }}\nbreaker = {{ failures = 1000, refusals = 1000 }}\n{more}\n"
    )
}
/// What comes of a flood: the event is taken, it is tried again, or nothing can be sent at all (`None`).
pub type Flood = (String, Option<bool>, Flooder);

/// Whether the daemon does all else as if there was no flood, and each flooded delivery ends when it should.
pub async fn others_go_on(config: String, floods: Vec<Flood>) {
    others_go_on_with(Vec::new(), config, floods).await;
}

/// The same with variables of the daemon's.
pub async fn others_go_on_with(environment: Vec<(String, String)>, config: String, floods: Vec<Flood>) {
    let good = Receiver::start(200).await;
    let mut daemon = Daemon::new(&format!("{config}{}", sink("good", &good.url, "")));
    daemon.environment = environment;
    daemon.run().await;
    let began = Instant::now();
    daemon.store(1..=EVENTS).await;
    for (name, _, flooder) in &floods {
        until(&format!("{name} was asked"), async || {
            flooder.seen.load(Ordering::SeqCst) > 0
        })
        .await;
        let asked = Instant::now();
        let health = daemon.ask_admin("/healthz").await;
        assert!(
            health.status().is_success() && asked.elapsed() < SOON,
            "{name}: /healthz took {:?}",
            asked.elapsed()
        );
    }
    until("the healthy sink has all", async || good.count() as u64 >= EVENTS).await;
    assert!(began.elapsed() < SOON, "the healthy sink took {:?}", began.elapsed());
    let mut running = Vec::new();
    until("each flooded delivery has ended", async || {
        let sinks = daemon.lines(&["sinks", "list"]);
        // What can't be sent for want of a way counts for no event, and is tried again and again.
        let is_running = |sink: &&serde_json::Value| {
            let ended = sink["delivered"].as_u64().unwrap() + sink["retrying"].as_u64().unwrap();
            let counts = floods
                .iter()
                .any(|(name, taken, _)| taken.is_some() && sink["name"] == *name);
            counts && (sink["in_flight"] != 0 || ended < EVENTS)
        };
        running = sinks
            .iter()
            .filter(is_running)
            .map(|sink| sink["name"].clone())
            .collect();
        running.is_empty() || began.elapsed() > SOON
    })
    .await;
    assert_eq!(running, [""; 0], "they took longer than {SOON:?}");
    for (name, is_taken, flooder) in &floods {
        let sink = daemon.sink(name);
        let key = if *is_taken == Some(true) {
            "delivered"
        } else {
            "retrying"
        };
        // Over HTTP/2 all requests are on one connection, which is answered once.
        let least = u64::from(is_taken.is_some());
        assert!(sink[key].as_u64() >= Some(least), "{name}: {sink}");
        if *is_taken != Some(true) {
            until(&format!("{name} says what is wrong"), async || {
                daemon.sink(name)["last_error"].is_string()
            })
            .await;
        }
        until(&format!("nobody listens to {name} any more"), async || {
            flooder.open.load(Ordering::SeqCst) == 0
        })
        .await;
    }
    // And nothing of it is left.
    daemon.store(EVENTS + 1..=EVENTS + 1).await;
    until("the healthy sink goes on", async || good.count() as u64 > EVENTS).await;
}
