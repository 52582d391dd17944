//! With the proxies in front that people have, as they are in Debian, and the lines in their configurations that `init` prints.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::harness::{Daemon, KEY, body, skipped, until};
use crate::init::Host;

/// Where clients come from: an address of this machine that is nobody's proxy.
const CLIENT: &str = "127.0.0.2";

/// The lines below a heading that `init` prints, up to the next heading.
fn lines_for(said: &str, heading: &str) -> String {
    let mut lines = said
        .lines()
        .skip_while(|line| !line.trim_start().starts_with(heading))
        .skip(1);
    let mut found = String::new();
    while let Some(line) = lines.next().filter(|line| line.starts_with("    ")) {
        found += line;
        found.push('\n');
    }
    assert!(!found.is_empty(), "no lines for {heading}: {said}");
    found
}

struct Front {
    child: Child,
    port: u16,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a proxy with a configuration that is made for a port; `None`, loudly, where it is not installed.
async fn start(dir: &Path, program: &str, arguments: &[&str], config: impl Fn(u16) -> String) -> Option<Front> {
    // They can't choose a port themselves; one that somebody else takes meanwhile is followed by another.
    for _ in 0..10 {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let file = dir.join(format!("{program}.conf"));
        std::fs::write(&file, config(port)).unwrap();
        let log = std::fs::File::create(dir.join(format!("{program}.log"))).unwrap();
        let spawned = Command::new(program)
            .args(arguments)
            .arg(&file)
            .env(
                "PATH",
                format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap()),
            )
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let Ok(child) = spawned else {
            skipped(&format!("{program} is not installed"));
            return None;
        };
        let mut front = Front { child, port };
        let mut has_ended = false;
        until("the proxy listens", async || {
            has_ended = front.child.try_wait().unwrap().is_some();
            has_ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        if !has_ended {
            return Some(front);
        }
    }
    let log = std::fs::read_to_string(dir.join(format!("{program}.log"))).unwrap();
    panic!("{program} does not start: {log}");
}

/// Sends a delivery through a proxy, from an address of its own, and gives the answer.
async fn through(front: &Front, headers: &str, signature: &str, body: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{CLIENT}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], front.port).into()).await.unwrap();
    let request = format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\n{headers}{signature}content-length: {}\r\n\r\n{body}",
        front.port,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "no answer: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The daemon where the lines lead, with a list of who may send that has the client on it and nobody else.
async fn daemon(host: &Host) -> Daemon {
    let mut daemon = Daemon::new(&format!("[server]\nallow = [\"{CLIENT}\"]\n"));
    let mut command = daemon.command();
    command
        .env(
            "CLOSEHOOK__SERVER__LISTEN",
            format!("unix:{}", host.path("public.sock").display()),
        )
        .arg("serve");
    daemon.launch(command).await;
    daemon
}

async fn passes_on_who_the_client_is(front: &Front, host: &Host) {
    let daemon = daemon(host).await;
    let forged = [
        "",
        "forwarded: for=198.51.100.1\r\n",
        "forwarded: for=unknown\r\nx-forwarded-for: 198.51.100.1\r\n",
        "x-forwarded-for: 198.51.100.1, 127.0.0.1\r\n",
        "x-forwarded-for: 127.0.0.1\r\nforwarded: for=\"127.0.0.1\"\r\n",
    ];
    for (id, headers) in (1..).zip(forged) {
        let body = body(id);
        let signed = Key::from_hex(None, KEY)
            .unwrap()
            .sign(jiff::Timestamp::now(), body.as_bytes());
        let signature = format!(
            "{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\n",
            signed.timestamp, signed.hash
        );
        let said = through(front, headers, &signature, &body).await;
        assert!(said.contains("\"stored\""), "{headers}: {said}");
        let said = through(front, headers, "", &body).await;
        assert!(said.starts_with("HTTP/1.1 401"), "{headers}: {said}");
    }
    // A body of the largest size gets through as well.
    let large = body(100).replace("\"n\": 1.50", &format!("\"n\": \"{}\"", "x".repeat((4 << 20) - 1000)));
    let signed = Key::from_hex(None, KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), large.as_bytes());
    let signature = format!(
        "{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\n",
        signed.timestamp, signed.hash
    );
    let said = through(front, "", &signature, &large).await;
    assert!(said.contains("\"stored\""), "{said}");
    let logged = daemon.stderr();
    assert!(logged.contains(&format!("peer={CLIENT}")), "{logged}");
    for line in logged.lines().filter(|line| line.contains("peer=")) {
        assert!(
            line.contains(&format!("peer={CLIENT}")),
            "somebody else is meant: {line}"
        );
    }
    assert_eq!(daemon.count("closehook_turned_away_total{reason=\"network\"}").await, 0);
}

/// What `init` says to somebody who has a proxy in front.
async fn said_by_init() -> (Host, String) {
    let host = Host::new().await;
    let mut flags = host.first_flags();
    // As Close would be told; nobody answers there, and what it says about that is not looked at.
    flags[1] = flags[1].replace("http://", "https://");
    let flags = flags.each_ref().map(String::as_str);
    let output = host.run(&[&["init", "--yes"], &flags[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    (host, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_with_the_lines_of_init_says_who_the_client_is() {
    let (host, said) = said_by_init().await;
    let lines = lines_for(&said, "nginx");
    let dir = host.path("nginx");
    std::fs::create_dir(&dir).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = |port| {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
            .concat();
        format!(
            "daemon off; {user}\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}server {{\nlisten 127.0.0.1:{port};\n{lines}}}\n}}\n",
            at("pid")
        )
    };
    let Some(front) = start(&dir, "nginx", &["-e", "stderr", "-c"], config).await else {
        return;
    };
    passes_on_who_the_client_is(&front, &host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_with_the_lines_of_init_says_who_the_client_is() {
    let (host, said) = said_by_init().await;
    let lines = lines_for(&said, "haproxy");
    let config = |port| {
        format!(
            "global\n    maxconn 100\ndefaults\n    mode http\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\nfrontend front\n    bind 127.0.0.1:{port}\n    default_backend closehook\n{lines}"
        )
    };
    let dir = host.path("haproxy");
    std::fs::create_dir(&dir).unwrap();
    let Some(front) = start(&dir, "haproxy", &["-db", "-f"], config).await else {
        return;
    };
    passes_on_who_the_client_is(&front, &host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_with_the_lines_of_init_says_who_the_client_is() {
    let (host, said) = said_by_init().await;
    let lines = lines_for(&said, "caddy");
    // The site is the name's, over HTTPS; here it is a port of this machine's.
    let (_, block) = lines.split_once('{').unwrap();
    let config = |port| format!("{{\n    admin off\n    auto_https off\n}}\nhttp://127.0.0.1:{port} {{{block}");
    let dir = host.path("caddy");
    std::fs::create_dir(&dir).unwrap();
    let arguments = ["run", "--adapter", "caddyfile", "--config"];
    let Some(front) = start(&dir, "caddy", &arguments, config).await else {
        return;
    };
    passes_on_who_the_client_is(&front, &host).await;
}
