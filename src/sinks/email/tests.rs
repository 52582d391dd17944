//! What the email sink promises of itself; with a mail server to talk to it is tried in `tests/it/sinks_email.rs`.

use std::collections::BTreeMap;

use super::super::common::line::tests::delivery;
use super::answer::Said;
use super::*;
use crate::render::{Payload, Rendered};
use crate::sinks::tests;

fn table() -> serde_json::Value {
    serde_json::json!({
        "server": "smtp://mail.example.com",
        "from": "closehook <closehook@example.com>",
        "to": ["a@example.com", "\"B, C\" <b@example.com>"],
    })
}

fn with(key: &str, value: impl Into<serde_json::Value>) -> serde_json::Value {
    let mut table = table();
    table[key] = value.into();
    table
}

fn lead(name: &str) -> String {
    format!(
        r#"{{"event":{{"id":"ev_1","date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"created","lead_id":"lead_1","data":{{"display_name":"{name}"}}}}}}"#
    )
}

fn mail(table: serde_json::Value, delivery: &Delivery) -> String {
    match tests::sound(&definition::TYPE, table).preview("it", delivery) {
        Ok(preview) => String::from_utf8(preview.body.unwrap().to_vec()).unwrap(),
        Err(Outcome::Reject { reason }) => reason.text,
        Err(other) => panic!("{other:?}"),
    }
}

/// The values of a header, in order, as they stand there.
fn headers(mail: &str, name: &str) -> Vec<String> {
    let head = mail.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ");
    let begins = format!("{}:", name.to_ascii_lowercase());
    head.split("\r\n")
        .filter(|line| line.to_ascii_lowercase().starts_with(&begins))
        .map(|line| line[begins.len()..].trim().to_owned())
        .collect()
}

#[test]
fn a_mail_says_what_has_happened_and_carries_the_key() {
    let mail = mail(table(), &delivery(7, &lead("Acme")));
    assert_eq!(headers(&mail, "subject"), ["New lead: Acme"]);
    assert_eq!(
        headers(&mail, "to"),
        ["a@example.com, =?utf-8?b?QiwgQw==?= <b@example.com>"]
    );
    assert_eq!(headers(&mail, "closehook-key"), ["ev_1:2024-02-15T12:48:23.395000"]);
    assert_eq!(headers(&mail, "closehook-seq"), ["7"]);
    assert_eq!(headers(&mail, "auto-submitted"), ["auto-generated"]);
    let id = headers(&mail, "message-id").remove(0);
    assert!(
        id.starts_with("<ev_1.2024-02-15T12.48.23.395000.") && id.ends_with("@example.com>"),
        "{id}"
    );
    assert!(mail.contains("https://app.close.com/lead/lead_1/"), "{mail}");
}

#[test]
fn the_message_id_follows_from_the_key_and_is_another_for_another() {
    let id = |body: &str| headers(&mail(table(), &delivery(1, body)), "message-id").remove(0);
    let event = |id: &str, date: &str| format!(r#"{{"event":{{"id":"{id}","date_updated":"{date}"}}}}"#);
    assert_eq!(id(&event("ev_1", "a")), id(&event("ev_1", "a")));
    let odd = ["ev_1", "ev 1", "ev<1>", "ev@1", "", "é", "ev..1", &"x".repeat(3000)].map(|name| id(&event(name, "a")));
    for (index, id) in odd.iter().enumerate() {
        assert!(
            !odd[..index].contains(id) && id.len() < 200 && id.matches(['<', '>', '@']).count() == 3,
            "{id}"
        );
    }
}

#[test]
fn an_event_ends_no_header_and_begins_none() {
    for name in [
        "A\\r\\nBcc: evil@example.com",
        "A\\nBcc: evil@example.com",
        "A\\r\\n\\r\\nbody",
        "A\\u0000\\u2028Bcc: e@x.y",
        "A\\rBcc: e@x.y",
    ] {
        let plain = mail(table(), &delivery(1, &lead(name)));
        assert_eq!(headers(&plain, "bcc"), [""; 0], "{plain}");
        assert_eq!(headers(&plain, "subject").len(), 1, "{plain}");
        let text = serde_json::from_str::<String>(&format!("\"{name}\"")).unwrap();
        let made = Rendered {
            subject: Some(text.clone()),
            headers: BTreeMap::from([("X-Mine".to_owned(), text.clone())]),
            texts: BTreeMap::from([("to[0]".to_owned(), text.clone())]),
            ..Rendered::default()
        };
        let rendered = Delivery {
            rendered: Some(Arc::new(made.clone())),
            ..delivery(1, &lead("A"))
        };
        let refused = mail(with("to", serde_json::json!(["{{ x }}"])), &rendered);
        assert!(refused.contains("to[0] is no address"), "{refused}");
        let made = Rendered {
            texts: BTreeMap::new(),
            ..made
        };
        let rendered = Delivery {
            rendered: Some(Arc::new(made)),
            ..rendered
        };
        let mine = mail(table(), &rendered);
        assert_eq!(
            (headers(&mine, "bcc").len(), headers(&mine, "x-mine").len()),
            (0, 1),
            "{mine}"
        );
    }
}

#[test]
fn a_transform_sets_no_header_that_says_how_a_mail_travels() {
    for name in ["Bcc", "from", "Content-Type", "message-id", "DKIM-Signature"] {
        let made = Rendered {
            headers: BTreeMap::from([(name.to_owned(), "x".to_owned())]),
            ..Rendered::default()
        };
        let rendered = Delivery {
            rendered: Some(Arc::new(made)),
            ..delivery(1, &lead("A"))
        };
        assert!(mail(table(), &rendered).contains("can't be set"), "{name}");
    }
}

#[test]
fn a_transform_sets_no_more_headers_than_can_be_sent() {
    for (count, is_fine) in [(256, true), (257, false), (30_000, false)] {
        let made = Rendered {
            headers: (0..count).map(|index| (format!("x-{index}"), "1".to_owned())).collect(),
            ..Rendered::default()
        };
        let rendered = Delivery {
            rendered: Some(Arc::new(made)),
            ..delivery(1, &lead("A"))
        };
        let made = mail(table(), &rendered);
        let says = format!("there are {count} headers from its transform: at most 256 are sent");
        assert_eq!(made.contains(&says), !is_fine, "{count}");
    }
}

#[test]
fn a_header_s_name_ends_no_line() {
    for name in [
        "x-a: b\r\nBcc: evil@example.com",
        "x-a\nBcc",
        "X-a\rBcc",
        "x-a b",
        "x-a:",
        "x-é",
        "x-\0",
        "x-\u{2028}",
        &format!("x-{}", "a".repeat(80)),
    ] {
        let made = Rendered {
            headers: BTreeMap::from([(name.to_owned(), "evil@example.com".to_owned())]),
            ..Rendered::default()
        };
        let rendered = Delivery {
            rendered: Some(Arc::new(made)),
            ..delivery(1, &lead("A"))
        };
        let refused = mail(table(), &rendered);
        assert!(refused.contains("can't be set"), "{name:?}: {refused}");
        assert_eq!(headers(&refused, "bcc"), [""; 0], "{refused}");
    }
}

#[test]
fn what_is_filled_in_is_one_recipient() {
    for (to, made, part) in [
        ("{{ x }}", "a@example.com", "To: a@example.com"),
        ("{{ x }}", "\"A, B\" <a@example.com>", "<a@example.com>"),
        ("{{ x }}", "a@example.com, evil@example.com", "to[0] is 2 addresses"),
        (
            "A {{ x }} <a@example.com>",
            "A <evil@example.com>, B <a@example.com>",
            "to[0] is 2 addresses",
        ),
        ("a@example.com, b@example.com", "", "To: a@example.com, b@example.com"),
    ] {
        let texts = BTreeMap::from([("to[0]".to_owned(), made.to_owned())]);
        let rendered = Delivery {
            rendered: Some(Arc::new(Rendered {
                texts: if made.is_empty() { BTreeMap::new() } else { texts },
                ..Rendered::default()
            })),
            ..delivery(1, &lead("A"))
        };
        let mail = mail(with("to", serde_json::json!([to])), &rendered);
        assert!(mail.contains(part), "{to} {made}: {mail}");
    }
}

/// A server without TLS that answers by what is said to it; `None`: nothing, for ever.
async fn says(answer: impl Fn(&str) -> Option<&'static str> + Send + Sync + 'static) -> u16 {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut said = String::from("connect");
                loop {
                    match answer(&said) {
                        None => std::future::pending::<()>().await,
                        Some("") => return,
                        Some(answer) => drop(write.write_all(answer.as_bytes()).await),
                    }
                    let is_mail = said.starts_with("DATA");
                    loop {
                        let Ok(Some(line)) = lines.next_line().await else {
                            return;
                        };
                        said = line;
                        if !is_mail || said == "." {
                            break;
                        }
                    }
                }
            });
        }
    });
    port
}

fn usual(said: &str) -> &'static str {
    match said.get(..4).unwrap_or_default() {
        "conn" => "220 mail\r\n",
        "DATA" => "354 go on\r\n",
        _ => "250 mail\r\n",
    }
}

async fn sent_to(port: u16, digest: bool) -> Result<Vec<Outcome>, Unavailable> {
    let mut table = with("server", format!("smtp://127.0.0.1:{port}"));
    table["insecure"] = true.into();
    if digest {
        table["digest"] = "1h".into();
    }
    let context = Context {
        timeout: Duration::from_millis(300),
        ..Context::default()
    };
    let sink = tests::sound(&definition::TYPE, table).open(context).await.unwrap().sink;
    tests::deliver(&*sink, &[delivery(1, &lead("A"))]).await
}

#[tokio::test]
async fn a_mail_that_the_server_may_have_waits_by_itself() {
    for (at, answer) in [
        ("RCPT", None),
        ("RCPT", Some("")),
        ("DATA", None),
        ("DATA", Some("")),
        (".", None),
        (".", Some("")),
        (".", Some("451 4.7.1 the filter is busy\r\n")),
    ] {
        let port = says(move |said| {
            if said.starts_with(at) {
                answer
            } else {
                Some(usual(said))
            }
        })
        .await;
        let outcome = sent_to(port, false).await;
        assert!(
            matches!(&outcome, Ok(outcomes) if matches!(outcomes[..], [Outcome::Retry { .. }])),
            "{at} {answer:?}: {outcome:?}"
        );
        // One by one they would be as many mails.
        assert!(sent_to(port, true).await.is_err(), "{at} {answer:?}");
    }
    for at in ["connect", "EHLO", "MAIL"] {
        for answer in [None, Some("")] {
            let port = says(move |said| {
                if said.starts_with(at) {
                    answer
                } else {
                    Some(usual(said))
                }
            })
            .await;
            assert!(sent_to(port, false).await.is_err(), "{at} {answer:?}");
        }
    }
    let port = says(|said| Some(usual(said))).await;
    assert_eq!(sent_to(port, false).await.unwrap(), [Outcome::Delivered]);
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_kept() {
    static ENDLESS: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| "250-and so on\r\n".repeat(20_000));
    for at in ["EHLO", "MAIL"] {
        let port = says(move |said| {
            Some(if said.starts_with(at) {
                ENDLESS.as_str()
            } else {
                usual(said)
            })
        })
        .await;
        let refused = sent_to(port, false).await.unwrap_err();
        assert!(refused.reason.contains("has no end"), "{at}: {refused}");
    }
}

#[test]
fn a_rules_words_win_over_the_sinks() {
    let mut table = with("text", "the sink's");
    table["html"] = "<p>the sink's</p>".into();
    let both = mail(table.clone(), &delivery(1, &lead("A")));
    assert!(both.contains("multipart/alternative") && both.contains("the sink's") && both.contains("text/html"));
    let made = Rendered {
        payload: Some(Payload::Text("the rule's".into())),
        ..Rendered::default()
    };
    let rendered = Delivery {
        rendered: Some(Arc::new(made)),
        ..delivery(1, &lead("A"))
    };
    let rules = mail(table, &rendered);
    assert!(rules.contains("the rule's") && !rules.contains("the sink's"), "{rules}");
}

#[test]
fn a_digest_lists_so_many_and_counts_the_rest() {
    let words = |name: &str| {
        let options = tests::sound(&definition::TYPE, with("digest", "1h"));
        drop(options);
        Words {
            from: "a@example.com".parse().unwrap(),
            to: vec![Template::parse("b@example.com", Escape::None).unwrap()],
            subject: Some(Template::parse(name, Escape::None).unwrap()),
            text: None,
            html: None,
        }
    };
    let deliveries: Vec<Delivery> = (1..=150)
        .map(|seq| delivery(seq, &lead(&format!("Lead{seq}"))))
        .collect();
    let formatted = |mail: Message| String::from_utf8(mail.formatted()).unwrap();
    let mail = formatted(words("").digest("s", &deliveries, &BTreeMap::new()).unwrap());
    assert_eq!(headers(&mail, "subject"), ["150 events in Close"]);
    assert_eq!(headers(&mail, "closehook-seq"), ["1-150"]);
    assert!(
        mail.contains("New lead: Lead100\r\n") && !mail.contains("Lead101") && mail.contains("and 50 more"),
        "{mail}"
    );
    let mail = formatted(words("Today").digest("s", &deliveries[..1], &BTreeMap::new()).unwrap());
    assert_eq!(headers(&mail, "subject"), ["Today"]);
    assert!(headers(&mail, "message-id")[0].starts_with("<b_"), "{mail}");
    let scope: serde_json::Value = serde_json::from_str(&compose::digest_scope(&deliveries)).unwrap();
    assert_eq!((&scope["count"], &scope["more"]), (&150.into(), &50.into()));
    assert_eq!(scope["events"][99]["data"]["display_name"], "Lead100");
    let large = format!(r#"{{"event":{{"id":"ev_1","x":"{}"}}}}"#, "x".repeat(1 << 20));
    let large: Vec<Delivery> = (1..=3).map(|seq| delivery(seq, &large)).collect();
    let scope: serde_json::Value = serde_json::from_str(&compose::digest_scope(&large)).unwrap();
    assert_eq!(
        (scope["events"].as_array().unwrap().len(), &scope["more"]),
        (1, &2.into())
    );
}

fn faults(table: serde_json::Value) -> Vec<String> {
    tests::faults(&definition::TYPE, table)
}

#[test]
fn what_can_not_work_is_a_fault() {
    assert_eq!(faults(table()), [""; 0]);
    for (key, value, part) in [
        (
            "server",
            serde_json::json!("mail.example.com:587"),
            "server: must be a URL",
        ),
        ("server", "http://mail.example.com".into(), "server: must be a URL"),
        (
            "server",
            "smtp://u:hunter22@mail.example.com".into(),
            "server: holds a user",
        ),
        ("server", "smtp://mail.example.com/x".into(), "server: must be a URL"),
        ("to", serde_json::json!([]), "to: can't be empty"),
        ("to", serde_json::json!(["nobody"]), "to[0]: must be an address"),
        ("to", serde_json::json!(["a@b.c", "{{"]), "to[1]: not a template"),
        (
            "to",
            serde_json::json!(["a@b.c\r\nBcc: x@y.z"]),
            "to[0]: must be an address",
        ),
        ("from", "a@b.c, d@e.f".into(), "from: must be one address"),
        ("username", "me".into(), "password: is missing"),
        ("password", "hunter22".into(), "username: is missing"),
        ("digest", "1s".into(), "digest: must be between"),
        ("cert", "/x".into(), "key: is missing"),
    ] {
        let found = faults(with(key, value));
        assert!(found.iter().any(|fault| fault.contains(part)), "{key}: {found:?}");
        assert!(!found.iter().any(|fault| fault.contains("hunter22")), "{found:?}");
    }
    let mut smtps = with("server", "smtps://mail.example.com");
    smtps["insecure"] = true.into();
    assert!(faults(smtps)[0].contains("insecure is for smtp://"));
    let mut to = with("digest", "1h");
    to["to"] = serde_json::json!(["{{ x }}"]);
    assert!(faults(to)[0].contains("beside digest"));
    let mut words = with("digest", "1h");
    for key in ["subject", "text", "html"] {
        words[key] = "{{ events | length }}".into();
    }
    assert_eq!(faults(words), [""; 0]);
}

#[test]
fn a_server_has_a_port_and_tls_by_its_scheme() {
    let server =
        |text: &str, insecure| Server::parse(text, insecure).map(|server| (server.host, server.port, server.tls));
    let host = || "a.example".to_owned();
    assert_eq!(server("smtp://a.example", false), Ok((host(), 587, Tls::Demanded)));
    assert_eq!(server("smtp://a.example:25/", true), Ok((host(), 25, Tls::IfOffered)));
    assert_eq!(server("smtps://a.example", false), Ok((host(), 465, Tls::AtOnce)));
    assert_eq!(
        server("smtp://[::1]:2525", false),
        Ok(("::1".to_owned(), 2525, Tls::Demanded))
    );
}

#[test]
fn an_answer_is_about_the_mail_or_about_the_sink() {
    #[derive(Debug, PartialEq)]
    enum Means {
        Waits,
        Dead,
        Sink,
    }
    let means_to = |step, text: &str, to_varies| {
        let (code, rest) = text.split_once(' ').unwrap();
        let said = Said::new(code.parse().unwrap(), rest.to_owned());
        match answer::outcome(step, &said, to_varies, &Secrets::default()) {
            Ok(Outcome::Retry { .. }) => Means::Waits,
            Ok(Outcome::Reject { .. }) => Means::Dead,
            Ok(_) => panic!("{text}"),
            Err(_) => Means::Sink,
        }
    };
    let means = |step, text: &str| means_to(step, text, false);
    // What the recipient is called says nothing of the sink, nor what is said of a recipient whom the event has chosen.
    for (text, to_varies, meaning) in [
        ("550 5.1.1 <relay@example.com>: User unknown", false, Means::Dead),
        ("550 5.1.1 relay@example.com no such user", false, Means::Dead),
        ("554 5.7.1 <a@example.com>: Relay access denied", false, Means::Sink),
        ("550 we do not relay a@example.com", false, Means::Sink),
        ("554 5.7.1 <a@example.com>: Relay access denied", true, Means::Dead),
        ("530 5.7.0 Authentication required", true, Means::Sink),
        // A full disk, a full mailbox, or too many of them.
        ("452 Requested action not taken", false, Means::Sink),
        ("452 Requested action not taken", true, Means::Waits),
    ] {
        assert_eq!(means_to(Step::Recipient, text, to_varies), meaning, "{text}");
    }
    for (step, answer, meaning) in [
        (Step::LogIn, "535 5.7.8 Authentication credentials invalid", Means::Sink),
        (Step::LogIn, "454 4.7.0 Temporary authentication failure", Means::Sink),
        (Step::LogIn, "504 5.5.4 Unrecognized authentication type", Means::Sink),
        (Step::Sender, "530 5.7.0 Authentication required", Means::Sink),
        (
            Step::Sender,
            "553 5.7.1 Sender address rejected: not owned by user",
            Means::Sink,
        ),
        (Step::Sender, "452 4.3.1 Insufficient system storage", Means::Sink),
        (Step::Sender, "552 5.3.4 Message size exceeds fixed limit", Means::Dead),
        (Step::Recipient, "550 5.1.1 User unknown", Means::Dead),
        (Step::Recipient, "501 5.1.3 Bad recipient address syntax", Means::Dead),
        (Step::Recipient, "554 5.7.1 Relay access denied", Means::Sink),
        (Step::Recipient, "550 5.7.1 Unable to relay", Means::Sink),
        (Step::Recipient, "450 4.2.0 Greylisted", Means::Waits),
        (Step::Recipient, "451 4.7.1 Try again later", Means::Waits),
        (Step::Recipient, "452 4.2.2 Mailbox full", Means::Waits),
        (Step::Recipient, "452 4.3.1 Out of disk", Means::Sink),
        (Step::Recipient, "421 4.3.2 Shutting down", Means::Sink),
        (Step::Data, "451 4.3.0 Error", Means::Sink),
        (Step::Data, "450 busy", Means::Sink),
        (Step::Mail, "451 4.7.1 Service unavailable", Means::Waits),
        (Step::Mail, "451 4.3.0 queue file write error", Means::Sink),
        (Step::Mail, "452 4.3.1 Insufficient system storage", Means::Sink),
        (Step::Mail, "421 4.7.0 Too many mails", Means::Sink),
        (Step::Mail, "554 5.7.1 Spam", Means::Dead),
        (Step::Mail, "552 5.3.4 Too big", Means::Dead),
        (Step::Mail, "550 5.4.5 Daily user sending limit exceeded", Means::Sink),
        (Step::Mail, "455 odd", Means::Waits),
    ] {
        assert_eq!(means(step, answer), meaning, "{step:?} {answer}");
    }
    let mut secrets = Secrets::default();
    secrets.add("hunter22");
    let said = Said::new(535, "5.7.8 no \u{1b}[2J hunter22\nis wrong".into());
    let refused = answer::outcome(Step::LogIn, &said, false, &secrets).unwrap_err();
    assert_eq!(
        refused.reason,
        "the server refused the login, it said \"535 5.7.8 no \\u001b[2J (secret) is wrong\": see username and password"
    );
}
