//! What `tests/README.md` says of the tests is so, and what both READMEs lead to is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::skip::EXCEPTIONS;

fn readme() -> String {
    std::fs::read_to_string("tests/README.md").unwrap()
}

/// The lines under a heading, up to the next one.
fn section<'t>(text: &'t str, heading: &str) -> Vec<&'t str> {
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let found: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    assert!(!found.is_empty(), "there is no section {heading}");
    found
}

/// The cells of a table's rows, without its head.
fn table(lines: &[&str]) -> Vec<Vec<String>> {
    let rows = lines.iter().filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &&str| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    rows.map(cells).collect()
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from(dir)];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

#[test]
fn what_may_be_skipped_in_ci_is_listed_with_its_reason() {
    let readme = readme();
    let rows = table(&section(&readme, "## What may be skipped in CI"));
    let names: Vec<&str> = rows.iter().flat_map(|row| code(&row[0])).collect();
    assert_eq!(names, EXCEPTIONS);
    assert!(rows.iter().all(|row| row[1].len() > 20), "each has its reason");
}

#[test]
fn every_promise_names_tests_that_there_are() {
    let readme = readme();
    let rows = table(&section(&readme, "## Promise, test, and how to see it fail"));
    let all: String = ["src", "tests/it", "tests/fake-close"]
        .iter()
        .flat_map(|dir| sources(dir))
        .map(|(_, text)| text)
        .collect();
    assert!(rows.len() > 30, "{}", rows.len());
    for row in &rows {
        let [_, tests, broken] = row.as_slice() else {
            panic!("{row:?}");
        };
        let mut names = code(tests).peekable();
        assert!(names.peek().is_some() && !broken.is_empty(), "{row:?}");
        for name in names {
            let name = name.rsplit("::").next().unwrap();
            assert!(all.contains(&format!("fn {name}(")), "there is no test {name}");
        }
    }
}

/// A sink that is added later, or a test that is renamed, is missed here.
#[test]
fn what_every_sink_must_hold_names_each_sink_and_tests_that_there_are() {
    let readme = readme();
    let rows = table(&section(&readme, "## What every sink must hold"));
    let all: String = ["src", "tests/it"]
        .iter()
        .flat_map(|dir| sources(dir))
        .map(|(_, text)| text)
        .collect();
    let types = closehook::sinks::REGISTRY.iter().map(|kind| kind.name);
    // What they write to is no other system, and has tests of its own.
    let types: Vec<&str> = types
        .filter(|name| !["stdout", "file", "exec"].contains(name))
        .collect();
    assert!(rows.len() > 10 && types.len() > 10, "{} rows, {types:?}", rows.len());
    for row in &rows {
        let [what, tests, exceptions] = row.as_slice() else {
            panic!("{row:?}");
        };
        for name in code(tests) {
            assert!(all.contains(&format!("fn {name}(")), "{what}: there is no test {name}");
        }
        let words: BTreeSet<&str> = [tests.as_str(), exceptions]
            .iter()
            .flat_map(|cell| cell.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .collect();
        let missing: Vec<_> = types.iter().filter(|name| !words.contains(**name)).collect();
        assert!(missing.is_empty(), "{what}: nothing is said of {missing:?}");
    }
}

#[test]
fn every_limit_of_the_door_is_among_the_promises() {
    let readme = readme();
    let lines = section(&readme, "## Promise, test, and how to see it fail").join("\n");
    let named: BTreeSet<&str> = code(&lines).collect();
    let mut missing = Vec::new();
    for (path, text) in ["src/ingress", "src/listener"].iter().flat_map(|dir| sources(dir)) {
        // Those of its tests limit nothing.
        let text = text.split("#[cfg(test)]").next().unwrap();
        for line in text.lines() {
            let Some((name, kind)) = line
                .trim_start()
                .trim_start_matches("pub ")
                .strip_prefix("const ")
                .and_then(|rest| rest.split_once(": "))
            else {
                continue;
            };
            let is_limit = kind.starts_with("Duration") || name.ends_with("_MAX") || name.ends_with("_MIN");
            if is_limit && !named.contains(name) {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "no test is named for {missing:?}");
}

/// What any answer, or none, satisfies.
#[test]
fn no_test_asserts_what_is_always_so() {
    let mut weak = Vec::new();
    for (path, text) in ["src", "tests/it", "tests/fake-close"]
        .iter()
        .flat_map(|dir| sources(dir))
    {
        if path == Path::new("tests/it/promises.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let any_status = (1..=5).any(|class| line.contains(&format!("(\"HTTP/1.1 {class}\")")));
            let is_weak = [".contains(\"\")", ".starts_with(\"\")", "assert!(true"];
            if any_status || is_weak.iter().any(|weak| line.contains(weak)) {
                weak.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(weak.is_empty(), "{weak:#?}");
}

#[test]
fn what_is_linked_to_within_the_project_is_there() {
    let mut count = 0;
    for readme in ["README.md", "tests/README.md"] {
        let text = std::fs::read_to_string(readme).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in links.filter(|(link, _)| !link.starts_with("http")) {
            let target = Path::new(readme).parent().unwrap().join(link);
            assert!(target.exists(), "{readme} leads to {link}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count} links were looked at");
}
