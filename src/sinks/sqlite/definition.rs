//! What there is to say of `sqlite`.

use super::parse;
use crate::config::{Key, SinkType};
use crate::sinks::common::layout::BATCH;

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "sqlite",
    feature: Some("sink-sqlite"),
    about: "a row for each event, or for each object, in a table of an SQLite database",
    promise: "Exactly once: rows and the sink's mark are one transaction",
    notes: "\
`columns`, what a template or transform makes, and `mode = \"latest\"` are as for postgres; the tables are the same, with seq integer, all \
else text. What a column is declared as decides what a value becomes, or the type that `columns` gives: true and false are 1 and 0 \
but in a text column; SQLite keeps as a text what it can make no number of, but in a STRICT table, where that refuses the event. A column of numbers \
(INTEGER, REAL, NUMERIC, ...) keeps a whole number of more than 64 bits, and one with a point, as a double, which has some 15 digits, and \
one that is too large for that (1e400) as infinite: a TEXT column keeps every digit, and one declared BLOB or ANY keeps as a text a whole \
number that is too long, and one that is too large.
Each commit is synced, in WAL mode. Others may read and delete \
meanwhile; who holds a lock on it for long holds up the sink.",
    setup: "The directory must be one that the daemon's user can write to.",
    example: r#"[[sinks]]
name = "local"
type = "sqlite"
path = "/var/lib/closehook/events.db"
"#,
    keys: &[
        Key::required("path", "\"/var/lib/closehook/events.db\"", "The database's file"),
        Key::with_default(
            "mode",
            "\"events\"",
            "A row for each event, or with \"latest\" for each object, its newest revision",
        ),
        Key::optional(
            "table",
            "\"deals\"",
            "Without a schema; default closehook_events, with mode = \"latest\" closehook_latest",
        ),
        Key::optional(
            "columns",
            "{ lead = \"{{ lead_id }}\", value = { type = \"numeric\", value = \"{{ data.value }}\" } }",
            "The table's columns, and what makes their values",
        )
        .template(),
        Key::with_default("create", "true", "Make file and tables where they are missing"),
        BATCH,
    ],
    parse: Some(parse),
};
