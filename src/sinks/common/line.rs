//! The line that `stdout` and `file` write for an event: a JSON object around it, or what a template or transform made of it.
//!
//! However long what was made is, it is one line, or nobody could tell where the next one begins. JSON of several lines is written on
//! one. In other text the line ends behind it are left out, and any within are written as `\n` and `\r`, as JSON writes them.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::fmt::temporal::DateTimePrinter;

use crate::event::{Delivery, Kind};
use crate::json;
use crate::render::Payload;

/// Microseconds, whatever they are: lines are easier to compare by eye.
static RECEIVED_AT: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// What a line adds to the event, usually: to make room for it at once.
pub(in crate::sinks) const ENVELOPE_LEN: usize = 192;

/// Appends `{"seq","received_at","source","rules","subscription_id","event"}` and a line end. `event` is the event object
/// with the white space between its tokens dropped; every token stays as Close wrote it. An event whose data Close withholds
/// also has `"partial":true` in front of `event`, and one that another sink gave up `"dead":{"sink","reason","attempts"}`. Where a
/// template or transform made something of the event, that is the line.
pub(in crate::sinks) fn append(line: &mut String, delivery: &Delivery) {
    if let Some(payload) = delivery.payload() {
        append_made(line, payload);
        return;
    }
    let event = &delivery.event;
    // Writing to a String can't fail.
    let _ = write!(line, r#"{{"seq":{},"received_at":""#, event.seq);
    let _ = RECEIVED_AT.print_timestamp(&event.received_at, &mut *line);
    let _ = write!(line, r#"","source":"{}","rules":["#, event.source);
    for (index, rule) in delivery.rules.iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        json::push_string(line, rule);
    }
    line.push_str(r#"],"subscription_id":"#);
    match event.view().and_then(|view| view.subscription_id.as_deref()) {
        Some(subscription) => json::push_string(line, subscription),
        None => line.push_str("null"),
    }
    if event.kind == Kind::Partial {
        line.push_str(r#","partial":true"#);
    }
    if let Some(dead) = delivery.dead() {
        line.push_str(r#","dead":"#);
        line.push_str(&dead.json());
    }
    line.push_str(r#","event":"#);
    json::push_compact(line, event.object().raw());
    line.push_str("}\n");
}

fn append_made(line: &mut String, payload: &Payload) {
    let text = String::from_utf8_lossy(payload.bytes());
    let text = text.trim_end_matches(['\n', '\r']);
    if !text.contains(['\n', '\r']) {
        line.push_str(text);
    } else if json::validate(text.as_bytes()).is_ok() {
        // No token of JSON goes over a line end.
        json::push_compact(line, text);
    } else {
        line.push_str(&text.replace('\n', "\\n").replace('\r', "\\r"));
    }
    line.push('\n');
}

/// The line without its end, for [`crate::sinks::SinkKind::payload`].
pub(in crate::sinks) fn payload(delivery: &Delivery) -> Bytes {
    let mut line = String::new();
    append(&mut line, delivery);
    line.pop();
    line.into()
}

#[cfg(test)]
pub(in crate::sinks) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::{Event, Seq, Source};

    pub(crate) fn delivery(seq: u64, body: &str) -> Delivery {
        let received_at = jiff::Timestamp::from_microsecond(1_700_000_000_000_000 + seq as i64).unwrap();
        let event = Event::new(
            Seq(seq),
            received_at,
            Source::Webhook,
            Kind::Event,
            None,
            body.to_owned().into(),
        );
        Delivery {
            origin: crate::event::Origin::Live,
            event: Arc::new(event),
            rules: Arc::from([Arc::from("r\"1")]),
            attempt: 1,
            rendered: None,
        }
    }

    #[test]
    fn what_was_made_of_an_event_is_one_line() {
        for (made, expected) in [
            ("won: A\n", "won: A\n"),
            ("a\r\nb\nc\n\n", "a\\r\\nb\\nc\n"),
            (
                "{\n  \"a\": 1.50,\n  \"b\": \"x\\ny\"\n}\n",
                "{\"a\":1.50,\"b\":\"x\\ny\"}\n",
            ),
            ("", "\n"),
        ] {
            let mut delivery = delivery(1, "{}");
            delivery.rendered = Some(Arc::new(crate::render::Rendered {
                payload: Some(Payload::Text(made.into())),
                ..crate::render::Rendered::default()
            }));
            let mut line = String::new();
            append(&mut line, &delivery);
            assert_eq!(line, expected);
            assert_eq!(payload(&delivery), expected[..expected.len() - 1]);
        }
    }

    #[test]
    fn every_token_stays_as_it_was_written() {
        let body = "{\"event\": {\"id\" : \"ev_1\",\n \"n\": [1.50, 1e2, 12345678901234567890], \"s\": \"\\u00e9 \\/ \"},\n \"subscription_id\":\"whsub_1\"}";
        let mut line = String::new();
        append(&mut line, &delivery(7, body));
        assert_eq!(
            line,
            "{\"seq\":7,\"received_at\":\"2023-11-14T22:13:20.000007Z\",\"source\":\"webhook\",\"rules\":[\"r\\\"1\"],\"subscription_id\":\"whsub_1\",\"event\":{\"id\":\"ev_1\",\"n\":[1.50,1e2,12345678901234567890],\"s\":\"\\u00e9 \\/ \"}}\n"
        );
    }
}
