//! What filters and deliveries mean, written down a second time and as plainly as possible, over fully parsed JSON: for the
//! property tests and the fuzz targets to compare with.

use serde_json::Value;

/// Whether a (valid) filter matches a value. Close's documentation, and what `src/rules/filter/mod.rs` says where that is silent.
pub fn matches(filter: &Value, value: &Value) -> bool {
    let inner = || &filter["filter"];
    match filter["type"].as_str().unwrap_or_default() {
        "equals" => *value == filter["value"],
        "not_equals" => *value != filter["value"],
        "is_null" => value.is_null(),
        "non_null" => !value.is_null(),
        "contains" => match (value, &filter["value"]) {
            (Value::Array(elements), wanted) => elements.contains(wanted),
            (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
            _ => false,
        },
        "and" => filters(filter).iter().all(|filter| matches(filter, value)),
        "or" => filters(filter).iter().any(|filter| matches(filter, value)),
        "not" => !matches(inner(), value),
        "field_accessor" => {
            let field = filter["field"].as_str().unwrap_or_default();
            matches(inner(), value.get(field).unwrap_or(&Value::Null))
        }
        "any_array_value" => value
            .as_array()
            .is_some_and(|elements| elements.iter().any(|element| matches(inner(), element))),
        unknown => panic!("a valid filter has no type {unknown}"),
    }
}

fn filters(filter: &Value) -> &[Value] {
    filter["filters"].as_array().map_or(&[], Vec::as_slice)
}

/// The fields of a delivery that closehook uses; `None` where it has no string at `event.id`.
#[derive(Debug, PartialEq, Eq)]
pub struct Fields {
    pub id: String,
    pub date_updated: String,
    pub object_type: Option<String>,
    pub action: Option<String>,
    pub lead_id: Option<String>,
    pub subscription_id: Option<String>,
}

/// Reads them out of a parsed delivery.
pub fn fields(delivery: &Value) -> Option<Fields> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let event = &delivery["event"];
    Some(Fields {
        id: text(&event["id"])?,
        date_updated: text(&event["date_updated"])
            .or_else(|| text(&event["date_created"]))
            .unwrap_or_default(),
        object_type: text(&event["object_type"]),
        action: text(&event["action"]),
        lead_id: text(&event["lead_id"]),
        subscription_id: text(&delivery["subscription_id"]),
    })
}

/// The same of closehook's view.
pub fn fields_of(view: closehook::event::View) -> Fields {
    Fields {
        id: view.id,
        date_updated: view.date_updated,
        object_type: view.object_type,
        action: view.action,
        lead_id: view.lead_id,
        subscription_id: view.subscription_id,
    }
}
