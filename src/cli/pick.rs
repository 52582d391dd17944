//! Arguments that several commands share: which events are meant, files and text from them, secrets.

use std::fs::File;
use std::io;
use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use secrecy::SecretString;

use super::Failure;
use crate::config::time;
use crate::{control, files};

/// Which events are meant.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Pick {
    /// Received at or after: RFC 3339, a date, or a span back from now (90m, 36h, 7d)
    #[arg(long, value_name = "TIME", value_parser = time::argument)]
    pub since: Option<Timestamp>,
    /// Received before
    #[arg(long, value_name = "TIME", value_parser = time::argument)]
    pub until: Option<Timestamp>,
    /// Event id; may be repeated
    #[arg(long = "id", value_name = "EVENT_ID")]
    pub ids: Vec<String>,
    /// Event pattern like lead.updated or activity.*; may be repeated
    #[arg(long = "type", value_name = "TYPE.ACTION", value_parser = super::kinds::pattern)]
    pub types: Vec<String>,
    /// Events of this lead
    #[arg(long, value_name = "LEAD_ID")]
    pub lead: Option<String>,
    /// Events this filter matches: JSON text, or @FILE
    #[arg(long, value_name = "FILTER")]
    pub filter: Option<String>,
}

impl Pick {
    /// As it travels, checked.
    pub fn query(&self) -> Result<control::Pick, Failure> {
        let pick = control::Pick {
            ids: self.ids.clone(),
            types: self.types.clone(),
            lead: self.lead.clone(),
            filter: self.filter.as_deref().map(text_or_file).transpose()?,
            since: self.since,
            until: self.until,
            quarantined: None,
            partial: None,
        };
        pick.compile().map_err(Failure::Usage)?;
        Ok(pick)
    }

    /// Whether nothing is restricted.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.types.is_empty()
            && self.lead.is_none()
            && self.filter.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }
}

/// What is said of a file or stream that can't be read.
pub(super) fn cant_read(name: &str, error: &io::Error) -> Failure {
    Failure::Usage(format!("{name} can't be read: {error}"))
}

/// Opens what can be read as a file: a directory opens as well, and then can't be.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    let cant = |error: io::Error| cant_read(&path.display().to_string(), &error);
    let file = File::open(path).map_err(cant)?;
    if file.metadata().map_err(cant)?.is_dir() {
        return Err(cant(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// The text itself, or the content of `@FILE`.
pub(super) fn text_or_file(text: &str) -> Result<String, Failure> {
    match text.strip_prefix('@') {
        None => Ok(text.to_owned()),
        Some(path) => files::read_text_argument(path.as_ref()).map_err(|error| cant_read(path, &error)),
    }
}

/// Reads a secret from `@FILE`, or from standard input for `-`; never from the argument itself. An error is one sentence.
pub(super) fn secret_argument(flag: &str, from: &str) -> Result<SecretString, String> {
    let text = match from.strip_prefix('@') {
        Some(path) => {
            files::read_text_argument(path.as_ref()).map_err(|error| format!("{path} can't be read: {error}"))?
        }
        None if from == "-" => std::io::read_to_string(std::io::stdin()).map_err(|error| error.to_string())?,
        None => {
            return Err(format!(
                "{flag} takes @FILE or -: a key on the command line can be seen by every user"
            ));
        }
    };
    match text.trim() {
        "" => Err(format!("{flag}: there is nothing in it")),
        secret => Ok(SecretString::from(secret)),
    }
}
