//! How a command says that something is wrong: a sentence on standard error for people, and with `--json` one JSON object a line,
//! `{"error":{"message","place"?}}`. The exit code is the same either way.

use std::io::Write;

use serde::Serialize;

use super::Failure;
use crate::config::Fault;
use crate::plain;

/// What programs read.
#[derive(Serialize)]
struct Line<'a> {
    error: &'a Fault,
}

/// The exit code of a failure, and what is said of it: nothing, where it was said already.
pub(super) fn told(failure: Failure, json: bool) -> (u8, String) {
    let one = |message| {
        vec![Fault {
            place: String::new(),
            message,
        }]
    };
    let (code, faults) = match failure {
        Failure::Unread => (141, Vec::new()),
        Failure::Found => (1, Vec::new()),
        Failure::Work(message) => (1, one(message)),
        Failure::Unchanged(faults) => (1, faults),
        Failure::Usage(message) => (2, one(message)),
        Failure::Faults(faults) => (2, faults),
    };
    let lines: Vec<String> = faults.iter().map(|fault| line(fault, json)).collect();
    (code, lines.concat())
}

fn line(fault: &Fault, json: bool) -> String {
    let text = if json {
        serde_json::to_string(&Line { error: fault }).unwrap_or_default()
    } else {
        format!("closehook: {fault}")
    };
    format!("{}\n", plain::lines(&text))
}

/// Says something while a command goes on, in one line whatever is in it.
pub(super) fn notice(json: bool, message: &str) {
    let message = if json { message.into() } else { plain::line(message) };
    let fault = Fault {
        place: String::new(),
        message: message.into_owned(),
    };
    say(&line(&fault, json));
}

/// Whether programs read what is said, where the arguments are not understood yet.
pub(super) fn wants_json() -> bool {
    std::env::args_os().any(|argument| argument == "--json")
}

/// Says it on standard error. Nobody to tell is nobody to tell.
pub(super) fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// What is wrong with the command line itself. Help and the version are none of that.
pub(super) fn usage(error: &clap::Error, json: bool) -> Option<String> {
    if !json || !error.use_stderr() {
        return None;
    }
    // The sentence, without what follows it: usage, and where help is.
    let rendered = error.render().to_string();
    let sentence = rendered.split("\n\nUsage:").next().unwrap_or_default();
    let sentence = sentence.split("\n\nFor more information").next().unwrap_or_default();
    let words: Vec<&str> = sentence.trim_start_matches("error: ").split_whitespace().collect();
    let fault = Fault {
        place: String::new(),
        message: words.join(" "),
    };
    Some(line(&fault, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(place: &str) -> Fault {
        Fault {
            place: place.to_owned(),
            message: "no \u{1b}[2J good".to_owned(),
        }
    }

    #[test]
    fn an_error_is_a_sentence_or_a_line_of_json_with_the_same_exit_code() {
        for (failure, code, text, json) in [
            (Failure::Found, 1, "", ""),
            (
                Failure::Work("it failed".into()),
                1,
                "closehook: it failed\n",
                "{\"error\":{\"message\":\"it failed\"}}\n",
            ),
            (
                Failure::Faults(vec![fault("a.b"), fault("")]),
                2,
                "closehook: a.b: no \\u001b[2J good\nclosehook: no \\u001b[2J good\n",
                "{\"error\":{\"place\":\"a.b\",\"message\":\"no \\u001b[2J good\"}}\n{\"error\":{\"message\":\"no \\u001b[2J good\"}}\n",
            ),
            (Failure::Unread, 141, "", ""),
        ] {
            let again = match &failure {
                Failure::Found => Failure::Found,
                Failure::Work(text) => Failure::Work(text.clone()),
                Failure::Faults(faults) => Failure::Faults(faults.clone()),
                _ => Failure::Unread,
            };
            assert_eq!(told(failure, false), (code, text.to_owned()));
            assert_eq!(told(again, true), (code, json.to_owned()));
        }
    }
}
