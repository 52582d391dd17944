//! A new key: a second subscription takes over from the first, which goes when the new one has delivered.

use std::sync::Arc;

use super::apply::{Applied, WantedSubscription};
use super::ownership::current;
use crate::close::account::Account;
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::api::subscriptions::Subscription;
use crate::close::store::Rotation;
use crate::event::Event;
use crate::log::Take;

impl Account {
    /// Replaces the subscription there is by one with a new key. Both keys count until the new one has delivered.
    pub(super) async fn rotate(
        &self,
        client: &Client,
        close_has: &[Subscription],
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let old = self.with_ours(|ours| current(ours, close_has).map(|old| (old.id.clone(), old.verify_ssl)));
        let (old, verify_ssl) = old.ok_or_else(|| Error::NotFound("subscription to rotate".into()))?;
        let wish = WantedSubscription {
            url: &applied.plan.url,
            events: &applied.plan.events,
            // Where the certificate is none that Close can check, one that checks it would never deliver.
            verify_ssl: verify_ssl.unwrap_or(true),
            replaces: Some(old.clone()),
            by_hand: false,
        };
        let made = self.make(client, close_has, &wish).await?;
        (applied.subscription, applied.replaced) = (made.id, made.replaced);
        applied.replaces = Some(old);
        Ok(())
    }

    /// Whether the new subscription of a rotation has delivered an event, be it one that the old one had delivered before.
    pub(in crate::close) async fn has_delivered(&self, rotation: &Rotation) -> Result<bool, Error> {
        if self.heard().has(&rotation.new) {
            return Ok(true);
        }
        let mut next = self.seen().searched_to.max(rotation.from);
        let is_from_new = |event: &Arc<Event>| {
            event
                .view()
                .is_some_and(|view| view.subscription_id.as_ref() == Some(&rotation.new))
        };
        let take = Take {
            events: 512,
            bytes: 4 << 20,
            narrow: None,
        };
        let delivered = loop {
            let batch = self.log.read(next, take).await?;
            if batch.events.iter().any(is_from_new) {
                break true;
            }
            if batch.next == next {
                break false;
            }
            next = batch.next;
        };
        self.seen().searched_to = next;
        Ok(delivered)
    }

    /// The new subscription of a rotation has delivered: the old one goes.
    pub(in crate::close) async fn finish_rotation(&self, rotation: &Rotation) -> Result<(), Error> {
        let _one_at_a_time = self.begin_change().await;
        let is_same = |now: &Rotation| now.old == rotation.old && now.new == rotation.new;
        if !self.store.keys().rotation.as_ref().is_some_and(is_same) {
            // Somebody has deleted one of the two meanwhile: the other one is all there is.
            return Ok(());
        }
        let client = self.client().await?;
        let is_kept_here = self.store.keys().live(&rotation.old).is_some();
        self.delete_at_close(&client, &rotation.old).await?;
        self.retire(&rotation.old).await?;
        let (old, new) = (&rotation.old, &rotation.new);
        if is_kept_here {
            tracing::info!(old, new, "the new subscription has delivered; the old one is deleted");
        } else {
            tracing::warn!(
                old,
                new,
                "the new subscription has delivered; the old one is deleted, and its key still counts: remove it from [[close.subscriptions]]"
            );
        }
        Ok(())
    }
}
