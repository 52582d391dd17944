//! The filter `named`: an object with its custom fields under their names.
//!
//! In a schema each field has a name of its own, by the schema's order; so a name always means the same field, whichever of them an object
//! has. What Close's own fields are called is theirs: `data` and `previous_data` are looked at together, since the second has only what
//! has changed.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, RwLock};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::faults::{defined, wrong};
use super::value::{Json, Pairs};
use crate::render::Names;
use crate::render::names::untaken;

/// So many ids are asked for because of one event; the others are with the next try.
const ASKED_MAX: usize = 1000;

/// What custom fields are called now, and what is wanted beside.
#[derive(Debug, Default)]
pub(super) struct KnownNames {
    names: RwLock<Names>,
    unnamed: Mutex<Option<Vec<String>>>,
}

impl KnownNames {
    pub fn set(&self, names: Names) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    pub fn take_unnamed(&self) -> Option<Vec<String>> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn want(&self, ids: Vec<String>) -> Error {
        let mut unnamed = self.unnamed.lock().unwrap_or_else(PoisonError::into_inner);
        unnamed.get_or_insert_default().extend(ids);
        wrong("the names of custom fields are not known yet")
    }
}

/// The id of a custom field, by the key that it stands under.
fn id_of(key: &str) -> Option<&str> {
    key.strip_prefix("custom.").filter(|id| !id.is_empty())
}

/// The object with custom fields under their names. What has no known name keeps its key.
pub(super) fn named(state: &State, value: &Value, known: &KnownNames) -> Result<Value, Error> {
    defined(value, "named")?;
    let object = value
        .downcast_object_ref::<Json>()
        .filter(|_| value.kind() == ValueKind::Map);
    let Some(object) = object else {
        return Err(wrong("named wants an object of the event, like data"));
    };
    let names = known.names.read().unwrap_or_else(PoisonError::into_inner);
    let entries: Vec<(String, Value)> = object.entries().collect();
    let ids: Vec<&str> = entries.iter().filter_map(|(key, _)| id_of(key)).collect();
    let other = other_side(state, object);
    let other = other.as_ref().and_then(Value::downcast_object_ref::<Json>);
    let own = schema_of(state, object, other).filter(|schema| names.has(schema) || names.lacking.is_some());
    let own = own.as_deref().or_else(|| names.that_has(&ids));

    let unknown = ids.iter().filter(|id| names.of(own, id).is_none());
    let waits: Vec<&str> = unknown.copied().filter(|id| !names.lets_stay(own, id)).collect();
    if !waits.is_empty() {
        return Err(known.want(waits.into_iter().take(ASKED_MAX).map(str::to_owned).collect()));
    }

    let name_of = |key: &str| names.of(own, id_of(key)?);
    let mut taken: BTreeSet<String> = BTreeSet::new();
    taken.extend(
        entries
            .iter()
            .map(|(key, _)| key.clone())
            .filter(|key| name_of(key).is_none()),
    );
    let others = other.into_iter().flat_map(Json::entries).map(|(key, _)| key);
    taken.extend(others.filter(|key| id_of(key).is_none()));
    let renamed = entries.iter().map(|(key, value)| {
        let Some(name) = name_of(key) else {
            return (key.clone(), value.clone());
        };
        let name = untaken(name.to_owned(), id_of(key).unwrap_or_default(), |name| {
            taken.contains(name)
        });
        taken.insert(name.clone());
        (name, value.clone())
    });
    Ok(Value::from_object(Pairs(renamed.collect())))
}

/// Of `data` the event's `previous_data`, and the other way round; `None`: it is neither.
fn other_side(state: &State, object: &Json) -> Option<Value> {
    let is_it = |value: &Value| value.downcast_object_ref::<Json>().is_some_and(|json| json.is(object));
    let (data, before) = (state.lookup("data"), state.lookup("previous_data"));
    let sides = |one: Option<Value>, other: Option<Value>| {
        one.filter(is_it)?;
        Some(other.unwrap_or_default())
    };
    sides(data.clone(), before.clone()).or_else(|| sides(before, data))
}

/// Which schema an object's fields are in, as far as the object says, or the event that it is of.
fn schema_of(state: &State, object: &Json, other: Option<&Json>) -> Option<String> {
    let text = |object: &Json, key: &str| object.get(key)?.as_str().map(str::to_owned);
    let by_type = |object: &Json| {
        let activity = text(object, "custom_activity_type_id").map(|id| format!("activity/{id}"));
        activity.or_else(|| Some(format!("custom_object/{}", text(object, "custom_object_type_id")?)))
    };
    let by_id = |object: &Json| {
        let prefixes = [("lead_", "lead"), ("cont_", "contact"), ("oppo_", "opportunity")];
        let id = text(object, "id")?;
        let found = prefixes.iter().find(|(prefix, _)| id.starts_with(prefix))?;
        Some(found.1.to_owned())
    };
    let by_event = || {
        let is_side = other_side(state, object).is_some();
        let object_type = state.lookup("object_type").filter(|_| is_side)?;
        let plain = object_type
            .as_str()
            .filter(|name| ["lead", "contact", "opportunity"].contains(name))?;
        Some(plain.to_owned())
    };
    by_type(object)
        .or_else(|| other.and_then(by_type))
        .or_else(|| by_id(object))
        .or_else(by_event)
}
