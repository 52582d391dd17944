//! The durable records of replays: read, changed, and settled where it is not known what became of a change.
//!
//! A change that is given up may still become durable: it waits for the disk. What is to be so is then tried until it is, so that no replay
//! is durable that nobody here knows of: it would keep the log from dropping anything, and run by itself after the next start.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, KEPT};
use super::mark::{JOBS, JobRecord};
use super::replay::Job;
use super::types::{EngineError, Mode, failed};
use super::worker::Command;
use crate::event::Seq;
use crate::state::{Expected, StoreError, put_json};
use crate::task;

/// How often it is tried to settle what became of a change.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The last place that has one behind it, which a reader can have come to.
const LAST: Seq = Seq(u64::MAX - 1);

/// A record that others change as well is changed within so many tries.
const TRIES_MAX: u32 = 10;

/// What is to become of a replay of which a change was given up.
#[derive(Debug, Clone, Copy)]
enum Aim {
    /// It was not begun: it goes.
    Gone,
    /// It is to be there, whoever begins it.
    There,
    /// It runs, or not, as it does here.
    AsHere,
}

fn key_of(id: &str) -> String {
    format!("{JOBS}{id}")
}

impl Engine {
    pub(super) async fn put_job(&self, id: &str, record: &JobRecord, expected: Expected) -> Result<(), StoreError> {
        put_json(&*self.inner.store, &key_of(id), record, expected)
            .await
            .map(drop)
    }

    /// Changes a replay's record, durably and then here. Whatever else was changed there meanwhile stays. `false`:
    /// there is none.
    pub(super) async fn change_job(&self, id: &str, change: impl Fn(&mut JobRecord)) -> Result<bool, EngineError> {
        let _changing = self.inner.jobs.changing().await;
        let mut tries = 0;
        loop {
            let entry = self.inner.store.get(&key_of(id)).await.map_err(failed)?;
            let Some(entry) = entry else { return Ok(false) };
            let mut record: JobRecord = entry.json().map_err(EngineError)?;
            change(&mut record);
            match self.put_job(id, &record, Expected::Revision(entry.revision)).await {
                Ok(()) => break,
                Err(StoreError::Conflict(_)) if tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(failed(error)),
            }
        }
        if let Some((_, record)) = self.inner.jobs.lock().get_mut(id) {
            change(record);
        }
        Ok(true)
    }

    /// A replay that is durable begins, or goes on.
    pub(super) async fn let_go_on(&self, id: &str) {
        let Some((job, record)) = self.inner.jobs.lock().get(id).cloned() else {
            return;
        };
        job.set_stored();
        job.set_running(record.running);
        for sink in record.planned.keys() {
            // It is durable and in the list: a sink that can't be told now (it is being reloaded) finds it there when it begins.
            if let Err(error) = self.order(sink, Command::Replay(job.clone())).await {
                tracing::warn!(sink, replay = id, %error, "the replay begins there when the sink starts again");
            }
        }
    }

    /// Whether a replay was begun is not known. One that whoever asked for it asks for anew, under another id, is taken back.
    pub(super) fn settle_begun(&self, id: &str, expected: Expected) {
        let (aim, why) = match expected {
            Expected::Anything | Expected::Revision(_) => (Aim::Gone, "it could not be begun, and is being taken back"),
            Expected::Nothing => (Aim::There, "it is not known whether it was begun; this is tried again"),
        };
        self.inner.jobs.set_unclear(id, why);
        self.try_until_settled(id, aim);
    }

    /// Whether a replay was interrupted, or let go on, is not known.
    pub(super) fn settle_running(&self, id: &str) {
        self.inner
            .jobs
            .set_unclear(id, "it could not be saved whether it is to run; this is tried again");
        self.try_until_settled(id, Aim::AsHere);
    }

    fn try_until_settled(&self, id: &str, aim: Aim) {
        let (stop, inner, id) = (self.inner.stop.clone(), Arc::downgrade(&self.inner), id.to_owned());
        task::begin(async move {
            loop {
                let Some(inner) = inner.upgrade() else { return };
                match (Engine { inner }).try_to_settle(&id, aim).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(replay = id, %error, "what became of a replay can't be settled now; this is tried again");
                    }
                }
                let waited = stop.run_until_cancelled(tokio::time::sleep(SETTLE_EVERY)).await;
                if waited.is_none() {
                    return;
                }
            }
        });
    }

    async fn try_to_settle(&self, id: &str, aim: Aim) -> Result<(), EngineError> {
        let jobs = &self.inner.jobs;
        let Some((_, here)) = jobs.lock().get(id).cloned() else {
            return Ok(());
        };
        match aim {
            Aim::Gone => {
                let _changing = jobs.changing().await;
                let removed = self.inner.store.remove(&key_of(id), Expected::Anything).await;
                removed.map_err(failed)?;
                jobs.drop_gone(id);
            }
            Aim::There => match self.put_job(id, &here, Expected::Nothing).await {
                Ok(()) => self.let_go_on(id).await,
                // What is durable counts: ours, or that of another node, which may end elsewhere.
                Err(StoreError::Conflict(_)) => {
                    jobs.lock().remove(id);
                    jobs.set_clear(id);
                    return self.look_at_jobs().await;
                }
                Err(error) => return Err(failed(error)),
            },
            Aim::AsHere => drop(self.change_job(id, |record| record.running = here.running).await?),
        }
        jobs.set_clear(id);
        Ok(())
    }

    pub(super) async fn load_jobs(&self) -> Result<(), EngineError> {
        let now = self.inner.clock.at_least();
        let is_old = |record: &JobRecord| now.is_some_and(|now| now.duration_since(record.created_at) > KEPT);
        let store = &self.inner.store;
        for key in store.keys(JOBS).await.map_err(failed)? {
            let id = key.trim_start_matches(JOBS).to_owned();
            let Some(entry) = store.get(&key).await.map_err(failed)? else {
                continue;
            };
            // What the log has now says nothing about where an earlier one's end was, but an end it must have.
            let record = match entry.json::<JobRecord>() {
                Ok(record) => record.ending_by(LAST),
                Err(error) => {
                    tracing::error!(key, error, "a replay's record can't be read");
                    continue;
                }
            };
            // Whether it is old says nothing about whether it is done: that is known when the sinks' records were read.
            match Job::new(&id, record.spec.clone(), record.running, self.inner.log.clone()) {
                Ok(job) => {
                    job.set_stored();
                    self.inner.jobs.lock().insert(id, (Arc::new(job), record));
                }
                Err(error) if is_old(&record) && self.inner.mode == Mode::Follow => {
                    tracing::warn!(
                        replay = id,
                        error,
                        "an old replay that can't be carried out any more is forgotten"
                    );
                    drop(store.remove(&key, Expected::Anything).await);
                }
                Err(error) => tracing::error!(replay = id, error, "the replay can't be carried out"),
            }
        }
        Ok(())
    }
}
