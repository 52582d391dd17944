//! What is printed with `--json` while rules, templates and receivers are written, for the comparison with `config/json.md`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::harness::{Daemon, Receiver, binary, parsed};
use crate::json::Printed;

/// Sinks that are sent something in each way there is.
const SINKS: &str = r#"
[[sinks]]
name = "made"
type = "file"
path = "DIR/made.txt"

[[sinks]]
name = "routed"
type = "exec"
command = ["/bin/false"]
transform = "export default (e, m) => e.id === 'ev_s' ? null : { payload: [m.seq, m.sink], headers: { a: 'b' }, key: 'k', subject: 's' }"

[[rules]]
name = "won"
events = ["lead.updated"]
sinks = ["made"]
template = "won: {{ event.id }}"
"#;

/// A place at the receiver, and where it goes there. Nothing is sent.
#[cfg(feature = "sink-kinesis")]
const KEYED: &str = "[[sinks]]\nname = \"keyed\"\ntype = \"kinesis\"\nstream = \"s\"\nregion = \"eu-west-1\"\nendpoint = \"http://127.0.0.1:9\"\n\
                     access_key_id = \"AKIA0\"\nsecret_access_key = \"secret\"\n\
                     [[sinks]]\nname = \"hook\"\ntype = \"http\"\nurl = \"http://127.0.0.1:9\"\nallow_private = true\n";

/// A row for each event.
#[cfg(feature = "sink-sqlite")]
const ROWS: &str = "[[sinks]]\nname = \"rows\"\ntype = \"sqlite\"\npath = \"DIR/rows.db\"\n";

/// One case that holds and one that does not.
const CASES: &str = r#"
[[cases]]
name = "it goes there"
event = '{"id":"ev_1","object_type":"lead","action":"updated","data":{}}'
routes_to = ["won -> made"]

[[cases]]
name = "it does not"
event = '{"id":"ev_1","object_type":"lead","action":"updated","data":{}}'
routes_to = []
"#;

pub async fn on_rules_and_sinks(printed: &mut Printed) {
    let mut sinks = String::new();
    #[cfg(feature = "sink-sqlite")]
    sinks.push_str(ROWS);
    #[cfg(feature = "sink-kinesis")]
    sinks.push_str(KEYED);
    let daemon = Daemon::start(&[&sinks, SINKS].concat()).await;
    daemon.store(1..=1).await;
    let cases = daemon.path("cases.toml").display().to_string();
    std::fs::write(&cases, CASES).unwrap();
    let verdicts = printed.run(&daemon, "rules test", &[&cases]);
    assert_eq!((&verdicts[0]["ok"], &verdicts[1]["ok"]), (&true.into(), &false.into()));
    let events = daemon.path("events.json").display().to_string();
    let event = r#"{"id":"ev_9","object_type":"lead","action":"updated","data":{}}"#;
    std::fs::write(&events, [event, &event.replace("ev_9", "ev_s")].concat()).unwrap();
    printed.run(&daemon, "render", &["made", "--id", "ev_1"]);
    printed.run(&daemon, "render", &["routed", &events]);
    #[cfg(feature = "sink-sqlite")]
    printed.run(&daemon, "render", &["rows", "--id", "ev_1"]);
    #[cfg(feature = "sink-kinesis")]
    for sink in ["keyed", "hook"] {
        printed.run(&daemon, "render", &[sink, "--id", "ev_1"]);
    }
}

pub async fn listen(printed: &mut Printed) {
    let receiver = Receiver::start(200).await;
    // A key that can't be had is said, as programs read it.
    let daemon = Daemon::new("[[close.subscriptions]]\nsignature_key_file = \"DIR/none\"\n");
    let stderr = daemon.path("listen.stderr");
    let mut child = daemon
        .command()
        .args(["listen", "--json", "--forward-to", &receiver.url])
        .env("TMPDIR", daemon.path(""))
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let sample = parsed(&first)["sample"].as_str().unwrap().to_owned();
    let triggered = Command::new(binary()).args(sample.split(' ').skip(1)).output().unwrap();
    assert!(triggered.status.success(), "{triggered:?}");
    let (event, answer) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
    printed.note("listen", [first, event, answer].join("\n").as_bytes());
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success() && child.wait().unwrap().success());
    let said = std::fs::read_to_string(stderr).unwrap();
    let lines: Vec<_> = said.lines().map(parsed).collect();
    assert!(
        !lines.is_empty()
            && lines.iter().all(|line| line["error"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("is refused"))),
        "{said}"
    );
}
