//! What there is to say of `postgres`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "postgres",
    feature: Some("sink-postgres"),
    about: "a row for each event in a table of a PostgreSQL database",
    promise: "Exactly once: rows and the sink's mark are one transaction, so nothing is lost and nothing comes twice, whichever side \
              is killed or cut off, and also if you delete rows after reading them",
    notes: "\
A row that is there already is left alone; a replay or a retried dead letter writes it anew. Columns of the table: seq bigint, id \
text, date_updated text, received_at timestamptz, type text (object_type.action), object_id text, lead_id text, source text, event \
jsonb; UNIQUE (id, date_updated). What jsonb can't hold (\\u0000, halves of surrogate pairs) is U+FFFD there, a number beyond numeric a \
string; the log has it as it came. The marks are in closehook_mark in the same schema: leave them alone. A database that was put \
back to an earlier state gets what it has lost; in one that was put back empty, or whose mark is gone, only new events go on, which is \
an error in log and status until a replay to the sink, or `closehook sinks resume`.
`url` is libpq's, with sslmode (disable, allow, prefer, require, verify-ca, verify-full), sslrootcert, sslcert, sslkey and \
target_session_attrs; libpq's variables and files are not read.",
    setup: "\
It needs PostgreSQL 9.6 or newer. Rights, where the user may not make the tables itself (create = false; make them as above, and \
closehook_mark (log_id text, sink text, epoch text, seq bigint, mark text, updated_at timestamptz, PRIMARY KEY (log_id, sink)), all NOT \
NULL):
  GRANT SELECT, INSERT, UPDATE ON closehook_events, closehook_mark TO closehook;",
    example: r#"[[sinks]]
name = "warehouse"
type = "postgres"
url = "postgres://closehook@db.example.com/crm?sslmode=verify-full"
password_file = "credential:warehouse"
"#,
    keys: &[
        Key::required(
            "url",
            "\"postgres://closehook@db.example.com/crm?sslmode=verify-full\"",
            "The server and the database",
        ),
        Key::optional("password", "\"credential:warehouse\"", "Better than in url").secret(),
        Key::with_default(
            "table",
            "\"closehook_events\"",
            "Or \"schema.table\", as the server keeps the name: case counts",
        ),
        Key::with_default("create", "true", "Make the tables where they are missing"),
        Key::optional(
            "ca",
            "\"/etc/closehook/db-ca.pem\"",
            "Only servers with a certificate from there, or this one; default: the system's authorities",
        ),
        Key::optional("cert", "\"/etc/closehook/db-client.pem\"", "A client's certificate"),
        Key::optional("key", "\"/etc/closehook/db-client.key\"", "Its key"),
    ],
    parse: Some(parse),
};
