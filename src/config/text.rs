//! TOML as text: where a fault in it is, and values taken out of it as JSON without a parse that would round their numbers.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml_edit::{Document, DocumentMut, Item};

use super::Fault;
use super::secret::names_a_secret;

/// Parses the text of a file that is called `path`; a fault has its line and column.
pub(crate) fn parse(path: &Path, text: &str) -> Result<DocumentMut, Fault> {
    let document = Document::parse(text).map_err(|error| {
        let position = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!(":{line}:{column}")
        });
        let place = format!("{}{}", path.display(), position.unwrap_or_default());
        let literal = error.span().and_then(|span| text.get(span));
        let message = match literal.filter(|literal| is_long_integer(literal)) {
            Some(number) => format!(
                "{} is beyond the 64 bits of a TOML integer: write what it is in (a filter, a payload) as JSON text, where \
                 numbers have no limit, like filter = '{{\"type\": ...}}'",
                if is_for_a_secret(text, error.span()) { "a number" } else { number }
            ),
            None => format!("not valid TOML: {}", error.message().replace('\n', ", ")),
        };
        Fault { place, message }
    })?;
    Ok(document.into_mut())
}

/// Replaces every `rules[].filter` table by its JSON text, so that numbers keep the digits they are written with: TOML's own
/// parse would make floats of them. `@file` becomes the file's content.
pub(super) fn with_filters_as_text(path: &Path, text: &str, faults: &mut Vec<Fault>) -> Result<String, Vec<Fault>> {
    let mut document = parse(path, text).map_err(|fault| vec![fault])?;
    for list in ["sinks", "rules"] {
        if let Some(list_item) = document.get_mut(list) {
            transforms_as_text(path, list, list_item, faults);
        }
    }
    let Some(rules) = document.get_mut("rules") else {
        return Ok(document.to_string());
    };
    let mut index = 0;
    let mut each = |filter: Option<&mut Item>| {
        let place = format!("rules[{index}].filter");
        index += 1;
        let Some(filter) = filter else { return };
        let json = match filter.as_str().map(ToOwned::to_owned) {
            Some(text) => match text.strip_prefix('@') {
                Some(name) => crate::files::read_text(&beside(path, name))
                    .map_err(|error| format!("the filter in {name} can't be read: {error}")),
                None => return,
            },
            None => json_of(filter),
        };
        match json {
            Ok(json) => *filter = toml_edit::value(json),
            Err(message) => {
                faults.push(Fault { place, message });
                // Reported already; what stands in for it is valid.
                *filter = toml_edit::value(r#"{"type":"is_null"}"#);
            }
        }
    };
    if let Some(tables) = rules.as_array_of_tables_mut() {
        tables.iter_mut().for_each(|rule| each(rule.get_mut("filter")));
    } else if let Some(array) = rules.as_array_mut() {
        let mut items: Vec<Item> = array.iter().cloned().map(Item::Value).collect();
        for item in &mut items {
            each(item.get_mut("filter"));
        }
        *array = items.into_iter().filter_map(|item| item.into_value().ok()).collect();
    }
    Ok(document.to_string())
}

/// Puts the content of the file in place of a `transform` that is `@file`.
fn transforms_as_text(path: &Path, list: &str, item: &mut Item, faults: &mut Vec<Fault>) {
    let mut read = |index: usize, transform: Option<&str>| {
        let name = transform?.trim().strip_prefix('@')?;
        let content = crate::files::read_text(&beside(path, name));
        content
            .map_err(|error| {
                let place = format!("{list}[{index}].transform");
                let message = format!("the transform in {name} can't be read: {error}");
                faults.push(Fault { place, message });
            })
            // Reported already; what stands in for it is valid.
            .map_or_else(|()| Some("export default () => null".to_owned()), Some)
    };
    if let Some(tables) = item.as_array_of_tables_mut() {
        for (index, table) in tables.iter_mut().enumerate() {
            if let Some(content) = read(index, table.get("transform").and_then(Item::as_str)) {
                table.insert("transform", toml_edit::value(content));
            }
        }
    } else if let Some(array) = item.as_array_mut() {
        for (index, table) in array.iter_mut().enumerate() {
            let Some(table) = table.as_inline_table_mut() else {
                continue;
            };
            if let Some(content) = read(index, table.get("transform").and_then(toml_edit::Value::as_str)) {
                table.insert("transform", content.into());
            }
        }
    }
}

/// Whether what stands there is the value of a key that is called like a secret.
fn is_for_a_secret(text: &str, span: Option<std::ops::Range<usize>>) -> bool {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let key = line.trim_end().strip_suffix('=').unwrap_or_default();
    names_a_secret(
        key.rsplit(['{', ',', '.', ' '])
            .find(|word| !word.is_empty())
            .unwrap_or_default(),
    )
}

/// A decimal integer that TOML has no room for.
fn is_long_integer(literal: &str) -> bool {
    let digits = plain_number(literal);
    let digits = digits.strip_prefix('-').unwrap_or(&digits);
    digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.len() > 18
}

/// A file named in the configuration's `@file` is looked for beside the configuration, so that both can move together.
pub(crate) fn beside(config: &Path, name: &str) -> PathBuf {
    config.parent().map_or_else(|| name.into(), |dir| dir.join(name))
}

/// A value of TOML as JSON, numbers as they are written. An error says what JSON has no word for.
pub(crate) fn json_of(item: &Item) -> Result<String, String> {
    let text = |value: &str| Value::from(value).to_string();
    if let Some(table) = item.as_table_like() {
        let fields: Vec<String> = table
            .iter()
            .map(|(key, value)| Ok(format!("{}:{}", text(key), json_of(value)?)))
            .collect::<Result<_, String>>()?;
        return Ok(format!("{{{}}}", fields.join(",")));
    }
    if let Some(tables) = item.as_array_of_tables() {
        let elements: Vec<String> = tables
            .iter()
            .map(|table| json_of(&Item::Table(table.clone())))
            .collect::<Result<_, _>>()?;
        return Ok(format!("[{}]", elements.join(",")));
    }
    let Some(value) = item.as_value() else {
        return Ok("null".into());
    };
    match value {
        toml_edit::Value::String(string) => Ok(text(string.value())),
        toml_edit::Value::Boolean(truth) => Ok(truth.value().to_string()),
        toml_edit::Value::Integer(number) => {
            let source = number
                .as_repr()
                .and_then(|repr| repr.as_raw().as_str())
                .map(plain_number);
            let decimal = source
                .filter(|digits| !digits.starts_with("0x") && !digits.starts_with("0o") && !digits.starts_with("0b"));
            Ok(decimal.unwrap_or_else(|| number.value().to_string()))
        }
        toml_edit::Value::Float(number) => {
            if !number.value().is_finite() {
                return Err("infinite and undefined numbers do not exist in JSON".into());
            }
            let source = number
                .as_repr()
                .and_then(|repr| repr.as_raw().as_str())
                .map(plain_number);
            Ok(source.unwrap_or_else(|| number.value().to_string()))
        }
        toml_edit::Value::Datetime(_) => Err("dates do not exist in JSON: write the date in quotes".into()),
        toml_edit::Value::Array(array) => {
            let elements: Vec<String> = array
                .iter()
                .map(|element| json_of(&Item::Value(element.clone())))
                .collect::<Result<_, _>>()?;
            Ok(format!("[{}]", elements.join(",")))
        }
        toml_edit::Value::InlineTable(_) => Err("must be a table".into()),
    }
}

/// TOML allows underscores and a plus sign, JSON does not.
fn plain_number(text: &str) -> String {
    text.trim_start_matches('+').replace('_', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_named_in_the_configuration_is_a_regular_one_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let config = dir.path().join("closehook.toml");
        for (text, place) in [
            ("[[sinks]]\ntransform = \"@NAME\"", "sinks[0].transform"),
            ("sinks = [{ transform = \" @NAME\" }]", "sinks[0].transform"),
            ("[[rules]]\ntransform = \"@NAME\"", "rules[0].transform"),
            ("[[rules]]\nfilter = \"@NAME\"", "rules[0].filter"),
        ] {
            for (name, what) in [("pipe", "a pipe"), ("/dev/zero", "a device"), (".", "a directory")] {
                let (text, config) = (text.replace("NAME", name), config.clone());
                let (sender, read) = std::sync::mpsc::channel();
                // If it waits it waits for ever.
                std::thread::spawn(move || {
                    let mut faults = Vec::new();
                    with_filters_as_text(&config, &text, &mut faults).unwrap();
                    let _ = sender.send(faults);
                });
                let faults = read.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
                assert_eq!(faults.len(), 1, "{faults:?}");
                assert_eq!(faults[0].place, place);
                assert!(faults[0].message.contains(what), "{faults:?}");
            }
        }
    }
}
