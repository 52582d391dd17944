//! The answers of the public listener, as they are sent and as they are counted.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::log::Appended;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Seconds after which a refused sender is asked to come again.
const RETRY_AFTER_SECONDS: &str = "5";

/// Every answer of the public listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Appended(Appended),
    Unauthorized,
    TooLarge,
    NotFound,
    MethodNotAllowed,
    Timeout,
    BadBody,
    Unavailable(Why),
}

/// Why nothing can be stored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Full,
    Failing,
    Overloaded,
    Stopping,
    NoRoom,
    Slow,
}

impl Why {
    /// A stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Why::Full => "full",
            Why::Failing => "failing",
            Why::Overloaded => "overloaded",
            Why::Stopping => "stopping",
            Why::NoRoom => "no_room",
            Why::Slow => "slow",
        }
    }

    /// For the sender.
    fn text(self) -> &'static str {
        match self {
            Why::Full => "the disk is full",
            Why::Failing => "events can't be stored now",
            Why::Overloaded => "too many events are waiting",
            Why::Stopping => "shutting down",
            Why::NoRoom => "too many bodies are being received",
            Why::Slow => "storing took too long",
        }
    }
}

impl Answer {
    /// A stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Answer::Appended(Appended::Stored(_)) => "stored",
            Answer::Appended(Appended::Duplicate(_)) => "duplicate",
            Answer::Appended(Appended::Quarantined { .. }) => "quarantined",
            Answer::Unauthorized => "unauthorized",
            Answer::TooLarge => "too_large",
            Answer::NotFound => "not_found",
            Answer::MethodNotAllowed => "method",
            Answer::Timeout => "timeout",
            Answer::BadBody => "bad_request",
            Answer::Unavailable(_) => "unavailable",
        }
    }

    /// The label of what it is counted as: a body that is in quarantine already counts as a duplicate, whatever its sender hears.
    pub fn counted(self) -> &'static str {
        match self {
            Answer::Appended(Appended::Quarantined { seq, repeated: true }) => {
                Answer::Appended(Appended::Duplicate(seq)).label()
            }
            answer => answer.label(),
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Answer::Appended(_) => StatusCode::OK,
            Answer::Unauthorized => StatusCode::UNAUTHORIZED,
            Answer::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Answer::NotFound => StatusCode::NOT_FOUND,
            Answer::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Answer::Timeout => StatusCode::REQUEST_TIMEOUT,
            Answer::BadBody => StatusCode::BAD_REQUEST,
            Answer::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn body(self) -> String {
        let error = match self {
            Answer::Appended(Appended::Stored(seq) | Appended::Duplicate(seq) | Appended::Quarantined { seq, .. }) => {
                return format!("{{\"status\":\"{}\",\"seq\":{seq}}}\n", self.label());
            }
            Answer::Unauthorized => "the signature is missing or wrong",
            Answer::TooLarge => "the body is too large",
            Answer::NotFound => "there is nothing here",
            Answer::MethodNotAllowed => "only POST is allowed here",
            Answer::Timeout => "the body took too long",
            Answer::BadBody => "the body can't be received",
            Answer::Unavailable(why) => why.text(),
        };
        format!("{{\"error\":\"{error}\"}}\n")
    }

    /// Whether the connection ends with it: what was not read must not be taken for the next request, and the body of a sender for
    /// whom there is no room may go on, and nobody waits for it.
    fn is_last(self) -> bool {
        matches!(
            self,
            Answer::TooLarge | Answer::Timeout | Answer::BadBody | Answer::Unavailable(Why::NoRoom)
        )
    }
}

pub(super) fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body()));
    *response.status_mut() = answer.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_request_id(headers);
    if answer.is_last() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    match answer {
        Answer::MethodNotAllowed => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
        Answer::Unavailable(_) => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS))),
        _ => {}
    }
    response
}

/// Gives an answer the id by which people can talk about it.
pub fn add_request_id(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::try_from(request_id()) {
        headers.insert(&REQUEST_ID, id);
    }
}

/// With what the ids of this process begin.
pub fn request_id_prefix() -> &'static str {
    static PREFIX: LazyLock<String> = LazyLock::new(|| {
        let mut random = [0; 6];
        // Without randomness ids are still unique in this process.
        let _ = getrandom::fill(&mut random);
        format!("{}-", hex::encode(random))
    });
    &PREFIX
}

/// An id for an answer: unique in this process' life and unlikely to be met again after it.
pub fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}{:x}", request_id_prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Seq;
    use crate::ingress::verify::Refusal;
    use crate::telemetry::door::{ANSWERS, REFUSALS, UNAVAILABLE};

    const WHYS: [Why; 6] = [
        Why::Full,
        Why::Failing,
        Why::Overloaded,
        Why::Stopping,
        Why::NoRoom,
        Why::Slow,
    ];

    fn all() -> Vec<Answer> {
        let seq = Seq(7);
        let mut all = vec![
            Answer::Appended(Appended::Stored(seq)),
            Answer::Appended(Appended::Duplicate(seq)),
            Answer::Appended(Appended::Quarantined { seq, repeated: false }),
            Answer::Unauthorized,
            Answer::TooLarge,
            Answer::NotFound,
            Answer::MethodNotAllowed,
            Answer::Timeout,
            Answer::BadBody,
        ];
        all.extend(WHYS.map(Answer::Unavailable));
        all
    }

    #[test]
    fn every_label_is_known_where_it_is_counted() {
        let mut answers: Vec<&str> = all().into_iter().map(Answer::label).collect();
        answers.dedup();
        let sorted = |labels: &[&'static str]| {
            let mut labels = labels.to_vec();
            labels.sort_unstable();
            labels
        };
        assert_eq!(sorted(&answers), sorted(&ANSWERS));
        assert_eq!(sorted(&WHYS.map(Why::label)), sorted(&UNAVAILABLE));
        let refusals = [
            Refusal::Missing,
            Refusal::Malformed,
            Refusal::BadSignature,
            Refusal::Stale,
            Refusal::Future,
            Refusal::WrongSubscription,
        ];
        assert_eq!(sorted(&refusals.map(Refusal::label)), sorted(&REFUSALS));
    }

    #[test]
    fn a_body_that_comes_again_is_answered_as_the_first_time_and_counted_as_a_duplicate() {
        let quarantined = |repeated| Answer::Appended(Appended::Quarantined { seq: Seq(7), repeated });
        let said = |answer: Answer| (answer.body(), answer.counted());
        let body = "{\"status\":\"quarantined\",\"seq\":7}\n".to_owned();
        assert_eq!(said(quarantined(false)), (body.clone(), "quarantined"));
        assert_eq!(said(quarantined(true)), (body, "duplicate"));
    }

    #[test]
    fn an_answer_says_in_its_headers_what_follows_from_it() {
        for answer in all() {
            let response = respond(answer);
            let header = |name| response.headers().get(name).map(HeaderValue::as_bytes);
            let is_unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(header(RETRY_AFTER).is_some(), is_unavailable, "{answer:?}");
            let is_method = response.status() == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(header(ALLOW), is_method.then_some(&b"POST"[..]), "{answer:?}");
            assert_eq!(header(CONTENT_TYPE), Some(&b"application/json"[..]));
            assert_eq!(header(CONNECTION).is_some(), answer.is_last(), "{answer:?}");
            assert!(response.headers().contains_key(&REQUEST_ID));
        }
        // Of what is not read to its end.
        let last: Vec<&str> = all()
            .into_iter()
            .filter(|answer| answer.is_last())
            .map(Answer::label)
            .collect();
        assert_eq!(last, ["too_large", "timeout", "bad_request", "unavailable"]);
    }
}
