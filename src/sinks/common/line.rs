//! The JSON line that `stdout` and `file` write for an event.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::fmt::temporal::DateTimePrinter;

use crate::event::{Delivery, Kind};
use crate::json;

/// Microseconds, whatever they are: lines are easier to compare by eye.
static RECEIVED_AT: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// What a line adds to the event, usually: to make room for it at once.
pub(in crate::sinks) const ENVELOPE_LEN: usize = 192;

/// Appends `{"seq","received_at","source","rules","subscription_id","event"}` and a line end. `event` is the event object
/// with the white space between its tokens dropped; every token stays as Close wrote it. An event whose data Close withholds
/// also has `"partial":true` in front of `event`.
pub(in crate::sinks) fn append(line: &mut String, delivery: &Delivery) {
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
    line.push_str(r#","event":"#);
    json::push_compact(line, event.object().raw());
    line.push_str("}\n");
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
