//! What a table of the configuration means.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::common::identity;
use super::super::common::secrets::Secrets;
use super::message::subject_fault;
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::net::nats::{Login, Server, Way};
use crate::net::tls::Identity;
use crate::render::{Escape, Template};
use crate::sinks::{Fingerprint, Limits};

/// Messages of a batch: what is pending for a stream is limited there.
const EVENTS_MAX: usize = 10_000;

/// Where the login comes from.
#[derive(Debug, Clone)]
enum LoginFrom {
    Nobody,
    User(String, Secret),
    Token(Secret),
    Nkey(Secret),
    Credentials(Secret),
}

impl LoginFrom {
    /// Reads secrets, contacts nobody.
    fn resolve(&self) -> Result<Login, String> {
        Ok(match self {
            LoginFrom::Nobody => Login::Nobody,
            LoginFrom::User(name, password) => Login::User {
                name: name.clone(),
                password: password.resolve()?,
            },
            LoginFrom::Token(token) => Login::Token(token.resolve()?),
            LoginFrom::Nkey(seed) => Login::Nkey(seed.resolve()?),
            LoginFrom::Credentials(text) => Login::Credentials(text.resolve()?),
        })
    }

    fn fingerprint(&self) -> String {
        match self {
            LoginFrom::Nobody => String::new(),
            LoginFrom::User(name, secret) => format!("user {name:?} {}", secret.fingerprint()),
            LoginFrom::Token(secret) => format!("token {}", secret.fingerprint()),
            LoginFrom::Nkey(secret) => format!("nkey {}", secret.fingerprint()),
            LoginFrom::Credentials(secret) => format!("credentials {}", secret.fingerprint()),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    servers: Vec<Server>,
    pub subject: Template,
    login: LoginFrom,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    tls_first: bool,
    inbox_prefix: String,
    pub batch: Limits,
    pub fingerprint: Fingerprint,
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    pub fn way(&self) -> Result<Way, String> {
        Ok(Way {
            login: self.login.resolve()?,
            ..self.bare_way()
        })
    }

    /// The same without the sink's own login.
    fn bare_way(&self) -> Way {
        Way {
            servers: self.servers.clone(),
            login: Login::Nobody,
            ca: self.ca.clone(),
            identity: self.identity.clone(),
            tls_first: self.tls_first,
            inbox_prefix: self.inbox_prefix.clone(),
            name: "closehook".into(),
        }
    }

    /// What is hidden in what the server says, as far as it can be read now.
    pub fn secrets(&self) -> Secrets {
        let way = self.way().unwrap_or_else(|_| self.bare_way());
        let mut secrets = Secrets::default();
        for secret in way.secrets() {
            secrets.add(&secret);
        }
        secrets
    }
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    read(table).map(|options| Arc::new(options) as SinkOptions)
}

pub(super) fn read(table: &mut Table<'_>) -> Option<Options> {
    let servers = servers(table);
    let has_subject = table.has("subject");
    let subject = table.template("subject", Escape::None);
    if !has_subject {
        table.report_missing("subject");
    }
    let login = login(table, servers.iter().flatten().any(Server::has_login));
    let batch = table.table("batch", |table| Limits {
        events: table.within("events", 1000, 1, EVENTS_MAX),
        bytes: table.within("bytes", Size(4 << 20), Size(1), Size(64 << 20)).0 as usize,
        wait: table.or("wait", Span(Duration::ZERO)).0,
    });
    let ca: Option<PathBuf> = table.optional("ca");
    let (cert, key) = (table.optional("cert"), table.optional("key"));
    let identity = identity::of(table, cert, key);
    let tls_first = table.or("tls_first", false);
    let inbox_prefix = table.or("inbox_prefix", "_INBOX".to_owned());
    if !is_prefix(&inbox_prefix) {
        table.fault(
            "inbox_prefix",
            "must be the beginning of a subject, like \"_INBOX_closehook\", without wildcards and without a dot at its end",
        );
    }
    let (servers, subject) = (servers?, subject?);
    if subject.is_constant()
        && let Some(fault) = subject_fault(subject.source())
    {
        table.fault("subject", format!("can't be a subject: {fault}"));
    }
    let own: Vec<String> = servers.iter().map(Server::fingerprint).collect();
    let mut options = Options {
        servers,
        subject,
        login,
        ca,
        identity,
        tls_first,
        inbox_prefix,
        batch,
        fingerprint: Fingerprint(String::new()),
    };
    // What the files hold now: a reload compares what was read then with what is there at the time.
    let digest = Sha256::digest(format!(
        "{own:?}\n{:?}\n{:?}\n{:?}\n{tls_first}\n{:?}\n{batch:?}\n{}\n{:?}",
        options.subject,
        options.ca,
        options.identity,
        options.inbox_prefix,
        options.login.fingerprint(),
        options.bare_way().files(),
    ));
    options.fingerprint = Fingerprint(hex::encode(digest));
    Some(options)
}

/// One, several with commas between them as NATS's own tools take them, or a list.
fn servers(table: &mut Table<'_>) -> Option<Vec<Server>> {
    const MUST: &str = "must be a server, or a list of servers, like [\"tls://nats-1.example.com:4222\", \"tls://nats-2.example.com:4222\"]";
    if !table.has("servers") {
        table.raw("servers");
        table.report_missing("servers");
        return None;
    }
    let texts: Option<Vec<String>> = match table.raw("servers") {
        Some(Value::String(text)) => Some(text.split(',').map(str::to_owned).collect()),
        Some(Value::Array(list)) => list.into_iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
        table.fault("servers", MUST);
        return None;
    };
    let mut servers = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match Server::parse(text) {
            Ok(server) => servers.push(server),
            Err(fault) => table.fault(&format!("servers[{index}]"), fault),
        }
    }
    (servers.len() == texts.len()).then_some(servers)
}

/// Who this side is. `in_servers`: a login stands in an address.
fn login(table: &mut Table<'_>, in_servers: bool) -> LoginFrom {
    let user: Option<String> = table.optional("user");
    let password = table.secret("password");
    let others = [
        table.secret("token").map(LoginFrom::Token),
        table.secret("nkey").map(LoginFrom::Nkey),
        table.secret("credentials").map(LoginFrom::Credentials),
    ];
    let user = match (user, password) {
        (Some(user), Some(password)) => Some(LoginFrom::User(user, password)),
        (Some(_), None) => {
            table.fault(
                "password",
                "is missing: a user has one (password, password_file or password_env)",
            );
            None
        }
        (None, Some(_)) => {
            table.fault("user", "is missing: whose is the password?");
            None
        }
        (None, None) => None,
    };
    let mut found: Vec<LoginFrom> = user.into_iter().chain(others.into_iter().flatten()).collect();
    if found.len() + usize::from(in_servers) > 1 {
        table.fault(
            "servers",
            "there is more than one login: keep one of user and password, token, nkey, credentials, and what stands in servers",
        );
    }
    found.pop().unwrap_or(LoginFrom::Nobody)
}

fn is_prefix(text: &str) -> bool {
    subject_fault(&format!("{text}.x")).is_none() || text == "_INBOX"
}
