//! Behind a proxy: whose address counts, and listening where only a proxy of this machine can reach.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Daemon, KEY, body, said_to_the_end, until};

/// Writes bytes and reads until the server closes.
async fn raw(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    said_to_the_end(&mut stream).await
}

fn unsigned(headers: &str) -> String {
    format!("POST /webhooks/close HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: 0\r\n\r\n")
}

/// A request without a signature is refused and logged with the address it came from.
async fn seen_as(daemon: &Daemon, request: &[u8], address: &str) {
    let answer = raw(daemon, request).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let expected = format!("peer={address}");
    until("it is logged", async || daemon.stderr().contains("refused a request")).await;
    assert!(daemon.stderr().contains(&expected), "{}", daemon.stderr());
}

const TRUSTED: &str = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]";

#[tokio::test]
async fn a_trusted_proxy_names_its_client_in_a_header() {
    let daemon = Daemon::start(TRUSTED).await;
    let request = unsigned("x-forwarded-for: 1.1.1.1, 198.51.100.9\r\n");
    seen_as(&daemon, request.as_bytes(), "198.51.100.9").await;
    let daemon = Daemon::start(TRUSTED).await;
    let request = unsigned("forwarded: for=\"[2001:db8::9]:4711\";proto=https\r\n");
    seen_as(&daemon, request.as_bytes(), "2001:db8::9").await;
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let daemon = Daemon::start("").await;
    let request = unsigned("x-forwarded-for: 198.51.100.9\r\nforwarded: for=198.51.100.9\r\n");
    seen_as(&daemon, request.as_bytes(), "127.0.0.1").await;
    // Nor is the PROXY protocol of somebody who is not trusted: it is no HTTP.
    let config = "[server]\ntrusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true";
    let daemon = Daemon::start(config).await;
    let introduced = format!("PROXY TCP4 198.51.100.9 10.0.0.1 1 2\r\n{}", unsigned(""));
    let answer = raw(&daemon, introduced.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    daemon.store(1..=1).await;
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_before_the_first_byte() {
    let config = format!("{TRUSTED}\nproxy_protocol = true\nhead_timeout = \"1s\"");
    let daemon = Daemon::start(&config).await;
    let delivery = body(1);
    let signature = Key::from_hex(None, KEY)
        .unwrap()
        .sign(jiff::Timestamp::now(), delivery.as_bytes());
    let signed = format!(
        "PROXY TCP6 2001:db8::9 2001:db8::1 56324 443\r\nPOST /webhooks/close HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{TIMESTAMP_HEADER}: {}\r\n{HASH_HEADER}: {}\r\ncontent-length: {}\r\n\r\n{delivery}",
        signature.timestamp,
        signature.hash,
        delivery.len()
    );
    let answer = raw(&daemon, signed.as_bytes()).await;
    assert!(answer.contains("\"stored\""), "{answer}");
    // Without it, with nonsense and with half of it: cut off.
    for bad in [unsigned("").as_str(), "PROXY TCP9 x\r\n", "PROXY TCP4 1.2"] {
        assert_eq!(raw(&daemon, bad.as_bytes()).await, "", "{bad}");
    }
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([198, 51, 100, 9, 10, 0, 0, 1, 0, 1, 0, 2]);
    version_2.extend(unsigned("").as_bytes());
    seen_as(&daemon, &version_2, "198.51.100.9").await;
}

/// What `trigger` says that was stored, with these arguments.
fn triggered(daemon: &Daemon, listen: &str, more: &[&str]) -> String {
    let mut command = daemon.command();
    command.env("CLOSEHOOK__SERVER__LISTEN", listen);
    let output = command.args(["trigger", "lead.created"]).args(more).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_reaches_a_listener_that_wants_the_proxy_protocol() {
    let config = format!("{TRUSTED}\nproxy_protocol = true");
    let daemon = Daemon::start(&config).await;
    let key = format!("@{}", daemon.path("key").display());
    let named: &[&str] = &["--url", &daemon.url, "--key", &key];
    for more in [&["--count", "3"][..], named] {
        let said = triggered(&daemon, &daemon.address(), more);
        assert!(said.contains("is stored as Seq"), "{more:?}: {said}");
    }
    // Whoever is not believed must not send it.
    let config = "[server]\ntrusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true";
    let daemon = Daemon::start(config).await;
    let said = triggered(&daemon, &daemon.address(), &[]);
    assert!(said.contains("is stored as Seq"), "{said}");
    // Nor does what else is on this machine want it.
    let plain = Daemon::start("").await;
    let said = triggered(&daemon, &daemon.address(), &["--url", &plain.url, "--key", &key]);
    assert!(said.contains("is stored as Seq"), "{said}");

    let mut daemon = Daemon::new(&format!("{TRUSTED}\nproxy_protocol = true\nlisten_mode = \"0620\""));
    let listen = format!("unix:{}", daemon.path("public.sock").display());
    let mut command = daemon.command();
    command.env("CLOSEHOOK__SERVER__LISTEN", &listen).arg("serve");
    daemon.launch(command).await;
    let said = triggered(&daemon, &listen, &[]);
    assert!(said.contains("is stored as Seq"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_gone_is_said_to_be_although_it_wants_the_proxy_protocol() {
    let daemon = Daemon::new(&format!("{TRUSTED}\nproxy_protocol = true"));
    let key = format!("@{}", daemon.path("key").display());
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}/webhooks/close");
    let said = triggered(&daemon, &closed.to_string(), &["--url", &url, "--key", &key]);
    assert!(said.contains("can't be reached") && said.contains("refused"), "{said}");
}

#[tokio::test]
async fn a_socket_in_the_file_system_takes_deliveries_and_leaves_nothing_behind() {
    let mut daemon = Daemon::new("[server]\nlisten_mode = \"0620\"");
    let path = daemon.path("public.sock");
    let serve = |daemon: &Daemon| {
        let mut command = daemon.command();
        command
            .env("CLOSEHOOK__SERVER__LISTEN", format!("unix:{}", path.display()))
            .arg("serve");
        command
    };
    daemon.launch(serve(&daemon)).await;
    assert!(daemon.ok(&["trigger", "lead.created"]).contains("is stored as Seq"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);

    // What a killed daemon leaves is replaced.
    let before = std::fs::metadata(&path).unwrap().ino();
    daemon.kill();
    assert!(path.exists());
    daemon.launch(serve(&daemon)).await;
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), before);
    assert!(daemon.ok(&["trigger", "lead.created"]).contains("is stored as Seq"));

    daemon.stop().await;
    assert!(!path.exists());
}

#[test]
fn proxies_that_make_no_sense_are_faults_with_their_place() {
    for (config, place) in [
        (
            "trusted_proxies = [\"proxy.example.com\"]",
            "server.trusted_proxies[0]: ",
        ),
        ("proxy_protocol = true", "server.proxy_protocol: "),
        ("listen_mode = \"rw\"", "server.listen_mode: "),
    ] {
        let daemon = Daemon::new(&format!("[server]\n{config}"));
        let output = daemon.run_command(&["check"]);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{says}");
        assert!(says.contains(place), "{says}");
    }
}
