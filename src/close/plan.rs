//! From rules to subscriptions, as functions of what is known: which events the rules want, what Close has, and the steps from
//! one to the other.
//!
//! Close may filter only where it is sure to mean the same ([`Filter::is_unambiguous`]), and only where every rule for that
//! event has such a filter; so whatever a rule matches, the planned subscription accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::store::Keys;
use super::subscriptions::{EventSpec, SUBSCRIPTIONS_MAX, Subscription};
use crate::json::Doc;
use crate::rules::RuleSet;
use crate::rules::filter::Filter;
use crate::rules::selection::EventPattern;

/// So few free subscriptions are worth a word.
const FEW_LEFT: usize = 4;

/// Every documented event: object type and action (Close's documentation, "List of event types").
pub(super) static DOCUMENTED: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct Document {
        event_types: Vec<Type>,
    }
    #[derive(Deserialize)]
    struct Type {
        object_type: String,
        actions: Vec<String>,
    }
    let document: Result<Document, _> = serde_json::from_str(include_str!("event-types.json"));
    let types = document.map(|document| document.event_types).unwrap_or_default();
    let pairs = types
        .into_iter()
        .flat_map(|Type { object_type, actions }| actions.into_iter().map(move |action| (object_type.clone(), action)));
    pairs.collect()
});

/// Which events are wanted here: the union of the rules, with Close's part of the filtering.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope(Vec<Want>);

#[derive(Debug, Clone, PartialEq)]
struct Want {
    /// None: all events.
    patterns: Vec<EventPattern>,
    /// What Close may filter by; `None`: nothing.
    filter: Option<Filter>,
}

impl Want {
    fn takes(&self, type_action: Option<&str>) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(type_action))
    }
}

impl Scope {
    /// What the rules want; without rules, everything.
    pub fn of(rules: &RuleSet, push_down: bool) -> Scope {
        let wants: Vec<Want> = rules
            .wants()
            .map(|(patterns, filter)| Want {
                patterns: patterns.to_vec(),
                filter: filter.filter(|filter| push_down && filter.is_unambiguous()).cloned(),
            })
            .collect();
        if wants.is_empty() {
            return Scope(vec![Want {
                patterns: Vec::new(),
                filter: None,
            }]);
        }
        Scope(wants)
    }

    /// Whether events of this type are wanted at all; `None` is an event without a readable type.
    pub fn takes(&self, type_action: Option<&str>) -> bool {
        self.0.iter().any(|want| want.takes(type_action))
    }

    /// Whether the event is wanted.
    pub fn accepts(&self, type_action: Option<&str>, event: &Doc<'_>) -> bool {
        let mut wants = self.0.iter().filter(|want| want.takes(type_action));
        wants.any(|want| want.filter.as_ref().is_none_or(|filter| filter.matches(event)))
    }

    /// The types it names, if it names them all.
    pub fn literal_types(&self) -> Option<Vec<(String, String)>> {
        let mut types = BTreeSet::new();
        for want in &self.0 {
            if want.patterns.is_empty() {
                return None;
            }
            for pattern in &want.patterns {
                types.insert(split(pattern.literal()?)?);
            }
        }
        Some(types.into_iter().collect())
    }

    /// For people.
    pub fn describe(&self) -> String {
        let mut names = BTreeSet::new();
        for want in &self.0 {
            if want.patterns.is_empty() {
                names.insert("*".to_owned());
            }
            for pattern in &want.patterns {
                let filtered = if want.filter.is_some() { " (filtered)" } else { "" };
                names.insert(format!("{}{filtered}", pattern.as_str()));
            }
        }
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// The same for the same scope, different for another.
    pub fn id(&self) -> String {
        let mut text = String::new();
        for want in &self.0 {
            for pattern in &want.patterns {
                let _ = write!(text, "{} ", pattern.as_str());
            }
            let _ = writeln!(
                text,
                "{}",
                want.filter.as_ref().map(ToString::to_string).unwrap_or_default()
            );
        }
        hex::encode(&Sha256::digest(text)[..8])
    }

    /// The `events` of a subscription that sends all of it, and what a person should know about them.
    pub fn subscription(&self) -> Result<(Vec<EventSpec>, Vec<String>), Error> {
        let mut notes = Vec::new();
        let mut types: BTreeSet<(String, String)> = DOCUMENTED.iter().cloned().collect();
        let mut has_wildcards = false;
        for pattern in self.0.iter().flat_map(|want| &want.patterns) {
            match pattern.literal().and_then(split) {
                Some(pair) => {
                    if !types.contains(&pair) {
                        notes.push(format!(
                            "{} is not among the event types Close documents; it is asked for all the same",
                            pattern.as_str()
                        ));
                        types.insert(pair);
                    }
                }
                None if !DOCUMENTED.iter().any(|pair| pattern.matches(Some(&name(pair)))) => {
                    notes.push(format!(
                        "{} matches no event type that Close documents",
                        pattern.as_str()
                    ));
                }
                None => has_wildcards = true,
            }
        }
        if has_wildcards || self.0.iter().any(|want| want.patterns.is_empty()) {
            notes.push(
                "patterns with * subscribe to the types Close documents now; events of other types are fetched by reconciling only"
                    .into(),
            );
        }
        let mut specs = Vec::new();
        let mut filtered = Vec::new();
        for pair in types {
            let type_action = name(&pair);
            let wants: Vec<&Want> = self.0.iter().filter(|want| want.takes(Some(&type_action))).collect();
            if wants.is_empty() {
                continue;
            }
            let filters: Option<Vec<Filter>> = wants.iter().map(|want| want.filter.clone()).collect();
            let extra_filter = filters
                .map(Filter::any_of)
                .map(|filter| RawValue::from_string(filter.to_string()));
            let extra_filter = extra_filter
                .transpose()
                .map_err(|error| Error::Local(error.to_string()))?;
            if extra_filter.is_some() {
                filtered.push(type_action);
            }
            let (object_type, action) = pair;
            specs.push(EventSpec {
                object_type,
                action,
                extra_filter,
            });
        }
        if !filtered.is_empty() {
            notes.push(format!(
                "Close filters {}: what it filters out never comes into the log and can't be replayed to a later rule (push_down = false in [close] turns this off)",
                filtered.join(", ")
            ));
        }
        if specs.is_empty() {
            return Err(Error::Missing(
                "no rule wants an event that could be subscribed: check `events` in [[rules]]".into(),
            ));
        }
        Ok((specs, notes))
    }
}

/// `object_type.action` as its two parts.
pub(super) fn split(type_action: &str) -> Option<(String, String)> {
    let (object_type, action) = type_action.rsplit_once('.')?;
    (!object_type.is_empty() && !action.is_empty()).then(|| (object_type.to_owned(), action.to_owned()))
}

/// The two parts as `object_type.action`.
pub(super) fn name((object_type, action): &(String, String)) -> String {
    format!("{object_type}.{action}")
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
    /// without a key.
    pub fn is_orphan(&self, subscription: &Subscription) -> bool {
        self.keys.intent.as_ref().is_some_and(|intent| {
            intent.url == subscription.url
                && !intent.known.contains(&subscription.id)
                && self.keys.live(&subscription.id).is_none()
        })
    }
}

/// One thing `apply` does.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    if count + FEW_LEFT > SUBSCRIPTIONS_MAX {
        notes.push(format!(
            "with this the organization has {count} of at most {SUBSCRIPTIONS_MAX} subscriptions"
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

fn line(spec: &EventSpec) -> String {
    match spec.filter() {
        None => spec.name(),
        Some(filter) => format!("{} where {filter}", spec.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuleConfig;
    use crate::json::Node;
    use proptest::prelude::*;

    fn rules(list: &[(&[&str], Option<&str>)]) -> RuleSet {
        let configs: Vec<RuleConfig> = list
            .iter()
            .enumerate()
            .map(|(index, (events, filter))| RuleConfig {
                name: format!("r{index}"),
                events: events.iter().map(ToString::to_string).collect(),
                filter: filter.map(Into::into),
                sinks: Vec::new(),
            })
            .collect();
        RuleSet::compile(&configs, &[]).unwrap()
    }

    fn subscription(list: &[(&[&str], Option<&str>)]) -> Vec<String> {
        let (specs, _) = Scope::of(&rules(list), true).subscription().unwrap();
        specs.iter().map(line).collect()
    }

    const WON: &str = r#"{"type":"field_accessor","field":"data","filter":{"type":"field_accessor","field":"status_type","filter":{"type":"equals","value":"won"}}}"#;
    const CHANGED: &str =
        r#"{"type":"field_accessor","field":"changed_fields","filter":{"type":"contains","value":"status_id"}}"#;
    const UNSURE: &str = r#"{"type":"not","filter":{"type":"is_null"}}"#;

    #[test]
    fn the_documented_types_are_those_of_the_document() {
        assert_eq!(
            include_str!("event-types.json"),
            include_str!("../../tests/fixtures/close/event-types.json")
        );
        assert!(DOCUMENTED.len() > 170);
        let (all, _) = Scope::of(&rules(&[]), true).subscription().unwrap();
        assert_eq!(
            all.len(),
            DOCUMENTED.len(),
            "without rules every documented type is subscribed"
        );
    }

    #[test]
    fn patterns_are_expanded_and_filters_joined_where_every_rule_has_one() {
        assert_eq!(
            subscription(&[(&["lead.*"], None)]),
            ["lead.created", "lead.deleted", "lead.merged", "lead.updated"]
        );
        assert_eq!(
            subscription(&[
                (&["opportunity.updated"], Some(WON)),
                (&["opportunity.updated"], Some(CHANGED))
            ]),
            [format!(
                r#"opportunity.updated where {{"type":"or","filters":[{WON},{CHANGED}]}}"#
            )]
        );
        assert_eq!(
            subscription(&[(&["opportunity.updated"], Some(WON)), (&["*.updated"], Some(WON))])[0],
            format!("activity.call.updated where {WON}"),
        );
        for other in [None, Some(UNSURE)] {
            assert_eq!(
                subscription(&[(&["opportunity.updated"], Some(WON)), (&["opportunity.updated"], other)]),
                ["opportunity.updated"]
            );
        }
    }

    #[test]
    fn only_what_is_sure_to_mean_the_same_is_pushed_down() {
        let field = |filter: &str| format!(r#"{{"type":"field_accessor","field":"x","filter":{filter}}}"#);
        let yes = [
            WON.to_owned(),
            CHANGED.to_owned(),
            format!(r#"{{"type":"and","filters":[{WON},{{"type":"or","filters":[{CHANGED}]}}]}}"#),
        ];
        let no = [
            field(r#"{"type":"equals","value":1}"#),
            field(r#"{"type":"equals","value":true}"#),
            field(r#"{"type":"equals","value":null}"#),
            field(r#"{"type":"equals","value":""}"#),
            field(r#"{"type":"equals","value":["a"]}"#),
            field(r#"{"type":"contains","value":2}"#),
            field(r#"{"type":"not_equals","value":"a"}"#),
            field(r#"{"type":"is_null"}"#),
            field(r#"{"type":"non_null"}"#),
            field(r#"{"type":"any_array_value","filter":{"type":"equals","value":"a"}}"#),
            r#"{"type":"and","filters":[]}"#.to_owned(),
            format!(r#"{{"type":"and","filters":[{WON},{UNSURE}]}}"#),
            UNSURE.to_owned(),
        ];
        for (filters, pushed) in [(&yes[..], true), (&no[..], false)] {
            for filter in filters {
                assert_eq!(Filter::parse(filter).unwrap().is_unambiguous(), pushed, "{filter}");
            }
        }
        let (specs, notes) = Scope::of(&rules(&[(&["lead.updated"], Some(WON))]), false)
            .subscription()
            .unwrap();
        assert!(specs[0].extra_filter.is_none() && notes.is_empty());
    }

    #[test]
    fn notes_say_what_will_not_come() {
        let notes =
            |list: &[(&[&str], Option<&str>)]| Scope::of(&rules(list), true).subscription().unwrap().1.join("\n");
        assert!(notes(&[(&["lead.updated"], Some(WON))]).contains("can't be replayed"));
        let said = notes(&[(&["future_thing.exploded", "nothing.*", "lead.*"], None)]);
        for part in [
            "future_thing.exploded is not among",
            "nothing.* matches no",
            "fetched by reconciling only",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(
            Scope::of(&rules(&[(&["nothing.*"], None)]), true)
                .subscription()
                .is_err()
        );
    }

    fn has(text: &str) -> Vec<Subscription> {
        serde_json::from_str(text).unwrap()
    }

    fn keys(text: &str) -> Keys {
        serde_json::from_str(text).unwrap()
    }

    const NO_KEYS: &str = r#"{"version":1,"keys":[],"intent":null,"rotation":null}"#;
    const ONE_KEY: &str = r#"{"version":1,"keys":[{"id":"whsub_1","url":"https://here/","signature_key":"00","made_at":"2024-01-01T00:00:00Z","retired_at":null}],"intent":null,"rotation":null}"#;

    fn planned(list: &[(&[&str], Option<&str>)], keys: &Keys, close_has: &[Subscription]) -> Plan {
        let ours = Ours {
            keys,
            configured: &[],
            url: Some("https://here/"),
        };
        plan(&Scope::of(&rules(list), true), &ours, close_has).unwrap()
    }

    #[test]
    fn the_difference_reads_like_a_patch() {
        let close_has = has(
            r#"[{"id":"whsub_1","url":"https://there/","status":"paused","event_filter":{"type":"non_null"},"events":[
                {"object_type":"lead","action":"created"},{"object_type":"lead","action":"deleted"},{"object_type":"lead","action":"updated"}]}]"#,
        );
        let wanted: &[(&[&str], Option<&str>)] = &[
            (&["lead.created", "comment.created"], None),
            (&["lead.updated"], Some(CHANGED)),
        ];
        let plan = planned(wanted, &keys(ONE_KEY), &close_has);
        assert_eq!(
            plan.diff.join("\n"),
            format!(
                "--- whsub_1 as Close has it (paused)\n+++ what the rules want\n-url https://there/\n+url https://here/\n-status paused\n+status active\n\
                 -event_filter {{\"type\":\"non_null\"}}\n+comment.created\n-lead.deleted\n-lead.updated\n+lead.updated where {CHANGED}\n (1 event types stay as they are)"
            )
        );
        assert_eq!(
            plan.steps,
            [Step::Update {
                id: "whsub_1".into(),
                url: true,
                events: true,
                unfilter: true,
                resume: true
            }]
        );
    }

    #[test]
    fn nothing_to_do_is_nothing() {
        let close_has = has(
            r#"[{"id":"whsub_9","url":"https://other/","status":"active","events":[]},
            {"id":"whsub_1","url":"https://here/","status":"active","events":[{"object_type":"lead","action":"created","extra_filter":null}]}]"#,
        );
        let plan = planned(&[(&["lead.created"], None)], &keys(ONE_KEY), &close_has);
        assert!(
            plan.steps.is_empty() && plan.diff.is_empty() && plan.notes.is_empty(),
            "{plan:?}"
        );
    }

    #[test]
    fn a_person_s_pause_is_left_alone() {
        let mut keys = keys(ONE_KEY);
        keys.paused.insert("whsub_1".into());
        let close_has = has(
            r#"[{"id":"whsub_1","url":"https://here/","status":"paused","events":[{"object_type":"lead","action":"created"}]}]"#,
        );
        assert!(
            planned(&[(&["lead.created"], None)], &keys, &close_has)
                .steps
                .is_empty()
        );
    }

    #[test]
    fn an_orphan_is_told_from_a_stranger() {
        let close_has = has(
            r#"[{"id":"whsub_old","url":"https://here/","status":"active","events":[]},{"id":"whsub_new","url":"https://here/","status":"active","events":[]}]"#,
        );
        let mut keys = keys(NO_KEYS);
        let plan = planned(&[(&["lead.created"], None)], &keys, &close_has);
        assert_eq!(
            plan.steps,
            [Step::Create],
            "nothing is deleted without a record of its making"
        );
        assert_eq!(
            plan.notes
                .iter()
                .filter(|note| note.contains("its key is not known"))
                .count(),
            2
        );
        keys.intent = serde_json::from_str(
            r#"{"url":"https://here/","known":["whsub_old"],"begun_at":"2024-01-01T00:00:00Z","replaces":null}"#,
        )
        .unwrap();
        let plan = planned(&[(&["lead.created"], None)], &keys, &close_has);
        assert_eq!(
            plan.steps,
            [Step::DeleteOrphan { id: "whsub_new".into() }, Step::Create]
        );
    }

    #[test]
    fn a_subscription_deleted_elsewhere_is_made_anew() {
        let plan = planned(&[(&["lead.created"], None)], &keys(ONE_KEY), &[]);
        assert_eq!(plan.steps, [Step::Retire { id: "whsub_1".into() }, Step::Create]);
    }

    #[test]
    fn one_made_by_hand_for_another_place_is_left_alone() {
        let mut keys = keys(ONE_KEY);
        keys.list[0].by_hand = true;
        let elsewhere = has(r#"[{"id":"whsub_1","url":"https://there/","status":"active","events":[]}]"#);
        let plan = planned(&[(&["lead.created"], None)], &keys, &elsewhere);
        assert_eq!(plan.steps, [Step::Create]);
        let here = has(r#"[{"id":"whsub_1","url":"https://here/","status":"active","events":[]}]"#);
        let plan = planned(&[(&["lead.created"], None)], &keys, &here);
        assert!(matches!(&plan.steps[..], [Step::Update { id, .. }] if id == "whsub_1"));
    }

    #[test]
    fn the_limit_is_told_before_it_is_hit() {
        let many: Vec<String> = (0..37)
            .map(|n| format!(r#"{{"id":"whsub_{n}x","url":"https://o/","status":"active","events":[]}}"#))
            .collect();
        let plan = planned(
            &[(&["lead.created"], None)],
            &keys(NO_KEYS),
            &has(&format!("[{}]", many.join(","))),
        );
        assert!(
            plan.notes.iter().any(|note| note.contains("38 of at most 40")),
            "{:?}",
            plan.notes
        );
    }

    fn word() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "won", "status"]).prop_map(str::to_owned)
    }

    fn filter() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            word().prop_map(|w| format!(r#"{{"type":"equals","value":"{w}"}}"#)),
            word().prop_map(|w| format!(r#"{{"type":"contains","value":"{w}"}}"#)),
            word().prop_map(|w| format!(r#"{{"type":"not_equals","value":"{w}"}}"#)),
            Just(r#"{"type":"equals","value":1}"#.to_owned()),
            Just(r#"{"type":"non_null"}"#.to_owned()),
            Just(r#"{"type":"is_null"}"#.to_owned()),
        ];
        leaf.prop_recursive(4, 12, 3, |inner| {
            prop_oneof![
                (prop::sample::select(vec!["data", "changed_fields", "a"]), inner.clone())
                    .prop_map(|(field, f)| format!(r#"{{"type":"field_accessor","field":"{field}","filter":{f}}}"#)),
                (
                    prop::sample::select(vec!["and", "or"]),
                    prop::collection::vec(inner.clone(), 0..3)
                )
                    .prop_map(|(kind, list)| format!(r#"{{"type":"{kind}","filters":[{}]}}"#, list.join(","))),
                inner.prop_map(|f| format!(r#"{{"type":"not","filter":{f}}}"#)),
            ]
        })
    }

    fn event() -> impl Strategy<Value = (String, String)> {
        let types = prop::sample::select(vec![
            "lead.created",
            "lead.updated",
            "activity.email.sent",
            "task.lead.completed",
            "thing.exploded",
        ]);
        let value = prop_oneof![
            word().prop_map(|w| format!("\"{w}\"")),
            Just("1".to_owned()),
            Just("null".to_owned()),
            Just("[\"a\",\"won\"]".to_owned())
        ];
        (types, value.clone(), value.clone(), value).prop_map(|(name, a, data, changed)| {
            (
                name.to_owned(),
                format!(r#"{{"data":{{"a":{a},"data":{data}}},"changed_fields":{changed},"a":{data}}}"#),
            )
        })
    }

    proptest! {
        /// What makes push-down safe: nothing a rule matches is kept back.
        #[test]
        fn whatever_a_rule_matches_the_planned_subscription_accepts(
            list in prop::collection::vec((prop::collection::vec(prop::sample::select(vec!["*", "lead.*", "*.updated", "lead.created", "activity.email.sent", "thing.exploded"]), 0..3), prop::option::of(filter())), 0..4),
            push_down: bool,
            (name, body) in event(),
        ) {
            let list: Vec<(&[&str], Option<&str>)> = list.iter().map(|(events, filter)| (events.as_slice(), filter.as_deref())).collect();
            let rules = rules(&list);
            let scope = Scope::of(&rules, push_down);
            let doc = Doc::of(Node::new(&body));
            let matched = list.is_empty() || rules.wants().any(|(patterns, filter)| {
                (patterns.is_empty() || patterns.iter().any(|p| p.matches(Some(&name)))) && filter.is_none_or(|f| f.matches(&doc))
            });
            if matched {
                prop_assert!(scope.accepts(Some(&name), &doc));
            }
            let (specs, _) = scope.subscription().unwrap_or_default();
            let spec = specs.iter().find(|spec| spec.name() == name);
            let accepted = spec.is_some_and(|spec| {
                spec.filter().is_none_or(|filter| Filter::parse(&filter).unwrap().matches(&doc))
            });
            // The only types that can't be subscribed are those nobody has documented or named.
            let subscribable = name != "thing.exploded" || list.iter().any(|(events, _)| events.contains(&"thing.exploded"));
            if subscribable {
                prop_assert_eq!(accepted, scope.accepts(Some(&name), &doc), "{:?}", spec);
            }
        }
    }
}
