//! The event types that Close documents. Others are no faults: Close adds types at any time, and whoever names one may know it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::Deserialize;

use super::EventPattern;
use crate::names::nearest;

/// Every documented event: object type and action (Close's documentation, "List of event types").
pub static DOCUMENTED: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct Document {
        event_types: Vec<Type>,
    }
    #[derive(Deserialize)]
    struct Type {
        object_type: String,
        actions: Vec<String>,
    }
    let document: Result<Document, _> = serde_json::from_slice(include_bytes!("types.json"));
    let types = document.map(|document| document.event_types).unwrap_or_default();
    let pairs = types
        .into_iter()
        .flat_map(|Type { object_type, actions }| actions.into_iter().map(move |action| (object_type.clone(), action)));
    pairs.collect()
});

/// Of these there are as many as an organization makes up: Close documents examples only.
const OPEN: &str = "task";

/// The names of all of them, `object_type.action`.
pub fn names() -> impl Iterator<Item = String> {
    DOCUMENTED
        .iter()
        .map(|(object_type, action)| format!("{object_type}.{action}"))
}

/// The documented actions of an object type.
pub fn actions(object_type: &str) -> Vec<&'static str> {
    let is_of = |pair: &&(String, String)| pair.0 == object_type;
    DOCUMENTED
        .iter()
        .filter(is_of)
        .map(|(_, action)| action.as_str())
        .collect()
}

/// What may be wrong with a pattern that fits no documented event, one sentence; `None`: it fits one, or names what nobody can
/// list.
pub fn doubt(pattern: &EventPattern) -> Option<String> {
    if pattern.is_all() || names().any(|name| pattern.matches(Some(&name))) {
        return None;
    }
    let text = pattern.as_str();
    let wrong = format!("Close documents no event type \"{text}\"");
    let meaning = |alike: &BTreeSet<String>| {
        let meant = nearest(text, alike.iter().map(String::as_str))?;
        Some(format!("{wrong}: did you mean \"{meant}\"?"))
    };
    let object_type = text.rsplit_once('.').map_or(text, |(object_type, _)| object_type);
    let actions = actions(object_type);
    // Whoever names a type that there is has not misspelt another one.
    let is_known = pattern.literal().is_some() && (object_type == OPEN || !actions.is_empty());
    let alike = if is_known {
        of(object_type, &actions)
    } else {
        alike(pattern)
    };
    if let Some(doubt) = meaning(&alike) {
        return Some(doubt);
    }
    if object_type == OPEN && is_known {
        return Some(format!(
            "{wrong}: tasks have a type of their own, and \"task.*\" is all of them"
        ));
    }
    if object_type == OPEN || object_type.starts_with("task.") {
        return None;
    }
    if actions.is_empty() {
        return Some(format!(
            "{wrong}: `closehook trigger --list` shows those that it documents"
        ));
    }
    Some(format!("{wrong}: of {object_type} it documents {}", actions.join(", ")))
}

/// What could be written where this object type is named; of the open one, which has no action by itself, what takes all of its kinds.
fn of(object_type: &str, actions: &[&str]) -> BTreeSet<String> {
    if object_type != OPEN {
        return actions.iter().map(|action| format!("{object_type}.{action}")).collect();
    }
    let is_task = |pair: &&(String, String)| pair.0.starts_with("task.");
    let tasks = DOCUMENTED.iter().filter(is_task);
    tasks.map(|(_, action)| format!("{OPEN}.*.{action}")).collect()
}

/// What could be written in a pattern's place: types for a type, patterns for a pattern.
fn alike(pattern: &EventPattern) -> BTreeSet<String> {
    if pattern.literal().is_some() {
        return names().collect();
    }
    let mut patterns = BTreeSet::new();
    for (object_type, action) in DOCUMENTED.iter() {
        patterns.insert(format!("*.{action}"));
        patterns.insert(format!("{object_type}.*"));
        if let Some((family, _)) = object_type.split_once('.') {
            patterns.insert(format!("{family}.*"));
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_type_is_doubted_and_the_right_one_named() {
        let said = |text: &str| doubt(&EventPattern::parse(text).unwrap());
        for (text, meant) in [
            ("leed.updated", "lead.updated"),
            ("lead.update", "lead.updated"),
            ("oportunity.*", "opportunity.*"),
            ("activty.*", "activity.*"),
            ("*.creatd", "*.created"),
            ("activity.email.snet", "activity.email.sent"),
            ("task.created", "task.*.created"),
            ("task.updatd", "task.*.updated"),
        ] {
            let said = said(text).unwrap_or_default();
            assert!(
                said.contains(&format!("\"{text}\": did you mean \"{meant}\"?")),
                "{text}: {said}"
            );
        }
        for fine in [
            "lead.updated",
            "*",
            "activity.*",
            "*.created",
            "l*d.*",
            "task.my_subtype.created",
            "task.my_*",
        ] {
            assert_eq!(said(fine), None, "{fine}");
        }
        assert!(
            said("lead.exchanged_for_gold")
                .unwrap()
                .contains("of lead it documents created")
        );
        assert!(said("task.exchanged_for_gold").unwrap().contains("\"task.*\" is all"));
        assert!(said("warehouse.robot.rusted").unwrap().contains("trigger --list"));
    }
}
