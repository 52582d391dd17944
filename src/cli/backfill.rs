//! `closehook backfill`

use clap::Args;
use jiff::Timestamp;

use super::connect::{Access, Connection, asking_close, with};
use super::term::{advance, fraction_bar};
use super::when::when;
use super::{Failure, Global, Outcome, report};
use crate::close::{Ask, BackfillStatus, Counts, JobState};
use crate::config::{Span, time};
use crate::control::close as asked;
use crate::plain;

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
            let begin = async {
                if self.resume {
                    return connection.ask_one(asked::Set { running: true }).await.map(drop);
                }
                let ask = Box::new(ask.clone());
                connection.ask_one(asked::Begin { ask }).await.map(drop)
            };
            asking_close(global, &connection.config, begin).await?;
            watch(global, connection).await
        })
        .await
    }
}

async fn rehearse(global: &Global, connection: &Connection, ask: Ask) -> Outcome {
    let ask = Box::new(ask);
    let mut answers = connection.ask(asked::Rehearse { ask }).await?;
    let bar = fraction_bar();
    let mut plan = None;
    // After the first answer the bar tells how it gets on.
    let mut next = asking_close(global, &connection.config, answers.next()).await?;
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
async fn watch(global: &Global, connection: &Connection) -> Outcome {
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
            _ = tokio::signal::ctrl_c() => {
                connection.ask_one(asked::Set { running: false }).await?;
                bar.abandon();
                return Err(Failure::Work("interrupted; go on with: closehook backfill --resume".into()));
            }
        }
    }
    bar.finish_and_clear();
    let Some(job) = last.filter(|job| job.job.state == JobState::Done) else {
        return Err(Failure::Work(
            "the backfill was stopped; go on with: closehook backfill --resume".into(),
        ));
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
