//! What there is to say of `amqp`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "amqp",
    feature: Some("sink-amqp"),
    about: "a message for each event to an exchange or queue of RabbitMQ (AMQP 0-9-1)",
    promise: "At least once: each message is persistent, published as mandatory and confirmed; the key is its message-id",
    notes: "\
The body is what Close sent, or what a template or transform made of it; content-type says which. message-id is the key, type the event's \
type (object_type.action), timestamp when it came; headers are closehook-seq, -type, -event-id, -key, -lead-id, -received-at, -source, of what another sink gave up (its dead_to) \
-dead-reason, -dead-sink and -dead-attempts, and those that a \
transform returns; its key is the routing key, its subject is not used. What is longer than AMQP's 255 bytes ends in a digest of itself in \
message-id and type, and is refused as a routing key.
With `exchange = \"\"` the routing key is a queue's name.
A message that no queue takes comes back: where routing_key is constant, the sink waits and says what to bind; where it depends on the event, that event \
is a dead letter, and after five in a row the rest of the batch waits. An alternate exchange takes what no binding does. A message that the \
server does not take (larger than its max_message_size) is a dead letter, and keeps no other; one that is larger than all before goes \
alone. Everything else (no such exchange or vhost, no right, the password, a full queue with overflow reject-publish, an alarm of \
memory or disk, no answer) makes the sink wait, says what to do, and costs no event anything. While one of several queues is full, \
the others get a message anew with each try.
What was not confirmed when a connection broke is published again with the same message-id. Batches go one after the other, so that messages \
are in order as long as none fails. `order` keeps it through failures (\"strict\" waits for each message before the next), and \
`concurrency` gives it up.
url without a path is the vhost /; a / in a vhost's name is %2F. Without a user it is guest, or with `cert` and `key` who the certificate says (EXTERNAL).",
    setup: "\
A user that may write to the exchange, and a durable queue that is bound to it:
  rabbitmqctl add_user closehook
  rabbitmqctl set_permissions -p / closehook \"\" \"^close$\" \"\"
  rabbitmqadmin declare exchange name=close type=topic durable=true
  rabbitmqadmin declare queue name=close-events durable=true
  rabbitmqadmin declare binding source=close destination=close-events routing_key=\"#\"",
    example: r#"[[sinks]]
name = "rabbit"
type = "amqp"
url = "amqps://rabbit.example.com"
username = "closehook"
password_file = "credential:rabbit"
exchange = "close"
routing_key = "{{ object_type }}.{{ action }}"
"#,
    keys: &[
        Key::required(
            "url",
            "\"amqps://rabbit.example.com/crm\"",
            "The server and the vhost; amqp:// is without TLS",
        ),
        Key::optional("username", "\"closehook\"", "Who signs in; default the user in url, else guest"),
        Key::optional("password", "\"credential:rabbit\"", "Better than in url").secret(),
        Key::with_default("exchange", "\"\"", "Where to; \"\" is the default exchange, for which routing_key is a queue's name"),
        Key::required(
            "routing_key",
            "\"{{ object_type }}.{{ action }}\"",
            "By which the exchange finds queues",
        )
        .template(),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "500", "Messages that are confirmed together, up to 5000"),
                Key::with_default("bytes", "\"4 MiB\"", "Bytes of their bodies, roughly"),
                Key::with_default("wait", "\"0s\"", "How long a batch that is not full waits for more"),
            ],
            "What goes to the server before it is waited for",
        ),
        Key::optional(
            "ca",
            "\"/etc/closehook/rabbit-ca.pem\"",
            "Trusted besides the system's authorities",
        ),
        Key::optional("cert", "\"/etc/closehook/rabbit-client.pem\"", "A client's certificate"),
        Key::optional("key", "\"/etc/closehook/rabbit-client.key\"", "Its key"),
    ],
    parse: Some(parse),
};
