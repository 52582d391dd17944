//! What there is to say of `sqlite`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "sqlite",
    feature: Some("sink-sqlite"),
    about: "a row for each event in a table of an SQLite database",
    promise: "Exactly once: rows and the sink's mark are one transaction",
    notes: "\
The table is that of a postgres sink: seq integer, all else text. Each commit is synced, in WAL mode. Others may read and delete \
meanwhile; who holds a lock on it for long holds up the sink.",
    setup: "The directory must be one that the daemon's user can write to.",
    example: r#"[[sinks]]
name = "local"
type = "sqlite"
path = "/var/lib/closehook/events.db"
"#,
    keys: &[
        Key::required("path", "\"/var/lib/closehook/events.db\"", "The database's file"),
        Key::with_default("table", "\"closehook_events\"", "The table, without a schema"),
        Key::with_default("create", "true", "Make file and tables where they are missing"),
    ],
    parse: Some(parse),
};
