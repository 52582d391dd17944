//! A filter and an event, with a zero between: parsing never panics, what is shown parses to the same filter, and matching
//! agrees with its own explanation and with the oracle.
#![no_main]

use closehook::json::{self, Doc};
use closehook::rules::filter::Filter;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../oracle/mod.rs"]
#[allow(dead_code)]
mod oracle;

/// `serde_json` keeps other numbers as floats and so can't tell them apart as exactly as closehook does.
fn numbers_are_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(elements) => elements.iter().all(numbers_are_exact),
        Value::Object(members) => members.values().all(numbers_are_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let Ok(text) = std::str::from_utf8(parts.next().unwrap_or_default()) else {
        return;
    };
    let Ok(filter) = Filter::parse(text) else { return };
    let shown = Filter::parse(&filter.to_string()).expect("a filter as shown is a filter");
    let Ok(event) = json::validate(parts.next().unwrap_or(b"null")) else {
        return;
    };
    let doc = Doc::new(event);
    let matched = filter.matches(&doc);
    assert_eq!(shown.matches(&doc), matched);
    let trace = filter.explain(&doc);
    assert_eq!(trace.matched, matched);
    trace.deciding();
    let parsed = (
        serde_json::from_str::<Value>(text),
        serde_json::from_str::<Value>(event),
    );
    if let (Ok(filter), Ok(event)) = parsed
        && numbers_are_exact(&filter)
        && numbers_are_exact(&event)
    {
        assert_eq!(oracle::matches(&filter, &event), matched);
    }
});
