//! `closehook events`

use std::io::Write;

use clap::{Args, Subcommand};

use super::connect::{Access, Connection, with};
use super::listing::Listing;
use super::pick::Pick;
use super::shown::{answered, body_for_people};
use super::when::when;
use super::{Failure, Global, Outcome, log, unwritten, word};
use crate::control;
use crate::control::events::{self as asked, Checked, Line, Listed, Shown, Verified};
use crate::control::transfer::{self, Unread};
use crate::deliver::EventState;
use crate::event::{Kind, Seq};
use crate::plain;

/// Browse the event log
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  closehook events list --since 2h\n  closehook events show ev_2sYKRjcrA79yKxi3S4Crd7\n  closehook events tail"
)]
pub(super) enum Events {
    /// The newest events, newest last
    #[command(after_help = "Examples:
  closehook events list --since 2h --type 'lead.*'
  closehook events list --limit 5 \\
    --lead lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68
  closehook events list --quarantined")]
    List(List),
    /// One event: its body, when and how it arrived, and its state at each sink
    #[command(
        after_help = "Examples:\n  closehook events show ev_2sYKRjcrA79yKxi3S4Crd7\n  closehook events show 1042 --raw | jq .event.data"
    )]
    Show(Show),
    /// Follow the log: new events as they arrive
    #[command(after_help = "Example:\n  closehook events tail --type 'opportunity.*'")]
    Tail(Tail),
    /// One JSON object a line: seq, `received_at`, source, headers, and body, the exact bytes
    #[command(
        after_help = "Examples:\n  closehook events export --since 7d > week.jsonl\n  closehook log import week.jsonl     # into another log"
    )]
    Export(Export),
    /// Check stored signatures and checksums again
    #[command(after_help = "Exit 1 if anything is wrong.\n\nExample:\n  closehook events verify")]
    Verify,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    pick: Pick,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: u64,
    /// Only bodies that can't be read as a delivery
    #[arg(long)]
    quarantined: bool,
    /// Only events whose data Close withholds
    #[arg(long, conflicts_with = "quarantined")]
    partial: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Event id (every revision), or Seq
    id: String,
    /// Only the body, byte for byte
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    pick: Pick,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    pick: Pick,
    /// At most so many
    #[arg(long)]
    limit: Option<u64>,
}

impl Events {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        if let Events::Tail(tail) = &self {
            return tail.run(global).await;
        }
        // A bad filter is a usage error, with or without data to use it on.
        match &self {
            Events::List(List { pick, .. }) | Events::Export(Export { pick, .. }) => drop(pick.query()?),
            _ => {}
        }
        with(global, Access::Read, async |connection| match &self {
            Events::List(list) => list.run(global, connection).await,
            Events::Show(show) => show.run(global, connection).await,
            Events::Export(export) => export.run(connection).await,
            Events::Verify => verify(global, connection).await,
            Events::Tail(_) => Ok(()),
        })
        .await
    }
}

impl List {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut pick = self.pick.query()?;
        pick.quarantined = self.quarantined.then_some(true);
        pick.partial = self.partial.then_some(true);
        let question = asked::List {
            pick,
            limit: Some(self.limit),
            last: true,
            follow: false,
            from: None,
        };
        let mut answers = connection.ask(question).await?;
        let mut events = Listing::begin(global, row);
        while let Some(listed) = answers.next().await? {
            match listed {
                Listed::Event(line) => events.add(&line)?,
                Listed::Unread(unread) => say_unread(global, &unread),
            }
        }
        events.end(&["seq", "received at", "type", "id", "lead"], "events")
    }
}

/// Says what is missing among what is shown, beside it: it may be no event of those that were asked for.
fn say_unread(global: &Global, unread: &Unread) {
    let notice = format!(
        "{}: what was stored there is damaged; {}",
        log::unreadable(unread),
        log::WHAT_TO_DO
    );
    super::report::notice(global.json, &notice);
}

fn row(line: &Line) -> Vec<String> {
    let text = |text: &Option<String>| plain::line(text.as_deref().unwrap_or_default()).into_owned();
    let shown = if line.kind == Kind::Event {
        text(&line.type_action)
    } else {
        format!("({})", word(line.kind))
    };
    vec![
        line.seq.to_string(),
        when(line.received_at),
        shown,
        text(&line.id),
        text(&line.lead_id),
    ]
}

impl Show {
    async fn run(&self, global: &Global, connection: &Connection) -> Outcome {
        let mut answers = connection.ask(asked::Show { id: self.id.clone() }).await?;
        while let Some(shown) = answers.next().await? {
            if self.raw && !global.json {
                let bytes = shown.event.bytes()?;
                let written = std::io::stdout().lock().write_all(&bytes);
                written.map_err(|error| unwritten(&error))?;
                continue;
            }
            global.print(&shown, for_people)?;
        }
        Ok(())
    }
}

fn for_people(shown: &Shown) -> String {
    let mut lines = vec![
        format!("seq          {}", shown.event.seq),
        format!("received at  {}", when(shown.event.received_at)),
        format!("source       {}", shown.event.source),
        format!("kind         {}", word(shown.kind)),
        format!("signature    {}", plain::line(&shown.signature)),
    ];
    for (sink, state) in &shown.sinks {
        lines.push(format!(
            "sink         {}: {}",
            plain::line(sink),
            state_for_people(state)
        ));
        if let EventState::Dead { answer, .. } = state {
            lines.extend(answered(answer.as_deref()));
        }
    }
    if shown.revisions.len() > 1 {
        let revisions: Vec<String> = shown.revisions.iter().map(ToString::to_string).collect();
        lines.push(format!("revisions    {}", revisions.join(", ")));
    }
    lines.push(body_for_people(&shown.event));
    lines.join("\n")
}

/// What became of an event at a sink: the word, and what there is to it.
fn state_for_people(state: &EventState) -> String {
    let details = match state {
        EventState::Retrying { attempts, due, reason } => {
            let times = if *attempts == 1 {
                "1 attempt"
            } else {
                &format!("{attempts} attempts")
            };
            format!("{times}, the next at {}: {}", when(*due), plain::line(reason))
        }
        EventState::Dead { reason, .. } | EventState::Lost { reason } | EventState::Unknown { reason } => {
            plain::line(reason).into_owned()
        }
        _ => String::new(),
    };
    // The enum's own words are those of JSON.
    let value = serde_json::to_value(state).unwrap_or_default();
    let word = word(&value["state"]);
    if details.is_empty() {
        word
    } else {
        format!("{word}, {details}")
    }
}

impl Tail {
    async fn run(&self, global: &Global) -> Outcome {
        tokio::select! {
            ended = self.follow(global) => ended,
            // Nothing may come for days, and nobody would read it.
            () = super::term::unread() => Err(Failure::Unread),
        }
    }

    async fn follow(&self, global: &Global) -> Outcome {
        let pick = self.pick.query()?;
        let mut connection = Connection::open(global, Access::Read).await?;
        let nothing_new =
            || Failure::Work("no daemon is running, so nothing new can arrive: start `closehook serve`".into());
        if !connection.is_daemon() {
            if pick.since.is_none() {
                return Err(nothing_new());
            }
            Tail::show(global, &connection, &pick, &mut None)
                .await
                .map_err(Failure::from)?;
            return Err(nothing_new());
        }
        // Whatever comes from now on is shown, also if nothing of it came before the daemon restarted.
        let mut next = match pick.since {
            Some(_) => None,
            None => Some(newest(&connection).await?.next()),
        };
        let mut refusals = 0;
        loop {
            let before = next;
            let broken = match Tail::show(global, &connection, &pick, &mut next).await {
                Ok(()) => String::new(),
                Err(Cut::Gone(why)) => {
                    refusals = 0;
                    why
                }
                Err(Cut::Refused(why)) => {
                    refusals = if next == before { refusals + 1 } else { 1 };
                    if refusals >= REFUSALS {
                        return Err(Failure::Work(why));
                    }
                    why
                }
                Err(Cut::Failed(failure)) => return Err(failure),
            };
            let notice = format!("the daemon stopped ({broken}); waiting for it to come back");
            super::report::notice(global.json, &notice);
            // A socket that answers may be that of the one that is stopping: then this is not the last time round.
            connection = loop {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                if let Some(back) = Connection::to_daemon(&connection.config).await? {
                    break back;
                }
            };
        }
    }

    /// Prints events from `next` on, until there is nobody to ask.
    async fn show(
        global: &Global,
        connection: &Connection,
        pick: &control::Pick,
        next: &mut Option<Seq>,
    ) -> Result<(), Cut> {
        let question = asked::List {
            pick: pick.clone(),
            limit: None,
            last: false,
            follow: connection.is_daemon(),
            from: *next,
        };
        let gone = |failure| match failure {
            Failure::Work(why) => Cut::Gone(why),
            other => Cut::Failed(other),
        };
        let mut answers = connection.ask(question).await.map_err(gone)?;
        loop {
            let line = match answers.next().await {
                Ok(Some(Listed::Event(line))) => line,
                Ok(Some(Listed::Unread(unread))) => {
                    say_unread(global, &unread);
                    continue;
                }
                Ok(None) => return Ok(()),
                Err(Failure::Work(why)) if answers.is_refused() => return Err(Cut::Refused(why)),
                Err(failure) => return Err(gone(failure)),
            };
            *next = Some(line.seq.next());
            let printed = global.print(&line, |line| row(line).join("  ").trim_end().to_owned());
            printed.map_err(Cut::Failed)?;
        }
    }
}

/// One that is about to stop may refuse what it is asked; one that refuses so many times in a row goes on doing so.
const REFUSALS: u32 = 3;

/// Why no more events are told.
enum Cut {
    /// The daemon is there, and does not tell them.
    Refused(String),
    /// There is nobody to ask.
    Gone(String),
    Failed(Failure),
}

impl From<Cut> for Failure {
    fn from(cut: Cut) -> Failure {
        match cut {
            Cut::Refused(why) | Cut::Gone(why) => Failure::Work(why),
            Cut::Failed(failure) => failure,
        }
    }
}

/// The place of the newest event that can be read.
async fn newest(connection: &Connection) -> Result<Seq, Failure> {
    let question = asked::List {
        pick: control::Pick::default(),
        limit: Some(1),
        last: true,
        follow: false,
        from: None,
    };
    let mut answers = connection.ask(question).await?;
    let mut newest = Seq::ZERO;
    while let Some(listed) = answers.next().await? {
        if let Listed::Event(line) = listed {
            newest = line.seq;
        }
    }
    Ok(newest)
}

impl Export {
    async fn run(&self, connection: &Connection) -> Outcome {
        let question = transfer::Export {
            pick: self.pick.query()?,
            limit: self.limit,
        };
        let mut out = std::io::stdout().lock();
        let (_, unread) = log::write_all(&mut out, connection, question, unwritten).await?;
        log::missing(&unread)
    }
}

async fn verify(global: &Global, connection: &Connection) -> Outcome {
    let mut answers = connection.ask(asked::Verify {}).await?;
    let bar = super::term::spinner("checking");
    let mut verified = None;
    while let Some(answer) = answers.next().await? {
        match answer {
            Checked::Progress {
                events: 0,
                segments,
                of,
            } => bar.set_message(format!("checking: {segments} of {of} segments")),
            Checked::Progress { events, .. } => bar.set_message(format!("checking: {events} events")),
            Checked::Done(done) => verified = Some(done),
        }
    }
    bar.finish_and_clear();
    let verified = verified.ok_or_else(|| Failure::Work("the check did not come to its end: try again".into()))?;
    global.print(&verified, verdict)?;
    let is_whole = verified.faults.is_empty() && verified.gaps.is_empty();
    if is_whole { Ok(()) } else { Err(Failure::Found) }
}

fn verdict(verified: &Verified) -> String {
    let counts = format!(
        "{} events checked, {} unsigned (backfill), {} erased",
        verified.checked, verified.unsigned, verified.erased
    );
    let faults = verified
        .faults
        .iter()
        .map(|fault| format!("fault: {}", plain::line(fault)));
    let more = (verified.faults_more > 0).then(|| format!("fault: and {} more", verified.faults_more));
    let gaps = verified.gaps.iter().map(|gap| {
        format!(
            "lost: {}: {}",
            gap.told().trim_end_matches(','),
            plain::line(&gap.reason)
        )
    });
    let lines: Vec<String> = std::iter::once(counts).chain(faults).chain(more).chain(gaps).collect();
    lines.join("\n")
}
