//! What the pubsub sink promises of itself; with a Pub/Sub to talk to it is tried in `tests/it/sinks_pubsub.rs`.

use super::*;
use crate::sinks::tests;

fn faults(table: serde_json::Value) -> Vec<String> {
    let (options, faults) = tests::parsed(&definition::TYPE, table);
    let fault = options.and_then(|options| options.fault());
    faults
        .into_iter()
        .map(|fault| format!("{}: {}", fault.place, fault.message))
        .chain(fault)
        .collect()
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
