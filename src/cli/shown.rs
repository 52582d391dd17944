//! What is shown of an event, whether it is looked for in the log or among the dead letters.

use crate::control::transfer::Exported;
use crate::{json, plain};

/// The body as people read it: indented where it is JSON, with every token as Close wrote it.
pub(super) fn body_for_people(event: &Exported) -> String {
    let Some(body) = &event.body else {
        let encoded = event.body_base64.as_deref().unwrap_or_default();
        return format!("(not text, base64) {encoded}");
    };
    match json::validate(body.as_bytes()) {
        Ok(text) => plain::lines(&json::indented(text)).into_owned(),
        Err(_) => plain::line(body).into_owned(),
    }
}

/// What the receiver said, or the template or transform of which there came nothing, for people. The reason, above it, says who.
pub(super) fn answered(answer: Option<&str>) -> Option<String> {
    let lines: Vec<String> = answer?.lines().map(|line| format!("  {}", plain::line(line))).collect();
    Some(format!("it said:\n{}", lines.join("\n")))
}
