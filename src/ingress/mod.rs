//! The public listener: takes requests within its limits, and answers each one as the contract says.
//!
//! The order of checks keeps work small for those who can't sign: path, method, declared length, the look of the signature
//! headers, then the body (within size, time and memory limits), then the signature itself, and only then the log.

pub mod front;
pub mod memory;
pub mod verify;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::close::Heard;
use crate::event::Source;
use crate::ingress::verify::{Claim, HASH_HEADER, TIMESTAMP_HEADER, Unverified, Verifier};
use crate::listener::abuse::Seat;
use crate::log::{AppendError, Appended, Incoming, Log};
use crate::telemetry;
use memory::{Budget, Share};

/// Names that are looked for or given in every request, read once.
static TIMESTAMP: HeaderName = HeaderName::from_static(TIMESTAMP_HEADER);
static HASH: HeaderName = HeaderName::from_static(HASH_HEADER);
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Seconds after which a refused sender is asked to come again.
const RETRY_AFTER_SECONDS: &str = "5";

/// Longest wait for a commit: then the sender is asked to come again. The event may still be stored; it will be a duplicate.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);

/// Slowest sender, in bytes a second, once it has had two seconds.
const PACE_MIN: u64 = 1024;

/// Others need the memory more, or there is none left.
const NO_ROOM: Answer = Answer::Unavailable("too many bodies are being received");

/// How long a sender that was refused may go on sending what nobody wants.
const LINGER: Duration = Duration::from_secs(2);

/// What the listener needs to answer.
#[derive(Debug)]
pub struct Ingress {
    /// Where events go.
    pub log: Arc<dyn Log>,
    /// The live keys; exchanged on reload.
    pub verifier: Arc<ArcSwap<Verifier>>,
    /// Whose deliveries were duplicates.
    pub heard: Arc<Heard>,
    /// Further paths are 404.
    pub path: String,
    /// Largest body, in bytes.
    pub body_max: u64,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// Memory for bodies.
    pub memory: Arc<Budget>,
}

/// Every answer of the public listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Appended(Appended),
    Unauthorized,
    TooLarge,
    NotFound,
    MethodNotAllowed,
    Timeout,
    BadBody,
    Unavailable(&'static str),
}

impl Ingress {
    /// Answers one request of a client; over a connection of the listener, with its seat.
    pub async fn answer<B>(
        self: Arc<Self>,
        request: Request<B>,
        peer: IpAddr,
        seat: Option<&Seat>,
    ) -> Result<Response<Full<Bytes>>, Infallible>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let (head, mut body) = request.into_parts();
        let answer = self.decide(&head, &mut body, peer, seat).await;
        let mut response = respond(answer);
        if head.method == Method::HEAD {
            // HTTP/2 would send it.
            *response.body_mut() = Full::default();
        }
        // A sender that was told to wait before it sends sends nothing now.
        if !head.headers.contains_key(EXPECT) {
            self.let_finish(body, answer);
        }
        Ok(response)
    }

    /// Reads and forgets the little that a refused sender still has to send: senders that only listen when they have sent
    /// everything would otherwise meet a closed connection and never see the answer. Bounded in bytes and in time.
    fn let_finish<B>(&self, mut body: B, answer: Answer)
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let is_refusal = matches!(
            answer,
            Answer::Unauthorized
                | Answer::TooLarge
                | Answer::NotFound
                | Answer::MethodNotAllowed
                | Answer::Unavailable(_)
        );
        let mut left = self.body_max.saturating_mul(2);
        if !is_refusal || body.is_end_stream() || body.size_hint().lower() > left {
            return;
        }
        tokio::spawn(tokio::time::timeout(LINGER, async move {
            while let Some(Ok(frame)) = body.frame().await {
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                match left.checked_sub(len) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        }));
    }

    async fn decide<B>(&self, head: &Parts, body: &mut B, peer: IpAddr, seat: Option<&Seat>) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if head.uri.path() != self.path {
            return Answer::NotFound;
        }
        if head.method != Method::POST {
            return Answer::MethodNotAllowed;
        }
        // The declared length, where there is one.
        if body.size_hint().lower() > self.body_max {
            return Answer::TooLarge;
        }
        let values = |name: &HeaderName| head.headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        let claim = match Claim::read(values(&TIMESTAMP), values(&HASH)) {
            Ok(claim) => claim,
            Err(refusal) => {
                telemetry::refused(refusal.label(), peer);
                return Answer::Unauthorized;
            }
        };
        let mut share = self.memory.share(peer);
        let mut timer = pin!(sleep_until(Instant::now() + self.body_timeout));
        let body = match self.receive(body, &mut share, timer.as_mut()).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let now = Timestamp::now();
        let signed_at = claim.signed_at();
        let verified = match self.verifier.load().verify(Unverified { claim, body }, now) {
            Ok(verified) => verified,
            Err(refusal) => {
                if refusal.is_about_time() {
                    telemetry::untimely(now, signed_at);
                }
                telemetry::refused(refusal.label(), peer);
                return Answer::Unauthorized;
            }
        };
        // From here on it is a good one, whatever becomes of it: nothing is taken from it for others.
        if let Some(seat) = seat {
            seat.verified(peer);
        }
        share.prove();
        let (signature, body, view) = verified.into_parts();
        let subscription_id = view.as_ref().and_then(|view| view.subscription_id.clone());
        let incoming = Incoming {
            body,
            received_at: now,
            source: Source::Webhook,
            signature: Some(signature),
            view,
            held: false,
            partial: false,
            ticket: Some(Box::new(share)),
        };
        let patience_end = Instant::now() + COMMIT_PATIENCE;
        match until(patience_end, timer, self.log.append(incoming)).await {
            Some(Ok(appended)) => {
                match appended {
                    Appended::Stored(_) => {}
                    Appended::Duplicate(_) | Appended::Quarantined { repeated: true, .. } => {
                        telemetry::duplicate();
                        if let Some(id) = subscription_id {
                            self.heard.note(&id);
                        }
                    }
                    Appended::Quarantined { seq, .. } => telemetry::quarantined(seq),
                }
                Answer::Appended(appended)
            }
            Some(Err(error)) => Answer::Unavailable(match error {
                AppendError::Full(_) => "the disk is full",
                AppendError::Failing(_) => "events can't be stored now",
                AppendError::Overloaded => "too many events are waiting",
                AppendError::Closed => "shutting down",
            }),
            None => Answer::Unavailable("storing took too long"),
        }
    }

    async fn receive<B>(&self, body: &mut B, share: &mut Share, mut timer: Pin<&mut Sleep>) -> Result<Bytes, Answer>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let began = Instant::now();
        let end = began + self.body_timeout;
        let mut received = 0_u64;
        while !body.is_end_stream() {
            // Two seconds for everybody, and then as long as the pace is kept.
            let pace_end = began + Duration::from_secs(2 + received / PACE_MIN);
            let frame = tokio::select! {
                () = share.taken_away() => return Err(NO_ROOM),
                frame = until(end.min(pace_end), timer.as_mut(), body.frame()) => frame,
            };
            let frame = match frame {
                None => return Err(Answer::Timeout),
                Some(None) => break,
                Some(Some(Err(_))) => return Err(Answer::BadBody),
                Some(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            received += data.len() as u64;
            if received > self.body_max {
                return Err(Answer::TooLarge);
            }
            if !share.add(&data, body.is_end_stream()) {
                return Err(NO_ROOM);
            }
        }
        share.finish().ok_or(NO_ROOM)
    }
}

/// Waits for something at most until then; `None` when it is too late. Every wait of a request uses one timer: to put it off costs
/// little, to make another one takes a lock that all of them share.
async fn until<F: Future>(end: Instant, mut timer: Pin<&mut Sleep>, something: F) -> Option<F::Output> {
    timer.as_mut().reset(end);
    tokio::select! {
        biased;
        output = something => Some(output),
        () = timer => None,
    }
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let error = |status: StatusCode, text: &str| (status, format!("{{\"error\":\"{text}\"}}\n"));
    let stored =
        |status: &str, seq: crate::event::Seq| (StatusCode::OK, format!("{{\"status\":\"{status}\",\"seq\":{seq}}}\n"));
    let (label, (status, text)) = match answer {
        Answer::Appended(Appended::Stored(seq)) => ("stored", stored("stored", seq)),
        Answer::Appended(Appended::Duplicate(seq)) => ("duplicate", stored("duplicate", seq)),
        Answer::Appended(Appended::Quarantined { seq, .. }) => ("quarantined", stored("quarantined", seq)),
        Answer::Unauthorized => (
            "unauthorized",
            error(StatusCode::UNAUTHORIZED, "the signature is missing or wrong"),
        ),
        Answer::TooLarge => (
            "too_large",
            error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
        ),
        Answer::NotFound => ("not_found", error(StatusCode::NOT_FOUND, "there is nothing here")),
        Answer::MethodNotAllowed => (
            "method",
            error(StatusCode::METHOD_NOT_ALLOWED, "only POST is allowed here"),
        ),
        Answer::Timeout => ("timeout", error(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        Answer::BadBody => (
            "bad_request",
            error(StatusCode::BAD_REQUEST, "the body can't be received"),
        ),
        Answer::Unavailable(why) => ("unavailable", error(StatusCode::SERVICE_UNAVAILABLE, why)),
    };
    telemetry::answered(label);
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_request_id(headers);
    if answer == NO_ROOM {
        // Its body may go on, and nobody waits for it.
        headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    }
    match answer {
        Answer::MethodNotAllowed => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
        Answer::Unavailable(_) => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS))),
        // What was not read must not be taken for the next request.
        Answer::TooLarge | Answer::Timeout | Answer::BadBody => {
            headers.insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// Gives an answer the id by which people can talk about it.
pub fn add_request_id(headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::try_from(request_id()) {
        headers.insert(&REQUEST_ID, id);
    }
}

/// With what the ids of this process begin.
pub fn request_id_prefix() -> &'static str {
    static PREFIX: LazyLock<String> = LazyLock::new(|| {
        let mut random = [0; 6];
        // Without randomness ids are still unique in this process.
        let _ = getrandom::fill(&mut random);
        format!("{}-", hex::encode(random))
    });
    &PREFIX
}

/// Unique in this process' life and unlikely to be met again after it.
fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}{:x}", request_id_prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}
