//! What a mail server answers (RFC 5321, 4.2; RFC 3463 for the three numbers behind the code), and what that means: for the mail, or
//! for the sink and whoever looks after it.
//!
//! | answer | means |
//! |---|---|
//! | no answer or a broken connection before that, TLS, 421 | the server can't now: nothing is counted |
//! | 530, 534, 535, 538, any refusal of AUTH | the sink has no right to: nothing is counted |
//! | a refusal of the sender | `from` is none that the server takes: nothing is counted |
//! | 4xx to a recipient | this mail waits (a full mailbox, greylisting) |
//! | 450, 451 to what is in the mail | this mail waits (a filter) |
//! | 452 without three numbers to a recipient who is always the same | a full disk, or too many recipients: no mail would go; nothing is counted |
//! | 450, 451, 452 to DATA, 452 to the mail, x.3.x anywhere | the server's disk or system: nothing is counted |
//! | 5xx to a recipient, or to the mail | this mail is refused |
//! | 5.4.5, or relaying denied to a recipient who is always the same | a limit, or a right, of the sink's: nothing is counted |
//! | no answer, or a broken connection, once a recipient was named | this mail waits, others go on: the server may have it |

use std::error::Error as _;

use lettre::transport::smtp::Error;

use super::super::common::said::{self, Part};
use super::super::common::secrets::Secrets;
use crate::plain;
use crate::sinks::{Outcome, Reason, Unavailable};

/// So much of what a server says goes into a sentence.
const SAID_LEN_MAX: usize = 200;

const LOG_IN: &str = "see username and password";
const SENDER: &str = "set from to an address that the server lets this user send from";

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    code: u16,
    /// The second and third number of its enhanced status code.
    enhanced: Option<(u16, u16)>,
    text: String,
}

impl Said {
    pub fn new(code: u16, text: String) -> Said {
        let word = text.split_whitespace().next().unwrap_or_default();
        let numbers: Vec<u16> = word.split('.').map_while(|part| part.parse().ok()).collect();
        let enhanced = match numbers[..] {
            [class, subject, detail] if class == code / 100 => Some((subject, detail)),
            _ => None,
        };
        Said { code, enhanced, text }
    }

    /// With the code, without secrets, and nothing that moves a terminal.
    pub fn sentence(&self, secrets: &Secrets) -> String {
        let text = secrets.hidden_in(&self.text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text: String = plain::line(&text).chars().take(SAID_LEN_MAX).collect();
        format!("{} {text}", self.code).trim_end().to_owned()
    }

    /// Whether it says that it sends no mail of this user's on. Servers quote the recipient, whose name may have any word in it.
    fn denies_relaying(&self) -> bool {
        let mut words = String::new();
        let mut depth = 0_u32;
        for c in self.text.to_ascii_lowercase().chars() {
            match c {
                '<' => depth += 1,
                '>' => depth = depth.saturating_sub(1),
                c if depth == 0 => words.push(c),
                _ => {}
            }
        }
        let mut words = words.split_whitespace();
        words.any(|word| word.contains("relay") && !word.contains('@'))
    }

    /// The code alone, with its three numbers.
    fn code(&self) -> String {
        match self.enhanced {
            Some((subject, detail)) => format!("{} {}.{subject}.{detail}", self.code, self.code / 100),
            None => self.code.to_string(),
        }
    }
}

/// The server's answer in an error of the library; `None` where it was something else that failed.
pub(super) fn said_by(error: &Error) -> Option<Said> {
    let code: u16 = error.status()?.into();
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    Some(Said::new(code, text))
}

/// What a server answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    LogIn,
    Sender,
    Recipient,
    Data,
    Mail,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::LogIn => "the login",
            Step::Sender => "the sender",
            Step::Recipient => "a recipient",
            Step::Data | Step::Mail => "the mail",
        }
    }
}

/// The one place that decides what an answer that is no "yes" means. `secrets` are hidden in what is kept of it.
/// `to_varies`: each event may go to another recipient, so what is said of a recipient is about the event.
pub(super) fn outcome(step: Step, said: &Said, to_varies: bool, secrets: &Secrets) -> Result<Outcome, Unavailable> {
    let unavailable = |what_to_do: &str| {
        let end = if what_to_do.is_empty() {
            String::new()
        } else {
            format!(": {what_to_do}")
        };
        let said = said.sentence(secrets);
        Err(Unavailable::new(format!(
            "the server refused {}, it said \"{said}\"{end}",
            step.name()
        )))
    };
    // What it says may quote the mail: it is kept with the letter, and not logged.
    let reason = || Reason {
        text: format!("the server refused {} with {}", step.name(), said.code()),
        answer: said::cleaned(said.text.as_bytes(), Part::Beginning, secrets),
    };
    let retry = || {
        Ok(Outcome::Retry {
            reason: reason(),
            after: None,
        })
    };
    let reject = || Ok(Outcome::Reject { reason: reason() });
    let is_too_big =
        said.code == 552 && said.enhanced != Some((2, 2)) || matches!(said.enhanced, Some((3, 4) | (2, 3)));
    match (said.code, step) {
        (530 | 534 | 535 | 538, _) | (_, Step::LogIn) => unavailable(LOG_IN),
        (500.., _) if said.enhanced == Some((4, 5)) => unavailable("its limit of mails is reached"),
        (500.., Step::Sender) if !is_too_big => unavailable(SENDER),
        (500.., Step::Recipient) if !to_varies && said.denies_relaying() => unavailable(LOG_IN),
        (500.., _) => reject(),
        (421, _) | (_, Step::Sender) => unavailable(""),
        (400..=499, _) if said.enhanced.is_some_and(|(subject, _)| subject == 3) => unavailable(""),
        // A full disk, a full mailbox or too many recipients: where each mail has other ones, those go on.
        (452, Step::Recipient) if !to_varies && said.enhanced.is_none() => unavailable(""),
        // Filters put a mail off for what is in it with 450 and 451: that is no reason to hold the others.
        (452, Step::Data | Step::Mail) | (450 | 451, Step::Data) => unavailable(""),
        _ => retry(),
    }
}
