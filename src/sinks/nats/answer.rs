//! What came back for a message, and what that means.
//!
//! | answer | means |
//! |---|---|
//! | an acknowledgement, also one that says "duplicate" | delivered |
//! | too large for the stream (10054), a header that it can't keep to, another error 400 | the message is refused |
//! | full (10077, 10047, 10023, 10002), no leader, too much asked, JetStream off, a sealed stream, anything else | nothing goes there now |
//! | 503 without anything (no responders) | nobody listens on the subject: `listening` finds out why |

use async_nats::{Message, StatusCode};
use serde::Deserialize;

use super::super::common::said::{self, Part};
use super::super::common::secrets::Secrets;
use crate::net::nats::Refusal;
use crate::sinks::Reason;

/// What came of publishing a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// It is about the message.
    Refused(Reason),
    /// Its stream takes nothing now.
    Stopped(String),
    /// Nobody listens on its subject.
    Nobody,
    /// The user may not publish there.
    MayNot,
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    error: Option<Refusal>,
}

/// What to do about it; the end of a sentence. `None`: it is about the message.
fn advice(refusal: &Refusal) -> Option<&'static str> {
    Some(match refusal.err_code {
        // Of this one JetStream says only in words which limit it is.
        10077 if refusal.description.contains("per subject") => {
            ": the stream keeps so many messages of a subject and drops none (discard_new_per_subject): make room, or raise max_msgs_per_subject"
        }
        10077 => ": the stream is full: make room, raise its limits, or let it drop the oldest (discard old)",
        10047 | 10023 => ": the server has no room left for JetStream",
        10002 | 10028 => ": the account's limit for JetStream is reached",
        10039 | 10076 => ": turn JetStream on there, for this account too",
        10109 => ": the stream is sealed",
        10008 | 10009 => ": wait until the cluster has a leader",
        // What is asked too much may be asked again.
        _ if refusal.code == 400 => return None,
        _ => "",
    })
}

/// The same as a sentence of its own.
fn sentence(refusal: &Refusal, secrets: &Secrets) -> String {
    let said = refusal.saying(&secrets.hidden_in(&refusal.description));
    said + advice(refusal).unwrap_or_default()
}

/// The one place that decides what an answer means. `secrets` are hidden in what is kept of it.
pub(super) fn judged(message: &Message, secrets: &Secrets) -> Answer {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Answer::Nobody;
    }
    match serde_json::from_slice::<Ack>(&message.payload) {
        Ok(Ack {
            error: None,
            stream,
            seq,
        }) if !stream.is_empty() && seq > 0 => Answer::Taken,
        Ok(Ack {
            error: Some(refusal), ..
        }) => match advice(&refusal) {
            Some(_) => Answer::Stopped(sentence(&refusal, secrets)),
            None => Answer::Refused(Reason {
                text: format!("JetStream refuses it ({})", refusal.err_code),
                answer: said::cleaned(refusal.description.as_bytes(), Part::Beginning, secrets),
            }),
        },
        _ => Answer::Stopped(
            "somebody who is not JetStream answers on the subject: see subject, and who subscribes to it".into(),
        ),
    }
}
