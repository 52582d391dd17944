//! `closehook replay`

use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::connect::{Access, Connection, with};
use super::interrupt::Stop;
use super::left::{self, Job, Stands};
use super::pick::{Pick, text_or_file};
use super::term::{confirm, count_bar, spinner};
use super::when::{told, when};
use super::{Failure, Global, Outcome, json_line, print_line, report, table};
use crate::config::Rate;
use crate::control::replay as asked;
use crate::control::status::Show;
use crate::deliver::{ReplaySpec, ReplayStatus};
use crate::event::Seq;
use crate::plain;

/// Without --yes, more deliveries than this are asked about.
const ASK_ABOVE: u64 = 100;

/// Send stored events to sinks again
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Says how many will go where before it starts, and without --yes asks if they are more than 100. A replay is a durable job: interrupt it with Ctrl-C and go on with --resume.
It goes where the rules of now send the events, or only to the sinks named with --sink, whether or not a rule does;
also what was imported without being dispatched.

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
    /// The replays of the last 7 days, and older ones that are not over
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
                let mut stop = Stop::listen()?;
                let resumed = tokio::select! {
                    resumed = set(connection, id, true) => resumed,
                    () = stop.told() => Err(Failure::Work("interrupted".into())),
                };
                follow(global, connection, id, resumed, &mut stop).await
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
            releases: false,
        })
    }

    async fn start(&self, global: &Global, connection: &Connection) -> Outcome {
        let plan = plan(connection, self.spec()?).await?;
        let total: u64 = plan.planned.values().sum();
        if !global.json {
            let parts = plan.planned.iter();
            let parts: Vec<String> = parts.map(|(sink, count)| format!("{count} to {sink}")).collect();
            let parts = if parts.is_empty() {
                String::new()
            } else {
                format!(": {}", parts.join(", "))
            };
            print_line(&format!("{total} deliveries{parts}"))?;
        }
        if self.dry_run || total == 0 {
            return if global.json {
                print_line(&json_line(&plan)?)
            } else {
                Ok(())
            };
        }
        if total > ASK_ABOVE && !self.yes {
            confirm(&format!("Send {total} deliveries again?"))?;
        }
        let order = asked::Start {
            spec: Box::new(plan.spec),
            planned: plan.planned,
        };
        let mut stop = Stop::listen()?;
        let begun = tokio::select! {
            begun = connection.ask_one(order) => begun?,
            () = stop.told() => return Err(Failure::Work(format!(
                "interrupted while the replay was being begun: `{SHOWS}` shows whether it was"
            ))),
        };
        follow(global, connection, &begun.id, Ok(()), &mut stop).await
    }
}

async fn plan(connection: &Connection, spec: ReplaySpec) -> Result<asked::Counted, Failure> {
    let spec = Box::new(spec);
    let mut answers = connection.ask(asked::Plan { spec }).await?;
    let bar = spinner("counting");
    let mut plan = None;
    while let Some(answer) = answers.next().await? {
        match answer {
            asked::Planned::Progress { .. } => bar.tick(),
            asked::Planned::Done(done) => plan = Some(*done),
        }
    }
    bar.finish_and_clear();
    plan.ok_or_else(|| Failure::Work("the counting did not come to its end: try again".into()))
}

/// Interrupts a replay, or lets it go on.
async fn set(connection: &Connection, id: &str, running: bool) -> Outcome {
    let id = id.to_owned();
    connection.ask_one(asked::Set { id, running }).await.map(drop)
}

/// The command that shows how replays get on.
const SHOWS: &str = "closehook replay list";

/// Shows how a replay that was begun gets on, and what came of it; where it can't be followed to its end, what is left of it.
async fn follow(global: &Global, connection: &Connection, id: &str, begun: Outcome, stop: &mut Stop) -> Outcome {
    let watched = match begun {
        Ok(()) => watch(global, connection, id, stop).await,
        Err(failed) => Err(failed),
    };
    let status = match watched {
        Ok(status) => status,
        // A refusal that names the command to go on with says it all.
        Err(Failure::Work(why)) if why.contains("`closehook replay ") => return Err(Failure::Work(why)),
        Err(failed) => {
            let what = format!("how replay {id} stands");
            return left::told(Err(failed), remaining(connection, id), &what, SHOWS).await;
        }
    };
    global.print(&status, |status| {
        let mut said = format!(
            "replay {id} {}: {} delivered, {} dead",
            status.state, status.delivered, status.dead
        );
        if status.skipped > 0 {
            said = format!(
                "{said}, {} skipped (by a transform, or the sink has no use for them)",
                status.skipped
            );
        }
        match status.lost {
            0 => said,
            more => format!("{said}, {more} lost"),
        }
    })?;
    verdict(&status)
}

/// Shows how a replay gets on, until it is over or the person has seen enough; gives how it stands then.
async fn watch(global: &Global, connection: &Connection, id: &str, stop: &mut Stop) -> Result<ReplayStatus, Failure> {
    let mut answers = connection.ask(asked::Watch { id: id.to_owned() }).await?;
    let bar = count_bar();
    let mut said_waiting = None;
    let mut newest = None;
    loop {
        tokio::select! {
            answer = answers.next() => match answer? {
                None => break,
                Some(status) => {
                    bar.set_length(planned(&status));
                    bar.set_position(status.delivered + status.dead + status.skipped);
                    if status.dead > 0 {
                        bar.set_message(format!("{} dead", status.dead));
                    }
                    tell_waiting(&bar, &status, &mut said_waiting, global.json);
                    newest = Some(status);
                }
            },
            by_hand = stop.told_by_hand() => {
                bar.abandon();
                // Whoever else ends the command has not said that the replay is to end.
                if by_hand {
                    set(connection, id, false).await?;
                }
                return Err(Failure::Work("interrupted".into()));
            }
        }
    }
    bar.finish_and_clear();
    let ended = newest.filter(|status| status.state != "running");
    ended.ok_or_else(|| Failure::Work("it did not come to its end".into()))
}

/// What is left of a replay where the command ends and it does not; `None` where there is none.
async fn remaining(connection: &Connection, id: &str) -> Result<Option<String>, Failure> {
    let has_daemon = connection.ask_one(Show {}).await?.daemon.running;
    let mut answers = connection.ask(asked::List {}).await?;
    let mut left = None;
    while let Some(replay) = answers.next().await? {
        if replay.id == id {
            left = Some(remains(&replay, has_daemon));
        }
    }
    Ok(left)
}

fn remains(replay: &ReplayStatus, has_daemon: bool) -> String {
    let named = Job {
        which: format!("replay {}", replay.id),
        resume: format!("closehook replay --resume {}", replay.id),
        shows: SHOWS,
    };
    named.remains(match replay.state.as_str() {
        "running" => Stands::Running { has_daemon },
        "interrupted" => Stands::Stopped,
        _ => Stands::Over,
    })
}

fn verdict(status: &ReplayStatus) -> Outcome {
    match (status.state.as_str(), status.lost, status.dead) {
        ("done", 0, 0) => Ok(()),
        ("done", 0, _) => Err(Failure::Work(
            "some deliveries failed for good: they are dead letters, which `closehook dead list` shows, or went to the sink's dead_to".into(),
        )),
        ("done", lost, _) => Err(Failure::Work(format!(
            "{lost} event(s) were gone before they could be sent"
        ))),
        ("incomplete", ..) => Err(Failure::Work(format!(
            "the replay is incomplete: {}",
            plain::line(status.because.as_deref().unwrap_or_default())
        ))),
        _ => Err(Failure::Work(format!(
            "the replay is not done; go on with: closehook replay --resume {}",
            status.id
        ))),
    }
}

/// Says once what a replay waits for, and what to do.
fn tell_waiting(bar: &ProgressBar, status: &ReplayStatus, said_before: &mut Option<String>, is_json: bool) {
    // How long it has been is no news.
    let is_news = |why: &&String| {
        let begins = |text: &str| text.split(" since ").next().map(str::to_owned);
        said_before.as_deref().and_then(begins) != begins(why)
    };
    if let Some(why) = status.waits_for.as_ref().filter(is_news).cloned() {
        let waits = if is_json { why.clone() } else { told(&why) };
        bar.suspend(|| report::notice(is_json, &format!("the replay waits: {waits}")));
        *said_before = Some(why);
    }
}

fn planned(status: &ReplayStatus) -> u64 {
    status.planned.values().fold(0, |sum, count| sum.saturating_add(*count))
}

async fn list(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(asked::List {}).await?;
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    while let Some(replay) = answers.next().await? {
        if global.json {
            print_line(&json_line(&replay)?)?;
            continue;
        }
        rows.push(vec![
            replay.id.clone(),
            when(replay.created_at),
            replay.state.clone(),
            planned(&replay).to_string(),
            replay.delivered.to_string(),
            replay.dead.to_string(),
            replay.lost.to_string(),
        ]);
        if let Some(why) = &replay.because {
            notes.push(format!("{} is incomplete: {}", replay.id, plain::line(why)));
        }
    }
    if global.json {
        return Ok(());
    }
    let columns = ["id", "made at", "state", "planned", "delivered", "dead", "lost"];
    print_line(&table(&columns, rows))?;
    notes.iter().try_for_each(|note| print_line(note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_replay_is_said_with_what_goes_on_with_it() {
        let replay = |state: &str| -> ReplayStatus {
            let spec = serde_json::to_value(ReplaySpec::default()).unwrap();
            let status = serde_json::json!({ "id": "rp_1", "spec": spec, "state": state, "planned": {}, "delivered": 0, "dead": 0,
                "created_at": "2024-02-15T12:00:00Z" });
            serde_json::from_value(status).unwrap()
        };
        for (state, has_daemon, said) in [
            (
                "running",
                true,
                "replay rp_1 stays, and the daemon goes on with it: `closehook replay list` shows it, `closehook replay --resume rp_1` watches \
                 it, and Ctrl-C there stops it",
            ),
            (
                "running",
                false,
                "replay rp_1 stays, and a daemon that is started goes on with it, as `closehook replay --resume rp_1` does; Ctrl-C there stops \
                 it",
            ),
            (
                "interrupted",
                true,
                "replay rp_1 is stopped, go on with: closehook replay --resume rp_1",
            ),
            ("done", true, "replay rp_1 is over"),
        ] {
            assert_eq!(remains(&replay(state), has_daemon), said, "{state}");
        }
    }
}
