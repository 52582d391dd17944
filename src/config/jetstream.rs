//! Reading `log.engine` and `[log.jetstream]`.

use std::path::PathBuf;

use serde_json::Value;

use super::table::{FromValue, Table};
use super::{Durability, Engine, JetStream, NatsLogin};

/// Longest name of a stream: others are made of it.
const NAME_LEN_MAX: usize = 64;

/// On so many servers a stream can be.
const REPLICAS: [usize; 3] = [1, 3, 5];

/// What keeps the events, and how it is reached.
pub(super) fn read_engine(table: &mut Table<'_>) -> (Engine, Option<JetStream>) {
    let engine = table.or("engine", Engine::Local);
    let is_there = table.has("jetstream");
    if engine == Engine::JetStream && cfg!(not(feature = "engine-jetstream")) {
        table.fault("engine", "this closehook is built without JetStream (engine-jetstream)");
    }
    if engine == Engine::JetStream && !is_there {
        table.fault(
            "jetstream",
            "is missing: engine = \"jetstream\" needs servers, for example [log.jetstream] servers = [\"tls://nats-1.example.com:4222\"]",
        );
    }
    let jetstream = table.table("jetstream", |table| is_there.then(|| read_jetstream(table)));
    (engine, jetstream)
}

fn read_jetstream(table: &mut Table<'_>) -> JetStream {
    let servers = read_servers(table);
    let stream = table.or("stream", "closehook".to_owned());
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if stream.is_empty() || stream.len() > NAME_LEN_MAX || !stream.chars().all(is_name_char) {
        table.fault(
            "stream",
            format!("must be a name of letters, digits, - and _, at most {NAME_LEN_MAX} long"),
        );
    }
    let replicas = table.or("replicas", 3);
    if !REPLICAS.contains(&replicas) {
        table.fault("replicas", "must be 3, or 5, or 1 for trying it out");
    }
    let login = read_login(table);
    let system = table.table("system", read_login);
    let secret = table.secret("secret");
    if secret.is_none() && !["secret", "secret_file", "secret_env"].iter().any(|key| table.has(key)) {
        table.fault(
            "secret",
            "is missing: set secret_file (or secret_env, or secret); keys and tokens are encrypted with it in the bucket that all nodes share",
        );
    }
    JetStream {
        servers,
        login,
        ca: table.optional("ca"),
        identity: read_identity(table),
        tls_first: table.or("tls_first", false),
        stream,
        replicas,
        durability: table.or("durability", Durability::Checked),
        monitor: read_monitor(table),
        system,
        secret,
    }
}

fn read_servers(table: &mut Table<'_>) -> Vec<String> {
    const MUST: &str = "must be a server like \"nats://nats.example.com:4222\", or \"tls://\" where TLS is demanded";
    let servers = texts(table, "servers");
    if servers.is_empty() {
        table.fault(
            "servers",
            "is missing: set it, for example servers = [\"tls://nats-1.example.com:4222\", \"tls://nats-2.example.com:4222\"]",
        );
    }
    for (index, text) in servers.iter().enumerate() {
        let url = if text.contains("://") {
            text.clone()
        } else {
            format!("nats://{text}")
        };
        let parsed = reqwest::Url::parse(&url).ok();
        let is_server = parsed.is_some_and(|url| {
            let is_plain = url.query().is_none() && url.fragment().is_none() && matches!(url.path(), "" | "/");
            is_plain && matches!(url.scheme(), "nats" | "tls") && url.host_str().is_some_and(|host| !host.is_empty())
        });
        if !is_server {
            table.fault(&format!("servers[{index}]"), MUST);
        }
    }
    servers
}

fn read_monitor(table: &mut Table<'_>) -> Vec<String> {
    let monitor = texts(table, "monitor");
    for (index, text) in monitor.iter().enumerate() {
        let parsed = reqwest::Url::parse(text).ok();
        if !parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            table.fault(
                &format!("monitor[{index}]"),
                "must be a server's monitoring address like \"http://nats-1.example.com:8222\"",
            );
        }
    }
    monitor
}

/// A list of strings or, as the environment has it, one string with commas.
fn texts(table: &mut Table<'_>, key: &str) -> Vec<String> {
    let list: Result<Vec<String>, String> = match table.raw(key) {
        None => return Vec::new(),
        Some(Value::String(text)) => Ok(text.split(',').map(|one| one.trim().to_owned()).collect()),
        Some(other) => Vec::from_value(other),
    };
    list.unwrap_or_else(|message| {
        table.fault(key, message);
        Vec::new()
    })
}

fn read_login(table: &mut Table<'_>) -> NatsLogin {
    let user: Option<String> = table.optional("user");
    let password = table.secret("password");
    let credentials = table.secret("credentials");
    if credentials.is_some() && (user.is_some() || password.is_some()) {
        table.fault("credentials", "stands beside user and password: keep one of them");
    }
    match (user, password, credentials) {
        (_, _, Some(credentials)) => NatsLogin::Credentials(credentials),
        (Some(user), Some(password), None) => NatsLogin::User(user, password),
        (Some(_), None, None) => {
            table.fault(
                "password",
                "is missing: a user has one (password, password_file or password_env)",
            );
            NatsLogin::Nobody
        }
        (None, Some(_), None) => {
            table.fault("user", "is missing: whose is the password?");
            NatsLogin::Nobody
        }
        (None, None, None) => NatsLogin::Nobody,
    }
}

fn read_identity(table: &mut Table<'_>) -> Option<(PathBuf, PathBuf)> {
    match (table.optional("cert"), table.optional("key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            table.fault("key", "is missing: a certificate has one");
            None
        }
        (None, Some(_)) => {
            table.fault("cert", "is missing: which certificate is the key of?");
            None
        }
    }
}

impl FromValue for Engine {
    fn from_value(value: Value) -> Result<Engine, String> {
        match String::from_value(value)?.as_str() {
            "local" => Ok(Engine::Local),
            "jetstream" => Ok(Engine::JetStream),
            other => Err(format!("\"{other}\" is not \"local\" or \"jetstream\"")),
        }
    }
}

impl FromValue for Durability {
    fn from_value(value: Value) -> Result<Durability, String> {
        match String::from_value(value)?.as_str() {
            "checked" => Ok(Durability::Checked),
            "unchecked" => Ok(Durability::Unchecked),
            other => Err(format!("\"{other}\" is not \"checked\" or \"unchecked\"")),
        }
    }
}
