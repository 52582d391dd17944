//! The simulated organization as a whole: one state, changed by calls and by time, with no clock, thread or socket of its own.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use crate::access::Access;
use crate::dice::Dice;
use crate::dispatch::{self, Attempt, Dispatch};
use crate::events::{Events, Full, Place};
use crate::fault::Faults;
use crate::fields::CustomFields;
use crate::ids::Ids;
use crate::json;
use crate::limits::Limits;
use crate::moment::Moment;
use crate::render;
use crate::settings::{Settings, SignedAt};
use crate::signature::{self, Signature};
use crate::subscription::{Subscription, is_loopback};

mod fields;
mod record;
mod subscriptions;
#[cfg(test)]
mod tests;

pub use record::{Delivered, Revised, Seen};

/// Attempts handed out together.
const BATCH_MAX: usize = 4096;

/// A webhook request that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to; an error says why it is not sent.
    pub url: Result<String, &'static str>,
    /// Verify the receiver's certificate.
    pub verify_ssl: bool,
    /// The bytes.
    pub body: String,
    /// Close's signature.
    pub signature: Signature,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(crate) seed: u64,
    /// How it behaves; change it through [`World::set`].
    settings: Settings,
    now: Moment,
    pub(crate) events: Events,
    pub(crate) subscriptions: Vec<Option<Subscription>>,
    /// By index, those of deleted ones too.
    subscription_ids: Vec<String>,
    dispatch: Dispatch,
    /// Keys and tokens.
    pub access: Access,
    pub(crate) limits: Limits,
    /// What goes wrong next.
    pub faults: Faults,
    pub(crate) cursor_epoch: u32,
    pub(crate) custom_fields: CustomFields,
    requests: VecDeque<Seen>,
    requests_count: u64,
    live_from: Moment,
    live_made: u64,
}

impl World {
    /// An organization without events at this simulated time. `key` is the first API key; made up where `None`.
    pub fn new(seed: u64, now: Moment, settings: Settings, key: Option<String>) -> World {
        World {
            seed,
            now,
            events: Events::new(seed),
            subscriptions: Vec::new(),
            subscription_ids: Vec::new(),
            dispatch: Dispatch::new(seed),
            access: Access::new(seed, key, &settings, Moment::wall()),
            limits: Limits::default(),
            faults: Faults::default(),
            cursor_epoch: 0,
            custom_fields: CustomFields::default(),
            requests: VecDeque::new(),
            requests_count: 0,
            live_from: now,
            live_made: 0,
            settings,
        }
    }

    /// How it behaves.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes how it behaves, from now on.
    pub fn set(&mut self, settings: Settings) {
        self.live_from = self.now;
        self.live_made = 0;
        self.settings = settings;
    }

    /// The simulated time.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// `orga_...`
    pub fn organization(&self) -> String {
        Ids(self.seed).id("orga_", 0)
    }

    /// What `/me/` calls it.
    pub fn organization_name(&self) -> String {
        format!("Fake organization {}", self.seed)
    }

    /// Makes up `count` events from `from` on, spread over `span`. What lies in the past is history: only the API has it.
    pub fn generate(&mut self, count: u64, from: Moment, span: Duration) -> Result<(), Full> {
        let first = self.events.count() as u64;
        let count_usize = usize::try_from(count).map_err(|_| Full)?;
        let step_us = span.as_micros() as u64 / count.max(1);
        let seed = self.seed;
        let dates = (0..count_usize).map(|n| {
            // Three at a time, nearly together, as one request causes them.
            let group = n as u64 / 3 * 3;
            let mut dice = Dice::of(&[seed, 8, first + group]);
            let within = dice.below(3 * step_us) + (n as u64 % 3) / 2 * 1000;
            from.plus(Duration::from_micros(
                (group * step_us + within).min(span.as_micros() as u64),
            ))
        });
        let made = self.events.make(&self.settings, dates)?;
        let now = self.now;
        self.plan(made.into_iter().filter(|place| place.updated > now));
        Ok(())
    }

    fn plan(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            let (_, action) = self.events.type_action(place);
            let at = dispatch::hook_time(&self.settings, self.seed, place, &action);
            self.dispatch.plan(place, at);
        }
    }

    /// Lets one event happen. `text` is a JSON object; what an event needs and it lacks is added. With the id of an event there
    /// is, it is a later revision of that. The event's id.
    pub fn inject(&mut self, text: &str, visible_in: Duration, deliver: bool) -> Result<String, String> {
        let entries = json::entries(text)?;
        let given = |name: &str| entries.iter().rev().find(|entry| entry.name == name);
        let string = |name: &str| given(name).and_then(|entry| json::string(entry.value));
        let updated = match string("date_updated") {
            Some(date) => Moment::parse(&date).ok_or("date_updated is no date")?,
            None => self.now,
        };
        let id = string("id").unwrap_or_else(|| Ids(self.seed).id("ev_", (1 << 40) + self.events.count() as u64));
        let quoted = |text: &str| Value::from(text).to_string();
        let wanted = [
            ("date_created", quoted(&updated.plain())),
            ("date_updated", quoted(&updated.plain())),
            ("organization_id", quoted(&self.organization())),
            ("user_id", "null".into()),
            ("request_id", "null".into()),
            ("api_key_id", "null".into()),
            ("lead_id", "null".into()),
            ("changed_fields", "[]".into()),
            ("previous_data", "{}".into()),
            ("meta", "{}".into()),
            ("id", quoted(&id)),
            ("object_type", quoted("lead")),
            ("action", quoted("updated")),
            ("object_id", quoted("lead_given")),
            ("data", "{}".into()),
        ];
        let written = entries.iter().map(|entry| format!("{}: {}", entry.key, entry.value));
        let missing = wanted
            .iter()
            .filter(|(name, _)| given(name).is_none())
            .map(|(name, value)| format!("\"{name}\": {value}"));
        let all: Vec<String> = written.chain(missing).collect();
        let text = format!("{{{}}}", all.join(", "));
        let visible = updated.max(self.now).plus(visible_in);
        let place = self.events.give(&id, text, updated, visible)?;
        if deliver {
            self.plan(std::iter::once(place));
        }
        Ok(id)
    }

    /// Changes an event again, now, under its old id: in the API it moves to the top, its webhook is sent again. Its new
    /// `date_updated`.
    pub fn consolidate(&mut self, id: &str, visible_in: Duration) -> Result<String, String> {
        let place = self.events.consolidate(id, self.now, self.now.plus(visible_in))?;
        self.plan(std::iter::once(place));
        Ok(place.updated.plain())
    }

    /// The attempts that are due by `until`, at most some thousands that lie near each other. Empty exactly if nothing is due;
    /// then it is `until`.
    pub fn take_due(&mut self, until: Moment) -> Vec<Attempt> {
        self.happen(until);
        while let Some(first) = self.dispatch.next_due().filter(|due| *due <= until) {
            let edge = first.max(self.now).plus(self.settings.slice.0).min(until);
            let batch = self
                .dispatch
                .take_due(edge, BATCH_MAX, &mut self.subscriptions, &mut self.events);
            if let Some(last) = batch.last() {
                self.now = self.now.max(last.due);
                return batch;
            }
        }
        self.now = self.now.max(until);
        Vec::new()
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Moment> {
        let rate = self.settings.events_per_second;
        let event = (rate > 0.0).then(|| self.live_date(self.live_made));
        event.into_iter().chain(self.dispatch.next_due()).min()
    }

    fn live_date(&self, number: u64) -> Moment {
        self.live_from.plus(Duration::from_secs_f64(
            (number + 1) as f64 / self.settings.events_per_second,
        ))
    }

    /// What happens by itself.
    fn happen(&mut self, until: Moment) {
        if self.settings.events_per_second <= 0.0 {
            return;
        }
        let mut dates = Vec::new();
        while self.live_date(self.live_made) <= until {
            dates.push(self.live_date(self.live_made));
            self.live_made += 1;
        }
        if dates.is_empty() {
            return;
        }
        match self.events.make(&self.settings, dates.into_iter()) {
            Ok(made) => self.plan(made.into_iter()),
            Err(full) => {
                tracing::warn!("no more events happen: {full}");
                self.settings.events_per_second = 0.0;
            }
        }
    }

    /// The request of an attempt. `None` where its subscription is gone.
    pub fn outgoing(&self, attempt: &Attempt, wall: Moment) -> Option<Outgoing> {
        let subscription = self.subscriptions.get(attempt.subscription)?.as_ref()?;
        let body = self.body(attempt.place, &subscription.id);
        let signed_at = match self.settings.signed_at {
            SignedAt::Wall => wall,
            SignedAt::Simulated => attempt.due,
        };
        Some(Outgoing {
            url: self.route(&subscription.url),
            verify_ssl: subscription.verify_ssl,
            signature: signature::sign(&subscription.signature_key, signed_at.unix_seconds(), &body)?,
            body,
        })
    }

    /// Where a delivery to this URL really goes.
    fn route(&self, url: &str) -> Result<String, &'static str> {
        for (from, to) in &self.settings.deliver_to {
            if let Some(rest) = url.strip_prefix(from.as_str()) {
                return Ok(format!("{to}{rest}"));
            }
        }
        let is_near = reqwest::Url::parse(url).is_ok_and(|url| is_loopback(&url));
        if is_near || self.settings.deliver_anywhere {
            Ok(url.to_owned())
        } else {
            Err("it is not on this machine: set deliver_to or deliver_anywhere")
        }
    }

    fn body(&self, place: Place, subscription_id: &str) -> String {
        render::envelope(&self.events.text(place), subscription_id)
    }

    /// What came of an attempt, and when.
    pub fn settle(&mut self, attempt: Attempt, delivered: bool, at: Moment) {
        self.dispatch.settle(
            &self.settings,
            attempt,
            delivered,
            at,
            &mut self.subscriptions,
            &mut self.events,
        );
    }

    /// Lets every cursor written so far expire.
    pub fn expire_cursors(&mut self) {
        self.cursor_epoch += 1;
    }
}
