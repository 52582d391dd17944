//! `http`: POSTs the delivery body, byte for byte as Close sent it, to a URL.
//!
//! Signed as Standard Webhooks where a `secret` is set. Redirects are not followed, the environment's proxy variables are
//! ignored, and private addresses are refused unless allowed: on the address that was resolved, so a name that changes its
//! mind between check and connection gains nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use secrecy::ExposeSecret;
use sha2::Sha256;
use tokio::sync::mpsc::UnboundedSender;

use super::{Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Sink, SinkKind, Unavailable};
use crate::config::{Secret, SinkOptions, Table};
use crate::event::Delivery;
use crate::net::address::{PublicOnly, is_private};

/// More of an answer's body than this is not read; the connection is then not used again.
const ANSWER_LEN_MAX: usize = 64 << 10;

#[derive(Debug, Clone)]
struct Options {
    url: Url,
    secret: Option<Secret>,
    forward_signature: bool,
    allow_private: bool,
    headers: BTreeMap<String, String>,
    proxy: Option<String>,
    ca: Option<PathBuf>,
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let url: Option<String> = table.required("url", "\"https://example.com/hook\"");
    let options = Options {
        secret: table.secret("secret"),
        forward_signature: table.or("forward_signature", false),
        allow_private: table.or("allow_private", false),
        headers: table.or("headers", BTreeMap::new()),
        proxy: table.optional("proxy"),
        ca: table.optional("ca"),
        url: match Url::parse(&url?) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => url,
            _ => {
                table.fault("url", "must be a URL like \"https://example.com/hook\"");
                return None;
            }
        },
    };
    if !options.allow_private
        && options.proxy.is_none()
        && let Some(address) = literal_address(&options.url)
        && is_private(address)
    {
        table.fault(
            "url",
            format!("{address} is a private address: set allow_private = true if that is meant"),
        );
    }
    for (name, value) in &options.headers {
        if HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err() {
            table.fault(
                "headers",
                format!("\"{name}\" is no header, or its value has characters that can't be sent"),
            );
        }
    }
    Some(Arc::new(options))
}

fn literal_address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

impl Options {
    /// Resolves what is needed on this machine; contacts nobody.
    fn client(&self, timeout: Duration) -> Result<Http, String> {
        let signing_key = match &self.secret {
            None => None,
            Some(secret) => Some(signing_key(secret.resolve()?.expose_secret())?),
        };
        crate::install_crypto();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("closehook/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            .timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .no_proxy();
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| "proxy must be a URL")?);
        } else if !self.allow_private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        if let Some(path) = &self.ca {
            let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_| format!("{} holds no PEM certificates", path.display()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                // They often are credentials.
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        let client = builder.default_headers(headers).build();
        Ok(Http {
            client: client.map_err(|error| describe(&error))?,
            options: self.clone(),
            signing_key,
            answers: None,
        })
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: Limits {
                events: 1,
                bytes: usize::MAX,
                wait: Duration::ZERO,
            },
            concurrency: 16,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.client(Duration::from_secs(1)).err()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        delivery.event.body.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        let secret = self.secret.as_ref().map(Secret::fingerprint);
        let visible = Options {
            secret: None,
            ..self.clone()
        };
        let digest = <Sha256 as sha2::Digest>::digest(format!("{visible:?}{secret:?}"));
        Fingerprint(hex::encode(digest))
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let mut http = self.client(context.timeout).map_err(Unavailable::new)?;
        http.answers = context.answers;
        let sink: Box<dyn Sink> = Box::new(http);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        // Nothing is delivered: any answer shows that the receiver is there.
        let http = self.client(context.timeout).map_err(Unavailable::new)?;
        match http.client.head(self.url.clone()).send().await {
            Ok(response) => Ok(format!("the receiver answers ({} to HEAD)", response.status())),
            Err(error) => Err(Unavailable::new(describe(&error))),
        }
    }
}

/// The key of a Standard Webhooks secret: base64 behind `whsec_`, else the text itself.
fn signing_key(secret: &str) -> Result<Vec<u8>, String> {
    match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .map_err(|_| "the secret behind whsec_ is not base64".into()),
        None => Ok(secret.as_bytes().to_vec()),
    }
}

struct Http {
    client: reqwest::Client,
    options: Options,
    signing_key: Option<Vec<u8>>,
    answers: Option<UnboundedSender<String>>,
}

impl Http {
    fn request(&self, delivery: &Delivery, now: Timestamp) -> reqwest::RequestBuilder {
        let event = &delivery.event;
        let key = event
            .view()
            .map_or_else(|| format!("seq_{}", event.seq), crate::event::View::idempotency_key);
        // An id is whatever was sent; a header takes visible ASCII only.
        let key: String = key
            .chars()
            .map(|c| if c.is_ascii_graphic() { c } else { '_' })
            .take(512)
            .collect();
        let id = key.replace('.', "_");
        let timestamp = now.as_second().to_string();
        let mut request = self
            .client
            .post(self.options.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("idempotency-key", key)
            .header("closehook-seq", event.seq.0)
            .header("closehook-attempt", delivery.attempt);
        if let Some(signing_key) = &self.signing_key {
            request = request.header("webhook-signature", sign(signing_key, &id, &timestamp, &event.body));
        }
        if self.options.forward_signature
            && let Some(signature) = &event.signature
        {
            request = request
                .header("close-sig-timestamp", &signature.timestamp)
                .header("close-sig-hash", &signature.hash);
        }
        request.body(event.body.clone())
    }

    async fn send(&self, delivery: &Delivery) -> Result<Outcome, Unavailable> {
        let mut response = match self.request(delivery, Timestamp::now()).send().await {
            Ok(response) => response,
            // No connection, no TLS, no name: that is not about this event.
            Err(error) if error.is_connect() => return Err(Unavailable::new(describe(&error))),
            Err(error) => {
                return Ok(Outcome::Retry {
                    reason: describe(&error),
                    after: None,
                });
            }
        };
        let status = response.status();
        if let Some(answers) = &self.answers {
            // Whoever watched has gone.
            let _ = answers.send(status.to_string());
        }
        let after = retry_after(response.headers(), Timestamp::now());
        if status.is_success() {
            // The status is the answer. Reading the rest only keeps the connection usable, so it may fail or be long.
            let mut read = 0;
            let drain = async {
                while let Ok(Some(chunk)) = response.chunk().await {
                    read += chunk.len();
                    if read > ANSWER_LEN_MAX {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
            return Ok(Outcome::Delivered);
        }
        classify(status, after)
    }
}

/// The one place that decides what an answer means.
fn classify(status: StatusCode, after: Option<Duration>) -> Result<Outcome, Unavailable> {
    let reason = format!("the receiver answered {status}");
    match status {
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        | StatusCode::TOO_MANY_REQUESTS => Err(Unavailable { reason, after }),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Ok(Outcome::Retry { reason, after }),
        status if status.is_redirection() => Ok(Outcome::Reject {
            reason: format!("{reason}: redirects are not followed, set the final url"),
        }),
        status if status.is_client_error() => Ok(Outcome::Reject { reason }),
        _ => Ok(Outcome::Retry { reason, after }),
    }
}

/// `retry-after`, in seconds or as an HTTP date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn sign(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return String::new();
    };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// An error with its causes, without the URL (which may hold a token).
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "the receiver did not answer in time".into();
    }
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    match causes.pop() {
        Some(root) if error.is_connect() => format!("the receiver can't be reached: {root}"),
        Some(root) => format!("the request failed: {root}"),
        None => "the request failed".into(),
    }
}

#[async_trait]
impl Sink for Http {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(batch.deliveries().len());
        for delivery in batch.deliveries() {
            outcomes.push(self.send(delivery).await?);
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::http::HeaderMap as AxumHeaders;
    use axum::response::IntoResponse;

    use super::super::common::line::tests::delivery;
    use super::*;
    use crate::sinks::tests::deliver;

    type Seen = Arc<Mutex<Vec<(AxumHeaders, Bytes)>>>;

    async fn receiver(status: u16, headers: &'static [(&'static str, &'static str)]) -> (String, Seen) {
        let seen = Seen::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let keep = seen.clone();
        let answer = move |got: AxumHeaders, body: Bytes| async move {
            keep.lock().unwrap().push((got, body));
            let mut response = axum::http::StatusCode::from_u16(status).unwrap().into_response();
            for (name, value) in headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            response
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        (url, seen)
    }

    async fn build(table: serde_json::Value) -> (SinkOptions, Box<dyn Sink>) {
        let mut faults = Vec::new();
        let mut table = Table::new("sinks[0]", table, &mut faults);
        let options = parse(&mut table).unwrap();
        table.finish();
        assert_eq!(faults, []);
        let context = Context {
            timeout: Duration::from_secs(10),
            ..Context::default()
        };
        let opened = options.open(context).await.unwrap();
        (options, opened.sink)
    }

    const BODY: &str = "{\"event\": {\"id\":\"ev_1.é\", \"date_updated\":\"2024-02-15T12:48:23.395000\"}}\n";

    #[tokio::test]
    async fn the_body_arrives_byte_for_byte_and_signed() {
        let (url, seen) = receiver(204, &[]).await;
        let secret = format!("whsec_{}", STANDARD.encode(b"secret key"));
        let (_, sink) =
            build(serde_json::json!({"url": url, "allow_private": true, "secret": secret, "headers": {"X-Mine": "1"}}))
                .await;
        let outcomes = deliver(&*sink, &[delivery(3, BODY)]).await.unwrap();
        assert_eq!(outcomes, [Outcome::Delivered]);
        let (headers, body) = seen.lock().unwrap().remove(0);
        assert_eq!(&body[..], BODY.as_bytes());
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header("webhook-id"), "ev_1__:2024-02-15T12:48:23_395000");
        assert_eq!(header("idempotency-key"), "ev_1._:2024-02-15T12:48:23.395000");
        assert_eq!(header("x-mine"), "1");
        let expected = sign(
            b"secret key",
            &header("webhook-id"),
            &header("webhook-timestamp"),
            BODY.as_bytes(),
        );
        assert_eq!(header("webhook-signature"), expected);
    }

    #[test]
    fn the_signature_is_that_of_the_standard() {
        // The example of the Standard Webhooks specification's reference libraries.
        let key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(
            &key,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    async fn answered(status: u16, headers: &'static [(&'static str, &'static str)]) -> Result<Outcome, Unavailable> {
        let (url, seen) = receiver(status, headers).await;
        let (_, sink) = build(serde_json::json!({"url": url, "allow_private": true})).await;
        let outcome = deliver(&*sink, &[delivery(1, BODY)]).await;
        assert_eq!(seen.lock().unwrap().len(), 1, "redirects are not followed");
        outcome.map(|mut outcomes| outcomes.remove(0))
    }

    #[tokio::test]
    async fn answers_mean_what_the_contract_says() {
        for status in [408, 425, 500, 502, 503] {
            let outcome = answered(status, &[("retry-after", "7")]).await;
            assert!(
                matches!(outcome, Ok(Outcome::Retry { after: Some(after), .. }) if after.as_secs() == 7),
                "{status}"
            );
        }
        for status in [301, 302, 307, 308, 400, 404, 410, 422] {
            let outcome = answered(status, &[("location", "/elsewhere")]).await;
            assert!(matches!(outcome, Ok(Outcome::Reject { .. })), "{status}");
        }
    }

    /// Decision 33: these say nothing about the event.
    #[tokio::test]
    async fn answers_about_the_sender_and_a_missing_connection_make_the_sink_unavailable() {
        for status in [401, 403, 407, 429] {
            let refused = answered(status, &[("retry-after", "7")]).await.unwrap_err();
            assert_eq!(refused.after, Some(Duration::from_secs(7)), "{status}");
            assert!(refused.reason.contains(&status.to_string()), "{refused}");
        }
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let (options, sink) =
            build(serde_json::json!({"url": format!("http://{closed}/"), "allow_private": true})).await;
        assert!(deliver(&*sink, &[delivery(1, BODY)]).await.is_err());
        assert!(
            options
                .probe(Context {
                    timeout: Duration::from_secs(9),
                    ..Context::default()
                })
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn private_addresses_are_refused_however_they_are_written() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://10.1.2.3/",
            "http://172.16.0.1/",
            "http://192.168.1.1/",
            "http://169.254.169.254/",
            "http://100.64.0.1/",
            "http://0.0.0.0/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[fd00::1]/",
            "http://[fe80::1]/",
            "http://[2002:a00:1::]/",
            "http://[64:ff9b::a00:1]/",
            "http://[::]/",
        ] {
            let mut faults = Vec::new();
            parse(&mut Table::new(
                "sinks[0]",
                serde_json::json!({"url": url}),
                &mut faults,
            ));
            assert_eq!(faults.len(), 1, "{url}");
        }
        for url in ["http://1.1.1.1/", "http://[2606:4700::1111]/", "https://example.com/"] {
            let mut faults = Vec::new();
            parse(&mut Table::new(
                "sinks[0]",
                serde_json::json!({"url": url}),
                &mut faults,
            ));
            assert_eq!(faults, [], "{url}");
        }
        let (_, sink) = build(serde_json::json!({"url": "http://localhost:9/"})).await;
        let refused = deliver(&*sink, &[delivery(1, BODY)]).await.unwrap_err();
        assert!(refused.reason.contains("private address"), "{refused}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |text: &str| {
            let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            retry_after(&headers, Timestamp::from_second(784_111_777).unwrap()).map(|after| after.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
        assert_eq!(after("soon"), None);
    }
}
