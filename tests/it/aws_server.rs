//! What stands in for AWS: ministack, a server for many of its services, with a directory and a port of its own; a bucket that answers
//! as it is told; and a line between that loses answers. None of them checks signatures: those are held against AWS's published
//! examples beside the code.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::skip::skipped;

const PATIENCE: Duration = Duration::from_secs(60);

/// The one in which ministack's buckets are after a restart, whatever was said when they were made.
pub const REGION: &str = "us-east-1";
pub const BUCKET: &str = "archive";

/// Ministack on a port of its own. Objects are on disk and survive it; the rest is in its memory.
pub struct Stack {
    dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
    client: reqwest::Client,
}

impl Stack {
    /// A running one with a bucket; `None`, loudly, where it is not installed.
    pub async fn start() -> Option<Stack> {
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/ministack");
        if !modules.join("ministack").exists() {
            skipped("ministack is not installed (tests/run.sh does)");
            return None;
        }
        let mut stack = Stack {
            dir: tempfile::tempdir().unwrap(),
            port: 0,
            child: None,
            client: crate::harness::Daemon::client(),
        };
        stack.run().await;
        Some(stack)
    }

    /// Starts it (again), on its port if it has one, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        let fixed = self.port != 0;
        loop {
            assert!(began.elapsed() < PATIENCE, "ministack does not start: {}", self.log());
            if !fixed {
                self.port = crate::ports::free_port();
            }
            let log = std::fs::File::options()
                .create(true)
                .append(true)
                .open(self.dir.path().join("log"))
                .unwrap();
            let mut child = Command::new("python3")
                .args(["-m", "ministack"])
                .env(
                    "PYTHONPATH",
                    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/ministack"),
                )
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("HOME", self.dir.path())
                .env("TMPDIR", self.dir.path())
                .env("GATEWAY_PORT", self.port.to_string())
                .env("S3_PERSIST", "1")
                .env("S3_DATA_DIR", self.dir.path().join("s3"))
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
                let asked = self
                    .client
                    .get(format!("{}/_ministack/health", self.url()))
                    .send()
                    .await;
                if asked.is_ok_and(|answer| answer.status().is_success()) {
                    break true;
                }
                assert!(began.elapsed() < PATIENCE, "ministack does not answer: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if answers {
                self.child = Some(child);
                // It forgets a bucket in which there was nothing yet; one that is there stays as it is.
                self.make_bucket().await;
                return;
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// kill -9, and the process is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn make_bucket(&self) {
        let url = format!("{}/{BUCKET}", self.url());
        let made = self
            .client
            .put(url)
            .header("authorization", authorization("s3"))
            .send()
            .await;
        let status = made.unwrap().status().as_u16();
        assert!([200, 409].contains(&status), "the bucket can't be made: {status}");
    }

    async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        service: &str,
        head: Vec<(&str, String)>,
        body: String,
    ) -> String {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.url()))
            .header("authorization", authorization(service));
        for (name, value) in head {
            request = request.header(name, value);
        }
        let answer = request.body(body).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path} {service}: {status} {text}");
        text
    }

    /// Asks a service that speaks JSON.
    pub async fn json(&self, service: &str, target: &str, asked: &Value) -> Value {
        let version = if service == "sqs" { "1.0" } else { "1.1" };
        let head = vec![
            ("content-type", format!("application/x-amz-json-{version}")),
            ("x-amz-target", target.to_owned()),
        ];
        let text = self
            .request(reqwest::Method::POST, "/", service, head, asked.to_string())
            .await;
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Asks a service that takes forms.
    pub async fn form(&self, service: &str, form: &str) -> String {
        let head = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        self.request(reqwest::Method::POST, "/", service, head, form.to_owned())
            .await
    }

    /// Makes a queue; its URL.
    pub async fn queue(&self, name: &str) -> String {
        let mut asked = json!({ "QueueName": name });
        if name.rsplit('.').next() == Some("fifo") {
            asked["Attributes"] = json!({ "FifoQueue": "true" });
        }
        let made = self.json("sqs", "AmazonSQS.CreateQueue", &asked).await;
        let url = made["QueueUrl"].as_str().unwrap().to_owned();
        // It may call itself otherwise.
        format!(
            "{}/{}",
            self.url(),
            url.split('/').skip(3).collect::<Vec<_>>().join("/")
        )
    }

    /// Everything that is in a queue; it is empty afterwards.
    pub async fn messages(&self, queue: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let asked = json!({ "QueueUrl": queue, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"],
                "AttributeNames": ["All"], "MessageSystemAttributeNames": ["All"] });
            let answer = self.json("sqs", "AmazonSQS.ReceiveMessage", &asked).await;
            let some = answer["Messages"].as_array().cloned().unwrap_or_default();
            if some.is_empty() {
                return all;
            }
            for message in some {
                let gone = json!({ "QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"] });
                self.json("sqs", "AmazonSQS.DeleteMessage", &gone).await;
                all.push(message);
            }
        }
    }

    /// The lines of all objects in the bucket, with the names of the objects.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        files(&self.dir.path().join("s3"), &mut lines);
        lines
    }
}

/// Ministack finds out by it which service is meant, and looks at no signature.
fn authorization(service: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0"
    )
}

fn files(dir: &Path, lines: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.display().to_string();
        if path.is_dir() {
            files(&path, lines);
        } else if name.ends_with(".jsonl.gz") {
            let mut text = String::new();
            let file = std::fs::File::open(&path).unwrap();
            flate2::read::GzDecoder::new(file)
                .read_to_string(&mut text)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            lines.extend(text.lines().map(|line| (name.clone(), line.to_owned())));
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- ministack said at last:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// Stands between the daemon and a server. While it is told to, it hands requests on and loses the answers.
pub struct Line {
    pub url: String,
    loses: Arc<AtomicUsize>,
    says: Arc<Mutex<Option<String>>>,
}

impl Line {
    pub async fn start(server: u16) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let loses = Arc::new(AtomicUsize::new(0));
        let says: Arc<Mutex<Option<String>>> = Arc::default();
        let (left, said) = (loses.clone(), says.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Line::carry(near, server, left.clone(), said.clone()));
            }
        });
        Line { url, loses, says }
    }

    /// From now on each request is answered with this, and the server never hears of it; with 200, the server answers again.
    pub fn says(&self, status: u16, body: &str) {
        let answer = format!(
            "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        *self.says.lock().unwrap() = (status != 200).then_some(answer);
    }

    /// So many of the next answers are lost.
    pub fn loses(&self, answers: usize) {
        self.loses.store(answers, Ordering::SeqCst);
    }

    /// Whether all of them were.
    pub fn has_lost(&self) -> bool {
        self.loses.load(Ordering::SeqCst) == 0
    }

    async fn carry(
        mut near: TcpStream,
        server: u16,
        loses: Arc<AtomicUsize>,
        says: Arc<Mutex<Option<String>>>,
    ) -> std::io::Result<()> {
        let mut far = TcpStream::connect(("127.0.0.1", server)).await?;
        let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            tokio::select! {
                read = near.read(&mut up) => match read? {
                    0 => return Ok(()),
                    len => {
                        let said = says.lock().unwrap().clone();
                        if let Some(said) = said {
                            Line::hear_out(&mut near, &up[..len]).await?;
                            return near.write_all(said.as_bytes()).await;
                        }
                        far.write_all(&up[..len]).await?;
                    }
                },
                read = far.read(&mut down) => match read? {
                    0 => return Ok(()),
                    _ if loses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() => return Ok(()),
                    len => near.write_all(&down[..len]).await?,
                },
            }
        }
    }
}

impl Line {
    /// Reads a request to its end, of which this is the beginning.
    async fn hear_out(near: &mut TcpStream, beginning: &[u8]) -> std::io::Result<()> {
        let mut request = beginning.to_vec();
        loop {
            let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let len: usize = len.and_then(|len| len.trim().parse().ok()).unwrap_or_default();
                if body.len() >= len {
                    return Ok(());
                }
            }
            if near.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// A service that answers every request with the same status, and keeps what it took.
pub struct Moody {
    pub url: String,
    pub answer: Arc<Mutex<(u16, &'static str)>>,
    /// Bodies of what was answered 200.
    pub taken: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Moody {
    fn router() -> (axum::Router, Moody) {
        let answer = Arc::new(Mutex::new((200, "")));
        let taken: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (answers, keeps) = (answer.clone(), taken.clone());
        let handle = move |method: axum::http::Method, body: axum::body::Bytes| async move {
            let (status, text) = *answers.lock().unwrap();
            if method == axum::http::Method::HEAD {
                let status = if status == 200 { 404 } else { status };
                return (
                    axum::http::StatusCode::from_u16(status).unwrap(),
                    [("etag", "\"1\"")],
                    "",
                );
            }
            if status == 200 {
                keeps.lock().unwrap().push(body.to_vec());
            }
            (
                axum::http::StatusCode::from_u16(status).unwrap(),
                [("etag", "\"1\"")],
                text,
            )
        };
        let moody = Moody {
            url: String::new(),
            answer,
            taken,
        };
        (axum::Router::new().fallback(handle), moody)
    }

    pub async fn start() -> Moody {
        let (router, mut moody) = Moody::router();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        moody.url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        moody
    }

    /// The same behind TLS, and its certificate in PEM.
    pub fn start_tls() -> (Moody, String) {
        let (router, mut moody) = Moody::router();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        moody.url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        tokio::spawn(server.serve(router.into_make_service()));
        (moody, made.cert.pem())
    }

    pub fn says(&self, status: u16, text: &'static str) {
        *self.answer.lock().unwrap() = (status, text);
    }

    /// The lines of all objects.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for object in self.taken.lock().unwrap().iter() {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&object[..])
                .read_to_string(&mut text)
                .unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }
}

#[async_trait::async_trait]
impl crate::campaign::Peer for Stack {
    fn kill(&mut self) {
        Stack::kill(self);
    }

    async fn run(&mut self) {
        Stack::run(self).await;
    }
}
