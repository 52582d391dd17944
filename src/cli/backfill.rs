//! `closehook backfill`

use clap::Args;
use jiff::Timestamp;

use super::connect::{Access, Connection, Undone, asking_close, need_credentials, with};
use super::interrupt::Stop;
use super::left::{self, Job, Stands};
use super::term::{advance, fraction_bar};
use super::when::when;
use super::{Failure, Global, Outcome, report};
use crate::close::{Ask, BackfillStatus, Counts, JobState};
use crate::config::{Span, time};
use crate::control::close as asked;
use crate::control::status::Show;
use crate::plain;

/// Fetch events from Close's event log that the log lacks
#[derive(Debug, Args)]
#[command(
    after_help = "Close keeps its event log for 30 days. What the rules want is fetched, oldest
first, stored once (the same duplicate rule as for deliveries, so running it
twice stores nothing twice) and dispatched. It remembers how far it got: after
Ctrl-C, a kill or a restart it goes on from there. Without a daemon too all
sinks get what it fetches: one that no daemon has known yet begins before it.

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
        if access == Access::Begin {
            need_credentials(global)?;
        }
        with(global, access, async |connection| {
            if self.dry_run {
                return rehearse(global, connection, ask.clone()).await;
            }
            let mut stop = Stop::listen()?;
            let begun = tokio::select! {
                begun = self.begin(global, connection, ask.clone()) => begun,
                () = stop.told() => return Err(Failure::Work(UNDECIDED.to_owned())),
            };
            let ended = match begun {
                Ok(()) => watch(global, connection, &mut stop).await,
                // Another backfill that there may be has nothing to do with it.
                Err(Undone::Not(refused)) => return Err(refused),
                Err(Undone::Perhaps(failed)) => Err(failed),
            };
            left::told(ended, remaining(connection), "whether a backfill is left", SHOWS).await
        })
        .await
    }

    /// Begins it, or lets the one there is go on.
    async fn begin(&self, global: &Global, connection: &Connection, ask: Ask) -> Result<(), Undone> {
        let begin = async {
            if self.resume {
                return connection.order_one(asked::Set { running: true }).await.map(drop);
            }
            let ask = Box::new(ask);
            connection.order_one(asked::Begin { ask }).await.map(drop)
        };
        let set_back = async || connection.set_back().await;
        asking_close(global, &connection.config, set_back, begin).await
    }
}

/// What is said where the command is told to stop before it knows whether a backfill has begun: whoever was asked to begin it, this process
/// while it lasts or a daemon, still does so as soon as Close lets it.
const UNDECIDED: &str = "interrupted: it may still be begun; `closehook status` shows whether it was, and `closehook backfill --resume` with \
     Ctrl-C stops it";

/// The command that shows how a backfill gets on.
const SHOWS: &str = "closehook status";

/// What is left where the command ends and the backfill is not done.
async fn remaining(connection: &Connection) -> Result<Option<String>, Failure> {
    let status = connection.ask_one(Show {}).await?;
    Ok(Some(remains(status.close.backfill.as_ref(), status.daemon.running)))
}

fn remains(job: Option<&BackfillStatus>, has_daemon: bool) -> String {
    let Some(job) = job.map(|status| &status.job) else {
        return "no backfill is under way".to_owned();
    };
    let named = Job {
        which: format!("the backfill begun at {:.0}", job.begun_at),
        resume: "closehook backfill --resume".to_owned(),
        shows: SHOWS,
    };
    named.remains(match job.state {
        JobState::Running => Stands::Running { has_daemon },
        JobState::Interrupted => Stands::Stopped,
        JobState::Done => Stands::Over,
    })
}

async fn rehearse(global: &Global, connection: &Connection, ask: Ask) -> Outcome {
    let ask = Box::new(ask);
    let mut answers = connection.ask(asked::Rehearse { ask }).await?;
    let bar = fraction_bar();
    let mut plan = None;
    // After the first answer the bar tells how it gets on.
    let set_back = async || connection.set_back().await;
    let mut next = asking_close(global, &connection.config, set_back, answers.next()).await?;
    while let Some(answer) = next {
        match answer {
            asked::Rehearsal::Progress { fraction, seen } => advance(&bar, fraction, format!("{seen} events read")),
            asked::Rehearsal::Done(done) => plan = Some(done),
        }
        next = answers.next().await?;
    }
    bar.finish_and_clear();
    let plan = plan.ok_or_else(|| Failure::Work("the look did not come to its end: try again".into()))?;
    global.print(&plan, |plan| {
        let counts = plan.counts;
        format!(
            "scope: {}\nfrom {} to {}: {} events at Close, of which {} would be stored, {} are in the log, {} are out of scope{}",
            plain::line(&plan.scope),
            when(plan.spec.since),
            when(plan.spec.until),
            counts.seen,
            counts.stored,
            counts.known,
            counts.outside,
            without_data(counts),
        )
    })
}

fn without_data(counts: Counts) -> String {
    match counts.partial {
        0 => String::new(),
        count => format!(
            "\n{count} come without their data, which Close withholds from this key after an hour: use an administrator's key"
        ),
    }
}

/// How it gets on, in a few words.
fn progress(job: &BackfillStatus) -> String {
    let counts = job.job.counts;
    let eta = job.eta_seconds.map(|seconds| format!(", ETA {}", Span::secs(seconds)));
    let trouble = job
        .job
        .trouble
        .as_ref()
        .map(|trouble| format!(" WAITING: {}", plain::line(trouble)));
    format!(
        "{} read, {} stored{}{}",
        counts.seen,
        counts.stored,
        eta.unwrap_or_default(),
        trouble.unwrap_or_default()
    )
}

/// Shows how it gets on, until it is over or the person has seen enough.
async fn watch(global: &Global, connection: &Connection, stop: &mut Stop) -> Outcome {
    let mut answers = connection.ask(asked::Watch {}).await?;
    let bar = fraction_bar();
    let (mut last, mut said) = (None, None);
    loop {
        tokio::select! {
            answer = answers.next() => match answer? {
                None => break,
                Some(job) => {
                    advance(&bar, job.fraction, progress(&job));
                    if job.job.trouble != said
                        && let Some(trouble) = &job.job.trouble
                    {
                        bar.suspend(|| report::notice(global.json, &format!("the backfill waits: {trouble}")));
                    }
                    said.clone_from(&job.job.trouble);
                    last = Some(job);
                }
            },
            by_hand = stop.told_by_hand() => {
                bar.abandon();
                // Whoever else ends the command has not said that the backfill is to end.
                if by_hand {
                    connection.ask_one(asked::Set { running: false }).await?;
                }
                return Err(Failure::Work("interrupted".into()));
            }
        }
    }
    bar.finish_and_clear();
    let Some(job) = last.filter(|job| job.job.state == JobState::Done) else {
        return Err(Failure::Work("it did not come to its end".into()));
    };
    global.print(&job, |job| {
        let counts = job.job.counts;
        format!(
            "{} events stored; {} were in the log, {} are out of scope{}",
            counts.stored,
            counts.known,
            counts.outside,
            without_data(counts),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_of_a_backfill_is_said_with_what_goes_on_with_it() {
        let job = |state: &str| -> BackfillStatus {
            let at = "2024-02-15T12:00:00Z";
            let spec = json!({ "since": at, "until": at, "types": [], "lead": null });
            let counts = json!({ "seen": 0, "outside": 0, "known": 0, "stored": 0, "partial": 0 });
            let job = json!({ "spec": spec, "done_to": at, "counts": counts, "state": state, "begun_at": at, "trouble": null,
                "fraction": 0.0, "eta_seconds": null });
            serde_json::from_value(job).unwrap()
        };
        assert_eq!(remains(None, true), "no backfill is under way");
        for (state, has_daemon, said) in [
            ("running", true, "stays, and the daemon goes on with it"),
            ("running", false, "stays, and a daemon that is started goes on with it"),
            (
                "interrupted",
                true,
                "is stopped, go on with: closehook backfill --resume",
            ),
            (
                "interrupted",
                false,
                "is stopped, go on with: closehook backfill --resume",
            ),
        ] {
            let left = remains(Some(&job(state)), has_daemon);
            assert!(
                left.starts_with("the backfill begun at 2024-02-15T12:00:00Z "),
                "{left}"
            );
            assert!(left.contains(said), "{state}: {left}");
        }
    }
}
