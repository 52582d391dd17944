//! `closehook rules explain`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{read_event, why};
use crate::cli::connect::{Access, Connection};
use crate::cli::when::when;
use crate::cli::{Failure, Global, Outcome, print_line};
use crate::config::{Config, Partial};
use crate::control::events::{self, Shown};
use crate::event::{Event, Kind, View};
use crate::plain;
use crate::rules::filter::Trace;
use crate::rules::{Explanation, RuleSet};

/// Show for each rule whether it matches an event, and which node of its filter decided
#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("which").required(true).args(["event", "id"])),
    after_help = "The rules are those of the configuration file, so that a change can be tried before it is reloaded.

Examples:
  closehook rules explain --event delivery.json
  closehook events export --limit 1 | closehook rules explain --event -
  closehook rules explain --id ev_2sYKRjcrA79yKxi3S4Crd7"
)]
pub(in crate::cli) struct Explain {
    /// A delivery or an event as JSON; - for standard input
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// An event of the log, by its id or Seq
    #[arg(long, value_name = "EVENT_ID")]
    id: Option<String>,
    /// Show every node of every filter
    #[arg(long)]
    full: bool,
}

impl Explain {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let config = global.load()?;
        let (event, kept_back) = self.event(global, &config).await?;
        let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
        let rules = RuleSet::of(&config).map_err(Failure::Faults)?;
        let explanations = rules.explain(&event);
        let routed: Vec<&str> = sinks
            .iter()
            .copied()
            .filter(|sink| kept_back.is_none() && rules.route(sink, &event).is_some())
            .collect();
        if global.json {
            let mut value = json!({ "rules": explanations, "sinks": routed });
            if let Some(why) = kept_back {
                value["because"] = json!(why);
            }
            return print_line(&value.to_string());
        }
        self.print(&event, &explanations)?;
        if let Some(why) = kept_back {
            return print_line(&format!("goes to: no sink, whatever the rules say: {why}"));
        }
        print_line(&format!(
            "goes to: {}",
            if routed.is_empty() {
                "no sink".to_owned()
            } else {
                routed.join(", ")
            }
        ))
    }

    /// The event, and why the daemon sends it nowhere, whatever the rules say; `None`: they decide.
    async fn event(&self, global: &Global, config: &Config) -> Result<(Event, Option<&'static str>), Failure> {
        let mut kept_back = None;
        let (text, stored) = match (&self.event, &self.id) {
            (Some(path), _) if path.as_os_str() == "-" => (std::io::read_to_string(std::io::stdin())?, None),
            (Some(path), _) => {
                let text = crate::files::read_text_argument(path)
                    .map_err(|error| Failure::Usage(format!("{} can't be read: {error}", path.display())))?;
                (text, None)
            }
            (None, Some(id)) => {
                let connection = Connection::open(global, Access::Read).await?;
                let shown = connection.ask_one(events::Show { id: id.clone() }).await?;
                if shown.kind == Kind::Erased {
                    let seq = shown.event.seq;
                    return Err(Failure::Work(format!(
                        "event {seq} was erased: nothing of it is left that a rule could look at"
                    )));
                }
                kept_back = why_kept_back(&shown, config);
                if shown.kind == Kind::Quarantined {
                    let (at, source, body) = (shown.event.received_at, shown.event.source, shown.event.bytes()?);
                    let event = Event::new(shown.event.seq, at, source, shown.kind, None, body.into());
                    return Ok((event, kept_back));
                }
                // As it is: it is read here, not shown.
                let stored = (shown.event.received_at, shown.kind);
                (shown.event.body.unwrap_or_default(), Some(stored))
            }
            (None, None) => (String::new(), None),
        };
        let (received_at, kind) = stored.unwrap_or_else(|| (Timestamp::now(), Kind::Event));
        let mut event = read_event(&text, received_at).map_err(Failure::Usage)?;
        event.kind = kind;
        Ok((event, kept_back))
    }

    fn print(&self, event: &Event, explanations: &[Explanation]) -> Outcome {
        if event.kind == Kind::Quarantined {
            return print_line(&format!(
                "(no event) Seq {}, received {}",
                event.seq,
                when(event.received_at)
            ));
        }
        let type_action = event.view().and_then(View::type_action);
        let type_action = type_action.unwrap_or_else(|| "(no type)".into());
        let received = if self.id.is_some() {
            format!(", received {}", when(event.received_at))
        } else {
            String::new()
        };
        // What stands in an event must not look like another line of ours.
        let id = event.view().map(|view| view.id.as_str()).unwrap_or_default();
        print_line(&plain::line(&format!("{type_action} {id}{received}")))?;
        if explanations.is_empty() {
            print_line("no rules: every event goes to every sink")?;
        }
        for explanation in explanations {
            let verdict = if explanation.matched {
                "matches"
            } else {
                "does not match"
            };
            let why = why(explanation);
            let why = plain::line(&why);
            print_line(&format!("rule \"{}\" {verdict}: {why}", explanation.rule))?;
            if self.full
                && let Some(filter) = &explanation.filter
            {
                print_trace(filter, 1)?;
            }
        }
        Ok(())
    }
}

/// Why the daemon sends an event of the log nowhere by itself; `None`: rules decide.
fn why_kept_back(shown: &Shown, config: &Config) -> Option<&'static str> {
    match shown.kind {
        Kind::Quarantined => Some("its body can't be read as a delivery, and is kept in quarantine"),
        _ if shown.held => Some("it was imported without --dispatch (`closehook replay` sends it)"),
        Kind::Partial if config.close.partial == Partial::Hold => {
            Some("Close withholds its data: it is held until the full event comes (close.partial)")
        }
        Kind::Event | Kind::Partial | Kind::Erased => None,
    }
}

fn print_trace(trace: &Trace, depth: usize) -> Outcome {
    let mark = if trace.matched { "yes" } else { "no " };
    let saw = plain::line(&trace.saw);
    print_line(&format!("{}{mark} {} <- {saw}", "  ".repeat(depth), trace.test))?;
    trace
        .children
        .iter()
        .try_for_each(|child| print_trace(child, depth + 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Layers;
    use crate::control::transfer::Exported;
    use crate::event::{Seq, Source};

    /// The daemon sends nothing of these, so that rules alone don't tell where an event goes.
    #[test]
    fn what_the_daemon_keeps_back_goes_nowhere_whatever_rules_say() {
        let mut config = Config::load(&Layers::new(&[], crate::rules::faults)).unwrap();
        let shown = |kind, held| {
            let body = r#"{"event":{"id":"ev_1"}}"#;
            let event = Event::new(Seq(1), Timestamp::UNIX_EPOCH, Source::Webhook, kind, None, body.into());
            Shown {
                event: Exported::of(&event),
                kind,
                held,
                signature: String::new(),
                sinks: BTreeMap::new(),
                revisions: Vec::new(),
            }
        };
        let why = |config: &Config, kind, held| why_kept_back(&shown(kind, held), config);
        assert_eq!(why(&config, Kind::Event, false), None);
        assert!(why(&config, Kind::Event, true).unwrap().contains("--dispatch"));
        assert!(why(&config, Kind::Quarantined, false).unwrap().contains("quarantine"));
        assert!(why(&config, Kind::Partial, false).unwrap().contains("withholds"));
        config.close.partial = Partial::Dispatch;
        assert_eq!(why(&config, Kind::Partial, false), None);
        assert!(why(&config, Kind::Partial, true).is_some(), "imported");
    }
}
