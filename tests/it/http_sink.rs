//! The http sink from outside: receivers that answer oddly, that are who they say by a certificate of their own, and that want to know
//! who asks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Daemon, until};

/// What every sink here has: the second try comes in an hour.
const PATIENT: &str = "start = \"beginning\"\nallow_private = true\nretry = { initial = \"1h\", max_delay = \"1h\" }\n";

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

fn sink(name: &str, url: &str, more: &str) -> String {
    format!("[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\n{PATIENT}{more}\n")
}

/// Reads one request, its body too; `false` where there is none.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(len @ 1..) => read.extend_from_slice(&buffer[..len]),
            _ => return false,
        }
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_ascii_lowercase();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        if body.len() >= len.map_or(0, |len| len.trim().parse().unwrap()) {
            return true;
        }
    }
}

/// A receiver that says these bytes to each request, and ends the connection. Counts the requests.
async fn says(answer: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if read_request(&mut stream).await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (url, asked)
}

/// Answers that say that the event was taken, and are odd in another way. Browsers and curl take them.
fn odd_answers() -> Vec<(&'static str, Vec<u8>)> {
    let many = |count: usize| {
        let lines: String = (0..count).map(|line| format!("x-{line}: {line}\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{lines}\r\n").into_bytes()
    };
    let plain = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            "folded",
            plain("HTTP/1.1 200 OK\r\nX-A: one\r\n two\r\n\tthree\r\nContent-Length: 0\r\n\r\n"),
        ),
        (
            "folded-empty",
            plain("HTTP/1.1 200 OK\r\nX-A:\r\n \r\nContent-Length: 0\r\n\r\n"),
        ),
        (
            "space",
            plain("HTTP/1.1 200 OK\r\nX-A : one\r\nContent-Length : 0\r\n\r\n"),
        ),
        ("lines-121", many(121)),
        ("lines-1000", many(1000)),
        (
            "bytes",
            b"HTTP/1.1 200 OK\r\nX-A: a\x01\x7f\xff\xc3b\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        (
            "name",
            plain("HTTP/1.1 200 OK\r\nX (A) @: one\r\n: two\r\nX\u{e9}: three\r\nContent-Length: 0\r\n\r\n"),
        ),
        (
            "no-colon",
            plain("HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n"),
        ),
        ("old", plain("HTTP/1.0 200 OK\r\n\r\nfine")),
        ("no-reason", plain("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")),
        ("no-content", plain("HTTP/1.1 204 \r\n\r\n")),
        (
            "reason",
            "HTTP/1.1 202 Angenommen \u{2713}\r\nContent-Length: 0\r\n\r\n"
                .as_bytes()
                .to_vec(),
        ),
        ("line-ends", plain("HTTP/1.1 200 OK\nContent-Length: 0\n\n")),
        ("short", plain("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")),
        (
            "chunks",
            plain("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ),
        ("long", plain("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabcdef")),
        (
            "hints",
            plain(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ),
        ),
        (
            "old-chunks",
            plain("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "old-identity",
            plain("HTTP/1.0 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok"),
        ),
        ("length-empty", plain("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nfine")),
        ("length-word", plain("HTTP/1.1 200 OK\r\nContent-Length: none\r\n\r\n")),
        ("length-signed", plain("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")),
        (
            "length-huge",
            plain("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
        ),
        (
            "length-most",
            plain("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n"),
        ),
        (
            "lengths",
            plain("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"),
        ),
        (
            "lengths-listed",
            plain("HTTP/1.1 200 OK\r\nContent-Length: 0, 1\r\n\r\n"),
        ),
        (
            "hints-and-lengths",
            plain("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        ),
        (
            "big",
            format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        ),
    ]
}

/// A3
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_was_read_is_the_answer_whatever_else_stands_in_the_head() {
    let mut config = String::new();
    let mut receivers = Vec::new();
    for (name, answer) in odd_answers() {
        let (url, asked) = says(answer).await;
        config += &sink(name, &url, "");
        receivers.push((name, asked));
    }
    let daemon = Daemon::start(&config).await;
    daemon.store(1..=1).await;
    for (name, asked) in &receivers {
        until(&format!("{name} was asked"), async || asked.load(Ordering::Relaxed) > 0).await;
    }
    let mut wrong = Vec::new();
    until("each has judged its answer", async || {
        let sinks = daemon.lines(&["sinks", "list"]);
        let is_judged = |sink: &serde_json::Value| {
            sink["in_flight"] == 0 && sink["lag_events"].as_u64() == sink["retrying"].as_u64()
        };
        wrong = sinks
            .iter()
            .filter(|sink| sink["delivered"] != 1)
            .map(|sink| format!("{}: {}", sink["name"], sink["last_error"]))
            .collect();
        sinks.iter().all(is_judged)
    })
    .await;
    assert_eq!(wrong, [""; 0]);
    for (name, asked) in receivers {
        assert_eq!(asked.load(Ordering::Relaxed), 1, "{name}");
    }
}

fn pem(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.display().to_string()
}

/// A receiver behind TLS that is content with everybody, or with those who have a certificate from an authority.
async fn tls_receiver(cert: &str, key: &str, clients: Option<&str>) -> u16 {
    let parse = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(parse(authority)).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = builder.with_single_cert(vec![parse(cert)], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_tls(acceptor.clone(), stream));
        }
    });
    port
}

async fn answer_tls(acceptor: tokio_rustls::TlsAcceptor, stream: tokio::net::TcpStream) {
    match acceptor.accept(stream).into_fallible().await {
        Ok(mut stream) => {
            if read_request(&mut stream).await {
                let _ = stream.write_all(GOOD).await;
                let _ = stream.shutdown().await;
            }
        }
        // A connection that is closed with something unread is reset, and what was said at last may be lost.
        Err((_, mut stream)) => {
            let _ = stream.shutdown().await;
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
        }
    }
}

/// As `openssl req -x509` makes one: it signs itself, and may sign others.
fn signed_by_itself(name: &str) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

async fn last_error(daemon: &Daemon, name: &str) -> String {
    let mut said = String::new();
    until(&format!("{name} says what is wrong"), async || {
        let sink = daemon.sink(name);
        said = sink["last_error"].as_str().unwrap_or_default().to_owned();
        !said.is_empty()
    })
    .await;
    said
}

async fn is_delivered(daemon: &Daemon, name: &str) {
    until(&format!("{name} has it"), async || daemon.sink(name)["delivered"] == 1).await;
}

/// D6
#[tokio::test(flavor = "multi_thread")]
async fn a_receivers_own_certificate_is_trusted_and_any_other_is_not() {
    let mut daemon = Daemon::new("");
    let (cert, key) = signed_by_itself("localhost");
    let (odd_cert, odd_key) = signed_by_itself("elsewhere.example");
    let url = format!("https://localhost:{}/", tls_receiver(&cert, &key, None).await);
    let odd_url = format!("https://localhost:{}/", tls_receiver(&odd_cert, &odd_key, None).await);
    let (own, odd) = (
        pem(&daemon.path("own.pem"), &cert),
        pem(&daemon.path("odd.pem"), &odd_cert),
    );
    let ca = |path: &str| format!("ca = \"{path}\"");
    daemon.configure(
        &[
            sink("own", &url, &ca(&own)),
            // That very certificate is meant, whatever name is in it.
            sink("odd", &odd_url, &ca(&odd)),
            sink("other", &url, &ca(&odd)),
            sink("none", &url, ""),
        ]
        .concat(),
    );
    daemon.run().await;
    daemon.store(1..=1).await;
    is_delivered(&daemon, "own").await;
    is_delivered(&daemon, "odd").await;
    for name in ["other", "none"] {
        let said = last_error(&daemon, name).await;
        assert!(said.contains("set ca to"), "{name}: {said}");
        assert_eq!(daemon.sink(name)["retrying"], 0, "that is no event's fault: {said}");
    }
}

/// F7
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_demands_a_certificate_is_shown_one_and_a_reload_takes_a_new_one() {
    let mut daemon = Daemon::new("");
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (right, wrong) = (authority("right"), authority("wrong"));
    let client_of = |issuer: &CertifiedIssuer<'static, KeyPair>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    };
    let (cert, key) = signed_by_itself("localhost");
    let port = tls_receiver(&cert, &key, Some(&right.pem())).await;
    let url = format!("https://localhost:{port}/");
    let ca = format!("ca = \"{}\"\n", pem(&daemon.path("server.pem"), &cert));
    let dir = daemon.dir.path().to_owned();
    let identity = |(cert, key): &(String, String), name: &str| {
        let cert = pem(&dir.join(format!("{name}.pem")), cert);
        let key = pem(&dir.join(format!("{name}.key")), key);
        format!("{ca}cert = \"{cert}\"\nkey = \"{key}\"\n")
    };
    let config = [
        sink("known", &url, &identity(&client_of(&right), "known")),
        sink("unknown", &url, &identity(&client_of(&wrong), "unknown")),
        sink("nobody", &url, &ca),
    ]
    .concat();
    daemon.configure(&config);
    daemon.run().await;
    daemon.store(1..=1).await;
    is_delivered(&daemon, "known").await;
    for (name, part) in [
        ("unknown", "does not take this client's certificate"),
        ("nobody", "set cert and key"),
    ] {
        let said = last_error(&daemon, name).await;
        assert!(said.contains(part), "{name}: {said}");
    }
    // The same files with something else in them.
    identity(&client_of(&right), "unknown");
    assert!(daemon.reload().await);
    is_delivered(&daemon, "unknown").await;
    // What can't be used is a fault before anything changes.
    std::fs::write(daemon.path("unknown.key"), "no key").unwrap();
    assert!(daemon.fails(2, &["check"]).contains("unknown.key"));
    assert!(!daemon.reload().await);
}

/// F7
#[tokio::test(flavor = "multi_thread")]
async fn what_the_receiver_said_stands_in_the_dead_letter_and_in_events_show() {
    let body = "{\"error\":\"no field cf_1\"}\n\u{1b}[31m";
    let answer = format!(
        "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (url, _) = says(answer.into_bytes()).await;
    let program = "[[sinks]]\nname = \"run\"\ntype = \"exec\"\nstart = \"beginning\"\n\
         command = [\"/bin/sh\", \"-c\", \"echo no such lead >&2; exit 1\"]\n";
    let daemon = Daemon::start(&format!("{}{program}", sink("web", &url, ""))).await;
    daemon.store(1..=1).await;
    until("both are dead", async || {
        daemon.sink("web")["dead"] == 1 && daemon.sink("run")["dead"] == 1
    })
    .await;
    for arguments in [
        &["dead", "show", "ev_1", "--sink", "web"][..],
        &["events", "show", "ev_1"],
    ] {
        let shown = daemon.ok(arguments);
        assert!(shown.contains("no field cf_1") && !shown.contains('\u{1b}'), "{shown}");
    }
    assert!(daemon.ok(&["events", "show", "ev_1"]).contains("no such lead"));
    let letters = daemon.lines(&["dead", "list"]);
    let of = |name: &str| letters.iter().find(|letter| letter["sink"] == name).unwrap()["answer"].clone();
    assert_eq!(of("web"), "{\"error\":\"no field cf_1\"}\n\\u001b[31m");
    assert_eq!(of("run"), "no such lead");
    // The reason stays a sentence, and is all that is logged.
    assert!(!daemon.stderr().contains("cf_1"), "{}", daemon.stderr());
}

/// A receiver that says back the whole request, as Express and many a debug page do.
async fn says_back() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |request: axum::extract::Request| async move {
        let header = |name: &str| {
            let value = request.headers().get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        let (uri, basic) = (request.uri(), header("authorization"));
        let said = format!(
            "Cannot POST {}\n{uri}\nauthorization: {basic}\nx-key: {}\n",
            uri.path(),
            header("x-key")
        );
        // The last word of what is kept stands across its end.
        let filler = ".".repeat(2048 - "/hook/T0K3N-".len() - said.len());
        (
            axum::http::StatusCode::NOT_FOUND,
            format!("{said}{filler}{}", uri.path()),
        )
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    port
}

/// What stands in all files below a directory.
fn all_bytes(dir: &Path, found: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all_bytes(&entry.path(), found),
            kind if kind.is_file() => found.extend(std::fs::read(entry.path()).unwrap()),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_receiver_said_is_nowhere_kept_with_what_it_was_told_in_secret() {
    let port = says_back().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let place = "/hook/T0K3N-in-path/a%20numbat%20one?key=SECRET&b=2&other=sp%20wombat";
    let program = "[[sinks]]\nname = \"run\"\ntype = \"exec\"\nstart = \"beginning\"\n\
         env = { WHERE = \"postgres://writer:hunter4444@db/crm\", SALT = \"hunter-zebra-quokka\" }\n\
         command = [\"/bin/sh\", \"-c\", \"seq -s ${SALT}_ 1 999 >&2; echo no such lead as hunter4444 >&2; exit 1\"]\n";
    let web = sink(
        "web",
        &format!("http://user:hunter2222@127.0.0.1:{port}{place}"),
        "headers = { x-key = \"k=hunter3333\" }",
    );
    let gone = sink("gone", &format!("http://user:hunter2222@{closed}{place}"), "");
    let daemon = Daemon::start(&format!("{web}{gone}{program}")).await;
    daemon.store(1..=1).await;
    until("both are dead", async || {
        daemon.sink("web")["dead"] == 1 && daemon.sink("run")["dead"] == 1
    })
    .await;
    assert!(last_error(&daemon, "gone").await.contains("can't be reached"));
    let backup = daemon.path("all.backup");
    let mut said = daemon.ok(&["backup", backup.to_str().unwrap()]);
    for arguments in [
        &["dead", "show", "ev_1", "--sink", "web"][..],
        &["dead", "show", "ev_1", "--sink", "run"],
        &["dead", "list"],
        &["dead", "list", "--json"],
        &["events", "show", "ev_1"],
        &["events", "show", "ev_1", "--json"],
        &["sinks", "list"],
        &["sinks", "list", "--json"],
        &["status"],
        &["status", "--json"],
        &["check"],
    ] {
        let output = daemon.run_command(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said += &daemon.stderr();
    let restored = Daemon::new("");
    restored.ok(&["restore", backup.to_str().unwrap()]);
    let mut files = std::fs::read(&backup).unwrap();
    all_bytes(daemon.data(), &mut files);
    all_bytes(restored.data(), &mut files);
    let files = String::from_utf8_lossy(&files);
    // It is there to be read, and still says what it said.
    for kept in ["Cannot POST /hook/", "no such lead as "] {
        assert!(said.contains(kept) && files.contains(kept), "{kept}: {said}");
    }
    let mut found = Vec::new();
    for secret in [
        "T0K3N",
        "numbat",
        "SECRET",
        "wombat",
        "hunter",
        "dXNlcjpodW50ZXIyMjIy",
        "unter2222",
        "quokka",
    ] {
        if said.contains(secret) || files.contains(secret) {
            found.push(secret);
        }
    }
    assert_eq!(found, [""; 0], "{said}");
}
