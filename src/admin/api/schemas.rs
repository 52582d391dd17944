//! What answers and bodies look like, written down once (`schemas.txt`) and made into JSON Schema.
//!
//! A line at the margin begins a schema and says what it is; an indented one is a field of it: `name: type  what it is`, `name?:` where it
//! may be left out, `..Other` for the fields of another one. A type is `string`, `integer`, `number`, `boolean`, `time`, `any`, a schema's
//! name, or words in quotes with `|` between them; behind it `[]` makes a list, `{}` a map, `?` something that may be null.

use serde_json::{Map, Value, json};

const TEXT: &str = include_str!("schemas.txt");

/// Every schema, by name.
pub fn all() -> Map<String, Value> {
    let mut all = Map::new();
    let mut name = "";
    for line in TEXT
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        if let Some(field) = line.strip_prefix("  ") {
            let of = all.get(name).cloned();
            if let Some(mut schema) = of {
                add(&mut schema, field, &all);
                all.insert(name.to_owned(), schema);
            }
            continue;
        }
        let (head, about) = line.split_once("  ").unwrap_or((line, ""));
        name = head;
        let about = about.trim();
        all.insert(
            name.to_owned(),
            json!({ "type": "object", "description": about, "properties": {}, "required": [] }),
        );
    }
    all
}

fn add(schema: &mut Value, field: &str, all: &Map<String, Value>) {
    if let Some(other) = field.strip_prefix("..") {
        let Some(other) = all.get(other.trim()) else { return };
        if let (Some(own), Some(others)) = (schema["properties"].as_object_mut(), other["properties"].as_object()) {
            own.extend(others.clone());
        }
        if let (Some(own), Some(others)) = (schema["required"].as_array_mut(), other["required"].as_array()) {
            own.extend(others.clone());
        }
        return;
    }
    let Some((name, rest)) = field.split_once(": ") else {
        return;
    };
    let (written, about) = rest.split_once("  ").unwrap_or((rest, ""));
    let mut of = of_type(written.trim());
    if !about.trim().is_empty() {
        of["description"] = about.trim().into();
    }
    let optional = name.strip_suffix('?');
    let name = optional.unwrap_or(name);
    schema["properties"][name] = of;
    if optional.is_none()
        && let Some(required) = schema["required"].as_array_mut()
    {
        required.push(name.into());
    }
}

/// The schema of a type.
pub fn of_type(written: &str) -> Value {
    if let Some(inner) = written.strip_suffix('?') {
        return json!({ "anyOf": [of_type(inner), { "type": "null" }] });
    }
    if let Some(inner) = written.strip_suffix("[]") {
        return json!({ "type": "array", "items": of_type(inner) });
    }
    if let Some(inner) = written.strip_suffix("{}") {
        return json!({ "type": "object", "additionalProperties": of_type(inner) });
    }
    match written {
        "string" | "integer" | "number" | "boolean" => json!({ "type": written }),
        "time" => json!({ "type": "string", "format": "date-time" }),
        "any" => json!({}),
        words if words.starts_with('"') => {
            let words: Vec<&str> = words.split('|').map(|word| word.trim().trim_matches('"')).collect();
            json!({ "type": "string", "enum": words })
        }
        name => json!({ "$ref": format!("#/components/schemas/{name}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name that is referred to.
    fn named(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    found.push(name.trim_start_matches("#/components/schemas/").to_owned());
                }
                fields.values().for_each(|value| named(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| named(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_line_is_understood_and_every_schema_that_is_named_is_there() {
        let all = all();
        let mut names = Vec::new();
        all.values().for_each(|schema| named(schema, &mut names));
        for name in &names {
            assert!(all.contains_key(name), "{name}");
        }
        let lines = TEXT.lines().filter(|line| line.starts_with("  "));
        for line in lines.filter(|line| !line.trim_start().starts_with("..")) {
            let name = line.trim_start().split_once(": ").unwrap_or_else(|| panic!("{line}")).0;
            assert!(
                name.chars()
                    .all(|letter| letter.is_ascii_lowercase() || "_?-0123456789".contains(letter)),
                "{line}"
            );
        }
        assert_eq!(of_type("string[]?")["anyOf"][0]["items"]["type"], "string");
        assert_eq!(of_type("\"a\"|\"b\"")["enum"], json!(["a", "b"]));
        assert_eq!(of_type("integer{}")["additionalProperties"]["type"], "integer");
    }

    #[test]
    fn every_schema_of_a_route_is_there() {
        let all = all();
        let is_there = |name: &str| {
            let mut names = Vec::new();
            named(&of_type(name), &mut names);
            names.iter().all(|name| all.contains_key(name))
        };
        for route in super::super::ROUTES {
            let (super::super::Says::One(says) | super::super::Says::Items(says)) = route.says else {
                continue;
            };
            assert!(is_there(says), "{says}");
            assert!(route.body.is_empty() || all.contains_key(route.body), "{}", route.body);
        }
    }
}
