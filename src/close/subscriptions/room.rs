//! Room for a subscription that Close refuses because another one has the same URL and events.
//!
//! Only what is known to be replaced is touched: the subscription whose key is rotated, and one that delivers to our own URL
//! although nobody here knows its key, as after a loss of the data directory or on a new machine. Its deliveries are refused
//! anyway. It is paused first, and deleted when its successor's key is on disk; if that can't be made, it is active again.
//! Everything is written down before it is done, so that a stop at any point leaves something that the next look can finish.

use super::apply::WantedSubscription;
use super::ownership::Standing;
use crate::close::account::Account;
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::api::subscriptions::{Subscription, SubscriptionChange};
use crate::close::store::Keys;

impl Keys {
    /// What was begun has ended: what was paused for it and has no key is to go. What it replaces is none of these, though its key
    /// may be in the configuration only: it goes when its successor has delivered, or stays where there is none.
    pub fn settle_intent(&mut self) {
        let Some(intent) = self.intent.take() else { return };
        let is_keyless = |id: &String| intent.replaces.as_ref() != Some(id) && self.live(id).is_none();
        let keyless: Vec<String> = intent.paused.iter().filter(|id| is_keyless(id)).cloned().collect();
        self.replaced.extend(keyless);
    }
}

impl Account {
    /// See [`Keys::settle_intent`].
    pub(in crate::close) async fn settle_intent(&self) -> Result<(), Error> {
        self.store.change_keys(Keys::settle_intent).await
    }

    /// Which of these are at this URL without a key that is known here; an error if there are others among them.
    async fn keyless_among(&self, client: &Client, url: &str, ids: Vec<String>) -> Result<Vec<String>, Error> {
        let close_has = self.list(client).await?;
        let is_keyless = |id: &String| {
            let found: Option<&Subscription> = close_has.iter().find(|other| other.id == *id);
            found.is_none_or(|other| {
                other.url == url && self.with_ours(|ours| ours.standing(other)) == Standing::Keyless
            })
        };
        if ids.iter().all(is_keyless) {
            Ok(ids)
        } else {
            Err(Error::Duplicate(ids))
        }
    }

    /// Pauses what is in the way of a creation, by the ids that Close named.
    pub(in crate::close) async fn make_room(
        &self,
        client: &Client,
        wish: &WantedSubscription<'_>,
        ids: Vec<String>,
    ) -> Result<(), Error> {
        if wish.by_hand {
            return Err(Error::Duplicate(ids));
        }
        let (old, others): (Vec<String>, Vec<String>) =
            ids.into_iter().partition(|id| wish.replaces.as_ref() == Some(id));
        let keyless = self.keyless_among(client, wish.url, others).await?;
        for id in &keyless {
            tracing::warn!(
                subscription = id,
                "Close has no two active subscriptions with the same URL and events: this one, whose key is not known here, is replaced"
            );
        }
        for id in old.into_iter().chain(keyless) {
            let noted = id.clone();
            self.store
                .change_keys(move |keys| {
                    if let Some(intent) = &mut keys.intent {
                        intent.paused.insert(noted);
                    }
                })
                .await?;
            set_status(client, &id, "paused").await?;
        }
        Ok(())
    }

    /// The creation came to nothing: what was paused for it is made active again. Where that fails it stays noted, and is
    /// tried again with the creation itself.
    pub(in crate::close) async fn withdraw(&self, client: &Client) -> Result<(), Error> {
        let paused = self.store.keys().intent.map(|intent| intent.paused).unwrap_or_default();
        for id in paused {
            if let Err(error) = set_status(client, &id, "active").await {
                tracing::warn!(subscription = id, %error, "it was paused to make room for a new one, and can't be made active again yet");
                return Err(error);
            }
        }
        self.store.change_keys(|keys| keys.intent = None).await
    }

    /// Changes a subscription in place. Those without a known key that are in the way of that go: they are the ids given back.
    pub(in crate::close) async fn change(
        &self,
        client: &Client,
        id: &str,
        change: &SubscriptionChange<'_>,
        url: &str,
    ) -> Result<Vec<String>, Error> {
        let ids = match client.change_subscription(id, change).await {
            Err(Error::Duplicate(ids)) => ids,
            changed => return changed.map(|()| Vec::new()),
        };
        let keyless = self.keyless_among(client, url, ids).await?;
        tracing::warn!(
            ?keyless,
            "Close has no two active subscriptions with the same URL and events: those whose key is not known here are deleted"
        );
        self.store
            .change_keys(move |keys| keys.replaced.extend(keyless))
            .await?;
        let deleted = self.clear_replaced(client).await?;
        client.change_subscription(id, change).await?;
        Ok(deleted)
    }

    /// Deletes at Close what was replaced; these are the ids given back. It is judged by how it is now: somebody may have brought
    /// its key since, or have it deliver elsewhere.
    pub(in crate::close) async fn clear_replaced(&self, client: &Client) -> Result<Vec<String>, Error> {
        let replaced = self.store.keys().replaced;
        if replaced.is_empty() {
            return Ok(Vec::new());
        }
        let close_has = self.list(client).await?;
        let mut deleted = Vec::new();
        for id in replaced {
            let found = close_has.iter().find(|other| other.id == id);
            match found.map(|other| self.with_ours(|ours| ours.standing(other))) {
                Some(standing @ (Standing::Ours | Standing::Foreign)) => tracing::warn!(
                    subscription = id,
                    ?standing,
                    "a subscription was to be replaced, and is another one now: it is left as it is"
                ),
                Some(Standing::Keyless) | None => {
                    self.delete_at_close(client, &id).await?;
                    tracing::info!(subscription = id, "deleted a subscription that was replaced");
                    deleted.push(id.clone());
                }
            }
            self.store
                .change_keys(move |keys| {
                    keys.replaced.remove(&id);
                })
                .await?;
        }
        Ok(deleted)
    }
}

/// One that is gone needs no status.
async fn set_status(client: &Client, id: &str, status: &str) -> Result<(), Error> {
    let change = SubscriptionChange {
        status: Some(status),
        ..SubscriptionChange::default()
    };
    match client.change_subscription(id, &change).await {
        Ok(()) | Err(Error::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
