//! The log from outside: damage, a second process, export and import, erasure, work without a daemon.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::{Daemon, body, until};

const FILE: &str = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

fn journal(daemon: &Daemon) -> std::path::PathBuf {
    let log = daemon.data().join("log");
    let mut segments: Vec<_> = std::fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    segments.last().unwrap().join("journal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_off_and_nothing_is_lost() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=5).await;
    daemon.kill();
    let mut file = std::fs::OpenOptions::new().append(true).open(journal(&daemon)).unwrap();
    file.write_all(b"\xC1\x05\xE7\x0F half a frame").unwrap();
    daemon.run().await;
    daemon.store(6..=6).await;
    let status = daemon.status();
    assert_eq!(
        (
            status["log"]["events"].as_u64(),
            status["log"]["gaps"].as_array().map(Vec::len)
        ),
        (Some(6), Some(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_counted_and_passed() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.ok(&["sinks", "pause", "file"]);
    daemon.store(1..=5).await;
    daemon.kill();
    let path = journal(&daemon);
    let mut bytes = std::fs::read(&path).unwrap();
    // Behind the last block there is only room.
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["gaps"].as_array().unwrap().len(), 1);
    daemon.ok(&["sinks", "resume", "file"]);
    until("the sink has passed the damage", async || {
        daemon.sink("file")["cursor"] == 5
    })
    .await;
    assert_eq!(daemon.sink("file")["lost"], 1);
    assert_eq!(daemon.run_command(&["events", "verify"]).status.code(), Some(1));

    // Whoever looks at the events is told what is missing between them, beside the events.
    for arguments in [&["events", "list"][..], &["events", "list", "--json"]] {
        let listed = daemon.run_command(arguments);
        let (shown, said) = (String::from_utf8(listed.stdout), String::from_utf8(listed.stderr));
        let (shown, said) = (shown.unwrap(), said.unwrap());
        assert!(listed.status.success() && shown.contains("ev_5"), "{shown}{said}");
        assert!(
            said.contains("can't be read") && said.contains("`closehook events verify`"),
            "{said}"
        );
        if arguments.contains(&"--json") {
            let said: Value = serde_json::from_str(&said).unwrap();
            assert!(said["error"]["message"].is_string(), "{said}");
            shown
                .lines()
                .for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
        }
    }
    let newest = daemon.run_command(&["events", "list", "--limit", "1"]);
    assert_eq!(String::from_utf8(newest.stderr).unwrap(), "", "there is none behind it");
    let mut tail = daemon.command();
    tail.args(["events", "tail", "--since", "1d"]);
    tail.stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped());
    let mut child = tail.spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut said).unwrap();
    assert!(said.contains("can't be read"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Also where nothing but the header of a file is damaged, and nobody puts it back.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_without_a_daemon_where_it_is() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=5).await;
    daemon.stop().await;
    assert!(daemon.ok(&["events", "verify"]).starts_with("5 events checked"));
    let path = journal(&daemon);
    let whole = std::fs::read(&path).unwrap();
    let lost_at = whole.len() / 2;
    for (at, lost) in [(3, 0), (lost_at, 1)] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&path, &bytes).unwrap();
        let checked = daemon.run_command(&["events", "verify", "--json"]);
        assert_eq!(checked.status.code(), Some(1), "{at}");
        let found: Value = serde_json::from_slice(&checked.stdout).unwrap();
        let faults = found["faults"].as_array().unwrap();
        assert_eq!(faults.len(), 1, "{found}");
        assert!(faults[0].as_str().unwrap().contains(path.to_str().unwrap()), "{found}");
        assert_eq!(found["gaps"].as_array().unwrap().len(), lost, "{found}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_directory_is_told_so() {
    let daemon = Daemon::start("").await;
    let refused = daemon.run_command(&["serve"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("in use by another closehook (process"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_can_be_imported_byte_for_byte() {
    let one = Daemon::start("").await;
    one.store(1..=20).await;
    one.send("not a delivery").await.unwrap();
    let exported = one.path("exported.jsonl");
    one.ok(&["log", "export", exported.to_str().unwrap()]);
    let mut two = Daemon::start(FILE).await;
    two.store(3..=4).await;
    let said = two.ok(&["log", "import", exported.to_str().unwrap()]);
    assert!(said.contains("19 events imported, 2 were known already"), "{said}");
    assert!(
        two.ok(&["log", "import", exported.to_str().unwrap()])
            .contains("0 events imported")
    );
    let bodies = |daemon: &Daemon| {
        let mut bodies: Vec<String> = daemon
            .lines(&["events", "export"])
            .iter()
            .map(|e| e["body"].as_str().unwrap().to_owned())
            .collect();
        bodies.sort();
        bodies
    };
    assert_eq!(bodies(&one), bodies(&two));
    until("the sink is done", async || two.sink("file")["cursor"] == 21).await;
    assert_eq!(
        crate::harness::ids_in(&two.path("events.jsonl")).len(),
        2,
        "imported events are not dispatched"
    );
    two.stop().await;
    assert_eq!(bodies(&one), bodies(&two), "and the same without a daemon");
}

/// They would be gone before anybody could replay them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_the_log_keeps_is_imported_only_on_purpose() {
    let daemon = Daemon::start("").await;
    let line = |id: u64, at: &str| {
        json!({ "received_at": at, "source": "webhook", "headers": {}, "body": body(id) }).to_string()
    };
    let now = jiff::Timestamp::now().to_string();
    let file = daemon.path("old.jsonl");
    let name = file.to_str().unwrap();
    // The old one is far behind the first events that are sent together.
    let mut lines: Vec<String> = (1..=600).map(|id| line(id, &now)).collect();
    lines.push(line(601, "2024-02-15T10:00:00Z"));
    std::fs::write(&file, lines.join("\n")).unwrap();
    let said = daemon.fails(1, &["log", "import", name]);
    assert!(
        said.contains("1 of the 601 events") && said.contains("30d") && said.contains("--expired"),
        "{said}"
    );
    assert_eq!(daemon.status()["log"]["last"], 0, "nothing was imported");
    let streamed = daemon
        .command()
        .args(["log", "import", "-"])
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert_eq!(streamed.status.code(), Some(1), "{streamed:?}");
    daemon.ok(&["log", "import", name, "--expired"]);
    assert_eq!(daemon.status()["log"]["last"], 601);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_text_are_exported_and_imported_byte_for_byte() {
    let one = Daemon::start("").await;
    let mut two = Daemon::start("").await;
    let bodies: [&[u8]; 4] = [
        b"\xff\xfe not text \0 \xc3",
        b"{\"event\":{\"id\":\"ev_1\",\"data\":\"\xe9\"}}",
        b"\xef\xbb\xbf{\"event\":{\"id\":\"ev_2\"}}\r\n",
        b"",
    ];
    for body in bodies {
        let (status, answer) = one.send(body).await.unwrap();
        assert_eq!((status, answer["status"].as_str()), (200, Some("quarantined")));
    }
    let exported = one.path("exported.jsonl");
    one.ok(&["log", "export", exported.to_str().unwrap()]);
    two.ok(&["log", "import", exported.to_str().unwrap()]);
    two.stop().await;
    for daemon in [&one, &two] {
        for (index, body) in bodies.iter().enumerate() {
            let shown = daemon.run_command(&["events", "show", &(index + 1).to_string(), "--raw"]);
            assert_eq!(shown.stdout, *body);
        }
        assert_eq!(daemon.lines(&["events", "list", "--quarantined"]).len(), bodies.len());
    }
    assert!(two.ok(&["events", "verify"]).starts_with("4 events checked"));
    assert_eq!(
        one.lines(&["events", "export"]),
        two.lines(&["events", "export"]),
        "with headers and times"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_data_is_gone_and_its_place_stays() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=14).await;
    assert!(
        daemon
            .ok(&["log", "erase", "--lead", "lead_0", "--yes"])
            .contains("2 events erased")
    );
    assert_eq!(daemon.run_command(&["events", "show", "ev_7"]).status.code(), Some(0));
    let exported = daemon.ok(&["events", "export"]);
    assert!(!exported.contains("ev_7"));
    assert_eq!(
        exported.lines().count(),
        12,
        "of what is erased there is nothing to hand on"
    );
    let (_, answer) = daemon.send(body(7)).await.unwrap();
    assert_eq!(answer["status"], "duplicate", "it does not come back");
    daemon.stop().await;
    assert_eq!(daemon.lines(&["events", "list"]).len(), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_data_is_gone_from_quarantine_and_what_can_not_be_searched_is_named() {
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=2).await;
    let unreadable = |lead: &str| format!(r#"{{"subscription_id":"whsub_1","about":"{lead}"}}"#);
    for lead in ["lead_77", "lead_777"] {
        let (_, answer) = daemon.send(unreadable(lead)).await.unwrap();
        assert_eq!(answer["status"], "quarantined");
    }
    let aside = daemon.data().join("damaged/1");
    std::fs::create_dir_all(&aside).unwrap();
    std::fs::write(aside.join("blob"), "nobody can read this").unwrap();
    let erase = ["log", "erase", "--lead", "lead_77", "--yes"];
    let erased = daemon.run_command(&erase);
    // Whoever looks at the exit code alone must not take it for done.
    assert_eq!(erased.status.code(), Some(1));
    let (said, wrong) = [erased.stdout, erased.stderr]
        .map(|text| String::from_utf8(text).unwrap())
        .into();
    assert!(said.contains("1 events erased") && said.contains("damaged"), "{said}");
    assert!(wrong.contains("run the same command again"), "{wrong}");
    let exported = daemon.ok(&["events", "export"]);
    assert!(!exported.contains(r#"lead_77\""#), "{exported}");
    assert!(exported.contains(r#"lead_777\""#), "somebody else's: {exported}");
    let (_, answer) = daemon.send(unreadable("lead_77")).await.unwrap();
    assert_eq!(
        answer["status"], "quarantined",
        "it does not come back as another event"
    );
    assert_eq!(daemon.lines(&["events", "list"]).len(), 4);
    daemon.stop().await;
    let wrong = daemon.fails(1, &erase);
    assert!(wrong.contains("run the same command again"), "{wrong}");
    std::fs::remove_dir_all(daemon.data().join("damaged")).unwrap();
    daemon.ok(&erase);
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_new_events_and_survives_a_restart() {
    use std::io::BufRead;
    let mut daemon = Daemon::start("").await;
    daemon.store(1..=2).await;
    let mut child = daemon
        .command()
        .args(["events", "tail", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut id = 2;
    let mut first = None;
    // It shows what comes after it has begun, whenever that is.
    until("it follows", async || {
        id += 1;
        daemon.store(id..=id).await;
        first = receiver.try_recv().ok();
        first.is_some()
    })
    .await;
    daemon.stop().await;
    daemon.run().await;
    daemon.store(id + 1..=id + 1).await;
    let wanted = format!("ev_{}", id + 1);
    until("it shows what came after the restart", async || {
        receiver.try_iter().any(|line| line.contains(&wanted))
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Stands for a daemon at its socket: hears what is asked, and says what it is told to; where that is nothing, it goes away.
fn stand_in(daemon: &Daemon, say: impl Fn(&Value) -> String + Send + Sync + 'static) -> Arc<Mutex<Vec<Value>>> {
    use std::io::BufRead;
    std::fs::create_dir_all(daemon.data()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(closehook::admin::socket::path(daemon.data())).unwrap();
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (heard, say) = (asked.clone(), Arc::new(say));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (heard, say) = (heard.clone(), say.clone());
            std::thread::spawn(move || {
                let mut line = String::new();
                let _ = std::io::BufReader::new(&stream).read_line(&mut line);
                // Whoever only looks whether a daemon is there asks nothing.
                let Ok(question) = serde_json::from_str(&line) else {
                    return;
                };
                let said = say(&question);
                heard.lock().unwrap().push(question);
                let _ = (&stream).write_all(said.as_bytes());
            });
        }
    });
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_where_it_began_although_nothing_was_shown_yet() {
    let daemon = Daemon::new("");
    let newest = json!({ "answer": {
        "seq": 7, "received_at": "2024-02-15T10:00:00Z", "source": "webhook", "kind": "event",
        "type": null, "id": "ev_7", "date_updated": null, "lead_id": null } });
    let asked = stand_in(&daemon, move |question| match question["follow"].as_bool() {
        Some(true) => String::new(),
        _ => format!("{newest}\n{{\"done\":true}}\n"),
    });
    let mut child = daemon.command().args(["events", "tail"]).spawn().unwrap();
    let followed = || -> Vec<Value> {
        let asked = asked.lock().unwrap();
        let followed = asked.iter().filter(|question| question["follow"] == true);
        followed.map(|question| question["from"].clone()).collect()
    };
    until("it has asked again", async || followed().len() > 1).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(followed().iter().all(|from| *from == 8), "{:?}", followed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_ends_when_nobody_reads_it_although_nothing_comes() {
    let mut daemon = Daemon::start("").await;
    let ends = async |mut child: std::process::Child| {
        // Whoever read has gone, as a page that was closed, or a script that has seen enough.
        drop(child.stdout.take());
        let mut exit = None;
        until("it has ended", async || {
            exit = child.try_wait().unwrap();
            exit.is_some()
        })
        .await;
        assert_eq!(exit.unwrap().code(), Some(141), "as of a program that SIGPIPE ends");
    };
    let tail = |daemon: &Daemon| {
        let mut tail = daemon.command();
        tail.args(["events", "tail", "--since", "1d"])
            .stdout(std::process::Stdio::piped());
        tail.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    daemon.store(1..=1).await;
    ends(tail(&daemon)).await;
    // Also while it waits for the daemon.
    let mut child = tail(&daemon);
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    daemon.stop().await;
    line.clear();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("waiting for it to come back"), "{line}");
    ends(child).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_a_daemon_refuses_ends_and_says_why() {
    let daemon = Daemon::new("");
    stand_in(&daemon, |question| match question["follow"].as_bool() {
        Some(true) => "{\"error\":\"the event log can't be read\"}\n".to_owned(),
        _ => "{\"done\":true}\n".to_owned(),
    });
    let mut tail = daemon.command();
    let mut child = tail
        .args(["events", "tail"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = None;
    until("it ends", async || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(ended.unwrap().code(), Some(1), "{said}");
    assert!(
        said.lines().last().unwrap().contains("the event log can't be read"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_sealed_and_expire() {
    let mut daemon = Daemon::start("[log]\nsegment_size = \"64 KiB\"\nmax_size = \"2 MiB\"").await;
    let pad = "x".repeat(3000);
    let mut id = 0;
    until("the oldest are gone", async || {
        for _ in 0..50 {
            id += 1;
            let noise: String = (0..100).map(|n| format!("{:x}", id * 7919 * (n + 1))).collect();
            let text = format!(r#"{{"event":{{"id":"ev_{id}","data":"{noise}{pad}"}}}}"#);
            // The limit is hard: what comes faster than the oldest go is told to come again.
            until("it is stored", async || {
                let (status, _) = daemon.send(text.clone()).await.unwrap();
                assert!(status == 200 || status == 503, "{status}");
                status == 200
            })
            .await;
        }
        daemon.status()["log"]["first"].as_u64().unwrap() > 1
    })
    .await;
    let (_, answer) = daemon.send(r#"{"event":{"id":"ev_1","data":""}}"#).await.unwrap();
    assert_eq!(answer["status"], "duplicate", "keys outlive segments");
    assert!(daemon.ok(&["events", "verify"]).contains("events checked"));
    daemon.kill();
    daemon.run().await;
    assert_eq!(daemon.status()["log"]["gaps"].as_array().unwrap().len(), 0);
    daemon.stop().await;
    assert!(
        !daemon.lines(&["events", "list", "--limit", "5"]).is_empty(),
        "read without a daemon, from sealed segments too"
    );
}

/// A command that must not hang, in so much memory.
fn bounded(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("sh");
    let script = "ulimit -v 8000000; exec timeout -k 1 40 \"$@\"";
    command.args(["-c", script, "sh", crate::harness::binary(), "-c"]);
    command
        .arg(daemon.config())
        .args(arguments)
        .env("CLOSEHOOK__LOG__DIR", daemon.data())
        .env("CLOSEHOOK__SERVER__LISTEN", "127.0.0.1:0")
        .env("CLOSEHOOK__ADMIN__LISTEN", "127.0.0.1:0")
        .env_remove("CLOSEHOOK_CONFIG")
        .stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_imported_is_named_with_its_file_and_line_and_a_line_has_an_end() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=2).await;
    let good = daemon.path("good.jsonl");
    daemon.ok(&["log", "export", good.to_str().unwrap()]);
    let good = std::fs::read_to_string(good).unwrap();
    let file = daemon.path("events.jsonl");
    let name = file.to_str().unwrap();
    for (content, line) in [
        ("{\"seq\": \n".as_bytes().to_vec(), 1),
        (format!("{good}no json\n").into_bytes(), 3),
        ([good.as_bytes(), b"\xff\xfe\n"].concat(), 3),
        (
            format!("{good}\n{good}")
                .replace("\"body\":\"", "\"body_base64\":\"!")
                .into_bytes(),
            1,
        ),
    ] {
        std::fs::write(&file, content).unwrap();
        let said = daemon.fails(1, &["log", "import", name]);
        assert!(said.contains(&format!("{name}:{line}")), "{said}");
    }
    // An empty line is none.
    std::fs::write(&file, format!("{good}\n{good}")).unwrap();
    daemon.ok(&["log", "import", name]);
    let (code, said) = bounded(&daemon, &["log", "import", "/dev/zero"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/dev/zero:1: ") && said.contains("too long"), "{said}");
    let endless = daemon
        .command()
        .args(["log", "import", "-"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .output();
    let said = String::from_utf8(endless.unwrap().stderr).unwrap();
    assert!(said.contains("standard input:1: "), "{said}");
    // A stream is as good as a file where one is meant.
    let piped = "cat \"$1\" | \"$2\" -c \"$3\" log import /dev/stdin && \"$2\" -c \"$3\" log import <(cat \"$1\") \
                 && \"$2\" filter '{\"type\":\"is_null\"}' <(cat \"$1\") --invert --count";
    let piped = std::process::Command::new("bash")
        .args(["-c", piped, "bash", name, crate::harness::binary()])
        .arg(daemon.config())
        .env("CLOSEHOOK__LOG__DIR", daemon.data())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&piped.stdout),
        String::from_utf8_lossy(&piped.stderr),
    );
    assert!(piped.status.success(), "{err}");
    assert_eq!(
        out.matches("0 events imported, 4 were known already").count(),
        2,
        "{out}"
    );
}

/// What waits for somebody to write into it is no file to be read whole.
#[test]
fn a_pipe_where_a_file_is_meant_is_refused_and_waited_for_by_nobody() {
    let daemon = Daemon::new("");
    let pipe = daemon.path("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let name = pipe.to_str().unwrap();
    let at = format!("@{name}");
    let refused = |daemon: &Daemon, arguments: &[&str]| {
        let (code, said) = bounded(daemon, arguments);
        assert!(matches!(code, Some(1 | 2)), "{arguments:?} hangs: {code:?} {said}");
        assert!(
            said.contains("pipe") && said.contains("regular file"),
            "{arguments:?}: {said}"
        );
    };
    for arguments in [
        &["check", "-c", name][..],
        &["serve", "-c", name],
        &["reload", "-c", name],
        &["events", "list", "--filter", &at],
        &["filter", &at, "/dev/null"],
        &["trigger", "lead.created", "--url", "http://127.0.0.1:1/", "--key", &at],
        &["rules", "test", name],
    ] {
        refused(&daemon, arguments);
    }
    for config in [
        "[[close.subscriptions]]\nsignature_key_file = \"DIR/pipe\"\n",
        "[[rules]]\nname = \"r\"\nsinks = []\nfilter = \"@pipe\"\n",
        "[server.tls]\ncert = \"DIR/pipe\"\nkey = \"DIR/pipe\"\n",
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"https://crm.example.com/\"\nsecret_file = \"DIR/pipe\"\n",
        "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"https://crm.example.com/\"\nca = \"DIR/pipe\"\n",
    ] {
        daemon.configure(config);
        refused(&daemon, &["check"]);
    }
    daemon.configure("");
    std::fs::create_dir_all(daemon.data().join("close")).unwrap();
    std::fs::rename(&pipe, daemon.data().join("closehook.json")).unwrap();
    refused(&daemon, &["events", "list"]);
    refused(&daemon, &["serve"]);
}
