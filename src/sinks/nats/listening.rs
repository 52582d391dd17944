//! Who listens on a subject: questions to JetStream, which change nothing.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::net::nats::{Refusal, Session, Unanswered};

/// How long an answer of JetStream's may take: one that has no leader gives none.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Where it is asked which streams there are.
const NAMES: &str = "$JS.API.STREAM.NAMES";

/// Who listens on a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listening {
    /// A stream of this name should.
    Stream(String),
    /// No stream.
    Nobody,
    /// There is no JetStream, or none for this account.
    NoJetStream,
    /// The user may not ask.
    MayNotAsk,
    /// JetStream gives no answer now.
    Unknown,
    /// It was asked about enough others.
    NotAsked,
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    streams: Option<Vec<String>>,
    #[serde(default)]
    error: Option<Refusal>,
}

/// What is said of a stream, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct StreamConfig {
    #[serde(default)]
    pub no_ack: bool,
    #[serde(default)]
    pub sealed: bool,
    #[serde(default)]
    pub duplicate_window: u64,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    config: Option<StreamConfig>,
}

/// Finds out whether answers can be heard at all, before anything is published: who can't hear that a message was taken would send it
/// again and again. Whether JetStream answers; or the subject where nothing can be heard. That is said at once, and an answer is not waited
/// for long.
pub(super) async fn greeted(session: &Session, until: Instant) -> Result<bool, String> {
    let question = json!({ "subject": "closehook.probe" }).to_string();
    let within = within(until).min(ASK_TIMEOUT / 3);
    match session.ask(NAMES, question.into(), within).await {
        Ok(_) => Ok(true),
        Err(Unanswered::MayNotHear(subject)) => Err(subject),
        Err(_) => Ok(false),
    }
}

/// Asks which stream takes messages on a subject.
pub(super) async fn listening(session: &Session, subject: &str, until: Instant) -> Listening {
    let question = json!({ "subject": subject }).to_string();
    let answer = session.ask(NAMES, question.into(), within(until)).await;
    let names: Names = match answer {
        Ok(message) => match serde_json::from_slice(&message.payload) {
            Ok(names) => names,
            Err(_) => return Listening::Unknown,
        },
        Err(Unanswered::Nobody) => return Listening::NoJetStream,
        Err(Unanswered::MayNotAsk) => return Listening::MayNotAsk,
        Err(Unanswered::MayNotHear(_) | Unanswered::Late) => return Listening::Unknown,
    };
    match names {
        Names { error: Some(fault), .. } if matches!(fault.err_code, 10039 | 10076) => Listening::NoJetStream,
        Names { error: Some(_), .. } => Listening::Unknown,
        Names { streams, .. } => match streams.unwrap_or_default().into_iter().next() {
            Some(name) => Listening::Stream(name),
            None => Listening::Nobody,
        },
    }
}

/// Asks how a stream is configured; `None` where the user may not ask, or no answer came.
pub(super) async fn configuration(session: &Session, stream: &str, until: Instant) -> Option<StreamConfig> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let message = session.ask(&subject, "".into(), within(until)).await.ok()?;
    serde_json::from_slice::<Info>(&message.payload).ok()?.config
}

fn within(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).min(ASK_TIMEOUT)
}
