//! Webhook subscriptions: what they are, and Close's five requests about them.

use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::client::{Call, Client};
use super::error::Error;
use crate::json::{self, Node};

/// So many subscriptions has an organization at most, says Close's documentation ("Webhooks"). Some have hundreds: it is a hint,
/// and Close is asked.
pub(in crate::close) const SUBSCRIPTIONS_DOCUMENTED: usize = 40;

/// A list longer than this is none of Close's.
const LISTED_MAX: usize = 100_000;

/// A list that changes while it is read is begun so often; then what is read is taken as it is.
const BEGINNINGS_MAX: u32 = 5;

/// One kind of event a subscription asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventSpec {
    /// `lead`, `activity.email`, ...
    #[serde(default, deserialize_with = "or_default")]
    pub object_type: String,
    /// `created`, ...
    #[serde(default, deserialize_with = "or_default")]
    pub action: String,
    /// Close's filter language, as Close wrote it or as it will be sent; `None`: every such event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_filter: Option<Box<RawValue>>,
}

impl EventSpec {
    /// `object_type.action`
    pub fn name(&self) -> String {
        format!("{}.{}", self.object_type, self.action)
    }

    /// The filter as compact text.
    pub fn filter(&self) -> Option<String> {
        self.extra_filter.as_ref().map(|filter| json::compact(filter.get()))
    }

    /// The filter by its value: the order of keys and the spelling of numbers do not matter. Null where there is none; `None`
    /// where it can't be parsed.
    fn filter_value(&self) -> Option<json::Value> {
        let text = self.extra_filter.as_ref().map_or("null", |filter| filter.get());
        json::Value::parse(Node::new(text))
    }
}

impl PartialEq for EventSpec {
    fn eq(&self, other: &EventSpec) -> bool {
        let names = |spec: &EventSpec| (spec.object_type.clone(), spec.action.clone());
        // What can't be parsed is equal to nothing, so that it is replaced.
        names(self) == names(other) && self.filter_value().is_some() && self.filter_value() == other.filter_value()
    }
}

/// A subscription as Close has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    /// `whsub_...`
    pub id: String,
    /// Where it delivers.
    #[serde(default, deserialize_with = "or_default")]
    pub url: String,
    /// `active` or `paused`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: String,
    /// What it asks for.
    #[serde(default, deserialize_with = "or_default")]
    pub events: Vec<EventSpec>,
    /// A filter over the whole subscription; `None` where there is none.
    #[serde(default)]
    pub event_filter: Option<Box<RawValue>>,
    /// Whether Close checks the certificate.
    #[serde(default)]
    pub verify_ssl: Option<bool>,
    /// Whose it is.
    #[serde(default)]
    pub organization_id: Option<String>,
    /// As Close writes it.
    #[serde(default)]
    pub date_created: Option<String>,
    /// Why Close has paused it, in its own words; null where somebody else has. `None` where Close does not say: its
    /// documentation does not know the field.
    #[serde(default, deserialize_with = "even_null")]
    pub pause_reason: Option<serde_json::Value>,
    /// What deliveries fail of just now; `None` where Close does not say.
    #[serde(default)]
    pub latest_error: Option<serde_json::Value>,
    /// What Close counts of it; `None` where Close does not say.
    #[serde(default)]
    pub counters: Option<serde_json::Value>,
}

impl Subscription {
    /// Whether it delivers.
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }

    /// Whether Close says that it did not pause it itself.
    pub fn is_paused_by_somebody(&self) -> bool {
        !self.is_active() && self.pause_reason.as_ref().is_some_and(serde_json::Value::is_null)
    }

    /// Why it is paused, as text.
    pub fn reason(&self) -> Option<String> {
        self.pause_reason.as_ref().and_then(text_of)
    }

    /// What deliveries fail of, as text.
    pub fn error(&self) -> Option<String> {
        self.latest_error.as_ref().and_then(text_of)
    }
}

/// A subscription that was just made; only this answer ever shows its key.
#[derive(Deserialize)]
pub(in crate::close) struct Created {
    pub id: String,
    pub signature_key: String,
}

/// The body of POST (`CreateWebhook` in Close's OpenAPI document).
#[derive(Debug, Serialize)]
pub(in crate::close) struct NewSubscription<'s> {
    pub url: &'s str,
    pub events: &'s [EventSpec],
    pub verify_ssl: bool,
}

/// The body of PUT: only what is given changes.
#[derive(Debug, Default, Serialize)]
pub(in crate::close) struct SubscriptionChange<'s> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<&'s [EventSpec]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_filter: Option<Removed>,
}

/// `null`: what was there goes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(in crate::close) struct Removed;

#[derive(Deserialize)]
struct Listing {
    data: Vec<Subscription>,
    #[serde(default)]
    has_more: bool,
}

/// Null is as good as missing: a subscription of somebody else's must not hide ours, whatever it looks like.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Tells null from a field that is not there.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(deserializer).map(Some)
}

/// Close's word for something, whatever JSON it is in; nothing of it reaches a terminal as a command.
fn text_of(value: &serde_json::Value) -> Option<String> {
    let text = match value {
        serde_json::Value::Null => return None,
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}

fn body<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Local(error.to_string()))
}

fn read<'b, T: Deserialize<'b>>(answer: &'b [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| Error::Garbled(json::unfit(&error)))
}

impl Client {
    /// Every subscription of the organization, page by page where Close gives several (its documentation, "Pagination").
    ///
    /// Pages count from the beginning of what there is when each is asked for: where one is deleted meanwhile, another moves over to a page
    /// that was read already. So the last of each page is asked for again as the first of the next, and where it is not, all is read anew.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        let mut all: Vec<Subscription> = Vec::new();
        let (mut beginnings, mut longest) = (1, 0);
        loop {
            let known = all.len();
            // Pages of one would have nothing new then.
            let overlap = usize::from(longest > 1);
            let mut call = Call::get("webhook/");
            if known > 0 {
                call = call.query("_skip", (known - overlap).to_string());
            }
            let answer = self.send(&call).await?;
            let page: Listing = read(&answer)?;
            longest = longest.max(page.data.len());
            let is_next = |last: &Subscription| page.data.first().is_some_and(|first| first.id == last.id);
            if beginnings < BEGINNINGS_MAX && overlap > 0 && !all.last().is_none_or(is_next) {
                beginnings += 1;
                all.clear();
                continue;
            }
            for subscription in page.data {
                // One that was made meanwhile moves the others to the next page.
                if all.iter().all(|known| known.id != subscription.id) {
                    all.push(subscription);
                }
            }
            if !page.has_more {
                return Ok(all);
            }
            if all.len() == known || all.len() > LISTED_MAX {
                // To overlook one is to make it twice.
                return Err(Error::Garbled(format!(
                    "it lists {} subscriptions and does not come to an end",
                    all.len()
                )));
            }
        }
    }

    /// One subscription; `None` only where Close says that it does not have it.
    pub async fn subscription_if_there(&self, id: &str) -> Result<Option<Subscription>, Error> {
        let call = match path_of(id) {
            Ok(path) => Call::get(path),
            Err(_) => return Ok(None),
        };
        match self.send(&call).await {
            Ok(answer) => read(&answer).map(Some),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One subscription as Close's own JSON.
    pub async fn subscription(&self, id: &str) -> Result<serde_json::Value, Error> {
        let answer = self.send(&Call::get(path_of(id)?)).await?;
        let mut value: serde_json::Value = read(&answer)?;
        if let Some(fields) = value.as_object_mut() {
            // Close does not send it here. If it ever does, it is still not to be shown.
            fields.remove("signature_key");
        }
        Ok(value)
    }

    /// Makes a subscription. An [unclear](Error::is_unclear) failure may have made one.
    pub async fn create_subscription(&self, new: &NewSubscription<'_>) -> Result<Created, Error> {
        let answer = self
            .send(&Call::with_body(Method::POST, "webhook/", body(new)?))
            .await?;
        read(&answer)
    }

    /// Changes a subscription in place: its id and its key stay.
    pub async fn change_subscription(&self, id: &str, change: &SubscriptionChange<'_>) -> Result<(), Error> {
        self.send(&Call::with_body(Method::PUT, path_of(id)?, body(change)?))
            .await
            .map(drop)
    }

    /// Deletes a subscription and what Close has queued for it.
    pub async fn delete_subscription(&self, id: &str) -> Result<(), Error> {
        self.send(&Call::delete(path_of(id)?)).await.map(drop)
    }
}

/// The path of one subscription. What a person typed must not lead anywhere else.
fn path_of(id: &str) -> Result<String, Error> {
    let is_id = !id.is_empty()
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if is_id {
        Ok(format!("webhook/{id}/"))
    } else {
        Err(Error::NotFound(format!("subscription \"{id}\"")))
    }
}

/// A date of Close's as an instant; no offset means UTC.
pub(in crate::close) fn instant(text: &str) -> Option<Timestamp> {
    match crate::event::Updated::parse(text) {
        crate::event::Updated::Instant(nanoseconds) => Timestamp::from_nanosecond(nanoseconds).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> EventSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn filters_are_compared_by_what_they_mean() {
        let a = spec(r#"{"object_type":"lead","action":"updated","extra_filter":{"type":"equals","value":1.0}}"#);
        let b = spec(
            r#"{"action":"updated","object_type":"lead","extra_filter":{ "value": 1, "type":"equals" },"more":1}"#,
        );
        let c = spec(r#"{"object_type":"lead","action":"updated","extra_filter":null}"#);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(c, spec(r#"{"object_type":"lead","action":"updated"}"#));
    }

    /// What can't be read is said to whoever looks.
    #[test]
    fn a_key_in_an_answer_that_can_not_be_read_is_not_told() {
        for answer in [
            r#"{"id":"whsub_1","signature_key":58246}"#,
            r#"{"id":58246,"signature_key":"key"}"#,
            r#""58246""#,
        ] {
            let error = read::<Created>(answer.as_bytes()).err().unwrap().to_string();
            assert!(!error.contains("58246"), "{error}");
            assert!(error.contains("line 1, column "), "{error}");
        }
    }

    #[test]
    fn an_id_is_no_path() {
        assert_eq!(path_of("whsub_1a").unwrap(), "webhook/whsub_1a/");
        for bad in ["", "../lead", "a/b", "a?b", "a%2fb"] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_says_only_what_changes() {
        assert_eq!(
            body(&SubscriptionChange {
                status: Some("active"),
                ..SubscriptionChange::default()
            })
            .unwrap(),
            r#"{"status":"active"}"#
        );
        let events = [spec(r#"{"object_type":"lead","action":"updated"}"#)];
        let change = SubscriptionChange {
            events: Some(&events),
            event_filter: Some(Removed),
            ..SubscriptionChange::default()
        };
        assert_eq!(
            body(&change).unwrap(),
            r#"{"events":[{"object_type":"lead","action":"updated"}],"event_filter":null}"#
        );
    }
}
