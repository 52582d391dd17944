//! What can go wrong at Close's end, worded for the person who has to do something about it.

use std::time::Duration;

use crate::log::ReadError;

/// Why Close's API did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are no credentials in the configuration.
    #[error("Close's API needs a key: set api_key_file in [close] (Close: Settings, Developer, API keys)")]
    NotConfigured,
    /// A credential is configured and can't be read.
    #[error("close: {0}")]
    Credential(String),
    /// 401 with a key that never worked.
    #[error("Close does not know the API key (401): check [close] api_key, and that it is this organization's")]
    WrongKey,
    /// 401 with a key that worked before.
    #[error(
        "Close no longer accepts the credentials (401): they were revoked; make new ones in Close, set them in [close], and run `closehook reload`"
    )]
    Revoked,
    /// The token endpoint refused the refresh token.
    #[error("Close refuses the OAuth refresh token ({0}): authorize the app again and set [close.oauth] refresh_token")]
    RefreshRefused(String),
    /// 403.
    #[error("the credentials may not do this at Close (403{0}): use the API key of an administrator")]
    Forbidden(String),
    /// 402.
    #[error(
        "Close's plan of this organization does not include this (402{0}): ask an administrator to change the plan"
    )]
    PlanLimit(String),
    /// 404.
    #[error("Close knows no {0}: `closehook subscription list` shows what there is")]
    NotFound(String),
    /// 400 and other answers that say what is wrong with a request.
    #[error("Close refuses the request ({status}): {faults}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// Close's `errors` and `field-errors`, in one line.
        faults: String,
    },
    /// 400 to a request with a cursor.
    #[error(
        "Close does not accept the place in its event log any more (its cursor has expired): try again, it begins anew"
    )]
    CursorExpired,
    /// 429 for so long that it was given up.
    #[error("Close's rate limit stays exhausted: something else uses the same key; try again in {}s", .0.as_secs().max(1))]
    RateLimited(Duration),
    /// 5xx.
    #[error("Close has a problem ({0}): try again later")]
    Server(u16),
    /// No connection.
    #[error("Close's API at {host} can't be reached: {cause}")]
    Unreachable {
        /// Host of `close.base_url`.
        host: String,
        /// What the system said.
        cause: String,
    },
    /// The connection broke before or in the middle of an answer.
    #[error("Close did not answer: {0}")]
    NoAnswer(String),
    /// No answer in time.
    #[error("Close did not answer within {} s: try again later, or see what is between here and [close] base_url", .0.as_secs())]
    TimedOut(Duration),
    /// Not JSON but a page of HTML or text.
    #[error(
        "not Close but something in front of it answered ({status}, \"{start}\"): check [close] base_url and any proxy on the way{}", or_key(*.status)
    )]
    NotClose {
        /// The HTTP status.
        status: u16,
        /// How the answer begins.
        start: String,
    },
    /// Cut off, or without what has to be in it.
    #[error(
        "Close's answer can't be read ({0}): try again; if it stays, Close has changed and closehook needs an update"
    )]
    Garbled(String),
    /// It is not known whether a POST was carried out.
    #[error(
        "it is not clear whether Close made the subscription ({0}): run `closehook subscription apply` again, it cleans up"
    )]
    Unclear(String),
    /// Close has no two active subscriptions with the same URL and events; those in the way, by their ids.
    #[error(
        "Close has an active subscription with the same URL and events already: {}; `closehook subscription list` shows it",
        .0.join(", ")
    )]
    Duplicate(Vec<String>),
    /// The credentials are those of another organization than everything in the data directory.
    #[error(
        "the credentials are for another organization of Close's, {found}; this data directory belongs to {ours}. Nothing was fetched \
         or changed. Put the right key into [close]; for another organization use a data directory of its own ([log] dir, or a unit \
         closehook@NAME). If this one is to go over to it with all it holds, stop closehook and remove {file}"
    )]
    OtherOrganization {
        /// As Close names it.
        found: String,
        /// As it was remembered.
        ours: String,
        /// Where it is remembered.
        file: String,
    },
    /// Something in the configuration that is needed here.
    #[error("{0}")]
    Missing(String),
    /// Something on this machine: the data directory, the log.
    #[error("{0}")]
    Local(String),
    /// A file on this machine that a newer closehook has written.
    #[error("{0}")]
    Newer(String),
    /// The daemon stops, or a person said so.
    #[error("interrupted; what was done so far stays, and it goes on from there")]
    Interrupted,
}

/// A page that says 401 may be about the credentials all the same.
fn or_key(status: u16) -> &'static str {
    if status == 401 {
        "; if there is none, Close does not accept the credentials in [close]: check them too"
    } else {
        ""
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Error {
        Error::Local(error.to_string())
    }
}

impl Error {
    /// Whether the same request may well succeed a little later.
    pub(in crate::close) fn is_transient(&self) -> bool {
        matches!(
            self,
            Error::Server(_)
                | Error::Unreachable { .. }
                | Error::NoAnswer(_)
                | Error::TimedOut(_)
                | Error::Garbled(_)
                // 408: the server did not get the request in time. 429: whoever it is has had enough for the moment, and knows nothing of for how long
                // Close has.
                | Error::NotClose { status: 408 | 429 | 500.., .. }
                | Error::Rejected { status: 408, .. }
        )
    }

    /// Whether it is about one subscription only, so that others may well do better.
    pub(in crate::close) fn is_particular(&self) -> bool {
        matches!(
            self,
            Error::Forbidden(_)
                | Error::PlanLimit(_)
                | Error::NotFound(_)
                | Error::Duplicate(_)
                | Error::Rejected {
                    status: 400 | 409 | 422,
                    ..
                }
        )
    }

    /// Whether Close may have carried the request out although this is the answer.
    pub(in crate::close) fn is_unclear(&self) -> bool {
        // A page in place of the answer says nothing of what Close did behind it.
        let is_page = matches!(self, Error::NotClose { status: 200..300, .. });
        let is_not_done = matches!(self, Error::Unreachable { .. } | Error::NotClose { status: 429, .. });
        is_page || (self.is_transient() && !is_not_done)
    }

    /// What was answered to a request that is made again, or what came in place of an answer, without what to do about it: a sentence
    /// without its end.
    pub(in crate::close) fn answered(&self) -> String {
        match self {
            Error::RateLimited(_) => "Close has answered 429: its rate limit is used up".to_owned(),
            Error::Server(status) => format!("Close has answered {status}: it has a problem"),
            Error::Rejected { status, faults } => format!("Close has answered {status}: {faults}"),
            Error::NotClose { status, start } => {
                format!("not Close but something in front of it has answered {status} (\"{start}\")")
            }
            Error::Garbled(why) => format!("Close has answered what can't be read ({why})"),
            Error::TimedOut(after) => format!("Close did not answer within {} s", after.as_secs()),
            error => error.to_string(),
        }
    }

    /// Whether it is the same trouble, as far as a log line is concerned.
    pub(in crate::close) fn is_like(&self, other: &Error) -> bool {
        self == other || (self.label() == other.label() && self.label() != "local")
    }

    /// A stable metric label.
    pub(in crate::close) fn label(&self) -> &'static str {
        match self {
            Error::WrongKey | Error::Revoked | Error::RefreshRefused(_) => "unauthorized",
            Error::OtherOrganization { .. } => "other_organization",
            Error::Forbidden(_) => "forbidden",
            Error::PlanLimit(_) => "plan_limit",
            Error::NotFound(_) => "not_found",
            Error::Rejected { .. } | Error::Duplicate(_) | Error::CursorExpired => "rejected",
            Error::RateLimited(_) => "rate_limited",
            Error::Server(_) => "server",
            Error::Unreachable { .. } => "unreachable",
            Error::NoAnswer(_) | Error::TimedOut(_) | Error::Unclear(_) => "no_answer",
            Error::NotClose { .. } | Error::Garbled(_) => "unreadable",
            Error::NotConfigured
            | Error::Credential(_)
            | Error::Missing(_)
            | Error::Local(_)
            | Error::Newer(_)
            | Error::Interrupted => "local",
        }
    }
}

/// What Close's words about a refused request come to.
pub(super) fn rejected(status: u16, faults: String) -> Error {
    let duplicates = if faults.contains("Duplicate active subscription") {
        subscription_ids(&faults)
    } else {
        Vec::new()
    };
    if !duplicates.is_empty() {
        return Error::Duplicate(duplicates);
    }
    let faults = Some(faults).filter(|faults| !faults.is_empty());
    Error::Rejected {
        status,
        faults: faults.unwrap_or_else(|| "it does not say why".into()),
    }
}

/// Every `whsub_...` in a sentence of Close's.
fn subscription_ids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.len() > 6 && word.starts_with("whsub_"))
        .map(ToOwned::to_owned)
        .collect()
}
