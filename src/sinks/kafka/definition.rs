//! What there is to say of `kafka`.

use super::options::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "kafka",
    feature: Some("sink-kafka"),
    about: "a record for each event in a topic of Apache Kafka",
    promise: "At least once: the key is the header `closehook-key`; exactly once with exactly_once = true, for consumers that read committed records",
    notes: "\
The value is the body as Close sent it, or what a template or transform made of it. Headers: closehook-seq, -type, -event-id, -key, \
-lead-id, -received-at, -source, of what another sink gave up (its dead_to) -dead-reason, -dead-sink and -dead-attempts, and those that a transform returns; its key is the record's key, its subject the topic. Which partition a key \
goes to is as with Java's clients; records without a key go to another partition with each batch. A record's time is when it was sent.
The producer is idempotent and waits for all replicas in sync: a connection that is cut, or an answer that is lost, repeats nothing as long as the \
sink's timeout leaves time to ask again.
With exactly_once the records of a batch and the sink's mark are one transaction (one batch at a time); the mark is a record of mark_topic, \
a compacted topic that may keep those of several sinks and daemons. Consumers need isolation.level=read_committed (in librdkafka that is the default, \
in Java's clients it is not), else they also see what was given up. A transaction that is open when the daemon ends keeps such consumers waiting until it \
runs again, or for twice the sink's timeout. A second daemon with the same log and sink keeps the first one from writing. \
All this was proved on the broker tansu, against kills of the daemon, connections that are cut and answers that are lost; not on Apache Kafka, nor against a \
broker that is killed while it commits. \
If the mark's record is gone only new events go on, which is an error in log and status until a replay to the sink, or `closehook sinks resume`.
A record that a topic does not take (MESSAGE_TOO_LARGE, INVALID_RECORD) is a dead letter and does not keep the others of its batch. No such topic, \
no right, a full disk, too few replicas or no broker make the sink wait, say what to do, and cost no event anything; where the topic depends on the \
event, a topic that is missing or not allowed is about the events of that topic. No topic is ever created.
`key` is the record's; that of a client's certificate is `cert_key`.",
    setup: "\
Kafka 0.11 or newer, a topic, and a user who may write there:
  kafka-topics.sh --bootstrap-server kafka1.example.com:9092 --create --topic close --partitions 6 --replication-factor 3 --config min.insync.replicas=2
  kafka-acls.sh --bootstrap-server kafka1.example.com:9092 --add --allow-principal User:closehook --producer --idempotent --topic close
With exactly_once = true a topic for the mark, and the right to use it and transactions, too; max.message.bytes of both topics limits a record:
  kafka-topics.sh --bootstrap-server kafka1.example.com:9092 --create --topic closehook_mark --partitions 1 --replication-factor 3 --config min.insync.replicas=2 --config cleanup.policy=compact
  kafka-acls.sh --bootstrap-server kafka1.example.com:9092 --add --allow-principal User:closehook --operation Read --operation Write --operation Describe --operation DescribeConfigs --topic closehook_mark
  kafka-acls.sh --bootstrap-server kafka1.example.com:9092 --add --allow-principal User:closehook --operation Write --operation Describe --transactional-id closehook- --resource-pattern-type prefixed
and in every consumer:
  isolation.level=read_committed",
    example: r#"[[sinks]]
name = "stream"
type = "kafka"
brokers = ["kafka1.example.com:9093", "kafka2.example.com:9093"]
topic = "close"
sasl = "SCRAM-SHA-512"
username = "closehook"
password_file = "credential:kafka"
tls = true
"#,
    keys: &[
        Key::required(
            "brokers",
            "[\"kafka1.example.com:9092\", \"kafka2.example.com:9092\"]",
            "Some of them: they name the others",
        ),
        Key::required("topic", "\"close\"", "Where to").template(),
        Key::optional("key", "\"{{ data.id }}\"", "The record's key; default the lead's id").template(),
        Key::with_default("exactly_once", "false", "Records and mark in one transaction"),
        Key::with_default("mark_topic", "\"closehook_mark\"", "The compacted topic that keeps the mark"),
        Key::optional("sasl", "\"SCRAM-SHA-512\"", "Or SCRAM-SHA-256, or PLAIN: how the brokers learn who this is"),
        Key::optional("username", "\"closehook\"", "Who this is"),
        Key::optional("password", "\"credential:kafka\"", "The user's").secret(),
        Key::optional("tls", "true", "Whether to encrypt; default: if ca, cert or cert_key are given"),
        Key::optional("ca", "\"/etc/closehook/kafka-ca.pem\"", "Trusted besides the system's authorities"),
        Key::optional("cert", "\"/etc/closehook/kafka-client.pem\"", "A client's certificate"),
        Key::optional("cert_key", "\"/etc/closehook/kafka-client.key\"", "Its key"),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "1000", "Records that go together, up to 10000"),
                Key::with_default("bytes", "\"3 MiB\"", "Bytes of their bodies, roughly"),
                Key::with_default("wait", "\"0s\"", "How long a batch that is not full waits for more"),
            ],
            "What goes together",
        ),
    ],
    parse: Some(parse),
};
