//! Making it so: subscriptions are made, changed and replaced, and a key is never lost on the way.
//!
//! Close shows a subscription's key once, in the answer that made it. If that answer is lost (a broken connection, a crash
//! before the key was on disk) there is a subscription whose deliveries can't be verified. So before asking, an intent is
//! written: where the subscription will point and which ones there were before. Whatever is at that URL then, was not there
//! before and has no key, is an orphan; it is deleted and made anew. A POST is never simply repeated.
//!
//! Close refuses a second active subscription with the same URL and events, and names the first. To get a new key, the old one
//! is paused to make room, and goes when the new one has delivered; what happened in between is fetched. See `room`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::plan::{PlanStep, SubscriptionPlan};
use super::scope;
use crate::close::account::Account;
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::api::subscriptions::{
    Created, EventSpec, NewSubscription, Removed, Subscription, SubscriptionChange,
};
use crate::close::store::{Intent, Keys, Rotation, StoredKey};

/// A creation whose outcome is unclear is looked into, and tried again so often.
const CREATIONS_MAX: u32 = 2;

/// What was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Applied {
    /// The plan, of which every step is done.
    pub plan: SubscriptionPlan,
    /// The subscription that delivers here now.
    pub subscription: String,
    /// The one it replaces, which goes when this one has delivered; `None` without a rotation.
    pub replaces: Option<String>,
    /// Those that delivered here without a known key, and had to go for this one.
    pub replaced: Vec<String>,
}

/// A subscription of a person's choice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewByHand {
    /// Default: the configuration's.
    pub url: Option<String>,
    /// `object_type.action` each; none: what the rules want.
    pub events: Vec<String>,
    /// Close's filter language, for each of the events.
    pub filter: Option<String>,
    /// Whether Close checks the URL's certificate.
    pub verify_ssl: bool,
}

impl NewByHand {
    fn specs(&self) -> Result<Vec<EventSpec>, Error> {
        let spec = |text: &String| {
            let (object_type, action) = scope::split(text).filter(|_| !text.contains('*')).ok_or_else(|| {
                Error::Missing(format!("\"{text}\" is no event: write it like lead.updated, without *"))
            })?;
            let extra_filter = self.filter.clone().map(RawValue::from_string).transpose();
            Ok(EventSpec {
                object_type,
                action,
                extra_filter: extra_filter.map_err(|error| Error::Missing(format!("the filter: {error}")))?,
            })
        };
        self.events.iter().map(spec).collect()
    }
}

/// Room is made so often for one creation.
const REFUSALS_MAX: u32 = 3;

/// A subscription that was made.
pub(super) struct MadeSubscription {
    pub id: String,
    /// See [`Applied::replaced`].
    pub replaced: Vec<String>,
}

/// A subscription to be made.
pub(in crate::close) struct WantedSubscription<'w> {
    pub url: &'w str,
    pub events: &'w [EventSpec],
    pub verify_ssl: bool,
    pub replaces: Option<String>,
    pub by_hand: bool,
}

impl Account {
    /// Makes the subscription what the rules want. `rotate`: also gives it a new key, by replacing it.
    pub async fn apply(&self, rotate: bool) -> Result<Applied, Error> {
        let _one_at_a_time = self.begin_change().await;
        self.apply_alone(&*self.client().await?, rotate).await
    }

    /// The same for whoever has made sure that nobody else changes anything.
    async fn apply_alone(&self, client: &Client, rotate: bool) -> Result<Applied, Error> {
        let mut close_has = self.list(client).await?;
        let plan = self.plan_for(&close_has)?;
        if rotate && let Some(rotation) = self.store.keys().rotation {
            return Err(Error::Missing(format!(
                "{} is being replaced by {} already, which has not delivered yet: wait for its first delivery",
                rotation.old, rotation.new
            )));
        }
        let mut applied = Applied {
            subscription: plan.subscription.clone().unwrap_or_default(),
            plan,
            replaces: None,
            replaced: Vec::new(),
        };
        // What is replaced need not be changed first.
        let is_due = |step: &&PlanStep| !(rotate && matches!(step, PlanStep::Update { .. }));
        let steps: Vec<PlanStep> = applied.plan.steps.iter().filter(is_due).cloned().collect();
        for step in &steps {
            self.step(client, &mut close_has, step, &mut applied).await?;
        }
        if rotate && !steps.contains(&PlanStep::Create) {
            self.rotate(client, &close_has, &mut applied).await?;
        } else if self.store.keys().intent.is_some() {
            // Whatever was begun is cleaned up and done.
            self.settle_intent().await?;
            self.clear_replaced(client).await?;
        }
        if !applied.plan.steps.is_empty() || rotate {
            self.reconcile_now.notify_one();
        }
        if applied.subscription.is_empty() {
            return Err(Error::NotFound("subscription".into()));
        }
        Ok(applied)
    }

    async fn step(
        &self,
        client: &Client,
        close_has: &mut Vec<Subscription>,
        step: &PlanStep,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        match step {
            PlanStep::DeleteOrphan { id } => {
                self.delete_at_close(client, id).await?;
                tracing::info!(
                    subscription = id,
                    "deleted a subscription whose key was lost when it was made"
                );
                close_has.retain(|other| other.id != *id);
            }
            PlanStep::Retire { id } => self.retire(id).await?,
            PlanStep::Create => {
                if self.store.keys().intent.is_some_and(|intent| intent.replaces.is_some()) {
                    // What it was to replace is none of this one's, and delivers where it did.
                    self.withdraw(client).await?;
                }
                let wish = WantedSubscription {
                    url: &applied.plan.url,
                    events: &applied.plan.events,
                    verify_ssl: true,
                    replaces: None,
                    by_hand: false,
                };
                let made = self.make(client, close_has, &wish).await?;
                (applied.subscription, applied.replaced) = (made.id, made.replaced);
            }
            PlanStep::Update {
                id,
                url,
                events,
                unfilter,
                resume,
            } => {
                let change = SubscriptionChange {
                    url: url.then_some(applied.plan.url.as_str()),
                    events: events.then_some(applied.plan.events.as_slice()),
                    status: resume.then_some("active"),
                    event_filter: unfilter.then_some(Removed),
                };
                applied.replaced = self.change(client, id, &change, &applied.plan.url).await?;
                tracing::info!(subscription = id, "the subscription is now what the rules want");
            }
        }
        Ok(())
    }

    /// Finishes what a crash or a lost answer left in the middle; `false` where there was nothing.
    pub(in crate::close) async fn finish_what_was_begun(&self) -> Result<bool, Error> {
        let keys = self.store.keys();
        if keys.replaced.is_empty() && keys.intent.is_none() {
            return Ok(false);
        }
        let _one_at_a_time = self.begin_change().await;
        let client = self.client().await?;
        self.clear_replaced(&client).await?;
        // Looked at again: what is under way just now is nobody's to finish but its own.
        let Some(intent) = self.store.keys().intent else {
            return Ok(false);
        };
        if intent.by_hand {
            // Its events are not known here: the orphan goes, and the person is told.
            let mut close_has = self.list(&client).await?;
            let orphans = self.withdraw_what_was_begun(&client, &mut close_has).await?;
            tracing::warn!(
                ?orphans,
                "a `subscription create` was cut off before its key was stored: what it had made is deleted; run it again"
            );
            return Ok(true);
        }
        tracing::info!(
            url = intent.url,
            "a subscription was being made when closehook stopped: it is made now"
        );
        self.apply_alone(&client, intent.replaces.is_some()).await?;
        Ok(true)
    }

    /// Undoes a creation whose outcome is not known here: its orphans go, by these ids, and what was paused for it is active again.
    async fn withdraw_what_was_begun(
        &self,
        client: &Client,
        close_has: &mut Vec<Subscription>,
    ) -> Result<Vec<String>, Error> {
        let orphans = self.orphans(close_has);
        for id in &orphans {
            self.delete_at_close(client, id).await?;
            close_has.retain(|other| other.id != *id);
        }
        self.withdraw(client).await?;
        Ok(orphans)
    }

    /// Makes a subscription of a person's choice. Gives its id.
    pub async fn create(&self, new: &NewByHand) -> Result<String, Error> {
        let _one_at_a_time = self.begin_change().await;
        let policy = self.policy();
        let url = new.url.as_ref().or(policy.url.as_ref()).ok_or_else(|| {
            Error::Missing(
                "it is not known where Close should deliver: say --url, or set public_url in [server]".into(),
            )
        })?;
        let events = if new.events.is_empty() {
            policy.scope.subscription()?.0
        } else {
            new.specs()?
        };
        let client = self.client().await?;
        let mut close_has = self.list(&client).await?;
        if self.store.keys().intent.is_some() {
            // The new one is another one, by which what was begun would be forgotten.
            let orphans = self.withdraw_what_was_begun(&client, &mut close_has).await?;
            tracing::warn!(
                ?orphans,
                "another subscription was being made when that was cut off: what it had made is deleted; run it again if it is still wanted"
            );
        }
        let wish = WantedSubscription {
            url,
            events: &events,
            verify_ssl: new.verify_ssl,
            replaces: None,
            by_hand: true,
        };
        let made = self.make(&client, &close_has, &wish).await?;
        self.reconcile_now.notify_one();
        Ok(made.id)
    }

    /// Pauses a subscription, or makes it active. A pause is remembered, so that nobody resumes it unasked.
    pub async fn set_active(&self, id: &str, active: bool) -> Result<(), Error> {
        let _one_at_a_time = self.begin_change().await;
        let client = self.client().await?;
        // Remembered first: in between, the health check must not undo it.
        let paused = id.to_owned();
        let was_marked = self.store.keys().paused.contains(id);
        if !active {
            self.store
                .change_keys(move |keys| {
                    keys.paused.insert(paused);
                })
                .await?;
        }
        let status = if active { "active" } else { "paused" };
        let change = SubscriptionChange {
            status: Some(status),
            ..SubscriptionChange::default()
        };
        let changed = client.change_subscription(id, &change).await;
        let is_over = match &changed {
            Ok(()) => active,
            // What was paused before stays so; and what Close may have paused after all is not to be resumed unasked. Where it did not, the
            // mark goes with the next look.
            Err(error) => !active && !was_marked && !error.is_unclear(),
        };
        if is_over {
            let id = id.to_owned();
            self.store
                .change_keys(move |keys| {
                    keys.paused.remove(&id);
                })
                .await?;
        }
        changed?;
        self.reconcile_now.notify_one();
        Ok(())
    }

    /// Deletes a subscription and retires its key.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let _one_at_a_time = self.begin_change().await;
        self.client().await?.delete_subscription(id).await?;
        self.retire(id).await
    }

    /// Deletes; one that is gone already is fine. What Close had queued for it is fetched.
    pub(in crate::close) async fn delete_at_close(&self, client: &Client, id: &str) -> Result<(), Error> {
        match client.delete_subscription(id).await {
            Ok(()) | Err(Error::NotFound(_)) => {
                self.reconcile_now.notify_one();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The subscription is gone: its key proves what is stored, and what Close had queued for it is fetched.
    pub(in crate::close) async fn retire(&self, id: &str) -> Result<(), Error> {
        let (id, now) = (id.to_owned(), self.now());
        self.store
            .change_keys(move |keys| {
                keys.retire(&id, now);
                // One change: a stop in between would leave a rotation whose old subscription is gone.
                keys.rotation
                    .take_if(|rotation| rotation.new == id || rotation.old == id);
            })
            .await?;
        self.refresh_verifier()?;
        self.reconcile_now.notify_one();
        Ok(())
    }

    fn orphans(&self, close_has: &[Subscription]) -> Vec<String> {
        self.with_ours(|ours| {
            let orphans = close_has.iter().filter(|subscription| ours.is_orphan(subscription));
            orphans.map(|orphan| orphan.id.clone()).collect()
        })
    }

    /// Makes a subscription and has its key on disk and live when it returns.
    pub(super) async fn make(
        &self,
        client: &Client,
        close_has: &[Subscription],
        wish: &WantedSubscription<'_>,
    ) -> Result<MadeSubscription, Error> {
        let known: BTreeSet<String> = close_has.iter().map(|subscription| subscription.id.clone()).collect();
        let intent = Intent {
            url: wish.url.to_owned(),
            known,
            begun_at: self.now(),
            replaces: wish.replaces.clone(),
            by_hand: wish.by_hand,
            paused: BTreeSet::new(),
        };
        let begin = move |keys: &mut Keys| {
            // What an earlier attempt has paused is still to be seen to.
            let paused = keys.intent.take().map(|earlier| earlier.paused).unwrap_or_default();
            keys.intent = Some(Intent { paused, ..intent });
        };
        self.store.change_keys(begin).await?;
        match self.ask_for_it(client, wish).await {
            Ok(created) => self.keep(client, created, wish).await,
            Err(unclear @ Error::Unclear(_)) => Err(unclear),
            Err(error) => {
                // Surely not made. What can't be undone now stays noted.
                let _ = self.withdraw(client).await;
                Err(error)
            }
        }
    }

    /// Has Close make it: with room made where that is refused, and a look at what came of it where the answer is lost.
    async fn ask_for_it(&self, client: &Client, wish: &WantedSubscription<'_>) -> Result<Created, Error> {
        let new = NewSubscription {
            url: wish.url,
            events: wish.events,
            verify_ssl: wish.verify_ssl,
        };
        let (mut creations, mut refusals) = (0, 0);
        loop {
            let error = match client.create_subscription(&new).await {
                Ok(created) => return Ok(created),
                Err(Error::Duplicate(ids)) if refusals < REFUSALS_MAX => {
                    refusals += 1;
                    self.make_room(client, wish, ids).await?;
                    continue;
                }
                Err(error) => error,
            };
            if !error.is_unclear() {
                return Err(error);
            }
            creations += 1;
            tracing::warn!(%error, "it is not clear whether Close made the subscription: looking");
            let unclear = Error::Unclear(error.to_string());
            let close_has = self.list(client).await.map_err(|_| unclear.clone())?;
            for id in self.orphans(&close_has) {
                self.delete_at_close(client, &id).await.map_err(|_| unclear.clone())?;
                tracing::info!(
                    subscription = id,
                    "deleted a subscription whose key was lost on the way"
                );
            }
            if creations == CREATIONS_MAX {
                return Err(unclear);
            }
        }
    }

    /// The key goes to disk, and only then counts.
    async fn keep(
        &self,
        client: &Client,
        created: Created,
        wish: &WantedSubscription<'_>,
    ) -> Result<MadeSubscription, Error> {
        let id = created.id;
        let kept = async {
            let mut key = StoredKey::new(id.clone(), wish.url.to_owned(), created.signature_key, self.now())?;
            key.by_hand = wish.by_hand;
            let rotation = wish.replaces.clone().map(|old| Rotation {
                old,
                new: id.clone(),
                from: self.log.head().borrow().next(),
                begun_at: self.now(),
            });
            self.store
                .change_keys(move |keys| {
                    keys.list.push(key);
                    keys.rotation = rotation.or(keys.rotation.take());
                    keys.settle_intent();
                })
                .await
        };
        if let Err(error) = kept.await {
            // Without its key it is of no use. Where it can't be deleted either, the intent tells the orphan, and stays.
            if self.delete_at_close(client, &id).await.is_ok() {
                let _ = self.withdraw(client).await;
            }
            return Err(error);
        }
        if let Err(error) = self.refresh_verifier() {
            // Its key is durable: what is wrong with others' is no reason to delete it.
            tracing::error!(%error, subscription = id, "the new key is kept, and does not count before this is put right");
        }
        tracing::info!(
            subscription = id,
            url = wish.url,
            "subscribed; the key is in the data directory"
        );
        let due = self.store.keys().replaced.into_iter().collect();
        // The new one counts. If this fails, the next look at Close goes on with it.
        let replaced = self.clear_replaced(client).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what was replaced can't be deleted yet; it is tried again later");
            due
        });
        Ok(MadeSubscription { id, replaced })
    }
}

#[cfg(test)]
mod tests;
