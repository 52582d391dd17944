//! Requests as events and templates make them.

use std::collections::BTreeMap;

use super::*;
use crate::render::Rendered;

pub(super) fn rendered(mut delivery: Delivery, texts: &[(&str, &str)]) -> Delivery {
    let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
    delivery.rendered = Some(Arc::new(Rendered {
        texts: texts.collect(),
        ..Rendered::default()
    }));
    delivery
}

/// A receiver that keeps the request line too.
async fn keeps() -> (String, Arc<Mutex<Vec<(String, AxumHeaders, Bytes)>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let keep = seen.clone();
    let answer = move |method: axum::http::Method, uri: axum::http::Uri, headers: AxumHeaders, body: Bytes| async move {
        keep.lock().unwrap().push((format!("{method} {uri}"), headers, body));
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (origin, seen)
}

#[tokio::test]
async fn each_request_says_of_its_event_what_a_header_can_say() {
    let (origin, seen) = keeps().await;
    let (_, sink) = build(serde_json::json!({"url": origin, "allow_private": true, "method": "PUT"})).await;
    let body = "{\"event\": {\"id\": \"ev\\r\\nx: y\\u0000 \u{e9}%\", \"object_type\": \"lead\", \"action\": \"updated\", \
         \"lead_id\": \"lead_1\u{1F600}\", \"date_updated\": \"2024-02-15T12:48:23\"}}";
    assert_eq!(
        deliver(&*sink, &[delivery(7, body)]).await.unwrap(),
        [Outcome::Delivered]
    );
    let (line, headers, _) = seen.lock().unwrap().remove(0);
    let said = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    assert_eq!(line, "PUT /");
    for (name, value) in [
        ("closehook-seq", "7"),
        ("closehook-type", "lead.updated"),
        ("closehook-event-id", "ev%0D%0Ax:%20y%00%20%C3%A9%25"),
        ("closehook-key", "ev%0D%0Ax:%20y%00%20%C3%A9%25:2024-02-15T12:48:23"),
        ("closehook-lead-id", "lead_1%F0%9F%98%80"),
        ("closehook-received-at", "2023-11-14T22:13:20.000007Z"),
        ("closehook-source", "webhook"),
        ("closehook-attempt", "1"),
    ] {
        assert_eq!(said(name), value, "{name}");
    }
    assert_eq!(said("idempotency-key"), said("closehook-key"));
    // What an event does not have is left out; what is long is cut, and still its own.
    let long = format!("{{\"event\": {{\"id\": \"{}\"}}}}", "a".repeat(140_000));
    assert_eq!(
        deliver(&*sink, &[delivery(8, &long)]).await.unwrap(),
        [Outcome::Delivered]
    );
    let (_, headers, _) = seen.lock().unwrap().remove(0);
    assert!(!headers.contains_key("closehook-lead-id") && !headers.contains_key("closehook-type"));
    assert_eq!(headers["closehook-event-id"].len(), 512);
}

#[tokio::test]
async fn url_method_and_headers_are_what_templates_make_of_them_for_each_event() {
    let (origin, seen) = keeps().await;
    let table = serde_json::json!({
        "url": format!("{origin}/of/{{{{ lead_id }}}}"), "method": "{{ verb }}", "allow_private": true,
        "headers": {"X-Team": "{{ team }}", "X-Fixed": "1"},
    });
    let (options, sink) = build(table).await;
    let names: Vec<String> = options.templates().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["method", "url", "headers.x-fixed", "headers.x-team"]);
    let url = format!("{origin}/of/a b?c=\u{e9}");
    let texts = [
        ("url", url.as_str()),
        ("method", "patch"),
        ("headers.x-team", "\u{e9}\r\nevil: 1\u{7f}"),
    ];
    let one = rendered(delivery(1, BODY), &texts);
    assert_eq!(deliver(&*sink, &[one]).await.unwrap(), [Outcome::Delivered]);
    let (line, headers, body) = seen.lock().unwrap().remove(0);
    assert_eq!(
        (line.as_str(), &body[..]),
        ("PATCH /of/a%20b?c=%C3%A9", BODY.as_bytes())
    );
    assert_eq!(headers["x-team"].as_bytes(), "\u{e9}%0D%0Aevil: 1%7F".as_bytes());
    assert_eq!(
        (headers["x-fixed"].as_bytes(), headers.contains_key("evil")),
        (&b"1"[..], false)
    );
    // What can't be sent is about this event.
    for (key, text) in [
        ("method", "GET"),
        ("method", ""),
        ("url", "ftp://a.example/"),
        ("url", "/of/x"),
        ("url", ""),
    ] {
        let texts = [("url", origin.as_str()), ("method", "POST"), (key, text)];
        let outcome = deliver(&*sink, &[rendered(delivery(1, BODY), &texts)])
            .await
            .unwrap()
            .remove(0);
        assert!(
            matches!(&outcome, Outcome::Reject { reason } if reason.text.contains(key)),
            "{key} {text}: {outcome:?}"
        );
    }
    assert_eq!(seen.lock().unwrap().len(), 0);
}

/// What can never be sent is refused at once, and is no reason to wait for anything.
#[tokio::test]
async fn what_a_batch_can_not_hold_is_said_before_it_is_sent() {
    let (url, _) = keeps().await;
    let table = serde_json::json!({
        "url": url, "allow_private": true, "batch": {"events": 5, "wait": "0s"}, "format": "json_array",
    });
    let (options, _) = build(table).await;
    let body = r#"{"event": {"id": "ev_1"}}"#;
    assert!(options.preview("", &delivery(1, body)).is_ok());
    let mut made = delivery(1, body);
    made.rendered = Some(Arc::new(Rendered {
        payload: Some(crate::render::Payload::Text(Bytes::from_static(b"a line"))),
        ..Rendered::default()
    }));
    let refused = options.preview("", &made).unwrap_err();
    assert!(
        matches!(&refused, Outcome::Reject { reason } if reason.text.contains("is no JSON")),
        "{refused:?}"
    );
    let (alone, _) = build(serde_json::json!({"url": url, "allow_private": true})).await;
    assert!(alone.preview("", &made).is_ok());
}

#[tokio::test]
async fn what_an_event_fills_into_a_url_leads_to_no_other_place() {
    let (origin, seen) = keeps().await;
    let table = serde_json::json!({
        "url": format!("{origin}/of/{{{{ lead_id }}}}/x?by={{{{ name }}}}"), "allow_private": true,
    });
    let (options, sink) = build(table).await;
    let (_, template) = options.templates().into_iter().find(|(name, _)| name == "url").unwrap();
    let guard = crate::render::Guard::new(Arc::default());
    let make = async |event: &str| {
        let job = crate::render::Job {
            payload: None,
            texts: [("url".to_owned(), template.clone())].into(),
            event: event.into(),
            meta: "{}".into(),
        };
        let made = guard.render(vec![job]).await.unwrap().remove(0);
        let crate::render::Made::Rendered(made) = made else {
            panic!("{made:?}");
        };
        rendered(
            delivery(1, r#"{"event": {"id": "ev_1"}}"#),
            &[("url", &made.texts["url"])],
        )
    };
    let odd = make(r#"{"lead_id": "a/../..\\?b#c d", "name": "x&y=z"}"#).await;
    assert_eq!(deliver(&*sink, &[odd]).await.unwrap(), [Outcome::Delivered]);
    let (line, ..) = seen.lock().unwrap().remove(0);
    assert_eq!(line, "POST /of/a%2F..%2F..%5C%3Fb%23c%20d/x?by=x%26y%3Dz");
    let above = make(r#"{"lead_id": "..", "name": "x"}"#).await;
    let outcomes = deliver(&*sink, &[above]).await.unwrap();
    assert!(
        matches!(&outcomes[0], Outcome::Reject { reason } if reason.text.contains("would lead elsewhere")),
        "{outcomes:?}"
    );
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_url_that_is_no_one_s_to_send_is_refused_at_once() {
    let (origin, seen) = keeps().await;
    let rest = 65_534 - origin.len() - 1;
    for batch in [false, true] {
        let mut table = serde_json::json!({"url": format!("{origin}/{{{{ x }}}}"), "allow_private": true});
        if batch {
            table["batch"] = serde_json::json!({"events": 9, "wait": "0s"});
        }
        let (_, sink) = build(table).await;
        for (path, says) in [
            ("a".repeat(rest + 1), "is longer than a URL can be (65,534 bytes)"),
            ("\u{e9}".repeat(rest / 6 + 1), "is longer than a URL can be"),
        ] {
            let url = format!("{origin}/{path}");
            let all = [
                rendered(delivery(1, BODY), &[("url", &url)]),
                rendered(delivery(2, BODY), &[("url", &origin)]),
            ];
            let outcomes = deliver(&*sink, &all).await.unwrap();
            assert!(
                matches!(&outcomes[0], Outcome::Reject { reason } if reason.text == format!("what the template of url makes {says}") || reason.text.contains(says)),
                "{batch}: {:?}",
                outcomes[0]
            );
            assert_eq!(outcomes[1], Outcome::Delivered, "{batch}");
        }
    }
    assert_eq!(seen.lock().unwrap().len(), 4);
    // What has no template is a fault of the configuration.
    let long = format!("https://a.example/{}", "a".repeat(70_000));
    let said = faults(serde_json::json!({"url": long}));
    assert!(
        said.len() == 1 && said[0].contains("sinks[0].url: is longer than a URL can be"),
        "{said:?}"
    );
}

/// A URL as its library takes it is more than what can be sent of one.
#[tokio::test]
async fn a_url_with_what_no_request_can_have_is_refused_at_once() {
    let (_, sink) = build(serde_json::json!({"url": "{{ x }}", "allow_private": true})).await;
    for url in [
        "http://a`b{c}d/",
        "http://[::1]:9/?\"`{}|^<>\\",
        "http://127.0.0.1:9/\u{7f}\u{0}|^",
    ] {
        let parsed = Url::parse(url);
        let can_be = parsed
            .as_ref()
            .is_ok_and(|url| crate::net::client::unsendable(url).is_none());
        let outcome = deliver(&*sink, &[rendered(delivery(1, BODY), &[("url", url)])])
            .await
            .unwrap()
            .remove(0);
        // What can be sent may only fail on its way.
        assert_eq!(matches!(outcome, Outcome::Reject { .. }), !can_be, "{url}: {outcome:?}");
    }
}

#[tokio::test]
async fn more_headers_than_can_be_sent_are_refused_at_once_and_stop_nothing() {
    let (url, seen) = receiver(200, &[]).await;
    for batch in [false, true] {
        let mut table = serde_json::json!({"url": url, "allow_private": true, "headers": {"x-of": "{{ lead_id }}"}});
        if batch {
            table["batch"] = serde_json::json!({"events": 9, "wait": "0s"});
        }
        let (_, sink) = build(table).await;
        let with = |count: usize, value: &str, of: &str| {
            let made = (0..count).map(|index| (format!("x-{index}"), value.to_owned()));
            Delivery {
                rendered: Some(Arc::new(Rendered {
                    headers: made.collect(),
                    texts: [("headers.x-of".to_owned(), of.to_owned())].into(),
                    ..Rendered::default()
                })),
                ..delivery(1, BODY)
            }
        };
        for (count, value, of, says) in [
            (
                30_000,
                "1",
                "1",
                "there are 30000 headers from its transform: at most 256 are sent",
            ),
            (100_000, "", "1", "there are 100000 headers from its transform"),
            (256, "1", "1", "there are 257 headers: at most 256 are sent"),
            (
                2,
                &*"v".repeat(40 << 10),
                "1",
                "the headers from its transform have 81926 bytes together: at most 64 KiB are sent",
            ),
            // What is written with percent signs has more of them.
            (2, &"\u{1}".repeat(11 << 10), "1", "the headers have"),
            (
                0,
                "",
                &"v".repeat(70_000),
                "the headers have 70004 bytes together: at most 64 KiB are sent",
            ),
        ] {
            let fine = with(60, "1", "1");
            let outcomes = deliver(&*sink, &[with(count, value, of), fine]).await.unwrap();
            assert!(
                matches!(&outcomes[0], Outcome::Reject { reason } if reason.text.contains(says)),
                "{batch} {count}: {:?}",
                outcomes[0]
            );
            assert_eq!(outcomes[1], Outcome::Delivered, "{batch} {count}");
        }
    }
    assert_eq!(seen.lock().unwrap().len(), 12);
    let configured: BTreeMap<String, String> = (0..30_000)
        .map(|index| (format!("x-{index}"), "1".to_owned()))
        .collect();
    let said = faults(serde_json::json!({"url": "https://a.example/", "headers": configured}));
    assert!(
        said.len() == 1 && said[0].contains("there are 30000 headers: at most 256"),
        "{said:?}"
    );
    let said = faults(serde_json::json!({"url": "https://a.example/", "headers": {"x": "v".repeat(70_000)}}));
    assert!(
        said.len() == 1 && said[0].contains("the headers have 70001 bytes"),
        "{said:?}"
    );
}

/// Whoever writes an event must not choose what is reached in the network that this runs in, or stop the sink.
#[tokio::test]
async fn an_address_that_a_template_makes_is_guarded_and_what_fails_there_is_about_the_event() {
    for proxy in [None, Some("http://127.0.0.1:9")] {
        let mut table = serde_json::json!({"url": "{{ data.url }}"});
        if let Some(proxy) = proxy {
            table["proxy"] = proxy.into();
        }
        let (_, sink) = build(table).await;
        for url in [
            "http://127.0.0.1:9/",
            "http://169.254.169.254/latest",
            "http://[::1]:9/",
            "http://0x7f.1/",
        ] {
            let outcome = deliver(&*sink, &[rendered(delivery(1, BODY), &[("url", url)])])
                .await
                .unwrap()
                .remove(0);
            assert!(
                matches!(&outcome, Outcome::Reject { reason } if reason.text.contains("private address")),
                "{url}: {outcome:?}"
            );
        }
    }
    let (_, sink) = build(serde_json::json!({"url": "{{ data.url }}"})).await;
    let outcome = deliver(
        &*sink,
        &[rendered(delivery(1, BODY), &[("url", "http://localhost:9/")])],
    )
    .await;
    let outcome = outcome.unwrap().remove(0);
    assert!(
        matches!(&outcome, Outcome::Retry { reason, .. } if reason.text.contains("private address")),
        "{outcome:?}"
    );
}

/// Whoever writes an event must not stop the sink by naming a server that fails.
#[tokio::test]
async fn what_a_server_that_an_event_chose_answers_is_about_that_event_alone() {
    let (good, _) = keeps().await;
    for status in [401, 403, 407, 429, 500, 503, 302] {
        let (bad, _) = receiver(status, &[("retry-after", "7")]).await;
        for batch in [false, true] {
            let mut table = serde_json::json!({"url": "{{ data.url }}", "allow_private": true});
            if batch {
                table["batch"] = serde_json::json!({"events": 9, "wait": "0s"});
            }
            let (_, sink) = build(table).await;
            let urls = [&bad, &bad, &good, &bad];
            let all: Vec<_> = (1..)
                .zip(urls)
                .map(|(seq, url)| rendered(delivery(seq, BODY), &[("url", url)]))
                .collect();
            let outcomes = deliver(&*sink, &all).await.unwrap();
            for (url, outcome) in urls.iter().zip(&outcomes) {
                let is_right = match outcome {
                    Outcome::Delivered => **url == good,
                    Outcome::Retry { reason, .. } => **url == bad && reason.text.contains(&status.to_string()),
                    _ => false,
                };
                assert!(is_right, "{status} {batch}: {outcomes:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_an_event_chose_and_that_refuses_one_after_the_other_keeps_nothing_from_the_others() {
    let (good, _) = keeps().await;
    let (bad, asked) = receiver(422, &[]).await;
    let table =
        serde_json::json!({"url": "{{ data.url }}", "allow_private": true, "batch": {"events": 99, "wait": "0s"}});
    let (_, sink) = build(table).await;
    let to = |seq: u64| if seq.is_multiple_of(10) { &good } else { &bad };
    let all: Vec<_> = (1..=90)
        .map(|seq| rendered(delivery(seq, BODY), &[("url", to(seq))]))
        .collect();
    let outcomes = deliver(&*sink, &all).await.unwrap();
    let count = |test: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| test(outcome)).count();
    assert_eq!(count(|outcome| *outcome == Outcome::Delivered), 9);
    assert_eq!(count(|outcome| matches!(outcome, Outcome::Reject { .. })), 5);
    assert!(asked.lock().unwrap().len() < 30);
}

/// A proxy resolves names itself, within the network that it is in.
#[tokio::test]
async fn a_name_from_within_that_a_template_makes_is_not_asked_of_a_proxy() {
    // A proxy that takes everything.
    let (proxy, seen) = keeps().await;
    let (_, sink) = build(serde_json::json!({"url": "{{ data.url }}", "proxy": proxy})).await;
    for host in [
        "localhost",
        "LOCALHOST.",
        "db.localhost",
        "metadata.google.internal",
        "metadata.google.internal.",
        "intranet",
        "printer.local",
    ] {
        let url = format!("http://{host}/");
        let outcome = deliver(&*sink, &[rendered(delivery(1, BODY), &[("url", &url)])])
            .await
            .unwrap()
            .remove(0);
        assert!(matches!(outcome, Outcome::Reject { .. }), "{host}: {outcome:?}");
    }
    assert_eq!(seen.lock().unwrap().len(), 0);
    // One that is written out is the configuration's.
    let (_, sink) = build(serde_json::json!({"url": "http://intranet/{{ lead_id }}", "proxy": proxy})).await;
    let one = rendered(delivery(1, BODY), &[("url", "http://intranet/x")]);
    assert_eq!(deliver(&*sink, &[one]).await.unwrap(), [Outcome::Delivered]);
}

#[test]
fn credentials_go_to_no_server_that_an_event_chooses() {
    for (more, part) in [
        (serde_json::json!({"auth": "bearer", "token": "x"}), "sinks[0].auth: "),
        (
            serde_json::json!({"auth": "oauth2", "token_url": "https://a.example/", "client_id": "x", "client_secret": "y"}),
            "sinks[0].auth: ",
        ),
        (
            serde_json::json!({"headers": {"Authorization": "Bearer x"}}),
            "sinks[0].headers: ",
        ),
        (
            serde_json::json!({"headers": {"Cookie": "a={{ x }}"}}),
            "sinks[0].headers: ",
        ),
        (serde_json::json!({"headers": {"X-Api-Key": "x"}}), "sinks[0].headers: "),
        (
            serde_json::json!({"cert": "/etc/x.pem", "key": "/etc/x.key"}),
            "sinks[0].cert: ",
        ),
        (
            serde_json::json!({"url": "https://u:p@{{ data.host }}/"}),
            "sinks[0].url: ",
        ),
    ] {
        let mut table = serde_json::json!({"url": "https://{{ data.host }}/hook"});
        table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let said = faults(table.clone());
        let is_said = said.len() == 1 && said[0].starts_with(part) && said[0].contains("written out");
        assert!(is_said, "{table}: {said:?}");
        // With its server written out it is sound.
        if more.get("url").is_none() {
            table["url"] = "https://a.example/{{ data.host }}".into();
            assert_eq!(faults(table), [""; 0]);
        }
    }
    let plain = serde_json::json!({"url": "https://{{ data.host }}/", "headers": {"x-team": "sales"}, "secret": "whsec_c2VjcmV0"});
    assert_eq!(faults(plain), [""; 0]);
}

#[tokio::test]
async fn what_a_transform_made_is_sent_with_its_headers_and_without_closes_signature() {
    let (origin, seen) = keeps().await;
    let table =
        serde_json::json!({"url": origin, "allow_private": true, "forward_signature": true, "headers": {"x-a": "1"}});
    let (options, sink) = build(table).await;
    let made = |payload: Payload, headers: &[(&str, &str)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut delivery = delivery(1, BODY);
        delivery.rendered = Some(Arc::new(Rendered {
            payload: Some(payload),
            headers: headers.collect(),
            ..Rendered::default()
        }));
        delivery
    };
    let text = made(Payload::Text("hello".into()), &[("X-A", "2"), ("x-b", "3\n")]);
    assert_eq!(options.payload(&text), "hello");
    assert_eq!(deliver(&*sink, &[text]).await.unwrap(), [Outcome::Delivered]);
    let (_, headers, body) = seen.lock().unwrap().remove(0);
    assert_eq!(
        (&body[..], headers["x-a"].as_bytes(), headers["x-b"].as_bytes()),
        (&b"hello"[..], &b"2"[..], &b"3"[..])
    );
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert!(!headers.contains_key("close-sig-hash"));
    let json = made(Payload::Text("{\"a\":1}".into()), &[]);
    deliver(&*sink, &[json]).await.unwrap();
    assert_eq!(seen.lock().unwrap().remove(0).1["content-type"], "application/json");
    // What only the sink can know.
    for name in [
        "Host",
        "webhook-id",
        "Closehook-Seq",
        "content-length",
        "a b",
        "",
        "Webhook_Id",
        "content_length",
        "x.y",
        "x\u{e9}",
    ] {
        let outcome = deliver(&*sink, &[made(Payload::Text("x".into()), &[(name, "1")])])
            .await
            .unwrap()
            .remove(0);
        assert!(matches!(outcome, Outcome::Reject { .. }), "{name}: {outcome:?}");
    }
}
