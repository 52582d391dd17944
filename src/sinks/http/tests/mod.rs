//! What the http sink promises.

mod auth;
mod gather;
mod made;

use axum::http::HeaderMap as AxumHeaders;
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::RETRY_AFTER;

use super::*;
use crate::net::reply::retry_after;
use crate::sinks::common::line::tests::delivery;
use crate::sinks::tests::{self, deliver};

type Seen = Arc<Mutex<Vec<(AxumHeaders, Bytes)>>>;

async fn receiver(status: u16, headers: &'static [(&'static str, &'static str)]) -> (String, Seen) {
    let seen = Seen::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let keep = seen.clone();
    let answer = move |got: AxumHeaders, body: Bytes| async move {
        keep.lock().unwrap().push((got, body));
        let mut response = axum::http::StatusCode::from_u16(status).unwrap().into_response();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (url, seen)
}

async fn build(table: serde_json::Value) -> (SinkOptions, Box<dyn Sink>) {
    let options = tests::sound(&definition::TYPE, table);
    let context = Context {
        timeout: Duration::from_secs(10),
        ..Context::default()
    };
    let opened = options.open(context).await.unwrap();
    (options, opened.sink)
}

const BODY: &str = "{\"event\": {\"id\":\"ev_1.é\", \"date_updated\":\"2024-02-15T12:48:23.395000\"}}\n";

#[tokio::test]
async fn the_body_arrives_byte_for_byte_and_signed() {
    let (url, seen) = receiver(204, &[]).await;
    let secret = format!("whsec_{}", STANDARD.encode(b"secret key"));
    let (_, sink) =
        build(serde_json::json!({"url": url, "allow_private": true, "secret": secret, "headers": {"X-Mine": "1"}}))
            .await;
    let outcomes = deliver(&*sink, &[delivery(3, BODY)]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Delivered]);
    let (headers, body) = seen.lock().unwrap().remove(0);
    assert_eq!(&body[..], BODY.as_bytes());
    let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(header("webhook-id"), "ev_1_%C3%A9:2024-02-15T12:48:23_395000");
    assert_eq!(header("idempotency-key"), "ev_1.%C3%A9:2024-02-15T12:48:23.395000");
    assert_eq!(header("x-mine"), "1");
    let expected = sign(
        b"secret key",
        &header("webhook-id"),
        &header("webhook-timestamp"),
        BODY.as_bytes(),
    );
    assert_eq!(header("webhook-signature"), expected);
}

#[test]
fn the_signature_is_that_of_the_standard() {
    // The example of the Standard Webhooks specification's reference libraries.
    let key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let signature = sign(
        &key,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        br#"{"test": 2432232314}"#,
    );
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

async fn answered(status: u16, headers: &'static [(&'static str, &'static str)]) -> Result<Outcome, Unavailable> {
    let (url, seen) = receiver(status, headers).await;
    let (_, sink) = build(serde_json::json!({"url": url, "allow_private": true})).await;
    let outcome = deliver(&*sink, &[delivery(1, BODY)]).await;
    assert_eq!(seen.lock().unwrap().len(), 1, "redirects are not followed");
    outcome.map(|mut outcomes| outcomes.remove(0))
}

#[tokio::test]
async fn answers_mean_what_the_contract_says() {
    for status in [408, 425, 500, 502, 503] {
        let outcome = answered(status, &[("retry-after", "7")]).await;
        assert!(
            matches!(outcome, Ok(Outcome::Retry { after: Some(after), .. }) if after.as_secs() == 7),
            "{status}"
        );
    }
    for status in [400, 404, 410, 422] {
        let outcome = answered(status, &[]).await;
        assert!(matches!(outcome, Ok(Outcome::Reject { .. })), "{status}");
    }
}

/// Decision 33: these say nothing about the event.
#[tokio::test]
async fn answers_about_the_sender_and_a_missing_connection_make_the_sink_unavailable() {
    for status in [401, 403, 407, 429] {
        let refused = answered(status, &[("retry-after", "7")]).await.unwrap_err();
        assert_eq!(refused.after, Some(Duration::from_secs(7)), "{status}");
        assert!(refused.reason.contains(&status.to_string()), "{refused}");
    }
    // The receiver has moved, for every event.
    for status in [301, 302, 303, 307, 308] {
        let refused = answered(status, &[("location", "/elsewhere")]).await.unwrap_err();
        let said = refused.reason.contains(&status.to_string()) && refused.reason.contains("set the final url");
        assert!(said, "{refused}");
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (options, sink) = build(serde_json::json!({"url": format!("http://{closed}/"), "allow_private": true})).await;
    assert!(deliver(&*sink, &[delivery(1, BODY)]).await.is_err());
    assert!(
        options
            .probe(Context {
                timeout: Duration::from_secs(9),
                ..Context::default()
            })
            .await
            .is_err()
    );
}

#[tokio::test]
async fn private_addresses_are_refused_however_they_are_written() {
    for url in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://[2002:a00:1::]/",
        "http://[64:ff9b::a00:1]/",
        "http://[::]/",
    ] {
        assert_eq!(faults(serde_json::json!({"url": url})).len(), 1, "{url}");
    }
    for url in ["http://1.1.1.1/", "http://[2606:4700::1111]/", "https://example.com/"] {
        assert_eq!(faults(serde_json::json!({"url": url})), [""; 0], "{url}");
    }
    let (_, sink) = build(serde_json::json!({"url": "http://localhost:9/"})).await;
    let refused = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap_err();
    assert!(refused.reason.contains("private address"), "{refused}");
}

/// D7
#[test]
fn retry_after_is_seconds_or_a_date_in_each_of_its_forms() {
    let after = |text: &str| {
        let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
        retry_after(&headers, Timestamp::from_second(784_111_777).unwrap()).map(|after| after.as_secs())
    };
    assert_eq!(after("120"), Some(120));
    assert_eq!(after("99999999999999999999999"), Some(u64::MAX));
    for date in [
        "Sun, 06 Nov 1994 08:50:37 GMT",
        "Sunday, 06-Nov-94 08:50:37 GMT",
        "Sun Nov  6 08:50:37 1994",
    ] {
        assert_eq!(after(date), Some(60), "{date}");
    }
    assert_eq!(after("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
    for nothing in ["soon", "", "-1", "1.5"] {
        assert_eq!(after(nothing), None, "{nothing}");
    }
}

fn faults(table: serde_json::Value) -> Vec<String> {
    let (_, faults) = tests::parsed(&definition::TYPE, table);
    faults.iter().map(ToString::to_string).collect()
}

/// D5
#[tokio::test]
async fn configured_headers_are_sent_also_in_place_of_the_sinks_defaults() {
    let (url, seen) = receiver(200, &[]).await;
    let configured = serde_json::json!({
        "content-TYPE": "application/vnd.close+json", "User-Agent": "mine", "Authorization": "Bearer x", "X-Empty": "",
    });
    let (_, sink) = build(serde_json::json!({"url": url, "allow_private": true, "headers": configured})).await;
    deliver(&*sink, &[delivery(1, BODY)]).await.unwrap();
    let (_, plain) = build(serde_json::json!({"url": url, "allow_private": true})).await;
    deliver(&*plain, &[delivery(2, BODY)]).await.unwrap();
    let seen = seen.lock().unwrap();
    let all = |at: usize, name: &str| -> Vec<&str> {
        seen[at]
            .0
            .get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    };
    assert_eq!(all(0, "content-type"), ["application/vnd.close+json"]);
    assert_eq!(all(0, "user-agent"), ["mine"]);
    assert_eq!(
        (all(0, "authorization"), all(0, "x-empty")),
        (vec!["Bearer x"], vec![""])
    );
    assert_eq!(all(1, "content-type"), ["application/json"]);
}

/// D5
#[test]
fn names_that_are_the_sinks_to_say_are_faults_however_they_are_written() {
    for name in [
        "host",
        "Host",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "keep-alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Proxy-Anything",
        "Idempotency-Key",
        "Webhook-Id",
        "webhook-signature",
        "WEBHOOK-ANYTHING",
        "close-sig-hash",
        "Close-Sig-Timestamp",
        "closehook-seq",
        "Closehook-New",
        ":path",
        "a b",
        "",
    ] {
        let said = faults(serde_json::json!({"url": "https://example.com/", "headers": {name: "x"}}));
        assert!(
            said.len() == 1 && said[0].starts_with("sinks[0].headers:"),
            "{name}: {said:?}"
        );
    }
    for name in [
        "content-type",
        "Accept",
        "X-Webhook-Id",
        "closehooks",
        "X-Proxy-Id",
        "close-signature",
        "Date",
    ] {
        let said = faults(serde_json::json!({"url": "https://example.com/", "headers": {name: "x"}}));
        assert_eq!(said, [""; 0], "{name}");
    }
    let twice = faults(serde_json::json!({"url": "https://example.com/", "headers": {"X-A": "1", "x-a": "2"}}));
    assert!(twice[0].contains("more than once"), "{twice:?}");
    let user = faults(serde_json::json!({"url": "https://u:p@example.com/", "headers": {"Authorization": "x"}}));
    assert!(user[0].contains("url too"), "{user:?}");
}

/// D8
#[test]
fn a_secret_that_standard_webhooks_does_not_know_is_warned_of_or_refused() {
    let parsed = |secret: &str| {
        let mut faults = Vec::new();
        let table = serde_json::json!({"url": "https://example.com/", "secret": secret});
        let options = parse(&mut Table::new("sinks[0]", table, &mut faults)).unwrap();
        assert_eq!(faults, [], "{secret}");
        (options.fault(), options.warning())
    };
    assert_eq!(parsed("whsec_c2VjcmV0"), (None, None));
    let (fault, warning) = parsed("hunter22, and more");
    assert_eq!(fault, None);
    let warning = warning.unwrap();
    assert!(warning.contains("whsec_") && !warning.contains("hunter22"), "{warning}");
    for bad in [
        "v1,whsec_c2VjcmV0",
        "v1,c2VjcmV0",
        "v1a,c2VjcmV0",
        "whsec_no base64",
        "whsk_c2VjcmV0",
        "whpk_c2VjcmV0",
    ] {
        let (fault, _) = parsed(bad);
        let fault = fault.unwrap();
        assert!(
            fault.contains("whsec_") && !fault.contains("c2VjcmV0"),
            "{bad}: {fault}"
        );
    }
}

#[tokio::test]
async fn what_the_receiver_said_is_kept_without_what_it_was_told_in_secret() {
    let answer = |headers: AxumHeaders| async move {
        let told = headers["authorization"].to_str().unwrap().to_owned();
        (
            axum::http::StatusCode::UNPROCESSABLE_ENTITY,
            format!("no such field\r\n\u{1b}[31m{told}\u{202e}"),
        )
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let headers = serde_json::json!({"authorization": "Bearer hunter22"});
    let (_, sink) = build(serde_json::json!({"url": url, "allow_private": true, "headers": headers})).await;
    let outcome = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap().remove(0);
    let Outcome::Reject { reason } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(reason.text, "the receiver answered 422 Unprocessable Entity");
    assert_eq!(reason.answer.unwrap(), "no such field\n\\u001b[31m(secret)\\u202e");
}

/// Equal only while what it was made from is: a reload has to see that a file is another.
#[test]
fn a_sink_whose_files_have_changed_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fingerprint = || {
        let table = serde_json::json!({
            "url": "https://example.com/", "secret_file": at("secret"), "ca": at("ca"), "cert": at("cert"), "key": at("key"),
        });
        parse(&mut Table::new("sinks[0]", table, &mut Vec::new()))
            .unwrap()
            .fingerprint()
    };
    let mut seen = vec![fingerprint()];
    for name in ["secret", "ca", "cert", "key"] {
        std::fs::write(at(name), "one").unwrap();
        assert!(!seen.contains(&fingerprint()), "{name} is there");
        seen.push(fingerprint());
        assert_eq!(seen.last(), Some(&fingerprint()));
        std::fs::write(at(name), "two").unwrap();
        assert!(!seen.contains(&fingerprint()), "{name} is another");
        seen.push(fingerprint());
    }
}

#[test]
fn a_clients_certificate_is_both_cert_and_key() {
    for (given, missing) in [("cert", "key"), ("key", "cert")] {
        let said = faults(serde_json::json!({"url": "https://example.com/", given: "/etc/x.pem"}));
        assert!(
            said.len() == 1 && said[0].starts_with(&format!("sinks[0].{missing}: is missing")),
            "{said:?}"
        );
    }
}

/// A receiver that says back all it was told, over a connection of its own.
#[tokio::test]
async fn an_answer_that_repeats_the_request_is_kept_without_its_secrets() {
    let answer = |request: axum::extract::Request| async move {
        let basic = request.headers()["authorization"].to_str().unwrap();
        let (uri, path) = (request.uri(), request.uri().path());
        let said = format!("Cannot POST {path}\n{uri}\nauthorization: {basic}\nwhsec_c2Vj/mV0 c2Vj/mV0\n");
        let filler = ".".repeat(2048 - "/hook/T0K".len() - said.len());
        (axum::http::StatusCode::NOT_FOUND, format!("{said}{filler}{path}"))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let url = format!("http://user:hunter2222@{address}/hook/T0K3N-in-path?key=SECRET&b=2");
    let (_, sink) = build(serde_json::json!({"url": url, "allow_private": true, "secret": "whsec_c2Vj/mV0"})).await;
    let outcome = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap().remove(0);
    let Outcome::Reject { reason } = outcome else {
        panic!("{outcome:?}")
    };
    let kept = reason.answer.unwrap();
    let (said, end) = kept.split_once("\n.").unwrap();
    assert_eq!(
        said,
        "Cannot POST /hook/(secret)\n/hook/(secret)?(secret)\nauthorization: Basic (secret)\n(secret) (secret)"
    );
    assert_eq!(end.trim_start_matches('.'), "/hook/(secret)");
}
