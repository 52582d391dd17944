//! A line to a Kafka broker that knows its requests: it lets them through, cuts, swallows answers, and answers for the broker what that
//! can't be made to say. With TLS and SASL, which the broker behind it does not see.

// Each of its users leaves something out.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{
    ApiKey, BrokerId, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, RequestHeader,
    ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes, decode_request_header_from_buffer};
use kafka_protocol::records::RecordBatchDecoder;
use ring::{digest, hmac, pbkdf2};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What the line does with the next request of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// It never arrives.
    Before,
    /// A half of it arrives.
    Half,
    /// It arrives, and the answer is lost.
    Answer,
}

/// How the line behaves.
#[derive(Default)]
pub struct Moods {
    server: u16,
    cut: Option<(ApiKey, Cut)>,
    /// Records are refused with this code.
    pub refuses: Option<i16>,
    /// So are batches that hold this, with this code; `true`: and it is said which.
    pub poison: Option<(&'static str, i16, bool)>,
    /// Topics are described with this code.
    pub topic_code: Option<i16>,
    pub tls: Option<TlsAcceptor>,
    /// Answers of the broker stay here.
    pub holds: bool,
    /// The user and his password.
    pub login: Option<(String, String)>,
    /// Requests so far, by their keys.
    pub asked: Vec<i16>,
}

/// A running line.
pub struct Line {
    pub port: u16,
    pub moods: Arc<Mutex<Moods>>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Line {
    pub async fn start() -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Line {
            port: listener.local_addr().unwrap().port(),
            moods: Arc::default(),
        };
        let moods = line.moods.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let moods = moods.clone();
                tokio::spawn(async move {
                    let tls = moods.lock().unwrap().tls.clone();
                    let near: Box<dyn Io> = match tls {
                        None => Box::new(near),
                        Some(tls) => match tls.accept(near).await {
                            Ok(near) => Box::new(near),
                            Err(_) => return,
                        },
                    };
                    // However it ends, both ends are closed.
                    let _ = carry(near, &moods).await;
                });
            }
        });
        line
    }

    pub fn lead_to(&self, server: u16) {
        self.moods.lock().unwrap().server = server;
    }

    /// The next request of this kind is cut.
    pub fn cut(&self, key: ApiKey, how: Cut) {
        self.moods.lock().unwrap().cut = Some((key, how));
    }

    pub fn has_cut(&self) -> bool {
        self.moods.lock().unwrap().cut.is_none()
    }

    pub fn set(&self, change: impl FnOnce(&mut Moods)) {
        change(&mut self.moods.lock().unwrap());
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let len = io.read_i32().await?;
    let mut frame = vec![0; usize::try_from(len).unwrap()];
    io.read_exact(&mut frame).await?;
    Ok(frame.into())
}

async fn write(io: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> std::io::Result<()> {
    let whole = [&(frame.len() as i32).to_be_bytes()[..], frame].concat();
    io.write_all(&whole).await?;
    io.flush().await
}

/// A request at a time, as the sink sends them.
async fn carry(mut near: Box<dyn Io>, moods: &Mutex<Moods>) -> std::io::Result<()> {
    let server = moods.lock().unwrap().server;
    let mut far = TcpStream::connect(("127.0.0.1", server)).await?;
    far.set_nodelay(true)?;
    let mut is_in = moods.lock().unwrap().login.is_none();
    let mut challenge = None;
    loop {
        let request = read(&mut near).await?;
        let mut body = request.clone();
        let header = decode_request_header_from_buffer(&mut body).unwrap();
        let key = ApiKey::try_from(header.request_api_key).unwrap();
        let own = {
            let mut moods = moods.lock().unwrap();
            moods.asked.push(header.request_api_key);
            match key {
                ApiKey::SaslHandshake => Some(greet(&header, body)),
                ApiKey::SaslAuthenticate => Some(admit(&header, body, &moods, &mut is_in, &mut challenge)),
                // A broker that wants to know who it is says nothing else.
                _ if !is_in && key != ApiKey::ApiVersions => return Ok(()),
                ApiKey::Produce => refuse(&header, body, &moods),
                ApiKey::Metadata => describe(&header, body, &moods),
                _ => None,
            }
        };
        if let Some(own) = own {
            write(&mut near, &own).await?;
            continue;
        }
        let cut = moods.lock().unwrap().cut.take_if(|(wanted, _)| *wanted == key);
        match cut {
            Some((_, Cut::Before)) => return Ok(()),
            Some((_, Cut::Half)) => {
                far.write_all(&(request.len() as i32).to_be_bytes()).await?;
                return far.write_all(&request[..request.len() / 2]).await;
            }
            _ => write(&mut far, &request).await?,
        }
        let answer = read(&mut far).await?;
        if cut.is_some() {
            return Ok(());
        }
        while moods.lock().unwrap().holds {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        write(&mut near, &answer).await?;
    }
}

fn answer<R: Encodable + HeaderVersion>(header: &RequestHeader, answer: &R) -> Bytes {
    let version = header.request_api_version;
    let mut frame = BytesMut::new();
    let head = ResponseHeader::default().with_correlation_id(header.correlation_id);
    head.encode(&mut frame, R::header_version(version)).unwrap();
    answer.encode(&mut frame, version).unwrap();
    frame.freeze()
}

/// What a broker answers that takes none of it. Nothing of it is stored: so it is with Kafka for a batch that is refused.
fn refuse(header: &RequestHeader, mut body: Bytes, moods: &Moods) -> Option<Bytes> {
    if moods.refuses.is_none() && moods.poison.is_none() {
        return None;
    }
    let request = ProduceRequest::decode(&mut body, header.request_api_version).unwrap();
    let mut is_poisoned = false;
    let topics = request.topic_data.into_iter().map(|topic| {
        let partitions = topic.partition_data.into_iter().map(|partition| {
            let mut response = PartitionProduceResponse::default().with_index(partition.index);
            if let Some(code) = moods.refuses {
                response.error_code = code;
            }
            if let Some((poison, code, is_named)) = moods.poison {
                let mut records = partition.records.unwrap();
                let records = RecordBatchDecoder::decode(&mut records).unwrap().records;
                let holds = |value: &Bytes| String::from_utf8_lossy(value).contains(poison);
                let bad: Vec<i32> = std::iter::zip(0.., &records)
                    .filter(|(_, record)| record.value.as_ref().is_some_and(holds))
                    .map(|(place, _)| place)
                    .collect();
                if !bad.is_empty() {
                    is_poisoned = true;
                    response.error_code = code;
                    if is_named {
                        let error = |place| BatchIndexAndErrorMessage::default().with_batch_index(place);
                        response.record_errors = bad.into_iter().map(error).collect();
                    }
                }
            }
            response
        });
        TopicProduceResponse::default()
            .with_name(topic.name)
            .with_partition_responses(partitions.collect())
    });
    let topics: Vec<_> = topics.collect();
    if moods.refuses.is_none() && !is_poisoned {
        return None;
    }
    // The other partitions of a request that is answered here have to be refused, too, in a way that they are sent again.
    let topics = topics.into_iter().map(|mut topic| {
        for response in &mut topic.partition_responses {
            if response.error_code == 0 {
                response.error_code = 6;
            }
        }
        topic
    });
    Some(answer(
        header,
        &ProduceResponse::default().with_responses(topics.collect()),
    ))
}

fn describe(header: &RequestHeader, mut body: Bytes, moods: &Moods) -> Option<Bytes> {
    let code = moods.topic_code?;
    let request = MetadataRequest::decode(&mut body, header.request_api_version).unwrap();
    let topics = request.topics.unwrap_or_default().into_iter().map(|topic| {
        MetadataResponseTopic::default()
            .with_name(topic.name)
            .with_error_code(code)
    });
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(1))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(1);
    let described = MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_topics(topics.collect());
    Some(answer(header, &described))
}

fn greet(header: &RequestHeader, mut body: Bytes) -> Bytes {
    let request = SaslHandshakeRequest::decode(&mut body, header.request_api_version).unwrap();
    let known = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
    let code = if known.contains(&&*request.mechanism) { 0 } else { 33 };
    let known = known.into_iter().map(StrBytes::from_static_str).collect();
    answer(
        header,
        &SaslHandshakeResponse::default()
            .with_error_code(code)
            .with_mechanisms(known),
    )
}

/// Where a conversation is that proves a password.
struct Challenge {
    first: String,
    said: String,
}

const SALT: &[u8] = b"salt of the line";
const ROUNDS: std::num::NonZeroU32 = std::num::NonZeroU32::new(4096).unwrap();

fn admit(
    header: &RequestHeader,
    mut body: Bytes,
    moods: &Moods,
    is_in: &mut bool,
    challenge: &mut Option<Challenge>,
) -> Bytes {
    let request = SaslAuthenticateRequest::decode(&mut body, header.request_api_version).unwrap();
    let token = String::from_utf8(request.auth_bytes.to_vec()).unwrap();
    let (user, password) = moods.login.clone().unwrap_or_default();
    let said = if let Some(first) = token.strip_prefix("n,,") {
        let nonce = first.split_once("r=").unwrap().1;
        let said = format!("r={nonce}line,s={},i={ROUNDS}", STANDARD.encode(SALT));
        *challenge = Some(Challenge {
            first: first.to_owned(),
            said: said.clone(),
        });
        Some(said)
    } else if let Some(open) = challenge.take() {
        let proved = prove(&open, &token, &user, &password);
        *is_in = proved.is_some();
        proved
    } else {
        *is_in = token == format!("\0{user}\0{password}");
        is_in.then(String::new)
    };
    let response = match said {
        Some(said) => SaslAuthenticateResponse::default().with_auth_bytes(said.into()),
        None => SaslAuthenticateResponse::default()
            .with_error_code(58)
            // Some brokers say back what they were sent.
            .with_error_message(Some(StrBytes::from_string(format!(
                "not the password of {user}: {token}"
            )))),
    };
    answer(header, &response)
}

/// The server's last message, where the client has proved that it knows the password (RFC 5802, with SHA-512).
fn prove(open: &Challenge, token: &str, user: &str, password: &str) -> Option<String> {
    let (bare, proof) = token.rsplit_once(",p=").unwrap();
    let mut salted = [0; 64];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA512,
        ROUNDS,
        SALT,
        password.as_bytes(),
        &mut salted,
    );
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, key), text);
    let client_key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA512, client_key.as_ref());
    let signed = format!("{},{},{bare}", open.first, open.said);
    let signature = sign(stored.as_ref(), signed.as_bytes());
    let expected: Vec<u8> = std::iter::zip(client_key.as_ref(), signature.as_ref())
        .map(|(one, other)| one ^ other)
        .collect();
    let is_user = open.first.starts_with(&format!("n={user},"));
    let server_key = sign(&salted, b"Server Key");
    let last = sign(server_key.as_ref(), signed.as_bytes());
    (is_user && STANDARD.decode(proof).unwrap() == expected).then(|| format!("v={}", STANDARD.encode(last.as_ref())))
}
