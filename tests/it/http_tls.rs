//! The http sink with a receiver behind TLS that wants a token, takes batches, and goes away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use crate::harness::{Daemon, until};

/// A receiver with its token server, and what the two know.
#[derive(Clone, Default)]
struct Service(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The newest token.
    token: u64,
    /// Nobody gets one.
    is_closed: bool,
    /// The next request is refused: its token was taken back.
    takes_back: bool,
    /// Whether one of these is in a body, it is refused as a whole.
    bad: Vec<String>,
    /// How often each event was taken, and with which attempt.
    taken: BTreeMap<String, Vec<String>>,
    /// Bodies that were asked to be taken.
    requests: usize,
    versions: Vec<axum::http::Version>,
}

impl Service {
    /// Serves it; gives its URL, and the certificate in PEM.
    fn start(&self) -> (String, String) {
        serve(
            axum::Router::new()
                .route("/token", post(give))
                .fallback(take)
                .with_state(self.clone()),
        )
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

fn serve(router: axum::Router) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
    let server = axum_server::from_tcp_rustls(listener, config).unwrap();
    tokio::spawn(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()));
    (url, cert.pem())
}

async fn give(State(service): State<Service>, body: String) -> (StatusCode, String) {
    service.known(|known| {
        if known.is_closed || !body.contains("grant_type=client_credentials") {
            return (StatusCode::UNAUTHORIZED, "{\"error\":\"invalid_client\"}".into());
        }
        known.token += 1;
        let said = format!(
            "{{\"access_token\":\"T0K3N-{}\",\"token_type\":\"bearer\",\"expires_in\":3600}}",
            known.token
        );
        (StatusCode::OK, said)
    })
}

async fn take(State(service): State<Service>, request: axum::extract::Request) -> StatusCode {
    let version = request.version();
    let headers: HeaderMap = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    service.known(|known| {
        known.requests += 1;
        known.versions.push(version);
        if std::mem::take(&mut known.takes_back) {
            known.token += 1;
        }
        let wanted = format!("Bearer T0K3N-{}", known.token);
        if headers
            .get("authorization")
            .is_none_or(|said| said.as_bytes() != wanted.as_bytes())
        {
            return StatusCode::UNAUTHORIZED;
        }
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let events = match said {
            serde_json::Value::Array(events) => events,
            event => vec![event],
        };
        let ids: Vec<String> = events
            .iter()
            .map(|event| event["event"]["id"].as_str().unwrap().to_owned())
            .collect();
        if ids.iter().any(|id| known.bad.contains(id)) {
            return StatusCode::UNPROCESSABLE_ENTITY;
        }
        let attempt = headers
            .get("closehook-attempt")
            .map(|attempt| attempt.to_str().unwrap().to_owned());
        for id in ids {
            known
                .taken
                .entry(id)
                .or_default()
                .push(attempt.clone().unwrap_or_default());
        }
        StatusCode::NO_CONTENT
    })
}

fn sink(url: &str, ca: &std::path::Path, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"web\"\ntype = \"http\"\nurl = \"{url}/hook\"\nstart = \"beginning\"\nallow_private = true\nca = \"{}\"\n\
         auth = \"oauth2\"\ntoken_url = \"{url}/token\"\nclient_id = \"me\"\nclient_secret = \"hunter2222\"\n\
         retry = {{ initial = \"50ms\", max_delay = \"200ms\" }}\nbreaker = {{ probe = \"100ms\" }}\n{more}\n",
        ca.display()
    )
}

/// One bad event in a batch of hundreds costs one dead letter; a token that is taken back meanwhile costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_loses_its_bad_event_only_and_none_comes_twice() {
    const EVENTS: u64 = 300;
    let service = Service::default();
    let (url, pem) = service.start();
    service.known(|known| {
        known.bad = vec!["ev_123".into()];
        known.takes_back = true;
    });
    let daemon = Daemon::start("").await;
    daemon.store(1..=EVENTS).await;
    let ca = daemon.path("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    daemon.configure(&sink(&url, &ca, "batch = { events = 500, wait = \"1s\" }"));
    assert!(daemon.reload().await);
    until("all but one are delivered", async || {
        let sink = daemon.sink("web");
        (sink["delivered"].as_u64(), sink["dead"].as_u64()) == (Some(EVENTS - 1), Some(1))
    })
    .await;
    let letters = daemon.lines(&["dead", "list"]);
    assert_eq!(letters[0]["id"], "ev_123", "{letters:?}");
    service.known(|known| {
        assert_eq!(known.taken.len() as u64, EVENTS - 1);
        let twice: Vec<_> = known.taken.iter().filter(|(_, times)| times.len() != 1).collect();
        assert_eq!(twice, []);
        assert!(known.requests < 60, "{} requests for {EVENTS} events", known.requests);
        assert_eq!(
            known.token, 3,
            "one at first, one that was taken back, one instead of it"
        );
        assert!(
            known
                .versions
                .iter()
                .all(|version| *version == axum::http::Version::HTTP_2)
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_taken_away_cost_no_event_an_attempt_and_all_goes_on_when_they_are_back() {
    let service = Service::default();
    let (url, pem) = service.start();
    let mut daemon = Daemon::new("");
    let ca = daemon.path("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    daemon.configure(&sink(&url, &ca, ""));
    daemon.run().await;
    daemon.store(1..=5).await;
    until("five are delivered", async || daemon.sink("web")["delivered"] == 5).await;
    service.known(|known| {
        known.is_closed = true;
        known.takes_back = true;
    });
    daemon.store(6..=20).await;
    let mut said = String::new();
    until("it says what is wrong", async || {
        said = daemon.sink("web")["last_error"].as_str().unwrap_or_default().to_owned();
        said.contains("no token")
    })
    .await;
    assert!(
        said.contains("401 Unauthorized (invalid_client): look at client_id and client_secret"),
        "{said}"
    );
    let output = daemon.run_command(&["check", "--probe"]);
    let probed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(probed.contains("no token from token_url"), "{probed}");
    let sink = daemon.sink("web");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&0.into(), &0.into()), "{sink}");
    service.known(|known| known.is_closed = false);
    until("all are delivered", async || daemon.sink("web")["delivered"] == 20).await;
    service.known(|known| {
        let attempts: Vec<&String> = known.taken.values().flatten().collect();
        assert_eq!(attempts.len(), 20);
        assert!(attempts.iter().all(|attempt| *attempt == "1"), "{attempts:?}");
    });
    let everything = format!("{said}{probed}{}", daemon.stderr());
    for secret in ["hunter2222", "T0K3N"] {
        assert!(!everything.contains(secret), "{everything}");
    }
}

/// The daemon is killed again and again while batches are under way: nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn batches_amid_kills_lose_nothing() {
    let kills: u64 = std::env::var("CLOSEHOOK_TEST_KILLS").map_or(2, |kills| kills.parse().unwrap());
    let service = Service::default();
    let (url, pem) = service.start();
    let mut daemon = Daemon::new("");
    let ca = daemon.path("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    daemon.configure(&sink(
        &url,
        &ca,
        "batch = { events = 7, wait = \"20ms\" }\nconcurrency = 3",
    ));
    let mut last = 0;
    for _ in 0..kills {
        daemon.run().await;
        let before = service.known(|known| known.taken.len());
        daemon.store(last + 1..=last + 40).await;
        last += 40;
        until("some were delivered", async || {
            service.known(|known| known.taken.len()) > before
        })
        .await;
        daemon.kill();
    }
    daemon.run().await;
    until("each was delivered", async || {
        service.known(|known| known.taken.len()) as u64 == last
    })
    .await;
}

/// Its other end may be gone for good: HTTP/2 would keep it for the next request, and for the one after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_no_answer_came_is_not_used_again() {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = peers.clone();
    let answer = move |peer: axum::extract::ConnectInfo<SocketAddr>| async move {
        let is_first = {
            let mut peers = seen.lock().unwrap();
            peers.push(peer.0);
            peers[0] == peer.0
        };
        if is_first {
            std::future::pending::<()>().await;
        }
        StatusCode::NO_CONTENT
    };
    let (url, pem) = serve(axum::Router::new().fallback(answer));
    let mut daemon = Daemon::new("");
    let ca = daemon.path("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    daemon.configure(&format!(
        "[[sinks]]\nname = \"web\"\ntype = \"http\"\nurl = \"{url}/hook\"\nstart = \"beginning\"\nallow_private = true\n\
         ca = \"{}\"\ntimeout = \"1s\"\nretry = {{ initial = \"50ms\", max_delay = \"200ms\" }}\n\
         breaker = {{ probe = \"100ms\" }}\n",
        ca.display()
    ));
    daemon.run().await;
    daemon.store(1..=1).await;
    until("it is delivered", async || daemon.sink("web")["delivered"] == 1).await;
    let peers = peers.lock().unwrap();
    assert_eq!(peers.len(), 2);
    assert_ne!(peers[0], peers[1]);
}
