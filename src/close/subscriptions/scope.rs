//! Which events the rules want, as a subscription can ask for them.
//!
//! Close may filter only where it is sure to mean the same ([`Filter::is_unambiguous`]), and only where every rule for that
//! event has such a filter; so whatever a rule matches, the planned subscription accepts.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::close::api::error::Error;
use crate::close::api::subscriptions::EventSpec;
use crate::event::types::DOCUMENTED;
use crate::json::Doc;
use crate::rules::RuleSet;
use crate::rules::filter::Filter;
use crate::rules::selection::EventPattern;

/// Which events are wanted here: the union of the rules, with Close's part of the filtering.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope(Vec<Want>);

#[derive(Debug, Clone, PartialEq)]
struct Want {
    /// None: all events.
    patterns: Vec<EventPattern>,
    /// What Close may filter by; `None`: nothing.
    filter: Option<Filter>,
}

impl Want {
    fn takes(&self, type_action: Option<&str>) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(type_action))
    }
}

impl Scope {
    /// What the rules want; without rules, everything. A rule without sinks counts, too: what only it names is kept.
    pub fn of(rules: &RuleSet, push_down: bool) -> Scope {
        let wants: Vec<Want> = rules
            .wants()
            .map(|(patterns, filter)| Want {
                patterns: patterns.to_vec(),
                filter: filter.filter(|filter| push_down && filter.is_unambiguous()).cloned(),
            })
            .collect();
        if wants.is_empty() {
            return Scope(vec![Want {
                patterns: Vec::new(),
                filter: None,
            }]);
        }
        Scope(wants)
    }

    /// Whether events of this type are wanted at all; `None` is an event without a readable type.
    pub fn takes(&self, type_action: Option<&str>) -> bool {
        self.0.iter().any(|want| want.takes(type_action))
    }

    /// Whether the event is wanted.
    pub fn accepts(&self, type_action: Option<&str>, event: &Doc<'_>) -> bool {
        let mut wants = self.0.iter().filter(|want| want.takes(type_action));
        wants.any(|want| want.filter.as_ref().is_none_or(|filter| filter.matches(event)))
    }

    /// The types it names, if it names them all.
    pub fn literal_types(&self) -> Option<Vec<(String, String)>> {
        let mut types = BTreeSet::new();
        for want in &self.0 {
            if want.patterns.is_empty() {
                return None;
            }
            for pattern in &want.patterns {
                types.insert(split(pattern.literal()?)?);
            }
        }
        Some(types.into_iter().collect())
    }

    /// For people.
    pub fn describe(&self) -> String {
        let mut names = BTreeSet::new();
        for want in &self.0 {
            let filtered = if want.filter.is_some() { " (filtered)" } else { "" };
            if want.patterns.is_empty() {
                names.insert(format!("*{filtered}"));
            }
            for pattern in &want.patterns {
                names.insert(format!("{}{filtered}", pattern.as_str()));
            }
        }
        // What is wanted whole takes in what is wanted of it.
        let all = |name: &str| names.contains(name.strip_suffix(" (filtered)").unwrap_or_default());
        if names.contains("*") {
            return "*".to_owned();
        }
        let names: Vec<String> = names.iter().filter(|name| !all(name)).cloned().collect();
        names.join(", ")
    }

    /// The same for the same scope, different for another.
    pub fn id(&self) -> String {
        let mut text = String::new();
        for want in &self.0 {
            for pattern in &want.patterns {
                let _ = write!(text, "{} ", pattern.as_str());
            }
            let _ = writeln!(
                text,
                "{}",
                want.filter.as_ref().map(ToString::to_string).unwrap_or_default()
            );
        }
        hex::encode(&Sha256::digest(text)[..8])
    }

    /// The `events` of a subscription that sends all of it, and what a person should know about them.
    pub fn subscription(&self) -> Result<(Vec<EventSpec>, Vec<String>), Error> {
        let mut notes = Vec::new();
        let mut types: BTreeSet<(String, String)> = DOCUMENTED.iter().cloned().collect();
        let mut has_wildcards = false;
        for pattern in self.0.iter().flat_map(|want| &want.patterns) {
            match pattern.literal().and_then(split) {
                Some(pair) => {
                    if !types.contains(&pair) {
                        notes.push(format!(
                            "{} is not among the event types Close documents; it is asked for all the same",
                            pattern.as_str()
                        ));
                        types.insert(pair);
                    }
                }
                None if !DOCUMENTED.iter().any(|pair| pattern.matches(Some(&name(pair)))) => {
                    notes.push(format!(
                        "{} matches no event type that Close documents",
                        pattern.as_str()
                    ));
                }
                None => has_wildcards = true,
            }
        }
        if has_wildcards || self.0.iter().any(|want| want.patterns.is_empty()) {
            notes.push(
                "patterns with * subscribe to the types Close documents now; events of other types are fetched by reconciling only"
                    .into(),
            );
        }
        let mut specs = Vec::new();
        let mut filtered = Vec::new();
        for pair in types {
            let type_action = name(&pair);
            let wants: Vec<&Want> = self.0.iter().filter(|want| want.takes(Some(&type_action))).collect();
            if wants.is_empty() {
                continue;
            }
            let filters: Option<Vec<Filter>> = wants.iter().map(|want| want.filter.clone()).collect();
            let extra_filter = filters
                .map(Filter::any_of)
                .map(|filter| RawValue::from_string(filter.to_string()));
            let extra_filter = extra_filter
                .transpose()
                .map_err(|error| Error::Local(error.to_string()))?;
            if extra_filter.is_some() {
                filtered.push(type_action);
            }
            let (object_type, action) = pair;
            specs.push(EventSpec {
                object_type,
                action,
                extra_filter,
            });
        }
        if !filtered.is_empty() {
            notes.push(format!(
                "Close filters {}: what it filters out never comes into the log and can't be replayed to a later rule (push_down = false in [close] turns this off)",
                filtered.join(", ")
            ));
        }
        if specs.is_empty() {
            return Err(Error::Missing(
                "no rule wants an event that could be subscribed: check `events` in [[rules]]".into(),
            ));
        }
        Ok((specs, notes))
    }
}

/// `object_type.action` as its two parts.
pub(in crate::close) fn split(type_action: &str) -> Option<(String, String)> {
    let (object_type, action) = type_action.rsplit_once('.')?;
    (!object_type.is_empty() && !action.is_empty()).then(|| (object_type.to_owned(), action.to_owned()))
}

/// The two parts as `object_type.action`.
pub(in crate::close) fn name((object_type, action): &(String, String)) -> String {
    format!("{object_type}.{action}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_whole_is_said_once() {
        let filter = r#"{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"created"}}"#;
        let want = |pattern: &str, filtered: bool| Want {
            patterns: vec![EventPattern::parse(pattern).unwrap()],
            filter: filtered.then(|| Filter::parse(filter).unwrap()),
        };
        let said = |wants: Vec<Want>| Scope(wants).describe();
        assert_eq!(said(vec![want("lead.*", true), want("*", false)]), "*");
        assert_eq!(
            said(vec![want("lead.*", true), want("note.*", false)]),
            "lead.* (filtered), note.*"
        );
        assert_eq!(said(vec![want("lead.*", true), want("lead.*", false)]), "lead.*");
    }
}
