//! What the amqp sink promises of itself; with RabbitMQ it is tried in `tests/it/sinks_amqp.rs`.

use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::AMQPMethod;
use amq_protocol::types::AMQPValue;
use serde_json::json;

use super::session::tests::{Door, Fake};
use super::*;
use crate::render::{Payload, Rendered};
use crate::sinks::common::line::tests::delivery;
use crate::sinks::tests;

const BODY: &str = r#"{"event": {"id":"ev_1", "date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"updated","lead_id":"lead_1","n": 1.50}, "subscription_id":"whsub_1"}"#;

fn faults(table: serde_json::Value) -> Vec<String> {
    tests::faults(&definition::TYPE, table)
}

fn with(url: &str, key: &str, value: serde_json::Value) -> serde_json::Value {
    let mut table = json!({ "url": url, "exchange": "close", "routing_key": "all" });
    table[key] = value;
    table
}

#[test]
fn what_can_not_work_is_a_fault_that_holds_no_password() {
    let url = "amqp://u:hunter22@rabbit.example.com/crm";
    assert_eq!(faults(with(url, "exchange", json!(""))), [""; 0]);
    assert_eq!(faults(json!({ "url": "amqp://rabbit", "routing_key": "all" })), [""; 0]);
    for (url, key, value, part) in [
        ("http://u:hunter22@h", "exchange", json!("a"), "url: must be a URL like"),
        ("amqp://u:hunter22@", "exchange", json!("a"), "url: must be a URL like"),
        ("amqp://u:hunter22@h/a/b", "exchange", json!("a"), "write it as %2F"),
        (
            "amqp://u:hunter22@h/a?heartbeat=1",
            "exchange",
            json!("a"),
            "from ? or # on",
        ),
        ("amqp://u@h/a", "exchange", json!("a"), "password: is missing"),
        ("amqp://h/a", "password", json!("hunter22"), "username: is missing"),
        (url, "username", json!("w"), "username: stands in url, too"),
        (url, "password", json!("hunter22"), "password: stands in url, too"),
        (url, "ca", json!("/nothing.pem"), "ca: is for TLS"),
        ("amqps://h", "cert", json!("/a.pem"), "key: is missing"),
        ("amqps://h", "ca", json!("/nothing.pem"), "/nothing.pem can't be read"),
        (url, "batch", json!({ "events": 5001 }), "batch.events: must be between"),
        (url, "exchange", json!("x".repeat(256)), "exchange: is longer"),
        (url, "routing_key", json!("x".repeat(256)), "routing_key: is longer"),
        (url, "routing_key", json!("{{ x"), "routing_key: "),
    ] {
        let found = faults(with(url, key, value.clone()));
        assert!(
            found.iter().any(|fault| fault.contains(part)),
            "{key} = {value}: {found:?}"
        );
        assert!(!found.concat().contains("hunter22"), "{found:?}");
    }
    let found = faults(json!({ "url": "amqp://rabbit", "routing_key": "" }));
    assert!(found[0].contains("it is a queue's name"), "{found:?}");
    let found = faults(json!({ "url": "amqp://rabbit" }));
    assert!(found[0].contains("routing_key: is missing"), "{found:?}");
}

/// The routing key, the properties and the headers of a message.
fn read(message: &Message) -> (String, amq_protocol::protocol::BasicProperties) {
    let (rest, publish) = parse_frame(&message.head[..]).unwrap();
    let (rest, header) = parse_frame(rest).unwrap();
    assert!(rest.is_empty());
    match (publish, header) {
        (AMQPFrame::Method(1, AMQPClass::Basic(AMQPMethod::Publish(publish))), AMQPFrame::Header(1, header)) => {
            assert!(publish.mandatory && !publish.immediate);
            assert_eq!(header.body_size, message.body.len() as u64);
            (publish.routing_key.to_string(), header.properties)
        }
        other => panic!("{other:?}"),
    }
}

fn key_of(text: &str) -> Template {
    Template::parse(text, crate::render::Escape::None).unwrap()
}

#[test]
fn a_message_is_persistent_and_says_which_event_it_is() {
    let delivery = delivery(7, BODY);
    let message = Message::new(0, &delivery, "close", &key_of("all")).unwrap();
    assert_eq!(message.body, BODY);
    let (routing_key, properties) = read(&message);
    assert_eq!(routing_key, "all");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let text = |text: &Option<amq_protocol::types::ShortString>| text.as_ref().unwrap().to_string();
    assert_eq!(text(properties.message_id()), "ev_1:2024-02-15T12:48:23.395000");
    assert_eq!(text(properties.kind()), "lead.updated");
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(*properties.timestamp(), Some(1_700_000_000));
    let headers = properties.headers().clone().unwrap();
    assert_eq!(headers.inner().len(), 7);
    assert_eq!(headers.inner()["closehook-seq"], AMQPValue::LongString("7".into()));
}

#[test]
fn what_amqp_has_no_room_for_is_shortened_or_refused() {
    let long = BODY.replace("ev_1", &"é".repeat(300));
    let message = Message::new(0, &delivery(7, &long), "close", &key_of("all")).unwrap();
    let (_, properties) = read(&message);
    let id = properties.message_id().as_ref().unwrap().to_string();
    assert!(id.len() <= 255 && id.starts_with("éé") && id.contains('~'), "{id}");
    assert_eq!(id, message.id);
    let AMQPValue::LongString(whole) = &properties.headers().as_ref().unwrap().inner()["closehook-key"] else {
        panic!("no text");
    };
    assert!(whole.len() > 600, "the header has it whole");
    let made = |name: &str, key: Option<String>| {
        let mut delivery = delivery(7, BODY);
        delivery.rendered = Some(Arc::new(Rendered {
            payload: Some(Payload::Text("x".into())),
            headers: [(name.to_owned(), "v".to_owned())].into(),
            key,
            ..Rendered::default()
        }));
        Message::new(0, &delivery, "close", &key_of("all"))
    };
    for bad in ["", "CC", "BCC", "a\nb", &"x".repeat(256)] {
        let reason = made(bad, None).unwrap_err();
        assert!(reason.text.contains("no header may be called"), "{bad}: {reason}");
    }
    let reason = made("x-team", Some("k".repeat(256))).unwrap_err();
    assert!(reason.text.contains("its routing key has 256 bytes"), "{reason}");
    let (routing_key, properties) = read(&made("closehook-seq", Some("k".into())).unwrap());
    assert_eq!(routing_key, "k");
    let headers = properties.headers().clone().unwrap();
    assert_eq!(headers.inner()["closehook-seq"], AMQPValue::LongString("v".into()));
}

/// A sink at a door.
async fn sink(door: &Door, timeout: Duration) -> Box<dyn Sink> {
    sink_with(door, timeout, "all", false).await
}

async fn sink_with(door: &Door, timeout: Duration, routing_key: &str, is_strict: bool) -> Box<dyn Sink> {
    let table =
        json!({ "url": format!("amqp://127.0.0.1:{}", door.port()), "exchange": "close", "routing_key": routing_key });
    let context = Context {
        name: "rabbit".into(),
        timeout,
        is_strict,
        ..Context::default()
    };
    let opened = tests::sound(&definition::TYPE, table).open(context).await;
    opened.unwrap().sink
}

/// While the server takes nothing it is sent nothing more: neither on this connection nor on others, of which it would take all later.
#[tokio::test]
async fn while_the_server_is_blocked_nothing_more_is_sent_and_the_connection_is_kept() {
    let door = Door::open().await;
    let sink = sink(&door, Duration::from_secs(1)).await;
    let two = [delivery(1, BODY), delivery(2, BODY)];
    let (fared, mut fake) = tokio::join!(tests::deliver(&*sink, &two), async {
        let mut fake = Fake::greet(&door).await;
        fake.messages(1).await;
        fake.blocks().await;
        fake
    });
    let why = fared.unwrap_err().reason;
    assert!(why.contains("it said \"low on memory\""), "{why}");
    // At once, and without a word.
    let why = tests::deliver(&*sink, &two).await.unwrap_err().reason;
    assert!(why.contains("low on memory"), "{why}");
    fake.unblocks().await;
    let delivered = async {
        loop {
            match tests::deliver(&*sink, &two).await {
                Ok(outcomes) => return outcomes,
                Err(unavailable) => assert!(unavailable.reason.contains("low on memory"), "{unavailable}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let (outcomes, ()) = tokio::join!(delivered, async {
        // What was on its way is confirmed, too, and counts for nothing.
        fake.acks(1, false).await;
        fake.messages(1).await;
        fake.acks(2, false).await;
        fake.messages(1).await;
        fake.acks(3, false).await;
    });
    assert_eq!(outcomes, [Outcome::Delivered, Outcome::Delivered]);
}

#[tokio::test]
async fn a_server_that_never_confirms_is_left_and_tried_anew() {
    let door = Door::open().await;
    let sink = sink(&door, Duration::from_millis(500)).await;
    let one = [delivery(1, BODY)];
    let (fared, first) = tokio::join!(tests::deliver(&*sink, &one), async {
        let mut fake = Fake::greet(&door).await;
        fake.messages(1).await;
        fake
    });
    let why = fared.unwrap_err().reason;
    assert!(why.contains("did not answer in time"), "{why}");
    let (fared, _fake) = tokio::join!(tests::deliver(&*sink, &one), async {
        let mut fake = Fake::greet(&door).await;
        fake.messages(1).await;
        fake.acks(1, false).await;
        fake
    });
    assert_eq!(fared.unwrap(), [Outcome::Delivered]);
    drop(first);
}

#[tokio::test]
async fn with_strict_order_nothing_goes_before_what_the_server_has_not_taken() {
    let door = Door::open().await;
    let sink = sink_with(&door, Duration::from_secs(30), "all", true).await;
    let four = [1, 2, 3, 4].map(|seq| delivery(seq, BODY));
    let (fared, mut fake) = tokio::join!(tests::deliver(&*sink, &four), async {
        let mut fake = Fake::greet(&door).await;
        fake.messages(1).await;
        fake.acks(1, false).await;
        fake.messages(1).await;
        fake.nacks(2, false).await;
        fake
    });
    let fared = fared.unwrap();
    assert_eq!(fared[0], Outcome::Delivered);
    for outcome in &fared[1..] {
        assert!(
            matches!(outcome, Outcome::Waits(why) if why.reason.contains("basic.nack")),
            "{outcome:?}"
        );
    }
    drop(sink);
    assert!(!fake.hears_a_message().await, "it has said goodbye, and nothing before");
}

/// A delivery, with what a template makes of it.
fn made(seq: u64, routing_key: &str) -> Delivery {
    let mut delivery = delivery(seq, &BODY.replace("ev_1", &format!("ev_{seq}")));
    delivery.rendered = Some(Arc::new(Rendered {
        texts: [("routing_key".to_owned(), routing_key.to_owned())].into(),
        ..Rendered::default()
    }));
    delivery
}

/// Where each event has its routing key, it is about that event that no queue takes it; where all have one, it is not. After five in a
/// row it may be not either.
#[tokio::test]
async fn what_no_queue_takes_is_about_the_event_only_where_the_event_has_chosen_where_it_goes() {
    let door = Door::open().await;
    let sink = sink_with(&door, Duration::from_secs(30), "{{ lead_id }}", false).await;
    let eight: Vec<Delivery> = (1..=8).map(|seq| made(seq, "lead_1")).collect();
    let id = |seq: u64| format!("ev_{seq}:2024-02-15T12:48:23.395000");
    let (fared, _fake) = tokio::join!(tests::deliver(&*sink, &eight), async {
        let mut fake = Fake::greet(&door).await;
        assert_eq!(fake.messages(1).await[0].0, "lead_1");
        fake.acks(1, false).await;
        fake.messages(7).await;
        for seq in 2..=8 {
            fake.returns(&id(seq)).await;
        }
        fake.acks(8, true).await;
        fake
    });
    let fared = fared.unwrap();
    assert_eq!(fared[0], Outcome::Delivered);
    for outcome in &fared[1..6] {
        assert!(
            matches!(outcome, Outcome::Reject { reason } if reason.text.contains("bind one")),
            "{outcome:?}"
        );
    }
    for outcome in &fared[6..] {
        assert!(
            matches!(outcome, Outcome::Retry { .. } | Outcome::Untried { .. }),
            "{outcome:?}"
        );
    }

    let door = Door::open().await;
    let sink = self::sink(&door, Duration::from_secs(30)).await;
    let one = [delivery(1, BODY)];
    let (fared, _fake) = tokio::join!(tests::deliver(&*sink, &one), async {
        let mut fake = Fake::greet(&door).await;
        fake.messages(1).await;
        fake.returns(&id(1)).await;
        fake.acks(1, false).await;
        fake
    });
    let why = fared.unwrap_err().reason;
    assert!(why.contains("no queue is bound to exchange \"close\""), "{why}");
}
