//! What a table of the configuration means, and how it is opened.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsConnector;

use super::connection::{Address, Login, Mechanism, Way};
use super::mark::{MARK_TOPIC, Place};
use super::producer::{Producer, transactional};
use super::scram::Hash;
use super::{ExactlyOnce, Kafka, Packing, Ways, Writer, answer, data, record};
use crate::config::{Secret, SinkOptions, Size, Span, Table};
use crate::event::Delivery;
use crate::net::tls::{Identity, client_config_with, content};
use crate::net::trust::{self, Name, Trust};
use crate::render::{Escape, Template};
use crate::sinks::{
    Commit, Context, Drive, Fingerprint, Hider, Limits, Opened, Outcome, Preview, Sink, SinkKind, Unavailable,
};

/// Where a broker listens that is named without a port.
const PORT: u16 = 9092;

/// Requests at a time where nothing has an order.
const CONCURRENCY: usize = 4;

/// May this user write there? (`AclOperation.WRITE`)
const MAY_WRITE: i32 = 1 << 4;

/// What a broker says that does not say who may do what.
const RIGHTS_UNKNOWN: i32 = i32::MIN;

#[derive(Debug)]
struct Options {
    brokers: Arc<[Address]>,
    topic: Template,
    key: Option<Template>,
    exactly_once: bool,
    mark_topic: String,
    login: Option<Login>,
    tls: bool,
    ca: Option<PathBuf>,
    identity: Option<Identity>,
    batch: Limits,
    fingerprint: Fingerprint,
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let brokers: Option<Vec<String>> = table.needed("brokers");
    let has_topic = table.has("topic");
    let topic = table.template("topic", Escape::None);
    if !has_topic {
        table.report_missing("topic");
    }
    let key = table.template("key", Escape::None);
    let exactly_once = table.or("exactly_once", false);
    let mark_topic = table.or("mark_topic", MARK_TOPIC.to_owned());
    let sasl: Option<String> = table.optional("sasl");
    let username: Option<String> = table.optional("username");
    let password = table.secret("password");
    let [ca, cert, cert_key] = ["ca", "cert", "cert_key"].map(|key| table.optional::<PathBuf>(key));
    let tls: Option<bool> = table.optional("tls");
    let batch = table.table("batch", |table| Limits {
        events: table.within("events", 1000, 1, 10_000),
        bytes: table.within("bytes", Size(3 << 20), Size(1), Size(16 << 20)).0 as usize,
        wait: table.or("wait", Span(Duration::ZERO)).0,
    });
    let files: Vec<_> = [&ca, &cert, &cert_key]
        .into_iter()
        .flatten()
        .map(|path| content(path))
        .collect();
    let digest = Sha256::digest(format!(
        "{brokers:?}\n{topic:?}\n{key:?}\n{exactly_once}\n{mark_topic}\n{sasl:?}\n{username:?}\n{:?}\n{tls:?}\n{ca:?}\n{cert:?}\n{cert_key:?}\n{files:?}\n{batch:?}",
        password.as_ref().map(Secret::fingerprint),
    ));
    judge_mark_topic(table, &mark_topic, exactly_once);
    let has_files = ca.is_some() || cert.is_some() || cert_key.is_some();
    if tls == Some(false) && has_files {
        table.fault(
            "tls",
            "is false, and ca, cert or cert_key say otherwise: take one of them out",
        );
    }
    let login = login(table, sasl, username, password);
    let identity = identity(table, cert, cert_key);
    let brokers = brokers.and_then(|brokers| addresses(table, &brokers));
    let topic = topic?;
    judge_topic(table, &topic, exactly_once.then_some(&*mark_topic));
    Some(Arc::new(Options {
        brokers: brokers?.into(),
        topic,
        key,
        exactly_once,
        mark_topic,
        login: login?,
        tls: tls.unwrap_or(has_files),
        ca,
        identity,
        batch,
        fingerprint: Fingerprint(hex::encode(digest)),
    }))
}

const NO_TOPIC: &str = "must be a topic's name: letters, digits, \".\", \"_\" and \"-\", 249 of them at the most";

fn judge_mark_topic(table: &mut Table<'_>, topic: &str, exactly_once: bool) {
    if topic != MARK_TOPIC && !exactly_once {
        table.fault(
            "mark_topic",
            "means nothing without exactly_once = true: take it out, or set that",
        );
    }
    if !record::is_topic(topic) {
        table.fault("mark_topic", NO_TOPIC);
    }
}

/// `marks`: the topic of the marks, where there are any.
fn judge_topic(table: &mut Table<'_>, topic: &Template, marks: Option<&str>) {
    if !topic.is_constant() {
        return;
    }
    if !record::is_topic(topic.source()) {
        table.fault("topic", NO_TOPIC);
    } else if marks == Some(topic.source()) {
        table.fault("topic", "holds the marks: choose another one, or another mark_topic");
    }
}

/// Who this side is. `None`: that is a fault.
#[expect(clippy::option_option, reason = "a fault is no login that is not wanted")]
fn login(
    table: &mut Table<'_>,
    sasl: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
) -> Option<Option<Login>> {
    let Some(sasl) = sasl else {
        for (key, is_there) in [("username", username.is_some()), ("password", password.is_some())] {
            if is_there {
                table.fault(
                    key,
                    "means nothing without sasl: set that, for example sasl = \"SCRAM-SHA-512\"",
                );
            }
        }
        return Some(None);
    };
    let known = [
        Mechanism::Plain,
        Mechanism::Scram(Hash::Sha256),
        Mechanism::Scram(Hash::Sha512),
    ];
    let mechanism = known.into_iter().find(|known| known.name() == sasl);
    if mechanism.is_none() {
        table.fault("sasl", "must be \"PLAIN\", \"SCRAM-SHA-256\" or \"SCRAM-SHA-512\"");
    }
    if username.is_none() {
        table.report_missing("username");
    }
    if password.is_none() {
        table.report_missing("password");
    }
    Some(Some(Login {
        mechanism: mechanism?,
        username: username?,
        password: password?,
    }))
}

/// A client's certificate. Unlike elsewhere its key is not `key`, which is the record's.
fn identity(table: &mut Table<'_>, cert: Option<PathBuf>, key: Option<PathBuf>) -> Option<Identity> {
    match (cert, key) {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (None, None) => None,
        (cert, _) => {
            let missing = if cert.is_some() { "cert_key" } else { "cert" };
            table.fault(missing, "is missing: a client's certificate is cert and cert_key");
            None
        }
    }
}

fn addresses(table: &mut Table<'_>, brokers: &[String]) -> Option<Vec<Address>> {
    if brokers.is_empty() {
        table.fault("brokers", "names none: one that runs is enough, better two or three");
        return None;
    }
    let mut addresses = Vec::new();
    for (index, broker) in brokers.iter().enumerate() {
        match address(broker) {
            Some(address) => addresses.push(address),
            None => table.fault(
                &format!("brokers[{index}]"),
                "must be an address like \"kafka1.example.com:9092\", without a scheme",
            ),
        }
    }
    (addresses.len() == brokers.len()).then_some(addresses)
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
fn address(text: &str) -> Option<Address> {
    let (host, rest) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, rest)
    } else {
        text.find(':').map_or((text, ""), |at| text.split_at(at))
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
        None if rest.is_empty() => PORT,
        None => return None,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    (!host.is_empty() && host.chars().all(is_plain)).then(|| Address {
        host: host.to_owned(),
        port,
    })
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn ways(&self, timeout: Duration) -> Result<Ways, String> {
        let way = Way {
            tls: self.tls.then(|| self.connector()).transpose()?,
            login: self.login.clone(),
            client_id: "closehook".into(),
        };
        Ok(Ways {
            way: Arc::new(way),
            bootstrap: self.brokers.clone(),
            packing: self.packing(),
            timeout,
        })
    }

    fn packing(&self) -> Packing {
        Packing {
            topic: self.topic.clone(),
            key: self.key.clone(),
        }
    }

    fn connector(&self) -> Result<TlsConnector, String> {
        let trust = Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?;
        let config = client_config_with(trust, self.identity.as_ref())?;
        Ok(Arc::new(config).into())
    }

    fn place(&self, context: &Context) -> Place {
        Place::new(&self.mark_topic, &context.log_id, &context.name)
    }

    /// Looks whether records could be written. Gives what there is, in words.
    async fn look(&self, ways: &Ways, context: &Context) -> Result<String, String> {
        let until = ways.until();
        let mut producer = Producer::new(ways.cluster(), None, false);
        if self.exactly_once {
            let id = self.place(context).transactional_id();
            producer.transactional_id = Some(transactional(&id));
            producer.find_coordinator(until).await?;
            producer.look_at_marks(&self.mark_topic, until).await?;
            producer.transactional_id = None;
        } else {
            producer.introduce(until).await?;
        }
        if !self.topic.is_constant() {
            let lost = producer.cluster.refresh(&BTreeSet::new(), until).await;
            lost.map_err(|lost| lost.reason)?;
            let brokers = producer.cluster.brokers();
            return Ok(format!(
                "{brokers} brokers are there; the topics depend on the event and were not looked at"
            ));
        }
        let name = self.topic.source();
        let names = BTreeSet::from([name.to_owned()]);
        let rights = producer.cluster.refresh_with_rights(&names, until).await;
        let rights = rights.map_err(|lost| lost.reason)?;
        let what = format!("the topic {name}");
        let Some(topic) = producer.cluster.topic(name) else {
            return Err(answer::sentence(answer::UNKNOWN_TOPIC, &what));
        };
        let leaders = topic.partitions.clone().map_err(|code| answer::sentence(code, &what))?;
        if rights != RIGHTS_UNKNOWN && rights & MAY_WRITE == 0 {
            return Err(answer::sentence(answer::NOT_AUTHORIZED, &what));
        }
        let distinct: BTreeSet<_> = leaders.iter().flatten().copied().collect();
        if leaders.iter().any(Option::is_none) {
            return Err(answer::sentence(answer::LEADER_NOT_AVAILABLE, &what));
        }
        // The names that brokers have among themselves may not be known here.
        for broker in &distinct {
            producer
                .cluster
                .take(*broker, until)
                .await
                .map_err(|lost| lost.reason)?;
        }
        let (partitions, brokers) = (leaders.len(), distinct.len());
        Ok(format!(
            "{what} is there: partitions {partitions}, brokers that lead them {brokers}"
        ))
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        let (concurrency, commit) = if self.exactly_once {
            (1, Commit::Transaction)
        } else {
            (CONCURRENCY, Commit::Acknowledge)
        };
        Drive {
            batch: self.batch,
            concurrency,
            commit,
        }
    }

    fn fault(&self) -> Option<String> {
        let password = self.login.as_ref().and_then(|login| login.resolve().err());
        password.or_else(|| self.ways(Duration::from_secs(1)).err())
    }

    fn warning(&self) -> Option<String> {
        let login = self.login.as_ref()?;
        let is_read_by_all = login.mechanism == Mechanism::Plain && !self.tls;
        is_read_by_all.then(|| "sasl = \"PLAIN\" without tls: whoever is on the way can read the password".into())
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        data(delivery).clone()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let parcel = self.packing().parcel(delivery)?;
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let headers = parcel.headers.iter();
        Ok(Preview {
            key: parcel.key.as_ref().map(text),
            subject: Some(parcel.topic),
            ..Preview::new(
                headers.map(|(name, value)| (name.to_string(), text(value))),
                parcel.value,
            )
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        let key = self.key.iter().map(|template| ("key".to_owned(), template.clone()));
        std::iter::once(("topic".to_owned(), self.topic.clone()))
            .chain(key)
            .collect()
    }

    fn hider(&self) -> Option<Hider> {
        let Some(login) = &self.login else {
            return Some(Box::new(str::to_owned));
        };
        let (_, secrets) = login.resolve().ok()?;
        Some(Box::new(move |text| secrets.hidden_in(text)))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let ways = self.ways(context.timeout).map_err(Unavailable::new)?;
        if !self.exactly_once {
            let sink: Box<dyn Sink> = Box::new(Kafka {
                ways,
                idle: Mutex::default(),
                is_strict: context.is_strict,
            });
            return Ok(sink.into());
        }
        let place = self.place(&context);
        let id = transactional(&place.transactional_id());
        let mut producer = Producer::new(ways.cluster(), Some(id), context.is_strict);
        let until = ways.until();
        let opening = async {
            producer.look_at_marks(place.topic(), until).await?;
            producer.begin(ways.timeout, until).await?;
            producer.read_mark(&place, until).await
        };
        let found = opening.await.map_err(Unavailable::new)?;
        let marks = found.as_ref().map_or(0, |found| found.number);
        Ok(Opened {
            sink: Box::new(ExactlyOnce {
                ways,
                place,
                writer: Mutex::new(Some(Writer { producer, marks })),
                is_strict: context.is_strict,
            }),
            mark: found.map(|found| found.mark),
            position: None,
        })
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let ways = self.ways(context.timeout).map_err(Unavailable::new)?;
        self.look(&ways, &context).await.map_err(Unavailable::new)
    }
}
