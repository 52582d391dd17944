//! The answer: what its status means, when the receiver wants an event again, and what of it is kept for people.

use std::collections::HashSet;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use reqwest::StatusCode;

use super::super::common::said;
use super::super::common::secrets::Secrets;
use crate::net::reply::{Body, retry_after};
use crate::plain;
use crate::sinks::{Outcome, Reason, Unavailable};

/// More of a body than this is not read; the connection is then not used again.
const BODY_LEN_MAX: usize = 64 << 10;

/// Where the JSON of a receiver that does not know who asks says why.
const WHYS: [&str; 6] = ["error_description", "message", "detail", "reason", "title", "error"];

/// So much of that stands in a sentence.
const WHY_LEN_MAX: usize = 200;

/// How long a body is read: the status is the answer.
const BODY_WITHIN: Duration = Duration::from_secs(1);

/// What a receiver said.
pub(super) struct Answer {
    status: StatusCode,
    after: Option<Duration>,
    body: Vec<u8>,
}

/// What became of a request, whatever it carried.
pub(super) enum Verdict {
    /// The receiver has it.
    Taken,
    /// The receiver takes nothing now; that is about no event (decision 33).
    Unavailable(Unavailable),
    /// It failed (5xx): about one event as likely as about the receiver, about the receiver if there were several.
    Failed(Reason, Option<Duration>),
    /// It said with a 5xx that it takes nothing for a while, or who stands before it did: also about the one event that was sent, as long as
    /// there was but one, over which it may have fallen.
    Away(Reason, Option<Duration>),
    /// It may work later.
    Later(Reason, Option<Duration>),
    /// What was sent is wrong (4xx).
    Refused(Reason),
}

impl Answer {
    /// Reads it. A body that is too long, too slow, or cut off changes nothing; it is read to its end where it can be, so that the
    /// connection can be used again.
    pub(super) async fn read(response: Response<Body>, secrets: &Secrets) -> Answer {
        let wanted_len = said::wanted_len(secrets);
        Answer {
            status: response.status(),
            after: retry_after(response.headers(), Timestamp::now()),
            body: match response.into_body() {
                Ok(body) => read_body(body, wanted_len, BODY_LEN_MAX.max(wanted_len)).await,
                Err(_) => Vec::new(),
            },
        }
    }

    /// The one place that decides what an answer of the receiver means. `secrets` are hidden in what is kept of it; `hint` is the end of the sentence
    /// that says that it does not know us; `sent`: the request's body.
    pub(super) fn verdict(self, secrets: &Secrets, hint: &str, sent: &[u8]) -> Verdict {
        let Answer { status, after, body } = self;
        if status.is_success() {
            return Verdict::Taken;
        }
        let text = format!("the receiver answered {status}");
        let reason = Reason {
            text: text.clone(),
            answer: said::cleaned(&body, said::Part::Beginning, secrets),
        };
        match status {
            StatusCode::UNAUTHORIZED => Verdict::Unavailable(Unavailable {
                reason: format!("{text}{hint}"),
                said: said_why(&body, secrets, sent),
                after,
            }),
            StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::TOO_MANY_REQUESTS => {
                Verdict::Unavailable(Unavailable {
                    after,
                    ..Unavailable::new(text)
                })
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Verdict::Later(reason, after),
            // It has moved, for every event.
            status if status.is_redirection() => Verdict::Unavailable(Unavailable {
                after,
                ..Unavailable::new(format!("{text}: redirects are not followed, set the final url"))
            }),
            status if status.is_client_error() => Verdict::Refused(reason),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Verdict::Away(reason, after)
            }
            _ if after.is_some() => Verdict::Away(reason, after),
            _ => Verdict::Failed(reason, after),
        }
    }
}

impl Verdict {
    /// The same of a server that an event has chosen: what that one does not take says nothing of the sink, and its words are nothing
    /// for logs.
    pub(super) fn of_a_stranger(self) -> Verdict {
        match self {
            Verdict::Unavailable(Unavailable { reason, after, .. }) => Verdict::Later(reason.into(), after),
            Verdict::Failed(reason, after) | Verdict::Away(reason, after) => Verdict::Later(reason, after),
            other => other,
        }
    }

    /// What it means for the one event that was sent.
    pub(super) fn outcome(self) -> Result<Outcome, Unavailable> {
        match self {
            Verdict::Taken => Ok(Outcome::Delivered),
            Verdict::Unavailable(unavailable) => Err(unavailable),
            Verdict::Failed(reason, after) | Verdict::Away(reason, after) | Verdict::Later(reason, after) => {
                Ok(Outcome::Retry { reason, after })
            }
            Verdict::Refused(reason) => Ok(Outcome::Reject { reason }),
        }
    }
}

/// Why it does not know who asks, where its JSON says so: other texts may be anything. There are receivers that repeat what they were
/// sent: a word that stands there too is left out.
fn said_why(body: &[u8], secrets: &Secrets, sent: &[u8]) -> String {
    let Ok(said) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let within = said.get("error").filter(|error| error.is_object()).unwrap_or(&said);
    let Some(text) = WHYS.iter().find_map(|key| within.get(key)?.as_str()) else {
        return String::new();
    };
    let text = without_words_of(sent, &secrets.hidden_in(text));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = plain::line(&text).chars().take(WHY_LEN_MAX).collect();
    if text.is_empty() {
        text
    } else {
        format!(" (it said \"{text}\")")
    }
}

/// A text with an ellipsis for each word that was sent, however that was written there.
fn without_words_of(sent: &[u8], text: &str) -> String {
    let mut whole = String::from_utf8_lossy(sent).to_lowercase();
    // As it reads without escapes: one value, or one on each line.
    let values = serde_json::Deserializer::from_slice(sent).into_iter::<serde_json::Value>();
    for value in values.map_while(Result::ok) {
        whole.push(' ');
        whole += &value.to_string().to_lowercase();
    }
    let words: HashSet<&str> = whole.split(|c: char| !c.is_alphanumeric()).collect();
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        if !word.is_empty() && words.contains(&*word.to_lowercase()) {
            kept.push('…');
        } else {
            kept += word;
        }
        let between = behind.find(char::is_alphanumeric).unwrap_or(behind.len());
        kept += &behind[..between];
        rest = &behind[between..];
    }
    kept
}

/// The first `keep` bytes of a body, which is read to its end unless it has more than `most` or takes long.
async fn read_body(mut body: Incoming, keep: usize, most: usize) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::new();
    let mut read = 0;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(chunk) = frame.into_data() else { continue };
            read += chunk.len();
            let room = keep.saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..room.min(chunk.len())]);
            if read > most {
                break;
            }
        }
    };
    // What came until then is kept.
    let _ = tokio::time::timeout(BODY_WITHIN, reading).await;
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_does_not_know_who_asks_is_said_shortly_and_without_secrets() {
        let mut secrets = Secrets::default();
        secrets.add("hunter22");
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(1000));
        let sent = br#"{"event":{"id":"ev_77","name":"J\u00f6rg Alba","n":5}}"#;
        for (body, said) in [
            (r#"{"error":"invalid_token"}"#, "invalid_token"),
            (
                r#"{"error":{"code":401,"message":"expired: hunter22"}}"#,
                "expired: (secret)",
            ),
            (
                r#"{"error":"no","error_description":"a\n\u001b[2J b"}"#,
                "a \\u001b[2J b",
            ),
            // Receivers that repeat what they were sent.
            (
                r#"{"detail":"no key for JÖRG alba (ev_77), albatross"}"#,
                "no key for … … (…_…), albatross",
            ),
            (&long[..], &"x".repeat(WHY_LEN_MAX)[..]),
        ] {
            assert_eq!(
                said_why(body.as_bytes(), &secrets, sent),
                format!(" (it said \"{said}\")"),
                "{body}"
            );
        }
        for nothing in ["", " <html>Log in</html>", r#"{"ok":false}"#, "[]", "no such key"] {
            assert_eq!(said_why(nothing.as_bytes(), &secrets, sent), "", "{nothing}");
        }
    }

    /// Its words are for people who look at the sink, not for what is told apart by its reason, and of a stranger they are for nobody.
    #[test]
    fn what_a_receiver_says_of_a_401_is_no_part_of_the_reason() {
        let verdict = || {
            let answer = Answer {
                status: StatusCode::UNAUTHORIZED,
                after: None,
                body: br#"{"message":"request 4711 is not known"}"#.to_vec(),
            };
            answer.verdict(&Secrets::default(), ": look at token", b"{}")
        };
        let Verdict::Unavailable(unavailable) = verdict() else {
            panic!("it is about the sink");
        };
        assert_eq!(
            unavailable.reason,
            "the receiver answered 401 Unauthorized: look at token"
        );
        assert!(
            unavailable
                .to_string()
                .ends_with(" (it said \"request 4711 is not known\")")
        );
        let Verdict::Later(reason, _) = verdict().of_a_stranger() else {
            panic!("it is about the event");
        };
        assert!(!reason.text.contains("4711"), "{reason}");
    }
}
