//! What the sinks that write tables share: a row for an event, and the names of tables.

use std::borrow::Cow;

use jiff::Timestamp;

use super::field::{Field, text};
use super::jsonb::fit_for_jsonb;
use crate::event::{Delivery, Origin};
use crate::json;

/// Where events go when `table` is not set.
pub(in crate::sinks) const EVENTS_TABLE: &str = "closehook_events";

/// The table beside it that holds the marks: how far each sink of each log is.
pub(in crate::sinks) const MARK_TABLE: &str = "closehook_mark";

/// PostgreSQL cuts longer names off, and two of them would be one.
pub(in crate::sinks) const NAME_LEN_MAX: usize = 63;

/// The name of a table, perhaps with that of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct TableName {
    schema: Option<String>,
    name: String,
}

impl TableName {
    /// Reads `name` or `schema.name`, each as the database keeps it: case counts, and there is no quoting.
    pub(in crate::sinks) fn parse(text: &str) -> Result<TableName, String> {
        let parts: Vec<&str> = text.split('.').collect();
        for part in &parts {
            if part.is_empty() || part.len() > NAME_LEN_MAX || part.contains(|c: char| c.is_control() || c == '"') {
                return Err(format!(
                    "\"{text}\" is no table: write name or schema.name, each up to {NAME_LEN_MAX} bytes, as the database keeps them (without quotes)"
                ));
            }
        }
        match parts.as_slice() {
            [name] => Ok(TableName {
                schema: None,
                name: (*name).to_owned(),
            }),
            [schema, name] => Ok(TableName {
                schema: Some((*schema).to_owned()),
                name: (*name).to_owned(),
            }),
            _ => Err(format!("\"{text}\" has too many dots: write name or schema.name")),
        }
    }

    /// A table of another name in the same schema.
    pub(in crate::sinks) fn sibling(&self, name: &str) -> TableName {
        TableName {
            schema: self.schema.clone(),
            name: name.to_owned(),
        }
    }

    /// The name without its schema.
    pub(in crate::sinks) fn name(&self) -> &str {
        &self.name
    }

    /// The schema, where one is named.
    pub(in crate::sinks) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// As SQL names it; whatever the name is, it stays a name.
    pub(in crate::sinks) fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.name)),
            None => quoted(&self.name),
        }
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// The columns of `closehook_events`.
pub(in crate::sinks) const EVENTS_COLUMNS: [&str; 9] = [
    "seq",
    "id",
    "date_updated",
    "received_at",
    "type",
    "object_id",
    "lead_id",
    "source",
    "event",
];

/// A name as SQL has it; whatever the name is, it stays one.
pub(in crate::sinks) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// One event as a row of `closehook_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct Row {
    pub(in crate::sinks) seq: i64,
    pub(in crate::sinks) id: String,
    /// The text of the key's moment; empty where the event has none.
    pub(in crate::sinks) date_updated: String,
    pub(in crate::sinks) received_at: Timestamp,
    /// `object_type.action`
    pub(in crate::sinks) type_action: Option<String>,
    pub(in crate::sinks) object_id: Option<String>,
    pub(in crate::sinks) lead_id: Option<String>,
    pub(in crate::sinks) source: String,
    /// The event object, without white space between its tokens.
    pub(in crate::sinks) event: String,
    /// Whether it takes the place of a row that is there: replays and retried letters do (decision 36). A live one leaves it alone.
    pub(in crate::sinks) replaces: bool,
}

impl Row {
    /// `None` for what can't be read as an event; nothing of that kind is dispatched.
    pub(in crate::sinks) fn of(delivery: &Delivery) -> Option<Row> {
        let event = &delivery.event;
        let view = event.view()?;
        let object = event.object();
        Some(Row {
            seq: event.seq.0 as i64,
            id: view.id.clone(),
            date_updated: view.date_updated.clone(),
            received_at: event.received_at,
            type_action: view.type_action(),
            object_id: view.object_id.clone(),
            lead_id: view.lead_id.clone(),
            source: event.source.to_string(),
            event: json::compact(object.raw()),
            replaces: delivery.origin != Origin::Live,
        })
    }

    /// Its columns, for people.
    pub(super) fn fields(self) -> Vec<(String, Field)> {
        let values = [
            Field::Number(self.seq.to_string()),
            Field::String(self.id),
            Field::String(self.date_updated),
            Field::String(format!("{:.6}", self.received_at)),
            text(self.type_action.as_deref()),
            text(self.object_id.as_deref()),
            text(self.lead_id.as_deref()),
            Field::String(self.source),
            Field::Json(self.event),
        ];
        EVENTS_COLUMNS.map(str::to_owned).into_iter().zip(values).collect()
    }

    #[cfg(any(test, feature = "sink-postgres"))]
    /// Makes of it what PostgreSQL can hold. Whether that changed anything: the log keeps the bytes.
    pub(in crate::sinks) fn fit_for_postgres(&mut self) -> bool {
        let mut changed = false;
        let texts = [&mut self.id, &mut self.date_updated].into_iter();
        let optional = [&mut self.type_action, &mut self.object_id, &mut self.lead_id];
        for text in texts.chain(optional.into_iter().flatten()) {
            if text.contains('\0') {
                *text = text.replace('\0', "\u{fffd}");
                changed = true;
            }
        }
        if let Cow::Owned(cleaned) = fit_for_jsonb(&self.event) {
            self.event = cleaned;
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
pub(in crate::sinks) mod tests {
    use std::time::Duration;

    use super::super::line::tests::delivery;
    use super::*;
    use crate::event::Seq;
    use crate::sinks::{Batch, Context, Mark, Opened, Outcome, Unavailable};

    pub(in crate::sinks) fn context() -> Context {
        Context {
            name: "db".into(),
            timeout: Duration::from_secs(20),
            log_id: "log_1".into(),
            epoch: "1".into(),
            position: None,
            answers: None,
            renderer: None,
            is_strict: false,
            kept: None,
        }
    }

    /// A context with limits that are soon reached.
    pub(in crate::sinks) fn hasty() -> Context {
        Context {
            timeout: Duration::from_millis(1500),
            ..context()
        }
    }

    pub(in crate::sinks) fn event(seq: u64) -> Delivery {
        delivery(
            seq,
            &format!(
                r#"{{"event":{{"id":"ev_{seq}","date_updated":"2024-02-15T12:48:23.395000","object_type":"lead","action":"updated","object_id":"lead_{seq}","lead_id":"lead_{seq}","data":{{"n":{seq}}}}}}}"#
            ),
        )
    }

    /// Events without their data, and the whole ones; the second batch has what gives way to the other in the first.
    pub(in crate::sinks) fn parts_and_wholes() -> [Vec<Delivery>; 2] {
        let part = |seq: u64, id: u64| {
            let body = format!(r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15"}}}}"#);
            delivery(seq, &body)
        };
        let whole = |seq: u64, id: u64| {
            let body = format!(r#"{{"event":{{"id":"ev_{id}","date_updated":"2024-02-15","data":null}}}}"#);
            delivery(seq, &body)
        };
        [
            vec![part(1, 1), part(2, 2), whole(3, 3)],
            // One that is whole gives way to nothing, and both may come at once.
            vec![whole(4, 1), part(5, 3), part(6, 4), whole(7, 4), whole(8, 3)],
        ]
    }

    pub(in crate::sinks) fn events(seqs: std::ops::Range<u64>) -> Vec<Delivery> {
        seqs.map(event).collect()
    }

    /// Delivers as the engine does: the mark is the last Seq of which it and all before are finished.
    pub(in crate::sinks) async fn deliver(
        opened: &Opened,
        deliveries: &[Delivery],
    ) -> Result<Vec<Outcome>, Unavailable> {
        let mark = |outcomes: &[Outcome]| {
            let done = outcomes
                .iter()
                .take_while(|outcome| **outcome == Outcome::Delivered)
                .count();
            let seq = done.checked_sub(1).map_or(Seq::ZERO, |last| deliveries[last].event.seq);
            Mark {
                epoch: "1".into(),
                seq,
                text: format!("mark {seq}"),
            }
        };
        opened.sink.deliver(&Batch::new(deliveries, &mark)).await
    }

    pub(in crate::sinks) fn reason<T>(result: Result<T, Unavailable>) -> String {
        result.err().expect("it should be unavailable").reason
    }

    #[test]
    fn a_name_stays_a_name_whatever_is_in_it() {
        let quoted = |text| TableName::parse(text).map(|name| name.quoted());
        assert_eq!(quoted("events").unwrap(), "\"events\"");
        assert_eq!(quoted("crm.Events 2").unwrap(), "\"crm\".\"Events 2\"");
        assert_eq!(
            quoted("x; DROP TABLE y--").unwrap(),
            "\"x; DROP TABLE y--\"",
            "no more than an odd name"
        );
        for bad in ["", ".", "a.", ".a", "a.b.c", "a\"b", "a\0", "a\nb", &"x".repeat(64)] {
            assert!(quoted(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            TableName::parse("crm.x").unwrap().sibling(MARK_TABLE).to_string(),
            "crm.closehook_mark"
        );
    }

    #[test]
    fn a_row_has_the_columns_of_decision_39() {
        let body = r#"{"event": {"id": "ev_1", "date_updated": "2024-02-15T12:48:23.395000", "object_type": "lead", "action": "updated",
            "object_id": "lead_o", "lead_id": "lead_1", "n": [1.50, 1e2]}, "subscription_id": "whsub_1"}"#;
        let row = Row::of(&delivery(7, body)).unwrap();
        assert_eq!(
            (row.seq, row.id.as_str(), row.date_updated.as_str()),
            (7, "ev_1", "2024-02-15T12:48:23.395000")
        );
        assert_eq!(row.type_action.as_deref(), Some("lead.updated"));
        assert_eq!(
            (row.object_id.as_deref(), row.lead_id.as_deref()),
            (Some("lead_o"), Some("lead_1"))
        );
        assert_eq!(row.source, "webhook");
        assert!(
            row.event.ends_with(r#""n":[1.50,1e2]}"#),
            "every token as Close wrote it"
        );
        assert!(!row.replaces);
        let bare = Row::of(&delivery(8, r#"{"event": {"id": "ev_2"}}"#)).unwrap();
        assert_eq!(
            (
                bare.date_updated.as_str(),
                bare.type_action,
                bare.object_id,
                bare.lead_id
            ),
            ("", None, None, None)
        );
        for origin in [Origin::Letter, Origin::Replay("1".into())] {
            let again = Delivery {
                origin,
                ..delivery(7, body)
            };
            assert!(Row::of(&again).unwrap().replaces);
        }
    }

    #[test]
    fn texts_lose_their_nul_characters_and_say_so() {
        let mut row = Row::of(&delivery(1, r#"{"event":{"id":"a\u0000b","lead_id":"l"}}"#)).unwrap();
        assert!(row.fit_for_postgres());
        assert_eq!(row.id, "a\u{fffd}b");
        assert_eq!(row.event, "{\"id\":\"a\u{fffd}b\",\"lead_id\":\"l\"}");
        assert!(!row.fit_for_postgres(), "it fits now");
    }
}
