//! `[[sinks]]` as they are listed: where each stands, whether or not it could be read, and what is wrong with them together.

use serde_json::Value;

use super::definition::SinkType;
use super::sink::read_sink;
use super::table::Table;
use super::{Config, Fault, SinkConfig};
use crate::names;

/// One of `[[sinks]]`, whether or not it could be read: the faults of one say nothing of where the others are, and it is there for whatever
/// names it.
#[derive(Debug)]
pub(super) struct Listed {
    place: String,
    name: Option<String>,
    dead_to: Option<String>,
    /// Which of the configuration's sinks it is; `None`: it could not be read.
    index: Option<usize>,
}

/// The sinks that could be read, each with its place.
pub(super) fn placed<'c>(listed: &'c [Listed], config: &'c Config) -> impl Iterator<Item = (&'c str, &'c SinkConfig)> {
    listed
        .iter()
        .filter_map(move |one| Some((one.place.as_str(), config.sinks.get(one.index?)?)))
}

/// Reads `[[sinks]]`: those that could be read, and all.
pub(super) fn read(root: &mut Table<'_>, types: &[&SinkType]) -> (Vec<SinkConfig>, Vec<Listed>) {
    let (mut sinks, mut listed) = (Vec::new(), Vec::new());
    for (place, value) in root.list("sinks") {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let (name, dead_to) = (text("name"), text("dead_to"));
        let sink = read_sink(&place, value, types, root.faults());
        listed.push(Listed {
            place,
            name,
            dead_to,
            index: sink.is_some().then_some(sinks.len()),
        });
        sinks.extend(sink);
    }
    (sinks, listed)
}

/// What they are called, as far as they are.
pub(super) fn names(listed: &[Listed]) -> impl Iterator<Item = &str> {
    listed.iter().filter_map(|one| one.name.as_deref())
}

/// What is wrong with them together: names that stand twice, files two would write, dead letters that come to no end.
pub(super) fn faults(config: &Config, listed: &[Listed], faults: &mut Vec<Fault>) {
    let mut fault = |place: String, message: String| faults.push(Fault { place, message });
    for (index, one) in listed.iter().enumerate() {
        let Some(name) = &one.name else { continue };
        if listed[..index].iter().any(|other| other.name.as_ref() == Some(name)) {
            fault(
                format!("{}.name", one.place),
                format!("two sinks are called \"{name}\""),
            );
        }
    }
    let mut earlier: Vec<&SinkConfig> = Vec::new();
    for (place, sink) in placed(listed, config) {
        let message = earlier.iter().find_map(|other| fault_of_both(other, sink));
        if let Some(message) = message {
            fault(place.to_owned(), message);
        }
        earlier.push(sink);
    }
    for one in listed {
        if let Some(message) = fault_of_dead_to(one, listed) {
            fault(format!("{}.dead_to", one.place), message);
        }
    }
}

/// Two sinks that would write one thing.
fn fault_of_both(one: &SinkConfig, other: &SinkConfig) -> Option<String> {
    let exclusive = one.options.exclusive()?;
    if other.options.exclusive().as_ref() != Some(&exclusive) {
        return None;
    }
    let both = format!("\"{}\" and \"{}\" would both write", one.name, other.name);
    Some(match (one.options.writes(), other.options.writes()) {
        (Some(path), Some(second)) if path != second => format!(
            "{both} one file: {} and {} are two names of it",
            path.display(),
            second.display()
        ),
        // What tells a file of several names from others says nothing to people.
        (Some(path), _) if !exclusive.contains(&path.display().to_string()) => format!("{both} {}", path.display()),
        _ => format!("{both} {exclusive}"),
    })
}

/// A dead letter has to come to its end somewhere.
fn fault_of_dead_to(sink: &Listed, listed: &[Listed]) -> Option<String> {
    let mut next = sink.dead_to.as_deref()?;
    // That it has none is a fault of its own.
    let name = sink.name.as_deref().unwrap_or_default();
    if next == name {
        return Some(format!("\"{next}\" can't get its own dead letters"));
    }
    if !names(listed).any(|name| name == next) {
        return Some(names::unknown(
            format!("there is no sink \"{next}\""),
            next,
            names(listed),
        ));
    }
    let mut way = vec![name];
    // Whoever only leads into a circle is not to blame for it.
    loop {
        way.push(next);
        if next == name {
            return Some(format!("dead letters would go round in a circle: {}", way.join(", ")));
        }
        let found = listed.iter().find(|other| other.name.as_deref() == Some(next));
        next = found.and_then(|other| other.dead_to.as_deref())?;
        if way[1..].contains(&next) {
            return None;
        }
    }
}
