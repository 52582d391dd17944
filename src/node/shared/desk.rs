//! Orders for what another node drives: a record in the bucket, which whoever has the lease takes away, carries out, and answers with
//! another one.
//!
//! Taking the record away is what makes an order somebody's, and so it is carried out once at most. Whoever asks waits only so long for that,
//! and then takes it back: if it is gone, it was taken, and its answer is waited for. An order whose node has ended meanwhile is nobody's any
//! more: what was wanted then is not to happen hours later.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::SharedLeases;
use crate::node::record::NodeState;
use crate::node::{Order, of_node};
use crate::state::{Expected, Revision, Store, StoreError, put_json};
use crate::task;

const ORDERS: &str = "order/";
const ANSWERS: &str = "answer/";

/// How often whoever asks looks for the answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// An order that nobody has taken after this is taken back.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// An answer that nobody has fetched after this is in the way.
const FETCHED_WITHIN: Duration = Duration::from_secs(180);

/// What lies there for so long nobody waits for any more.
const LEFT_AFTER: Duration = Duration::from_secs(600);

/// How often it is looked for that.
const CLEAR_EVERY: Duration = Duration::from_secs(120);

/// An order of somebody who is no node that lives (a command on a machine where none runs) is carried out when it is no older.
const OLD: SignedDuration = SignedDuration::from_mins(10);

/// `order/ID`
#[derive(Debug, Serialize, Deserialize)]
struct OrderRecord {
    /// Who is to carry it out: whoever has the lease of this, or the node that is called so.
    what: String,
    /// The node that asks.
    from: String,
    /// The life of it that does; `None`: it has none.
    #[serde(default)]
    life: Option<String>,
    /// When, by its clock.
    #[serde(default)]
    at: Option<Timestamp>,
    order: Value,
}

/// `answer/ID`
#[derive(Debug, Serialize, Deserialize)]
struct AnswerRecord {
    done: Option<Value>,
    /// Why it was not done.
    why: Option<String>,
}

impl SharedLeases {
    fn orders_store(&self) -> &dyn Store {
        match self.inner.orders.get() {
            Some(orders) => &**orders,
            None => self.store(),
        }
    }

    pub(super) async fn ask_owner(&self, what: &str, order: Value, within: Duration) -> Result<Value, String> {
        let began = Instant::now();
        let store = self.orders_store();
        let text = |error: StoreError| format!("the other nodes can't be asked: {error}");
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let id = hex::encode(random);
        let record = OrderRecord {
            what: what.to_owned(),
            from: self.name().to_owned(),
            life: self.state().life.as_ref().map(|life| life.id.clone()),
            at: Some(Timestamp::now()),
            order,
        };
        let (order_key, answer_key) = (format!("{ORDERS}{id}"), format!("{ANSWERS}{id}"));
        let revision = put_json(store, &order_key, &record, Expected::Nothing).await;
        let revision = revision.map_err(text)?;
        let mut is_taken = false;
        while began.elapsed() < within {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Ok(Some(entry)) = store.get(&answer_key).await {
                // It is in nobody's way.
                let _ = store.remove(&answer_key, Expected::Anything).await;
                let answer: AnswerRecord = entry.json()?;
                // What is done may be nothing to speak of.
                return answer.why.map_or_else(|| Ok(answer.done.unwrap_or_default()), Err);
            }
            if !is_taken && began.elapsed() >= TAKEN_WITHIN.min(within) {
                match store.remove(&order_key, Expected::Revision(revision)).await {
                    Ok(()) => return Err(self.nobody_took(what, began.elapsed())),
                    Err(StoreError::Conflict(_)) => is_taken = true,
                    // It may be asked again in a moment.
                    Err(_) => {}
                }
            }
        }
        match store.remove(&order_key, Expected::Revision(revision)).await {
            Ok(()) => Err(self.nobody_took(what, within)),
            Err(StoreError::Conflict(_)) => Err(format!(
                "the node that drives it has taken the order and has not answered within {within:.0?}: look whether it was done"
            )),
            Err(error) => Err(format!("it is not known whether it was done: {error}")),
        }
    }

    fn nobody_took(&self, what: &str, within: Duration) -> String {
        let named = what.strip_prefix("node/").map(str::to_owned);
        match named.or_else(|| crate::node::Leases::holder(self, what)) {
            Some(node) => {
                format!("node \"{node}\" drives it and did not answer within {within:.0?}: nothing was done; try again")
            }
            None => "no node drives it now: nothing was done; it takes a node that runs (`closehook serve`), and a moment after its start".into(),
        }
    }

    /// The orders for what this node holds, each of them given once.
    pub(super) async fn take_orders(&self) -> Vec<Order> {
        let mut orders = Vec::new();
        let store = self.orders_store();
        // What can't be looked at now is taken later, or taken back by whoever asked.
        for key in store.keys(ORDERS).await.unwrap_or_default() {
            let Ok(Some(entry)) = store.get(&key).await else {
                continue;
            };
            let Ok(record) = entry.json::<OrderRecord>() else {
                continue;
            };
            if !self.is_for_here(&record.what) {
                continue;
            }
            let taken = store.remove(&key, Expected::Revision(entry.revision)).await;
            if taken.is_err() {
                continue;
            }
            let id = key.trim_start_matches(ORDERS).to_owned();
            if let Some(why) = self.is_of_another_time(&record) {
                tracing::warn!(from = record.from, why, "an order is not carried out");
                self.put_answer(&id, Err(why)).await;
                continue;
            }
            if self.is_left_over(&record, entry.revision) {
                tracing::warn!(
                    from = record.from,
                    "an order of a node that has ended since is not carried out"
                );
                continue;
            }
            orders.push(Order {
                id,
                what: record.what,
                order: record.order,
            });
        }
        orders
    }

    fn is_for_here(&self, what: &str) -> bool {
        let is_alive = || self.state().life.as_ref().is_some_and(|life| life.deadline.holds());
        crate::node::Leases::lease(self, what).is_some() || (what == of_node(self.name()) && is_alive())
    }

    /// Why an order of somebody who is no node is not carried out: its time is too far from this clock's. One that was left would be told
    /// to nobody, but whose clock is wrong may wait.
    fn is_of_another_time(&self, record: &OrderRecord) -> Option<String> {
        let said = record.at.filter(|_| record.life.is_none())?;
        let apart = Timestamp::now().duration_since(said).abs();
        (apart > OLD).then(|| {
            format!(
                "the clock of the machine that asks and that of node \"{}\" differ by {} min: nothing was done; set them right and try again",
                self.name(),
                apart.as_mins()
            )
        })
    }

    /// Whether nobody waits for it any more.
    fn is_left_over(&self, record: &OrderRecord, revision: Revision) -> bool {
        let Some(life) = &record.life else { return false };
        match self.state().nodes.get(&record.from) {
            Some(seen) if seen.record.life == *life => seen.record.state != NodeState::Alive,
            // Of an earlier life, or of one that is not known here yet.
            Some(seen) => seen.revision > revision,
            None => false,
        }
    }

    /// Removes orders and answers that nobody waits for any more: whoever asked may have ended, and whoever answered too. How long they
    /// have been there is what this node has seen of it, whatever clocks say.
    pub(super) async fn clear_desk(&self) -> Result<(), StoreError> {
        let now = Instant::now();
        {
            let mut state = self.state();
            if state.cleared_at.is_some_and(|at| now.duration_since(at) < CLEAR_EVERY) {
                return Ok(());
            }
            state.cleared_at = Some(now);
        }
        let store = self.orders_store();
        let mut there = BTreeMap::new();
        for prefix in [ORDERS, ANSWERS] {
            for key in store.keys(prefix).await? {
                if let Some(entry) = store.get(&key).await? {
                    there.insert(key, (entry.revision, now));
                }
            }
        }
        let left: Vec<(String, Revision)> = {
            let mut state = self.state();
            for (key, (revision, since)) in &mut there {
                if let Some((known, seen)) = state.on_desk.get(key)
                    && known == revision
                {
                    *since = *seen;
                }
            }
            state.on_desk = there;
            let old = state.on_desk.iter();
            let old = old.filter(|(_, (_, since))| now.duration_since(*since) >= LEFT_AFTER);
            old.map(|(key, (revision, _))| (key.clone(), *revision)).collect()
        };
        for (key, revision) in left {
            match store.remove(&key, Expected::Revision(revision)).await {
                // Somebody has taken it away.
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) async fn put_answer(&self, id: &str, result: Result<Value, String>) {
        let (done, why) = match result {
            Ok(done) => (Some(done), None),
            Err(why) => (None, Some(why)),
        };
        let answer = AnswerRecord { done, why };
        let key = format!("{ANSWERS}{id}");
        match put_json(self.orders_store(), &key, &answer, Expected::Anything).await {
            Ok(revision) => {
                let leases = self.clone();
                task::begin(async move {
                    tokio::time::sleep(FETCHED_WITHIN).await;
                    let _ = leases.orders_store().remove(&key, Expected::Revision(revision)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an order of another node was carried out, and that can't be said there");
            }
        }
    }
}
