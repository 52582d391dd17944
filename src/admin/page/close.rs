//! Close's side: subscriptions and their health, how complete the log is, and backfills.

use std::fmt::Write;

use askama::Template;
use axum::Extension;
use jiff::Timestamp;
use serde::Deserialize;

use super::acting::{self, May};
use super::jobs::{About, Ended, Jobs};
use super::picture::Drawing;
use super::query::{self, Query};
use super::said::{Form, Named, Nothing, Url};
use super::text;
use super::view::{Frame, Shown, View, html, to};
use crate::admin::fields;
use crate::close::{Ask, BackfillStatus, CloseStatus, Condition, FoundSubscription, JobState, Spec};
use crate::control::close::{Begin, Rehearsal, Rehearse, Resume, Set};
use crate::control::picture::Draw;
use crate::control::status;

#[derive(Template)]
#[template(path = "close.html")]
struct ClosePage {
    frame: Frame,
    done: Option<&'static str>,
    /// The node that looks after Close's side, where that is another one.
    elsewhere: Option<String>,
    claim: String,
    claim_more: String,
    picture: Drawing,
    subscriptions: Vec<SubscriptionCell>,
    job: Backfill,
    status: CloseStatus,
}

struct SubscriptionCell {
    id: String,
    state: &'static str,
    tone: &'static str,
    can_resume: bool,
    url: Option<String>,
    pause_reason: Option<String>,
    latest_error: Option<String>,
    counters: Option<String>,
    trouble: Option<String>,
}

/// The backfill that is under way, or was stopped.
#[derive(Template)]
#[template(path = "backfill.html")]
struct Backfill {
    job: Option<BackfillCell>,
    may_act: bool,
}

struct BackfillCell {
    state: &'static str,
    tone: &'static str,
    runs: bool,
    is_over: bool,
    says: String,
    fraction: f64,
    trouble: Option<String>,
    earlier_trouble: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wish {
    part: String,
    done: String,
}

/// `/close`
pub async fn show(view: View, Url(wish): Url<Wish>) -> Shown {
    let shown = view.one(status::Show {}).await.map_err(|error| view.refused(error))?;
    let (status, own) = (shown.close, shown.daemon.node);
    let frame = view.frame("/close");
    let newest = status.backfill.as_ref().or(status.last_backfill.as_ref());
    let job = Backfill {
        job: newest.map(BackfillCell::of),
        may_act: frame.may_act,
    };
    if wish.part == "backfill" {
        return Ok(html(&job));
    }
    let picture = view
        .one(Draw { days: Some(30) })
        .await
        .map_err(|error| view.refused(error))?;
    let (claim, claim_more) = claim(&status);
    Ok(html(&ClosePage {
        frame,
        elsewhere: status.looked_after_by.clone().filter(|node| Some(node) != own.as_ref()),
        done: match wish.done.as_str() {
            "resumed" => Some("Close was told to deliver again."),
            "begun" => Some("The backfill has begun."),
            "stopped" => Some("The backfill is stopped: it goes on where it was."),
            "running" => Some("The backfill goes on."),
            _ => None,
        },
        claim,
        claim_more,
        picture: Drawing::of(&picture),
        subscriptions: status.subscriptions.iter().map(SubscriptionCell::of).collect(),
        job,
        status,
    }))
}

/// What is claimed, and what there is to that.
fn claim(status: &CloseStatus) -> (String, String) {
    let Some(claim) = &status.complete else {
        let why = if status.configured {
            "The log was not compared with Close's yet."
        } else {
            "Without credentials it can't be compared."
        };
        return ("Nothing is claimed yet".to_owned(), why.to_owned());
    };
    let mut more = format!(
        "The log has the latest revision of every event of Close's log ({}) since {}.",
        claim.complete.scope,
        text::when(&claim.since())
    );
    if claim.kept_from.is_some() {
        more.push_str(" What was before has left the log.");
    }
    if let Some(lacks) = &claim.lacks {
        let many = text::counted(&lacks.events, "event");
        let _ = write!(more, " {many} of these without their data, which Close withholds.");
    }
    if let Some(at) = &status.reconciled_at {
        let _ = write!(more, " Compared {}.", text::ago(at));
    }
    (format!("Complete up to {}", text::when(&claim.complete.upto)), more)
}

impl SubscriptionCell {
    fn of(found: &FoundSubscription) -> SubscriptionCell {
        let (state, tone) = match found.state {
            Condition::Active => ("active", "ok"),
            Condition::Paused => ("paused by Close", "bad"),
            Condition::PausedByHand => ("paused by a person", "warn"),
            Condition::PausedBySomebody => ("paused by somebody", "warn"),
            Condition::BeingReplaced => ("being replaced", ""),
            Condition::Missing => ("Close does not have it", "bad"),
            Condition::Gone => ("gone, and still configured", "warn"),
            Condition::Elsewhere => ("delivers elsewhere", "bad"),
            Condition::Keyless => ("its key is not known", "bad"),
        };
        SubscriptionCell {
            id: found.id.clone(),
            state,
            tone,
            can_resume: matches!(
                found.state,
                Condition::Paused | Condition::PausedByHand | Condition::PausedBySomebody
            ),
            url: found.url.clone(),
            pause_reason: found.pause_reason.clone(),
            latest_error: found.latest_error.clone(),
            counters: found.counters.as_ref().map(counters),
            trouble: found.trouble.clone(),
        }
    }
}

/// What Close counts, in its own words.
fn counters(counters: &serde_json::Value) -> String {
    let Some(members) = counters.as_object() else {
        return counters.to_string();
    };
    let said: Vec<String> = members
        .iter()
        .map(|(name, value)| format!("{} {value}", name.replace('_', " ")))
        .collect();
    said.join(", ")
}

impl BackfillCell {
    fn of(status: &BackfillStatus) -> BackfillCell {
        let job = &status.job;
        let (state, tone) = match job.state {
            JobState::Running => ("running", "accent"),
            JobState::Interrupted => ("stopped", "warn"),
            JobState::Done => ("done", "ok"),
        };
        let mut says = format!(
            "{}: {} seen, {} new, {} known",
            text::range(&job.spec.since, &job.spec.until),
            text::count(&job.counts.seen),
            text::count(&job.counts.stored),
            text::count(&job.counts.known)
        );
        if let Some(seconds) = status.eta_seconds {
            let _ = write!(says, "; about {} left", text::length(seconds));
        }
        if let Some(at) = &job.ended_at {
            let _ = write!(says, "; over at {}", text::when(at));
        }
        BackfillCell {
            state,
            tone,
            runs: job.state == JobState::Running,
            is_over: job.state == JobState::Done,
            says,
            fraction: status.fraction,
            trouble: job.trouble.clone(),
            earlier_trouble: status.earlier_trouble.clone(),
        }
    }
}

/// Has Close deliver again.
pub async fn resume(view: View, may: May, Named(id): Named, _: Form<Nothing>) -> Shown {
    let only_ours = true;
    acting::order(&view, may, Resume { id, only_ours }).await?;
    Ok(to("/close?done=resumed"))
}

/// The form.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    since: String,
    until: String,
    #[serde(alias = "type")]
    types: String,
    lead: String,
    act: String,
}

impl Wanted {
    fn ask(&self) -> Result<Ask, String> {
        let query = Query {
            types: self.types.clone(),
            lead: self.lead.clone(),
            ..Query::default()
        };
        let pick = query.pick()?;
        let now = Timestamp::now();
        Ok(Ask {
            since: query::time(&self.since, now).map_err(|error| format!("since: {error}"))?,
            until: query::time(&self.until, now).map_err(|error| format!("until: {error}"))?,
            types: pick.types,
            lead: pick.lead,
        })
    }
}

/// What can be done once it is counted.
#[derive(Template)]
#[template(path = "backfill_begin.html")]
struct AfterCount {
    fields: [(&'static str, String); 4],
}

impl AfterCount {
    /// What was counted is what begins: `36h` means another moment each time it is read, and nothing at all is Close's oldest and newest
    /// event of then.
    fn of(counted: &Spec, wanted: Wanted) -> AfterCount {
        AfterCount {
            fields: [
                ("since", counted.since.to_string()),
                ("until", counted.until.to_string()),
                ("types", wanted.types),
                ("lead", wanted.lead),
            ],
        }
    }
}

/// Counts a backfill, or begins it.
pub async fn backfill(view: View, may: May, Extension(jobs): Extension<Jobs>, Form(wanted): Form<Wanted>) -> Shown {
    let actor = acting::actor(&view, may)?;
    let ask = Box::new(wanted.ask().map_err(|message| view.bad(message))?);
    if !["count", "begin"].contains(&wanted.act.as_str()) {
        return Err(view.bad("act has to be count or begin"));
    }
    if wanted.act == "begin" {
        let begun = acting::last(&view.state, &actor, Begin { ask }).await;
        begun.map_err(|error| view.refused(error))?;
        return Ok(to("/close?done=begun#backfill"));
    }
    let about = About {
        title: "Count a backfill".to_owned(),
        says: "All of the range is read at Close, within its rate limit. Nothing is stored.".to_owned(),
        back: "/close#backfill".to_owned(),
    };
    let state = view.state.clone();
    Ok(jobs.begin(about, |progress| async move {
        let show = |so_far: &Rehearsal| {
            if let Rehearsal::Progress { fraction, seen } = so_far {
                progress.say(*fraction, format!("{} read", text::counted(seen, "event")));
            }
        };
        match acting::watched(&state, &actor, Rehearse { ask }, show).await {
            Ok(Rehearsal::Done(done)) => {
                let counts = done.counts;
                let mut ended = Ended::well(format!(
                    "{} would be stored.",
                    text::counted(&(counts.stored + counts.partial), "event")
                ));
                let lines = [
                    format!("Scope: {}", done.scope),
                    text::range(&done.spec.since, &done.spec.until),
                    format!(
                        "{} read, {} known already, {} not wanted",
                        text::count(&counts.seen),
                        text::count(&counts.known),
                        text::count(&counts.outside)
                    ),
                ];
                ended.more.extend(lines);
                ended.after = AfterCount::of(&done.spec, wanted).render().unwrap_or_default();
                ended
            }
            Ok(Rehearsal::Progress { .. }) => Ended::badly("counting did not come to an end: try again"),
            Err(error) => Ended::badly(error),
        }
    }))
}

/// Whether it goes on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Way {
    running: String,
}

/// Stops the backfill, or goes on with it.
pub async fn set(view: View, may: May, Form(way): Form<Way>) -> Shown {
    let running = fields::flag("running", &way.running).map_err(|refused| view.wrong(refused))?;
    acting::order(&view, may, Set { running }).await?;
    Ok(to(if running {
        "/close?done=running#backfill"
    } else {
        "/close?done=stopped#backfill"
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_what_begins() {
        let wanted = Wanted {
            since: "36h".to_owned(),
            types: "lead.*".to_owned(),
            ..Wanted::default()
        };
        let counted = Spec {
            since: "2024-02-14T00:00:00.5Z".parse().unwrap(),
            until: "2024-02-15T12:00:00Z".parse().unwrap(),
            types: vec!["lead.*".to_owned()],
            lead: None,
        };
        let fields = AfterCount::of(&counted, wanted).fields;
        let [(_, since), (_, until), (_, types), (_, lead)] = fields;
        let begun = Wanted {
            since,
            until,
            types,
            lead,
            act: "begin".to_owned(),
        };
        let ask = begun.ask().unwrap();
        assert_eq!((ask.since, ask.until), (Some(counted.since), Some(counted.until)));
        assert_eq!((ask.types, ask.lead), (counted.types, counted.lead));
    }
}
