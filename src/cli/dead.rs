//! `closehook dead`

use clap::{Args, Subcommand};

use super::connect::{Access, Connection, with};
use super::listing::Listing;
use super::pick::Pick;
use super::shown::{answered, body_for_people};
use super::term::confirm;
use super::when::{when, when_known};
use super::{Failure, Global, Outcome};
use crate::control::groups::{Count, Counted, Group, Groups};
use crate::control::{self, dead as asked};
use crate::deliver::DeadLetter;
use crate::plain;

/// Dead letters: deliveries that were given up
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  closehook dead list\n  closehook dead retry --sink crm-db --all")]
pub(super) enum Dead {
    /// What was given up, where and why
    #[command(after_help = "Example:\n  closehook dead list --sink crm-db --since 1d")]
    List(List),
    /// What is wrong: a line for each sink and reason, the most frequent first
    #[command(
        after_help = "Ids and numbers that only one event has are left out of a reason (…). `dead list`, `dead retry` and `dead drop` take it with --reason.\n\nExample:\n  closehook dead reasons --sink crm-db"
    )]
    Reasons(Reasons),
    /// One dead letter with its event
    #[command(after_help = "Example:\n  closehook dead show ev_2sYKRjcrA79yKxi3S4Crd7 --sink crm-db")]
    Show(Show),
    /// Deliver dead letters again; those that succeed are removed
    #[command(
        after_help = "It does not ask: what fails again stays a dead letter.\n\nExamples:\n  closehook dead retry --sink crm-db --all\n  closehook dead retry --id ev_2sYKRjcrA79yKxi3S4Crd7"
    )]
    Retry(Which),
    /// Remove dead letters for good
    #[command(
        after_help = "Without --yes it says how many there are, and asks.\n\nExamples:\n  closehook dead drop --sink crm-db --until 7d --yes\n  closehook dead drop --reason 'the receiver answered 422 Unprocessable Entity'"
    )]
    Drop(Which),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this sink
    #[arg(long)]
    sink: Option<String>,
    #[command(flatten)]
    pick: Pick,
    /// Only those given up for this reason, as `dead reasons` says it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u64,
}

#[derive(Debug, Args)]
pub(super) struct Reasons {
    /// Only of this sink
    #[arg(long)]
    sink: Option<String>,
    #[command(flatten)]
    pick: Pick,
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
    /// Only those given up for this reason, as `dead reasons` says it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Which {
    fn query(&self) -> Result<control::Pick, Failure> {
        if self.pick.is_empty() && self.reason.is_none() && !self.all {
            return Err(Failure::Usage(
                "say which: --id, --type, --lead, --filter, --since, --until, --reason, or --all".into(),
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
        // What is wrongly asked is a usage error, with or without data to use it on.
        match &self {
            Dead::List(list) => drop(list.pick.query()?),
            Dead::Reasons(reasons) => drop(reasons.pick.query()?),
            Dead::Retry(which) | Dead::Drop(which) => drop(which.query()?),
            Dead::Show(_) => {}
        }
        let access = if self.changes() { Access::Write } else { Access::Read };
        with(global, access, async |connection| match &self {
            Dead::List(list) => list.run(global, connection).await,
            Dead::Reasons(reasons) => reasons.run(global, connection).await,
            Dead::Show(show) => show.run(global, connection).await,
            Dead::Retry(which) => retry(which, global, connection).await,
            Dead::Drop(which) => drop_letters(which, global, connection).await,
        })
        .await
    }
}

impl List {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let question = asked::List {
            sink: self.sink.clone(),
            pick: self.pick.query()?,
            group: self.reason.clone(),
            limit: self.limit,
        };
        let mut answers = connection.ask(question).await?;
        let mut letters = Listing::begin(global, row);
        while let Some(letter) = answers.next().await? {
            letters.add(&letter)?;
        }
        let header = ["sink", "seq", "type", "id", "attempts", "died at", "reason"];
        letters.end(&header, "dead letters")
    }
}

impl Reasons {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let question = Groups {
            sink: self.sink.clone(),
            pick: self.pick.query()?,
        };
        let mut answers = connection.ask(question).await?;
        let mut groups = Listing::begin(global, group_row);
        while let Some(group) = answers.next().await? {
            groups.add(&group)?;
        }
        groups.end(&["sink", "letters", "first", "last", "reason"], "dead letters")
    }
}

fn group_row(group: &Group) -> Vec<String> {
    let text = |text: &str| plain::line(text).into_owned();
    vec![
        text(&group.sink),
        group.count.to_string(),
        when(group.first),
        when(group.last),
        text(&group.group),
    ]
}

fn row(letter: &DeadLetter) -> Vec<String> {
    let text = |text: &str| plain::line(text).into_owned();
    vec![
        text(&letter.sink),
        letter.seq.to_string(),
        text(letter.event_type.as_deref().unwrap_or_default()),
        text(&letter.id),
        letter.attempts.to_string(),
        when(letter.died_at),
        text(&letter.reason),
    ]
}

impl Show {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let question = asked::Show {
            sink: self.sink.clone(),
            id: self.event.clone(),
        };
        let mut answers = connection.ask(question).await?;
        let mut is_there = false;
        while let Some(shown) = answers.next().await? {
            is_there = true;
            global.print(&shown, for_people)?;
        }
        if is_there {
            return Ok(());
        }
        Err(Failure::Work(format!(
            "there is no dead letter {}: `closehook dead list` shows them",
            plain::line(&self.event)
        )))
    }
}

fn for_people(shown: &asked::Shown) -> String {
    let letter = &shown.letter;
    let text = |text: &str| plain::line(text).into_owned();
    let fields = [
        ("sink", text(&letter.sink)),
        ("seq", letter.seq.to_string()),
        ("type", text(letter.event_type.as_deref().unwrap_or_default())),
        ("id", text(&letter.id)),
        ("reason", text(&letter.reason)),
        ("attempts", letter.attempts.to_string()),
        ("first attempt", when_known(letter.first_attempt).unwrap_or_default()),
        ("died at", when(letter.died_at)),
    ];
    let mut lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name:<14} {value}").trim_end().to_owned())
        .collect();
    lines.extend(answered(letter.answer.as_deref()));
    lines.push(match &shown.event {
        Some(event) => body_for_people(event),
        None => "(the event is not kept any more)".to_owned(),
    });
    lines.join("\n")
}

async fn retry(which: &Which, global: &Global, connection: &Connection) -> Outcome {
    let order = asked::Retry {
        sink: which.sink.clone(),
        pick: which.query()?,
        group: which.reason.clone(),
        agreed: None,
    };
    let retried = connection.ask_one(order).await?;
    global.print(&retried, |retried| {
        let untried: u64 = retried.refused.iter().map(|refused| refused.letters).sum();
        let mut counts = format!(
            "{} tried: {} delivered, {} still dead",
            retried.total - untried,
            retried.delivered,
            retried.failed - untried
        );
        if retried.elsewhere > 0 {
            counts = format!("{counts}; {} more are being tried for another retry", retried.elsewhere);
        }
        if retried.gone > 0 {
            counts = format!("{counts}; {} were gone already", retried.gone);
        }
        let is_said = |reason: &String| retried.refused.iter().any(|refused| refused.reason == *reason);
        let mut lines = vec![match retried.reason.as_ref().filter(|reason| !is_said(reason)) {
            Some(reason) => format!("{counts}: {}", plain::line(reason)),
            None => counts,
        }];
        lines.extend(retried.refused.iter().map(|refused| {
            let (letters, reason) = (refused.letters, plain::line(&refused.reason));
            format!("{letters} not tried: {reason}")
        }));
        lines.join("\n")
    })?;
    if retried.failed > 0 {
        Err(Failure::Found)
    } else {
        Ok(())
    }
}

async fn drop_letters(which: &Which, global: &Global, connection: &Connection) -> Outcome {
    let pick = which.query()?;
    let mut agreed = None;
    if !which.yes {
        let count = Count {
            sink: which.sink.clone(),
            pick: pick.clone(),
            group: which.reason.clone(),
        };
        let counted = connection.ask_one(count).await?;
        let letters = counted.letters;
        if letters == 0 {
            // Nor what dies meanwhile, of which nobody was asked.
            return global.print(&asked::Dropped { dropped: 0 }, |_| {
                "there are no such dead letters: nothing was dropped".to_owned()
            });
        }
        let these = match letters {
            1 => "this dead letter".to_owned(),
            _ => format!("these {letters} dead letters"),
        };
        confirm(&format!("Remove {these} for good?{}", gone_with_them(&counted)))?;
        agreed = counted.agreed;
    }
    let order = asked::Drop {
        sink: which.sink.clone(),
        pick,
        group: which.reason.clone(),
        agreed,
    };
    let dropped = connection.ask_one(order).await?;
    global.print(&dropped, |dropped| format!("{} dropped", dropped.dropped))
}

/// What nobody gets back once these letters are dropped.
fn gone_with_them(counted: &Counted) -> String {
    match counted.only_copies {
        0 => String::new(),
        1 => " The event of 1 of them is kept nowhere else.".to_owned(),
        only => format!(" The events of {only} of them are kept nowhere else."),
    }
}
