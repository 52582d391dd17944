//! The part of `config/closehook.toml` that is about sinks is made from the definitions, and these are held against what reads them.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{Key, REGISTRY, SinkType};
use crate::config::{COMMON_KEYS, Fault, Presence, Table};
use crate::plain::wrapped;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/closehook.toml");

/// Set to anything, it makes the test write what it would compare.
const WRITES: &str = "CLOSEHOOK_WRITE_REFERENCE";

/// Columns of the file.
const WIDTH: usize = 132;

/// Behind longer lines, what there is to say of them makes no column.
const COLUMN_MAX: usize = 48;

/// What stands before and behind the part that is made here.
const BEGIN: &str = "# Sinks: where events go.";
const END: &str = "# Rules: what goes where.";

/// A text as comments.
fn commented(out: &mut String, text: &str) {
    for line in wrapped(text, WIDTH - 2) {
        let _ = writeln!(out, "{}", format!("# {line}").trim_end());
    }
}

/// What there is to say of a type, before its example.
fn prose(out: &mut String, kind: &SinkType) {
    let whole = format!(
        "type = \"{}\": {}. {}. {}\n{}",
        kind.name, kind.about, kind.promise, kind.notes, kind.setup
    );
    commented(out, &whole);
}

/// The key that a line of an example sets.
fn key_of<'k>(line: &str, keys: &'k [Key]) -> Option<&'k Key> {
    let name = line.split('=').next()?.trim();
    keys.iter().find(|key| key.is_called(name))
}

/// A sink with every key there is: the lines of the example, then the keys that it does without. What is no part of the example is
/// behind a mark, and all of it where nothing is `live`.
fn block(out: &mut String, kind: &SinkType, is_live: bool) {
    let mark = if is_live { "" } else { "# " };
    let example = kind
        .example
        .lines()
        .map(|line| (mark, line.to_owned(), key_of(line, kind.keys)));
    let is_shown = |key: &Key| {
        kind.example
            .lines()
            .any(|line| key_of(line, std::slice::from_ref(key)).is_some())
    };
    let others = kind.keys.iter().filter(|key| !is_shown(key)).map(|key| {
        let mark = if is_live && key.shows_default() { "#: " } else { "# " };
        (mark, key.line(), Some(key))
    });
    let lines: Vec<(&str, String, Option<&Key>)> = example.chain(others).collect();
    // The common keys stand here, where the sink is the first one.
    let lines: Vec<_> = lines.into_iter().skip(if is_live { 3 } else { 0 }).collect();
    let len = |mark: &str, line: &str| mark.len() + line.chars().count();
    let column = lines
        .iter()
        .filter(|(_, _, key)| key.is_some())
        .map(|(mark, line, _)| len(mark, line))
        .filter(|len| *len <= COLUMN_MAX)
        .max();
    let column = column.unwrap_or(0) + 2;
    for (mark, line, key) in &lines {
        let _ = write!(out, "{mark}{line}");
        let Some(key) = key else {
            out.push('\n');
            continue;
        };
        let len = len(mark, line);
        let at = column.max(len + 2);
        let about = wrapped(&lowered(key.about), WIDTH - column - 2);
        let is_beside = len <= COLUMN_MAX || about.len() == 1 && at + 2 + about[0].chars().count() <= WIDTH;
        for (number, said) in about.iter().enumerate() {
            let _ = if number == 0 && is_beside {
                writeln!(out, "{}# {said}", " ".repeat(at - len))
            } else {
                let line_end = if number == 0 { "\n" } else { "" };
                let pad = " ".repeat(column - mark.trim_end().len());
                writeln!(out, "{line_end}{}{pad}# {said}", mark.trim_end())
            };
        }
    }
}

/// Beside a line, a sentence is no sentence of its own.
fn lowered(about: &str) -> String {
    let is_word = about.chars().nth(1).is_some_and(char::is_lowercase) || about.starts_with("A ");
    let mut chars = about.chars();
    match chars.next().filter(|_| is_word) {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => about.to_owned(),
    }
}

/// The keys every sink has, in the first one.
fn common(out: &mut String, kind: &SinkType) {
    let begin: Vec<&str> = kind.example.lines().take(3).collect();
    let _ = writeln!(out, "{}", begin.join("\n"));
    for key in COMMON_KEYS.iter().filter(|key| !key.is_required()) {
        commented(out, &format!("{}.", key.about));
        let mark = if key.shows_default() { "#: " } else { "# " };
        let _ = writeln!(out, "{mark}{}", key.line());
    }
}

/// All that the file says of sinks.
fn reference() -> String {
    let mut out = String::new();
    commented(
        &mut out,
        &format!(
            "{} `closehook sinks types NAME` shows what there is to say of a type. Every sink has these keys:",
            BEGIN.trim_start_matches("# ")
        ),
    );
    for (number, kind) in REGISTRY.iter().enumerate() {
        let is_live = number == 0;
        if is_live {
            common(&mut out, kind);
        }
        prose(&mut out, kind);
        block(&mut out, kind, is_live);
        out.push('\n');
    }
    out
}

#[test]
fn the_reference_file_says_what_the_definitions_say() {
    if REGISTRY.iter().any(|kind| kind.parse.is_none()) {
        // A build that knows less than the file says.
        return;
    }
    let file = std::fs::read_to_string(FILE).unwrap();
    let line = |begin: &str| file.find(&format!("\n{begin}")).unwrap() + 1;
    let (begin, end) = (line(BEGIN), line(END));
    let made = reference();
    if std::env::var_os(WRITES).is_some() {
        std::fs::write(FILE, format!("{}{made}{}", &file[..begin], &file[end..])).unwrap();
        return;
    }
    let differs = file[begin..end]
        .lines()
        .zip(made.lines())
        .find(|(is, should)| is != should);
    assert!(
        file[begin..end] == made,
        "config/closehook.toml says of sinks what their definitions do not say, first here: {differs:#?}\n\
         Set {WRITES}=1 and run this test again: it writes the file."
    );
}

/// A value of the configuration.
fn value(text: &str) -> Value {
    let tree: Map<String, Value> = config::Config::builder()
        .add_source(config::File::from_str(text, config::FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    Value::Object(tree)
}

/// The keys of a type that a sink of the example has.
pub(super) fn example(kind: &SinkType) -> Map<String, Value> {
    let tree = value(kind.example);
    let mut sink = tree["sinks"][0].as_object().unwrap().clone();
    assert_eq!(sink.remove("type"), Some(json!(kind.name)), "{}", kind.name);
    assert!(sink.remove("name").is_some(), "{}", kind.name);
    sink.retain(|name, _| !COMMON_KEYS.iter().any(|key| key.is_called(name)));
    sink
}

/// What is asked for when a type reads this, and what it finds wrong.
fn read(kind: &SinkType, sink: &Map<String, Value>) -> (Vec<String>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut table = Table::new("", Value::Object(sink.clone()), &mut faults);
    // Some keys of every sink are read by a type too.
    table.define(COMMON_KEYS);
    let _ = kind.options(&mut table);
    let asked = table.asked().to_vec();
    (asked, faults)
}

pub(super) fn here() -> impl Iterator<Item = &'static SinkType> {
    REGISTRY.iter().copied().filter(|kind| kind.parse.is_some())
}

#[test]
fn every_example_is_read_without_a_fault_and_shows_each_key_that_must_be_there() {
    for kind in here() {
        let (_, faults) = read(kind, &example(kind));
        assert_eq!(faults, [], "{}", kind.name);
        for key in kind.keys.iter().filter(|key| key.is_required()) {
            assert!(
                kind.example
                    .lines()
                    .any(|line| key_of(line, std::slice::from_ref(key)).is_some()),
                "{}: {}",
                kind.name,
                key.name
            );
        }
    }
}

/// Each key is read where it stands alone (beside what must be there), or in the example; and what its definition shows can be read.
#[test]
fn every_key_that_is_defined_is_read() {
    for kind in here() {
        let required = kind.keys.iter().filter(|key| key.is_required());
        let required: Map<String, Value> = required
            .flat_map(|key| value(&key.line()).as_object().unwrap().clone())
            .collect();
        for key in kind.keys {
            let shown = value(&key.line()).as_object().unwrap().clone();
            let readings: Vec<_> = [&required, &example(kind)]
                .into_iter()
                .map(|beside| {
                    let mut sink = beside.clone();
                    // One way of giving it.
                    sink.retain(|name, _| !key.is_called(name));
                    sink.extend(shown.clone());
                    sink.extend(value(key.beside).as_object().unwrap().clone());
                    read(kind, &sink)
                })
                .collect();
            assert!(
                readings.iter().any(|(asked, _)| asked.contains(&key.names()[0])),
                "{}: {} is defined, and nobody reads it",
                kind.name,
                key.name
            );
            let of_key = |fault: &&Fault| {
                fault
                    .place
                    .split(['.', '['])
                    .next()
                    .is_some_and(|name| key.is_called(name))
            };
            let faults: Vec<Option<&Fault>> = readings.iter().map(|(_, faults)| faults.iter().find(of_key)).collect();
            assert!(faults.contains(&None), "{}: {faults:?}", kind.name);
        }
    }
}

#[test]
fn what_is_said_of_types_and_keys_reads_well_wherever_it_is_shown() {
    let of_types = here().flat_map(|kind| kind.keys.iter().map(move |key| (kind.name, key)));
    for (kind, key) in of_types.chain(COMMON_KEYS.iter().map(|key| ("", key))) {
        let name = key.name;
        assert!(
            !key.about.is_empty() && !key.about.ends_with('.'),
            "{kind}: {name}: {}",
            key.about
        );
        assert_eq!(
            key.inner.is_empty(),
            !matches!(key.presence, Presence::Table),
            "{kind}: {name}"
        );
        assert!(
            kind.is_empty() || !COMMON_KEYS.iter().any(|common| common.name == name),
            "{kind}: {name}"
        );
    }
    for kind in here() {
        let promise = kind.promise;
        assert!(
            promise.starts_with("Exactly once") || promise.starts_with("At least once"),
            "{promise}"
        );
        assert!(
            !promise.ends_with('.') && !kind.about.ends_with('.'),
            "{promise} {}",
            kind.about
        );
        let begin = format!("[[sinks]]\nname = \"NAME\"\ntype = \"{}\"\n", kind.name);
        let lines: Vec<&str> = kind.example.lines().collect();
        assert_eq!(lines.len() >= 3, kind.example.ends_with('\n'), "{begin}");
        assert_eq!(lines[0], "[[sinks]]", "{begin}");
        assert!(lines[1].starts_with("name = ") && begin.contains(lines[2]), "{begin}");
    }
}
