//! What happened, for whoever compares: revisions and what became of them, deliveries, requests to the API, figures.

use serde_json::Value;

use super::World;
use crate::dispatch::Success;
use crate::events::Fate;

/// Requests remembered.
const REQUESTS_MAX: usize = 1000;

/// A request to the API, remembered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Seen {
    /// Counts from 1.
    pub number: u64,
    /// `GET`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The answer's; 0 where none was sent.
    pub status: u16,
}

/// One revision and what became of it, for comparing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Revised {
    /// The event's id.
    pub id: String,
    /// As in the event.
    pub date_updated: String,
    /// Counts from 0.
    pub nth: u8,
    /// `object_type.action`
    pub event: String,
    /// When the API shows it first.
    pub visible_at: String,
    /// No later revision exists.
    pub latest: bool,
    /// Its webhook was sent at least once.
    pub attempted: bool,
    /// A receiver answered 2xx.
    pub delivered: bool,
}

/// One delivery that was answered 2xx.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Delivered {
    /// The event's id.
    pub id: String,
    /// As in the event.
    pub date_updated: String,
    /// To which subscription.
    pub subscription_id: String,
    /// When, by the simulated clock.
    pub at: String,
    /// Exactly what was sent.
    pub body: String,
}

impl World {
    /// Every revision, oldest first, from the `after`th on.
    pub fn revisions(&self, after: usize) -> impl Iterator<Item = Revised> {
        self.events.all().skip(after).map(|(place, visible, fate)| {
            let Fate { attempted, delivered } = fate;
            let (object_type, action) = self.events.type_action(place);
            Revised {
                id: self.events.id(place),
                date_updated: place.updated.plain(),
                nth: place.nth,
                event: format!("{object_type}.{action}"),
                visible_at: visible.plain(),
                latest: self.events.is_latest(place),
                attempted,
                delivered,
            }
        })
    }

    /// The event object of a revision, as the API and webhooks have it.
    pub fn event_text(&self, id: &str, nth: u8) -> Option<String> {
        let mut all = self.events.all().map(|(place, ..)| place);
        let event = self.events.index_of(id)?;
        all.find(|place| place.event == event && place.nth == nth)
            .map(|place| self.events.text(place))
    }

    /// How many deliveries were answered 2xx, repeated ones included.
    pub fn delivery_count(&self) -> usize {
        self.dispatch.ledger.len()
    }

    /// Every delivery that was answered 2xx, in that order, from the `after`th on; repeated ones too.
    pub fn deliveries(&self, after: usize) -> impl Iterator<Item = Delivered> {
        let skipped = self.dispatch.ledger.iter().skip(after);
        skipped.map(|success: &Success| {
            let id = &self.subscription_ids[success.subscription];
            Delivered {
                id: self.events.id(success.place),
                date_updated: success.place.updated.plain(),
                subscription_id: id.clone(),
                at: success.at.plain(),
                body: self.body(success.place, id),
            }
        })
    }

    pub(crate) fn remember(&mut self, method: &str, target: &str, status: u16) {
        self.requests_count += 1;
        if self.requests.len() >= REQUESTS_MAX {
            self.requests.pop_front();
        }
        self.requests.push_back(Seen {
            number: self.requests_count,
            method: method.to_owned(),
            target: target.chars().take(2000).collect(),
            status,
        });
    }

    /// The last thousand requests to the API, in order.
    pub fn requests(&self) -> impl Iterator<Item = &Seen> {
        self.requests.iter()
    }

    /// Figures.
    pub fn stats(&self) -> Value {
        let queued: usize = self.subscriptions().map(|subscription| subscription.queued).sum();
        serde_json::json!({
            "now": jiff::Timestamp::from(self.now).to_string(),
            "events": self.events.count(),
            "revisions": self.events.revisions(),
            "deliveries": self.delivery_count(),
            "deliveries_not_listed": self.dispatch.ledger_overflow,
            "queued": queued,
            "requests": self.requests_count,
        })
    }
}
