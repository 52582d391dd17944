//! What streams to a browser: how much of it there may be at a time, and that what is looked at ends with who looks.
//!
//! A stream is pulled by the connection it goes over: a reader that is slow slows it, one that has gone ends it, and between two of its
//! steps it holds nothing but its place.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use futures::stream::unfold;

use super::places::Streaming;
use super::refused::Refused;
use super::state::AdminState;
use super::viewer::{Viewer, time_left};
use crate::control::Told;
use crate::listener::standing::{Running, Standing};

/// So often a stream on which nothing happens says that it is there, and finds out whether anybody is.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// What gives a stream's next event; `None` at the end.
pub trait Source: Send + 'static {
    /// The next one.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// Streams from a source to a viewer: until it ends, the viewer goes or may look no more, or the daemon stops.
pub fn streamed(
    state: &AdminState,
    viewer: &Viewer,
    standing: Option<&Arc<Standing>>,
    source: impl Source,
) -> Result<Response, Refused> {
    let place = state.stream(viewer)?;
    // A connection on which something is streamed is not idle.
    let running: Option<Running> = standing.map(|standing| standing.begin(false));
    let held = Held {
        source,
        over: viewer.over.clone(),
        stop: state.stop().clone(),
        until: tokio::time::Instant::now().checked_add(time_left(viewer, state.auth().now())),
        _place: place,
        _running: running,
    };
    let sse = Sse::new(events(held)).keep_alive(KeepAlive::new().interval(ALIVE_EVERY));
    let mut response = sse.into_response();
    let no = HeaderValue::from_static("no");
    // A proxy in front of it has to pass on what comes, when it comes.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), no);
    Ok(response)
}

struct Held<S> {
    source: S,
    over: tokio_util::sync::CancellationToken,
    stop: tokio_util::sync::CancellationToken,
    until: Option<tokio::time::Instant>,
    _place: Streaming,
    _running: Option<Running>,
}

fn events<S: Source>(held: Held<S>) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    unfold(held, |mut held| async move {
        let until = held.until;
        let too_long = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            () = held.over.cancelled() => None,
            () = held.stop.cancelled() => None,
            () = too_long => None,
            event = held.source.next() => event,
        };
        event.map(|event| (Ok(event), held))
    })
}

/// Streams every answer as it comes, then how it ended: `answer`, and `done` or `failed`.
pub struct AsTheyCome<T>(Option<Told<T>>);

impl<T> AsTheyCome<T> {
    /// Of these answers.
    pub fn new(told: Told<T>) -> AsTheyCome<T> {
        AsTheyCome(Some(told))
    }
}

impl<T: Send + 'static> Source for AsTheyCome<T> {
    async fn next(&mut self) -> Option<Event> {
        match self.0.as_mut()?.next_text().await {
            Some(Ok(answer)) => Some(Event::default().event("answer").data(answer.get())),
            None => {
                self.0 = None;
                Some(Event::default().event("done").data("{}"))
            }
            Some(Err(refusal)) => {
                self.0 = None;
                let error = serde_json::json!({ "error": { "message": refusal } });
                Some(Event::default().event("failed").data(error.to_string()))
            }
        }
    }
}
