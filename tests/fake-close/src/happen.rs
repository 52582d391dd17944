//! What happens in the simulated organization: for each index, which event that is, whom it concerns, and when it is changed
//! again. All of it follows from seed and index, so a million events cost nothing until somebody looks at them.

use std::time::Duration;

use super::dice::Dice;
use super::moment::Moment;
use super::settings::Settings;

/// Users of the organization.
const USERS: u64 = 12;

/// Events that one lead has, on average.
const EVENTS_PER_LEAD: u64 = 25;

/// Events that one API request causes.
const EVENTS_PER_REQUEST: u64 = 3;

/// Leads that existed before the first event.
const LEADS_FROM_BEFORE: u64 = 40;

/// What an object looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Lead,
    Contact,
    Opportunity,
    Email,
    Call,
    Sms,
    Note,
    Meeting,
    CustomActivity,
    StatusChange,
    Task,
    Unsubscribed,
    SequenceSubscription,
    CustomObject,
    BulkAction,
    Membership,
    Comment,
    Unknown,
}

/// A kind of event.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub object_type: &'static str,
    pub action: &'static str,
    pub prefix: &'static str,
    pub shape: Shape,
    /// How often it happens, relative to the others.
    weight: u64,
}

const fn kind(
    object_type: &'static str,
    action: &'static str,
    prefix: &'static str,
    shape: Shape,
    weight: u64,
) -> Kind {
    Kind {
        object_type,
        action,
        prefix,
        shape,
        weight,
    }
}

/// Roughly what a busy sales team causes. The last two are types that no documentation names, as is the
/// update of a completed task, which Close does send.
pub static KINDS: [Kind; 48] = [
    kind("lead", "created", "lead_", Shape::Lead, 40),
    kind("lead", "updated", "lead_", Shape::Lead, 220),
    kind("lead", "deleted", "lead_", Shape::Lead, 8),
    kind("lead", "merged", "lead_", Shape::Lead, 8),
    kind("contact", "created", "cont_", Shape::Contact, 50),
    kind("contact", "updated", "cont_", Shape::Contact, 80),
    kind("contact", "deleted", "cont_", Shape::Contact, 8),
    kind("opportunity", "created", "oppo_", Shape::Opportunity, 30),
    kind("opportunity", "updated", "oppo_", Shape::Opportunity, 70),
    kind("opportunity", "deleted", "oppo_", Shape::Opportunity, 4),
    kind("activity.email", "created", "acti_", Shape::Email, 60),
    kind("activity.email", "sent", "acti_", Shape::Email, 50),
    kind("activity.email", "updated", "acti_", Shape::Email, 20),
    kind("activity.call", "created", "acti_", Shape::Call, 30),
    kind("activity.call", "answered", "acti_", Shape::Call, 8),
    kind("activity.call", "completed", "acti_", Shape::Call, 30),
    kind("activity.call", "updated", "acti_", Shape::Call, 30),
    kind("activity.task_completed", "updated", "acti_", Shape::Task, 6),
    kind("activity.sms", "created", "acti_", Shape::Sms, 20),
    kind("activity.sms", "sent", "acti_", Shape::Sms, 10),
    kind("activity.note", "created", "acti_", Shape::Note, 40),
    kind("activity.note", "updated", "acti_", Shape::Note, 20),
    kind("activity.note", "deleted", "acti_", Shape::Note, 4),
    kind("activity.meeting", "scheduled", "acti_", Shape::Meeting, 14),
    kind("activity.meeting", "updated", "acti_", Shape::Meeting, 8),
    kind("activity.meeting", "canceled", "acti_", Shape::Meeting, 4),
    kind(
        "activity.custom_activity",
        "created",
        "acti_",
        Shape::CustomActivity,
        10,
    ),
    kind(
        "activity.lead_status_change",
        "created",
        "acti_",
        Shape::StatusChange,
        20,
    ),
    kind(
        "activity.opportunity_status_change",
        "created",
        "acti_",
        Shape::StatusChange,
        10,
    ),
    kind("task.lead", "created", "task_", Shape::Task, 20),
    kind("task.lead", "completed", "task_", Shape::Task, 16),
    kind("task.outgoing_call", "created", "task_", Shape::Task, 6),
    kind("unsubscribed_email", "created", "unsub_", Shape::Unsubscribed, 20),
    kind("unsubscribed_email", "deleted", "unsub_", Shape::Unsubscribed, 4),
    kind(
        "sequence_subscription",
        "created",
        "sub_",
        Shape::SequenceSubscription,
        10,
    ),
    kind(
        "sequence_subscription",
        "updated",
        "sub_",
        Shape::SequenceSubscription,
        14,
    ),
    kind("custom_object", "created", "coi_", Shape::CustomObject, 8),
    kind("custom_object", "updated", "coi_", Shape::CustomObject, 8),
    kind("bulk_action.edit", "created", "bulkaction_", Shape::BulkAction, 1),
    kind("bulk_action.edit", "completed", "bulkaction_", Shape::BulkAction, 1),
    kind("bulk_action.email", "paused", "bulkaction_", Shape::BulkAction, 1),
    kind("membership", "activated", "memb_", Shape::Membership, 1),
    kind("membership", "deactivated", "memb_", Shape::Membership, 1),
    kind("comment", "created", "comm_", Shape::Comment, 6),
    kind("comment", "updated", "comm_", Shape::Comment, 2),
    kind("comment", "deleted", "comm_", Shape::Comment, 1),
    kind("future_thing.subtype", "exploded", "fut_", Shape::Unknown, 3),
    kind("activity.telepathy", "imagined", "acti_", Shape::Unknown, 3),
];

const fn total_weight() -> u64 {
    let mut total = 0;
    let mut index = 0;
    while index < KINDS_LEN {
        total += KINDS[index].weight;
        index += 1;
    }
    total
}

const KINDS_LEN: usize = 48;
const WEIGHTS: u64 = total_weight();

/// Whom and what an event concerns.
#[derive(Debug, Clone)]
pub struct Facts {
    pub kind: &'static Kind,
    /// The number of its lead, if it has one.
    pub lead: Option<u64>,
    /// The number of its object.
    pub object: u64,
    /// Who caused it; `None` for what happened by itself.
    pub user: Option<u64>,
    /// The API request it was part of.
    pub request: Option<u64>,
}

/// Topics that chance decides on independently.
const FACTS: u64 = 1;
const REVISIONS: u64 = 2;
const VISIBLE: u64 = 3;
const WEBHOOK: u64 = 4;

/// The event of this index.
pub fn facts(seed: u64, index: u64) -> Facts {
    let mut dice = Dice::of(&[seed, FACTS, index]);
    let mut pick = dice.below(WEIGHTS);
    let kind = KINDS
        .iter()
        .find(|kind| {
            let found = pick < kind.weight;
            pick = pick.saturating_sub(kind.weight);
            found
        })
        .unwrap_or(&KINDS[0]);
    let request = index / EVENTS_PER_REQUEST;
    let user = Dice::of(&[seed, FACTS, request, 0]).below(USERS + 1);
    let newest = LEADS_FROM_BEFORE + index / EVENTS_PER_LEAD;
    let lead = match kind.shape {
        Shape::Lead if kind.action == "created" => newest,
        // Work is done on recent leads, mostly.
        _ if dice.chance(0.7) => newest.saturating_sub(dice.below(LEADS_FROM_BEFORE)),
        _ => dice.below(newest + 1),
    };
    let object = match kind.shape {
        Shape::Lead => lead,
        Shape::Contact => lead * 4 + dice.below(3),
        Shape::Opportunity => lead * 4 + dice.below(2),
        Shape::Membership => dice.below(USERS),
        _ if kind.action == "created" => index,
        _ => index.saturating_sub(dice.below(200)),
    };
    Facts {
        kind,
        lead: match kind.shape {
            Shape::Unsubscribed | Shape::BulkAction | Shape::Membership => None,
            _ => Some(lead),
        },
        object,
        user: (user < USERS).then_some(user),
        request: (user < USERS).then_some(request),
    }
}

/// When the event of this index is changed again: updates are, up to three times, each within some minutes of the last; and the
/// creation of a draft that is published soon after, which no update tells of then.
pub fn revisions(seed: u64, index: u64, created: Moment) -> Vec<Moment> {
    let mut dice = Dice::of(&[seed, REVISIONS, index]);
    let kind = facts(seed, index).kind;
    let is_draft = kind.shape == Shape::CustomActivity && kind.action == "created";
    if is_draft && dice.chance(0.5) {
        return vec![created.plus(Duration::from_secs(2) + dice.span(Duration::from_secs(30)))];
    }
    if kind.action != "updated" || !dice.chance(0.3) {
        return Vec::new();
    }
    let mut at = created;
    (0..=dice.below(3))
        .map(|_| {
            let gap = Duration::from_secs(2) + dice.span(Duration::from_secs(480));
            at = at.plus(gap);
            at
        })
        .collect()
}

/// When a revision can first be seen in the event log.
pub fn visible(settings: &Settings, seed: u64, event: u64, nth: u8, updated: Moment) -> Moment {
    let mut dice = Dice::of(&[seed, VISIBLE, event, u64::from(nth)]);
    let longest = settings.visibility_lag.0;
    let lag = if dice.chance(0.2) {
        dice.span(longest)
    } else {
        dice.span(longest.min(Duration::from_millis(1500)))
    };
    updated.plus(lag)
}

/// When a revision's webhook is first sent: `updated` and `deleted` wait for consolidation, some are held up by chance.
pub fn webhook(settings: &Settings, seed: u64, event: u64, nth: u8, action: &str, updated: Moment) -> Moment {
    let mut dice = Dice::of(&[seed, WEBHOOK, event, u64::from(nth)]);
    let mut at = updated;
    if matches!(action, "updated" | "deleted") {
        at = at.plus(settings.consolidation.0);
    }
    if dice.chance(settings.disorder) {
        at = at.plus(dice.span(settings.disorder_max.0));
    }
    at
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_world_and_another_makes_another() {
        let world = |seed| {
            (0..500)
                .map(|index| format!("{:?}", facts(seed, index)))
                .collect::<Vec<_>>()
        };
        assert_eq!(world(7), world(7));
        assert_ne!(world(7), world(8));
    }

    #[test]
    fn every_kind_happens_and_all_but_three_are_documented() {
        let happened: BTreeSet<_> = (0..20_000)
            .map(|index| facts(7, index).kind)
            .map(|kind| (kind.object_type, kind.action))
            .collect();
        assert_eq!(happened.len(), KINDS.len());
        let undocumented: Vec<_> = happened
            .iter()
            .filter(|(object_type, action)| !super::super::subscription::is_documented(object_type, action))
            .collect();
        assert_eq!(
            undocumented,
            [
                &("activity.task_completed", "updated"),
                &("activity.telepathy", "imagined"),
                &("future_thing.subtype", "exploded")
            ]
        );
    }

    #[test]
    fn only_updates_and_published_drafts_are_consolidated_and_later_revisions_are_later() {
        let mut consolidated = 0;
        for index in 0..2000 {
            let revisions = revisions(7, index, Moment(0));
            consolidated += usize::from(!revisions.is_empty());
            let kind = facts(7, index).kind;
            let is_draft = kind.shape == Shape::CustomActivity && kind.action == "created";
            assert!(revisions.is_empty() || kind.action == "updated" || is_draft);
            assert!(revisions.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(revisions.first().is_none_or(|first| *first > Moment(0)));
        }
        assert!(consolidated > 100);
    }
}
