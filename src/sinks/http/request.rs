//! The request: what the configuration says of its head, what the sink says, and the signature.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;

use super::message;
use crate::config::Table;
use crate::event::Delivery;
use crate::render::{Escape, Template};
use crate::sinks::common::message::{fits, made};

/// Names that, beside `proxy-*`, say how a request travels, or which one it is. Only the sink can know that.
const OWN: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// What the names begin with that the sink, or Close, gives a meaning.
const OWN_BEGINNINGS: [&str; 3] = ["closehook-", "close-sig-", "webhook-"];

/// A configured header.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub name: HeaderName,
    pub template: Template,
}

impl Header {
    /// The name of its key, as the engine renders it.
    pub(super) fn key(&self) -> String {
        format!("headers.{}", self.name)
    }
}

/// The configured headers. Faults go into the table.
pub(super) fn headers(table: &mut Table<'_>, configured: &BTreeMap<String, String>) -> Vec<Header> {
    let mut headers: Vec<Header> = Vec::new();
    if let Err(fault) = fits("headers", configured.len(), 0) {
        table.fault("headers", fault);
        return headers;
    }
    for (text, value) in configured {
        let template = match Template::parse(value, Escape::None) {
            Ok(template) => template,
            Err(fault) => {
                table.fault("headers", format!("\"{text}\": {fault}"));
                continue;
            }
        };
        let is_legal = !template.is_constant() || HeaderValue::try_from(value).is_ok();
        let (Ok(name), true) = (HeaderName::try_from(text), is_legal) else {
            table.fault(
                "headers",
                format!("\"{text}\" is no header, or its value has characters that can't be sent"),
            );
            continue;
        };
        if let Some(why) = belongs_to_the_sink(name.as_str()) {
            table.fault("headers", format!("\"{text}\" {why}: leave it out"));
        }
        if headers.iter().any(|header| header.name == name) {
            table.fault(
                "headers",
                format!("\"{text}\" is given more than once: upper and lower case are the same"),
            );
        }
        headers.push(Header { name, template });
    }
    let written = headers.iter().filter(|header| header.template.is_constant());
    let written = written.map(|header| header.name.as_str().len() + header.template.source().len());
    if let Err(fault) = fits("headers", headers.len(), written.sum()) {
        table.fault("headers", fault);
    }
    headers
}

/// A value as it can be sent. They often are credentials, and are treated so.
pub(super) fn value(text: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(message::value(text)).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The configured headers as they are for an event, and those that its transform adds, which win. An error is one sentence.
pub(super) fn made_headers(configured: &[Header], delivery: &Delivery) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for header in configured {
        headers.insert(
            header.name.clone(),
            value(delivery.text(&header.key(), &header.template)),
        );
    }
    for (name, text) in made(delivery)? {
        let name = made_name(name)
            .ok_or("a header that the transform makes has no name of one: letters without accents, digits, - and _")?;
        if let Some(why) = belongs_to_the_sink(name.as_str()) {
            return Err(format!("the header {name} that the transform makes {why}"));
        }
        headers.insert(name, value(text));
    }
    let len = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    fits("headers", headers.len(), len.sum())?;
    Ok(headers)
}

/// A name that an event may have had a part in: what stands in one of HTTP may have a meaning where it arrives.
fn made_name(text: &str) -> Option<HeaderName> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    HeaderName::try_from(text).ok().filter(|_| is_plain)
}

/// Whether a header says who we are.
pub(super) fn is_credential(name: &HeaderName) -> bool {
    const PARTS: [&str; 7] = [
        "authorization",
        "cookie",
        "api-key",
        "apikey",
        "auth-key",
        "token",
        "secret",
    ];
    let name = name.as_str().replace('_', "-");
    PARTS.iter().any(|part| name.contains(part))
}

/// Why a header, by its name in lower case, can't be configured.
fn belongs_to_the_sink(name: &str) -> Option<&'static str> {
    // Behind many a server (CGI, WSGI, PHP) these are the same.
    let name = &*name.replace('_', "-");
    match name {
        "host" => Some("follows from url"),
        "proxy-authorization" => Some("follows from proxy (http://USER:PASSWORD@HOST:PORT)"),
        "idempotency-key" => Some("is the event's, and the sink's to say"),
        _ if OWN.contains(&name) || name.starts_with("proxy-") => {
            Some("says how the request travels, and is the sink's to say")
        }
        _ if OWN_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) => {
            Some("is the sink's to say (webhook-*, closehook-*), or Close's (close-sig-*: set forward_signature)")
        }
        _ => None,
    }
}

/// What Standard Webhooks' libraries do not verify with, although it signs.
pub(super) fn warning(secret: &str) -> Option<&'static str> {
    (!secret.starts_with("whsec_")).then_some(
        "its secret does not begin with whsec_: it is used as it is written, and receivers with a Standard Webhooks library, which take it for \
         base64, refuse every signature; make one with: echo whsec_$(openssl rand -base64 32)",
    )
}

/// The key of a Standard Webhooks secret: base64 behind `whsec_`, else the text itself. An error never holds a part of it.
pub(super) fn signing_key(secret: &str) -> Result<Vec<u8>, String> {
    // A signature begins so, with a version; a secret never does.
    let is_versioned = secret.split_once(',').is_some_and(|(version, _)| {
        let digits = version.strip_prefix('v').unwrap_or_default();
        digits.starts_with(|c: char| c.is_ascii_digit()) && digits.chars().all(|c| c.is_ascii_alphanumeric())
    });
    if is_versioned {
        return Err("the secret begins like a signature (\"v1,\"): write whsec_ and what follows it".into());
    }
    if secret.starts_with("whsk_") || secret.starts_with("whpk_") {
        return Err(
            "the secret is a key for asymmetric signatures (whsk_, whpk_), which are not made: use one with whsec_"
                .into(),
        );
    }
    match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .map_err(|_| "the secret behind whsec_ is not base64".into()),
        None => Ok(secret.as_bytes().to_vec()),
    }
}

/// `webhook-signature` (Standard Webhooks, symmetric).
pub(super) fn sign(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return String::new();
    };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}
