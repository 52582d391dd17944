//! What people read of the command line: help, the types of events, times, and what is perhaps misspelt.

use std::process::Command;

use fake_close::Settings;

use crate::close::Rig;
use crate::harness::{Daemon, binary};

fn help(arguments: &[&str]) -> String {
    let output = Command::new(binary()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The headings of a help text (lines that end with a colon and are not indented), each with the names under it.
fn sections(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            sections.push((heading, Vec::new()));
        } else if line.starts_with("  ")
            && !line.starts_with("   ")
            && let Some((_, names)) = sections.last_mut()
        {
            names.extend(line.split_whitespace().next());
        }
    }
    sections
}

/// Every command there is, as words: found by what help lists.
fn commands() -> Vec<Vec<String>> {
    let top = help(&["--help"]);
    let is_option = |name: &&&str| !name.starts_with('-') && **name != "help" && **name != "closehook";
    let mut pending: Vec<Vec<String>> = sections(&top)
        .iter()
        .flat_map(|(_, names)| names.iter().filter(is_option).map(|name| vec![(*name).to_owned()]))
        .collect();
    let mut found = vec![Vec::new()];
    while let Some(command) = pending.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let text = help(&arguments);
        for (heading, names) in sections(&text) {
            if heading == "Commands" {
                let subs = names.iter().filter(|name| **name != "help");
                pending.extend(subs.map(|name| [command.clone(), vec![(*name).to_owned()]].concat()));
            }
        }
        found.push(command);
    }
    found
}

#[test]
fn every_command_teaches_within_80_columns() {
    let commands = commands();
    assert!(commands.len() > 35, "only {commands:?} were found");
    for command in &commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let text = help(&[&words[..], &["--help"]].concat());
        assert!(
            text.contains("Example") || words.is_empty(),
            "{words:?} shows no example"
        );
        for short in ["-h", "--help"] {
            let text = help(&[&words[..], &[short]].concat());
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{words:?} {short}: {line}");
            }
        }
        // An example is a line that can be copied: what stands right below one is another, or nothing.
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("Example")).collect();
        for pair in lines.windows(2).filter(|pair| pair[0].starts_with(' ')) {
            let is_whole = pair[1].is_empty() || pair[1].starts_with(' ');
            assert!(is_whole, "{words:?}: an example is broken: {pair:?}");
        }
        let global = sections(&text)
            .into_iter()
            .find(|(heading, _)| *heading == "Global options");
        let (_, options) = global.unwrap_or_else(|| panic!("{words:?} has no heading for global options: {text}"));
        assert_eq!(options, ["-c,", "-v,", "-h,", "-V,"], "{words:?}");
        if let Some((_, own)) = sections(&text).into_iter().find(|(heading, _)| *heading == "Options") {
            assert!(!own.contains(&"-c,") && !own.contains(&"-h,"), "{words:?}: {own:?}");
        }
    }
}

#[test]
fn commands_stand_in_groups_each_once() {
    let text = help(&["--help"]);
    let groups = sections(&text);
    let headings: Vec<&str> = groups.iter().map(|(heading, _)| *heading).collect();
    for heading in [
        "Set it up and run it",
        "Look at events",
        "Look after Close's side",
        "Global options",
    ] {
        assert!(headings.contains(&heading), "{headings:?}");
    }
    assert!(
        !headings.contains(&"Commands") && !headings.contains(&"Options"),
        "{headings:?}"
    );
    let all: Vec<&str> = groups.iter().flat_map(|(_, names)| names.clone()).collect();
    for name in [
        "serve",
        "listen",
        "rules",
        "events",
        "subscription",
        "log",
        "completions",
        "help",
    ] {
        assert_eq!(all.iter().filter(|other| **other == name).count(), 1, "{name}");
    }
}

#[test]
fn packaging_has_what_it_needs() {
    assert!(help(&["completions", "bash"]).contains("closehook"));
    assert!(help(&["man"]).contains(".TH closehook"));
    assert!(help(&["--version"]).starts_with("closehook "));
    assert!(help(&["events", "list", "-V"]).starts_with("closehook"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    help(&["man", "--dir", path]);
    let page = dir.path().join("closehook-rules-test.1");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("rules.test.toml"), "{text}");
    let listed = || std::fs::read_dir(dir.path()).unwrap().count();
    let pages = listed();
    assert!(pages > 35, "{pages} pages");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    let umask_file = dir.path().join("as-others");
    std::fs::write(&umask_file, "").unwrap();
    assert_eq!(
        mode(&page),
        mode(&umask_file),
        "pages are for everybody, as the umask says"
    );
    help(&["man", "--dir", path]);
    assert_eq!(listed(), pages + 1, "pages are made anew, and nothing else is left");
    let missing = Command::new(binary())
        .args(["man", "--dir", "/does/not/exist"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/does/not/exist/closehook"));
}

#[test]
fn trigger_shows_the_types_of_events_with_their_actions() {
    let text = help(&["trigger", "--list"]);
    let line = |object_type: &str| {
        let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.find(|words| words[0] == object_type).unwrap()
    };
    assert_eq!(line("lead")[1..], ["created", "updated", "deleted", "merged"]);
    assert!(line("activity.email").contains(&"sent"));
    let lines: Vec<serde_json::Value> = help(&["trigger", "--list", "--json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.len() > 170);
    let of = |name: &str| lines.iter().find(|line| line["type"] == name).unwrap()["documented_sample"].clone();
    assert_eq!(
        (of("lead.merged"), of("comment_thread.created")),
        (true.into(), false.into())
    );
    let both = Command::new(binary())
        .args(["trigger", "--list", "lead.created"])
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2));
    let neither = Command::new(binary()).arg("trigger").output().unwrap();
    assert_eq!(neither.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_perhaps_misspelt_is_doubted_and_taken() {
    let daemon = Daemon::start("").await;
    let meant = "Close documents no event type \"leed.updated\": did you mean \"lead.updated\"?";
    for arguments in [
        &["events", "list", "--type", "leed.updated"][..],
        &["events", "export", "--type", "leed.updated"],
        &["dead", "list", "--type", "leed.updated"],
        &["replay", "--type", "leed.updated", "--dry-run"],
        &["trigger", "leed.updated"],
    ] {
        let output = daemon.run_command(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert_eq!(said.matches(meant).count(), 1, "{arguments:?}: {said}");
    }
    // These end for another reason, and say it first.
    for arguments in [
        &["backfill", "--dry-run", "--type", "leed.updated"][..],
        &["subscription", "create", "--event", "leed.updated"],
    ] {
        let said = daemon.fails(1, arguments);
        assert!(said.contains(meant), "{arguments:?}: {said}");
    }
    for fine in ["lead.updated", "*", "activity.*", "task.of_our_own.created"] {
        let output = daemon.run_command(&["events", "list", "--type", fine]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("Close documents"), "{fine}: {said}");
    }
    for arguments in [
        &["events", "list", "--type", "lead"][..],
        &["backfill", "--type", "a b.c"],
        &["subscription", "create", "--event", "lead.*"],
        &["trigger", "lead.*"],
    ] {
        assert_eq!(daemon.run_command(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn check_doubts_the_events_of_rules_without_refusing_them() {
    let daemon = Daemon::new(
        "[[sinks]]\nname = \"s\"\ntype = \"stdout\"\n[[rules]]\nname = \"r\"\nevents = [\"lead.*\", \"oportunity.*\", \"lead.vanished_into_thin_air\"]\nsinks = [\"s\"]\n",
    );
    let said = daemon.ok(&["check"]);
    for line in [
        "warning: rules[0].events[1]: Close documents no event type \"oportunity.*\": did you mean \"opportunity.*\"?",
        "warning: rules[0].events[2]: Close documents no event type \"lead.vanished_into_thin_air\": of lead it documents created, updated, deleted, merged",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(!said.contains("events[0]"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explained_event_says_when_it_came_and_how_long_ago() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let said = daemon.ok(&["rules", "explain", "--id", "1"]);
    let first = said.lines().next().unwrap();
    let (_, when) = first.split_once(", received ").unwrap_or_else(|| panic!("{said}"));
    assert!(
        when.contains("Z, ") && (when.ends_with(" ago") || when.ends_with("just now")),
        "{said}"
    );
    assert!(!when.contains('.'), "to the second: {said}");
}

/// The clock of Close is in every answer of its API.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_not_closes_is_said_with_both_times() {
    let probed = async |ahead_seconds: i64, status: u16| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v1/", listener.local_addr().unwrap());
        let answer = move || async move {
            let there = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead_seconds);
            let date = there.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let status = axum::http::StatusCode::from_u16(status).unwrap();
            let head = [("date", date), ("content-type", "application/json".to_owned())];
            (status, head, "{\"organization_id\":\"orga_1\"}")
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        let daemon = Daemon::new(&format!(
            "[close]\nlocal_key = true\napi_key = \"x\"\nbase_url = \"{url}\"\n"
        ));
        let output = tokio::task::spawn_blocking(move || daemon.run_command(&["check", "--probe", "--json"])).await;
        let said: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        let warnings = said["warnings"].as_array().unwrap();
        let clock = |text: &&serde_json::Value| text.as_str().unwrap().contains("clock");
        warnings
            .iter()
            .find(clock)
            .map(|text| text.as_str().unwrap().to_owned())
    };
    assert_eq!(probed(0, 200).await, None);
    assert_eq!(probed(30, 200).await, None);
    let behind = probed(1200, 200).await.unwrap();
    assert!(
        behind.contains("this machine's clock is ") && behind.contains(" behind Close's (here 20"),
        "{behind}"
    );
    let ahead = probed(-1200, 200).await.unwrap();
    assert!(
        ahead.contains("ahead of Close's (here 20") && ahead.contains(", at Close 20"),
        "{ahead}"
    );
    // A key that Close does not know tells the time all the same.
    assert!(probed(1200, 401).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_without_rules_is_read_at_a_glance() {
    let rig = Rig::new(Settings::default(), "", "").await;
    let plan = |more: &[&str]| {
        let output = rig.daemon.run_command(&[&["subscription", "plan"], more].concat());
        assert_eq!(output.status.code(), Some(1), "a difference is found");
        String::from_utf8(output.stdout).unwrap()
    };
    let few = plan(&[]);
    assert!(few.lines().count() < 10, "{few}");
    let json: serde_json::Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    let count = json["events"].as_array().unwrap().len();
    assert!(count > 170);
    let row = few.lines().find(|line| line.starts_with("+activity.call.")).unwrap();
    assert!(
        row.ends_with(&format!(
            ": {count} event types (`closehook subscription plan --full` shows each)"
        )),
        "{row}"
    );
    let full = plan(&["--full"]);
    let types = full
        .lines()
        .filter(|line| line.starts_with('+') && line.contains('.') && !line.contains(' '));
    assert_eq!(types.count(), count, "{full}");
    assert!(full.contains("\n+lead.merged\n"), "{full}");
}
