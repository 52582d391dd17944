//! The door: what a stranger can't do to a signed sender, and what nobody gets to see or to write by it.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, Receiver, body, skipped, until};

const PROXIED: &str = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\nproxy_protocol = true\n";

/// Longest wait for an answer: far less than the time limits that a test gives to who lies.
const PATIENCE: Duration = Duration::from_secs(45);

/// A connection from an address, as a proxy that speaks the PROXY protocol hands it on.
async fn at(daemon: &Daemon, address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    let (family, destination) = if address.contains(':') {
        ("TCP6", "::1")
    } else {
        ("TCP4", "10.0.0.1")
    };
    let line = format!("PROXY {family} {address} {destination} 1 2\r\n");
    stream.write_all(line.as_bytes()).await.unwrap();
    stream
}

/// A head whose signature looks right and is not.
fn lie(length: usize) -> String {
    format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\n{TIMESTAMP_HEADER}: 1\r\n{HASH_HEADER}: {}\r\ncontent-length: {length}\r\n\r\n",
        "0".repeat(64)
    )
}

/// A whole delivery that is signed; its connection ends with it.
fn signed(body: &str) -> String {
    let signature = Key::from_hex(None, KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), body.as_bytes());
    format!(
        "POST /webhooks/close HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\ncontent-length: {}\r\n\r\n{body}",
        signature.timestamp,
        signature.hash,
        body.len()
    )
}

/// A delivery of about a mebibyte.
fn large(id: u64) -> String {
    body(id).replace(
        "\"n\": 1.50",
        &format!("\"n\": 1.50, \"long\": \"{}\"", "x".repeat(1 << 20)),
    )
}

/// Everything the server answers before it closes; empty where it says nothing in time.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn deliver(daemon: &Daemon, address: &str, body: &str) -> String {
    let mut stream = at(daemon, address).await;
    let _ = stream.write_all(signed(body).as_bytes()).await;
    answer(&mut stream).await
}

/// Bytes that the kernel holds for the daemon's connections, on either side.
fn unread(daemon: &Daemon) -> u64 {
    let port: u16 = daemon.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let port = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queues = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields[1].ends_with(&port) || fields[2].ends_with(&port);
        // A connection that the daemon has closed does not count: nobody will read it.
        let is_open = fields[3] == "01";
        let (sent, received) = fields[4].split_once(':')?;
        let bytes = |text| u64::from_str_radix(text, 16).unwrap();
        (is_ours && is_open).then(|| bytes(sent) + bytes(received))
    });
    queues.sum()
}

/// Connections that announce a body, send it but for its last byte, and fall silent.
async fn liars(daemon: &Daemon, address: &str, count: usize, length: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = at(daemon, address).await;
        stream.write_all(lie(length).as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b'x'; length - 1]).await;
        all.push(stream);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_lying_connections_change_nothing_for_a_signed_sender() {
    let daemon = Daemon::start(&format!("{PROXIED}body_timeout = \"10m\"")).await;
    let mut lying = Vec::new();
    for address in ["198.51.100.1", "198.51.100.2"] {
        lying.extend(liars(&daemon, address, 8, 4 << 20).await);
    }
    until("the daemon has all that they sent", async || unread(&daemon) == 0).await;
    // Each from an address that never delivered, and again from one that has; all of them large.
    for id in 1..=20 {
        for address in [format!("203.0.113.{id}"), "192.0.2.1".to_owned()] {
            let said = deliver(&daemon, &address, &large(id * 2 + u64::from(address == "192.0.2.1"))).await;
            assert!(said.contains("\"stored\""), "{address}: {said}");
        }
    }
    drop(lying);
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_connections_from_the_signed_senders_own_address_change_nothing_for_it() {
    let daemon = Daemon::start(&format!("{PROXIED}body_timeout = \"10m\"")).await;
    assert!(deliver(&daemon, "198.51.100.1", &body(1)).await.contains("\"stored\""));
    let lying = liars(&daemon, "198.51.100.1", 16, 4 << 20).await;
    until("the daemon has all that they sent", async || unread(&daemon) == 0).await;
    for id in 2..=10 {
        let said = deliver(&daemon, "198.51.100.1", &large(id)).await;
        assert!(said.contains("\"stored\""), "{said}");
    }
    drop(lying);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_as_large_as_all_memory_for_bodies_is_taken() {
    let daemon = Daemon::start(&format!("{PROXIED}max_body = \"2 MiB\"\nmax_inflight = \"2 MiB\"")).await;
    let said = deliver(&daemon, "198.51.100.1", &large(1)).await;
    assert!(said.contains("\"stored\""), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn places_that_liars_hold_are_a_signed_senders_when_it_comes() {
    // A place for each of them and no more.
    let config =
        format!("{PROXIED}max_connections = 16\nhead_timeout = \"4s\"\nbody_timeout = \"10m\"\nidle_timeout = \"10m\"");
    let daemon = Daemon::start(&config).await;
    let lying = liars(&daemon, "198.51.100.1", 16, 64 << 10).await;
    for id in 1..=3 {
        let said = deliver(&daemon, "203.0.113.1", &body(id)).await;
        assert!(said.contains("\"stored\""), "{said}");
    }
    drop(lying);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_beyond_what_an_address_may_have_open_all_arrive() {
    let config = format!("{PROXIED}connections_per_address = 8\nhead_timeout = \"60s\"\nbody_timeout = \"2m\"");
    let daemon = Daemon::start(&config).await;
    let halves: Vec<(String, String)> = (1..=8)
        .map(|id| {
            let whole = signed(&body(id));
            let (begin, end) = whole.split_at(whole.len() - 40);
            (begin.to_owned(), end.to_owned())
        })
        .collect();
    let mut running = Vec::new();
    for (begin, _) in &halves {
        let mut stream = at(&daemon, "198.51.100.1").await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        running.push(stream);
    }
    until("all of them are there", async || {
        daemon.metric("closehook_connections").await >= 8.0
    })
    .await;
    // Twice as many more come at once, while these are at work.
    let mut more = Vec::new();
    for id in 9..=24 {
        let mut stream = at(&daemon, "198.51.100.1").await;
        stream.write_all(signed(&body(id)).as_bytes()).await.unwrap();
        more.push(stream);
    }
    until("they are there too", async || {
        daemon.metric("closehook_connections").await >= 24.0
            || daemon.count("closehook_displaced_connections_total").await > 0
    })
    .await;
    for (stream, (_, end)) in running.iter_mut().zip(&halves) {
        let _ = stream.write_all(end.as_bytes()).await;
    }
    for stream in running.iter_mut().chain(&mut more) {
        let said = answer(stream).await;
        assert!(said.contains("\"stored\""), "cut off in the middle: {said:?}");
    }
}

/// What a request with these headers is answered, as it comes from a proxy of this machine.
async fn through_a_proxy(daemon: &Daemon, headers: &str, body: &str) -> String {
    let request = signed(body).replacen("host: x\r\n", &format!("host: x\r\n{headers}"), 1);
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(&mut stream).await
}

#[tokio::test]
async fn nothing_that_a_client_sends_behind_a_proxy_switches_a_limit_off() {
    let config = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\nallow = [\"127.0.0.0/8\", \"198.51.100.0/24\", \"::/0\", \"0.0.0.0/0\"]\nfailures_per_address = \"1/h\"";
    let everybody = Daemon::start(config).await;
    let known = Daemon::start(&config.replace(", \"::/0\", \"0.0.0.0/0\"", "")).await;
    // What the proxy adds is `x-forwarded-for: 203.0.113.7`, or in the last ones `forwarded: for=203.0.113.7`.
    for forged in [
        "forwarded: for=127.0.0.1\r\nx-forwarded-for: 203.0.113.7\r\n",
        "forwarded: for=198.51.100.1\r\nx-forwarded-for: 203.0.113.7\r\n",
        "forwarded: for=unknown\r\nx-forwarded-for: 203.0.113.7\r\n",
        "forwarded: for=\"_hidden\"\r\nx-forwarded-for: 203.0.113.7\r\n",
        "forwarded: nonsense\r\nx-forwarded-for: 203.0.113.7\r\n",
        "forwarded: for=\"1.1.1.1\r\nx-forwarded-for: 203.0.113.7\r\n",
        "x-forwarded-for: 127.0.0.1\r\nforwarded: for=203.0.113.7\r\n",
        "x-forwarded-for: unknown\r\nforwarded: for=203.0.113.7\r\n",
        "x-forwarded-for: 198.51.100.1, nonsense\r\n",
        "forwarded: for=unknown\r\n",
    ] {
        for daemon in [&known, &everybody] {
            let said = through_a_proxy(daemon, forged, &body(1)).await;
            assert!(said.starts_with("HTTP/1.1 401"), "{forged}: {said}");
        }
    }
    // Failures count, too: the proxy's own address has no limit, and who hides behind it has one.
    for number in 0..60 {
        let forged = format!("forwarded: for=10.0.0.{number}\r\nx-forwarded-for: 203.0.113.7\r\n");
        through_a_proxy(&known, &forged, &body(1)).await;
        if known.count("closehook_slowed_requests_total").await > 0 {
            break;
        }
    }
    assert!(known.count("closehook_slowed_requests_total").await > 0);
    // Both may say the same, and a header that says nothing is none.
    for agreed in [
        "forwarded: for=198.51.100.1\r\nx-forwarded-for: 198.51.100.1\r\n",
        "forwarded: \r\nx-forwarded-for: 198.51.100.1\r\n",
        "x-forwarded-for: \r\n",
    ] {
        let said = through_a_proxy(&known, agreed, &body(2)).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{agreed}: {said}");
    }
}

#[test]
fn no_fault_of_a_configuration_shows_a_secret() {
    for line in [
        "api_key = 12345678901234567890123",
        "[close.oauth]\nclient_secret=12345678901234567890123",
    ] {
        let says = Daemon::new(&format!("[close]\n{line}\n")).fails(2, &["check"]);
        assert!(says.contains("beyond") && !says.contains("1234567890"), "{says}");
    }
}

/// What a terminal or a line of text must not be handed: controls, and what turns the direction of text.
fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}' | '\u{2028}' | '\u{2029}')
}

#[tokio::test]
async fn nothing_from_a_body_reaches_a_terminal_as_it_is() {
    let config = "[[sinks]]\nname = \"a\"\ntype = \"http\"\nurl = \"URL\"\nallow_private = true\n";
    let receiver = Receiver::start(400).await;
    let daemon = Daemon::start(&config.replace("URL", &receiver.url)).await;
    let nasty =
        "ev_\\u001b]0;owned\\u0007\\u001b[2Jx\\nfake 200 line\\r\\u009b31m\\u202egnp.exe\\u2066\\u200f\\u0000\\u2028";
    let delivery = format!(
        "{{\"event\":{{\"id\":\"{nasty}\",\"date_updated\":\"{nasty}\",\"object_type\":\"{nasty}\",\"action\":\"{nasty}\",\"lead_id\":\"{nasty}\",\"data\":{{\"{nasty}\":\"{nasty}\"}}}},\"subscription_id\":\"{nasty}\"}}"
    );
    assert_eq!(daemon.send(&delivery).await.unwrap().0, 200);
    // Not a delivery, and with the same in it as it is; once as text and once as what is no text.
    let raw = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\u{2066}\r\nx";
    assert_eq!(daemon.send(raw.as_bytes()).await.unwrap().1["status"], "quarantined");
    assert_eq!(
        daemon
            .send([b"\xff\x1b[2J\x9b", raw.as_bytes()].concat())
            .await
            .unwrap()
            .1["status"],
        "quarantined"
    );
    until("the event is a dead letter", async || daemon.sink("a")["dead"] == 1).await;
    let commands: &[&[&str]] = &[
        &["events", "list"],
        &["events", "list", "--quarantined"],
        &["events", "show", "1"],
        &["events", "show", "2"],
        &["events", "show", "3"],
        &["dead", "list"],
        &["dead", "show", "1"],
        &["sinks", "list"],
        &["status"],
        &["events", "verify"],
        &["rules", "explain", "--id", "1"],
        &["events", "show", "ev_\u{1b}[2J\u{202e}"],
        &["events", "list", "--type", "\u{1b}[2J\u{202e}"],
        &["events", "list", "--filter", "{\"\u{202e}\": \u{7f}"],
        &["dead", "drop", "--sink", "\u{1b}[2J\u{202e}", "--all", "--yes"],
    ];
    for arguments in commands {
        let output = daemon.run_command(arguments);
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        let found: Vec<char> = said.chars().filter(|c| is_hostile(*c)).collect();
        assert!(found.is_empty(), "{arguments:?}: {found:?} in {said:?}");
        assert!(!said.contains("\nfake 200 line"), "{arguments:?}: {said}");
    }
    let logged = daemon.stderr();
    let found: Vec<char> = logged.chars().filter(|c| is_hostile(*c)).collect();
    assert!(found.is_empty(), "{found:?} in {logged:?}");
    // Byte for byte where a program reads it.
    assert_eq!(
        daemon.run_command(&["events", "show", "2", "--raw"]).stdout,
        raw.as_bytes()
    );
}

#[test]
fn a_restore_of_what_is_no_backup_leaves_nothing() {
    let daemon = Daemon::new("");
    std::fs::write(daemon.path("nonsense"), "this is no backup at all").unwrap();
    std::fs::write(daemon.path("nothing"), "").unwrap();
    for file in ["nonsense", "nothing", "missing"] {
        let dir = daemon.path("deep/er/restored");
        let (file, dir_text) = (daemon.path(file), dir.display().to_string());
        let output = daemon.run_command(&["restore", file.to_str().unwrap(), "--dir", &dir_text]);
        assert!(!output.status.success());
        assert!(!daemon.path("deep").exists(), "{} is left", file.display());
    }
    // One that was there stays, empty.
    let dir = daemon.path("empty");
    std::fs::create_dir(&dir).unwrap();
    let nonsense = daemon.path("nonsense");
    daemon.run_command(&["restore", nonsense.to_str().unwrap(), "--dir", dir.to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[tokio::test]
async fn the_daemon_is_called_closehook() {
    let daemon = Daemon::start("").await;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid())).unwrap();
    assert_eq!(name.trim_end(), "closehook");
}

/// Every file below a directory that does not belong to this user.
fn of_others(dir: &std::path::Path, user: u32) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.uid() != user {
            found.push(path.display().to_string());
        }
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

#[tokio::test]
async fn a_command_of_root_writes_through_no_link_and_as_the_directorys_owner() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        skipped("only root can be made to write elsewhere");
        return;
    }
    let receiver = Receiver::start(400).await;
    let sink = format!(
        "[[sinks]]\nname = \"a\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\nsecret_file = \"DIR/key\"",
        receiver.url
    );
    let mut daemon = Daemon::start(&sink).await;
    daemon.store(1..=3).await;
    until("they are dead letters", async || daemon.sink("a")["dead"] == 3).await;
    daemon.stop().await;
    let chown = std::process::Command::new("chown")
        .arg("-R")
        .arg("65534:65534")
        .arg(daemon.data())
        .status();
    assert!(chown.unwrap().success());
    // Only root reads the configuration, its secrets and what is imported.
    std::fs::set_permissions(daemon.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let export = daemon.path("export.jsonl");
    std::fs::write(&export, daemon.ok(&["events", "export"])).unwrap();
    std::fs::set_permissions(&export, std::fs::Permissions::from_mode(0o600)).unwrap();

    let victim = daemon.path("victim");
    let plant = |name: &str| {
        let at = daemon.data().join(name);
        let _ = std::fs::create_dir_all(at.parent().unwrap());
        let kept = std::fs::read(&at).ok();
        let _ = std::fs::remove_file(&at);
        std::os::unix::fs::symlink(&victim, &at).unwrap();
        (at, kept)
    };
    let commands: &[&[&str]] = &[
        &["sinks", "pause", "a"],
        &["log", "erase", "--id", "ev_1", "--yes"],
        &["log", "import", export.to_str().unwrap()],
        &["sinks", "resume", "a"],
    ];
    // Files that are written, files that are about to be renamed, and a directory in the place of one.
    for name in [
        "lock",
        "identity.tmp",
        "close/keys.json.tmp",
        "close/keys.lock",
        "signature_key.tmp",
        "known.tmp",
        "give-way",
    ] {
        std::fs::write(&victim, "precious").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (link, kept) = plant(name);
        for arguments in commands {
            let _ = daemon.run_command(arguments);
            assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{name}: {arguments:?}");
        }
        let metadata = std::fs::metadata(&victim).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 0, "{name}");
        let _ = std::fs::remove_file(&link);
        if let Some(kept) = kept {
            std::fs::write(&link, kept).unwrap();
            std::os::unix::fs::chown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let _ = std::fs::remove_dir_all(daemon.data().join("close"));
    for arguments in commands {
        let output = daemon.run_command(arguments);
        assert_ne!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(of_others(daemon.data(), NOBODY), Vec::<String>::new(), "{arguments:?}");
    }
    assert!(
        daemon
            .ok(&["log", "import", export.to_str().unwrap()])
            .contains("3 were known already")
    );
}

/// Children of a process that have ended and that it never waited for.
fn zombies_of(parent: u32) -> usize {
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
            after.starts_with(&format!("Z {parent} "))
        })
        .count()
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_reaped_by_process_1_of_a_container() {
    let exec = "[[sinks]]\nname = \"a\"\ntype = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"sleep 1000 & setsid sleep 0 & echo x >> DIR/ran; exit 0\"]\n";
    let mut daemon = Daemon::new(
        &exec
            .replace("DIR/ran", "$RAN")
            .replace("command", "env = { RAN = \"DIR/ran\" }\ncommand"),
    );
    let serve = daemon.command();
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(serve.get_program())
        .args(serve.get_args())
        .arg("serve");
    for (name, value) in serve.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let can = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .status();
    if !can.is_ok_and(|status| status.success()) {
        skipped("namespace: none of one's own can be made here");
        return;
    }
    daemon.spawn_as(command);
    let unshare = daemon.pid();
    let mut first = None;
    until("it serves as process 1", async || {
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap_or_default();
        first = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse::<u32>().ok());
        let output = daemon.run_command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        daemon.url = status["daemon"]["url"].as_str().unwrap_or_default().to_owned();
        // What the kernel lists of children while one is made may be empty.
        status["daemon"]["pid"] == 1 && first.is_some()
    })
    .await;
    daemon.store(1..=5).await;
    until("all of them are delivered", async || {
        std::fs::read_to_string(daemon.path("ran")).is_ok_and(|ran| ran.lines().count() == 5)
    })
    .await;
    until("nothing is left of them", async || zombies_of(first.unwrap()) == 0).await;
    assert_eq!(
        daemon.sink("a")["dead"],
        0,
        "and whoever waits for a program of its own still gets its answer"
    );
    until("each is counted", async || daemon.sink("a")["lag_events"] == 0).await;
}

#[tokio::test]
async fn a_daemon_of_root_writes_through_no_link_and_as_the_directorys_owner() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        skipped("only root can be made to write elsewhere");
        return;
    }
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=3).await;
    daemon.stop().await;
    let victim = daemon.path("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    // Only root reads the configuration and its secrets.
    for name in ["key", "closehook.toml"] {
        std::fs::set_permissions(daemon.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let _ = std::fs::remove_file(daemon.data().join("signature_key"));
    for name in [
        "give-way",
        "signature_key.tmp",
        "identity.tmp",
        "known.tmp",
        "socket.tmp",
    ] {
        let _ = std::fs::remove_file(daemon.data().join(name));
        std::os::unix::fs::symlink(&victim, daemon.data().join(name)).unwrap();
    }
    let chown = std::process::Command::new("chown")
        .args(["-h", "-R", "65534:65534"])
        .arg(daemon.data())
        .status();
    assert!(chown.unwrap().success());
    // A command has the directory: the daemon asks it to give way until it does.
    let lock = std::fs::File::open(daemon.data().join("lock")).unwrap();
    lock.lock().unwrap();
    daemon.spawn();
    until("the daemon asks", async || {
        let asked = std::fs::symlink_metadata(daemon.data().join("give-way"));
        asked.is_ok_and(|asked| asked.is_file()) || std::fs::read(&victim).unwrap() != b"precious"
    })
    .await;
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    drop(lock);
    until("it serves", async || {
        let output = daemon.run_command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["daemon"]["pid"] == daemon.pid()
    })
    .await;
    assert!(daemon.ok(&["trigger", "lead.created"]).contains("is stored as Seq"));
    daemon.stop().await;
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    let metadata = std::fs::metadata(&victim).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 0);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let of_root = of_others(daemon.data(), NOBODY);
    assert_eq!(of_root, Vec::<String>::new());
}
