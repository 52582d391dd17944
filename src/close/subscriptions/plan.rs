//! From rules to subscriptions, as functions of what is known: what Close has, which of that is ours, and the steps from there to
//! what the rules want (`scope`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ownership::{Ownership, Standing, current, gone};
use super::scope::Scope;
use crate::close::api::error::Error;
use crate::close::api::subscriptions::{EventSpec, SUBSCRIPTIONS_DOCUMENTED, Subscription};
use crate::sorted;

#[cfg(test)]
mod tests;

/// So few free subscriptions are worth a word.
const FEW_LEFT: usize = 4;

/// One thing `apply` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum PlanStep {
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
pub struct SubscriptionPlan {
    /// Where Close delivers.
    pub url: String,
    /// What it is asked for.
    pub events: Vec<EventSpec>,
    /// In this order; empty: all is as it should be.
    pub steps: Vec<PlanStep>,
    /// The difference, like a patch.
    pub diff: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The subscription that is changed or kept; `None` where one is made.
    pub subscription: Option<String>,
}

/// Compares what the rules want with what Close has.
pub(in crate::close) fn plan(
    scope: &Scope,
    ours: &Ownership<'_>,
    close_has: &[Subscription],
) -> Result<SubscriptionPlan, Error> {
    let url = ours.url.ok_or_else(|| {
        Error::Missing("it is not known where Close should deliver: set public_url in [server]".into())
    })?;
    let (events, mut notes) = scope.subscription()?;
    let mut steps = Vec::new();
    for orphan in close_has.iter().filter(|subscription| ours.is_orphan(subscription)) {
        steps.push(PlanStep::DeleteOrphan { id: orphan.id.clone() });
    }
    let is_there = |id: &str| close_has.iter().any(|subscription| subscription.id == id);
    for id in ours.keys.live_ids().into_iter().filter(|id| !is_there(id)) {
        steps.push(PlanStep::Retire { id });
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
    if let Some(current) = current {
        notes.extend(gone(ours, close_has).map(|id| {
            format!(
                "[[close.subscriptions]] names {id}, which Close does not have, and {} delivers here: remove it from the configuration",
                current.id
            )
        }));
    }
    let mut diff = Vec::new();
    if let Some(current) = current {
        let step = difference(current, url, &events, ours, &mut diff);
        steps.extend(step);
    } else {
        diff.push(format!("--- nothing at Close delivers to {url}"));
        diff.push("+++ what the rules want".into());
        diff.push(format!("+url {url}"));
        diff.extend(events.iter().map(|spec| format!("+{}", line(spec))));
        steps.push(PlanStep::Create);
    }
    let orphans = steps
        .iter()
        .filter(|step| matches!(step, PlanStep::DeleteOrphan { .. }))
        .count();
    let count = close_has.len() - orphans + usize::from(current.is_none());
    if current.is_none() && count + FEW_LEFT > SUBSCRIPTIONS_DOCUMENTED {
        notes.push(format!(
            "with this the organization has {count} subscriptions; Close's documentation allows {SUBSCRIPTIONS_DOCUMENTED}, though some have more"
        ));
    }
    Ok(SubscriptionPlan {
        url: url.to_owned(),
        events,
        steps,
        diff,
        notes,
        subscription: current.map(|current| current.id.clone()),
    })
}

fn difference(
    current: &Subscription,
    url: &str,
    wanted: &[EventSpec],
    ours: &Ownership<'_>,
    diff: &mut Vec<String>,
) -> Option<PlanStep> {
    let by_name = |specs: &[EventSpec]| -> BTreeMap<String, EventSpec> {
        sorted::map(specs.iter().map(|spec| (spec.name(), spec.clone())))
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
    Some(PlanStep::Update {
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
fn unverified(ours: &Ownership<'_>, subscription: &Subscription) -> Option<String> {
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
