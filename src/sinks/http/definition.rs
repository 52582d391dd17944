//! What there is to say of `http`.

use super::parse;
use crate::config::{Key, SinkType};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "http",
    feature: None,
    about: "POST of the body as Close sent it",
    promise: "At least once: the key is in `webhook-id` and `idempotency-key`",
    notes: "\
The status is the answer: 2xx is delivered, whatever else the receiver says. 401, 403, 407 and 429 say that it takes nothing now \
(retry-after, in seconds or as a date in any of HTTP's forms, is honoured up to a day); 408, 425 and 5xx are tried again; any other \
4xx and redirects are dead letters, which keep the first 2 KiB of what it said, with \"(secret)\" for what it was sent in secret: \
user, password, header values, the query, and parts of the path that could be a token.
`secret` should be whsec_ and base64: the libraries of Standard Webhooks verify no other. One without whsec_ signs with its text as it \
is, and is warned of; \"v1,...\" is a signature, no secret, and is refused.
`headers` may be any but those that are the sink's to say: host, content-length, transfer-encoding, connection, keep-alive, te, \
trailer, upgrade, expect, http2-settings, via, proxy-*, idempotency-key, webhook-*, close-sig-*, closehook-*.
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
        Key::required("url", "\"https://example.com/hook\"", "Where it goes"),
        Key::optional("secret", "\"credential:crm-db\"", "Signs as Standard Webhooks").secret(),
        Key::with_default("forward_signature", "false", "Also sends Close's own signature headers"),
        Key::with_default(
            "allow_private",
            "false",
            "Private and link-local addresses are refused unless this is true",
        ),
        Key::optional(
            "headers",
            "{ authorization = \"Bearer ...\", content-type = \"application/json\" }",
            "Further headers",
        ),
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
