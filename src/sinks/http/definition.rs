//! What there is to say of `http`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "http",
    feature: None,
    about: "a request with the body as Close sent it",
    promise: "At least once: the key is in `webhook-id` and `idempotency-key`",
    notes: "\
The status is the answer: 2xx is delivered, whatever else the receiver says. 401, 403, 407 and 429 say that it takes nothing now \
(retry-after, in seconds or as a date in any of HTTP's forms, is honoured up to a day), and why it answers 401, where its JSON says so (message, error, ...), \
stands in log and status, up to 200 characters without words that the request's body has too, unless an event makes the host; a redirect that the receiver \
has moved, for every event: set the final `url`; 408, 425 and 5xx are tried again; any other 4xx are dead letters, which keep the first 2 KiB of what it said, with \"(secret)\" for what it was sent in secret: \
user, password, token, header values, the query, and parts of the path that could be a token. A receiver that sends without end, and \
no answer, is cut off at `timeout`; a head of more than 1,024 lines is no answer.
Each request says webhook-id, webhook-timestamp, idempotency-key, and of its event closehook-seq, -type, -event-id, -key, -lead-id, \
-received-at, -source and -attempt, as far as it has them, and of what another sink gave up (its dead_to) -dead-sink, -dead-reason and \
-dead-attempts. All but visible ASCII has percent signs there (a % is %25), and what is \
longer than 512 bytes ends with ~ and its SHA-256.
`secret` should be whsec_ and base64: the libraries of Standard Webhooks verify no other. One without whsec_ signs with its text as it \
is, and is warned of; \"v1,...\" is a signature, no secret, and is refused.
`headers` may be any but those that are the sink's to say: host, content-length, transfer-encoding, connection, keep-alive, te, \
trailer, upgrade, expect, http2-settings, via, proxy-*, idempotency-key, webhook-*, close-sig-*, closehook-*.
`url`, `method` and the values of `headers` may be templates. What an event fills into `url` behind the host has percent signs for all \
but letters, digits and -._~, so that it is one part of the path or a value of the query (`| safe` lets it stand as it is); where it makes \
a part of the path . or .., it is a dead letter. Control characters in a header made so have percent signs. Where a \
template makes the host, private addresses are refused whatever it makes, unless `allow_private` is true (by way of a proxy, which resolves names itself: as far as \
it can be seen from here; names without dots, localhost and .internal, say, are refused too), no `auth`, `cert` or header with \
credentials may be configured, and what fails there, or whatever that server says but 2xx and a 4xx about what was sent, is about the \
event, not the sink: it is tried again.
`auth` is \"bearer\" (`token`), \"basic\" (`username`, `password`) or \"oauth2\" (client credentials: `token_url`, `client_id`, \
`client_secret`, `scope`, `audience`). A token is fetched before the old one expires, and once when the receiver answers 401; without \
one the sink is unavailable.
`batch` sends several events in one request, as `format` says: \"json_array\" or \"jsonl\". webhook-id and idempotency-key are then b_ \
and the first 32 hex digits of the SHA-256 of the events' keys in order, each followed by a line feed; closehook-* is left out. A \
receiver has to take or refuse a batch as a whole: one that it refuses (4xx), or fails over (500 and other 5xx), is sent again by halves, so that \
a bad event costs only itself: refused alone it is a dead letter, and it is tried again if the receiver fails over it alone. One that fails over \
all of them takes nothing now, and so does one that answers a batch with 502, 503 or 504, or with a 5xx and retry-after: no more is sent until then. \
If it then takes an event alone and answers the next batch so too, that is sent by halves as well. An event over which it failed alone goes alone from then on. Events that are sent again come in \
other batches, under another key: a receiver knows them only by the ids in the body. With order = \"strict\" nothing is sent that follows \
an event to be tried again.
`ca` is an authority, or the receiver's own certificate, of which neither name nor date matters then.",
    setup: "\
The receiver needs the secret to verify signatures. To make one:
  echo whsec_$(openssl rand -base64 32)",
    example: r#"[[sinks]]
name = "crm-db"
type = "http"
url = "https://example.com/hook"
secret_file = "credential:crm-db"
"#,
    keys: &[
        Key::required("url", "\"https://example.com/hook\"", "Where it goes").template(),
        Key::optional("method", "\"PUT\"", "POST, PUT, PATCH or DELETE; default: POST").template(),
        Key::optional("secret", "\"credential:crm-db\"", "Signs as Standard Webhooks").secret(),
        Key::with_default("forward_signature", "false", "Also sends Close's own signature headers"),
        Key::with_default(
            "allow_private",
            "false",
            "Private and link-local addresses are refused unless this is true",
        ),
        Key::optional(
            "headers",
            "{ x-team = \"sales\", content-type = \"application/json\" }",
            "Further headers",
        )
        .template(),
        Key::optional("auth", "\"oauth2\"", "Who this side says it is: \"bearer\", \"basic\" or \"oauth2\""),
        Key::optional("token", "\"credential:crm-db-token\"", "With auth = \"bearer\"").secret().beside("auth = \"bearer\""),
        Key::optional("username", "\"closehook\"", "With auth = \"basic\"").beside("auth = \"basic\""),
        Key::optional("password", "\"credential:crm-db-password\"", "With auth = \"basic\"").secret().beside("auth = \"basic\""),
        Key::optional("token_url", "\"https://login.example.com/oauth/token\"", "With auth = \"oauth2\"").beside("auth = \"oauth2\""),
        Key::optional("client_id", "\"closehook\"", "With auth = \"oauth2\"").beside("auth = \"oauth2\""),
        Key::optional("client_secret", "\"credential:crm-db-client\"", "With auth = \"oauth2\"").secret().beside("auth = \"oauth2\""),
        Key::optional("scope", "\"events:write\"", "With auth = \"oauth2\", where its server wants it").beside("auth = \"oauth2\""),
        Key::optional("audience", "\"https://example.com/\"", "With auth = \"oauth2\", where its server wants it").beside("auth = \"oauth2\""),
        Key::table(
            "batch",
            &[
                Key::with_default("events", "100", "At most so many in a request"),
                Key::with_default("bytes", "\"1 MiB\"", "None joins a request that has so many"),
                Key::with_default("wait", "\"1s\"", "How long a request that is not full waits for more"),
            ],
            "Several events in a request; default: one",
        )
        .off(),
        Key::optional("format", "\"json_array\"", "How a batch is written: or \"jsonl\", one on each line").beside("batch = {}"),
        Key::optional("proxy", "\"http://proxy.example.com:3128\"", "An HTTP proxy on the way"),
        Key::optional("ca", "\"/etc/closehook/internal-ca.pem\"", "Trusted besides the system's"),
        Key::optional(
            "cert",
            "\"/etc/closehook/client.pem\"",
            "A client's certificate with its chain; a reload takes files that have changed",
        ),
        Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
    ],
    parse: Some(parse),
};
