//! The simulated organization as a whole: one state, changed by calls and by time, with no clock, thread or socket of its own.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::access::Access;
use super::dice::Dice;
use super::dispatch::{self, Attempt, Dispatch, Success};
use super::events::{Events, Fate, Full, Place};
use super::fault::Faults;
use super::ids::Ids;
use super::limits::Limits;
use super::moment::Moment;
use super::render;
use super::settings::{Settings, SignedAt};
use super::subscription::{Change, Invalid, SUBSCRIPTIONS_MAX, Subscription, is_loopback};
use crate::event::SignatureHeaders;
use crate::json::{self, Kind, Node};
use crate::verify::Key;

/// Requests remembered.
const REQUESTS_MAX: usize = 1000;

/// Subscriptions there may have been, the deleted ones included.
const SUBSCRIPTIONS_EVER_MAX: usize = 10_000;

/// Attempts handed out together.
const BATCH_MAX: usize = 4096;

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
    pub signature: SignatureHeaders,
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

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(super) seed: u64,
    /// How it behaves; change it through [`World::set`].
    settings: Settings,
    now: Moment,
    pub(super) events: Events,
    pub(super) subscriptions: Vec<Option<Subscription>>,
    /// By index, those of deleted ones too.
    subscription_ids: Vec<String>,
    dispatch: Dispatch,
    /// Keys and tokens.
    pub access: Access,
    pub(super) limits: Limits,
    /// What goes wrong next.
    pub faults: Faults,
    pub(super) cursor_epoch: u32,
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
        let text = json::validate(text.as_bytes()).map_err(|error| error.to_string())?;
        let object = Node::new(text);
        if object.kind() != Kind::Object {
            return Err("an event is a JSON object".into());
        }
        let string = |name: &str| {
            object
                .get(name)
                .and_then(Node::as_string)
                .map(std::borrow::Cow::into_owned)
        };
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
        let given = object
            .entries()
            .map(|(key, value)| format!("{}: {}", key.raw(), value.raw()));
        let missing = wanted
            .iter()
            .filter(|(name, _)| object.get(name).is_none())
            .map(|(name, value)| format!("\"{name}\": {value}"));
        let entries: Vec<String> = given.chain(missing).collect();
        let text = format!("{{{}}}", entries.join(", "));
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
            signature: subscription.key.sign(signed_at.into(), body.as_bytes()),
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

    /// The subscriptions there are.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().flatten()
    }

    /// The one with this id.
    pub fn subscription(&self, id: &str) -> Option<&Subscription> {
        self.subscriptions().find(|subscription| subscription.id == id)
    }

    /// Makes a subscription.
    pub(super) fn subscribe(
        &mut self,
        change: Change,
        user_id: &str,
        api_key_id: Option<String>,
    ) -> Result<Subscription, Invalid> {
        if self.subscriptions().count() >= SUBSCRIPTIONS_MAX || self.subscriptions.len() >= SUBSCRIPTIONS_EVER_MAX {
            return Err(Invalid::general(format!(
                "An organization can have at most {SUBSCRIPTIONS_MAX} webhook subscriptions."
            )));
        }
        let number = self.subscriptions.len();
        let id = Ids(self.seed).id("whsub_", number as u64);
        let mut dice = Dice::of(&[self.seed, 9, number as u64]);
        let random: Vec<u8> = (0..4).flat_map(|_| dice.roll().to_be_bytes()).collect();
        let signature_key = hex::encode(random);
        let key = Key::from_hex(Some(id.clone()), &signature_key).map_err(Invalid::general)?;
        self.subscription_ids.push(id.clone());
        let subscription = Subscription {
            id,
            url: change.url.unwrap_or_default(),
            active: true,
            verify_ssl: change.verify_ssl.unwrap_or(true),
            events: change.events.unwrap_or_default(),
            event_filter: change.event_filter.flatten(),
            created: self.now,
            updated: self.now,
            active_since: self.now,
            created_by: user_id.to_owned(),
            updated_by: user_id.to_owned(),
            api_key_id,
            signature_key,
            key,
            queued: 0,
            epoch: 0,
            failing_since: None,
            warned: false,
            counts: super::subscription::Counts::default(),
            paused_because: None,
        };
        self.subscriptions.push(Some(subscription.clone()));
        Ok(subscription)
    }

    /// Changes a subscription; its id and key stay. `None` where there is none.
    pub(super) fn change(&mut self, id: &str, change: Change, user_id: &str) -> Option<&Subscription> {
        let now = self.now;
        let subscription = self
            .subscriptions
            .iter_mut()
            .flatten()
            .find(|subscription| subscription.id == id)?;
        subscription.updated = now;
        user_id.clone_into(&mut subscription.updated_by);
        if let Some(url) = change.url {
            subscription.url = url;
        }
        if let Some(events) = change.events {
            subscription.events = events;
        }
        if let Some(filter) = change.event_filter {
            subscription.event_filter = filter;
        }
        if let Some(verify_ssl) = change.verify_ssl {
            subscription.verify_ssl = verify_ssl;
        }
        match change.active {
            Some(true) if !subscription.active => {
                subscription.active = true;
                subscription.active_since = now;
            }
            Some(false) => dispatch::pause(subscription, now, "paused through the API"),
            _ => {}
        }
        Some(subscription)
    }

    /// Pauses a subscription and clears its queue, as Close does by itself. False where there is none.
    pub fn pause(&mut self, id: &str) -> bool {
        let now = self.now;
        let found = self
            .subscriptions
            .iter_mut()
            .flatten()
            .find(|subscription| subscription.id == id);
        found.is_some_and(|subscription| {
            dispatch::pause(subscription, now, "paused by Close");
            true
        })
    }

    /// Deletes a subscription. False where there is none.
    pub(super) fn unsubscribe(&mut self, id: &str) -> bool {
        let slot = self
            .subscriptions
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|subscription| subscription.id == id));
        slot.and_then(Option::take).is_some()
    }

    /// Lets every cursor written so far expire.
    pub fn expire_cursors(&mut self) {
        self.cursor_epoch += 1;
    }

    pub(super) fn remember(&mut self, method: &str, target: &str, status: u16) {
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::config::Span;
    use crate::event::View;
    use crate::fake::dispatch::{DROP_AFTER, FAILING_MAX, QUEUE_MAX, QUEUE_WARN, RETRY_DELAY_MAX};
    use crate::verify::{Claim, Unverified, Verifier};
    use proptest::prelude::*;

    const START: Moment = Moment(1_700_000_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);

    fn world(settings: Settings) -> World {
        World::new(7, START, settings, None)
    }

    fn subscribe(world: &mut World, events: &str) -> String {
        let body = format!(r#"{{"url": "http://127.0.0.1:1/hook", "events": {events}}}"#);
        let change = Change::parse(body.as_bytes(), true, world.settings()).unwrap();
        world.subscribe(change, "user_1", None).unwrap().id
    }

    /// All kinds of events.
    fn everything() -> String {
        let kinds: Vec<String> = crate::fake::happen::KINDS
            .iter()
            .map(|kind| {
                format!(
                    r#"{{"object_type": "{}", "action": "{}"}}"#,
                    kind.object_type, kind.action
                )
            })
            .collect();
        format!("[{}]", kinds.join(","))
    }

    /// Moves time on with a receiver that is asked at each attempt.
    fn run(world: &mut World, span: Duration, mut receiver: impl FnMut(&Attempt) -> bool) -> Vec<Attempt> {
        let until = world.now().plus(span);
        let mut all = Vec::new();
        loop {
            let batch = world.take_due(until);
            if batch.is_empty() {
                assert_eq!(world.now(), until);
                return all;
            }
            for attempt in batch {
                world.settle(attempt, receiver(&attempt), attempt.due);
                all.push(attempt);
            }
        }
    }

    fn id(world: &World, attempt: &Attempt) -> String {
        world.events.id(attempt.place)
    }

    #[test]
    fn a_delivery_is_signed_with_the_key_of_its_subscription() {
        let mut world = world(Settings::calm());
        let subscription = subscribe(&mut world, &everything());
        world.generate(10, START.plus(HOUR), HOUR).unwrap();
        let key = Key::from_hex(None, &world.subscription(&subscription).unwrap().signature_key).unwrap();
        let verifier = Verifier {
            keys: vec![key],
            tolerance: jiff::SignedDuration::from_secs(1),
            skew: jiff::SignedDuration::from_secs(1),
            ..Verifier::default()
        };
        let attempts = run(&mut world, DAY, |_| true);
        assert!(attempts.len() >= 10);
        for attempt in attempts {
            let outgoing = world.outgoing(&attempt, START).unwrap();
            let headers = &outgoing.signature;
            let claim = Claim::read([headers.timestamp.as_bytes()], [headers.hash.as_bytes()]).unwrap();
            let body = outgoing.body.into_bytes().into();
            verifier.verify(Unverified { claim, body }, START.into()).unwrap();
        }
    }

    #[test]
    fn updates_close_together_are_one_webhook_and_those_apart_are_two() {
        let mut world = world(Settings {
            consolidation: Span::secs(60),
            ..Settings::calm()
        });
        subscribe(&mut world, r#"[{"object_type": "lead", "action": "updated"}]"#);
        let id_of = |world: &mut World| {
            world
                .inject(r#"{"object_type": "lead", "action": "updated"}"#, Duration::ZERO, true)
                .unwrap()
        };
        let event = id_of(&mut world);
        assert!(
            run(&mut world, Duration::from_secs(30), |_| true).is_empty(),
            "it waits for further changes"
        );
        world.consolidate(&event, Duration::ZERO).unwrap();
        let sent = run(&mut world, Duration::from_secs(200), |_| true);
        assert_eq!(sent.iter().map(|attempt| attempt.place.nth).collect::<Vec<_>>(), [1]);
        world.consolidate(&event, Duration::ZERO).unwrap();
        let sent = run(&mut world, HOUR, |_| true);
        assert_eq!(sent.iter().map(|attempt| attempt.place.nth).collect::<Vec<_>>(), [2]);
        assert_eq!(sent[0].due, sent[0].place.updated.plus(Duration::from_secs(60)));
    }

    #[test]
    fn a_failed_delivery_is_tried_again_at_most_every_twenty_minutes_for_72_hours() {
        let mut world = world(Settings::calm());
        let subscription = subscribe(&mut world, r#"[{"object_type": "lead", "action": "created"}]"#);
        let first = world
            .inject(r#"{"object_type": "lead", "action": "created"}"#, Duration::ZERO, true)
            .unwrap();
        let mut attempts = Vec::new();
        // Another event gets through now and then, so that the subscription is not paused.
        for _ in 0..80 {
            world
                .inject(r#"{"object_type": "lead", "action": "created"}"#, Duration::ZERO, true)
                .unwrap();
            let event = world.events.index_of(&first).unwrap();
            let made = run(&mut world, HOUR, |attempt| attempt.place.event != event);
            attempts.extend(made.into_iter().filter(|attempt| attempt.place.event == event));
        }
        let gaps: Vec<Duration> = attempts.windows(2).map(|pair| pair[1].due.since(pair[0].due)).collect();
        assert!(gaps.iter().all(|gap| *gap <= RETRY_DELAY_MAX && !gap.is_zero()));
        assert!(gaps.last().unwrap() > &(RETRY_DELAY_MAX / 2), "it backs off");
        assert!(gaps.windows(2).take(5).all(|pair| pair[0] < pair[1]));
        let whole = attempts.last().unwrap().due.since(attempts[0].due);
        assert!(whole <= DROP_AFTER && whole + RETRY_DELAY_MAX > DROP_AFTER, "{whole:?}");
        let counts = world.subscription(&subscription).unwrap().counts;
        assert_eq!((counts.dropped, counts.delivered), (1, 80));
    }

    #[test]
    fn three_days_of_nothing_but_failures_pause_a_subscription_and_clear_its_queue() {
        let mut world = world(Settings::calm());
        let subscription = subscribe(&mut world, &everything());
        world.generate(2000, START, DAY * 6).unwrap();
        run(&mut world, DAY, |_| true);
        let down = world.now();
        run(&mut world, HOUR * 71, |_| false);
        let state = |world: &World| {
            let subscription = world.subscription(&subscription).unwrap();
            (subscription.active, subscription.queued)
        };
        let (active, queued) = state(&world);
        assert!(active && queued > 500, "{queued}");
        run(&mut world, HOUR * 2, |_| false);
        assert_eq!(state(&world), (false, 0));
        let paused = world.subscription(&subscription).unwrap().updated.since(down);
        assert!(paused >= FAILING_MAX && paused < FAILING_MAX + HOUR, "{paused:?}");
        assert!(
            run(&mut world, DAY, |_| true).is_empty(),
            "nothing is sent, nothing queued"
        );
        let change = Change {
            active: Some(true),
            ..Change::default()
        };
        let resumed = world.now();
        world.change(&subscription, change, "user_1").unwrap();
        let sent = run(&mut world, DAY, |_| true);
        assert!(!sent.is_empty());
        assert!(
            sent.iter().all(|attempt| attempt.place.updated >= resumed),
            "what was missed is not sent later"
        );
    }

    #[test]
    fn one_success_in_three_days_keeps_a_subscription_alive() {
        let mut world = world(Settings::calm());
        let subscription = subscribe(&mut world, &everything());
        world.generate(300, START, DAY * 8).unwrap();
        for _ in 0..8 {
            let mut successes = 0;
            run(&mut world, DAY, |_| {
                successes += 1;
                successes == 1
            });
        }
        assert!(world.subscription(&subscription).unwrap().active);
    }

    #[test]
    fn more_than_a_hundred_thousand_queued_pause_a_subscription() {
        let mut world = world(Settings {
            slice: Span::secs(60),
            ..Settings::calm()
        });
        let subscription = subscribe(&mut world, &everything());
        // So many in so short a time that the first retries are not over yet.
        world.generate(QUEUE_MAX as u64 + 40_000, START, HOUR).unwrap();
        let mut warned_first = false;
        let until = START.plus(HOUR * 3);
        while world.subscription(&subscription).unwrap().active {
            let batch = world.take_due(until);
            assert!(!batch.is_empty(), "it was never paused");
            for attempt in batch {
                world.settle(attempt, false, attempt.due);
            }
            let now = world.subscription(&subscription).unwrap();
            assert!(now.queued <= QUEUE_MAX);
            warned_first |= now.warned && now.active && now.queued >= QUEUE_WARN;
        }
        let paused = world.subscription(&subscription).unwrap();
        assert!(warned_first);
        assert_eq!((paused.queued, paused.warned), (0, false));
        assert!(paused.counts.cleared > QUEUE_MAX as u64);
        assert!(run(&mut world, HOUR, |_| true).is_empty());
    }

    #[test]
    fn only_what_a_subscription_wants_is_sent_to_it() {
        let mut world = world(Settings::calm());
        let filter = r#"{"type": "field_accessor", "field": "data", "filter":
            {"type": "field_accessor", "field": "status_label", "filter": {"type": "equals", "value": "Customer"}}}"#;
        let filtered = subscribe(
            &mut world,
            &format!(r#"[{{"object_type": "lead", "action": "updated", "extra_filter": {filter}}}]"#),
        );
        let plain = subscribe(
            &mut world,
            r#"[{"object_type": "lead", "action": "updated"}, {"object_type": "contact", "action": "created"}]"#,
        );
        world.generate(2000, START, DAY).unwrap();
        run(&mut world, DAY * 2, |_| true);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for delivered in world.deliveries(0) {
            let body: Value = serde_json::from_str(&delivered.body).unwrap();
            assert_eq!(body["subscription_id"], delivered.subscription_id.as_str());
            if delivered.subscription_id == filtered {
                assert_eq!(body["event"]["data"]["status_label"], "Customer");
            }
            *counts.entry(delivered.subscription_id).or_default() += 1;
        }
        assert!(
            counts[&filtered] > 20 && counts[&plain] > 2 * counts[&filtered],
            "{counts:?}"
        );
    }

    #[test]
    fn nothing_is_delivered_beyond_this_machine_unless_asked_for() {
        let routed = |settings: Settings, url: &str| world(settings).route(url).ok();
        let calm = Settings::calm;
        assert_eq!(
            routed(calm(), "http://127.0.0.1:1/x").as_deref(),
            Some("http://127.0.0.1:1/x")
        );
        assert_eq!(routed(calm(), "https://example.com/x"), None);
        let anywhere = Settings {
            deliver_anywhere: true,
            ..calm()
        };
        assert_eq!(
            routed(anywhere, "https://example.com/x").as_deref(),
            Some("https://example.com/x")
        );
        let elsewhere = Settings {
            deliver_to: BTreeMap::from([("https://example.com".into(), "http://[::1]:2".into())]),
            ..calm()
        };
        assert_eq!(
            routed(elsewhere, "https://example.com/x").as_deref(),
            Some("http://[::1]:2/x")
        );
    }

    #[test]
    fn history_is_in_the_log_but_is_not_delivered() {
        let mut world = world(Settings::calm());
        subscribe(&mut world, &everything());
        world.generate(500, START.minus(DAY * 2), DAY).unwrap();
        assert!(run(&mut world, DAY, |_| true).is_empty());
        assert!(world.revisions(0).count() >= 500);
    }

    #[test]
    fn events_happen_by_themselves_at_the_rate_set() {
        let mut world = world(Settings {
            events_per_second: 0.5,
            ..Settings::calm()
        });
        subscribe(&mut world, &everything());
        run(&mut world, HOUR, |_| true);
        assert_eq!(world.events.count(), 1800);
        let dates: BTreeSet<String> = world.revisions(0).map(|revision| revision.date_updated).collect();
        assert!(dates.first().unwrap() > &START.plain());
        world.set(Settings::calm());
        run(&mut world, HOUR, |_| true);
        assert_eq!(world.events.count(), 1800);
    }

    #[test]
    fn the_same_seed_delivers_the_same_in_the_same_disorder() {
        let story = || {
            let mut world = world(Settings {
                allow_loopback: true,
                ..Settings::default()
            });
            subscribe(&mut world, &everything());
            world.generate(1000, START, DAY).unwrap();
            let mut number = 0_u32;
            run(&mut world, DAY * 2, |_| {
                number += 1;
                !number.is_multiple_of(7)
            });
            world.deliveries(0).collect::<Vec<_>>()
        };
        let first = story();
        assert_eq!(first, story());
        let keys: Vec<(String, String)> = first
            .iter()
            .map(|one| (one.date_updated.clone(), one.id.clone()))
            .collect();
        assert!(keys.windows(2).any(|pair| pair[0] > pair[1]), "some come out of order");
        let distinct: BTreeSet<_> = keys.iter().collect();
        assert!(distinct.len() < keys.len(), "some come twice");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever a receiver does: every revision that was due is delivered, given up on, cleared, or consolidated away.
        #[test]
        fn every_webhook_ends_somewhere(seed: u64, luck in 0_u64..100, outage_from in 0_u32..8, outage_days in 0_u32..6) {
            let mut world = World::new(seed, START, Settings { allow_loopback: true, ..Settings::default() }, None);
            let subscription = subscribe(&mut world, &everything());
            world.generate(300, START, DAY * 8).unwrap();
            let outage = START.plus(DAY * outage_from)..START.plus(DAY * (outage_from + outage_days));
            let mut dice = Dice::of(&[seed]);
            let attempts = run(&mut world, DAY * 20, |attempt| !outage.contains(&attempt.due) && dice.below(100) >= luck);
            let after = world.subscription(&subscription).unwrap().clone();
            prop_assert_eq!(after.queued, 0);
            prop_assert_eq!(after.counts.attempts, attempts.len() as u64);
            prop_assert_eq!(after.counts.delivered, world.deliveries(0).count() as u64);
            let attempted: BTreeSet<(String, u8)> = attempts.iter().map(|attempt| (id(&world, attempt), attempt.place.nth)).collect();
            let delivered = world.revisions(0).filter(|revision| revision.delivered).count();
            for revision in world.revisions(0) {
                prop_assert_eq!(revision.attempted, attempted.contains(&(revision.id.clone(), revision.nth)));
                prop_assert!(revision.attempted || !revision.delivered);
                if after.paused_because.is_none() && revision.latest {
                    prop_assert!(revision.attempted, "{:?}", revision);
                }
            }
            if after.paused_because.is_none() {
                // A duplicate can be given up on although its twin was delivered, so more may have ended than there are.
                prop_assert!(delivered as u64 + after.counts.dropped >= attempted.len() as u64);
            }
            for one in world.deliveries(0) {
                let view = View::read(one.body.as_bytes()).unwrap();
                prop_assert_eq!(view.id, one.id);
            }
        }
    }
}
