//! The file of cases: what is written in it, checked against the configuration, every fault with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use toml_edit::{DocumentMut, Item};

use super::compare::Expected;
use super::read_event;
use crate::config::{Config, Fault, Table, text};
use crate::event::{Event, Updated};
use crate::names;

/// Stands where a rule would, without rules.
pub(super) const ANY: &str = "*";

/// One case.
#[derive(Debug)]
pub(super) struct Case {
    pub name: String,
    pub event: Event,
    /// The routes it should take, `rule -> sink`, and no others; `None`: whichever.
    pub routes_to: Option<BTreeSet<String>>,
    pub payload: Payload,
}

/// What should be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// Nothing is said of it.
    Any,
    /// The same by every route.
    Same(Expected),
    /// By some routes, each its own.
    Of(BTreeMap<String, Expected>),
}

/// A route as it is written in a case and shown.
pub(super) fn route(rule: &str, sink: &str) -> String {
    format!("{rule} -> {sink}")
}

/// Reads the cases of a file.
pub(super) fn read(path: &Path, content: &str, config: &Config) -> Result<Vec<Case>, Vec<Fault>> {
    let mut document = text::parse(path, content).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    // Out of TOML's own hands: their numbers keep their digits.
    let payloads = take_payloads(&mut document);
    let json = text::json_of(document.as_item());
    let tree = json.and_then(|json| serde_json::from_slice(json.as_bytes()).map_err(|error| error.to_string()));
    let tree: Value = tree.map_err(|message| {
        let place = path.display().to_string();
        vec![Fault { place, message }]
    })?;
    let mut root = Table::new("", tree, &mut faults);
    let listed = root.list("cases");
    if listed.is_empty() {
        root.fault("cases", "there are none: begin one with [[cases]]");
    }
    let mut cases = Vec::new();
    for (index, (place, value)) in listed.into_iter().enumerate() {
        let payload = payloads.get(index).and_then(Option::as_ref);
        cases.extend(case(&place, value, payload, path, config, root.faults()));
    }
    root.finish();
    if faults.is_empty() { Ok(cases) } else { Err(faults) }
}

/// Takes `payload` out of each case.
fn take_payloads(document: &mut DocumentMut) -> Vec<Option<Item>> {
    let Some(cases) = document.get_mut("cases") else {
        return Vec::new();
    };
    if let Some(tables) = cases.as_array_of_tables_mut() {
        return tables.iter_mut().map(|table| table.remove("payload")).collect();
    }
    let inline = cases.as_array_mut().into_iter().flat_map(toml_edit::Array::iter_mut);
    inline
        .map(|value| value.as_inline_table_mut()?.remove("payload").map(Item::Value))
        .collect()
}

fn case(
    place: &str,
    value: Value,
    payload: Option<&Item>,
    path: &Path,
    config: &Config,
    faults: &mut Vec<Fault>,
) -> Option<Case> {
    let mut table = Table::new(place, value, faults);
    let name: Option<String> = table.required("name", "\"a won deal reaches the CRM\"");
    let event: Option<String> = table.required("event", "\"@lead.json\"");
    let routes: Option<Vec<String>> = table.optional("routes_to");
    // Known, and taken already.
    table.raw("payload");
    let event = event.and_then(|text| {
        let event = event_of(&text, path);
        event.map_err(|message| table.fault("event", message)).ok()
    });
    let mut routes_to = routes.is_some().then(BTreeSet::new);
    for (number, text) in routes.into_iter().flatten().enumerate() {
        match known_route(&text, config) {
            Ok(route) => drop(routes_to.as_mut().map(|routes| routes.insert(route))),
            Err(message) => table.fault(&format!("routes_to[{number}]"), message),
        }
    }
    let says_payload = payload.is_some();
    let payload = payload.map_or(Payload::Any, |item| {
        payload_of(item, config).unwrap_or_else(|(key, message)| {
            table.fault(&key, message);
            Payload::Any
        })
    });
    if routes_to.is_none() && !says_payload {
        table.fault(
            "routes_to",
            "is missing, and so is payload: say what should happen, [] for nothing",
        );
    }
    table.finish();
    Some(Case {
        name: name?,
        event: event?,
        routes_to,
        payload,
    })
}

/// An event as JSON text or `@file`, which is looked for beside the cases. Received when it happened, so that what is sent of it
/// is the same today and tomorrow.
fn event_of(text: &str, path: &Path) -> Result<Event, String> {
    let content;
    let text = match text.strip_prefix('@') {
        Some(name) => {
            content = crate::files::read_text(&text::beside(path, name))
                .map_err(|error| format!("{name} can't be read: {error}"))?;
            content.trim()
        }
        None => text,
    };
    let event = read_event(text, Timestamp::UNIX_EPOCH)?;
    let updated = event.view().map(|view| Updated::parse(&view.date_updated));
    let Some(Updated::Instant(nanoseconds)) = updated else {
        return Ok(event);
    };
    let received_at = Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    read_event(text, received_at)
}

/// A route as it is shown, if rule and sink are configured.
fn known_route(text: &str, config: &Config) -> Result<String, String> {
    let shape = || format!("\"{text}\" is no route: write it like \"rule -> sink\"");
    // The name of a rule may have an arrow in it, the name of a sink not.
    let (rule, sink) = text.rsplit_once("->").ok_or_else(shape)?;
    let (rule, sink) = (rule.trim(), sink.trim());
    let sinks = || config.sinks.iter().map(|sink| sink.name.as_str());
    let rules = || config.rules.iter().map(|rule| rule.name.as_str());
    if config.rules.is_empty() && rule != ANY {
        return Err(format!(
            "there are no rules, and every event goes to every sink: write \"{}\"",
            route(ANY, sink)
        ));
    }
    if !config.rules.is_empty() && !rules().any(|name| name == rule) {
        return Err(names::unknown(format!("there is no rule \"{rule}\""), rule, rules()));
    }
    if !sinks().any(|name| name == sink) {
        return Err(names::unknown(format!("there is no sink \"{sink}\""), sink, sinks()));
    }
    Ok(route(rule, sink))
}

/// Text, a table to be compared as JSON, or a table with one of these for each of some routes. An error has its key.
fn payload_of(item: &Item, config: &Config) -> Result<Payload, (String, String)> {
    let at = |key: &str| {
        if key.is_empty() {
            "payload".to_owned()
        } else {
            format!("payload.\"{key}\"")
        }
    };
    let expected = |key: &str, item: &Item| {
        if let Some(text) = item.as_str() {
            return Ok(Expected::Text(text.to_owned()));
        }
        if item.is_table_like() || item.is_array() || item.is_array_of_tables() {
            let json = text::json_of(item).map_err(|message| (at(key), message))?;
            return Ok(Expected::Json(json));
        }
        Err((at(key), "must be text, or a table that is compared as JSON".to_owned()))
    };
    let Some(table) = item.as_table_like().filter(|table| is_of_routes(*table)) else {
        return expected("", item).map(Payload::Same);
    };
    let mut each = BTreeMap::new();
    for (key, item) in table.iter() {
        let route = known_route(key, config).map_err(|message| (at(key), message))?;
        each.insert(route, expected(key, item)?);
    }
    Ok(Payload::Of(each))
}

/// Whether a table says something of routes rather than being a payload.
fn is_of_routes(table: &dyn toml_edit::TableLike) -> bool {
    !table.is_empty() && table.iter().all(|(key, _)| key.contains("->"))
}
