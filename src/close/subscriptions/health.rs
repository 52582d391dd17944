//! How our subscriptions do at Close, each judged by itself: what is wrong is said once, what can be put right is.
//!
//! What Close has paused is made active again, though less and less often where that does not last: whoever pauses it again
//! and again means it. What somebody else has paused is left alone, and said.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::ownership::{Ownership, Standing, current, gone};
use crate::close::account::{Account, Policy};
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::close::api::subscriptions::{Subscription, SubscriptionChange};
use crate::close::chronicle::paused_among;
use crate::close::seen::{Condition, FoundSubscription, Resumed};
use crate::close::store::Keys;
use crate::json;

/// So often Close is asked anew because something has changed meanwhile; then changes wait for the answer.
const LOOKS_MAX: u32 = 3;

impl Account {
    /// One look at the subscriptions.
    pub(in crate::close) async fn check(&self) -> Result<(), Error> {
        let client = self.client().await?;
        self.store.check()?;
        // Whether that goes well or not, how the others do is looked at.
        let begun = self.finish_what_was_begun().await;
        let (policy, mut found) = self.found(&client).await?;
        self.forget_undone_pauses(&client, &found).await?;
        let paused = paused_among(&found);
        let there = found.iter().filter(|one| one.url.is_some());
        let there: BTreeSet<String> = there.map(|one| one.id.clone()).collect();
        let mut resumed = Ok(());
        for one in found.iter_mut().filter(|one| one.state == Condition::Paused) {
            if policy.auto_resume
                && let Err(error) = self.resume(&client, one, &there).await
            {
                resumed = Err(error);
                break;
            }
        }
        self.tell(&found);
        self.keep_pauses(paused, &found).await;
        {
            let mut seen = self.seen();
            seen.found = found;
            seen.checked_at = Some(self.now());
            seen.got_on();
        }
        begun?;
        resumed?;
        if let Some(rotation) = self.store.keys().rotation
            && self.has_delivered(&rotation).await?
        {
            self.finish_rotation(&rotation).await?;
        }
        Ok(())
    }

    /// What concerns us of the subscriptions, and the policy by which it does. Close's list, the keys and the policy are of one
    /// time: nobody here changes anything in between. What is made while Close answers would be missing in its list, and what is
    /// deleted would stand there without a key.
    async fn found(&self, client: &Client) -> Result<(Arc<Policy>, Vec<FoundSubscription>), Error> {
        let mut rounds = 0_u32;
        loop {
            let changing = self.changing.lock().await;
            let (policy, changes) = (self.policy(), self.changes());
            // Close may take its time, and nobody is to wait for a look; but a look is not to be put off for ever either.
            let held = (rounds == LOOKS_MAX).then_some(changing);
            let close_has = self.list(client).await?;
            let _one_at_a_time = match held {
                Some(held) => held,
                None => self.changing.lock().await,
            };
            let is_as_it_was = changes == self.changes() && Arc::ptr_eq(&policy, &self.policy());
            if is_as_it_was {
                let found = policy.with_ours(&self.store, |ours| find(ours, &policy, &close_has));
                return Ok((policy, found));
            }
            rounds = (rounds + 1).min(LOOKS_MAX);
        }
    }

    /// Makes one active that Close has paused. What Close says to that is noted with it; an error is one that concerns all.
    /// `there`: the subscriptions that Close has of those that concern us.
    async fn resume(
        &self,
        client: &Client,
        one: &mut FoundSubscription,
        there: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let before = self.seen().resumed.get(&one.id).copied();
        let Some(next) = Resumed::next(before, Instant::now()) else {
            // What was said to the last try still holds.
            let seen = self.seen();
            let last = seen.found.iter().find(|last| last.id == one.id);
            one.trouble = last.and_then(|last| last.trouble.clone());
            return Ok(());
        };
        // A person may have paused it since, or be replacing it.
        let _one_at_a_time = self.begin_change().await;
        let resumed = match self.look_again(client, one, there).await {
            Ok(()) if one.state != Condition::Paused => return Ok(()),
            Ok(()) => {
                self.seen().resumed.insert(one.id.clone(), next);
                let change = SubscriptionChange {
                    status: Some("active"),
                    ..SubscriptionChange::default()
                };
                client.change_subscription(&one.id, &change).await
            }
            Err(error) => Err(error),
        };
        match resumed {
            Ok(()) => {
                tracing::warn!(
                    subscription = one.id,
                    reason = one.pause_reason,
                    "Close had paused the subscription and cleared its queue: it is active again, and the gap is being filled"
                );
                one.state = Condition::Active;
                self.reconcile_now.notify_one();
                Ok(())
            }
            Err(error) if error.is_particular() => {
                one.trouble = Some(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// How one of ours does now, for whoever holds `changing`.
    async fn look_again(
        &self,
        client: &Client,
        one: &mut FoundSubscription,
        there: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let shown = match client.subscription(&one.id).await {
            Ok(shown) => shown,
            Err(Error::NotFound(_)) => {
                *one = FoundSubscription::absent(one.id.clone(), Condition::Missing);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let shown: Subscription = serde_json::from_value(shown).map_err(|error| Error::Garbled(json::unfit(&error)))?;
        let policy = self.policy();
        let state = policy.with_ours(&self.store, |ours| {
            condition(ours, &policy, &shown, |id| there.contains(id))
        });
        // One that is nobody's of us any more is not to be resumed either.
        *one = FoundSubscription::shown(&shown, state.unwrap_or(Condition::Elsewhere));
        Ok(())
    }

    /// A person's pause that was undone at Close is over: the next one is another.
    async fn forget_undone_pauses(&self, client: &Client, found: &[FoundSubscription]) -> Result<(), Error> {
        let marked = self.store.keys().paused;
        for one in found
            .iter()
            .filter(|one| one.state == Condition::Active && marked.contains(&one.id))
        {
            // A pause that is just being made is marked before Close has it.
            let _one_at_a_time = self.begin_change().await;
            let shown = client.subscription(&one.id).await?;
            if shown["status"] == "active" {
                let id = one.id.clone();
                self.store
                    .change_keys(move |keys| {
                        keys.paused.remove(&id);
                    })
                    .await?;
            }
        }
        Ok(())
    }

    /// Logs what has changed since the last look.
    fn tell(&self, found: &[FoundSubscription]) {
        let before: Vec<FoundSubscription> = self.seen().found.clone();
        let is_news = |one: &&FoundSubscription| !before.iter().any(|other| other.is_like(one));
        for one in found.iter().filter(is_news) {
            let subscription = one.id.as_str();
            let reason = one.pause_reason.as_deref().unwrap_or("it does not say why");
            match one.state {
                Condition::Active => tracing::info!(subscription, "the subscription is active"),
                Condition::Paused => match &one.trouble {
                    Some(trouble) => tracing::error!(
                        subscription,
                        reason,
                        "Close has paused the subscription ({reason}), and it can't be made active again: {trouble}"
                    ),
                    None if self.policy().auto_resume => tracing::error!(
                        subscription,
                        reason,
                        "the subscription is paused again ({reason}): it is made active again later; at once with `closehook subscription resume {subscription}`"
                    ),
                    None => tracing::error!(
                        subscription,
                        reason,
                        "Close has paused the subscription ({reason}), and auto_resume is off: `closehook subscription resume {subscription}`"
                    ),
                },
                Condition::PausedByHand => {
                    tracing::info!(subscription, "the subscription is paused, as it was told to be");
                }
                Condition::PausedBySomebody => tracing::warn!(
                    subscription,
                    "somebody has paused the subscription at Close, neither Close nor closehook: it is left so, and events are only fetched; `closehook subscription resume {subscription}` makes it active"
                ),
                Condition::BeingReplaced => {
                    tracing::info!(subscription, "the subscription is paused and being replaced");
                }
                Condition::Missing => tracing::error!(
                    subscription,
                    "Close does not have the subscription any more: `closehook subscription apply` makes it anew, or takes its key out of use where another one delivers here"
                ),
                Condition::Gone => tracing::warn!(
                    subscription,
                    "[[close.subscriptions]] names a subscription that Close does not have any more, and another one delivers here: remove it from the configuration"
                ),
                Condition::Elsewhere => tracing::error!(
                    subscription,
                    url = one.url,
                    "the subscription delivers elsewhere: `closehook subscription plan` shows the difference"
                ),
                Condition::Keyless => tracing::warn!(
                    subscription,
                    "a subscription delivers here whose key is not known; its deliveries are refused"
                ),
            }
        }
    }
}

/// Every subscription that concerns us, and how it does.
fn find(ours: &Ownership<'_>, policy: &Policy, close_has: &[Subscription]) -> Vec<FoundSubscription> {
    let is_there = |id: &String| close_has.iter().any(|other| other.id == *id);
    let mut found: Vec<FoundSubscription> = close_has
        .iter()
        .filter_map(|one| Some(FoundSubscription::shown(one, condition(ours, policy, one, is_there)?)))
        .collect();
    let lost = ours.keys.live_ids().into_iter().filter(|id| !is_there(id));
    found.extend(lost.map(|id| FoundSubscription::absent(id, Condition::Missing)));
    // `apply` makes one where there is none; else it leaves it at that.
    let state = match current(ours, close_has) {
        Some(_) => Condition::Gone,
        None => Condition::Missing,
    };
    let gone: BTreeSet<&String> = gone(ours, close_has).collect();
    found.extend(gone.into_iter().map(|id| FoundSubscription::absent(id.clone(), state)));
    found
}

/// How a subscription does that Close has; `None` where it does not concern us.
fn condition(
    ours: &Ownership<'_>,
    policy: &Policy,
    subscription: &Subscription,
    is_there: impl Fn(&String) -> bool,
) -> Option<Condition> {
    Some(match ours.standing(subscription) {
        Standing::Foreign => return None,
        Standing::Keyless => Condition::Keyless,
        Standing::Ours if !subscription.is_active() => paused(ours.keys, subscription, is_there),
        Standing::Ours if policy.url.as_ref().is_some_and(|url| *url != subscription.url) => {
            // One made by hand may well point to another place.
            let key = ours.keys.live(&subscription.id);
            if key.is_some_and(|key| key.by_hand && key.url == subscription.url) {
                Condition::Active
            } else {
                Condition::Elsewhere
            }
        }
        Standing::Ours => Condition::Active,
    })
}

/// Who has paused one of ours.
fn paused(keys: &Keys, subscription: &Subscription, is_there: impl Fn(&String) -> bool) -> Condition {
    let id = &subscription.id;
    let intent = keys.intent.as_ref();
    if intent.is_some_and(|intent| intent.paused.contains(id)) {
        return Condition::BeingReplaced;
    }
    if let Some(rotation) = keys.rotation.as_ref().filter(|rotation| rotation.old == *id) {
        // We have paused it. If the new one is gone, it is all there is.
        return if is_there(&rotation.new) {
            Condition::BeingReplaced
        } else {
            Condition::Paused
        };
    }
    if keys.paused.contains(id) {
        Condition::PausedByHand
    } else if subscription.is_paused_by_somebody() {
        Condition::PausedBySomebody
    } else {
        Condition::Paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::subscriptions::scope::Scope;
    use crate::rules::RuleSet;
    use std::time::Duration;

    fn policy() -> Policy {
        Policy::for_tests(Scope::of(&RuleSet::compile(&[], &[]).unwrap(), true))
    }

    #[test]
    fn each_subscription_has_its_condition() {
        let keys: Keys = serde_json::from_str(
            r#"{"version":1,"intent":null,"rotation":{"old":"whsub_10","new":"whsub_1","from":1,"begun_at":"2024-01-01T00:00:00Z"},"paused":["whsub_3"],"keys":[
                {"id":"whsub_1","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_3","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_4","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_9","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_10","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_8","url":"https://hand/","by_hand":true,"signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_5","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":"2024-01-02T00:00:00Z"}]}"#,
        )
        .unwrap();
        let mut policy = policy();
        policy.configured = vec![Some("whsub_2".into()), Some("whsub_6".into())];
        let close_has: Vec<Subscription> = serde_json::from_str(
            r#"[{"id":"whsub_1","url":"https://here/","status":"active"},{"id":"whsub_2","url":"https://here/","status":"paused"},
                {"id":"whsub_3","url":"https://here/","status":"paused"},{"id":"whsub_4","url":"https://there/","status":"active"},
                {"id":"whsub_8","url":"https://hand/","status":"active"},
                {"id":"whsub_7","url":"https://here/","status":"active"},
                {"id":"whsub_9","url":"https://here/","status":"paused","pause_reason":null},
                {"id":"whsub_10","url":"https://here/","status":"paused","pause_reason":null},{"id":"whsub_x","url":"https://x/","status":"active"}]"#,
        )
        .unwrap();
        let ours = Ownership {
            keys: &keys,
            configured: &policy.configured,
            url: policy.url.as_deref(),
        };
        let found = find(&ours, &policy, &close_has);
        let states: Vec<(&str, Condition)> = found.iter().map(|one| (one.id.as_str(), one.state)).collect();
        assert_eq!(
            states,
            [
                ("whsub_1", Condition::Active),
                ("whsub_2", Condition::Paused),
                ("whsub_3", Condition::PausedByHand),
                ("whsub_4", Condition::Elsewhere),
                ("whsub_8", Condition::Active),
                ("whsub_7", Condition::Keyless),
                ("whsub_9", Condition::PausedBySomebody),
                ("whsub_10", Condition::BeingReplaced),
                ("whsub_6", Condition::Gone),
            ]
        );
    }

    #[test]
    fn one_that_only_the_configuration_names_is_gone_where_another_one_is_there() {
        let keys: Keys = serde_json::from_str(
            r#"{"version":1,"intent":null,"rotation":null,"keys":[
                {"id":"whsub_1","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null},
                {"id":"whsub_3","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null}]}"#,
        )
        .unwrap();
        let mut policy = policy();
        policy.configured = vec![Some("whsub_2".into())];
        let state = |close_has: &str, id: &str| {
            let close_has: Vec<Subscription> = serde_json::from_str(close_has).unwrap();
            let ours = Ownership {
                keys: &keys,
                configured: &policy.configured,
                url: policy.url.as_deref(),
            };
            let found = find(&ours, &policy, &close_has);
            found.into_iter().find(|one| one.id == id).unwrap().state
        };
        let one = r#"[{"id":"whsub_1","url":"https://here/","status":"active"}]"#;
        assert_eq!(state(one, "whsub_2"), Condition::Gone);
        assert_eq!(
            state(one, "whsub_3"),
            Condition::Missing,
            "its key is kept here, until `apply` retires it"
        );
        // Nothing that could stand in its place.
        for nothing in ["[]", r#"[{"id":"whsub_9","url":"https://here/","status":"active"}]"#] {
            assert_eq!(state(nothing, "whsub_2"), Condition::Missing);
        }
    }

    #[test]
    fn the_old_one_is_resumed_where_the_new_one_is_gone() {
        let keys: Keys = serde_json::from_str(
            r#"{"version":1,"intent":null,"rotation":{"old":"whsub_1","new":"whsub_2","from":1,"begun_at":"2024-01-01T00:00:00Z"},"keys":[]}"#,
        )
        .unwrap();
        let old: Subscription =
            serde_json::from_str(r#"{"id":"whsub_1","url":"https://here/","status":"paused","pause_reason":null}"#)
                .unwrap();
        assert_eq!(paused(&keys, &old, |_| true), Condition::BeingReplaced);
        assert_eq!(paused(&keys, &old, |_| false), Condition::Paused);
    }

    #[test]
    fn a_pause_that_comes_back_is_undone_less_and_less_often() {
        let start = Instant::now();
        let (mut last, mut times) = (None, Vec::new());
        // Somebody pauses it every second.
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            if let Some(next) = Resumed::next(last, now) {
                last = Some(next);
                times.push(second);
            }
        }
        assert_eq!(times, [0, 60, 180, 420, 900, 1860]);
        let days_later = start + Duration::from_secs(3 * 86_400);
        assert_eq!(Resumed::next(last, days_later).map(|next| next.times), Some(1));
    }
}
