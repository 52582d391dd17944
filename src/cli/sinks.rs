//! `closehook sinks`

use clap::Subcommand;
use serde_json::Value;

use super::connect::{Access, Connection, with};
use super::{Failure, Global, Outcome, field, print_line, said, table};
use crate::admin::query::Query;

/// See how sinks are doing; pause and resume them
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  closehook sinks list\n  closehook sinks pause crm-db")]
pub(super) enum Sinks {
    /// Position, lag, in flight, retrying, dead, breaker, last error
    #[command(after_help = "Example:\n  closehook sinks list --json | jq 'select(.lag_seconds > 60)'")]
    List,
    /// Stop a sink's deliveries; events wait in the log
    #[command(after_help = "Example:\n  closehook sinks pause crm-db")]
    Pause {
        /// Its name
        sink: String,
    },
    /// Let a paused sink go on
    #[command(after_help = "Example:\n  closehook sinks resume crm-db")]
    Resume {
        /// Its name
        sink: String,
    },
    /// Forget the position and the dead letters of a sink that is no longer configured
    #[command(after_help = "Example:\n  closehook sinks forget old-crm")]
    Forget {
        /// Its name
        sink: String,
    },
}

impl Sinks {
    /// Whether it changes anything.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Sinks::List)
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        let access = if self.changes() { Access::Write } else { Access::Read };
        with(global, access, async |connection| {
            let (query, done) = match &self {
                Sinks::List => return list(global, connection).await,
                Sinks::Pause { sink } => (
                    Query::Pause {
                        sink: sink.clone(),
                        paused: true,
                    },
                    format!("{sink} is paused"),
                ),
                Sinks::Resume { sink } => (
                    Query::Pause {
                        sink: sink.clone(),
                        paused: false,
                    },
                    format!("{sink} goes on"),
                ),
                Sinks::Forget { sink } => (Query::Forget { sink: sink.clone() }, format!("{sink} is forgotten")),
            };
            let answer = connection.ask_one(query).await?;
            let dropped = answer["dropped"].as_u64().unwrap_or_default();
            match (global.json, dropped) {
                (true, _) => print_line("{\"ok\":true}"),
                (false, 0) => print_line(&done),
                (false, 1) => print_line(&format!("{done}, and its dead letter with it")),
                (false, _) => print_line(&format!("{done}, and its {dropped} dead letters with it")),
            }
        })
        .await
    }
}

/// The columns people see of a sink.
pub(super) const COLUMNS: [&str; 10] = [
    "sink",
    "type",
    "position",
    "lag",
    "age",
    "in flight",
    "retrying",
    "held",
    "dead",
    "breaker",
];

pub(super) fn row(sink: &Value) -> Vec<String> {
    let seconds = sink["lag_seconds"].as_f64().unwrap_or_default();
    let age = crate::config::Span(std::time::Duration::from_secs(
        seconds.round().max(0.0).to_string().parse().unwrap_or(0),
    ));
    let breaker = if sink["paused"] == true {
        "paused".to_owned()
    } else {
        field(sink, "breaker")
    };
    vec![
        field(sink, "name"),
        field(sink, "kind"),
        field(sink, "cursor"),
        field(sink, "lag_events"),
        age.to_string(),
        field(sink, "in_flight"),
        field(sink, "retrying"),
        field(sink, "held"),
        field(sink, "dead"),
        breaker,
    ]
}

/// What there is to say of a sink beside its row: why it waits, what failed last, what it will never have.
pub(super) fn remarks(sink: &Value) -> Vec<String> {
    let name = field(sink, "name");
    let count = |key: &str| sink[key].as_u64().filter(|count| *count > 0);
    let waits = said(&sink["waits_for"]).map(|why| format!("{name}: waits: {why}"));
    let is_why = |error: &String| waits.as_ref().is_some_and(|waits| waits.contains(error.as_str()));
    let error = said(&sink["last_error"])
        .filter(|error| !is_why(error))
        .map(|error| format!("{name}: {error} ({})", field(sink, "last_error_at")));
    let letters = said(&sink["dead_trouble"]).map(|trouble| format!("{name}: dead letters: {trouble}"));
    let lost = count("lost").map(|lost| format!("{name}: {lost} event(s) were damaged or gone before it had them"));
    let buried = count("buried")
        .map(|buried| format!("{name}: {buried} event(s) became dead letters because the log reached its size limit"));
    [waits, error, letters, lost, buried].into_iter().flatten().collect()
}

async fn list(global: &Global, connection: &Connection) -> Result<(), Failure> {
    let mut answers = connection.ask(Query::Sinks).await?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    while let Some(sink) = answers.next().await? {
        if global.json {
            print_line(&sink.to_string())?;
            continue;
        }
        lines.extend(remarks(&sink));
        rows.push(row(&sink));
    }
    if global.json {
        return Ok(());
    }
    print_line(&table(&COLUMNS, rows))?;
    lines.iter().try_for_each(|line| print_line(line))
}
