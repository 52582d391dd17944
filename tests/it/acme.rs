//! Certificates that come by themselves, from Let's Encrypt's own test server (Debian's `pebble`).

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::faults::Clock;
use crate::harness::{Daemon, skipped, until};

/// An ACME directory on this machine, which looks for its clients at the port of a socket.
pub struct Pebble {
    child: Child,
    pub directory: String,
}

impl Pebble {
    /// `None`: it is not installed. Certificates are valid for so many seconds.
    pub async fn start(dir: &Path, clients_port: u16, valid_secs: u64) -> Option<Pebble> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join("pebble.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.join("pebble.key"), made.signing_key.serialize_pem()).unwrap();
        // It can't choose a port itself; one that somebody else takes meanwhile is followed by another.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = serde_json::json!({ "pebble": {
                "listenAddress": format!("127.0.0.1:{port}"),
                "managementListenAddress": "",
                "certificate": dir.join("pebble.pem"),
                "privateKey": dir.join("pebble.key"),
                "httpPort": 1,
                "tlsPort": clients_port,
                "certificateValidityPeriod": valid_secs,
            }});
            std::fs::write(dir.join("pebble.json"), config.to_string()).unwrap();
            let log = std::fs::File::create(dir.join("pebble.log")).unwrap();
            let spawned = Command::new("pebble")
                .arg("-config")
                .arg(dir.join("pebble.json"))
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_WFE_NONCEREJECT", "0")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn();
            let Ok(child) = spawned else {
                skipped("pebble is not installed");
                return None;
            };
            let mut pebble = Pebble {
                child,
                directory: format!("https://localhost:{port}/dir"),
            };
            let mut has_ended = false;
            until("pebble listens", async || {
                has_ended = pebble.child.try_wait().unwrap().is_some();
                has_ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            })
            .await;
            if !has_ended {
                return Some(pebble);
            }
        }
        panic!(
            "pebble does not start: {}",
            std::fs::read_to_string(dir.join("pebble.log")).unwrap()
        );
    }

    pub fn config(&self, domain: &str) -> String {
        format!(
            "[server.acme]\ndomains = [\"{domain}\"]\nemail = \"ops@example.com\"\ndirectory = \"{}\"\nca = \"DIR/pebble.pem\"",
            self.directory
        )
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_after(daemon: &Daemon) -> Option<jiff::Timestamp> {
    daemon.status()["certificate"]["not_after"].as_str()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_ordered_renewed_and_kept() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut daemon = Daemon::new("");
    let Some(pebble) = Pebble::start(daemon.dir.path(), address.port(), 20).await else {
        return;
    };
    daemon.configure(&pebble.config("localhost"));
    daemon.ok(&["check"]);
    daemon
        .launch(daemon.with_socket("", socket.try_clone().unwrap().into()))
        .await;
    assert_eq!(daemon.url, format!("https://{address}/webhooks/close"));

    until("the certificate is there", async || not_after(&daemon).is_some()).await;
    let first = not_after(&daemon).unwrap();
    daemon.store(1..=3).await;
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-servername", "localhost"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("Pebble Intermediate CA"), "{shown}");

    // Account and certificate are for nobody else's eyes.
    let cache = daemon.data().join("acme");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&cache), 0o700);
    let files: Vec<_> = std::fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600));

    // It is renewed before it ends.
    let next: jiff::Timestamp = daemon.status()["certificate"]["next_renewal"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(next < first);
    assert_eq!(
        daemon.count("closehook_certificate_next_renewal_seconds").await,
        next.as_second().cast_unsigned()
    );
    until("it is renewed", async || {
        not_after(&daemon).is_some_and(|renewed| renewed > first)
    })
    .await;
    assert!(daemon.count("closehook_certificate_orders_total{result=\"ok\"}").await >= 2);
    daemon.store(4..=4).await;

    // Without the directory: the one that is kept is there at once, and stays when no other can be had.
    daemon.stop().await;
    drop(pebble);
    daemon.launch(daemon.with_socket("", socket.into())).await;
    assert!(not_after(&daemon).unwrap() > first);
    daemon.store(5..=5).await;
    until("another order has failed", async || {
        daemon.status()["certificate"]["last_error"].is_string()
    })
    .await;
    daemon.store(6..=6).await;
    assert!(
        daemon
            .count("closehook_certificate_orders_total{result=\"failed\"}")
            .await
            >= 1
    );
    assert!(daemon.ok(&["status"]).contains("the last order failed"));
    assert!(daemon.stderr().contains("no certificate could be had"));
}

/// To a clock that is so far ahead, a certificate of ninety days is past its renewal when it is new.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_seventy_days_ahead_makes_no_order_within_an_hour_of_the_last() {
    const DAYS: i64 = 70;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = Daemon::new("");
    let Some(clock) = Clock::give(&mut daemon) else { return };
    clock.set(DAYS * 24 * 60);
    let port = socket.local_addr().unwrap().port();
    let Some(pebble) = Pebble::start(daemon.dir.path(), port, 90 * 86_400).await else {
        return;
    };
    daemon.configure(&pebble.config("localhost"));
    for orders in [1, 0] {
        daemon
            .launch(daemon.with_socket("", socket.try_clone().unwrap().into()))
            .await;
        until("the certificate is there", async || not_after(&daemon).is_some()).await;
        let next: jiff::Timestamp = daemon.status()["certificate"]["next_renewal"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(DAYS * 24);
        assert!(
            next > now + jiff::SignedDuration::from_mins(50),
            "the next order is at {next}, and it is {now}"
        );
        assert_eq!(
            daemon.count("closehook_certificate_orders_total{result=\"ok\"}").await,
            orders
        );
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_lead_here_is_a_failure_one_can_read_and_is_tried_again() {
    // Nobody listens where the directory looks.
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut daemon = Daemon::new("");
    let Some(pebble) = Pebble::start(daemon.dir.path(), elsewhere, 3600).await else {
        return;
    };
    daemon.configure(&pebble.config("localhost"));
    daemon.run().await;
    until("the order has failed", async || {
        daemon.status()["certificate"]["last_error"].is_string()
    })
    .await;
    let certificate = daemon.status()["certificate"].clone();
    let error = certificate["last_error"].as_str().unwrap();
    assert!(error.contains("localhost") && error.contains("port 443"), "{error}");
    assert!(certificate["not_after"].is_null());
    let next: jiff::Timestamp = certificate["next_renewal"].as_str().unwrap().parse().unwrap();
    assert!(next > jiff::Timestamp::now(), "it is not hammered");
    assert!(daemon.ok(&["status"]).contains("NO CERTIFICATE YET"));
    // It lives, and says so.
    assert_eq!(daemon.ask_admin("/healthz").await.status(), 200);
}

#[test]
fn what_can_not_be_ordered_is_a_fault_with_its_place() {
    for (config, place) in [
        ("", "server.acme.domains: is missing"),
        ("domains = []", "server.acme.domains: "),
        ("domains = [\"*.example.com\"]", "server.acme.domains[0]: "),
        ("domains = [\"192.0.2.1\"]", "server.acme.domains[0]: "),
        (
            "domains = [\"a.example\"]\ndirectory = \"letsencrypt\"",
            "server.acme.directory: ",
        ),
        (
            "domains = [\"a.example\"]\nca = \"DIR/missing.pem\"",
            "server.acme.ca: ",
        ),
        (
            "domains = [\"a.example\"]\n[server.tls]\ncert = \"c\"\nkey = \"k\"",
            "server.acme: and server.tls are both given",
        ),
    ] {
        let daemon = Daemon::new(&format!("[server.acme]\n{config}"));
        let output = daemon.run_command(&["check"]);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{says}");
        assert!(says.contains(place), "{place}: {says}");
    }
}
