//! `closehook backfill`

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::connect::{Access, Connection, with};
use super::term::{advance, fraction_bar};
use super::{Failure, Global, Outcome, field, print_line, said};
use crate::admin::close::CloseQuery;
use crate::admin::query::Query;
use crate::close::Ask;
use crate::config::time;

/// Fetch events from Close's event log that the log lacks
#[derive(Debug, Args)]
#[command(
    after_help = "Close keeps its event log for 30 days. What the rules want is fetched, oldest first, stored once (the same duplicate rule as for
deliveries, so running it twice stores nothing twice) and dispatched. It remembers how far it got: after Ctrl-C, a kill or a
restart it goes on from there.

Examples:
  closehook backfill --since 7d --dry-run
  closehook backfill --since 2024-02-15 --until 2024-02-16 --type 'lead.*'
  closehook backfill --lead lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68
  closehook backfill --resume"
)]
pub(super) struct Backfill {
    /// Updated at or after: a time, a date, or a span back from now like 7d; default: as far as Close goes
    #[arg(long, value_parser = time::argument)]
    since: Option<Timestamp>,
    /// Updated before
    #[arg(long, value_parser = time::argument)]
    until: Option<Timestamp>,
    /// Only this type, like lead.updated or 'activity.*'; may be repeated
    #[arg(long = "type", value_name = "TYPE.ACTION", value_parser = super::kinds::pattern)]
    types: Vec<String>,
    /// Only this lead's events
    #[arg(long, value_name = "ID")]
    lead: Option<String>,
    /// Only say what would be stored
    #[arg(long)]
    dry_run: bool,
    /// Go on with a backfill that was stopped, or watch the one that runs
    #[arg(long, conflicts_with_all = ["since", "until", "types", "lead", "dry_run"])]
    resume: bool,
}

impl Backfill {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let ask = Ask {
            since: self.since,
            until: self.until,
            types: self.types.clone(),
            lead: self.lead.clone(),
        };
        if let (Some(since), Some(until)) = (ask.since, ask.until)
            && since >= until
        {
            return Err(Failure::Usage(format!(
                "nothing lies between --since {since} and --until {until}: --since must be the earlier one"
            )));
        }
        let access = if self.dry_run { Access::Preview } else { Access::Begin };
        with(global, access, async |connection| {
            if self.dry_run {
                return rehearse(global, connection, ask.clone()).await;
            }
            let begin = if self.resume {
                CloseQuery::SetBackfill { running: true }
            } else {
                CloseQuery::Backfill {
                    ask: Box::new(ask.clone()),
                }
            };
            connection.ask_one(Query::Close(begin)).await?;
            watch(global, connection).await
        })
        .await
    }
}

async fn rehearse(global: &Global, connection: &Connection, ask: Ask) -> Outcome {
    let mut answers = connection
        .ask(Query::Close(CloseQuery::Rehearse { ask: Box::new(ask) }))
        .await?;
    let bar = fraction_bar();
    let mut plan = Value::Null;
    while let Some(answer) = answers.next().await? {
        match answer.get("progress") {
            Some(progress) => advance(
                &bar,
                progress["fraction"].as_f64().unwrap_or_default(),
                format!("{} events read", field(progress, "seen")),
            ),
            None => plan = answer,
        }
    }
    bar.finish_and_clear();
    global.print(&plan, |plan| {
        let counts = &plan["counts"];
        format!(
            "scope: {}\nfrom {} to {}: {} events at Close, of which {} would be stored, {} are in the log, {} are out of scope{}",
            field(plan, "scope"),
            field(&plan["spec"], "since"),
            field(&plan["spec"], "until"),
            field(counts, "seen"),
            field(counts, "stored"),
            field(counts, "known"),
            field(counts, "outside"),
            without_data(counts),
        )
    })
}

fn without_data(counts: &Value) -> String {
    match counts["partial"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!(
            "\n{count} come without their data, which Close withholds from this key after an hour: use an administrator's key"
        ),
    }
}

/// Shows how it gets on, until it is over or the person has seen enough.
async fn watch(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(Query::Close(CloseQuery::WatchBackfill)).await?;
    let bar = fraction_bar();
    let mut job = Value::Null;
    loop {
        tokio::select! {
            answer = answers.next() => match answer? {
                None => break,
                Some(answer) => {
                    let eta = answer["eta_seconds"].as_u64().map_or_else(String::new, |seconds| {
                        format!(", ETA {}", crate::config::Span::secs(seconds))
                    });
                    let trouble = said(&answer["trouble"]).map_or_else(String::new, |trouble| format!(" WAITING: {trouble}"));
                    let counts = &answer["counts"];
                    advance(&bar, answer["fraction"].as_f64().unwrap_or_default(), format!("{} read, {} stored{eta}{trouble}", field(counts, "seen"), field(counts, "stored")));
                    job = answer;
                }
            },
            _ = tokio::signal::ctrl_c() => {
                connection.ask_one(Query::Close(CloseQuery::SetBackfill { running: false })).await?;
                bar.abandon();
                return Err(Failure::Work("interrupted; go on with: closehook backfill --resume".into()));
            }
        }
    }
    bar.finish_and_clear();
    if job["state"] != "done" {
        return Err(Failure::Work(
            "the backfill was stopped; go on with: closehook backfill --resume".into(),
        ));
    }
    if global.json {
        return print_line(&job.to_string());
    }
    let counts = &job["counts"];
    print_line(&format!(
        "{} events stored; {} were in the log, {} are out of scope{}",
        field(counts, "stored"),
        field(counts, "known"),
        field(counts, "outside"),
        without_data(counts),
    ))
}
