//! One connection to a broker: TCP, TLS, which versions of each request it knows, who this side is. Then a request and its answer at
//! a time, each with a deadline. After a request that failed, or was dropped, the connection is not used again: an answer to it may
//! still come. There is no task behind it and nothing is sent that was not just asked for.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::answer;
use super::scram::{Hash, Scram};
use crate::config::Secret;
use crate::net::trust;
use crate::plain;
use crate::sinks::common::secrets::Secrets;
use crate::task;

/// How long a connection may take at the most, with TLS and all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// No answer that is asked for is as long.
const ANSWER_LEN_MAX: usize = 32 << 20;

/// So much is read at a time: room is made only for what has come.
const READ_LEN: usize = 64 << 10;

/// So much of what a broker says goes into a sentence.
const SAID_LEN_MAX: usize = 200;

/// Versions of each request that are used here, where the broker knows them: the newest whose meaning is still that of the code.
/// (`Produce` 12 and `EndTxn` 5 belong to another protocol of transactions, `Produce` 13 and `Fetch` 13 name topics by id,
/// `AddPartitionsToTxn` 4 is for brokers, `FindCoordinator` 4 asks for several.)
const VERSIONS: [(ApiKey, i16, i16); 11] = [
    (ApiKey::Produce, 3, 11),
    (ApiKey::Fetch, 4, 12),
    (ApiKey::ListOffsets, 2, 7),
    (ApiKey::Metadata, 4, 9),
    (ApiKey::FindCoordinator, 1, 2),
    (ApiKey::SaslHandshake, 1, 1),
    (ApiKey::ApiVersions, 0, 0),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 4),
    (ApiKey::DescribeConfigs, 1, 3),
];

/// `SaslAuthenticate` goes without what came later.
const AUTHENTICATE: (ApiKey, i16, i16) = (ApiKey::SaslAuthenticate, 0, 2);

/// How this side says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    Scram(Hash),
}

impl Mechanism {
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Scram(Hash::Sha256) => "SCRAM-SHA-256",
            Mechanism::Scram(Hash::Sha512) => "SCRAM-SHA-512",
        }
    }
}

/// How brokers are reached.
pub(super) struct Way {
    pub tls: Option<TlsConnector>,
    pub login: Option<Login>,
    /// What this side is called in the broker's logs and quotas.
    pub client_id: String,
}

/// Who this side is. The password is looked up for each connection: another one may have been given.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub mechanism: Mechanism,
    pub username: String,
    pub password: Secret,
}

impl Login {
    /// The password, and what is hidden in what a broker says.
    pub fn resolve(&self) -> Result<(SecretString, Secrets), String> {
        let password = self.password.resolve()?;
        let mut secrets = Secrets::default();
        secrets.add_user(&self.username, password.expose_secret());
        secrets.add(password.expose_secret());
        Ok((password, secrets))
    }
}

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A request without an answer.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    /// Why, one sentence.
    pub reason: String,
    /// Whether the broker may have it, or a part of it.
    pub is_sent: bool,
}

impl Lost {
    /// It never left.
    fn unsent(reason: impl Into<String>) -> Lost {
        Lost {
            reason: reason.into(),
            is_sent: false,
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// An open connection.
pub(super) struct Connection {
    io: Box<dyn Io>,
    address: Address,
    client_id: StrBytes,
    correlation: i32,
    versions: HashMap<i16, (i16, i16)>,
    /// A request went wrong: whatever comes may be the answer to it.
    is_broken: bool,
    /// The broker wants to know again who this is from then on.
    good_until: Option<Instant>,
    secrets: Secrets,
}

impl Connection {
    /// Connects, and says who this side is. `until` counts for all of it together.
    pub async fn open(address: &Address, way: &Arc<Way>, until: Instant) -> Result<Connection, Lost> {
        let until = until.min(Instant::now() + CONNECT_TIMEOUT);
        let opening = Connection::open_somehow(address, way, until);
        let opened = timeout_at(until, opening).await;
        opened.unwrap_or_else(|_| {
            let also = if way.tls.is_some() {
                ", and does it speak TLS there"
            } else {
                ""
            };
            Err(Lost::unsent(format!(
                "{address} did not answer in time: does the broker run, is the way to it open{also}?"
            )))
        })
    }

    async fn open_somehow(address: &Address, way: &Arc<Way>, until: Instant) -> Result<Connection, Lost> {
        let login = way.login.as_ref().map(|login| Ok((login, login.resolve()?)));
        let login = login.transpose().map_err(|why: String| Lost::unsent(why))?;
        let unreachable = |error: std::io::Error| Lost::unsent(format!("{address} can't be reached: {}", said(&error)));
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let io: Box<dyn Io> = match &way.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(address.host.clone())
                    .map_err(|_| Lost::unsent(format!("{address} is no name that a certificate can be for")))?;
                Box::new(tls.connect(name, stream).await.map_err(unreachable)?)
            }
        };
        let mut connection = Connection {
            io,
            address: address.clone(),
            client_id: way.client_id.clone().into(),
            correlation: 0,
            versions: HashMap::new(),
            is_broken: false,
            good_until: None,
            secrets: login
                .as_ref()
                .map(|(_, (_, secrets))| secrets.clone())
                .unwrap_or_default(),
        };
        connection.correlation = i32::from_be_bytes(random()?);
        connection.learn_versions(until).await?;
        if let Some((login, (password, _))) = &login {
            connection.log_in(login, password, until).await?;
        }
        Ok(connection)
    }

    /// Whether a request can go over it.
    pub fn is_usable(&self) -> bool {
        !self.is_broken && self.good_until.is_none_or(|until| Instant::now() < until)
    }

    /// Whether the broker has not closed it meanwhile, as far as can be seen. Between requests a broker says nothing.
    pub fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        self.is_broken |= Pin::new(&mut self.io).poll_read(&mut context, &mut buffer).is_ready();
        self.is_usable()
    }

    async fn learn_versions(&mut self, until: Instant) -> Result<(), Lost> {
        self.versions.insert(ApiKey::ApiVersions as i16, (0, 0));
        let known = self.ask(&ApiVersionsRequest::default(), until).await?;
        if known.error_code != 0 {
            return Err(Lost::unsent(format!(
                "{} does not say which requests it knows ({})",
                self.address,
                answer::name(known.error_code)
            )));
        }
        for range in known.api_keys {
            self.versions
                .insert(range.api_key, (range.min_version, range.max_version));
        }
        Ok(())
    }

    async fn log_in(&mut self, login: &Login, password: &SecretString, until: Instant) -> Result<(), Lost> {
        let (name, username) = (login.mechanism.name(), login.username.as_str());
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
        let knows = self.ask(&handshake, until).await?;
        if knows.error_code != 0 {
            let others: Vec<&str> = knows.mechanisms.iter().map(|mechanism| &**mechanism).collect();
            let others = self.hidden(&others.join(", "));
            let instead = if others.is_empty() { "none".into() } else { others };
            return Err(Lost::unsent(format!(
                "{} does not know the SASL mechanism {name} ({}; it knows {instead}): see sasl",
                self.address,
                answer::name(knows.error_code),
            )));
        }
        match login.mechanism {
            Mechanism::Plain => {
                let token = format!("\0{username}\0{}", password.expose_secret());
                self.authenticate(token.into(), until).await?;
            }
            Mechanism::Scram(hash) => {
                let nonce = hex::encode(random::<24>()?);
                let scram = Scram::new(hash, username, password.expose_secret(), &nonce);
                let challenge = self.authenticate(scram.first().into(), until).await?;
                let challenge = String::from_utf8_lossy(&challenge).into_owned();
                // Thousands of rounds of hashing.
                let proving = task::begin_blocking(move || scram.prove(&challenge));
                let proof = proving.await.map_err(|error| Lost::unsent(error.to_string()))?;
                let proof = proof.map_err(|why| Lost::unsent(format!("{}: {why}", self.address)))?;
                let last = self.authenticate(proof.message.clone().into(), until).await?;
                if !proof.is_proved_by(&String::from_utf8_lossy(&last)) {
                    return Err(Lost::unsent(format!(
                        "{} does not prove that it knows the password: is it the right server?",
                        self.address
                    )));
                }
            }
        }
        Ok(())
    }

    async fn authenticate(&mut self, token: Bytes, until: Instant) -> Result<Bytes, Lost> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token);
        let refuses = "see sasl, username and password";
        let answered = self.ask(&request, until).await.map_err(|lost| {
            // Some close the connection instead of saying anything.
            Lost::unsent(format!("{}, while it was told who this is: {refuses}", lost.reason))
        })?;
        if answered.error_code != 0 {
            let said = answered.error_message.as_deref().unwrap_or_default();
            return Err(Lost::unsent(format!(
                "{} refuses the login ({}{}): {refuses}",
                self.address,
                answer::name(answered.error_code),
                self.quoted(said),
            )));
        }
        if answered.session_lifetime_ms > 0 {
            // A little earlier than the broker says: it ends the connection then.
            let lifetime = Duration::from_millis(answered.session_lifetime_ms.unsigned_abs());
            self.good_until = Instant::now().checked_add(lifetime.mul_f64(0.85));
        }
        Ok(answered.auth_bytes)
    }

    /// What a broker says of its own accord, without secrets, as the end of a parenthesis.
    pub fn quoted(&self, said: &str) -> String {
        let said = self.hidden(said);
        if said.is_empty() {
            return String::new();
        }
        format!(", it said \"{said}\"")
    }

    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    fn hidden(&self, said: &str) -> String {
        let said = self.secrets.hidden_in(said.trim());
        plain::line(&said).chars().take(SAID_LEN_MAX).collect()
    }

    fn version(&self, key: i16) -> Result<i16, Lost> {
        let ours = VERSIONS
            .iter()
            .chain([&AUTHENTICATE])
            .find(|(own, ..)| *own as i16 == key);
        let (_, min, max) = ours.ok_or_else(|| Lost::unsent("this request is not known here"))?;
        let theirs = self.versions.get(&key);
        let both = theirs.map(|(their_min, their_max)| (*min.max(their_min), *max.min(their_max)));
        match both {
            Some((low, high)) if low <= high => Ok(high),
            _ => Err(Lost::unsent(format!(
                "{} knows no {} that is known here: it has to be Kafka 0.11 or newer",
                self.address,
                ApiKey::try_from(key).map_or_else(|()| key.to_string(), |key| format!("{key:?} request"))
            ))),
        }
    }

    /// Whether the broker knows a request at all.
    pub fn knows(&self, key: ApiKey) -> bool {
        self.version(key as i16).is_ok()
    }

    /// Whether it can say what a user may do with a topic.
    pub fn says_rights(&self) -> bool {
        self.version(ApiKey::Metadata as i16).is_ok_and(|version| version >= 8)
    }

    /// Sends a request and waits for its answer.
    pub async fn ask<R: Request>(&mut self, request: &R, until: Instant) -> Result<R::Response, Lost> {
        let version = self.version(R::KEY)?;
        let frame = self.frame(request, version)?;
        let mut frame = self.exchange(&frame, until).await?;
        let answer = self.decode::<R>(&mut frame, version).map_err(|()| Lost {
            reason: format!("the answer of {} can't be read: is it Kafka?", self.address),
            is_sent: true,
        })?;
        self.is_broken = false;
        Ok(answer)
    }

    /// Sends a request's frame and gives the answer's. The connection counts as broken until somebody has read that.
    async fn exchange(&mut self, frame: &[u8], until: Instant) -> Result<Bytes, Lost> {
        if self.is_broken {
            return Err(Lost::unsent("the connection is closed"));
        }
        // Only a whole exchange leaves it usable, also where this future is dropped.
        self.is_broken = true;
        let exchange = async {
            self.io.write_all(frame).await?;
            self.io.flush().await?;
            read_frame(&mut self.io).await
        };
        let lost = |reason: String| Lost { reason, is_sent: true };
        match timeout_at(until, exchange).await {
            Ok(Ok(frame)) => frame.map_err(|odd| lost(format!("{} {odd}", self.address))),
            Ok(Err(error)) => Err(lost(format!(
                "{} closed the connection: {}",
                self.address,
                said(&error)
            ))),
            Err(_) => Err(lost(format!("{} does not answer", self.address))),
        }
    }

    fn frame<R: Request>(&mut self, request: &R, version: i16) -> Result<BytesMut, Lost> {
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        let encoded = encode_request_header_into_buffer(&mut frame, &header);
        let encoded = encoded.and_then(|()| request.encode(&mut frame, version));
        let unsendable = |why: String| Lost::unsent(format!("the request can't be written: {why}"));
        encoded.map_err(|error| unsendable(error.to_string()))?;
        let len = i32::try_from(frame.len() - 4).map_err(|_| unsendable("it is too long".into()))?;
        frame[..4].copy_from_slice(&len.to_be_bytes());
        Ok(frame)
    }

    fn decode<R: Request>(&self, frame: &mut Bytes, version: i16) -> Result<R::Response, ()> {
        let header = ResponseHeader::decode(frame, R::Response::header_version(version)).map_err(|_| ())?;
        if header.correlation_id != self.correlation {
            return Err(());
        }
        R::Response::decode(frame, version).map_err(|_| ())
    }
}

/// Reads one answer, or says what it is instead.
async fn read_frame(io: &mut Box<dyn Io>) -> std::io::Result<Result<Bytes, &'static str>> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    // An alert or a handshake of TLS.
    if matches!(head, [0x15 | 0x16, 3, _, _]) {
        return Ok(Err("answers in TLS: set tls = true"));
    }
    let len = i32::from_be_bytes(head);
    let Some(len) = usize::try_from(len).ok().filter(|len| *len <= ANSWER_LEN_MAX) else {
        return Ok(Err("answers nothing that a Kafka broker would: is it one?"));
    };
    let mut frame = BytesMut::new();
    while frame.len() < len {
        frame.reserve(READ_LEN.min(len - frame.len()));
        let mut rest = (&mut *io).take((len - frame.len()) as u64);
        if rest.read_buf(&mut frame).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut frame = frame.freeze();
    if frame.remaining() > len {
        frame.truncate(len);
    }
    Ok(Ok(frame))
}

/// What nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], Lost> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Lost::unsent(format!("this system gives no random numbers: {error}")))?;
    Ok(bytes)
}

/// What an error of a connection says, and what to do about it.
fn said(error: &std::io::Error) -> String {
    if let Some(failure) = trust::failure(error) {
        let advice = match failure {
            rustls::Error::InvalidMessage(_) => Some("does it speak TLS at this port? See brokers and tls"),
            other => trust::advice(other),
        };
        return match advice {
            Some(advice) => format!("{failure}: {advice}"),
            None => failure.to_string(),
        };
    }
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
            "it said nothing more: does it want tls, or sasl?".into()
        }
        _ => error.to_string(),
    }
}
