//! `kinesis`: a record for each event in a stream of Amazon Kinesis, at least once.
//!
//! The record is `{meta, event}`, or what a template made of the event (decision 42); `meta.key` tells repeats apart. Its partition key
//! is its lead, so that a lead's events are in one shard. A shard that takes no more leaves out some of a request: those are sent
//! again, behind the others (with `order = "lead"` nothing of their leads goes before them).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::common::aws::definition::{about_access, batch_key, keys_with_access};
use super::common::aws::entries::{self, Service};
use super::common::aws::{self, Access, Account, Answer, Arn, Failed, message};
use super::{Commit, Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, SinkKind, Unavailable};
use crate::config::{Key, SinkOptions, SinkType, Table};
use crate::event::Delivery;
use crate::render::{Escape, Template};

/// What Kinesis takes in one request.
const MOST: Limits = Limits {
    events: 500,
    bytes: 5 << 20,
    wait: Duration::from_secs(300),
};

const DEFAULT: Limits = Limits {
    bytes: 4 << 20,
    wait: Duration::ZERO,
    ..MOST
};

/// Of a partition key: characters.
const KEY_LEN_MAX: usize = 256;

pub(super) static TYPE: SinkType = SinkType {
    name: "kinesis",
    feature: Some("sink-kinesis"),
    about: "a record for each event in a stream of Amazon Kinesis",
    promise: "At least once: the key is in `meta.key`",
    notes: concat!(
        "A record is `{\"meta\": {seq, received_at, source, rules, subscription_id, key, and dead {sink, reason, attempts} of what another sink gave up}, \"event\": ...}`, or what a template or transform makes. What a shard has no room for is sent again behind the others; `order = \"lead\"` keeps a lead's events in order through that.\n",
        about_access!()
    ),
    setup: r#"A policy for who signs (DescribeStreamSummary is for `check --probe`):
  {
    "Version": "2012-10-17",
    "Statement": [
      { "Effect": "Allow", "Action": ["kinesis:PutRecords", "kinesis:DescribeStreamSummary"], "Resource": "arn:aws:kinesis:eu-central-1:123456789012:stream/crm-events" }
    ]
  }"#,
    example: r#"[[sinks]]
name = "aws"
type = "kinesis"
stream = "arn:aws:kinesis:eu-central-1:123456789012:stream/crm-events"
access_key_id = "AKIAIOSFODNN7EXAMPLE"
secret_access_key_file = "credential:aws"
"#,
    keys: keys_with_access![
        Key::required(
            "stream",
            "\"arn:aws:kinesis:eu-central-1:123456789012:stream/crm-events\"",
            "The stream: its name or ARN"
        ),
        Key::optional(
            "partition_key",
            "\"{{ lead_id }}\"",
            "What is in one shard, in order; default: the lead"
        )
        .template(),
        batch_key!("500", "\"4 MiB\"", "\"0s\"", "What goes into one request"),
    ],
    parse: Some(parse),
};

#[derive(Debug)]
struct Options {
    stream: String,
    partition_key: Option<Template>,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let stream: Option<String> = table.needed("stream");
    let partition_key = table.template("partition_key", Escape::None);
    let batch = aws::batch(table, DEFAULT, MOST);
    let access = Access::of(table, "kinesis");
    let stream = stream?;
    let arn = Arn::parse(&stream, "kinesis");
    let is_name = (1..=128).contains(&stream.len())
        && stream
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_name && arn.as_ref().is_none_or(|arn| !arn.resource.starts_with("stream/")) {
        table.fault(
            "stream",
            "must be the name or ARN of a stream, like \"arn:aws:kinesis:eu-central-1:123456789012:stream/crm-events\"",
        );
    }
    let access = access.with_region(arn.map(|arn| arn.region));
    let fingerprint = access.fingerprint(&(&stream, &partition_key, batch));
    Some(Arc::new(Options {
        stream,
        partition_key,
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
            // More would mix the order within a lead.
            concurrency: 1,
            commit: Commit::Acknowledge,
        }
    }

    fn fault(&self) -> Option<String> {
        self.access.fault()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        data(delivery)
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        Ok(Preview {
            body: Some(data(delivery)),
            key: Some(partition_key(delivery, self.partition_key.as_ref())),
            ..Preview::default()
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        let named = self.partition_key.iter();
        named.map(|key| ("partition_key".to_owned(), key.clone())).collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        Ok(entries::opened(self.stream(&context)?, self.batch, &context))
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let stream = self.stream(&context)?;
        let asked = json!({ stream.named: stream.name });
        let answer = stream
            .account
            .json("Kinesis_20131202.DescribeStreamSummary", "1.1", &asked)
            .await;
        answer.map_err(Failed::unavailable)?;
        Ok("the stream is there".into())
    }
}

impl Options {
    fn stream(&self, context: &Context) -> Result<Stream, Unavailable> {
        Ok(Stream {
            account: self.access.account(context)?,
            named: if self.stream.starts_with("arn:") {
                "StreamARN"
            } else {
                "StreamName"
            },
            name: self.stream.clone(),
            partition_key: self.partition_key.clone(),
        })
    }
}

fn data(delivery: &Delivery) -> Bytes {
    match delivery.payload() {
        Some(payload) => payload.bytes().clone(),
        None => message::enveloped(delivery).into(),
    }
}

fn partition_key(delivery: &Delivery, template: Option<&Template>) -> String {
    let key = message::group(delivery, "partition_key", template);
    if key.chars().count() > KEY_LEN_MAX {
        message::id(&key)
    } else {
        key
    }
}

struct Stream {
    account: Account,
    /// By which field it is named.
    named: &'static str,
    name: String,
    partition_key: Option<Template>,
}

struct Record {
    value: Value,
    len: usize,
}

#[async_trait]
impl Service for Stream {
    type Entry = Record;

    fn entry(&self, delivery: &Delivery) -> Result<Record, Outcome> {
        let data = data(delivery);
        let key = partition_key(delivery, self.partition_key.as_ref());
        let len = data.len() + key.len();
        let value = json!({ "Data": STANDARD.encode(&data), "PartitionKey": key });
        Ok(Record { value, len })
    }

    fn len(entry: &Record) -> usize {
        entry.len
    }

    async fn send(&self, entries: &[Record]) -> Result<Vec<Answer>, Failed> {
        let values: Vec<&Value> = entries.iter().map(|entry| &entry.value).collect();
        let asked = json!({ self.named: self.name, "Records": values });
        let answer = self.account.json("Kinesis_20131202.PutRecords", "1.1", &asked).await?;
        // A record's only errors are those of its shard.
        entries::in_order(&self.account, entries.len(), answer.get("Records"), false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::aws::tests::fares;
    use super::*;

    #[tokio::test]
    async fn each_record_fares_as_the_stream_says_of_it() {
        let full = json!({ "ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded" });
        let answer =
            json!({ "FailedRecordCount": 1, "Records": [{ "SequenceNumber": "1" }, full, { "SequenceNumber": "2" }] });
        let stream = json!({ "stream": "arn:aws:kinesis:eu-central-1:123456789012:stream/s" });
        let (fared, seen) = fares(&TYPE, &stream, answer.to_string()).await;
        assert_eq!(fared, "drd");
        let asked: Value = serde_json::from_str(&seen[0].2).unwrap();
        assert_eq!(asked["StreamARN"], stream["stream"]);
        assert_eq!(asked["Records"][0]["PartitionKey"], "lead_é");
        // A stream that takes nothing is the sink's trouble.
        let answer = json!({ "Records": [full, full, full] });
        let (fared, _) = fares(&TYPE, &json!({ "stream": "s" }), answer.to_string()).await;
        assert!(fared.contains("ProvisionedThroughputExceeded"), "{fared}");
    }
}
