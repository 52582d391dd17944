//! `eventbridge`: an event for each event on a bus of Amazon EventBridge, at least once.
//!
//! `source` is `closehook`, `detail-type` the type (`lead.updated`), `detail` `{meta, event}`, or the JSON object that a template or
//! transform made (decision 42); `meta.key` tells repeats apart.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use super::common::aws::entries::{self, Service, refused};
use super::common::aws::{self, Access, Account, Arn, Failed, message};
use super::{Batch, Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Sink, SinkKind, Unavailable};
use crate::config::{SinkOptions, Table};
use crate::event::{Delivery, View};
use crate::json::Node;

/// What EventBridge takes in one request. (Bytes: where it takes less, requests are halved.)
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

/// Of `detail-type`.
const TYPE_LEN_MAX: usize = 128;

#[derive(Debug)]
struct Options {
    bus: String,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
}

pub(super) fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
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

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let sink: Box<dyn Sink> = Box::new(self.bus(context)?);
        Ok(sink.into())
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let bus = self.bus(context)?;
        let asked = json!({ "Name": bus.name });
        bus.account
            .json("AWSEvents.DescribeEventBus", "1.1", &asked)
            .await
            .map_err(Failed::unavailable)?;
        Ok("the bus is there".into())
    }
}

impl Options {
    fn bus(&self, context: Context) -> Result<Bus, Unavailable> {
        let mut account = self.access.account(context.timeout).map_err(Unavailable::new)?;
        account.answers = context.answers;
        Ok(Bus {
            account,
            name: self.bus.clone(),
            batch: self.batch,
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

struct Bus {
    account: Account,
    name: String,
    batch: Limits,
}

struct Entry {
    value: Value,
    len: usize,
}

#[async_trait]
impl Service for Bus {
    type Entry = Entry;

    fn entry(&self, delivery: &Delivery) -> Result<Entry, Outcome> {
        let detail = detail(delivery);
        if delivery.payload().is_some() && !is_object(&detail) {
            let reason = "what its template or transform makes is no JSON object, which EventBridge wants as detail";
            return Err(Outcome::Reject { reason: reason.into() });
        }
        let event = &delivery.event;
        let kind = event
            .view()
            .and_then(View::type_action)
            .unwrap_or_else(|| "unknown".into());
        let kind: String = kind.chars().take(TYPE_LEN_MAX).collect();
        // The time counts 14, and so do the other parts what they are long.
        let len = detail.len() + kind.len() + "closehook".len() + 14;
        let value = json!({
            "Source": "closehook",
            "DetailType": kind,
            "Detail": detail,
            "EventBusName": self.name,
            "Time": event.received_at.as_second(),
        });
        Ok(Entry { value, len })
    }

    fn len(entry: &Entry) -> usize {
        entry.len
    }

    async fn send(&self, entries: &[Entry]) -> Result<Vec<Outcome>, Failed> {
        let values: Vec<&Value> = entries.iter().map(|entry| &entry.value).collect();
        let answer = self
            .account
            .json("AWSEvents.PutEvents", "1.1", &json!({ "Entries": values }))
            .await?;
        let answers = answer
            .get("Entries")
            .and_then(Value::as_array)
            .filter(|answers| answers.len() == entries.len());
        let Some(answers) = answers else {
            return Err(Failed::Sink(Unavailable::new(
                "the service does not answer for each entry: is endpoint the right one?",
            )));
        };
        let outcome = |answer: &Value| {
            let text = |name: &str| answer.get(name).and_then(Value::as_str);
            let Some(code) = text("ErrorCode").filter(|code| !code.is_empty()) else {
                return Outcome::Delivered;
            };
            let refusal = self.account.refusal(code, text("ErrorMessage").unwrap_or_default());
            // A bus that is missing or may not be used is not the event's fault.
            let is_its_fault = !aws::is_passing(code) && !code.contains("NotAuthorized") && !code.contains("NotFound");
            refused(refusal, is_its_fault && !code.contains("AccessDenied"))
        };
        Ok(answers.iter().map(outcome).collect())
    }
}

#[async_trait]
impl Sink for Bus {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        entries::deliver(self, self.batch, batch.deliveries()).await
    }
}
