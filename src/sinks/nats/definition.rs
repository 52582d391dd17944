//! What there is to say of `nats`.

use super::options::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "nats",
    feature: Some("sink-nats"),
    about: "a message for each event in a stream of NATS JetStream",
    promise: "At least once: delivered is what JetStream has acknowledged; the key is the header `Nats-Msg-Id`, so a repeat within the \
              stream's duplicate window is none",
    notes: "\
The body is what Close sent, byte for byte, or what a template or transform made of it. Headers: closehook-seq, -type, -event-id, -key, -lead-id, \
-received-at, -source, of what another sink gave up (its dead_to) -dead-reason, -dead-sink and -dead-attempts, Nats-Msg-Id, and those that a transform returns; its subject is the subject, its key is not used.
A batch is published at once and its acknowledgements are awaited together, while the next one is published: `concurrency` of them, 2 if nothing is said. \
With `order = \"strict\"` one message goes at a time. A stream has the messages in the order of the log as long as nothing has to be tried again.
Repeats come after a lost connection or acknowledgement and after a crash. JetStream drops them where the stream has seen the id within its \
duplicate window (two minutes by default; make it longer than the outages you expect), and says so: that counts as delivered. For the same reason a \
replay within the window adds nothing, and two sinks that put the same event into one stream get it there once: give each a stream of its own, or \
make it one sink.
A message that the server or stream finds too large, and one whose subject can't be one (spaces, empty tokens, wildcards, JetStream's own), is a dead letter. \
Everything else (no connection, refused credentials, no right, no stream, a full stream or account, no leader) makes the sink wait, says what to do, \
and costs no event anything. Where the subject depends on the event, a missing stream and a missing right are about the events of that subject. (To tell \
a stream that is missing from one that elects its leader, JetStream is asked, which the user has to be allowed.)
Only the servers named here are used, in this order; what a cluster says of its other members is not followed. `tls://` demands TLS, `nats://` uses it where the \
server demands it; `ca`, `cert` and `tls_first` demand it too. Credentials are read again for each connection.",
    setup: "\
A stream that takes the subject, and a user who may publish there, hear the answers, and ask about the stream:
  nats stream add CLOSE --subjects 'close.>' --storage file --retention limits --discard new --max-bytes 10GB --dupe-window 10m --defaults
In the server's configuration (with accounts and JWT: the same with nsc edit user):
  authorization {
    users = [
      {
        user: closehook, password: \"...\"
        permissions: {
          publish: [\"close.>\", \"$JS.API.STREAM.NAMES\", \"$JS.API.STREAM.INFO.*\"]
          subscribe: [\"_INBOX.>\"]
        }
      }
    ]
  }",
    example: r#"[[sinks]]
name = "bus"
type = "nats"
servers = ["tls://nats-1.example.com:4222", "tls://nats-2.example.com:4222"]
subject = "close.{{ object_type }}.{{ action }}"
credentials_file = "credential:nats"
"#,
    keys: &[
        Key::required(
            "servers",
            "[\"tls://nats-1.example.com:4222\", \"tls://nats-2.example.com:4222\"]",
            "One or several: nats:// or tls://, with USER:PASSWORD@ or TOKEN@ if it has to be",
        ),
        Key::required(
            "subject",
            "\"close.{{ object_type }}.{{ action }}\"",
            "Where to; dots of what is filled in make tokens",
        )
        .template(),
        Key::optional("user", "\"closehook\"", "The user's name"),
        Key::optional("password", "\"credential:nats\"", "The user's").secret(),
        Key::optional("token", "\"credential:nats\"", "Instead of user and password").secret(),
        Key::optional("nkey", "\"credential:nats\"", "Instead of user and password: the seed of a user's nkey").secret(),
        Key::optional(
            "credentials",
            "\"credential:nats\"",
            "Instead of user and password: a .creds file, which has a user's JWT and seed",
        )
        .secret(),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "1000", "Messages published together, up to 10000"),
                Key::with_default("bytes", "\"4 MiB\"", "Bytes of their bodies, roughly"),
                Key::with_default("wait", "\"0s\"", "How long a batch that is not full waits for more"),
            ],
            "What is published at once",
        ),
        Key::optional("ca", "\"/etc/closehook/nats-ca.pem\"", "Trusted besides the system's authorities"),
        Key::optional("cert", "\"/etc/closehook/nats-client.pem\"", "A client's certificate"),
        Key::optional("key", "\"/etc/closehook/nats-client.key\"", "Its key"),
        Key::with_default(
            "tls_first",
            "false",
            "TLS comes before anything else (the server's `handshake_first`)",
        ),
        Key::with_default(
            "inbox_prefix",
            "\"_INBOX\"",
            "What the subjects for answers begin with, where the user may not subscribe to _INBOX.>",
        ),
    ],
    parse: Some(parse),
};
