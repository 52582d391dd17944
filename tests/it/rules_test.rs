//! `closehook rules test`: what a configuration does with events, told beforehand (contract 1, decision 43).

use serde_json::Value;

use crate::harness::Daemon;

const CONFIG: &str = r#"
[[sinks]]
name = "crm-db"
type = "http"
url = "https://example.com/hook"
[[sinks]]
name = "audit"
type = "file"
path = "DIR/audit.jsonl"
[[sinks]]
name = "notify"
type = "exec"
command = ["/bin/true"]

[[rules]]
name = "big-deals"
events = ["opportunity.*"]
filter = { type = "field_accessor", field = "data", filter = { type = "field_accessor", field = "value", filter = { type = "equals", value = 50000 } } }
sinks = ["crm-db", "audit"]
[[rules]]
name = "everything"
sinks = ["audit"]
[[rules]]
name = "leads"
events = ["lead.*"]
sinks = ["notify"]
"#;

/// With the cases in the file where they are looked for.
fn with_cases(cases: &str) -> Daemon {
    let daemon = Daemon::new(CONFIG);
    std::fs::write(daemon.path("rules.test.toml"), cases).unwrap();
    daemon
}

const DEAL: &str = r#"{"object_type":"opportunity","action":"updated","id":"ev_1","date_updated":"2024-02-15T12:48:23.395000","data":{"value":50000.0}}"#;

#[test]
fn cases_that_hold_are_told_one_by_one() {
    let daemon = with_cases(&format!(
        r#"
[[cases]]
name = "a big deal reaches the CRM"
event = '{DEAL}'
routes_to = ["everything -> audit", "big-deals  ->crm-db", "big-deals -> audit"]

[[cases]]
name = "a small one does not"
event = '{{"object_type":"opportunity","action":"updated","data":{{"value":7}}}}'
routes_to = ["everything -> audit"]

[[cases]]
name = "a delivery from a file"
event = "@lead.json"
routes_to = ["everything -> audit", "leads -> notify"]
"#
    ));
    std::fs::copy(
        "tests/fixtures/close/examples/lead.created.json",
        daemon.path("lead.json"),
    )
    .unwrap();
    let said = daemon.ok(&["rules", "test"]);
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "ok      a big deal reaches the CRM",
            "ok      a small one does not",
            "ok      a delivery from a file",
            "3 case(s), every one as it should be"
        ]
    );
    assert!(
        !daemon.data().exists() && !daemon.path("audit.jsonl").exists(),
        "nothing is opened or sent"
    );
    let lines = daemon.lines(&["rules", "test"]);
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["ok"], true);
    assert_eq!(lines[1]["routes_to"], serde_json::json!(["everything -> audit"]));
    // From anywhere: the event's file is looked for beside the cases, which may have any name.
    std::fs::create_dir(daemon.path("more")).unwrap();
    std::fs::rename(daemon.path("rules.test.toml"), daemon.path("more/leads.toml")).unwrap();
    std::fs::rename(daemon.path("lead.json"), daemon.path("more/lead.json")).unwrap();
    let file = daemon.path("more/leads.toml");
    assert_eq!(daemon.ok(&["rules", "test", file.to_str().unwrap()]).lines().count(), 4);
}

#[test]
fn a_case_that_does_not_hold_says_what_differs_and_why() {
    let daemon = with_cases(&format!(
        r#"
[[cases]]
name = "missing and more"
event = '{{"object_type":"opportunity","action":"updated","data":{{"value":7}}}}'
routes_to = ["big-deals -> crm-db", "leads -> notify", "everything -> crm-db"]

[[cases]]
name = "nowhere"
event = '{DEAL}'
routes_to = []

[[cases]]
name = "holds"
event = '{{"object_type":"contact","action":"created"}}'
routes_to = ["everything -> audit"]
"#
    ));
    let output = daemon.run_command(&["rules", "test"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "closehook: 2 of 3 case(s) failed\n"
    );
    for line in [
        "FAILED  missing and more",
        "        does not go \"big-deals -> crm-db\": decided by filter.filter.filter (equals 50000), which saw 7",
        "        does not go \"leads -> notify\": none of its event patterns fits",
        "        does not go \"everything -> crm-db\": the rule does not name crm-db",
        "        goes \"everything -> audit\", which is not expected: its events fit and it has no filter",
        "FAILED  nowhere",
        "        goes \"big-deals -> crm-db\", which is not expected: decided by filter.filter.filter (equals 50000), which saw 50000.0",
        "ok      holds",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}\nin\n{said}");
    }
    let output = daemon.run_command(&["rules", "test", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((&lines[0]["ok"], &lines[2]["ok"]), (&false.into(), &true.into()));
    assert_eq!(lines[0]["differs"].as_array().unwrap().len(), 4);
    assert_eq!(lines[1]["case"], "nowhere");
}

#[test]
fn payloads_are_what_each_sink_is_given() {
    let body = format!("{{ \"event\" : {DEAL},  \"subscription_id\":\"whsub_1\" }}");
    let line = format!(
        "{{\"seq\":1,\"received_at\":\"2024-02-15T12:48:23.395000Z\",\"source\":\"webhook\",\"rules\":[\"big-deals\",\"everything\"],\"subscription_id\":\"whsub_1\",\"event\":{DEAL}}}"
    );
    let cases = format!(
        r#"
[[cases]]
name = "each its own"
event = '{body}'
[cases.payload]
"big-deals -> crm-db" = '{body}'
"everything -> audit" = '{line}'

[[cases]]
name = "as JSON, in any order, numbers by value"
event = '{body}'
payload."big-deals -> crm-db" = {{ subscription_id = "whsub_1", event = {{ date_updated = "2024-02-15T12:48:23.395000", id = "ev_1", data = {{ value = 5e4 }}, action = "updated", object_type = "opportunity" }} }}

[[cases]]
name = "a table is the payload of every route"
event = '{{"object_type":"lead","action":"created","id":"ev_2","n":12345678901234567890.10}}'
payload = {{ "leads -> notify" = {{ object_type = "lead", action = "created", id = "ev_2", n = 12345678901234567890.1 }} }}
"#
    );
    let daemon = with_cases(&cases);
    assert_eq!(daemon.ok(&["rules", "test"]).lines().count(), 4);

    let daemon = with_cases(
        &cases
            .replace("5e4", "50001")
            .replace("890.1 }", "890.2 }")
            .replace("\"seq\":1,", "\"seq\":2,"),
    );
    let output = daemon.run_command(&["rules", "test"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "the payload of \"everything -> audit\" is {\"seq\":1,",
        "the payload of \"big-deals -> crm-db\" at event.data.value is 50000.0, expected 50001",
        "the payload of \"leads -> notify\" at n is 12345678901234567890.10, expected 12345678901234567890.2",
    ] {
        assert!(said.contains(part), "{part}\nin\n{said}");
    }

    let daemon = with_cases(
        r#"
[[cases]]
name = "text for all"
event = '{"object_type":"lead","action":"created"}'
payload = "hello"
[[cases]]
name = "where it does not go"
event = '{"object_type":"lead","action":"created"}'
payload = { "big-deals -> crm-db" = "x" }
"#,
    );
    let output = daemon.run_command(&["rules", "test"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.matches(", expected hello").count(), 2, "audit and notify: {said}");
    assert!(
        said.contains("has no payload for \"big-deals -> crm-db\": it does not go there"),
        "{said}"
    );
}

/// Only what a case says can be expected of it.
#[test]
fn an_id_that_a_case_does_not_have_need_not_be_expected() {
    let daemon = with_cases(
        r#"
[[cases]]
name = "no id"
event = '{"object_type":"note","action":"created"}'
payload = { seq = 1, received_at = "1970-01-01T00:00:00.000000Z", source = "webhook", rules = ["everything"], event = { object_type = "note", action = "created" } }
"#,
    );
    daemon.ok(&["rules", "test"]);
}

#[test]
fn without_rules_every_event_goes_to_every_sink() {
    let daemon = Daemon::new("[[sinks]]\nname = \"a\"\ntype = \"stdout\"\n");
    let case = |route: &str| {
        let text = format!(
            "cases = [{{ name = \"n\", event = '{{\"object_type\":\"x\",\"action\":\"y\"}}', routes_to = [\"{route}\"] }}]\n"
        );
        std::fs::write(daemon.path("rules.test.toml"), text).unwrap();
    };
    case("* -> a");
    assert!(daemon.ok(&["rules", "test"]).contains("ok      n"));
    case("some -> a");
    let said = daemon.fails(2, &["rules", "test"]);
    assert!(
        said.contains("cases[0].routes_to[0]: there are no rules") && said.contains("\"* -> a\""),
        "{said}"
    );
}

#[test]
fn every_fault_of_the_file_is_named_with_its_place() {
    let daemon = with_cases(
        r#"
catses = 1
[[cases]]
nmae = "x"
event = "@missing.json"
routes_to = ["big-deal -> crm-db", "big-deals -> crm-bd", "big-deals", "leads -> notify"]
[[cases]]
name = "no expectation"
event = "{"
[[cases]]
name = "y"
event = '{"object_type":"lead","action":"created"}'
payload = 7
expcet = 1
[[cases]]
name = "z"
event = '{"object_type":"lead","action":"created"}'
payload = { "lead -> notify" = "x" }
[[cases]]
name = "dates are no JSON"
event = '{"object_type":"lead","action":"created"}'
payload = { at = 2024-02-15 }
"#,
    );
    let said = daemon.fails(2, &["rules", "test"]);
    for fault in [
        "closehook: catses: there is no such key: did you mean \"cases\"?",
        "closehook: cases[0].name: is missing",
        "closehook: cases[0].nmae: there is no such key: did you mean \"name\"?",
        "closehook: cases[0].event: missing.json can't be read: ",
        "closehook: cases[0].routes_to[0]: there is no rule \"big-deal\": did you mean \"big-deals\"?",
        "closehook: cases[0].routes_to[1]: there is no sink \"crm-bd\": did you mean \"crm-db\"?",
        "closehook: cases[0].routes_to[2]: \"big-deals\" is no route: write it like \"rule -> sink\"",
        "closehook: cases[1].event: the event is not valid JSON",
        "closehook: cases[1].routes_to: is missing, and so is payload",
        "closehook: cases[2].payload: must be text, or a table that is compared as JSON",
        "closehook: cases[2].expcet: there is no such key",
        "closehook: cases[3].payload.\"lead -> notify\": there is no rule \"lead\": did you mean \"leads\"?",
        "closehook: cases[4].payload: dates do not exist in JSON",
    ] {
        assert!(said.contains(fault), "{fault}\nin\n{said}");
    }
    assert_eq!(said.matches("closehook: ").count(), 13, "{said}");
}

#[test]
fn a_file_that_is_missing_empty_or_no_toml_says_what_to_do() {
    let daemon = Daemon::new(CONFIG);
    let said = daemon.fails(2, &["rules", "test"]);
    assert!(
        said.contains("rules.test.toml can't be read") && said.contains("rules test --help"),
        "{said}"
    );
    std::fs::write(daemon.path("rules.test.toml"), "").unwrap();
    assert!(
        daemon
            .fails(2, &["rules", "test"])
            .contains("cases: there are none: begin one with [[cases]]")
    );
    std::fs::write(daemon.path("rules.test.toml"), "[[cases]]\nname = \n").unwrap();
    assert!(daemon.fails(2, &["rules", "test"]).contains("rules.test.toml:2:"));
    std::fs::write(
        daemon.path("rules.test.toml"),
        "[[cases]]\nname = \"a\"\nevent = \"{}\"\npayload = { n = 12345678901234567890 }\n",
    )
    .unwrap();
    assert!(daemon.fails(2, &["rules", "test"]).contains("as JSON text"));
    // The configuration's own faults come first.
    daemon.configure(&CONFIG.replace("big-deals", "everything"));
    assert!(daemon.fails(2, &["rules", "test"]).contains("two rules are called"));
}

#[test]
fn the_example_beside_the_configuration_works() {
    let daemon = Daemon::new("");
    for file in ["quickstart.toml", "rules.test.toml"] {
        std::fs::copy(format!("config/{file}"), daemon.path(file)).unwrap();
    }
    let config = daemon.path("quickstart.toml");
    let said = daemon.ok(&["rules", "test", "-c", config.to_str().unwrap()]);
    assert!(
        said.contains("every one as it should be") && said.lines().count() > 2,
        "{said}"
    );
}
