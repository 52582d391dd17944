//! What there is to say of `redis`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "redis",
    feature: Some("sink-redis"),
    about: "an entry for each event in a stream of Redis or Valkey",
    promise: "Exactly once, while the server keeps its data: one script adds the entries and moves the sink's mark, so nothing is lost and \
              nothing comes twice, whichever side is killed or cut off, and also if consumers delete entries after reading them",
    notes: "\
The field `event` has the body as Close sent it, or what a template or transform made of it. The others are closehook-seq, -type, -event-id, -key, \
-lead-id, -received-at and -source, of what another sink gave up (its dead_to) closehook-dead-sink, -dead-reason and -dead-attempts, and the headers that a \
transform returns; its subject is the stream. A replay, or a dead letter that is tried again, adds the entry again, with the same closehook-key.
`maxlen` trims each stream to about so many entries (XADD MAXLEN ~), whether anybody has read them or not.
The marks are in hashes that begin with closehook:mark: in the same database: leave them alone, and let no policy evict them (maxmemory-policy \
noeviction; what is full then makes the sink wait). How much of what it was given a server still has after it is killed, is said by its appendfsync, \
appendonly and save. One that comes back with older data is given again what it has lost; one that comes back empty, or whose mark is gone, \
is given only what is new, which is an error in log and status until a replay to the sink, or `closehook sinks resume`.
An event for which the name of the stream is empty, that of something else than a stream, or one that the user may not write, is a dead letter, and so is \
one that is longer than the server takes (proto-max-bulk-len). Everything else (no connection, login, rights, a replica, full memory, a disk that fails, a server that loads its data) makes \
the sink wait, says what to do, and costs no event anything.
In a cluster what is written together has to be in one slot: let `stream` begin with a name in braces, as in \"{close}:{{ object_type }}\"; the mark is kept \
there too, so adding braces later is another mark. `url` names any node; the one that has the slot is found by itself. Sentinels are not \
asked: name the primary, or what stands for it.",
    setup: "\
It needs Redis 6.2 or newer, or Valkey. A user that may do no more than is needed, with the names of its streams instead of ~close:
  ACL SETUSER closehook on >PASSWORD ~close ~closehook:mark:* +eval +evalsha +type +hmget +hset +xadd +xdel
Beside these +select where url names another database than 0, +info for what `check --probe` says of memory and disk, and +config|get where the \
server's proto-max-bulk-len is not its default.",
    example: r#"[[sinks]]
name = "stream"
type = "redis"
url = "rediss://redis.example.com:6379"
username = "closehook"
password_file = "credential:redis"
stream = "close"
maxlen = 1000000
"#,
    keys: &[
        Key::required(
            "url",
            "\"rediss://redis.example.com:6379\"",
            "redis://HOST:PORT/DATABASE, rediss:// with TLS, or a socket: unix:///run/redis/redis.sock?db=0",
        ),
        Key::optional("username", "\"closehook\"", "Who logs in; default: the default user").beside("password_file = \"credential:redis\""),
        Key::optional("password", "\"credential:redis\"", "That user's; better than in url").secret(),
        Key::required("stream", "\"close\"", "The key of the stream").template(),
        Key::optional("maxlen", "1000000", "About so many entries stay in a stream; default: all"),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "500", "Entries that one script adds, up to 2000: the server does nothing else meanwhile"),
                Key::with_default("bytes", "\"2 MiB\"", "Bytes of their bodies, roughly"),
                Key::with_default("wait", "\"0s\"", "How long a batch that is not full waits for more"),
            ],
            "What is added together",
        ),
        Key::optional("ca", "\"/etc/closehook/redis-ca.pem\"", "Trusted besides the system's authorities, with rediss://"),
        Key::optional("cert", "\"/etc/closehook/client.pem\"", "A client's certificate with its chain"),
        Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
    ],
    parse: Some(parse),
};
