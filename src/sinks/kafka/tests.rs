//! What the kafka sink promises of itself; with a broker to talk to it is tried in `tests/it/sinks_kafka.rs`.

use serde_json::json;

use super::*;
use crate::sinks::tests;

fn faults(table: serde_json::Value) -> Vec<String> {
    tests::faults(&definition::TYPE, table)
}

fn plain() -> serde_json::Value {
    json!({ "brokers": ["a.example.com", "10.0.0.1:9093", "[::1]:9092"], "topic": "close" })
}

#[test]
fn what_can_not_work_is_a_fault() {
    assert_eq!(faults(plain()), [""; 0]);
    for (more, part) in [
        (json!({ "brokers": [] }), "brokers: names none"),
        (
            json!({ "brokers": ["kafka://a:9092"] }),
            "brokers[0]: must be an address",
        ),
        (json!({ "brokers": ["a:0"] }), "brokers[0]: must be an address"),
        (json!({ "brokers": ["a:b"] }), "brokers[0]: must be an address"),
        (json!({ "brokers": ["[a]:1"] }), "brokers[0]: must be an address"),
        (json!({ "brokers": [":9092"] }), "brokers[0]: must be an address"),
        (json!({ "topic": "a b" }), "topic: must be a topic's name"),
        (json!({ "topic": "{{" }), "topic: not a template"),
        (json!({ "key": "{{" }), "key: not a template"),
        (json!({ "mark_topic": "m" }), "mark_topic: means nothing without"),
        (
            json!({ "exactly_once": true, "mark_topic": "close" }),
            "topic: holds the marks",
        ),
        (
            json!({ "exactly_once": true, "mark_topic": "" }),
            "mark_topic: must be a topic's name",
        ),
        (
            json!({ "sasl": "GSSAPI", "username": "u", "password": "hunter22" }),
            "sasl: must be \"PLAIN\"",
        ),
        (json!({ "sasl": "PLAIN" }), "username: is missing"),
        (json!({ "sasl": "PLAIN", "username": "u" }), "password: is missing"),
        (
            json!({ "password": "hunter22" }),
            "password: means nothing without sasl",
        ),
        (json!({ "tls": false, "ca": "/ca.pem" }), "tls: is false, and ca"),
        (json!({ "cert": "/c.pem" }), "cert_key: is missing"),
        (json!({ "cert_key": "/c.key" }), "cert: is missing"),
        (json!({ "ca": "/nowhere/ca.pem" }), "/nowhere/ca.pem"),
        (
            json!({ "batch": { "events": 10_001 } }),
            "batch.events: must be between",
        ),
        (json!({ "compression": "lz4" }), "compression: there is no such key"),
    ] {
        let mut table = plain();
        for (key, value) in more.as_object().unwrap() {
            table[key] = value.clone();
        }
        let found = faults(table);
        assert!(found.iter().any(|fault| fault.contains(part)), "{more}: {found:?}");
        assert!(!found.iter().any(|fault| fault.contains("hunter22")), "{found:?}");
    }
    assert!(faults(json!({}))[0].contains("brokers: is missing"));
}

#[test]
fn a_password_that_all_can_read_on_the_way_is_warned_of() {
    let mut table = plain();
    table["sasl"] = "PLAIN".into();
    table["username"] = "u".into();
    table["password"] = "hunter22".into();
    assert!(tests::sound(&definition::TYPE, table.clone()).warning().is_some());
    table["tls"] = true.into();
    assert!(tests::sound(&definition::TYPE, table.clone()).warning().is_none());
    table["tls"] = false.into();
    table["sasl"] = "SCRAM-SHA-256".into();
    assert!(tests::sound(&definition::TYPE, table).warning().is_none());
}

/// Where the order is strict a transaction ends when half of its time is over.
#[test]
fn what_there_was_no_time_for_in_a_transaction_was_not_tried() {
    let mut run = lane::Run {
        parcels: &[],
        fates: vec![Fate::Taken; 4],
        refusals: 0,
    };
    run.put_off(&[2, 3], "its turn comes with the next transaction");
    run.hold_behind_the_first();
    let packed = Packed {
        parcels: Vec::new(),
        places: (0..4).collect(),
        outcomes: vec![Outcome::Delivered; 4],
    };
    let (outcomes, trouble) = packed.fared(run.fates);
    let untried = Outcome::Untried {
        reason: "its turn comes with the next transaction".into(),
    };
    assert_eq!(
        outcomes,
        [Outcome::Delivered, Outcome::Delivered, untried.clone(), untried]
    );
    assert_eq!(trouble, None);
}

#[test]
fn the_key_is_the_transforms_or_the_configured_one_or_the_lead() {
    use super::super::common::line::tests::delivery;
    let event = |made: Option<&str>| {
        let body = r#"{"event":{"id":"ev_1","lead_id":"lead_1","object_type":"lead","action":"updated"}}"#;
        let rendered = crate::render::Rendered {
            key: made.map(str::to_owned),
            texts: [("key".to_owned(), "configured".to_owned())].into(),
            ..crate::render::Rendered::default()
        };
        Delivery {
            rendered: Some(Arc::new(rendered)),
            ..delivery(1, body)
        }
    };
    let template = Template::parse("{{ id }}", crate::render::Escape::None).unwrap();
    assert_eq!(key_of(&event(None), None).unwrap(), "lead_1");
    assert_eq!(key_of(&event(None), Some(&template)).unwrap(), "configured");
    assert_eq!(key_of(&event(Some("own")), Some(&template)).unwrap(), "own");
    assert_eq!(key_of(&event(Some("")), Some(&template)), None);
    assert_eq!(key_of(&delivery(1, r#"{"event":{"id":"ev_1"}}"#), None), None);
}
