//! What a server on the web answers, as far as it is read.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::net::date::http_date;

/// A body is read up to here; what is longer is no answer of the servers that are asked here.
const BODY_LEN_MAX: usize = 4 << 20;

/// An answer: all of it that was there in time.
pub(in crate::sinks) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads it. Fails where the connection breaks before its end: the server may have done what it was asked for.
    pub async fn read(mut response: Response) -> Result<Reply, reqwest::Error> {
        let mut reply = Reply {
            status: response.status(),
            headers: response.headers().clone(),
            body: Vec::new(),
        };
        while let Some(chunk) = response.chunk().await? {
            reply.body.extend_from_slice(&chunk);
            if reply.body.len() > BODY_LEN_MAX {
                break;
            }
        }
        Ok(reply)
    }

    /// When the server wants to be asked again (`retry-after`), from now.
    pub fn after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        let now = Timestamp::now();
        let at = http_date(text, now)?;
        Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
    }
}
