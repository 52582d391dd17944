//! `config/json.md` says field by field what every command prints with `--json`: compared with what the built binary prints.

use std::collections::{BTreeMap, BTreeSet};

use fake_close::{Role, Settings};
use serde_json::{Value, json};

use crate::close::Rig;
use crate::harness::{Daemon, Receiver, binary, body, until};

const DOCUMENT: &str = include_str!("../../config/json.md");

/// Commands that print no JSON of their own.
const WITHOUT: [&str; 4] = ["serve", "completions", "man", "help"];

/// What is documented and can't be brought about here, each with the reason.
const NOT_HERE: [(&str, &str); 86] = [
    // A sink that somebody has to see to; `control/troubles/tests.rs` has it.
    ("status", "troubles[].next.of"),
    // It takes several nodes; `jetstream_chaos.rs` has them.
    ("sinks list", "node"),
    ("sinks list", "known"),
    ("status", "stream.stream"),
    ("status", "stream.replicas"),
    ("status", "stream.leader"),
    ("status", "stream.servers[]"),
    ("status", "stream.servers[].name"),
    ("status", "stream.servers[].alive"),
    ("status", "nodes[].name"),
    ("status", "nodes[].roles"),
    ("status", "nodes[].state"),
    ("status", "nodes[].started_at"),
    ("status", "nodes[].version"),
    ("status", "nodes[].leases"),
    ("status", "nodes[].heard_seconds"),
    // It takes damage to what a removed sink has left; `deliver` has it.
    ("status", "removed_sinks_damaged.*"),
    // They take servers to copy to; `jetstream_copy.rs` has them.
    ("log copy", "to"),
    ("log copy", "id"),
    ("log copy", "epoch"),
    ("log copy", "first"),
    ("log copy", "last"),
    ("log copy", "events"),
    ("log copy", "quarantined"),
    ("log copy", "erased"),
    ("log copy", "known"),
    ("log copy", "bytes"),
    ("log copy", "sha256"),
    ("log copy", "state"),
    ("log copy", "dead_letters"),
    ("log copy", "given_letters"),
    ("log copy", "damaged_letters"),
    ("log copy", "close"),
    ("log copy", "damaged"),
    ("log copy", "resumed_at"),
    ("log copy", "was_done"),
    ("log copy", "later"),
    ("log reopen", "reopened"),
    // It takes servers; `jetstream.rs` has them.
    ("check", "probes[].log"),
    // Counted in the background; `close_claims.rs` waits for it.
    ("status", "close.held.types.*"),
    // It takes a certificate authority; `acme.rs` has one.
    ("init", "certificate_not_after"),
    // Damage to the log's files; `log.rs` and `faults.rs` look at these.
    ("status", "log.gaps[].from"),
    ("status", "log.gaps[].to"),
    ("status", "log.gaps[].reason"),
    ("status", "log.gaps[].found_at"),
    ("status", "log.gaps[].skipped"),
    ("status", "log.gaps[].certain_to"),
    ("events verify", "gaps[].from"),
    ("events verify", "gaps[].to"),
    ("events verify", "gaps[].reason"),
    ("events verify", "gaps[].found_at"),
    ("events verify", "gaps[].skipped"),
    ("events verify", "gaps[].certain_to"),
    // It takes hours of silence; `close.rs` has them.
    ("status", "close.silence.last_delivery"),
    ("status", "close.silence.newest_event"),
    // Only while Close refuses; `close_told.rs` looks at these.
    ("status", "close.set_back.said"),
    ("status", "close.set_back.again_at"),
    // Only for as long as the new subscription has not delivered; `close.rs` looks at these.
    ("status", "close.rotation.old"),
    ("status", "close.rotation.new"),
    ("status", "close.rotation.begun_at"),
    // A subscription that another one's filter is over.
    ("subscription list", "events[].extra_filter"),
    ("subscription list", "events[].extra_filter.*"),
    // Steps of a plan that follow mishaps; `close.rs` looks at these.
    ("subscription plan", "steps[].unfilter"),
    ("subscription plan", "steps[].url"),
    ("subscription plan", "steps[].events"),
    ("subscription plan", "steps[].resume"),
    ("subscription plan", "steps[].id"),
    // Of every event that can be read what is made is text.
    ("render", "body_base64"),
    // It takes withheld data in what is claimed; `close_claims.rs` has that.
    ("status", "close.complete.lacks.events"),
    ("status", "close.complete.lacks.types"),
    ("status", "close.complete.lacks.types.*"),
    ("status", "close.complete.lacks.oldest"),
    ("status", "close.complete.lacks.newest"),
    ("status", "close.complete.lacks.is_counted"),
    ("status", "close.complete.lacks.are_dispatched"),
    ("status", "received.unavailable.*"),
    ("status", "received.unfit.*"),
    // A sink that is paused while another one is not.
    ("dead retry", "refused[]"),
    ("dead retry", "refused[].sink"),
    ("dead retry", "refused[].letters"),
    ("dead retry", "refused[].reason"),
    ("dead list", "answer"),
    ("dead list", "dead"),
    ("dead list", "replay"),
    ("events show", "sinks.*.answer"),
    // It takes an import; `cli.rs` has one.
    ("events show", "held"),
];

/// What the document says of one command.
#[derive(Debug, Default)]
struct Section {
    /// Its own fields.
    own: BTreeSet<String>,
    /// Those that it has from other sections too.
    all: BTreeSet<String>,
}

fn joined(prefix: &str, path: &str) -> String {
    if prefix.is_empty() {
        path.to_owned()
    } else {
        format!("{prefix}.{path}")
    }
}

/// The sections of the document, by command.
fn document() -> BTreeMap<String, Section> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut borrowed: Vec<(String, String, String)> = Vec::new();
    let mut name = None;
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            name = Some(title.to_owned());
            sections.entry(title.to_owned()).or_default();
        }
        let (Some(name), Some(item)) = (&name, line.strip_prefix("- ")) else {
            continue;
        };
        let path = item.strip_prefix('`').and_then(|item| item.split('`').next());
        if let Some(path) = path {
            let section = sections.get_mut(name).unwrap();
            assert!(section.own.insert(path.to_owned()), "{name}: {path} is there twice");
        }
        if let Some((_, from)) = item.split_once("as in `") {
            let from = from.split('`').next().unwrap().to_owned();
            borrowed.push((name.clone(), path.unwrap_or_default().to_owned(), from));
        }
    }
    for section in sections.values_mut() {
        section.all = section.own.clone();
    }
    // Twice, for those that borrow from one that borrows.
    for _ in 0..2 {
        for (name, prefix, from) in &borrowed {
            let source = sections
                .get(from)
                .unwrap_or_else(|| panic!("{name}: there is no section {from}"));
            let paths: Vec<String> = source.all.iter().map(|path| joined(prefix, path)).collect();
            sections.get_mut(name).unwrap().all.extend(paths);
        }
    }
    sections
}

/// Every field in a value, by the names that the document has for them.
fn fields(value: &Value, path: &str, known: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let name = joined(path, key).replace(".children[].children", ".children");
                let star = joined(path, "*");
                let list = format!("{name}[]");
                let chosen = if known.contains(&list) {
                    list
                } else if known.contains(&name) || !known.contains(&star) {
                    name
                } else {
                    star
                };
                let has_more = known.iter().any(|known| known.starts_with(&format!("{chosen}.")));
                found.insert(chosen.clone());
                if has_more || !chosen.ends_with('*') {
                    fields(value, &chosen, known, found);
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                let path = if path.is_empty() || path.ends_with("[]") {
                    path.to_owned()
                } else {
                    format!("{path}[]")
                };
                fields(value, &path, known, found);
            }
        }
        _ => {}
    }
}

/// What the binary printed, by command.
pub struct Printed {
    sections: BTreeMap<String, Section>,
    found: BTreeMap<String, BTreeSet<String>>,
}

impl Printed {
    pub fn note(&mut self, command: &str, stdout: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(stdout).unwrap();
        let values: Vec<Value> = text.lines().map(crate::harness::parsed).collect();
        let section = self
            .sections
            .get(command)
            .unwrap_or_else(|| panic!("config/json.md has no section {command}"));
        let mut found = BTreeSet::new();
        for value in &values {
            fields(value, "", &section.all, &mut found);
        }
        let unknown: Vec<&String> = found.difference(&section.all).collect();
        assert!(
            unknown.is_empty(),
            "`closehook {command} --json` prints {unknown:?}, which config/json.md does not have: {text}"
        );
        self.found.entry(command.to_owned()).or_default().extend(found);
        values
    }

    /// Runs a command, whose name is that of a section, and takes in what it prints.
    pub fn run(&mut self, daemon: &Daemon, command: &str, more: &[&str]) -> Vec<Value> {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(more);
        arguments.push("--json");
        let output = daemon.run_command(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // What is logged begins with its time.
        for line in error.lines().filter(|line| !line.starts_with("20")) {
            assert!(
                crate::harness::parsed(line)["error"]["message"].is_string(),
                "{arguments:?}: {error}"
            );
        }
        let values = self.note(command, &output.stdout);
        assert!(!values.is_empty(), "{arguments:?} prints nothing: {error}");
        values
    }

    fn lacks_nothing(&self) {
        let mut lacking = Vec::new();
        for (command, section) in &self.sections {
            let nothing = BTreeSet::new();
            let found = self.found.get(command).unwrap_or(&nothing);
            let is_excused = |path: &&String| NOT_HERE.contains(&(command.as_str(), path.as_str()));
            let missing = section.own.difference(found).filter(|path| !is_excused(path));
            lacking.extend(missing.map(|path| format!("{command}: {path}")));
        }
        assert!(
            lacking.is_empty(),
            "config/json.md has what is never printed: {lacking:#?}"
        );
    }
}

/// Every command without commands of its own, as its help lists them.
fn commands() -> Vec<String> {
    let mut leaves = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(command) = pending.pop() {
        let mut arguments: Vec<&str> = command.split_whitespace().collect();
        arguments.push("--help");
        let output = std::process::Command::new(binary()).args(&arguments).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        // A list of commands, whatever stands above it.
        let usage = help
            .lines()
            .filter(|line| line.starts_with("Usage:") || line.starts_with("       closehook"));
        let has_commands = usage.clone().any(|line| line.contains("COMMAND"));
        let listed: Vec<String> = if has_commands { help.as_str() } else { "" }
            .split("\n\n")
            .filter(|part| part.lines().next().is_some_and(|title| title.ends_with(':')))
            .filter(|part| {
                !part.starts_with("Options") && !part.starts_with("Arguments") && !part.starts_with("Example")
            })
            .flat_map(|part| part.lines().skip(1))
            .filter_map(|line| {
                line.strip_prefix("  ")
                    .filter(|line| !line.starts_with([' ', '-', '<', '[']))
            })
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| {
                *name != "help" && *name != "closehook" && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            })
            .map(|name| format!("{command} {name}").trim().to_owned())
            .collect();
        let is_replay = command == "replay";
        if listed.is_empty() || is_replay {
            leaves.push(command);
        }
        pending.extend(listed);
    }
    leaves
}

#[test]
fn every_command_has_a_section_and_no_section_is_of_none() {
    let (sections, commands) = (document(), commands());
    assert!(commands.len() > 30, "{commands:?}");
    for command in commands.iter().filter(|command| !WITHOUT.contains(&command.as_str())) {
        assert!(
            sections.contains_key(command),
            "config/json.md has no section {command}"
        );
    }
    for section in sections.keys() {
        assert!(commands.contains(section), "there is no command {section}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_what_the_document_says() {
    let mut printed = Printed {
        sections: document(),
        found: BTreeMap::new(),
    };
    on_events_and_sinks(&mut printed).await;
    at_close(&mut printed).await;
    with_a_certificate(&mut printed).await;
    init(&mut printed).await;
    crate::json_developing::on_rules_and_sinks(&mut printed).await;
    crate::json_developing::listen(&mut printed).await;
    printed.lacks_nothing();
}

const FILTER: &str = r#"{"type":"and","filters":[{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"updated"}},{"type":"field_accessor","field":"id","filter":{"type":"non_null"}}]}"#;

async fn on_events_and_sinks(printed: &mut Printed) {
    let receiver = Receiver::start(400).await;
    let down = Receiver::start(503).await;
    let sink = |name: &str, url: &str| {
        format!("[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\n")
    };
    let rule = "[[rules]]\nname = \"r\"\nevents = [\"lead.*\"]\nsinks = [\"crm\", \"down\"]\nfilter = 'FILTER'\n".replace(
        "FILTER",
        r#"{"type":"and","filters":[{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"updated"}}]}"#,
    );
    let config = sink("crm", &receiver.url) + &sink("down", &down.url) + &rule;
    let mut daemon = Daemon::start(&(config.clone() + &sink("old", &receiver.url))).await;
    daemon.store(1..=3).await;
    for unreadable in [&b"no json"[..], b"\xff"] {
        assert_eq!(daemon.send(unreadable).await.unwrap().1["status"], "quarantined");
    }
    until("they are dead letters", async || daemon.sink("crm")["dead"] == 3).await;
    until("they are retried", async || {
        let shown = daemon.lines(&["events", "show", "1"]).pop().unwrap();
        let is_retried = shown["sinks"]["down"]["state"] == "retrying";
        if is_retried {
            printed.note("events show", format!("{shown}\n").as_bytes());
        }
        is_retried
    })
    .await;
    printed.run(&daemon, "trigger", &["--list"]);
    printed.run(&daemon, "trigger", &["lead.created"]);
    printed.run(
        &daemon,
        "trigger",
        &["lead.created", "--key", &format!("@{}", wrong_key(&daemon))],
    );
    for limit in [&[][..], &["--quarantined"]] {
        printed.run(&daemon, "events list", limit);
    }
    for id in ["1", "4", "5"] {
        printed.run(&daemon, "events show", &[id]);
    }
    printed.run(&daemon, "events export", &[]);
    printed.run(&daemon, "events verify", &[]);
    let event = daemon.path("event.json").display().to_string();
    std::fs::write(&event, body(7)).unwrap();
    printed.run(&daemon, "rules explain", &["--event", &event]);
    printed.run(&daemon, "rules explain", &["--id", "4"]);
    printed.run(&daemon, "filter", &[FILTER, &event, "--count"]);
    printed.run(&daemon, "dead list", &[]);
    printed.run(&daemon, "dead reasons", &[]);
    printed.run(&daemon, "dead show", &["ev_1"]);
    printed.run(&daemon, "dead retry", &["--id", "ev_1"]);
    receiver.answer_with(200);
    printed.run(&daemon, "dead retry", &["--id", "ev_1"]);
    printed.run(&daemon, "dead drop", &["--all", "--yes"]);
    printed.run(&daemon, "replay", &["--id", "ev_2", "--sink", "crm", "--dry-run"]);
    printed.run(&daemon, "replay", &["--id", "ev_2", "--sink", "crm"]);
    printed.run(&daemon, "replay list", &[]);
    printed.run(&daemon, "sinks list", &[]);
    printed.run(&daemon, "sinks types", &[]);
    printed.run(&daemon, "sinks pause", &["crm"]);
    printed.run(&daemon, "sinks resume", &["crm"]);
    daemon.configure(&config);
    printed.run(&daemon, "reload", &[]);
    printed.run(&daemon, "sinks forget", &["old"]);
    files(printed, &daemon);
    printed.run(&daemon, "log erase", &["--id", "ev_3", "--yes"]);
    printed.run(&daemon, "events show", &["3"]);
    printed.run(&daemon, "check", &["--probe"]);
    untimely(&daemon).await;
    printed.run(&daemon, "status", &[]);
    printed.run(&daemon, "status", &["--open"]);
    daemon.stop().await;
    printed.run(&daemon, "status", &[]);
    printed.run(&daemon, "events tail", &["--since", "1h"]);
    daemon.configure("[server]\nmax_body = 5\n");
    printed.run(&daemon, "check", &[]);
}

/// Whole logs and data directories in files.
fn files(printed: &mut Printed, daemon: &Daemon) {
    let file = |name: &str| daemon.path(name).display().to_string();
    printed.run(daemon, "log export", &[&file("all.jsonl")]);
    printed.run(daemon, "log import", &[&file("all.jsonl")]);
    printed.run(daemon, "backup", &[&file("a.backup")]);
    printed.run(daemon, "restore", &["--check", &file("a.backup")]);
    printed.run(daemon, "restore", &[&file("a.backup"), "--dir", &file("restored")]);
}

fn wrong_key(daemon: &Daemon) -> String {
    let path = daemon.path("wrong.key");
    std::fs::write(
        &path,
        "f2ca1bb6c7e907d06dafe4687e579fce76b37e4e93b7605022da52e6ccc26fd2",
    )
    .unwrap();
    path.display().to_string()
}

/// A delivery that is authentic and too old.
async fn untimely(daemon: &Daemon) {
    use closehook::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
    let key = Key::from_hex(None, crate::harness::KEY).unwrap();
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(100);
    let headers = key.sign(at, b"{}");
    let request = daemon.client.post(&daemon.url).body("{}");
    let request = request.header(TIMESTAMP_HEADER, headers.timestamp);
    assert_eq!(
        request.header(HASH_HEADER, headers.hash).send().await.unwrap().status(),
        401
    );
}

async fn at_close(printed: &mut Printed) {
    // Nothing goes to the second: its template alone has the schema of custom fields fetched.
    let sink = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\n[[sinks]]\nname = \"names\"\ntype = \"file\"\npath = \"DIR/names.txt\"\ntemplate = \"{{ data | named }}\"\n[[rules]]\nname = \"r\"\nevents = [\"opportunity.updated\", \"lead.*\"]\nsinks = [\"file\"]\n";
    let mut rig = Rig::new(Settings::calm(), "", "").await;
    rig.configure("", sink);
    let user = rig.fake.world().access.add(None, Role::User).unwrap().key.clone();
    let day = std::time::Duration::from_secs(86_400);
    rig.fake.advance(30 * day).await;
    let now = rig.fake.world().now();
    rig.fake.world().generate(300, now, day).unwrap();
    rig.fake.advance(2 * day).await;
    rig.run().await;
    printed.run(&rig.daemon, "subscription plan", &[]);
    printed.run(&rig.daemon, "subscription apply", &[]);
    let id = rig.only_subscription();
    printed.run(&rig.daemon, "subscription list", &[]);
    printed.run(&rig.daemon, "subscription show", &[&id]);
    printed.run(&rig.daemon, "subscription pause", &[&id]);
    printed.run(&rig.daemon, "subscription resume", &[&id]);
    let other = "https://other.example.com/";
    let made = printed.run(
        &rig.daemon,
        "subscription create",
        &["--event", "lead.created", "--url", other],
    );
    printed.run(
        &rig.daemon,
        "subscription delete",
        &[made[0]["id"].as_str().unwrap(), "--yes"],
    );
    printed.run(&rig.daemon, "check", &["--probe"]);
    rig.settled().await;
    // Nobody uses it: there is an API key.
    let token = rig.daemon.data().join("close/oauth.json");
    std::fs::write(&token, "{").unwrap();
    printed.run(&rig.daemon, "status", &[]);
    std::fs::remove_file(&token).unwrap();
    // With a key that sees no data of what is old, and another log that has none of it yet.
    let admin = rig.fake.api_key();
    let second = Daemon::new("");
    let config = std::fs::read_to_string(rig.daemon.config()).unwrap();
    let config = config.replace(&admin, &user).replace(
        &rig.daemon.path("").display().to_string(),
        &second.path("").display().to_string(),
    );
    std::fs::write(second.config(), config).unwrap();
    printed.run(&second, "backfill", &["--since", "30d", "--dry-run"]);
    printed.run(&second, "backfill", &["--since", "30d"]);
    printed.run(&second, "events export", &["--limit", "3"]);
    let status = printed.run(&second, "status", &[]);
    assert!(
        status[0]["close"]["held"]["events"].is_u64(),
        "{}",
        status[0]["close"]["held"]
    );
    // A filter that Close is given.
    let filtered = sink.replace(
        "sinks = [\"file\"]\n",
        "sinks = [\"file\"]\nfilter = '{\"type\":\"field_accessor\",\"field\":\"data\",\"filter\":{\"type\":\"field_accessor\",\"field\":\"status_type\",\"filter\":{\"type\":\"equals\",\"value\":\"won\"}}}'\n",
    );
    rig.configure("", &filtered);
    rig.daemon.ok(&["reload"]);
    printed.run(&rig.daemon, "subscription plan", &[]);
}

async fn with_a_certificate(printed: &mut Printed) {
    let mut daemon = Daemon::new("[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(daemon.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(daemon.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    daemon.run().await;
    printed.run(&daemon, "status", &[]);
    printed.run(&daemon, "reload", &[]);
}

async fn init(printed: &mut Printed) {
    let host = crate::init::Host::new().await;
    let flags = host.first_flags();
    let mut arguments = vec!["init", "--yes", "--json"];
    arguments.extend(flags.iter().map(String::as_str));
    arguments.push("--dry-run");
    let values = printed.note("init", &host.run(&arguments).stdout);
    assert!(values.len() > 2, "{values:?}");
    arguments.pop();
    let values = printed.note("init", &host.run(&arguments).stdout);
    assert!(
        values.iter().any(|step| step["step"] == json!("delivery")),
        "{values:?}"
    );
}
