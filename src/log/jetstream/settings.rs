//! How the log is kept, and what of it the configuration says.

use std::time::Duration;

use crate::config::{self, Config, Durability, KEYS_WINDOW, NatsLogin};
use crate::log::Clock;
use crate::net::nats::{Login, Server, Way};
use crate::net::tls::Identity;

/// What else there is beside the streams: buckets that are called as the stream is, and so.
pub const BUCKETS: [&str; 2] = ["state", "nodes"];

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the servers are reached.
    pub way: Way,
    /// The stream's name, and what others begin with.
    pub stream: String,
    /// On how many servers each event is.
    pub replicas: usize,
    /// Bytes that the stream may take up; `None`: what the servers let it.
    pub max_bytes: Option<u64>,
    /// Whether servers are refused that acknowledge what a power cut can take.
    pub durability: Durability,
    /// The servers' monitoring addresses.
    pub monitor: Vec<String>,
    /// The same way for whoever may ask the servers how they are set up.
    pub system: Option<Way>,
    /// Nothing leaves before this.
    pub keys_kept: Duration,
    /// The clock by which events grow old, where the servers' is not behind it.
    pub now: Clock,
    /// The servers' clock; `None`: as they say.
    pub servers_now: Option<Clock>,
}

impl Options {
    /// As a configuration has it that says where the servers are and nothing else.
    pub fn usual(way: Way, monitor: Vec<String>) -> Options {
        Options {
            way,
            stream: "closehook".into(),
            replicas: 3,
            max_bytes: None,
            durability: Durability::Checked,
            monitor,
            system: None,
            keys_kept: KEYS_WINDOW.0,
            now: Clock::default(),
            servers_now: None,
        }
    }

    /// What the configuration says; an error is one sentence. Reads secrets, contacts nobody.
    pub fn from_config(config: &Config) -> Result<Options, String> {
        let log = &config.log;
        let jetstream = log.jetstream.as_ref();
        let jetstream = jetstream.ok_or("log.jetstream is missing: engine = \"jetstream\" needs it")?;
        let kept = log
            .retention
            .0
            .max(config.server.signature_tolerance.0)
            .max(KEYS_WINDOW.0);
        Ok(Options {
            way: way(jetstream, &jetstream.login)?,
            stream: jetstream.stream.clone(),
            replicas: jetstream.replicas,
            max_bytes: log.max_size.map(|size| size.0),
            durability: jetstream.durability,
            monitor: jetstream.monitor.clone(),
            system: match &jetstream.system {
                NatsLogin::Nobody => None,
                login => Some(way(jetstream, login)?),
            },
            keys_kept: kept,
            now: Clock::default(),
            servers_now: None,
        })
    }
}

/// How the servers of the configuration are reached by this user; an error is one sentence. Reads secrets, contacts nobody.
pub fn way(jetstream: &config::JetStream, login: &NatsLogin) -> Result<Way, String> {
    let servers: Result<Vec<Server>, &str> = jetstream.servers.iter().map(|text| Server::parse(text)).collect();
    let way = Way {
        servers: servers.map_err(|fault| format!("log.jetstream.servers: {fault}"))?,
        login: match login {
            NatsLogin::Nobody => Login::Nobody,
            NatsLogin::User(name, password) => Login::User {
                name: name.clone(),
                password: password.resolve()?,
            },
            NatsLogin::Credentials(text) => Login::Credentials(text.resolve()?),
        },
        ca: jetstream.ca.clone(),
        identity: jetstream.identity.as_ref().map(|(cert, key)| Identity {
            cert: cert.clone(),
            key: key.clone(),
        }),
        tls_first: jetstream.tls_first,
        inbox_prefix: "_INBOX".into(),
        name: "closehook".into(),
    };
    match way.fault() {
        Some(fault) => Err(format!("log.jetstream: {fault}")),
        None => Ok(way),
    }
}
