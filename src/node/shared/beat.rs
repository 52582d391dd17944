//! Being alive: joining, renewing, and knowing when that is over.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Life, Seen, SharedLeases};
use crate::node::Deadline;
use crate::node::record::{NodeRecord, NodeState, node_key};
use crate::state::{Expected, Revision, StoreError};

impl SharedLeases {
    /// Renews this node's record again and again, and begins a new life where one has ended.
    pub(super) async fn beats(&self) {
        loop {
            let life = self.state().life.clone();
            match life {
                None => self.join().await,
                Some(life) => self.renew(life).await,
            }
            let next = Instant::now() + self.timing().renew;
            self.rest_until(next).await;
        }
    }

    /// Waits, and lets go of everything at the moment it is over.
    async fn rest_until(&self, next: Instant) {
        let deadline = self.state().life.as_ref().map(|life| life.deadline.clone());
        let over_at = deadline.as_ref().and_then(|deadline| deadline.at());
        if let Some(at) = over_at.filter(|at| *at < next) {
            tokio::time::sleep_until(at).await;
        } else {
            tokio::time::sleep_until(next).await;
        }
        if deadline.is_some_and(|deadline| !deadline.holds()) {
            self.end_life("its record could not be renewed in time");
        }
    }

    fn end_life(&self, why: &str) {
        let mut state = self.state();
        let had: Vec<String> = state.held.keys().cloned().collect();
        self.let_go(&mut state);
        state.life = None;
        drop(state);
        tracing::warn!(
            node = self.name(),
            leases = had.join(", "),
            "this node is taken for dead ({why}), and stops what it did; another one goes on with it, or this one as soon as it can"
        );
    }

    /// Begins a life, unless another one of this name is there.
    async fn join(&self) {
        if self.state().has_left {
            return;
        }
        match self.try_to_join().await {
            Ok(true) => self.say(None),
            Ok(false) => {}
            Err(why) => self.say(Some(format!(
                "this node ({}) can't be made known to the others, and drives no sink: {why}",
                self.name()
            ))),
        }
    }

    async fn try_to_join(&self) -> Result<bool, String> {
        let text = |error: StoreError| error.to_string();
        let entry = self.store().get(&node_key(self.name())).await.map_err(text)?;
        let expected = match entry {
            None => Expected::Nothing,
            Some(entry) => {
                // What can't be read is nobody's.
                if let Ok(record) = entry.json::<NodeRecord>()
                    && !self.may_follow(&record, entry.revision)?
                {
                    return Ok(false);
                }
                Expected::Revision(entry.revision)
            }
        };
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let sent = Instant::now();
        let mut life = Life {
            id: hex::encode(random),
            revision: Revision::default(),
            beat: 0,
            deadline: Arc::new(Deadline::until(sent + self.timing().lease - self.timing().margin)),
        };
        let record = self.record(&life, NodeState::Alive);
        // It may be there although no answer came.
        self.state().past.insert(life.id.clone());
        match self.put_node(&record, expected).await {
            Ok(revision) => {
                life.revision = revision;
                self.seen_self(&record, revision);
                let mut state = self.state();
                if state.has_left {
                    return Ok(false);
                }
                state.past.remove(&life.id);
                state.life = Some(life);
                Ok(true)
            }
            Err(StoreError::Conflict(_)) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the life that this record is of is over.
    fn may_follow(&self, record: &NodeRecord, revision: Revision) -> Result<bool, String> {
        let mut state = self.state();
        if record.state != NodeState::Alive || state.past.contains(&record.life) {
            return Ok(true);
        }
        let now = Instant::now();
        let before = state.nodes.get(self.name());
        let same_life = before.is_some_and(|before| before.record.life == record.life);
        if let Some(before) = before.filter(|before| before.revision == revision) {
            return Ok(now.duration_since(before.since) > self.timing().lease);
        }
        let seen = Seen {
            record: record.clone(),
            revision,
            since: now,
        };
        state.nodes.insert(self.name().to_owned(), seen);
        if same_life {
            return Err(format!(
                "another node is called \"{}\" as well: each needs a name of its own (node.name, or CLOSEHOOK__NODE__NAME)",
                self.name()
            ));
        }
        Ok(false)
    }

    fn seen_self(&self, record: &NodeRecord, revision: Revision) {
        let seen = Seen {
            record: record.clone(),
            revision,
            since: Instant::now(),
        };
        self.state().nodes.insert(self.name().to_owned(), seen);
    }

    async fn renew(&self, mut life: Life) {
        if !life.deadline.holds() {
            return self.end_life("its record could not be renewed in time");
        }
        life.beat += 1;
        let sent = Instant::now();
        let record = self.record(&life, NodeState::Alive);
        match self.put_node(&record, Expected::Revision(life.revision)).await {
            Ok(revision) => {
                life.deadline.extend(sent + self.timing().lease - self.timing().margin);
                self.renewed(&life, &record, revision);
            }
            Err(StoreError::Conflict(_)) => self.look_at_own(life).await,
            // It holds as long as it was said to.
            Err(error) => tracing::debug!(%error, "this node's record could not be renewed; this is tried again"),
        }
    }

    fn renewed(&self, life: &Life, record: &NodeRecord, revision: Revision) {
        self.seen_self(record, revision);
        let mut state = self.state();
        if let Some(own) = state.life.as_mut().filter(|own| own.id == life.id) {
            own.revision = revision;
            own.beat = record.beat;
        }
    }

    /// The record is another one than it was: this node's own renewal, whose answer was lost, or somebody else's.
    async fn look_at_own(&self, life: Life) {
        let Ok(entry) = self.store().get(&node_key(self.name())).await else {
            return;
        };
        let found = entry.and_then(|entry| Some((entry.json::<NodeRecord>().ok()?, entry.revision)));
        match found {
            // When it came there is not known: nothing is counted from it.
            Some((record, revision)) if record.life == life.id && record.state == NodeState::Alive => {
                self.renewed(&life, &record, revision);
            }
            _ => self.end_life("another node has said so"),
        }
    }
}
