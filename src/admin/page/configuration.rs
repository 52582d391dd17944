//! The configuration in force without its secrets, and taking over what the file says now.

use askama::Template;
use axum::response::Response;

use super::acting::{self, May};
use super::said::{Form, Nothing};
use super::text;
use super::view::{Frame, Shown, View, html};
use crate::config::Fault;
use crate::control::configured;
use crate::control::reload::{Changes, Outcome, Reload, Reloaded};

#[derive(Template)]
#[template(path = "configuration.html")]
struct Configuration {
    frame: Frame,
    outcome: String,
    refused: Option<String>,
    file: String,
    taken: String,
    has_changed: bool,
    variables: Vec<String>,
    text: String,
}

/// How a reload went.
#[derive(Template)]
#[template(path = "reloaded.html")]
struct How {
    is_fine: bool,
    says: String,
    faults: Vec<Fault>,
    lines: Vec<String>,
}

/// `/configuration`
pub async fn show(view: View) -> Shown {
    Ok(page(&view, String::new()).await)
}

async fn page(view: &View, outcome: String) -> Response {
    let frame = view.frame("/configuration");
    let (shown, refused) = match view.one(configured::Show {}).await {
        Ok(shown) => (Some(shown), None),
        Err(message) => (None, Some(message)),
    };
    let file = shown.as_ref().and_then(|shown| shown.file.as_ref());
    html(&Configuration {
        frame,
        outcome,
        refused,
        file: file.map_or_else(|| "no file".to_owned(), |file| file.display().to_string()),
        taken: shown
            .as_ref()
            .map(|shown| text::ago(&shown.taken_at))
            .unwrap_or_default(),
        has_changed: shown.as_ref().is_some_and(|shown| shown.has_changed == Some(true)),
        variables: shown.as_ref().map(|shown| shown.variables.clone()).unwrap_or_default(),
        text: shown.map(|shown| shown.text).unwrap_or_default(),
    })
}

/// Takes over what the file says now.
pub async fn reload(view: View, may: May, _: Form<Nothing>) -> Shown {
    let outcome = acting::order(&view, may, Reload {}).await?;
    let how = How::of(outcome).render().unwrap_or_default();
    Ok(page(&view, how).await)
}

impl How {
    fn of(outcome: Outcome) -> How {
        match outcome {
            Outcome::Reloaded(reloaded) => How {
                is_fine: true,
                says: "It is taken over.".to_owned(),
                faults: Vec::new(),
                lines: lines(&reloaded),
            },
            Outcome::Faults(faults) => How {
                is_fine: false,
                says: format!(
                    "Nothing has changed: {} to put right.",
                    text::counted(&(faults.len() as u64), "thing")
                ),
                faults,
                lines: Vec::new(),
            },
            Outcome::Waits(what) => How {
                is_fine: true,
                says: format!("It waits: {what}"),
                faults: Vec::new(),
                lines: Vec::new(),
            },
        }
    }
}

/// What a reload has changed, a line each.
fn lines(reloaded: &Reloaded) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |what: &str, changes: &Changes| {
        for (word, names) in [
            ("new", &changes.added),
            ("removed", &changes.removed),
            ("changed", &changes.changed),
        ] {
            if !names.is_empty() {
                lines.push(format!("{what} {word}: {}", names.join(", ")));
            }
        }
    };
    say("Sinks", &reloaded.sinks);
    say("Rules", &reloaded.rules);
    if reloaded.keys.added + reloaded.keys.removed > 0 {
        let keys = &reloaded.keys;
        lines.push(format!(
            "Keys: {} new, {} removed, {} count now",
            keys.added, keys.removed, keys.live
        ));
    }
    if let Some(certificate) = &reloaded.certificate {
        if certificate.changed {
            lines.push("Another certificate is in force".to_owned());
        }
        lines.extend(
            certificate
                .error
                .iter()
                .map(|error| format!("The new certificate can't be used: {error}")),
        );
    }
    if !reloaded.restart.is_empty() {
        lines.push(format!(
            "Takes effect at the next start: {}",
            reloaded.restart.join(", ")
        ));
    }
    if lines.is_empty() {
        lines.push("Nothing in it is new.".to_owned());
    }
    lines
}
