//! What goes where: event patterns and filters, compiled once, asked for every event.
//!
//! Rules are indexed by event type: an event costs only the rules whose patterns match its type, and its fields are found
//! once however many rules look at them.

pub mod filter;
pub mod selection;
mod source;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

use crate::config::{Config, Fault, Partial, RuleConfig};
use crate::event::{Event, Kind};
use crate::json::Doc;
use crate::names;
use crate::render::Program;
use filter::{Clock, Filter, Trace};
use selection::EventPattern;

pub use source::Source;

/// Types whose candidates are remembered at the most; a sender that makes types up costs time, not memory.
const MEMO_MAX: usize = 1024;

/// All rules, compiled and indexed by event type.
#[derive(Debug)]
pub struct RuleSet {
    rules: Vec<Rule>,
    /// Which rules' patterns match a type.
    candidates: RwLock<HashMap<String, Arc<[usize]>>>,
    /// Which rules match events without a readable type.
    untyped: Arc<[usize]>,
    /// The sinks that get events from a rule with a template or transform.
    with_programs: BTreeSet<String>,
    /// Whether events go out whose data Close withholds.
    partials: bool,
    /// Sinks that get nothing without a rule.
    only_named: BTreeSet<String>,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    patterns: Vec<EventPattern>,
    filter: Option<Filter>,
    sinks: Vec<String>,
    /// What makes the payload of what it sends.
    program: Option<Program>,
    /// Patterns and filter as they were written.
    source: (Vec<String>, Option<String>),
}

impl Rule {
    /// Faults have their place; what is faulty is left out of the rule.
    fn compile(index: usize, config: &RuleConfig, sinks: &[&str], faults: &mut Vec<Fault>) -> Rule {
        let mut fault = |inner: &str, message: String| {
            faults.push(Fault {
                place: format!("rules[{index}]{inner}"),
                message,
            });
        };
        if config.name.is_empty() {
            fault(".name", "a rule needs a name".into());
        }
        let mut patterns = Vec::new();
        for (number, text) in config.events.iter().enumerate() {
            match EventPattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(message) => fault(&format!(".events[{number}]"), message),
            }
        }
        for (number, sink) in config.sinks.iter().enumerate() {
            if !sinks.contains(&sink.as_str()) {
                let wrong = names::unknown(format!("there is no sink \"{sink}\""), sink, sinks.iter().copied());
                fault(&format!(".sinks[{number}]"), wrong);
            }
        }
        let filter = match config.filter.as_deref().map(Filter::parse) {
            None => None,
            Some(Ok(filter)) => Some(filter),
            Some(Err(inner)) => {
                for inner in inner {
                    let dot = if inner.place.is_empty() { "" } else { "." };
                    fault(&format!(".filter{dot}{}", inner.place), inner.message);
                }
                None
            }
        };
        Rule {
            name: config.name.as_str().into(),
            patterns,
            filter,
            sinks: config.sinks.clone(),
            program: config.program.clone(),
            source: (config.events.clone(), config.filter.clone()),
        }
    }

    fn takes(&self, type_action: Option<&str>) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(type_action))
    }
}

/// What one rule says to one event.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The rule.
    pub rule: String,
    /// Whether it sends the event to its sinks.
    pub matched: bool,
    /// Whether one of its patterns matches the event's type.
    pub event_matched: bool,
    /// The filter node that decided, and what it saw; `None` without a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Trace>,
    /// Every node of the filter; `None` without a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Trace>,
    /// Where it sends what it matches.
    pub sinks: Vec<String>,
}

/// Every fault of the rules, for who only wants to know whether they are good.
pub fn faults(configs: &[RuleConfig], sinks: &[&str]) -> Vec<Fault> {
    RuleSet::compile(configs, sinks).err().unwrap_or_default()
}

impl RuleSet {
    /// The rules of a configuration as they are in force: with what its sinks and `[close]` say of events that no rule is asked about.
    /// Whoever shows or tries what the daemon does takes these.
    pub fn of(config: &Config) -> Result<RuleSet, Vec<Fault>> {
        let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
        let rules = RuleSet::compile(&config.rules, &sinks)?;
        let rules = rules.naming_only(config.dead_to());
        Ok(rules.dispatching_partials(config.close.partial == Partial::Dispatch))
    }

    /// Compiles the rules; every fault of every rule is reported, with its place (`rules[2].filter.filters[0].type`).
    pub fn compile(configs: &[RuleConfig], sinks: &[&str]) -> Result<RuleSet, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut taken = BTreeSet::new();
        let mut rules = Vec::new();
        for (index, config) in configs.iter().enumerate() {
            if !config.name.is_empty() && !taken.insert(config.name.as_str()) {
                faults.push(Fault {
                    place: format!("rules[{index}].name"),
                    message: format!("two rules are called \"{}\"", config.name),
                });
            }
            rules.push(Rule::compile(index, config, sinks, &mut faults));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let untyped = matching(&rules, None);
        let having = rules.iter().filter(|rule| rule.program.is_some());
        let with_programs = having.flat_map(|rule| rule.sinks.iter().cloned()).collect();
        Ok(RuleSet {
            rules,
            candidates: RwLock::default(),
            untyped,
            with_programs,
            partials: false,
            only_named: BTreeSet::new(),
        })
    }

    /// These sinks get nothing that no rule sends them, also where there is no rule at all.
    #[must_use]
    pub fn naming_only<'a>(mut self, sinks: impl IntoIterator<Item = &'a str>) -> RuleSet {
        self.only_named = sinks.into_iter().map(str::to_owned).collect();
        self
    }

    /// Whether events whose data Close withholds are dispatched as they are; otherwise they wait for the full event.
    #[must_use]
    pub fn dispatching_partials(mut self, partials: bool) -> RuleSet {
        self.partials = partials;
        self
    }

    /// As these have it in what no rule says: which events go out without their data, and which sinks get nothing without a rule.
    #[must_use]
    pub fn minding(self, other: &RuleSet) -> RuleSet {
        RuleSet {
            partials: other.partials,
            only_named: other.only_named.clone(),
            ..self
        }
    }

    /// Whether the event goes anywhere at all.
    pub fn dispatches(&self, event: &Event) -> bool {
        event.is_dispatched() || (self.partials && event.kind == Kind::Partial && !event.held)
    }

    /// The names of the rules that send the event to the sink, or `None` if none does. Without any rules every event goes to
    /// every sink, with no names. What is not dispatched ([`RuleSet::dispatches`]) goes nowhere.
    pub fn route(&self, sink: &str, event: &Event) -> Option<Arc<[Arc<str>]>> {
        self.dispatches(event).then(|| self.names_of(sink, event)).flatten()
    }

    /// The same of an event that goes out without its data whatever is said here of those: it was released.
    pub fn route_released(&self, sink: &str, event: &Event) -> Option<Arc<[Arc<str>]>> {
        let goes = self.dispatches(event) || (event.kind == Kind::Partial && !event.held);
        goes.then(|| self.names_of(sink, event)).flatten()
    }

    /// The same of an event that somebody sends again: whether it was dispatched when it was stored does not matter then.
    pub fn route_again(&self, sink: &str, event: &Event) -> Option<Arc<[Arc<str>]>> {
        if event.kind == Kind::Event {
            return self.names_of(sink, event);
        }
        self.route(sink, event)
    }

    fn names_of(&self, sink: &str, event: &Event) -> Option<Arc<[Arc<str>]>> {
        if self.is_without_rules(sink) {
            return Some(Arc::default());
        }
        let candidates = self.candidates(event);
        let mut candidates = candidates
            .iter()
            .map(|index| &self.rules[*index])
            .filter(|rule| rule.sinks.iter().any(|name| name == sink))
            .peekable();
        candidates.peek()?;
        let doc = Doc::of(event.object());
        let names: Arc<[Arc<str>]> = candidates
            .filter(|rule| rule.filter.as_ref().is_none_or(|filter| filter.matches(&doc)))
            .map(|rule| rule.name.clone())
            .collect();
        (!names.is_empty()).then_some(names)
    }

    /// Whether the sink gets everything because there are no rules.
    fn is_without_rules(&self, sink: &str) -> bool {
        self.rules.is_empty() && !self.only_named.contains(sink)
    }

    /// Whether any rule that sends events to the sink has a template or transform.
    pub fn has_programs(&self, sink: &str) -> bool {
        self.with_programs.contains(sink)
    }

    /// What makes the payload of an event that these rules send to the sink, by name: that of the first of them, in the file's order, that
    /// has one. `None`: what the sink itself has.
    pub fn program(&self, sink: &str, names: &[Arc<str>]) -> Option<(&Arc<str>, &Program)> {
        if !self.has_programs(sink) {
            return None;
        }
        let sends = |rule: &&Rule| names.contains(&rule.name) && rule.sinks.iter().any(|name| name == sink);
        let mut having = self
            .rules
            .iter()
            .filter(sends)
            .filter_map(|rule| Some((&rule.name, rule.program.as_ref()?)));
        having.next()
    }

    /// Whether the rule sends the event anywhere; `None` if there is no such rule.
    pub fn matches(&self, rule: &str, event: &Event) -> Option<bool> {
        let wants = self.wants_it(rule, event)?;
        Some(self.dispatches(event) && wants)
    }

    /// The same of an event that somebody sends again: whether it was dispatched when it was stored does not matter then.
    pub fn matches_again(&self, rule: &str, event: &Event) -> Option<bool> {
        let wants = self.wants_it(rule, event)?;
        Some((event.kind == Kind::Event || self.dispatches(event)) && wants)
    }

    fn wants_it(&self, rule: &str, event: &Event) -> Option<bool> {
        let rule = self.rules.iter().find(|candidate| &*candidate.name == rule)?;
        let type_action = event.view().and_then(crate::event::View::type_action);
        let doc = Doc::of(event.object());
        let filter_matches = || rule.filter.as_ref().is_none_or(|filter| filter.matches(&doc));
        Some(rule.takes(type_action.as_deref()) && filter_matches())
    }

    /// The names of all rules.
    pub fn names(&self) -> Vec<String> {
        self.rules.iter().map(|rule| rule.name.to_string()).collect()
    }

    /// The sinks of a rule; `None` if there is no such rule.
    pub fn sinks_of(&self, rule: &str) -> Option<&[String]> {
        self.rules
            .iter()
            .find(|candidate| &*candidate.name == rule)
            .map(|rule| rule.sinks.as_slice())
    }

    /// Each rule's name, its filter as it is written, its template or transform, and its sinks; in the file's order.
    pub fn written(&self) -> impl Iterator<Item = (&str, Option<&str>, Option<&Program>, &[String])> {
        self.rules.iter().map(|rule| {
            let filter = rule.source.1.as_deref();
            (&*rule.name, filter, rule.program.as_ref(), rule.sinks.as_slice())
        })
    }

    /// Every rule's patterns (none: all events) and filter, for whoever has to know what the rules want.
    pub fn wants(&self) -> impl Iterator<Item = (&[EventPattern], Option<&Filter>)> {
        self.rules
            .iter()
            .map(|rule| (rule.patterns.as_slice(), rule.filter.as_ref()))
    }

    /// What each rule says to the event, and which node of its filter decided.
    pub fn explain(&self, event: &Event) -> Vec<Explanation> {
        self.explain_by(event, &mut Clock::default())
    }

    /// The same within a time: where the clock has stopped, nothing that is said counts.
    pub fn explain_by(&self, event: &Event, clock: &mut Clock) -> Vec<Explanation> {
        let type_action = event.view().and_then(crate::event::View::type_action);
        let doc = Doc::of(event.object());
        self.rules
            .iter()
            .map(|rule| {
                let event_matched = self.dispatches(event) && rule.takes(type_action.as_deref());
                let filter = rule.filter.as_ref().map(|filter| filter.explain_by(&doc, clock));
                let matched = event_matched && filter.as_ref().is_none_or(|trace| trace.matched);
                Explanation {
                    rule: rule.name.to_string(),
                    matched,
                    event_matched,
                    decided_by: filter.as_ref().map(|trace| Trace {
                        children: Vec::new(),
                        ..trace.deciding().clone()
                    }),
                    filter,
                    sinks: rule.sinks.clone(),
                }
            })
            .collect()
    }

    fn candidates(&self, event: &Event) -> Arc<[usize]> {
        let Some(type_action) = event.view().and_then(crate::event::View::type_action) else {
            return self.untyped.clone();
        };
        let known = self
            .candidates
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&type_action)
            .cloned();
        known.unwrap_or_else(|| {
            let found = matching(&self.rules, Some(&type_action));
            let mut memo = self.candidates.write().unwrap_or_else(PoisonError::into_inner);
            if memo.len() < MEMO_MAX {
                memo.insert(type_action, found.clone());
            }
            found
        })
    }
}

fn matching(rules: &[Rule], type_action: Option<&str>) -> Arc<[usize]> {
    rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.takes(type_action))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Seq, Source};

    fn rule(name: &str, events: &[&str], filter: Option<&str>, sinks: &[&str]) -> RuleConfig {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        RuleConfig {
            program: None,
            name: name.into(),
            events: owned(events),
            filter: filter.map(Into::into),
            sinks: owned(sinks),
        }
    }

    fn event(body: &'static str, kind: Kind) -> Event {
        Event::new(
            Seq(1),
            jiff::Timestamp::UNIX_EPOCH,
            Source::Webhook,
            kind,
            None,
            body.into(),
        )
    }

    const LEAD: &str = r#"{"event":{"id":"ev_1","object_type":"lead","action":"updated","data":{"n":1}}}"#;

    #[test]
    fn events_go_where_their_rules_say() {
        let one = r#"{"type":"field_accessor","field":"data","filter":{"type":"field_accessor","field":"n","filter":{"type":"equals","value":1}}}"#;
        let rules = RuleSet::compile(
            &[
                rule("all", &[], None, &["a"]),
                rule("leads", &["lead.*"], Some(one), &["a", "b"]),
                rule("not this", &["lead.*"], Some(r#"{"type":"is_null"}"#), &["c"]),
                rule("others", &["contact.*", "*.deleted"], None, &["c"]),
            ],
            &["a", "b", "c"],
        )
        .unwrap();
        let lead = event(LEAD, Kind::Event);
        let names = |sink: &str| {
            rules
                .route(sink, &lead)
                .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(names("a"), Some(vec!["all".into(), "leads".into()]));
        assert_eq!(names("b"), Some(vec!["leads".into()]));
        assert_eq!(names("c"), None);
        assert_eq!(rules.matches("leads", &lead), Some(true));
        assert_eq!(rules.matches("missing", &lead), None);
        let untyped = event(r#"{"event":{"id":"ev_2","action":"deleted"}}"#, Kind::Event);
        assert!(rules.route("a", &untyped).is_some() && rules.route("c", &untyped).is_none());
        let quarantined = event(LEAD, Kind::Quarantined);
        assert!(rules.route("a", &quarantined).is_none());
        let explained = rules.explain(&lead);
        assert_eq!(
            explained.iter().map(|e| e.matched).collect::<Vec<_>>(),
            [true, true, false, false]
        );
        assert_eq!(explained[1].decided_by.as_ref().unwrap().saw, "1");
    }

    #[test]
    fn without_rules_everything_goes_everywhere() {
        let rules = RuleSet::compile(&[], &["a"]).unwrap();
        assert_eq!(rules.route("a", &event(LEAD, Kind::Event)).unwrap().len(), 0);
        assert!(rules.route("a", &event(LEAD, Kind::Quarantined)).is_none());
    }

    #[test]
    fn an_event_without_its_data_waits_unless_it_is_to_go_as_it_is() {
        let partial = event(LEAD, Kind::Partial);
        let rules = RuleSet::compile(&[rule("all", &[], None, &["a"])], &["a"]).unwrap();
        assert!(rules.route("a", &partial).is_none());
        let rules = rules.dispatching_partials(true);
        assert!(rules.route("a", &partial).is_some());
        assert!(rules.route("a", &event(LEAD, Kind::Quarantined)).is_none());
    }

    #[test]
    fn what_a_configuration_says_beside_its_rules_counts() {
        let text = r#"
            [[sinks]]
            name = "a"
            type = "file"
            path = "/tmp/a.jsonl"
            dead_to = "b"
            [[sinks]]
            name = "b"
            type = "file"
            path = "/tmp/b.jsonl"
        "#;
        let rules = |more: &str| {
            let layers = crate::config::Layers {
                file: Some("closehook.toml".into()),
                ..crate::config::Layers::new(crate::sinks::REGISTRY, faults)
            };
            RuleSet::of(&Config::of_text(&layers, &format!("{text}{more}")).unwrap()).unwrap()
        };
        let (lead, partial) = (event(LEAD, Kind::Event), event(LEAD, Kind::Partial));
        let held = rules("");
        assert!(held.route("a", &lead).is_some() && held.route("b", &lead).is_none());
        assert!(held.route("a", &partial).is_none());
        assert!(
            rules("[close]\npartial = \"dispatch\"\n")
                .route("a", &partial)
                .is_some()
        );
    }

    #[test]
    fn every_fault_has_its_place() {
        let faults = RuleSet::compile(
            &[
                rule(
                    "x",
                    &["lead", ""],
                    Some(r#"{"type":"and","filters":[{"type":"nul"}]}"#),
                    &["adit"],
                ),
                rule("x", &[], Some("nonsense"), &[]),
            ],
            &["audit"],
        )
        .unwrap_err();
        let places: Vec<&str> = faults.iter().map(|fault| fault.place.as_str()).collect();
        assert_eq!(
            places,
            [
                "rules[0].events[0]",
                "rules[0].events[1]",
                "rules[0].sinks[0]",
                "rules[0].filter.filters[0].type",
                "rules[1].name",
                "rules[1].filter"
            ]
        );
        assert!(faults[2].message.contains("did you mean \"audit\"?"));
    }
}
