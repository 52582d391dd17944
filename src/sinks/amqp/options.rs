//! What a table of the configuration means.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::super::common::identity;
use super::super::common::secrets::Secrets;
use super::answer::Place;
use super::session::{Login, Server};
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::net::percent::decoded;
use crate::net::tls::{self, Identity};
use crate::net::trust::{self, Name, Trust};
use crate::render::{Escape, Template};
use crate::sinks::{Fingerprint, Limits};

/// AMQP's short texts.
const SHORT_LEN_MAX: usize = 255;

const NO_URL: &str = "must be a URL like \"amqps://rabbit.example.com/crm\"";

#[derive(Debug)]
pub(super) struct Options {
    url: Target,
    username: Option<String>,
    password: Option<Secret>,
    pub(super) exchange: String,
    pub(super) routing_key: Template,
    pub(super) batch: Limits,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    pub(super) fingerprint: Fingerprint,
}

/// What a URL says.
#[derive(Debug)]
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    vhost: String,
    user: Option<String>,
    password: Option<SecretString>,
}

impl Target {
    /// Reads `amqps://USER:PASSWORD@HOST:PORT/VHOST`. An error holds nothing of the text.
    fn parse(text: &str) -> Result<Target, String> {
        let url = Url::parse(text).map_err(|_| NO_URL)?;
        let (is_tls, port) = match url.scheme() {
            "amqp" => (false, 5672),
            "amqps" => (true, 5671),
            _ => return Err(NO_URL.into()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(NO_URL)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has something behind the vhost: leave out all from ? or # on".into());
        }
        let path = url.path().strip_prefix('/').unwrap_or_default();
        if path.contains('/') {
            return Err("has a / in the vhost's name: write it as %2F".into());
        }
        let vhost = match decoded(path) {
            path if path.is_empty() => "/".to_owned(),
            path => path,
        };
        if vhost.len() > SHORT_LEN_MAX {
            return Err(format!(
                "has a vhost with a name that is longer than {SHORT_LEN_MAX} bytes"
            ));
        }
        Ok(Target {
            is_tls,
            host: decoded(host).trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(port),
            vhost,
            user: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: url.password().map(|password| SecretString::from(decoded(password))),
        })
    }
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let url: Option<String> = table.needed("url");
    let username: Option<String> = table.optional("username");
    let password = table.secret("password");
    let exchange = table.or("exchange", String::new());
    let has_routing_key = table.has("routing_key");
    let routing_key = table.template("routing_key", Escape::None);
    if !has_routing_key {
        table.report_missing("routing_key");
    }
    let batch = table.table("batch", |table| Limits {
        events: table.within("events", 500, 1, 5000),
        bytes: table.within("bytes", Size(4 << 20), Size(1), Size(64 << 20)).0 as usize,
        wait: table.or("wait", Span(Duration::ZERO)).0,
    });
    let paths: [Option<PathBuf>; 3] = ["ca", "cert", "key"].map(|key| table.optional(key));
    let files: Vec<_> = paths.iter().flatten().map(|path| tls::content(path)).collect();
    let digest = <Sha256 as sha2::Digest>::digest(format!(
        "{url:?}\n{username:?}\n{:?}\n{exchange:?}\n{routing_key:?}\n{batch:?}\n{paths:?}\n{files:?}",
        password.as_ref().map(Secret::fingerprint),
    ));
    let [ca, cert, key] = paths;
    let identity = identity::of(table, cert, key);
    if exchange.len() > SHORT_LEN_MAX {
        table.fault("exchange", format!("is longer than {SHORT_LEN_MAX} bytes"));
    }
    if let Some(template) = routing_key.as_ref().filter(|template| template.is_constant()) {
        if template.source().len() > SHORT_LEN_MAX {
            table.fault("routing_key", format!("is longer than {SHORT_LEN_MAX} bytes"));
        } else if template.source().is_empty() && exchange.is_empty() {
            table.fault(
                "routing_key",
                "can't be empty for the default exchange: it is a queue's name",
            );
        }
    }
    let url = match Target::parse(&url?) {
        Ok(url) => url,
        Err(fault) => {
            table.fault("url", fault);
            return None;
        }
    };
    report_contradictions(table, &url, username.as_ref(), password.as_ref());
    if !url.is_tls && (ca.is_some() || identity.is_some()) {
        let key = if ca.is_some() { "ca" } else { "cert" };
        table.fault(key, "is for TLS, and url is amqp://: use amqps://, or leave it out");
    }
    Some(Arc::new(Options {
        url,
        username,
        password,
        exchange,
        routing_key: routing_key?,
        batch,
        ca,
        identity,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

/// A user and a password are given once, and together.
fn report_contradictions(table: &mut Table<'_>, url: &Target, username: Option<&String>, password: Option<&Secret>) {
    if username.is_some() && url.user.is_some() {
        table.fault("username", "stands in url, too: keep one of them");
    }
    if password.is_some() && url.password.is_some() {
        table.fault("password", "stands in url, too: keep one of them");
    }
    let has_user = username.is_some() || url.user.is_some();
    match (has_user, password.is_some() || url.password.is_some()) {
        (true, false) => table.fault(
            "password",
            "is missing: set password_file, password_env or password beside the user",
        ),
        (false, true) => table.fault("username", "is missing: set it beside the password"),
        _ => {}
    }
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    pub(super) fn server(&self, name: &str) -> Result<(Server, Place), String> {
        let own = self.password.as_ref().map(Secret::resolve).transpose()?;
        let password = own.or_else(|| self.url.password.clone());
        let user = self.username.clone().or_else(|| self.url.user.clone());
        let mut secrets = Secrets::default();
        let login = match (user, password) {
            (Some(user), Some(password)) => {
                secrets.add_user(&user, password.expose_secret());
                Login::Plain { user, password }
            }
            _ if self.identity.is_some() => Login::External,
            _ => Login::Plain {
                user: "guest".into(),
                password: "guest".to_owned().into(),
            },
        };
        let tls = self.url.is_tls.then(|| {
            let trust = Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?;
            tls::client_config_with(trust, self.identity.as_ref()).map(Arc::new)
        });
        let server = Server {
            host: self.url.host.clone(),
            port: self.url.port,
            vhost: self.url.vhost.clone(),
            login,
            tls: tls.transpose()?,
            name: format!("closehook {name}").trim_end().to_owned(),
        };
        let place = Place {
            exchange: self.exchange.clone(),
            vhost: self.url.vhost.clone(),
            secrets,
        };
        Ok((server, place))
    }
}
