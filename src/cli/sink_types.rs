//! `closehook sinks types`: what types of sinks there are, and what there is to say of one. All of it comes from the definitions
//! ([`crate::config::SinkType`]).

use serde::Serialize;

use super::help::WIDTH;
use super::{Global, Outcome, json_line, print_line, table};
use crate::config::{COMMON_KEYS, Key, SinkType};
use crate::plain::wrapped;
use crate::sinks::REGISTRY;

/// The names of all types, for clap.
pub(super) fn names() -> Vec<&'static str> {
    REGISTRY.iter().map(|kind| kind.name).collect()
}

pub(super) fn run(global: &Global, name: Option<&str>) -> Outcome {
    let mut chosen = REGISTRY.iter().filter(|kind| name.is_none_or(|name| name == kind.name));
    if global.json {
        return chosen.try_for_each(|kind| print_line(&json_line(&Shown::of(kind))?));
    }
    if name.is_some() {
        return chosen.try_for_each(|kind| print_line(&page(kind)));
    }
    print_line(&list())
}

/// A type, as `--json` says it.
#[derive(Serialize)]
struct Shown {
    r#type: &'static str,
    in_build: bool,
    feature: Option<&'static str>,
    about: &'static str,
    promise: &'static str,
    notes: &'static str,
    setup: &'static str,
    example: &'static str,
    keys: Vec<ShownKey>,
}

/// A key; one of a table within is called `table.key`.
#[derive(Serialize)]
struct ShownKey {
    key: String,
    presence: &'static str,
    value: String,
    secret: bool,
    template: bool,
    common: bool,
    about: &'static str,
}

impl Shown {
    fn of(kind: &SinkType) -> Shown {
        let in_build = kind.parse.is_some();
        let mut keys = Vec::new();
        if in_build {
            ShownKey::add(&mut keys, "", kind.keys, false);
            ShownKey::add(&mut keys, "", COMMON_KEYS, true);
        }
        Shown {
            r#type: kind.name,
            in_build,
            feature: kind.feature,
            about: kind.about,
            promise: kind.promise,
            notes: kind.notes,
            setup: kind.setup,
            example: kind.example,
            keys,
        }
    }
}

impl ShownKey {
    fn add(all: &mut Vec<ShownKey>, within: &str, keys: &[Key], common: bool) {
        for key in keys {
            let name = format!("{within}{}", key.name);
            all.push(ShownKey {
                presence: presence(key),
                value: key.shown(),
                secret: key.is_secret,
                template: key.is_template,
                common,
                about: key.about,
                key: name.clone(),
            });
            ShownKey::add(all, &format!("{name}."), key.inner, common);
        }
    }
}

/// What stands in front of what is said of a key.
fn presence(key: &Key) -> &'static str {
    if key.is_required() {
        "required"
    } else if key.shows_default() {
        "default"
    } else {
        "optional"
    }
}

/// The words that a promise begins with.
const PROMISES: [&str; 2] = ["Exactly once", "At least once"];

/// Every type with the gist of its promise.
fn list() -> String {
    // What the other columns, and the gaps between them, leave of a line.
    let room = WIDTH - "eventbridge".len() - "at least once".len() - 6;
    let of_type = |kind: &&SinkType| {
        let promise = PROMISES.iter().find(|promise| kind.promise.starts_with(**promise));
        let promise = promise.map(|promise| promise.to_lowercase()).unwrap_or_default();
        vec![kind.name.to_owned(), promise, wrapped(kind.about, room).join("\n")]
    };
    let rows = REGISTRY.iter().map(of_type).collect();
    let table = table(&["type", "promise", "what becomes of an event"], rows);
    let advice = wrapped(
        "`closehook sinks types NAME` shows the keys of one, an example, and what the other side has to be set up with.",
        WIDTH,
    );
    format!("{table}\n\n{}", advice.join("\n"))
}

/// All there is to say of a type.
fn page(kind: &SinkType) -> String {
    if kind.parse.is_none() {
        let feature = kind.feature.unwrap_or_default();
        return format!("{}: {} (as a Cargo feature: {feature})", kind.name, kind.about);
    }
    let mut lines = wrapped(&format!("{}: {}", kind.name, kind.about), WIDTH);
    for text in [format!("{}.", kind.promise), kind.notes.to_owned()] {
        if !text.is_empty() {
            lines.push(String::new());
            lines.extend(wrapped(&text, WIDTH));
        }
    }
    lines.push("\nExample:".to_owned());
    lines.extend(kind.example.lines().map(str::to_owned));
    if !kind.setup.is_empty() {
        lines.push("\nSet up there:".to_owned());
        lines.extend(wrapped(kind.setup, WIDTH));
    }
    for (heading, keys) in [("\nKeys:", kind.keys), ("\nKeys of every sink:", COMMON_KEYS)] {
        if !keys.is_empty() {
            lines.push(heading.to_owned());
            explain(&mut lines, keys, "  ");
        }
    }
    lines.join("\n")
}

/// Each key as it is written, and below it what it is for.
fn explain(lines: &mut Vec<String>, keys: &[Key], indent: &str) {
    let further = format!("{indent}    ");
    for key in keys {
        lines.push(format!("{indent}{}", key.line()));
        let mut about = vec![format!("({})", presence(key))];
        if key.is_template {
            about.push("A template.".into());
        }
        if key.is_secret {
            about.push(format!("Or {0}_env, or {0} itself.", key.name));
        }
        about.push(format!("{}.", key.about));
        let said = wrapped(&about.join(" "), WIDTH - further.len());
        lines.extend(said.iter().map(|line| format!("{further}{line}")));
        explain(lines, key.inner, &further);
    }
}
