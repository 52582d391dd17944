//! What people and programs are shown: tokens as Close wrote them, times with an age, one vocabulary in JSON.

use serde_json::{Value, json};

use crate::harness::{Daemon, Receiver, parsed, until};

/// What no float and no map of keys can hold.
const EVENT: &str = r#"{"event" : {"id":"ev_1","date_updated":"2024-02-15T12:00:00","object_type":"lead","action":"updated","lead_id":"lead_1",
 "data":{"big":12345678901234567890123, "price" :0.10,"e":1E+2,"key":1,"key":2,"text":"\u00e9 \/","none":{ } ,"list":[ 1.0,-0.0 ]}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_shown_with_every_token_as_close_wrote_it() {
    let receiver = Receiver::start(400).await;
    let sink = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\n",
        receiver.url
    );
    let daemon = Daemon::start(&sink).await;
    assert_eq!(daemon.send(EVENT).await.unwrap().1["status"], "stored");
    until("it is a dead letter", async || daemon.sink("crm")["dead"] == 1).await;
    let lines = [
        "      \"big\": 12345678901234567890123,",
        "      \"price\": 0.10,",
        "      \"e\": 1E+2,",
        "      \"key\": 1,",
        "      \"key\": 2,",
        "      \"text\": \"\\u00e9 \\/\",",
        "      \"none\": {},",
        "      \"list\": [",
        "        1.0,",
        "        -0.0",
    ];
    for arguments in [&["events", "show", "ev_1"][..], &["dead", "show", "ev_1"]] {
        let said = daemon.ok(arguments);
        let expected = lines.join("\n");
        assert!(said.contains(&expected), "{arguments:?}: {said}");
    }
    for arguments in [
        &["events", "show", "1"][..],
        &["dead", "show", "1"],
        &["events", "export"],
    ] {
        let shown = daemon.lines(arguments).pop().unwrap();
        assert_eq!(shown["body"], EVENT, "{arguments:?}: byte for byte");
    }
    assert_eq!(daemon.ok(&["events", "show", "1", "--raw"]), EVENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_for_people_to_the_second_and_for_programs_whole() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=1).await;
    let line = daemon.ok(&["events", "list"]).lines().nth(1).unwrap().to_owned();
    let shown = daemon.ok(&["events", "show", "1"]);
    for said in [&line, &shown] {
        let has_age = [" s ago", "just now", " min ago"].iter().any(|age| said.contains(age));
        assert!(has_age && said.contains("Z, "), "{said}");
    }
    let at = daemon.lines(&["events", "list"])[0]["received_at"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        at.parse::<jiff::Timestamp>().is_ok() && at.len() == "2024-02-15T12:00:00.123456Z".len(),
        "{at}"
    );
    // To the second: nothing of the microseconds is left.
    assert!(!line.contains(&at[20..]), "{line} {at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_s_type_is_called_type_everywhere() {
    let receiver = Receiver::start(400).await;
    let sink = format!(
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\n",
        receiver.url
    );
    let daemon = Daemon::start(&sink).await;
    daemon.store(1..=1).await;
    until("it is a dead letter", async || daemon.sink("crm")["dead"] == 1).await;
    assert_eq!(daemon.lines(&["events", "list"])[0]["type"], "lead.updated");
    assert_eq!(daemon.lines(&["dead", "list"])[0]["type"], "lead.updated");
    let shown = daemon.lines(&["dead", "show", "ev_1"]).pop().unwrap();
    assert_eq!(shown["letter"]["type"], "lead.updated");
    assert_eq!(shown["letter"]["event_type"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_json_where_json_is_asked_for_with_the_same_exit_code() {
    let daemon = Daemon::new("");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["events", "list"], 1, "closehook serve"),
        (&["replay", "--since", "yesterday"], 2, "--since"),
        (&["nonsense"], 2, "nonsense"),
        (&["events", "list", "--filter", "{"], 2, "filter"),
        (&["trigger", "lead"], 2, "names no action"),
        (&["filter", "{}"], 2, "filter"),
        (&["dead", "retry"], 2, "say which"),
        (&["status", "--nonsense"], 2, "--nonsense"),
        (&["restore", "DIR/none"], 2, "can't be read"),
    ];
    for (arguments, code, part) in cases {
        let mut arguments = arguments.to_vec();
        let plain = daemon.run_command(&arguments);
        assert_eq!(plain.status.code(), Some(*code), "{arguments:?}");
        arguments.push("--json");
        let output = daemon.run_command(&arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<Value> = text.lines().map(parsed).collect();
        assert!(!lines.is_empty(), "{arguments:?}");
        for line in &lines {
            let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["error"], "{arguments:?}: {text}");
            let message = line["error"]["message"].as_str().unwrap();
            assert!(!message.is_empty() && !message.contains('\n'), "{arguments:?}: {text}");
        }
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
    // With its place, where it has one.
    daemon.configure("[server]\nmax_body = 5\nlissten = \"x\"\n");
    for command in ["check", "status", "serve"] {
        let output = daemon.run_command(&[command, "--json"]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let text = String::from_utf8(output.stderr).unwrap();
        let places: Vec<Value> = text
            .lines()
            .map(|line| parsed(line)["error"]["place"].clone())
            .collect();
        assert!(
            places.contains(&json!("server.max_body")) && places.contains(&json!("server.lissten")),
            "{text}"
        );
    }
    // Help is help, and no error.
    assert!(daemon.ok(&["status", "--help", "--json"]).contains("Usage:"));
}

/// Lines on standard error, each of them an error as programs read it.
fn errors(stderr: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(stderr).unwrap();
    let message = |line: &str| {
        let said = parsed(line);
        let keys: Vec<&String> = said.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["error"], "{text}");
        said["error"]["message"].as_str().unwrap().to_owned()
    };
    text.lines().map(message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_a_command_goes_on_is_json_too_where_that_is_asked_for() {
    let mut daemon = Daemon::new(
        "[[sinks]]\nname = \"made\"\ntype = \"file\"\npath = \"DIR/made.txt\"\ntemplate = \"{{ data.name }}!\"\n",
    );
    let file = |name: &str, text: &str| {
        std::fs::write(daemon.path(name), text).unwrap();
        daemon.path(name).display().to_string()
    };
    let junk = file("junk", "7\n\"a\\u001b\"\nnull\nno json\n1\n2\n3\n");
    let event = file(
        "event.json",
        r#"{"id":"ev_1","object_type":"lead","action":"updated","data":{}}"#,
    );
    let cases = file(
        "cases.toml",
        "[[cases]]\nname = \"a\"\nevent = '{\"object_type\":\"leed\",\"action\":\"updated\",\"data\":{\"name\":\"x\"}}'\nroutes_to = [\"* -> made\"]\n",
    );
    let any = r#"{"type":"field_accessor","field":"id","filter":{"type":"non_null"}}"#;
    for (arguments, code, says) in [
        (
            &["filter", any, &junk][..],
            1,
            &["(passed over)", "more like these were passed over"][..],
        ),
        (&["render", "made", &event], 1, &["ev_1: its template failed"]),
        (
            &["events", "list", "--type", "leed.updated"],
            1,
            &["did you mean \"lead.updated\"?"],
        ),
        (
            &["rules", "test", &cases],
            0,
            &["a: Close documents no event type \"leed.updated\": did you mean"],
        ),
    ] {
        let plain = daemon.run_command(arguments);
        assert_eq!(plain.status.code(), Some(code), "{arguments:?}: {plain:?}");
        let text = String::from_utf8(plain.stderr).unwrap();
        assert!(
            text.lines().all(|line| line.starts_with("closehook: ")),
            "{arguments:?}: {text}"
        );
        let output = daemon.run_command(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let said = errors(&output.stderr);
        for says in says {
            assert!(text.contains(says), "{arguments:?}: {text}");
            assert!(said.iter().any(|line| line.contains(says)), "{arguments:?}: {said:?}");
        }
    }
    // A replay that waits.
    daemon.run().await;
    daemon.store(1..=1).await;
    daemon.ok(&["sinks", "pause", "made"]);
    let mut command = daemon.command();
    command.args(["replay", "--id", "ev_1", "--sink", "made", "--json"]);
    let stderr = std::fs::File::create(daemon.path("said")).unwrap();
    let mut replaying = command
        .stdout(std::process::Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let said = || std::fs::read(daemon.path("said")).unwrap();
    until("it says that it waits", async || said().ends_with(b"\n")).await;
    daemon.ok(&["sinks", "resume", "made"]);
    until("it is over", async || replaying.try_wait().unwrap().is_some()).await;
    let said = errors(&said());
    assert!(
        said[0].starts_with("the replay waits: ") && said[0].contains("made"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_of_another_version_is_named_as_that() {
    use std::io::{BufRead, BufReader, Write};
    let daemon = Daemon::start("").await;
    let ask = |request: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.data().join("closehook.sock")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
        // That it is at work is said before anything else.
        let lines = BufReader::new(stream).lines().map(|line| parsed(&line.unwrap()));
        lines.into_iter().find(|line| line["alive"] != true).unwrap()
    };
    // What an older or newer command asks.
    for request in [
        r#"{"query":"pause","sink":"a","paused":true}"#,
        r#"{"order":"improve"}"#,
        "{}",
    ] {
        let said = ask(request)["error"].as_str().unwrap().to_owned();
        assert!(
            said.contains("does not understand") && said.contains("another version"),
            "{said}"
        );
    }
    assert_eq!(
        ask(r#"{"query":"status"}"#)["answer"]["ready"],
        true,
        "what did not change is understood"
    );

    // What an older or newer daemon answers.
    let other = Daemon::new("");
    std::fs::create_dir_all(other.data()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(other.data().join("closehook.sock")).unwrap();
    let answering = std::thread::spawn(move || {
        // One look whether somebody is there, and one question.
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            if BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap()
                > 0
            {
                stream
                    .write_all(b"{\"answer\":{\"well\":\"very\"}}\n{\"done\":true}\n")
                    .unwrap();
            }
        }
    });
    let said = other.fails(1, &["status"]);
    assert!(said.contains("another version"), "{said}");
    answering.join().unwrap();
}
