//! What there is to say of `s3`.

use super::parse;
use crate::config::{Key, SinkType};
use crate::sinks::common::aws::definition::{about_access, batch_key, keys_with_access};

pub(in crate::sinks) static TYPE: SinkType = SinkType {
    name: "s3",
    feature: Some("sink-s3"),
    about: "compressed objects of JSON lines in a bucket of Amazon S3, or of a store that speaks it and knows If-None-Match",
    promise: "Exactly once: each object is planned with the position, and written only where there is none of its name",
    notes: concat!(
        "Objects are called PREFIX/dt=YYYY-MM-DD/EPOCH-FIRST-LAST.jsonl.gz (of replays and retried letters EPOCH-JOB-FIRST-LAST), by the day (UTC) on \
which the first event was received, and by Seqs. Lines are those of `file`, or what a template or transform makes. After a crash or an \
outage an object may hold fewer events than its name says; the others are in a later one.
Events are gathered for `batch`, compressed in memory; a stop, a reload and a retried letter do not wait. Until they are in the bucket \
the log keeps them. A larger `batch.bytes` may need a longer `timeout`.\n",
        about_access!()
    ),
    setup: r#"A bucket, and a policy for who signs (the sink asks what an object holds when an answer was lost, and for one that is not there when it is probed):
  {
    "Version": "2012-10-17",
    "Statement": [
      { "Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject"], "Resource": "arn:aws:s3:::example-crm-archive/*" },
      { "Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::example-crm-archive" }
    ]
  }"#,
    example: r#"[[sinks]]
name = "archive"
type = "s3"
bucket = "example-crm-archive"
region = "eu-central-1"
prefix = "close"
access_key_id = "AKIAIOSFODNN7EXAMPLE"
secret_access_key_file = "credential:aws"
"#,
    keys: keys_with_access![
        Key::required("bucket", "\"example-crm-archive\"", "Where to"),
        Key::optional("prefix", "\"close\"", "What names begin with; a template that differs makes an object for each").template(),
        Key::with_default("format", "\"jsonl.gz\"", "\"jsonl.gz\" or \"jsonl.zst\""),
        batch_key!("10000", "\"16 MiB\"", "\"5m\"", "What is gathered for an object"),
    ],
    parse: Some(parse),
};
