//! A delivery to ourselves: out to the public URL and in again, signed as Close signs, with a body that is no event. It is kept
//! in quarantine, where it proves that it came through, and is delivered to nobody.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::tls::TlsInfo;
use serde_json::{Value, json};

use super::answers::{Answers, Https};
use super::daemon;
use crate::cli::field;
use crate::cli::when::when;
use crate::config::Config;
use crate::control;
use crate::ingress::SAMPLE_HEADER;
use crate::ingress::verify::{HASH_HEADER, TIMESTAMP_HEADER};
use crate::listener::tls;
use crate::net::{self, http::CONNECT_TIMEOUT, http::root_cause};

/// How long all of it may take: Close waits no longer either.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Characters of a foreign answer that are shown.
const SHOWN_MAX: usize = 80;

/// What became of it on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Met {
    /// Nobody accepted the connection.
    Unreachable(String),
    /// The certificate is not one that Close would trust.
    Untrusted(String),
    /// The connection was made, and no answer came.
    Silence(String),
    /// An answer.
    Answer(Answer),
}

/// An answer, whoever gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub request_id: Option<String>,
    pub location: Option<String>,
    pub server: Option<String>,
    /// When the certificate that was shown ends.
    pub not_after: Option<Timestamp>,
    pub took: Duration,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The start of the body, in one line of printable characters.
    fn start(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let words: Vec<&str> = text.split_whitespace().collect();
        let line: String = words
            .join(" ")
            .chars()
            .filter(|c| !c.is_control())
            .take(SHOWN_MAX)
            .collect();
        line.replace('"', "'")
    }

    fn seq(&self) -> Option<u64> {
        self.json()["seq"].as_u64()
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub is_good: bool,
    pub says: String,
    pub details: Value,
}

/// Sends one and judges what came of it. `subscription`: whose key signs.
pub(super) async fn send(config: &Config, answers: &Answers, subscription: Option<&str>) -> Result<Verdict, String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| error.to_string())?;
    let body = json!({
        "closehook_test": hex::encode(random), "sent_at": Timestamp::now().to_string(),
        "note": "sent by `closehook init` to itself; it is no event and goes nowhere",
    })
    .to_string();
    let sign = control::sign::Sign {
        body: body.clone(),
        subscription: subscription.map(ToOwned::to_owned),
    };
    let signed = daemon::ask(config, sign).await?;
    let headers = (field(&signed, "timestamp"), field(&signed, "hash"));
    let status = daemon::ask(config, control::status::Show {}).await?;
    let met = post(answers, &body, &headers, true).await;
    // A staging certificate is none that the web trusts; what matters then is the rest of the way.
    let is_for_trying = !trusted_issuer(config);
    let met = match met {
        Met::Untrusted(why) if is_for_trying => match post(answers, &body, &headers, false).await {
            Met::Answer(answer) => (Met::Answer(answer), Some(why)),
            other => (other, None),
        },
        other => (other, None),
    };
    let (met, distrust) = met;
    let kept = match &met {
        Met::Answer(answer) => match answer.seq() {
            Some(seq) => is_kept(config, seq, &body).await,
            None => false,
        },
        _ => false,
    };
    Ok(judge(
        &met,
        &Facts {
            answers,
            ours: field(&status["daemon"], "request_ids"),
            kept,
            has_allow_list: !config.server.allow.is_empty(),
            distrust,
        },
    ))
}

fn trusted_issuer(config: &Config) -> bool {
    let directory = config.server.acme.as_ref().map(|acme| acme.directory.as_str());
    directory.is_none_or(|url| crate::config::acme_directory("production").is_ok_and(|production| production == url))
}

/// Whether our own log has just this body under this Seq.
async fn is_kept(config: &Config, seq: u64, body: &str) -> bool {
    let event = daemon::ask(config, control::events::Show { id: seq.to_string() }).await;
    event.is_ok_and(|event| event["kind"] == "quarantined" && event["body"] == body)
}

async fn post(answers: &Answers, body: &str, headers: &(String, String), is_strict: bool) -> Met {
    let client = net::http::builder(TIMEOUT)
        .tls_info(true)
        .tls_danger_accept_invalid_certs(!is_strict)
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return Met::Unreachable(root_cause(&error)),
    };
    let began = Instant::now();
    let sent = client
        .post(answers.url.url().clone())
        .header("content-type", "application/json")
        .header(TIMESTAMP_HEADER, &headers.0)
        .header(HASH_HEADER, &headers.1)
        .header(SAMPLE_HEADER, "1")
        .body(body.to_owned())
        .send()
        .await;
    let response = match sent {
        Ok(response) => response,
        Err(error) => return classify(&error),
    };
    let not_after = response
        .extensions()
        .get::<TlsInfo>()
        .and_then(TlsInfo::peer_certificate)
        .and_then(tls::validity)
        .map(|(_, not_after)| not_after);
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.chars().take(200).collect::<String>())
    };
    let (request_id, location, server) = (header("x-request-id"), header("location"), header("server"));
    Met::Answer(Answer {
        status: response.status().as_u16(),
        request_id,
        location,
        server,
        not_after,
        body: start_of(response).await.to_vec(),
        took: began.elapsed(),
    })
}

/// The body, as far as it is of interest.
async fn start_of(mut response: reqwest::Response) -> Bytes {
    const READ_MAX: usize = 64 << 10;
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > READ_MAX {
            break;
        }
    }
    body.into()
}

/// Whether a certificate is the cause, however deep.
fn is_about_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // An I/O error does not count what it holds among its sources.
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    held.is_some_and(|held| is_about_certificate(held)) || error.source().is_some_and(is_about_certificate)
}

fn classify(error: &reqwest::Error) -> Met {
    let cause = root_cause(error);
    if is_about_certificate(error) {
        return Met::Untrusted(cause);
    }
    if error.is_connect() {
        let cause = if error.is_timeout() {
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())
        } else {
            cause
        };
        Met::Unreachable(cause)
    } else if error.is_timeout() {
        Met::Silence(format!("no answer within {} s", TIMEOUT.as_secs()))
    } else {
        Met::Silence(cause)
    }
}

/// What a verdict needs beside what was met.
#[derive(Debug)]
pub(super) struct Facts<'f> {
    pub answers: &'f Answers,
    /// With what the daemon's request ids begin.
    pub ours: String,
    /// The log has it, under the Seq of the answer.
    pub kept: bool,
    /// Not every network may send.
    pub has_allow_list: bool,
    /// Why the certificate is not trusted, where that was to be expected.
    pub distrust: Option<String>,
}

/// Says what happened, what it is likely to mean, and what to do.
pub(super) fn judge(met: &Met, facts: &Facts<'_>) -> Verdict {
    let bad = |says: String, details: Value| Verdict {
        is_good: false,
        says,
        details,
    };
    let answer = match met {
        Met::Answer(answer) => answer,
        other => return bad(unanswered(other, facts), json!({})),
    };
    let is_ours = answer
        .request_id
        .as_ref()
        .is_some_and(|id| !facts.ours.is_empty() && id.starts_with(&facts.ours));
    let details = json!({
        "http_status": answer.status, "seq": answer.seq(), "ms": answer.took.as_millis() as u64,
        "certificate_not_after": answer.not_after, "answered_by_this_closehook": is_ours || facts.kept,
    });
    if answer.status == 200 && facts.kept {
        return Verdict {
            is_good: true,
            says: proved(answer, facts),
            details,
        };
    }
    bad(explain(answer, is_ours, facts), details)
}

/// Why there was no answer at all, and what to look at.
fn unanswered(met: &Met, facts: &Facts<'_>) -> String {
    let url = facts.answers.url.url();
    match met {
        Met::Unreachable(cause) => {
            let hint = match facts.answers.https {
                Https::Proxy { .. } => "is the proxy running, and does a firewall let that port through",
                _ => "does the name lead to this machine, and does a firewall or router let that port through",
            };
            format!(
                "no connection to {}:{} ({cause}): {hint}? (If only this machine can't reach its own public address, try from another one)",
                facts.answers.url.host(),
                facts.answers.url.port()
            )
        }
        Met::Untrusted(cause) => {
            let hint = match facts.answers.https {
                Https::Acme { .. } => {
                    "something else than closehook answers at that port, or the certificate is not there yet (closehook status)"
                }
                Https::Files(_) => {
                    "the file needs the certificate for this name, then its chain, from an authority that the web trusts"
                }
                _ => {
                    "the proxy needs a certificate for this name, with its chain, from an authority that the web trusts"
                }
            };
            format!("Close would not accept the certificate at {url} ({cause}): {hint}")
        }
        Met::Silence(cause) => {
            format!("{url} took the request and did not answer it ({cause}): look into what is on the way")
        }
        Met::Answer(_) => String::new(),
    }
}

/// What is said of a delivery that came back as it should.
fn proved(answer: &Answer, facts: &Facts<'_>) -> String {
    let whole = answer.json();
    let mut says = format!(
        "through {} and back in {} ms: 200 {}, kept as {} and delivered to nobody",
        facts.answers.url.url(),
        answer.took.as_millis(),
        field(&whole, "status"),
        field(&whole, "seq"),
    );
    if let Some(not_after) = answer.not_after {
        let until = when(not_after);
        let _ = write!(says, "; certificate valid until {until}");
    }
    if let Some(distrust) = &facts.distrust {
        let _ = write!(
            says,
            ". But the certificate is one for trying out, which Close does not accept ({distrust}): `closehook init --acme-directory production` gets a real one"
        );
    }
    says
}

/// Why an answer is not the right one.
fn explain(answer: &Answer, is_ours: bool, facts: &Facts<'_>) -> String {
    let url = facts.answers.url.url();
    let listen = &facts.answers.listen;
    let who = answer
        .server
        .as_ref()
        .map_or_else(String::new, |server| format!(" by \"{server}\""));
    let status = answer.status;
    match (status, is_ours) {
        (401, true) => format!(
            "401: closehook refuses a signature of its own, so something on the way to {url} changes the body or drops the close-sig-* headers{}",
            if facts.has_allow_list {
                "; or server.allow has no place for the address that this came from (Close's must be in it, this machine's need not)"
            } else {
                ""
            }
        ),
        (404 | 405, true) => format!(
            "{status}: the request reached closehook at another path or by another method than was sent to {url}: set server.path to what the proxy passes on, or let it pass on the path as it is"
        ),
        (503, true) => format!(
            "503: closehook is there and can't keep events now ({})",
            field(&answer.json(), "error")
        ),
        (200, false) if answer.json()["seq"].is_u64() => format!(
            "another closehook answered at {url}: what it says it kept ({}) is not in the log here; does the name lead to another machine?",
            answer.start()
        ),
        (401 | 403, false) => format!(
            "{status} from something else than this closehook{who} at {url}: another receiver, or a login in front of it; Close sends no password"
        ),
        (404 | 405, false) => format!(
            "{status} from something else than this closehook{who}: it does not pass {} on to {listen}",
            url.path()
        ),
        (300..=399, false) => format!(
            "{status}: {url} redirects{}, and Close does not follow: use the final URL",
            answer
                .location
                .as_ref()
                .map_or_else(String::new, |location| format!(" to {location}"))
        ),
        (502..=504, false) => format!(
            "{status}{who}: the proxy is there and does not reach closehook: let it pass requests on to {listen}"
        ),
        _ => format!(
            "{status} from something else than this closehook{who} at {url} (\"{}\"): does the name lead here, and is it closehook that the proxy passes requests on to?",
            answer.start()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::PublicUrl;
    use super::*;
    use crate::config::Listen;

    fn answers() -> Answers {
        Answers {
            url: PublicUrl::parse("https://hooks.example.com", "/webhooks/close").unwrap(),
            https: Https::Proxy { trusted: None },
            listen: Listen::Tcp(([127, 0, 0, 1], 8480).into()),
            data: None,
        }
    }

    fn verdict(status: u16, body: &str, request_id: &str, kept: bool) -> Verdict {
        let answer = Answer {
            status,
            body: body.into(),
            request_id: Some(request_id.into()),
            location: Some("https://elsewhere.example/".into()),
            server: Some("nginx".into()),
            ..Answer::default()
        };
        judge(
            &Met::Answer(answer),
            &Facts {
                answers: &answers(),
                ours: "abc-".into(),
                kept,
                has_allow_list: false,
                distrust: None,
            },
        )
    }

    #[test]
    fn each_answer_has_its_likely_cause_and_what_to_do() {
        for (status, body, id, part) in [
            (401, "{}", "abc-1", "changes the body or drops"),
            (401, "{}", "xyz", "another receiver, or a login"),
            (404, "{}", "abc-1", "set server.path"),
            (404, "<html>", "", "does not pass /webhooks/close on to 127.0.0.1:8480"),
            (
                503,
                "{\"error\":\"the disk is full\"}",
                "abc-1",
                "can't keep events now (the disk is full)",
            ),
            (502, "", "", "502 by \"nginx\": the proxy is there"),
            (301, "", "", "redirects to https://elsewhere.example/"),
            (
                200,
                "{\"status\":\"quarantined\",\"seq\":4}",
                "xyz-1",
                "another closehook answered",
            ),
            (200, "<h1>It\nworks</h1>", "", "(\"<h1>It works</h1>\")"),
            (500, "", "", "500 from something else"),
        ] {
            let verdict = verdict(status, body, id, false);
            assert!(
                !verdict.is_good && verdict.says.contains(part),
                "{part}: {}",
                verdict.says
            );
        }
        let good = verdict(200, "{\"status\":\"quarantined\",\"seq\":4}", "abc-1", true);
        assert!(
            good.is_good && good.says.contains("200 quarantined, kept as 4"),
            "{}",
            good.says
        );
        assert_eq!(
            (&good.details["seq"], &good.details["http_status"]),
            (&json!(4), &json!(200))
        );
    }

    #[test]
    fn what_is_in_the_way_of_a_connection_is_said() {
        let judge = |met: Met| {
            judge(
                &met,
                &Facts {
                    answers: &answers(),
                    ours: String::new(),
                    kept: false,
                    has_allow_list: false,
                    distrust: None,
                },
            )
            .says
        };
        assert!(
            judge(Met::Unreachable("connection refused".into())).contains("hooks.example.com:443 (connection refused)")
        );
        assert!(judge(Met::Untrusted("expired".into())).contains("would not accept the certificate"));
        assert!(judge(Met::Silence("closed".into())).contains("did not answer"));
    }
}
