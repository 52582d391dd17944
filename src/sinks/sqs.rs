//! `sqs`: a message for each event in a queue of Amazon SQS, at least once.
//!
//! The body is what Close sent, or what a template made of it; `closehook-*` are its attributes. A queue takes at most ten of them, so
//! a transform may add three. In a FIFO queue the id for deduplication is the event's key (a digest of it where it has other characters
//! or is longer than ids may be), so a repeat within five minutes is none, and the group is its lead; one request at a time keeps the
//! order in which events go out (`order = "lead"` keeps it through failures, too).
//!
//! What SQS refuses of a batch costs that event alone. That the queue is missing, a right or the credentials are, or that it is asked too
//! much, is the sink's trouble.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Url;
use serde_json::{Map, Value, json};

use super::common::aws::definition::{about_access, batch_key, keys_with_access};
use super::common::aws::entries::{self, Complaint, Service};
use super::common::aws::message::{self, ATTRIBUTES_MAX};
use super::common::aws::{self, Access, Account, Answer, Arn, Failed};
use super::{Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, SinkKind, Unavailable};
use crate::config::{Key, SinkOptions, SinkType, Table};
use crate::event::Delivery;
use crate::render::{Escape, Template};

/// What SQS takes in one request. (Bytes: a server that takes less has its requests halved.)
const MOST: Limits = Limits {
    events: 10,
    bytes: 1 << 20,
    wait: Duration::from_secs(300),
};

const DEFAULT: Limits = Limits {
    events: 10,
    bytes: 256 << 10,
    wait: Duration::ZERO,
};

pub(super) static TYPE: SinkType = SinkType {
    name: "sqs",
    feature: Some("sink-sqs"),
    about: "a message for each event in a queue of Amazon SQS",
    promise: "At least once: the key is the attribute `closehook-key`, and in a FIFO queue the id for deduplication",
    notes: concat!(
        "The body is what Close sent, or what a template or transform makes; U+FFFE, U+FFFF and control characters, which no message may have, become U+FFFD. Attributes are `closehook-seq`, `-type`, `-event-id`, `-key`, `-lead-id`, `-received-at` and `-source`; SQS takes ten, so a transform may add three. What another sink gave up (its dead_to) has `closehook-dead-reason`, `-dead-sink` and `-dead-attempts` besides; where these would be too many only the reason, and where a transform takes all places none.\nIn a FIFO queue the group is the event's lead (or its object, or itself), and the ids are a SHA-256 where they would be longer than 128 characters or have others than visible ASCII. One request at a time keeps the order in which events go out; `order = \"lead\"` keeps it through failures.\n",
        about_access!()
    ),
    setup: r#"A policy for who signs (GetQueueAttributes is for `check --probe`):
  {
    "Version": "2012-10-17",
    "Statement": [
      { "Effect": "Allow", "Action": ["sqs:SendMessage", "sqs:GetQueueAttributes"], "Resource": "arn:aws:sqs:eu-central-1:123456789012:crm-events" }
    ]
  }"#,
    example: r#"[[sinks]]
name = "aws"
type = "sqs"
queue = "https://sqs.eu-central-1.amazonaws.com/123456789012/crm-events"
access_key_id = "AKIAIOSFODNN7EXAMPLE"
secret_access_key_file = "credential:aws"
"#,
    keys: keys_with_access![
        Key::required(
            "queue",
            "\"https://sqs.eu-central-1.amazonaws.com/123456789012/crm-events\"",
            "The queue: its URL or ARN"
        ),
        Key::optional(
            "group",
            "\"{{ lead_id }}\"",
            "What is kept in order; default in a FIFO queue: the lead"
        )
        .template(),
        batch_key!("10", "\"256 KiB\"", "\"0s\"", "What goes into one request"),
    ],
    parse: Some(parse),
};

#[derive(Debug)]
struct Options {
    queue: Url,
    is_fifo: bool,
    group: Option<Template>,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let queue: Option<String> = table.needed("queue");
    let group = table.template("group", Escape::None);
    let batch = aws::batch(table, DEFAULT, MOST);
    let access = Access::of(table, "sqs");
    let text = queue?;
    let Some((queue, access)) = place(&text, access) else {
        table.fault(
            "queue",
            "must be a queue's URL or ARN, like \"https://sqs.eu-central-1.amazonaws.com/123456789012/crm-events\" or \
             \"arn:aws:sqs:eu-central-1:123456789012:crm-events\"",
        );
        return None;
    };
    let fingerprint = access.fingerprint(&(&queue, &group, batch));
    Some(Arc::new(Options {
        is_fifo: message::is_fifo(queue.path()),
        queue,
        group,
        batch,
        access,
        fingerprint,
    }))
}

/// The queue's URL, and the way to it.
fn place(text: &str, access: Access) -> Option<(Url, Access)> {
    if let Some(arn) = Arn::parse(text, "sqs") {
        let access = access.with_region(Some(arn.region));
        let mut url = access.endpoint().ok()?.0;
        url.set_path(&format!("/{}/{}", arn.account, arn.resource));
        return Some((url, access));
    }
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.path().len() > 1)?;
    let host = url.host_str()?;
    let region = host
        .strip_prefix("sqs.")
        .and_then(|rest| rest.split_once(".amazonaws."))
        .map(|(region, _)| region.to_owned());
    let mut origin = url.clone();
    origin.set_path("/");
    origin.set_query(None);
    Some((url, access.with_region(region.as_deref()).with_endpoint(Some(origin))))
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        message::drive(self.batch, self.is_fifo)
    }

    fn fault(&self) -> Option<String> {
        self.access.fault()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        message::body(delivery).into()
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let has_group = self.is_fifo || self.group.is_some();
        let group = has_group.then(|| message::group_id(delivery, self.group.as_ref()));
        let id = message::deduplication(delivery, self.is_fifo);
        let headers = attributes(delivery)?.into_iter().chain(id);
        Ok(Preview {
            key: group,
            ..Preview::new(headers, self.payload(delivery))
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        self.group
            .iter()
            .map(|group| ("group".to_owned(), group.clone()))
            .collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        Ok(entries::opened(self.queue(&context)?, self.batch, &context))
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let queue = self.queue(&context)?;
        let asked = json!({ "QueueUrl": queue.url, "AttributeNames": ["QueueArn"] });
        match queue.account.json("AmazonSQS.GetQueueAttributes", "1.0", &asked).await {
            Ok(_) => Ok("the queue is there".into()),
            Err(failed) => Err(failed.unavailable()),
        }
    }
}

impl Options {
    fn queue(&self, context: &Context) -> Result<Queue, Unavailable> {
        Ok(Queue {
            account: self.access.account(context)?,
            url: self.queue.to_string(),
            is_fifo: self.is_fifo,
            group: self.group.clone(),
        })
    }
}

/// What stands beside the body; an error where that is more than SQS takes.
fn attributes(delivery: &Delivery) -> Result<Vec<(String, String)>, Outcome> {
    let attributes = message::attributes(delivery)?;
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(format!("it has {} attributes, and SQS takes {ATTRIBUTES_MAX}", attributes.len()).into());
    }
    Ok(attributes)
}

struct Queue {
    account: Account,
    url: String,
    is_fifo: bool,
    group: Option<Template>,
}

/// A message, and what it counts.
struct Message {
    entry: Map<String, Value>,
    len: usize,
    /// What keeps order with it, in a FIFO one.
    group: Option<String>,
}

#[async_trait]
impl Service for Queue {
    type Entry = Message;

    fn entry(&self, delivery: &Delivery) -> Result<Message, Outcome> {
        let attributes = attributes(delivery)?;
        let body = message::body(delivery);
        let beside = attributes
            .iter()
            .map(|(name, value)| name.len() + value.len() + "String".len());
        let len = body.len() + beside.sum::<usize>();
        let attributes: Map<String, Value> = attributes
            .into_iter()
            .map(|(name, value)| (name, json!({ "DataType": "String", "StringValue": value })))
            .collect();
        let mut entry = Map::new();
        entry.insert("MessageBody".into(), body.into());
        entry.insert("MessageAttributes".into(), attributes.into());
        let id = message::deduplication(delivery, self.is_fifo);
        entry.extend(id.map(|(field, id)| (field, Value::from(id))));
        let has_group = self.is_fifo || self.group.is_some();
        let group = has_group.then(|| message::group_id(delivery, self.group.as_ref()));
        if let Some(group) = &group {
            entry.insert("MessageGroupId".into(), group.as_str().into());
        }
        let group = group.filter(|_| self.is_fifo);
        Ok(Message { entry, len, group })
    }

    fn len(entry: &Message) -> usize {
        entry.len
    }

    fn group(&self, entry: &Message) -> Option<String> {
        entry.group.clone()
    }

    async fn send(&self, entries: &[Message]) -> Result<Vec<Answer>, Failed> {
        let numbered = entries.iter().enumerate().map(|(index, message)| {
            let mut entry = message.entry.clone();
            entry.insert("Id".into(), index.to_string().into());
            Value::Object(entry)
        });
        let asked = json!({ "QueueUrl": self.url, "Entries": numbered.collect::<Vec<_>>() });
        let answer = self.account.json("AmazonSQS.SendMessageBatch", "1.0", &asked).await?;
        Ok(self.answers(&answer, entries.len()))
    }
}

impl Queue {
    fn answers(&self, answer: &Value, count: usize) -> Vec<Answer> {
        let list = |name: &str| answer.get(name).and_then(Value::as_array).into_iter().flatten();
        let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let taken = list("Successful").map(|entry| text(entry, "Id"));
        let failed = list("Failed").map(|entry| {
            let complaint = Complaint {
                code: text(entry, "Code"),
                message: text(entry, "Message"),
                is_senders: entry.get("SenderFault").and_then(Value::as_bool).unwrap_or_default(),
            };
            (text(entry, "Id"), complaint)
        });
        entries::by_number(&self.account, count, taken, failed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::aws::tests::fares;
    use super::*;

    #[tokio::test]
    async fn each_message_fares_as_the_queue_says_of_it() {
        let answer = json!({
            "Failed": [
                { "Id": "1", "SenderFault": true, "Code": "InvalidMessageContents", "Message": "no" },
                { "Id": "2", "SenderFault": false, "Code": "InternalError" },
            ],
            "Successful": [{ "Id": "0" }],
        });
        let queue = json!({ "queue": "arn:aws:sqs:eu-west-1:123456789012:q" });
        let (fared, _) = fares(&TYPE, &queue, answer.to_string()).await;
        assert_eq!(fared, "dxr");
        // One of them would overtake what is put off of its group: they go one by one.
        let queue = json!({ "queue": "arn:aws:sqs:eu-west-1:123456789012:q.fifo" });
        let (fared, seen) = fares(&TYPE, &queue, answer.to_string()).await;
        assert_eq!(fared, "ddd");
        let (asked, head, body) = &seen[0];
        assert_eq!((&**asked, seen.len()), ("POST /", 3));
        assert_eq!(head["x-amz-target"], "AmazonSQS.SendMessageBatch");
        assert!(
            head["authorization"]
                .to_str()
                .unwrap()
                .contains("/eu-central-1/sqs/aws4_request"),
            "region wins"
        );
        let asked: Value = serde_json::from_str(body).unwrap();
        let entry = &asked["Entries"][0];
        assert!(asked["QueueUrl"].as_str().unwrap().ends_with("/123456789012/q.fifo"));
        assert_eq!(entry["MessageDeduplicationId"], "ev_1:");
        assert_eq!(
            entry["MessageGroupId"].as_str().unwrap().len(),
            64,
            "a lead with other characters is a digest"
        );
        // An answer that leaves out all of them is no answer.
        let (fared, _) = fares(&TYPE, &queue, "{}".into()).await;
        assert!(fared.contains("no-answer"), "{fared}");
    }

    #[test]
    fn a_queue_is_named_by_its_url_or_its_arn() {
        let access = || {
            let mut faults = Vec::new();
            Access::of(&mut Table::new("s", json!({}), &mut faults), "sqs")
        };
        for text in [
            "https://sqs.eu-central-1.amazonaws.com/123456789012/q",
            "arn:aws:sqs:eu-central-1:123456789012:q",
        ] {
            let (url, access) = place(text, access()).unwrap();
            assert_eq!(url.as_str(), "https://sqs.eu-central-1.amazonaws.com/123456789012/q");
            assert_eq!(
                access.endpoint().unwrap().0.as_str(),
                "https://sqs.eu-central-1.amazonaws.com/"
            );
        }
        let local = "http://localhost:4566/000000000000/q";
        assert_eq!(place(local, access()).unwrap().0.as_str(), local);
        for text in [
            "q",
            "https://sqs.eu-central-1.amazonaws.com",
            "arn:aws:sns:eu-central-1:1:q",
            "ftp://x/y",
        ] {
            assert!(place(text, access()).is_none(), "{text}");
        }
    }
}
