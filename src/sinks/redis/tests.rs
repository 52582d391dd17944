//! What the keys mean and what an entry is; the rest is tried on real servers (`tests/it/sinks_redis.rs`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;

use super::definition::TYPE;
use super::*;
use crate::event::{Dead, Event, Kind, Origin, Seq, Source};
use crate::render::Rendered;
use crate::sinks::tests::{parsed, sound};

fn table(more: &serde_json::Value) -> serde_json::Value {
    let mut table = json!({ "url": "redis://redis.example.com", "stream": "close" });
    for (key, value) in more.as_object().unwrap() {
        table[key] = value.clone();
    }
    table
}

fn delivery() -> Delivery {
    let body =
        r#"{"event":{"id":"ev_1","date_updated":"2024-02-15T12:48:23","object_type":"lead","action":"updated"}}"#;
    Delivery {
        origin: Origin::Live,
        event: Arc::new(Event::new(
            Seq(7),
            Timestamp::UNIX_EPOCH,
            Source::Webhook,
            Kind::Event,
            None,
            body.into(),
        )),
        rules: Arc::from([]),
        attempt: 1,
        rendered: None,
    }
}

fn template(source: &str) -> Template {
    Template::unchecked(source, Escape::None)
}

#[test]
fn a_fault_says_where_it_is_and_what_to_do() {
    for (more, key, part) in [
        (json!({ "url": "http://redis" }), "url", "must be a URL like"),
        (json!({ "stream": "" }), "stream", "is empty"),
        (json!({ "stream": "closehook:mark:x" }), "stream", "choose another name"),
        (json!({ "stream": "{{ lead_id" }), "stream", "not a template"),
        (json!({ "maxlen": 0 }), "maxlen", "at least 1"),
        (
            json!({ "batch": { "events": 5000 } }),
            "batch.events",
            "between 1 and 2000",
        ),
        (json!({ "username": "u" }), "password", "is missing"),
        (json!({ "url": "redis://u@r" }), "password", "is missing"),
        (
            json!({ "url": "redis://u:p@r", "username": "u" }),
            "username",
            "is in url too",
        ),
        (
            json!({ "url": "redis://:p@r", "password": "p" }),
            "password",
            "is in url too",
        ),
        (json!({ "ca": "/x.pem" }), "ca", "write rediss://"),
        (json!({ "url": "rediss://r", "cert": "/x.pem" }), "key", "is missing"),
    ] {
        let (_, faults) = parsed(&TYPE, table(&more));
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let place = format!("sinks[0].{key}: ");
        assert!(
            faults
                .iter()
                .any(|fault| fault.starts_with(&place) && fault.contains(part)),
            "{key}: {faults:?}"
        );
        assert!(faults.len() == 1, "{faults:?}");
    }
    let (_, faults) = parsed(&TYPE, json!({}));
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn another_password_or_certificate_is_another_sink() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    let fingerprint = |password: &str| {
        std::fs::write(&path, password).unwrap();
        sound(&TYPE, table(&json!({ "password_file": path }))).fingerprint()
    };
    let one = fingerprint("hunter2");
    assert!(one == fingerprint("hunter2"));
    assert!(one != fingerprint("hunter3"));
    assert!(!one.0.contains("hunter"));
}

#[test]
fn the_mark_is_in_the_slot_of_the_streams_where_these_have_one_in_common() {
    for (stream, expected) in [
        ("close", None),
        ("{close}:events", Some("close")),
        ("a:{b}{c}", Some("b")),
        ("{}x", None),
        ("{close}:{{ lead_id }}", Some("close")),
        ("x:{{ lead_id }}:{close}", None),
        ("{%- if a %}{b}{% endif %}", None),
        ("x{{ '{a}' }}", None),
    ] {
        assert_eq!(slot(&template(stream)), expected, "{stream}");
    }
    let context = Context {
        name: "s".into(),
        log_id: "l".into(),
        ..Context::default()
    };
    assert_eq!(mark_key(&template("close"), &context), "closehook:mark:l:s");
    assert_eq!(mark_key(&template("{a}:{{ x }}"), &context), "closehook:mark:{a}:l:s");
}

#[test]
fn an_entry_has_what_a_transform_says_and_why_another_sink_gave_it_up() {
    let mut delivery = delivery();
    delivery.origin = Origin::Diverted(Arc::new(Dead {
        sink: "crm".into(),
        reason: "410 Gone".into(),
        attempts: 2,
    }));
    let rendered = |headers: &[(&str, &str)], subject: Option<&str>| Rendered {
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        subject: subject.map(str::to_owned),
        ..Rendered::default()
    };
    delivery.rendered = Some(Arc::new(rendered(
        &[("team", "a"), ("closehook-type", "mine")],
        Some("other"),
    )));
    let stream = template("close");
    let entry = Entry::of(&delivery, &stream).unwrap();
    assert_eq!((entry.stream, entry.stream_varies), ("other", true));
    let fields: BTreeMap<&str, &str> = entry
        .fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    assert_eq!(fields.len(), entry.fields.len(), "none is there twice");
    for (name, value) in [
        ("closehook-seq", "7"),
        ("closehook-key", "ev_1:2024-02-15T12:48:23"),
        ("closehook-type", "mine"),
        ("closehook-dead-sink", "crm"),
        ("closehook-dead-reason", "410 Gone"),
        ("closehook-dead-attempts", "2"),
        ("team", "a"),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert_eq!(entry.body, &delivery.event.body);

    let many: Vec<(String, String)> = (0..101).map(|number| (format!("h{number}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    for (headers, subject, part) in [
        (&[("event", "x")][..], None, "field of the body"),
        (&[], Some(""), "is empty for this event"),
        (&[], Some("closehook:mark:l:s"), "are no streams"),
        (&many[..], None, "more than 100"),
    ] {
        delivery.rendered = Some(Arc::new(rendered(headers, subject)));
        let reason = Entry::of(&delivery, &stream).unwrap_err();
        assert!(reason.text.contains(part), "{reason}");
    }
}
