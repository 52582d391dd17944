//! The answer: what its status means, when the receiver wants an event again, and what of it is kept for people.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::super::common::said;
use super::super::common::secrets::Secrets;
use crate::net::date::http_date;
use crate::sinks::{Outcome, Reason, Unavailable};

/// More of a body than this is not read; the connection is then not used again.
const BODY_LEN_MAX: usize = 64 << 10;

/// How long a body is read: the status is the answer.
const BODY_WITHIN: Duration = Duration::from_secs(1);

/// What a receiver said.
pub(super) struct Answer {
    status: StatusCode,
    after: Option<Duration>,
    body: Vec<u8>,
}

impl Answer {
    /// Reads it. A body that is too long, too slow, or cut off changes nothing; it is read to its end where it can be, so that the
    /// connection can be used again.
    pub(super) async fn read(response: Response<Incoming>, secrets: &Secrets) -> Answer {
        let wanted_len = said::wanted_len(secrets);
        let mut answer = Answer {
            status: response.status(),
            after: retry_after(response.headers(), Timestamp::now()),
            body: Vec::new(),
        };
        let mut body = response.into_body();
        let mut read = 0;
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(chunk) = frame.into_data() else { continue };
                read += chunk.len();
                let room = wanted_len.saturating_sub(answer.body.len());
                answer.body.extend_from_slice(&chunk[..room.min(chunk.len())]);
                if read > BODY_LEN_MAX.max(wanted_len) {
                    break;
                }
            }
        };
        // What came until then is kept.
        let _ = tokio::time::timeout(BODY_WITHIN, reading).await;
        answer
    }

    /// The one place that decides what an answer means. `secrets` are hidden in what is kept of it.
    pub(super) fn outcome(self, secrets: &Secrets) -> Result<Outcome, Unavailable> {
        let Answer { status, after, body } = self;
        if status.is_success() {
            return Ok(Outcome::Delivered);
        }
        let text = format!("the receiver answered {status}");
        let reason = Reason {
            text: text.clone(),
            answer: said::cleaned(&body, said::Part::Beginning, secrets),
        };
        match status {
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::TOO_MANY_REQUESTS => Err(Unavailable { reason: text, after }),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Ok(Outcome::Retry { reason, after }),
            status if status.is_redirection() => Ok(Outcome::Reject {
                reason: Reason {
                    text: format!("{text}: redirects are not followed, set the final url"),
                    ..reason
                },
            }),
            status if status.is_client_error() => Ok(Outcome::Reject { reason }),
            _ => Ok(Outcome::Retry { reason, after }),
        }
    }
}

/// `retry-after`, in seconds or as a date (RFC 9110, 10.2.3). How long is honoured is the engine's to say.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = http_date(text, now)?;
    // What has passed is now.
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}
