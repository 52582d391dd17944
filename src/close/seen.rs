//! What the last looks at Close have shown. In memory only: the next look shows it again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::api::error::Error;
use super::api::subscriptions::Subscription;
use crate::event::Seq;

/// A subscription that is paused again is resumed after this, and doubly so each time ...
const RESUME_AGAIN: Duration = Duration::from_secs(60);

/// ... up to this.
const RESUME_AGAIN_MAX: Duration = Duration::from_secs(6 * 3600);

/// Once it was active for so long, the next pause is a first one.
const RESUME_FORGET: Duration = Duration::from_secs(24 * 3600);

/// One of our subscriptions, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSubscription {
    /// `whsub_...`
    pub id: String,
    /// Where it delivers; `None` where Close does not have it.
    pub url: Option<String>,
    /// How it does.
    pub state: Condition,
    /// Why Close has paused it, in its own word.
    pub pause_reason: Option<String>,
    /// What its deliveries fail of at Close.
    pub latest_error: Option<String>,
    /// What Close counts of it, in its own words; `None` where it does not say.
    #[serde(default)]
    pub counters: Option<serde_json::Value>,
    /// Whether Close checks the certificate of its URL.
    pub verify_ssl: Option<bool>,
    /// Why it can't be made active again.
    pub trouble: Option<String>,
}

impl FoundSubscription {
    /// One as Close shows it.
    pub(super) fn shown(subscription: &Subscription, state: Condition) -> FoundSubscription {
        FoundSubscription {
            id: subscription.id.clone(),
            url: Some(subscription.url.clone()),
            state,
            pause_reason: subscription.reason(),
            latest_error: subscription.error(),
            counters: subscription.counters.clone(),
            verify_ssl: subscription.verify_ssl,
            trouble: None,
        }
    }

    /// One that Close does not have, which is `Missing` or `Gone`.
    pub(super) fn absent(id: String, state: Condition) -> FoundSubscription {
        FoundSubscription {
            id,
            url: None,
            state,
            pause_reason: None,
            latest_error: None,
            counters: None,
            verify_ssl: None,
            trouble: None,
        }
    }

    /// Whether it is the same news.
    pub(super) fn is_like(&self, other: &FoundSubscription) -> bool {
        let news = |one: &FoundSubscription| (one.id.clone(), one.state, one.pause_reason.clone(), one.trouble.clone());
        news(self) == news(other)
    }
}

/// How a subscription does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It delivers here.
    Active,
    /// Close has paused it.
    Paused,
    /// Paused by a person, who knows why.
    PausedByHand,
    /// Close says that it has not paused it, and neither have we.
    PausedBySomebody,
    /// Paused for its successor, until that has delivered.
    BeingReplaced,
    /// Close does not have it.
    Missing,
    /// Close does not have it, and another one of ours is there: only `[[close.subscriptions]]` still names it.
    Gone,
    /// Delivers to another URL than the configuration names.
    Elsewhere,
    /// Delivers here, but its key is not known.
    Keyless,
}

/// Close delivers nothing although there is something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverySilence {
    /// When the last delivery came.
    pub last_delivery: Option<Timestamp>,
    /// `date_updated` of the newest event that was not delivered.
    pub newest_event: Timestamp,
}

/// What the last looks at Close have shown.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    pub found: Vec<FoundSubscription>,
    pub checked_at: Option<Timestamp>,
    pub reconciled_at: Option<Timestamp>,
    pub silence: Option<DeliverySilence>,
    /// When the newest look began, got on or ended, however it did.
    pub got_on_at: Option<Instant>,
    /// Why Close can't be used just now.
    pub trouble: Option<Error>,
    /// When Close is tried again then; `None`: it is being tried.
    pub tried_again_at: Option<Timestamp>,
    /// Why the backfill does not get on was found since this process looks after Close's side.
    pub job_troubled: bool,
    /// When subscriptions were made active again.
    pub resumed: BTreeMap<String, Resumed>,
    /// Up to here the log was searched for a delivery of the new subscription of a rotation.
    pub searched_to: Seq,
}

impl Sightings {
    /// A look gets on: where it goes on and on like this, it only takes long.
    pub fn got_on(&mut self) {
        self.got_on_at = Some(Instant::now());
    }
}

/// When a subscription was last made active again, or that was tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resumed {
    at: Instant,
    pub times: u32,
}

impl Resumed {
    /// The next try, if it may be now.
    pub fn next(before: Option<Resumed>, now: Instant) -> Option<Resumed> {
        let first = Resumed { at: now, times: 1 };
        let Some(before) = before else { return Some(first) };
        let gone = now.duration_since(before.at);
        let doubled = RESUME_AGAIN.saturating_mul(1_u32.checked_shl(before.times - 1).unwrap_or(u32::MAX));
        if gone >= RESUME_FORGET {
            Some(first)
        } else if gone >= doubled.min(RESUME_AGAIN_MAX) {
            Some(Resumed {
                at: now,
                times: before.times.saturating_add(1),
            })
        } else {
            None
        }
    }
}
