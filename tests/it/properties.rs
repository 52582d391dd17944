//! What closehook makes of JSON, compared with a second, plain reading of the same rules over fully parsed values. (What
//! belongs to one module alone is tested there.)

use closehook::event::View;
use closehook::json::Doc;
use closehook::rules::filter::Filter;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::oracle;

fn scalars() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2..3_i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ab\\\\\"é🚀\n]{0,3}".prop_map(Value::from),
    ]
}

/// Few keys and few values, so that filters and events meet.
fn values() -> impl Strategy<Value = Value> {
    scalars().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[ab\"]{0,1}", inner), 0..4).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn filters() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "is_null"})),
        Just(json!({"type": "non_null"})),
        values().prop_map(|value| json!({"type": "equals", "value": value})),
        values().prop_map(|value| json!({"type": "not_equals", "value": value})),
        values().prop_map(|value| json!({"type": "contains", "value": value})),
    ];
    leaf.prop_recursive(5, 30, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|filters| json!({"type": "and", "filters": filters})),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|filters| json!({"type": "or", "filters": filters})),
            inner
                .clone()
                .prop_map(|filter| json!({"type": "not", "filter": filter})),
            inner
                .clone()
                .prop_map(|filter| json!({"type": "any_array_value", "filter": filter})),
            ("[ab\"]{0,1}", inner)
                .prop_map(|(field, filter)| json!({"type": "field_accessor", "field": field, "filter": filter})),
        ]
    })
}

fn text_of(value: &Value, pretty: bool) -> String {
    if pretty {
        serde_json::to_string_pretty(value).unwrap()
    } else {
        value.to_string()
    }
}

/// Deliveries with the fields that matter, there or not and of any type, among others.
fn deliveries() -> impl Strategy<Value = Value> {
    let field = || prop_oneof![2 => "[a-z_0-9\\\\\"é]{0,12}".prop_map(Value::from), 1 => values()];
    let names = prop::sample::subsequence(
        vec![
            "id",
            "date_updated",
            "date_created",
            "object_type",
            "action",
            "lead_id",
            "data",
            "subscription_id",
        ],
        0..=8,
    );
    let object = (names, prop::collection::vec(field(), 8))
        .prop_map(|(names, values)| -> Value { names.into_iter().map(str::to_owned).zip(values).collect() });
    (object.clone(), object, any::<bool>()).prop_map(|(event, mut envelope, nested)| {
        if nested {
            envelope["event"] = event;
        }
        envelope
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn filters_match_as_a_plain_reading_of_the_rules_does(filter in filters(), event in values(), pretty in any::<bool>()) {
        let (filter_text, event_text) = (text_of(&filter, pretty), text_of(&event, !pretty));
        let parsed = Filter::parse(&filter_text).unwrap();
        let doc = Doc::new(&event_text);
        let expected = oracle::matches(&filter, &event);
        prop_assert_eq!(parsed.matches(&doc), expected, "{} on {}", filter_text, event_text);
        prop_assert_eq!(parsed.explain(&doc).matched, expected);
        let shown = Filter::parse(&parsed.to_string()).unwrap();
        prop_assert_eq!(shown.matches(&doc), expected, "as shown: {}", parsed);
    }

    #[test]
    fn a_filter_that_is_wrong_somewhere_is_refused_with_a_place(filter in filters(), broken in "[a-z_]{1,12}", at in any::<prop::sample::Index>()) {
        let text = filter.to_string();
        let types: Vec<_> = text.match_indices("\"type\":\"").collect();
        let (start, head) = types[at.index(types.len())];
        let from = start + head.len();
        let to = from + text[from..].find('"').unwrap();
        let known = ["equals", "not_equals", "is_null", "non_null", "contains", "and", "or", "not", "field_accessor", "any_array_value"];
        prop_assume!(!known.contains(&broken.as_str()));
        // A "type" inside of a value is no filter's type.
        prop_assume!(known.contains(&&text[from..to]));
        let broken_text = format!("{}{broken}{}", &text[..from], &text[to..]);
        let faults = Filter::parse(&broken_text).unwrap_err();
        prop_assert!(faults.iter().any(|fault| fault.place.ends_with("type")), "{:?}", faults);
    }

    #[test]
    fn a_delivery_is_read_as_a_full_parse_reads_it(delivery in deliveries(), pretty in any::<bool>()) {
        let text = text_of(&delivery, pretty);
        let view = View::read(text.as_bytes()).ok();
        prop_assert_eq!(view.map(oracle::fields_of), oracle::fields(&delivery), "{}", text);
    }

    /// One byte turned over, cut short, or with something behind it: read as a full parse reads it, or not at all.
    #[test]
    fn a_mangled_delivery_is_read_as_a_full_parse_reads_it(
        delivery in deliveries(),
        at in any::<prop::sample::Index>(),
        flip in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = text_of(&delivery, false).into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if cut {
            bytes.truncate(at);
        }
        let view = View::read(&bytes);
        // Unpaired surrogates are valid JSON to closehook, which never decodes what it has no use for.
        if let Ok(parsed) = serde_json::from_slice::<Value>(&bytes) {
            prop_assert_eq!(view.ok().map(oracle::fields_of), oracle::fields(&parsed));
        }
    }
}
