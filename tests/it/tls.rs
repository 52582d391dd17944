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
    assert!(daemon.ok(&["trigger", "lead.created"]).contains("is stored as Seq"));
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

/// Talks TLS as told, sends one request and reads to the end; gives what `openssl` says about it.
fn handshake(daemon: &Daemon, more: &[&str]) -> String {
    use std::io::Write;
    let address = daemon.url.trim_start_matches("https://").split('/').next().unwrap();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", address, "-servername", "localhost", "-ign_eof"])
        .args(more)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended already, refused.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn with_certificate() -> Daemon {
    let mut daemon = Daemon::new("[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"");
    write_certificate(&daemon, "one.example");
    daemon.run().await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn only_current_versions_and_ciphers_are_spoken() {
    let daemon = with_certificate().await;
    for (arguments, expected) in [
        (&["-tls1_2"][..], "Protocol  : TLSv1.2"),
        (&["-tls1_3"], "TLSv1.3, Cipher is TLS_"),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
            "404 Not Found",
        ),
        (
            &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
            "404 Not Found",
        ),
        (&["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        (&["-alpn", "h2,http/1.1"], "ALPN protocol: h2"),
        (&[], "No ALPN negotiated"),
    ] {
        let says = handshake(&daemon, arguments);
        assert!(says.contains(expected), "{arguments:?}: {says}");
    }
    // What openssl itself would not offer any more unless it is made to.
    let old = "DEFAULT:@SECLEVEL=0";
    for refused in [
        &["-tls1", "-cipher", old][..],
        &["-tls1_1", "-cipher", old],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "AES128-GCM-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
        &["-tls1_3", "-groups", "ffdhe2048"],
        &["-alpn", "spdy/1"],
    ] {
        let says = handshake(&daemon, refused);
        assert!(!says.contains("404 Not Found"), "{refused:?}: {says}");
        assert!(says.contains("alert"), "refused by the server: {refused:?}: {says}");
    }
    daemon.store(1..=1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_resumed() {
    let daemon = with_certificate().await;
    let file = daemon.path("session");
    let file = file.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let first = handshake(&daemon, &[version, "-sess_out", file]);
        assert!(first.contains("New, TLSv1."), "{first}");
        let again = handshake(&daemon, &[version, "-sess_in", file]);
        assert!(
            again.contains("Reused, TLSv1.") && again.contains("404 Not Found"),
            "{again}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_key_does_not_fit_never_replaces_a_good_one() {
    let daemon = with_certificate().await;
    let key = std::fs::read(daemon.path("key.pem")).unwrap();
    write_certificate(&daemon, "two.example");
    // Files that change one after the other are met in between.
    std::fs::write(daemon.path("key.pem"), &key).unwrap();
    until("it has noticed", async || daemon.stderr().contains("the old one stays")).await;
    daemon.store(1..=1).await;
    assert!(!daemon.reload().await);
    daemon.store(2..=2).await;
    let not_after: jiff::Timestamp = daemon.status()["certificate"]["not_after"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let shown = daemon.count("closehook_certificate_not_after_seconds").await;
    assert_eq!(shown, not_after.as_second().cast_unsigned());
}
