//! Servers of NATS that keep one stream together, of a test's own: the binary that `tests/run.sh` installs, temporary directories, free
//! ports. Each can be killed, frozen and started again. Knows nothing of closehook.

// Each of its users leaves something out.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[allow(clippy::duplicate_mod)]
#[path = "ports.rs"]
mod ports;
#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the way by which a server reaches another one, which listens at a port; gives the way's own port.
#[derive(Clone)]
pub struct Ways(pub std::sync::Arc<dyn Fn(usize, usize, u16) -> u16 + Send + Sync>);

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ways")
    }
}

/// How the servers are set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub servers: usize,
    /// Each acknowledgement stands on a disk.
    pub syncs_always: bool,
    /// Bytes that JetStream may take up on each server's disk.
    pub max_file_store: Option<u64>,
    /// Lines of every server's configuration.
    pub more: String,
    /// Where the servers keep their streams, instead of in one temporary directory: one for each.
    pub stores: Vec<PathBuf>,
    /// How the servers reach one another, if not at their own ports.
    pub ways: Option<Ways>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            servers: 3,
            syncs_always: true,
            max_file_store: None,
            more: String::new(),
            stores: Vec::new(),
            ways: None,
        }
    }
}

/// One server.
pub struct Node {
    pub dir: PathBuf,
    /// Of its streams.
    pub store: PathBuf,
    /// For clients.
    pub port: u16,
    /// For the other servers.
    pub route: u16,
    /// For `/jsz` and `/varz`.
    pub monitor: u16,
    child: Option<Child>,
}

/// The servers. Whoever says no login is the user `app` of the account with JetStream; `sys` with `sys-pass` may ask what only the system
/// account may.
pub struct Cluster {
    pub nodes: Vec<Node>,
    setup: Setup,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Three running servers that sync always; `None`, loudly, where no nats-server is installed.
    pub async fn start() -> Option<Cluster> {
        Cluster::start_with(Setup::default()).await
    }

    /// The same with one server.
    pub async fn start_one() -> Option<Cluster> {
        let setup = Setup {
            servers: 1,
            ..Setup::default()
        };
        Cluster::start_with(setup).await
    }

    /// Running servers: when this returns, streams can be made.
    pub async fn start_with(setup: Setup) -> Option<Cluster> {
        if !binary().exists() {
            skip::skipped("nats-server is not installed (tests/run.sh does)");
            return None;
        }
        let mut cluster = Cluster {
            nodes: Vec::new(),
            setup,
            dir: tempfile::tempdir().unwrap(),
        };
        let began = Instant::now();
        loop {
            cluster.lay_out();
            // A port may have gone to somebody else meanwhile: then all get others.
            if cluster.try_run_all().await {
                cluster.settled().await;
                return Some(cluster);
            }
            assert!(began.elapsed() < PATIENCE, "no start: {}", cluster.log(0));
            for number in 0..cluster.nodes.len() {
                cluster.kill(number);
            }
        }
    }

    fn lay_out(&mut self) {
        let base = self.dir.path().to_owned();
        let node = |number: usize| Node {
            dir: base.join(format!("n{number}")),
            store: match self.setup.stores.get(number) {
                Some(store) => store.clone(),
                None => base.join(format!("n{number}/js")),
            },
            port: ports::free_port(),
            route: ports::free_port(),
            monitor: ports::free_port(),
            child: None,
        };
        self.nodes = (0..self.setup.servers).map(node).collect();
        for number in 0..self.nodes.len() {
            self.write_configuration(number);
        }
    }

    fn write_configuration(&self, number: usize) {
        let node = &self.nodes[number];
        std::fs::create_dir_all(&node.dir).unwrap();
        let route = |(to, node): (usize, &Node)| {
            let port = match &self.setup.ways {
                Some(ways) if to != number => (ways.0)(number, to, node.route),
                _ => node.route,
            };
            format!("\"nats://127.0.0.1:{port}\"")
        };
        let routes: Vec<String> = self.nodes.iter().enumerate().map(route).collect();
        // Else they tell one another of their ports, and go around the ways.
        let advertise = self.setup.ways.as_ref().map_or("", |_| ", advertise: \"127.0.0.1:1\"");
        let sync = if self.setup.syncs_always {
            "sync_interval: always"
        } else {
            ""
        };
        let limit = self
            .setup
            .max_file_store
            .map(|bytes| format!("max_file_store: {bytes}"));
        let cluster = if self.nodes.len() > 1 {
            format!(
                "cluster {{ name: tests, listen: \"127.0.0.1:{}\", routes: [{}]{advertise} }}",
                node.route,
                routes.join(", ")
            )
        } else {
            String::new()
        };
        let text = format!(
            "server_name: n{number}\nlisten: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\n\
             jetstream {{ store_dir: \"{}\", {sync}\n{} }}\n{cluster}\n\
             accounts {{ APP {{ jetstream: enabled, users: [{{ user: app, password: app-pass }}] }}, \
             SYS {{ users: [{{ user: sys, password: sys-pass }}] }} }}\nsystem_account: SYS\nno_auth_user: app\n{}\n",
            node.port,
            node.monitor,
            node.store.display(),
            limit.unwrap_or_default(),
            self.setup.more.replace("DIR", &node.dir.display().to_string()),
        );
        std::fs::write(node.dir.join("nats.conf"), text).unwrap();
    }

    async fn try_run_all(&mut self) -> bool {
        for number in 0..self.nodes.len() {
            self.spawn(number);
        }
        for number in 0..self.nodes.len() {
            if !self.answers(number).await {
                return false;
            }
        }
        true
    }

    fn spawn(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(node.dir.join("log"))
            .unwrap();
        let child = Command::new(binary())
            .arg("-c")
            .arg(node.dir.join("nats.conf"))
            .current_dir(&node.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        node.child = Some(child.unwrap());
    }

    /// Waits until it takes connections; `false` where it has ended instead.
    async fn answers(&mut self, number: usize) -> bool {
        let began = Instant::now();
        loop {
            let node = &mut self.nodes[number];
            let has_ended = node
                .child
                .as_mut()
                .is_none_or(|child| child.try_wait().unwrap().is_some());
            if has_ended {
                return false;
            }
            if async_nats::connect(format!("127.0.0.1:{}", node.port)).await.is_ok() {
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "no answer: {}", self.log(number));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts one again that was killed, and waits until it takes connections.
    pub async fn run(&mut self, number: usize) {
        let began = Instant::now();
        loop {
            self.spawn(number);
            if self.answers(number).await {
                return;
            }
            // Its port may not be free again yet.
            assert!(began.elapsed() < PATIENCE, "no start: {}", self.log(number));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until streams can be made.
    pub async fn settled(&self) {
        let began = Instant::now();
        let setup = json!({ "name": "settled", "subjects": ["settled"], "num_replicas": self.nodes.len() });
        while self
            .try_api(0, "STREAM.CREATE.settled", &setup)
            .await
            .is_none_or(|made| !made["error"].is_null())
        {
            assert!(
                began.elapsed() < PATIENCE,
                "the servers agree on nothing: {}",
                self.log(0)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.api(0, "STREAM.DELETE.settled", &Value::Null).await;
    }

    /// kill -9, and the process is gone when this returns.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.nodes[number].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn is_running(&self, number: usize) -> bool {
        self.nodes[number].child.is_some()
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self, number: usize) {
        self.signal(number, "TERM");
        if let Some(mut child) = self.nodes[number].child.take() {
            let _ = child.wait();
        }
    }

    pub fn signal(&self, number: usize, signal: &str) {
        let pid = self.nodes[number].child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Stands still, with its connections open.
    pub fn freeze(&self, number: usize) {
        self.signal(number, "STOP");
        let stat = format!("/proc/{}/stat", self.nodes[number].child.as_ref().unwrap().id());
        let began = Instant::now();
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            assert!(began.elapsed() < PATIENCE, "it does not stand still");
            std::thread::yield_now();
        }
    }

    /// Goes on.
    pub fn thaw(&self, number: usize) {
        self.signal(number, "CONT");
    }

    /// For `servers` of a configuration.
    pub fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("nats://127.0.0.1:{}", node.port))
            .collect()
    }

    /// Where the servers say how they are set up.
    pub fn monitors(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("http://127.0.0.1:{}", node.monitor))
            .collect()
    }

    pub fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.nodes[number].dir.join("log")).unwrap_or_default()
    }

    /// A connection of the user `app`.
    pub async fn client(&self, number: usize) -> async_nats::Client {
        let client = async_nats::connect(format!("127.0.0.1:{}", self.nodes[number].port)).await;
        client.unwrap_or_else(|error| panic!("{error}: {}", self.log(number)))
    }

    /// Asks JetStream's API by one server; `None`: no answer.
    pub async fn try_api(&self, number: usize, what: &str, question: &Value) -> Option<Value> {
        let text = if question.is_null() {
            String::new()
        } else {
            question.to_string()
        };
        let client = async_nats::connect(format!("127.0.0.1:{}", self.nodes[number].port))
            .await
            .ok()?;
        let answer = client.request(format!("$JS.API.{what}"), text.into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// The same; nothing may be wrong.
    pub async fn api(&self, number: usize, what: &str, question: &Value) -> Value {
        let answer = self.try_api(number, what, question).await;
        let answer = answer.unwrap_or_else(|| panic!("{what}: no answer: {}", self.log(number)));
        assert!(answer["error"].is_null(), "{what}: {answer}");
        answer
    }

    /// Which server leads a stream; waits until one does.
    pub async fn leader(&self, stream: &str) -> usize {
        let began = Instant::now();
        loop {
            for number in (0..self.nodes.len()).filter(|number| self.is_running(*number)) {
                let info = self
                    .try_api(number, &format!("STREAM.INFO.{stream}"), &Value::Null)
                    .await;
                let name = info.and_then(|info| info["cluster"]["leader"].as_str().map(str::to_owned));
                if let Some(leader) = name.and_then(|name| name.strip_prefix('n')?.parse().ok()) {
                    return leader;
                }
            }
            assert!(began.elapsed() < PATIENCE, "no leader of {stream}: {}", self.log(0));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 0..self.nodes.len() {
            self.kill(number);
        }
        if std::thread::panicking() {
            for number in 0..self.nodes.len() {
                let log = self.log(number);
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(25)..];
                eprintln!("--- server {number} said at last:\n{}", last.join("\n"));
            }
        }
    }
}

fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/nats/bin/nats-server")
}

#[tokio::test]
async fn three_servers_keep_what_one_of_them_loses() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let setup = json!({ "name": "kept", "subjects": ["kept.>"], "num_replicas": 3, "storage": "file" });
    cluster.api(0, "STREAM.CREATE.kept", &setup).await;
    let client = cluster.client(1).await;
    let ack = client.request("kept.a", "1".into()).await.unwrap();
    let ack: Value = serde_json::from_slice(&ack.payload).unwrap();
    assert_eq!(ack["seq"], 1, "{ack}");
    let leader = cluster.leader("kept").await;
    cluster.kill(leader);
    let other = (leader + 1) % 3;
    assert_ne!(cluster.leader("kept").await, leader);
    let info = cluster.api(other, "STREAM.INFO.kept", &Value::Null).await;
    assert_eq!(info["state"]["messages"], 1, "{info}");
    cluster.run(leader).await;
}
