//! An answer as it comes: read whole, within limits, and what it says where it is no good one.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};

use super::budget::{self, RateLimit};
use super::error::Error;
use crate::json::{self, Node};
use crate::net::http::root_cause;

/// How long one request may take in all.
pub(in crate::close) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A page of 50 events, each with a body of some megabytes at the most: more than this is no answer of Close's.
const ANSWER_LEN_MAX: usize = 256 << 20;

/// A whole answer.
#[derive(Debug)]
pub(in crate::close) struct HttpAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Sends a request and reads the whole answer.
pub(in crate::close) async fn receive(request: reqwest::RequestBuilder, host: &str) -> Result<HttpAnswer, Error> {
    let mut response = request.send().await.map_err(|error| unanswered(&error, host))?;
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unanswered(&error, host))? {
        if body.len() + chunk.len() > ANSWER_LEN_MAX {
            return Err(Error::Garbled("it does not end".into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(HttpAnswer {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
    })
}

fn unanswered(error: &reqwest::Error, host: &str) -> Error {
    let cause = root_cause(error);
    if error.is_connect() {
        let cause = if error.is_timeout() {
            "it took too long".to_owned()
        } else {
            cause
        };
        Error::Unreachable {
            host: host.to_owned(),
            cause,
        }
    } else if error.is_timeout() {
        Error::TimedOut(REQUEST_TIMEOUT)
    } else {
        Error::NoAnswer(cause)
    }
}

impl HttpAnswer {
    pub(super) fn limit(&self) -> Option<RateLimit> {
        let lines = self.headers.get_all("ratelimit").iter();
        let texts: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
        RateLimit::parse(&texts.join(","))
    }

    /// Of a 429, when to come again. `reset` is the better one (Close's documentation); whatever is missing costs a second.
    pub(super) fn comes_back_in(&self, now: Timestamp) -> Duration {
        let after = || budget::retry_after(self.headers.get(RETRY_AFTER)?.to_str().ok()?, now);
        let reset = self.limit().map(|limit| limit.reset);
        // To come again at once is what was refused just now.
        let reset = reset.filter(|reset| !reset.is_zero());
        reset.or_else(after).unwrap_or(Duration::from_secs(1))
    }

    /// Whether Close itself may have said this, as far as an answer can show: Close speaks JSON, whatever it has to say. What stands in front
    /// of it has pages, and what those say of keys, plans, limits and the time is not Close's. The way there is `base_url`'s: over TLS to that
    /// host, and no redirect is followed.
    pub(super) fn is_closes(&self) -> bool {
        self.has_members() && !self.is_text() && json::validate(&self.body).is_ok()
    }

    /// Whether it begins as JSON with something in it does.
    pub(super) fn has_members(&self) -> bool {
        matches!(self.body.trim_ascii_start().first(), Some(b'{' | b'['))
    }

    /// Whether it is something that people read.
    pub(super) fn is_text(&self) -> bool {
        let says = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        says.starts_with("text/") || self.body.trim_ascii_start().first() == Some(&b'<')
    }

    pub(super) fn not_close(&self) -> Error {
        let start: String = String::from_utf8_lossy(&self.body)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(60)
            .collect();
        Error::NotClose {
            status: self.status.as_u16(),
            start: start.replace('"', "'"),
        }
    }

    /// Close's `error`, `errors` and `field-errors` in one line; empty where it gives none.
    pub fn faults(&self) -> String {
        let Ok(text) = json::validate(&self.body) else {
            return String::new();
        };
        let node = Node::new(text);
        let mut line = String::new();
        let mut add = |place: &str, node: Node<'_>| {
            let text = node
                .as_string()
                .map_or_else(|| json::compact(node.raw()), std::borrow::Cow::into_owned);
            let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            if !text.is_empty() && line.len() < 1000 {
                let separator = if line.is_empty() { "" } else { "; " };
                let _ = write!(line, "{separator}{place}{text}");
            }
        };
        for name in ["error", "error_description"] {
            if let Some(error) = node.get(name) {
                add("", error);
            }
        }
        for error in node.get("errors").into_iter().flat_map(Node::elements) {
            add("", error);
        }
        for (field, error) in node.get("field-errors").into_iter().flat_map(Node::entries) {
            add(&format!("{}: ", field.as_string().unwrap_or_default()), error);
        }
        line
    }
}

/// The text of an answer that was found valid.
pub(in crate::close) fn text(body: &Bytes) -> Result<&str, Error> {
    std::str::from_utf8(body).map_err(|error| Error::Garbled(error.to_string()))
}
