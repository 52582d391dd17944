//! Contract, section 1: commands, their exit codes and what they say.

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
        &["trigger", "lead.created", "--url", "nope"],
        &["rules", "explain"],
        &["rules", "explain", "--id", "ev_1", "--event", "-"],
        &["filter", "{}"],
    ] {
        assert_eq!(daemon.run_command(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let said = stderr(&daemon.run_command(&["rules", "explain"]));
    assert!(said.contains("--event") && said.contains("--id"), "{said}");
    let said = stderr(&daemon.run_command(&["trigger", "lead.created", "--url", "nope"]));
    assert!(said.contains("\"nope\" is no URL"), "{said}");
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

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_works_as_the_readme_says() {
    let config = std::fs::read_to_string("config/quickstart.toml").unwrap();
    let mut daemon = Daemon::new(&config.replace("closehook-data/", "DIR/"));
    daemon.run().await;
    crate::harness::until("it says what to type next", async || {
        daemon.stderr().contains("closehook trigger unsubscribed_email.created")
    })
    .await;
    let key = std::fs::metadata(daemon.data().join("signature_key")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777,
        0o600
    );
    let said = daemon.ok(&["trigger", "unsubscribed_email.created"]);
    assert!(
        said.starts_with("unsubscribed_email.created ev_") && said.ends_with(" is stored as Seq 1\n"),
        "{said}"
    );
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

#[test]
fn everything_that_keeps_the_daemon_from_starting_is_named_with_its_place() {
    let daemon = Daemon::new(
        "[[close.subscriptions]]\nsignature_key = \"zz\"\n[[close.subscriptions]]\nsignature_key_env = \"NOT_SET_ANYWHERE\"\n\
         [server.tls]\ncert = \"DIR/none\"\nkey = \"DIR/none\"\n\
         [[sinks]]\nname = \"h\"\ntype = \"http\"\nurl = \"https://example.com\"\nsecret_file = \"DIR/none\"\n",
    );
    let places = [
        "close.subscriptions[0].signature_key",
        "close.subscriptions[1].signature_key",
        "server.tls",
        // That sink waits, and nothing else.
        "sinks[0]",
    ];
    for (command, count) in [("check", 4), ("serve", 3)] {
        let output = daemon.run_command(&[command]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        for place in &places[..count] {
            assert!(stderr(&output).contains(&format!("closehook: {place}: ")), "{place}");
        }
        assert_eq!(stderr(&output).contains("sinks[0]"), command == "check");
    }
    let output = daemon.run_command(&["check", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let named: Vec<&str> = said["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["place"].as_str().unwrap())
        .collect();
    assert_eq!(named, places);
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_signs_with_the_configured_key_where_no_daemon_runs() {
    let receiver = crate::harness::Receiver::start(200).await;
    let daemon = Daemon::new("");
    let printed = daemon.ok(&["trigger", "lead.created", "--url", &receiver.url]);
    assert!(printed.ends_with(" was answered 200 OK\n"), "{printed}");
    let (headers, body) = receiver.received.lock().unwrap()[0].clone();
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let signature = closehook::event::SignatureHeaders {
        timestamp: header("close-sig-timestamp"),
        hash: header("close-sig-hash"),
    };
    let key = closehook::ingress::verify::Key::from_hex(None, crate::harness::KEY).unwrap();
    assert!(key.signed(&signature, body.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_have_no_answer_are_refused_with_a_reason() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let never = daemon.run_command(&["events", "show", "7"]);
    assert!(stderr(&never).contains("there is no event 7"), "{}", stderr(&never));
    for whose in [
        &[][..],
        &["--email", ""],
        &["--lead", " "],
        &["--id", ""],
        &["--email", "jane"],
    ] {
        let refused = daemon.run_command(&[&["log", "erase", "--yes"], whose].concat());
        assert_eq!(refused.status.code(), Some(2), "{whose:?}");
    }
    let config = daemon.config().display().to_string();
    let resumed = daemon.run_command(&["replay", "--resume", "rp_none", "-c", &config]);
    assert_eq!(resumed.status.code(), Some(1));
    assert!(
        stderr(&resumed).contains("there is no replay rp_none"),
        "{}",
        stderr(&resumed)
    );
    let nested = format!(
        r#"{{"event":{{"id":"ev_1","d":{}{}}}}}"#,
        "[".repeat(300),
        "]".repeat(300)
    );
    std::fs::write(daemon.path("deep.json"), nested).unwrap();
    let deep = daemon.path("deep.json").display().to_string();
    assert!(daemon.ok(&["rules", "explain", "--event", &deep]).contains("ev_1"));
    daemon.stop().await;
    let tail = daemon.run_command(&["events", "tail"]);
    assert_eq!(tail.status.code(), Some(1));
    assert!(stderr(&tail).contains("no daemon is running"), "{}", stderr(&tail));
    assert_eq!(daemon.status()["not_ready_because"], "no daemon is running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_may_lie_deeper_than_a_socket_address_is_long() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("d".repeat(100)).join("data");
    let mut daemon = Daemon::within(dir, data, "");
    daemon.run().await;
    daemon.store(1..=1).await;
    assert_eq!(daemon.status()["daemon"]["running"], true);
    daemon.stop().await;
    assert_eq!(daemon.status()["log"]["events"], 1);
}

#[test]
fn signals_are_heeded_from_the_first_line_on() {
    use std::io::BufRead;
    // It would be a matter of luck once.
    for _ in 0..10 {
        let daemon = Daemon::new("");
        let mut child = daemon.command().arg("serve").stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut until = |text: &str| lines.by_ref().any(|line| line.unwrap().contains(text));
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
            assert!(sent.unwrap().success());
        };
        assert!(until("listens on"));
        signal("-HUP");
        assert!(until("configuration reloaded"), "it lives on");
        signal("-TERM");
        assert!(until("stopped"));
        assert!(child.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_sends_the_data_of_a_file_as_it_is_written() {
    let daemon = Daemon::start("").await;
    let data = r#"{ "n" : 12345678901234567890.10e-2, "s":"\u00e9\/", "n" : 1.50}"#;
    let event = format!(r#"{{"object_type":"x", "data": {data},"id":"ev_old"}}"#);
    let delivery = format!(r#"{{"event" : {event} , "extra":[ 1.0 ]}}"#);
    let file = daemon.path("data.json");
    for (seq, text) in [data, &event, &delivery].into_iter().enumerate() {
        std::fs::write(&file, format!("\n{text}\n")).unwrap();
        daemon.ok(&["trigger", "lead.updated", "--data", file.to_str().unwrap()]);
        let body = daemon.ok(&["events", "show", &(seq + 1).to_string(), "--raw"]);
        assert!(body.contains(data), "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["event"]["object_type"], &body["event"]["action"]),
            (&"lead".into(), &"updated".into())
        );
        assert_ne!(body["event"]["id"], "ev_old", "each is an event of its own");
    }
    assert!(
        daemon
            .ok(&["events", "show", "3", "--raw"])
            .contains(r#""extra":[ 1.0 ]"#)
    );
    for (text, why) in [("{", "is not valid JSON"), ("[1]", "")] {
        std::fs::write(&file, text).unwrap();
        let sent = daemon.run_command(&["trigger", "lead.updated", "--data", file.to_str().unwrap()]);
        let said = String::from_utf8(sent.stderr).unwrap();
        assert_eq!(
            (sent.status.success(), said.contains(why)),
            (why.is_empty(), true),
            "{said}"
        );
    }
}

#[test]
fn what_a_list_does_not_heed_is_refused() {
    let daemon = Daemon::new("");
    let said = daemon.fails(2, &["trigger", "--list", "--count", "5"]);
    assert!(said.contains("--count"), "{said}");
    daemon.ok(&["trigger", "--list"]);
}

/// The daemon sends nothing of what it keeps back, and an explanation says no other.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_nowhere_is_explained_by_what_keeps_it_back() {
    let daemon = Daemon::start("[[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"DIR/out.jsonl\"\n").await;
    daemon.store(1..=2).await;
    daemon.send("no delivery").await.unwrap();
    let line =
        serde_json::json!({ "received_at": jiff::Timestamp::now().to_string(), "body": crate::harness::body(4) });
    let file = daemon.path("import.jsonl");
    std::fs::write(&file, line.to_string()).unwrap();
    daemon.ok(&["log", "import", file.to_str().unwrap()]);
    let explained = |id: &str| daemon.ok(&["rules", "explain", "--id", id]);
    assert!(explained("ev_1").contains("goes to: all"));
    for (id, why) in [("3", "in quarantine"), ("ev_4", "imported without --dispatch")] {
        let said = explained(id);
        assert!(said.contains("goes to: no sink") && said.contains(why), "{said}");
        let json = daemon.lines(&["rules", "explain", "--id", id]).remove(0);
        assert_eq!(json["sinks"], serde_json::json!([]), "{json}");
        assert!(json["because"].as_str().unwrap().contains(why), "{json}");
    }
    assert_eq!(daemon.lines(&["events", "show", "ev_4"])[0]["held"], true);
    daemon.ok(&["log", "erase", "--id", "ev_2", "--yes"]);
    let said = daemon.fails(1, &["rules", "explain", "--id", "2"]);
    assert!(said.contains("event 2 was erased"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_explained_for_a_sketch_of_an_event() {
    let daemon = Daemon::new(
        "[[sinks]]\nname = \"s\"\ntype = \"stdout\"\n[[rules]]\nname = \"r\"\nevents = [\"lead.*\"]\nsinks = [\"s\"]\n",
    );
    let file = daemon.path("event.json");
    for text in [
        r#"{"object_type":"lead","action":"updated"}"#,
        r#"{"event":{"object_type":"lead","action":"updated","id":7}}"#,
    ] {
        std::fs::write(&file, text).unwrap();
        let said = daemon.ok(&["rules", "explain", "--event", file.to_str().unwrap()]);
        assert!(
            said.contains("rule \"r\" matches") && said.contains("goes to: s"),
            "{said}"
        );
    }
    std::fs::write(&file, "[]").unwrap();
    let refused = daemon.run_command(&["rules", "explain", "--event", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
}

/// Whoever asks a daemon that is stopped is told so, and what was given up is not carried out behind anybody's back.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_answer_is_said_and_does_later_what_nobody_waits_for() {
    let sink = "[[sinks]]\nname = \"all\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\n";
    let mut daemon = Daemon::start(sink).await;
    daemon.store(1..=1).await;
    daemon.signal(libc::SIGSTOP);
    for arguments in [&["status"][..], &["sinks", "pause", "all"]] {
        let output = daemon.run_command(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("does not answer within"), "{arguments:?}: {said}");
    }
    daemon.signal(libc::SIGCONT);
    daemon.store(2..=2).await;
    assert_eq!(daemon.sink("all")["paused"], false, "nobody waited for it any more");
    daemon.stop().await;
}

/// As is usual. It must not be the empty path.
#[test]
fn an_empty_variable_names_no_configuration() {
    let output = Command::new(binary())
        .arg("status")
        .env("CLOSEHOOK_CONFIG", "")
        .env("CLOSEHOOK__LOG__DIR", "/nowhere/closehook")
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(
        !said.contains("--config") && !said.contains("a value is required"),
        "{said}"
    );
    let help = Command::new(binary())
        .arg("--help")
        .env_remove("CLOSEHOOK_CONFIG")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("CLOSEHOOK_CONFIG"));
}

/// Whoever reads standard error as JSON reads the log there as well.
#[test]
fn lines_of_the_log_are_json_where_answers_are() {
    let daemon = Daemon::new("");
    std::fs::create_dir_all(daemon.data().join("close")).unwrap();
    std::fs::write(daemon.data().join("close/keys.json"), "{").unwrap();
    let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    let said = stderr(&daemon.run_command(&["check", "--json"]));
    assert!(!said.is_empty() && said.lines().all(is_json), "{said}");
    for text in [&["check"][..], &["check", "--json", "--log-format", "text"]] {
        let said = stderr(&daemon.run_command(text));
        assert!(!said.is_empty() && !said.lines().any(is_json), "{said}");
    }
}

/// What can't be done at all leaves no directory in which nothing has come to be.
#[test]
fn what_fails_at_once_makes_no_data_directory() {
    let daemon = Daemon::new("");
    for (arguments, code, part) in [
        (
            &["log", "import", "/nowhere/events.jsonl"][..],
            2,
            "/nowhere/events.jsonl can't be read",
        ),
        (&["log", "import", "/etc"], 2, "/etc can't be read"),
        (&["subscription", "apply"], 1, "needs a key"),
        (&["backfill", "--since", "1d"], 1, "needs a key"),
    ] {
        let output = daemon.run_command(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
        assert!(!daemon.data().exists(), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_no_dead_letters_nobody_is_asked_about_them() {
    let daemon = Daemon::start("").await;
    let said = daemon.ok(&["dead", "drop", "--all"]);
    assert!(said.contains("no such dead letters"), "{said}");
    assert_eq!(
        daemon.ok(&["dead", "drop", "--all", "--json"]).trim(),
        "{\"dropped\":0}"
    );
}
