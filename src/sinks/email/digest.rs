//! Several events in one mail: which of them go together, and which of them it was when the server refuses them.
//!
//! | the server | what becomes of the events |
//! |---|---|
//! | takes the mail | delivered |
//! | refuses it (5xx) | each half is sent on its own, down to the event that is refused: one bad event costs itself |
//! | refuses every half that was tried | it is not about an event: the sink is unavailable |
//! | puts it off (4xx), or is not there | the whole waits; what was sent of it is remembered, and not sent again |
//! | does not say whether it has it | the same, and each time twice as long, up to a quarter of an hour |

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;

use super::{DOUBT_MAX, Email, compose};
use crate::event::Delivery;
use crate::render::{Guard, Job, Made, Template};
use crate::sinks::{Outcome, Reason, Unavailable};

impl Email {
    /// A mail for each stretch of the digest's length, from its first event on.
    pub(super) async fn digests(&self, deliveries: &[Delivery], span: Duration) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(deliveries.len());
        let mut rest = deliveries;
        while let Some(first) = rest.first() {
            let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
            let end = first
                .event
                .received_at
                .checked_add(span)
                .unwrap_or(jiff::Timestamp::MAX);
            let len = rest
                .iter()
                .take_while(|delivery| delivery.event.received_at <= end)
                .count()
                .max(1);
            let (these, later) = rest.split_at(len);
            outcomes.extend(self.digest(these).await?);
            rest = later;
        }
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(outcomes)
    }

    /// One mail. Where the server refuses it, halves find the event that it is about; where it refuses these too, it is not about one.
    async fn digest(&self, deliveries: &[Delivery]) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; deliveries.len()];
        let mut tries = 2 * deliveries.len().next_power_of_two().trailing_zeros() + 2;
        let whole = 0..deliveries.len();
        let mut parts = vec![whole];
        let (mut any_taken, mut refusal) = (false, None);
        while let Some(part) = parts.pop() {
            match self.part(&deliveries[part.clone()], &mut tries).await? {
                // The whole waits: tried one by one, it would be as many mails. Longer each time: it may be there already.
                Outcome::Retry { reason, after } => {
                    let times = self.put_off.fetch_add(1, Ordering::Relaxed).min(16);
                    let longer = (times > 0).then(|| DOUBT_MAX.min(Duration::from_secs(1) * 2u32.pow(times)));
                    return Err(Unavailable {
                        after: after.max(longer),
                        ..Unavailable::new(reason.text)
                    });
                }
                Outcome::Reject { reason } if part.len() == 1 => {
                    refusal = Some(reason.clone());
                    outcomes[part.start] = Some(Outcome::Reject { reason });
                }
                Outcome::Reject { reason } => {
                    refusal = Some(reason);
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
                taken => {
                    self.put_off.store(0, Ordering::Relaxed);
                    any_taken = true;
                    outcomes[part].fill(Some(taken));
                }
            }
            if tries == 0 {
                break;
            }
        }
        let whole: Option<Vec<Outcome>> = outcomes.into_iter().collect();
        let refusal = refusal.map_or_else(String::new, |reason| reason.text);
        if whole.is_none() && !any_taken {
            // It is not about an event: what was refused may be taken another time.
            let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            answered.retain(|_, outcome| *outcome == Outcome::Delivered);
        }
        whole.ok_or_else(|| Unavailable::new(format!("{refusal}, and so it did with parts of the digest")))
    }

    /// A mail of a part of a digest, unless it was answered before.
    async fn part(&self, deliveries: &[Delivery], tries: &mut u32) -> Result<Outcome, Unavailable> {
        let key = compose::digest_key(deliveries);
        let before = self
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(before) = before {
            return Ok(before);
        }
        *tries = tries.saturating_sub(1);
        let made = rendered(self.renderer.as_ref(), &self.texts, &self.name, deliveries).await?;
        let mail = match made {
            Ok(made) => self.words.digest(&self.name, deliveries, &made).map_err(Reason::from),
            Err(reason) => Err(reason),
        };
        let outcome = match mail {
            Ok(mail) => self.send(&mail).await?,
            Err(reason) => Outcome::Reject { reason },
        };
        if !matches!(outcome, Outcome::Retry { .. }) {
            let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            answered.insert(key, outcome.clone());
        }
        Ok(outcome)
    }
}

/// What the templates of a sink make of a digest; an error is about its events, or a template.
pub(super) async fn rendered(
    renderer: Option<&Guard>,
    texts: &Arc<[(String, Template)]>,
    sink: &str,
    deliveries: &[Delivery],
) -> Result<Result<BTreeMap<String, String>, Reason>, Unavailable> {
    let renderer = match renderer {
        Some(renderer) if !texts.is_empty() => renderer,
        _ => return Ok(Ok(BTreeMap::new())),
    };
    let job = Job {
        payload: None,
        texts: texts.clone(),
        event: compose::digest_scope(deliveries),
        meta: serde_json::json!({ "sink": sink }).to_string(),
    };
    let made = renderer.render(vec![job]).await;
    let mut made = made.map_err(|stuck| Unavailable::new(stuck.0))?.into_iter();
    Ok(match made.next() {
        Some(Made::Rendered(made)) => Ok(made.texts),
        Some(Made::Fault(fault)) => {
            let key = fault.program.and_then(|number| texts.get(number.checked_sub(1)?));
            let key = key.map_or_else(String::new, |(key, _)| format!(" {key}"));
            Err(format!("the digest's template{key} failed{}", fault.words()).into())
        }
        Some(Made::Skipped) | None => Err("nothing was made of the digest".into()),
    })
}
