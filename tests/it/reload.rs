//! Contract, section 1: `reload` takes over the configuration, waits, and says what changed or every fault.

use closehook::ingress::verify::Key;
use fake_close::Settings;
use serde_json::{Value, json};

use crate::close::Rig;
use crate::harness::{Daemon, KEY, parsed, until};

const OTHER_KEY: &str = "f2ca1bb6c7e907d06dafe4687e579fce76b37e4e93b7605022da52e6ccc26fd2";

fn sink(name: &str, more: &str) -> String {
    format!("[[sinks]]\nname = \"{name}\"\ntype = \"file\"\npath = \"DIR/{name}.jsonl\"\n{more}")
}

fn rule(name: &str, events: &str) -> String {
    format!("[[rules]]\nname = \"{name}\"\nevents = [\"{events}\"]\nsinks = [\"stays\"]\n")
}

/// The errors a command has written, which are JSON, all of them.
fn errors(output: &std::process::Output) -> Vec<Value> {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    text.lines().map(|line| parsed(line)["error"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_and_says_what_changed_and_what_needs_a_restart() {
    let before = sink("stays", "") + &sink("changes", "") + &sink("goes", "") + &rule("a", "lead.*") + &rule("b", "*");
    let daemon = Daemon::start(&before).await;
    let same = daemon.lines(&["reload"]).pop().unwrap();
    assert_eq!(same["sinks"]["unchanged"], json!(["stays", "changes", "goes"]));
    assert_eq!(same["restart"], json!([]));

    let key = format!("[[close.subscriptions]]\nsignature_key = \"{OTHER_KEY}\"\n");
    let after = sink("stays", "")
        + &sink("changes", "rate = \"100/s\"\n")
        + &sink("comes", "")
        + &rule("a", "lead.created")
        + &rule("c", "*")
        + &key
        + &format!("[[close.subscriptions]]\nsignature_key = \"{KEY}\"\n")
        + "[log]\nretention = \"9d\"\n";
    daemon.configure(&after);
    let said = daemon.lines(&["reload"]).pop().unwrap();
    assert_eq!(
        said["sinks"],
        json!({ "added": ["comes"], "removed": ["goes"], "changed": ["changes"], "unchanged": ["stays"] })
    );
    assert_eq!(
        said["rules"],
        json!({ "added": ["c"], "removed": ["b"], "changed": ["a"], "unchanged": [] })
    );
    assert_eq!(said["keys"], json!({ "added": 1, "removed": 0, "live": 2 }));
    assert_eq!(
        (&said["certificate"], &said["restart"]),
        (&Value::Null, &json!(["log"]))
    );
    assert_eq!(said["file"], json!(daemon.config()));
    // It is in force when the command ends.
    let names: Vec<Value> = daemon
        .lines(&["sinks", "list"])
        .into_iter()
        .map(|sink| sink["name"].clone())
        .collect();
    assert_eq!(names, ["changes", "comes", "stays"]);
    assert_eq!(daemon.status()["keys"], 2);

    daemon.configure(&before);
    let said = daemon.ok(&["reload"]);
    for part in [
        "is in force",
        "sinks        added goes; removed comes; changed changes; unchanged stays",
        "rules        added b; removed c; changed a",
        "keys         1 live (0 added, 1 removed)",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("restart") && !said.contains(KEY), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_any_fault_nothing_changes_and_every_fault_is_named() {
    let daemon = Daemon::start(&sink("stays", "")).await;
    daemon.configure(
        &(sink("other", "")
            + "[server]\nmax_body = 5\n[[sinks]]\nname = \"c\"\ntype = \"htttp\"\n[[rules]]\nname = \"r\"\nsinks = [\"oter\"]\n"),
    );
    let output = daemon.run_command(&["reload"]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for place in ["server.max_body", "sinks[1].type", "rules[0].sinks[0]"] {
        assert!(said.contains(&format!("closehook: {place}: ")), "{place}: {said}");
    }
    let output = daemon.run_command(&["reload", "--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let places: Vec<Value> = errors(&output).iter().map(|error| error["place"].clone()).collect();
    assert!(places.contains(&json!("rules[0].sinks[0]")), "{places:?}");
    daemon.configure(&sink("stays", ""));
    let names: Vec<Value> = daemon
        .lines(&["sinks", "list"])
        .into_iter()
        .map(|sink| sink["name"].clone())
        .collect();
    assert_eq!(names, ["stays"], "nothing has changed");

    // What only shows when it is used: a key that is none, and a file that is no TOML.
    daemon.configure("[[close.subscriptions]]\nsignature_key = \"zz\"\n");
    let error = daemon.fails(1, &["reload"]);
    assert!(
        error.contains("closehook: close.subscriptions[0].signature_key: "),
        "{error}"
    );
    daemon.configure("[server\n");
    let error = daemon.fails(1, &["reload"]);
    assert!(error.contains("not valid TOML"), "{error}");
    daemon.store(1..=1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_taken_over_or_refused_with_everything_else() {
    let write = |daemon: &Daemon| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(daemon.path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(daemon.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    };
    let mut daemon = Daemon::new("[server.tls]\ncert = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"");
    write(&daemon);
    daemon.run().await;
    let said = daemon.lines(&["reload"]).pop().unwrap();
    assert_eq!(
        (&said["certificate"]["changed"], &said["certificate"]["error"]),
        (&json!(false), &Value::Null)
    );
    write(&daemon);
    let said = daemon.lines(&["reload"]).pop().unwrap();
    assert_eq!(said["certificate"]["changed"], true);
    assert!(said["certificate"]["not_after"].is_string(), "{said}");
    std::fs::write(daemon.path("cert.pem"), "none").unwrap();
    let error = daemon.fails(1, &["reload"]);
    assert!(error.contains("closehook: server.tls: "), "{error}");
}

#[test]
fn without_a_daemon_it_says_so() {
    let daemon = Daemon::new("");
    let error = daemon.fails(1, &["reload"]);
    assert!(
        error.contains("no daemon is running") && error.contains("closehook serve"),
        "{error}"
    );
    let output = daemon.run_command(&["reload", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output)[0]["message"]
            .as_str()
            .unwrap()
            .contains("no daemon is running")
    );
    daemon.configure("[server]\nmax_body = 5\n");
    let error = daemon.fails(1, &["reload"]);
    assert!(error.contains("server.max_body"), "{error}");
}

/// A sink takes its time to come to an end: whoever waits for the reload hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_waits_for_a_sink_says_so() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let sink = |timeout: &str| {
        format!(
            "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\n\
             timeout = \"{timeout}\"\n"
        )
    };
    let daemon = Daemon::start(&sink("60s")).await;
    daemon.store(1..=1).await;
    // It is accepted, and never answered.
    let held = silent.accept().await.unwrap();
    crate::harness::until("it is in flight", async || daemon.sink("crm")["in_flight"] == 1).await;
    daemon.configure(&sink("61s"));
    let reloaded = daemon.run_command(&["reload"]);
    let said = String::from_utf8(reloaded.stderr).unwrap();
    assert!(reloaded.status.success(), "{said}");
    assert!(
        said.contains("the reload waits: sink \"crm\"") && said.contains("receiver's answer"),
        "{said}"
    );
    drop(held);
}

/// A4: the keys that `subscription apply` makes while a reload waits for a sink that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_made_while_a_reload_waits_stay() {
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = |timeout: &str| {
        format!(
            "[[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"http://{}/\"\nallow_private = true\nstart = \"beginning\"\ntimeout = \"{timeout}\"\n",
            receiver.local_addr().unwrap()
        )
    };
    let rig = Rig::subscribed(Settings::calm(), "", &hanging("20s")).await;
    let key_of = |id: &str| {
        let signature_key = rig.fake.world().subscription(id).unwrap().signature_key.clone();
        Key::from_hex(Some(id.to_owned()), &signature_key).unwrap()
    };
    let send = async |id: &str, event: u64| {
        let event = json!({ "id": format!("ev_{event}"), "date_updated": "2024-02-15T12:00:00", "object_type": "lead", "action": "created" });
        let body = json!({ "event": event, "subscription_id": id }).to_string();
        rig.daemon.send_signed(&key_of(id), body).await.unwrap().0
    };
    let old = rig.only_subscription();
    assert_eq!(send(&old, 1).await, 200);
    // It takes the request, and says nothing.
    let (held, _) = receiver.accept().await.unwrap();
    rig.configure("", &hanging("19s"));
    let reloaded = || rig.daemon.stderr().contains("configuration reloaded");
    rig.daemon.signal(libc::SIGHUP);
    rig.daemon.ok(&["subscription", "apply", "--rotate"]);
    let new = rig.daemon.status()["close"]["rotation"]["new"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(send(&new, 2).await, 200);
    assert!(!reloaded(), "the reload still waits for the sink");
    drop((held, receiver));
    until("it has reloaded", async || reloaded()).await;
    assert_eq!(send(&new, 3).await, 200);
}

/// Decision 26: what was received while a key counted stays provable, and nothing new is taken with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_left_the_configuration_still_proves_what_is_stored() {
    let with = |key: &str| format!("[[close.subscriptions]]\nsignature_key = \"{key}\"\n");
    let mut daemon = Daemon::start(&with(KEY)).await;
    daemon.store(1..=3).await;
    daemon.configure(&with(OTHER_KEY));
    daemon.ok(&["reload"]);
    assert!(daemon.ok(&["events", "verify"]).contains("3 events checked"));
    let (status, _) = daemon.send(crate::harness::body(4)).await.unwrap();
    assert_eq!(status, 401, "it proves what is stored, and no more");
    // Also where it was taken out while no daemon ran, and for whoever looks without one.
    daemon.stop().await;
    daemon.configure(&with(&"ab".repeat(32)));
    assert!(daemon.ok(&["events", "verify"]).contains("3 events checked"));
    daemon.run().await;
    assert!(daemon.ok(&["events", "verify"]).contains("3 events checked"));
    let key = Key::from_hex(None, OTHER_KEY).unwrap();
    let (status, _) = daemon.send_signed(&key, crate::harness::body(5)).await.unwrap();
    assert_eq!(status, 401);
}
