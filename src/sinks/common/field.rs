//! A value for a column, as templates, transforms and events have it.

#[cfg(any(test, feature = "sink-postgres"))]
use super::jsonb::fit_for_jsonb;
use crate::json::{self, Decimal, Doc, Kind, Node};

/// Longer than any integer of a database, and short enough to be written out.
const DIGITS_MAX: usize = 40;

/// What a column takes, as far as values have to be written for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sinks) enum Takes {
    /// JSON text.
    Json,
    /// Integers.
    Whole,
    /// Anything else.
    Other,
}

impl Takes {
    /// By the name that SQL has for a type, or that a table is made with.
    pub(in crate::sinks) fn of(kind: &str) -> Takes {
        let kind = kind.trim().to_ascii_lowercase();
        match kind.as_str() {
            "json" | "jsonb" => Takes::Json,
            "smallint" | "integer" | "bigint" | "int" | "int2" | "int4" | "int8" | "smallserial" | "serial"
            | "bigserial" | "serial2" | "serial4" | "serial8" => Takes::Whole,
            _ => Takes::Other,
        }
    }
}

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

    /// Writes it as what takes this has it, its value unchanged: a number that is whole as an integer, and a template's text for a column
    /// of JSON as the JSON that it is. An error is why a column can't have it.
    pub(super) fn write_for(&mut self, takes: Takes) -> Result<(), &'static str> {
        match (takes, &mut *self) {
            (Takes::Whole, Field::Number(text)) => match Decimal::parse(text).whole(DIGITS_MAX) {
                Some((whole, true)) => *text = whole,
                Some((_, false)) => return Err("takes whole numbers, and this one is not"),
                None => return Err("takes whole numbers, and this one is too large"),
            },
            (Takes::Json, Field::Text(text)) => {
                let doc = Doc::parse(text.as_bytes());
                let written = doc.map(|doc| json::compact(doc.root().raw()));
                if let Ok(written) = written {
                    *self = Field::Json(written);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Becomes a text that PostgreSQL casts to the column's type, or nothing. Whether that changed anything but its form.
    #[cfg(any(test, feature = "sink-postgres"))]
    pub(super) fn fit_for_postgres(&mut self, takes: Takes) -> bool {
        let is_json = takes == Takes::Json;
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
        || serde_json::from_slice(fit_for_jsonb(node.raw()).as_bytes()).unwrap_or_default(),
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
        let fit = |mut field: Field, is_json| {
            let takes = if is_json { Takes::Json } else { Takes::Other };
            (field.fit_for_postgres(takes), field)
        };
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

    #[test]
    fn an_integer_s_column_takes_what_is_whole_and_says_what_it_does_not_take() {
        let written = |text: &str| {
            let mut field = Field::Number(text.into());
            field.write_for(Takes::Whole).map(|()| field)
        };
        for (text, whole) in [
            ("7", "7"),
            ("-12.50e1", "-125"),
            ("1e1", "10"),
            ("-0", "0"),
            ("0e999999999999999999999999999999999999999999", "0"),
            ("1e39", "1000000000000000000000000000000000000000"),
        ] {
            assert_eq!(written(text), Ok(Field::Number(whole.into())), "{text}");
        }
        for (text, said) in [
            ("7.5", "is not"),
            ("1e-1", "is not"),
            ("1e40", "too large"),
            ("1e999999999999999999999999999999999999999999", "too large"),
        ] {
            assert!(written(text).unwrap_err().contains(said), "{text}");
        }
        for (kind, takes) in [
            ("jsonb", Takes::Json),
            ("BIGINT", Takes::Whole),
            ("int4", Takes::Whole),
            ("numeric(8,0)", Takes::Other),
            ("integer[]", Takes::Other),
        ] {
            assert_eq!(Takes::of(kind), takes, "{kind}");
        }
    }
}
