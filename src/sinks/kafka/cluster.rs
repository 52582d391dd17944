//! The brokers as one of them describes them: who leads which partition, and a connection to each that is asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{BrokerId, MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::answer;
use super::connection::{Address, Connection, Lost, Way};

/// What was learned of a topic is asked again after this.
const TOPIC_AGE_MAX: Duration = Duration::from_secs(300);

/// Topics that are remembered: a template may make any number of them.
const TOPICS_MAX: usize = 1000;

/// What is known of a topic.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    /// `Err`: a broker's code, why there is nothing to know.
    pub partitions: Result<Vec<Option<BrokerId>>, i16>,
    learned: Instant,
}

/// The brokers.
pub(super) struct Cluster {
    way: Arc<Way>,
    bootstrap: Arc<[Address]>,
    /// Which of them is asked first: one that did not answer is asked last.
    first: usize,
    addresses: HashMap<BrokerId, Address>,
    connections: HashMap<BrokerId, Connection>,
    /// To one of the brokers that the configuration names.
    any: Option<Connection>,
    topics: HashMap<String, Topic>,
    /// Which cluster it is, where brokers say so.
    id: Option<String>,
    /// It is another one than before.
    is_other: bool,
}

impl Cluster {
    /// Contacts nobody yet.
    pub fn new(way: Arc<Way>, bootstrap: Arc<[Address]>) -> Cluster {
        Cluster {
            way,
            bootstrap,
            first: 0,
            addresses: HashMap::new(),
            connections: HashMap::new(),
            any: None,
            topics: HashMap::new(),
            id: None,
            is_other: false,
        }
    }

    /// Drops the connections that were closed meanwhile. Gives whether there were some.
    pub fn sweep(&mut self) -> bool {
        let before = self.connections.len() + usize::from(self.any.is_some());
        self.connections.retain(|_, connection| connection.is_open());
        self.any.take_if(|connection| !connection.is_open());
        before > self.connections.len() + usize::from(self.any.is_some())
    }

    /// Whether another cluster has taken the place of the one that was there when this was asked last.
    pub fn is_other(&mut self) -> bool {
        std::mem::take(&mut self.is_other)
    }

    /// A connection to some broker.
    pub async fn any(&mut self, until: Instant) -> Result<&mut Connection, Lost> {
        if !self.any.as_ref().is_some_and(Connection::is_usable) {
            self.any = None;
            let mut trouble = None;
            let candidates = self.candidates();
            for (step, address) in candidates.iter().enumerate() {
                // One that says nothing must leave time for the others.
                let left = until.saturating_duration_since(Instant::now());
                let share = left.div_f64((candidates.len() - step) as f64);
                match Connection::open(address, &self.way, Instant::now() + share).await {
                    Ok(connection) => {
                        let named = self.bootstrap.iter().position(|named| named == address);
                        self.first = named.unwrap_or(self.first);
                        self.any = Some(connection);
                        break;
                    }
                    Err(lost) => trouble = Some(lost),
                }
            }
            if let (None, Some(lost)) = (&self.any, trouble) {
                return Err(lost);
            }
        }
        self.any.as_mut().ok_or_else(no_broker)
    }

    /// Whom to ask: the brokers that the configuration names, the one that answered last at first, then those that were named by others.
    fn candidates(&self) -> Vec<Address> {
        let named = self
            .bootstrap
            .iter()
            .cycle()
            .skip(self.first)
            .take(self.bootstrap.len());
        let others = self
            .addresses
            .values()
            .filter(|address| !self.bootstrap.contains(address));
        named.chain(others).cloned().collect()
    }

    /// The connection to a broker, if there is one, as the caller's own: who is done with it gives it back.
    pub fn reuse(&mut self, broker: BrokerId) -> Option<Connection> {
        self.connections.remove(&broker).filter(Connection::is_usable)
    }

    pub fn address(&self, broker: BrokerId) -> Option<Address> {
        self.addresses.get(&broker).cloned()
    }

    pub fn way(&self) -> Arc<Way> {
        self.way.clone()
    }

    /// The connection to a broker, made if there is none, as the caller's own.
    pub async fn take(&mut self, broker: BrokerId, until: Instant) -> Result<Connection, Lost> {
        if let Some(connection) = self.reuse(broker) {
            return Ok(connection);
        }
        let address = self.address(broker).ok_or_else(no_broker)?;
        Connection::open(&address, &self.way, until).await
    }

    /// Keeps a connection for later.
    pub fn give_back(&mut self, broker: BrokerId, connection: Connection) {
        if connection.is_usable() {
            self.connections.insert(broker, connection);
        }
    }

    /// Where a broker is that was just named.
    pub fn place(&mut self, broker: BrokerId, address: Address) {
        self.addresses.insert(broker, address);
    }

    /// What is known of a topic.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// Asks for what is not known of these topics, or not for sure any more.
    pub async fn learn(&mut self, names: &BTreeSet<String>, until: Instant) -> Result<(), Lost> {
        let now = Instant::now();
        let is_known = |name: &&String| {
            let topic = self.topics.get(*name);
            topic.is_some_and(|topic| topic.partitions.is_ok() && now < topic.learned + TOPIC_AGE_MAX)
        };
        if names.iter().all(|name| is_known(&name)) {
            return Ok(());
        }
        self.refresh(names, until).await
    }

    /// Asks who leads what now. Makes no topic.
    pub async fn refresh(&mut self, names: &BTreeSet<String>, until: Instant) -> Result<(), Lost> {
        self.ask_for(names, false, until).await.map(|_| ())
    }

    /// The same, and what this user may do with the last one of them, as bits of `AclOperation`.
    pub async fn refresh_with_rights(&mut self, names: &BTreeSet<String>, until: Instant) -> Result<i32, Lost> {
        self.ask_for(names, true, until).await
    }

    async fn ask_for(&mut self, names: &BTreeSet<String>, with_rights: bool, until: Instant) -> Result<i32, Lost> {
        let topics = names.iter().map(|name| {
            let name = TopicName(StrBytes::from_string(name.clone()));
            MetadataRequestTopic::default().with_name(Some(name))
        });
        let request = MetadataRequest::default()
            .with_topics(Some(topics.collect()))
            .with_allow_auto_topic_creation(false);
        let broker = self.any(until).await?;
        // Older brokers can't say it, and take no request that asks for it.
        let request = request.with_include_topic_authorized_operations(with_rights && broker.says_rights());
        let known = broker.ask(&request, until).await?;
        let mut rights = i32::MIN;
        let id = known.cluster_id.map(|id| id.to_string());
        self.is_other |= self.id.is_some() && self.id != id;
        self.id = id;
        for broker in known.brokers {
            let port = u16::try_from(broker.port).unwrap_or_default();
            let address = Address {
                host: broker.host.to_string(),
                port,
            };
            if self.addresses.get(&broker.node_id) != Some(&address) {
                self.connections.remove(&broker.node_id);
                self.addresses.insert(broker.node_id, address);
            }
        }
        if self.topics.len() + names.len() > TOPICS_MAX {
            self.topics.clear();
        }
        let learned = Instant::now();
        for topic in known.topics {
            let Some(name) = topic.name else { continue };
            rights = topic.topic_authorized_operations;
            let mut leaders = vec![None; topic.partitions.len()];
            for partition in topic.partitions {
                let place = usize::try_from(partition.partition_index).ok();
                if let Some(leader) = place.and_then(|place| leaders.get_mut(place)) {
                    *leader = Some(partition.leader_id).filter(|leader| leader.0 >= 0);
                }
            }
            // One that has none yet is being made.
            let partitions = match topic.error_code {
                0 if leaders.is_empty() => Err(answer::LEADER_NOT_AVAILABLE),
                0 => Ok(leaders),
                code => Err(code),
            };
            self.topics.insert(name.to_string(), Topic { partitions, learned });
        }
        Ok(rights)
    }

    /// How many brokers were named.
    pub fn brokers(&self) -> usize {
        self.addresses.len()
    }
}

fn no_broker() -> Lost {
    Lost {
        reason: "no broker is known that could be asked".into(),
        is_sent: false,
    }
}
