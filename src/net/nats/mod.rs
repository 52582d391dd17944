//! NATS: which servers, who this side is, and connections to them.
//!
//! Only servers that the configuration names are connected to, in its order, beginning with the one whose turn it is: what a cluster
//! says of its other members is not followed. A connection is a [`Session`], and ends for good when it is lost.
//!
//! | file | what it does |
//! |---|---|
//! | `refusal` | an error as JetStream says it |
//! | `server` | a server's address, and the login that may stand in it |
//! | `session` | one connection, on a thread of its own, and what the server says beside answers |
//! | `why` | why there is no connection (any more), and what to do |

mod refusal;
mod server;
mod session;
mod why;

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ConnectOptions;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

pub use self::refusal::Refusal;
pub use self::server::Server;
pub use self::session::{Notice, Session, Unanswered};
pub use self::why::is_refused_login;
use super::tls::{Identity, client_config_with, content};
use super::trust::{self, Name, Trust};

/// How long a connection to one server may take, login and all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who this side is.
#[derive(Debug, Clone, Default)]
pub enum Login {
    /// Nobody: the server asks for no login, or a certificate says it.
    #[default]
    Nobody,
    /// A user with a password.
    User {
        /// The user's name.
        name: String,
        /// Its password.
        password: SecretString,
    },
    /// A token that several may share.
    Token(SecretString),
    /// The seed of a user's nkey, with which what the server asks is signed.
    Nkey(SecretString),
    /// What stands in a `.creds` file: a user's JWT, and the seed of its nkey.
    Credentials(SecretString),
}

impl Login {
    /// What keeps it from being one, as far as it can be seen without a server. One sentence, which holds nothing of it.
    pub fn fault(&self) -> Option<&'static str> {
        match self {
            Login::Nkey(seed) if !is_user_seed(seed.expose_secret()) => {
                Some("nkey is no user's seed: that is 58 characters, SU and then capitals and digits (nk -gen user)")
            }
            Login::Credentials(text) => ConnectOptions::with_credentials(&as_file(text))
                .err()
                .map(|_| "credentials is no .creds file: that has a user's JWT and the seed of its nkey (nsc generate creds)"),
            _ => None,
        }
    }

    /// Whether something of it can be read by whoever can read the connection.
    pub fn is_readable(&self) -> bool {
        matches!(self, Login::User { .. } | Login::Token(_))
    }

    /// What is secret of it, word by word.
    pub fn secrets(&self) -> Vec<String> {
        let words = |text: &SecretString| text.expose_secret().split_whitespace().map(str::to_owned).collect();
        match self {
            Login::Nobody => Vec::new(),
            Login::User { password, .. } => vec![password.expose_secret().to_owned()],
            Login::Token(token) => vec![token.expose_secret().to_owned()],
            Login::Nkey(seed) => words(seed),
            // Beside what is secret there are sentences in it.
            Login::Credentials(text) => {
                let mut words: Vec<String> = words(text);
                words.retain(|word| word.len() >= SEED_LEN);
                words
            }
        }
    }

    fn put(&self, options: ConnectOptions) -> Result<ConnectOptions, String> {
        Ok(match self {
            Login::Nobody => options,
            Login::User { name, password } => {
                options.user_and_password(name.clone(), password.expose_secret().to_owned())
            }
            Login::Token(token) => options.token(token.expose_secret().to_owned()),
            Login::Nkey(seed) => options.nkey(seed.expose_secret().trim().to_owned()),
            Login::Credentials(text) => options
                .credentials(&as_file(text))
                .map_err(|_| self.fault().unwrap_or_default())?,
        })
    }
}

/// With a line end behind its last line, which the library wants there.
fn as_file(text: &SecretString) -> String {
    format!("{}\n", text.expose_secret().trim())
}

/// Characters of a seed.
const SEED_LEN: usize = 58;

fn is_user_seed(text: &str) -> bool {
    let text = text.trim();
    let is_base32 = |byte: u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte);
    text.len() == SEED_LEN && text.starts_with("SU") && text.bytes().all(is_base32)
}

/// How the servers are reached.
#[derive(Debug, Clone)]
pub struct Way {
    /// The servers, at least one.
    pub servers: Vec<Server>,
    /// Who this side is, at servers in whose address no login stands.
    pub login: Login,
    /// PEM file of authorities, or of a server's own certificate, that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// This side's certificate.
    pub identity: Option<Identity>,
    /// TLS comes before anything the server says.
    pub tls_first: bool,
    /// What subjects for answers begin with.
    pub inbox_prefix: String,
    /// What the server calls this side where it shows connections.
    pub name: String,
}

impl Way {
    /// Without a login and without files, by the usual subjects.
    pub fn plain(servers: Vec<Server>, name: &str) -> Way {
        Way {
            servers,
            login: Login::Nobody,
            ca: None,
            identity: None,
            tls_first: false,
            inbox_prefix: "_INBOX".into(),
            name: name.to_owned(),
        }
    }

    /// What on this machine keeps it from ever working; one sentence. Reads files, contacts nobody.
    pub fn fault(&self) -> Option<String> {
        let mut logins = self.servers.iter().map(|server| &server.login).chain([&self.login]);
        let fault = logins.find_map(Login::fault);
        fault.map(str::to_owned).or_else(|| self.tls().err())
    }

    /// What is in the files that it names, as far as it can be seen now: it changes with them.
    pub fn files(&self) -> Vec<Option<Vec<u8>>> {
        let identity = self
            .identity
            .iter()
            .flat_map(|identity| [&identity.cert, &identity.key]);
        self.ca.iter().chain(identity).map(|path| content(path)).collect()
    }

    /// What is secret of its logins.
    pub fn secrets(&self) -> Vec<String> {
        let logins = self.servers.iter().map(|server| &server.login).chain([&self.login]);
        logins.flat_map(Login::secrets).collect()
    }

    /// Whether whoever can read the connection could read a password or token: TLS is not demanded on it.
    pub fn is_readable(&self) -> bool {
        self.servers.iter().any(|server| {
            let is_readable = self.login_at(server).is_readable();
            is_readable && !server.demands_tls() && !server.is_here() && !self.demands_tls()
        })
    }

    /// Connects to the first server that takes it, beginning with the one of this number and going round. An error is one sentence
    /// that names each, and has come by then.
    pub async fn connect(&self, first: usize, until: Instant) -> Result<Session, String> {
        let mut said = Vec::new();
        for turn in 0..self.servers.len() {
            let number = (first + turn) % self.servers.len();
            let server = &self.servers[number];
            let left = until.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(self.servers.len() - turn).unwrap_or(1);
            let options = self.options(server)?;
            match Session::connect(server, number, options, share.min(CONNECT_TIMEOUT)).await {
                Ok(session) => return Ok(session),
                Err(why) => said.push(format!("{}: {why}", server.place())),
            }
        }
        Err(said.join("; "))
    }

    fn login_at<'w>(&'w self, server: &'w Server) -> &'w Login {
        match &server.login {
            Login::Nobody => &self.login,
            own => own,
        }
    }

    /// Who names an authority or a certificate of this side means TLS.
    fn demands_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some() || self.tls_first
    }

    fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let trust = Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?;
        client_config_with(trust, self.identity.as_ref())
    }

    fn options(&self, server: &Server) -> Result<ConnectOptions, String> {
        let options = ConnectOptions::new()
            .name(&self.name)
            .custom_inbox_prefix(&self.inbox_prefix)
            .require_tls(self.demands_tls())
            .tls_client_config(self.tls()?)
            .ignore_discovered_servers();
        let options = if self.tls_first { options.tls_first() } else { options };
        self.login_at(server).put(options)
    }
}

#[cfg(test)]
mod tests;
