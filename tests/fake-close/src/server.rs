//! The edge: sockets, the clock, and what moves the world along. Everything that is decided is decided in [`World`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::api::{Request, Sent};
use super::control::{Done, HELP};
use super::dispatch::Attempt;
use super::fault::Kind;
use super::moment::Moment;
use super::sender::Sender;
use super::world::World;

/// Largest request body.
const BODY_MAX: usize = 8 << 20;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 1000;

/// How often real time is looked at when nothing is known to be due.
const TICK: Duration = Duration::from_millis(100);

type Response = hyper::Response<BoxBody<Bytes, io::Error>>;

/// How simulated time goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// It stands still but for `POST /fake/clock`.
    Virtual,
    /// By itself, so many times as fast as the machine's clock, from when the world began.
    Real {
        /// 1.0 is as fast as time goes.
        speed: f64,
    },
}

/// What the clock did on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Advanced {
    /// Webhook requests attempted.
    pub attempts: u64,
}

/// The world, and what is around it.
#[derive(Debug)]
pub struct Shared {
    world: Mutex<World>,
    sender: Sender,
    pace: Pace,
    began: (Instant, Moment),
    /// One at a time moves the world along.
    moving: tokio::sync::Mutex<()>,
}

impl Shared {
    pub fn new(world: World, pace: Pace) -> Result<Shared, String> {
        Ok(Shared {
            began: (Instant::now(), world.now()),
            world: Mutex::new(world),
            sender: Sender::new()?,
            pace,
            moving: tokio::sync::Mutex::new(()),
        })
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        // Whoever panicked with it was a test, and says so itself.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn settle(&self, attempt: Attempt, delivered: bool) {
        // In virtual time an attempt takes no time.
        let at = match self.pace {
            Pace::Virtual => attempt.due,
            Pace::Real { .. } => self.real_now().max(attempt.due),
        };
        self.world().settle(attempt, delivered, at);
    }

    fn real_now(&self) -> Moment {
        let (instant, moment) = self.began;
        match self.pace {
            Pace::Virtual => self.world().now(),
            Pace::Real { speed } => moment.plus(instant.elapsed().mul_f64(speed)),
        }
    }

    /// Makes it `until`, and comes back when everything that was due by then was attempted.
    pub async fn advance(self: &Arc<Self>, until: Moment) -> Advanced {
        let shared = self.clone();
        // In a task of its own: an attempt that was begun must be settled even if nobody waits for it any more.
        let moved = tokio::spawn(async move { shared.move_on(until).await }).await;
        match moved.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(advanced) => advanced,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(Err(_)) => Advanced::default(),
        }
    }

    async fn move_on(&self, until: Moment) -> Advanced {
        let _moving = self.moving.lock().await;
        let mut advanced = Advanced::default();
        loop {
            let batch = self.world().take_due(until);
            if batch.is_empty() {
                return advanced;
            }
            advanced.attempts += batch.len() as u64;
            self.sender.send(self, batch).await;
        }
    }

    /// Follows real time until `shutdown`.
    async fn follow(self: &Arc<Self>, shutdown: CancellationToken) {
        let Pace::Real { speed } = self.pace else {
            return;
        };
        while !shutdown.is_cancelled() {
            self.advance(self.real_now()).await;
            let due = self.world().next_due();
            let wait = due.map_or(TICK, |due| due.since(self.real_now()).div_f64(speed.max(f64::EPSILON)));
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(wait.clamp(Duration::from_millis(1), TICK)) => {}
            }
        }
    }
}

/// Serves the API, the control API and real time until `shutdown`.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let follower = {
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        tokio::spawn(async move { shared.follow(shutdown).await })
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let (stream, peer, place) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => match accepted {
                Some((Ok((stream, peer)), place)) => (stream, peer, place),
                Some((Err(error), _)) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(TICK).await;
                    continue;
                }
                None => break,
            },
        };
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(stream, peer, &shared) => {}
            }
            drop(place);
        });
    }
    let _ = follower.await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, peer.ip(), shared));
    // An error is a client that went away, or an answer that was to be dropped.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: hyper::Request<Incoming>, peer: IpAddr, shared: &Arc<Shared>) -> io::Result<Response> {
    let (head, body) = request.into_parts();
    let (method, path) = (head.method.as_str(), head.uri.path());
    let query = head.uri.query().unwrap_or_default();
    let Ok(body) = Limited::new(body, BODY_MAX).collect().await else {
        return respond(413, &[], "");
    };
    let body = body.to_bytes();
    if path == "/fake" || path.starts_with("/fake/") {
        return control(method, path, query, &body, peer, shared).await;
    }
    let (delay, fault) = shared.world().faults.befall(method, path);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let request = Request {
        method,
        path,
        query,
        authorization: header("authorization"),
        content_type: header("content-type"),
        body: &body,
    };
    let (mut reply, now) = {
        let mut world = shared.world();
        (world.answer(&request, Moment::wall(), fault.as_ref()), world.now())
    };
    if let Some(late) = fault.filter(|fault| fault.kind == Kind::Late) {
        tokio::time::sleep(Duration::from_millis(late.delay_ms)).await;
    }
    // The time at Close is the simulated one, and clients go by it.
    reply.headers.push(("date", now.http_date()));
    match reply.sent {
        Sent::Whole => respond(reply.status, &reply.headers, reply.body),
        Sent::Nothing => Err(broken()),
        Sent::Half => {
            let half = Ok(Frame::data(Bytes::from(reply.body)));
            let end = async {
                // What was written so far is sent while there is nothing more to write.
                tokio::task::yield_now().await;
                Err(broken())
            };
            let frames = futures::stream::iter([half]).chain(futures::stream::once(end));
            respond_with(reply.status, &reply.headers, BoxBody::new(StreamBody::new(frames)))
        }
    }
}

fn broken() -> io::Error {
    io::Error::other("the connection breaks here, as ordered")
}

async fn control(
    method: &str,
    path: &str,
    query: &str,
    body: &[u8],
    peer: IpAddr,
    shared: &Arc<Shared>,
) -> io::Result<Response> {
    const JSON: (&str, &str) = ("content-type", "application/json");
    let json = |status, value: serde_json::Value| respond(status, &[(JSON.0, JSON.1.into())], value.to_string() + "\n");
    if !peer.is_loopback() {
        return json(
            403,
            serde_json::json!({ "error": "the control API answers this machine only" }),
        );
    }
    let done = shared.world().control(method, path, query, body);
    match done {
        Ok(Done::Json(value)) => json(200, value),
        Ok(Done::Lines(text)) => respond(200, &[("content-type", "application/jsonl".into())], text),
        Ok(Done::Help) => respond(200, &[("content-type", "text/plain; charset=utf-8".into())], HELP),
        Ok(Done::Advance(until)) => {
            if shared.pace != Pace::Virtual {
                let error = "the clock goes by itself: start the fake with --virtual to drive it";
                return json(400, serde_json::json!({ "error": error }));
            }
            let advanced = shared.advance(until).await;
            let mut answer = shared.world().stats();
            answer["attempts"] = advanced.attempts.into();
            json(200, answer)
        }
        Ok(Done::Unknown) => json(404, serde_json::json!({ "error": "GET /fake/ lists what there is" })),
        Err(error) => json(400, serde_json::json!({ "error": error })),
    }
}

fn respond(status: u16, headers: &[(&'static str, String)], body: impl Into<String>) -> io::Result<Response> {
    let body = Full::new(Bytes::from(body.into())).map_err(|never| match never {});
    respond_with(status, headers, BoxBody::new(body))
}

fn respond_with(
    status: u16,
    headers: &[(&'static str, String)],
    body: BoxBody<Bytes, io::Error>,
) -> io::Result<Response> {
    let mut response = hyper::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(body).map_err(io::Error::other)
}
