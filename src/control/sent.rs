//! What a sink would be sent for an event, with nothing sent: for one event, and for tries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What would be sent, or why nothing would.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sent {
    /// What would become of it.
    pub outcome: Outcome,
    /// The rule that has it sent, or whose template or transform makes it; `None`: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Headers, attributes, fields or variables; secrets are masked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body, where it is UTF-8; up to [`BODY_MAX`] bytes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body in Base64, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Bytes of the whole body; `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<u64>,
    /// The row's columns, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<Box<RawValue>>,
    /// The routing or partition key, or the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The subject or topic, or wherever else it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Why nothing can be sent, one sentence without anything of the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the template or transform itself said; it may quote the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

/// So many bytes of a body are shown.
pub const BODY_MAX: usize = 1 << 20;

/// What would become of an event at a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It would be sent.
    #[default]
    Sent,
    /// Its transform wants nothing delivered, or the sink has no use for it.
    Skipped,
    /// Nothing can be made of it: it would be a dead letter.
    Failed,
    /// Nothing can be made of any event now.
    Unavailable,
}

impl PartialEq for Sent {
    fn eq(&self, other: &Sent) -> bool {
        let row = |sent: &Sent| sent.row.as_ref().map(|row| row.get().to_owned());
        let rest = |sent: &Sent| {
            let (body, base64) = (sent.body.clone(), sent.body_base64.clone());
            (sent.rule.clone(), sent.headers.clone(), body, base64, sent.body_bytes)
        };
        let words = |sent: &Sent| {
            let (reason, said) = (sent.reason.clone(), sent.said.clone());
            (sent.key.clone(), sent.subject.clone(), reason, said)
        };
        self.outcome == other.outcome
            && row(self) == row(other)
            && rest(self) == rest(other)
            && words(self) == words(other)
    }
}

impl Eq for Sent {}
