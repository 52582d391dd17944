//! What the sinks that write tables share: a row for an event, the names of tables, and what a column of type `jsonb` can hold.

use std::borrow::Cow;

use jiff::Timestamp;

use super::layout::{Field, text};
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

/// JSON that PostgreSQL's `jsonb` takes: U+0000 and halves of surrogate pairs become U+FFFD, a number beyond what `numeric` holds
/// becomes a string of its text. Borrowed where nothing had to change.
pub(in crate::sinks) fn fit_for_jsonb(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut cleaned = String::new();
    // Up to here `text` is in `cleaned`, if anything is.
    let mut copied = 0;
    let mut at = 0;
    let mut in_string = false;
    while at < bytes.len() {
        let (end, replacement) = match bytes[at] {
            b'"' => {
                in_string = !in_string;
                (at + 1, None)
            }
            b'\\' if in_string => {
                let (len, holds) = escape(&bytes[at..]);
                (at + len, (!holds).then(|| "\u{fffd}".to_owned()))
            }
            _ if in_string => {
                let len = memchr::memchr2(b'"', b'\\', &bytes[at..]).unwrap_or(bytes.len() - at);
                (at + len, None)
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let len = bytes[at..].iter().take_while(|byte| is_of_number(byte)).count();
                let number = &text[at..at + len];
                (at + len, (!is_numeric(number)).then(|| format!("\"{number}\"")))
            }
            _ => (at + 1, None),
        };
        if let Some(replacement) = replacement {
            cleaned.push_str(&text[copied..at]);
            cleaned.push_str(&replacement);
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    cleaned.push_str(&text[copied..]);
    Cow::Owned(cleaned)
}

/// How long the escape is that the text begins with (both of them, where two make one character), and whether `jsonb` holds it.
fn escape(text: &[u8]) -> (usize, bool) {
    let unit = |at: usize| {
        let hex = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    match unit(0) {
        None => (2.min(text.len()), true),
        Some(0xD800..=0xDBFF) if matches!(unit(6), Some(0xDC00..=0xDFFF)) => (12, true),
        Some(0 | 0xD800..=0xDFFF) => (6, false),
        Some(_) => (6, true),
    }
}

/// Whether `numeric` holds a JSON number: at most 131,072 digits before the point and 16,383 behind it (PostgreSQL, 8.1.2).
fn is_numeric(number: &str) -> bool {
    const BEFORE_MAX: i64 = 131_072;
    const BEHIND_MAX: i64 = 16_383;
    // A short one without an exponent always does.
    if number.len() <= BEHIND_MAX as usize && !number.contains(['e', 'E']) {
        return true;
    }
    let unsigned = number.strip_prefix('-').unwrap_or(number);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // More than an i32 of it is refused before anything is counted, even of zero.
    let Ok(exponent) = exponent.parse::<i32>().map(i64::from) else {
        return false;
    };
    if exponent.abs() >= i64::from(i32::MAX / 2) || fraction.len() as i64 - exponent > BEHIND_MAX {
        return false;
    }
    let leading = [whole, fraction].concat().bytes().position(|digit| digit != b'0');
    leading.is_none_or(|zeros| whole.len() as i64 - zeros as i64 + exponent <= BEFORE_MAX)
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
    fn what_jsonb_cannot_hold_is_replaced_and_all_else_stays() {
        for same in [
            r#"{"a":"x","b":[1,-2.50,3e10,1e131071,1e-16383],"c":null}"#,
            r#""\\u0000 \\\\ud800 \ud83d\ude80 \u00e9 \" 1e999999""#,
            r#"{"\ud83d\ude80":"\u0001"}"#,
        ] {
            assert!(matches!(fit_for_jsonb(same), Cow::Borrowed(_)), "{same}");
        }
        for (text, cleaned) in [
            (r#"{"a\u0000b":"\u0000"}"#, "{\"a\u{fffd}b\":\"\u{fffd}\"}"),
            (r#""\\\u0000""#, "\"\\\\\u{fffd}\""),
            (r#""\ud800 \udc00""#, "\"\u{fffd} \u{fffd}\""),
            (r#""\ud800\ud83d\ude80\ud800""#, "\"\u{fffd}\\ud83d\\ude80\u{fffd}\""),
            (r#""\uD800\u0041""#, "\"\u{fffd}\\u0041\""),
            ("[1e131072,-1e999999999999]", r#"["1e131072","-1e999999999999"]"#),
            ("[1e-16384,0e-20000,2]", r#"["1e-16384","0e-20000",2]"#),
        ] {
            assert_eq!(fit_for_jsonb(text), cleaned, "{text}");
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
