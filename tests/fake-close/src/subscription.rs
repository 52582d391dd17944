//! Webhook subscriptions: what may be asked for, what they want, and how they are shown.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::OnceLock;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filter::Filter;
use super::json::{self, Json};
use super::moment::Moment;
use super::settings::Settings;

/// Subscriptions of an organization at most (documented).
pub const SUBSCRIPTIONS_MAX: usize = 40;

/// Entries of a subscription's history.
const HISTORY_MAX: usize = 20;

/// Failures are counted by the quarter of an hour.
const FAIL_BUCKET_S: u64 = 900;

/// Kinds of events in one subscription at most.
const EVENTS_MAX: usize = 1000;

/// One kind of event a subscription wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    object_type: String,
    action: String,
    filter: Option<Filter>,
}

/// A subscription.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// `whsub_...`
    pub id: String,
    /// Where deliveries go.
    pub url: String,
    /// Not paused.
    pub active: bool,
    /// Verify the receiver's certificate.
    pub verify_ssl: bool,
    /// What it wants.
    pub events: Vec<Wanted>,
    /// Asked of every event besides.
    pub event_filter: Option<Filter>,
    /// When it was made.
    pub created: Moment,
    /// When it was last changed.
    pub updated: Moment,
    /// Only what happens from then on is sent: when it was made or last resumed.
    pub active_since: Moment,
    /// Who made it, and who changed it last.
    pub created_by: String,
    /// See `created_by`.
    pub updated_by: String,
    /// The key that made it; `None` for OAuth.
    pub api_key_id: Option<String>,
    /// As shown once.
    pub signature_key: String,
    /// Deliveries waiting.
    pub queued: usize,
    /// Counts up whenever the queue is cleared.
    pub epoch: u32,
    /// First failure since the last success; `None` while the last attempt succeeded.
    pub failing_since: Option<Moment>,
    /// The warning e-mail about the queue was sent.
    pub warned: bool,
    /// What became of its deliveries.
    pub counts: Counts,
    /// Why it was last paused; `None` while it never was.
    pub paused_because: Option<Because>,
    /// What the last failed delivery failed of, until one succeeds.
    pub latest_error: Option<&'static str>,
    /// When it last failed.
    pub failed_at: Option<Moment>,
    /// What became of it, the last entries.
    pub history: VecDeque<(Moment, &'static str)>,
}

/// Why a subscription is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Somebody has asked for it.
    Asked,
    /// All deliveries failed for three days, or too many wait.
    TooManyFailures,
    /// Whoever made it may not see any more what it delivers; nor can it be resumed.
    PermissionRevoked,
}

/// What became of a subscription's deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests sent.
    pub attempts: u64,
    /// Answered 2xx.
    pub delivered: u64,
    /// Not answered 2xx.
    pub failed: u64,
    /// Given up on after 72 hours.
    pub dropped: u64,
    /// Cleared when it was paused.
    pub cleared: u64,
}

impl Subscription {
    /// Whether an event is sent to it.
    pub fn wants(&self, object_type: &str, action: &str, text: impl FnOnce() -> String) -> bool {
        let kinds: Vec<&Wanted> = self
            .events
            .iter()
            .filter(|wanted| wanted.object_type == object_type && wanted.action == action)
            .collect();
        if kinds.is_empty() {
            return false;
        }
        if self.event_filter.is_none() && kinds.iter().any(|wanted| wanted.filter.is_none()) {
            return true;
        }
        let event = Json::read(&text());
        let passes = |filter: &Option<Filter>| filter.as_ref().is_none_or(|filter| filter.passes(&event));
        passes(&self.event_filter) && kinds.iter().any(|wanted| passes(&wanted.filter))
    }

    /// As the API shows it; the key only in the answer that creates it.
    pub fn show(&self, organization: &str, with_key: bool) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let optional = |id: &Option<String>| id.as_deref().map_or("null".to_owned(), text);
        let events: Vec<String> = self.events.iter().map(Wanted::show).collect();
        let mut fields = vec![
            ("id", text(&self.id)),
            ("url", text(&self.url)),
            ("status", text(if self.active { "active" } else { "paused" })),
            ("events", format!("[{}]", events.join(", "))),
            ("verify_ssl", self.verify_ssl.to_string()),
            ("date_created", text(&self.created.plain())),
            ("date_updated", text(&self.updated.plain())),
            ("created_by", text(&self.created_by)),
            ("updated_by", text(&self.updated_by)),
            ("created_by_id", text(&self.created_by)),
            ("updated_by_id", text(&self.updated_by)),
            ("organization_id", text(organization)),
            ("api_key_id", optional(&self.api_key_id)),
            ("counters", self.counters().to_string()),
            ("history", self.shown_history().to_string()),
            ("health_status", text(self.health())),
            ("latest_error", self.latest_error.map_or("null".to_owned(), text)),
            ("pause_reason", self.pause_reason().map_or("null".to_owned(), text)),
            ("recent_consecutive_fail_buckets_cnt", self.fail_buckets().to_string()),
        ];
        if let Some(filter) = &self.event_filter {
            fields.push(("event_filter", filter.to_string()));
        }
        if with_key {
            fields.push(("signature_key", text(&self.signature_key)));
        }
        let fields: Vec<String> = fields
            .into_iter()
            .map(|(name, value)| format!("\"{name}\": {value}"))
            .collect();
        format!("{{{}}}", fields.join(", "))
    }
}

/// How it does, in the fields that Close's answers have and its documentation does not: their names are known, of their values
/// only some, so nobody should go by the words.
impl Subscription {
    /// Notes what became of it.
    pub fn note(&mut self, at: Moment, what: &'static str) {
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back((at, what));
    }

    fn counters(&self) -> Value {
        let counts = self.counts;
        serde_json::json!({
            "delivered": counts.delivered,
            "failed": counts.failed,
            "dropped": counts.dropped,
            "queued": self.queued,
        })
    }

    fn shown_history(&self) -> Value {
        let entry = |(at, what): &(Moment, &str)| serde_json::json!({ "date": at.plain(), "event": what });
        self.history.iter().map(entry).collect()
    }

    fn health(&self) -> &'static str {
        match (self.active, self.latest_error) {
            (false, _) => "paused",
            (true, Some(_)) => "failing",
            (true, None) => "healthy",
        }
    }

    /// Null unless Close itself has paused it.
    fn pause_reason(&self) -> Option<&'static str> {
        match self.paused_because.filter(|_| !self.active)? {
            Because::Asked => None,
            Because::TooManyFailures => Some("too_many_failures"),
            Because::PermissionRevoked => Some("permission_revoked"),
        }
    }

    fn fail_buckets(&self) -> u64 {
        match (self.failing_since, self.failed_at) {
            (Some(since), Some(last)) => 1 + last.since(since).as_secs() / FAIL_BUCKET_S,
            _ => 0,
        }
    }

    /// Whether it asks for the same events as another: in any order, filters by what they ask.
    pub fn asks_the_same(&self, url: &str, events: &[Wanted]) -> bool {
        self.url == url
            && self.events.len() == events.len()
            && self.events.iter().all(|wanted| events.contains(wanted))
            && events.iter().all(|wanted| self.events.contains(wanted))
    }
}

impl Wanted {
    fn show(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let (object_type, action) = (text(&self.object_type), text(&self.action));
        let filter = self.filter.as_ref().map_or("null".to_owned(), ToString::to_string);
        format!("{{\"object_type\": {object_type}, \"action\": {action}, \"extra_filter\": {filter}}}")
    }
}

/// What a POST or PUT asks for; `None` is not mentioned.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// New URL.
    pub url: Option<String>,
    /// New events.
    pub events: Option<Vec<Wanted>>,
    /// A new filter, or that there is none.
    #[expect(clippy::option_option, reason = "not mentioned, null and a filter are three things")]
    pub event_filter: Option<Option<Filter>>,
    /// New `verify_ssl`.
    pub verify_ssl: Option<bool>,
    /// New status.
    pub active: Option<bool>,
}

/// Why a body was refused: general errors, and errors by field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invalid {
    /// For `errors`.
    pub errors: Vec<String>,
    /// For `field-errors`.
    pub fields: BTreeMap<String, String>,
}

impl Invalid {
    /// An error that belongs to no field.
    pub fn general(error: impl Into<String>) -> Invalid {
        Invalid {
            errors: vec![error.into()],
            fields: BTreeMap::new(),
        }
    }

    /// An error of one field.
    pub fn field(name: &str, error: impl Into<String>) -> Invalid {
        Invalid {
            errors: Vec::new(),
            fields: BTreeMap::from([(name.to_owned(), error.into())]),
        }
    }

    /// The body of a 400.
    pub fn show(&self) -> String {
        serde_json::json!({ "errors": self.errors, "field-errors": self.fields }).to_string()
    }
}

impl Change {
    /// Reads the body of a POST (`create`) or a PUT. Every fault is reported.
    pub fn parse(body: &[u8], create: bool, settings: &Settings) -> Result<Change, Invalid> {
        let text = std::str::from_utf8(body)
            .ok()
            .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
            .ok_or_else(|| Invalid::general("The request body is not valid JSON."))?;
        let entries = json::entries(text).map_err(|_| Invalid::general("The request body must be a JSON object."))?;
        let mut change = Change::default();
        let mut invalid = Invalid::default();
        for json::Entry { name, value, .. } in &entries {
            let read = match name.as_str() {
                "url" => url(value, settings).map(|url| change.url = Some(url)),
                "events" => events(value, settings).map(|events| change.events = Some(events)),
                "event_filter" => filter(value).map(|filter| change.event_filter = Some(filter)),
                "verify_ssl" => match *value {
                    "true" | "false" => {
                        change.verify_ssl = Some(*value == "true");
                        Ok(())
                    }
                    _ => Err("This must be a boolean.".into()),
                },
                "status" if !create => match json::string(value).as_deref() {
                    Some("active") => {
                        change.active = Some(true);
                        Ok(())
                    }
                    Some("paused") => {
                        change.active = Some(false);
                        Ok(())
                    }
                    _ => Err("This must be \"active\" or \"paused\".".into()),
                },
                _ => Err("This field is not known.".into()),
            };
            if let Err(error) = read {
                invalid.fields.insert(name.clone(), error);
            }
        }
        if create {
            for name in ["url", "events"] {
                if entries.iter().all(|entry| entry.name != name) {
                    invalid
                        .fields
                        .insert(name.to_owned(), "This field is required.".to_owned());
                }
            }
        }
        if invalid == Invalid::default() {
            Ok(change)
        } else {
            Err(invalid)
        }
    }
}

fn url(value: &str, settings: &Settings) -> Result<String, String> {
    let text = json::string(value).ok_or("This must be a string.")?;
    let parsed = Url::parse(&text).map_err(|_| "This is not a valid URL.")?;
    let allowed = match parsed.scheme() {
        "https" => parsed.host().is_some(),
        "http" => settings.allow_loopback && is_loopback(&parsed),
        _ => false,
    };
    if allowed {
        Ok(text)
    } else {
        Err("This must be an https URL.".into())
    }
}

/// Whether a URL names this machine.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

fn events(value: &str, settings: &Settings) -> Result<Vec<Wanted>, String> {
    let elements = json::elements(value).ok_or("This must be a list of events.")?;
    let mut events: Vec<Wanted> = Vec::new();
    for (index, element) in elements.into_iter().enumerate() {
        let wanted = wanted(element, settings).map_err(|error| format!("events[{index}]: {error}"))?;
        events.push(wanted);
    }
    if events.is_empty() || events.len() > EVENTS_MAX {
        return Err(format!("This must be a list of 1 to {EVENTS_MAX} events."));
    }
    Ok(events)
}

fn wanted(value: &str, settings: &Settings) -> Result<Wanted, String> {
    let entries = json::entries(value).map_err(|_| "an event is an object with object_type and action")?;
    if let Some(surplus) = entries
        .iter()
        .find(|entry| !matches!(entry.name.as_str(), "object_type" | "action" | "extra_filter"))
    {
        return Err(format!("{} is not known", surplus.key));
    }
    let name = |key: &str| {
        let text = json::string_at(value, key).unwrap_or_default();
        let is_name = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
        is_name
            .then_some(text)
            .ok_or_else(|| format!("{key} must be one of the event log's"))
    };
    let (object_type, action) = (name("object_type")?, name("action")?);
    if settings.strict_types && !is_documented(&object_type, &action) {
        return Err(format!("{object_type} {action} is not an event"));
    }
    let given = json::get(value, "extra_filter").unwrap_or("null");
    let filter = filter(given).map_err(|error| format!("extra_filter: {error}"))?;
    Ok(Wanted {
        object_type,
        action,
        filter,
    })
}

fn filter(value: &str) -> Result<Option<Filter>, String> {
    if value == "null" {
        return Ok(None);
    }
    Filter::parse(value).map(Some)
}

/// Whether Close's documentation lists this event. Subtypes of tasks are an open list.
pub fn is_documented(object_type: &str, action: &str) -> bool {
    static DOCUMENTED: OnceLock<Vec<(String, Vec<String>)>> = OnceLock::new();
    let documented = DOCUMENTED.get_or_init(|| {
        let list: Value =
            serde_json::from_str(include_str!("../../fixtures/close/event-types.json")).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let entries = list["event_types"].as_array().into_iter().flatten();
        entries
            .map(|entry| {
                let actions = entry["actions"].as_array().into_iter().flatten();
                (text(&entry["object_type"]), actions.map(text).collect())
            })
            .collect()
    });
    let listed_as = if object_type.starts_with("task.") {
        "task.lead"
    } else {
        object_type
    };
    documented
        .iter()
        .any(|(listed, actions)| listed == listed_as && actions.iter().any(|listed| listed == action))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str, create: bool) -> Result<Change, Invalid> {
        Change::parse(body.as_bytes(), create, &Settings::default())
    }

    #[test]
    fn every_fault_of_a_body_is_reported_by_field() {
        let invalid = parse(r#"{"url": "http://example.com", "events": [{"object_type": "lead"}], "verify_ssl": 1, "status": "active"}"#, true)
            .unwrap_err();
        assert_eq!(
            invalid.fields.keys().collect::<Vec<_>>(),
            ["events", "status", "url", "verify_ssl"]
        );
        assert!(parse("{}", true).unwrap_err().fields.contains_key("url"));
        assert!(parse("{}", false).is_ok());
        assert!(!parse("[]", true).unwrap_err().errors.is_empty());
        assert!(!parse("{", true).unwrap_err().errors.is_empty());
        let error = parse(
            r#"{"events": [{"object_type": "lead", "action": "updated", "extra_filter": {"type": "is_nul"}}]}"#,
            false,
        );
        assert!(error.unwrap_err().fields["events"].contains("is_nul is no type of filter"));
        for bad in [
            r#"{"events": []}"#,
            r#"{"events": [{"object_type": "*", "action": "updated"}]}"#,
            r#"{"events": [{"object_type": "lead", "action": "updated", "x": 1}]}"#,
            r#"{"event_filter": 1}"#,
            r#"{"status": "off"}"#,
        ] {
            assert_eq!(parse(bad, false).unwrap_err().fields.len(), 1, "{bad}");
        }
    }

    #[test]
    fn only_https_is_taken_unless_loopback_is_allowed() {
        let post = |url: &str, allow_loopback: bool| {
            let body = format!(r#"{{"url": "{url}"}}"#);
            let settings = Settings {
                allow_loopback,
                ..Settings::default()
            };
            Change::parse(body.as_bytes(), false, &settings).is_ok()
        };
        assert!(post("https://example.com/hook", false));
        for url in ["http://127.0.0.1:1/x", "http://[::1]/", "http://localhost/"] {
            assert!(!post(url, false) && post(url, true), "{url}");
        }
        for url in ["http://example.com", "ftp://127.0.0.1", "/hook", "https://"] {
            assert!(!post(url, true), "{url}");
        }
    }

    #[test]
    fn events_that_are_not_documented_can_be_refused() {
        let body = br#"{"events": [{"object_type": "future_thing", "action": "exploded"}]}"#;
        let settings = |strict_types| Settings {
            strict_types,
            ..Settings::default()
        };
        assert!(Change::parse(body, false, &settings(false)).is_ok());
        assert!(Change::parse(body, false, &settings(true)).is_err());
    }

    #[test]
    fn documented_events_are_known() {
        assert!(is_documented("lead", "merged"));
        assert!(is_documented("task.something_new", "completed"));
        assert!(!is_documented("lead", "exploded"));
    }
}
