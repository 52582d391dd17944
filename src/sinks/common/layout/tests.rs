use super::super::line::tests::delivery;
use super::super::rows::tests::event;
use super::*;
use crate::config::SinkOptions;
use crate::render::{Fault, Guard, Job, Made as Making, Payload, Rendered};

/// An event of which this was made.
pub(in crate::sinks) fn made(seq: u64, payload: &str) -> Delivery {
    rendered(
        seq,
        Rendered {
            payload: Some(Payload::Text(payload.to_owned().into())),
            ..Rendered::default()
        },
    )
}

/// An event whose columns became these texts.
pub(in crate::sinks) fn with_columns(seq: u64, texts: &[(&str, &str)]) -> Delivery {
    let texts = texts
        .iter()
        .map(|(name, text)| (format!("columns.{name}"), (*text).to_owned()));
    rendered(
        seq,
        Rendered {
            texts: texts.collect(),
            ..Rendered::default()
        },
    )
}

/// An event with this data, and what the sink's templates make of it; an error is what is wrong with one of them.
pub(in crate::sinks) async fn filled(kind: &SinkOptions, seq: u64, data: &str) -> Result<Delivery, Fault> {
    let delivery = delivery(
        seq,
        &format!(r#"{{"event":{{"id":"ev_{seq}","date_updated":"2024-02-15T12:48:23.395000","data":{data}}}}}"#),
    );
    let mut texts = kind.templates();
    texts.retain(|(_, template)| !template.is_constant());
    let job = Job {
        payload: None,
        texts: texts.into(),
        event: delivery.event.object().raw().to_owned(),
        meta: format!("{{\"seq\":{seq}}}"),
    };
    match Guard::new(Arc::default()).render(vec![job]).await.unwrap().remove(0) {
        Making::Rendered(rendered) => Ok(Delivery {
            rendered: Some(Arc::new(rendered)),
            ..delivery
        }),
        Making::Fault(fault) => Err(fault),
        Making::Skipped => panic!("no template skips anything"),
    }
}

fn rendered(seq: u64, rendered: Rendered) -> Delivery {
    Delivery {
        rendered: Some(Arc::new(rendered)),
        ..event(seq)
    }
}

#[test]
fn a_template_that_is_one_expression_is_told_from_others() {
    for (source, expected) in [
        ("{{ data.name }}", true),
        ("{{data.name}}\n", true),
        ("{{- a -}}", true),
        ("{{ '}} {{' }}", true),
        ("{{ \"\\\"}}\" }}", true),
        ("{{ {'a': {'b': 1}} }}", true),
        ("{{ a if b }}", true),
        ("{{ a if b else c | tojson }}", true),
        ("{{ a ~ b|tojson }}", true),
        ("{{ a|tojson|length }}", true),
        ("{{ a }} {{ b }}", false),
        ("{{ a }}{{ b }}", false),
        (" {{ a }}", false),
        ("{{ a }}.", false),
        ("{{ a) ~ (b }}", false),
        ("{{ }}", false),
        ("{% if a %}{{ a }}{% endif %}", false),
        ("{{ a|tojson }}", false),
        ("{{ a | tojson | safe }}", false),
        ("{{ a | safe }}", true),
        ("{{ a.b['|'][c | d] | named | tojson(indent=2) }}", false),
        ("{{ (a if b else c) | tojson }}", false),
        ("{{ {'a': b ~ c} | tojson -}}", false),
        ("text", false),
        ("", false),
    ] {
        assert_eq!(is_value(source), expected, "{source}");
    }
}

#[test]
fn an_expression_that_makes_json_is_told_from_others() {
    for (source, expected) in [
        ("{{ '[' ~ (data.id | tojson) ~ ']' }}", true),
        ("{{ (data | tojson) }}", true),
        ("{{ data.tags|tojson if data.tags else '[]' }}", true),
        ("{{ data|tojson|replace('a', 'b') }}", true),
        ("{{ data.status_label }}", false),
        ("{{ 'tojson' ~ \"| tojson \\\" tojson\" }}", false),
        ("{{ data.tojson }}", false),
    ] {
        assert_eq!(makes_json(source), expected, "{source}");
    }
}

#[test]
fn a_type_can_not_end_the_statement_it_stands_in() {
    for fine in [
        "text",
        "numeric(12, 2)",
        "timestamp with time zone",
        "crm.mood",
        "integer[]",
        "INTEGER PRIMARY KEY",
    ] {
        assert!(is_type(fine), "{fine}");
    }
    for bad in [
        "",
        " text",
        "text; DROP TABLE x",
        "text) --",
        "text)(",
        "a\"b",
        "text -- x",
        "1",
    ] {
        assert!(!is_type(bad), "{bad}");
    }
}

#[test]
fn an_object_s_last_key_of_a_name_counts() {
    let payload = br#"{"a": 1.50, "b": null, "A": "x", "a": {"c": [1, 2]}, "d": true, "e": "\ud800"}"#;
    let names = |case| {
        let fields = Fields::of_payload(payload, case).unwrap();
        fields.names.iter().cloned().zip(fields.values).collect::<Vec<_>>()
    };
    let counts = names(Case::Counts);
    assert_eq!(counts[0], ("a".to_owned(), Field::Json(r#"{"c":[1,2]}"#.to_owned())));
    assert_eq!(counts[2], ("A".to_owned(), Field::String("x".to_owned())));
    assert_eq!(counts[4], ("e".to_owned(), Field::String("\u{fffd}".to_owned())));
    assert_eq!(names(Case::Folds).len(), 4);
    for none in ["[]", "\"{}\"", "{}", "no", ""] {
        assert!(Fields::of_payload(none.as_bytes(), Case::Counts).is_err(), "{none}");
    }
}
