//! Looking at others: who is dead, what is free, and taking it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{Seen, SharedLeases, Standing, State};
use crate::node::record::{LEASES, LeaseRecord, NODES, NodeRecord, NodeState, lease_key, node_key, role_for};
use crate::node::{Lease, Want};
use crate::state::{Expected, Revision, StoreError, put_json};

/// A node that is not alive for so long is forgotten.
const GONE_FOR: Duration = Duration::from_secs(24 * 3600);

/// How often it is looked for those.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// What this node does about something that is wanted.
enum Turn {
    /// It is somebody's, or somebody else's turn.
    None,
    /// It is free, and to be taken: what its record is now.
    Take(Option<(LeaseRecord, Revision)>),
    /// What is known of its node may be too old to tell.
    Doubt(LeaseRecord),
}

impl SharedLeases {
    pub(super) async fn looks(&self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "the other nodes can't be looked at now; this is tried again");
            }
            tokio::time::sleep(self.timing().look).await;
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.look_at_nodes().await?;
        self.forget_the_gone().await?;
        let wants = self.state().wants.clone();
        for want in &wants {
            self.look_at_lease(want).await?;
        }
        self.let_go_of_unwanted(&wants).await;
        self.clear_desk().await
    }

    /// Looks once at nodes and leases, for who only wants to show them.
    pub async fn look_from_outside(&self) -> Result<(), StoreError> {
        self.look_at_nodes().await?;
        for key in self.store().keys(LEASES).await? {
            if let Some(entry) = self.store().get(&key).await?
                && let Ok(record) = entry.json::<LeaseRecord>()
            {
                let what = key.trim_start_matches(LEASES).to_owned();
                self.state().records.insert(what, (record, entry.revision));
            }
        }
        Ok(())
    }

    pub(super) async fn look_up_holder(&self, what: &str) -> Result<Option<String>, StoreError> {
        let unreadable = StoreError::Unreadable;
        let Some(entry) = self.store().get(&lease_key(what)).await? else {
            return Ok(None);
        };
        let lease = entry.json::<LeaseRecord>().map_err(unreadable)?;
        if lease.free {
            return Ok(None);
        }
        let Some(entry) = self.store().get(&node_key(&lease.node)).await? else {
            return Ok(None);
        };
        let node = entry.json::<NodeRecord>().map_err(unreadable)?;
        let is_its = node.life == lease.life && node.state == NodeState::Alive;
        Ok(is_its.then_some(lease.node))
    }

    pub(super) async fn look_at_nodes(&self) -> Result<(), StoreError> {
        let (mut found, mut stored) = (BTreeMap::new(), BTreeMap::new());
        for key in self.store().keys(NODES).await? {
            let name = key.trim_start_matches(NODES).to_owned();
            if let Some(entry) = self.store().get(&key).await?
                && let Ok(record) = entry.json::<NodeRecord>()
            {
                if let Some(at) = entry.stored_at {
                    stored.insert(name.clone(), (entry.revision, at));
                }
                found.insert(name, (record, entry.revision));
            }
        }
        let mut dead = Vec::new();
        {
            let mut state = self.state();
            let now = Instant::now();
            let own = self.name();
            state.stored = stored;
            state.nodes.retain(|name, _| name == own || found.contains_key(name));
            for (name, (record, revision)) in found.into_iter().filter(|(name, _)| name != own) {
                match state.nodes.get(&name) {
                    Some(seen) if seen.revision == revision => {
                        let is_late = now.duration_since(seen.since) > self.timing().lease;
                        if record.state == NodeState::Alive && is_late {
                            dead.push((name, record, revision));
                        }
                    }
                    _ => {
                        let since = now;
                        state.nodes.insert(
                            name,
                            Seen {
                                record,
                                revision,
                                since,
                            },
                        );
                    }
                }
            }
        }
        for (name, record, revision) in dead {
            self.declare_dead(&name, record, revision).await;
        }
        Ok(())
    }

    /// Removes the records of nodes that have been gone for a day and have left nothing behind: where each start has a name of its own
    /// they would become more and more. Their own clocks say nothing of that: they may be days apart.
    async fn forget_the_gone(&self) -> Result<(), StoreError> {
        let gone: Vec<(String, String, Revision)> = {
            let mut state = self.state();
            let now = Instant::now();
            if state.forgot_at.is_some_and(|at| now.duration_since(at) < FORGET_EVERY) {
                return Ok(());
            }
            state.forgot_at = Some(now);
            // This node's own record is stored anew again and again.
            let now_there = state.stored.get(self.name()).map(|(_, at)| *at);
            let is_long = |name: &str, seen: &Seen| {
                let stored = state
                    .stored
                    .get(name)
                    .filter(|(revision, _)| *revision == seen.revision);
                let there = stored.zip(now_there);
                let there = there.filter(|((_, at), now_there)| at < now_there);
                let ago = there.map(|((_, at), now_there)| now_there.duration_since(*at).unsigned_abs());
                now.duration_since(seen.since) >= GONE_FOR || ago.is_some_and(|ago| ago >= GONE_FOR)
            };
            let others = state.nodes.iter().filter(|(name, _)| name.as_str() != self.name());
            let gone = others.filter(|(name, seen)| seen.record.state != NodeState::Alive && is_long(name, seen));
            gone.map(|(name, seen)| (name.clone(), seen.record.life.clone(), seen.revision))
                .collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        // Whose lease it is has to be known as long as it is taken.
        let mut lives = BTreeSet::new();
        for key in self.store().keys(LEASES).await? {
            if let Some(entry) = self.store().get(&key).await?
                && let Ok(record) = entry.json::<LeaseRecord>()
                && !record.free
            {
                lives.insert(record.life);
            }
        }
        for (name, _, revision) in gone.iter().filter(|(_, life, _)| !lives.contains(life)) {
            // One that has begun another life meanwhile is not gone.
            let removed = self
                .store()
                .remove(&node_key(name), Expected::Revision(*revision))
                .await;
            if let Err(error) = removed {
                tracing::debug!(node = name, %error, "a node that is long gone can't be forgotten now");
            }
        }
        Ok(())
    }

    /// Says in a node's record that it is dead, if it is still the one that was watched.
    async fn declare_dead(&self, name: &str, record: NodeRecord, revision: Revision) {
        let record = NodeRecord {
            state: NodeState::Dead,
            ended_at: Some(Timestamp::now()),
            ..record
        };
        let put = put_json(self.store(), &node_key(name), &record, Expected::Revision(revision)).await;
        match put {
            Ok(revision) => {
                tracing::warn!(
                    node = name,
                    "a node has not been heard of for too long; others do what it did"
                );
                let since = Instant::now();
                let seen = Seen {
                    record,
                    revision,
                    since,
                };
                self.state().nodes.insert(name.to_owned(), seen);
            }
            // It has been heard of after all, or another node was faster: the next look shows it.
            Err(error) => tracing::debug!(node = name, %error, "a node that was taken for dead may be alive"),
        }
    }

    async fn look_at_lease(&self, want: &Want) -> Result<(), StoreError> {
        let entry = self.store().get(&lease_key(&want.what)).await?;
        // What can't be read is replaced; its fence may then be lower, which a mark's own fence shows.
        let found = entry.map(|entry| {
            let record = entry.json::<LeaseRecord>();
            let unreadable = |_| LeaseRecord {
                node: String::new(),
                life: String::new(),
                fence: entry.revision.0.max(first_fence()),
                free: true,
            };
            (record.unwrap_or_else(unreadable), entry.revision)
        });
        match self.turn(want, found) {
            Turn::None => {}
            Turn::Take(before) => self.take(want, before).await,
            Turn::Doubt(record) => self.settle_doubt(&record).await?,
        }
        Ok(())
    }

    fn turn(&self, want: &Want, found: Option<(LeaseRecord, Revision)>) -> Turn {
        let mut state = self.state();
        let known = state.records.get(&want.what).map(|(_, revision)| *revision);
        if known > found.as_ref().map(|(_, revision)| *revision) {
            // More was known before: what was read is old.
            return Turn::None;
        }
        match &found {
            Some(found) => drop(state.records.insert(want.what.clone(), found.clone())),
            None => drop(state.records.remove(&want.what)),
        }
        let own = state.life.as_ref().map(|life| life.id.clone());
        let standing = found
            .as_ref()
            .map(|(record, revision)| state.standing(record, *revision));
        if let (Some((record, _)), Some(Standing::Doubtful)) = (&found, &standing) {
            return Turn::Doubt(record.clone());
        }
        if let (Some((record, _)), Some(Standing::Taken)) = (&found, &standing) {
            state.free_since.remove(&want.what);
            let is_own = own.is_some_and(|own| own == record.life);
            if is_own && !state.held.contains_key(&want.what) {
                // It was taken, or given up, and that was not heard: taking it anew shows which.
                return Turn::Take(found);
            }
            if !is_own && let Some(lease) = state.held.remove(&want.what) {
                lease.end();
                drop(state);
                self.changed();
            }
            return Turn::None;
        }
        if own.is_none() || !self.is_fit(want) {
            return Turn::None;
        }
        let now = Instant::now();
        let since = *state.free_since.entry(want.what.clone()).or_insert(now);
        let is_late = now.duration_since(since) >= self.timing().grace;
        if is_late || self.is_first_choice(&state, want) {
            return Turn::Take(found);
        }
        Turn::None
    }

    /// Makes sure that the record of a lease's node is what it was seen to be, by writing it anew: what is seen after that is newer than the
    /// lease.
    async fn settle_doubt(&self, lease: &LeaseRecord) -> Result<(), StoreError> {
        let seen = self.state().nodes.get(&lease.node).cloned();
        let nobody = || NodeRecord {
            life: lease.life.clone(),
            state: NodeState::Dead,
            roles: Vec::new(),
            version: String::new(),
            started_at: Timestamp::now(),
            beat: 0,
            ended_at: Some(Timestamp::now()),
        };
        let expected = seen
            .as_ref()
            .map_or(Expected::Nothing, |seen| Expected::Revision(seen.revision));
        let record = seen.map_or_else(nobody, |seen| seen.record);
        match put_json(self.store(), &node_key(&lease.node), &record, expected).await {
            Ok(revision) => {
                let since = Instant::now();
                let seen = Seen {
                    record,
                    revision,
                    since,
                };
                self.state().nodes.insert(lease.node.clone(), seen);
                Ok(())
            }
            // It was too old: the next look shows what there is.
            Err(StoreError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether this node may do it.
    fn is_fit(&self, want: &Want) -> bool {
        let options = &self.inner.options;
        let is_here = want.node.as_ref().is_none_or(|node| *node == options.node);
        is_here && options.roles.contains(&role_for(&want.what))
    }

    /// Whether, of the nodes that are alive, it is this one's turn: each thing has its own order of them, so that what there is to do
    /// spreads over them.
    fn is_first_choice(&self, state: &State, want: &Want) -> bool {
        let weight = |node: &str| Sha256::digest(format!("{node}\n{}", want.what));
        let own = weight(self.name());
        let role = role_for(&want.what);
        let mut others = state.nodes.iter().filter(|(name, seen)| {
            name.as_str() != self.name() && seen.record.state == NodeState::Alive && seen.record.roles.contains(&role)
        });
        want.node.is_some() || others.all(|(name, _)| weight(name) < own)
    }

    async fn take(&self, want: &Want, before: Option<(LeaseRecord, Revision)>) {
        let life = self.state().life.clone();
        let Some(life) = life.filter(|life| life.deadline.holds()) else {
            return;
        };
        let next = before.as_ref().map_or_else(first_fence, |(record, _)| record.fence + 1);
        let used_up = self.state().used_up.get(&want.what).copied().unwrap_or_default();
        let record = LeaseRecord {
            node: self.name().to_owned(),
            life: life.id.clone(),
            fence: next.max(used_up.saturating_add(1)),
            free: false,
        };
        let expected = before.map_or(Expected::Nothing, |(_, revision)| Expected::Revision(revision));
        let put = put_json(self.store(), &lease_key(&want.what), &record, expected).await;
        match put {
            Ok(revision) => {
                self.state()
                    .records
                    .insert(want.what.clone(), (record.clone(), revision));
                self.hold(&want.what, &record);
            }
            Err(StoreError::Conflict(_)) => {}
            Err(error) => tracing::debug!(what = want.what, %error, "a lease could not be taken; this is tried again"),
        }
    }

    /// Has what a record says that this life has. Another life of this node has not.
    fn hold(&self, what: &str, record: &LeaseRecord) {
        let mut state = self.state();
        state.free_since.remove(what);
        let is_wanted = state.wants.iter().any(|want| want.what == what);
        let life = state.life.as_ref().filter(|life| life.id == record.life && is_wanted);
        let Some(life) = life.filter(|life| life.deadline.holds()) else {
            return;
        };
        let fence = record.fence;
        let lease = Lease::new(fence, life.deadline.clone());
        state.held.insert(what.to_owned(), lease);
        drop(state);
        tracing::info!(node = self.name(), what, fence, "this node has the lease now");
        self.changed();
    }

    /// What has left the configuration while it was being taken.
    async fn let_go_of_unwanted(&self, wants: &[Want]) {
        let unwanted: Vec<String> = {
            let state = self.state();
            let held = state.held.keys();
            held.filter(|what| !wants.iter().any(|want| want.what == **what))
                .cloned()
                .collect()
        };
        for what in unwanted {
            crate::node::Leases::give_up(self, &what).await;
        }
    }
}

/// Of a lease that was never taken, as far as its bucket says. Marks may be from before that was made anew, and no fence is behind them: so it
/// begins with the time, and not with 1.
fn first_fence() -> u64 {
    Timestamp::now().as_second().unsigned_abs().max(1)
}
