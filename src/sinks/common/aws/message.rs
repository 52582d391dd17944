//! An event as a message: its body, what stands beside it, and which others it has to stay in order with.

#![cfg_attr(
    not(all(
        feature = "sink-eventbridge",
        feature = "sink-kinesis",
        feature = "sink-sns",
        feature = "sink-sqs"
    )),
    allow(
        dead_code,
        reason = "each of the services needs some of it, and a build may have one of them"
    )
)]

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::super::message as common;
use crate::event::Delivery;
use crate::json;
use crate::render::Template;
use crate::sinks::{Commit, Drive, Limits, Outcome};

/// Attributes of a message of SQS. Of SNS, those that get through to a queue as they are.
pub(in crate::sinks) const ATTRIBUTES_MAX: usize = 10;

/// Characters of an attribute's name.
const NAME_LEN_MAX: usize = 256;

/// Ids and groups of FIFO queues have so many characters at the most.
const ID_LEN_MAX: usize = 128;

/// `closehook-seq`, `-type`, `-event-id`, `-key`, `-lead-id`, `-received-at`, `-source`, and why another sink gave it up, as far as the
/// event has them; and behind them what a transform says, which wins. An error: SQS and SNS would refuse a whole request for one of them.
///
/// Where they would be more than a message of SQS can have, what is said of another sink is the reason alone, or nothing: a transform
/// may fill all the places that there are, and its event has to get there.
pub(in crate::sinks) fn attributes(delivery: &Delivery) -> Result<Vec<(String, String)>, Outcome> {
    let headers = delivery.rendered.as_ref().map(|rendered| &rendered.headers);
    let is_made = |own: &str| headers.is_some_and(|headers| headers.keys().any(|name| name.eq_ignore_ascii_case(own)));
    let own = common::attributes(delivery).into_iter();
    let own = own.filter(|(name, _)| !is_made(name));
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let made = headers.into_iter().flatten();
    let made = made.map(|(name, value)| (name.clone(), value.clone()));
    let all = own.chain(made).map(|(name, value)| (name, legal(&value)));
    // None may be empty.
    let mut all: Vec<(String, String)> = all.filter(|(_, value)| !value.is_empty()).collect();
    let is_dead = |name: &str| name.starts_with("closehook-dead-") && !is_made(name);
    for kept in [common::DEAD_REASON, ""] {
        if all.len() > ATTRIBUTES_MAX {
            all.retain(|(name, _)| name == kept || !is_dead(name));
        }
    }
    named(&all)?;
    Ok(all)
}

/// Whether all of them may be called so, and can be sent: a name comes from a transform.
fn named(attributes: &[(String, String)]) -> Result<(), String> {
    let is_name = |name: &str| {
        let lower = name.to_ascii_lowercase();
        (1..=NAME_LEN_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            && !name.starts_with('.')
            && !name.ends_with('.')
            && !name.contains("..")
            && !lower.starts_with("aws.")
            && !lower.starts_with("amazon.")
    };
    let Some((name, _)) = attributes.iter().find(|(name, _)| !is_name(name)) else {
        let len = attributes.iter().map(|(name, value)| name.len() + value.len());
        return common::fits("attributes", attributes.len(), len.sum());
    };
    let shown: String = crate::plain::line(name).chars().take(NAME_LEN_MAX).collect();
    Err(format!(
        "no attribute may be called {shown}: of a transform's headers letters, digits, _, - and . are taken"
    ))
}

/// How a queue or topic is delivered to: to a FIFO one, two requests at a time would mix the order.
pub(in crate::sinks) fn drive(batch: Limits, is_fifo: bool) -> Drive {
    Drive {
        batch,
        concurrency: if is_fifo { 1 } else { 8 },
        commit: Commit::Acknowledge,
    }
}

/// The field by which a FIFO queue or topic knows what it has already, and what an event has there; others have none.
pub(in crate::sinks) fn deduplication(delivery: &Delivery, is_fifo: bool) -> Option<(String, String)> {
    is_fifo.then(|| {
        let id = id(&common::key(&delivery.event));
        ("MessageDeduplicationId".to_owned(), id)
    })
}

/// The id of what keeps order with an event, by the key `group` or else its lead.
pub(in crate::sinks) fn group_id(delivery: &Delivery, template: Option<&Template>) -> String {
    id(&group(delivery, "group", template))
}

/// The body: what was made of the event, else what Close sent, byte for byte but for what no message may have ([`legal`]).
pub(in crate::sinks) fn body(delivery: &Delivery) -> String {
    let bytes = delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes());
    legal(&String::from_utf8_lossy(bytes))
}

/// Messages are XML text: of other characters a JSON text can only have U+FFFE and U+FFFF, in its strings. They, and in texts that are
/// no JSON also control characters, become U+FFFD.
fn legal(text: &str) -> String {
    let is_illegal = |c: char| matches!(c, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
    text.chars()
        .map(|c| if is_illegal(c) { '\u{fffd}' } else { c })
        .collect()
}

/// `{"meta": {...}, "event": {...}}`, the event with every token as Close wrote it. Of what another sink gave up `meta` has `dead`.
pub(in crate::sinks) fn enveloped(delivery: &Delivery) -> String {
    let event = &delivery.event;
    let mut text = String::with_capacity(event.body.len() + 320);
    // Writing to a String can't fail.
    let _ = write!(
        text,
        r#"{{"meta":{{"seq":{},"received_at":"{}","source":"{}","rules":["#,
        event.seq,
        common::received_at(event),
        event.source
    );
    for (index, rule) in delivery.rules.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        json::push_string(&mut text, rule);
    }
    text.push_str(r#"],"subscription_id":"#);
    match event.view().and_then(|view| view.subscription_id.as_deref()) {
        Some(subscription) => json::push_string(&mut text, subscription),
        None => text.push_str("null"),
    }
    text.push_str(r#","key":"#);
    json::push_string(&mut text, &common::key(event));
    if let Some(dead) = delivery.dead() {
        text.push_str(r#","dead":"#);
        text.push_str(&dead.json());
    }
    text.push_str(r#"},"event":"#);
    json::push_compact(&mut text, event.object().raw());
    text.push('}');
    text
}

/// Which others it stays in order with: what a transform says, or the sink's key `name`, else its lead, else its object, else nothing
/// but itself.
pub(in crate::sinks) fn group(delivery: &Delivery, name: &str, template: Option<&Template>) -> String {
    let made = delivery.rendered.as_ref().and_then(|rendered| rendered.key.clone());
    let own = || template.map(|template| delivery.text(name, template).to_owned());
    let view = delivery.event.view();
    let lead = || view.and_then(|view| view.lead_id.clone().or_else(|| view.object_id.clone()));
    let found = made.or_else(own).filter(|text| !text.trim().is_empty()).or_else(lead);
    found.unwrap_or_else(|| common::key(&delivery.event))
}

/// Whether a queue or topic of this name keeps order.
pub(in crate::sinks) fn is_fifo(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, kind)| kind == "fifo")
}

/// A text as an id of a FIFO queue: a digest where it is too long, or has characters that an id can't have.
pub(in crate::sinks) fn id(text: &str) -> String {
    if !text.is_empty() && text.len() <= ID_LEN_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return text.to_owned();
    }
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::line::tests::delivery;
    use super::*;
    use crate::event::{Dead, Origin};
    use crate::render::{Escape, Rendered};

    const BODY: &str = r#"{"event": {"id":"ev_1", "date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"updated","lead_id":"lead_1","n": 1.50}, "subscription_id":"whsub_1"}"#;

    #[test]
    fn a_message_says_which_event_it_is() {
        let delivery = delivery(7, BODY);
        let attributes = attributes(&delivery).unwrap();
        let of = |name: &str| {
            attributes
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, value)| &**value)
        };
        assert_eq!(attributes.len(), 7);
        assert_eq!(of("closehook-key"), Some("ev_1:2024-02-15T12:48:23.395000"));
        assert_eq!(of("closehook-type"), Some("lead.updated"));
        assert_eq!(of("closehook-received-at"), Some("2023-11-14T22:13:20.000007Z"));
        assert_eq!(body(&delivery), BODY);
        assert_eq!(
            enveloped(&delivery),
            r#"{"meta":{"seq":7,"received_at":"2023-11-14T22:13:20.000007Z","source":"webhook","rules":["r\"1"],"subscription_id":"whsub_1","key":"ev_1:2024-02-15T12:48:23.395000"},"event":{"id":"ev_1","date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"updated","lead_id":"lead_1","n":1.50}}"#
        );
    }

    #[test]
    fn its_group_is_what_is_said_else_its_lead_else_itself() {
        let mut delivery = delivery(7, BODY);
        let constant = Template::parse("all", Escape::None).unwrap();
        assert_eq!(group(&delivery, "group", None), "lead_1");
        assert_eq!(group(&delivery, "group", Some(&constant)), "all");
        delivery.rendered = Some(Arc::new(Rendered {
            key: Some("made".into()),
            ..Rendered::default()
        }));
        assert_eq!(group(&delivery, "group", Some(&constant)), "made");
        let without = super::super::super::line::tests::delivery(8, r#"{"event":{"id":"ev_2"}}"#);
        assert_eq!(group(&without, "group", None), "ev_2:");
    }

    #[test]
    fn an_id_is_the_text_itself_where_it_can_be() {
        assert_eq!(id("ev_1:2024-02-15T12:48:23.395000"), "ev_1:2024-02-15T12:48:23.395000");
        for text in ["", "a b", "é", &"x".repeat(129)] {
            assert_eq!(id(text).len(), 64, "{text}");
            assert_ne!(id(text), id(&format!("{text}.")));
        }
    }

    #[test]
    fn what_a_transform_calls_an_attribute_is_one_s_name() {
        let named = |name: &str| {
            named(&[
                ("closehook-seq".to_owned(), "1".to_owned()),
                (name.to_owned(), "x".to_owned()),
            ])
        };
        for name in ["X-Mine", "a", "a.b_c-1"] {
            assert_eq!(named(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "a b",
            "a\r\nb",
            "é",
            ".a",
            "a.",
            "a..b",
            "AWS.x",
            "amazon.x",
            "a&b=c",
            &"x".repeat(257),
        ] {
            assert!(named(name).is_err(), "{name}");
        }
        let many: Vec<_> = (0..257).map(|index| (format!("a{index}"), "x".to_owned())).collect();
        assert_eq!(super::named(&many[1..]), Ok(()));
        let why = super::named(&many).unwrap_err();
        assert_eq!(why, "there are 257 attributes: at most 256 are sent");
        let long = [("a".to_owned(), "x".repeat(70_000))];
        assert!(super::named(&long).unwrap_err().contains("70001 bytes"));
    }

    #[test]
    fn what_another_sink_said_takes_no_more_places_than_a_transform_leaves() {
        let names = |count: usize| {
            let made = (0..count).map(|index| (format!("x-{index}"), "1".to_owned()));
            let dead = Dead {
                sink: "crm".into(),
                reason: "no such field".into(),
                attempts: 3,
            };
            let delivery = Delivery {
                origin: Origin::Diverted(Arc::new(dead)),
                rendered: Some(Arc::new(Rendered {
                    headers: made.collect(),
                    ..Rendered::default()
                })),
                ..delivery(7, BODY)
            };
            let all = attributes(&delivery).unwrap();
            let dead = all.iter().filter(|(name, _)| name.starts_with("closehook-dead-"));
            let dead: Vec<String> = dead
                .map(|(name, _)| name["closehook-dead-".len()..].to_owned())
                .collect();
            (all.len(), dead.join(" "))
        };
        assert_eq!(names(0), (10, "reason sink attempts".to_owned()));
        assert_eq!(names(1), (9, "reason".to_owned()));
        assert_eq!(names(2), (10, "reason".to_owned()));
        assert_eq!(names(3), (10, String::new()));
    }

    #[test]
    fn what_no_message_may_have_is_replaced() {
        assert_eq!(
            legal("a\tb\r\n\u{1}\u{ffff}\u{1f600}"),
            "a\tb\r\n\u{fffd}\u{fffd}\u{1f600}"
        );
    }
}
