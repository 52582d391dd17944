//! The organization's subscriptions: made, changed, paused and deleted.

use super::World;
use crate::dice::Dice;
use crate::dispatch;
use crate::ids::Ids;
use crate::subscription::{Change, Counts, Invalid, SUBSCRIPTIONS_MAX, Subscription};

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
        };
        self.subscriptions.push(Some(subscription.clone()));
        Ok(subscription)
    }

    /// Changes a subscription; its id and key stay. `None` where there is none.
    pub(crate) fn change(&mut self, id: &str, change: Change, user_id: &str) -> Option<&Subscription> {
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
    pub(crate) fn unsubscribe(&mut self, id: &str) -> bool {
        let slot = self
            .subscriptions
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|subscription| subscription.id == id));
        slot.and_then(Option::take).is_some()
    }
}
