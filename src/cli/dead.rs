//! `closehook dead`

use clap::{Args, Subcommand};
use serde_json::Value;

use super::connect::{Access, Connection, with};
use super::pick::Pick;
use super::term::confirm;
use super::{Failure, Global, Outcome, field, print_line, table};
use crate::admin::query::{self, Query};

/// Dead letters: deliveries that were given up
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  closehook dead list\n  closehook dead retry --sink crm-db --all")]
pub(super) enum Dead {
    /// What was given up, where and why
    #[command(after_help = "Example:\n  closehook dead list --sink crm-db --since 1d")]
    List(List),
    /// One dead letter with its event
    #[command(after_help = "Example:\n  closehook dead show ev_2sYKRjcrA79yKxi3S4Crd7 --sink crm-db")]
    Show(Show),
    /// Deliver dead letters again; those that succeed are removed
    #[command(
        after_help = "Examples:\n  closehook dead retry --sink crm-db --all\n  closehook dead retry --id ev_2sYKRjcrA79yKxi3S4Crd7"
    )]
    Retry(Which),
    /// Remove dead letters for good
    #[command(after_help = "Example:\n  closehook dead drop --sink crm-db --until 7d --yes")]
    Drop(Which),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this sink
    #[arg(long)]
    sink: Option<String>,
    #[command(flatten)]
    pick: Pick,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u64,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Event id or Seq
    event: String,
    /// Only of this sink
    #[arg(long)]
    sink: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Only of this sink
    #[arg(long)]
    sink: Option<String>,
    #[command(flatten)]
    pick: Pick,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Which {
    fn query(&self) -> Result<query::Pick, Failure> {
        if self.pick.is_empty() && !self.all {
            return Err(Failure::Usage(
                "say which: --id, --type, --lead, --filter, --since, --until, or --all".into(),
            ));
        }
        self.pick.query()
    }
}

impl Dead {
    /// Whether it changes anything.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Dead::Retry(_) | Dead::Drop(_))
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        let access = if self.changes() { Access::Write } else { Access::Read };
        with(global, access, async |connection| match &self {
            Dead::List(list) => list.run(global, connection).await,
            Dead::Show(show) => show.run(global, connection).await,
            Dead::Retry(which) => retry(which, global, connection).await,
            Dead::Drop(which) => drop_letters(which, global, connection).await,
        })
        .await
    }
}

/// What the receiver said to an event, for people; nothing where it said nothing.
pub(super) fn answered(at: &Value) -> Option<String> {
    let answer = at["answer"].as_str()?;
    let lines: Vec<String> = answer
        .lines()
        .map(|line| format!("  {}", crate::plain::line(line)))
        .collect();
    Some(format!("the receiver said:\n{}", lines.join("\n")))
}

impl List {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let query = Query::DeadList {
            sink: self.sink.clone(),
            pick: self.pick.query()?,
            limit: self.limit,
        };
        let mut answers = connection.ask(query).await?;
        let mut rows = Vec::new();
        while let Some(letter) = answers.next().await? {
            if global.json {
                print_line(&letter.to_string())?;
            } else {
                rows.push(
                    ["sink", "seq", "event_type", "id", "attempts", "died_at", "reason"]
                        .iter()
                        .map(|name| field(&letter, name))
                        .collect(),
                );
            }
        }
        match (global.json, rows.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => {
                eprintln!("closehook: no dead letters");
                Ok(())
            }
            (false, false) => print_line(&table(
                &["sink", "seq", "type", "id", "attempts", "died at", "reason"],
                rows,
            )),
        }
    }
}

impl Show {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut answers = connection
            .ask(Query::DeadShow {
                sink: self.sink.clone(),
                id: self.event.clone(),
            })
            .await?;
        while let Some(shown) = answers.next().await? {
            global.print(&shown, |shown| {
                let letter = &shown["letter"];
                let mut lines: Vec<String> = [
                    "sink",
                    "seq",
                    "event_type",
                    "id",
                    "reason",
                    "attempts",
                    "first_attempt",
                    "died_at",
                ]
                .iter()
                .map(|name| format!("{name:<14} {}", field(letter, name)))
                .collect();
                lines.extend(answered(letter));
                let body = shown["body"].as_str().unwrap_or_default();
                let pretty = serde_json::from_str::<Value>(body)
                    .ok()
                    .and_then(|value| serde_json::to_string_pretty(&value).ok());
                lines.push(pretty.unwrap_or_else(|| crate::plain::line(body).into_owned()));
                lines.join("\n")
            })?;
        }
        Ok(())
    }
}

async fn retry(which: &Which, global: &Global, connection: &Connection) -> Outcome {
    let query = Query::DeadRetry {
        sink: which.sink.clone(),
        pick: which.query()?,
    };
    let result = connection.ask_one(query).await?;
    global.print(&result, |result| {
        let counts = format!(
            "{} tried: {} delivered, {} still dead",
            field(result, "total"),
            field(result, "delivered"),
            field(result, "failed")
        );
        match result["reason"].as_str() {
            Some(_) => format!("{counts}: {}", field(result, "reason")),
            None => counts,
        }
    })?;
    if result["failed"].as_u64().unwrap_or_default() > 0 {
        Err(Failure::Found)
    } else {
        Ok(())
    }
}

async fn drop_letters(which: &Which, global: &Global, connection: &Connection) -> Outcome {
    let pick = which.query()?;
    if !which.yes {
        confirm("Remove these dead letters for good?")?;
    }
    let result = connection
        .ask_one(Query::DeadDrop {
            sink: which.sink.clone(),
            pick,
        })
        .await?;
    global.print(&result, |result| format!("{} dropped", field(result, "dropped")))
}
