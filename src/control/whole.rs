//! One event whole: what came, whether it is signed, which rule says what of it and why, what became of it at each sink and what each
//! would be sent now.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::events::UNCHECKED;
use super::sent::Sent;
use super::transfer::Exported;
use crate::deliver::EventState;
use crate::event::{Event, Kind, Seq, Source, View};
use crate::rules::RuleSet;
use crate::rules::filter::{Clock, Trace};
use crate::task;

/// One event: by its id every revision, newest first, or by its Seq. Without an answer there is none: it never came, or is not kept any
/// more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whole {
    /// Event id or Seq.
    pub id: String,
    /// Also what each sink would be sent now.
    #[serde(default)]
    pub send: bool,
}

/// So many revisions are shown; all of them are named.
pub const REVISIONS_MAX: usize = 20;

/// So long it is looked what the rules say to all that is shown: filters and events may be as large as they like.
const WEIGHED_WITHIN: Duration = Duration::from_secs(5);

/// So many nodes of one event's trees are shown, beside those that lead to what decided.
const WHY_NODES_MAX: usize = 2000;

/// An event with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// As it is exported: Seq, when and how it came, headers, body.
    #[serde(flatten)]
    pub event: Exported,
    /// Whether it can be read, is whole, is still there.
    pub kind: Kind,
    /// Stored without ever being dispatched: an import that was not to deliver anything.
    pub held: bool,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// `object_type.action`; `None` where it names none.
    #[serde(rename = "type")]
    pub type_action: Option<String>,
    /// Its id; `None` where it can't be read.
    pub id: Option<String>,
    /// The text of its `date_updated`.
    pub date_updated: Option<String>,
    /// Its lead.
    pub lead_id: Option<String>,
    /// Its object.
    pub object_id: Option<String>,
    /// The subscription it came by.
    pub subscription_id: Option<String>,
    /// What can be said about its signature now.
    pub signature: Signature,
    /// The Seqs of all its revisions, in order.
    pub revisions: Vec<Seq>,
    /// What each rule says to it, in the file's order. Without any rules every event goes to every sink.
    pub routes: Vec<Route>,
    /// Nodes of these are left out, but for those that lead to what decided; or, where there are no routes at all, all of it: to find out
    /// takes too long.
    #[serde(default)]
    pub routes_are_cut: bool,
    /// What became of it at each sink, in order of name.
    pub sinks: Vec<AtSink>,
    /// The replays of the last 7 days that take it in, oldest first.
    pub replays: Vec<Touched>,
}

/// What can be said about a signature now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// In a word.
    pub verdict: Verdict,
    /// In a sentence.
    pub text: String,
    /// When it was signed, as its header says; `None` where that says no time.
    pub signed_at: Option<Timestamp>,
    /// Whose key it is: the id of its subscription; `None` where a key is known without one, or none is.
    pub key: Option<String>,
    /// The key counts for stored events only: it was replaced.
    pub is_retired: bool,
}

/// Whether an event is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A known key signed exactly these bytes.
    Valid,
    /// No known key did.
    Invalid,
    /// No known key did, and some are not known now.
    Unchecked,
    /// It was fetched from Close's event log, which signs nothing.
    Unsigned,
    /// It was delivered, and has none.
    Missing,
    /// Its bytes were erased.
    Erased,
}

/// What one rule says to the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The rule.
    pub rule: String,
    /// Whether it sends the event to its sinks.
    pub matched: bool,
    /// Its sinks.
    pub sinks: Vec<String>,
    /// Why.
    pub why: Node,
}

/// One node of what a rule asks, with its answer for this event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `rule`, `dispatch` (whether the event goes anywhere at all), `events` (the rule's patterns), or what a filter has: `and`, `or`,
    /// `not`, `field_accessor`, `any_array_value`, `equals`, `not_equals`, `contains`, `is_null`, `non_null`.
    pub kind: String,
    /// What it asks, for people.
    pub text: String,
    /// Where it is in the rule (`filter.filters[0]`); empty for the whole.
    pub place: String,
    /// The value it was asked of, shortened.
    pub saw: String,
    /// Its answer.
    pub matched: bool,
    /// This one decided: its other answer would have changed the whole. One node of a tree at the most.
    pub deciding: bool,
    /// Those below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

/// An event at one sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtSink {
    /// The sink.
    pub sink: String,
    /// Its type.
    pub kind: String,
    /// What became of it.
    #[serde(flatten)]
    pub state: EventState,
    /// The rules of now that send it there; empty where none does, or there are no rules.
    pub rules: Vec<String>,
    /// Whether the rules of now send it there.
    pub routed: bool,
    /// What the sink would be sent now, whether or not a rule sends it there; `None` where that was not asked, or there is nothing that
    /// could be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
}

/// A replay that takes an event in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its id.
    pub id: String,
    /// `running`, `interrupted`, `done` or `incomplete`.
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The sinks it sends this event to, as the rules are now.
    pub sinks: Vec<String>,
}

impl Whole {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Found>) -> Result<(), Refusal> {
        let id = &self.id;
        let seqs = match id.parse::<u64>() {
            Ok(seq) => vec![Seq(seq)],
            Err(_) => on.log.find(id).await.map_err(text)?,
        };
        let mut shown = 0;
        let until = Instant::now() + WEIGHED_WITHIN;
        for seq in seqs.iter().rev() {
            let Some(event) = on.log.get(*seq).await.map_err(text)? else {
                continue;
            };
            let found = self.found(on, event, &seqs, until).await?;
            out.say(&found).await?;
            shown += 1;
            if shown == REVISIONS_MAX {
                break;
            }
        }
        Ok(())
    }

    async fn found(
        &self,
        on: &Facade,
        event: std::sync::Arc<Event>,
        asked: &[Seq],
        until: Instant,
    ) -> Result<Found, Refusal> {
        let view = event.view();
        let revisions = match view {
            Some(view) => on.log.find(&view.id).await.map_err(text)?,
            None => asked.to_vec(),
        };
        let text_of = |of: fn(&View) -> Option<String>| view.and_then(of);
        let (rules, weighed) = (on.engine.rules(), event.clone());
        let said = aside(until, move |clock| routes_by(&rules, &weighed, clock)).await?;
        let (routes, routes_are_cut) = shortened(said, WHY_NODES_MAX);
        Ok(Found {
            kind: event.kind,
            held: event.held,
            body_bytes: event.body.len() as u64,
            type_action: text_of(View::type_action),
            id: text_of(|view| Some(view.id.clone())),
            date_updated: text_of(|view| Some(view.date_updated.clone())),
            lead_id: text_of(|view| view.lead_id.clone()),
            object_id: text_of(|view| view.object_id.clone()),
            subscription_id: text_of(|view| view.subscription_id.clone()),
            signature: signature(on, &event),
            revisions,
            routes,
            routes_are_cut,
            sinks: self.at_sinks(on, &event).await?,
            replays: touched(on, &event).await,
            event: Exported::of(&event),
        })
    }

    async fn at_sinks(&self, on: &Facade, event: &std::sync::Arc<Event>) -> Result<Vec<AtSink>, Refusal> {
        let rules = on.engine.rules();
        let mut states = on.engine.event_states(event).await;
        // Where there is nothing that could be delivered, nothing would be sent.
        let is_wanted = self.send && event.view().is_some();
        let _place = if is_wanted { Some(on.bench.place().await?) } else { None };
        let configs = on.engine.configs();
        let names: Vec<String> = configs.iter().map(|config| config.name.clone()).collect();
        let (weighing, weighed) = (rules.clone(), event.clone());
        let route = move || names.iter().map(|sink| weighing.route(sink, &weighed)).collect();
        let routed: Vec<_> = task::begin_blocking(route).await.map_err(text)?;
        let mut sinks = Vec::new();
        for (config, routed) in configs.into_iter().zip(routed) {
            let unknown = || EventState::Unknown {
                reason: "the sink is being begun".into(),
            };
            let sent = if is_wanted {
                Some(on.bench.press(&config).sent(&rules, &rules, event).await)
            } else {
                None
            };
            sinks.push(AtSink {
                state: states.remove(&config.name).unwrap_or_else(unknown),
                routed: routed.is_some(),
                rules: routed
                    .iter()
                    .flat_map(|names| names.iter())
                    .map(ToString::to_string)
                    .collect(),
                sent,
                kind: config.kind,
                sink: config.name,
            });
        }
        Ok(sinks)
    }
}

async fn touched(on: &Facade, event: &Event) -> Vec<Touched> {
    let replays = on.engine.replays_of(event).await.into_iter();
    let touched = replays.map(|(status, sinks)| Touched {
        id: status.id,
        state: status.state,
        created_at: status.created_at,
        sinks,
    });
    touched.collect()
}

/// What can be said about an event's signature now: it is verified again.
fn signature(on: &Facade, event: &Event) -> Signature {
    let headers = event.signature.as_ref();
    let signed_at = headers.and_then(|headers| headers.timestamp.parse().ok());
    let said = |verdict, text: &str| Signature {
        verdict,
        text: text.to_owned(),
        signed_at: signed_at.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        key: None,
        is_retired: false,
    };
    match (headers, event.source, event.kind) {
        (_, _, Kind::Erased) => said(Verdict::Erased, "its bytes were erased"),
        (None, Source::Backfill, _) => said(
            Verdict::Unsigned,
            "it was fetched from Close's event log, which signs nothing",
        ),
        (None, Source::Webhook, _) => said(Verdict::Missing, "it was delivered, and has no signature"),
        (Some(headers), ..) => match on.receiving.signed_by(headers, &event.body) {
            None if !on.receiving.unknown_keys().is_empty() => {
                let why = on.receiving.unknown_keys().join("; ");
                said(Verdict::Unchecked, &format!("{UNCHECKED}: {why}"))
            }
            None => said(Verdict::Invalid, "no known key signed these bytes"),
            Some(signer) => {
                let whose = match &signer.subscription {
                    Some(subscription) => format!("the key of {subscription}"),
                    None => "a key of the configuration".to_owned(),
                };
                let since = if signer.is_retired {
                    ", which was replaced since,"
                } else {
                    ""
                };
                Signature {
                    key: signer.subscription,
                    is_retired: signer.is_retired,
                    ..said(Verdict::Valid, &format!("{whose}{since} signed these bytes"))
                }
            }
        },
    }
}

/// What is shown of what was found out, and whether that is not all; `None`: it took too long.
fn shortened(said: Option<Vec<Route>>, mut nodes: usize) -> (Vec<Route>, bool) {
    let Some(mut routes) = said else {
        return (Vec::new(), true);
    };
    let mut is_cut = false;
    for route in &mut routes {
        is_cut |= route.why.prune(&mut nodes);
    }
    (routes, is_cut)
}

/// Explains something on a thread of its own; `None`: it takes longer than until then.
pub(super) async fn aside<T: Send + 'static>(
    until: Instant,
    explain: impl FnOnce(&mut Clock) -> T + Send + 'static,
) -> Result<Option<T>, Refusal> {
    let explain = move || {
        let mut clock = Clock::until(until);
        let explained = explain(&mut clock);
        (!clock.is_over).then_some(explained)
    };
    task::begin_blocking(explain).await.map_err(text)
}

/// What each rule says to an event, as trees, within a time: where the clock has stopped, nothing that is said counts.
pub(super) fn routes_by(rules: &RuleSet, event: &Event, clock: &mut Clock) -> Vec<Route> {
    let type_action = event.view().and_then(View::type_action);
    let dispatches = rules.dispatches(event);
    let explained = rules.explain_by(event, clock).into_iter().zip(rules.wants());
    let route = explained.map(|(explanation, (patterns, _))| {
        let takes = patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(type_action.as_deref()));
        let saw = type_action.clone().unwrap_or_else(|| "no type".into());
        let mut children = Vec::new();
        if !dispatches {
            children.push(Node {
                text: "an event that is dispatched at all".into(),
                saw: not_dispatched(event).into(),
                deciding: true,
                ..Node::new("dispatch", false)
            });
        }
        let patterns: Vec<&str> = patterns.iter().map(super::super::event::EventPattern::as_str).collect();
        children.push(Node {
            text: if patterns.is_empty() {
                "every type".into()
            } else {
                patterns.join(", ")
            },
            place: "events".into(),
            saw,
            deciding: dispatches && (!takes || explanation.filter.is_none()),
            ..Node::new("events", takes)
        });
        if let Some(filter) = &explanation.filter {
            let deciding = (dispatches && takes).then(|| filter.deciding());
            children.push(node_of(filter, "filter", deciding));
        }
        Route {
            matched: explanation.matched,
            sinks: explanation.sinks,
            why: Node {
                text: explanation.rule.clone(),
                children,
                ..Node::new("rule", explanation.matched)
            },
            rule: explanation.rule,
        }
    });
    route.collect()
}

pub(super) fn not_dispatched(event: &Event) -> &'static str {
    match event.kind {
        Kind::Quarantined => "a body that can't be read as a delivery",
        Kind::Partial => "an event whose data Close withholds",
        Kind::Erased => "an event that was erased",
        Kind::Event => "an event that is stored without being dispatched",
    }
}

/// A filter's answers as a tree.
pub(super) fn filter_node(trace: &Trace) -> Node {
    node_of(trace, "", Some(trace.deciding()))
}

fn node_of(trace: &Trace, prefix: &str, deciding: Option<&Trace>) -> Node {
    let kind = trace.test.split(' ').next().unwrap_or_default();
    let dot = if prefix.is_empty() || trace.place.is_empty() {
        ""
    } else {
        "."
    };
    Node {
        text: trace.test.clone(),
        place: format!("{prefix}{dot}{}", trace.place),
        saw: trace.saw.clone(),
        deciding: deciding.is_some_and(|deciding| std::ptr::eq(deciding, trace)),
        children: trace
            .children
            .iter()
            .map(|child| node_of(child, prefix, deciding))
            .collect(),
        ..Node::new(kind, trace.matched)
    }
}

impl Node {
    /// Leaves out what is beyond so many nodes below it, but for what leads to the one that decided. Gives whether that is anything.
    pub(super) fn prune(&mut self, left: &mut usize) -> bool {
        let mut is_cut = false;
        self.children.retain_mut(|child| {
            if *left == 0 && !child.decides() {
                is_cut = true;
                return false;
            }
            *left = left.saturating_sub(1);
            is_cut |= child.prune(left);
            true
        });
        is_cut
    }

    /// Whether it, or one below it, decided.
    fn decides(&self) -> bool {
        self.deciding || self.children.iter().any(Node::decides)
    }

    /// About how many bytes it is, with those below it.
    pub(super) fn weight(&self) -> u64 {
        let own = self.kind.len() + self.text.len() + self.place.len() + self.saw.len() + 100;
        own as u64 + self.children.iter().map(Node::weight).sum::<u64>()
    }

    pub(super) fn new(kind: &str, matched: bool) -> Node {
        Node {
            kind: kind.to_owned(),
            text: String::new(),
            place: String::new(),
            saw: String::new(),
            matched,
            deciding: false,
            children: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuleConfig;

    fn event(kind: Kind, body: &str) -> Event {
        Event::new(
            Seq(1),
            Timestamp::UNIX_EPOCH,
            Source::Webhook,
            kind,
            None,
            body.to_owned().into(),
        )
    }

    fn rule(name: &str, events: &[&str], filter: Option<&str>) -> RuleConfig {
        RuleConfig {
            name: name.into(),
            events: events.iter().map(ToString::to_string).collect(),
            filter: filter.map(ToOwned::to_owned),
            sinks: vec!["a".into()],
            program: None,
        }
    }

    /// The kinds and places of the nodes that decided.
    fn decided(node: &Node) -> Vec<String> {
        let own = node
            .deciding
            .then(|| format!("{} {} {}", node.kind, node.place, node.saw));
        own.into_iter().chain(node.children.iter().flat_map(decided)).collect()
    }

    #[test]
    fn one_node_of_each_rule_decided() {
        let filter = r#"{"type":"and","filters":[{"type":"field_accessor","field":"action","filter":{"type":"equals","value":"updated"}},
            {"type":"field_accessor","field":"n","filter":{"type":"equals","value":2}}]}"#;
        let rules = [
            rule("of another type", &["task.*"], Some(filter)),
            rule("of this type", &["lead.*", "contact.*"], None),
            rule("with a filter", &[], Some(filter)),
        ];
        let rules = RuleSet::compile(&rules, &["a"]).unwrap();
        let body = r#"{"event":{"id":"ev_1","object_type":"lead","action":"updated","n":1}}"#;
        let said = |kind| {
            let routes = routes_by(&rules, &event(kind, body), &mut Clock::default());
            let said = |route: &Route| (route.matched, decided(&route.why).join("; "));
            routes.iter().map(said).collect::<Vec<_>>()
        };
        assert_eq!(
            said(Kind::Event),
            [
                (false, "events events lead.updated".to_owned()),
                (true, "events events lead.updated".to_owned()),
                (false, "equals filter.filters[1].filter 1".to_owned()),
            ]
        );
        let held = (false, "dispatch  an event whose data Close withholds".to_owned());
        assert_eq!(said(Kind::Partial), vec![held; 3]);
    }

    #[test]
    fn of_a_large_tree_what_decided_is_left() {
        let field = |n| format!(r#"{{"type":"field_accessor","field":"n","filter":{{"type":"equals","value":{n}}}}}"#);
        let tests: Vec<String> = (0..2000).map(field).collect();
        let text = format!(r#"{{"type":"or","filters":[{}]}}"#, tests.join(","));
        let filter = crate::rules::filter::Filter::parse(&text).unwrap();
        let mut node = filter_node(&filter.explain(&crate::json::Doc::new(r#"{"n":1999}"#)));
        let before = decided(&node);
        assert!(node.prune(&mut 100) && node.matched);
        assert_eq!((decided(&node), before.len()), (before.clone(), 1));
        assert_eq!(node.children.len(), 51, "and the one that decided");
        assert!(!node.prune(&mut 200), "it is small by now");
        let route = Route {
            rule: "r".into(),
            matched: true,
            sinks: Vec::new(),
            why: filter_node(&filter.explain(&crate::json::Doc::new(r#"{"n":1999}"#))),
        };
        let (routes, is_cut) = shortened(Some(vec![route.clone(), route]), 100);
        assert!(is_cut && decided(&routes[1].why) == before, "also of those behind it");
        assert_eq!(routes[1].why.children.len(), 1);
        assert_eq!(shortened(None, 100), (Vec::new(), true));
        // Somebody whose time is over is told nothing.
        let mut clock = Clock::until(std::time::Instant::now());
        filter.explain_by(&crate::json::Doc::new(r#"{"n":1999}"#), &mut clock);
        assert!(clock.is_over);
    }

    #[tokio::test]
    async fn what_takes_longer_than_it_may_is_not_waited_for() {
        let explain = |clock: &mut Clock| {
            let text = r#"{"type":"or","filters":[{"type":"is_null"},{"type":"non_null"}]}"#;
            let filter = crate::rules::filter::Filter::parse(text).unwrap();
            filter_node(&filter.explain_by(&crate::json::Doc::new("1"), clock))
        };
        let soon = Instant::now() + Duration::from_secs(60);
        assert!(aside(soon, explain).await.unwrap().unwrap().matched);
        assert_eq!(aside(Instant::now(), explain).await, Ok(None));
    }

    #[test]
    fn a_tree_has_every_node_of_a_filter() {
        let text =
            r#"{"type":"not","filter":{"type":"or","filters":[{"type":"is_null"},{"type":"contains","value":"x"}]}}"#;
        let filter = crate::rules::filter::Filter::parse(text).unwrap();
        let node = filter_node(&filter.explain(&crate::json::Doc::new(r#""xyz""#)));
        assert_eq!(
            (node.kind.as_str(), node.matched, node.place.as_str()),
            ("not", false, "")
        );
        let or = &node.children[0];
        assert_eq!((or.kind.as_str(), or.matched, or.children.len()), ("or", true, 2));
        let contains = &or.children[1];
        assert_eq!(contains.text, r#"contains "x""#);
        assert!(contains.deciding && contains.matched && contains.place == "filter.filters[1]");
        assert_eq!(decided(&node).len(), 1);
    }
}
