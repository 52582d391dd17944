//! A PostgreSQL server of a test's own: Debian's binaries, a temporary directory, a user that is not root, a free port.
//! Knows nothing of closehook, so that the sink's own tests use it too.

// Each of its users leaves something out.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{Client, Config, NoTls};

#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

/// PostgreSQL refuses to run as root. This one every system has.
const NOBODY: u32 = 65534;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    bin: PathBuf,
    child: Option<Child>,
}

/// Where the newest server on this machine has its programs.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
    found.sort_by_key(number);
    let with_server = |path: PathBuf| Some(path.join("bin")).filter(|bin| bin.join("initdb").exists());
    found.into_iter().rev().find_map(with_server)
}

fn am_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

impl Server {
    /// A running server; `None`, loudly, where none is installed. `settings` are lines of postgresql.conf.
    pub async fn start(settings: &str) -> Option<Server> {
        let Some(bin) = binaries() else {
            skip::skipped("PostgreSQL is not installed (Debian: postgresql)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        if am_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut server = Server {
            dir,
            port: 0,
            bin,
            child: None,
        };
        let made = server
            .program("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let config = server.data().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&config).unwrap();
        text += "\nfsync = off\nshared_buffers = 16MB\nmax_connections = 30\nlisten_addresses = '127.0.0.1'\n";
        text += settings;
        std::fs::write(&config, text).unwrap();
        server.run().await;
        Some(server)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        // Its messages are compared.
        command.env("LC_ALL", "C").current_dir(self.dir.path());
        if am_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A file that the server's user alone can read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.data().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if am_root() {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        path
    }

    /// Starts it (again), on its port if it has one, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "PostgreSQL does not start: {}", self.log());
            let fixed = self.port != 0;
            let port = if fixed {
                self.port
            } else {
                let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                free.local_addr().unwrap().port()
            };
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.dir.path().join("log"))
                .unwrap();
            let mut command = self.program("postgres");
            command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
            command.arg("-p").arg(port.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut child = command.spawn().unwrap();
            self.port = port;
            // It ends by itself where the port was taken meanwhile, or where the processes of a killed one are not gone yet.
            let answers = loop {
                if child.try_wait().unwrap().is_some() {
                    break false;
                }
                if self.try_admin().await.is_some() {
                    break true;
                }
                assert!(began.elapsed() < PATIENCE, "PostgreSQL does not answer: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if answers {
                self.child = Some(child);
                return;
            }
            if !fixed {
                self.port = 0;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn try_admin(&self) -> Option<Client> {
        let mut config = Config::new();
        config
            .host_path(self.dir.path())
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// The superuser, over the socket.
    pub async fn admin(&self) -> Client {
        self.try_admin().await.expect("PostgreSQL does not answer")
    }

    /// Runs statements as the superuser.
    pub async fn sql(&self, sql: &str) {
        self.admin()
            .await
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// One number, as the superuser.
    pub async fn number(&self, sql: &str) -> i64 {
        self.admin()
            .await
            .query_one(sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .get(0)
    }

    /// For a sink: the superuser over TCP.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The processes that the server has for its sessions and its upkeep.
    fn children(&self) -> Vec<u32> {
        let parent = self.pid().to_string();
        let is_child = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name, in parentheses, may hold anything.
            let rest = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.to_owned())
                .unwrap_or_default();
            rest.split_whitespace().nth(1) == Some(parent.as_str())
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(is_child)
            .collect()
    }

    fn signal(pid: u32, signal: &str) {
        let _ = Command::new("kill")
            .args([signal, &pid.to_string()])
            .stderr(Stdio::null())
            .status();
    }

    /// Ends it as a power cut would, sessions and all.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // No more children come once the parent is gone.
        self.child = Some(child);
        Server::signal(self.pid(), "-STOP");
        let children = self.children();
        child = self.child.take().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        for pid in children {
            Server::signal(pid, "-KILL");
        }
    }

    /// Ends it in order, cutting sessions.
    pub fn stop(&mut self) {
        Server::signal(self.pid(), "-INT");
        let mut child = self.child.take().unwrap();
        let _ = child.wait();
    }

    /// Everything of it stands still, its connections open.
    pub fn freeze(&self) {
        self.signal_all("-STOP");
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal_all("-CONT");
    }

    fn signal_all(&self, signal: &str) {
        for pid in self.children() {
            Server::signal(pid, signal);
        }
        Server::signal(self.pid(), signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- PostgreSQL said at last:\n{}", last.join("\n"));
        }
    }
}

/// Where a connection is to be cut.
#[derive(Clone, Copy)]
struct Cut {
    /// What the client sends then.
    at: &'static str,
    /// Whether that still reaches the server as a whole, or by half. No answer comes back in either case.
    whole: bool,
}

/// Stands between a client and the server, and cuts both off where it is told to.
pub struct Proxy {
    pub port: u16,
    cut: Arc<Mutex<Option<Cut>>>,
}

impl Proxy {
    pub async fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(Mutex::new(None));
        let wanted = cut.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Proxy::carry(near, server, wanted.clone()));
            }
        });
        Proxy { port, cut }
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The next time that a client sends this, it is cut off.
    pub fn cut(&self, at: &'static str, whole: bool) {
        *self.cut.lock().unwrap() = Some(Cut { at, whole });
    }

    /// Whether that has happened.
    pub fn has_cut(&self) -> bool {
        self.cut.lock().unwrap().is_none()
    }

    async fn carry(near: TcpStream, server: u16, wanted: Arc<Mutex<Option<Cut>>>) -> std::io::Result<()> {
        let far = TcpStream::connect(("127.0.0.1", server)).await?;
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let back = tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
        let mut buffer = vec![0; 1 << 20];
        loop {
            let len = near_in.read(&mut buffer).await?;
            let sent = &buffer[..len];
            let found = |cut: &mut Cut| sent.windows(cut.at.len()).any(|window| window == cut.at.as_bytes());
            let cut = wanted.lock().unwrap().take_if(found);
            if let Some(cut) = cut {
                back.abort();
                let _ = back.await;
                let len = if cut.whole { len } else { len / 2 };
                return far_out.write_all(&sent[..len]).await;
            }
            if len == 0 {
                return Ok(());
            }
            far_out.write_all(sent).await?;
        }
    }
}
