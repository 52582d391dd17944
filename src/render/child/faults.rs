//! What a filter says of a value that it can't take.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// The value is not what the filter wants; `text` is the sentence.
pub(super) fn wrong(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
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
