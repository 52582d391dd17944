//! One save, as a task of its own: what the sink has is secured first, where it has to be, and then the record is made durable.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::GRACE;
use crate::deliver::mark::Record;
use crate::deliver::schedule;
use crate::sinks::{Sink, Unavailable};
use crate::state::{Expected, Revision, Store, StoreError, put_json};
use crate::telemetry;

/// What a save has come to.
pub(super) struct Secured {
    /// It was everything, not the pause alone.
    pub whole: bool,
    /// And all of that is durable, not a plan alone.
    pub taken: bool,
    /// What is durable now, if anything was saved.
    pub saved: Option<(Record, Revision)>,
    pub trouble: Option<Trouble>,
}

/// Why not all of it is.
pub(super) enum Trouble {
    /// The sink could not secure what it was given: nothing since the last durable mark is believed.
    Sink(Unavailable),
    /// The mark could not be saved. `moved`: the sink has moved meanwhile, so nothing may be delivered before it is.
    Store { error: StoreError, moved: bool },
}

/// What is needed to save.
pub(super) struct Securing {
    pub store: Arc<dyn Store>,
    pub key: String,
    pub record: Record,
    /// The newest durable mark, beside which a plan is saved.
    pub before: Record,
    pub expected: Expected,
    /// Nodes keep the record together.
    pub is_shared: bool,
    /// The sink to checkpoint first; `None`: only the record is saved.
    pub sink: Option<Arc<dyn Sink>>,
    pub limit: Duration,
    /// For one exchange of a checkpoint.
    pub exchange: Duration,
    pub name: String,
    pub whole: bool,
    /// What the sink was given is durable.
    pub taken: bool,
}

impl Securing {
    /// Secures and saves, as far as that goes.
    pub async fn run(mut self) -> Secured {
        let mut saved = None;
        let trouble = self.steps(&mut saved).await.err();
        Secured {
            whole: self.whole,
            taken: self.whole && self.taken,
            saved,
            trouble,
        }
    }

    async fn steps(&mut self, saved: &mut Option<(Record, Revision)>) -> Result<(), Trouble> {
        if let Some(sink) = self.sink.clone() {
            if let Some(plan) = self.bounded("checkpoint", sink.plan()).await? {
                let planned = Record {
                    position: Some(plan),
                    ..self.before.clone()
                };
                let whole = std::mem::replace(&mut self.record, planned);
                *saved = Some(self.put(false).await?);
                self.record = whole;
            }
            let whole = self.limit;
            self.limit = self.exchange * sink.exchanges() + GRACE;
            let position = self.bounded("checkpoint", sink.checkpoint()).await;
            self.limit = whole;
            self.record.position = position?;
        }
        *saved = Some(self.put(false).await?);
        self.taken = true;
        if let Some(sink) = self.sink.clone()
            && let Some(position) = self.bounded("checkpoint", sink.committed()).await?
        {
            self.record.position = Some(position);
            *saved = Some(self.put(true).await?);
        }
        Ok(())
    }

    async fn bounded<T>(
        &self,
        part: &'static str,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Trouble> {
        let done = AssertUnwindSafe(tokio::time::timeout(self.limit, work))
            .catch_unwind()
            .await;
        let done = done.unwrap_or_else(|_| {
            telemetry::sink_restarted(&self.name, part);
            let reason = "the sink panicked; this is a defect of closehook, please report it";
            Ok(Err(Unavailable::new(reason)))
        });
        let done = done.unwrap_or_else(|_| Err(Unavailable::new("securing what was delivered took too long")));
        done.map_err(Trouble::Sink)
    }

    async fn put(&mut self, moved: bool) -> Result<(Record, Revision), Trouble> {
        let now = schedule::now();
        // What is durable may be another process's still.
        self.record.follow_clock(now);
        self.record.saved_now(now);
        let mut put = put_json(&*self.store, &self.key, &self.record, self.expected).await;
        if matches!(put, Err(StoreError::Conflict(_))) && self.is_gone().await {
            put = put_json(&*self.store, &self.key, &self.record, Expected::Nothing).await;
        }
        let revision = put.map_err(|error| Trouble::Store { error, moved })?;
        self.expected = Expected::Revision(revision);
        Ok((self.record.clone(), revision))
    }

    /// Whether nodes' state was lost, and nobody has another record: what is known here is the newest there is.
    async fn is_gone(&self) -> bool {
        self.is_shared && matches!(self.store.get(&self.key).await, Ok(None))
    }
}
