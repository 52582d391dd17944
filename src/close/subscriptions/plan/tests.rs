//! Plans for what Close may have.

use super::*;
use crate::close::store::Keys;
use crate::config::RuleConfig;
use crate::event::types::DOCUMENTED;
use crate::json::{Doc, Node};
use crate::rules::RuleSet;
use crate::rules::filter::Filter;
use proptest::prelude::*;

fn rules(list: &[(&[&str], Option<&str>)]) -> RuleSet {
    let configs: Vec<RuleConfig> = list
        .iter()
        .enumerate()
        .map(|(index, (events, filter))| RuleConfig {
            program: None,
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
        include_str!("../../../event/types.json"),
        include_str!("../../../../tests/fixtures/close/event-types.json")
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
fn a_rule_without_sinks_says_what_is_kept() {
    let rule = |name: &str, event: &str, sinks: &[&str]| RuleConfig {
        program: None,
        name: name.into(),
        events: vec![event.into()],
        filter: None,
        sinks: sinks.iter().map(ToString::to_string).collect(),
    };
    let scope = |rules: &[RuleConfig]| Scope::of(&RuleSet::compile(rules, &["crm"]).unwrap(), true);
    let (draft, real) = (rule("draft", "contact.*", &[]), rule("real", "lead.created", &["crm"]));
    let both = scope(&[draft, real]);
    let (specs, _) = both.subscription().unwrap();
    assert_eq!(
        specs.iter().map(line).collect::<Vec<_>>(),
        ["contact.created", "contact.deleted", "contact.updated", "lead.created"]
    );
    assert!(both.takes(Some("contact.created")) && both.takes(Some("lead.created")));
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
    let notes = |list: &[(&[&str], Option<&str>)]| Scope::of(&rules(list), true).subscription().unwrap().1.join("\n");
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

fn planned(list: &[(&[&str], Option<&str>)], keys: &Keys, close_has: &[Subscription]) -> SubscriptionPlan {
    let ours = Ownership {
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
        [PlanStep::Update {
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
        [PlanStep::Create],
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
        [PlanStep::DeleteOrphan { id: "whsub_new".into() }, PlanStep::Create]
    );
}

#[test]
fn what_the_configuration_has_a_key_for_is_no_orphan() {
    let mut keys = keys(NO_KEYS);
    keys.intent =
        serde_json::from_str(r#"{"url":"https://here/","known":[],"begun_at":"2024-01-01T00:00:00Z","replaces":null}"#)
            .unwrap();
    let close_has = has(r#"[{"id":"whsub_1","url":"https://here/","status":"active","events":[]}]"#);
    for (configured, is_orphan) in [(vec![], true), (vec![Some("whsub_1".to_owned())], false)] {
        let ours = Ownership {
            keys: &keys,
            configured: &configured,
            url: Some("https://here/"),
        };
        assert_eq!(ours.is_orphan(&close_has[0]), is_orphan);
    }
}

#[test]
fn what_will_be_replaced_and_what_delivers_unverified_is_said() {
    let asks = r#""events":[{"object_type":"lead","action":"merged"},{"object_type":"lead","action":"created"}]"#;
    let close_has = has(&format!(
        r#"[{{"id":"whsub_2","url":"https://here/","status":"active",{asks}}},
            {{"id":"whsub_3","url":"https://here/","status":"active","events":[]}}]"#
    ));
    let wanted: &[(&[&str], Option<&str>)] = &[(&["lead.created", "lead.merged"], None)];
    let notes = planned(wanted, &keys(NO_KEYS), &close_has).notes.join("\n");
    assert!(notes.contains("whsub_2 delivers here and asks for the same"), "{notes}");
    assert!(notes.contains("closehook subscription delete whsub_3"), "{notes}");
    let lax = has(&format!(
        r#"[{{"id":"whsub_1","url":"https://here/","status":"active","verify_ssl":false,{asks}}}]"#
    ));
    let plan = planned(wanted, &keys(ONE_KEY), &lax);
    assert!(
        plan.steps.is_empty() && plan.notes[0].contains("whsub_1 has verify_ssl false"),
        "{plan:?}"
    );
}

#[test]
fn a_subscription_deleted_elsewhere_is_made_anew() {
    let plan = planned(&[(&["lead.created"], None)], &keys(ONE_KEY), &[]);
    assert_eq!(
        plan.steps,
        [PlanStep::Retire { id: "whsub_1".into() }, PlanStep::Create]
    );
}

#[test]
fn one_made_by_hand_for_another_place_is_left_alone() {
    let mut keys = keys(ONE_KEY);
    keys.list[0].by_hand = true;
    let elsewhere = has(r#"[{"id":"whsub_1","url":"https://there/","status":"active","events":[]}]"#);
    let plan = planned(&[(&["lead.created"], None)], &keys, &elsewhere);
    assert_eq!(plan.steps, [PlanStep::Create]);
    let here = has(r#"[{"id":"whsub_1","url":"https://here/","status":"active","events":[]}]"#);
    let plan = planned(&[(&["lead.created"], None)], &keys, &here);
    assert!(matches!(&plan.steps[..], [PlanStep::Update { id, .. }] if id == "whsub_1"));
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
        plan.notes.iter().any(|note| note.contains("has 38 subscriptions")),
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
