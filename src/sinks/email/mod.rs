//! `email`: a mail for each event, or one for what came within a time (`digest`).
//!
//! At least once; the message id follows from the event's key and the sink's name, so mailboxes know a repeat. With `digest` a mail has
//! what came within that time from its first event on, whenever it is sent: after a crash the same events make the same mail. Nothing is
//! held in memory meanwhile; the log is read again.
//!
//! | file | what it does |
//! |---|---|
//! | `server` | the way to the server: TLS, STARTTLS |
//! | `compose` | the mail |
//! | `digest` | several events in one mail |
//! | `definition` | what there is to say of it and its keys |
//! | `answer` | what an answer means |

mod answer;
mod compose;
pub(super) mod definition;
mod digest;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use lettre::Message;
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret;
use sha2::Sha256;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::answer::{Step, said_by};
use self::compose::Words;
use self::server::{Failed, Server, Tls};
use super::common::identity;
use super::common::secrets::Secrets;
use super::{
    Batch, Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Preview, Sink, SinkKind, Unavailable,
};
use crate::config::{Secret, SinkOptions, Span, Table};
use crate::event::Delivery;
use crate::net::tls::{self, Identity};
use crate::net::trust::{self, Name, Trust};
use crate::render::{Escape, Guard, Template};

/// Events in one digest; more than that within its time make another mail.
const DIGEST_EVENTS: usize = 2000;

/// Bytes of bodies that make one digest.
const DIGEST_BYTES: usize = 8 << 20;

/// A shorter digest is none.
const DIGEST_MIN: Duration = Duration::from_secs(5);
const DIGEST_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// A connection that was used so long ago is asked whether it is still one.
const FRESH: Duration = Duration::from_secs(5);

const LATE: &str = "the server did not answer in time";

/// A digest of which it is not known whether the server has it waits at the most so long until it is sent once more.
const DOUBT_MAX: Duration = Duration::from_secs(900);

#[derive(Debug)]
struct Options {
    server: Server,
    username: Option<String>,
    password: Option<Secret>,
    words: Words,
    digest: Option<Duration>,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let server: Option<String> = table.needed("server");
    let insecure = table.or("insecure", false);
    let username: Option<String> = table.optional("username");
    let password = table.secret("password");
    let from: Option<String> = table.needed("from");
    let to: Option<Vec<String>> = table.needed("to");
    let subject = table.template("subject", Escape::None);
    let text = table.template("text", Escape::None);
    let html = table.template("html", Escape::Html);
    let digest = gathered(table);
    let paths: [Option<PathBuf>; 3] = ["ca", "cert", "key"].map(|key| table.optional(key));
    let fingerprint = <Sha256 as sha2::Digest>::digest(format!(
        "{server:?}\n{insecure}\n{username:?}\n{:?}\n{from:?}\n{to:?}\n{subject:?}\n{text:?}\n{html:?}\n{digest:?}\n{paths:?}\n{:?}",
        password.as_ref().map(Secret::fingerprint),
        paths
            .iter()
            .flatten()
            .map(|path| tls::content(path))
            .collect::<Vec<_>>(),
    ));
    let [ca, cert, key] = paths;
    let identity = identity::of(table, cert, key);
    match (&username, &password) {
        (Some(_), None) => table.fault(
            "password",
            "is missing: set password_file, password_env or password beside username",
        ),
        (None, Some(_)) => table.fault("username", "is missing: set it beside password"),
        _ => {}
    }
    let server = match Server::parse(&server?, insecure) {
        Ok(server) => Some(server),
        Err(fault) => {
            table.fault("server", fault);
            None
        }
    };
    let from = sender(table, &from?);
    let to = recipients(table, &to?, digest.is_some())?;
    Some(Arc::new(Options {
        server: server?,
        username,
        password,
        words: Words {
            from: from?,
            to,
            subject,
            text,
            html,
        },
        digest,
        ca,
        identity,
        fingerprint: Fingerprint(hex::encode(fingerprint)),
    }))
}

/// How long events are gathered for one mail.
fn gathered(table: &mut Table<'_>) -> Option<Duration> {
    let span: Duration = table.optional::<Span>("digest")?.0;
    if !(DIGEST_MIN..=DIGEST_MAX).contains(&span) {
        table.fault("digest", "must be between \"5s\" and \"31d\"");
    }
    Some(span)
}

fn sender(table: &mut Table<'_>, text: &str) -> Option<Mailbox> {
    let mut found = compose::mailboxes(text).unwrap_or_default();
    if found.len() == 1 {
        return found.pop();
    }
    table.fault(
        "from",
        "must be one address, like \"closehook <closehook@example.com>\"",
    );
    None
}

fn recipients(table: &mut Table<'_>, texts: &[String], is_digest: bool) -> Option<Vec<Template>> {
    if texts.is_empty() {
        table.fault(
            "to",
            "can't be empty: list an address, for example to = [\"sales@example.com\"]",
        );
        return None;
    }
    let mut templates = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let place = compose::to_name(index);
        match Template::parse(text, Escape::None) {
            Err(fault) => table.fault(&place, fault),
            Ok(template) if template.is_constant() && compose::mailboxes(text).is_none() => {
                table.fault(&place, "must be an address, like \"sales@example.com\"");
            }
            Ok(template) if is_digest && !template.is_constant() => {
                table.fault(
                    &place,
                    "can't have anything to fill in beside digest: a digest is about several events",
                );
            }
            Ok(template) => templates.push(template),
        }
    }
    Some(templates)
}

impl Options {
    /// What is rendered for a digest.
    fn texts(&self) -> Vec<(String, Template)> {
        let texts = self.words.texts().into_iter();
        texts
            .filter(|(_, template)| self.digest.is_some() && !template.is_constant())
            .collect()
    }

    /// Resolves what is needed on this machine; contacts nobody.
    fn ready(&self, context: &Context) -> Result<Email, String> {
        let password = self.password.as_ref().map(Secret::resolve).transpose()?;
        let mut secrets = Secrets::default();
        let mut credentials = None;
        if let (Some(username), Some(password)) = (&self.username, &password) {
            let password = password.expose_secret();
            // As AUTH PLAIN and AUTH LOGIN send them.
            for sent in [
                password.to_owned(),
                STANDARD.encode(password),
                STANDARD.encode(format!("\0{username}\0{password}")),
            ] {
                secrets.add(&sent);
                secrets.add(sent.trim_end_matches('='));
            }
            credentials = Some(Credentials::new(username.clone(), password.to_owned()));
        }
        let trust = match self.server.tls {
            Tls::IfOffered => Trust::Anybody,
            Tls::AtOnce | Tls::Demanded => Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?,
        };
        Ok(Email {
            server: self.server.clone(),
            config: Arc::new(tls::client_config_with(trust, self.identity.as_ref())?),
            credentials,
            texts: self.texts().into(),
            renderer: context.renderer.clone(),
            words: self.words.clone(),
            digest: self.digest,
            secrets,
            name: context.name.clone(),
            timeout: context.timeout,
            idle: Mutex::new(None),
            answered: std::sync::Mutex::default(),
            put_off: AtomicU32::new(0),
        })
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        let batch = match self.digest {
            None => Limits {
                events: 1,
                bytes: usize::MAX,
                wait: Duration::ZERO,
            },
            Some(wait) => Limits {
                events: DIGEST_EVENTS,
                bytes: DIGEST_BYTES,
                wait,
            },
        };
        Drive {
            batch,
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        let context = Context {
            timeout: Duration::from_secs(1),
            ..Context::default()
        };
        self.ready(&context).err()
    }

    fn warning(&self) -> Option<String> {
        (self.server.tls == Tls::IfOffered).then(|| {
            let what = if self.username.is_some() {
                "mails and the password"
            } else {
                "mails"
            };
            format!("insecure = true: whoever is on the way to the server can read {what}")
        })
    }

    fn hider(&self) -> Option<Hider> {
        let secrets = self.ready(&Context::default()).ok()?.secrets;
        Some(Box::new(move |said| secrets.hidden_in(said)))
    }

    /// The text: what else is in a mail is another each time.
    fn payload(&self, delivery: &Delivery) -> Bytes {
        match self.digest {
            None => self.words.text(delivery).into(),
            Some(_) => compose::digest_text(std::slice::from_ref(delivery)).into(),
        }
    }

    fn preview(&self, sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let none = BTreeMap::new();
        let mail = if self.digest.is_some() {
            let made = delivery.rendered.as_ref().map_or(&none, |rendered| &rendered.texts);
            self.words.digest(sink, std::slice::from_ref(delivery), made)
        } else {
            self.words.mail(sink, delivery)
        };
        let mail = mail?;
        Ok(Preview {
            subject: mail
                .headers()
                .get::<lettre::message::header::Subject>()
                .map(|subject| subject.as_ref().to_owned()),
            headers: compose::shown_headers(&mail),
            body: Some(mail.formatted().into()),
            ..Preview::default()
        })
    }

    fn gathered<'a>(
        &'a self,
        sink: &'a str,
        renderer: &'a Guard,
        deliveries: &'a [Delivery],
    ) -> Option<BoxFuture<'a, Result<BTreeMap<String, String>, Outcome>>> {
        self.digest?;
        Some(Box::pin(async move {
            let texts = self.texts().into();
            let made = digest::rendered(Some(renderer), &texts, sink, deliveries).await;
            Ok(made.map_err(Outcome::Waits)??)
        }))
    }

    fn templates(&self) -> Vec<(String, Template)> {
        // Those of a digest are rendered when it is sent, over all that is in it.
        if self.digest.is_some() {
            Vec::new()
        } else {
            self.words.templates()
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        // The server is contacted with the first mail: a digest has none for an hour.
        let sink: Box<dyn Sink> = Box::new(self.ready(&context).map_err(Unavailable::new)?);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let email = self.ready(&context).map_err(Unavailable::new)?;
        let mut connection = email.within(email.connect()).await?;
        // It was there; that it did not say goodbye changes nothing.
        let _ = email.within(async { Ok(connection.quit().await) }).await;
        Ok(match &self.username {
            Some(_) => "the server is there, and knows the user".into(),
            None => "the server is there".to_owned(),
        })
    }
}

struct Email {
    server: Server,
    config: Arc<rustls::ClientConfig>,
    credentials: Option<Credentials>,
    words: Words,
    digest: Option<Duration>,
    /// A digest's templates, and what renders them.
    texts: Arc<[(String, Template)]>,
    renderer: Option<Guard>,
    secrets: Secrets,
    name: String,
    timeout: Duration,
    /// A connection that waits for the next mail, and since when.
    idle: Mutex<Option<(AsyncSmtpConnection, Instant)>>,
    /// What came of the digests, and parts of such, of a call that did not come to its end: they are not sent once more.
    answered: std::sync::Mutex<HashMap<String, Outcome>>,
    /// How often in a row a digest was put off.
    put_off: AtomicU32,
}

/// It is not known whether the server has the mail.
fn in_doubt(why: String) -> Outcome {
    Outcome::Retry {
        reason: why.into(),
        after: None,
    }
}

impl Email {
    /// Has a deadline.
    async fn within<T>(&self, work: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        let done = tokio::time::timeout(self.timeout, work).await;
        done.unwrap_or_else(|_| Err(Unavailable::new(LATE)))
    }

    /// A connection that mail may be handed in on.
    async fn connect(&self) -> Result<AsyncSmtpConnection, Unavailable> {
        let mut connection = self
            .server
            .connect(self.config.clone())
            .await
            .map_err(|failed| self.not_connected(&failed))?;
        if let Some(credentials) = &self.credentials {
            let known = [Mechanism::Plain, Mechanism::Login];
            if connection.server_info().get_auth_mechanism(&known).is_none() {
                return Err(Unavailable::new(
                    "the server offers no way to log in that is known here (PLAIN, LOGIN): leave out username and password, or see its port",
                ));
            }
            if let Err(error) = connection.auth(&known, credentials).await {
                return Err(self.unavailable(Step::LogIn, &error));
            }
        }
        Ok(connection)
    }

    fn not_connected(&self, failed: &Failed) -> Unavailable {
        let said = failed
            .said
            .as_ref()
            .map(|said| format!(", it said \"{}\"", said.sentence(&self.secrets)));
        Unavailable::new(format!("{}{}", failed.what, said.unwrap_or_default()))
    }

    fn unavailable(&self, step: Step, error: &lettre::transport::smtp::Error) -> Unavailable {
        let (reason, after) = match self.refused(step, error) {
            Err(unavailable) => return unavailable,
            Ok(Outcome::Retry { reason, after }) => (reason.text, after),
            Ok(Outcome::Reject { reason }) => (reason.text, None),
            Ok(_) => ("the server said nothing".into(), None),
        };
        Unavailable {
            after,
            ..Unavailable::new(reason)
        }
    }

    /// What an error of the library means.
    fn refused(&self, step: Step, error: &lettre::transport::smtp::Error) -> Result<Outcome, Unavailable> {
        if let Some(said) = said_by(error) {
            return answer::outcome(step, &said, self.words.to_varies(), &self.secrets);
        }
        Err(Unavailable::new(self.broke(error)))
    }

    fn broke(&self, error: &lettre::transport::smtp::Error) -> String {
        let cause = self.secrets.hidden_in(&crate::net::http::root_cause(error));
        format!("the connection to the server broke: {cause}")
    }

    /// The connection that waits, if it is still one, or a new one.
    async fn connection(&self) -> Result<AsyncSmtpConnection, Unavailable> {
        let idle = self.idle.lock().await.take();
        if let Some((mut connection, since)) = idle
            && (since.elapsed() < FRESH || connection.test_connected().await)
        {
            return Ok(connection);
        }
        self.connect().await
    }

    /// Hands in one mail. A connection on which anything went wrong is not used again.
    ///
    /// What fails before the server has heard of a recipient says nothing of the mail. From there on the mail may be what the server
    /// stumbles over, and it may have it: then this mail waits by itself, longer each time, and the others go on.
    async fn send(&self, mail: &Message) -> Result<Outcome, Unavailable> {
        let until = Instant::now() + self.timeout;
        let bytes = mail.formatted();
        let begun = async {
            let mut connection = self.connection().await?;
            let refused = self.begin(&mut connection, mail, &bytes).await?;
            Ok::<_, Unavailable>((connection, refused))
        };
        let begun = tokio::time::timeout_at(until, begun).await;
        let (mut connection, refused) = begun.unwrap_or_else(|_| Err(Unavailable::new(LATE)))?;
        if let Some(outcome) = refused {
            return Ok(outcome);
        }
        let handed = tokio::time::timeout_at(until, self.hand_in(&mut connection, mail, &bytes)).await;
        match handed.unwrap_or_else(|_| Ok(Some(in_doubt(LATE.into()))))? {
            None => {
                *self.idle.lock().await = Some((connection, Instant::now()));
                Ok(Outcome::Delivered)
            }
            Some(outcome) => Ok(outcome),
        }
    }

    /// Says whose mail comes. `Some`: it can't be sent this way.
    async fn begin(
        &self,
        connection: &mut AsyncSmtpConnection,
        mail: &Message,
        bytes: &[u8],
    ) -> Result<Option<Outcome>, Unavailable> {
        let envelope = mail.envelope();
        let mut parameters = Vec::new();
        let has = |extension| connection.server_info().supports_feature(extension);
        let addresses = envelope.to().iter().chain(envelope.from());
        if !addresses
            .into_iter()
            .all(|address| AsRef::<str>::as_ref(address).is_ascii())
        {
            if !has(Extension::SmtpUtfEight) {
                let reason = "the server takes no addresses with other letters than a to z (SMTPUTF8)".into();
                return Ok(Some(Outcome::Reject { reason }));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !bytes.is_ascii() && has(Extension::EightBitMime) {
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        if let Err(error) = connection
            .command(Mail::new(envelope.from().cloned(), parameters))
            .await
        {
            return self.refused(Step::Sender, &error).map(Some);
        }
        Ok(None)
    }

    /// `None`: the server has it. All of its recipients get it, or none does.
    async fn hand_in(
        &self,
        connection: &mut AsyncSmtpConnection,
        mail: &Message,
        bytes: &[u8],
    ) -> Result<Option<Outcome>, Unavailable> {
        for to in mail.envelope().to() {
            if let Err(error) = connection.command(Rcpt::new(to.clone(), Vec::new())).await {
                return self.not_taken(Step::Recipient, &error).map(Some);
            }
        }
        if let Err(error) = connection.command(Data).await {
            return self.not_taken(Step::Data, &error).map(Some);
        }
        match connection.message(bytes).await {
            Ok(_) => Ok(None),
            Err(error) => self.not_taken(Step::Mail, &error).map(Some),
        }
    }

    /// What an error means once the server has heard of a recipient.
    fn not_taken(&self, step: Step, error: &lettre::transport::smtp::Error) -> Result<Outcome, Unavailable> {
        if said_by(error).is_some() {
            return self.refused(step, error);
        }
        Ok(in_doubt(self.broke(error)))
    }

    async fn one(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        match self.words.mail(&self.name, delivery) {
            Ok(mail) => self.send(&mail).await,
            Err(fault) => Ok(fault.into()),
        }
    }
}

#[async_trait]
impl Sink for Email {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        if let Some(span) = self.digest {
            return self.digests(batch.deliveries(), span).await;
        }
        let mut outcomes = Vec::with_capacity(batch.deliveries().len());
        for delivery in batch.deliveries() {
            outcomes.push(self.one(delivery).await?);
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests;
