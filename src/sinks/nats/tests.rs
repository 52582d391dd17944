//! What the nats sink promises of itself; with a real server it is tried in `tests/it/sinks_nats.rs`.

use async_nats::StatusCode;
use serde_json::{Value, json};

use super::super::common::line::tests::delivery;
use super::message::subject_fault;
use super::*;
use crate::render::Rendered;
use crate::sinks::tests;

fn faults(table: Value) -> Vec<String> {
    let (options, faults) = tests::parsed(&definition::TYPE, table);
    let fault = options.and_then(|options| options.fault());
    faults
        .into_iter()
        .map(|fault| format!("{}: {}", fault.place, fault.message))
        .chain(fault)
        .collect()
}

fn local() -> Value {
    json!({ "servers": "nats://127.0.0.1:4222", "subject": "close.events" })
}

#[test]
fn what_can_not_work_is_a_fault() {
    assert_eq!(faults(local()), [""; 0]);
    for (key, value, part) in [
        ("servers", json!([]), "servers: must be a server, or a list"),
        ("servers", json!(5), "servers: must be a server, or a list"),
        (
            "servers",
            json!(["nats://a", "http://x:hunter22@b"]),
            "servers[1]: must be a server like",
        ),
        (
            "servers",
            json!("nats://a,wss://b"),
            "servers[1]: must be a server like",
        ),
        ("subject", json!("a b"), "subject: can't be a subject: it has spaces"),
        (
            "subject",
            json!("close.>"),
            "subject: can't be a subject: it has a wildcard",
        ),
        ("subject", json!("{{"), "subject: not a template"),
        ("user", json!("writer"), "password: is missing"),
        ("password", json!("hunter22"), "user: is missing"),
        ("nkey", json!("hunter22"), "nkey is no user's seed"),
        ("credentials", json!("hunter22"), "credentials is no .creds file"),
        ("token_file", json!("/nowhere/at/all"), "/nowhere/at/all"),
        ("ca", json!("/nowhere/at/all.pem"), "/nowhere/at/all.pem"),
        ("cert", json!("/nowhere"), "key: is missing"),
        ("inbox_prefix", json!("a.>"), "inbox_prefix: must be the beginning"),
        ("batch", json!({ "events": 10001 }), "batch.events: must be between"),
        ("batch", json!({ "event": 1 }), "batch.event: there is no such key"),
        ("streams", json!("x"), "streams: there is no such key"),
    ] {
        let mut table = local();
        table[key] = value;
        let found = faults(table);
        assert!(found.iter().any(|fault| fault.contains(part)), "{key}: {found:?}");
        assert!(!found.iter().any(|fault| fault.contains("hunter22")), "{found:?}");
    }
    let mut double = local();
    double["servers"] = "nats://u:hunter22@a".into();
    double["token"] = "hunter22".into();
    assert!(faults(double)[0].contains("more than one login"));
    let found = faults(json!({}));
    assert!(
        found.iter().any(|fault| fault.contains("servers: is missing")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|fault| fault.contains("subject: is missing")),
        "{found:?}"
    );
}

#[test]
fn a_password_that_can_be_read_on_its_way_is_warned_of() {
    let warning = |servers: &str, more: Value| {
        let mut table = local();
        table["servers"] = servers.into();
        for (key, value) in more.as_object().unwrap() {
            table[key] = value.clone();
        }
        tests::sound(&definition::TYPE, table).warning()
    };
    assert!(warning("nats://u:p@nats.example.com", json!({})).is_some());
    assert!(warning("nats.example.com", json!({ "token": "t" })).is_some());
    for fine in [
        "tls://u:p@nats.example.com",
        "nats://u:p@127.0.0.1",
        "nats://u:p@localhost",
        "nats://nats.example.com",
    ] {
        assert_eq!(warning(fine, json!({})), None, "{fine}");
    }
    assert_eq!(
        warning("nats.example.com", json!({ "token": "t", "tls_first": true })),
        None
    );
}

#[test]
fn the_fingerprint_changes_with_all_that_matters() {
    let print = |key: &str, value: Value| {
        let mut table = local();
        if !key.is_empty() {
            table[key] = value;
        }
        tests::sound(&definition::TYPE, table).fingerprint()
    };
    let plain = print("", Value::Null);
    assert_eq!(plain, print("tls_first", json!(false)));
    let others = [
        print("servers", json!("nats://127.0.0.1:4223")),
        print("servers", json!("nats://u:p@127.0.0.1:4222")),
        print("servers", json!("nats://u:q@127.0.0.1:4222")),
        print("subject", json!("close.{{ action }}")),
        print("token", json!("a")),
        print("token", json!("b")),
        print("tls_first", json!(true)),
        print("inbox_prefix", json!("_I")),
        print("batch", json!({ "events": 7 })),
    ];
    for (at, one) in others.iter().enumerate() {
        assert_ne!(*one, plain, "{at}");
        assert!(others.iter().skip(at + 1).all(|other| other != one), "{at}");
    }
}

#[test]
fn a_subject_is_what_a_message_may_be_published_to_and_no_order_to_the_server() {
    for fine in [
        "a",
        "close.lead.updated",
        "a-b.c_d",
        "a.b*c.x>y",
        "é.ü",
        "$KV.leads.x",
        "a.$JS",
    ] {
        assert_eq!(subject_fault(fine), None, "{fine}");
    }
    let long = "a".repeat(2049);
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\tb",
        "a\r\nPUB x 1",
        "a\u{0}",
        "a\u{2028}b",
        "*",
        "a.*",
        "a.>",
        ">.a",
        "$JS.API.STREAM.DELETE.X",
        "$SYS.REQ.x",
        "_INBOX.a",
        &long,
    ] {
        assert!(subject_fault(bad).is_some(), "{bad:?}");
    }
}

fn template(source: &str) -> Template {
    Template::parse(source, crate::render::Escape::None).unwrap()
}

fn with(rendered: Rendered) -> Delivery {
    Delivery {
        rendered: Some(Arc::new(rendered)),
        ..delivery(
            7,
            r#"{"event": {"id": "ev_1", "date_updated": "2024-02-15T12:48:23.395000", "object_type": "lead", "action": "updated"}}"#,
        )
    }
}

fn header(message: &Message, name: &str) -> Option<String> {
    message.headers.get(name).map(ToString::to_string)
}

#[test]
fn a_message_says_what_is_known_of_its_event_and_a_transform_adds_to_it() {
    let made = with(Rendered {
        headers: [
            ("X-Mine".to_owned(), "a\r\nNats-Rollup: all\u{0}é".to_owned()),
            ("closehook-lead-id".into(), "other".into()),
            ("nats-ttl".into(), "5s".into()),
        ]
        .into(),
        subject: Some("their.own".into()),
        payload: Some(crate::render::Payload::Json("{}".into())),
        ..Rendered::default()
    });
    let message = Message::of(3, &made, &template("close.events")).ok().unwrap();
    assert_eq!(
        (message.index, message.subject.as_str(), message.subject_varies),
        (3, "their.own", true)
    );
    assert_eq!(&message.body[..], b"{}");
    for (name, value) in [
        ("Nats-Msg-Id", "ev_1:2024-02-15T12:48:23.395000"),
        ("closehook-key", "ev_1:2024-02-15T12:48:23.395000"),
        ("closehook-seq", "7"),
        ("closehook-type", "lead.updated"),
        ("closehook-source", "webhook"),
        ("closehook-lead-id", "other"),
        ("X-Mine", "a%0D%0ANats-Rollup: all%00é"),
        ("Nats-TTL", "5s"),
    ] {
        assert_eq!(header(&message, name).as_deref(), Some(value), "{name}");
    }
    let plain = delivery(8, "{\"event\": 1 }");
    let message = Message::of(0, &plain, &template("close.events")).ok().unwrap();
    assert_eq!(
        (&message.body[..], message.subject_varies),
        (&b"{\"event\": 1 }"[..], false)
    );
    assert_eq!(header(&message, "Nats-Msg-Id").as_deref(), Some("seq_8"));
}

#[test]
fn a_header_that_no_message_may_have_is_about_the_event() {
    for (name, value) in [
        ("Nats-Msg-Id", "mine"),
        ("nats-rollup", "all"),
        ("Nats-Expected-Last-Sequence", "1"),
        ("a b", "x"),
        ("a:b", "x"),
        ("a\r\nb", "x"),
        ("", "x"),
        ("é", "x"),
        ("x", &*"v".repeat((16 << 10) + 1)),
    ] {
        let made = with(Rendered {
            headers: [(name.to_owned(), value.to_owned())].into(),
            ..Rendered::default()
        });
        assert!(Message::of(0, &made, &template("a")).is_err(), "{name:?}");
    }
}

#[test]
fn messages_are_made_one_by_one_and_what_can_be_none_is_known_by_its_place() {
    let to = |subject: &str| {
        with(Rendered {
            subject: Some(subject.to_owned()),
            ..Rendered::default()
        })
    };
    let deliveries = ["a b", "c", "d.", "e", "f", "*"].map(to);
    let subject = template("x");
    let mut making = Making::new(&deliveries, &subject);
    let mut places = Vec::new();
    while making.has_more() {
        // Looking once more takes nothing away.
        assert!(making.has_more());
        places.extend(making.by_ref().take(2).map(|message| (message.index, message.subject)));
    }
    assert_eq!(places, [(1, "c".to_owned()), (3, "e".into()), (4, "f".into())]);
    let refused: Vec<usize> = making.refused.iter().map(|(index, _)| *index).collect();
    assert_eq!(refused, [0, 2, 5]);
}

fn message(subject: &str, varies: bool) -> Message {
    let texts = [("subject".to_owned(), subject.to_owned())].into();
    let made = with(Rendered {
        texts,
        ..Rendered::default()
    });
    let source = if varies { "{{ x }}" } else { "x" };
    let message = Message::of(0, &made, &template(source)).ok().unwrap();
    assert_eq!(message.subject_varies, varies);
    message
}

fn answered(status: Option<StatusCode>, payload: &'static str) -> Answer {
    let message = async_nats::Message {
        subject: "_INBOX.1.0".into(),
        reply: None,
        payload: payload.into(),
        headers: None,
        status,
        description: None,
        length: 0,
    };
    let mut secrets = Secrets::default();
    secrets.add("hunter22");
    answer::judged(&message, &secrets)
}

#[test]
fn only_what_jetstream_has_stored_is_taken_and_a_full_stream_is_no_refusal() {
    for taken in [
        r#"{"stream":"S","seq":1}"#,
        r#"{"stream":"S","seq":1,"duplicate":true,"domain":"hub"}"#,
    ] {
        assert_eq!(answered(None, taken), Answer::Taken, "{taken}");
    }
    assert_eq!(answered(Some(StatusCode::NO_RESPONDERS), ""), Answer::Nobody);
    for (payload, part) in [
        (
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"S","seq":0}"#,
            "\"maximum bytes exceeded\" (10077): the stream is full",
        ),
        (
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"}}"#,
            "discard_new_per_subject",
        ),
        (
            r#"{"error":{"code":400,"err_code":10002,"description":"resource limits exceeded for account"}}"#,
            "the account's limit",
        ),
        (
            r#"{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}"#,
            "wait until the cluster has a leader",
        ),
        (
            r#"{"error":{"code":400,"err_code":10109,"description":"invalid operation on sealed stream"}}"#,
            "sealed",
        ),
        (
            r#"{"error":{"code":429,"err_code":10167,"description":"hunter22 too many requests"}}"#,
            "\"(secret) too many requests\" (10167)",
        ),
        (r#"{"error":{"code":500,"description":"new"}}"#, "\"new\" (0)"),
        ("", "not JetStream"),
        ("thanks", "not JetStream"),
        ("{}", "not JetStream"),
        (r#"{"stream":"","seq":1}"#, "not JetStream"),
        (r#"{"stream":"S","seq":0}"#, "not JetStream"),
    ] {
        let Answer::Stopped(why) = answered(None, payload) else {
            panic!("{payload}")
        };
        assert!(why.contains(part), "{payload}: {why}");
    }
    for payload in [
        r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#,
        r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}"#,
    ] {
        assert!(matches!(answered(None, payload), Answer::Refused(_)), "{payload}");
    }
}

/// A sink that has no server.
fn sink() -> Nats {
    let mut faults = Vec::new();
    let mut table = crate::config::Table::new("sinks[0]", local(), &mut faults);
    table.define(definition::TYPE.keys);
    let context = Context {
        timeout: Duration::from_secs(2),
        ..Context::default()
    };
    Nats::new(&options::read(&mut table).unwrap(), &context)
}

#[test]
fn nobody_who_listens_is_the_sinks_trouble_unless_the_event_has_chosen_the_subject_and_no_stream_should() {
    let sink = sink();
    let fate = |varies: bool, listening: Listening| match sink.unheard(&message("a.b", varies), &listening) {
        Fate::Refused(reason) => format!("refused: {reason} ({})", reason.answer.as_deref().unwrap_or_default()),
        Fate::Waits(why) => format!("waits: {why}"),
        Fate::WaitsAlone(why) => format!("alone: {why}"),
    };
    let stream = || Listening::Stream("S".into());
    for varies in [false, true] {
        assert_eq!(fate(varies, stream()), "waits: the stream S has no leader now");
        assert!(fate(varies, Listening::NoJetStream).starts_with("waits: JetStream does not answer"));
        assert!(fate(varies, Listening::Unknown).starts_with("waits: nobody "));
    }
    assert!(fate(true, Listening::Nobody).starts_with("refused: no stream takes"));
    assert!(
        fate(true, Listening::Nobody).ends_with("(a.b)"),
        "the event's words are no sentence's"
    );
    assert!(fate(true, Listening::MayNotAsk).starts_with("alone: "));
    assert!(fate(true, Listening::NotAsked).starts_with("alone: "));
    assert!(fate(false, Listening::Nobody).starts_with("waits: no stream takes messages on a.b: make one"));
    assert!(fate(false, Listening::MayNotAsk).starts_with("waits: no stream takes messages on a.b: make one"));
    // Where JetStream works, it is the way to ask it that is another one; where it has answered, it is gone.
    sink.is_known.store(true, Ordering::Relaxed);
    assert!(fate(true, Listening::NoJetStream).starts_with("alone: "));
    assert!(fate(false, Listening::NoJetStream).starts_with("waits: JetStream does not answer"));
    sink.has_api.store(true, Ordering::Relaxed);
    assert!(fate(true, Listening::NoJetStream).starts_with("waits: JetStream does not answer"));
}

#[test]
fn a_sink_that_has_to_wait_counts_no_attempt_of_what_waits() {
    let come = |fates: Vec<Option<Fate>>| {
        let mut places = vec![Outcome::Skipped; fates.len()];
        let unavailable = outcomes(&mut places, fates.into_iter().enumerate().collect());
        unavailable.map_or_else(
            || {
                let letter = |outcome: &Outcome| match outcome {
                    Outcome::Delivered => 'd',
                    Outcome::Reject { .. } => 'x',
                    Outcome::Retry { .. } | Outcome::Untried { .. } => 'r',
                    Outcome::Waits(_) => 'w',
                    Outcome::Skipped => 's',
                };
                places.iter().map(letter).collect::<String>()
            },
            |unavailable| unavailable.reason,
        )
    };
    let waits = || Some(Fate::Waits("full".into()));
    let alone = || Some(Fate::WaitsAlone("chosen".into()));
    let refused = || Some(Fate::Refused("large".into()));
    assert_eq!(come(vec![None, refused(), None]), "dxd");
    assert_eq!(come(vec![waits(), waits()]), "full");
    assert_eq!(
        come(vec![refused(), waits()]),
        "full",
        "it is refused when the sink works again"
    );
    assert_eq!(come(vec![None, waits(), waits()]), "dww");
    assert_eq!(come(vec![alone(), alone()]), "rr");
    assert_eq!(come(vec![alone(), waits()]), "full");
    assert_eq!(come(vec![refused()]), "x");
}
