//! An idempotent producer: records go to the brokers that lead their partitions, numbered, and what may be there already is sent again
//! with the same numbers, which a broker takes once.
//!
//! One request of a partition is under way at a time, so its numbers are known to the last one that was taken. Where the time runs out
//! before it is known whether a broker has something, the producer is given up, for nobody knows its next number: what comes then comes
//! from another one.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{
    BrokerId, InitProducerIdRequest, ProduceRequest, ProduceResponse, ProducerId, TopicName, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::answer::{self, Meaning};
use super::cluster::Cluster;
use super::connection::{Connection, Lost};
use super::lane::{Fate, Lane, Run};
use super::pause::Pause;
use super::record::{self, Identity, Parcel};
use crate::sinks::Reason;
use crate::sinks::common::said::{self, Part};

/// Bytes of one batch of records, roughly: what a topic takes by default (`max.message.bytes`) is a little more.
const BATCH_LEN_MAX: usize = 960_000;

/// Numbers of a partition: long before they begin anew somebody else goes on.
const SEQUENCE_MAX: i32 = 1 << 30;

/// How long it is waited for a leader where nothing is in doubt.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a producer knows of its transaction.
#[derive(Default)]
pub(super) struct Transaction {
    pub coordinator: Option<BrokerId>,
    /// Partitions that belong to it.
    pub added: HashSet<(String, i32)>,
}

/// A producer.
pub(super) struct Producer {
    pub cluster: Cluster,
    /// `None`: it has to introduce itself first.
    pub identity: Option<Identity>,
    /// `None`: each record stands for itself.
    pub transactional_id: Option<TransactionalId>,
    pub transaction: Transaction,
    /// The next number of each partition.
    sequences: HashMap<(String, i32), i32>,
    /// Where records without a key go: another partition each time.
    turn: usize,
    /// No record goes before one that waits, whichever their partitions are.
    is_strict: bool,
}

impl Producer {
    pub fn new(cluster: Cluster, transactional_id: Option<TransactionalId>, is_strict: bool) -> Producer {
        Producer {
            cluster,
            identity: None,
            transactional_id,
            transaction: Transaction::default(),
            sequences: HashMap::new(),
            turn: fastest_random(),
            is_strict,
        }
    }

    /// Whoever writes from now on begins to count anew.
    pub fn become_somebody(&mut self, identity: Option<Identity>) {
        self.identity = identity;
        self.sequences.clear();
    }

    /// Gets a producer id where there is none. One sentence says why it can't.
    pub async fn introduce(&mut self, until: Instant) -> Result<Identity, String> {
        if let Some(identity) = self.identity {
            return Ok(identity);
        }
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX);
        let mut pause = Pause::new();
        loop {
            let broker = self.cluster.any(until).await.map_err(|lost| lost.reason)?;
            let known = broker.ask(&request, until).await.map_err(|lost| lost.reason)?;
            if known.error_code == 0 {
                let identity = Identity {
                    producer_id: known.producer_id.0,
                    epoch: known.producer_epoch,
                };
                self.become_somebody(Some(identity));
                return Ok(identity);
            }
            if !answer::is_passing(known.error_code) || !pause.pass(until).await {
                return Err(answer::sentence(known.error_code, "the brokers give no producer's id"));
            }
        }
    }

    /// Sends records and says of each what became of it, not later than `until`. The records of a partition arrive in the order that
    /// they have here, and where that is strict, all of them.
    pub async fn send(&mut self, parcels: &[Parcel], until: Instant) -> Vec<Fate> {
        let mut run = Run {
            parcels,
            fates: vec![Fate::Waits("it was not sent".into()); parcels.len()],
            refusals: 0,
        };
        // Brokers that were away may be others, or have lost what they knew: nothing is in doubt now, so nobody has to be known again.
        if self.cluster.sweep() && self.transactional_id.is_none() {
            self.identity = None;
        }
        let lanes = match self.sort(&mut run, until).await {
            Ok(lanes) => lanes,
            Err(lost) => return vec![Fate::Waits(lost.reason); parcels.len()],
        };
        if self.is_strict {
            self.send_in_turn(lanes, &mut run, until).await;
        } else {
            self.send_lanes(lanes, &mut run, until).await;
        }
        run.fates
    }

    /// Sends lanes one after the other, up to the first of which something waits: what is behind that waits with it.
    async fn send_in_turn(&mut self, lanes: Vec<Lane>, run: &mut Run<'_>, until: Instant) {
        let began = Instant::now();
        let enough = began + until.saturating_duration_since(began) / 2;
        for lane in lanes {
            let places: Vec<usize> = lane.chunks.iter().flatten().copied().collect();
            // A transaction that does not come to its end has sent nothing: what there is no time for goes with the next one.
            if self.transactional_id.is_some() && Instant::now() > enough {
                run.put_off(&places, "its turn comes with the next transaction");
                break;
            }
            self.send_lanes(vec![lane], run, until).await;
            if places.iter().any(|place| run.fates[*place].has_to_wait()) {
                break;
            }
        }
        run.hold_behind_the_first();
    }

    /// Sends all of these at a time.
    async fn send_lanes(&mut self, mut lanes: Vec<Lane>, run: &mut Run<'_>, until: Instant) {
        self.see_cluster(&mut lanes);
        let mut pause = Pause::new();
        let patience = Instant::now() + PATIENCE;
        while !lanes.is_empty() {
            let has_to_wait = match self.round(&mut lanes, run, until).await {
                Ok(has_to_wait) => has_to_wait,
                Err(why) => {
                    for lane in &mut lanes {
                        lane.trouble.clone_from(&why);
                    }
                    self.leave(&mut lanes, run);
                    break;
                }
            };
            lanes.retain(|lane| !lane.chunks.is_empty());
            if lanes.is_empty() {
                break;
            }
            if has_to_wait {
                let names = lanes.iter().map(|lane| lane.topic.clone()).collect();
                if !pause.pass(until).await {
                    self.leave(&mut lanes, run);
                    break;
                }
                if let Err(lost) = self.cluster.refresh(&names, until).await {
                    for lane in &mut lanes {
                        lane.trouble.clone_from(&lost.reason);
                    }
                }
                self.see_cluster(&mut lanes);
                self.see_topics(&mut lanes, run);
                let is_late = Instant::now() > patience;
                for lane in lanes.iter_mut().filter(|lane| is_late && !lane.is_doubtful) {
                    let why = lane.trouble.clone();
                    lane.give_up(run, &why);
                }
                lanes.retain(|lane| !lane.chunks.is_empty());
            } else {
                pause = Pause::new();
            }
        }
    }

    /// The time is up, or nothing can be sent. Who may have written something without knowing is not this producer any more.
    fn leave(&mut self, lanes: &mut [Lane], run: &mut Run<'_>) {
        for lane in lanes {
            if lane.is_doubtful {
                self.identity = None;
            }
            let why = std::mem::take(&mut lane.trouble);
            lane.give_up(run, &why);
        }
    }

    /// Which records go to which partition; where the order is strict, up to the first that goes nowhere now.
    async fn sort(&mut self, run: &mut Run<'_>, until: Instant) -> Result<Vec<Lane>, Lost> {
        let names: BTreeSet<String> = run.parcels.iter().map(|parcel| parcel.topic.clone()).collect();
        self.cluster.learn(&names, until).await?;
        self.turn = self.turn.wrapping_add(1);
        let mut lanes: Vec<Lane> = Vec::new();
        let mut places: HashMap<(&str, usize), (usize, usize)> = HashMap::new();
        for (place, parcel) in run.parcels.iter().enumerate() {
            let topic = self.cluster.topic(&parcel.topic);
            let count = match topic.map_or(Err(answer::UNKNOWN_TOPIC), |topic| {
                topic.partitions.as_ref().map(Vec::len).map_err(|code| *code)
            }) {
                Ok(count) => count,
                Err(code) => {
                    let why = answer::sentence(code, &format!("the topic {}", parcel.topic));
                    // One that is just being made is no fault of the event.
                    if parcel.topic_varies && code != answer::LEADER_NOT_AVAILABLE {
                        run.refuse(place, why.into());
                    } else {
                        run.fates[place] = Fate::Waits(why);
                    }
                    if self.is_strict && run.fates[place].has_to_wait() {
                        break;
                    }
                    continue;
                }
            };
            let partition = match &parcel.key {
                Some(key) => record::partition(key, count),
                None => self.turn % count,
            };
            let len = parcel.len();
            let goes_on = lanes.last().is_some_and(|last| last.is_of(&parcel.topic, partition));
            if self.is_strict && !goes_on {
                // Only those that follow each other go together.
                places.clear();
            }
            let (index, filled) = places.entry((&parcel.topic, partition)).or_insert_with(|| {
                lanes.push(Lane {
                    topic: parcel.topic.clone(),
                    partition: partition as i32,
                    topic_varies: parcel.topic_varies,
                    chunks: VecDeque::from([Vec::new()]),
                    written: None,
                    is_doubtful: false,
                    unreached: 0,
                    renewals: 0,
                    trouble: String::new(),
                });
                (lanes.len() - 1, 0)
            });
            let lane = &mut lanes[*index];
            if *filled > 0 && *filled + len > BATCH_LEN_MAX {
                lane.chunks.push_back(Vec::new());
                *filled = 0;
            }
            *filled += len;
            if let Some(chunk) = lane.chunks.back_mut() {
                chunk.push(place);
            }
        }
        Ok(lanes)
    }

    /// In another cluster nothing is there of what was sent, and the same number may be somebody else's.
    fn see_cluster(&mut self, lanes: &mut [Lane]) {
        if self.cluster.is_other() {
            self.identity = None;
            for lane in lanes {
                lane.is_doubtful = false;
                lane.written = None;
            }
        }
    }

    /// What a topic is that was asked about anew.
    fn see_topics(&self, lanes: &mut [Lane], run: &mut Run<'_>) {
        for lane in lanes {
            let Some(Err(code)) = self.cluster.topic(&lane.topic).map(|topic| &topic.partitions) else {
                continue;
            };
            let why = answer::sentence(*code, &format!("the topic {}", lane.topic));
            if lane.topic_varies && *code != answer::LEADER_NOT_AVAILABLE {
                lane.refuse_all(run, &why);
            } else {
                lane.trouble = why;
            }
        }
    }

    /// Sends the first ones of each lane, and judges what is answered. Gives whether some have to be sent again after a while.
    async fn round(&mut self, lanes: &mut [Lane], run: &mut Run<'_>, until: Instant) -> Result<bool, String> {
        if self.sequences.values().any(|sequence| *sequence > SEQUENCE_MAX) && self.transactional_id.is_none() {
            self.identity = None;
        }
        if self.identity.is_none() {
            if self.transactional_id.is_some() {
                return Err("the producer was given up".into());
            }
            // What was written is another's.
            for lane in lanes.iter_mut() {
                lane.written = None;
            }
        }
        let identity = self.introduce(until).await?;
        if self.transactional_id.is_some() {
            self.admit(lanes, run, identity, until).await?;
        }
        let (by_broker, mut has_to_wait) = self.by_leader(lanes);
        let mut asking = Vec::new();
        for (broker, indices) in by_broker {
            let request = self.request(&indices, lanes, run, identity, until)?;
            let connection = self.cluster.reuse(broker);
            let address = self.cluster.address(broker);
            let way = self.cluster.way();
            asking.push(async move {
                let connection = match connection {
                    Some(connection) => Ok(connection),
                    None => match address {
                        Some(address) => Connection::open(&address, &way, until).await,
                        None => Err(Lost {
                            reason: "the broker that leads the partition is not known".into(),
                            is_sent: false,
                        }),
                    },
                };
                let (connection, answer) = match connection {
                    Ok(mut connection) => {
                        let answer = connection.ask(&request, until).await;
                        (Some(connection), answer)
                    }
                    Err(lost) => (None, Err(lost)),
                };
                (broker, indices, connection, answer)
            });
        }
        for (broker, indices, connection, answer) in join_all(asking).await {
            for index in indices {
                has_to_wait |= self.judge(&mut lanes[index], run, &answer, connection.as_ref());
            }
            if let Some(connection) = connection {
                self.cluster.give_back(broker, connection);
            }
        }
        Ok(has_to_wait)
    }

    /// Makes the partitions part of the transaction. Those that an event has chosen may be refused; then the others are tried again.
    async fn admit(
        &mut self,
        lanes: &mut [Lane],
        run: &mut Run<'_>,
        identity: Identity,
        until: Instant,
    ) -> Result<(), String> {
        loop {
            let waiting = lanes.iter().filter(|lane| !lane.chunks.is_empty());
            let wanted: Vec<_> = waiting.map(|lane| (lane.topic.clone(), lane.partition)).collect();
            let refused = self.add_partitions(&wanted, identity, until).await?;
            let mut is_narrowed = false;
            let mut first = None;
            for ((topic, partition), code) in &refused {
                let Some(lane) = lanes
                    .iter_mut()
                    .find(|lane| lane.topic == *topic && lane.partition == *partition)
                else {
                    continue;
                };
                let why = answer::sentence(*code, &lane.name());
                if lane.topic_varies && matches!(*code, answer::UNKNOWN_TOPIC | answer::NOT_AUTHORIZED) {
                    lane.refuse_all(run, &why);
                    is_narrowed = true;
                } else if *code != answer::NOT_ATTEMPTED || first.is_none() {
                    first = Some(why);
                }
            }
            match first {
                Some(why) if !is_narrowed => return Err(why),
                None => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// Which lanes go to which broker, and whether some go nowhere now.
    fn by_leader(&self, lanes: &mut [Lane]) -> (HashMap<BrokerId, Vec<usize>>, bool) {
        let mut has_to_wait = false;
        let mut by_broker: HashMap<BrokerId, Vec<usize>> = HashMap::new();
        for (index, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.chunks.is_empty()) {
            if let Some(broker) = self.leader(lane) {
                by_broker.entry(broker).or_default().push(index);
                continue;
            }
            has_to_wait = true;
            if lane.trouble.is_empty() {
                lane.trouble = answer::sentence(answer::LEADER_NOT_AVAILABLE, &lane.name());
            }
        }
        (by_broker, has_to_wait)
    }

    fn leader(&self, lane: &Lane) -> Option<BrokerId> {
        let partitions = self.cluster.topic(&lane.topic)?.partitions.as_ref().ok()?;
        *partitions.get(usize::try_from(lane.partition).ok()?)?
    }

    /// The first ones of these lanes as one request.
    fn request(
        &self,
        indices: &[usize],
        lanes: &mut [Lane],
        run: &Run<'_>,
        identity: Identity,
        until: Instant,
    ) -> Result<ProduceRequest, String> {
        let moment = Timestamp::now().as_millisecond();
        let mut topics: HashMap<String, Vec<PartitionProduceData>> = HashMap::new();
        for index in indices {
            let lane = &mut lanes[*index];
            let written = if let Some(written) = &lane.written {
                written.clone()
            } else {
                let sequence = self.sequence(lane);
                let parcels = lane
                    .chunks
                    .front()
                    .into_iter()
                    .flatten()
                    .map(|place| &run.parcels[*place]);
                let is_transactional = self.transactional_id.is_some();
                let written = record::batch(parcels, identity, sequence, is_transactional, moment)?;
                lane.written.insert(written).clone()
            };
            let partition = PartitionProduceData::default()
                .with_index(lane.partition)
                .with_records(Some(written));
            topics.entry(lane.topic.clone()).or_default().push(partition);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            TopicProduceData::default()
                .with_name(TopicName(StrBytes::from_string(name)))
                .with_partition_data(partitions)
        });
        // The broker gives up a little earlier, so that it can say so.
        let left = until.saturating_duration_since(Instant::now()).mul_f64(0.8);
        Ok(ProduceRequest::default()
            .with_transactional_id(self.transactional_id.clone())
            .with_acks(-1)
            .with_timeout_ms(i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1))
            .with_topic_data(topics.collect()))
    }

    fn sequence(&self, lane: &Lane) -> i32 {
        let next = self.sequences.get(&(lane.topic.clone(), lane.partition));
        next.copied().unwrap_or(0)
    }

    /// What an answer means for a lane. Gives whether it has to be asked again after a while.
    fn judge(
        &mut self,
        lane: &mut Lane,
        run: &mut Run<'_>,
        answer: &Result<ProduceResponse, Lost>,
        connection: Option<&Connection>,
    ) -> bool {
        let answered = match answer {
            Ok(answer) => answer,
            Err(lost) => {
                lane.trouble.clone_from(&lost.reason);
                lane.is_doubtful |= lost.is_sent;
                lane.unreached += 1;
                if !lane.is_doubtful && lane.unreached > 1 {
                    lane.give_up(run, &lost.reason);
                }
                return true;
            }
        };
        lane.unreached = 0;
        let of_topic = answered.responses.iter().find(|topic| *topic.name.0 == *lane.topic);
        let own = of_topic.and_then(|topic| topic.partition_responses.iter().find(|own| own.index == lane.partition));
        let Some(own) = own else {
            lane.is_doubtful = true;
            lane.trouble = format!("{}: the broker does not answer for it", lane.name());
            return true;
        };
        self.judge_partition(lane, run, own, connection)
    }

    fn judge_partition(
        &mut self,
        lane: &mut Lane,
        run: &mut Run<'_>,
        own: &PartitionProduceResponse,
        connection: Option<&Connection>,
    ) -> bool {
        let said = own.error_message.as_deref().unwrap_or_default();
        let quoted = connection.map(|connection| connection.quoted(said)).unwrap_or_default();
        let why = format!("{}{quoted}", answer::sentence(own.error_code, &lane.name()));
        lane.trouble.clone_from(&why);
        let mut meaning = answer::meaning(own.error_code);
        if own.error_code == answer::DUPLICATE && !lane.is_doubtful {
            // It was never sent: that was somebody else.
            meaning = Meaning::Unknown;
        }
        if meaning == Meaning::Fenced && self.transactional_id.is_none() {
            meaning = Meaning::Unknown;
        }
        match meaning {
            Meaning::Taken => {
                run.refusals = 0;
                let these = lane.settle();
                let next = self.sequences.entry((lane.topic.clone(), lane.partition)).or_default();
                *next = next.wrapping_add(these.len() as i32);
                for place in these {
                    run.fates[place] = Fate::Taken;
                }
            }
            Meaning::Refused => {
                let said = connection.and_then(|connection| said_of(own, connection));
                lane.narrow(
                    run,
                    own,
                    &Reason {
                        text: why,
                        answer: said,
                    },
                );
            }
            Meaning::Moved => return true,
            Meaning::Doubtful => {
                lane.is_doubtful = true;
                return true;
            }
            Meaning::Unknown if self.transactional_id.is_none() && lane.renewals == 0 => {
                lane.renewals += 1;
                lane.written = None;
                self.identity = None;
            }
            Meaning::Topic if lane.topic_varies => lane.refuse_all(run, &why),
            Meaning::Unknown | Meaning::Fenced => {
                self.identity = None;
                lane.give_up(run, &why);
            }
            Meaning::Topic | Meaning::Refusing => lane.give_up(run, &why),
        }
        false
    }
}

/// What the broker said of the record itself: it may quote it.
fn said_of(own: &PartitionProduceResponse, connection: &Connection) -> Option<String> {
    let of_record = own
        .record_errors
        .iter()
        .find_map(|error| error.batch_index_error_message.as_deref());
    let said = of_record.or(own.error_message.as_deref())?;
    said::cleaned(said.as_bytes(), Part::Beginning, connection.secrets())
}

/// Where to begin, so that daemons that start together do not all begin with the same partition.
fn fastest_random() -> usize {
    let mut bytes = [0; 8];
    // Without random numbers any place is as good.
    let _ = getrandom::fill(&mut bytes);
    usize::from_le_bytes(bytes)
}

/// An id as requests carry it.
pub(super) fn transactional(id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(id.to_owned()))
}

/// A number as requests carry it.
pub(super) fn producer(identity: Identity) -> ProducerId {
    ProducerId(identity.producer_id)
}
