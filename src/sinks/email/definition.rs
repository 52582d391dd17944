//! What there is to say of `email`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "email",
    feature: Some("sink-email"),
    about: "a mail for each event, or one for what came within a time",
    promise: "At least once: the message id follows from the key, so that mailboxes see a repeat, and `closehook-key` is the key",
    notes: "\
Without `subject` and `text` a mail says in a sentence what has happened, with a link to the lead, and of what another sink gave up \
(its dead_to) why; the head says so too, in closehook-dead-reason, -dead-sink and -dead-attempts. An event can add nothing to a mail's \
head. A rule's template or transform makes the text; a transform may set headers that begin with x-.
`digest` makes one mail of what came within that time from its first event on: it lists 100 events, by a sentence each or by what a \
template or transform made of them, and counts the rest; more than 2000 within the time make another mail. Meanwhile nothing is held in memory, \
and nothing is lost when the daemon is killed: the same events make the same mail. What is delivered by a digest waits, and counts in the sink's lag. \
Beside `digest`, subject, text and html see `events` (the first 100 of them, up to 2 MiB), `count` and `more` (how many are not among these), \
and to has nothing to fill in; `closehook render` shows a digest of one event.
A refusal of a mail or of a recipient (5xx) makes a dead letter; in a digest it is found out which event it was. A refused login or \
sender, a full disk, a limit (421, 452, ...) and a connection that fails make the sink wait and cost no event anything; a recipient or a mail \
that is put off (450, 451, and 452 to a recipient who is another one for each event, or whose mailbox is full: 4.2.2) makes that mail wait, and so does a server that is silent, or gone, once it was told a recipient: it may have the mail, \
so a repeat comes later each time.
Over smtp:// nothing is sent before STARTTLS, unless `insecure` is true: then TLS is used where the server offers it, whoever it is. \
`ca` is an authority, or the server's own certificate.",
    setup: "\
An account that may send as `from`; where there is two-factor login, a password for apps. The server's port is 587 (smtp://, STARTTLS) \
or 465 (smtps://).",
    example: r#"[[sinks]]
name = "sales-mail"
type = "email"
server = "smtp://mail.example.com:587"
username = "closehook@example.com"
password_file = "credential:mail"
from = "closehook <closehook@example.com>"
to = ["sales@example.com"]
"#,
    keys: &[
        Key::required(
            "server",
            "\"smtp://mail.example.com:587\"",
            "smtp://HOST:587 with STARTTLS, or smtps://HOST:465",
        ),
        Key::with_default("insecure", "false", "Sends in plain text where the server offers no TLS (smtp:// only)"),
        Key::optional("username", "\"closehook@example.com\"", "Who logs in (PLAIN or LOGIN)"),
        Key::optional("password", "\"credential:mail\"", "That user's").secret(),
        Key::required("from", "\"closehook <closehook@example.com>\"", "One address"),
        Key::required("to", "[\"sales@example.com\"]", "Addresses; one that is empty for an event is left out, and what is filled in makes one at the most").template(),
        Key::optional("subject", "\"{{ data.display_name }} has changed\"", "A line").template(),
        Key::optional("text", "\"{{ data.display_name }} is {{ data.status_label }} now\"", "The mail as plain text").template(),
        Key::optional("html", "\"<p>{{ data.display_name }}</p>\"", "The same as HTML, beside the text; values are escaped").template(),
        Key::optional("digest", "\"1h\"", "One mail for what came within that time"),
        Key::optional("ca", "\"/etc/closehook/mail-ca.pem\"", "Trusted besides the system's authorities"),
        Key::optional("cert", "\"/etc/closehook/client.pem\"", "A client's certificate with its chain"),
        Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
    ],
    parse: Some(parse),
};
