//! Who this side says it is.

use std::collections::BTreeMap;

use super::*;

/// A token server, and beside it a receiver that takes the newest token only.
#[derive(Clone, Default)]
struct Login(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    tokens: u32,
    /// What the next ones say of their life.
    life: Option<serde_json::Value>,
    /// What is asked, with the header that says by whom.
    asked: Vec<(String, String)>,
    /// Takes id and secret in the body only.
    in_body: bool,
    /// Gives none.
    closed: Option<(u16, &'static str)>,
    /// The receiver takes no more than this one.
    taken: Option<u32>,
    delivered: Vec<String>,
}

impl Login {
    async fn start(&self) -> String {
        let (login, receiver) = (self.clone(), self.clone());
        let router = axum::Router::new()
            .route(
                "/token",
                axum::routing::post(
                    move |headers: AxumHeaders, body: String| async move { login.token(&headers, body) },
                ),
            )
            .fallback(move |headers: AxumHeaders| async move { receiver.receive(&headers) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn token(&self, headers: &AxumHeaders, body: String) -> axum::response::Response {
        let mut given = self.0.lock().unwrap();
        let basic = headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        let is_known = if given.in_body {
            basic.is_none() && body.contains("client_secret=hunter%2022%2F")
        } else {
            basic.as_deref() == Some(&format!("Basic {}", STANDARD.encode("me%3A:hunter%2022%2F")))
        };
        given.asked.push((basic.unwrap_or_default(), body));
        let refuse = |status: u16, error: &str| {
            let said = format!("{{\"error\":\"{error}\",\"error_description\":\"not with hunter 22/\"}}");
            (axum::http::StatusCode::from_u16(status).unwrap(), said).into_response()
        };
        if let Some((status, error)) = given.closed {
            return refuse(status, error);
        }
        if !is_known {
            return refuse(401, "invalid_client");
        }
        given.tokens += 1;
        let mut said = serde_json::json!({"access_token": format!("T0K3N-{}", given.tokens), "token_type": "Bearer"});
        if let Some(life) = &given.life {
            said["expires_in"] = life.clone();
        }
        said.to_string().into_response()
    }

    fn receive(&self, headers: &AxumHeaders) -> axum::response::Response {
        let mut given = self.0.lock().unwrap();
        let said = headers["authorization"].to_str().unwrap().to_owned();
        let newest = given.taken.unwrap_or(given.tokens);
        if said != format!("Bearer T0K3N-{newest}") {
            return (axum::http::StatusCode::UNAUTHORIZED, "who are you?").into_response();
        }
        given.delivered.push(said.clone());
        (
            axum::http::StatusCode::NOT_FOUND,
            format!("nothing is here for {said} of me: with hunter 22/"),
        )
            .into_response()
    }
}

fn oauth(url: &str) -> serde_json::Value {
    serde_json::json!({
        "url": format!("{url}/hook"), "allow_private": true, "auth": "oauth2", "token_url": format!("{url}/token"),
        "client_id": "me:", "client_secret": "hunter 22/", "scope": "a b", "audience": "https://api.example/",
    })
}

#[tokio::test]
async fn a_token_and_a_password_are_sent_and_found_again_in_what_is_said_back() {
    let says_back = |headers: AxumHeaders| async move {
        let said = headers["authorization"].to_str().unwrap().to_owned();
        (axum::http::StatusCode::NOT_FOUND, said)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(says_back)).await });
    for (auth, said) in [
        (serde_json::json!({"auth": "bearer", "token": "abc"}), "Bearer (secret)"),
        (
            serde_json::json!({"auth": "basic", "username": "me", "password": "h\u{e9}"}),
            "Basic (secret)",
        ),
    ] {
        let mut table = auth;
        table["url"] = url.clone().into();
        table["allow_private"] = true.into();
        let (_, sink) = build(table).await;
        let outcome = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap().remove(0);
        let Outcome::Reject { reason } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(reason.answer.as_deref(), Some(said));
    }
    assert_eq!(
        crate::net::client::basic("Aladdin", "open sesame"),
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    );
}

#[test]
fn each_way_needs_its_own_keys_and_takes_no_others() {
    let said = |more: serde_json::Value| {
        let mut table = serde_json::json!({"url": "https://example.com/"});
        table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        faults(table)
    };
    for (more, part) in [
        (
            serde_json::json!({"auth": "beerer", "token": "x"}),
            "did you mean \"bearer\"?",
        ),
        (serde_json::json!({"auth": "bearer"}), "sinks[0].token: is missing"),
        (
            serde_json::json!({"auth": "basic", "username": "x"}),
            "sinks[0].password: is missing",
        ),
        (
            serde_json::json!({"token_env": "X"}),
            "sinks[0].token: goes with auth = \"bearer\"",
        ),
        (
            serde_json::json!({"auth": "bearer", "token": "x", "scope": "y"}),
            "sinks[0].scope: goes with auth = \"oauth2\"",
        ),
        (
            serde_json::json!({"auth": "bearer", "token": "x", "headers": {"Authorization": "y"}}),
            "sinks[0].auth: is said by headers or url too",
        ),
        (
            serde_json::json!({"auth": "oauth2", "token_url": "http://10.0.0.1/", "client_id": "x", "client_secret": "y"}),
            "sinks[0].token_url: 10.0.0.1 is a private address",
        ),
        (
            serde_json::json!({"auth": "bearer", "token": ""}),
            "sinks[0].token: it is empty",
        ),
        (
            serde_json::json!({"auth": "basic", "username": "a:b", "password": "x"}),
            "sinks[0].username: can't have a colon",
        ),
    ] {
        let said = said(more);
        assert!(said.len() == 1 && said[0].contains(part), "{part}: {said:?}");
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_again_when_it_is_refused_once() {
    let login = Login::default();
    let url = login.start().await;
    let (_, sink) = build(oauth(&url)).await;
    let each: Vec<_> = (1..=9).map(|seq| [delivery(seq, BODY)]).collect();
    let all = futures::future::join_all(each.iter().map(|each| deliver(&*sink, each))).await;
    assert!(
        all.iter()
            .all(|outcome| matches!(outcome.as_deref(), Ok([Outcome::Reject { .. }]))),
        "{all:?}"
    );
    {
        let given = login.0.lock().unwrap();
        let fields: BTreeMap<&str, &str> = given.asked[0]
            .1
            .split('&')
            .map(|pair| pair.split_once('=').unwrap())
            .collect();
        let wanted = [
            ("audience", "https%3A%2F%2Fapi.example%2F"),
            ("grant_type", "client_credentials"),
            ("scope", "a%20b"),
        ];
        assert_eq!((fields, given.asked.len()), (wanted.into(), 1));
    }
    // Revoked: a new one is fetched, and the event is sent with it.
    login.0.lock().unwrap().taken = Some(2);
    deliver(&*sink, &[delivery(10, BODY)]).await.unwrap();
    assert_eq!(login.0.lock().unwrap().tokens, 2);
    assert_eq!(login.0.lock().unwrap().delivered.last().unwrap(), "Bearer T0K3N-2");
    // Refused with the new one too: that is not about the event, and no third is fetched.
    login.0.lock().unwrap().taken = Some(9);
    let refused = deliver(&*sink, &[delivery(11, BODY)]).await.unwrap_err();
    assert!(
        refused.reason.contains("401") && refused.reason.contains("look at scope"),
        "{refused}"
    );
    assert_eq!(login.0.lock().unwrap().tokens, 3);
}

#[tokio::test]
async fn a_token_is_fetched_again_before_it_expires() {
    for (life, fetched) in [
        (serde_json::json!(3600), 1),
        (serde_json::json!("3600"), 1),
        (serde_json::Value::Null, 1),
        // A nanosecond: over whenever the next one is sent.
        (serde_json::json!(0.000_000_001), 3),
        // Nobody gives a token that is no good: it says nothing of its life.
        (serde_json::json!(0), 1),
        (serde_json::json!("0"), 1),
    ] {
        let login = Login::default();
        login.0.lock().unwrap().life = Some(life.clone());
        let url = login.start().await;
        let (_, sink) = build(oauth(&url)).await;
        for seq in 1..=3 {
            deliver(&*sink, &[delivery(seq, BODY)]).await.unwrap();
        }
        assert_eq!(login.0.lock().unwrap().tokens, fetched, "{life}");
    }
}

#[tokio::test]
async fn a_server_that_takes_id_and_secret_in_the_body_is_told_so_and_remembered() {
    let login = Login::default();
    login.0.lock().unwrap().in_body = true;
    login.0.lock().unwrap().life = Some(serde_json::json!(0.001));
    let url = login.start().await;
    let (_, sink) = build(oauth(&url)).await;
    for seq in 1..=2 {
        deliver(&*sink, &[delivery(seq, BODY)]).await.unwrap();
    }
    let given = login.0.lock().unwrap();
    let ways: Vec<bool> = given.asked.iter().map(|(basic, _)| basic.is_empty()).collect();
    assert_eq!(ways, [false, true, true]);
}

/// No event is at fault when there is no token.
#[tokio::test]
async fn without_a_token_the_sink_is_unavailable_and_says_what_to_look_at() {
    let login = Login::default();
    let url = login.start().await;
    let (options, sink) = build(oauth(&url)).await;
    for (closed, part) in [
        (
            (401, "invalid_client"),
            "401 Unauthorized (invalid_client): look at client_id and client_secret",
        ),
        ((400, "invalid_scope"), "(invalid_scope): look at scope"),
        ((403, "HUNTER 22/"), "403 Forbidden: look at client_id"),
        ((404, ""), "look at token_url"),
        (
            (503, "temporarily_unavailable"),
            "503 Service Unavailable (temporarily_unavailable)",
        ),
    ] {
        login.0.lock().unwrap().closed = Some(closed);
        let refused = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap_err();
        assert!(
            refused.reason.starts_with("no token from token_url: ") && refused.reason.contains(part),
            "{refused}"
        );
        assert!(!refused.reason.to_lowercase().contains("hunter"), "{refused}");
        let context = Context {
            timeout: Duration::from_secs(9),
            ..Context::default()
        };
        assert!(options.probe(context).await.unwrap_err().reason.contains(part));
    }
    login.0.lock().unwrap().closed = None;
    // What is not there any more is found again, and what is said back is kept without the newest token.
    let outcome = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap().remove(0);
    let Outcome::Reject { reason } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        reason.answer.as_deref(),
        Some("nothing is here for Bearer (secret) of (secret) with (secret)")
    );
}
