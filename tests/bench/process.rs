//! The processes under measurement: the daemon, and the bare handler it is compared with.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::load;

/// Given to this program, it becomes the bare handler.
pub const BARE: &str = "--as-bare-handler";

/// Given to this program with the files of a certificate and its key, it becomes a server of TLS and nothing else.
pub const BARE_TLS: &str = "--as-bare-tls-server";

/// Given to this program, it becomes a receiver that takes everything.
pub const RECEIVER: &str = "--as-receiver";

const PATIENCE: Duration = Duration::from_secs(300);

/// The release binary.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_closehook")
}

/// A process that is killed when it is dropped.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon on a directory of its own.
pub struct Daemon {
    dir: PathBuf,
    child: Process,
    pub address: SocketAddr,
    admin: String,
}

impl Daemon {
    /// Starts it without waiting for anything. `config` is added to what every figure needs.
    pub fn start_only(dir: &Path, config: &str) -> Process {
        let toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[[close.subscriptions]]\nsignature_key = \"{}\"\n{config}",
            load::KEY
        );
        std::fs::write(dir.join("closehook.toml"), toml).unwrap();
        let log = std::fs::File::create(dir.join("stderr")).unwrap();
        let child = command(dir).arg("serve").stdout(Stdio::null()).stderr(log).spawn();
        Process(child.unwrap())
    }

    /// Starts it and waits until it is ready to store.
    pub fn start(dir: &Path, config: &str) -> Daemon {
        let child = Daemon::start_only(dir, config);
        let pid = child.0.id();
        // How soon it is there is a figure: no grain of a tenth of a second. Looking at its socket costs nothing.
        let socket = dir.join("data/closehook.sock");
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = wait("the daemon answers", || {
            let status = status(dir)?;
            (status["daemon"]["pid"] == pid).then_some(status)
        });
        let url = status["daemon"]["url"].as_str().unwrap();
        let (_, address) = url.trim_end_matches(load::PATH).split_once("://").unwrap();
        Daemon {
            dir: dir.to_owned(),
            child,
            address: address.parse().unwrap(),
            admin: status["daemon"]["admin"].as_str().unwrap().to_owned(),
        }
    }

    /// Where the operator's page is.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// A link that signs in there.
    pub fn link(&self) -> String {
        let output = command(&self.dir).args(["status", "--open"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn status(&self) -> Value {
        wait("the daemon answers", || status(&self.dir))
    }

    /// Waits until the log is at rest: every complete segment sealed.
    pub fn settle(&self) {
        wait("the log is at rest", || {
            (self.status()["log"]["unsealed"] == 1).then_some(())
        });
    }

    /// Waits until a sink has passed a Seq.
    pub fn wait_for_sink(&self, seq: u64) {
        wait("the sink is done", || {
            let status = self.status();
            (status["sinks"][0]["cursor"].as_u64() >= Some(seq)).then_some(())
        });
    }

    /// Resident memory now and at its peak, in MiB.
    pub fn memory(&self) -> (f64, f64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Whether `/readyz` says yes.
    pub async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("{}/readyz", self.admin)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// kill -9.
    pub fn kill(self) {
        drop(self.child);
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .env("CLOSEHOOK__LOG__DIR", dir.join("data"))
        .arg("-c")
        .arg(dir.join("closehook.toml"))
        .stdin(Stdio::null());
    command
}

fn status(dir: &Path) -> Option<Value> {
    let output = command(dir).args(["status", "--json"]).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).ok()?;
    (status["daemon"]["running"] == true).then_some(status)
}

fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        // Asking starts a process, which must not take part in what is measured.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes on disk below a directory.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(listing) = std::fs::read_dir(dir) else { return 0 };
    let sizes = listing.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// A peer in a process of its own.
pub struct Peer {
    child: Child,
    pub address: SocketAddr,
}

impl Peer {
    /// `role`: [`BARE`] or [`RECEIVER`], or [`BARE_TLS`] with its files.
    pub fn start<S: AsRef<OsStr>>(role: impl IntoIterator<Item = S>) -> Peer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Peer {
            child,
            address: line.trim().parse().unwrap(),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What this program does when it is the bare handler: axum, the whole body, the HMAC, 200.
pub async fn be_bare_handler() {
    let key = hex::decode(load::KEY).unwrap();
    let check = move |headers: HeaderMap, body: axum::body::Bytes| {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        async move {
            mac.update(headers[closehook::ingress::verify::TIMESTAMP_HEADER].as_bytes());
            mac.update(&body);
            let hash = hex::decode(&headers[closehook::ingress::verify::HASH_HEADER]).unwrap_or_default();
            match mac.verify_slice(&hash) {
                Ok(()) => StatusCode::OK,
                Err(_) => StatusCode::UNAUTHORIZED,
            }
        }
    };
    serve(axum::Router::new().route(load::PATH, axum::routing::post(check))).await;
}

/// What this program does when it is the receiver.
pub async fn be_receiver() {
    serve(axum::Router::new().fallback(async |_body: axum::body::Bytes| StatusCode::OK)).await;
}

/// What this program does when it is the server of TLS: `axum-server` as its documentation shows it, answering 404.
pub async fn be_bare_tls_server(certificate: &str, key: &str) {
    let config = axum_server::tls_rustls::RustlsConfig::from_pem_file(certificate, key)
        .await
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    println!("{}", listener.local_addr().unwrap());
    let server = axum_server::from_tcp_rustls(listener, config).unwrap();
    server.serve(axum::Router::new().into_make_service()).await.unwrap();
}

async fn serve(router: axum::Router) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, router).await.unwrap();
}
