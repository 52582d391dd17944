//! The sinks for AWS, with the daemon and a server that stands in for it: each event is there, in `s3` exactly once, whatever is killed
//! or lost. What the sinks do by themselves is tested beside them; queues are in `sinks_aws_queues`.

use std::collections::{BTreeMap, BTreeSet};

use crate::aws_server::{BUCKET, Line, Moody, REGION, Stack};
use crate::campaign;
use crate::harness::{Daemon, body, parsed, until};

/// What every sink here has: it starts with the first event and does not wait long.
const EAGER: &str = "start = \"beginning\"\ntimeout = \"4s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

pub fn sink(name: &str, kind: &str, endpoint: &str, own: &str) -> String {
    format!(
        "[[sinks]]\nname = \"{name}\"\ntype = \"{kind}\"\nregion = \"{REGION}\"\nendpoint = \"{endpoint}\"\n\
         access_key_id = \"test\"\nsecret_access_key = \"hunter2-secret\"\n{EAGER}{own}\n"
    )
}

pub fn s3(endpoint: &str) -> String {
    sink(
        "archive",
        "s3",
        endpoint,
        &format!("bucket = \"{BUCKET}\"\nprefix = \"crm\"\nbatch = {{ events = 300, wait = \"150ms\" }}"),
    )
}

/// Each event that was answered is in the bucket, exactly once, with what was sent.
pub fn assert_once(lines: &[(String, String)], by_seq: &BTreeMap<u64, u64>) {
    let mut seqs: Vec<u64> = lines
        .iter()
        .map(|(_, line)| parsed(line)["seq"].as_u64().unwrap())
        .collect();
    seqs.sort_unstable();
    let all: Vec<u64> = by_seq.keys().copied().collect();
    let twice: Vec<_> = seqs
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
        .collect();
    let names: BTreeSet<&String> = lines.iter().map(|(name, _)| name).collect();
    assert_eq!(twice, Vec::<u64>::new(), "I4: none twice: {names:?}");
    assert_eq!(seqs, all, "I4: each event");
    for (_, line) in lines {
        let line = parsed(line);
        let id = by_seq[&line["seq"].as_u64().unwrap()];
        assert_eq!(line["event"], parsed(&body(id).replace('\n', " "))["event"]);
    }
}

/// Waits until the bucket has as many lines.
async fn holds(stack: &Stack, lines: usize) {
    until("the bucket has them", async || stack.lines().len() >= lines).await;
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn s3_has_each_event_once_whenever_the_daemon_or_the_server_is_killed() {
    let Some(mut stack) = Stack::start().await else { return };
    let mut daemon = Daemon::new(&s3(&stack.url()));
    let by_seq = campaign::kills(&mut daemon, Some(&mut stack), "archive").await;
    daemon.stop().await;
    assert_once(&stack.lines(), &by_seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_makes_nothing_twice() {
    let Some(stack) = Stack::start().await else { return };
    let line = Line::start(stack.port).await;
    let mut daemon = Daemon::start(&s3(&line.url)).await;
    daemon.store(1..=5).await;
    holds(&stack, 5).await;
    for round in 0..3 {
        line.loses(1 + round % 2);
        daemon.store(6 + round as u64 * 5..=10 + round as u64 * 5).await;
        until("an answer was lost", async || line.has_lost()).await;
        holds(&stack, 10 + round * 5).await;
    }
    daemon.stop().await;
    assert_once(&stack.lines(), &(1..=20).map(|id| (id, id)).collect());
    assert_eq!(daemon.sink("archive")["dead"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gathered_is_in_the_bucket_after_a_stop_and_after_a_reload() {
    let Some(stack) = Stack::start().await else { return };
    // It would wait an hour.
    let patient = s3(&stack.url()).replace("150ms", "1h");
    let mut daemon = Daemon::start(&patient).await;
    // They are lag as long as they are nowhere else.
    let gathered = async |daemon: &Daemon| {
        until("they are gathered", async || {
            let sink = daemon.sink("archive");
            let waits_by = sink["waits_by"].as_str().unwrap_or_default();
            sink["lag_events"] == 10 && waits_by.starts_with("it gathers events: what it has goes out at 2")
        })
        .await;
    };
    daemon.store(1..=10).await;
    gathered(&daemon).await;
    assert_eq!(stack.lines().len(), 0);
    daemon.configure(&patient.replace("prefix = \"crm\"", "prefix = \"other\""));
    assert!(daemon.reload().await);
    holds(&stack, 10).await;
    daemon.store(11..=20).await;
    gathered(&daemon).await;
    daemon.stop().await;
    let lines = stack.lines();
    assert_once(&lines, &(1..=20).map(|id| (id, id)).collect());
    let names: BTreeSet<&str> = lines
        .iter()
        .map(|(name, _)| name.rsplit("archive/").next().unwrap())
        .collect();
    let is = |name: &&str, prefix: &str, end: &str| name.starts_with(&format!("{prefix}/dt=20")) && name.ends_with(end);
    assert!(names.iter().any(|name| is(name, "crm", "-1-10.jsonl.gz")), "{names:?}");
    assert!(
        names.iter().any(|name| is(name, "other", "-11-20.jsonl.gz")),
        "{names:?}"
    );
    // A replay goes into objects of its own, and is not waited an hour for.
    daemon.run().await;
    daemon.ok(&["replay", "--sink", "archive", "--yes"]);
    holds(&stack, 40).await;
    assert_eq!(stack.lines().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_and_given_back_and_a_server_that_is_full_cost_no_event() {
    let moody = Moody::start().await;
    let mut daemon = Daemon::start(&s3(&moody.url)).await;
    daemon.store(1..=3).await;
    daemon.done("archive").await;
    let mut next = 4;
    for (status, text, part) in [
        (
            403,
            "<Error><Code>InvalidAccessKeyId</Code><Message>hunter2-secret</Message></Error>",
            "does not know these credentials",
        ),
        (403, "<Error><Code>AccessDenied</Code></Error>", "grant the right"),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", "make the bucket"),
        (503, "<Error><Code>SlowDown</Code></Error>", "it is asked too much"),
        (507, "", "507"),
    ] {
        moody.says(status, text);
        daemon.store(next..=next + 2).await;
        next += 3;
        daemon.says("archive", part).await;
        moody.says(200, "");
        until("the bucket has them", async || moody.lines().len() as u64 == next - 1).await;
    }
    daemon.stop().await;
    let lines: Vec<(String, String)> = moody.lines().into_iter().map(|line| (String::new(), line)).collect();
    assert_once(&lines, &(1..next).map(|id| (id, id)).collect());
    assert_eq!(daemon.sink("archive")["dead"], 0);
    assert!(!daemon.stderr().contains("hunter2"), "no secret in the log");
}

#[test]
fn check_accepts_the_examples_and_refuses_a_shared_place() {
    let daemon = Daemon::new("");
    std::fs::write(daemon.path("aws"), "hunter2\n").unwrap();
    let example = |kind: &str| {
        let kind = closehook::sinks::REGISTRY
            .iter()
            .find(|known| known.name == kind)
            .unwrap();
        let lines: Vec<&str> = kind
            .example
            .lines()
            .filter(|line| !line.starts_with("name = "))
            .collect();
        let named = format!("[[sinks]]\nname = \"{}\"", kind.name);
        lines
            .join("\n")
            .replace("[[sinks]]", &named)
            .replace("credential:", "DIR/")
            + "\n"
    };
    let all: String = ["s3", "sqs", "sns", "eventbridge", "kinesis"].map(example).concat();
    daemon.configure(&all);
    daemon.ok(&["check"]);
    let twice = format!("{all}{}", example("s3").replace("name = \"s3\"", "name = \"again\""));
    daemon.configure(&twice);
    let said = daemon.fails(2, &["check"]);
    assert!(said.contains("in the bucket example-crm-archive"), "{said}");
    assert!(!said.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_authority_nobody_knows_is_given_nothing() {
    let (moody, cert) = Moody::start_tls();
    let unknown = s3(&moody.url);
    let mut daemon = Daemon::start(&unknown).await;
    daemon.store(1..=3).await;
    daemon.says("archive", "set ca").await;
    assert_eq!(moody.taken.lock().unwrap().len(), 0);
    std::fs::write(daemon.path("ca.pem"), cert).unwrap();
    daemon.configure(&format!("{unknown}ca = \"DIR/ca.pem\"\n"));
    assert!(daemon.reload().await);
    until("the bucket has them", async || moody.lines().len() == 3).await;
    daemon.stop().await;
}
