//! Following the replays that other nodes begin, interrupt, let go on, take back or forget.

use std::sync::Arc;

use crate::deliver::engine::Engine;
use crate::deliver::mark::{JOBS, JobRecord};
use crate::deliver::replay::Job;
use crate::deliver::types::{EngineError, failed};
use crate::deliver::worker::Command;

impl Engine {
    /// Takes over replays that other nodes have begun, interrupted, let go on or taken back.
    pub(in crate::deliver) async fn follow_jobs(&self) {
        if let Err(error) = self.look_at_jobs().await {
            tracing::debug!(%error, "the replays of other nodes can't be looked at now; this is tried again");
        }
    }

    /// Makes sure that a replay is known which another node may just have begun.
    pub async fn know_replay(&self, id: &str) {
        if self.inner.leases.are_shared() && !self.inner.jobs.lock().contains_key(id) {
            self.follow_jobs().await;
        }
    }

    pub(in crate::deliver) async fn look_at_jobs(&self) -> Result<(), EngineError> {
        let before = self.inner.jobs.stored();
        let keys = self.inner.store.keys(JOBS).await.map_err(failed)?;
        self.let_go_of_gone(before, &keys).await?;
        for key in keys {
            let id = key.trim_start_matches(JOBS).to_owned();
            let Some(entry) = self.inner.store.get(&key).await.map_err(failed)? else {
                continue;
            };
            let Ok(record) = entry.json::<JobRecord>() else {
                continue;
            };
            let known = self.inner.jobs.lock().get(&id).cloned();
            let job = match known {
                // What is so here is about to be so there.
                Some(_) if self.inner.jobs.unclear(&id).is_some() => continue,
                Some((job, before)) if before.running == record.running && before.forgotten == record.forgotten => {
                    job.set_stored();
                    continue;
                }
                Some((job, _)) => job,
                None => match Job::new(&id, record.spec.clone(), record.running, self.inner.log.clone()) {
                    Ok(job) => Arc::new(job),
                    Err(_) => continue,
                },
            };
            job.set_stored();
            job.set_running(record.running);
            self.inner.jobs.lock().insert(id, (job.clone(), record.clone()));
            for sink in record.planned.keys().filter(|sink| self.driven().contains(*sink)) {
                // One that stops meanwhile finds it when it begins again, wherever that is.
                let _ = self.order(sink, Command::Replay(job.clone())).await;
            }
        }
        Ok(())
    }

    /// Lets go of those whose records are gone: another node has taken them back, or forgotten them. What was lost with all that nodes
    /// share was not.
    async fn let_go_of_gone(&self, before: Vec<String>, keys: &[String]) -> Result<(), EngineError> {
        for id in before {
            let key = format!("{JOBS}{id}");
            if keys.contains(&key) || self.inner.store.get(&key).await.map_err(failed)?.is_some() {
                continue;
            }
            if self.may_state_be_lost().await? {
                return Ok(());
            }
            let known = self.inner.jobs.lock().get(&id).cloned();
            let Some((job, record)) = known else { continue };
            tracing::info!(
                replay = id,
                "another node has taken the replay back, or forgotten it: it ends here"
            );
            self.inner.jobs.drop_gone(&id);
            for sink in record.planned.keys().filter(|sink| self.driven().contains(*sink)) {
                // One that stops meanwhile does not find it any more when it begins again.
                let _ = self.order(sink, Command::Replay(job.clone())).await;
            }
        }
        Ok(())
    }
}
