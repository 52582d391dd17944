//! Requests to Close's API: who we are, within the rate limit, repeated only where repeating is safe.
//!
//! One client serves the whole process, so that everything shares one [`RateBudget`]. What Close answers is kept as text and
//! looked at only where it is needed. Time is Close's, taken from the `date` of its answers: an event's dates are by that
//! clock, so what is claimed about them must be too.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::answer::{HttpAnswer, REQUEST_TIMEOUT, receive};
use super::budget::{RateBudget, RateLimit};
use super::error::{Error, rejected};
use super::oauth::OAuthChain;
use super::patience::{WORTH_A_WORD, Wait};
use super::setbacks::{Setbacks, Trying};
use crate::close::seams::Seams;
use crate::config::{self, Credentials, Secret};
use crate::json;
use crate::net;
use crate::telemetry;

/// Time-outs of one request, at the most: somebody may be waiting, and who does not answer now may do so in a minute.
const TIMEOUTS_MAX: u32 = 2;

/// Waits for the rate limit before one request, at the most.
const LIMITED_MAX: u32 = 10;

/// When to try again: 0.25 s, 0.5 s, ... 4 s at the most, each with full jitter.
fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBackoff::from_millis(2)
        .factor(125)
        .max_delay(Duration::from_secs(4))
        .map(jitter)
        .take(5)
}

/// How Close knows us.
#[derive(Debug)]
pub(in crate::close) enum Auth {
    /// HTTP Basic, the key as user name, no password.
    ApiKey(SecretString),
    /// `Authorization: Bearer`, refreshed as needed.
    OAuth(Arc<OAuthChain>),
}

/// A request to be made.
#[derive(Debug, Clone)]
pub(in crate::close) struct Call {
    method: Method,
    /// Relative to the base, without a leading slash.
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<String>,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Call {
        Call {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            body: None,
        }
    }

    pub fn with_body(method: Method, path: impl Into<String>, body: String) -> Call {
        Call {
            method,
            path: path.into(),
            query: Vec::new(),
            body: Some(body),
        }
    }

    pub fn delete(path: impl Into<String>) -> Call {
        Call {
            method: Method::DELETE,
            ..Call::get(path)
        }
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(mut self, name: &'static str, value: impl Into<String>) -> Call {
        self.query.push((name, value.into()));
        self
    }

    fn has_cursor(&self) -> bool {
        self.query.iter().any(|(name, _)| *name == "_cursor")
    }
}

/// The client.
#[derive(Debug)]
pub(in crate::close) struct Client {
    http: reqwest::Client,
    base: Url,
    auth: Auth,
    budget: Mutex<RateBudget>,
    /// Close's clock minus ours, in milliseconds.
    offset_ms: AtomicI64,
    has_worked: AtomicBool,
    /// It is known to be for the right organization.
    is_proved: AtomicBool,
    setbacks: Setbacks,
    seams: Seams,
}

impl Client {
    /// Nothing is contacted yet.
    pub fn new(base: Url, auth: Auth, seams: Seams) -> Result<Client, Error> {
        Ok(Client {
            http: http_client()?,
            base,
            auth,
            budget: Mutex::default(),
            offset_ms: AtomicI64::new(0),
            has_worked: AtomicBool::new(false),
            is_proved: AtomicBool::new(false),
            setbacks: Setbacks::default(),
            seams,
        })
    }

    /// The same, whose setbacks are known here too.
    #[must_use]
    pub fn telling(mut self, setbacks: Setbacks) -> Client {
        self.setbacks = setbacks;
        self
    }

    /// What Close has answered to requests that are made again.
    pub fn setbacks(&self) -> &Setbacks {
        &self.setbacks
    }

    /// Whether it is what these settings ask for: the same API, and credentials that have not changed. Credentials that can't be
    /// read now are not told from changed ones.
    pub fn is_for(&self, settings: &config::Close) -> bool {
        let same = |secret: &Secret, known: &SecretString| {
            let now = secret.resolve();
            now.is_ok_and(|now| now.expose_secret() == known.expose_secret())
        };
        self.base == settings.base_url
            && match (&self.auth, &settings.credentials) {
                (Auth::ApiKey(known), Some(Credentials::ApiKey(key))) => same(key, known),
                (Auth::OAuth(oauth), Some(Credentials::OAuth(settings))) => oauth.is_for(settings, same),
                _ => false,
            }
    }

    /// The time at Close, as well as its answers have told it; our own before the first one.
    pub fn now(&self) -> Timestamp {
        let now = self.seams.now();
        now.saturating_add(self.clock_offset()).unwrap_or(now)
    }

    /// Close's clock minus ours.
    pub fn clock_offset(&self) -> SignedDuration {
        SignedDuration::from_millis(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Writes an OAuth token that could not be written, if there is one.
    pub async fn keep_token(&self) -> Result<(), Error> {
        match &self.auth {
            Auth::ApiKey(_) => Ok(()),
            Auth::OAuth(oauth) => oauth.keep_now().await,
        }
    }

    /// Whether it is known to be for the right organization.
    pub fn is_proved(&self) -> bool {
        self.is_proved.load(Ordering::Relaxed)
    }

    /// It is.
    pub fn set_proved(&self) {
        self.is_proved.store(true, Ordering::Relaxed);
    }

    /// Makes the request until it succeeds, can't succeed, or has failed too often. A POST is made once, unless it surely
    /// never arrived: an [unclear](Error::is_unclear) failure is for the caller to look into.
    pub async fn send(&self, call: &Call) -> Result<Bytes, Error> {
        self.step("before", call).await;
        let began = Instant::now();
        let trying = self.setbacks.begin();
        let mut delays = delays();
        let mut limited = 0;
        let mut timeouts = 0;
        let mut refreshed = false;
        let mut repeated = false;
        loop {
            let error = match self.once(call).await {
                Ok(answer) => {
                    self.has_worked.store(true, Ordering::Relaxed);
                    self.step("after", call).await;
                    return Ok(answer);
                }
                // Gone already when we asked again: the first time did it.
                Err(Error::NotFound(_)) if repeated && call.method == Method::DELETE => return Ok(Bytes::new()),
                Err(error) => error,
            };
            match (&error, &self.auth) {
                (Error::RateLimited(wait), _) if limited < LIMITED_MAX => {
                    // The budget knows until when; nothing was carried out, so even a POST may go again.
                    limited += 1;
                    self.tell(&trying, &error, *wait);
                    continue;
                }
                // A page may be Close's too: with a new token that is known.
                (Error::WrongKey | Error::Revoked | Error::NotClose { status: 401, .. }, Auth::OAuth(oauth))
                    if !refreshed =>
                {
                    refreshed = true;
                    oauth.forget_access();
                    continue;
                }
                _ => {}
            }
            timeouts += u32::from(matches!(error, Error::TimedOut(_)));
            if may_repeat(&call.method, &error)
                && timeouts < TIMEOUTS_MAX
                && let Some(delay) = delays.next()
            {
                tracing::debug!(%error, "a request to Close is made again");
                repeated = true;
                self.tell(&trying, &error, delay);
                tokio::time::sleep(delay).await;
                continue;
            }
            telemetry::close_failed(error.label());
            // What was waited for is every try together, and what was between them.
            return Err(match error {
                Error::TimedOut(_) => Error::TimedOut(began.elapsed()),
                error => error,
            });
        }
    }

    /// A request is made again after so long.
    fn tell(&self, trying: &Trying, error: &Error, after: Duration) {
        let now = self.seams.now();
        trying.goes_on(error.answered(), now.checked_add(after).unwrap_or(now), after);
    }

    async fn step(&self, when: &str, call: &Call) {
        if call.method != Method::GET {
            self.seams
                .step(|| format!("{when} {} {}", call.method, call.path))
                .await;
        }
    }

    async fn once(&self, call: &Call) -> Result<Bytes, Error> {
        let flight = self.take_off().await;
        // For whoever may go: tokens have the same limit.
        let authorization = self.authorization().await?;
        let mut url = self
            .base
            .join(&call.path)
            .map_err(|error| Error::Local(format!("{}: {error}", call.path)))?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .header("authorization", authorization);
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let answer = receive(request, self.base.host_str().unwrap_or_default()).await?;
        telemetry::close_answered(answer.status.as_u16());
        self.hear(call, answer, flight)
    }

    /// What an answer means, and, if it is Close's, what time it is there and how many requests it allows.
    fn hear(&self, call: &Call, answer: HttpAnswer, mut flight: Flight<'_>) -> Result<Bytes, Error> {
        // A page of somebody else's has somebody else's time, and somebody else's limit.
        let is_closes = answer.is_closes();
        flight.limit = answer.limit().filter(|_| is_closes);
        drop(flight);
        let now = self.seams.now();
        let date = told_in(&answer.headers, now).filter(|_| is_closes);
        let judged = self.judge(call, answer, is_closes, date.unwrap_or_else(|| self.now()));
        if let Some(date) = date
            && !matches!(judged, Err(Error::NotClose { .. }))
        {
            self.learn_time(date, now);
        }
        judged
    }

    /// The one place that decides what an answer means. `is_closes`: see [`HttpAnswer::is_closes`]; `answered_at`: by the clock of whoever
    /// answered.
    fn judge(&self, call: &Call, answer: HttpAnswer, is_closes: bool, answered_at: Timestamp) -> Result<Bytes, Error> {
        let status = answer.status;
        // Whoever shows a page is somebody else. What has no body at all may well be Close's: nobody is sent looking for a proxy where a
        // key is wrong, or a subscription is gone.
        let is_bare = answer.body.is_empty() && matches!(status.as_u16(), 401..=404);
        if status.is_client_error() && !is_closes && !is_bare {
            return Err(answer.not_close());
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let wait = answer.comes_back_in(answered_at);
            self.with_budget(|budget| budget.block(Instant::now(), wait));
            telemetry::close_limited(wait);
            return Err(Error::RateLimited(wait));
        }
        if status.is_success() {
            if is_closes {
                return Ok(answer.body);
            }
            return match json::validate(&answer.body) {
                Ok(_) => Ok(answer.body),
                // Only an empty answer is one to DELETE.
                Err(_) if call.method == Method::DELETE && answer.body.is_empty() => Ok(answer.body),
                // How an answer begins that was cut off is not shown: it may be the one with a subscription's key.
                Err(_) if answer.is_text() && !answer.has_members() => Err(answer.not_close()),
                Err(error) => Err(Error::Garbled(error.to_string())),
            };
        }
        let detail = || {
            let faults = answer.faults();
            if faults.is_empty() {
                String::new()
            } else {
                format!(": {faults}")
            }
        };
        Err(match status.as_u16() {
            // It does not redirect; whoever does is not it, or the address is not quite right.
            300..400 => answer.not_close(),
            401 if self.has_worked.load(Ordering::Relaxed) => Error::Revoked,
            401 => Error::WrongKey,
            402 => Error::PlanLimit(detail()),
            403 => Error::Forbidden(detail()),
            // Close has every list there is: this is another address.
            404 if !call.path.trim_end_matches('/').contains('/') => answer.not_close(),
            404 => Error::NotFound(
                call.path
                    .trim_end_matches('/')
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            400 if call.has_cursor() => Error::CursorExpired,
            500.. if answer.is_text() && !answer.body.is_empty() => answer.not_close(),
            code @ 500.. => Error::Server(code),
            code => rejected(code, answer.faults()),
        })
    }

    async fn authorization(&self) -> Result<HeaderValue, Error> {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        let text = match &self.auth {
            Auth::ApiKey(key) => format!("Basic {}", STANDARD.encode(format!("{}:", key.expose_secret()))),
            Auth::OAuth(oauth) => {
                let url = self
                    .base
                    .join("/oauth2/token/")
                    .map_err(|error| Error::Local(error.to_string()))?;
                let token = oauth.access_token(&self.http, url).await;
                if let Err(Error::RateLimited(wait)) = &token {
                    self.with_budget(|budget| budget.block(Instant::now(), *wait));
                    telemetry::close_limited(*wait);
                }
                format!("Bearer {}", token?.expose_secret())
            }
        };
        let mut value =
            HeaderValue::try_from(text).map_err(|_| Error::Credential("it has characters that no key has".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Waits until the rate limit lets a request go.
    async fn take_off(&self) -> Flight<'_> {
        let mut waiting = Wait::default();
        while let Err(wait) = self.with_budget(|budget| budget.take(Instant::now())) {
            if waiting.goes_on(wait) {
                let seconds = wait.as_secs();
                tracing::info!("Close's rate limit is used up: the next request goes in {seconds} s");
            }
            tokio::time::sleep(wait).await;
        }
        telemetry::close_waited(waiting.ends());
        Flight {
            client: self,
            limit: None,
        }
    }

    /// When the next request goes, where Close's rate limit lets none go for long.
    pub fn next_request_at(&self) -> Option<Timestamp> {
        let wait = self.with_budget(|budget| budget.closed_for(Instant::now()));
        let wait = wait.filter(|wait| *wait >= WORTH_A_WORD)?;
        self.seams.now().checked_add(wait).ok()
    }

    /// As if Close had just said 429.
    #[cfg(test)]
    pub fn limit_for(&self, wait: Duration) {
        self.with_budget(|budget| budget.block(Instant::now(), wait));
    }

    fn with_budget<T>(&self, work: impl FnOnce(&mut RateBudget) -> T) -> T {
        work(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// It was `date` at Close when it was `now` here.
    fn learn_time(&self, date: Timestamp, now: Timestamp) {
        self.seams.age.told(date);
        let offset = date.duration_since(now);
        // The header has whole seconds: nearer than that, our own clock is the better one.
        let offset_ms = if offset.abs() < SignedDuration::from_secs(2) {
            0
        } else {
            offset.as_millis() as i64
        };
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

/// The time at whoever has answered.
fn told_in(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    headers.get(DATE).and_then(|date| date_of(date.to_str().ok()?, now))
}

/// A date as HTTP has it, or with another zone than it may have.
fn date_of(text: &str, now: Timestamp) -> Option<Timestamp> {
    let other = || jiff::fmt::rfc2822::parse(text).map(|date| date.timestamp());
    net::date::http_date(text, now).or_else(|| other().ok())
}

/// Whether it can help and can't hurt to make the request again.
fn may_repeat(method: &Method, error: &Error) -> bool {
    error.is_transient() && (method != Method::POST || !error.is_unclear())
}

/// A request on its way; it is over when this is dropped, also where nobody waits for the answer any more.
struct Flight<'c> {
    client: &'c Client,
    limit: Option<RateLimit>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let limit = self.limit;
        self.client.with_budget(|budget| budget.done(Instant::now(), limit));
    }
}

/// The HTTP client all requests go through.
fn http_client() -> Result<reqwest::Client, Error> {
    net::http::builder(REQUEST_TIMEOUT)
        .build()
        .map_err(|error| Error::Local(format!("no HTTPS client can be made: {error}")))
}

#[cfg(test)]
mod tests;
