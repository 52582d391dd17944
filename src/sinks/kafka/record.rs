//! Records: what is made of an event, to which partition it goes, and how those that go together are written.

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

/// The format since Kafka 0.11.
const FORMAT: i8 = 2;

/// What a record needs beside its parts, generously.
const OVERHEAD: usize = 32;

/// Bytes of a topic's name.
const TOPIC_LEN_MAX: usize = 249;

/// A record on its way.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub topic: String,
    /// The event has chosen the topic.
    pub topic_varies: bool,
    pub key: Option<Bytes>,
    pub value: Bytes,
    pub headers: Vec<(StrBytes, Bytes)>,
}

impl Parcel {
    /// Its bytes in a request, roughly and not less.
    pub fn len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 10);
        let key = self.key.as_ref().map_or(0, Bytes::len);
        OVERHEAD + key + self.value.len() + headers.sum::<usize>()
    }
}

/// Who writes, as the brokers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub producer_id: i64,
    pub epoch: i16,
}

/// Writes records of one partition as one batch. `sequence` is the first one's number, and `moment` the time in milliseconds that they
/// carry. An error is one sentence.
pub(super) fn batch<'p>(
    parcels: impl Iterator<Item = &'p Parcel>,
    identity: Identity,
    sequence: i32,
    is_transactional: bool,
    moment: i64,
) -> Result<Bytes, String> {
    let records: Vec<Record> = std::iter::zip(0.., parcels)
        .map(|(place, parcel)| Record {
            transactional: is_transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: identity.producer_id,
            producer_epoch: identity.epoch,
            timestamp_type: TimestampType::Creation,
            offset: place,
            sequence: sequence.wrapping_add(place as i32),
            timestamp: moment,
            key: parcel.key.clone(),
            value: Some(parcel.value.clone()),
            headers: parcel
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), Some(value.clone())))
                .collect(),
        })
        .collect();
    let options = RecordEncodeOptions {
        version: FORMAT,
        compression: Compression::None,
    };
    let mut written = BytesMut::new();
    RecordBatchEncoder::encode(&mut written, &records, &options).map_err(|error| error.to_string())?;
    Ok(written.freeze())
}

/// Whether a topic may be called so.
pub(super) fn is_topic(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TOPIC_LEN_MAX).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_plain)
}

/// The partition of a key among so many, as Java's clients choose it.
pub(super) fn partition(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions.max(1)
}

/// Kafka's murmur2 (`org.apache.kafka.common.utils.Utils`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(M);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(M) ^ mixed.wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_where_javas_clients_send_it() {
        // From the tests of Kafka's own clients.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        // 2^31 - 973,932,308 of them.
        assert_eq!(partition(b"21", 3), 1_173_551_340 % 3);
        assert_eq!(partition(b"", 1), 0);
    }

    #[test]
    fn a_topic_is_a_name_that_kafka_takes() {
        for good in ["close", "a.b_c-D9", &"x".repeat(249)] {
            assert!(is_topic(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "é", "a\n", &"x".repeat(250)] {
            assert!(!is_topic(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_written_can_be_read_and_is_numbered() {
        let parcel = Parcel {
            topic: "t".into(),
            topic_varies: false,
            key: Some("k".into()),
            value: "v".into(),
            headers: vec![("h".to_owned().into(), "1".into())],
        };
        let identity = Identity {
            producer_id: 7,
            epoch: 3,
        };
        let mut written = batch([&parcel, &parcel].into_iter(), identity, 41, true, 1000).unwrap();
        assert!(written.len() <= 2 * parcel.len() + 61);
        let read = kafka_protocol::records::RecordBatchDecoder::decode(&mut written)
            .unwrap()
            .records;
        let seen: Vec<_> = read
            .iter()
            .map(|record| {
                (
                    record.offset,
                    record.sequence,
                    record.producer_id,
                    record.producer_epoch,
                    record.transactional,
                )
            })
            .collect();
        assert_eq!(seen, [(0, 41, 7, 3, true), (1, 42, 7, 3, true)]);
    }
}
