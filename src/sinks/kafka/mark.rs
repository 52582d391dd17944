//! The mark: a record of a compacted topic, committed with the records that it is about, and found again when the sink is opened.
//!
//! Its key is the log and the sink, as a JSON array; its value is a JSON object with the epoch, how far the sink is in words for people,
//! the mark itself and the number of marks that were written before. The newest one that is committed counts: it is looked for from the
//! end of the topic, a part twice as large each time.
//!
//! Whether one is committed is read where it stands: behind the records of a transaction there is a marker of how it ended. A reader of
//! committed records would see no further than the first transaction that is open, be it another sink's, and take an older mark for the
//! newest. Of this sink none is open: it has begun, which ended whatever was.

use std::collections::{BTreeSet, HashMap};

use bytes::{Buf, Bytes};
use jiff::Timestamp;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{ApiKey, BrokerId, DescribeConfigsRequest, FetchRequest, ListOffsetsRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::RecordBatchDecoder;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::answer;
use super::connection::Connection;
use super::producer::Producer;
use super::record::Parcel;
use crate::event::Seq;
use crate::sinks::Mark;

/// The topic of the marks where the configuration names none.
pub(super) const MARK_TOPIC: &str = "closehook_mark";

/// Offsets of the part that is looked at first.
const PART: i64 = 500;

/// Bytes that are fetched at a time, roughly.
const FETCH_LEN: i32 = 1 << 20;

/// How long a broker may wait for something to fetch.
const FETCH_WAIT_MS: i32 = 100;

/// So often nothing comes of an offset until it is believed that nothing is there. Kafka gives what comes next; a broker that was killed
/// while it wrote may leave holes.
const EMPTY_MAX: usize = 2;

/// So many offsets with nothing at them are the end.
const HOLE_MAX: usize = 10;

/// A topic (`ConfigResource.Type.TOPIC`).
const TOPIC: i8 = 2;

/// Times that stand for the beginning and the end.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// What the key of a marker says of how a transaction ended, behind its version.
const COMMITTED: [u8; 2] = [0, 1];

/// Where a sink's mark is.
pub(super) struct Place {
    topic: String,
    log_id: String,
    sink: String,
}

/// What a mark's record holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    epoch: String,
    seq: u64,
    mark: String,
    number: u64,
    updated_at: Timestamp,
}

/// A mark that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub mark: Mark,
    /// How many were written before.
    pub number: u64,
}

impl Place {
    pub fn new(topic: &str, log_id: &str, sink: &str) -> Place {
        Place {
            topic: topic.to_owned(),
            log_id: log_id.to_owned(),
            sink: sink.to_owned(),
        }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Under which the sink's transactions are known.
    pub fn transactional_id(&self) -> String {
        format!("closehook-{}-{}", self.log_id, self.sink)
    }

    fn key(&self) -> String {
        serde_json::json!([self.log_id, self.sink]).to_string()
    }

    /// The record of a mark.
    pub fn parcel(&self, mark: &Mark, number: u64) -> Result<Parcel, String> {
        let kept = Kept {
            epoch: mark.epoch.clone(),
            seq: mark.seq.0,
            mark: mark.text.clone(),
            number,
            updated_at: Timestamp::now(),
        };
        let value = serde_json::to_vec(&kept).map_err(|error| format!("the mark can't be written: {error}"))?;
        Ok(Parcel {
            topic: self.topic.clone(),
            topic_varies: false,
            key: Some(self.key().into()),
            value: value.into(),
            headers: Vec::new(),
        })
    }

    fn read(&self, value: &[u8]) -> Result<Found, String> {
        let kept: Kept = serde_json::from_slice(value)
            .map_err(|error| format!("the sink's mark in the topic {} can't be read: {error}", self.topic))?;
        Ok(Found {
            number: kept.number,
            mark: Mark {
                epoch: kept.epoch,
                seq: Seq(kept.seq),
                text: kept.mark,
            },
        })
    }
}

impl Producer {
    /// Looks whether marks can be kept: the topic is there, and is compacted, as far as the brokers say so.
    pub async fn look_at_marks(&mut self, topic: &str, until: Instant) -> Result<(), String> {
        let names = BTreeSet::from([topic.to_owned()]);
        self.cluster.refresh(&names, until).await.map_err(|lost| lost.reason)?;
        let known = self.cluster.topic(topic);
        let missing = known.map_or(Some(answer::UNKNOWN_TOPIC), |known| {
            known.partitions.as_ref().err().copied()
        });
        if let Some(code) = missing {
            let what = format!("the topic {topic}, which keeps the mark");
            return Err(format!(
                "{} (with cleanup.policy=compact), see mark_topic and setup",
                answer::sentence(code, &what)
            ));
        }
        let broker = self.cluster.any(until).await.map_err(|lost| lost.reason)?;
        if !broker.knows(ApiKey::DescribeConfigs) {
            return Ok(());
        }
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(StrBytes::from_string(topic.to_owned()))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        // Some brokers that speak Kafka's protocol can't say it, and the mark needs no answer to this.
        let Ok(said) = broker.ask(&request, until).await else {
            return Ok(());
        };
        let policy = said
            .results
            .iter()
            .filter(|result| result.error_code == 0)
            .flat_map(|result| &result.configs)
            .find(|config| &*config.name == "cleanup.policy")
            .and_then(|config| config.value.as_deref());
        // Who may not look at it has to know.
        match policy {
            Some(policy) if !policy.contains("compact") => Err(format!(
                "the topic {topic} would lose the mark one day: set its cleanup.policy to compact (it is {policy})"
            )),
            _ => Ok(()),
        }
    }

    /// The newest committed mark. Whoever asks has begun: of this sink nothing is open any more.
    pub async fn read_mark(&mut self, place: &Place, until: Instant) -> Result<Option<Found>, String> {
        let known = self
            .cluster
            .topic(place.topic())
            .and_then(|topic| topic.partitions.as_ref().ok());
        let partitions = known.map_or(0, Vec::len) as i32;
        let mut newest: Option<Found> = None;
        // Where partitions were added the mark may be in any of them.
        for partition in 0..partitions {
            let (leader, connection) = self.leader_of(place.topic(), partition, until).await?;
            let mut reader = Reader {
                connection,
                topic: place.topic(),
                partition,
                key: place.key(),
                until,
            };
            let found = reader.newest(place).await;
            let connection = reader.connection;
            self.cluster.give_back(leader, connection);
            newest = newer(newest, found?);
        }
        Ok(newest)
    }
}

/// Reads one partition of the marks.
struct Reader<'p> {
    connection: Connection,
    topic: &'p str,
    partition: i32,
    key: String,
    until: Instant,
}

impl Reader<'_> {
    fn what(&self) -> String {
        format!("the topic {} (partition {})", self.topic, self.partition)
    }

    fn topic_name(&self) -> TopicName {
        TopicName(StrBytes::from_string(self.topic.to_owned()))
    }

    async fn offset(&mut self, time: i64) -> Result<i64, String> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(self.partition)
            .with_timestamp(time);
        let topic = ListOffsetsTopic::default()
            .with_name(self.topic_name())
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![topic]);
        let answer = self
            .connection
            .ask(&request, self.until)
            .await
            .map_err(|lost| lost.reason)?;
        let answer = answer.topics.into_iter().flat_map(|topic| topic.partitions).next();
        let answer = answer.ok_or_else(|| format!("{}: no offset was told", self.what()))?;
        if answer.error_code != 0 {
            return Err(answer::sentence(answer.error_code, &self.what()));
        }
        Ok(answer.offset)
    }

    /// The newest committed mark.
    async fn newest(&mut self, place: &Place) -> Result<Option<Found>, String> {
        let begin = self.offset(EARLIEST).await?;
        let end = self.offset(LATEST).await?;
        let mut part = PART;
        loop {
            let from = begin.max(end - part);
            let found = self.newest_within(from, end, place).await?;
            if found.is_some() || from <= begin {
                return Ok(found);
            }
            part = part.saturating_mul(2);
        }
    }

    async fn newest_within(&mut self, from: i64, end: i64, place: &Place) -> Result<Option<Found>, String> {
        let mut seen = Seen::default();
        let (mut at, mut empty) = (from, 0);
        while at < end && empty < EMPTY_MAX * HOLE_MAX {
            let mut is_empty = true;
            for batch in batches(self.fetch(at).await?) {
                if batch.end > at {
                    is_empty = false;
                    at = batch.end;
                    self.look(batch, place, &mut seen)?;
                }
            }
            empty = if is_empty { empty + 1 } else { 0 };
            if is_empty && empty % EMPTY_MAX == 0 {
                at += 1;
            }
        }
        Ok(seen.newest)
    }

    async fn fetch(&mut self, at: i64) -> Result<Bytes, String> {
        let partition = FetchPartition::default()
            .with_partition(self.partition)
            .with_fetch_offset(at)
            .with_partition_max_bytes(FETCH_LEN);
        let topic = FetchTopic::default()
            .with_topic(self.topic_name())
            .with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(FETCH_WAIT_MS)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_LEN)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self
            .connection
            .ask(&request, self.until)
            .await
            .map_err(|lost| lost.reason)?;
        if answer.error_code != 0 {
            return Err(answer::sentence(answer.error_code, &self.what()));
        }
        let answer = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
        let answer = answer.ok_or_else(|| format!("{}: nothing was told of it", self.what()))?;
        if answer.error_code != 0 {
            return Err(answer::sentence(answer.error_code, &self.what()));
        }
        Ok(answer.records.unwrap_or_default())
    }

    fn look(&self, mut batch: Written, place: &Place, seen: &mut Seen) -> Result<(), String> {
        let odd = |error: String| format!("{}: a record can't be read: {error}", self.what());
        let read = RecordBatchDecoder::decode(&mut batch.bytes).map_err(|error| odd(error.to_string()))?;
        for record in read.records {
            let key = record.key.unwrap_or_default();
            if record.control {
                seen.end(record.producer_id, key.get(2..4) == Some(&COMMITTED));
            } else if key == self.key.as_bytes()
                && let Some(value) = &record.value
            {
                seen.meet(record.producer_id, place.read(value)?, record.transactional);
            }
        }
        Ok(())
    }
}

fn newer(one: Option<Found>, other: Option<Found>) -> Option<Found> {
    one.into_iter().chain(other).max_by_key(|found| found.number)
}

/// Marks on the way through a partition.
#[derive(Default)]
struct Seen {
    newest: Option<Found>,
    /// The last one of each producer whose transaction's end was not met yet.
    undecided: HashMap<i64, Found>,
}

impl Seen {
    fn meet(&mut self, producer: i64, found: Found, is_transactional: bool) {
        if is_transactional {
            self.undecided.insert(producer, found);
        } else {
            self.newest = newer(self.newest.take(), Some(found));
        }
    }

    /// The end of a producer's transaction.
    fn end(&mut self, producer: i64, is_committed: bool) {
        let found = self.undecided.remove(&producer);
        if is_committed {
            self.newest = newer(self.newest.take(), found);
        }
    }
}

/// A batch as it stands in a partition.
struct Written {
    bytes: Bytes,
    /// The offset behind it.
    end: i64,
}

/// Takes what was fetched apart; of the last one the end may be missing.
fn batches(mut records: Bytes) -> Vec<Written> {
    const HEAD_LEN: usize = 12;
    /// Where the last record's distance from the first stands.
    const LAST: std::ops::Range<usize> = 23..27;
    let mut found = Vec::new();
    while records.len() > LAST.end {
        let mut head = &records[..HEAD_LEN];
        let (base, len) = (head.get_i64(), head.get_i32());
        let Some(len) = usize::try_from(len).ok().and_then(|len| len.checked_add(HEAD_LEN)) else {
            break;
        };
        if len > records.len() || len < LAST.end {
            break;
        }
        let last = (&records[LAST]).get_i32();
        let end = base.saturating_add(i64::from(last)).saturating_add(1);
        found.push(Written {
            bytes: records.split_to(len),
            end,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(number: u64) -> Found {
        let mark = Mark {
            epoch: "e".into(),
            seq: Seq(number * 10),
            text: format!("mark {number}"),
        };
        let place = Place::new("t", "log", "sink");
        place.read(&place.parcel(&mark, number).unwrap().value).unwrap()
    }

    fn number(seen: &Seen) -> Option<u64> {
        seen.newest.as_ref().map(|found| found.number)
    }

    #[test]
    fn only_a_committed_mark_counts_and_of_these_the_newest() {
        let mut seen = Seen::default();
        seen.meet(7, found(1), true);
        assert_eq!(number(&seen), None, "nobody knows yet");
        seen.end(8, true);
        assert_eq!(number(&seen), None, "that was another's");
        seen.end(7, true);
        assert_eq!(number(&seen), Some(1));
        // The last one of a transaction counts.
        seen.meet(7, found(2), true);
        seen.meet(7, found(3), true);
        seen.end(7, true);
        assert_eq!(number(&seen), Some(3));
        seen.meet(7, found(4), true);
        seen.end(7, false);
        seen.end(7, true);
        assert_eq!(number(&seen), Some(3), "it was given up");
        seen.meet(7, found(5), true);
        assert_eq!(number(&seen), Some(3), "it is open");
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_another_sinks_is_not_taken_for_it() {
        let kept = found(4);
        assert_eq!(
            (kept.mark.text.as_str(), kept.mark.seq.0, kept.mark.epoch.as_str()),
            ("mark 4", 40, "e")
        );
        let key = |log: &str, sink: &str| Place::new("t", log, sink).key();
        assert_eq!(key("log", "sink"), r#"["log","sink"]"#);
        assert_ne!(key("a", "b-c"), key("a-b", "c"));
        assert!(Place::new("t", "log", "sink").read(b"{}").is_err());
    }

    #[test]
    fn what_was_fetched_is_taken_apart_and_a_part_is_left() {
        let parcel = Parcel {
            topic: "t".into(),
            topic_varies: false,
            key: None,
            value: "v".into(),
            headers: Vec::new(),
        };
        let identity = super::super::record::Identity {
            producer_id: 1,
            epoch: 0,
        };
        let one = super::super::record::batch([&parcel; 3].into_iter(), identity, 0, false, 0).unwrap();
        let two = [&one[..], &one[..]].concat();
        let ends = |bytes: &[u8]| -> Vec<i64> {
            let found = batches(Bytes::copy_from_slice(bytes));
            found.iter().map(|batch| batch.end).collect()
        };
        assert_eq!(ends(&two), [3, 3]);
        assert_eq!(ends(&two[..two.len() - 1]), [3]);
        assert_eq!(ends(&two[..20]), [0; 0]);
        assert_eq!(ends(&[0xff; 100]), [0; 0]);
    }
}
