//! The nats sink with the built daemon and a real server: what arrives, what a template or transform makes, what happens when something is
//! killed, cut off or refused. What is wrong with the server or the way to it is in `sinks_nats_ways.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::campaign;
use crate::harness::{Daemon, body, until};
use crate::nats_server::{Server, Stored};
use crate::postgres_server::Proxy;

/// What every sink here has: it starts with the first event and does not wait long.
pub const EAGER: &str = "start = \"beginning\"\ntimeout = \"4s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

pub fn nats(servers: &str, more: &str) -> String {
    format!("[[sinks]]\nname = \"bus\"\ntype = \"nats\"\nservers = \"{servers}\"\n{EAGER}{more}")
}

/// To one subject.
pub fn constant(servers: &str) -> String {
    nats(servers, "subject = \"close.events\"\n")
}

/// A server with a stream `CLOSE` that takes `close.>`.
pub async fn with_stream(more: &str) -> Option<Server> {
    let server = Server::start(more).await?;
    server.stream("CLOSE", &["close.>"], &Value::Null).await;
    Some(server)
}

/// Each event once, with what was sent.
pub fn assert_once(messages: &[Stored], by_seq: &BTreeMap<u64, u64>) {
    let seq = |message: &Stored| message.header("closehook-seq").parse::<u64>().unwrap();
    let mut seqs: Vec<u64> = messages.iter().map(seq).collect();
    seqs.sort_unstable();
    let all: Vec<u64> = by_seq.keys().copied().collect();
    assert_eq!(seqs, all, "I4: each event is there, and within the window once");
    for message in messages {
        let id = by_seq[&seq(message)];
        assert_eq!(String::from_utf8_lossy(&message.body), body(id), "I5");
        let key = format!("ev_{id}:2024-02-15T12:48:23.395000");
        assert_eq!(
            (message.header("Nats-Msg-Id"), message.header("closehook-key")),
            (&*key, &*key)
        );
    }
}

/// Neither dead nor waiting for another try.
fn assert_untouched(daemon: &Daemon) {
    let sink = daemon.sink("bus");
    assert_eq!((&sink["dead"], &sink["retrying"]), (&json!(0), &json!(0)), "{sink}");
}

fn same(ids: std::ops::RangeInclusive<u64>) -> BTreeMap<u64, u64> {
    ids.map(|id| (id, id)).collect()
}

/// Stores an event with a field `x`.
async fn store_with(daemon: &Daemon, id: u64, x: &str) {
    let body = json!({ "event": { "id": format!("ev_{id}"), "object_type": "lead", "action": "created", "x": x } });
    let (status, answer) = daemon.send(body.to_string()).await.unwrap();
    assert_eq!((status, answer["status"].as_str()), (200, Some("stored")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_the_message_and_what_is_known_of_it_stands_in_its_headers() {
    let Some(server) = with_stream("").await else { return };
    let more = "subject = \"close.{{ object_type }}.{{ action }}\"\n";
    let mut daemon = Daemon::new(&nats(&server.url(), more));
    daemon.run().await;
    daemon.store(1..=300).await;
    daemon.done("bus").await;
    let messages = server.messages("CLOSE").await;
    assert_once(&messages, &same(1..=300));
    for (index, message) in messages.iter().enumerate() {
        let id = index as u64 + 1;
        assert_eq!(message.subject, "close.lead.updated");
        let headers = [
            ("closehook-seq", id.to_string()),
            ("closehook-type", "lead.updated".into()),
            ("closehook-event-id", format!("ev_{id}")),
            ("closehook-lead-id", format!("lead_{}", id % 7)),
            ("closehook-source", "webhook".into()),
        ];
        for (name, value) in headers {
            assert_eq!(message.header(name), value, "{name}: they are in the order of the log");
        }
        assert!(message.header("closehook-received-at").ends_with('Z'));
    }
    let shown: Value = serde_json::from_str(daemon.ok(&["render", "bus", "--id", "ev_7", "--json"]).trim()).unwrap();
    assert_eq!(
        (&shown["subject"], &shown["body"]),
        (&json!("close.lead.updated"), &json!(body(7)))
    );
    assert_eq!(shown["headers"]["Nats-Msg-Id"], "ev_7:2024-02-15T12:48:23.395000");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_template_or_a_transform_makes_is_what_arrives() {
    let Some(server) = with_stream("").await else { return };
    let transform = "transform = '''export default function (event, meta) {\n\
         if (event.x === 'none') return null;\n\
         return { payload: { x: event.x }, subject: 'close.made.' + event.x, headers: { 'X-Mine': 'a\\r\\nb', 'Nats-TTL': '' } };\n}'''\n";
    let daemon = Daemon::start(&nats(
        &server.url(),
        &format!("subject = \"close.events\"\n{transform}"),
    ))
    .await;
    for (id, x) in [(1, "one"), (2, "none"), (3, "three"), (4, "a b")] {
        store_with(&daemon, id, x).await;
    }
    daemon.done("bus").await;
    let messages = server.messages("CLOSE").await;
    let came: Vec<(&str, &[u8])> = messages
        .iter()
        .map(|message| (message.subject.as_str(), &message.body[..]))
        .collect();
    assert_eq!(
        came,
        [
            ("close.made.one", &br#"{"x":"one"}"#[..]),
            ("close.made.three", &br#"{"x":"three"}"#[..])
        ]
    );
    assert_eq!(messages[0].header("X-Mine"), "a%0D%0Ab");
    assert!(!messages[0].headers.contains_key("b"), "{:?}", messages[0].headers);
    let dead = daemon.lines(&["dead", "list"]);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(dead[0].to_string().contains("it has spaces"), "{dead:?}");
    let sink = daemon.sink("bus");
    assert_eq!((&sink["delivered"], &sink["skipped"]), (&json!(2), &json!(1)), "{sink}");
    // The same with a template.
    daemon.configure(&nats(
        &server.url(),
        "subject = \"close.text\"\ntemplate = \"x is {{ x }}\"\n",
    ));
    assert!(daemon.reload().await);
    store_with(&daemon, 5, "five").await;
    daemon.done("bus").await;
    let last = server.messages("CLOSE").await.pop().unwrap();
    assert_eq!(
        (last.subject.as_str(), &last.body[..]),
        ("close.text", &b"x is five"[..])
    );
}

#[async_trait::async_trait]
impl campaign::Peer for Server {
    fn kill(&mut self) {
        Server::kill(self);
    }

    async fn run(&mut self) {
        Server::run(self).await;
    }
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_and_nothing_is_twice_within_the_window_whatever_is_killed() {
    let Some(mut server) = with_stream("").await else {
        return;
    };
    let mut daemon = Daemon::new(&constant(&server.url()));
    let by_seq = campaign::kills(&mut daemon, Some(&mut server), "bus").await;
    assert_once(&server.messages("CLOSE").await, &by_seq);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_wherever_it_hurts_costs_nothing_and_repeats_carry_the_same_id() {
    let Some(server) = with_stream("").await else { return };
    // A second stream without a window shows what was sent twice.
    server
        .stream(
            "ALL",
            &["none"],
            &json!({ "subjects": null, "sources": [{ "name": "CLOSE" }] }),
        )
        .await;
    let proxy = Proxy::start(server.port).await;
    let daemon = Daemon::start(&constant(&format!("nats://127.0.0.1:{}", proxy.port))).await;
    let mut next = 1;
    // An acknowledgement is lost; a message arrives by half; a subscription, a login.
    for (at, whole) in [
        ("closehook-event-id: ev_3\r\n", true),
        ("closehook-event-id: ev_8\r\n", false),
        ("SUB _INBOX", true),
        ("CONNECT {", true),
    ] {
        if at.starts_with("CONNECT") {
            assert!(daemon.reload().await);
        }
        proxy.cut(at, whole);
        if at.starts_with("CONNECT") {
            daemon.configure(&nats(
                &format!("nats://127.0.0.1:{}", proxy.port),
                "subject = \"close.other\"\n",
            ));
            assert!(daemon.reload().await);
        }
        daemon.store(next..=next + 4).await;
        next += 5;
        until("it was cut", async || proxy.has_cut()).await;
        daemon.done("bus").await;
    }
    assert_once(&server.messages("CLOSE").await, &same(1..=next - 1));
    assert_eq!(daemon.sink("bus")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_of_a_batch_is_one_dead_letter_and_no_repeats() {
    let Some(server) = with_stream("max_payload: 20000\n").await else {
        return;
    };
    let more = "subject = \"close.{{ x }}\"\nbatch = { events = 500, wait = \"500ms\" }\n";
    let daemon = Daemon::start(&nats(&server.url(), more)).await;
    for id in 1..=500_u64 {
        let x = match id {
            123 => "a..b".to_owned(),
            _ => "fine".to_owned(),
        };
        store_with(&daemon, id, &x).await;
    }
    // Larger than the server takes.
    let large = json!({ "event": { "id": "ev_501", "object_type": "lead", "action": "created", "x": "fine", "y": "z".repeat(20_000) } });
    assert_eq!(daemon.send(large.to_string()).await.unwrap().0, 200);
    daemon.done("bus").await;
    let sink = daemon.sink("bus");
    assert_eq!(
        (&sink["dead"], &sink["delivered"], &sink["retrying"]),
        (&json!(2), &json!(499), &json!(0)),
        "{sink}"
    );
    assert!(
        daemon
            .ok(&["dead", "show", "ev_123", "--sink", "bus"])
            .contains("close.a..b")
    );
    assert!(
        daemon
            .ok(&["dead", "show", "ev_501", "--sink", "bus"])
            .contains("the server takes 20000")
    );
    let messages = server.messages("CLOSE").await;
    let ids: BTreeSet<&str> = messages
        .iter()
        .map(|message| message.header("closehook-event-id"))
        .collect();
    assert_eq!((messages.len(), ids.len()), (499, 499));
    // A stream that takes less than the server says so of each.
    server
        .stream("CLOSE", &["close.>"], &json!({ "max_msg_size": 5000 }))
        .await;
    let large = json!({ "event": { "id": "ev_502", "object_type": "lead", "action": "created", "x": "fine", "y": "z".repeat(6000) } });
    assert_eq!(daemon.send(large.to_string()).await.unwrap().0, 200);
    store_with(&daemon, 503, "fine").await;
    daemon.done("bus").await;
    assert!(
        daemon
            .ok(&["dead", "show", "ev_502", "--sink", "bus"])
            .contains("message size exceeds maximum")
    );
    assert_eq!(server.count("CLOSE").await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_an_event_has_chosen_costs_what_is_for_it_and_nothing_else() {
    let users = |publish: &str| {
        format!(
            "authorization {{ users = [ {}\n{{ user: writer, password: hunter22, permissions: {{ publish: [{publish}], subscribe: [\"_INBOX.>\"] }} }} ] }}\n",
            crate::nats_server::ADMIN
        )
    };
    let rights = "\"close.>\", \"lost.>\", \"$JS.API.STREAM.NAMES\"";
    let Some(mut server) = with_stream(&users(rights)).await else {
        return;
    };
    let more = "subject = \"{{ x }}\"\nuser = \"writer\"\npassword = \"hunter22\"\nbatch = { events = 500, wait = \"300ms\" }\n";
    let daemon = Daemon::start(&nats(&server.url(), more)).await;
    for (id, x) in [
        (1, "close.a"),
        (2, "lost.a"),
        (3, "close.b"),
        (4, "secret.a"),
        (5, "close.c"),
    ] {
        store_with(&daemon, id, x).await;
    }
    daemon.done("bus").await;
    let sink = daemon.sink("bus");
    assert_eq!((&sink["dead"], &sink["delivered"]), (&json!(2), &json!(3)), "{sink}");
    let shown = |id: &str| daemon.ok(&["dead", "show", id, "--sink", "bus"]);
    assert!(shown("ev_2").contains("no stream takes messages on the subject"));
    assert!(shown("ev_4").contains("may not publish to the subject"));
    // Who may not ask whether there is a stream waits with that event alone.
    server.reload(&users("\"close.>\", \"lost.>\"")).await;
    for (id, x) in [(6, "lost.b"), (7, "close.d"), (8, "close.e")] {
        store_with(&daemon, id, x).await;
    }
    until("the others are there", async || server.count("CLOSE").await == 5).await;
    daemon
        .says("bus", "allow the user to publish to $JS.API.STREAM.NAMES")
        .await;
    assert_eq!(daemon.sink("bus")["dead"], 2);
    server.stream("LOST", &["lost.>"], &Value::Null).await;
    daemon.done("bus").await;
    assert_eq!(server.count("LOST").await, 1);
    assert!(!daemon.stderr().contains("hunter22"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_in_the_middle_sends_each_event_to_one_of_both() {
    let Some(server) = with_stream("").await else { return };
    let daemon = Daemon::start(&nats(&server.url(), "subject = \"close.before\"\n")).await;
    let ledger = campaign::Ledger::new();
    let load = ledger.load(&daemon);
    until("some are there", async || server.count("CLOSE").await > 50).await;
    daemon.configure(&nats(&server.url(), "subject = \"close.after\"\n"));
    assert!(daemon.reload().await);
    let goal = ledger.answered() + 100;
    until("more came", async || ledger.answered() > goal).await;
    load.stop().await;
    let by_seq = ledger.settle(&daemon).await;
    daemon.done("bus").await;
    let messages = server.messages("CLOSE").await;
    assert_once(&messages, &by_seq);
    let subjects: BTreeSet<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, BTreeSet::from(["close.before", "close.after"]));
    assert_untouched(&daemon);
}

/// Many calls at a time, each published while the ones before are waited for: the stream is in the order of the log all the same.
#[tokio::test(flavor = "multi_thread")]
async fn however_many_batches_are_on_their_way_the_stream_is_in_the_order_of_the_log() {
    let Some(server) = with_stream("").await else { return };
    let mut daemon = Daemon::new("");
    daemon.run().await;
    daemon.store(1..=2500).await;
    for (round, more) in (1..).zip(["", "concurrency = 8\nbatch = { events = 7 }\n"]) {
        server.stream("CLOSE", &[&format!("close.{round}")], &Value::Null).await;
        let sink = constant(&server.url()).replace("close.events", &format!("close.{round}"));
        let sink = sink.replace("name = \"bus\"", &format!("name = \"bus-{round}\""));
        daemon.configure(&(sink + more));
        assert!(daemon.reload().await);
        daemon.done(&format!("bus-{round}")).await;
        let messages = server.messages("CLOSE").await;
        let seqs: Vec<u64> = messages
            .iter()
            .map(|message| message.header("closehook-seq").parse().unwrap())
            .collect();
        assert!(seqs.iter().copied().eq(1..=2500), "{round}: {seqs:?}");
        server.good("STREAM.DELETE.CLOSE", &Value::Null).await;
    }
    daemon.stop().await;
}

/// Strict: nothing goes before an event that waits, not even what could go.
#[tokio::test(flavor = "multi_thread")]
async fn in_strict_order_nothing_overtakes_what_the_stream_has_no_room_for() {
    let Some(server) = with_stream("").await else { return };
    server
        .stream("CLOSE", &["close.>"], &json!({ "max_bytes": 4000, "discard": "new" }))
        .await;
    let daemon = Daemon::start(&nats(&server.url(), "subject = \"close.events\"\norder = \"strict\"\n")).await;
    let small = |id: u64| {
        json!({ "event": { "id": format!("ev_{id}"), "object_type": "lead", "action": "created" } }).to_string()
    };
    let large = json!({ "event": { "id": "ev_2", "object_type": "lead", "action": "created", "y": "z".repeat(3500) } });
    for body in [small(1), large.to_string(), small(3), small(4)] {
        assert_eq!(daemon.send(body).await.unwrap().0, 200);
    }
    daemon.says("bus", "the stream is full").await;
    assert_eq!(server.count("CLOSE").await, 1, "what would fit waits, too");
    server
        .stream(
            "CLOSE",
            &["close.>"],
            &json!({ "max_bytes": 100_000, "discard": "new" }),
        )
        .await;
    daemon.done("bus").await;
    let messages = server.messages("CLOSE").await;
    let ids: Vec<&str> = messages
        .iter()
        .map(|message| message.header("closehook-event-id"))
        .collect();
    assert_eq!(ids, ["ev_1", "ev_2", "ev_3", "ev_4"]);
}
