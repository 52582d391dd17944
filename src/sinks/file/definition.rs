//! What there is to say of `file`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "file",
    feature: None,
    about: "one JSON line per event",
    promise: "Exactly once: what was written after the last saved position is cut off after a crash, and written again",
    notes: "\
The path is a regular file, one that can be made, or a link to such: what it leads to is rotated beside itself. Owner (for root), \
group, mode and access list go along to the new file and the compressed one. What is more than `keep` goes first, then the rest is \
compressed; a file with which that fails is named in the log and stops no other. What a template or a transform makes can't be told \
from lines of others, so that none of it is cut off: after a crash it may stand there twice.",
    setup: "The directory must be one that the daemon's user can write to.",
    example: r#"[[sinks]]
name = "audit"
type = "file"
path = "/var/log/closehook/events.jsonl"
"#,
    keys: &[
        Key::required("path", "\"/var/log/closehook/events.jsonl\"", "The file"),
        Key::table(
            "rotate",
            &[
                Key::optional("size", "\"100 MiB\"", "A new file begins when it has so much"),
                Key::optional("age", "\"1d\"", "A new file begins when it is so old"),
                Key::optional("keep", "30", "So many rotated files stay; default: all"),
                Key::with_default("compress", "true", "Whether rotated files are compressed (gzip)"),
            ],
            "When a new file is begun, and what becomes of the old ones; default: never",
        ),
    ],
    parse: Some(parse),
};
