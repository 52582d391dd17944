//! What asks for attention, in words and with where something is done about it.

use super::text::{self, in_url};
use crate::control::status::{Next, Status, Trouble};

/// One thing that asks for attention, and what to do about it: in words, or by a link to where it is done.
pub struct TroubleCell {
    pub what: String,
    pub remedy: String,
    /// What it is called, and where it leads.
    pub link: Option<(String, String)>,
}

impl TroubleCell {
    /// On the page of everything, with where more of it is.
    pub fn of(trouble: &Trouble, status: &Status) -> TroubleCell {
        let mut names = status.sinks.iter().map(|sink| &sink.sink.name);
        let found = names.find(|name| is_about(trouble, name));
        let place = found.map(|name| (format!("Look at {name}"), format!("/sinks/{}", in_url(name))));
        TroubleCell::with(trouble, trouble.next.as_ref().map(link).or(place))
    }

    /// The same on the page of the sink that it is about, where its buttons are.
    pub fn of_sink(trouble: &Trouble) -> TroubleCell {
        TroubleCell::with(trouble, None)
    }

    fn with(trouble: &Trouble, link: Option<(String, String)>) -> TroubleCell {
        let told = |text: &str| text::coded(&text::with_times(text));
        TroubleCell {
            what: told(&trouble.what),
            // Where a button does it, nobody needs the command.
            remedy: match trouble.next {
                Some(_) => String::new(),
                None => told(&trouble.remedy),
            },
            link,
        }
    }
}

/// Where it is done.
fn link(next: &Next) -> (String, String) {
    let (words, place) = match next {
        Next::ResumeSink { of } => ("Resume it", format!("/sinks/{}", in_url(of))),
        Next::DeadLetters { of } => (
            "See why, then retry or drop them",
            format!("/sinks/{}#letters", in_url(of)),
        ),
        Next::Quarantined => ("Look at them", "/events?quarantined=only".to_owned()),
        Next::ResumeSubscription { .. } => ("Resume it", "/close#subscriptions".to_owned()),
        Next::Backfill => ("Fetch what Close still has", "/close#backfill".to_owned()),
    };
    (words.to_owned(), place)
}

/// Whether it is a sink's trouble: its sentence begins with the sink, or names it in quotes.
pub fn is_about(trouble: &Trouble, sink: &str) -> bool {
    let rest = trouble
        .what
        .strip_prefix("sink ")
        .and_then(|rest| rest.strip_prefix(sink));
    rest.is_some_and(|rest| rest.starts_with([' ', ':', ',', '\'']) || rest.is_empty())
        || trouble.what.contains(&format!("\"{sink}\""))
}
