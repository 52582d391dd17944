//! Why there is no connection, or no more: what the library or the server says, and what to do about it.

use async_nats::{ConnectError, ConnectErrorKind};

use crate::net::http::root_cause;
use crate::net::trust;

/// Longest text of the server that is passed on.
const SAID_LEN_MAX: usize = 200;

/// What is said of logins that are refused.
const SEE_LOGIN: &str = "see user and password, token, nkey or credentials";
const NEW_LOGIN: &str = "new credentials are needed";
const CANT_SIGN: &str = "the seed in nkey or credentials can't sign: is it a user's?";

/// Whether a sentence of this module says that a login was refused.
pub fn is_refused_login(why: &str) -> bool {
    [SEE_LOGIN, NEW_LOGIN, CANT_SIGN].iter().any(|part| why.contains(part))
}

/// Why a connection could not be made; the end of a sentence that begins with the server.
pub(super) fn unconnected(error: &ConnectError) -> String {
    if let Some(failure) = trust::failure(error) {
        let advice = match failure {
            rustls::Error::InvalidMessage(_) => Some("the server speaks no TLS there: say nats:// if that is meant"),
            other => trust::advice(other),
        };
        let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
        return format!("{failure}{advice}");
    }
    let cause = root_cause(error);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => refused("Authorization Violation"),
        ConnectErrorKind::Authentication => CANT_SIGN.into(),
        ConnectErrorKind::TimedOut => SILENT.into(),
        ConnectErrorKind::Dns => format!("the name can't be resolved: {}", cut(&cause)),
        _ if is_strange(&cause) => "that is no NATS server: it says something else".into(),
        _ if cause.contains("got nothing") || cause == "broken pipe" => {
            "it closed the connection at once: does it want TLS first (tls_first = true), or is it stopping?".into()
        }
        _ => match cause.strip_prefix("nats: ") {
            Some(said) => refused(said),
            None => cut(&cause),
        },
    }
}

/// What is said of a server that says nothing.
pub(super) const SILENT: &str =
    "it did not answer in time: is it a NATS server, and does it want TLS first (tls_first = true)?";

/// Whether it is the library that does not understand what is said.
fn is_strange(cause: &str) -> bool {
    [
        "invalid server operation",
        "expected INFO, got",
        "expected value",
        "expected ident",
        "missing field",
    ]
    .iter()
    .any(|part| cause.contains(part) && !cause.contains("got nothing"))
}

/// The server refuses this side.
fn refused(said: &str) -> String {
    match advice(said) {
        Some(advice) => format!("the server says \"{}\": {advice}", cut(said)),
        None => format!("the server says \"{}\"", cut(said)),
    }
}

/// Why a connection ended. `said`: what the server said last that was not about a subject.
pub(super) fn ended(said: Option<&str>) -> String {
    match said {
        Some(said) => format!("the server ended the connection. {}", capitalised(&refused(said))),
        None => "the connection to the server was lost".into(),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// What to do about what a server says (nats-server, `server/errors.go`).
fn advice(said: &str) -> Option<&'static str> {
    let said = said.to_ascii_lowercase();
    let known = [
        ("authorization violation", SEE_LOGIN),
        ("authentication timeout", "the login took too long"),
        ("expired", NEW_LOGIN),
        ("revoked", NEW_LOGIN),
        ("maximum connections exceeded", "the server takes no more connections"),
        (
            "maximum account active connections",
            "the account has no connection left",
        ),
        (
            "maximum payload violation",
            "the server takes smaller messages than it said",
        ),
        (
            "maximum control line exceeded",
            "the subject is longer than the server takes",
        ),
        ("secure connection - tls required", "say tls:// in servers"),
        ("stale connection", "this side did not answer the server in time"),
        ("slow consumer", "this side did not read what the server sent"),
    ];
    known
        .iter()
        .find(|(part, _)| said.contains(part))
        .map(|(_, advice)| *advice)
}

fn cut(text: &str) -> String {
    crate::plain::line(text).chars().take(SAID_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_something_else_is_told_from_who_says_nothing() {
        assert!(is_strange("expected INFO, got Ok"));
        assert!(is_strange("expected value at line 1 column 1"));
        assert!(!is_strange("expected INFO, got nothing"));
        assert!(!is_strange("Connection refused (os error 111)"));
    }
}
