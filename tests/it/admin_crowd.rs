//! Strangers at the admin listener: however many come, and whatever they don't say, who has signed in goes on.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::admin_door::{READ, TOKENS};
use crate::admin_tail::Reader;
use crate::harness::{Daemon, until};

/// More than the listener has places.
const STRANGERS: usize = 90;

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_session_give_their_places_and_a_signed_in_stream_keeps_its_own() {
    let daemon = Daemon::start(&format!("[server]\nhead_timeout = \"1s\"\n{TOKENS}")).await;
    let mut reader = Reader::begin(&daemon, "", None).await;
    assert_eq!(reader.next().await.unwrap().name, "begin");
    // Forms that never come to their end: a request runs on each of these connections, as one does on the stream's.
    let address = daemon.admin.strip_prefix("http://").unwrap().to_owned();
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /sign-in HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\ntok"
        );
        // One that was told to go is gone.
        let _ = stream.write_all(head.as_bytes()).await;
        strangers.push(stream);
    }
    // Who comes after them is answered, for which some of them had to go.
    for _ in 0..3 {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answered = async {
            loop {
                let asked = client.get(format!("{}/healthz", daemon.admin));
                if let Ok(answer) = asked.send().await
                    && answer.status() == StatusCode::OK
                {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answered).await.unwrap();
    }
    daemon.store(1..=3).await;
    assert_eq!(reader.seqs(3).await, [1, 2, 3], "the stream goes on");
    drop(strangers);
    // And it is the same stream, not one that was begun anew.
    until("there is one", async || {
        daemon.metric("closehook_admin_streams").await > 0.5
    })
    .await;
    assert_eq!(
        daemon.with_token(READ, Method::GET, "/api/v1/me").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn what_is_said_twice_of_where_a_request_comes_from_is_refused() {
    let daemon = Daemon::start(TOKENS).await;
    let cookie = daemon.session().await;
    let address = daemon.admin.strip_prefix("http://").unwrap().to_owned();
    let own = format!("origin: {}", daemon.admin);
    let post = "POST /configuration/reload HTTP/1.1";
    let get = "GET /api/v1/me HTTP/1.1";
    let host = format!("host: {address}");
    for (request, lines, status) in [
        (
            post,
            vec![
                &*host,
                &own,
                "sec-fetch-site: same-origin",
                "sec-fetch-site: cross-site",
            ],
            400,
        ),
        (
            post,
            vec![
                &*host,
                &own,
                "sec-fetch-site: same-origin",
                "sec-fetch-site: same-origin",
            ],
            400,
        ),
        (post, vec![&*host, &own, "origin: http://evil.example"], 403),
        (post, vec![&*host, "host: evil.example", &own], 400),
        (post, vec![&*host, &*host, &own], 400),
        (
            get,
            vec![&*host, "sec-fetch-site: same-site", "sec-fetch-mode: cors"],
            403,
        ),
        (
            get,
            vec![&*host, "sec-fetch-site: cross-site", "sec-fetch-mode: no-cors"],
            403,
        ),
        (
            get,
            vec![&*host, "sec-fetch-site: same-site", "sec-fetch-mode: navigate"],
            200,
        ),
        (
            get,
            vec![&*host, "sec-fetch-site: same-origin", "sec-fetch-mode: cors"],
            200,
        ),
    ] {
        let lines = lines.join("\r\n");
        let text =
            format!("{request}\r\n{lines}\r\ncookie: {cookie}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut said = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut said)
            .await
            .unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{text}\n{said}");
    }
    assert!(
        !daemon.stderr().contains("reload"),
        "nothing was done: {}",
        daemon.stderr()
    );
}
