//! Orders for what another node drives: a record in the bucket, which whoever has the lease takes away, carries out, and answers with
//! another one.
//!
//! Taking the record away is what makes an order somebody's, and so it is carried out once at most. Whoever asks waits only so long, and then
//! takes it back: if it is gone, it was taken, and is perhaps being carried out.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::SharedLeases;
use crate::node::Order;
use crate::state::{Expected, StoreError, put_json};

const ORDERS: &str = "order/";
const ANSWERS: &str = "answer/";

/// How often whoever asks looks for the answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `order/ID`
#[derive(Debug, Serialize, Deserialize)]
struct OrderRecord {
    /// Who is to carry it out: whoever has the lease of this.
    what: String,
    /// The node that asks.
    from: String,
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
    pub(super) async fn ask_owner(&self, what: &str, order: Value, within: Duration) -> Result<Value, String> {
        let until = Instant::now() + within;
        let text = |error: StoreError| format!("the other nodes can't be asked: {error}");
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let id = hex::encode(random);
        let record = OrderRecord {
            what: what.to_owned(),
            from: self.name().to_owned(),
            order,
        };
        let (order_key, answer_key) = (format!("{ORDERS}{id}"), format!("{ANSWERS}{id}"));
        let revision = put_json(self.store(), &order_key, &record, Expected::Nothing).await;
        let revision = revision.map_err(text)?;
        while Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Ok(Some(entry)) = self.store().get(&answer_key).await {
                // It is in nobody's way.
                let _ = self.store().remove(&answer_key, Expected::Anything).await;
                let answer: AnswerRecord = entry.json()?;
                return answer.done.ok_or_else(|| answer.why.unwrap_or_default());
            }
        }
        match self.store().remove(&order_key, Expected::Revision(revision)).await {
            Ok(()) => Err(match crate::node::Leases::holder(self, what) {
                Some(node) => format!(
                    "node \"{node}\" drives it and did not answer within {within:.0?}: nothing was done; try again"
                ),
                None => "no node drives it now: nothing was done; try again in a moment".into(),
            }),
            Err(StoreError::Conflict(_)) => {
                Err("the node that drives it has taken the order and has not answered: look whether it was done".into())
            }
            Err(error) => Err(format!("it is not known whether it was done: {error}")),
        }
    }

    /// The orders for what this node holds, each of them given once.
    pub(super) async fn take_orders(&self) -> Vec<Order> {
        let mut orders = Vec::new();
        // What can't be looked at now is taken later, or taken back by whoever asked.
        for key in self.store().keys(ORDERS).await.unwrap_or_default() {
            let Ok(Some(entry)) = self.store().get(&key).await else {
                continue;
            };
            let Ok(record) = entry.json::<OrderRecord>() else {
                continue;
            };
            if crate::node::Leases::lease(self, &record.what).is_none() {
                continue;
            }
            let taken = self.store().remove(&key, Expected::Revision(entry.revision)).await;
            if taken.is_ok() {
                orders.push(Order {
                    id: key.trim_start_matches(ORDERS).to_owned(),
                    what: record.what,
                    order: record.order,
                });
            }
        }
        orders
    }

    pub(super) async fn put_answer(&self, id: &str, result: Result<Value, String>) {
        let (done, why) = match result {
            Ok(done) => (Some(done), None),
            Err(why) => (None, Some(why)),
        };
        let answer = AnswerRecord { done, why };
        let put = put_json(self.store(), &format!("{ANSWERS}{id}"), &answer, Expected::Anything).await;
        if let Err(error) = put {
            tracing::warn!(%error, "an order of another node was carried out, and that can't be said there");
        }
    }
}
