//! Which of an organization's subscriptions are ours.

use serde::{Deserialize, Serialize};

use crate::close::api::subscriptions::Subscription;
use crate::close::store::Keys;

/// What is needed to tell our subscriptions from others'.
#[derive(Debug)]
pub(in crate::close) struct Ownership<'o> {
    /// Made here.
    pub keys: &'o Keys,
    /// The `[[close.subscriptions]]` of the configuration: their ids, or `None` for a key that counts for any.
    pub configured: &'o [Option<String>],
    /// Where deliveries should go; `None` where the configuration does not say.
    pub url: Option<&'o str>,
}

/// How a subscription stands to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its deliveries are accepted here.
    Ours,
    /// It delivers to our URL, but no key for it is known.
    Keyless,
    /// Somebody else's.
    Foreign,
}

impl Ownership<'_> {
    /// How the subscription stands to us.
    pub fn standing(&self, subscription: &Subscription) -> Standing {
        let id = Some(subscription.id.clone());
        let points_here = self.url == Some(subscription.url.as_str());
        if self.keys.live(&subscription.id).is_some() || self.configured.contains(&id) {
            Standing::Ours
        } else if points_here && self.configured.contains(&None) {
            // A key without an id counts for any subscription.
            Standing::Ours
        } else if points_here {
            Standing::Keyless
        } else {
            Standing::Foreign
        }
    }

    /// Whether it was made by us and its key was lost on the way: at the URL of a creation that was begun, unknown before, and
    /// without a key, be it one made here or one that the configuration names.
    pub fn is_orphan(&self, subscription: &Subscription) -> bool {
        let is_configured = self.configured.contains(&Some(subscription.id.clone()));
        !is_configured
            && self.keys.intent.as_ref().is_some_and(|intent| {
                intent.url == subscription.url
                    && !intent.known.contains(&subscription.id)
                    && self.keys.live(&subscription.id).is_none()
            })
    }
}

/// The subscriptions that only the configuration names and Close does not have.
pub(in crate::close) fn gone<'o>(
    ours: &Ownership<'o>,
    close_has: &'o [Subscription],
) -> impl Iterator<Item = &'o String> {
    let keys = ours.keys;
    let is_there = |id: &String| close_has.iter().any(|other| other.id == *id);
    let named = ours.configured.iter().flatten();
    named.filter(move |id| keys.live(id).is_none() && !is_there(id))
}

/// The subscription that is ours to change: the newest one that `apply` made, else one made by hand, else one that the
/// configuration has a key for.
pub(in crate::close) fn current<'s>(ours: &Ownership<'_>, close_has: &'s [Subscription]) -> Option<&'s Subscription> {
    let points_here = |subscription: &Subscription| Some(subscription.url.as_str()) == ours.url;
    // One made by hand for another place is none of our business.
    let may_change = |subscription: &&Subscription| {
        let by_hand = ours.keys.live(&subscription.id).is_some_and(|key| key.by_hand);
        !by_hand || points_here(subscription)
    };
    let made_here = close_has
        .iter()
        .filter(may_change)
        .filter_map(|subscription| {
            let key = ours.keys.live(&subscription.id)?;
            Some(((!key.by_hand, key.made_at), subscription))
        })
        .max_by_key(|(rank, _)| *rank);
    let others = || {
        let is_ours = |subscription: &&Subscription| {
            ours.standing(subscription) == Standing::Ours && !ours.is_orphan(subscription)
        };
        let mut candidates = close_has.iter().filter(may_change).filter(is_ours);
        let here = candidates.clone().find(|subscription| points_here(subscription));
        here.or_else(|| candidates.next())
    };
    made_here.map(|(_, subscription)| subscription).or_else(others)
}
