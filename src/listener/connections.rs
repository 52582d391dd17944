//! Connections: accepted within a limit, given a time for each step, and let go in good order at the end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::abuse::{Guard, Seat};
use super::acme::CHALLENGE_PROTOCOL;
use super::proxy::{Caller, Proxies};
use super::sockets::{Listener, Stream};
use super::tls::Certificates;

/// How connections are treated.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Who may speak for others.
    pub proxies: Arc<Proxies>,
    /// What one address may do.
    pub guard: Arc<Guard>,
    /// Open at a time. When all places are taken, some connections that have been idle for a moment give theirs up; where none
    /// has, who comes waits in the kernel's backlog.
    pub connections_max: usize,
    /// For a TLS handshake, and for the head of a request.
    pub head_timeout: Duration,
    /// For a connection on which nothing is going on.
    pub idle_timeout: Duration,
    /// For open requests to end when the listener stops.
    pub drain_timeout: Duration,
}

/// Largest request head, in bytes.
const HEAD_MAX: usize = 32 << 10;

/// How long a connection stays open for a request that may be on its way when the listener stops. Whoever has sent one has
/// done so in the belief that the connection lives; it is answered, and told that it was the last.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// Serves until `shutdown`, then lets open requests end. Answers come from `answer`, which is given the connection's seat: who is at the
/// other end, and how to be rid of it.
///
/// Nobody is cut off in the middle at the end: what the kernel has not handed over yet stays with it (for the next process,
/// where the socket is passed on), and what was accepted gets its answer.
pub async fn serve<A, F, B>(
    listener: Arc<Listener>,
    tls: Option<Certificates>,
    limits: Limits,
    answer: A,
    shutdown: CancellationToken,
) where
    A: Fn(Request<Incoming>, Arc<Seat>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let house = Arc::new(House {
        token: shutdown.clone(),
        stops: AtomicBool::new(false),
        crowd: Crowd::new(limits.connections_max),
    });
    let builder = Arc::new(builder(&limits));
    loop {
        let accepted = async {
            // A place first: what we can't serve stays with the kernel.
            let place = house.crowd.place(&places).await?;
            Some((listener.accept().await, place))
        };
        let (stream, peer, place) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => match accepted {
                Some((Ok((stream, peer)), place)) => (stream, peer, place),
                Some((Err(error), _)) => {
                    // Out of file descriptors, or a client that is gone already: neither ends the listener.
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                None => break,
            },
        };
        let caller = limits.proxies.caller(peer);
        let (tls, builder, answer, house) = (tls.clone(), builder.clone(), answer.clone(), house.clone());
        let limits = limits.clone();
        tokio::spawn(async move {
            metrics::gauge!("closehook_connections").increment(1.0);
            // What goes wrong before the first request is the client's business too.
            let _ = see_through(stream, caller, tls, &builder, answer, &house, &limits).await;
            metrics::gauge!("closehook_connections").decrement(1.0);
            drop(place);
        });
    }
    house.stops.store(true, Ordering::Release);
    drop(listener);
    let all_places = places.acquire_many(limits.connections_max.try_into().unwrap_or(u32::MAX));
    // Connections leave by themselves within the lame duck's time; what is still at work then has the drain's.
    if tokio::time::timeout(LAME_DUCK + limits.drain_timeout, all_places)
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time and were cut off");
    }
}

/// Sees a connection through: who it is from, the handshake, its requests.
async fn see_through<A, F, B>(
    mut stream: Stream,
    caller: Caller,
    tls: Option<Certificates>,
    builder: &auto::Builder<TokioExecutor>,
    answer: A,
    house: &Arc<House>,
    limits: &Limits,
) -> std::io::Result<()>
where
    A: Fn(Request<Incoming>, Arc<Seat>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let caller = limits
        .proxies
        .introduced(caller, &mut stream, limits.head_timeout)
        .await?;
    let Some(seat) = limits.guard.seat(caller).map(Arc::new) else {
        return Ok(());
    };
    let served = async {
        match tls {
            None => connection(stream, &seat, builder, answer, house, limits.idle_timeout).await,
            Some(tls) => {
                let stream = tokio::time::timeout(limits.head_timeout, tls.acceptor().accept(stream)).await??;
                if stream.get_ref().1.alpn_protocol() == Some(CHALLENGE_PROTOCOL) {
                    // The handshake is all that was wanted.
                    return Ok(());
                }
                connection(stream, &seat, builder, answer, house, limits.idle_timeout).await;
            }
        }
        Ok(())
    };
    tokio::select! {
        served = served => served,
        () = seat.closed() => Ok(()),
    }
}

/// What a listener's connections know of each other: whether it stops (requests look at the mark only, which costs nothing),
/// and whether places are wanted.
#[derive(Debug)]
struct House {
    token: CancellationToken,
    stops: AtomicBool,
    crowd: Crowd,
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(HEAD_MAX.max(64 << 10))
        .max_headers(64)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_pending_accept_reset_streams(Some(20))
        .keep_alive_interval(Some(limits.idle_timeout))
        .keep_alive_timeout(limits.head_timeout);
    builder
}

async fn connection<S, A, F, B>(
    stream: S,
    seat: &Arc<Seat>,
    builder: &auto::Builder<TokioExecutor>,
    answer: A,
    house: &Arc<House>,
    idle_timeout: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>, Arc<Seat>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let activity = Activity::new();
    let service = {
        let (activity, house, seat) = (activity.clone(), house.clone(), seat.clone());
        service_fn(move |request| {
            let running = activity.begin();
            let is_http1 = request.version() <= Version::HTTP_11;
            let answered = answer(request, seat.clone());
            let house = house.clone();
            async move {
                let mut response = answered.await;
                drop(running);
                if is_http1
                    && house.stops.load(Ordering::Acquire)
                    && let Ok(response) = &mut response
                {
                    response
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        })
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let lame_duck_over = async {
        house.token.cancelled().await;
        tokio::time::sleep(LAME_DUCK).await;
    };
    tokio::select! {
        // What goes wrong on a connection is the client's business.
        _ = connection.as_mut() => return,
        () = activity.idle_for(idle_timeout, &house.crowd) => return,
        () = lame_duck_over => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Knows whether requests are running on a connection, and since when none is. Requests only leave a mark; the timer looks at
/// it when its time has come, so that a busy connection is not woken for it.
#[derive(Debug)]
struct Activity {
    opened: Instant,
    running: AtomicUsize,
    /// Milliseconds after `opened` at which a request last ended.
    ended_ms: AtomicU64,
}

struct Running(Arc<Activity>);

impl Activity {
    fn new() -> Arc<Activity> {
        Arc::new(Activity {
            opened: Instant::now(),
            running: AtomicUsize::new(0),
            ended_ms: AtomicU64::new(0),
        })
    }

    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.clone())
    }

    /// How long no request has run.
    fn idle(&self) -> Duration {
        let ended = self.opened + Duration::from_millis(self.ended_ms.load(Ordering::SeqCst));
        if self.running.load(Ordering::SeqCst) == 0 {
            ended.elapsed()
        } else {
            Duration::ZERO
        }
    }

    /// Returns when no request has run for so long, or for a moment when places are wanted.
    async fn idle_for(&self, limit: Duration, crowd: &Crowd) {
        loop {
            let left = limit.saturating_sub(self.idle());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = crowd.told.notified() => {
                    if self.idle() >= MOMENT && crowd.gives_up() {
                        return;
                    }
                }
            }
        }
    }
}

/// A connection that has been idle for so long may lose its place to somebody who has something to say.
const MOMENT: Duration = Duration::from_secs(1);

/// All places are taken, and some are wanted.
#[derive(Debug)]
struct Crowd {
    /// How many at a time: telling everybody takes a while where there are many.
    batch: usize,
    wanted: AtomicUsize,
    told: Notify,
}

impl Crowd {
    fn new(connections_max: usize) -> Crowd {
        Crowd {
            batch: connections_max / 64 + 1,
            wanted: AtomicUsize::new(0),
            told: Notify::new(),
        }
    }

    /// A place, as soon as there is one; idle connections are asked for theirs until then.
    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        while places.available_permits() == 0 {
            self.wanted.store(self.batch, Ordering::SeqCst);
            self.told.notify_waiters();
            if let Ok(place) = tokio::time::timeout(MOMENT, places.clone().acquire_owned()).await {
                return place.ok();
            }
        }
        places.clone().acquire_owned().await.ok()
    }

    /// Whether one more place is wanted; it counts as given up then.
    fn gives_up(&self) -> bool {
        let one_less = |wanted: usize| wanted.checked_sub(1);
        self.wanted
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            .is_ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended_ms = self.0.opened.elapsed().as_millis() as u64;
        self.0.ended_ms.store(ended_ms, Ordering::SeqCst);
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
