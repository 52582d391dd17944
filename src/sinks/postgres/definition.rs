//! What there is to say of `postgres`.

use super::parse;
use crate::config::{Key, SinkType};
use crate::sinks::common::layout::BATCH;

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "postgres",
    feature: Some("sink-postgres"),
    about: "a row for each event, or for each object, in a table of a PostgreSQL database",
    promise: "Exactly once: rows and the sink's mark are one transaction, so nothing is lost and nothing comes twice, whichever side \
              is killed or cut off, and also if you delete rows after reading them",
    notes: "\
Without `mode` and `columns` the table has a row for each event. One that is there already is left alone; a replay or a retried dead \
letter writes it anew. Its columns: seq bigint, id \
text, date_updated text, received_at timestamptz, type text (object_type.action), object_id text, lead_id text, source text, event \
jsonb; UNIQUE (id, date_updated). What jsonb can't hold (\\u0000, halves of surrogate pairs) is U+FFFD there, a number beyond numeric a \
string; the log has it as it came.
`columns` names columns of your own, each with a template; a replay or a retried letter inserts again. The server casts what a \
template makes to the column's type. A template that is one expression (`{{ data.value }}`) gives its value: null is NULL, and so is an \
`if` without `else` that does not hold; an empty text is an empty text; objects and arrays are JSON, and in a json or jsonb column a \
text is a JSON string. Any other template gives its text, which is JSON as it stands in such a column, and NULL where that is empty; so \
does an expression that ends in `| tojson`. A number that is whole however it is written (12.0, 1e2) is one for an integer column, which \
refuses any other. A date without an offset is UTC's: transactions have TimeZone UTC, whatever the server or the role has, for defaults \
and triggers too. `create` makes the table with the types given, else text. In a table that is there, what `columns` leaves out gets its default. A trigger that \
raises an exception (P0001) refuses that event: its message, which may quote the event, is not logged, and stands in the dead letter. A template or transform \
beside `columns` is not written; a transform decides whether there is a row.
Without `columns`, and with a template or transform (the sink's or a rule's), the keys of the JSON object that it makes are the columns, \
and its values theirs; the table must be there. An event whose object has a key that is no column is refused.
`mode = \"latest\"` has a row for each object_id: object_id text PRIMARY KEY, type text (object_type), lead_id text, date_updated \
timestamptz, deleted_at timestamptz, merged_into text, seq bigint, event jsonb. The newest revision stays, by date_updated, of equal ones \
by seq, in whatever order they come, and a replay changes nothing that is newer. A deletion sets deleted_at. `lead.merged` sets \
merged_into and deleted_at of the lead that is no more; where nothing else is known of it, date_updated, seq and event are NULL. Events \
without object_id are skipped; a transform only decides which are.
The marks are in closehook_mark in the same schema: leave them alone. A database that was put \
back to an earlier state gets what it has lost; in one that was put back empty, or whose mark is gone, only new events go on, which is \
an error in log and status until a replay to the sink, or `closehook sinks resume`.
`url` is libpq's, with sslmode (disable, allow, prefer, require, verify-ca, verify-full), sslrootcert, sslcert, sslkey and \
target_session_attrs; libpq's variables and files are not read.",
    setup: "\
It needs PostgreSQL 9.6 or newer. Rights, where the user may not make the tables itself (create = false; make them as above, and \
closehook_mark (log_id text, sink text, epoch text, seq bigint, mark text, updated_at timestamptz, PRIMARY KEY (log_id, sink)), all NOT \
NULL):
  GRANT SELECT, INSERT, UPDATE ON closehook_events, closehook_mark TO closehook;
With mode = \"latest\" the same on closehook_latest; a table with columns, or of what a transform makes, needs INSERT alone:
  GRANT INSERT ON deals TO closehook;",
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
            "mode",
            "\"events\"",
            "A row for each event, or with \"latest\" for each object, its newest revision",
        ),
        Key::optional(
            "table",
            "\"crm.deals\"",
            "As the server keeps the name: case counts; default closehook_events, with mode = \"latest\" closehook_latest",
        ),
        Key::optional(
            "columns",
            "{ lead = \"{{ lead_id }}\", value = { type = \"numeric\", value = \"{{ data.value }}\" } }",
            "The table's columns, and what makes their values",
        )
        .template(),
        Key::with_default("create", "true", "Make the tables where they are missing"),
        BATCH,
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
