//! One connection to the server, and what its errors mean.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_postgres::config::SslMode as Encryption;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::net::trust;
use crate::sinks::{Reason, Unavailable};
use crate::sync::lock;
use crate::task::{self, Task};

/// Longest text of the server that is passed on: what it refused may be quoted in it.
const TEXT_LEN_MAX: usize = 300;

/// Why something did not work.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The rows that were just written are at fault, or one of them.
    Rows(Reason),
    /// One of the rows that were just written is there already, or another one like it.
    AlreadyThere(String),
    /// Everything else.
    Sink(Unavailable),
}

impl From<Unavailable> for Trouble {
    fn from(unavailable: Unavailable) -> Trouble {
        Trouble::Sink(unavailable)
    }
}

/// An open connection. When it is dropped it is cut, whatever is on its way: a transaction that is open there is rolled back.
pub(super) struct Session {
    client: Client,
    driver: Task<()>,
    /// What ended the connection, once it has ended by itself.
    end: Arc<Mutex<Option<String>>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects in the first of these ways that the server takes.
    pub(super) async fn connect(
        config: &Config,
        tls: &MakeRustlsConnect,
        ways: &[Encryption],
    ) -> Result<Session, Unavailable> {
        let mut first = None;
        for way in ways {
            let mut config = config.clone();
            config.ssl_mode(*way);
            match config.connect(tls.clone()).await {
                Ok((client, connection)) => {
                    let end = Arc::new(Mutex::new(None));
                    let keep = end.clone();
                    let driver = task::begin(async move {
                        if let Err(error) = connection.await {
                            *lock(&keep) = Some(text(&error));
                        }
                    });
                    return Ok(Session { client, driver, end });
                }
                // Another way can only help where the server refused this one.
                Err(error) if is_about_the_way(&error) => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(unreachable(&error)),
            }
        }
        Err(first.map_or_else(
            || Unavailable::new("there is no way to connect"),
            |error| unreachable(&error),
        ))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What an error of a statement means.
    pub(super) fn trouble(&self, error: &Error) -> Trouble {
        let Some(db) = error.as_db_error() else {
            let said = lock(&self.end).take().unwrap_or_else(|| text(error));
            return Trouble::Sink(Unavailable::new(format!(
                "the connection to the server was lost: {said}"
            )));
        };
        if *db.code() == SqlState::UNIQUE_VIOLATION {
            return Trouble::AlreadyThere(cut(db.message()));
        }
        if is_about_rows(db.code()) {
            return Trouble::Rows(refusal(db));
        }
        Trouble::Sink(Unavailable::new(match advice(db.code()) {
            Some(advice) => format!("{advice} ({}, {})", cut(db.message()), db.code().code()),
            None => format!("the server says: {} ({})", cut(db.message()), db.code().code()),
        }))
    }

    /// The same where no rows were written.
    pub(super) fn unavailable(&self, error: &Error) -> Unavailable {
        match self.trouble(error) {
            Trouble::Rows(reason) => {
                let said = reason.answer.unwrap_or(reason.text);
                Unavailable::new(format!("the server says: {said}"))
            }
            Trouble::AlreadyThere(said) => Unavailable::new(format!("the server says: {said}")),
            Trouble::Sink(unavailable) => unavailable,
        }
    }
}

/// Whether a connection that is encrypted differently might be taken.
fn is_about_the_way(error: &Error) -> bool {
    // Lines there may ask for encryption, or forbid it. A role that does not exist has the same code.
    let is_refused = error.as_db_error().is_some_and(|db| {
        *db.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && db.message().contains("pg_hba.conf")
    });
    is_refused || trust::failure(error).is_some()
}

/// What to do about a connection that can't be made.
fn unreachable(error: &Error) -> Unavailable {
    if let Some(db) = error.as_db_error() {
        let said = cut(db.message());
        let code = db.code().code();
        return Unavailable::new(match code {
            "28P01" => format!("the server refuses the password: set password or the one in url ({said}, {code})"),
            _ if code.starts_with("28") => {
                format!("the server lets this user not in: see its pg_hba.conf ({said}, {code})")
            }
            "3D000" => format!("there is no such database ({said}, {code})"),
            _ => match advice(db.code()) {
                Some(advice) => format!("{advice} ({said}, {code})"),
                None => format!("the server refuses the connection: {said} ({code})"),
            },
        });
    }
    let said = text(error);
    let advice = trust::failure(error).and_then(tls_advice).or_else(|| {
        let known = [
            (
                "does not support TLS",
                "turn ssl on there, or say sslmode=disable or prefer",
            ),
            ("password missing", "set password, password_file or password_env"),
        ];
        known
            .iter()
            .find(|(part, _)| said.contains(part))
            .map(|(_, advice)| *advice)
    });
    let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
    Unavailable::new(format!("the server can't be reached: {said}{advice}"))
}

fn tls_advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    match error {
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            Some("sslmode=verify-full needs the host's name as it stands in the certificate")
        }
        other => trust::advice(other),
    }
}

/// Why rows are refused. What does not fit a type is quoted by the server, and what a trigger raises may be anything of the event: that
/// is no text for logs.
fn refusal(db: &DbError) -> Reason {
    let said = cut(db.message());
    let code = db.code().code();
    let what = match code.get(..2) {
        Some("22") => "a value does not fit its column",
        Some("P0") => "a trigger or function there refuses it",
        // These name tables, columns and limits.
        _ => return said.into(),
    };
    Reason {
        text: format!("{what} ({code})"),
        answer: Some(said),
    }
}

/// Whether an error is about what was written and would come again with it, and only with it: values that no type or constraint
/// takes, triggers that refuse, texts too long for an index, values nested too deep.
fn is_about_rows(code: &SqlState) -> bool {
    matches!(code.code().get(..2), Some("22" | "23" | "44" | "54" | "P0")) && *code != SqlState::TOO_MANY_COLUMNS
}

/// What to do about an error of the server.
fn advice(code: &SqlState) -> Option<&'static str> {
    Some(match code.code() {
        "25006" => {
            "the server takes no changes: is it a standby? Name the primary, or all of them with target_session_attrs=read-write"
        }
        "42501" => "the user lacks a right: GRANT it (config/closehook.toml says which)",
        "42P01" => "there is no such table: make it, or set create = true",
        "42703" | "42804" => "the table has other columns than are written",
        "428C9" => "the server makes the values of a column itself: take it out of columns",
        "42704" => "there is no such type: see what columns says",
        "42P10" => {
            "the table lacks a constraint: UNIQUE (id, date_updated), or with mode = \"latest\" UNIQUE (object_id)"
        }
        "3F000" => "there is no such schema: create it",
        "55P03" => "another session has locked the table",
        "57014" => "a statement took too long, perhaps because of a lock or a slow disk",
        "40001" | "40P01" => "another transaction was in the way",
        "53100" => "the server's disk is full",
        "53200" => "the server is out of memory",
        "53300" => "the server has no connection left",
        "57P01" | "57P02" | "57P03" => "the server is starting or stopping",
        _ => return None,
    })
}

fn cut(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT_LEN_MAX)
        .collect()
}

/// An error with its causes, each once.
fn text(error: &Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let said = cause.to_string();
        if !parts.iter().any(|part| part.contains(&said)) {
            parts.push(said);
        }
        source = cause.source();
    }
    cut(&parts.join(": "))
}

/// How long things may take there, all below what the engine waits: whoever gives up first says best why.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A whole call.
    pub(super) call: Duration,
    /// Finding out which rows of a batch are bad.
    pub(super) sifting: Duration,
    /// One statement.
    pub(super) statement: Duration,
    /// Waiting for somebody else's lock.
    pub(super) lock: Duration,
    /// The server ends a transaction of which it hears nothing for so long.
    pub(super) idle: Duration,
}

impl Patience {
    pub(super) fn within(timeout: Duration) -> Patience {
        Patience {
            call: timeout.mul_f64(0.9),
            sifting: timeout.mul_f64(0.5),
            statement: timeout.mul_f64(0.6),
            lock: timeout.mul_f64(0.4),
            idle: timeout,
        }
    }

    /// Begins a transaction with these limits. A date without an offset is UTC's in it, as Close means it. Constraints that could wait
    /// until the commit do not: there nobody could say which row is at fault.
    pub(super) fn begin(&self) -> String {
        // Zero would be no limit at all.
        let millis = |duration: Duration| duration.as_millis().clamp(1, i32::MAX as u128);
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL TimeZone = 'UTC'; SET CONSTRAINTS ALL IMMEDIATE",
            millis(self.statement),
            millis(self.lock),
            millis(self.idle),
        )
    }
}
