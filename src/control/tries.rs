//! Trying what is not deployed: a filter, a rule, a template or a transform is checked, and run over stored events. Nothing is changed,
//! and nothing is sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::back::Back;
use super::bench::Press;
use super::events::Line;
use super::looked::{Ended, Work};
use super::pick::Pick;
use super::sent::{Outcome, Sent};
use super::whole::{Node, aside, filter_node, not_dispatched, routes_by};
use crate::config::draft::{Placed, Step, line_and_column, rules_of_text, steps};
use crate::config::{Fault, SinkConfig};
use crate::event::{Event, Seq};
use crate::json::{Doc, Node as Json};
use crate::names;
use crate::render::{Program, Template, Transform};
use crate::rules::RuleSet;
use crate::rules::filter::{Clock, Filter};
use crate::task;

/// Checks a draft, and runs it over the newest stored events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Try {
    /// What is tried.
    pub draft: Draft,
    /// Over which events; empty: all.
    #[serde(default)]
    pub pick: Pick,
    /// The newest so many of them, [`EVENTS_MAX`] at the most; `None`: [`EVENTS`]; 0: it is only checked.
    #[serde(default)]
    pub last: Option<u64>,
    /// How much may be looked at for it.
    #[serde(default)]
    pub work: Work,
}

/// Events that a draft is run over where nothing else is said.
pub const EVENTS: u64 = 50;

/// Events that a draft is run over at the most.
pub const EVENTS_MAX: u64 = 1000;

/// Longest draft, in bytes.
pub const DRAFT_MAX: usize = 256 << 10;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Draft {
    /// A filter of Close's language.
    Filter {
        /// JSON text.
        text: String,
    },
    /// Rules as they stand in the configuration: one `[[rules]]` table, or several. They are tried alone, with the sinks of now.
    Rules {
        /// TOML text.
        text: String,
    },
    /// A template for what a sink is sent.
    Template {
        /// The template.
        text: String,
        /// The sink, one of those configured.
        sink: String,
    },
    /// A transform for what a sink is sent.
    Transform {
        /// The function.
        text: String,
        /// The sink, one of those configured.
        sink: String,
    },
}

/// How a try gets on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tried {
    /// It is wrong, for all of this, and was not run. There is no other answer.
    Faults(Vec<DraftFault>),
    /// What it says to one event, newest first.
    Event(Box<TriedEvent>),
    /// At the end.
    Done(Box<Summary>),
}

/// One thing that is wrong with a draft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftFault {
    /// Where in its structure (`filters[0].type`, `rules[0].sinks[1]`); empty for the whole.
    pub path: String,
    /// Line in the draft's text, from 1; `None` where that is not known.
    pub line: Option<usize>,
    /// Column in that line, in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong, one sentence.
    pub message: String,
}

/// A draft and one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedEvent {
    /// The event.
    #[serde(flatten)]
    pub line: Line,
    /// Whether it is matched: by the filter, by one of the rules; always true for templates and transforms.
    pub matched: bool,
    /// Why: a tree for the filter, or one for each rule; none for templates and transforms.
    pub why: Vec<Node>,
    /// Of these trees some nodes are left out, but for those that lead to the one that decided: they are larger than anybody reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub why_is_cut: bool,
    /// What would be sent, by sink; empty for a filter, and for what is not matched.
    pub sent: Vec<SentTo>,
}

/// What one sink would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SentTo {
    /// The sink.
    pub sink: String,
    /// What it would be sent.
    #[serde(flatten)]
    pub sent: Sent,
}

impl<'de> Deserialize<'de> for SentTo {
    /// What is flattened is read by way of a buffer in which a row would not be JSON text any more: each part is read from the text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SentTo, D::Error> {
        #[derive(Deserialize)]
        struct To {
            sink: String,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let to: To = serde_json::from_slice(text.get().as_bytes()).map_err(D::Error::custom)?;
        Ok(SentTo {
            sink: to.sink,
            sent: serde_json::from_slice(text.get().as_bytes()).map_err(D::Error::custom)?,
        })
    }
}

/// What a try has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Events it was run over.
    pub events: u64,
    /// Of these matched.
    pub matched: u64,
    /// Payloads that would be sent.
    pub sent: u64,
    /// Payloads of which a transform wants nothing.
    pub skipped: u64,
    /// Payloads that can't be made.
    pub failed: u64,
    /// Not run over as many events as was asked for: as much was looked at, made or waited for as is allowed.
    pub is_cut: bool,
    /// The draft as TOML, to be copied into the configuration.
    pub toml: String,
}

/// Payloads and reasons of a try come to so many bytes at the most.
const SENT_BYTES_MAX: u64 = 32 << 20;

/// So many nodes of one event's trees are shown, beside those that lead to what decided.
const WHY_NODES_MAX: usize = 300;

/// A try takes no longer than this, whatever is asked for.
const MILLIS_MAX: u64 = 30_000;

/// A draft that can be run.
enum Prepared {
    Filter(Arc<Filter>),
    Rules {
        rules: Arc<RuleSet>,
        presses: Vec<Press>,
        text: String,
    },
    Program {
        press: Box<Press>,
        /// The rules in force, for what a template sees of them.
        routes: Arc<RuleSet>,
        /// No rule has a program that would win.
        none: RuleSet,
    },
}

impl Try {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Tried>) -> Result<(), Refusal> {
        let selection = self.pick.compile()?;
        let prepared = match self.draft.prepare(on).await? {
            Ok(prepared) => prepared,
            Err(faults) => return out.say(&Tried::Faults(faults)).await,
        };
        let mut summary = Summary {
            toml: prepared.toml(),
            ..Summary::default()
        };
        let limit = self.last.unwrap_or(EVENTS).min(EVENTS_MAX);
        let _place = on.bench.place().await?;
        let until = Instant::now() + Duration::from_millis(self.work.millis.min(MILLIS_MAX));
        let mut back = Back::from(on, selection, Seq(u64::MAX), self.work).await?;
        let mut go_on = |_| !out.is_closed();
        let mut bytes = 0;
        // Who does not read what comes keeps others from trying.
        let read_until = tokio::time::Instant::from_std(until + on.bench.read_within);
        let tell = async |tried: Tried| {
            let told = tokio::time::timeout_at(read_until, out.say(&tried)).await;
            told.unwrap_or_else(|_| Err("what was found was not read in time: try it again".to_owned()))
        };
        while summary.events < limit
            && let Some(event) = back.next(&mut go_on).await?
        {
            let Some(tried) = prepared.run(&event, until).await? else {
                summary.is_cut = true;
                break;
            };
            summary.count(&tried);
            bytes += tried.bytes();
            tell(Tried::Event(Box::new(tried))).await?;
            if (bytes > SENT_BYTES_MAX || Instant::now() >= until) && summary.events < limit {
                summary.is_cut = true;
                break;
            }
        }
        summary.is_cut |= summary.events < limit && back.ended == Some(Ended::Work);
        tell(Tried::Done(Box::new(summary))).await
    }
}

impl TriedEvent {
    /// About how many bytes it comes to.
    fn bytes(&self) -> u64 {
        let row = |sent: &Sent| sent.row.as_ref().map_or(0, |row| row.get().len() as u64);
        let sent = self.sent.iter().map(|to| &to.sent);
        let sent = sent.map(|sent| sent.body_bytes.unwrap_or_default() + row(sent));
        sent.sum::<u64>() + self.why.iter().map(Node::weight).sum::<u64>()
    }
}

impl Summary {
    fn count(&mut self, tried: &TriedEvent) {
        self.events += 1;
        self.matched += u64::from(tried.matched);
        for to in &tried.sent {
            match to.sent.outcome {
                Outcome::Sent => self.sent += 1,
                Outcome::Skipped => self.skipped += 1,
                Outcome::Failed | Outcome::Unavailable => self.failed += 1,
            }
        }
    }
}

impl Draft {
    fn text(&self) -> &str {
        match self {
            Draft::Filter { text }
            | Draft::Rules { text }
            | Draft::Template { text, .. }
            | Draft::Transform { text, .. } => text,
        }
    }

    /// Checks it; nothing of it is run on an event. The inner error is all that is wrong with it.
    async fn prepare(self, on: &Facade) -> Result<Result<Prepared, Vec<DraftFault>>, Refusal> {
        if self.text().len() > DRAFT_MAX {
            return Err(format!("a draft has at most {} KiB", DRAFT_MAX >> 10));
        }
        Ok(match self {
            Draft::Filter { text } => Filter::parse(&text)
                .map(|filter| Prepared::Filter(Arc::new(filter)))
                .map_err(|faults| faults.into_iter().map(|fault| in_json(&text, fault)).collect()),
            Draft::Rules { text } => rules(on, text).await?,
            Draft::Template { text, sink } => {
                let config = sink_of(on, &sink)?;
                let template = Template::unchecked(&text, config.options.escape());
                program(on, Program::Template(template), config).await?
            }
            Draft::Transform { text, sink } => {
                let config = sink_of(on, &sink)?;
                program(on, Program::Transform(Transform::unchecked(&text)), config).await?
            }
        })
    }
}

fn sink_of(on: &Facade, sink: &str) -> Result<SinkConfig, Refusal> {
    let configs = on.engine.configs();
    let names: Vec<&str> = configs.iter().map(|config| config.name.as_str()).collect();
    let found = configs.iter().find(|config| config.name == sink);
    found
        .cloned()
        .ok_or_else(|| names::unknown(format!("there is no sink \"{sink}\""), sink, names))
}

async fn rules(on: &Facade, toml: String) -> Result<Result<Prepared, Vec<DraftFault>>, Refusal> {
    let reading = toml.clone();
    // Its templates and transforms are checked by a child.
    let read = task::begin_blocking(move || rules_of_text(&reading)).await;
    let draft = match read.map_err(text)? {
        Ok(draft) => draft,
        Err(faults) => return Ok(Err(faults.into_iter().map(DraftFault::of).collect())),
    };
    let configs = on.engine.configs();
    let names: Vec<&str> = configs.iter().map(|config| config.name.as_str()).collect();
    let compiled = RuleSet::compile(&draft.rules, &names);
    Ok(match compiled {
        Ok(rules) if draft.faults.is_empty() => {
            let is_named = |config: &&SinkConfig| draft.rules.iter().any(|rule| rule.sinks.contains(&config.name));
            Ok(Prepared::Rules {
                rules: Arc::new(rules.minding(&on.engine.rules())),
                presses: configs
                    .iter()
                    .filter(is_named)
                    .map(|config| on.bench.press(config))
                    .collect(),
                text: toml,
            })
        }
        compiled => {
            let mut faults = draft.faults.clone();
            // What could not be read at all is not wrong once more for what stands in for it.
            let is_of = |told: &Fault, fault: &Fault| !told.place.is_empty() && fault.place.starts_with(&told.place);
            let is_told = |fault: &Fault| draft.faults.iter().any(|told| is_of(told, fault));
            let more = compiled.err().unwrap_or_default().into_iter();
            faults.extend(more.filter(|fault| !is_told(fault)));
            Err(faults
                .into_iter()
                .map(|fault| DraftFault::of(draft.place(fault)))
                .collect())
        }
    })
}

async fn program(
    on: &Facade,
    program: Program,
    config: SinkConfig,
) -> Result<Result<Prepared, Vec<DraftFault>>, Refusal> {
    let checking = program.clone();
    let checked = task::begin_blocking(move || checking.check()).await;
    if let Err(fault) = checked.map_err(text)? {
        let (line, column) = fault.place.unzip();
        return Ok(Err(vec![DraftFault {
            path: String::new(),
            line,
            column,
            message: fault.text,
        }]));
    }
    let config = SinkConfig {
        program: Some(program),
        ..config
    };
    let none = RuleSet::compile(&[], &[]).map_err(|_| "there are no rules")?;
    Ok(Ok(Prepared::Program {
        press: Box::new(on.bench.press(&config)),
        routes: on.engine.rules(),
        none,
    }))
}

impl DraftFault {
    fn of(placed: Placed) -> DraftFault {
        let (line, column) = placed.position.unzip();
        DraftFault {
            path: placed.fault.place,
            line,
            column,
            message: placed.fault.message,
        }
    }
}

/// A fault of a filter with its place in the filter's text.
fn in_json(text: &str, fault: Fault) -> DraftFault {
    let position = match serde_json::from_slice::<serde::de::IgnoredAny>(text.as_bytes()) {
        // Of an empty text it says column 0.
        Err(error) => Some((error.line().max(1), error.column().max(1))),
        Ok(_) => Some(line_and_column(text, offset_of(text, &fault.place))),
    };
    DraftFault::of(Placed { fault, position })
}

/// Where in JSON text the value at a place begins, or the innermost one around it that is there.
fn offset_of(text: &str, place: &str) -> usize {
    let mut node = Json::new(text);
    for step in steps(place) {
        let next = match step {
            Step::Key(key) => node.get(key),
            Step::Index(index) => node.elements().nth(index),
        };
        let Some(next) = next else { break };
        node = next;
    }
    // It is a part of the text.
    let offset = node.raw().as_ptr().addr().wrapping_sub(text.as_ptr().addr());
    if offset <= text.len() { offset } else { 0 }
}

impl Prepared {
    /// What it says to an event; `None`: that takes longer than it may. A filter may be as large as it likes, and so may an event: they
    /// are held against each other on a thread on which nobody else waits.
    async fn run(&self, event: &Arc<Event>, until: Instant) -> Result<Option<TriedEvent>, Refusal> {
        let mut tried = TriedEvent {
            line: Line::of(event),
            matched: false,
            why: Vec::new(),
            why_is_cut: false,
            sent: Vec::new(),
        };
        match self {
            Prepared::Filter(filter) => {
                if event.view().is_some() {
                    let (filter, event) = (filter.clone(), event.clone());
                    let explain =
                        move |clock: &mut Clock| filter_node(&filter.explain_by(&Doc::of(event.object()), clock));
                    let Some(node) = aside(until, explain).await? else {
                        return Ok(None);
                    };
                    tried.matched = node.matched;
                    tried.why.push(node);
                } else {
                    tried.why.push(Node {
                        text: "an event that can be read".into(),
                        saw: not_dispatched(event).into(),
                        deciding: true,
                        ..Node::new("dispatch", false)
                    });
                }
            }
            Prepared::Rules { rules, presses, .. } => {
                let (explained, of) = (rules.clone(), event.clone());
                let explain = move |clock: &mut Clock| routes_by(&explained, &of, clock);
                let Some(said) = aside(until, explain).await? else {
                    return Ok(None);
                };
                let is_sent = |sink: &str| {
                    said.iter()
                        .any(|route| route.matched && route.sinks.iter().any(|to| to == sink))
                };
                for press in presses.iter().filter(|press| is_sent(&press.config.name)) {
                    if Instant::now() >= until {
                        return Ok(None);
                    }
                    tried.sent.push(SentTo {
                        sink: press.config.name.clone(),
                        sent: press.sent(rules, rules, event).await,
                    });
                }
                tried.matched = said.iter().any(|route| route.matched);
                tried.why = said.into_iter().map(|route| route.why).collect();
            }
            Prepared::Program { press, routes, none } => {
                tried.matched = true;
                let sent = if event.view().is_some() {
                    press.sent(routes, none, event).await
                } else {
                    Sent {
                        outcome: Outcome::Skipped,
                        reason: Some(format!("{} is sent nowhere", not_dispatched(event))),
                        ..Sent::default()
                    }
                };
                tried.sent.push(SentTo {
                    sink: press.config.name.clone(),
                    sent,
                });
            }
        }
        let mut left = WHY_NODES_MAX;
        for node in &mut tried.why {
            tried.why_is_cut |= node.prune(&mut left);
        }
        Ok(Some(tried))
    }

    /// To be copied into the configuration.
    fn toml(&self) -> String {
        match self {
            Prepared::Filter(filter) => format!("filter = {}\n", toml_edit::value(filter.to_string())),
            Prepared::Rules { text, .. } => format!("{}\n", text.trim_end()),
            Prepared::Program { press, .. } => {
                let (word, source) = match &press.config.program {
                    Some(Program::Transform(transform)) => ("transform", transform.source()),
                    Some(Program::Template(template)) => ("template", template.source()),
                    None => return String::new(),
                };
                let name = &press.config.name;
                format!(
                    "# in the [[sinks]] table with name = \"{name}\"\n{word} = {}\n",
                    toml_edit::value(source)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sink_for_rows_would_be_sent_is_read_as_it_was_said() {
        let text = r#"{"sink":"db","outcome":"sent","row":{"value":100000000000000000000000001}}"#;
        let to: SentTo = serde_json::from_str(text).unwrap();
        assert_eq!(
            to.sent.row.as_ref().unwrap().get(),
            r#"{"value":100000000000000000000000001}"#
        );
        assert_eq!(serde_json::to_string(&to).unwrap(), text);
    }

    #[test]
    fn a_filters_fault_has_its_line_and_column() {
        let faults = |text: &str| {
            let faults = Filter::parse(text).unwrap_err().into_iter();
            let faults = faults.map(|fault| in_json(text, fault));
            faults
                .map(|fault| (fault.path, fault.line, fault.column))
                .collect::<Vec<_>>()
        };
        let text = "{\n  \"type\": \"and\", \"filters\": [\n    {\"type\": \"equal\"}\n  ]\n}";
        assert_eq!(faults(text), [("filters[0].type".into(), Some(3), Some(14))]);
        assert_eq!(faults("{\n\"type\":"), [(String::new(), Some(2), Some(7))]);
        assert_eq!(faults(""), [(String::new(), Some(1), Some(1))]);
        // What is missing is where it should be.
        let text = r#"{"type":"not","filter":{"type":"contains"}}"#;
        assert_eq!(faults(text), [("filter".into(), Some(1), Some(24))]);
    }
}
