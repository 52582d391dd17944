//! Connections: accepted within a limit, given a time for each step, and let go in good order at the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::abuse::{Guard, Seat};
use super::acme::CHALLENGE_PROTOCOL;
use super::certificates::Certificates;
use super::proxy::{Caller, Proxies};
use super::sockets::{Listener, Stream};
use super::standing::{Crowd, Heard, Place, Standing};
use super::unreadable::{Name, Named};
use crate::task;

/// How connections are treated.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Who may speak for others.
    pub proxies: Arc<Proxies>,
    /// What one address may do.
    pub guard: Arc<Guard>,
    /// Open at a time. When places are short, some connections give theirs up: first those that have been idle for a moment and
    /// never delivered, then those that have been sending a request for long and never delivered. Where there is none of
    /// them, who comes waits in the kernel's backlog.
    pub connections_max: usize,
    /// For a TLS handshake, and for the head of a request: the first one from when the connection is there, others from their
    /// first byte.
    pub head_timeout: Duration,
    /// For a connection on which nothing is going on between requests.
    pub idle_timeout: Duration,
    /// For open requests to end when the listener stops.
    pub drain_timeout: Duration,
    /// Whether they are the public listener's, which a metric counts.
    pub are_counted: bool,
    /// Gives an id to the answers to what can't be read as a request; `None`: they have none.
    pub name: Option<Name>,
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
    let crowd = Crowd::new(limits.connections_max, limits.patience());
    let house = Arc::new(House {
        builder: builder(&limits),
        token: shutdown.clone(),
        stops: AtomicBool::new(false),
        tls,
        limits,
    });
    while let Some((stream, peer, mut place)) = next(&listener, &crowd, &shutdown).await {
        let caller = house.limits.proxies.caller(peer);
        let (answer, house) = (answer.clone(), house.clone());
        let standing = Standing::new();
        place.take(&standing);
        task::begin(async move {
            let counted = house.limits.are_counted.then(Counted::new);
            // What goes wrong before the first request is the client's business too.
            tokio::select! {
                _ = see_through(stream, caller, &standing, answer, &house) => {}
                () = standing.told() => {}
            }
            drop(counted);
            drop(place);
        });
    }
    house.stops.store(true, Ordering::Release);
    drop(listener);
    let all_places = crowd.is_empty(house.limits.connections_max);
    // Connections leave by themselves within the lame duck's time; what is still at work then has the drain's.
    if tokio::time::timeout(LAME_DUCK + house.limits.drain_timeout, all_places)
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time and were cut off");
    }
}

/// The next connection, with a place for it; `None` when no more are taken.
async fn next(
    listener: &Listener,
    crowd: &Arc<Crowd>,
    shutdown: &CancellationToken,
) -> Option<(Stream, Option<SocketAddr>, Place)> {
    loop {
        let accepted = async {
            // A place first: what we can't serve stays with the kernel.
            let place = crowd.place().await?;
            Some((listener.accept().await, place))
        };
        match shutdown.run_until_cancelled(accepted).await?? {
            (Ok((stream, peer)), place) => return Some((stream, peer, place)),
            (Err(error), _) => {
                // Out of file descriptors, or a client that is gone already: neither ends the listener.
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// An open connection of the public listener, for as long as it is open.
struct Counted;

impl Counted {
    fn new() -> Counted {
        metrics::gauge!("closehook_connections").increment(1.0);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("closehook_connections").decrement(1.0);
    }
}

/// Sees a connection through: who it is from, the handshake, its requests.
async fn see_through<A, F, B>(
    mut stream: Stream,
    caller: Caller,
    standing: &Arc<Standing>,
    answer: A,
    house: &Arc<House>,
) -> std::io::Result<()>
where
    A: Fn(Request<Incoming>, Arc<Seat>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let limits = &house.limits;
    let caller = limits
        .proxies
        .introduced(caller, &mut stream, limits.head_timeout)
        .await?;
    let seat = limits.guard.seat(caller, standing, limits.patience()).await;
    let Some(seat) = seat.map(Arc::new) else {
        return Ok(());
    };
    match &house.tls {
        // Of one type with what comes over TLS: what serves a connection is large, and compiled for each type of stream.
        None => connection(Either::Left(stream), &seat, answer, house).await,
        Some(tls) => {
            let stream = tokio::time::timeout(limits.head_timeout, tls.accept(stream)).await??;
            // There the handshake is all that was wanted.
            if stream.get_ref().1.alpn_protocol() != Some(CHALLENGE_PROTOCOL) {
                connection(Either::Right(Box::new(stream)), &seat, answer, house).await;
            }
        }
    }
    Ok(())
}

/// What a listener's connections know: how they are served, and whether it stops. Requests look at the mark only, which costs
/// nothing.
#[derive(Debug)]
struct House {
    tls: Option<Certificates>,
    builder: auto::Builder<TokioExecutor>,
    limits: Limits,
    token: CancellationToken,
    stops: AtomicBool,
}

impl House {
    /// Where the listener stops, an answer over HTTP/1 tells that it is the last one.
    fn say_when_it_stops<B>(&self, response: &mut Response<B>) {
        if self.stops.load(Ordering::Acquire) {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl Limits {
    /// How long a request may take to be received where places are short, and how long somebody waits for a place of his address.
    fn patience(&self) -> Duration {
        self.head_timeout / 2
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Its own limit does not tell a head that is on its way from a connection that is idle: ours does.
        .header_read_timeout(None)
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

async fn connection<A, F, B>(
    stream: Either<Stream, Box<TlsStream<Stream>>>,
    seat: &Arc<Seat>,
    answer: A,
    house: &Arc<House>,
) where
    A: Fn(Request<Incoming>, Arc<Seat>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let (shared, seated) = (house.clone(), seat.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let is_http1 = request.version() <= Version::HTTP_11;
        let running = seated.standing.begin(!is_http1);
        let answered = answer(request, seated.clone());
        let house = shared.clone();
        async move {
            let mut response = answered.await;
            drop(running);
            if is_http1 && let Ok(response) = &mut response {
                house.say_when_it_stops(response);
            }
            response
        }
    });
    let stream = Heard::new(Named::new(stream, house.limits.name), seat.standing.clone());
    let mut connection = pin!(
        house
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned()
    );
    let lame_duck_over = async {
        house.token.cancelled().await;
        tokio::time::sleep(LAME_DUCK).await;
    };
    let (head_timeout, idle_timeout) = (house.limits.head_timeout, house.limits.idle_timeout);
    tokio::select! {
        // What it has read counts for the limit below.
        biased;
        // What goes wrong on a connection is the client's business.
        _ = connection.as_mut() => return,
        () = seat.standing.is_overdue(head_timeout, idle_timeout) => return,
        () = lame_duck_over => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Listen;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    fn limits() -> Limits {
        Limits {
            proxies: Arc::default(),
            guard: Guard::off(),
            connections_max: 8,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            drain_timeout: Duration::from_secs(10),
            are_counted: false,
            name: None,
        }
    }

    /// Sends a request and gives the head of its answer; empty where the connection is closed instead.
    async fn ask(stream: &mut TcpStream) -> String {
        // What is written to a connection that is closed is nobody's.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => said.push(byte),
                Err(_) => return String::new(),
            }
        }
        String::from_utf8(said).unwrap()
    }

    /// Time stands still but for what the server waits for, so that nothing depends on how fast this machine is.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_right_after_the_listener_stops_is_answered_as_the_last_one() {
        let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
        let listener = Arc::new(Listener::bind(&listen, 0).await.unwrap());
        let Listener::Tcp(tcp) = &*listener else { unreachable!() };
        let address = tcp.local_addr().unwrap();
        let stop = CancellationToken::new();
        let answer = async |_: Request<Incoming>, _: Arc<Seat>| Ok(Response::new(Full::new(Bytes::new())));
        let answer = move |request, seat| answer(request, seat);
        let serving = tokio::spawn(serve(listener, None, limits(), answer, stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let first = ask(&mut stream).await;
        assert!(
            first.starts_with("HTTP/1.1 200 ") && !first.contains("connection: close"),
            "{first}"
        );
        stop.cancel();
        // The server learns it, and the connection with it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let last = ask(&mut stream).await;
        assert!(
            last.starts_with("HTTP/1.1 200 ") && last.contains("connection: close"),
            "{last:?}"
        );
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "and nobody else gets in");
    }
}
