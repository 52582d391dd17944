//! What the pubsub sink promises of itself; with a Pub/Sub to talk to it is tried in `tests/it/sinks_pubsub.rs`.

use super::*;
use crate::sinks::tests;

fn faults(table: serde_json::Value) -> Vec<String> {
    tests::faults(&definition::TYPE, table)
}

#[test]
fn a_topic_is_a_name_and_nothing_that_changes_the_path() {
    let name = |text: &str| full_name(text, Some("acme"));
    assert_eq!(name("close").unwrap(), "projects/acme/topics/close");
    assert_eq!(
        name(" projects/p-1/topics/a.b~c ").unwrap(),
        "projects/p-1/topics/a.b~c"
    );
    assert_eq!(full_name("close", None), None);
    for bad in [
        "",
        "..",
        "a/b",
        "projects/../topics/a",
        "projects/p/topics/",
        "a?b",
        "a#b",
        "1a",
        "projects/p/topics/a/b",
        "projects/p/subscriptions/a",
        &"a".repeat(256),
        &"a".repeat(70_000),
    ] {
        assert_eq!(name(bad), None, "{bad}");
    }
}

#[test]
fn what_can_not_work_is_a_fault() {
    let local = || json!({ "topic": "projects/a/topics/close", "endpoint": "http://127.0.0.1:8085" });
    assert_eq!(faults(local()), [""; 0]);
    for (key, value, part) in [
        ("topic", json!("a/b"), "topic: must be a name"),
        ("topic", json!("close"), "topic has no project"),
        ("endpoint", json!("pubsub"), "endpoint: must be a URL"),
        (
            "credentials",
            json!("{\"private_key\":\"hunter22\"}"),
            "no service account's key",
        ),
        (
            "credentials",
            json!("{\"type\":\"service_account\",\"client_email\":\"a\",\"private_key\":\"hunter22\"}"),
            "no PKCS #8 key",
        ),
        ("cert", json!("/c.pem"), "key: is missing: a client's certificate"),
        ("batch", json!({ "events": 1001 }), "batch.events: must be between"),
        ("batch", json!({ "event": 1 }), "batch.event: there is no such key"),
        ("ordering_key", json!("{{"), "ordering_key: not a template"),
    ] {
        let mut table = local();
        table[key] = value;
        let found = faults(table);
        assert!(found.iter().any(|fault| fault.contains(part)), "{key}: {found:?}");
        assert!(!found.iter().any(|fault| fault.contains("hunter22")), "{found:?}");
    }
    assert!(faults(json!({ "topic": "close" }))[0].contains("credentials: is missing"));
    assert!(faults(json!({}))[0].contains("topic: is missing"));
}

/// A Pub/Sub that refuses by what it is asked, and the topics and numbers of messages of all that it was asked.
async fn server(
    answer: impl Fn(&str, &str) -> (u16, &'static str) + Clone + Send + Sync + 'static,
) -> (Box<dyn Sink>, Arc<std::sync::Mutex<Vec<(String, usize)>>>) {
    server_with(json!({ "topic": "projects/a/topics/{{ x }}" }), answer).await
}

async fn server_with(
    table: Value,
    answer: impl Fn(&str, &str) -> (u16, &'static str) + Clone + Send + Sync + 'static,
) -> (Box<dyn Sink>, Arc<std::sync::Mutex<Vec<(String, usize)>>>) {
    server_in(Context::default(), table, answer).await
}

async fn server_in(
    context: Context,
    mut table: Value,
    answer: impl Fn(&str, &str) -> (u16, &'static str) + Clone + Send + Sync + 'static,
) -> (Box<dyn Sink>, Arc<std::sync::Mutex<Vec<(String, usize)>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    table["endpoint"] = format!("http://{}", listener.local_addr().unwrap()).into();
    let seen: Arc<std::sync::Mutex<Vec<(String, usize)>>> = Arc::default();
    let kept = seen.clone();
    let handle = move |uri: axum::http::Uri, body: String| async move {
        let asked: Value = serde_json::from_str(&body).unwrap();
        let messages = asked["messages"].as_array().unwrap();
        kept.lock().unwrap().push((uri.path().to_owned(), messages.len()));
        let data: Vec<String> = messages
            .iter()
            .map(|message| String::from_utf8(STANDARD.decode(message["data"].as_str().unwrap()).unwrap()).unwrap())
            .collect();
        let (status, name) = answer(uri.path(), &data.join("|"));
        let said = json!({ "error": { "status": name } }).to_string();
        (axum::http::StatusCode::from_u16(status).unwrap(), said)
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handle)).await });
    let context = Context {
        timeout: Duration::from_secs(10),
        ..context
    };
    let sink = tests::sound(&definition::TYPE, table).open(context).await.unwrap().sink;
    (sink, seen)
}

/// One event for each topic.
fn to(topics: &[&str]) -> Vec<Delivery> {
    let topics = topics.iter().zip(1..);
    let delivery = |(topic, seq): (&&str, u64)| {
        let rendered = crate::render::Rendered {
            texts: [("topic".to_owned(), format!("projects/a/topics/{topic}"))].into(),
            ..crate::render::Rendered::default()
        };
        Delivery {
            rendered: Some(Arc::new(rendered)),
            ..super::super::common::line::tests::delivery(seq, &format!("event{seq}."))
        }
    };
    topics.map(delivery).collect()
}

/// `d`elivered, `w`aits for the service, is tried again (`r`) or refused (`x`); `u`: the sink is unavailable.
async fn fares(sink: &dyn Sink, deliveries: &[Delivery]) -> String {
    let Ok(outcomes) = tests::deliver(sink, deliveries).await else {
        return "u".into();
    };
    outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Delivered | Outcome::Skipped => 'd',
            Outcome::Retry { .. } | Outcome::Untried { .. } => 'r',
            Outcome::Waits(_) => 'w',
            Outcome::Reject { .. } => 'x',
        })
        .collect()
}

#[tokio::test]
async fn a_topic_that_an_event_has_chosen_costs_what_is_for_it_and_nothing_else() {
    for (status, name) in [
        (404, "NOT_FOUND"),
        (403, "PERMISSION_DENIED"),
        (400, "FAILED_PRECONDITION"),
    ] {
        let answer = move |path: &str, _: &str| {
            if path.contains("/bad") {
                (status, name)
            } else {
                (200, "")
            }
        };
        let (sink, _) = server(answer).await;
        let fared = fares(&*sink, &to(&["bad1", "good", "bad1", "other"])).await;
        assert_eq!(fared, "xdxd", "{status}");
        // A topic that is always the same is the sink's.
        let (sink, _) = server_with(json!({ "topic": "projects/a/topics/bad1" }), answer).await;
        assert_eq!(fares(&*sink, &to(&["bad1", "bad1"])).await, "u", "{status}");
        // Of one that a transform has made it is not.
        let mut made = to(&[""]);
        made[0].rendered = Some(Arc::new(crate::render::Rendered {
            subject: Some("projects/a/topics/bad2".into()),
            ..crate::render::Rendered::default()
        }));
        assert_eq!(fares(&*sink, &made).await, "x", "{status}");
    }
    let (sink, _) = server(|_, _| (429, "RESOURCE_EXHAUSTED")).await;
    assert_eq!(fares(&*sink, &to(&["a", "b"])).await, "u");
}

#[tokio::test]
async fn after_five_refusals_in_a_row_the_rest_waits() {
    let (sink, seen) = server(|_, data| {
        if data.contains("event10.") && !data.contains('|') {
            (200, "")
        } else {
            (400, "INVALID_ARGUMENT")
        }
    })
    .await;
    assert_eq!(fares(&*sink, &to(&["a"; 10])).await, "xxxxxrrrrr");
    // Halved down to each of five.
    assert!(seen.lock().unwrap().iter().filter(|(_, count)| *count == 1).count() == 5);
    let (sink, seen) = server(|_, _| (404, "NOT_FOUND")).await;
    assert_eq!(
        fares(&*sink, &to(&["a", "b", "c", "d", "e", "f", "g"])).await,
        "xxxxxrr"
    );
    assert_eq!(seen.lock().unwrap().len(), 7, "each topic has its try");
}

#[tokio::test]
async fn in_strict_order_nothing_goes_before_what_waits_whichever_its_topic_is() {
    let table = || json!({ "topic": "projects/a/topics/{{ x }}" });
    let strict = || Context {
        is_strict: true,
        ..Context::default()
    };
    let (sink, seen) = server_in(strict(), table(), |path, _| {
        if path.contains("/z") { (503, "") } else { (200, "") }
    })
    .await;
    assert_eq!(fares(&*sink, &to(&["z", "a"])).await, "u");
    assert_eq!(fares(&*sink, &to(&["b", "b", "z", "a", "b"])).await, "ddwww");
    let asked = |path: &str, count| (format!("/v1/projects/a/topics/{path}:publish"), count);
    assert_eq!(*seen.lock().unwrap(), [asked("z", 1), asked("b", 2), asked("z", 1)]);
    // After so many refusals in a row what is behind them waits, and may be any topic's.
    let answer = |path: &str, _: &str| {
        if path.contains("/bad") {
            (404, "NOT_FOUND")
        } else {
            (200, "")
        }
    };
    let (sink, _) = server_in(strict(), table(), answer).await;
    let topics = ["b", "bad1", "a", "bad2", "bad2", "bad2", "bad2", "bad3", "bad4", "a"];
    assert_eq!(fares(&*sink, &to(&topics)).await, "dxdxxxxxrr");
}

#[tokio::test]
async fn what_a_transform_says_besides_is_what_pubsub_takes() {
    let constant = json!({ "topic": "projects/a/topics/t" });
    let (sink, _) = server_with(constant.clone(), |_, _| (200, "")).await;
    let with = |rendered: crate::render::Rendered| {
        let mut made = to(&[""]);
        made[0].rendered = Some(Arc::new(rendered));
        made
    };
    for (name, value, told) in [
        ("X-Mine", "a\r\nb", "d"),
        ("", "a", "x"),
        ("googclient", "a", "x"),
        ("a\r\nb", "a", "x"),
        (&*"x".repeat(257), "a", "x"),
        ("x", &*"x".repeat(1025), "x"),
    ] {
        let made = with(crate::render::Rendered {
            headers: [(name.to_owned(), value.to_owned())].into(),
            ..crate::render::Rendered::default()
        });
        assert_eq!(fares(&*sink, &made).await, told, "{name}");
    }
    let own = message::attributes(&to(&[""])[0]).len();
    for (count, told) in [(100 - own, "d"), (101 - own, "x"), (30_000, "x")] {
        let made = with(crate::render::Rendered {
            headers: (0..count).map(|index| (format!("x-{index}"), "1".to_owned())).collect(),
            ..crate::render::Rendered::default()
        });
        assert_eq!(fares(&*sink, &made).await, told, "{count} and {own}");
    }
    // A key wants one request at a time.
    let keyed = with(crate::render::Rendered {
        key: Some("k".into()),
        ..crate::render::Rendered::default()
    });
    assert_eq!(fares(&*sink, &keyed).await, "x");
    let mut table = constant;
    table["ordering_key"] = "all".into();
    let (sink, _) = server_with(table, |_, _| (200, "")).await;
    assert_eq!(fares(&*sink, &keyed).await, "d");
}
