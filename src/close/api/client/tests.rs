use reqwest::header::{HeaderName, RETRY_AFTER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::patience::Patience;
use super::*;

#[test]
fn a_post_is_repeated_only_where_it_surely_never_arrived() {
    let unreachable = Error::Unreachable {
        host: "api.close.com".into(),
        cause: "refused".into(),
    };
    let page = |status| Error::NotClose {
        status,
        start: String::new(),
    };
    let rejected = |status| Error::Rejected {
        status,
        faults: String::new(),
    };
    let timed_out = Error::TimedOut(REQUEST_TIMEOUT);
    for (error, get, post, unclear) in [
        (&unreachable, true, true, false),
        (&timed_out, true, false, true),
        (&Error::NoAnswer(String::new()), true, false, true),
        (&Error::Garbled(String::new()), true, false, true),
        (&Error::Server(500), true, false, true),
        (&page(502), true, false, true),
        (&page(408), true, false, true),
        (&page(429), true, true, false),
        (&page(401), false, false, false),
        (&page(200), false, false, true),
        (&page(302), false, false, false),
        (&rejected(408), true, false, true),
        (&rejected(400), false, false, false),
        (&Error::WrongKey, false, false, false),
    ] {
        let found = (
            may_repeat(&Method::GET, error),
            may_repeat(&Method::POST, error),
            error.is_unclear(),
        );
        assert_eq!(found, (get, post, unclear), "{error}");
    }
}

#[test]
fn the_subscriptions_in_the_way_are_read_from_the_answer() {
    let said = "Duplicate active subscription. Existing duplicates are: whsub_1a, whsub_2b.";
    let both = Error::Duplicate(vec!["whsub_1a".into(), "whsub_2b".into()]);
    assert_eq!(rejected(400, said.into()), both);
    for other in ["Duplicate active subscription.", "whsub_1a is not yours", ""] {
        assert!(matches!(rejected(400, other.into()), Error::Rejected { .. }), "{other}");
    }
}

#[test]
fn a_page_instead_of_a_refusal_sends_people_to_their_credentials_too() {
    let said = |status| {
        let start = "<html>".into();
        Error::NotClose { status, start }.to_string()
    };
    assert!(
        said(401).contains("proxy") && said(401).contains("credentials"),
        "{}",
        said(401)
    );
    assert!(
        said(502).contains("proxy") && !said(502).contains("credentials"),
        "{}",
        said(502)
    );
}

/// Answers one request for each of these; fails where one does not come. Gives how each began.
async fn answers(listener: TcpListener, answers: &[(u16, &str, &str)]) -> Vec<String> {
    let mut asked = Vec::new();
    for (status, kind, body) in answers {
        let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
        let (mut stream, _) = accepted.unwrap().unwrap();
        let (mut said, mut piece) = (String::new(), [0; 1024]);
        // A request for a token has it in its body.
        while !said.contains("\r\n\r\n") || said.starts_with("POST") && !said.contains("refresh_token=") {
            let len = stream.read(&mut piece).await.unwrap();
            assert!(len > 0, "{said}");
            said += std::str::from_utf8(&piece[..len]).unwrap();
        }
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        asked.push(said.split(" HTTP").next().unwrap().to_owned());
    }
    asked
}

/// An access token that was revoked early, and a 401 that is no JSON.
#[tokio::test]
async fn a_page_instead_of_a_refusal_has_a_new_token_tried() {
    crate::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/v1/", listener.local_addr().unwrap());
    let path = dir.path().join("oauth.json");
    let chain = OAuthChain::new("id".into(), "secret".into(), "first".into(), path);
    let client = Client::new(base.parse().unwrap(), Auth::OAuth(Arc::new(chain)), Seams::default()).unwrap();
    let json = "application/json";
    let token = |token| (200, json, token);
    let all = [
        token(r#"{"access_token":"a","refresh_token":"second","expires_in":3600}"#),
        (401, "text/html", "<html>Unauthorized"),
        token(r#"{"access_token":"b","refresh_token":"third","expires_in":3600}"#),
        (200, json, "{}"),
    ];
    let call = Call::get("me/");
    let (asked, answered) = tokio::join!(answers(listener, &all), client.send(&call));
    assert_eq!(answered.unwrap(), "{}");
    let (token, me) = ("POST /oauth2/token/", "GET /api/v1/me/");
    assert_eq!(asked, [token, me, token, me]);
}

fn client(seams: Seams) -> Client {
    let auth = Auth::ApiKey(SecretString::from("k".to_owned()));
    Client::new("https://api.close.com/api/v1/".parse().unwrap(), auth, seams).unwrap()
}

#[tokio::test]
async fn a_page_of_somebody_elses_tells_neither_the_time_nor_why_nor_how_long_to_wait() {
    let now: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
    let client = client(Seams {
        clock: Arc::new(move || now),
        ..Seams::default()
    });
    let hear = |call: Call, status: u16, kind: &'static str, body: &'static str| {
        let headers = [
            (DATE, "Thu, 15 Feb 2024 13:00:00 GMT"),
            (CONTENT_TYPE, kind),
            (RETRY_AFTER, "600"),
            (HeaderName::from_static("ratelimit"), "limit=1, remaining=0, reset=600"),
        ];
        let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
        let answer = HttpAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.into_iter().collect(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let flight = Flight {
            client: &client,
            limit: None,
        };
        client.hear(&call, answer, flight)
    };
    let (plain, json) = ("text/plain; charset=utf-8", "application/json");
    let with_cursor = || Call::get("event/").query("_cursor", "c");
    for status in [200, 302, 400, 401, 402, 403, 404, 408, 429] {
        for (kind, body) in [
            (plain, "no"),
            ("text/html", "<html>"),
            ("application/octet-stream", "<html>"),
        ] {
            for call in [Call::get("me/"), with_cursor(), Call::delete("webhook/whsub_1/")] {
                let heard = hear(call, status, kind, body);
                assert!(
                    matches!(heard, Err(Error::NotClose { .. })),
                    "{status} {kind}: {heard:?}"
                );
            }
        }
        // What is of no kind and means nothing.
        let heard = hear(Call::get("me/"), status, "", "");
        assert!(heard.is_err(), "{status}: {heard:?}");
    }
    for kind in [plain, json] {
        let cut = hear(Call::get("me/"), 200, kind, r#"{"signature_key":"0123"#).unwrap_err();
        assert!(matches!(cut, Error::Garbled(_)), "{kind}: {cut}");
        assert!(!cut.to_string().contains("0123"), "{kind}: {cut}");
    }
    assert_eq!(hear(Call::get("me/"), 401, "", ""), Err(Error::WrongKey));
    let gone = hear(Call::delete("webhook/whsub_1/"), 404, "", "");
    assert_eq!(gone, Err(Error::NotFound("whsub_1".into())));
    let elsewhere = hear(Call::get("me/"), 404, "", "");
    assert!(matches!(elsewhere, Err(Error::NotClose { .. })), "{elsewhere:?}");
    assert_eq!(client.clock_offset(), SignedDuration::ZERO);
    assert_eq!(client.next_request_at(), None);
    assert!(hear(Call::delete("webhook/whsub_1/"), 204, "", "").is_ok());
    assert_eq!(client.clock_offset(), SignedDuration::ZERO, "that may be anybody's");

    let refused = hear(Call::get("me/"), 401, json, r#"{"error":"no"}"#);
    assert_eq!(refused, Err(Error::WrongKey));
    assert_eq!(client.clock_offset(), SignedDuration::from_hours(1));
    assert_eq!(hear(with_cursor(), 400, json, "{}"), Err(Error::CursorExpired));
    let limited = hear(Call::get("me/"), 429, json, "{}");
    assert_eq!(limited, Err(Error::RateLimited(Duration::from_secs(600))));
    assert!(client.next_request_at().is_some());
}

#[tokio::test(start_paused = true)]
async fn who_waits_long_for_the_rate_limit_is_known_and_told_from_others() {
    let client = client(Seams::default());
    let (one, other) = (Patience::default(), Patience::default());
    drop(one.of(client.take_off()).await);
    assert_eq!(one.let_go_at(), None);
    client.limit_for(WORTH_A_WORD);
    assert!(client.next_request_at().is_some());
    let mut waiting = Box::pin(one.of(client.take_off()));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert!(one.waits() && !other.waits());
    drop(waiting);
    assert!(!one.waits(), "it has given up");
    assert_eq!(one.let_go_at(), None);
    drop(one.of(client.take_off()).await);
    assert!(!one.waits());
    assert_eq!((one.let_go_at(), other.let_go_at()), (Some(Instant::now()), None));
    assert_eq!(client.next_request_at(), None);
}

#[test]
fn the_time_at_close_is_read_from_a_date_in_each_of_its_forms() {
    let at: Timestamp = "2024-02-15T12:00:07Z".parse().unwrap();
    for text in [
        "Thu, 15 Feb 2024 12:00:07 GMT",
        "Thursday, 15-Feb-24 12:00:07 GMT",
        "Thu Feb 15 12:00:07 2024",
        "Thu, 15 Feb 2024 13:00:07 +0100",
    ] {
        assert_eq!(date_of(text, at), Some(at), "{text}");
    }
    assert_eq!(date_of("now", at), None);
}
