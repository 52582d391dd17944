//! A daemon of one's own: its directory, its ports, its key, and somebody who sends to it as Close does.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use serde_json::Value;

pub use crate::skip::skipped;

pub const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that has not ended by then never will.
const COMMAND_PATIENCE: Duration = Duration::from_secs(600);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_closehook")
}

/// What `systemd-analyze` says; `None`, loudly, where it is not installed.
fn systemd_analyze(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("systemd-analyze").args(arguments).output() else {
        skipped("systemd-analyze is not installed");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// What is wrong with systemd units of closehook: how far each is exposed beyond what is promised, and what `verify` finds in
/// them. The arguments say where they are.
pub fn faults_of_units(place: &[&str], units: &[&str]) -> Vec<String> {
    const EXPOSURE_MAX: f64 = 1.2;
    let mut faults = Vec::new();
    for unit in units {
        let asked = |what: &[&str]| systemd_analyze(&[what, place, &[unit]].concat());
        let Some(verified) = asked(&["verify", "--man=no"]) else {
            break;
        };
        let complaints = verified.lines().filter(|line| line.contains("closehook"));
        faults.extend(complaints.map(str::to_owned));
        // A socket unit starts no process of its own that could be exposed.
        if unit.ends_with(".socket") {
            continue;
        }
        let Some(assessed) = asked(&["security", "--offline=true", "--no-pager"]) else {
            break;
        };
        let verdict = assessed.lines().find(|line| line.contains("Overall exposure level"));
        let verdict = verdict.unwrap_or_else(|| panic!("{unit} is not assessed: {assessed}"));
        let level: f64 = verdict.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        if level > EXPOSURE_MAX {
            faults.push(verdict.to_owned());
        }
    }
    faults
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A configuration in a directory of its own, and the daemon on it while it runs.
pub struct Daemon {
    pub dir: tempfile::TempDir,
    data: PathBuf,
    child: Option<Child>,
    /// For the daemon only, not for commands.
    pub environment: Vec<(String, String)>,
    /// Where the log is, if not in the data directory.
    engine: Vec<(String, String)>,
    pub url: String,
    pub admin: String,
    pub client: reqwest::Client,
}

impl Daemon {
    /// Writes the configuration without starting anything. `config` is added to what every test needs.
    pub fn new(config: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        Daemon::within(dir, data, config)
    }

    /// The same with a data directory elsewhere.
    pub fn within(dir: tempfile::TempDir, data: PathBuf, config: &str) -> Daemon {
        #[cfg(feature = "engine-jetstream")]
        let engine = crate::second_engine::stream_for(dir.path());
        #[cfg(not(feature = "engine-jetstream"))]
        let engine = Vec::new();
        let daemon = Daemon {
            data,
            child: None,
            engine,
            environment: Vec::new(),
            url: String::new(),
            admin: String::new(),
            client: Daemon::client(),
            dir,
        };
        std::fs::write(daemon.dir.path().join("key"), KEY).unwrap();
        daemon.configure(config);
        daemon
    }

    /// Connections of one's own.
    pub fn client() -> reqwest::Client {
        closehook::install_crypto();
        reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .build()
            .unwrap()
    }

    /// A running daemon.
    pub async fn start(config: &str) -> Daemon {
        let mut daemon = Daemon::new(config);
        daemon.run().await;
        daemon
    }

    /// Replaces the configuration. `DIR` in it stands for the test's directory.
    pub fn configure(&self, config: &str) {
        let dir = self.dir.path().display();
        // Keys of a table that the test opens itself would stand twice.
        let mut text = String::new();
        if !config.contains("[[close.subscriptions]]") && !config.contains("[close]") {
            text += &format!("[[close.subscriptions]]\nsignature_key_file = \"{dir}/key\"\n");
        }
        text += &config.replace("DIR", &dir.to_string());
        #[cfg(feature = "engine-jetstream")]
        let text = crate::second_engine::with_nodes(&text);
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("closehook.toml")
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .env_remove("CLOSEHOOK_CONFIG")
            .env("CLOSEHOOK__LOG__DIR", &self.data)
            .env("CLOSEHOOK__SERVER__LISTEN", "127.0.0.1:0")
            .env("CLOSEHOOK__ADMIN__LISTEN", "127.0.0.1:0")
            .envs(self.engine.iter().cloned())
            .arg("-c")
            .arg(self.config())
            .stdin(Stdio::null());
        command
    }

    /// `serve` as systemd starts it, with a socket as its descriptor 3.
    pub fn with_socket(&self, name: &str, socket: OwnedFd) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                r#"exec 3<&0 0</dev/null; export LISTEN_PID=$$; exec "$@""#,
                "sh",
                binary(),
                "-c",
            ])
            .arg(self.config())
            .arg("serve")
            .env_remove("CLOSEHOOK_CONFIG")
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", name)
            .env("CLOSEHOOK__LOG__DIR", &self.data)
            .env("CLOSEHOOK__SERVER__LISTEN", "127.0.0.1:0")
            .env("CLOSEHOOK__ADMIN__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::from(socket));
        command
    }

    /// What a counter of `/metrics` has come to.
    pub async fn count(&self, name: &str) -> u64 {
        self.metric(name).await.to_string().parse().unwrap()
    }

    /// Starts the daemon without waiting for anything.
    pub fn spawn(&mut self) {
        let mut command = self.command();
        command.arg("serve");
        self.spawn_as(command);
    }

    /// The same with a command of one's own, which must become `serve` in the process it is started in.
    pub fn spawn_as(&mut self, mut command: Command) {
        let append = |name: &str| {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path(name))
                .unwrap()
        };
        command.stdout(append("stdout")).stderr(append("stderr"));
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the daemon and waits until it is ready.
    pub async fn run(&mut self) {
        self.spawn();
        self.is_ready().await;
    }

    /// Starts it with a command of one's own and waits until it is ready.
    pub async fn launch(&mut self, command: Command) {
        self.spawn_as(command);
        self.is_ready().await;
    }

    async fn is_ready(&mut self) {
        let pid = self.pid();
        let began = Instant::now();
        let status = loop {
            if let Some(exit) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon ended with {exit}: {}", self.stderr());
            }
            let status = self.try_status();
            if let Some(status) = status.filter(|status| status["daemon"]["pid"] == pid) {
                break status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "the daemon does not start: {}",
                self.stderr()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        // A node may be one that does not receive.
        self.url = status["daemon"]["url"].as_str().unwrap_or_default().to_owned();
        self.admin = status["daemon"]["admin"].as_str().unwrap().to_owned();
    }

    /// Where the public listener listens.
    pub fn address(&self) -> String {
        let rest = self.url.split_once("://").unwrap().1;
        rest.split('/').next().unwrap().to_owned()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let sent = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// kill -9, and the process is gone when this returns.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; waits for the end and checks that it was a good one.
    pub async fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        assert!(self.ended().await.success(), "{}", self.stderr());
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let mut exit = None;
        until("the daemon has stopped", async || {
            exit = child.try_wait().unwrap();
            exit.is_some()
        })
        .await;
        exit.unwrap()
    }

    /// SIGHUP, and the log says how it went.
    pub async fn reload(&self) -> bool {
        let count = |text: &str| {
            (
                text.matches("configuration reloaded").count(),
                text.matches("was not reloaded").count(),
            )
        };
        let before = count(&self.stderr());
        self.signal(libc::SIGHUP);
        until("the daemon has reloaded", async || count(&self.stderr()) != before).await;
        count(&self.stderr()).0 > before.0
    }

    fn try_status(&self) -> Option<Value> {
        let output = self.command().args(["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn status(&self) -> Value {
        self.try_status().unwrap()
    }

    /// One sink of `sinks list`.
    pub fn sink(&self, name: &str) -> Value {
        self.lines(&["sinks", "list"])
            .into_iter()
            .find(|sink| sink["name"] == name)
            .unwrap()
    }

    /// Waits until a sink is done with all that is in the log, as long as it goes on.
    pub async fn done(&self, sink: &str) {
        let last = self.status()["log"]["last"].as_u64();
        let mut shown = self.sink(sink);
        let mut moved = Instant::now();
        while shown["cursor"].as_u64() < last {
            assert!(
                moved.elapsed() < PATIENCE,
                "waited too long until the sink goes on to {last:?}: {shown}\n{}",
                self.stderr()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.sink(sink);
            if now["cursor"] != shown["cursor"] {
                moved = Instant::now();
            }
            shown = now;
        }
    }

    /// A sink's last error; empty where it has none.
    pub fn last_error(&self, sink: &str) -> String {
        let error = &self.sink(sink)["last_error"];
        error.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a sink's last error says so.
    pub async fn says(&self, sink: &str, part: &str) {
        let what = format!("{sink} says \"{part}\"");
        until(&what, async || self.last_error(sink).contains(part)).await;
    }

    /// What the admin listener answers at a path.
    pub async fn ask_admin(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.admin)).send().await.unwrap()
    }

    /// `/metrics` as a whole.
    pub async fn metrics(&self) -> String {
        self.ask_admin("/metrics").await.text().await.unwrap()
    }

    /// One line of `/metrics`, by its name with labels; 0 while it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Memory of the running daemon in bytes, as resident in RAM.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// The same without what is mapped from files: the program itself, which is several times as large without optimisation.
    pub fn anonymous(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Runs a command, which must end.
    pub fn run_command(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = child.id().to_string();
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        if let Ok(output) = ended.recv_timeout(COMMAND_PATIENCE) {
            return output.unwrap();
        }
        // Nobody has waited for it, so that it is still that one.
        let _ = Command::new("kill").args(["-KILL", &pid]).status();
        let output = ended.recv().unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{arguments:?} does not end: {said}");
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run_command(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with this exit code, and gives its standard error.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run_command(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        error
    }

    /// What of the log can be read: an export says so where that is not all of it.
    pub fn exported(&self) -> Vec<Value> {
        let output = self.run_command(&["events", "export", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("can't be read"), "{said}");
        String::from_utf8(output.stdout).unwrap().lines().map(parsed).collect()
    }

    /// The JSON lines a command answers.
    pub fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        self.ok(&arguments)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Sends a body as Close does, signed now.
    pub async fn send(&self, body: impl AsRef<[u8]>) -> Result<(u16, Value), reqwest::Error> {
        self.send_signed(&Key::from_hex(None, KEY).unwrap(), body).await
    }

    /// The same with another key.
    pub async fn send_signed(&self, key: &Key, body: impl AsRef<[u8]>) -> Result<(u16, Value), reqwest::Error> {
        send(&self.client, &self.url, key, body.as_ref()).await
    }

    /// Sends events that must be stored.
    pub async fn store(&self, ids: std::ops::RangeInclusive<u64>) {
        for id in ids {
            let (status, answer) = self.send(body(id)).await.unwrap();
            assert_eq!((status, answer["status"].as_str()), (200, Some("stored")), "{answer}");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon said:\n{}", self.stderr());
        }
    }
}

/// Sends a body as Close does, signed now, to wherever; gives the status and the answer.
pub async fn send(client: &reqwest::Client, url: &str, key: &Key, body: &[u8]) -> Result<(u16, Value), reqwest::Error> {
    let headers = key.sign(jiff::Timestamp::now(), body);
    let request = client
        .post(url)
        .header(TIMESTAMP_HEADER, headers.timestamp)
        .header(HASH_HEADER, headers.hash)
        .body(body.to_vec());
    let response = request.send().await?;
    let status = response.status().as_u16();
    let answer = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
    Ok((status, answer))
}

/// What a server says before it closes, reset or not; fails where it does not close.
pub async fn said_to_the_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read_to_end(stream, &mut said)).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(read.is_ok(), "it is still open: {said:?}");
    said
}

/// A delivery with white space, escapes and numbers that must stay as they are.
pub fn body(id: u64) -> String {
    format!(
        "{{\"event\": {{\"id\": \"ev_{id}\", \"date_updated\": \"2024-02-15T12:48:23.395000\", \"object_type\": \"lead\",\n \"action\": \"updated\", \"lead_id\": \"lead_{}\", \"data\": {{\"n\": 1.50, \"text\": \"\\u00e9 \\/\"}}}}, \"subscription_id\": \"whsub_1\"}}",
        id % 7
    )
}

/// The lines of a file sink, in order. What has no line end yet is being written.
pub fn lines_in(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(parsed).collect()
}

/// A line of JSON.
pub fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The ids in the lines of a file sink, in order.
pub fn ids_in(path: &Path) -> Vec<String> {
    let id = |line: Value| line["event"]["id"].as_str().unwrap().to_owned();
    lines_in(path).into_iter().map(id).collect()
}

/// What a receiver was sent: headers and body.
pub type Received = Arc<Mutex<Vec<(axum::http::HeaderMap, String)>>>;

/// An HTTP server of one's own: answers with the status in the cell, and keeps what it was sent when that is 2xx.
pub struct Receiver {
    pub url: String,
    pub received: Received,
    pub status: Arc<Mutex<u16>>,
}

impl Receiver {
    pub async fn start(status: u16) -> Receiver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Receiver {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            received: Received::default(),
            status: Arc::new(Mutex::new(status)),
        };
        let (received, status) = (receiver.received.clone(), receiver.status.clone());
        let answer = move |headers: axum::http::HeaderMap, body: String| async move {
            let status = *status.lock().unwrap();
            if (200..300).contains(&status) {
                received.lock().unwrap().push((headers, body));
            }
            axum::http::StatusCode::from_u16(status).unwrap()
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        receiver
    }

    pub fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// What it was sent, in order.
    pub fn bodies(&self) -> Vec<String> {
        let received = self.received.lock().unwrap();
        received.iter().map(|(_, body)| body.clone()).collect()
    }
}
