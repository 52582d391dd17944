//! Where payloads are made that nobody is sent: a renderer of its own, so that deliveries never wait for it, used by a few at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answers::{BUSY, Refusal, text};
use super::sent::{BODY_MAX, Outcome, Sent};
use crate::config::SinkConfig;
use crate::deliver::Rendering;
use crate::event::Event;
use crate::render::{Guard, NameBook, Program};
use crate::rules::RuleSet;
use crate::sinks::{Outcome as Delivered, Preview};

/// Questions that may use it at a time; more wait.
const AT_A_TIME: usize = 4;

/// Where payloads are made that nobody is sent.
#[derive(Debug, Clone)]
pub struct Bench {
    guard: Guard,
    places: Arc<Semaphore>,
    place_within: Duration,
    /// Who has asked for a try has so long to read what it has found, beyond the time that it takes.
    pub(super) read_within: Duration,
}

/// Who asks waits so long for a place: those before it may read what a disk does not give.
const PLACE_WITHIN: Duration = Duration::from_secs(60);

/// See [`Bench`].
const READ_WITHIN: Duration = Duration::from_secs(10);

impl Bench {
    /// One whose templates know custom fields by these names.
    pub fn new(names: Arc<NameBook>) -> Bench {
        Bench::with(Guard::new(names))
    }

    /// One that renders with this.
    pub fn with(guard: Guard) -> Bench {
        Bench {
            guard,
            places: Arc::new(Semaphore::new(AT_A_TIME)),
            place_within: PLACE_WITHIN,
            read_within: READ_WITHIN,
        }
    }

    /// The same for whoever reads within this.
    #[must_use]
    pub fn read_within(self, read_within: Duration) -> Bench {
        Bench { read_within, ..self }
    }

    /// The same for whoever waits for a place no longer than this.
    #[cfg(test)]
    #[must_use]
    pub(super) fn place_within(self, place_within: Duration) -> Bench {
        Bench { place_within, ..self }
    }

    /// A place at it, for as long as that is kept.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        match tokio::time::timeout(self.place_within, self.places.clone().acquire_owned()).await {
            Ok(place) => place.map_err(text),
            Err(_) => Err(BUSY.to_owned()),
        }
    }

    /// What makes a sink's payloads.
    pub(super) fn press(&self, config: &SinkConfig) -> Press {
        Press {
            rendering: Rendering::new(config, self.guard.clone()),
            config: config.clone(),
        }
    }
}

/// Why nothing would be sent where no transform says so.
const NO_USE: &str = "the sink has no use for it: it keeps rows of objects, and the event is of none that it can tell";

/// What makes one sink's payloads.
pub(super) struct Press {
    pub config: SinkConfig,
    rendering: Rendering,
}

impl Press {
    /// What the sink would be sent for an event that these rules send there. `programs`: the rules whose templates and transforms win
    /// over the sink's own.
    pub async fn sent(&self, routes: &RuleSet, programs: &RuleSet, event: &Arc<Event>) -> Sent {
        let sink = &self.config.name;
        let rules = routes.route(sink, event).unwrap_or_default();
        let program = programs.program(sink, &rules);
        let is_transform = |program: &Program| matches!(program, Program::Transform(_));
        let own = self.config.program.as_ref();
        let is_transformed = program.map(|(_, program)| program).or(own).is_some_and(is_transform);
        let rule = program.map(|(rule, _)| rule.clone());
        let rule = rule.or_else(|| rules.first().cloned()).map(|rule| rule.to_string());
        match self.rendering.preview(programs, rules, event.clone()).await {
            Ok(made) => Sent {
                rule,
                ..shown(made.preview)
            },
            Err(Delivered::Delivered | Delivered::Skipped) => Sent {
                outcome: Outcome::Skipped,
                rule,
                // Only a transform can want nothing; else it is the sink.
                reason: (!is_transformed).then(|| NO_USE.to_owned()),
                ..Sent::default()
            },
            Err(Delivered::Waits(unavailable)) => Sent {
                outcome: Outcome::Unavailable,
                rule,
                reason: Some(unavailable.reason),
                ..Sent::default()
            },
            Err(Delivered::Reject { reason } | Delivered::Untried { reason } | Delivered::Retry { reason, .. }) => {
                Sent {
                    outcome: Outcome::Failed,
                    rule,
                    reason: Some(reason.text),
                    said: reason.answer,
                    ..Sent::default()
                }
            }
        }
    }
}

fn shown(preview: Preview) -> Sent {
    let mut sent = Sent {
        headers: preview.headers,
        row: preview.row.and_then(|row| RawValue::from_string(row).ok()),
        key: preview.key,
        subject: preview.subject,
        ..Sent::default()
    };
    if let Some(body) = preview.body {
        show_body(&mut sent, &body);
    }
    sent
}

fn show_body(sent: &mut Sent, body: &Bytes) {
    use base64::Engine as _;
    sent.body_bytes = Some(body.len() as u64);
    if let Ok(text) = std::str::from_utf8(body) {
        let ends = (0..=BODY_MAX.min(text.len())).rev();
        let end = ends.into_iter().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        sent.body = Some(text[..end].to_owned());
    } else {
        let part = &body[..body.len().min(BODY_MAX)];
        sent.body_base64 = Some(base64::engine::general_purpose::STANDARD.encode(part));
    }
}
