//! What the slack sink promises of itself; with a Slack to talk to it is tried in `tests/it/sinks_slack.rs`.

use std::collections::BTreeMap;

use super::super::common::line::tests::delivery;
use super::*;
use crate::render::Rendered;
use crate::sinks::tests;

const LEAD: &str = r#"{"event":{"id":"ev_1","date_updated":"2024","object_type":"lead","action":"created","lead_id":"lead_1","data":{"display_name":"A<!channel>&\"b"}}}"#;

fn faults(table: serde_json::Value) -> Vec<String> {
    tests::faults(&definition::TYPE, table)
}

fn payload(table: serde_json::Value, delivery: &Delivery) -> Value {
    let options = tests::sound(&definition::TYPE, table);
    serde_json::from_slice(&options.payload(delivery)).unwrap()
}

fn webhook() -> serde_json::Value {
    json!({ "webhook_url": "https://hooks.slack.com/services/T0/B0/x" })
}

fn rendered(made: Rendered) -> Delivery {
    Delivery {
        rendered: Some(Arc::new(made)),
        ..delivery(1, LEAD)
    }
}

#[test]
fn what_comes_from_the_event_pings_nobody_and_makes_no_link() {
    let message = payload(webhook(), &delivery(1, LEAD));
    assert_eq!(
        message["text"],
        "New lead: A&lt;!channel&gt;&amp;\"b (<https://app.close.com/lead/lead_1/|open in Close>)"
    );
    assert_eq!(
        (&message["unfurl_links"], &message["unfurl_media"]),
        (&json!(false), &json!(false))
    );
}

#[test]
fn a_rules_words_win_over_the_sinks_and_a_transform_may_give_a_message() {
    let mut table = webhook();
    table["text"] = "Hello".into();
    table["blocks"] = r#"{"blocks":[{"type":"divider"}]}"#.into();
    let message = payload(table.clone(), &delivery(1, LEAD));
    assert_eq!(
        (&message["text"], &message["blocks"]),
        (&json!("Hello"), &json!([{ "type": "divider" }]))
    );
    let texts = BTreeMap::from([
        ("text".to_owned(), "T".to_owned()),
        ("blocks".to_owned(), "[{\"a\":1}]".to_owned()),
    ]);
    let message = payload(
        table.clone(),
        &rendered(Rendered {
            texts,
            ..Rendered::default()
        }),
    );
    assert_eq!(
        (&message["text"], &message["blocks"]),
        (&json!("T"), &json!([{ "a": 1 }]))
    );
    let with = |payload: Payload| {
        rendered(Rendered {
            payload: Some(payload),
            ..Rendered::default()
        })
    };
    let message = payload(table.clone(), &with(Payload::Text("mine".into())));
    assert_eq!((&message["text"], message.get("blocks")), (&json!("mine"), None));
    let given = br#"{"text":"a","blocks":[1],"channel":"C_OTHER"}"#.as_slice();
    let message = payload(table.clone(), &with(Payload::Json(given.into())));
    assert_eq!(
        message,
        json!({ "text": "a", "blocks": [1], "unfurl_links": false, "unfurl_media": false })
    );
    let message = payload(table.clone(), &with(Payload::Json(br#"{"x":1}"#.as_slice().into())));
    assert_eq!(message["text"], r#"{"x":1}"#);
    // What is no message of Slack's is shown as it is, and pings nobody.
    let given = br#"{"name":"<!channel> & <https://x|y>"}"#.as_slice();
    let message = payload(table.clone(), &with(Payload::Json(given.into())));
    assert_eq!(
        message["text"],
        r#"{"name":"&lt;!channel&gt; &amp; &lt;https://x|y&gt;"}"#
    );
    let texts = BTreeMap::from([("blocks".to_owned(), "[{\"a\": \"x\"y\"}]".to_owned())]);
    let made = rendered(Rendered {
        texts,
        ..Rendered::default()
    });
    let refused = tests::sound(&definition::TYPE, table).preview("", &made).unwrap_err();
    assert!(
        matches!(&refused, Outcome::Reject { reason } if reason.text.starts_with("blocks is not JSON for this event, line 1 column")),
        "{refused:?}"
    );
}

#[test]
fn keys_that_do_not_go_together_are_faults() {
    let token = || json!({ "token": "xoxb-1-abc", "channel": "#sales" });
    assert_eq!(faults(webhook()), [""; 0]);
    assert_eq!(faults(token()), [""; 0]);
    for (table, part) in [
        (json!({}), "sinks[0].webhook_url: is missing"),
        (json!({ "token": "xoxb-1" }), "sinks[0].channel: is missing"),
        (
            json!({ "webhook_url": "https://a.example/x", "cert": "/c.pem" }),
            "sinks[0].key: is missing: a client's certificate",
        ),
        (
            json!({ "webhook_url": "https://a.example/x", "cert": "/nowhere/c.pem", "key": "/nowhere/c.key" }),
            "/nowhere/c.",
        ),
        (
            json!({ "token": "xoxb-1", "channel": " " }),
            "sinks[0].channel: can't be empty",
        ),
        (
            json!({ "webhook_url": "https://a.example/x", "token": "xoxb-1", "channel": "c" }),
            "sinks[0].token: is given beside",
        ),
        (
            json!({ "webhook_url": "https://a.example/x", "channel": "c" }),
            "sinks[0].channel: goes with token",
        ),
        (
            json!({ "webhook_url": "hooks.slack.com/T0KEN" }),
            "webhook_url must be a URL",
        ),
        (json!({ "webhook_url": "http://10.0.0.1/x" }), "private address"),
        (
            json!({ "token": "x", "channel": "c", "api_url": "http://10.0.0.1/api" }),
            "private address",
        ),
        (
            json!({ "token": "x", "channel": "c", "api_url": "slack" }),
            "sinks[0].api_url: must be a URL",
        ),
        (
            json!({ "webhook_url": "https://a.example/x", "text": "{{" }),
            "sinks[0].text: not a template",
        ),
    ] {
        let found = faults(table.clone());
        assert!(found.iter().any(|fault| fault.contains(part)), "{table}: {found:?}");
        assert!(!found.iter().any(|fault| fault.contains("T0KEN")), "{found:?}");
    }
}

/// What Slack's answer comes to.
fn says(status: u16, body: &str, sent: Sent) -> Result<Outcome, Unavailable> {
    let headers = [(reqwest::header::RETRY_AFTER, HeaderValue::from_static("7"))];
    let reply = Reply {
        status: reqwest::StatusCode::from_u16(status).unwrap(),
        headers: headers.into_iter().collect(),
        body: body.as_bytes().to_vec(),
        end: crate::net::reply::End::Whole,
    };
    answer::outcome(&reply, sent, &Secrets::default())
}

/// Of a method of Slack's API, to a channel that is always the same.
const METHOD: Sent = Sent {
    by_method: true,
    channel_varies: false,
};

#[test]
fn answers_are_about_the_message_the_channel_or_the_sender() {
    let webhook = Sent {
        by_method: false,
        channel_varies: false,
    };
    let method = METHOD;
    let varies = Sent {
        by_method: true,
        channel_varies: true,
    };
    assert_eq!(says(200, "ok", webhook), Ok(Outcome::Delivered));
    for sent in [webhook, method] {
        let page = says(200, "\n<!DOCTYPE html><title>Sign in</title>", sent).unwrap_err();
        assert!(page.reason.contains("a web page answered, not Slack"), "{page}");
    }
    assert_eq!(says(200, r#"{"ok":true,"ts":"1"}"#, method), Ok(Outcome::Delivered));
    for (status, word) in [
        (400, "no_text"),
        (400, "invalid_payload"),
        (400, "invalid_blocks"),
        (400, "too_many_attachments"),
        (400, "what is new"),
    ] {
        assert!(
            matches!(says(status, word, webhook), Ok(Outcome::Reject { .. })),
            "{word}"
        );
    }
    for (status, word) in [
        (403, "action_prohibited"),
        (403, "invalid_token"),
        (404, "no_service"),
        (404, "no_team"),
        (404, "channel_not_found"),
        (410, "channel_is_archived"),
        (403, "new"),
        (404, "<html>"),
        (400, "no_service_id"),
        (302, ""),
    ] {
        let refused = says(status, word, webhook).unwrap_err();
        assert!(refused.reason.contains(':'), "{refused} says what to do");
    }
    assert_eq!(
        says(429, "rate_limited", webhook).unwrap_err().after,
        Some(Duration::from_secs(7))
    );
    assert!(matches!(says(500, "rollup_error", webhook), Ok(Outcome::Retry { .. })));
    let error = |word: &str| format!(r#"{{"ok":false,"error":"{word}"}}"#);
    for word in [
        "invalid_auth",
        "token_revoked",
        "account_inactive",
        "missing_scope",
        "ratelimited",
        "internal_error",
        "not_in_channel",
        "channel_not_found",
        "is_archived",
    ] {
        assert!(says(200, &error(word), method).is_err(), "{word}");
    }
    for word in [
        "not_in_channel",
        "channel_not_found",
        "is_archived",
        "msg_too_long",
        "no_text",
    ] {
        assert!(
            matches!(says(200, &error(word), varies), Ok(Outcome::Reject { .. })),
            "{word}"
        );
    }
}

#[test]
fn what_slack_does_not_document_is_tried_again_and_its_word_is_told() {
    let error = |word: &str| format!(r#"{{"ok":false,"error":"{word}"}}"#);
    let new = says(200, &error("brand_new_error"), METHOD);
    assert!(
        matches!(&new, Ok(Outcome::Retry { reason, .. }) if reason.text.contains("brand_new_error")),
        "{new:?}"
    );
    for body in [
        error("No word, but a sentence"),
        "not json".into(),
        "{}".into(),
        r#"{"ok":1}"#.into(),
    ] {
        assert!(matches!(says(200, &body, METHOD), Ok(Outcome::Retry { .. })), "{body}");
    }
}
