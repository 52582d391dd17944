//! What Close says about single events, and how much of old ones it shows to this key.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::walk::date;
use crate::close::api::client::{Call, Client};
use crate::close::api::error::Error;
use crate::json::{self, Kind, Node};

/// Close withholds data from events older than an hour. A little less, since the clocks may differ a little ...
const WITHHELD_AFTER: SignedDuration = SignedDuration::from_mins(55);

/// ... and a little more, where it is to be sure.
const SURELY_WITHHELD_AFTER: SignedDuration = SignedDuration::from_mins(70);

/// Who can say more about an event than the list it stands in.
pub(in crate::close) trait Witness {
    /// The time at Close.
    fn now(&self) -> Timestamp;

    /// One event, as Close shows it alone; `None` where there is none (any more).
    fn event(&self, id: &str) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;

    /// Whether the data of events is shown that are old enough to have it withheld, as it is to administrators.
    fn sees_old_data(&self) -> impl Future<Output = Result<bool, Error>> + Send;
}

impl Witness for Client {
    fn now(&self) -> Timestamp {
        Client::now(self)
    }

    async fn event(&self, id: &str) -> Result<Option<Bytes>, Error> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        // An id that would lead elsewhere is none of Close's.
        if id.is_empty() || !id.bytes().all(is_plain) {
            return Ok(None);
        }
        match self.send(&Call::get(format!("event/{id}/"))).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn sees_old_data(&self) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            #[serde(borrow)]
            data: Vec<&'a RawValue>,
        }
        let now = Client::now(self);
        let old = now.saturating_sub(SURELY_WITHHELD_AFTER).unwrap_or(now);
        let call = Call::get("event/")
            .query("_limit", "50")
            .query("date_updated__lt", date(old));
        let answer = self.send(&call).await?;
        let wire: Wire<'_> = serde_json::from_slice(&answer).map_err(|error| Error::Garbled(json::unfit(&error)))?;
        Ok(wire.data.iter().any(|event| has_data(Node::new(event.get()))))
    }
}

/// Whether the event has something of the object, or of what it was before.
pub(super) fn has_data(event: Node<'_>) -> bool {
    let is_there = |key| event.get(key).is_some_and(|node| node.kind() != Kind::Null);
    is_there("data") || is_there("previous_data")
}

/// Whether it looks as if Close had withheld the event's data: it is old enough for that, and says nothing of the object. Where
/// both `data` and `previous_data` are there and null, it says that there is none. (An event that deletes something has no
/// `data`, but all of `previous_data`.)
pub(super) fn looks_withheld(event: Node<'_>, updated: Timestamp, close_now: Timestamp) -> bool {
    let says_none = event.get("data").is_some() && event.get("previous_data").is_some();
    close_now.duration_since(updated) >= WITHHELD_AFTER && !has_data(event) && !says_none
}

/// Whether it shows that this key is an administrator's: it is old enough for its data to be withheld from others, and has it.
pub(super) fn shows_old_data(event: Node<'_>, updated: Timestamp, close_now: Timestamp) -> bool {
    close_now.duration_since(updated) >= SURELY_WITHHELD_AFTER && has_data(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_withheld_where_it_is_absent_and_not_where_it_is_said_to_be_none() {
        let at: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
        let is = |text: &str, now: &str| looks_withheld(Node::new(text), at, now.parse().unwrap());
        let later = "2024-02-15T13:00:00Z";
        assert!(is(r#"{"id":"e"}"#, later));
        assert!(
            !is(r#"{"id":"e","data":null,"previous_data":null}"#, later),
            "it has none"
        );
        for one in ["data", "previous_data"] {
            assert!(
                is(&format!(r#"{{"id":"e","{one}":null}}"#), later),
                "the other one may be withheld"
            );
            assert!(
                !is(&format!(r#"{{"id":"e","{one}":{{}}}}"#), later),
                "an administrator's"
            );
        }
        assert!(
            !is(r#"{"id":"e","data":null,"previous_data":{"name":"x"}}"#, later),
            "a deletion"
        );
        assert!(!is(r#"{"id":"e"}"#, "2024-02-15T12:30:00Z"), "too young");
    }

    #[test]
    fn only_old_data_shows_an_administrators_key() {
        let at: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
        let shows = |text: &str, now: &str| shows_old_data(Node::new(text), at, now.parse().unwrap());
        assert!(shows(r#"{"data":{}}"#, "2024-02-15T13:30:00Z"));
        assert!(!shows(r#"{"data":{}}"#, "2024-02-15T13:05:00Z"), "anybody may see it");
        assert!(!shows(r#"{"data":null,"previous_data":null}"#, "2024-02-15T13:30:00Z"));
    }
}
