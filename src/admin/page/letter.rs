//! An event that the log keeps no more, and that dead letters still have: what came, why it was given up and where.

use askama::Template;
use jiff::Timestamp;

use super::text::{self, Cut, in_url};
use super::view::{Frame, View};
use crate::control::Refusal;
use crate::control::dead::{self, Shown};
use crate::control::transfer::Exported;
use crate::deliver::DeadLetter;

/// Of so many sinks the letters of one event are shown.
const LETTERS_MAX: usize = 1000;

/// The letters of an event. A refusal is that they can't be read.
pub async fn of(view: &View, id: &str) -> Result<Vec<Shown>, Refusal> {
    let question = dead::Show {
        sink: None,
        id: id.to_owned(),
    };
    view.all(question, LETTERS_MAX).await
}

/// The page of them.
#[derive(Template)]
#[template(path = "letter.html")]
pub struct LetterPage {
    frame: Frame,
    title: String,
    letter: DeadLetter,
    letters: Vec<LetterCell>,
    event: Option<Exported>,
    body: Cut,
}

struct LetterCell {
    sink: String,
    in_url: String,
    reason: String,
    answer: Option<String>,
    attempts: String,
    died_at: Timestamp,
}

impl LetterPage {
    /// For people; `None`: there is no letter.
    pub fn of(frame: Frame, shown: Vec<Shown>) -> Option<LetterPage> {
        let letter = shown.first()?.letter.clone();
        let title = letter.event_type.as_deref().unwrap_or("An event without a type");
        // Each letter has its own copy, or none.
        let event = shown.iter().find_map(|shown| shown.event.clone());
        let body = event.as_ref().and_then(|event| {
            let body = event.body.as_deref().map(text::pretty);
            body.or_else(|| event.body_base64.clone())
        });
        Some(LetterPage {
            frame,
            title: text::brief(title),
            body: text::cut(&body.unwrap_or_default()),
            event,
            letters: shown.into_iter().map(|shown| LetterCell::of(shown.letter)).collect(),
            letter,
        })
    }
}

impl LetterCell {
    fn of(letter: DeadLetter) -> LetterCell {
        LetterCell {
            in_url: in_url(&letter.sink),
            sink: letter.sink,
            reason: letter.reason,
            answer: letter.answer,
            attempts: text::counted(&u64::from(letter.attempts), "attempt"),
            died_at: letter.died_at,
        }
    }
}
