//! `closehook render`

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::connect::{Access, Connection};
use super::rules::read_event;
use super::{Failure, Global, Outcome, print_line, report};
use crate::close::names_on_disk;
use crate::config::SinkConfig;
use crate::control::events;
use crate::deliver::Rendering;
use crate::event::{Delivery, Event, Kind, Origin};
use crate::json::stream::{self, Found};
use crate::names;
use crate::plain;
use crate::render::{Guard, NameBook};
use crate::rules::RuleSet;
use crate::sinks::{Outcome as Delivered, Preview};

/// Print exactly what a sink would be sent for events, and send nothing
#[derive(Debug, Args)]
#[command(
    after_help = "What templates and transforms make of each event: headers, the body, a row, the key and the subject, as far as the sink has them. By
the configuration file as it is, so that a change can be tried before it is reloaded; also for events that no rule sends there. Reads
JSON events or deliveries, one after the other, or lines of `closehook events export`. Exit code 1 if something can't be made.

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
            rules: RuleSet::compile(&config.rules, &names).map_err(Failure::Faults)?,
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
        let Given { event, is_of_log } = given;
        let kind = event.kind;
        let name = &self.sink.name;
        let rules = self.rules.route(name, &event).unwrap_or_default();
        let rule = self.rules.program(name, &rules).map(|(rule, _)| rule.clone());
        let rule = rule.or_else(|| rules.first().cloned());
        let mut batch = [Delivery {
            origin: Origin::Live,
            event: Arc::new(event),
            rules,
            attempt: 1,
            rendered: None,
        }];
        let ended = self.rendering.render(&self.rules, &mut batch).await;
        let ended = ended.map_err(|unavailable| Failure::Work(unavailable.reason))?;
        let delivery = &batch[0];
        let id = delivery.event.view().map(|view| view.id.clone()).unwrap_or_default();
        let mut shown = Map::new();
        shown.insert("event_id".into(), json!(id));
        if is_of_log {
            shown.insert("seq".into(), json!(delivery.event.seq));
        }
        shown.insert("sink".into(), json!(name));
        if let Some(rule) = rule {
            shown.insert("rule".into(), json!(rule));
        }
        match ended.into_iter().next().flatten() {
            None => {
                if let Some(why) = self.sink.options.refusal(delivery) {
                    report::notice(is_json, &format!("{id}: {why}"));
                    return Ok(false);
                }
                show(&mut shown, self.sink.options.preview(delivery));
            }
            Some(Delivered::Reject { reason } | Delivered::Retry { reason, .. }) => {
                let said = reason.answer.map(|answer| format!(" ({answer})")).unwrap_or_default();
                let text = format!("{id}: {}{said}", reason.text);
                report::notice(is_json, &text);
                return Ok(false);
            }
            Some(Delivered::Waits(unavailable)) => return Err(Failure::Work(unavailable.reason)),
            Some(Delivered::Delivered | Delivered::Skipped) => drop(shown.insert("skipped".into(), json!(true))),
        }
        if kind == Kind::Partial && !is_json {
            report::notice(is_json, &format!("Close withholds the data of {id}"));
        }
        if is_json {
            print_line(&Value::Object(shown).to_string())?;
        } else {
            print_line(&for_people(&shown))?;
        }
        Ok(true)
    }
}

fn show(shown: &mut Map<String, Value>, preview: Preview) {
    if !preview.headers.is_empty() {
        shown.insert("headers".into(), json!(preview.headers));
    }
    if let Some(body) = preview.body {
        let (key, value) = text_or_base64(&body);
        shown.insert(key.into(), value);
    }
    let row = preview
        .row
        .map(|row| serde_json::from_str(&row).unwrap_or(Value::String(row)));
    let others = [
        ("row", row),
        ("key", preview.key.map(Value::String)),
        ("subject", preview.subject.map(Value::String)),
    ];
    shown.extend(
        others
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?))),
    );
}

fn text_or_base64(body: &Bytes) -> (&'static str, Value) {
    match std::str::from_utf8(body) {
        Ok(text) => ("body", json!(text)),
        Err(_) => ("body_base64", json!(STANDARD.encode(body))),
    }
}

/// What is sent beside the body, a line each, and the body.
fn for_people(shown: &Map<String, Value>) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line = |name: &str, value: &Value| plain::line(&format!("{name}: {}", text(value))).into_owned();
    let mut lines = Vec::new();
    for (name, value) in shown {
        match (name.as_str(), value) {
            ("body" | "body_base64", _) => {}
            ("headers", Value::Object(headers)) => lines.extend(headers.iter().map(|(name, value)| line(name, value))),
            _ => lines.push(line(name, value)),
        }
    }
    if let Some(body) = shown.get("body").or_else(|| shown.get("body_base64")) {
        lines.push(String::new());
        lines.push(text(body));
    }
    lines.push(String::new());
    lines.join("\n")
}
