//! The sinks for AWS's queues, with the daemon and a server that stands in for it: what arrives, whatever is killed, lost or refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::aws_server::{Line, REGION, Stack};
use crate::campaign;
use crate::harness::{Daemon, body, parsed};
use crate::sinks_aws::sink;

/// The sinks that [`Queues::config`] has.
pub const SINKS: [&str; 5] = ["sqs", "fifo", "sns", "bus", "stream"];

/// The key of an event.
pub fn key(id: u64) -> String {
    format!("ev_{id}:2024-02-15T12:48:23.395000")
}

/// A server for AWS's queues, and what is in them.
pub struct Queues {
    pub stack: Stack,
    /// One that is written to, one that has what a topic got, one that has what a bus got.
    standard: [String; 3],
    fifo: String,
}

impl Queues {
    pub async fn start() -> Option<Queues> {
        let stack = Stack::start().await?;
        let (queue, fifo) = (stack.queue("events").await, stack.queue("events.fifo").await);
        let (of_topic, of_bus) = led_from(&stack, "events", "crm").await;
        let made = json!({ "StreamName": "events", "ShardCount": 1 });
        stack.json("kinesis", "Kinesis_20131202.CreateStream", &made).await;
        Some(Queues {
            stack,
            standard: [queue, of_topic, of_bus],
            fifo,
        })
    }

    /// A sink for each of them, by a way to each kind.
    pub fn config(&self, endpoint: impl Fn(&str) -> String, more: &str) -> String {
        let topic = format!("topic = \"arn:aws:sns:{REGION}:000000000000:events\"");
        let own = [
            ("sqs", "sqs", format!("queue = \"{}\"", self.standard[0])),
            ("fifo", "sqs", format!("queue = \"{}\"", self.fifo)),
            ("sns", "sns", topic),
            ("bus", "eventbridge", "bus = \"crm\"".into()),
            ("stream", "kinesis", "stream = \"events\"".into()),
        ];
        own.map(|(name, kind, own)| {
            // What has an order goes in that order.
            let more = if matches!(name, "fifo" | "stream") { "" } else { more };
            sink(name, kind, &endpoint(kind), &format!("{own}\n{more}"))
        })
        .concat()
    }

    /// The keys of everything that has come, by sink.
    pub async fn keys(&self) -> BTreeMap<&'static str, Vec<String>> {
        let own = |message: &Value| message["MessageAttributes"]["closehook-key"]["StringValue"].clone();
        let noted = |message: &Value| {
            parsed(message["Body"].as_str().unwrap())["MessageAttributes"]["closehook-key"]["Value"].clone()
        };
        let detailed = |message: &Value| parsed(message["Body"].as_str().unwrap())["detail"]["meta"]["key"].clone();
        let mut keys: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        keys.insert(
            "sqs",
            self.stack.messages(&self.standard[0]).await.iter().map(own).collect(),
        );
        keys.insert("fifo", self.stack.messages(&self.fifo).await.iter().map(own).collect());
        keys.insert(
            "sns",
            self.stack.messages(&self.standard[1]).await.iter().map(noted).collect(),
        );
        keys.insert(
            "bus",
            self.stack
                .messages(&self.standard[2])
                .await
                .iter()
                .map(detailed)
                .collect(),
        );
        let records = records(&self.stack, "events").await;
        keys.insert(
            "stream",
            records.iter().map(|(_, data)| data["meta"]["key"].clone()).collect(),
        );
        let text = |keys: Vec<Value>| keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect();
        keys.into_iter().map(|(name, keys)| (name, text(keys))).collect()
    }
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
    let mut iterator =
        stack.json("kinesis", "Kinesis_20131202.GetShardIterator", &asked).await["ShardIterator"].clone();
    let record = |record: &Value| {
        let data = base64::engine::general_purpose::STANDARD
            .decode(record["Data"].as_str().unwrap())
            .unwrap();
        (
            record["PartitionKey"].as_str().unwrap().to_owned(),
            serde_json::from_slice(&data).unwrap(),
        )
    };
    let mut all = Vec::new();
    loop {
        let asked = json!({ "ShardIterator": iterator, "Limit": 1000 });
        let got = stack.json("kinesis", "Kinesis_20131202.GetRecords", &asked).await;
        let some = got["Records"].as_array().unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some.iter().map(record));
        iterator = got["NextShardIterator"].clone();
    }
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

/// Each key at least once, in the FIFO queue once: repeats carry the same id there, and the queue drops them.
fn assert_all(keys: &BTreeMap<&'static str, Vec<String>>, ids: impl Iterator<Item = u64>) {
    let all: BTreeSet<String> = ids.map(key).collect();
    for name in SINKS {
        let came: BTreeSet<String> = keys[name].iter().cloned().collect();
        assert_eq!(came, all, "{name}");
    }
    assert_eq!(keys["fifo"].len(), all.len());
}

/// Ministack forgets its queues when it is killed, so it is the line that is cut. `CLOSEHOOK_TEST_KILLS` asks for more rounds than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn queues_miss_nothing_whenever_the_daemon_is_killed_or_an_answer_is_lost() {
    let Some(queues) = Queues::start().await else { return };
    let line = Line::start(queues.stack.port).await;
    let mut random = campaign::seed();
    let mut daemon = Daemon::new(&queues.config(|_| line.url.clone(), ""));
    let mut id = 1;
    for _ in 0..campaign::rounds("CLOSEHOOK_TEST_KILLS", 2) {
        daemon.run().await;
        for _ in 0..3 {
            line.loses(random.usize(0..5));
            daemon.store(id..=id + 9).await;
            id += 10;
        }
        daemon.kill();
    }
    line.loses(0);
    daemon.run().await;
    for name in SINKS {
        daemon.done(name).await;
        assert_eq!(daemon.sink(name)["dead"], 0, "{name}");
    }
    assert_all(&queues.keys().await, 1..id);
    daemon.stop().await;
}

/// Larger than these take. (Ministack's bus and stream take anything: what they say of an event is tried beside the code.)
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_in_five_hundred_is_one_dead_letter_and_nothing_is_repeated() {
    const LIMITED: [&str; 3] = ["sqs", "fifo", "sns"];
    let Some(queues) = Queues::start().await else { return };
    let mut daemon = Daemon::new("");
    daemon.run().await;
    daemon.store(1..=299).await;
    let large = body(300).replace("\"n\": 1.50", &format!("\"n\": \"{}\"", "x".repeat(1_100_000)));
    assert_eq!(daemon.send(large).await.unwrap().0, 200);
    daemon.store(301..=500).await;
    // They wait until the sinks start: then they come together.
    daemon.configure(&queues.config(|_| queues.stack.url(), ""));
    assert!(daemon.reload().await);
    for name in LIMITED {
        daemon.done(name).await;
        let shown = daemon.sink(name);
        assert_eq!(
            (&shown["dead"], &shown["delivered"]),
            (&json!(1), &json!(499)),
            "{shown}"
        );
    }
    for letter in daemon.lines(&["dead", "list"]) {
        assert_eq!(letter["seq"], 300, "{letter}");
    }
    let good: BTreeSet<String> = (1..=500).filter(|id| *id != 300).map(key).collect();
    let keys = queues.keys().await;
    for name in LIMITED {
        assert_eq!(keys[name].len(), 499, "{name}: none twice");
        assert_eq!(keys[name].iter().cloned().collect::<BTreeSet<_>>(), good, "{name}");
    }
    daemon.stop().await;
}

/// A refusal in the words of AWS's older services.
fn xml(code: &str) -> String {
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>hunter2-secret no</Message></Error></ErrorResponse>"
    )
}

/// The same in the words of the newer ones.
fn json(code: &str) -> String {
    format!("{{\"__type\":\"{code}\",\"message\":\"hunter2-secret no\"}}")
}

/// As AWS says it, which is not the same for any two of them: what is wrong with who asks costs no event anything.
#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_and_given_back_and_quotas_that_are_used_up_cost_no_event() {
    let Some(queues) = Queues::start().await else { return };
    let mut lines = BTreeMap::new();
    for kind in ["sqs", "sns", "eventbridge", "kinesis"] {
        lines.insert(kind, Line::start(queues.stack.port).await);
    }
    let mut daemon = Daemon::start(&queues.config(|kind| lines[kind].url.clone(), "")).await;
    let line = |name: &str| match name {
        "sqs" | "fifo" => &lines["sqs"],
        "sns" => &lines["sns"],
        "bus" => &lines["eventbridge"],
        _ => &lines["kinesis"],
    };
    let mut next = 1;
    for (status, body, sinks, part) in [
        (400, json("AccessDeniedException"), &["bus", "stream"][..], "grant"),
        (403, json("com.amazonaws.sqs#AccessDenied"), &["sqs", "fifo"], "grant"),
        (403, xml("AuthorizationError"), &["sns"], "grant"),
        (
            400,
            json("UnrecognizedClientException"),
            &["bus", "stream", "sqs"],
            "does not know these credentials",
        ),
        (
            403,
            xml("InvalidClientTokenId"),
            &["sns"],
            "does not know these credentials",
        ),
        (
            400,
            json("ExpiredTokenException"),
            &["bus", "stream", "sqs"],
            "has ended",
        ),
        (
            400,
            json("ThrottlingException"),
            &["bus", "stream", "sqs"],
            "asked too much",
        ),
        (400, xml("Throttling"), &["sns"], "asked too much"),
        (
            400,
            json("ProvisionedThroughputExceededException"),
            &["stream"],
            "asked too much",
        ),
        (403, json("com.amazonaws.sqs#OverLimit"), &["sqs", "fifo"], "OverLimit"),
        (
            400,
            json("ResourceNotFoundException"),
            &["bus", "stream"],
            "ResourceNotFoundException",
        ),
        (
            400,
            json("com.amazonaws.sqs#QueueDoesNotExist"),
            &["sqs", "fifo"],
            "QueueDoesNotExist",
        ),
        (404, xml("NotFound"), &["sns"], "NotFound"),
        (
            500,
            json("InternalFailure"),
            &["bus", "stream", "sqs", "fifo", "sns"],
            "500",
        ),
    ] {
        for name in sinks {
            line(name).says(status, &body);
        }
        daemon.store(next..=next + 11).await;
        next += 12;
        for name in sinks {
            daemon.says(name, part).await;
            let shown = daemon.sink(name);
            assert_eq!(
                (&shown["dead"], &shown["retrying"]),
                (&json!(0), &json!(0)),
                "{body}: {shown}"
            );
        }
        for name in sinks {
            line(name).says(200, "");
        }
        for name in sinks {
            daemon.done(name).await;
        }
    }
    for name in SINKS {
        daemon.done(name).await;
        assert_eq!(daemon.sink(name)["dead"], 0, "{name}");
    }
    assert_all(&queues.keys().await, 1..next);
    assert!(!daemon.stderr().contains("hunter2"), "no secret in the log");
    daemon.stop().await;
}
