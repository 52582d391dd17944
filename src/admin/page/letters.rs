//! Dead letters: by what is wrong with them, and retrying or dropping all that is meant, not only what is on the page.

use std::fmt::Write;

use askama::Template;
use axum::Extension;
use jiff::Timestamp;
use serde::Deserialize;

use super::acting::{self, May};
use super::jobs::{About, Ended, Jobs};
use super::query::Query;
use super::said::{Forms, Named, Urls};
use super::text::{self, in_url};
use super::view::{Frame, Shown, View, html};
use crate::admin::fields;
use crate::admin::refused::Refused;
use crate::control::agreed::Agreed;
use crate::control::dead::{Drop, Retried, Retry};
use crate::control::groups::{Count, Counted, Group, OTHERS};
use crate::event::Seq;

/// Letters that were given up for the same reason.
pub struct GroupCell {
    pub reason: String,
    pub in_url: String,
    pub count: u64,
    pub since: String,
    pub types: Vec<(String, String)>,
    pub answer: Option<String>,
    pub example: Seq,
    /// All that is not told apart: it can't be meant alone.
    pub is_rest: bool,
}

impl GroupCell {
    /// For people.
    pub fn of(group: Group) -> GroupCell {
        let (first, last) = (text::when(&group.first), text::when(&group.last));
        let since = if first == last {
            format!("given up at {last}")
        } else {
            format!("given up from {}", text::range(&group.first, &group.last))
        };
        let is_rest = group.group == OTHERS;
        let name = |name: String| if name.is_empty() { "others".to_owned() } else { name };
        GroupCell {
            reason: if is_rest {
                "All others".to_owned()
            } else {
                group.group.clone()
            },
            in_url: in_url(&group.group),
            count: group.count,
            since,
            types: group
                .types
                .into_iter()
                .map(|(kind, count)| (name(kind), text::count(&count)))
                .collect(),
            answer: group.example.answer,
            example: group.example.seq,
            is_rest,
        }
    }
}

#[derive(Template)]
#[template(path = "confirm.html")]
struct Confirm {
    frame: Frame,
    title: String,
    back: String,
    facts: Vec<(&'static str, String)>,
    says: String,
    can: bool,
    action: String,
    fields: Vec<(&'static str, String)>,
    tone: &'static str,
    button: String,
}

/// What is to be done with which of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Wish {
    act: String,
    group: String,
}

impl Wish {
    fn is_drop(&self) -> Result<bool, Refused> {
        match self.act.as_str() {
            "drop" => Ok(true),
            "retry" => Ok(false),
            _ => Err(Refused::bad("act has to be retry or drop").at("act")),
        }
    }

    fn group(&self) -> Option<String> {
        (!self.group.is_empty()).then(|| self.group.clone())
    }

    /// What a form hands on of what was counted.
    fn fields(&self, query: &Query, counted: &Counted) -> Vec<(&'static str, String)> {
        let mut fields = vec![("act", self.act.clone()), ("group", self.group.clone())];
        fields.extend(query.fields().map(|(name, value)| (name, value.to_owned())));
        if let Some(agreed) = counted.agreed {
            fields.push(("letters", agreed.letters.to_string()));
            fields.push(("upto", agreed.upto.to_string()));
        }
        fields
    }

    fn count(&self, sink: &str, query: &Query) -> Result<Count, String> {
        Ok(Count {
            sink: Some(sink.to_owned()),
            pick: query.pick()?,
            group: self.group(),
        })
    }
}

/// Says how many are meant, before anything is done.
pub async fn confirm(view: View, Named(sink): Named, Urls(wish, query): Urls<Wish, Query>) -> Shown {
    let is_drop = wish.is_drop().map_err(|refused| view.wrong(refused))?;
    if !is_drop {
        super::removed::refuse(&view, &sink).await?;
    }
    // What is shown now is what is done later: a time that is so long ago is from here on the moment it is now.
    let meant = query.frozen().map_err(|message| view.bad(message))?;
    let count = wish.count(&sink, &meant).map_err(|message| view.bad(message))?;
    let counted = view.one(count).await.map_err(|error| view.refused(error))?;
    let letters = counted.letters;
    let many = text::counted(&letters, "dead letter");
    let (title, says, tone) = if is_drop {
        let says = format!("{many} would be removed for good. {}", what_stays(&counted, &sink));
        ("Drop dead letters", says, "danger")
    } else {
        let says =
            format!("{many} would be delivered to {sink} again. Those that succeed are removed, the others stay.");
        ("Retry dead letters", says, "")
    };
    let verb = if is_drop { "Drop" } else { "Retry" };
    let mut facts = vec![("Sink", sink.clone())];
    facts.extend(wish.group().map(|group| ("Given up because", group)));
    if !query.is_empty() {
        facts.push(("Only", query.words()));
    }
    Ok(html(&Confirm {
        frame: view.frame("/sinks"),
        title: title.to_owned(),
        back: format!("/sinks/{}?{}#letters", in_url(&sink), query.url()),
        facts,
        says: if letters == 0 {
            "None is meant: there is nothing to do.".to_owned()
        } else {
            says
        },
        can: letters > 0,
        action: format!("/sinks/{}/letters", in_url(&sink)),
        fields: wish.fields(&meant, &counted),
        tone,
        button: format!("{verb} {many}"),
    }))
}

/// What there still is of the events when their letters are dropped.
fn what_stays(counted: &Counted, sink: &str) -> String {
    let in_log = format!("stay in the log for as long as it keeps them; {sink} will not get them by itself.");
    match counted.only_copies {
        0 => format!("The events {in_log}"),
        only if only >= counted.letters => {
            "The log does not keep the events any more: what is dropped is gone.".to_owned()
        }
        only => format!(
            "{} of them are kept only as dead letters: what is dropped of these is gone. The other events {in_log}",
            text::count(&only)
        ),
    }
}

/// What is sent beside what is to be done. What was counted goes along: no more than that is done.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sent {
    letters: String,
    upto: String,
}

impl Sent {
    fn agreed(&self) -> Result<Agreed, Refused> {
        let upto: Option<Timestamp> = self.upto.parse().ok();
        let letters = fields::number("letters", &self.letters)?;
        let agreed = letters.zip(upto).map(|(letters, upto)| Agreed { letters, upto });
        agreed
            .ok_or_else(|| Refused::bad("the form does not say how many were counted: count them first").at("letters"))
    }
}

/// Does it: as a job, for it may be a million of them.
pub async fn act(
    view: View,
    may: May,
    Extension(jobs): Extension<Jobs>,
    Named(sink): Named,
    Forms(sent, wish, query): Forms<Sent, Wish, Query>,
) -> Shown {
    let actor = acting::actor(&view, may)?;
    let is_drop = wish.is_drop().map_err(|refused| view.wrong(refused))?;
    let agreed = sent.agreed().map_err(|refused| view.wrong(refused))?;
    let count = wish.count(&sink, &query).map_err(|message| view.bad(message))?;
    let counted = text::counted(&agreed.letters, "dead letter");
    let back = format!("/sinks/{}#letters", in_url(&sink));
    let (pick, group, agreed, state) = (count.pick, count.group, Some(agreed), view.state.clone());
    if is_drop {
        let about = About {
            title: "Drop dead letters".to_owned(),
            says: format!("{counted} of {sink} are being removed."),
            back,
        };
        let order = Drop {
            sink: Some(sink),
            pick,
            group,
            agreed,
        };
        return Ok(jobs.begin(about, |_| async move {
            match acting::last(&state, &actor, order).await {
                Ok(dropped) => Ended::well(format!("{} removed.", text::counted(&dropped.dropped, "dead letter"))),
                Err(error) => Ended::badly(error),
            }
        }));
    }
    let about = About {
        title: "Retry dead letters".to_owned(),
        says: format!("{counted} of {sink} are being delivered again."),
        back,
    };
    let order = Retry {
        sink: Some(sink),
        pick,
        group,
        agreed,
    };
    Ok(jobs.begin(about, |progress| async move {
        let show = |so_far: &Retried| {
            let done = so_far.delivered + so_far.failed;
            let words = format!("{} of {} tried", text::count(&done), text::count(&so_far.total));
            progress.say(done as f64 / so_far.total.max(1) as f64, words);
        };
        match acting::watched(&state, &actor, order, show).await {
            Ok(retried) => ended(&retried),
            Err(error) => Ended::badly(error),
        }
    }))
}

fn ended(retried: &Retried) -> Ended {
    let mut says = format!(
        "{} of {} delivered",
        text::count(&retried.delivered),
        text::count(&retried.total)
    );
    if retried.elsewhere > 0 {
        let _ = write!(
            says,
            ", {} are tried for another retry already",
            text::count(&retried.elsewhere)
        );
    }
    if retried.gone > 0 {
        let _ = write!(says, ", {} were gone already", text::count(&retried.gone));
    }
    if retried.failed == 0 {
        return Ended::well(format!("{says}."));
    }
    let mut ended = Ended::badly(format!("{says}; {} stay dead.", text::count(&retried.failed)));
    ended.more.extend(
        retried
            .reason
            .as_ref()
            .map(|reason| format!("The newest of them: {reason}")),
    );
    ended
}
