//! `closehook render`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::connect::{Access, Connection};
use super::rules::read_event;
use super::{Failure, Global, Outcome, print_line, report};
use crate::close::names_on_disk;
use crate::config::SinkConfig;
use crate::control::events;
use crate::deliver::Rendering;
use crate::event::{Event, Kind, Seq};
use crate::json::stream::{self, Found};
use crate::names;
use crate::plain;
use crate::render::{Guard, NameBook};
use crate::rules::RuleSet;
use crate::sinks::{Outcome as Delivered, Preview};

/// Print exactly what a sink would be sent for events, and send nothing
#[derive(Debug, Args)]
#[command(
    after_help = "What is made of each event: headers, attributes or variables, the body, a row, the key and the subject, as far as the sink has them,
but for secrets and what depends on the moment (a signature). A sink that gathers several events is shown with this one alone. By
the configuration file as it is, so that a change can be tried before it is reloaded; also for events that no rule sends there. Reads
JSON events or deliveries, one after the other, or lines of `closehook events export`. Exit code 1 if something can't be made or sent.

Examples:
  closehook render slack --id ev_2sYKRjcrA79yKxi3S4Crd7
  closehook events export --since 1d | closehook render crm --json
  closehook -c new.toml render crm lead.json"
)]
pub(super) struct Render {
    /// The sink
    sink: String,
    /// An event of the log, by its id or Seq
    #[arg(long, value_name = "EVENT_ID", conflicts_with = "files")]
    id: Option<String>,
    /// Files to read; default: standard input
    files: Vec<PathBuf>,
}

/// What renders for one sink.
struct Press<'c> {
    sink: &'c SinkConfig,
    rules: RuleSet,
    rendering: Rendering,
}

/// An event, and whether it has a place in a log.
struct Given {
    event: Event,
    is_of_log: bool,
}

impl Render {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let config = global.load()?;
        let names: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
        let Some(sink) = config.sinks.iter().find(|sink| sink.name == self.sink) else {
            let wrong = format!("there is no sink \"{}\"", self.sink);
            return Err(Failure::Work(names::unknown(wrong, &self.sink, names)));
        };
        let press = Press {
            sink,
            rules: RuleSet::of(&config).map_err(Failure::Faults)?,
            rendering: Rendering::new(sink, Guard::new(Arc::new(NameBook::with(names_on_disk(&config))))),
        };
        let mut all_made = true;
        for given in self.given(global).await? {
            all_made &= press.print(given, global.json).await?;
        }
        if all_made { Ok(()) } else { Err(Failure::Found) }
    }

    async fn given(&self, global: &Global) -> Result<Vec<Given>, Failure> {
        let Some(id) = &self.id else {
            let mut given = Vec::new();
            if self.files.is_empty() {
                read("standard input", std::io::stdin(), &mut given)?;
            }
            for path in &self.files {
                if path.as_os_str() == "-" {
                    read("standard input", std::io::stdin(), &mut given)?;
                } else {
                    let name = path.display().to_string();
                    read(&name, open(path, &name)?, &mut given)?;
                }
            }
            return Ok(given);
        };
        let connection = Connection::open(global, Access::Read).await?;
        let shown = connection.ask_one(events::Show { id: id.clone() }).await?;
        let body = shown.event.bytes().map_err(Failure::Work)?;
        let event = Event::new(
            shown.event.seq,
            shown.event.received_at,
            shown.event.source,
            shown.kind,
            None,
            body.into(),
        );
        if event.view().is_none() {
            return Err(Failure::Work(format!(
                "{} is no event that could be delivered: its body can't be read, or was erased",
                plain::line(id)
            )));
        }
        Ok(vec![Given { event, is_of_log: true }])
    }
}

fn open(path: &Path, name: &str) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::Usage(format!("{name} can't be read: {error}")))
}

fn read(name: &str, source: impl std::io::Read, given: &mut Vec<Given>) -> Outcome {
    stream::read(BufReader::new(source), |found| {
        let wrong = |line: u64, why: &str| Failure::Usage(format!("{name}:{line}: {}", plain::line(why)));
        match found {
            Found::Fault { line, why } => Err(wrong(line, &format!("not valid JSON: {why}"))),
            Found::Value { text, line } => {
                let event = read_event(text, Timestamp::now()).map_err(|why| wrong(line, &why))?;
                given.push(Given {
                    event,
                    is_of_log: false,
                });
                Ok(())
            }
        }
    })
}

impl Press<'_> {
    /// Prints what is made of an event; `false`: nothing can be, and that was said.
    async fn print(&self, given: Given, is_json: bool) -> Result<bool, Failure> {
        let event = Arc::new(given.event);
        let name = &self.sink.name;
        let rules = self.rules.route(name, &event).unwrap_or_default();
        let rule = self.rules.program(name, &rules).map(|(rule, _)| rule.clone());
        let rule = rule.or_else(|| rules.first().cloned());
        let id = event.view().map(|view| view.id.clone()).unwrap_or_default();
        let shown = Shown {
            event_id: id.clone(),
            seq: given.is_of_log.then_some(event.seq),
            sink: name.clone(),
            rule: rule.map(|rule| rule.to_string()),
            ..Shown::default()
        };
        let shown = match self.rendering.preview(&self.rules, rules, event.clone()).await {
            Ok(made) => shown.with(made.preview),
            Err(Delivered::Reject { reason } | Delivered::Untried { reason } | Delivered::Retry { reason, .. }) => {
                let said = reason.answer.map(|answer| format!(" ({answer})")).unwrap_or_default();
                let text = format!("{id}: {}{said}", reason.text);
                report::notice(is_json, &text);
                return Ok(false);
            }
            Err(Delivered::Waits(unavailable)) => return Err(Failure::Work(unavailable.reason)),
            Err(Delivered::Delivered | Delivered::Skipped) => Shown { skipped: true, ..shown },
        };
        if event.kind == Kind::Partial && !is_json {
            report::notice(is_json, &format!("Close withholds the data of {id}"));
        }
        if is_json {
            let line = serde_json::to_string(&shown).map_err(|error| Failure::Work(error.to_string()))?;
            print_line(&line)?;
        } else {
            print_line(&shown.for_people())?;
        }
        Ok(true)
    }
}

/// What is printed of an event, as it is with `--json`.
#[derive(Debug, Default, Serialize)]
struct Shown {
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    sink: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skipped: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// Every token of it as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
}

impl Shown {
    fn with(self, preview: Preview) -> Shown {
        let (body, body_base64) = match preview.body.map(|body| String::from_utf8(body.into())) {
            None => (None, None),
            Some(Ok(text)) => (Some(text), None),
            Some(Err(error)) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        Shown {
            headers: preview.headers,
            body,
            body_base64,
            row: preview.row.and_then(|row| RawValue::from_string(row).ok()),
            key: preview.key,
            subject: preview.subject,
            ..self
        }
    }

    /// What is sent beside the body, a line each, and the body.
    fn for_people(&self) -> String {
        let seq = self.seq.map(|seq| seq.to_string());
        let named = |name, value: &Option<String>| Some((name, value.clone()?));
        let before = [
            Some(("event_id", self.event_id.clone())),
            named("seq", &seq),
            Some(("sink", self.sink.clone())),
            named("rule", &self.rule),
            self.skipped.then(|| ("skipped", "true".to_owned())),
        ];
        let behind = [
            self.row.as_ref().map(|row| ("row", row.get().to_owned())),
            named("key", &self.key),
            named("subject", &self.subject),
        ];
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let all = before.into_iter().flatten().chain(headers);
        let mut text: String = all
            .chain(behind.into_iter().flatten())
            .map(|(name, value)| plain::line(&format!("{name}: {value}")).into_owned() + "\n")
            .collect();
        if let Some(body) = self.body.as_ref().or(self.body_base64.as_ref()) {
            text = text + "\n" + body + "\n";
        }
        text
    }
}
