//! `closehook trigger`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::connect::Connection;
use super::pick::secret_argument;
use super::{Failure, Global, Outcome, field, print_line};
use crate::app;
use crate::control::sign::Sign;
use crate::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use crate::json::{self, Node};
use crate::net::{self, http::root_cause};

/// Send signed sample deliveries, as Close would, to a running daemon
#[derive(Debug, Args)]
#[command(
    after_help = "The sample is a real delivery of that type where there is one, with a fresh id and the time of now, so that it is not a
duplicate. Without --key the running daemon signs it with its first key (without a daemon, with --url, the first key of the
configuration does); a key is never given as an argument.

Examples:
  closehook trigger unsubscribed_email.created
  closehook trigger lead.updated --count 1000
  closehook trigger lead.created --data lead.json
  closehook trigger lead.created --url https://hooks.example.com/webhooks/close --key @whsub.key"
)]
pub(super) struct Trigger {
    /// What happened, like lead.updated
    #[arg(value_name = "TYPE.ACTION")]
    event: String,
    /// Where to send it; default: the running daemon
    #[arg(long)]
    url: Option<String>,
    /// The signature key: @FILE, or - for standard input; default: the daemon signs
    #[arg(long, value_name = "@FILE|-")]
    key: Option<String>,
    /// The event's `data`, a whole event, or a whole delivery, as JSON
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How many
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
}

/// Documented deliveries to send as samples.
const SAMPLES: [&str; 15] = [
    include_str!("samples/activity.call.completed.json"),
    include_str!("samples/activity.meeting.scheduled.json"),
    include_str!("samples/activity.sms.created.json"),
    include_str!("samples/comment.created.json"),
    include_str!("samples/contact.updated.json"),
    include_str!("samples/custom_object.created.json"),
    include_str!("samples/lead.created.json"),
    include_str!("samples/lead.deleted.json"),
    include_str!("samples/lead.merged.json"),
    include_str!("samples/lead.updated.json"),
    include_str!("samples/membership.activated.json"),
    include_str!("samples/opportunity.updated.json"),
    include_str!("samples/sequence_subscription.updated.json"),
    include_str!("samples/unsubscribed_email.created.json"),
    include_str!("samples/unsubscribed_email.deleted.json"),
];

impl Trigger {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let (object_type, action) = self
            .event
            .rsplit_once('.')
            .filter(|(t, a)| !t.is_empty() && !a.is_empty())
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "\"{}\" names no action: write it like lead.updated or activity.email.sent",
                    self.event
                ))
            })?;
        let mut key = self.key.as_deref().map(read_key).transpose()?;
        let (mut connection, mut subscription_id, mut url) = (None, None, self.url.clone());
        if key.is_none() || url.is_none() {
            let config = global.load()?;
            connection = Connection::to_daemon(&config).await?;
            if let Some(connection) = &connection {
                match connection.ask_one(Sign::first("")).await {
                    Ok(target) => {
                        subscription_id = target.subscription_id;
                        url = url.or(target.url);
                    }
                    Err(failure) if key.is_none() => return Err(failure),
                    Err(_) => {}
                }
            } else if key.is_none() && url.is_some() {
                // To a daemon elsewhere, with the key that is configured here.
                let keys = app::verifier(&config, false).map_err(Failure::Faults)?.keys;
                key = keys.into_iter().next();
                subscription_id = key.as_ref().and_then(|key| key.subscription_id.clone());
            }
        }
        let url = url.ok_or_else(|| {
            Failure::Work("no daemon is running: start `closehook serve`, or say where with --url".into())
        })?;
        let local = self.url.is_none();
        let (client, url) = reach(url, local)?;
        let template = self.template(object_type, action, subscription_id.as_deref())?;
        let mut refused = 0;
        for _ in 0..self.count {
            let body = fresh(&template)?;
            let headers = match (&key, &connection) {
                (Some(key), _) => {
                    let headers = key.sign(Timestamp::now(), body.as_bytes());
                    (headers.timestamp, headers.hash)
                }
                (None, Some(connection)) => {
                    let signed = connection.ask_one(Sign::first(body.clone())).await?;
                    (signed.timestamp, signed.hash)
                }
                (None, None) => {
                    return Err(Failure::Usage(
                        "no key to sign with: say --key @FILE, or add [[close.subscriptions]] to the configuration"
                            .into(),
                    ));
                }
            };
            let response = client
                .post(&url)
                .header("content-type", "application/json")
                .header(TIMESTAMP_HEADER, headers.0)
                .header(HASH_HEADER, headers.1)
                .body(body)
                .send()
                .await
                .map_err(|error| Failure::Work(format!("{url} can't be reached: {}", root_cause(&error))))?;
            let status = response.status();
            let answer: Value = response
                .bytes()
                .await
                .ok()
                .and_then(|body| serde_json::from_slice(&body).ok())
                .unwrap_or_default();
            if !status.is_success() {
                refused += 1;
            }
            if global.json {
                print_line(&json!({ "http_status": status.as_u16(), "answer": answer }).to_string())?;
            } else {
                let words: Vec<String> = ["status", "seq", "error"]
                    .iter()
                    .map(|name| field(&answer, name))
                    .filter(|w| !w.is_empty())
                    .collect();
                print_line(format!("{} {}", status.as_u16(), words.join(" ")).trim_end())?;
            }
        }
        if refused > 0 {
            return Err(Failure::Work(format!(
                "{refused} of {} deliveries were not stored",
                self.count
            )));
        }
        Ok(())
    }

    /// The delivery to send, before it gets an id and a time. What is in --data stays as it is written, numbers included.
    fn template(&self, object_type: &str, action: &str, subscription_id: Option<&str>) -> Result<String, Failure> {
        let mut delivery = sample(object_type, action).to_string();
        if let Some(path) = &self.data {
            let bytes = std::fs::read(path)
                .map_err(|error| Failure::Usage(format!("{} can't be read: {error}", path.display())))?;
            let given = json::validate(&bytes)
                .map_err(|error| Failure::Usage(format!("{} is {error}", path.display())))?
                .trim();
            let root = Node::new(given);
            let is_delivery = root
                .get("event")
                .is_some_and(|event| event.kind() == json::Kind::Object);
            delivery = if is_delivery {
                given.to_owned()
            } else if root.get("object_type").is_some() {
                set(&delivery, &["event"], given)?
            } else {
                set(&delivery, &["event", "data"], given)?
            };
            delivery = set(&delivery, &["event", "object_type"], &json!(object_type).to_string())?;
            delivery = set(&delivery, &["event", "action"], &json!(action).to_string())?;
        }
        if let Some(id) = subscription_id {
            delivery = set(&delivery, &["subscription_id"], &json!(id).to_string())?;
        }
        Ok(delivery)
    }
}

/// JSON text with the value at a path of keys replaced; every other byte stays.
fn set(text: &str, path: &[&str], value: &str) -> Result<String, Failure> {
    let no_object = || Failure::Usage("an event must be a JSON object".into());
    let Some((key, rest)) = path.split_first() else {
        return Ok(value.to_owned());
    };
    let inner = Node::new(text).get(key).map_or("{}", Node::raw);
    json::with_member(text, key, &set(inner, rest, value)?).ok_or_else(no_object)
}

/// A documented delivery of this type, or a plausible one.
fn sample(object_type: &str, action: &str) -> Value {
    let parsed = SAMPLES
        .iter()
        .filter_map(|text| serde_json::from_str::<Value>(text).ok());
    let exact = parsed
        .clone()
        .find(|s| s["event"]["object_type"] == object_type && s["event"]["action"] == action);
    if let Some(exact) = exact {
        return exact;
    }
    let mut event = json!({
        "id": "", "date_created": "", "date_updated": "",
        "organization_id": "orga_XbVPx5fFbKlYTz9PW5Ih1XDhViV10YihIaEgMEb6fVW",
        "user_id": "user_N6KhMpzHRCYQHdn4gRNIFNN5JExnsrprKA6ekxM63XA",
        "request_id": "req_4S2L8JTBAA1OUS74SVmfbN", "api_key_id": null, "oauth_client_id": null,
        "object_type": object_type, "object_id": "obj_sample",
        "lead_id": "lead_zwqYhEFwzPyfCErS8uQ77is2wFLvr9BgVi6cTfbFM68",
        "action": action, "changed_fields": [], "data": { "id": "obj_sample" }, "previous_data": {}, "meta": {},
    });
    // The same object in another action has the data such an object has.
    if let Some(sibling) = parsed.clone().find(|s| s["event"]["object_type"] == object_type) {
        for name in ["object_id", "lead_id", "data"] {
            event[name] = sibling["event"][name].clone();
        }
    }
    match action {
        "updated" => event["changed_fields"] = json!(["date_updated"]),
        "deleted" => {
            let data = event["data"].take();
            event["previous_data"] = data;
        }
        _ => {}
    }
    json!({ "event": event, "subscription_id": "whsub_8AmjKCZYT3zI8eZoi4HhFC" })
}

/// The delivery with an id of its own and the time of now.
fn fresh(template: &str) -> Result<String, Failure> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|error| Failure::Work(error.to_string()))?;
    let id = format!("ev_{}", hex::encode(random));
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string();
    let mut delivery = template.to_owned();
    for (key, value) in [("id", &id), ("date_created", &now), ("date_updated", &now)] {
        delivery = set(&delivery, &["event", key], &json!(value).to_string())?;
    }
    Ok(delivery)
}

fn read_key(from: &str) -> Result<Key, Failure> {
    let text = secret_argument("--key", from).map_err(Failure::Usage)?;
    Key::from_hex(None, text.expose_secret()).map_err(Failure::Usage)
}

/// The parts of `unix:/run/closehook.sock:/webhooks/close`, as `status` shows it; `None` for other URLs.
fn socket_and_path(url: &str) -> Option<(&str, &str)> {
    let (socket, path) = url.strip_prefix("unix:")?.rsplit_once(":/")?;
    let path_with_slash = &url[url.len() - path.len() - 1..];
    Some((socket, path_with_slash))
}

/// What can send to a URL, and the URL in the form it takes.
fn reach(url: String, local: bool) -> Result<(reqwest::Client, String), Failure> {
    if let Some((socket, path)) = socket_and_path(&url) {
        return Ok((client(local, Some(socket))?, format!("http://localhost{path}")));
    }
    let url = if local {
        url.replacen("0.0.0.0", "127.0.0.1", 1).replacen("[::]", "[::1]", 1)
    } else {
        url
    };
    Ok((client(local, None)?, url))
}

/// A daemon on this machine may have a certificate for a name that is not localhost.
fn client(local: bool, socket: Option<&str>) -> Result<reqwest::Client, Failure> {
    let builder = net::http::builder(Duration::from_secs(30));
    let builder = match socket {
        Some(socket) => builder.unix_socket(socket),
        None => builder,
    };
    let builder = if local {
        builder.tls_danger_accept_invalid_certs(true)
    } else {
        builder
    };
    builder.build().map_err(|error| Failure::Work(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::View;

    #[test]
    fn a_socket_is_told_from_a_url() {
        assert_eq!(
            socket_and_path("unix:/run/a:b.sock:/webhooks/close"),
            Some(("/run/a:b.sock", "/webhooks/close"))
        );
        assert_eq!(socket_and_path("http://127.0.0.1:8480/webhooks/close"), None);
    }

    #[test]
    fn every_documented_event_has_a_readable_sample() {
        let types: Value = serde_json::from_str(include_str!("../../tests/fixtures/close/event-types.json")).unwrap();
        let mut count = 0;
        for entry in types["event_types"].as_array().unwrap() {
            for action in entry["actions"].as_array().unwrap() {
                let (object_type, action) = (entry["object_type"].as_str().unwrap(), action.as_str().unwrap());
                let body = fresh(&sample(object_type, action).to_string()).unwrap();
                let view = View::read(body.as_bytes()).unwrap();
                assert_eq!(view.type_action(), Some(format!("{object_type}.{action}")));
                count += 1;
            }
        }
        assert!(count > 50);
        let one = sample("lead", "created").to_string();
        assert_ne!(fresh(&one).unwrap(), fresh(&one).unwrap(), "no sample is a duplicate");
    }
}
