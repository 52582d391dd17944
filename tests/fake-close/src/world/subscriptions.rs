//! The organization's subscriptions: made, changed, paused and deleted.

use std::collections::VecDeque;

use super::World;
use crate::dice::Dice;
use crate::dispatch;
use crate::ids::Ids;
use crate::subscription::{Because, Change, Counts, Invalid, Subscription, Wanted};

/// Subscriptions there may have been, the deleted ones included.
const SUBSCRIPTIONS_EVER_MAX: usize = 10_000;

impl World {
    /// The subscriptions there are.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().flatten()
    }

    /// The one with this id.
    pub fn subscription(&self, id: &str) -> Option<&Subscription> {
        self.subscriptions().find(|subscription| subscription.id == id)
    }

    /// Makes a subscription.
    pub(crate) fn subscribe(
        &mut self,
        change: Change,
        user_id: &str,
        api_key_id: Option<String>,
    ) -> Result<Subscription, Invalid> {
        let max = self.settings.subscriptions_max;
        if self.subscriptions().count() >= max || self.subscriptions.len() >= SUBSCRIPTIONS_EVER_MAX {
            return Err(Invalid::general(format!(
                "An organization can have at most {max} webhook subscriptions."
            )));
        }
        let (url, events) = (change.url.unwrap_or_default(), change.events.unwrap_or_default());
        self.refuse_duplicates("", &url, &events)?;
        Ok(self.add(
            Change {
                url: Some(url),
                events: Some(events),
                ..change
            },
            user_id,
            api_key_id,
        ))
    }

    /// Close has no two active subscriptions with the same URL and events, and says which one is in the way.
    fn refuse_duplicates(&self, but: &str, url: &str, events: &[Wanted]) -> Result<(), Invalid> {
        let duplicates: Vec<&str> = self
            .subscriptions()
            .filter(|other| other.id != but && other.active && other.asks_the_same(url, events))
            .map(|other| other.id.as_str())
            .collect();
        if duplicates.is_empty() {
            return Ok(());
        }
        let duplicates = duplicates.join(", ");
        Err(Invalid::general(format!(
            "Duplicate active subscription. Existing duplicates are: {duplicates}"
        )))
    }

    /// So many subscriptions of other integrations, whatever limit there is.
    pub fn add_integrations(&mut self, count: usize) {
        let events = r#"[{"object_type": "membership", "action": "deactivated"}]"#;
        for number in 0..count.min(SUBSCRIPTIONS_EVER_MAX - self.subscriptions.len()) {
            let body = format!(r#"{{"url": "https://integration-{number}.example.com/hook", "events": {events}}}"#);
            // Every one of them is a valid body.
            let change = Change::parse(body.as_bytes(), true, &self.settings).unwrap_or_default();
            let user_id = Ids(self.seed).id("user_", 1);
            self.add(change, &user_id, None);
        }
    }

    fn add(&mut self, change: Change, user_id: &str, api_key_id: Option<String>) -> Subscription {
        let number = self.subscriptions.len();
        let id = Ids(self.seed).id("whsub_", number as u64);
        let mut dice = Dice::of(&[self.seed, 9, number as u64]);
        let random: Vec<u8> = (0..4).flat_map(|_| dice.roll().to_be_bytes()).collect();
        let signature_key = hex::encode(random);
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
            queued: 0,
            epoch: 0,
            failing_since: None,
            warned: false,
            counts: Counts::default(),
            paused_because: None,
            latest_error: None,
            failed_at: None,
            history: VecDeque::from([(self.now, "created")]),
        };
        self.subscriptions.push(Some(subscription.clone()));
        subscription
    }

    /// Changes a subscription; its id and key stay. `None` where there is none.
    pub(crate) fn change(&mut self, id: &str, change: Change, user_id: &str) -> Result<Option<&Subscription>, Invalid> {
        let Some(before) = self.subscription(id) else {
            return Ok(None);
        };
        if change.active.unwrap_or(before.active) {
            let url = change.url.as_deref().unwrap_or(&before.url);
            let events = change.events.as_deref().unwrap_or(&before.events);
            self.refuse_duplicates(id, url, events)?;
        }
        let now = self.now;
        let all = self.subscriptions.iter_mut().flatten();
        let Some(subscription) = all.into_iter().find(|one| one.id == id) else {
            return Ok(None);
        };
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
                subscription.note(now, "resumed");
            }
            Some(false) => dispatch::pause(subscription, now, Because::Asked),
            _ => {}
        }
        Ok(Some(subscription))
    }

    /// Pauses a subscription and clears its queue, as Close does when everything fails. False where there is none.
    pub fn pause(&mut self, id: &str) -> bool {
        self.pause_because(id, Because::TooManyFailures)
    }

    /// The same for any reason.
    pub fn pause_because(&mut self, id: &str, because: Because) -> bool {
        let now = self.now;
        let mut all = self.subscriptions.iter_mut().flatten();
        all.find(|one| one.id == id).is_some_and(|subscription| {
            dispatch::pause(subscription, now, because);
            true
        })
    }

    /// Deletes a subscription. False where there is none.
    pub(crate) fn unsubscribe(&mut self, id: &str) -> bool {
        let slot = self
            .subscriptions
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|subscription| subscription.id == id));
        slot.and_then(Option::take).is_some()
    }
}
