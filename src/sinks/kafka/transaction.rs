//! Transactions: what is sent between two commits is seen by consumers that read committed records as a whole, or never.
//!
//! The transactional id is the log's and the sink's. Whoever begins with it ends what another one has left open, and keeps that one from
//! writing anything more. A commit whose answer is lost is asked for again: it is done once.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, BrokerId, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest, TopicName,
};
use kafka_protocol::protocol::{Request, StrBytes};
use tokio::time::Instant;

use super::answer;
use super::connection::{Address, Connection};
use super::pause::Pause;
use super::producer::{Producer, producer};
use super::record::Identity;

/// `FindCoordinator` is about a transaction.
const OF_TRANSACTION: i8 = 1;

/// How long a broker keeps a transaction open of which it hears nothing: consumers that read committed records wait for it. Opening the
/// sink again ends it at once.
const OPEN_MIN: Duration = Duration::from_secs(10);
const OPEN_MAX: Duration = Duration::from_secs(900);

impl Producer {
    fn id(&self) -> StrBytes {
        self.transactional_id.clone().unwrap_or_default().0
    }

    /// Finds out who coordinates the transactions of this producer. One sentence says why that can't be known.
    pub async fn find_coordinator(&mut self, until: Instant) -> Result<BrokerId, String> {
        if let Some(coordinator) = self.transaction.coordinator {
            return Ok(coordinator);
        }
        let request = FindCoordinatorRequest::default()
            .with_key(self.id())
            .with_key_type(OF_TRANSACTION);
        let mut pause = Pause::new();
        loop {
            let broker = self.cluster.any(until).await.map_err(|lost| lost.reason)?;
            let found = broker.ask(&request, until).await.map_err(|lost| lost.reason)?;
            if found.error_code == 0 {
                let address = Address {
                    host: found.host.to_string(),
                    port: u16::try_from(found.port).unwrap_or_default(),
                };
                self.cluster.place(found.node_id, address);
                self.transaction.coordinator = Some(found.node_id);
                return Ok(found.node_id);
            }
            if !answer::is_passing(found.error_code) || !pause.pass(until).await {
                return Err(answer::sentence(
                    found.error_code,
                    &format!("who coordinates the transactions of {} is not known", &*self.id()),
                ));
            }
        }
    }

    /// Asks the coordinator until it says something that lasts. `code`: which code an answer has.
    async fn ask_coordinator<R: Request>(
        &mut self,
        request: &R,
        until: Instant,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, String> {
        let mut pause = Pause::new();
        loop {
            let coordinator = self.find_coordinator(until).await?;
            let asked = match self.cluster.take(coordinator, until).await {
                Ok(mut connection) => {
                    let answer = connection.ask(request, until).await;
                    self.cluster.give_back(coordinator, connection);
                    answer
                }
                Err(lost) => Err(lost),
            };
            let why = match asked {
                Ok(answer) if answer::is_passing(code(&answer)) => {
                    if answer::is_other_coordinator(code(&answer)) {
                        self.transaction.coordinator = None;
                    }
                    answer::sentence(code(&answer), "the transaction")
                }
                Ok(answer) => return Ok(answer),
                Err(lost) => {
                    // It may be another broker by now. Whatever was asked can be asked twice.
                    self.transaction.coordinator = None;
                    lost.reason
                }
            };
            if !pause.pass(until).await {
                return Err(why);
            }
        }
    }

    /// Takes over: ends what is open under this id, and keeps whoever opened it from going on.
    pub async fn begin(&mut self, timeout: Duration, until: Instant) -> Result<(), String> {
        self.become_somebody(None);
        let open = (timeout * 2).clamp(OPEN_MIN, OPEN_MAX);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(self.transactional_id.clone())
            .with_transaction_timeout_ms(i32::try_from(open.as_millis()).unwrap_or(i32::MAX));
        let known = self
            .ask_coordinator(&request, until, |answer| answer.error_code)
            .await?;
        if known.error_code != 0 {
            let what = format!("the transactions of {}", &*self.id());
            return Err(answer::sentence(known.error_code, &what));
        }
        self.transaction.added.clear();
        self.become_somebody(Some(Identity {
            producer_id: known.producer_id.0,
            epoch: known.producer_epoch,
        }));
        Ok(())
    }

    /// Makes partitions part of the transaction. Gives a broker's code for each that can't be.
    pub async fn add_partitions(
        &mut self,
        wanted: &[(String, i32)],
        identity: Identity,
        until: Instant,
    ) -> Result<BTreeMap<(String, i32), i16>, String> {
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for (topic, partition) in wanted {
            if !self.transaction.added.contains(&(topic.clone(), *partition)) {
                topics.entry(topic).or_default().push(*partition);
            }
        }
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            AddPartitionsToTxnTopic::default()
                .with_name(TopicName(StrBytes::from_string(name.to_owned())))
                .with_partitions(partitions)
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.transactional_id.clone().unwrap_or_default())
            .with_v3_and_below_producer_id(producer(identity))
            .with_v3_and_below_producer_epoch(identity.epoch)
            .with_v3_and_below_topics(topics.collect());
        let answered = self
            .ask_coordinator(&request, until, |answer| {
                let results = answer.results_by_topic_v3_and_below.iter();
                let mut codes = results
                    .flat_map(|topic| &topic.results_by_partition)
                    .map(|result| result.partition_error_code);
                codes.find(|code| answer::is_passing(*code)).unwrap_or_default()
            })
            .await?;
        let mut refused = BTreeMap::new();
        for topic in &answered.results_by_topic_v3_and_below {
            for result in &topic.results_by_partition {
                let place = (topic.name.to_string(), result.partition_index);
                match result.partition_error_code {
                    0 => {
                        self.transaction.added.insert(place);
                    }
                    code => {
                        refused.insert(place, code);
                    }
                }
            }
        }
        Ok(refused)
    }

    /// Commits what was sent. `Err`: it may be committed, or not.
    pub async fn commit(&mut self, until: Instant) -> Result<(), String> {
        let identity = self.identity.ok_or("the producer was given up")?;
        if self.transaction.added.is_empty() {
            return Ok(());
        }
        let request = EndTxnRequest::default()
            .with_transactional_id(self.transactional_id.clone().unwrap_or_default())
            .with_producer_id(producer(identity))
            .with_producer_epoch(identity.epoch)
            .with_committed(true);
        let ended = self
            .ask_coordinator(&request, until, |answer| answer.error_code)
            .await?;
        if ended.error_code != 0 {
            return Err(answer::sentence(ended.error_code, "the transaction can't be committed"));
        }
        self.transaction.added.clear();
        Ok(())
    }

    /// A connection of the caller's own, for who leads a partition.
    pub async fn leader_of(
        &mut self,
        topic: &str,
        partition: i32,
        until: Instant,
    ) -> Result<(BrokerId, Connection), String> {
        let leaders = self
            .cluster
            .topic(topic)
            .and_then(|known| known.partitions.as_ref().ok());
        let place = usize::try_from(partition).unwrap_or(usize::MAX);
        let leader = leaders.and_then(|leaders| *leaders.get(place)?);
        let leader = leader.ok_or_else(|| {
            answer::sentence(
                answer::LEADER_NOT_AVAILABLE,
                &format!("the topic {topic} (partition {partition})"),
            )
        })?;
        let connection = self.cluster.take(leader, until).await.map_err(|lost| lost.reason)?;
        Ok((leader, connection))
    }
}
