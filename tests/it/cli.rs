//! Contract, section 1: commands, their exit codes and what they say.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Daemon, binary};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_fault_of_a_configuration_is_named() {
    let daemon = Daemon::new(
        "[server]\nmax_body = 5\nlissten = \"x\"\n[log]\nretention = \"30 parsecs\"\n[[sinks]]\nname = \"a\"\ntype = \"file\"\npath = \"DIR/x\"\n\
         [[sinks]]\nname = \"b\"\ntype = \"file\"\npath = \"DIR/x\"\n[[sinks]]\nname = \"c\"\ntype = \"htttp\"\n\
         [[rules]]\nname = \"r\"\nsinks = [\"aa\"]\nfilter = { type = \"and\", filters = [{ type = \"nul\" }] }\n",
    );
    let output = daemon.run_command(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for place in [
        "server.max_body",
        "server.lissten",
        "log.retention",
        "sinks[1]",
        "sinks[2].type",
        "rules[0].sinks[0]",
        "rules[0].filter.filters[0].type",
    ] {
        assert!(
            text.contains(&format!("closehook: {place}: ")),
            "{place} is missing in {text}"
        );
    }
    assert!(text.contains("did you mean \"listen\"?"));
    assert!(!text.contains("panic"));
}

#[test]
fn usage_errors_exit_with_two() {
    let daemon = Daemon::new("");
    for arguments in [
        &["replay", "--since", "yesterday"][..],
        &["events", "list", "--filter", "{"],
        &["nonsense"],
        &["trigger", "lead"],
        &["filter", "{}"],
    ] {
        assert_eq!(daemon.run_command(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let missing = Command::new(binary())
        .args(["-c", "/does/not/exist", "status"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("-c FILE"));
    let output = daemon.run_command(&["events", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("closehook serve"), "it says what to do next");
}

#[test]
fn filter_is_like_grep() {
    let filter = |arguments: &[&str], input: &str| {
        let mut command = Command::new(binary());
        command
            .arg("filter")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let created = r#"{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"created"}}"#;
    let input = "{\"event\": {\"action\":  \"created\"}}\n{\"action\":\"deleted\"}\n";
    assert_eq!(
        filter(&[created], input),
        (Some(0), "{\"event\": {\"action\":  \"created\"}}\n".into())
    );
    assert_eq!(
        filter(&[created, "--invert", "--count"], input),
        (Some(0), "1\n".into())
    );
    assert_eq!(filter(&[created], "{\"action\":\"deleted\"}"), (Some(1), String::new()));
    assert_eq!(filter(&[r#"{"type":"and"}"#], "").0, Some(2));
    assert_eq!(filter(&["not json"], "").0, Some(2));
    let files: Vec<String> = std::fs::read_dir("tests/fixtures/close/examples")
        .unwrap()
        .map(|e| e.unwrap().path().display().to_string())
        .collect();
    let mut arguments = vec![created, "--count"];
    arguments.extend(files.iter().map(String::as_str));
    assert_eq!(filter(&arguments, ""), (Some(0), "5\n".into()));
}

#[test]
fn help_teaches_and_packaging_has_what_it_needs() {
    let help = |arguments: &[&str]| {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for command in [
        "serve",
        "check",
        "trigger",
        "filter",
        "replay",
        "status",
        "completions",
        "man",
    ] {
        assert!(help(&[command, "--help"]).contains("Example"), "{command}");
    }
    assert!(help(&["completions", "bash"]).contains("closehook"));
    assert!(help(&["man"]).contains(".TH closehook"));
    let dir = tempfile::tempdir().unwrap();
    help(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("closehook-replay.1").exists());
    assert!(help(&["--version"]).starts_with("closehook "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_works_as_the_readme_says() {
    let config = std::fs::read_to_string("config/quickstart.toml").unwrap();
    let mut daemon = Daemon::new(&config.replace("closehook-data/", "DIR/"));
    daemon.run().await;
    assert!(
        daemon.stderr().contains("closehook trigger unsubscribed_email.created"),
        "it says what to type next"
    );
    let key = std::fs::metadata(daemon.data().join("signature_key")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777,
        0o600
    );
    assert_eq!(daemon.ok(&["trigger", "unsubscribed_email.created"]), "200 stored 1\n");
    assert_eq!(
        daemon.ok(&["trigger", "lead.updated", "--count", "3"]).lines().count(),
        3
    );
    let shown = daemon.lines(&["events", "list"]);
    assert_eq!(shown.len(), 4);
    crate::harness::until("the sinks are done", async || {
        std::fs::read_to_string(daemon.path("stdout")).unwrap().lines().count() == 1
            && crate::harness::ids_in(&daemon.path("events.jsonl")).len() == 4
    })
    .await;
    let key = std::fs::read_to_string(daemon.data().join("signature_key")).unwrap();
    assert!(!daemon.stderr().contains(&key) && !daemon.ok(&["status", "--json"]).contains(&key));
    assert!(daemon.ok(&["check", "--probe"]).contains("is valid"));
}
