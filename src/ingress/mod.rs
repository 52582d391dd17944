//! The public listener: takes requests within its limits, and answers each one as the contract says.
//!
//! The order of checks keeps work small for those who can't sign: path, method, declared length, the look of the signature
//! headers, then the body (within size, time and memory limits), then the signature itself, and only then the log.

mod answer;
pub mod front;
pub mod heard;
pub mod memory;
pub mod verify;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{EXPECT, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use jiff::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::event::Source;
use crate::ingress::verify::{Claim, HASH_HEADER, Refusal, TIMESTAMP_HEADER, Unverified, Verified, Verifier};
use crate::listener::abuse::Seat;
use crate::log::{AppendError, Appended, Incoming, Log};
use crate::task;
use crate::telemetry;
use crate::telemetry::door::{Door, OffTime};
use answer::{Answer, Why, respond};
use heard::Heard;
use memory::{Budget, Share};

pub use answer::{add_request_id, request_id, request_id_prefix};

/// Names that are looked for or given in every request, read once.
static TIMESTAMP: HeaderName = HeaderName::from_static(TIMESTAMP_HEADER);
static HASH: HeaderName = HeaderName::from_static(HASH_HEADER);
static SAMPLE: HeaderName = HeaderName::from_static(SAMPLE_HEADER);

/// With deliveries that closehook itself has signed, to try its way: all else is as with Close's, but that they tell nobody the time. Close
/// sends no such header, and whoever else does is believed less for it.
pub const SAMPLE_HEADER: &str = "closehook-sample";

/// Longest wait for a commit: then the sender is asked to come again. The event may still be stored; it will be a duplicate.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);

/// Slowest sender, in bytes a second, once it has had two seconds.
const PACE_MIN: u64 = 1024;

/// Others need the memory more, or there is none left.
const NO_ROOM: Answer = Answer::Unavailable(Why::NoRoom);

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
    /// Sees what comes, for whoever asks.
    pub door: Arc<Door>,
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
        let taken = self.take(&head, &mut body, peer, seat).await;
        let answer = taken.map_or_else(|answer| answer, Answer::Appended);
        self.count(answer);
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
        task::begin(tokio::time::timeout(LINGER, async move {
            while let Some(Ok(frame)) = body.frame().await {
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                match left.checked_sub(len) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        }));
    }

    /// Every check in its order, and then the log. `Err` is the answer to what was not taken.
    async fn take<B>(&self, head: &Parts, body: &mut B, peer: IpAddr, seat: Option<&Seat>) -> Result<Appended, Answer>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        // The declared length, where there is one.
        let claim = self.look_at(head, body.size_hint().lower(), peer)?;
        let mut share = self.memory.share(peer);
        let mut timer = pin!(sleep_until(Instant::now() + self.body_timeout));
        let body = self.receive(body, &mut share, timer.as_mut()).await?;
        let now = Timestamp::now();
        let is_own = head.headers.contains_key(&SAMPLE);
        let verified = self.verify(Unverified { claim, body }, is_own, now, peer)?;
        // From here on it is a good one, whatever becomes of it: nothing is taken from it for others.
        if let Some(seat) = seat {
            seat.verified(peer);
        }
        share.prove();
        self.store(verified, now, share, timer).await
    }

    /// What can be told before a byte of the body is here.
    fn look_at(&self, head: &Parts, declared_len: u64, peer: IpAddr) -> Result<Claim, Answer> {
        if head.uri.path() != self.path {
            return Err(Answer::NotFound);
        }
        if head.method != Method::POST {
            return Err(Answer::MethodNotAllowed);
        }
        if declared_len > self.body_max {
            return Err(Answer::TooLarge);
        }
        let values = |name: &HeaderName| head.headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        Claim::read(values(&TIMESTAMP), values(&HASH)).map_err(|refusal| {
            self.door.refused(refusal.label(), peer);
            Answer::Unauthorized
        })
    }

    /// Whoever can't prove that he is Close gets one answer, whatever is wrong; what it is stays here.
    fn verify(&self, unverified: Unverified, is_own: bool, now: Timestamp, peer: IpAddr) -> Result<Verified, Answer> {
        let signed_at = Timestamp::from_second(unverified.claim.signed_at()).unwrap_or(Timestamp::MAX);
        let verified = self.verifier.load().verify(unverified, now);
        match &verified {
            Ok(_) => self.door.taken(now, signed_at),
            Err(refusal @ (Refusal::Stale | Refusal::Future)) => {
                let off = OffTime {
                    received_at: now,
                    signed_at,
                };
                self.door.off_time(refusal.label(), off, peer);
            }
            Err(refusal) => self.door.refused(refusal.label(), peer),
        }
        // What was signed here says what the clock here says.
        if !is_own && matches!(verified, Ok(_) | Err(Refusal::Stale | Refusal::Future)) {
            self.door.told(signed_at);
        }
        verified.map_err(|_| match self.log.absent() {
            // What other nodes have made may be among the keys that are not known here yet.
            Some(_) => Answer::Unavailable(Why::Failing),
            None => Answer::Unauthorized,
        })
    }

    /// Hands over to the log what Close signed, and waits until it is durable.
    async fn store(
        &self,
        verified: Verified,
        received_at: Timestamp,
        share: Share,
        timer: Pin<&mut Sleep>,
    ) -> Result<Appended, Answer> {
        let (signature, body, view) = verified.into_parts();
        let subscription_id = view.as_ref().and_then(|view| view.subscription_id.clone());
        let incoming = Incoming {
            body,
            received_at,
            source: Source::Webhook,
            signature: Some(signature),
            view,
            held: false,
            partial: false,
            ticket: Some(Box::new(share)),
        };
        let appended = committed(self.log.append(incoming), timer).await?;
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
        Ok(appended)
    }

    fn count(&self, answer: Answer) {
        self.door.answered(answer.counted());
        if let Answer::Unavailable(why) = answer {
            self.door.unavailable(why.label());
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

/// Waits for a commit for as long as a sender may be kept.
async fn committed(
    appending: impl Future<Output = Result<Appended, AppendError>>,
    timer: Pin<&mut Sleep>,
) -> Result<Appended, Answer> {
    let appended = until(Instant::now() + COMMIT_PATIENCE, timer, appending).await;
    appended.ok_or(Answer::Unavailable(Why::Slow))?.map_err(|error| {
        Answer::Unavailable(match error {
            AppendError::Full(_) => Why::Full,
            AppendError::Failing(_) => Why::Failing,
            AppendError::Overloaded => Why::Overloaded,
            AppendError::Closed => Why::Stopping,
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_does_not_come_is_waited_for_twenty_seconds() {
        let began = Instant::now();
        let timer = pin!(sleep_until(began));
        let answer = committed(pending(), timer).await;
        assert_eq!(answer, Err(Answer::Unavailable(Why::Slow)));
        assert_eq!(began.elapsed().as_secs(), 20);
    }

    #[tokio::test]
    async fn why_nothing_can_be_stored_is_told_apart() {
        let full = AppendError::Full("full".into());
        let failing = AppendError::Failing("failing".into());
        for (error, why) in [
            (full, Why::Full),
            (failing, Why::Failing),
            (AppendError::Overloaded, Why::Overloaded),
            (AppendError::Closed, Why::Stopping),
        ] {
            let timer = pin!(sleep_until(Instant::now()));
            let answer = committed(ready(Err(error)), timer).await;
            assert_eq!(answer, Err(Answer::Unavailable(why)));
        }
    }
}
