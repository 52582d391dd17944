//! `closehook sinks`

use clap::Subcommand;

use super::connect::{Access, Connection, with};
use super::sink_types;
use super::when::{told, when_known};
use super::{Global, Outcome, json_line, print_line, table};
use crate::config::Span;
use crate::control::sinks as asked;
use crate::deliver::{Known, SinkStatus};
use crate::plain;

/// See how sinks are doing and what types there are; pause and resume them
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  closehook sinks list\n  closehook sinks pause crm-db\n  closehook sinks types http"
)]
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
    /// The types of sinks that there are; of one, its keys, an example and how to set it up
    #[command(
        after_help = "Examples:\n  closehook sinks types\n  closehook sinks types http\n  closehook sinks types --json | jq -r 'select(.in_build) | .type'"
    )]
    Types {
        /// A type
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(sink_types::names()))]
        name: Option<String>,
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
        !matches!(self, Sinks::List | Sinks::Types { .. })
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        if let Sinks::Types { name } = &self {
            return sink_types::run(global, name.as_deref());
        }
        let access = if self.changes() { Access::Write } else { Access::Read };
        with(global, access, async |connection| match &self {
            Sinks::List => list(global, connection).await,
            Sinks::Pause { sink } => pause(global, connection, sink, true).await,
            Sinks::Resume { sink } => pause(global, connection, sink, false).await,
            Sinks::Forget { sink } => forget(global, connection, sink).await,
            Sinks::Types { .. } => Ok(()),
        })
        .await
    }
}

async fn pause(global: &Global, connection: &Connection, sink: &str, paused: bool) -> Outcome {
    let order = asked::Pause {
        sink: sink.to_owned(),
        paused,
    };
    let done = connection.ask_one(order).await?;
    let what = if paused { "is paused" } else { "goes on" };
    global.print(&done, |_| format!("{sink} {what}"))
}

async fn forget(global: &Global, connection: &Connection, sink: &str) -> Outcome {
    let deed = asked::Forget { sink: sink.to_owned() };
    let forgotten = connection.ask_one(deed).await?;
    global.print(&forgotten, |forgotten| {
        let said = match forgotten.dropped {
            0 => format!("{sink} is forgotten"),
            1 => format!("{sink} is forgotten, and its dead letter with it"),
            dropped => format!("{sink} is forgotten, and its {dropped} dead letters with it"),
        };
        match forgotten.undelivered {
            0 => said,
            count => format!("{said}; {count} of these other sinks had given up for it, and it never had them"),
        }
    })
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

pub(super) fn row(shown: &asked::Shown) -> Vec<String> {
    let sink = &shown.sink;
    #[expect(clippy::cast_sign_loss, reason = "an age is not negative")]
    let age = Span::secs(sink.lag_seconds.round().max(0.0) as u64);
    let breaker = if sink.paused { "paused" } else { &sink.breaker };
    let saved = |text: String| known(sink.known != Known::Nothing, text);
    let now = |text: String| known(sink.known == Known::Now, text);
    vec![
        plain::line(&sink.name).into_owned(),
        plain::line(&sink.kind).into_owned(),
        saved(sink.cursor.to_string()),
        saved(sink.lag_events.to_string()),
        known(sink.known == Known::Now && !sink.lag_seconds.is_nan(), age.to_string()),
        now(sink.in_flight.to_string()),
        saved(sink.retrying.to_string()),
        shown.held.to_string(),
        saved(sink.dead.to_string()),
        known(
            sink.paused || sink.known == Known::Now,
            plain::line(breaker).into_owned(),
        ),
    ]
}

/// What is not known is shown so.
fn known(is_known: bool, text: String) -> String {
    if is_known { text } else { "-".to_owned() }
}

/// What there is to say of a sink beside its row: why it waits, what failed last, what it will never have.
pub(super) fn remarks(sink: &SinkStatus) -> Vec<String> {
    let name = plain::line(&sink.name);
    let waits = sink.waits_for.as_deref().map(plain::line);
    let is_why = |error: &str| waits.as_ref().is_some_and(|waits| waits.contains(error));
    let error = sink
        .last_error
        .as_deref()
        .map(plain::line)
        .filter(|error| !is_why(error));
    let at = when_known(sink.last_error_at).map_or_else(String::new, |at| format!(" ({at})"));
    let waits = waits.as_ref().map(|why| format!("{name}: waits: {}", told(why)));
    let error = error.map(|error| format!("{name}: {error}{at}"));
    let letters = sink.dead_trouble.as_deref().map(plain::line);
    let letters = letters.map(|trouble| format!("{name}: dead letters: {}", told(&trouble)));
    waits
        .into_iter()
        .chain(waits_by(sink))
        .chain(error)
        .chain(letters)
        .chain(losses(sink))
        .chain(afar(sink))
        .collect()
}

/// Where there is more to be seen of one that another node drives.
fn afar(sink: &SinkStatus) -> Option<String> {
    let node = sink.node.as_deref().filter(|_| sink.known == Known::Saved)?;
    let (name, node) = (plain::line(&sink.name), plain::line(node));
    Some(format!("{name}: node \"{node}\" drives it, and knows how it does now"))
}

/// What it waits for as it is configured.
pub(super) fn waits_by(sink: &SinkStatus) -> Option<String> {
    let by = plain::line(sink.waits_by.as_deref()?);
    Some(format!("{}: waits by {}", plain::line(&sink.name), told(&by)))
}

/// What a sink will never have, or only as dead letters.
pub(super) fn losses(sink: &SinkStatus) -> Vec<String> {
    let name = plain::line(&sink.name);
    let lost =
        (sink.lost > 0).then(|| format!("{name}: {} event(s) were damaged or gone before it had them", sink.lost));
    let buried = (sink.buried > 0).then(|| {
        format!(
            "{name}: {} event(s) became dead letters because the log reached its size limit",
            sink.buried
        )
    });
    let dropped = (sink.dropped > 0).then(|| {
        format!(
            "{name}: {} dead letter(s) were dropped: it never has their events",
            sink.dropped
        )
    });
    [lost, buried, dropped].into_iter().flatten().collect()
}

async fn list(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(asked::List {}).await?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    while let Some(shown) = answers.next().await? {
        if global.json {
            print_line(&json_line(&shown)?)?;
            continue;
        }
        lines.extend(remarks(&shown.sink));
        rows.push(row(&shown));
    }
    if global.json {
        return Ok(());
    }
    print_line(&table(&COLUMNS, rows))?;
    lines.iter().try_for_each(|line| print_line(line))
}
