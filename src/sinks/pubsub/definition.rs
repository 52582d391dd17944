//! What there is to say of `pubsub`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "pubsub",
    feature: Some("sink-pubsub"),
    about: "a message for each event in a topic of Google Cloud Pub/Sub",
    promise: "At least once: the key is the attribute `closehook-key`",
    notes: "\
The data is the body as Close sent it, or what a template or transform made of it. Attributes: closehook-seq, -type, -event-id, -key, \
-lead-id, -received-at, -source, of what another sink gave up (its dead_to) -dead-reason, -dead-sink and -dead-attempts, and the headers that a transform returns; its key is the ordering key (for which `ordering_key` has to be set, \
so that one request goes at a time), its subject the topic.
A message that is refused (400), or larger than 10 MB, is a dead letter; it does not keep the others of its request. Everything else (401 after a \
new token, 403, 404, 429, 5xx, no connection) makes the sink wait, says what to do, and costs no event anything. Where the topic depends on the event, 403 and 404 are about the events of that topic. After five refusals in a row the \
rest of a request waits.
Messages with one ordering key arrive in order where the subscription has ordering on, and `order` says that a failed event holds back those \
behind it.",
    setup: "\
A topic, a service account that may publish there, and a key of it:
  gcloud pubsub topics create close
  gcloud iam service-accounts create closehook
  gcloud pubsub topics add-iam-policy-binding close --role=roles/pubsub.publisher --member=serviceAccount:closehook@acme.iam.gserviceaccount.com
  gcloud iam service-accounts keys create pubsub.json --iam-account=closehook@acme.iam.gserviceaccount.com",
    example: r#"[[sinks]]
name = "warehouse-topic"
type = "pubsub"
topic = "projects/acme/topics/close"
credentials_file = "credential:pubsub"
"#,
    keys: &[
        Key::required(
            "topic",
            "\"projects/acme/topics/close\"",
            "Its whole name, or the last part of it in the service account's own project",
        )
        .template(),
        Key::optional("ordering_key", "\"{{ lead_id }}\"", "What is published in order").template(),
        Key::optional("credentials", "\"credential:pubsub\"", "The service account's key, the JSON text as Google gives it").secret(),
        Key::optional(
            "endpoint",
            "\"https://europe-west1-pubsub.googleapis.com\"",
            "A region's, or an emulator's, which needs no credentials; default https://pubsub.googleapis.com",
        ),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "500", "Messages in a request, up to 1000"),
                Key::with_default("bytes", "\"3 MiB\"", "Bytes of their data, roughly"),
                Key::with_default("wait", "\"0s\"", "How long a request that is not full waits for more"),
            ],
            "What goes into one request",
        ),
        Key::optional("proxy", "\"http://proxy.example.com:3128\"", "An HTTP proxy on the way"),
        Key::optional("ca", "\"/etc/closehook/internal-ca.pem\"", "Trusted besides the system's authorities"),
        Key::optional("cert", "\"/etc/closehook/client.pem\"", "A client's certificate with its chain"),
        Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
    ],
    parse: Some(parse),
};
