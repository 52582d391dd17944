//! What streams to a browser: how much of it there may be at a time, and that what is looked at ends with who looks.
//!
//! A stream is pulled by the connection it goes over: a reader that is slow slows it, one that has gone ends it, and between two of its
//! steps it holds nothing but its place. Who reads nothing at all loses that as well, with whatever was asked: others wait for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
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
use crate::control::{Answer, Told};
use crate::listener::standing::{Running, Standing};
use crate::sync::lock;
use crate::task;

/// So often a stream on which nothing happens says that it is there, and finds out whether anybody is.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Of a reader that reads, something is pulled more often; who does not for so long has the stream no more.
const STALLED_AFTER: Duration = Duration::from_secs(60);

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
    let sse = Sse::new(Read::new(events(held))).keep_alive(KeepAlive::new().interval(ALIVE_EVERY));
    let mut response = sse.into_response();
    let no = HeaderValue::from_static("no");
    // A proxy in front of it has to pass on what comes, when it comes.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), no);
    Ok(response)
}

type Events = Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>;

/// A stream that ends when nobody pulls it any more: then all that it holds goes, although the connection is still there.
struct Read(Arc<Mutex<Pulled>>);

struct Pulled {
    /// `None`: it has ended.
    events: Option<Events>,
    at: tokio::time::Instant,
}

impl Read {
    fn new(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Read {
        let pulled = Arc::new(Mutex::new(Pulled {
            events: Some(Box::pin(events)),
            at: tokio::time::Instant::now(),
        }));
        task::begin(end_when_stalled(Arc::downgrade(&pulled)));
        Read(pulled)
    }
}

impl Stream for Read {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut pulled = lock(&self.0);
        pulled.at = tokio::time::Instant::now();
        let item = match &mut pulled.events {
            Some(events) => events.as_mut().poll_next(context),
            None => Poll::Ready(None),
        };
        if matches!(item, Poll::Ready(None)) {
            pulled.events = None;
        }
        item
    }
}

async fn end_when_stalled(pulled: Weak<Mutex<Pulled>>) {
    loop {
        let Some(until) = pulled.upgrade().map(|pulled| lock(&pulled).at + STALLED_AFTER) else {
            return;
        };
        tokio::time::sleep_until(until).await;
        let Some(pulled) = pulled.upgrade() else { return };
        let mut pulled = lock(&pulled);
        if pulled.at + STALLED_AFTER <= tokio::time::Instant::now() {
            let stalled = pulled.events.take();
            let within = STALLED_AFTER.as_secs();
            if stalled.is_some() {
                tracing::debug!("a stream of the operator's page ends: nobody has read any of it for {within} s");
            }
            return;
        }
    }
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
pub struct AsTheyCome(Option<Told<Answer>>);

impl AsTheyCome {
    /// Of these answers, whatever their type.
    pub fn new<T: Send + 'static>(told: Told<T>) -> AsTheyCome {
        AsTheyCome(Some(told.as_sent()))
    }
}

impl Source for AsTheyCome {
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

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::admin::places::Streams;

    struct Endless;

    impl Source for Endless {
        async fn next(&mut self) -> Option<Event> {
            Some(Event::default().data("x"))
        }
    }

    fn held(place: Streaming) -> Held<Endless> {
        Held {
            source: Endless,
            over: tokio_util::sync::CancellationToken::new(),
            stop: tokio_util::sync::CancellationToken::new(),
            until: None,
            _place: place,
            _running: None,
        }
    }

    /// A client that keeps its connection and reads nothing has everybody else's place.
    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_loses_the_place_and_who_reads_slowly_keeps_it() {
        let streams = Streams::default();
        let mut taken = Vec::new();
        while let Ok(place) = streams.begin("somebody") {
            taken.push(Read::new(events(held(place))));
        }
        let mut slow = taken.remove(0);
        for stalled in &mut taken {
            assert!(stalled.next().await.is_some());
        }
        for _ in 0..5 {
            assert!(slow.next().await.is_some(), "it is read now and then");
            tokio::time::sleep(STALLED_AFTER / 2).await;
        }
        let places = taken.len();
        for _ in 0..places {
            std::mem::forget(streams.begin("somebody").unwrap());
        }
        assert!(streams.begin("somebody").is_err(), "the slow one has its own");
        assert!(taken[0].next().await.is_none(), "it has ended");
        drop(slow);
        assert!(streams.begin("somebody").is_ok());
    }
}
