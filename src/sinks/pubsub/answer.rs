//! What Pub/Sub answers (Google's documentation, "Error codes"), and what that means.
//!
//! | answer | means |
//! |---|---|
//! | 400 `INVALID_ARGUMENT`, 413 | one of the messages is none that it takes: the batch is halved until it is found |
//! | 403, 404, another 400, of a topic that the event has chosen | what is for that topic is refused, the other topics go on |
//! | 401, 403, 404, 429, 5xx, anything else | no message is taken now: nothing is counted |

use reqwest::StatusCode;
use serde::Deserialize;

use super::super::common::said::{self, Part};
use super::super::common::secrets::Secrets;
use crate::net::reply::Reply;
use crate::plain;
use crate::sinks::{Reason, Unavailable};

/// So much of what it says goes into a sentence.
const SAID_LEN_MAX: usize = 200;

#[derive(Deserialize)]
struct Body {
    error: Fault,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    message: String,
    #[serde(default)]
    status: String,
}

/// What came of publishing messages together.
#[derive(Debug)]
pub(super) enum Published {
    Taken,
    /// At least one of them is refused.
    Refused(Reason),
    /// There is no such topic, or nothing may be published there; the event has chosen it.
    NoTopic(Reason),
    /// The token is not good (any more).
    NotKnown(Unavailable),
}

/// The one place that decides what an answer means. `topic_varies`: the event says which topic it is. `secrets` are hidden in what is kept of it.
pub(super) fn published(reply: &Reply, topic_varies: bool, secrets: &Secrets) -> Result<Published, Unavailable> {
    let status = reply.status;
    if status.is_success() {
        return Ok(Published::Taken);
    }
    let fault = serde_json::from_slice::<Body>(&reply.body).map(|body| body.error).ok();
    let name = fault.as_ref().map_or("", |fault| fault.status.as_str());
    let is_about_a_message = status == StatusCode::PAYLOAD_TOO_LARGE
        || status == StatusCode::BAD_REQUEST && matches!(name, "INVALID_ARGUMENT" | "");
    let reason = || Reason {
        text: format!("Pub/Sub answered {status}"),
        answer: said::cleaned(&reply.body, Part::Beginning, secrets),
    };
    if is_about_a_message {
        return Ok(Published::Refused(reason()));
    }
    let is_about_the_topic = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
    );
    if topic_varies && is_about_the_topic {
        return Ok(Published::NoTopic(reason()));
    }
    let what_to_do = match status {
        StatusCode::FORBIDDEN => ": give the service account the role Pub/Sub Publisher on the topic",
        StatusCode::NOT_FOUND => ": there is no such topic, see topic",
        StatusCode::UNAUTHORIZED => ": see credentials",
        StatusCode::TOO_MANY_REQUESTS => ": the project's quota is used up",
        status if status.is_redirection() => ": see endpoint",
        _ => "",
    };
    let said = fault.map(|fault| secrets.hidden_in(&fault.message)).unwrap_or_default();
    let said: String = plain::line(&said).chars().take(SAID_LEN_MAX).collect();
    let said = if said.is_empty() {
        said
    } else {
        format!(", it said \"{said}\"")
    };
    let unavailable = Unavailable {
        after: reply.after(),
        ..Unavailable::new(format!("Pub/Sub answered {status}{said}{what_to_do}"))
    };
    if status == StatusCode::UNAUTHORIZED {
        return Ok(Published::NotKnown(unavailable));
    }
    Err(unavailable)
}
