//! The HTTP client for servers that are a stranger's, or may become one: redirects are answers, the environment's proxies are nobody's,
//! private addresses are reached only where that is meant, every request has a time limit, and what a server sends without end holds up
//! nobody: neither other requests nor the limit (invariant I7; `meter` says how).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Method, Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::Url;
use tokio::time::Instant;

use super::address::{self, is_private};
use super::connect::{Connector, Proxy};
use super::heard::Heard;
use super::http::{CONNECT_TIMEOUT, HEAD_LEN_MAX, HEAD_LINES_MAX, IDLE_TIMEOUT, Way, root_cause};
use super::meter::{Meter, TOO_MUCH};
use super::percent::decoded;
use super::reply::{Body, End, Reply};
use super::tls::install_crypto;
use super::trust;

/// What a server may send of an answer over HTTP/2 before it is read. More than is read of any.
const STREAM_WINDOW: u32 = 128 << 10;

/// The same of all answers on a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// While an answer is waited for over HTTP/2, it is looked so often whether anybody is there.
const ALIVE_EVERY: Duration = Duration::from_secs(20);

/// A connection on which nothing comes back to that is given up.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// A request that a server says it has not looked at is sent once more, so often.
const REFUSALS_MAX: usize = 2;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `POST`
    pub method: Method,
    /// Where to; its user and password become `authorization`, unless that is among the headers.
    pub url: Url,
    /// What is sent beside `host` and what follows from the body.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why there was no answer, in one sentence with what to do. Without the URL, which may hold a token; but it may hold what the server
/// said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// The sentence.
    pub reason: String,
    /// What failed.
    pub about: About,
}

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The way to the server, whatever was sent: no connection, no TLS, no name.
    Way,
    /// What was to be sent: it never can be.
    Request,
    /// What came instead of an answer.
    Answer,
}

/// Bytes of a URL that can be sent.
pub const URL_LEN_MAX: usize = 65_534;

/// What keeps a URL from ever being sent, as the end of a sentence that names it.
pub fn unsendable(url: &Url) -> Option<&'static str> {
    uri(url).err()
}

/// A URL as it is sent: without its user and fragment.
fn uri(url: &Url) -> Result<Uri, &'static str> {
    let mut url = url.clone();
    // Neither can fail for a URL that has a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    if url.as_str().len() > URL_LEN_MAX {
        return Err("is longer than a URL can be (65,534 bytes)");
    }
    url.as_str().parse().map_err(|_| "has what no URL can have")
}

/// Sends requests and keeps connections for the next ones. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    hyper: legacy::Client<Connector, Full<Bytes>>,
    timeout: Duration,
    allow_private: bool,
    proxy: Option<Proxy>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client for this way. It takes an answer as browsers and curl do, whatever is odd about its head: a receiver that said that it
    /// has an event has it. `timeout`: how long a request may take, to its answer's head or with its body. Reads files, contacts nobody.
    /// An error is one sentence.
    pub fn new(way: &Way, timeout: Duration) -> Result<Client, String> {
        install_crypto();
        let proxy = way.proxy.as_deref().map(proxy).transpose()?;
        let connector = Connector::new(
            way.tls()?,
            proxy.clone(),
            !way.allow_private,
            timeout.min(CONNECT_TIMEOUT),
        );
        let hyper = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_max_headers(HEAD_LINES_MAX)
            .http2_max_header_list_size(HEAD_LEN_MAX)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(ALIVE_EVERY)
            .http2_keep_alive_timeout(ALIVE_WITHIN)
            .build(connector);
        Ok(Client {
            hyper,
            timeout,
            allow_private: way.allow_private,
            proxy,
        })
    }

    /// Sends a request and reads the answer, within the time limit. A status that was read is an answer, whatever becomes of its body:
    /// [`Reply::end`] says that.
    pub async fn exchange(&self, request: &Request) -> Result<Reply, Failure> {
        self.exchange_by(request, Instant::now() + self.timeout).await
    }

    /// The same with another time limit.
    pub async fn exchange_by(&self, request: &Request, until: Instant) -> Result<Reply, Failure> {
        let (answer, connection) = self.answered(request, until).await?;
        let (mut reply, body) = Reply::begun(answer);
        let mut body = match body {
            Ok(body) => body,
            Err(why) => {
                reply.end = End::Cut(why);
                return Ok(reply);
            }
        };
        let mut waiting = Waiting(Some(connection.clone()));
        let end = tokio::time::timeout_at(until, reply.read_on(&mut body)).await;
        waiting.0 = None;
        reply.end = end.unwrap_or_else(|_| End::Cut(too_late(&connection).reason));
        Ok(reply)
    }

    /// Sends a request; the answer is there when its head is. Of one whose head says how to read the body in a way that nobody can follow
    /// there is the status, and a sentence in place of the body.
    pub async fn send(&self, request: &Request) -> Result<Response<Body>, Failure> {
        self.send_by(request, Instant::now() + self.timeout).await
    }

    /// The same with another time limit.
    pub async fn send_by(&self, request: &Request, until: Instant) -> Result<Response<Body>, Failure> {
        self.answered(request, until).await.map(|(answer, _)| answer)
    }

    /// The answer's head, and the connection it came on.
    async fn answered(
        &self,
        request: &Request,
        until: Instant,
    ) -> Result<(Response<Body>, CaptureConnection), Failure> {
        if let Some(reason) = self.is_guarded(&request.url) {
            return Err(Failure {
                reason,
                about: About::Way,
            });
        }
        let mut refusals = 0;
        loop {
            let mut http = self.http(request)?;
            let connection = capture_connection(&mut http);
            let counting = connection.clone();
            hyper::ext::on_informational(&mut http, move |_| {
                if let Some(meter) = meter(&counting) {
                    meter.interim();
                }
            });
            let mut waiting = Waiting(Some(connection.clone()));
            let answered = tokio::time::timeout_at(until, self.hyper.request(http)).await;
            waiting.0 = None;
            match answered {
                Ok(Ok(answer)) => {
                    if let Some(meter) = answer.extensions().get::<Arc<Meter>>() {
                        meter.answered();
                    }
                    return Ok((answer.map(Ok), connection));
                }
                Ok(Err(error)) if refusals < REFUSALS_MAX && was_not_looked_at(&error) => refusals += 1,
                Ok(Err(error)) => {
                    let failure = failure(&error);
                    let Some(status) = heard(&connection, &error) else {
                        return Err(failure);
                    };
                    let mut answer = Response::new(Err(failure.reason));
                    *answer.status_mut() = status;
                    return Ok((answer, connection));
                }
                Err(_) => return Err(too_late(&connection)),
            }
        }
    }

    /// What keeps a URL from being reached, as far as it can be read from it.
    fn is_guarded(&self, url: &Url) -> Option<String> {
        let address = address::literal(url).filter(|address| !self.allow_private && is_private(*address))?;
        self.proxy.is_none().then(|| address::refusal(address))
    }

    /// Why a proxy is not asked for a URL that somebody else made, if its name has a private address here. A proxy resolves names
    /// itself, so a name may have another one there; one that has none here is the proxy's to judge.
    pub async fn leads_within(&self, url: &Url, until: Instant) -> Option<String> {
        if self.proxy.is_none() || self.allow_private || address::literal(url).is_some() {
            return None;
        }
        let looked = tokio::time::timeout_at(until, address::private_one(url.host_str()?)).await;
        looked.ok().flatten().map(address::refusal)
    }

    fn http(&self, request: &Request) -> Result<hyper::Request<Full<Bytes>>, Failure> {
        let malformed = |why: &str| Failure {
            reason: format!("the request can't be sent: {why}"),
            about: About::Request,
        };
        let url = &request.url;
        let mut headers = request.headers.clone();
        if let Some(basic) = basic_of(url)
            && !headers.contains_key(AUTHORIZATION)
        {
            headers.insert(AUTHORIZATION, basic);
        }
        if url.scheme() == "http"
            && let Some(Proxy { auth: Some(auth), .. }) = &self.proxy
        {
            headers.insert(PROXY_AUTHORIZATION, auth.clone());
        }
        let agent = HeaderValue::from_static(concat!("closehook/", env!("CARGO_PKG_VERSION")));
        headers.entry(USER_AGENT).or_insert(agent);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let uri = uri(url).map_err(|why| malformed(&format!("its URL {why}")))?;
        let mut http = hyper::Request::builder()
            .method(request.method.clone())
            .uri(uri)
            .body(Full::new(request.body.clone()))
            .map_err(|_| malformed("something of it is not HTTP"))?;
        *http.headers_mut() = headers;
        Ok(http)
    }
}

/// `Basic` for the user and password of a URL.
fn basic_of(url: &Url) -> Option<HeaderValue> {
    let password = url.password();
    if url.username().is_empty() && password.is_none() {
        return None;
    }
    Some(basic(&decoded(url.username()), &decoded(password.unwrap_or_default())))
}

/// `authorization` of a user with a password (RFC 7617).
pub fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    // Base64 is fit for a header.
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).unwrap_or(HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
}

/// A proxy as the configuration names it, with or without its scheme.
fn proxy(text: &str) -> Result<Proxy, String> {
    let parsed = Url::parse(text).ok().filter(Url::has_host);
    let mut url = match parsed {
        Some(url) => url,
        None => Url::parse(&format!("http://{text}")).map_err(|_| "proxy must be a URL")?,
    };
    if !matches!(url.scheme(), "http" | "https") {
        return Err("proxy must be a URL with http or https".into());
    }
    let auth = basic_of(&url);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let uri = url.as_str().parse().map_err(|_| "proxy must be a URL")?;
    Ok(Proxy { uri, auth })
}

fn meter(connection: &CaptureConnection) -> Option<Arc<Meter>> {
    extra(connection)
}

fn extra<T: Clone + Send + Sync + 'static>(connection: &CaptureConnection) -> Option<T> {
    let connected = connection.connection_metadata();
    let mut extras = hyper::http::Extensions::new();
    (*connected).as_ref()?.get_extras(&mut extras);
    extras.remove()
}

/// Somebody waits for something on a connection; who lets go of it without having got that leaves nothing open.
struct Waiting(Option<CaptureConnection>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            too_late(connection);
        }
    }
}

/// The time is over. Over HTTP/2 the connection would be kept: it may be one whose other end has gone, so the next request makes its own.
fn too_late(connection: &CaptureConnection) -> Failure {
    let meter = meter(connection);
    if let Some(connected) = &*connection.connection_metadata() {
        connected.poison();
    }
    let reason = match &meter {
        None => "the receiver can't be reached: it did not answer in time".into(),
        Some(meter) if meter.gave_up() => format!("the receiver did not answer in time: {TOO_MUCH}"),
        Some(_) => "the receiver did not answer in time".into(),
    };
    Failure {
        reason,
        about: if meter.is_none() { About::Way } else { About::Answer },
    }
}

fn failure(error: &legacy::Error) -> Failure {
    let tls = trust::failure(error);
    let cause = tls.map_or_else(|| root_cause(error), ToString::to_string);
    let (about, what) = if error.is_connect() || tls.is_some() {
        (About::Way, "the receiver can't be reached")
    } else {
        (About::Answer, "the request failed")
    };
    let reason = match tls.and_then(trust::advice) {
        Some(advice) => format!("{what}: {cause}: {advice}"),
        None => format!("{what}: {cause}"),
    };
    Failure { reason, about }
}

/// The status of an answer whose head is there to its end and can't be read all the same. One that breaks off within it is none: who sent
/// it may have died over it.
fn heard(connection: &CaptureConnection, error: &legacy::Error) -> Option<StatusCode> {
    let (status, is_whole) = extra::<Arc<Heard>>(connection)?.status()?;
    let error = error.source()?.downcast_ref::<hyper::Error>()?;
    ((error.is_parse() || error.is_incomplete_message()) && is_whole).then_some(status)
}

/// The server has said so of the request (RFC 9113, 6.8 and 8.7): it can be sent again, whatever it is.
fn was_not_looked_at(error: &legacy::Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            let is_over = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            let is_refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return h2.is_remote() && (is_over || is_refused);
        }
        next = cause.source();
    }
    false
}
