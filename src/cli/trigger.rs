//! `closehook trigger`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::connect::Connection;
use super::introduced::{self, Introduced, Target};
use super::pick::secret_argument;
use super::samples::SAMPLES;
use super::{Failure, Global, Outcome, field, kinds, print_line};
use crate::app;
use crate::config::Config;
use crate::control::sign::Sign;
use crate::ingress::SAMPLE_HEADER;
use crate::ingress::verify::{HASH_HEADER, Key, TIMESTAMP_HEADER};
use crate::json::{self, Node};
use crate::net::{self, address, http::root_cause};

/// Send signed sample deliveries, as Close would, to a running daemon
#[derive(Debug, Args)]
#[command(
    after_help = "The sample is a real delivery of that type where there is one, with a fresh id and the time of now, so that it is not a
duplicate. Without --key the running daemon signs it with its first key (without a daemon, with --url, the first key of the
configuration does); a key is never given as an argument.

Examples:
  closehook trigger --list
  closehook trigger unsubscribed_email.created
  closehook trigger lead.updated --count 1000
  closehook trigger lead.created --data lead.json
  closehook trigger lead.created --url https://example.com/webhooks/close \\
    --key @whsub.key"
)]
pub(super) struct Trigger {
    /// What happened, like lead.updated
    #[arg(value_name = "TYPE.ACTION", required_unless_present = "list", value_parser = kinds::one)]
    event: Option<String>,
    /// Show the types of events that Close documents, with their actions
    #[arg(long, conflicts_with_all = ["event", "url", "key", "data", "count"])]
    list: bool,
    /// Where to send it; default: the running daemon. On this machine any certificate will do
    #[arg(long, value_parser = url_argument)]
    url: Option<String>,
    /// The signature key: @FILE, or - for standard input; default: the daemon signs
    #[arg(long, value_name = "@FILE|-")]
    key: Option<String>,
    /// The event's `data`, a whole event, or a whole delivery, as JSON; its
    /// `object_type` and action become those of TYPE.ACTION
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How many
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
}

impl Trigger {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let Some((object_type, action)) = self.event.as_deref().and_then(|event| event.rsplit_once('.')) else {
            return kinds::list(global);
        };
        let sender = self.sender(global).await?;
        let template = self.template(object_type, action, sender.subscription_id.as_deref())?;
        let mut refused = 0;
        for _ in 0..self.count {
            let (id, body) = fresh(&template)?;
            let (status, answer) = sender.send(body).await?;
            if !status.is_success() {
                refused += 1;
            }
            print_line(&if global.json {
                let event = self.event.as_deref();
                json!({ "http_status": status.as_u16(), "answer": answer, "id": id, "type": event }).to_string()
            } else {
                format!("{object_type}.{action} {id} {}", became(status, &answer))
            })?;
        }
        if refused > 0 {
            return Err(Failure::Work(format!(
                "{refused} of {} deliveries were not stored",
                self.count
            )));
        }
        Ok(())
    }

    /// Who signs, and where it goes.
    async fn sender(&self, global: &Global) -> Result<Sender, Failure> {
        let key = self.key.as_deref().map(read_key).transpose()?;
        let (mut subscription_id, mut url) = (None, self.url.clone());
        let signer = match (key, &self.url) {
            (Some(key), Some(_)) => Signer::Key(key),
            (key, _) => {
                let config = global.load()?;
                let daemon = Connection::to_daemon(&config).await?;
                let target = match &daemon {
                    Some(daemon) => daemon.ask_one(Sign::first("")).await.map(Some),
                    None => Ok(None),
                };
                match (key, daemon, target) {
                    // What a daemon that can't sign says matters only where it has to.
                    (Some(key), _, target) => {
                        url = url.or(target.ok().flatten().and_then(|target| target.url));
                        Signer::Key(key)
                    }
                    (None, Some(daemon), target) => {
                        if let Some(target) = target? {
                            subscription_id = target.subscription_id;
                            url = url.or(target.url);
                        }
                        Signer::Daemon(Box::new(daemon))
                    }
                    (None, None, _) if url.is_some() => {
                        // To a daemon elsewhere, with the key that is configured here.
                        let keys = app::verifier(&config, false).map_err(Failure::Faults)?.keys;
                        let key = keys.into_iter().next().ok_or_else(no_key)?;
                        subscription_id.clone_from(&key.subscription_id);
                        Signer::Key(key)
                    }
                    (None, None, _) => return Err(no_daemon()),
                }
            }
        };
        let url = url.ok_or_else(no_daemon)?;
        let (way, reached) = self.way(&url, global).await?;
        let (client, url) = reach(url, reached, way.as_ref().map(Introduced::socket))?;
        Ok(Sender {
            client,
            url,
            _way: way,
            signer,
            subscription_id,
        })
    }

    /// What has to be said to the listener before HTTP is spoken, if anything; and whether it is on this machine.
    async fn way(&self, url: &str, global: &Global) -> Result<(Option<Introduced>, bool), Failure> {
        let is_named = self.url.is_some();
        if is_named && !is_of_this_machine(url) {
            return Ok((None, false));
        }
        let config = Config::load(&global.layers_that_are_there()).ok();
        let target = target(url);
        let believed = config.zip(target.as_ref());
        let believed = believed.and_then(|(config, target)| introduced::believes(&config, target, is_named));
        let (Some(target), Some(believed)) = (target, believed) else {
            return Ok((None, true));
        };
        let cant = |error| Failure::Work(format!("{url} can't be reached: {error}"));
        let way = Introduced::open(target, believed).await.map_err(cant)?;
        Ok((Some(way), true))
    }

    /// The delivery to send, before it gets an id and a time. What is in --data stays as it is written, numbers included.
    fn template(&self, object_type: &str, action: &str, subscription_id: Option<&str>) -> Result<String, Failure> {
        let mut delivery = sample(object_type, action);
        // The sample's own subscription is somebody else's: a key that is bound to another does not count for it. One that names none
        // is taken with any key.
        if subscription_id.is_none()
            && let Some(delivery) = delivery.as_object_mut()
        {
            delivery.remove("subscription_id");
        }
        let mut delivery = delivery.to_string();
        if let Some(path) = &self.data {
            let bytes = crate::files::read_argument(path)
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

fn no_daemon() -> Failure {
    Failure::Work("no daemon is running: start `closehook serve`, or say where with --url".into())
}

fn no_key() -> Failure {
    Failure::Usage("no key to sign with: say --key @FILE, or add [[close.subscriptions]] to the configuration".into())
}

/// What signs.
enum Signer {
    Key(Key),
    Daemon(Box<Connection>),
}

/// Sends deliveries as Close does.
struct Sender {
    client: reqwest::Client,
    url: String,
    signer: Signer,
    /// Whose deliveries they are said to be.
    subscription_id: Option<String>,
    _way: Option<Introduced>,
}

impl Sender {
    async fn send(&self, body: String) -> Result<(StatusCode, Value), Failure> {
        let (timestamp, hash) = match &self.signer {
            Signer::Key(key) => {
                let headers = key.sign(Timestamp::now(), body.as_bytes());
                (headers.timestamp, headers.hash)
            }
            Signer::Daemon(daemon) => {
                let signed = daemon.ask_one(Sign::first(body.clone())).await?;
                (signed.timestamp, signed.hash)
            }
        };
        let request = self.client.post(&self.url).header("content-type", "application/json");
        let request = request.header(TIMESTAMP_HEADER, timestamp).header(HASH_HEADER, hash);
        let request = request.header(SAMPLE_HEADER, "1");
        let cant = |error| Failure::Work(format!("{} can't be reached: {}", self.url, root_cause(&error)));
        let response = request.body(body).send().await.map_err(cant)?;
        let status = response.status();
        let answer = response.bytes().await.ok();
        let answer = answer.and_then(|body| serde_json::from_slice(&body).ok());
        Ok((status, answer.unwrap_or_default()))
    }
}

/// What became of a delivery, as the end of a sentence that begins with it.
fn became(status: StatusCode, answer: &Value) -> String {
    let seq = field(answer, "seq");
    match answer["status"].as_str() {
        Some("stored") => format!("is stored as Seq {seq}"),
        Some("duplicate") => format!("was known already, as Seq {seq}"),
        Some("quarantined") => format!("can't be read as a delivery, and is kept in quarantine as Seq {seq}"),
        _ if status.is_success() => format!("was answered {status}"),
        _ => match field(answer, "error").as_str() {
            "" => format!("was refused with {status}"),
            why => format!("was refused with {status}: {why}"),
        },
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
        .filter_map(|text| serde_json::from_slice::<Value>(text.as_bytes()).ok());
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

/// The delivery with an id of its own and the time of now, and that id.
fn fresh(template: &str) -> Result<(String, String), Failure> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|error| Failure::Work(error.to_string()))?;
    let id = format!("ev_{}", hex::encode(random));
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string();
    let mut delivery = template.to_owned();
    for (key, value) in [("id", &id), ("date_created", &now), ("date_updated", &now)] {
        delivery = set(&delivery, &["event", key], &json!(value).to_string())?;
    }
    Ok((id, delivery))
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

/// For clap: a URL that can be sent to.
fn url_argument(text: &str) -> Result<String, String> {
    let is_whole = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    if socket_and_path(text).is_some() || Url::parse(text).is_ok_and(|url| is_whole(&url)) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "\"{text}\" is no URL to send to: write it like https://example.com/webhooks/close, or unix:/run/closehook.sock:/webhooks/close"
    ))
}

/// Whether a URL leads to this machine and no other: such a listener may have a certificate for the name that others know.
fn is_of_this_machine(url: &str) -> bool {
    if socket_and_path(url).is_some() {
        return true;
    }
    let Ok(url) = Url::parse(url) else { return false };
    if let Some(address) = address::literal(&url) {
        let address = address.to_canonical();
        return address.is_loopback() || address.is_unspecified();
    }
    let name = url.host_str().unwrap_or_default().trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Where a URL leads.
fn target(url: &str) -> Option<Target> {
    if let Some((socket, _)) = socket_and_path(url) {
        return Some(Target::Unix(socket.into()));
    }
    let url = Url::parse(&with_address(url)).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some(Target::Tcp(host, url.port_or_known_default()?))
}

/// A URL of every address of this machine with one of them.
fn with_address(url: &str) -> String {
    url.replacen("//0.0.0.0", "//127.0.0.1", 1)
        .replacen("//[::]", "//[::1]", 1)
}

/// What can send to a URL, and the URL in the form it takes. `way`: the socket through which it has to go.
fn reach(url: String, local: bool, way: Option<&Path>) -> Result<(reqwest::Client, String), Failure> {
    if let Some((socket, path)) = socket_and_path(&url) {
        let socket = way.unwrap_or(Path::new(socket));
        return Ok((client(local, Some(socket))?, format!("http://localhost{path}")));
    }
    let url = if local { with_address(&url) } else { url };
    Ok((client(local, way)?, url))
}

/// A daemon on this machine may have a certificate for a name that is not localhost.
fn client(local: bool, socket: Option<&Path>) -> Result<reqwest::Client, Failure> {
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
    fn what_nothing_can_be_sent_to_is_no_url() {
        for good in [
            "http://127.0.0.1:8480/webhooks/close",
            "HTTPS://hooks.example.com",
            "unix:/run/a.sock:/hook",
        ] {
            assert_eq!(url_argument(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "nope",
            "hooks.example.com/close",
            "localhost:8480",
            "ftp://a/b",
            "unix:/run/a.sock",
            "/hook",
        ] {
            assert!(url_argument(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_on_this_machine_is_told_from_what_is_elsewhere() {
        for (url, is_here, leads_to) in [
            ("https://127.0.0.1:8443/hook", true, Some(("127.0.0.1", 8443))),
            ("https://127.9.9.9/hook", true, Some(("127.9.9.9", 443))),
            ("http://localhost/hook", true, Some(("localhost", 80))),
            ("https://LOCALHOST.:1/hook", true, Some(("localhost.", 1))),
            ("https://[::1]:8443/hook", true, Some(("::1", 8443))),
            ("https://[::ffff:127.0.0.1]/hook", true, Some(("::ffff:7f00:1", 443))),
            ("http://0.0.0.0:8480/hook", true, Some(("127.0.0.1", 8480))),
            ("http://[::]:8480/hook", true, Some(("::1", 8480))),
            (
                "https://localhost.example.com/hook",
                false,
                Some(("localhost.example.com", 443)),
            ),
            (
                "https://127.0.0.1.example.com/hook",
                false,
                Some(("127.0.0.1.example.com", 443)),
            ),
            ("https://10.0.0.1/127.0.0.1", false, Some(("10.0.0.1", 443))),
            ("https://127.0.0.1@example.com/hook", false, Some(("example.com", 443))),
            ("hook", false, None),
        ] {
            assert_eq!(is_of_this_machine(url), is_here, "{url}");
            let leads_to = leads_to.map(|(host, port)| Target::Tcp(host.to_owned(), port));
            assert_eq!(target(url), leads_to, "{url}");
        }
        assert!(is_of_this_machine("unix:/run/a.sock:/hook"));
        assert_eq!(
            target("unix:/run/a.sock:/hook"),
            Some(Target::Unix("/run/a.sock".into()))
        );
    }

    /// With --key nobody knows whose key it is, and the daemon refuses what names another subscription than the key's.
    #[test]
    fn a_sample_names_no_subscription_that_is_not_known() {
        let mut trigger = Trigger {
            event: None,
            list: false,
            url: None,
            key: None,
            data: None,
            count: 1,
        };
        let named = |trigger: &Trigger, id| {
            let delivery = trigger.template("lead", "created", id).unwrap();
            View::read(delivery.as_bytes()).unwrap().subscription_id
        };
        assert_eq!(named(&trigger, None), None);
        assert_eq!(named(&trigger, Some("whsub_1")).as_deref(), Some("whsub_1"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("delivery.json");
        let given = |text: &str| std::fs::write(&file, text).unwrap();
        trigger.data = Some(file.clone());
        given(r#"{"event":{"id":"ev_1"},"subscription_id":"whsub_2"}"#);
        assert_eq!(
            named(&trigger, None).as_deref(),
            Some("whsub_2"),
            "it is as it was given"
        );
        given(r#"{"object_type":"lead","id":"ev_1"}"#);
        assert_eq!(named(&trigger, None), None);
    }

    #[test]
    fn every_documented_event_has_a_readable_sample() {
        let types: Value = serde_json::from_str(include_str!("../../tests/fixtures/close/event-types.json")).unwrap();
        let mut count = 0;
        for entry in types["event_types"].as_array().unwrap() {
            for action in entry["actions"].as_array().unwrap() {
                let (object_type, action) = (entry["object_type"].as_str().unwrap(), action.as_str().unwrap());
                let (_, body) = fresh(&sample(object_type, action).to_string()).unwrap();
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
