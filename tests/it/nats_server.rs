//! A NATS server of a test's own: the binary that `tests/run.sh` installs, a temporary directory, a free port. Knows nothing of closehook.

// Each of its users leaves something out.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

const PATIENCE: Duration = Duration::from_secs(60);

/// Who may do everything, where users are configured.
pub const ADMIN: &str = "{ user: admin, password: admin-pass }";

/// A stored message.
#[derive(Debug, Clone)]
pub struct Stored {
    pub seq: u64,
    pub subject: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Stored {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
    /// Of the server's certificate, where it speaks TLS.
    pub ca: Option<PathBuf>,
    /// How the admin gets in, where no password does.
    pub creds: Option<String>,
    pub token: Option<String>,
    /// A certificate of ours and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    tls_first: bool,
}

impl Server {
    /// A running server with JetStream; `None`, loudly, where none is installed. `more` are lines of its configuration, where `DIR` is its
    /// directory.
    pub async fn start(more: &str) -> Option<Server> {
        let mut server = Server::new()?;
        server.configure(more);
        server.run().await;
        Some(server)
    }

    /// One that does not run yet.
    pub fn new() -> Option<Server> {
        if !binary().exists() {
            skip::skipped("nats-server is not installed (tests/run.sh does)");
            return None;
        }
        Some(Server {
            dir: tempfile::tempdir().unwrap(),
            port: 0,
            child: None,
            ca: None,
            creds: None,
            token: None,
            identity: None,
            tls_first: false,
        })
    }

    /// Replaces its configuration; one that runs takes it over with [`Server::reload`].
    pub fn configure(&mut self, more: &str) {
        let dir = self.dir.path().display().to_string();
        let jetstream = if more.contains("jetstream") {
            ""
        } else {
            "jetstream { store_dir: \"DIR/js\" }\n"
        };
        let text = format!("{jetstream}{more}").replace("DIR", &dir);
        self.tls_first = more.contains("handshake_first");
        std::fs::write(self.dir.path().join("nats.conf"), text).unwrap();
    }

    /// Starts it (again), on its port if it has one, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        let fixed = self.port != 0;
        loop {
            assert!(began.elapsed() < PATIENCE, "nats-server does not start: {}", self.log());
            if !fixed {
                self.port = crate::ports::free_port();
            }
            let log = std::fs::File::options()
                .create(true)
                .append(true)
                .open(self.dir.path().join("log"))
                .unwrap();
            let mut child = Command::new(binary())
                .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-c"])
                .arg(self.dir.path().join("nats.conf"))
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let answers = loop {
                if child.try_wait().unwrap().is_some() {
                    break false;
                }
                if self.try_admin().await.is_some() {
                    break true;
                }
                assert!(
                    began.elapsed() < PATIENCE,
                    "nats-server does not answer: {}",
                    self.log()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if answers {
                self.child = Some(child);
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn try_admin(&self) -> Option<Client> {
        let mut options = match (&self.creds, &self.token) {
            (Some(creds), _) => ConnectOptions::with_credentials(creds).unwrap(),
            (None, Some(token)) => ConnectOptions::with_token(token.clone()),
            (None, None) => ConnectOptions::with_user_and_password("admin".into(), "admin-pass".into()),
        };
        if let Some((cert, key)) = &self.identity {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if self.tls_first {
            options = options.tls_first();
        }
        options.connect(format!("localhost:{}", self.port)).await.ok()
    }

    pub async fn admin(&self) -> Client {
        self.try_admin().await.expect("nats-server does not answer")
    }

    /// For a sink.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Asks JetStream's API; `None`: no answer.
    pub async fn try_api(&self, what: &str, question: &Value) -> Option<Value> {
        let text = if question.is_null() {
            String::new()
        } else {
            question.to_string()
        };
        let admin = self.try_admin().await?;
        let answer = admin.request(format!("$JS.API.{what}"), text.into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// Asks JetStream's API.
    pub async fn api(&self, what: &str, question: &Value) -> Value {
        let answer = self.try_api(what, question).await;
        answer.unwrap_or_else(|| panic!("{what}: no answer: {}", self.log()))
    }

    /// The same; nothing may be wrong.
    pub async fn good(&self, what: &str, question: &Value) -> Value {
        let answer = self.api(what, question).await;
        assert!(answer["error"].is_null(), "{what}: {answer}");
        answer
    }

    /// Makes a stream, or changes it. `more` is what differs from the defaults.
    pub async fn stream(&self, name: &str, subjects: &[&str], more: &Value) {
        let made = self.try_stream(name, subjects, more).await;
        assert!(made == Ok(()), "{name} {more}: {made:?} {}", self.log());
    }

    /// The same; what is wrong.
    pub async fn try_stream(&self, name: &str, subjects: &[&str], more: &Value) -> Result<(), Value> {
        let mut config = json!({
            "name": name, "subjects": subjects, "storage": "file", "retention": "limits", "discard": "old", "max_msgs": -1, "max_bytes": -1,
            "max_age": 0, "max_msg_size": -1, "num_replicas": 1, "duplicate_window": 600_000_000_000_u64, "max_consumers": -1,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let asked = self.try_api(&format!("STREAM.INFO.{name}"), &Value::Null).await;
        let verb = match asked {
            Some(info) if info["error"].is_null() => "UPDATE",
            Some(_) => "CREATE",
            None => return Err("no answer".into()),
        };
        let made = self.try_api(&format!("STREAM.{verb}.{name}"), &config).await;
        match made.map(|made| made["error"].clone()) {
            Some(Value::Null) => Ok(()),
            Some(error) => Err(error),
            None => Err("no answer".into()),
        }
    }

    /// How many messages a stream holds.
    pub async fn count(&self, stream: &str) -> u64 {
        let info = self.good(&format!("STREAM.INFO.{stream}"), &Value::Null).await;
        info["state"]["messages"].as_u64().unwrap()
    }

    /// All messages of a stream, in their order.
    pub async fn messages(&self, stream: &str) -> Vec<Stored> {
        let info = self.good(&format!("STREAM.INFO.{stream}"), &Value::Null).await;
        let state = &info["state"];
        let (first, last) = (
            state["first_seq"].as_u64().unwrap(),
            state["last_seq"].as_u64().unwrap(),
        );
        let client = self.admin().await;
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let get = |seq: u64| {
            let asked = client.request(subject.clone(), json!({ "seq": seq }).to_string().into());
            async move { serde_json::from_slice::<Value>(&asked.await.unwrap().payload).unwrap() }
        };
        let mut messages = Vec::new();
        let seqs: Vec<u64> = (first.max(1)..=last).collect();
        for some in seqs.chunks(200) {
            let answers = futures::future::join_all(some.iter().map(|seq| get(*seq))).await;
            messages.extend(answers.iter().filter(|answer| answer["error"].is_null()).map(stored));
        }
        messages
    }

    /// Sends the process a signal: `HUP` reloads its configuration, `USR2` makes it a lame duck.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Takes over a new configuration.
    pub async fn reload(&mut self, more: &str) {
        let count = |log: &str| log.matches("Reloaded server configuration").count();
        let before = count(&self.log());
        self.configure(more);
        self.signal("HUP");
        let began = Instant::now();
        while count(&self.log()) == before {
            assert!(began.elapsed() < PATIENCE, "it does not reload: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stands still, with its connections open.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// kill -9, and the process is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- nats-server said at last:\n{}", last.join("\n"));
        }
    }
}

fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/nats/bin/nats-server")
}

fn stored(answer: &Value) -> Stored {
    let message = &answer["message"];
    let decoded = |key: &str| STANDARD.decode(message[key].as_str().unwrap_or_default()).unwrap();
    let head = String::from_utf8(decoded("hdrs")).unwrap();
    let headers = head
        .split("\r\n")
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Stored {
        seq: message["seq"].as_u64().unwrap(),
        subject: message["subject"].as_str().unwrap().to_owned(),
        headers: headers.collect(),
        body: decoded("data"),
    }
}

/// A key pair as NATS writes it (nkeys): of an operator, an account or a user.
pub struct Nkey {
    pair: Ed25519KeyPair,
    raw: [u8; 32],
    prefix: u8,
}

pub const OPERATOR: u8 = 14 << 3;
pub const ACCOUNT: u8 = 0;
pub const USER: u8 = 20 << 3;

impl Nkey {
    pub fn new(prefix: u8) -> Nkey {
        let mut raw = [0; 32];
        fastrand::fill(&mut raw);
        Nkey {
            pair: Ed25519KeyPair::from_seed_unchecked(&raw).unwrap(),
            raw,
            prefix,
        }
    }

    pub fn public(&self) -> String {
        let mut bytes = vec![self.prefix];
        bytes.extend(self.pair.public_key().as_ref());
        encoded(bytes)
    }

    pub fn seed(&self) -> String {
        // S stands before the kind of key.
        let mut bytes = vec![(18 << 3) | (self.prefix >> 5), (self.prefix & 31) << 3];
        bytes.extend(self.raw);
        encoded(bytes)
    }

    /// A JWT that this key signs.
    pub fn signs(&self, subject: &Nkey, nats: &Value, expires: Option<i64>) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({
            "jti": format!("{:032X}", fastrand::u128(..)), "iat": now, "iss": self.public(), "sub": subject.public(), "name": "test",
            "nats": nats,
        });
        if let Some(expires) = expires {
            claims["exp"] = (now + expires).into();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// Base32 with a CRC-16 (XMODEM, little endian) at its end.
fn encoded(mut bytes: Vec<u8>) -> String {
    let mut crc = 0_u16;
    for byte in &bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    bytes.extend(crc.to_le_bytes());
    let bits: Vec<bool> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1 == 1))
        .collect();
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    bits.chunks(5)
        .map(|five| {
            let value = (0..5).fold(0, |value, at| {
                value << 1 | usize::from(five.get(at).copied().unwrap_or_default())
            });
            char::from(letters[value])
        })
        .collect()
}

/// An operator with one account beside the system's: the server's configuration, and whoever makes users of it.
pub struct Operated {
    account: Nkey,
    pub config: String,
}

impl Operated {
    pub fn new() -> Operated {
        let (operator, system, account) = (Nkey::new(OPERATOR), Nkey::new(ACCOUNT), Nkey::new(ACCOUNT));
        let own = operator.signs(
            &operator,
            &json!({ "type": "operator", "version": 2, "system_account": system.public() }),
            None,
        );
        let limits = |storage: i64| {
            json!({ "type": "account", "version": 2, "default_permissions": { "pub": {}, "sub": {} }, "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage } })
        };
        let system_jwt = operator.signs(&system, &limits(0), None);
        let account_jwt = operator.signs(&account, &limits(-1), None);
        let config = format!(
            "operator: {own}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{ {system}: {system_jwt}, {account}: {account_jwt} }}\n",
            system = system.public(),
            account = account.public(),
        );
        Operated { account, config }
    }

    /// What stands in the `.creds` file of a new user, who is good for so many seconds.
    pub fn creds(&self, expires: Option<i64>) -> String {
        let user = Nkey::new(USER);
        let rights =
            json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let jwt = self.account.signs(&user, &rights, expires);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed()
        )
    }
}
