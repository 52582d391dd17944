//! The configuration in force without its secrets, and taking over what the file says now.

use askama::Template;
use axum::response::Response;
use jiff::Timestamp;

use super::acting::{self, May};
use super::text;
use super::view::{Frame, Shown, View, html};
use crate::config::Fault;
use crate::control::reload::{Changes, Outcome, Reload, Reloaded};

#[derive(Template)]
#[template(path = "configuration.html")]
struct Configuration {
    frame: Frame,
    outcome: String,
    refused: Option<String>,
    written: Written,
    text: String,
}

#[derive(Default)]
struct Written {
    file: Option<String>,
    taken_at: Timestamp,
    text: String,
    overridden: Vec<String>,
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
    let (mut written, refused) = (
        Written::default(),
        Some("it is not told yet what is in force".to_owned()),
    );
    html(&Configuration {
        frame: view.frame("/configuration"),
        outcome,
        refused,
        text: std::mem::take(&mut written.text),
        written,
    })
}

/// Takes over what the file says now.
pub async fn reload(view: View, may: May) -> Shown {
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
