//! `sns`: a notification for each event to a topic of Amazon SNS, at least once.
//!
//! The message is what Close sent, or what a template made of it; `closehook-*` are its attributes, by which subscriptions filter. A FIFO
//! topic gets the event's key as the id for deduplication, and its lead as the group, as `sqs` does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Method;

use super::common::aws::definition::{about_access, batch_key, keys_with_access};
use super::common::aws::entries::{self, Complaint, Service};
use super::common::aws::{self, Access, Account, Answer, Arn, Ask, Failed, form, message, xml};
use super::{Context, Drive, Fingerprint, Limits, Opened, Outcome, Preview, SinkKind, Unavailable};
use crate::config::{Key, SinkOptions, SinkType, Table};
use crate::event::Delivery;
use crate::render::{Escape, Template};

/// What SNS takes in one request.
const MOST: Limits = Limits {
    events: 10,
    bytes: 256 << 10,
    wait: Duration::from_secs(300),
};

const DEFAULT: Limits = Limits {
    wait: Duration::ZERO,
    ..MOST
};

/// Of an e-mail's subject: characters.
const SUBJECT_LEN_MAX: usize = 100;

pub(super) static TYPE: SinkType = SinkType {
    name: "sns",
    feature: Some("sink-sns"),
    about: "a notification for each event to a topic of Amazon SNS",
    promise: "At least once: the key is the attribute `closehook-key`, and of a FIFO topic the id for deduplication",
    notes: concat!(
        "The message is what Close sent, or what a template or transform makes, with the attributes that `sqs` has; subscriptions can filter by them (`closehook-type`). Subscriptions of queues with raw delivery take ten attributes. A FIFO topic is used as a FIFO queue is.\n",
        about_access!()
    ),
    setup: r#"A policy for who signs (GetTopicAttributes is for `check --probe`):
  {
    "Version": "2012-10-17",
    "Statement": [
      { "Effect": "Allow", "Action": ["sns:Publish", "sns:GetTopicAttributes"], "Resource": "arn:aws:sns:eu-central-1:123456789012:crm-events" }
    ]
  }"#,
    example: r#"[[sinks]]
name = "aws"
type = "sns"
topic = "arn:aws:sns:eu-central-1:123456789012:crm-events"
access_key_id = "AKIAIOSFODNN7EXAMPLE"
secret_access_key_file = "credential:aws"
"#,
    keys: keys_with_access![
        Key::required("topic", "\"arn:aws:sns:eu-central-1:123456789012:crm-events\"", "The topic's ARN"),
        Key::optional("subject", "\"{{ object_type }} {{ action }}\"", "The subject of e-mails: a line of at most 100 printable ASCII characters, what is longer is cut and what is none becomes `?`").template(),
        Key::optional("group", "\"{{ lead_id }}\"", "What is kept in order by a FIFO topic; default: the lead").template(),
        batch_key!("10", "\"256 KiB\"", "\"0s\"", "What goes into one request"),
    ],
    parse: Some(parse),
};

#[derive(Debug)]
struct Options {
    topic: String,
    is_fifo: bool,
    subject: Option<Template>,
    group: Option<Template>,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
}

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let topic: Option<String> = table.needed("topic");
    let subject = table.template("subject", Escape::None);
    let group = table.template("group", Escape::None);
    let batch = aws::batch(table, DEFAULT, MOST);
    let access = Access::of(table, "sns");
    let topic = topic?;
    let Some(region) = Arn::parse(&topic, "sns").map(|arn| arn.region) else {
        table.fault(
            "topic",
            "must be a topic's ARN, like \"arn:aws:sns:eu-central-1:123456789012:crm-events\"",
        );
        return None;
    };
    let access = access.with_region(Some(region));
    let fingerprint = access.fingerprint(&(&topic, &subject, &group, batch));
    Some(Arc::new(Options {
        is_fifo: message::is_fifo(&topic),
        topic,
        subject,
        group,
        batch,
        access,
        fingerprint,
    }))
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
        let group = || message::group_id(delivery, self.group.as_ref());
        let id = message::deduplication(delivery, self.is_fifo);
        let headers = message::attributes(delivery)?.into_iter().chain(id);
        Ok(Preview {
            key: self.is_fifo.then(group),
            subject: subject(delivery, self.subject.as_ref()),
            ..Preview::new(headers, self.payload(delivery))
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        let named = [("subject", &self.subject), ("group", &self.group)];
        named
            .into_iter()
            .filter_map(|(name, template)| Some((name.to_owned(), template.clone()?)))
            .collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        Ok(entries::opened(self.topic(&context)?, self.batch, &context))
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let topic = self.topic(&context)?;
        let fields = [("Action", "GetTopicAttributes"), VERSION, ("TopicArn", &topic.arn)];
        topic.ask(&fields).await.map_err(Failed::unavailable)?;
        Ok("the topic is there".into())
    }
}

impl Options {
    fn topic(&self, context: &Context) -> Result<Topic, Unavailable> {
        Ok(Topic {
            account: self.access.account(context)?,
            arn: self.topic.clone(),
            is_fifo: self.is_fifo,
            subject: self.subject.clone(),
            group: self.group.clone(),
        })
    }
}

const VERSION: (&str, &str) = ("Version", "2010-03-31");

struct Topic {
    account: Account,
    arn: String,
    is_fifo: bool,
    subject: Option<Template>,
    group: Option<Template>,
}

/// A message: its fields, as their names end, and what it counts.
struct Message {
    fields: Vec<(String, String)>,
    len: usize,
    /// What keeps order with it, in a FIFO one.
    group: Option<String>,
}

impl Topic {
    async fn ask(&self, fields: &[(&str, &str)]) -> Result<String, Failed> {
        let ask = Ask {
            method: Method::POST,
            url: self.account.endpoint.clone(),
            headers: vec![("content-type", "application/x-www-form-urlencoded".to_owned())],
            body: form(fields).into(),
        };
        self.account.judged(ask).await.map(|reply| reply.text().into_owned())
    }
}

/// What the event's subject is, as SNS takes it: a line of printable ASCII.
fn subject(delivery: &Delivery, template: Option<&Template>) -> Option<String> {
    let made = delivery.rendered.as_ref().and_then(|rendered| rendered.subject.clone());
    let own = || template.map(|subject| delivery.text("subject", subject).to_owned());
    let text = made.or_else(own)?;
    let plain = text.chars().map(|c| match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    });
    let line: String = plain.collect::<String>().trim().chars().take(SUBJECT_LEN_MAX).collect();
    Some(line).filter(|line| !line.is_empty())
}

#[async_trait]
impl Service for Topic {
    type Entry = Message;

    fn entry(&self, delivery: &Delivery) -> Result<Message, Outcome> {
        let body = message::body(delivery);
        let mut len = body.len();
        let mut fields = vec![("Message".to_owned(), body)];
        for (index, (name, value)) in message::attributes(delivery)?.into_iter().enumerate() {
            len += name.len() + value.len() + "String".len();
            let place = format!("MessageAttributes.entry.{}", index + 1);
            fields.push((format!("{place}.Name"), name));
            fields.push((format!("{place}.Value.DataType"), "String".into()));
            fields.push((format!("{place}.Value.StringValue"), value));
        }
        if let Some(subject) = subject(delivery, self.subject.as_ref()) {
            fields.push(("Subject".into(), subject));
        }
        fields.extend(message::deduplication(delivery, self.is_fifo));
        let group = || message::group_id(delivery, self.group.as_ref());
        let group = self.is_fifo.then(group);
        fields.extend(group.iter().map(|group| ("MessageGroupId".to_owned(), group.clone())));
        Ok(Message { fields, len, group })
    }

    fn len(entry: &Message) -> usize {
        entry.len
    }

    fn group(&self, entry: &Message) -> Option<String> {
        entry.group.clone()
    }

    async fn send(&self, entries: &[Message]) -> Result<Vec<Answer>, Failed> {
        let mut fields = vec![
            ("Action".to_owned(), "PublishBatch".to_owned()),
            (VERSION.0.to_owned(), VERSION.1.to_owned()),
            ("TopicArn".to_owned(), self.arn.clone()),
        ];
        for (index, entry) in entries.iter().enumerate() {
            let place = format!("PublishBatchRequestEntries.member.{}", index + 1);
            fields.push((format!("{place}.Id"), index.to_string()));
            fields.extend(
                entry
                    .fields
                    .iter()
                    .map(|(name, value)| (format!("{place}.{name}"), value.clone())),
            );
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        let answer = self.ask(&fields).await?;
        Ok(self.answers(&answer, entries.len()))
    }
}

impl Topic {
    fn answers(&self, answer: &str, count: usize) -> Vec<Answer> {
        let members = |name| {
            let part = xml::inside(answer, name).map(|part| xml::all(part, "member"));
            part.unwrap_or_default().into_iter()
        };
        let text = |member, name| xml::text(member, name).unwrap_or_default();
        let taken = members("Successful").map(|member| text(member, "Id"));
        let failed = members("Failed").map(|member| {
            let complaint = Complaint {
                code: text(member, "Code"),
                message: text(member, "Message"),
                is_senders: text(member, "SenderFault") == "true",
            };
            (text(member, "Id"), complaint)
        });
        entries::by_number(&self.account, count, taken, failed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::common::aws::tests::fares;
    use super::*;

    #[tokio::test]
    async fn each_message_fares_as_the_topic_says_of_it() {
        let answer = "<PublishBatchResponse><PublishBatchResult><Failed>\
            <member><Id>0</Id><Code>InvalidParameter</Code><Message>a &lt; b</Message><SenderFault>true</SenderFault></member>\
            <member><Id>2</Id><Code>InternalFailure</Code><SenderFault>false</SenderFault></member></Failed>\
            <Successful><member><Id>1</Id></member></Successful></PublishBatchResult></PublishBatchResponse>";
        let topic = json!({ "topic": "arn:aws:sns:eu-central-1:123456789012:t", "subject": "New\nin Close: é" });
        let (fared, seen) = fares(&TYPE, &topic, answer.into()).await;
        assert_eq!(fared, "xdr");
        let body = &seen[0].2;
        for part in [
            "Action=PublishBatch&Version=2010-03-31&TopicArn=arn%3Aaws%3Asns%3Aeu-central-1%3A123456789012%3At",
            "PublishBatchRequestEntries.member.3.Id=2",
            "PublishBatchRequestEntries.member.1.Subject=New%20in%20Close%3A%20%3F",
            "PublishBatchRequestEntries.member.1.MessageAttributes.entry.1.Name=closehook-seq",
        ] {
            assert!(body.contains(part), "{part}: {body}");
        }
    }
}
