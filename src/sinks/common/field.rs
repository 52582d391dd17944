//! A value for a column, as templates, transforms and events have it.

#[cfg(any(test, feature = "sink-postgres"))]
use super::jsonb::fit_for_jsonb;
use crate::json::{self, Kind, Node};

/// A value for a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) enum Field {
    Null,
    /// What a template made: the column's type says what it is.
    Text(String),
    /// A string among JSON values.
    String(String),
    /// As it was written.
    Number(String),
    Bool(bool),
    /// An object or an array, without white space between its tokens.
    Json(String),
}

impl Field {
    pub(super) fn of(node: Node<'_>) -> Field {
        match node.kind() {
            Kind::Null => Field::Null,
            Kind::Bool => Field::Bool(node.raw() == "true"),
            Kind::Number => Field::Number(node.raw().to_owned()),
            Kind::String => Field::String(decoded(node)),
            Kind::Object | Kind::Array => Field::Json(json::compact(node.raw())),
        }
    }

    /// As JSON, for people.
    pub(super) fn push_json(&self, out: &mut String) {
        match self {
            Field::Null => out.push_str("null"),
            Field::Text(text) | Field::String(text) => json::push_string(out, text),
            Field::Number(text) | Field::Json(text) => out.push_str(text),
            Field::Bool(is) => out.push_str(if *is { "true" } else { "false" }),
        }
    }

    /// Becomes a text that PostgreSQL casts to the column's type, or nothing. Whether that changed anything but its form.
    #[cfg(any(test, feature = "sink-postgres"))]
    pub(super) fn fit_for_postgres(&mut self, is_json: bool) -> bool {
        let text = match std::mem::replace(self, Field::Null) {
            Field::Null => return false,
            Field::String(text) if is_json => {
                let mut quoted = String::new();
                json::push_string(&mut quoted, &text);
                quoted
            }
            Field::Text(text) | Field::String(text) | Field::Number(text) | Field::Json(text) => text,
            Field::Bool(is) => is.to_string(),
        };
        let fits = if is_json {
            fit_for_jsonb(&text).into_owned()
        } else {
            text.replace('\0', "\u{fffd}")
        };
        let changed = fits != text;
        *self = Field::Text(fits);
        changed
    }
}

/// The text of a string; a half of a surrogate pair is no character, and becomes U+FFFD.
pub(super) fn decoded(node: Node<'_>) -> String {
    node.as_string().map_or_else(
        || serde_json::from_str(&fit_for_jsonb(node.raw())).unwrap_or_default(),
        std::borrow::Cow::into_owned,
    )
}

/// A text that may be none.
pub(super) fn text(text: Option<&str>) -> Field {
    text.map_or(Field::Null, |text| Field::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_can_not_hold_is_replaced_and_a_string_is_json_only_among_json() {
        let fit = |mut field: Field, is_json| (field.fit_for_postgres(is_json), field);
        let text = |text: &str| Field::Text(text.into());
        assert_eq!(fit(Field::String("a\0".into()), false), (true, text("a\u{fffd}")));
        assert_eq!(fit(Field::String("a".into()), true), (false, text("\"a\"")));
        assert_eq!(fit(text("{\"a\":1}"), true), (false, text("{\"a\":1}")));
        assert_eq!(fit(Field::Number("1.50".into()), false), (false, text("1.50")));
        assert_eq!(
            fit(Field::Json("[\"\\u0000\"]".into()), true),
            (true, text("[\"\u{fffd}\"]"))
        );
        assert_eq!(fit(Field::Bool(true), false), (false, text("true")));
        assert_eq!(fit(Field::Null, true), (false, Field::Null));
    }
}
