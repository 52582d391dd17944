//! `eventbridge`: an event for each event on a bus of Amazon `EventBridge`, at least once.
//!
//! `source` is `closehook`, `detail-type` the type (`lead.updated`), `detail` `{meta, event}`, or the JSON object that a template or
//! transform made (decision 42); `meta.key` tells repeats apart.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use super::common::aws::definition::{about_access, batch_key, keys_with_access};
use super::common::aws::entries::{self, Service};
use super::common::aws::{self, Access, Account, Answer, Arn, Failed, message};
use super::{Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, SinkKind, Unavailable};
use crate::config::{Key, SinkOptions, SinkType, Table};
use crate::event::{Delivery, View};
use crate::json::Node;

/// What `EventBridge` takes in one request. (Bytes: where it takes less, requests are halved.)
const MOST: Limits = Limits {
    events: 10,
    bytes: 1 << 20,
    wait: Duration::from_secs(300),
};

const DEFAULT: Limits = Limits {
    bytes: 256 << 10,
    wait: Duration::ZERO,
    ..MOST
};

/// Who all of them are from.
const SOURCE: &str = "closehook";

/// Of `detail-type`.
const TYPE_LEN_MAX: usize = 128;

pub(super) static TYPE: SinkType = SinkType {
    name: "eventbridge",
    feature: Some("sink-eventbridge"),
    about: "an event for each event on a bus of Amazon EventBridge",
    promise: "At least once: the key is in `detail.meta.key`",
    notes: concat!(
        "`source` is `closehook`, `detail-type` the type (`lead.updated`), `detail` is `{\"meta\": {seq, received_at, source, rules, subscription_id, key, and dead {sink, reason, attempts} of what another sink gave up}, \"event\": ...}`, or the JSON object that a template or transform makes; anything else is a dead letter.\n",
        about_access!()
    ),
    setup: r#"A policy for who signs (DescribeEventBus is for `check --probe`):
  {
    "Version": "2012-10-17",
    "Statement": [
      { "Effect": "Allow", "Action": ["events:PutEvents", "events:DescribeEventBus"], "Resource": "arn:aws:events:eu-central-1:123456789012:event-bus/crm" }
    ]
  }"#,
    example: r#"[[sinks]]
name = "aws"
type = "eventbridge"
bus = "arn:aws:events:eu-central-1:123456789012:event-bus/crm"
access_key_id = "AKIAIOSFODNN7EXAMPLE"
secret_access_key_file = "credential:aws"
"#,
    keys: keys_with_access![
        Key::with_default("bus", "\"default\"", "The bus: its name or ARN"),
        batch_key!("10", "\"256 KiB\"", "\"0s\"", "What goes into one request"),
    ],
    parse: Some(parse),
};

#[derive(Debug)]
struct Options {
    bus: String,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let bus: String = table.or("bus", "default".to_owned());
    let batch = aws::batch(table, DEFAULT, MOST);
    let access = Access::of(table, "events");
    let arn = Arn::parse(&bus, "events");
    let is_name = !bus.is_empty()
        && bus
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
    if arn.is_none() && !is_name {
        table.fault(
            "bus",
            "must be the name or ARN of a bus, like \"arn:aws:events:eu-central-1:123456789012:event-bus/crm\"",
        );
        return None;
    }
    let access = access.with_region(arn.map(|arn| arn.region));
    let fingerprint = access.fingerprint(&(&bus, batch));
    Some(Arc::new(Options {
        bus,
        batch,
        access,
        fingerprint,
    }))
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        Drive {
            batch: self.batch,
            concurrency: 8,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.access.fault()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        detail(delivery).into()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let parts = Parts::of(delivery)?;
        let headers = [
            ("source", SOURCE.to_owned()),
            ("detail-type", parts.kind),
            ("time", parts.time.to_string()),
        ];
        Ok(Preview::new(headers, parts.detail.into()))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        Ok(entries::opened(self.bus(&context)?, self.batch, &context))
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let bus = self.bus(&context)?;
        let asked = json!({ "Name": bus.name });
        bus.account
            .json("AWSEvents.DescribeEventBus", "1.1", &asked)
            .await
            .map_err(Failed::unavailable)?;
        Ok("the bus is there".into())
    }
}

impl Options {
    fn bus(&self, context: &Context) -> Result<Bus, Unavailable> {
        Ok(Bus {
            account: self.access.account(context)?,
            name: self.bus.clone(),
        })
    }
}

fn detail(delivery: &Delivery) -> String {
    match delivery.payload() {
        Some(payload) => String::from_utf8_lossy(payload.bytes()).into_owned(),
        None => message::enveloped(delivery),
    }
}

fn is_object(text: &str) -> bool {
    crate::json::validate(text.as_bytes()).is_ok() && Node::new(text.trim()).kind() == crate::json::Kind::Object
}

/// An event as the bus has it.
struct Parts {
    kind: String,
    /// In seconds.
    time: i64,
    detail: String,
}

impl Parts {
    fn of(delivery: &Delivery) -> Result<Parts, Outcome> {
        let detail = detail(delivery);
        if delivery.payload().is_some() && !is_object(&detail) {
            let reason = "what its template or transform makes is no JSON object, which EventBridge wants as detail";
            return Err(reason.to_owned().into());
        }
        let event = &delivery.event;
        let kind = event.view().and_then(View::type_action);
        let kind = kind.unwrap_or_else(|| "unknown".into());
        Ok(Parts {
            kind: kind.chars().take(TYPE_LEN_MAX).collect(),
            time: event.received_at.as_second(),
            detail,
        })
    }
}

struct Bus {
    account: Account,
    name: String,
}

struct Entry {
    value: Value,
    len: usize,
}

#[async_trait]
impl Service for Bus {
    type Entry = Entry;

    fn entry(&self, delivery: &Delivery) -> Result<Entry, Outcome> {
        let Parts { kind, time, detail } = Parts::of(delivery)?;
        // The time counts 14, and so do the other parts what they are long.
        let len = detail.len() + kind.len() + SOURCE.len() + 14;
        let value = json!({
            "Source": SOURCE,
            "DetailType": kind,
            "Detail": detail,
            "EventBusName": self.name,
            "Time": time,
        });
        Ok(Entry { value, len })
    }

    fn len(entry: &Entry) -> usize {
        entry.len
    }

    async fn send(&self, entries: &[Entry]) -> Result<Vec<Answer>, Failed> {
        let values: Vec<&Value> = entries.iter().map(|entry| &entry.value).collect();
        let answer = self
            .account
            .json("AWSEvents.PutEvents", "1.1", &json!({ "Entries": values }))
            .await?;
        // What is no trouble of the bus's or the sink's is the entry's.
        entries::in_order(&self.account, entries.len(), answer.get("Entries"), true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::common::aws::tests::{Fake, fares, opened};
    use super::*;
    use crate::render::{Payload, Rendered};
    use crate::sinks::tests::deliver;

    #[tokio::test]
    async fn each_event_fares_as_the_bus_says_of_it() {
        let answer = json!({ "FailedEntryCount": 2, "Entries": [
            { "ErrorCode": "ThrottlingException", "ErrorMessage": "slow" }, { "EventId": "1" }, { "ErrorCode": "MalformedDetail" },
        ]});
        let (fared, seen) = fares(&TYPE, &json!({}), answer.to_string()).await;
        assert_eq!(fared, "rdx");
        let asked: Value = serde_json::from_str(&seen[0].2).unwrap();
        assert_eq!(asked["Entries"][0]["DetailType"], "lead.updated");
        assert_eq!(asked["Entries"][0]["EventBusName"], "default");
        let (fared, _) = fares(&TYPE, &json!({}), json!({ "Entries": [] }).to_string()).await;
        assert!(fared.contains("for each entry"), "{fared}");
    }

    #[tokio::test]
    async fn a_detail_is_an_object() {
        let fake = Fake::start(|_| (200, Vec::new(), json!({ "Entries": [{ "EventId": "1" }] }).to_string())).await;
        let sink = opened(&TYPE, &fake, &json!({})).await;
        for (made, is_fine) in [("{\"a\":1}", true), ("[1]", false), ("New lead", false), ("{", false)] {
            let mut delivery = super::super::common::line::tests::delivery(1, "{}");
            delivery.rendered = Some(Arc::new(Rendered {
                payload: Some(Payload::Text(made.into())),
                ..Rendered::default()
            }));
            let outcome = deliver(&*sink, &[delivery]).await.unwrap().remove(0);
            assert_eq!(outcome == Outcome::Delivered, is_fine, "{made}");
        }
    }
}
