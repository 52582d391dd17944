//! The redis sink, with the daemon and a real server, Redis and Valkey: each event is there once, whatever is killed, cut off, full or
//! taken away. Ways to the server (TLS, sockets, clusters, logins) are in `sinks_redis_ways`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::campaign;
use crate::harness::{Daemon, body, until};
use crate::postgres_server::Proxy;
use crate::redis_server::{Kind, Server};

/// What every sink here has: it starts with the first event and does not wait long.
pub const EAGER: &str = "start = \"beginning\"\ntimeout = \"4s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

/// Each of these is tried on both.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::redis_server::Kind::Redis).await;
            })*
        }
        mod valkey {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::redis_server::Kind::Valkey).await;
            })*
        }
    };
}
pub(crate) use on_both;

on_both!(
    an_entry_has_the_body_and_says_what_is_known_of_the_event,
    each_event_is_there_once_whenever_the_daemon_or_the_server_is_killed,
    a_connection_that_is_cut_wherever_it_hurts_costs_nothing_and_repeats_nothing,
    a_large_batch_is_there_once_in_whichever_of_its_parts_it_is_cut,
    one_bad_event_of_a_batch_is_one_dead_letter_and_nothing_comes_twice,
    an_entry_that_is_refused_in_the_middle_leaves_nothing_of_its_batch,
    an_event_that_is_longer_than_the_server_takes_is_a_dead_letter,
    a_replay_adds_the_entry_again_with_the_same_key,
    streams_are_named_by_templates_and_trimmed,
    a_full_server_is_waited_for,
    a_server_that_stops_or_stands_still_is_waited_for,
    two_daemons_with_one_log_add_no_event_twice,
    a_server_that_was_put_back_gets_what_it_has_lost,
    a_server_that_was_emptied_is_not_taken_in_silence,
    a_reload_in_the_middle_loses_and_repeats_nothing,
    scripts_that_were_forgotten_and_connections_that_were_closed_are_no_trouble,
);

pub fn sink(url: &str) -> String {
    format!("[[sinks]]\nname = \"stream\"\ntype = \"redis\"\nurl = \"{url}\"\nstream = \"close\"\n{EAGER}")
}

/// A server, and a daemon whose sink there is done with so many events; `None` where there is no server.
async fn with_events(kind: Kind, events: u64) -> Option<(Server, Daemon)> {
    let server = Server::start(kind, &[]).await?;
    let daemon = Daemon::start(&sink(&server.url())).await;
    store(&daemon, 1..=events).await;
    Some((server, daemon))
}

/// Stores events and waits until the sink is done with them.
pub async fn store(daemon: &Daemon, ids: std::ops::RangeInclusive<u64>) {
    if !ids.is_empty() {
        daemon.store(ids).await;
        daemon.done("stream").await;
    }
}

/// The fields of each entry of a stream, in order.
pub fn entries(server: &Server, stream: &str) -> Vec<HashMap<String, String>> {
    let entries: Vec<(String, HashMap<String, String>)> = server.ask(&["XRANGE", stream, "-", "+"]);
    entries.into_iter().map(|(_, fields)| fields).collect()
}

/// The Seqs in a stream, in order.
pub fn seqs(server: &Server, stream: &str) -> Vec<u64> {
    let seq = |fields: HashMap<String, String>| fields["closehook-seq"].parse().unwrap();
    entries(server, stream).into_iter().map(seq).collect()
}

/// Each event that was answered exactly once, with what was sent.
fn assert_once(found: &[(u64, String)], by_seq: &BTreeMap<u64, u64>) {
    let mut seqs: Vec<u64> = found.iter().map(|(seq, _)| *seq).collect();
    seqs.sort_unstable();
    assert_eq!(
        seqs,
        by_seq.keys().copied().collect::<Vec<_>>(),
        "I4: each event exactly once"
    );
    for (seq, event) in found {
        assert_eq!(*event, body(by_seq[seq]), "I5: Seq {seq}");
    }
}

fn nothing_failed(daemon: &Daemon) {
    let sink = daemon.sink("stream");
    assert_eq!(
        (&sink["dead"], &sink["retrying"], &sink["lost"]),
        (&json!(0), &json!(0), &json!(0)),
        "{sink}"
    );
}

/// Moves a few entries to a list, at once.
const TAKE: &str = "local some = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 20)
    for _, entry in ipairs(some) do
        local fields = {}
        for at = 1, #entry[2], 2 do fields[entry[2][at]] = entry[2][at + 1] end
        redis.call('RPUSH', KEYS[2], fields['closehook-seq'], fields['event'])
        redis.call('XDEL', KEYS[1], entry[1])
    end
    return #some";

/// Somebody who takes entries away while more come, whatever happens to the server.
struct Consumer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Consumer {
    fn start(socket: std::path::PathBuf) -> Consumer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut taken = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                let client = ::redis::Client::open(format!("unix://{}", socket.display())).unwrap();
                let Ok(mut connection) = client.get_connection() else {
                    continue;
                };
                while !stopped.load(Ordering::Relaxed) {
                    let mut take = ::redis::cmd("EVAL");
                    take.arg(TAKE).arg(2).arg("close").arg("taken");
                    match take.query::<u64>(&mut connection) {
                        Ok(some) => taken += some,
                        Err(_) => break,
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            taken
        });
        Consumer { stop, task }
    }

    /// How many it has taken.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// What was taken away and what is there.
fn found(server: &Server) -> Vec<(u64, String)> {
    let taken: Vec<String> = server.ask(&["LRANGE", "taken", "0", "-1"]);
    let taken = taken.chunks(2).map(|pair| (pair[0].parse().unwrap(), pair[1].clone()));
    let there = entries(server, "close").into_iter();
    let there = there.map(|fields| (fields["closehook-seq"].parse().unwrap(), fields["event"].clone()));
    taken.chain(there).collect()
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

async fn an_entry_has_the_body_and_says_what_is_known_of_the_event(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let mut daemon = Daemon::new(&sink(&server.url()));
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("the first event makes the stream close"), "{probed}");
    let keys: Vec<String> = server.ask(&["KEYS", "*"]);
    assert!(keys.is_empty(), "a probe writes nothing: {keys:?}");
    daemon.run().await;
    store(&daemon, 1..=50).await;
    let entries = entries(&server, "close");
    assert_eq!(entries.len(), 50);
    for (id, fields) in (1..).zip(&entries) {
        assert_eq!(fields["event"], body(id), "I5");
        assert_eq!(fields["closehook-seq"], id.to_string());
        assert_eq!(fields["closehook-key"], format!("ev_{id}:2024-02-15T12:48:23.395000"));
        assert_eq!(fields["closehook-type"], "lead.updated");
        assert_eq!(fields["closehook-event-id"], format!("ev_{id}"));
        assert_eq!(fields["closehook-lead-id"], format!("lead_{}", id % 7));
        assert_eq!(fields["closehook-source"], "webhook");
        assert!(fields["closehook-received-at"].ends_with('Z'));
        assert_eq!(fields.len(), 8);
    }
    let marks: Vec<String> = server.ask(&["KEYS", "closehook:mark:*"]);
    let mark: HashMap<String, String> = server.ask(&["HGETALL", &marks[0]]);
    assert_eq!((marks.len(), mark["seq"].as_str()), (1, "50"), "{marks:?}: {mark:?}");
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(
        probed.contains("the stream close is there and can be written"),
        "{probed}"
    );
    // What is shown beforehand is what is sent.
    let shown: serde_json::Value =
        serde_json::from_str(&daemon.ok(&["render", "stream", "--id", "ev_7", "--json"])).unwrap();
    assert_eq!(
        (shown["subject"].as_str(), shown["body"].as_str()),
        (Some("close"), Some(body(7).as_str())),
        "{shown}"
    );
    assert_eq!(shown["headers"]["closehook-key"], entries[6]["closehook-key"]);
    daemon.stop().await;
}

/// `CLOSEHOOK_TEST_KILLS` asks for more rounds than CI's 2.
async fn each_event_is_there_once_whenever_the_daemon_or_the_server_is_killed(kind: Kind) {
    let Some(mut server) = Server::start(kind, &[]).await else {
        return;
    };
    let mut daemon = Daemon::new(&sink(&server.url()));
    let consumer = Consumer::start(server.socket());
    let by_seq = campaign::kills(&mut daemon, Some(&mut server), "stream").await;
    assert!(consumer.stop().await > 0, "the consumer has taken some meanwhile");
    assert_once(&found(&server), &by_seq);
    daemon.stop().await;
}

async fn a_connection_that_is_cut_wherever_it_hurts_costs_nothing_and_repeats_nothing(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let proxy = Proxy::start(server.port).await;
    let daemon = Daemon::start(&sink(&format!("redis://127.0.0.1:{}", proxy.port))).await;
    store(&daemon, 1..=1).await;
    let mut next = 2;
    // The answer to a commit is lost; a batch arrives by half; the answer to the claim after that is lost.
    for (at, whole) in [("EVALSHA", true), ("EVALSHA", false), ("EVALSHA", true)] {
        proxy.cut(at, whole);
        daemon.store(next..=next + 4).await;
        next += 5;
        until("it was cut", async || proxy.has_cut()).await;
        // Entries are taken away at once, so that nothing can be known by them.
        daemon.done("stream").await;
        let _: u64 = ::redis::cmd("EVAL")
            .arg(TAKE)
            .arg(2)
            .arg("close")
            .arg("taken")
            .query(&mut server.admin())
            .unwrap();
        proxy.cut("claim", true);
        let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        store(&daemon, next..=next).await;
        next += 1;
    }
    let by_seq = (1..next).map(|id| (id, id)).collect();
    assert_once(&found(&server), &by_seq);
    nothing_failed(&daemon);
}

/// A large batch goes in parts, each sent before the one ahead of it is answered.
async fn a_large_batch_is_there_once_in_whichever_of_its_parts_it_is_cut(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let proxy = Proxy::start(server.port).await;
    let config = sink(&format!("redis://127.0.0.1:{}", proxy.port));
    let daemon = Daemon::start("").await;
    let mut next = 1;
    for (at, whole) in [(3, true), (130, false), (260, true), (380, false), (499, true)] {
        // They wait until the sink starts (again): then they come together.
        daemon.configure("");
        assert!(daemon.reload().await);
        daemon.store(next..=next + 499).await;
        let seq = (next + at).to_string();
        proxy.cut(
            Box::leak(format!("closehook-seq\r\n${}\r\n{seq}\r\n", seq.len()).into_boxed_str()),
            whole,
        );
        daemon.configure(&config);
        assert!(daemon.reload().await);
        until("it was cut", async || proxy.has_cut()).await;
        daemon.done("stream").await;
        next += 500;
    }
    let by_seq = (1..next).map(|id| (id, id)).collect();
    assert_once(&found(&server), &by_seq);
    let there = seqs(&server, "close");
    assert!(there.is_sorted(), "in the order of the log: {there:?}");
    nothing_failed(&daemon);
    // And where the server stops knowing the script, or has no room, in between.
    daemon.configure("");
    assert!(daemon.reload().await);
    daemon.store(next..=next + 999).await;
    server.tell(&["SCRIPT", "FLUSH"]);
    let info: String = server.ask(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let most = used.parse::<u64>().unwrap() + 150_000;
    server.tell(&["CONFIG", "SET", "maxmemory", &most.to_string()]);
    daemon.configure(&config);
    assert!(daemon.reload().await);
    daemon.says("stream", "memory is full (maxmemory)").await;
    server.tell(&["CONFIG", "SET", "maxmemory", "0"]);
    daemon.done("stream").await;
    assert_once(&found(&server), &(1..next + 1000).map(|id| (id, id)).collect());
    nothing_failed(&daemon);
}

async fn one_bad_event_of_a_batch_is_one_dead_letter_and_nothing_comes_twice(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    server.tell(&["RPUSH", "bad", "something else"]);
    let config = sink(&server.url()).replace(
        "stream = \"close\"",
        "stream = \"{{ 'bad' if id == 'ev_123' else '' if id == 'ev_124' else 'close' }}\"\nbatch = { events = 500, wait = \"1s\" }",
    );
    let daemon = Daemon::start(&config).await;
    store(&daemon, 1..=500).await;
    let sink = daemon.sink("stream");
    assert_eq!(
        (&sink["dead"], &sink["delivered"], &sink["retrying"]),
        (&json!(2), &json!(498), &json!(0)),
        "{sink}"
    );
    let others: Vec<u64> = (1..=500).filter(|seq| ![123, 124].contains(seq)).collect();
    assert_eq!(seqs(&server, "close"), others);
    let dead = daemon.ok(&["dead", "list"]);
    assert!(
        dead.contains("holds a list there") && dead.contains("is empty for this event"),
        "{dead}"
    );
    // Once the key can be a stream, it goes there after all.
    server.tell(&["DEL", "bad"]);
    daemon.ok(&["dead", "retry", "--id", "ev_123"]);
    until("the letter is delivered", async || daemon.sink("stream")["dead"] == 1).await;
    assert_eq!(seqs(&server, "bad"), [123]);
}

/// A script is not undone when it fails: what it has written of a batch by then, it has to take back.
async fn an_entry_that_is_refused_in_the_middle_leaves_nothing_of_its_batch(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    // Behind its last id no other one can come, which nobody sees before it is tried.
    server.tell(&["XADD", "lead_3", "18446744073709551615-18446744073709551615", "a", "b"]);
    let config = sink(&server.url()).replace(
        "stream = \"close\"",
        "stream = \"{{ lead_id }}\"\nbatch = { wait = \"1s\" }",
    );
    let daemon = Daemon::start(&config).await;
    store(&daemon, 1..=20).await;
    let mut all: Vec<u64> = Vec::new();
    for lead in [0, 1, 2, 4, 5, 6] {
        all.extend(seqs(&server, &format!("lead_{lead}")));
    }
    all.sort_unstable();
    let good: Vec<u64> = (1..=20).filter(|seq| seq % 7 != 3).collect();
    assert_eq!(all, good, "each once");
    assert_eq!(entries(&server, "lead_3").len(), 1);
    assert_eq!(daemon.sink("stream")["dead"], 3);
}

async fn an_event_that_is_longer_than_the_server_takes_is_a_dead_letter(kind: Kind) {
    for may_ask in [true, false] {
        let Some(server) = Server::start(kind, &["--proto-max-bulk-len", "1mb"]).await else {
            return;
        };
        if !may_ask {
            server.tell(&["ACL", "SETUSER", "default", "-config|get"]);
        }
        let daemon = Daemon::start(&sink(&server.url())).await;
        store(&daemon, 1..=3).await;
        let long = |id: u64| body(id).replace("1.50", &format!("\"{}\"", "x".repeat(1_200_000)));
        for id in 4..=8 {
            let text = if id % 2 == 0 { long(id) } else { body(id) };
            assert_eq!(daemon.send(text).await.unwrap().0, 200);
        }
        daemon.done("stream").await;
        assert_eq!(seqs(&server, "close"), [1, 2, 3, 5, 7], "may ask: {may_ask}");
        assert_eq!(daemon.sink("stream")["dead"], 3, "may ask: {may_ask}");
    }
}

async fn a_replay_adds_the_entry_again_with_the_same_key(kind: Kind) {
    let Some((server, daemon)) = with_events(kind, 10).await else {
        return;
    };
    daemon.ok(&["replay", "--sink", "stream", "--yes"]);
    until("all are there again", async || entries(&server, "close").len() == 20).await;
    let entries = entries(&server, "close");
    for (first, again) in entries[..10].iter().zip(&entries[10..]) {
        assert_eq!(first, again);
    }
}

async fn streams_are_named_by_templates_and_trimmed(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let config = sink(&server.url()).replace("stream = \"close\"", "stream = \"crm:{{ lead_id }}\"\nmaxlen = 200");
    let rule = "[[rules]]\nname = \"all\"\nsinks = [\"stream\"]\n\
         transform = \"\"\"export default function (event, meta) {\n\
         if (event.lead_id === 'lead_1') return null;\n\
         if (event.lead_id === 'lead_2') return { payload: 'two', subject: 'second', headers: { team: 'a' } };\n\
         return { n: 1 };\n}\"\"\"\n";
    let daemon = Daemon::start(&(config + rule)).await;
    store(&daemon, 1..=7).await;
    assert_eq!(seqs(&server, "crm:lead_3"), [3]);
    assert_eq!(entries(&server, "crm:lead_3")[0]["event"], "{\"n\":1}");
    assert_eq!(daemon.sink("stream")["skipped"], 1);
    let second = entries(&server, "second");
    assert_eq!((second[0]["event"].as_str(), second[0]["team"].as_str()), ("two", "a"));
    store(&daemon, 8..=3000).await;
    // Whole nodes go, of a hundred entries each.
    let len = seqs(&server, "crm:lead_4").len();
    assert!((200..400).contains(&len), "{len}");
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("its streams depend on the event"), "{probed}");
}

async fn a_full_server_is_waited_for(kind: Kind) {
    let Some((server, daemon)) = with_events(kind, 3).await else {
        return;
    };
    server.tell(&["CONFIG", "SET", "maxmemory", "1mb"]);
    daemon.store(4..=6).await;
    daemon.says("stream", "memory is full (maxmemory): set maxlen").await;
    nothing_failed(&daemon);
    server.tell(&["CONFIG", "SET", "maxmemory", "0"]);
    daemon.done("stream").await;
    assert_eq!(seqs(&server, "close"), [1, 2, 3, 4, 5, 6]);
    nothing_failed(&daemon);
    // A policy that throws away what nobody may miss is told beforehand.
    server.tell(&["CONFIG", "SET", "maxmemory", "1gb"]);
    server.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let probed = daemon.ok(&["check", "--probe"]);
    assert!(probed.contains("set maxmemory-policy noeviction"), "{probed}");
}

async fn a_server_that_stops_or_stands_still_is_waited_for(kind: Kind) {
    let Some((mut server, daemon)) = with_events(kind, 3).await else {
        return;
    };
    server.freeze();
    daemon.store(4..=6).await;
    daemon.says("stream", "did not answer").await;
    server.thaw();
    daemon.done("stream").await;
    server.stop();
    daemon.store(7..=9).await;
    daemon.says("stream", "can't be reached").await;
    server.run().await;
    daemon.done("stream").await;
    assert_eq!(seqs(&server, "close"), (1..=9).collect::<Vec<_>>());
    nothing_failed(&daemon);
}

/// A copy of a data directory on another machine is the same sink of the same log. Whichever of the two writes, no event is there
/// twice.
async fn two_daemons_with_one_log_add_no_event_twice(kind: Kind) {
    let Some((mut server, mut daemon)) = with_events(kind, 5).await else {
        return;
    };
    server.stop();
    daemon.store(6..=500).await;
    daemon.stop().await;
    let mut other =
        Daemon::new(&sink(&server.url()).replace("timeout = \"4s\"", "timeout = \"4s\"\nbatch = { events = 7 }"));
    daemon.configure(&sink(&server.url()).replace("timeout = \"4s\"", "timeout = \"4s\"\nbatch = { events = 11 }"));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(daemon.data())
        .arg(other.data())
        .status();
    assert!(copied.unwrap().success());
    daemon.run().await;
    other.run().await;
    server.run().await;
    let consumer = Consumer::start(server.socket());
    daemon.done("stream").await;
    other.done("stream").await;
    consumer.stop().await;
    let by_seq = (1..=500).map(|id| (id, id)).collect();
    assert_once(&found(&server), &by_seq);
}

async fn a_server_that_was_put_back_gets_what_it_has_lost(kind: Kind) {
    let Some((mut server, daemon)) = with_events(kind, 5).await else {
        return;
    };
    server.stop();
    let (data, kept) = (server.dir.path().join("appendonlydir"), server.dir.path().join("kept"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    };
    copy(&data, &kept);
    server.run().await;
    store(&daemon, 6..=10).await;
    server.stop();
    copy(&kept, &data);
    server.run().await;
    store(&daemon, 11..=12).await;
    assert_eq!(seqs(&server, "close"), (1..=12).collect::<Vec<_>>());
    // While the sink is connected: all is as it was before the last events, but for who asks.
    let key: Vec<String> = server.ask(&["KEYS", "closehook:mark:*"]);
    let mark: Vec<String> = server.ask(&["HGETALL", &key[0]]);
    store(&daemon, 13..=15).await;
    let last: Vec<(String, HashMap<String, String>)> = server.ask(&["XREVRANGE", "close", "+", "-", "COUNT", "3"]);
    for (id, _) in last {
        server.tell(&["XDEL", "close", &id]);
    }
    let words: Vec<&str> = ["HSET", &key[0]]
        .into_iter()
        .chain(mark.iter().map(String::as_str))
        .collect();
    server.tell(&words);
    store(&daemon, 16..=17).await;
    assert_eq!(seqs(&server, "close"), (1..=17).collect::<Vec<_>>());
    nothing_failed(&daemon);
}

async fn a_server_that_was_emptied_is_not_taken_in_silence(kind: Kind) {
    let Some((server, daemon)) = with_events(kind, 3).await else {
        return;
    };
    server.tell(&["FLUSHALL"]);
    store(&daemon, 4..=6).await;
    daemon
        .says("stream", "no mark of this sink, although it had committed")
        .await;
    assert_eq!(seqs(&server, "close"), [4, 5, 6], "what is new, once");
    assert!(daemon.stderr().contains("ERROR"), "{}", daemon.stderr());
    daemon.ok(&["replay", "--sink", "stream", "--yes"]);
    until("nothing is missing", async || entries(&server, "close").len() == 3 + 6).await;
    until("it is seen to", async || daemon.sink("stream")["last_error"].is_null()).await;
}

async fn a_reload_in_the_middle_loses_and_repeats_nothing(kind: Kind) {
    let Some(server) = Server::start(kind, &[]).await else {
        return;
    };
    let mut daemon = Daemon::start(&sink(&server.url())).await;
    let ledger = campaign::Ledger::new();
    let load = ledger.load(&daemon);
    for round in 1..=6 {
        let goal = ledger.answered() + 100;
        until("more is answered", async || ledger.answered() >= goal).await;
        let batch = format!("timeout = \"4s\"\nbatch = {{ events = {} }}", 10 * round);
        daemon.configure(&sink(&server.url()).replace("timeout = \"4s\"", &batch));
        assert!(daemon.reload().await);
    }
    load.stop().await;
    let by_seq = ledger.settle(&daemon).await;
    daemon.done("stream").await;
    assert_once(&found(&server), &by_seq);
    nothing_failed(&daemon);
    daemon.stop().await;
}

async fn scripts_that_were_forgotten_and_connections_that_were_closed_are_no_trouble(kind: Kind) {
    let Some((server, daemon)) = with_events(kind, 2).await else {
        return;
    };
    server.tell(&["SCRIPT", "FLUSH"]);
    store(&daemon, 3..=4).await;
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // Until this side has seen it, and closed its end.
    let half_open = format!(":{:04X} 08", server.port);
    until("the connection is closed", async || {
        let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
        !connections.contains(&half_open)
    })
    .await;
    store(&daemon, 5..=6).await;
    assert_eq!(seqs(&server, "close"), [1, 2, 3, 4, 5, 6]);
    nothing_failed(&daemon);
    assert!(
        !daemon.stderr().contains("connection to the server was lost"),
        "{}",
        daemon.stderr()
    );
}
