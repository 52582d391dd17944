//! An answer with its body: what servers are asked for that say something beside their status.

use std::borrow::Cow;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode};
use jiff::Timestamp;

use super::date::http_date;
use super::http::root_cause;

/// More of a body is not read: it is no answer of the servers that are asked for one.
pub const BODY_LEN_MAX: usize = 1 << 20;

/// What is to be read behind a head, or why nothing can be.
pub type Body = Result<Incoming, String>;

/// An answer, as far as it was there in time.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status, which says whether what was asked for was done.
    pub status: StatusCode,
    /// The head.
    pub headers: HeaderMap,
    /// The body, or its beginning.
    pub body: Vec<u8>,
    /// How the body ended.
    pub end: End,
}

/// How a body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// There is more than [`BODY_LEN_MAX`].
    TooLong,
    /// It broke off, or did not come in time. A sentence, which may hold what the server said.
    Cut(String),
}

impl Reply {
    /// Its head, and what is to be read.
    pub(super) fn begun(answer: Response<Body>) -> (Reply, Body) {
        let (head, body) = answer.into_parts();
        let reply = Reply {
            status: head.status,
            headers: head.headers,
            body: Vec::new(),
            end: End::Whole,
        };
        (reply, body)
    }

    /// Reads on, for as long as it takes.
    pub(super) async fn read_on(&mut self, body: &mut Incoming) -> End {
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(chunk)) => self.body.extend_from_slice(&chunk),
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => return End::Cut(format!("the request failed: {}", root_cause(&error))),
            }
            if self.body.len() > BODY_LEN_MAX {
                return End::TooLong;
            }
        }
        End::Whole
    }

    /// The body as text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// What keeps the body from being one that can be judged, in a sentence.
    pub fn lacks(&self) -> Option<&str> {
        match &self.end {
            End::Whole => None,
            End::TooLong => Some("the receiver's answer is too long"),
            End::Cut(why) => Some(why),
        }
    }

    /// When the server wants to be asked again, from now.
    pub fn after(&self) -> Option<Duration> {
        retry_after(&self.headers, Timestamp::now())
    }
}

/// `retry-after`, in seconds or as a date (RFC 9110, 10.2.3). How long is honoured is the engine's to say.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = http_date(text, now)?;
    // What has passed is now.
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}
