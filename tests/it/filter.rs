//! `closehook filter`: like grep for events (contract 1).

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::harness::binary;

const CREATED: &str = r#"{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"created"}}"#;

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(binary());
    command
        .arg("filter")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn filter(arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let output = run(arguments, input.as_bytes());
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn filter_is_like_grep() {
    let input = "{\"event\": {\"action\":  \"created\"}}\n{\"action\":\"deleted\"}\n";
    assert_eq!(
        filter(&[CREATED], input),
        (Some(0), "{\"event\": {\"action\":  \"created\"}}\n".into())
    );
    assert_eq!(
        filter(&[CREATED, "--invert", "--count"], input),
        (Some(0), "1\n".into())
    );
    assert_eq!(filter(&[CREATED], "{\"action\":\"deleted\"}"), (Some(1), String::new()));
    assert_eq!(
        filter(&[CREATED], "{\n  \"action\": \"created\",\n  \"n\": 1.50\n}\n"),
        (Some(0), "{\"action\":\"created\",\"n\":1.50}\n".into()),
        "one match, one line"
    );
    for between in ["\t", "\r", " \t\r"] {
        assert_eq!(
            filter(
                &[CREATED],
                &format!("{{\"action\":{between}\"created\",{between}\"n\": 2}}\n")
            ),
            (Some(0), "{\"action\":\"created\",\"n\":2}\n".into()),
            "JSON stays JSON"
        );
    }
    assert_eq!(filter(&[r#"{"type":"and"}"#], "").0, Some(2));
    assert_eq!(filter(&["not json"], "").0, Some(2));
    let files: Vec<String> = std::fs::read_dir("tests/fixtures/close/examples")
        .unwrap()
        .map(|e| e.unwrap().path().display().to_string())
        .collect();
    let mut arguments = vec![CREATED, "--count"];
    arguments.extend(files.iter().map(String::as_str));
    assert_eq!(filter(&arguments, ""), (Some(0), "5\n".into()));
}

/// Nothing is wrong with what is read then.
#[test]
fn a_full_disk_behind_the_output_is_no_bad_usage() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = Command::new(binary())
        .args(["filter", CREATED])
        .stdin(Stdio::piped())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"action\":\"created\"}\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("closehook: standard output can't be written: "),
        "{said}"
    );
}

#[test]
fn events_are_found_in_pages_lists_and_one_behind_the_other() {
    let created = |n: u32| format!("{{\"action\":\"created\",\"n\":{n}}}");
    let all = format!("{}\n{}\n", created(1), created(2));
    let (one, two) = (created(1), created(2));
    let other = "{\"action\":\"deleted\",\"data\":[{\"action\":\"created\"}]}";
    for (form, input) in [
        (
            "a page of the event log",
            format!("{{\"cursor_next\":\"x\",\"cursor_previous\":null,\"data\":[{one},{other},{two}]}}"),
        ),
        (
            "a page over many lines, and the next one",
            format!(
                "{{\n \"data\": [\n{one},\n{other}\n],\n\"cursor_next\": \"x\"\n}}\n{{\"data\":[{two}],\"cursor_next\":null}}"
            ),
        ),
        ("a list", format!("[{one},{other},\n{two}]")),
        ("one behind the other", format!("{one}{other}{two}")),
        ("with spaces between", format!("  {one} {other}\t{two}  \n\n")),
        (
            "deliveries in a list of pages",
            format!("[{{\"data\":[{one}],\"has_more\":true}},{other},{two}]"),
        ),
    ] {
        assert_eq!(filter(&[CREATED], &input), (Some(0), all.clone()), "{form}");
    }
    // What has a list in `data` and is an event is one.
    let event = "{\"object_type\":\"x\",\"action\":\"created\",\"data\":[],\"cursor_next\":null}";
    assert_eq!(filter(&[CREATED], event), (Some(0), format!("{event}\n")));
}

#[test]
fn what_is_no_event_is_named_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.jsonl");
    let good = "{\"action\":\"created\"}";
    std::fs::write(
        &file,
        format!("{good}\nnot json\n{{\"torn\":\"in a str\n{good}\n7\n{{\"torn\":[1,\n{good}\n"),
    )
    .unwrap();
    let name = file.to_str().unwrap();
    let output = run(&[CREATED, name, "-"], format!("\n{{\"action\":}}\n{good}\n").as_bytes());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{good}\n").repeat(4),
        "what is wrong costs no event behind it"
    );
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    for (line, beginning) in lines.iter().zip([
        format!("closehook: {name}:2: not valid JSON: "),
        format!("closehook: {name}:3: not valid JSON: "),
        format!("closehook: {name}:5: no event, for it is no object (passed over)"),
        format!("closehook: {name}:6: not valid JSON: it has no end (passed over)"),
        "closehook: standard input:2: not valid JSON: ".to_owned(),
    ]) {
        assert!(line.starts_with(&beginning), "{line}\n{beginning}");
    }
    // A log of something else is not shown line by line.
    let output = run(&[CREATED], "no\n".repeat(1000).as_bytes());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 6), "{said}");
    assert!(
        said.ends_with("closehook: 995 more like these were passed over\n"),
        "{said}"
    );
    // Not even text.
    let output = run(
        &[CREATED, "--count"],
        b"{\"x\":\"\xff\x1b[2J\"}\n{\"action\":\"created\"}\n",
    );
    assert_eq!(output.stdout, b"1\n");
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard input:1: "));
}

#[test]
fn a_file_that_cannot_be_read_ends_it_before_anything_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.jsonl");
    std::fs::write(&file, "{\"action\":\"created\"}\n").unwrap();
    let good = file.to_str().unwrap();
    for bad in ["/does/not/exist", dir.path().to_str().unwrap()] {
        let output = run(&[CREATED, good, bad], b"");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            output.stdout.is_empty() && said.contains(bad) && said.contains("can't be read"),
            "{said}"
        );
    }
}
