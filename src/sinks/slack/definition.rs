//! What there is to say of `slack`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "slack",
    feature: Some("sink-slack"),
    about: "a message for each event, over an incoming webhook or as an app",
    promise: "At least once: Slack knows no key, an app's message carries it in its metadata (`closehook_event`)",
    notes: "\
Without `text`, `blocks`, template or transform the message is a sentence that says what has happened, with a link to the lead: \
\"Opportunity of Acme moved from Active to Won (12,000 USD)\", and of what another sink gave up (its dead_to) why, which the \
metadata has too. What comes from the event is escaped: it pings nobody and makes no link of its own \
(Slack itself turns an address that begins with http into one; nothing of what is there is shown). \
A transform may return an object with text, blocks and attachments.
What Slack says of one message (no_text, invalid_blocks, msg_too_long, ...) makes a dead letter. What it says of the webhook, the token, \
the channel or the workspace makes the sink wait, says what to do, and costs no event anything; so do 429, whose retry-after is honoured, \
and a connection that fails. Where `channel` depends on the event, what is wrong with the channel is about that event.
Slack takes about one message a second for each channel: that is the default of `rate` here.",
    setup: "\
A webhook: at https://api.slack.com/apps make an app, Incoming Webhooks, Add New Webhook to Workspace; the URL is a secret.
An app: give it the bot scope chat:write (and chat:write.public for public channels that it was not invited to), install it, take the \
Bot User OAuth Token (xoxb-...), and invite it to the channel:
  /invite @closehook",
    example: r#"[[sinks]]
name = "sales-chat"
type = "slack"
webhook_url_file = "credential:slack"
"#,
    keys: &[
        Key::optional("webhook_url", "\"credential:slack\"", "The URL of an incoming webhook; or set token and channel").secret(),
        Key::optional("token", "\"credential:slack-token\"", "The app's Bot User OAuth Token").secret(),
        Key::optional("channel", "\"C0123456789\"", "Where an app posts: a channel's id or name").template(),
        Key::optional("text", "\"{{ data.display_name }} has changed\"", "The message, in Slack's mrkdwn").template(),
        Key::optional(
            "blocks",
            "'[{\"type\": \"section\", \"text\": {\"type\": \"plain_text\", \"text\": {{ data.name | tojson }}}}]'",
            "JSON of Block Kit, once it is filled in; text is what notifications show then",
        )
        .template(),
        Key::with_default("api_url", "\"https://slack.com/api/\"", "The API of Slack, for an app"),
        Key::with_default(
            "allow_private",
            "false",
            "Private and link-local addresses are refused unless this is true",
        ),
        Key::optional("proxy", "\"http://proxy.example.com:3128\"", "An HTTP proxy on the way"),
        Key::optional("ca", "\"/etc/closehook/internal-ca.pem\"", "Trusted besides the system's authorities"),
        Key::optional("cert", "\"/etc/closehook/client.pem\"", "A client's certificate with its chain"),
        Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
    ],
    parse: Some(parse),
};
