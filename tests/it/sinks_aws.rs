//! The sinks for AWS, with the daemon and a server that stands in for it: each event is there, in `s3` exactly once, whatever is killed
//! or lost. What the sinks do by themselves is tested beside them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::aws_server::{BUCKET, Line, Moody, REGION, Stack};
use crate::campaign;
use crate::harness::{Daemon, body, parsed, until};

/// What every sink here has: it starts with the first event and does not wait long.
const EAGER: &str = "start = \"beginning\"\ntimeout = \"4s\"\nretry = { initial = \"10ms\", max_delay = \"100ms\" }\n\
     breaker = { probe = \"100ms\" }\n";

fn sink(name: &str, kind: &str, endpoint: &str, own: &str) -> String {
    format!(
        "[[sinks]]\nname = \"{name}\"\ntype = \"{kind}\"\nregion = \"{REGION}\"\nendpoint = \"{endpoint}\"\n\
         access_key_id = \"test\"\nsecret_access_key = \"hunter2-secret\"\n{EAGER}{own}\n"
    )
}

fn s3(endpoint: &str) -> String {
    sink(
        "archive",
        "s3",
        endpoint,
        &format!("bucket = \"{BUCKET}\"\nprefix = \"crm\"\nbatch = {{ events = 300, wait = \"150ms\" }}"),
    )
}

/// Each event that was answered is in the bucket, exactly once, with what was sent.
fn assert_once(lines: &[(String, String)], by_seq: &BTreeMap<u64, u64>) {
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

/// A queue to which a topic, or a bus, leads.
async fn led_from(stack: &Stack, topic: &str, bus: &str) -> (String, String) {
    let (of_topic, of_bus) = (stack.queue("of-topic").await, stack.queue("of-bus").await);
    let arn = |name: &str| format!("arn:aws:sqs:{REGION}:000000000000:{name}");
    let made = stack
        .form("sns", &format!("Action=CreateTopic&Version=2010-03-31&Name={topic}"))
        .await;
    assert!(
        made.contains(&format!("arn:aws:sns:{REGION}:000000000000:{topic}")),
        "{made}"
    );
    stack
        .form(
            "sns",
            &format!(
                "Action=Subscribe&Version=2010-03-31&TopicArn=arn:aws:sns:{REGION}:000000000000:{topic}&Protocol=sqs&Endpoint={}",
                arn("of-topic")
            ),
        )
        .await;
    stack
        .json("events", "AWSEvents.CreateEventBus", &json!({ "Name": bus }))
        .await;
    let rule = json!({ "Name": "all", "EventBusName": bus, "EventPattern": "{\"source\":[\"closehook\"]}" });
    stack.json("events", "AWSEvents.PutRule", &rule).await;
    let targets = json!({ "Rule": "all", "EventBusName": bus, "Targets": [{ "Id": "1", "Arn": arn("of-bus") }] });
    stack.json("events", "AWSEvents.PutTargets", &targets).await;
    (of_topic, of_bus)
}

/// Everything that is in a stream of one shard: partition keys and data.
async fn records(stack: &Stack, stream: &str) -> Vec<(String, Value)> {
    use base64::Engine as _;
    let asked = json!({ "StreamName": stream, "ShardId": "shardId-000000000000", "ShardIteratorType": "TRIM_HORIZON" });
    let iterator = stack.json("kinesis", "Kinesis_20131202.GetShardIterator", &asked).await;
    let asked = json!({ "ShardIterator": iterator["ShardIterator"], "Limit": 1000 });
    let got = stack.json("kinesis", "Kinesis_20131202.GetRecords", &asked).await;
    let record = |record: &Value| {
        let data = base64::engine::general_purpose::STANDARD
            .decode(record["Data"].as_str().unwrap())
            .unwrap();
        (
            record["PartitionKey"].as_str().unwrap().to_owned(),
            serde_json::from_slice(&data).unwrap(),
        )
    };
    got["Records"].as_array().unwrap().iter().map(record).collect()
}

const KEY_OF_1: &str = "ev_1:2024-02-15T12:48:23.395000";

/// The body as Close signed it, and beside it which event it is; in a FIFO queue by lead, with the key for repeats.
async fn assert_queues(stack: &Stack, queue: &str, fifo: &str) {
    let messages = stack.messages(queue).await;
    let mut bodies: Vec<&str> = messages
        .iter()
        .map(|message| message["Body"].as_str().unwrap())
        .collect();
    bodies.sort_unstable();
    let mut sent: Vec<String> = (1..=25).map(body).collect();
    sent.sort_unstable();
    assert_eq!(bodies, sent);
    let first = messages.iter().find(|message| message["Body"] == body(1)).unwrap();
    let attributes = &first["MessageAttributes"];
    for (name, value) in [
        ("closehook-key", KEY_OF_1),
        ("closehook-seq", "1"),
        ("closehook-type", "lead.updated"),
        ("closehook-lead-id", "lead_1"),
        ("closehook-source", "webhook"),
    ] {
        assert_eq!(attributes[name]["StringValue"], value, "{name}");
    }
    let messages = stack.messages(fifo).await;
    assert_eq!(messages.len(), 25);
    for message in &messages {
        let (own, theirs) = (&message["MessageAttributes"], &message["Attributes"]);
        assert_eq!(theirs["MessageGroupId"], own["closehook-lead-id"]["StringValue"]);
        assert_eq!(theirs["MessageDeduplicationId"], own["closehook-key"]["StringValue"]);
    }
}

/// What subscribers of the topic and of the bus have.
async fn assert_notes(stack: &Stack, of_topic: &str, of_bus: &str) {
    let notes = stack.messages(of_topic).await;
    let note = |message: &Value| parsed(message["Body"].as_str().unwrap());
    let notes: Vec<Value> = notes.iter().map(note).collect();
    assert_eq!(
        notes
            .iter()
            .map(|note| note["Message"].as_str().unwrap())
            .collect::<BTreeSet<_>>()
            .len(),
        25
    );
    let first = notes.iter().find(|note| note["Message"] == body(1)).unwrap();
    assert_eq!(first["MessageAttributes"]["closehook-key"]["Value"], KEY_OF_1);
    let events: Vec<Value> = stack.messages(of_bus).await.iter().map(note).collect();
    assert_eq!(events.len(), 25);
    let first = events.iter().find(|event| event["detail"]["meta"]["seq"] == 1).unwrap();
    assert_eq!(
        (&first["source"], &first["detail-type"]),
        (&json!("closehook"), &json!("lead.updated"))
    );
    assert_eq!(first["detail"]["event"], parsed(&body(1).replace('\n', " "))["event"]);
    assert_eq!(first["detail"]["meta"]["key"], KEY_OF_1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_has_each_event_with_what_says_which_it_is() {
    let Some(stack) = Stack::start().await else { return };
    let (queue, fifo) = (stack.queue("events").await, stack.queue("events.fifo").await);
    let (of_topic, of_bus) = led_from(&stack, "events", "crm").await;
    stack
        .json(
            "kinesis",
            "Kinesis_20131202.CreateStream",
            &json!({ "StreamName": "events", "ShardCount": 1 }),
        )
        .await;
    let url = stack.url();
    let config = [
        sink("sqs", "sqs", &url, &format!("queue = \"{queue}\"")),
        sink(
            "fifo",
            "sqs",
            &url,
            &format!("queue = \"arn:aws:sqs:{REGION}:000000000000:events.fifo\""),
        ),
        sink(
            "sns",
            "sns",
            &url,
            &format!("topic = \"arn:aws:sns:{REGION}:000000000000:events\""),
        ),
        sink("bus", "eventbridge", &url, "bus = \"crm\""),
        sink("stream", "kinesis", &url, "stream = \"events\""),
    ];
    let daemon = Daemon::new(&config.concat());
    let probed = daemon.ok(&["check", "--probe"]);
    for said in [
        "the queue is there",
        "the topic is there",
        "the bus is there",
        "the stream is there",
    ] {
        assert!(probed.contains(said), "{probed}");
    }
    let mut daemon = daemon;
    daemon.run().await;
    daemon.store(1..=25).await;
    for name in ["sqs", "fifo", "sns", "bus", "stream"] {
        daemon.done(name).await;
        assert_eq!(daemon.sink(name)["dead"], 0, "{name}");
    }
    assert_queues(&stack, &queue, &fifo).await;
    assert_notes(&stack, &of_topic, &of_bus).await;
    let records = records(&stack, "events").await;
    assert_eq!(records.len(), 25);
    assert_eq!(
        (&*records[0].0, &records[0].1["meta"]["key"]),
        ("lead_1", &json!(KEY_OF_1))
    );
    daemon.stop().await;
}

/// Ministack forgets its queues when it is killed, so it is the line that is cut.
#[tokio::test(flavor = "multi_thread")]
async fn queues_miss_nothing_whenever_the_daemon_is_killed_or_an_answer_is_lost() {
    let Some(stack) = Stack::start().await else { return };
    let line = Line::start(stack.port).await;
    let (queue, fifo) = (stack.queue("events").await, stack.queue("events.fifo").await);
    stack
        .json(
            "kinesis",
            "Kinesis_20131202.CreateStream",
            &json!({ "StreamName": "events", "ShardCount": 1 }),
        )
        .await;
    let config = [
        sink("sqs", "sqs", &line.url, &format!("queue = \"{queue}\"")),
        sink("fifo", "sqs", &line.url, &format!("queue = \"{fifo}\"")),
        sink("stream", "kinesis", &line.url, "stream = \"events\""),
    ];
    let mut random = campaign::seed();
    let mut daemon = Daemon::new(&config.concat());
    let mut id = 1;
    for _ in 0..campaign::rounds("CLOSEHOOK_TEST_KILLS", 2) {
        daemon.run().await;
        for _ in 0..3 {
            line.loses(random.usize(0..3));
            daemon.store(id..=id + 9).await;
            id += 10;
        }
        daemon.kill();
    }
    line.loses(0);
    daemon.run().await;
    for name in ["sqs", "fifo", "stream"] {
        daemon.done(name).await;
        assert_eq!(daemon.sink(name)["dead"], 0, "{name}");
    }
    let all: BTreeSet<String> = (1..id)
        .map(|id| format!("ev_{id}:2024-02-15T12:48:23.395000"))
        .collect();
    let key = |message: &Value| {
        message["MessageAttributes"]["closehook-key"]["StringValue"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let of_queue: Vec<String> = stack.messages(&queue).await.iter().map(key).collect();
    assert_eq!(of_queue.into_iter().collect::<BTreeSet<_>>(), all);
    let of_fifo: Vec<String> = stack.messages(&fifo).await.iter().map(key).collect();
    assert_eq!(
        of_fifo.len(),
        all.len(),
        "repeats carry the same id, and the queue drops them"
    );
    assert_eq!(of_fifo.into_iter().collect::<BTreeSet<_>>(), all);
    let of_stream = records(&stack, "events").await;
    let keys: BTreeSet<String> = of_stream
        .iter()
        .map(|(_, data)| data["meta"]["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(keys, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_is_one_dead_letter_and_nothing_is_repeated() {
    let Some(stack) = Stack::start().await else { return };
    let queue = stack.queue("events").await;
    let mut daemon = Daemon::new(&sink("sqs", "sqs", &stack.url(), &format!("queue = \"{queue}\"")));
    daemon.run().await;
    daemon.store(1..=4).await;
    // More than a queue takes.
    let large = body(5).replace("\"n\": 1.50", &format!("\"n\": \"{}\"", "x".repeat(1_100_000)));
    assert_eq!(daemon.send(large).await.unwrap().0, 200);
    daemon.store(6..=20).await;
    daemon.done("sqs").await;
    let dead = daemon.lines(&["dead", "list"]);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["seq"], 5, "{dead:?}");
    let messages = stack.messages(&queue).await;
    assert_eq!(messages.len(), 19);
    daemon.stop().await;
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
