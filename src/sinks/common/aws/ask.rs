//! A signed request, and what the answer means: the one place that tells the sink's trouble from an event's.
//!
//! An answer to HEAD has no body and so no code, and what stands between here and AWS answers without one, too: then the status and the
//! head have to do.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{DATE, HeaderMap};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use super::super::said;
use super::super::secrets::Secrets;
use super::credentials::{Provider, secrets_of};
use super::keys::Keys;
use super::sign::{Scope, Unsigned, headers, sign};
use super::xml;
use crate::net::client::{Client, Request};
use crate::net::date::http_date;
use crate::net::reply::{End, Reply};
use crate::sinks::{Outcome, Reason, Unavailable};

/// So much of what AWS says of its refusal is told with it.
const MESSAGE_LEN_MAX: usize = 300;

/// What the machine's clock may be off before it is what is wrong.
const SKEW_MAX_SECS: i64 = 240;

/// Who asks one service.
pub(in crate::sinks) struct Account {
    pub client: Client,
    /// Where the service is.
    pub endpoint: Url,
    pub region: String,
    pub(super) service: &'static str,
    pub(super) provider: Provider,
    pub(super) known: std::sync::Mutex<Known>,
    /// Hears what was answered.
    pub answers: Option<UnboundedSender<String>>,
}

/// What is hidden in what is said back: what the configuration has, and the newest keys. Late answers have the keys before those.
pub(super) struct Known {
    configured: Secrets,
    keys: [Option<Arc<Keys>>; 2],
    all: Secrets,
}

impl Known {
    pub(super) fn new(configured: Secrets) -> Known {
        Known {
            all: configured.clone(),
            configured,
            keys: [None, None],
        }
    }

    fn add(&mut self, keys: &Arc<Keys>) {
        if self.keys[0].as_ref().is_some_and(|known| Arc::ptr_eq(known, keys)) {
            return;
        }
        self.keys.swap(0, 1);
        self.keys[0] = Some(keys.clone());
        self.all = self.configured.clone();
        for keys in self.keys.iter().flatten() {
            secrets_of(keys).for_each(|secret| self.all.add(secret));
        }
    }
}

/// A request that is not signed yet.
pub(in crate::sinks) struct Ask {
    pub method: Method,
    pub url: Url,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// Why a request was not done.
#[derive(Debug)]
pub(in crate::sinks) enum Failed {
    /// Whatever was in it.
    Sink(Unavailable),
    /// For what was in it.
    Content(Refusal),
}

impl Failed {
    /// Where nothing that was sent is to blame.
    pub(in crate::sinks) fn unavailable(self) -> Unavailable {
        match self {
            Failed::Sink(unavailable) => unavailable,
            Failed::Content(refusal) => Unavailable::new(format!("the service answered {}", refusal.code)),
        }
    }
}

/// What the service says of a request, or of a part of it, that it did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sinks) struct Refusal {
    /// `InvalidMessageContents`; the status where there is none.
    pub code: String,
    pub answer: Option<String>,
}

impl Refusal {
    /// The event will never be taken.
    pub(in crate::sinks) fn reject(self) -> Outcome {
        Outcome::Reject { reason: self.reason() }
    }

    /// The event may be taken later.
    pub(in crate::sinks) fn retry(self) -> Outcome {
        Outcome::Retry {
            reason: self.reason(),
            after: None,
        }
    }

    fn reason(self) -> Reason {
        Reason {
            text: format!("the service refuses it ({})", self.code),
            answer: self.answer,
        }
    }
}

impl Account {
    /// Sends a request of one of the services that speak JSON.
    pub(in crate::sinks) async fn json(&self, target: &str, version: &str, body: &Value) -> Result<Value, Failed> {
        let ask = Ask {
            method: Method::POST,
            url: self.endpoint.clone(),
            headers: vec![
                ("content-type", format!("application/x-amz-json-{version}")),
                ("x-amz-target", target.to_owned()),
            ],
            body: body.to_string().into(),
        };
        let reply = self.judged(ask).await?;
        // What was done is not known then, and is done again.
        let unread = |_| {
            Failed::Sink(Unavailable::new(
                "the service's answer can't be read: is endpoint the right one?",
            ))
        };
        serde_json::from_slice(&reply.body).map_err(unread)
    }

    /// The answer where the request was done.
    pub(in crate::sinks) async fn judged(&self, ask: Ask) -> Result<Reply, Failed> {
        let reply = self.ask(ask).await.map_err(Failed::Sink)?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        Err(self.judge(&reply))
    }

    /// The answer, whatever it is.
    pub(in crate::sinks) async fn ask(&self, ask: Ask) -> Result<Reply, Unavailable> {
        let keys = self.provider.keys().await.map_err(Unavailable::new)?;
        crate::sync::lock(&self.known).add(&keys);
        let digest = hex::encode(Sha256::digest(&ask.body));
        let unsigned = Unsigned {
            method: ask.method.as_str(),
            url: &ask.url,
            headers: &ask.headers,
            digest: &digest,
        };
        let scope = Scope {
            region: &self.region,
            service: self.service,
        };
        let signed = sign(&unsigned, &keys, scope, Timestamp::now());
        let request = Request {
            headers: headers(ask.headers.iter().chain(&signed)).map_err(Unavailable::new)?,
            method: ask.method,
            url: ask.url,
            body: ask.body,
        };
        let reply = self.client.exchange(&request).await;
        let reply = reply.map_err(|failure| Unavailable::new(self.hidden(&failure.reason)))?;
        if let Some(answers) = &self.answers {
            // Whoever watched may have gone.
            let _ = answers.send(reply.status.to_string());
        }
        match &reply.end {
            // A status that is no success says enough.
            End::Cut(why) if reply.status.is_success() => Err(Unavailable::new(self.hidden(why))),
            End::TooLong => Err(Unavailable::new(
                "the service's answer is too long: is endpoint the right one?",
            )),
            _ => Ok(reply),
        }
    }

    fn hidden(&self, text: &str) -> String {
        crate::sync::lock(&self.known).all.hidden_in(text)
    }

    /// What was said, as it is kept.
    pub(in crate::sinks) fn cleaned(&self, text: &str) -> Option<String> {
        said::cleaned(
            text.as_bytes(),
            said::Part::Beginning,
            &crate::sync::lock(&self.known).all,
        )
    }

    /// What an answer that is no success means.
    pub(in crate::sinks) fn judge(&self, reply: &Reply) -> Failed {
        let (code, message) = words(reply);
        let advice = advice(reply, &code, message.as_deref().unwrap_or_default(), &self.region);
        let message = message.and_then(|message| self.cleaned(&message));
        let status = reply.status.as_u16().to_string();
        let Some(advice) = advice else {
            let code = if code.is_empty() { status } else { code };
            return Failed::Content(Refusal { code, answer: message });
        };
        if code.is_empty() && matches!(reply.status.as_u16(), 400 | 401 | 403) {
            // Whichever it is that it does not name.
            self.provider.forget_at_times();
        }
        self.may_be_others(&code);
        let short = message.map(|message| {
            message
                .chars()
                .take(MESSAGE_LEN_MAX)
                .collect::<String>()
                .replace('\n', " ")
        });
        let short = short.map_or(String::new(), |message| format!(" ({message})"));
        let advice = match &*advice {
            "" => String::new(),
            advice => format!(": {advice}"),
        };
        let said = format!("{status} {code}");
        Failed::Sink(Unavailable {
            after: reply.after(),
            ..Unavailable::new(format!("the service answered {}{advice}{short}", said.trim_end()))
        })
    }

    /// Keys that AWS does not take may be others by now; where only a right is missing, they hardly are.
    fn may_be_others(&self, code: &str) {
        let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
        if has(&KEYS_ARE_WRONG) {
            self.provider.forget();
        } else if has(&["AccessDenied", "AuthorizationError", "NotAuthorized"]) {
            self.provider.forget_at_times();
        }
    }

    /// The same of one entry of a request, by its code. `is_senders`: the service says that it is what was sent.
    #[cfg(feature = "aws-messages")]
    pub(in crate::sinks) fn of_entry(&self, code: &str, message: &str, is_senders: bool) -> Answer {
        let refusal = Refusal {
            code: plain_code(code),
            answer: self.cleaned(message),
        };
        if is_passing(code) || advice_by_code(code, message).is_some() {
            self.may_be_others(code);
            Answer::Gone(refusal)
        } else if is_senders {
            Answer::Refused(refusal)
        } else {
            Answer::Late(refusal)
        }
    }
}

/// With these codes AWS says that it does not take the keys.
const KEYS_ARE_WRONG: [&str; 5] = [
    "ExpiredToken",
    "InvalidClientTokenId",
    "UnrecognizedClient",
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
];

/// What a service says of one entry.
#[cfg(feature = "aws-messages")]
#[derive(Debug, Clone)]
pub(in crate::sinks) enum Answer {
    Taken,
    /// For what is in it.
    Refused(Refusal),
    /// Perhaps later; whether it is about the entry is not known.
    Late(Refusal),
    /// It is the service, or the sink, whatever the entry holds.
    Gone(Refusal),
}

/// The code and the message of an answer that is no success: from its head, its JSON or its XML.
fn words(reply: &Reply) -> (String, Option<String>) {
    // MinIO says it in the head, too, where there is no body.
    let head = header(reply, "x-amzn-errortype").or_else(|| header(reply, "x-minio-error-code"));
    let body = reply.text();
    let json: Option<Value> = serde_json::from_slice(body.as_bytes()).ok();
    let member = |names: &[&str]| {
        let json = json.as_ref()?;
        names
            .iter()
            .find_map(|name| json.get(name)?.as_str())
            .map(str::to_owned)
    };
    let code = head
        .map(str::to_owned)
        .or_else(|| member(&["__type", "code", "Code"]))
        .or_else(|| xml::text(&body, "Code"))
        .unwrap_or_default();
    let message = member(&["message", "Message"])
        .or_else(|| xml::text(&body, "Message"))
        .or_else(|| header(reply, "x-minio-error-desc").map(str::to_owned));
    let said = message.or_else(|| Some(body.into_owned()).filter(|body| json.is_none() && !body.contains("<Error")));
    (plain_code(&code), said)
}

fn header<'r>(reply: &'r Reply, name: &str) -> Option<&'r str> {
    reply.headers.get(name)?.to_str().ok()
}

/// `com.amazonaws.sqs#QueueDoesNotExist:http://...` is `QueueDoesNotExist`.
fn plain_code(code: &str) -> String {
    let code = code.rsplit('#').next().unwrap_or_default();
    let code = code.split(':').next().unwrap_or_default();
    let is_fine = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    code.chars().filter(is_fine).take(80).collect()
}

const GRANT: &str = "grant the right to who signs (`closehook sinks types` shows the policy)";

/// What to do, where it is the sink's trouble; `None`: it is about what was sent. Empty: nothing can be done here.
fn advice(reply: &Reply, code: &str, message: &str, region: &str) -> Option<Cow<'static, str>> {
    if let Some(elsewhere) = elsewhere(reply, code, region) {
        let advice = format!("the bucket is in the region {elsewhere}: set region = \"{elsewhere}\"");
        return Some(advice.into());
    }
    let known = advice_by_answer(reply, code)
        .or_else(|| advice_by_code(code, message))
        .or_else(|| advice_by_status(reply, code));
    known.map(Cow::Borrowed)
}

/// The region that a bucket is in, where another one was asked: S3 says it in the head of whatever it answers.
fn elsewhere<'r>(reply: &'r Reply, code: &str, region: &str) -> Option<&'r str> {
    const CODES: [&str; 4] = [
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
    ];
    let is_about_it = if code.is_empty() {
        reply.status.is_redirection() || reply.status == StatusCode::BAD_REQUEST
    } else {
        CODES.iter().any(|known| code.contains(known))
    };
    let is_region = |name: &&str| {
        (1..=40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = header(reply, "x-amz-bucket-region").filter(is_region)?;
    (is_about_it && named != region).then_some(named)
}

/// The same, as far as more than the code says it.
fn advice_by_answer(reply: &Reply, code: &str) -> Option<&'static str> {
    const CLOCK: &str = "this machine's clock is wrong: set it (timedatectl)";
    let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    let body = reply.text();
    let is_late = body.contains("Signature expired") || body.contains("Signature not yet current");
    if has(&["RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"]) || is_late {
        return Some(CLOCK);
    }
    if has(&["ExpiredToken"]) {
        return Some("the session token has ended: give the sink new keys, or a role that it can take on");
    }
    if has(&["SignatureDoesNotMatch", "InvalidSignature"]) {
        return Some(if is_skewed(&reply.headers) {
            CLOCK
        } else {
            "the secret access key is not the one of this access key: correct it"
        });
    }
    // It names no code, and may be about it.
    let is_unnamed = code.is_empty() && matches!(reply.status.as_u16(), 400 | 401 | 403);
    (is_unnamed && is_skewed(&reply.headers)).then_some(CLOCK)
}

/// The same, as far as the code says it, of a request or of one entry.
fn advice_by_code(code: &str, message: &str) -> Option<&'static str> {
    let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    if has(&[
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "UnrecognizedClient",
        "AuthFailure",
        "MissingAuthenticationToken",
    ]) {
        return Some("AWS does not know these credentials: correct them, or make new ones");
    }
    if has(&[
        "Throttl",
        "SlowDown",
        "LimitExceeded",
        "TooManyRequests",
        "ThroughputExceeded",
        "Busy",
    ]) {
        return Some("it is asked too much");
    }
    if has(&["NotImplemented"]) {
        return Some("it lacks what this sink needs (for s3: conditional writes, If-None-Match)");
    }
    if has(&["NoSuchBucket"]) {
        return Some("make the bucket, or correct bucket");
    }
    if has(&["QueueDoesNotExist", "NonExistentQueue", "NotFound", "NoSuchTopic"]) {
        return Some("it is not there: make it, or correct its name and region");
    }
    if has(&[
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
    ]) {
        return Some("it is in another region: set region");
    }
    if has(&[
        "AccessDenied",
        "AuthorizationError",
        "NotAuthorized",
        "KMS",
        "Kms",
        "AllAccessDisabled",
        "OptInRequired",
    ]) {
        return Some(GRANT);
    }
    if has(&["InvalidAddress", "InvalidSecurity"]) || is_about_the_place(code, message) {
        return Some("it takes no such name: correct the name, region and endpoint");
    }
    if has(&["UnsupportedOperation", "UnknownOperation", "InvalidAction"]) {
        return Some("it does not know what this sink asks: correct endpoint, or the kind of the sink");
    }
    None
}

/// Whether a request is refused for where it was to go, which no event says: `Invalid parameter: TopicArn`, `Value 'x' at 'streamName'
/// failed to satisfy constraint`. What an entry holds may be quoted, so only the place behind the last value counts.
fn is_about_the_place(code: &str, message: &str) -> bool {
    let kinds = ["Validation", "InvalidArgument", "InvalidParameter"];
    if !kinds.iter().any(|kind| code.contains(kind)) {
        return false;
    }
    let message = message.to_ascii_lowercase();
    let place = match message.rsplit_once(" at '") {
        Some((_, place)) => place,
        None => message
            .trim_start_matches("invalid parameter: ")
            .trim_start_matches("the "),
    };
    let places = [
        "topicarn",
        "streamname",
        "streamarn",
        "stream ",
        "eventbusname",
        "queueurl",
        "queue url",
    ];
    places.iter().any(|name| place.trim_start().starts_with(name))
}

fn advice_by_status(reply: &Reply, code: &str) -> Option<&'static str> {
    match reply.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Some(GRANT),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Some("correct proxy (http://USER:PASSWORD@HOST:PORT)"),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Some("it is not there: correct its name, region and endpoint")
        }
        StatusCode::TOO_MANY_REQUESTS => Some("it is asked too much"),
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT => Some(""),
        status if status.is_redirection() => Some("it is elsewhere: correct region and endpoint"),
        StatusCode::SERVICE_UNAVAILABLE if code.is_empty() => Some("it is asked too much, or is not well"),
        // With 400 S3 also says that a token has ended, and that the region is another one.
        StatusCode::BAD_REQUEST if code.is_empty() && reply.body.is_empty() => {
            Some("it does not say why: the session token may have ended, or region, endpoint or proxy be wrong")
        }
        status if status.is_server_error() => Some(""),
        // What is too long is so whoever says it.
        StatusCode::PAYLOAD_TOO_LARGE => None,
        _ if code.is_empty() => Some("that is no answer of AWS's: correct endpoint and proxy"),
        _ => None,
    }
}

/// Whether an error of one entry is the service's state, not the entry's.
#[cfg(feature = "aws-messages")]
fn is_passing(code: &str) -> bool {
    let passing = [
        "Throttl",
        "Internal",
        "LimitExceeded",
        "ThroughputExceeded",
        "Unavailable",
        "SlowDown",
        "Timeout",
        "Busy",
        // It says nothing of the entry: another one's answer would be the same.
        "no-answer",
    ];
    passing.iter().any(|part| code.contains(part))
}

fn is_skewed(headers: &HeaderMap) -> bool {
    let now = Timestamp::now();
    let date = headers.get(DATE).and_then(|date| http_date(date.to_str().ok()?, now));
    date.is_some_and(|date| date.duration_since(now).as_secs().abs() > SKEW_MAX_SECS)
}
