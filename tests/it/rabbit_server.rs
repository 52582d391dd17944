//! A RabbitMQ server of a test's own: Debian's, in a temporary directory, as a user that is not root, on free ports. It is administered
//! over its management plugin's HTTP interface, which is faster than a program that starts an Erlang each time.
//! Knows nothing of closehook, so that the bench uses it too.

// Each of its users leaves something out.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

/// Every system has this one.
const NOBODY: u32 = 65534;

/// Erlang starts slowly where others want the cores too.
const PATIENCE: Duration = Duration::from_secs(180);

const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// Its user of everything.
pub const ADMIN: (&str, &str) = ("guest", "guest");

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// With TLS, where there are certificates.
    pub tls_port: u16,
    admin_port: u16,
    node_port: u16,
    epmd_port: u16,
    settings: String,
    client: reqwest::Client,
    child: Option<Child>,
}

fn am_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

impl Server {
    /// A running server; `None`, loudly, where none is installed. `settings` are lines of rabbitmq.conf, in which `DIR` is the
    /// server's directory and `TLS_PORT` a port; `files` are put there before.
    pub async fn start(settings: &str, files: &[(&str, String)]) -> Option<Server> {
        if !std::path::Path::new(PROGRAM).exists() {
            skip::skipped("RabbitMQ is not installed (Debian: rabbitmq-server)");
            return None;
        }
        // An error means that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let plugins = "[rabbitmq_management,rabbitmq_auth_mechanism_ssl].".to_owned();
        for (name, text) in files.iter().chain([&("enabled_plugins", plugins)]) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        if am_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut server = Server {
            dir,
            port: 0,
            tls_port: 0,
            admin_port: 0,
            node_port: 0,
            epmd_port: 0,
            settings: settings.to_owned(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            child: None,
        };
        server.run().await;
        Some(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program of the server's, with everything that is its own.
    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.dir.path())
            // A name is known to one epmd, and each server has its own.
            .env("RABBITMQ_NODENAME", format!("rabbit{}@localhost", self.node_port))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.node_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", self.path("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", self.path("pid"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        if am_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts it (again), on its ports if it has some, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "RabbitMQ does not start: {}", self.said());
            let is_new = self.port == 0;
            if is_new {
                self.port = crate::ports::free_port();
                self.tls_port = crate::ports::free_port();
                self.admin_port = crate::ports::free_port();
                self.node_port = crate::ports::free_port();
                self.epmd_port = crate::ports::free_port();
                let mut config = format!(
                    "listeners.tcp.1 = 127.0.0.1:{}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\nlog.file = false\n\
                     log.console = true\nlog.console.level = warning\n",
                    self.port, self.admin_port
                );
                config += &self.settings.replace("TLS_PORT", &self.tls_port.to_string());
                config = config.replace("DIR", &self.dir.path().display().to_string());
                std::fs::write(self.path("rabbitmq.conf"), config).unwrap();
            }
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path("said"))
                .unwrap();
            let mut command = self.program(PROGRAM);
            command.stdout(log.try_clone().unwrap()).stderr(log);
            let mut child = command.spawn().unwrap();
            // It ends by itself where a port was taken meanwhile.
            let answers = loop {
                if child.try_wait().unwrap().is_some() {
                    break false;
                }
                let is_up = self.ask(Method::GET, "aliveness-test/%2F", None).await;
                if is_up.is_some_and(|(status, _)| status == 200) {
                    break true;
                }
                assert!(began.elapsed() < PATIENCE, "RabbitMQ does not answer: {}", self.said());
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            if answers {
                self.child = Some(child);
                return;
            }
            self.end_epmd();
            if is_new {
                self.port = 0;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn said(&self) -> String {
        let said = std::fs::read_to_string(self.path("said")).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Asks the management interface; `None`: no answer.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Option<(u16, Value)> {
        let url = format!("http://127.0.0.1:{}/api/{path}", self.admin_port);
        let mut request = self.client.request(method, url).basic_auth(ADMIN.0, Some(ADMIN.1));
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.timeout(Duration::from_secs(20)).send().await.ok()?;
        let status = response.status().as_u16();
        let answer = serde_json::from_slice(&response.bytes().await.ok()?).unwrap_or_default();
        Some((status, answer))
    }

    /// Asks what must be answered well.
    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.ask(method, path, body).await.expect("RabbitMQ does not answer");
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    pub async fn put(&self, path: &str, body: Value) {
        self.admin(Method::PUT, path, Some(body)).await;
    }

    pub async fn delete(&self, path: &str) {
        self.admin(Method::DELETE, path, None).await;
    }

    /// A durable queue in a vhost, with arguments.
    pub async fn queue(&self, vhost: &str, name: &str, arguments: Value) {
        let body = json!({ "durable": true, "arguments": arguments });
        self.put(&format!("queues/{vhost}/{name}"), body).await;
    }

    pub async fn exchange(&self, vhost: &str, name: &str, kind: &str) {
        let body = json!({ "type": kind, "durable": true });
        self.put(&format!("exchanges/{vhost}/{name}"), body).await;
    }

    pub async fn bind(&self, vhost: &str, exchange: &str, queue: &str, key: &str) {
        let body = json!({ "routing_key": key });
        let path = format!("bindings/{vhost}/e/{exchange}/q/{queue}");
        self.admin(Method::POST, &path, Some(body)).await;
    }

    /// A user that may write to what a pattern says in a vhost.
    pub async fn user(&self, vhost: &str, name: &str, password: &str, write: &str) {
        let body = json!({ "password": password, "tags": "" });
        self.put(&format!("users/{name}"), body).await;
        let body = json!({ "configure": "", "write": write, "read": "" });
        self.put(&format!("permissions/{vhost}/{name}"), body).await;
    }

    pub async fn vhost(&self, name: &str) {
        self.put(&format!("vhosts/{name}"), json!({})).await;
        let body = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.put(&format!("permissions/{name}/{}", ADMIN.0), body).await;
    }

    /// Cuts every connection that there is.
    pub async fn close_connections(&self) {
        let listed = self.admin(Method::GET, "connections", None).await;
        for connection in listed.as_array().unwrap() {
            let name = connection["name"]
                .as_str()
                .unwrap()
                .replace(' ', "%20")
                .replace('>', "%3E");
            // It may be gone by itself.
            self.ask(Method::DELETE, &format!("connections/{name}"), None).await;
        }
    }

    /// Has what was declared so far outlive a kill: its database keeps it in a buffer for a while, and in a log.
    pub fn keep_definitions(&self) {
        self.evaluate("{dumped, ok} = {mnesia:dump_log(), mnesia:sync_log()}.");
    }

    /// Raises an alarm of memory or of disk, or ends it.
    pub fn alarm(&self, what: &str, is_on: bool) {
        let alarm = format!("{{{{resource_limit, {what}, node()}}, []}}");
        self.evaluate(&if is_on {
            format!("rabbit_alarm:set_alarm({alarm}).")
        } else {
            format!("rabbit_alarm:clear_alarm({{resource_limit, {what}, node()}}).")
        });
    }

    /// Has the server itself do something, in Erlang.
    fn evaluate(&self, call: &str) {
        let output = self
            .program("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(["-q", "eval", call])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// For a sink: everything, without TLS.
    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://{}:{}@127.0.0.1:{}/{vhost}", ADMIN.0, ADMIN.1, self.port)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Processes of the server: itself (the script becomes it) and what it has started, which has its directory for a home.
    fn processes(&self, name: &str) -> Vec<u32> {
        let home = format!("HOME={}", self.dir.path().display());
        let is_ours = |pid: &u32| {
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let environment = read("environ");
            let has_home = environment.split(|byte| *byte == 0).any(|line| line == home.as_bytes());
            has_home && String::from_utf8_lossy(&read("comm")).trim().contains(name)
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(is_ours)
            .collect()
    }

    /// It leaves the one that knows the names of Erlang's nodes behind.
    fn end_epmd(&self) {
        for pid in self.processes("epmd") {
            signal(pid, "-KILL");
        }
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
        for pid in self.processes("") {
            signal(pid, "-KILL");
        }
    }

    /// It stands still, its connections open.
    pub fn freeze(&self) {
        for pid in self.processes("beam") {
            signal(pid, "-STOP");
        }
    }

    /// It goes on.
    pub fn thaw(&self) {
        for pid in self.processes("beam") {
            signal(pid, "-CONT");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        self.end_epmd();
        if std::thread::panicking() {
            eprintln!("--- RabbitMQ said at last:\n{}", self.said());
        }
    }
}
