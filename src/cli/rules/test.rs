//! `closehook rules test`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::cases::{self, ANY, Case, Payload, route};
use super::compare::Expected;
use super::why;
use crate::cli::{Failure, Global, Outcome, print_line, report};
use crate::close::names_on_disk;
use crate::config::Config;
use crate::deliver::Rendering;
use crate::event::{Event, EventPattern, types};
use crate::plain;
use crate::render::{Guard, NameBook};
use crate::rules::RuleSet;
use crate::sinks::Outcome as Delivered;

/// Test the rules: whether events go where they should, and as what
#[derive(Debug, Args)]
#[command(
    after_help = "A file of cases, by default rules.test.toml beside the configuration, is to rules what unit tests are to a program. Nothing
is sent, and no data directory is needed. Exit code 1 if a case fails, 2 if there is something wrong with the file.

A case names an event, and what should happen:
  [[cases]]
  name = \"a won deal reaches the CRM\"
  event = '{\"object_type\":\"opportunity\",\"action\":\"updated\"}'
  routes_to = [\"big-deals -> crm-db\"]

  [[cases]]
  name = \"an unsubscribed address reaches nobody\"
  event = \"@unsubscribed.json\"   # beside the file
  routes_to = []

An event may be a delivery, an event, a line of `closehook events export`, or as much of an event as the rules look at.
routes_to lists every route, in any order; without rules a route is written \"* -> sink\". `payload` is what the sinks are given:
text, or a table that is compared as JSON (what is null there may be left out), of postgres and sqlite with columns or mode = \"latest\" the
row; different payloads are written { \"rule -> sink\" = ... }. As a sink's line has
them, Seq is 1, and received_at is the event's date_updated. The id of an event that has none is empty, and may be left out.

Examples:
  closehook rules test
  closehook -c new.toml rules test deals.test.toml
  closehook rules test --json | jq 'select(.ok | not)'"
)]
pub(in crate::cli) struct Test {
    /// The cases; default: rules.test.toml beside the configuration
    file: Option<PathBuf>,
}

/// How a case ended.
struct Verdict {
    /// The routes that were taken.
    routes: Vec<String>,
    /// What is not as it should be, a sentence each; empty: nothing.
    differs: Vec<String>,
}

impl Test {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let config = global.load()?;
        let file = self
            .file
            .unwrap_or_else(|| global.config.with_file_name("rules.test.toml"));
        let content = crate::files::read_text_argument(&file).map_err(|error| {
            Failure::Usage(format!(
                "{} can't be read: {error}; `closehook rules test --help` shows what it looks like",
                file.display()
            ))
        })?;
        let cases = cases::read(&file, &content, &config).map_err(Failure::Faults)?;
        let rules = RuleSet::of(&config).map_err(Failure::Faults)?;
        // One child renders for all of them.
        let guard = Guard::new(Arc::new(NameBook::with(names_on_disk(&config))));
        let rendering = config.sinks.iter().map(|sink| Rendering::new(sink, guard.clone()));
        let rendering: Vec<Rendering> = rendering.collect();
        let (count, mut failed) = (cases.len(), 0);
        for case in cases {
            let name = case.name.clone();
            if let Some(doubt) = doubt(&case.event) {
                report::notice(global.json, &format!("{name}: {doubt}"));
            }
            let verdict = judge(case, &rules, &config, &rendering).await?;
            failed += usize::from(!verdict.differs.is_empty());
            verdict.print(&name, global.json)?;
        }
        if failed > 0 {
            return Err(Failure::Work(format!("{failed} of {count} case(s) failed")));
        }
        if global.json {
            return Ok(());
        }
        print_line(&format!("{count} case(s), every one as it should be"))
    }
}

/// What may be wrong with the type of a case's event: rules that name the same one match it, and nothing that Close sends.
fn doubt(event: &Event) -> Option<String> {
    let type_action = event.view()?.type_action()?;
    types::doubt(&EventPattern::parse(&type_action).ok()?)
}

impl Verdict {
    fn print(&self, name: &str, is_json: bool) -> Outcome {
        let is_ok = self.differs.is_empty();
        if is_json {
            let value = json!({ "case": name, "ok": is_ok, "routes_to": self.routes, "differs": self.differs });
            return print_line(&value.to_string());
        }
        print_line(&plain::line(&format!(
            "{:<8}{name}",
            if is_ok { "ok" } else { "FAILED" }
        )))?;
        let mut differs = self.differs.iter();
        differs.try_for_each(|line| print_line(&format!("        {}", plain::line(line))))
    }
}

async fn judge(case: Case, rules: &RuleSet, config: &Config, rendering: &[Rendering]) -> Result<Verdict, Failure> {
    let event = Arc::new(case.event);
    let sent = sent(&event, rules, config, rendering).await?;
    let routes: BTreeSet<String> = sent.iter().map(|(route, _)| route.clone()).collect();
    let mut differs = Vec::new();
    if let Some(expected) = &case.routes_to {
        let missing = expected.difference(&routes);
        differs.extend(missing.map(|route| format!("does not go \"{route}\": {}", why_not(route, rules, &event))));
        let more = routes.difference(expected);
        differs.extend(more.map(|route| {
            let why = why_so(route, rules, &event);
            format!("goes \"{route}\", which is not expected: {why}")
        }));
    }
    // One that was filled in is empty.
    let is_without_id = event.view().is_some_and(|view| view.id.is_empty());
    differs.extend(other_payloads(&case.payload, &sent, is_without_id));
    Ok(Verdict {
        routes: routes.into_iter().collect(),
        differs,
    })
}

/// What is sent by a route, or why nothing is.
type Sent = Result<Bytes, Unsent>;

#[derive(Debug, Clone)]
enum Unsent {
    /// Its transform wants nothing delivered, or the sink has no use for it.
    Skipped,
    /// Nothing can be made of the event.
    Failed(String),
}

/// Every route that the event takes, with what is sent by it.
async fn sent(
    event: &Arc<Event>,
    rules: &RuleSet,
    config: &Config,
    rendering: &[Rendering],
) -> Result<Vec<(String, Sent)>, Failure> {
    let mut sent = Vec::new();
    for (sink, rendering) in config.sinks.iter().zip(rendering) {
        let Some(senders) = rules.route(&sink.name, event) else {
            continue;
        };
        let payload = match rendering.preview(rules, senders.clone(), event.clone()).await {
            Ok(made) => Ok(sink.options.payload(&made.delivery)),
            Err(Delivered::Reject { reason } | Delivered::Untried { reason } | Delivered::Retry { reason, .. }) => {
                Err(Unsent::Failed(reason.text))
            }
            // That names are not known here says nothing of the other cases.
            Err(Delivered::Waits(unavailable)) if rendering.names().now().lacking.is_some() => {
                Err(Unsent::Failed(unavailable.reason))
            }
            Err(Delivered::Waits(unavailable)) => return Err(Failure::Work(unavailable.reason)),
            Err(Delivered::Delivered | Delivered::Skipped) => Err(Unsent::Skipped),
        };
        if senders.is_empty() {
            sent.push((route(ANY, &sink.name), payload));
        } else {
            sent.extend(senders.iter().map(|rule| (route(rule, &sink.name), payload.clone())));
        }
    }
    Ok(sent)
}

/// Payloads that are not what is expected, a sentence each.
fn other_payloads(expected: &Payload, sent: &[(String, Sent)], is_without_id: bool) -> Vec<String> {
    let differs = |expected: &Expected, route: &str, payload: &Sent| {
        let payload = match payload {
            Ok(payload) => payload,
            Err(Unsent::Skipped) => {
                return Some(format!(
                    "has no payload for \"{route}\": its transform, or the sink, skips it"
                ));
            }
            Err(Unsent::Failed(why)) => return Some(format!("nothing can be made for \"{route}\": {why}")),
        };
        let difference = expected.difference(payload, is_without_id)?;
        Some(format!("the payload of \"{route}\" {difference}"))
    };
    match expected {
        Payload::Any => Vec::new(),
        Payload::Same(_) if sent.is_empty() => vec!["has no payload: it goes nowhere".into()],
        Payload::Same(expected) => sent
            .iter()
            .filter_map(|(route, payload)| differs(expected, route, payload))
            .collect(),
        Payload::Of(each) => each
            .iter()
            .filter_map(|(route, expected)| {
                let sent = sent.iter().find(|(taken, _)| taken == route);
                sent.map_or_else(
                    || Some(format!("has no payload for \"{route}\": it does not go there")),
                    |(_, payload)| differs(expected, route, payload),
                )
            })
            .collect(),
    }
}

/// Why a route that was expected was not taken.
fn why_not(route: &str, rules: &RuleSet, event: &Event) -> String {
    let Some((name, sink)) = route.rsplit_once(" -> ") else {
        return String::new();
    };
    match rules.explain(event).iter().find(|explanation| explanation.rule == name) {
        Some(explanation) if !explanation.sinks.iter().any(|named| named == sink) => {
            format!("the rule does not name {sink}")
        }
        Some(explanation) => why(explanation),
        None => "there is no such rule".to_owned(),
    }
}

/// Why a route was taken that was not expected.
fn why_so(route: &str, rules: &RuleSet, event: &Event) -> String {
    let name = route.rsplit_once(" -> ").map_or(route, |(name, _)| name);
    let explanations = rules.explain(event);
    let explanation = explanations.iter().find(|explanation| explanation.rule == name);
    explanation.map_or_else(|| "there are no rules".to_owned(), why)
}
