//! What was done, a line a step: for people, or as JSON for a script.

use serde_json::{Map, Value, json};

use crate::cli::{Outcome, print_line};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// It was as it should be.
    Ok,
    /// It is now.
    Changed,
    /// It is not.
    Failed,
    /// It was not looked at.
    Skipped,
}

impl Done {
    fn word(self) -> &'static str {
        match self {
            Done::Ok => "ok",
            Done::Changed => "changed",
            Done::Failed => "failed",
            Done::Skipped => "skipped",
        }
    }
}

/// Tells each step as soon as it is over.
#[derive(Debug)]
pub(super) struct Report {
    is_json: bool,
    failed: usize,
}

impl Report {
    pub fn new(is_json: bool) -> Report {
        Report { is_json, failed: 0 }
    }

    /// Whether a script reads it.
    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Steps that failed so far.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Tells a step.
    pub fn step(&mut self, done: Done, step: &str, says: &str) -> Outcome {
        self.step_with(done, step, says, Value::Null)
    }

    /// Tells a step, with more for scripts: the fields of an object.
    pub fn step_with(&mut self, done: Done, step: &str, says: &str, more: Value) -> Outcome {
        self.failed += usize::from(done == Done::Failed);
        print_line(&line(self.is_json, done, step, says, more))
    }

    /// Tells people something between the steps.
    pub fn note(&self, text: &str) -> Outcome {
        if self.is_json { Ok(()) } else { print_line(text) }
    }
}

fn line(is_json: bool, done: Done, step: &str, says: &str, more: Value) -> String {
    if !is_json {
        return format!("{:<8} {step:<13} {says}", done.word());
    }
    let mut fields = Map::new();
    fields.insert("step".into(), json!(step));
    fields.insert("result".into(), json!(done.word()));
    fields.insert("says".into(), json!(says));
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_for_people_and_for_scripts() {
        let more = || json!({ "seq": 7 });
        assert_eq!(
            line(false, Done::Changed, "daemon", "runs", more()),
            "changed  daemon        runs"
        );
        assert_eq!(
            line(true, Done::Failed, "delivery", "404", more()),
            r#"{"step":"delivery","result":"failed","says":"404","seq":7}"#
        );
    }
}
