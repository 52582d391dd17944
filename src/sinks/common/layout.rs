//! What the sinks that write tables make of a delivery: a row of events, a row of columns that the configuration names, a row of
//! those that a template or transform makes, or the newest state of an object.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::field::{Field, Takes, decoded};
use super::latest::{LATEST_TABLE, Revision};
use super::rows::{EVENTS_TABLE, NAME_LEN_MAX, Row};
use crate::config::{Key, Size, Span, Table};
use crate::event::Delivery;
use crate::json::{self, Doc, Kind, Node};
use crate::render::{Escape, Template};
use crate::sinks::{Limits, Outcome};
use crate::sorted;

/// What the rows of a table are.
#[derive(Debug)]
pub(in crate::sinks) enum Layout {
    /// A row for each event; where something is made of the event, its keys are the columns.
    Events {
        /// The sink has a template or transform itself: nothing but what that makes is ever written.
        has_program: bool,
    },
    /// A row for each event, of these columns.
    Columns(Vec<Column>),
    /// A row for each object, of its newest revision.
    Latest,
}

/// A column that the configuration names.
#[derive(Debug)]
pub(in crate::sinks) struct Column {
    pub(in crate::sinks) name: String,
    /// As the table is made, and, in SQLite, what the value is taken for.
    pub(in crate::sinks) kind: Option<String>,
    template: Template,
    /// The template is one expression: what is rendered is the JSON of its value.
    is_value: bool,
    /// It makes JSON of something, so that a text it gives is not one of its own, but that JSON, if it is any.
    makes_json: bool,
}

impl Column {
    /// The name by which the engine renders it.
    fn key(&self) -> String {
        format!("columns.{}", self.name)
    }

    fn field(&self, delivery: &Delivery) -> Field {
        let text = delivery.text(&self.key(), &self.template);
        match (self.is_value, text.trim_end()) {
            (true, "") => Field::Null,
            (true, value) => match Field::of(Node::new(value)) {
                Field::String(text) if self.makes_json && Doc::parse(text.as_bytes()).is_ok() => Field::Text(text),
                field => field,
            },
            (false, _) if text.is_empty() => Field::Null,
            (false, _) => Field::Text(text.to_owned()),
        }
    }

    /// What it takes, as far as the configuration says.
    fn takes(&self) -> Takes {
        self.kind.as_deref().map_or(Takes::Other, Takes::of)
    }
}

/// What a delivery becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) enum Made {
    Event(Row),
    Fields(Fields),
    Revision(Box<Revision>),
    /// This table has no use for it.
    Skipped,
    /// Why it can be no row.
    Refused(String),
}

/// Values, and the columns that they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct Fields {
    pub(in crate::sinks) names: Arc<[String]>,
    pub(in crate::sinks) values: Vec<Field>,
}

impl Fields {
    /// The keys and values of an object that a template or transform made. An error is why there are none.
    fn of_payload(payload: &[u8], case: Case) -> Result<Fields, String> {
        let object = Doc::parse(payload).ok().filter(|doc| doc.root().kind() == Kind::Object);
        let Some(object) = object else {
            return Err(
                "what its template or transform makes is no JSON object, whose keys are the columns: make one, or set columns".into(),
            );
        };
        let (mut names, mut values): (Vec<String>, Vec<Field>) = (Vec::new(), Vec::new());
        for (name, value) in object.entries(object.root()) {
            let (name, value) = (decoded(name), Field::of(value));
            // The last one counts, as everywhere in JSON.
            if let Some(at) = names.iter().position(|known| case.are_same(known, &name)) {
                values[at] = value;
            } else {
                names.push(name);
                values.push(value);
            }
        }
        if names.is_empty() {
            return Err("the object that its template or transform makes has no keys, so there is no column".into());
        }
        Ok(Fields {
            names: names.into(),
            values,
        })
    }

    /// Writes each value as its column has it. An error is why one can't have it; it holds nothing of the event.
    pub(in crate::sinks) fn write_for(&mut self, takes: impl Fn(&str) -> Takes) -> Result<(), String> {
        let mut pairs = self.names.iter().zip(&mut self.values);
        pairs.try_for_each(|(name, value)| {
            let written = value.write_for(takes(name));
            written.map_err(|why| format!("the column \"{name}\" {why}"))
        })
    }

    /// Makes of it what PostgreSQL can hold, for columns that take this. Whether that changed anything: the log keeps the bytes.
    #[cfg(any(test, feature = "sink-postgres"))]
    pub(in crate::sinks) fn fit_for_postgres(&mut self, takes: impl Fn(&str) -> Takes) -> bool {
        let pairs = self.names.iter().zip(&mut self.values);
        pairs.fold(false, |changed, (name, value)| {
            value.fit_for_postgres(takes(name)) || changed
        })
    }
}

/// When two names are the same column's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sinks) enum Case {
    /// Only equal ones (PostgreSQL).
    Counts,
    /// Also where the case of ASCII letters differs (SQLite).
    Folds,
}

impl Case {
    pub(in crate::sinks) fn are_same(self, one: &str, other: &str) -> bool {
        match self {
            Case::Counts => one == other,
            Case::Folds => one.eq_ignore_ascii_case(other),
        }
    }
}

impl Layout {
    /// Reads `mode` and `columns`. Faults go into the table.
    pub(in crate::sinks) fn parse(table: &mut Table<'_>, case: Case) -> Option<Layout> {
        let has_program = table.has_program();
        let mode: String = table.or("mode", "events".to_owned());
        let configured = table.raw("columns");
        match (mode.as_str(), configured) {
            ("events", None) => Some(Layout::Events { has_program }),
            ("events", Some(configured)) => columns(table, configured, case).map(Layout::Columns),
            ("latest", None) => Some(Layout::Latest),
            ("latest", Some(_)) => {
                table.fault("columns", "can't be with mode = \"latest\", which has its own");
                None
            }
            _ => {
                table.fault("mode", format!("must be \"events\" or \"latest\", not \"{mode}\""));
                None
            }
        }
    }

    /// The table where none is named.
    pub(in crate::sinks) fn table(&self) -> &'static str {
        match self {
            Layout::Latest => LATEST_TABLE,
            Layout::Events { .. } | Layout::Columns(_) => EVENTS_TABLE,
        }
    }

    /// The keys that are templates, as the engine renders them.
    pub(in crate::sinks) fn templates(&self) -> Vec<(String, Template)> {
        let Layout::Columns(columns) = self else {
            return Vec::new();
        };
        let pairs = columns.iter().map(|column| (column.key(), column.template.clone()));
        pairs.collect()
    }

    /// The names of the columns that are configured.
    pub(in crate::sinks) fn names(&self) -> Arc<[String]> {
        match self {
            Layout::Columns(columns) => columns.iter().map(|column| column.name.clone()).collect(),
            Layout::Events { .. } | Layout::Latest => Arc::default(),
        }
    }

    /// Whether a delivery becomes a row of events and nothing else.
    pub(in crate::sinks) fn is_plain(&self, delivery: &Delivery) -> bool {
        matches!(self, Layout::Events { .. }) && delivery.payload().is_none()
    }

    /// What becomes of deliveries.
    pub(in crate::sinks) fn make(&self, deliveries: &[Delivery], case: Case) -> Vec<Made> {
        let names = self.names();
        let one = |delivery: &Delivery| {
            if delivery.event.view().is_none() {
                return Made::Refused("it can't be read as an event".into());
            }
            match self {
                Layout::Columns(columns) => Made::Fields(Fields {
                    names: names.clone(),
                    values: columns.iter().map(|column| column.field(delivery)).collect(),
                }),
                Layout::Latest => {
                    Revision::of(delivery).map_or(Made::Skipped, |revision| Made::Revision(Box::new(revision)))
                }
                Layout::Events { .. } => match delivery.payload() {
                    Some(payload) => Fields::of_payload(payload.bytes(), case).map_or_else(Made::Refused, Made::Fields),
                    None => Row::of(delivery).map_or(Made::Skipped, Made::Event),
                },
            }
        };
        deliveries.iter().map(one).collect()
    }

    /// The row of a delivery, as a JSON object, for people; an error is what becomes of it instead.
    pub(in crate::sinks) fn row(&self, delivery: &Delivery, case: Case) -> Result<String, Outcome> {
        let made = self.make(std::slice::from_ref(delivery), case).pop();
        let fields: Vec<(String, Field)> = match made.unwrap_or(Made::Skipped) {
            Made::Event(row) => row.fields(),
            Made::Revision(revision) => revision.fields(),
            Made::Fields(mut fields) => {
                if case == Case::Counts {
                    fields.write_for(|name| self.takes(name))?;
                }
                fields.names.iter().cloned().zip(fields.values).collect()
            }
            Made::Skipped => return Err(Outcome::Skipped),
            Made::Refused(why) => return Err(why.into()),
        };
        let mut out = String::from("{");
        for (index, (name, value)) in fields.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            json::push_string(&mut out, name);
            out.push(':');
            value.push_json(&mut out);
        }
        out.push('}');
        Ok(out)
    }

    /// What a column of PostgreSQL takes, as far as the configuration says.
    fn takes(&self, name: &str) -> Takes {
        let Layout::Columns(columns) = self else {
            return Takes::Other;
        };
        let column = columns.iter().find(|column| column.name == name);
        column.map_or(Takes::Other, Column::takes)
    }

    /// What `rules test` compares: the row where it is made of more than the event, else that, or what was made of it.
    pub(in crate::sinks) fn payload(&self, delivery: &Delivery, case: Case) -> Bytes {
        match (self, delivery.payload()) {
            (Layout::Events { .. }, Some(payload)) => payload.bytes().clone(),
            (Layout::Events { .. }, None) => Bytes::copy_from_slice(delivery.event.object().raw().as_bytes()),
            _ => self.row(delivery, case).unwrap_or_default().into(),
        }
    }

    /// What is odd about a template or transform beside it.
    pub(in crate::sinks) fn warning_of_programs(&self) -> Option<String> {
        let what = match self {
            Layout::Events { .. } => return None,
            Layout::Columns(_) => "columns",
            Layout::Latest => "mode = \"latest\"",
        };
        Some(format!(
            "{what} makes its rows: what a template or transform makes is not written, and a transform only decides whether there is one"
        ))
    }
}

/// `batch`: what goes into one transaction.
pub(in crate::sinks) fn batch(table: &mut Table<'_>) -> Limits {
    table.table("batch", |table| Limits {
        events: table.within("events", 1000, 1, 10_000),
        bytes: table.within("bytes", Size(4 << 20), Size(1), Size(64 << 20)).0 as usize,
        wait: table.within("wait", Span::secs(0), Span::secs(0), Span::secs(3600)).0,
    })
}

/// That key, as its definition says it.
pub(in crate::sinks) const BATCH: Key = Key::table(
    "batch",
    &[
        Key::with_default("events", "1000", "Rows at the most, up to 10000"),
        Key::with_default("bytes", "\"4 MiB\"", "Bytes of the events' bodies, roughly"),
        Key::with_default("wait", "\"0s\"", "How long one that is not full waits for more"),
    ],
    "What goes into one transaction",
);

/// The configured columns. Faults go into the table.
fn columns(table: &mut Table<'_>, configured: Value, case: Case) -> Option<Vec<Column>> {
    let Value::Object(configured) = configured else {
        table.fault("columns", "must be a table: { NAME = \"TEMPLATE\" }");
        return None;
    };
    if configured.is_empty() {
        table.fault("columns", "names no column: leave it out, or name some");
        return None;
    }
    let count = configured.len();
    // The configuration's reader keeps no order; here there has to be one, so that equal ones are equal.
    let configured: BTreeMap<String, Value> = sorted::map(configured);
    let mut columns: Vec<Column> = Vec::with_capacity(count);
    for (name, value) in configured {
        if columns.iter().any(|column| case.are_same(&column.name, &name)) {
            table.fault(
                "columns",
                format!("\"{name}\" is there twice: SQLite takes upper and lower case for the same"),
            );
            return None;
        }
        match column(&name, value) {
            Ok(column) => columns.push(column),
            Err(fault) => table.fault("columns", format!("\"{name}\": {fault}")),
        }
    }
    (columns.len() == count).then_some(columns)
}

fn column(name: &str, value: Value) -> Result<Column, String> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(|c: char| c.is_control() || c == '"') {
        return Err(format!(
            "no column is called so: write up to {NAME_LEN_MAX} bytes, as the database keeps them (without quotes)"
        ));
    }
    let expected = || "must be a template, or { type = \"numeric\", value = \"TEMPLATE\" }".to_owned();
    let (kind, source) = match value {
        Value::String(source) => (None, source),
        Value::Object(mut inner) => match (inner.remove("type"), inner.remove("value")) {
            (Some(Value::String(kind)), Some(Value::String(source))) if inner.is_empty() => (Some(kind), source),
            (None, Some(Value::String(source))) if inner.is_empty() => (None, source),
            _ => return Err(expected()),
        },
        _ => return Err(expected()),
    };
    if let Some(kind) = kind.as_deref().filter(|kind| !is_type(kind)) {
        return Err(format!(
            "\"{kind}\" is no type, like \"numeric(12,2)\" or \"timestamptz\""
        ));
    }
    let is_value = is_value(&source);
    let escape = if is_value { Escape::Json } else { Escape::None };
    Ok(Column {
        name: name.to_owned(),
        kind,
        template: Template::parse(&source, escape)?,
        is_value,
        makes_json: makes_json(&source),
    })
}

/// Whether a text can be the name of a type: nothing that could end it and begin something else.
fn is_type(text: &str) -> bool {
    let is_fine = |c: char| c.is_alphanumeric() || " _.,()[]".contains(c);
    text.starts_with(|c: char| c.is_alphabetic() || c == '_') && text.chars().all(is_fine) && is_balanced(text)
}

fn is_balanced(text: &str) -> bool {
    let mut depth = 0_i32;
    for c in text.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// Whether a template is one expression and nothing else, so that it gives a value: its text alone could not tell `null` from a text
/// that reads so. What ends in `tojson` makes text: that of JSON.
fn is_value(source: &str) -> bool {
    let inner = source.trim_end_matches('\n').strip_prefix("{{");
    let Some(inner) = inner.and_then(|inner| inner.strip_suffix("}}")) else {
        return false;
    };
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    let inner = inner.strip_suffix('-').unwrap_or(inner).trim();
    !inner.is_empty() && is_one_expression(inner) && !ends_in_tojson(inner)
}

/// An expression with a letter in place of each text that is quoted in it. `None`: a quote is left open.
fn unquoted(source: &str) -> Option<String> {
    let (mut plain, mut quote) = (String::new(), None);
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(_) if c == '\\' => drop(chars.next()),
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => {
                quote = Some(c);
                plain.push('x');
            }
            None => plain.push(c),
        }
    }
    quote.is_none().then_some(plain)
}

/// Whether the filter `tojson` stands anywhere in an expression, outside of what is quoted.
fn makes_json(source: &str) -> bool {
    let is_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    unquoted(source).is_some_and(|plain| plain.split(|c| !is_of_word(c)).any(|word| word == "tojson"))
}

/// Whether the last that happens to a value is that JSON is made of it: a name or a bracket, what follows from it, and that filter.
fn ends_in_tojson(inner: &str) -> bool {
    // What is in brackets counts as one letter.
    let (mut plain, mut depth) = (String::new(), 0_usize);
    for c in unquoted(inner).unwrap_or_default().chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    plain.push('x');
                }
            }
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let mut steps: Vec<&str> = plain.split('|').map(str::trim).collect();
    while steps.len() > 1 && steps.last() == Some(&"safe") {
        // It changes nothing about it.
        steps.pop();
    }
    let is_word = |step: &&str| step.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    // An argument in brackets is a letter behind it.
    let is_last = steps.last().is_some_and(|last| matches!(*last, "tojson" | "tojsonx"));
    is_last && steps.len() > 1 && steps.iter().all(is_word)
}

/// Whether nothing in it ends the expression, outside of strings and brackets.
fn is_one_expression(inner: &str) -> bool {
    let Some(plain) = unquoted(inner) else { return false };
    let mut depth = 0_i32;
    for c in plain.chars() {
        match c {
            '}' if depth == 0 => return false,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth < 0 {
                    return false;
                }
            }
            _ => {}
        }
    }
    depth == 0
}

#[cfg(test)]
pub(in crate::sinks) mod tests;
