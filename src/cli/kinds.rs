//! Event types on the command line: patterns and single ones, with a word about those that are perhaps misspelt.
//!
//! A type that Close does not document is no fault, for it may be new. So what is doubted is said on standard error, once, where
//! the flag is read, and taken as it is.

use serde_json::{Value, json};

use super::samples::SAMPLES;
use super::{Global, Outcome, print_line, report};
use crate::event::EventPattern;
use crate::event::types;

/// For clap: a pattern like `lead.updated` or `activity.*`.
pub(super) fn pattern(text: &str) -> Result<String, String> {
    let pattern = EventPattern::parse(text)?;
    if let Some(doubt) = types::doubt(&pattern) {
        report::notice(report::wants_json(), &doubt);
    }
    Ok(text.to_owned())
}

/// For clap: one type of event, without `*`.
pub(super) fn one(text: &str) -> Result<String, String> {
    let is_whole = text
        .rsplit_once('.')
        .is_some_and(|(object_type, action)| !object_type.is_empty() && !action.is_empty());
    if !is_whole {
        return Err(format!(
            "\"{text}\" names no action: write it like lead.updated or activity.email.sent"
        ));
    }
    if text.contains('*') {
        return Err(format!(
            "\"{text}\" is no single type: write it like lead.updated, without *"
        ));
    }
    pattern(text)
}

/// Every documented type with its actions, for people a line an object type.
pub(super) fn list(global: &Global) -> Outcome {
    if global.json {
        let samples: Vec<Value> = SAMPLES
            .iter()
            .filter_map(|text| serde_json::from_slice(text.as_bytes()).ok())
            .collect();
        return types::DOCUMENTED.iter().try_for_each(|(object_type, action)| {
            let is_it =
                |sample: &Value| sample["event"]["object_type"] == *object_type && sample["event"]["action"] == *action;
            let is_documented = samples.iter().any(is_it);
            let value = json!({ "type": format!("{object_type}.{action}"), "documented_sample": is_documented });
            print_line(&value.to_string())
        });
    }
    let mut object_types: Vec<&str> = types::DOCUMENTED.iter().map(|(name, _)| name.as_str()).collect();
    object_types.dedup();
    let width = object_types.iter().map(|name| name.len()).max().unwrap_or_default();
    for object_type in object_types {
        print_line(&format!(
            "{object_type:width$}  {}",
            types::actions(object_type).join(" ")
        ))?;
    }
    Ok(())
}
