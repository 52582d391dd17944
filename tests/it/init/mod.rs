//! `closehook init`: from nothing to verified events, and from whatever broke back to them.

mod certificates;
mod person;
mod service;
mod steps;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use fake_close::{Fake, Options, Settings};
use serde_json::Value;

use crate::acme::Pebble;
use crate::harness::{Daemon, Receiver, binary, skipped, until};

/// A machine of one's own: a Close, a proxy in front, and a directory with nothing in it.
pub struct Host {
    dir: tempfile::TempDir,
    fake: Fake,
    proxy: Proxy,
    daemon: Option<Child>,
}

/// What stands in front: passes connections on to a Unix socket, wherever that is just then.
struct Proxy {
    port: u16,
    to: Arc<Mutex<PathBuf>>,
}

impl Proxy {
    async fn start(to: PathBuf) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            to: Arc::new(Mutex::new(to)),
        };
        let to = proxy.to.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = to.lock().unwrap().clone();
                tokio::spawn(async move {
                    if let Ok(mut server) = tokio::net::UnixStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        proxy
    }
}

impl Host {
    pub async fn new() -> Host {
        closehook::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(Options {
            settings: Settings::calm(),
            ..Options::default()
        })
        .await
        .unwrap();
        std::fs::write(dir.path().join("given.key"), format!("{}\n", fake.api_key())).unwrap();
        let proxy = Proxy::start(dir.path().join("public.sock")).await;
        Host {
            dir,
            fake,
            proxy,
            daemon: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("closehook.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/webhooks/close", self.proxy.port)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .env_remove("CLOSEHOOK_CONFIG")
            .env("CLOSEHOOK__CLOSE__BASE_URL", self.fake.base_url())
            .env("CLOSEHOOK__ADMIN__LISTEN", "127.0.0.1:0")
            .arg("-c")
            .arg(self.config())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a script says at the first run, behind a proxy.
    pub fn first_flags(&self) -> [String; 8] {
        [
            "--url".to_owned(),
            self.url(),
            "--https".to_owned(),
            "proxy".to_owned(),
            "--listen".to_owned(),
            self.listen(),
            "--api-key".to_owned(),
            self.key_argument(),
        ]
    }

    /// The first run, as a script does it.
    fn first(&self) -> Steps {
        self.init(&self.first_flags().each_ref().map(String::as_str))
    }

    fn listen(&self) -> String {
        format!("unix:{}", self.path("public.sock").display())
    }

    fn key_argument(&self) -> String {
        format!("@{}", self.path("given.key").display())
    }

    /// `init --yes --json` with these flags.
    fn init(&self, flags: &[&str]) -> Steps {
        let mut arguments = vec!["init", "--yes", "--json"];
        arguments.extend_from_slice(flags);
        let output = self.run(&arguments);
        self.says_no_secret(&output);
        Steps::of(output)
    }

    fn says_no_secret(&self, output: &Output) {
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains(&self.fake.api_key()), "{said}");
        for subscription in self.fake.world().subscriptions() {
            assert!(!said.contains(&subscription.signature_key), "{said}");
        }
    }

    fn subscriptions(&self) -> Vec<(String, String)> {
        let world = self.fake.world();
        world
            .subscriptions()
            .map(|subscription| (subscription.id.clone(), subscription.url.clone()))
            .collect()
    }

    fn quarantined(&self) -> usize {
        let output = self.run(&["events", "list", "--quarantined", "--json"]);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().count()
    }

    /// Starts the daemon for good.
    async fn serve(&mut self) {
        let log = std::fs::File::create(self.path("stderr")).unwrap();
        let mut command = self.command(&["serve"]);
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let pid = self.daemon.as_ref().unwrap().id();
        until("the daemon runs", async || self.status()["daemon"]["pid"] == pid).await;
    }

    fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
    }
}

/// What `init` has said.
#[derive(Debug)]
struct Steps {
    code: Option<i32>,
    stderr: String,
    all: Vec<Value>,
}

/// Errors are JSON with `--json`; everything else on standard error is for people.
fn as_text(stderr: &str) -> String {
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let error = &value["error"];
        match (error["place"].as_str(), error["message"].as_str()) {
            (Some(place), Some(message)) => format!("{place}: {message}\n"),
            (None, Some(message)) => format!("{message}\n"),
            (_, None) => format!("{line}\n"),
        }
    };
    stderr.lines().map(line).collect()
}

impl Steps {
    fn of(output: Output) -> Steps {
        let lines = String::from_utf8(output.stdout).unwrap();
        Steps {
            code: output.status.code(),
            stderr: as_text(&String::from_utf8(output.stderr).unwrap()),
            all: lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }

    /// Every step with how it ended.
    fn results(&self) -> Vec<(&str, &str)> {
        self.all
            .iter()
            .map(|step| (step["step"].as_str().unwrap(), step["result"].as_str().unwrap()))
            .collect()
    }

    fn step(&self, name: &str) -> &Value {
        let found = self.all.iter().find(|step| step["step"] == name);
        found.unwrap_or_else(|| panic!("{name}: {self:?}"))
    }

    fn result(&self, name: &str) -> &str {
        self.step(name)["result"].as_str().unwrap()
    }

    fn says(&self, name: &str) -> &str {
        self.step(name)["says"].as_str().unwrap()
    }

    fn ended(self, code: i32) -> Steps {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const ALL_GOOD: [(&str, &str); 6] = [
    ("port", "ok"),
    ("api-key", "ok"),
    ("configuration", "ok"),
    ("daemon", "ok"),
    ("subscription", "ok"),
    ("delivery", "ok"),
];

/// A port nobody uses now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Host {
    /// A certificate for this machine, which only `trusting` commands trust.
    fn certificate(&self) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert.display().to_string(), key.display().to_string())
    }

    /// The program as a shell's word list, in an environment that trusts the certificate.
    fn trusting(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("SSL_CERT_FILE", self.path("cert.pem"));
        command
    }
}
