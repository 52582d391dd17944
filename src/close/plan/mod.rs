//! From rules to subscriptions, as functions of what is known: what Close has, which of that is ours, and the steps from there to
//! what the rules want (`scope`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::store::Keys;
use super::subscriptions::{EventSpec, SUBSCRIPTIONS_DOCUMENTED, Subscription};

mod scope;
#[cfg(test)]
mod tests;

pub use scope::Scope;
pub(super) use scope::{name, split};

/// So few free subscriptions are worth a word.
const FEW_LEFT: usize = 4;

/// What is needed to tell our subscriptions from others'.
#[derive(Debug)]
pub(super) struct Ours<'o> {
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

impl Ours<'_> {
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

/// One thing `apply` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Delete a subscription whose key was lost when it was made.
    DeleteOrphan {
        /// Which.
        id: String,
    },
    /// A subscription was deleted elsewhere: its key is retired.
    Retire {
        /// Which.
        id: String,
    },
    /// Make one.
    Create,
    /// Change one in place.
    Update {
        /// Which.
        id: String,
        /// Whether its URL changes.
        url: bool,
        /// Whether its events change.
        events: bool,
        /// Whether a filter over all of it is removed.
        unfilter: bool,
        /// Whether it is made active.
        resume: bool,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where Close delivers.
    pub url: String,
    /// What it is asked for.
    pub events: Vec<EventSpec>,
    /// In this order; empty: all is as it should be.
    pub steps: Vec<Step>,
    /// The difference, like a patch.
    pub diff: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The subscription that is changed or kept; `None` where one is made.
    pub subscription: Option<String>,
}

/// Compares what the rules want with what Close has.
pub(super) fn plan(scope: &Scope, ours: &Ours<'_>, close_has: &[Subscription]) -> Result<Plan, Error> {
    let url = ours.url.ok_or_else(|| {
        Error::Missing("it is not known where Close should deliver: set public_url in [server]".into())
    })?;
    let (events, mut notes) = scope.subscription()?;
    let mut steps = Vec::new();
    for orphan in close_has.iter().filter(|subscription| ours.is_orphan(subscription)) {
        steps.push(Step::DeleteOrphan { id: orphan.id.clone() });
    }
    let is_there = |id: &str| close_has.iter().any(|subscription| subscription.id == id);
    for id in ours.keys.live_ids().into_iter().filter(|id| !is_there(id)) {
        steps.push(Step::Retire { id });
    }
    let current = current(ours, close_has);
    for other in close_has
        .iter()
        .filter(|other| other.url == url && !ours.is_orphan(other))
    {
        match ours.standing(other) {
            Standing::Keyless if current.is_none() && other.is_active() && same(&other.events, &events) => notes.push(format!(
                "{} delivers here and asks for the same, and its key is not known here: it is replaced where Close has no two of them",
                other.id
            )),
            Standing::Keyless => notes.push(format!(
                "{} delivers here too, and its key is not known: its deliveries are refused; if nobody needs it: closehook subscription delete {}",
                other.id, other.id
            )),
            Standing::Ours if current.is_some_and(|current| current.id != other.id) && ours.keys.rotation.is_none() => {
                notes.push(format!(
                    "{} delivers here too, so events come twice and are stored once; if it is left over: closehook subscription delete {}",
                    other.id, other.id
                ));
            }
            Standing::Ours | Standing::Foreign => {}
        }
    }
    notes.extend(close_has.iter().filter_map(|other| unverified(ours, other)));
    let mut diff = Vec::new();
    if let Some(current) = current {
        let step = difference(current, url, &events, ours, &mut diff);
        steps.extend(step);
    } else {
        diff.push(format!("--- nothing at Close delivers to {url}"));
        diff.push("+++ what the rules want".into());
        diff.push(format!("+url {url}"));
        diff.extend(events.iter().map(|spec| format!("+{}", line(spec))));
        steps.push(Step::Create);
    }
    let orphans = steps
        .iter()
        .filter(|step| matches!(step, Step::DeleteOrphan { .. }))
        .count();
    let count = close_has.len() - orphans + usize::from(current.is_none());
    if current.is_none() && count + FEW_LEFT > SUBSCRIPTIONS_DOCUMENTED {
        notes.push(format!(
            "with this the organization has {count} subscriptions; Close's documentation allows {SUBSCRIPTIONS_DOCUMENTED}, though some have more"
        ));
    }
    Ok(Plan {
        url: url.to_owned(),
        events,
        steps,
        diff,
        notes,
        subscription: current.map(|current| current.id.clone()),
    })
}

/// The subscription that is ours to change: the newest one that `apply` made, else one made by hand, else one that the
/// configuration has a key for.
pub(super) fn current<'s>(ours: &Ours<'_>, close_has: &'s [Subscription]) -> Option<&'s Subscription> {
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

fn difference(
    current: &Subscription,
    url: &str,
    wanted: &[EventSpec],
    ours: &Ours<'_>,
    diff: &mut Vec<String>,
) -> Option<Step> {
    let by_name = |specs: &[EventSpec]| -> BTreeMap<String, EventSpec> {
        specs.iter().map(|spec| (spec.name(), spec.clone())).collect()
    };
    let (has, wants) = (by_name(&current.events), by_name(wanted));
    let mut lines = Vec::new();
    let other_url = current.url != url;
    if other_url {
        lines.extend([format!("-url {}", current.url), format!("+url {url}")]);
    }
    let paused_by_a_person = ours.keys.paused.contains(&current.id);
    let resume = !current.is_active() && !paused_by_a_person;
    if resume {
        lines.extend([format!("-status {}", current.status), "+status active".to_owned()]);
    }
    if let Some(filter) = &current.event_filter {
        lines.push(format!("-event_filter {}", filter.get()));
    }
    let names: BTreeSet<&String> = has.keys().chain(wants.keys()).collect();
    let (mut same, mut changed) = (0, false);
    for name in names {
        match (has.get(name), wants.get(name)) {
            (Some(has), Some(wants)) if has == wants => same += 1,
            (has, wants) => {
                changed = true;
                lines.extend(has.map(|spec| format!("-{}", line(spec))));
                lines.extend(wants.map(|spec| format!("+{}", line(spec))));
            }
        }
    }
    // A type that stands twice in what Close has would hide behind its name.
    changed |= has.len() != current.events.len();
    if lines.is_empty() && !changed {
        return None;
    }
    diff.push(format!("--- {} as Close has it ({})", current.id, current.status));
    diff.push("+++ what the rules want".into());
    diff.append(&mut lines);
    if same > 0 {
        diff.push(format!(" ({same} event types stay as they are)"));
    }
    Some(Step::Update {
        id: current.id.clone(),
        url: other_url,
        events: changed,
        unfilter: current.event_filter.is_some(),
        resume,
    })
}

/// Whether both ask for the same, in any order.
fn same(some: &[EventSpec], others: &[EventSpec]) -> bool {
    some.len() == others.len() && some.iter().all(|spec| others.contains(spec))
}

/// What a person should know of one of ours whose receiver's certificate Close does not check.
fn unverified(ours: &Ours<'_>, subscription: &Subscription) -> Option<String> {
    let is_ours = ours.standing(subscription) == Standing::Ours;
    (is_ours && subscription.verify_ssl == Some(false)).then(|| {
        format!(
            "{} has verify_ssl false: Close delivers without checking whose certificate {} shows",
            subscription.id, subscription.url
        )
    })
}

fn line(spec: &EventSpec) -> String {
    match spec.filter() {
        None => spec.name(),
        Some(filter) => format!("{} where {filter}", spec.name()),
    }
}
