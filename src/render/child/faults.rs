//! What a filter says of a value that it can't take.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// Marks what is said here: it holds nothing of the event, which what minijinja says may.
#[derive(Debug, thiserror::Error)]
#[error("said by a filter of closehook's own")]
struct Ours;

/// The value is not what the filter wants; `text` is the sentence.
pub(super) fn wrong(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text).with_source(Ours)
}

/// What [`wrong`] was told, where this is of its making.
pub(super) fn own_words(error: &Error) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    error.detail().filter(|_| source.is::<Ours>())
}

/// A value that is undefined is an error of the filter, by its name.
pub(super) fn defined(value: &Value, filter: &str) -> Result<(), Error> {
    if value.is_undefined() {
        return Err(Error::new(
            ErrorKind::UndefinedError,
            format!("{filter} was given an undefined value"),
        ));
    }
    Ok(())
}
