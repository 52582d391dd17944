//! A backlog to a Kafka broker, beside ready records that are produced by hand with the same acknowledgements: idempotent, all replicas.
//! (librdkafka's own tools can't read which versions of requests tansu 0.6 knows, and go no further.)

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

use crate::kafka_server::Broker;
use crate::load::{Bodies, flood};
use crate::process::Daemon;
use crate::{CONNECTIONS, Must, Report, median_round, per_second};

/// Events waiting.
const WAITING: u64 = 60_000;

/// How often both take turns.
const ROUNDS: usize = 3;

/// Records of one request by hand, as many as the sink's by default.
const BATCH: usize = 1000;

/// Partitions of the topic.
const PARTITIONS: u32 = 3;

/// With and without transactions.
pub async fn sinks(dir: &Path, report: &mut Report) {
    std::fs::create_dir(dir).unwrap();
    let bodies = Arc::new(Bodies::new(7));
    let daemon = Daemon::start(dir, "");
    flood(daemon.address, &bodies, CONNECTIONS, WAITING).await;
    daemon.settle();
    daemon.kill();
    let records = records();
    for (name, exact) in [("log to kafka", false), ("log to kafka, exactly once", true)] {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let Some(daemon) = to_sink(dir, &format!("kafka-{round}-{exact}"), exact).await else {
                return;
            };
            let peer = by_hand(&records).await;
            rounds.push((daemon, daemon / peer, peer));
        }
        let (rate, ratio, peer) = median_round(rounds);
        let peer = format!("by hand {}", per_second(peer));
        // What is committed with its mark has to be beside a producer that commits nothing.
        let must = if exact { 0.3 } else { 0.6 };
        report.line(name, &per_second(rate), &peer, ratio, Must::BeAtLeast(must));
    }
}

/// As many records as events wait, with the headers that the sink sends.
fn records() -> Vec<Record> {
    let bodies = Bodies::new(7);
    let headers = [
        ("seq", "12345"),
        ("type", "lead.updated"),
        ("event-id", "ev_0123456789"),
        ("key", "ev_0123456789:2024-02-15T12:48:23.395000"),
        ("lead-id", "lead_0123456789"),
        ("received-at", "2024-02-15T12:48:23.395000Z"),
        ("source", "webhook"),
    ];
    let headers = headers.map(|(name, value)| {
        let name = StrBytes::from_string(format!("closehook-{name}"));
        (name, Some(Bytes::from_static(value.as_bytes())))
    });
    let record = |place: u64| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: 0,
        timestamp: 1_708_000_000_000,
        key: Some(format!("lead_{}", place % 1000).into()),
        value: Some(bodies.fresh().into()),
        headers: headers.iter().cloned().collect(),
    };
    (0..WAITING).map(record).collect()
}

async fn broker() -> Option<Broker> {
    let broker = Broker::start_direct().await?;
    broker.create("close", PARTITIONS);
    broker.create("closehook_mark", 1);
    Some(broker)
}

/// Events a second from the log into a topic, from the first that is there to the last.
async fn to_sink(dir: &Path, name: &str, exact: bool) -> Option<f64> {
    // Looking takes the broker's time.
    const LOOK: Duration = Duration::from_millis(50);
    let broker = broker().await?;
    let config = format!(
        "[[sinks]]\nname = \"{name}\"\nstart = \"beginning\"\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"close\"\nexactly_once = {exact}\n",
        broker.direct()
    );
    let daemon = Daemon::start_only(dir, &config);
    // The offsets of markers count, too; a mark tells when all is committed.
    let first = loop {
        match broker.written("close").await {
            0 => tokio::time::sleep(LOOK).await,
            first => break first,
        }
    };
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(300), "the sink does not get done");
        let is_done = if exact {
            let marks = broker.committed("closehook_mark").await;
            marks
                .last()
                .is_some_and(|mark| mark.value.contains(&format!("\"seq\":{WAITING},")))
        } else {
            broker.written("close").await >= WAITING
        };
        if is_done {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let rate = (WAITING - first.min(WAITING)) as f64 / began.elapsed().as_secs_f64();
    drop(daemon);
    Some(rate)
}

/// The same by hand, with the library that the sink has, too: one request at a time.
async fn by_hand(records: &[Record]) -> f64 {
    let broker = broker().await.unwrap();
    let mut wire = TcpStream::connect(broker.direct()).unwrap();
    wire.set_nodelay(true).unwrap();
    let asked = InitProducerIdRequest::default().with_transaction_timeout_ms(60_000);
    let known = ask(&mut wire, &asked, 1);
    assert_eq!(known.error_code, 0);
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut next = [0_i32; PARTITIONS as usize];
    let began = Instant::now();
    for batch in records.chunks(BATCH) {
        let mut lanes: [Vec<Record>; PARTITIONS as usize] = Default::default();
        for (place, record) in batch.iter().enumerate() {
            let at = place % lanes.len();
            lanes[at].push(Record {
                producer_id: known.producer_id.0,
                producer_epoch: known.producer_epoch,
                offset: lanes[at].len() as i64,
                sequence: next[at] + lanes[at].len() as i32,
                ..record.clone()
            });
        }
        let partitions = lanes.iter().enumerate().map(|(at, lane)| {
            next[at] += lane.len() as i32;
            let mut written = BytesMut::new();
            RecordBatchEncoder::encode(&mut written, lane, &options).unwrap();
            PartitionProduceData::default()
                .with_index(at as i32)
                .with_records(Some(written.freeze()))
        });
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_static_str("close")))
            .with_partition_data(partitions.collect());
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(30_000)
            .with_topic_data(vec![topic]);
        let answer = ask(&mut wire, &request, 7);
        let answers = &answer.responses[0].partition_responses;
        assert!(answers.iter().all(|own| own.error_code == 0), "{answers:?}");
    }
    let rate = records.len() as f64 / began.elapsed().as_secs_f64();
    assert_eq!(broker.written("close").await, WAITING);
    rate
}

fn ask<R: Request>(wire: &mut TcpStream, request: &R, version: i16) -> R::Response {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(1);
    let mut frame = BytesMut::from(&[0; 4][..]);
    encode_request_header_into_buffer(&mut frame, &header).unwrap();
    request.encode(&mut frame, version).unwrap();
    let len = frame.len() as i32 - 4;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    wire.write_all(&frame).unwrap();
    let mut len = [0; 4];
    wire.read_exact(&mut len).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(len) as usize];
    wire.read_exact(&mut answer).unwrap();
    let mut answer = Bytes::from(answer);
    ResponseHeader::decode(&mut answer, R::Response::header_version(version)).unwrap();
    R::Response::decode(&mut answer, version).unwrap()
}
