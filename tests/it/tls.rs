//! TLS from files: both protocols, both versions, and certificates exchanged while it runs.

use std::process::Command;

use crate::harness::{Daemon, body, until};

fn write_certificate(daemon: &Daemon, name: &str) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned(), "localhost".to_owned()]).unwrap();
    std::fs::write(daemon.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(daemon.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

/// What a client is shown.
fn certificate(daemon: &Daemon, more: &[&str]) -> String {
    let address = daemon.address();
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &address, "-servername", "localhost"])
        .args(more)
        .stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_arrive_over_tls_and_certificates_are_exchanged() {
    let mut daemon = Daemon::new("[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"");
    assert_eq!(
        daemon.run_command(&["check"]).status.code(),
        Some(2),
        "there are no files yet"
    );
    write_certificate(&daemon, "one.example");
    daemon.run().await;
    assert!(daemon.url.starts_with("https://"));
    daemon.store(1..=3).await;
    assert!(daemon.ok(&["trigger", "lead.created"]).contains("200 stored"));
    let shown = daemon.status()["certificate"].clone();
    assert!(shown["file"].as_str().unwrap().ends_with("cert.pem") && shown["not_after"].is_string());
    assert!(certificate(&daemon, &["-tls1_2"]).contains("TLSv1.2"));
    assert!(certificate(&daemon, &["-alpn", "h2"]).contains("ALPN protocol: h2"));
    assert!(!certificate(&daemon, &["-tls1_1"]).contains("BEGIN CERTIFICATE"));

    // Bad files never replace good ones.
    let before = std::fs::read(daemon.path("cert.pem")).unwrap();
    std::fs::write(daemon.path("cert.pem"), b"nonsense").unwrap();
    assert!(!daemon.reload().await);
    let (status, _) = daemon.send(body(4)).await.unwrap();
    assert_eq!(status, 200);
    std::fs::write(daemon.path("cert.pem"), before).unwrap();

    write_certificate(&daemon, "two.example");
    assert!(daemon.reload().await);
    daemon.store(5..=5).await;
    let shown = certificate(&daemon, &[]);
    let shown = &shown[shown.find("-----BEGIN").unwrap()..shown.find("-----END").unwrap()];
    let expected = std::fs::read_to_string(daemon.path("cert.pem"))
        .unwrap()
        .replace("\r\n", "\n");
    assert!(expected.contains(shown.trim()), "the new certificate is shown");

    // And without being told, when the files change.
    write_certificate(&daemon, "three.example");
    until("it has noticed", async || {
        daemon.stderr().contains("certificate reloaded")
    })
    .await;
    daemon.store(6..=6).await;
}
