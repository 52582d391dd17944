//! What every type of sink shows of what it would send, or why it would send nothing: as `closehook render` asks.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::common::line::tests::delivery;
use super::reference::{example, here};
use super::tests::sound;
use super::{Outcome, SinkType};
use crate::config::SinkOptions;
use crate::event::{Dead, Delivery, Origin};
use crate::render::{Payload, Rendered};

const EVENT: &str = r#"{"event":{"id":"ev_1","date_updated":"2024-02-15T12:48:23","object_type":"lead","action":"created","object_id":"lead_1","lead_id":"lead_1"}}"#;

/// As in its example, but for these keys.
fn options(kind: &SinkType, more: &Value) -> SinkOptions {
    let mut table = example(kind);
    table.extend(more.as_object().unwrap().clone());
    sound(kind, Value::Object(table))
}

#[test]
fn every_sink_says_why_another_one_gave_an_event_up() {
    const REASON: &str = "422:no-such-field";
    let dead = Dead {
        sink: "crm".into(),
        reason: REASON.into(),
        attempts: 3,
    };
    let dead = Arc::new(dead);
    for kind in here() {
        let options = options(kind, &json!({}));
        let templates = options.templates().into_iter();
        let made = templates.filter(|(_, template)| !template.is_constant());
        let diverted = Delivery {
            origin: Origin::Diverted(dead.clone()),
            rendered: Some(Arc::new(Rendered {
                texts: made.map(|(name, _)| (name, "x".to_owned())).collect(),
                ..Rendered::default()
            })),
            ..delivery(7, EVENT)
        };
        let preview = options.preview("it", &diverted).unwrap();
        let body = String::from_utf8(preview.body.unwrap_or_default().to_vec()).unwrap();
        let header = |name: &str| preview.headers.get(name).map(String::as_str);
        match kind.name {
            "file" | "stdout" | "s3" | "eventbridge" | "kinesis" => {
                let dead = format!(r#""dead":{{"sink":"crm","reason":"{REASON}","attempts":3}}"#);
                assert!(body.contains(&dead), "{}: {body}", kind.name);
            }
            "exec" => assert_eq!(header("CLOSEHOOK_DEAD_REASON"), Some(REASON)),
            "email" => {
                assert!(body.contains(&format!("closehook-dead-reason: {REASON}\r\n")), "{body}");
                let line = format!("Not delivered to crm (attempts: 3): {REASON}");
                assert!(body.contains(&line), "{body}");
            }
            // A table has the columns that it has.
            "postgres" | "sqlite" => assert!(preview.row.is_some()),
            name => {
                assert_eq!(header("closehook-dead-reason"), Some(REASON), "{name}");
                assert_eq!(header("closehook-dead-sink"), Some("crm"), "{name}");
                assert_eq!(header("closehook-dead-attempts"), Some("3"), "{name}");
            }
        }
        if kind.name == "slack" {
            let line = format!("\\nNot delivered to crm (attempts: 3): {REASON}");
            assert!(body.contains(&line), "{body}");
        }
    }
}

/// What a type refuses: keys beside those of its example, and what was made of an event. `None`: whatever is made can be sent.
fn hopeless(kind: &str) -> Option<(Value, Rendered)> {
    let text = |key: &str, text: &str| Rendered {
        texts: [(key.to_owned(), text.to_owned())].into(),
        ..Rendered::default()
    };
    let payload = |text: &'static str| Rendered {
        payload: Some(Payload::Text(Bytes::from_static(text.as_bytes()))),
        ..Rendered::default()
    };
    let subject = |text: &str| Rendered {
        subject: Some(text.to_owned()),
        ..Rendered::default()
    };
    let headers = |names: &[&str]| Rendered {
        headers: names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect(),
        ..Rendered::default()
    };
    Some(match kind {
        "http" => (json!({ "method": "{{ x }}" }), text("method", "GET")),
        "slack" => (json!({ "blocks": "{{ x }}" }), text("blocks", "[")),
        "email" => (json!({ "to": ["{{ x }}"] }), text("to[0]", "")),
        "postgres" | "sqlite" => (json!({}), payload("[]")),
        "s3" => (json!({ "prefix": "{{ x }}" }), text("prefix", "a/../b")),
        "sqs" => (json!({}), headers(&["a", "b", "c", "d"])),
        "sns" => (json!({}), headers(&["a b"])),
        "eventbridge" => (json!({}), payload("a line")),
        "pubsub" | "kafka" => (json!({}), subject("a/b")),
        "nats" => (json!({}), subject("a b")),
        "redis" => (json!({}), subject("")),
        "amqp" => (json!({}), headers(&["CC"])),
        "file" | "stdout" | "exec" | "kinesis" => return None,
        other => panic!("what does {other} refuse?"),
    })
}

#[test]
fn every_sink_says_why_it_would_not_send_what_was_made() {
    for kind in here() {
        let Some((more, made)) = hopeless(kind.name) else {
            continue;
        };
        let options = options(kind, &more);
        let made = Delivery {
            rendered: Some(Arc::new(made)),
            ..delivery(7, EVENT)
        };
        let refused = options.preview("it", &made);
        assert!(
            matches!(refused, Err(Outcome::Reject { .. })),
            "{}: {refused:?}",
            kind.name
        );
    }
}

#[test]
fn databases_gather_as_much_as_batch_says() {
    for kind in here().filter(|kind| matches!(kind.name, "postgres" | "sqlite")) {
        let limits = |more: Value| {
            let options = options(kind, &more);
            let batch = options.drive().batch;
            ((batch.events, batch.bytes, batch.wait.as_secs()), options.fingerprint())
        };
        let (by_itself, one) = limits(json!({}));
        assert_eq!(by_itself, (1000, 4 << 20, 0), "{}", kind.name);
        let (as_said, other) = limits(json!({ "batch": { "events": 7, "bytes": "1 MiB", "wait": "2s" } }));
        assert_eq!(as_said, (7, 1 << 20, 2), "{}", kind.name);
        assert!(one != other, "{}: a reload sees it", kind.name);
    }
}
