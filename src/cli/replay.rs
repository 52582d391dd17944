//! `closehook replay`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::Value;

use super::connect::{Access, Answers, Connection, with};
use super::pick::{Pick, text_or_file};
use super::term::{confirm, count_bar, spinner};
use super::{Failure, Global, Outcome, field, print_line, said, table};
use crate::admin::query::Query;
use crate::config::Rate;
use crate::deliver::ReplaySpec;
use crate::event::Seq;

/// Without --yes, more deliveries than this are asked about.
const ASK_ABOVE: u64 = 100;

/// Send stored events to sinks again
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Says how many will go where before it starts. A replay is a durable job: interrupt it with Ctrl-C and go on with --resume.
It goes where the rules of now send the events, or only to the sinks named with --sink, whether or not a rule does.

Examples:
  closehook replay --since 2h --sink crm-db --dry-run
  closehook replay --type 'opportunity.*' --since 2024-02-15 --rate 50/s
  closehook replay --resume rp_1b2c3d4e
  closehook replay list"
)]
pub(super) struct Replay {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    pick: Pick,
    /// Only what this rule matches, to the sinks it names
    #[arg(long)]
    rule: Option<String>,
    /// Only to this sink; may be repeated
    #[arg(long = "sink", value_name = "SINK")]
    sinks: Vec<String>,
    /// At most so many deliveries, like 50/s
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
    /// At most so many events
    #[arg(long)]
    limit: Option<u64>,
    /// Only say what would be sent where
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Go on with an interrupted replay
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "since", "until", "ids", "types", "lead", "filter", "rule", "sinks", "rate", "limit", "dry_run",
    ])]
    resume: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// The replays of the last 7 days
    #[command(after_help = "Example:\n  closehook replay list")]
    List,
}

impl Replay {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        self.pick.query()?;
        let access = if self.command.is_some() || self.dry_run {
            Access::Read
        } else {
            Access::Write
        };
        with(global, access, async |connection| match (&self.command, &self.resume) {
            (Some(Sub::List), _) => list(global, connection).await,
            (None, Some(id)) => {
                connection
                    .ask_one(Query::ReplaySet {
                        id: id.clone(),
                        running: true,
                    })
                    .await?;
                watch(global, connection, id).await
            }
            (None, None) => self.start(global, connection).await,
        })
        .await
    }

    fn spec(&self) -> Result<ReplaySpec, Failure> {
        Ok(ReplaySpec {
            from: Seq(1),
            to: Seq(u64::MAX),
            since: self.pick.since,
            until: self.pick.until,
            ids: self.pick.ids.clone(),
            types: self.pick.types.clone(),
            lead: self.pick.lead.clone(),
            filter: self.pick.filter.as_deref().map(text_or_file).transpose()?,
            rule: self.rule.clone(),
            sinks: self.sinks.clone(),
            rate: self.rate.map(|rate| rate.0),
            limit: self.limit,
            only_partials: false,
        })
    }

    async fn start(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut answers = connection
            .ask(Query::ReplayPlan {
                spec: Box::new(self.spec()?),
            })
            .await?;
        let plan = last(&mut answers, &spinner("counting")).await?;
        let spec: ReplaySpec =
            serde_json::from_value(plan["spec"].clone()).map_err(|error| Failure::Work(error.to_string()))?;
        let planned: BTreeMap<String, u64> =
            serde_json::from_value(plan["planned"].clone()).map_err(|error| Failure::Work(error.to_string()))?;
        let total: u64 = planned.values().sum();
        if !global.json {
            let parts: Vec<String> = planned
                .iter()
                .map(|(sink, count)| format!("{count} to {sink}"))
                .collect();
            print_line(&format!(
                "{total} deliveries{}",
                if parts.is_empty() {
                    String::new()
                } else {
                    format!(": {}", parts.join(", "))
                }
            ))?;
        }
        if self.dry_run || total == 0 {
            return if global.json {
                print_line(&plan.to_string())
            } else {
                Ok(())
            };
        }
        if total > ASK_ABOVE && !self.yes {
            confirm(&format!("Send {total} deliveries again?"))?;
        }
        let id = field(
            &connection
                .ask_one(Query::ReplayStart {
                    spec: Box::new(spec),
                    planned,
                })
                .await?,
            "id",
        );
        watch(global, connection, &id).await
    }
}

async fn last(answers: &mut Answers, bar: &ProgressBar) -> Result<Value, Failure> {
    let mut value = Value::Null;
    while let Some(answer) = answers.next().await? {
        if answer.get("progress").is_some() {
            bar.tick();
        } else {
            value = answer;
        }
    }
    bar.finish_and_clear();
    Ok(value)
}

/// Shows how a replay gets on, until it is over or the person has seen enough.
async fn watch(global: &Global, connection: &Connection, id: &str) -> Outcome {
    let mut answers = connection.ask(Query::ReplayWatch { id: id.to_owned() }).await?;
    let bar = count_bar();
    let mut status = Value::Null;
    let mut said_waiting = None;
    loop {
        tokio::select! {
            answer = answers.next() => match answer? {
                None => break,
                Some(answer) => {
                    let total: u64 = answer["planned"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
                    let count = |name: &str| answer[name].as_u64().unwrap_or_default();
                    bar.set_length(total);
                    bar.set_position(count("delivered") + count("dead"));
                    if count("dead") > 0 {
                        bar.set_message(format!("{} dead", count("dead")));
                    }
                    tell_waiting(&bar, &answer, &mut said_waiting);
                    status = answer;
                }
            },
            _ = tokio::signal::ctrl_c() => {
                connection.ask_one(Query::ReplaySet { id: id.to_owned(), running: false }).await?;
                bar.abandon();
                return Err(Failure::Work(format!("interrupted; go on with: closehook replay --resume {id}")));
            }
        }
    }
    bar.finish_and_clear();
    global.print(&status, |status| {
        let said = format!(
            "replay {id} {}: {} delivered, {} dead",
            field(status, "state"),
            field(status, "delivered"),
            field(status, "dead")
        );
        match lost_of(status) {
            0 => said,
            lost => format!("{said}, {lost} lost"),
        }
    })?;
    match (field(&status, "state").as_str(), status["dead"].as_u64()) {
        ("done", _) if lost_of(&status) > 0 => Err(Failure::Work(format!(
            "{} event(s) were gone before they could be sent",
            lost_of(&status)
        ))),
        ("done", Some(0)) => Ok(()),
        ("done", _) => Err(Failure::Work(
            "some deliveries became dead letters: `closehook dead list` shows them".into(),
        )),
        _ => Err(Failure::Work(format!(
            "the replay is not done; go on with: closehook replay --resume {id}"
        ))),
    }
}

/// Says once what a replay waits for, and what to do.
fn tell_waiting(bar: &ProgressBar, status: &Value, said_before: &mut Option<String>) {
    // How long it has been is no news.
    let is_news = |why: &String| {
        let begins = |text: &str| text.split(" since ").next().map(str::to_owned);
        said_before.as_deref().and_then(begins) != begins(why)
    };
    if let Some(why) = said(&status["waits_for"]).filter(is_news) {
        bar.suspend(|| eprintln!("closehook: the replay waits: {why}"));
        *said_before = Some(why);
    }
}

/// How many it will never send, because the log had to drop them.
fn lost_of(status: &Value) -> u64 {
    status["lost"].as_u64().unwrap_or_default()
}

async fn list(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(Query::Replays).await?;
    let mut rows = Vec::new();
    while let Some(replay) = answers.next().await? {
        if global.json {
            print_line(&replay.to_string())?;
            continue;
        }
        let planned: u64 = replay["planned"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_u64())
            .sum();
        rows.push(vec![
            field(&replay, "id"),
            field(&replay, "created_at"),
            field(&replay, "state"),
            planned.to_string(),
            field(&replay, "delivered"),
            field(&replay, "dead"),
            lost_of(&replay).to_string(),
        ]);
    }
    if global.json {
        Ok(())
    } else {
        print_line(&table(
            &["id", "made at", "state", "planned", "delivered", "dead", "lost"],
            rows,
        ))
    }
}
