//! Replay jobs, as people ask for them; and those that are not kept any more.

mod following;
mod standing;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::engine::{Engine, KEPT};
use super::mark::{JOBS, JobRecord, RECORDS, record_key};
use super::replay::Job;
use super::types::{EngineError, Mode, ReplaySpec, failed};
use super::worker::Command;
use crate::event::Seq;
use crate::log::Take;
use crate::state::{Expected, StoreError};
use crate::sync::lock;
use crate::task;

/// How often it is looked which replays are not kept any more.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

impl JobRecord {
    /// The same, ending at this place at the latest, with no more planned than there can be.
    pub(super) fn ending_by(mut self, end: Seq) -> JobRecord {
        self.spec.to = self.spec.to.min(end);
        let most = self.spec.to.next().0.saturating_sub(self.spec.from.0);
        for count in self.planned.values_mut() {
            *count = (*count).min(most);
        }
        self
    }
}

impl Engine {
    /// Counts what a replay would send where, and fixes its end: `limit` events, or the log's newest. `progress` hears the Seq it has
    /// got to.
    pub async fn replay_plan(
        &self,
        mut spec: ReplaySpec,
        progress: &mut (dyn FnMut(Seq) + Send),
    ) -> Result<(ReplaySpec, BTreeMap<String, u64>), EngineError> {
        self.know(&spec)?;
        let rules = self.rules();
        spec.to = spec.to.min(*self.inner.log.head().borrow());
        if spec.limit == Some(0) {
            spec.to = spec.from.prev();
            return Ok((spec, BTreeMap::new()));
        }
        let job = Job::new("", spec.clone(), false, self.inner.log.clone()).map_err(EngineError)?;
        let sinks: Vec<String> = self.workers().by_sink.keys().cloned().collect();
        let mut planned = BTreeMap::new();
        let (mut next, mut events) = (spec.from.max(self.inner.log.first()), 0);
        while next <= spec.to {
            let take = Take {
                events: 1024,
                bytes: 4 << 20,
                narrow: job.narrow(),
            };
            let batch = self.inner.log.read(next, take).await.map_err(failed)?;
            if batch.next == next {
                break;
            }
            for event in batch.events.iter().filter(|event| event.seq <= spec.to) {
                let before: u64 = planned.values().sum();
                for sink in &sinks {
                    if job.route(sink, event, &rules).await.is_some() {
                        *planned.entry(sink.clone()).or_default() += 1;
                    }
                }
                if planned.values().sum::<u64>() > before {
                    events += 1;
                    if spec.limit == Some(events) {
                        spec.to = event.seq;
                        return Ok((spec, planned));
                    }
                }
            }
            next = batch.next;
            progress(next);
        }
        Ok((spec, planned))
    }

    /// Whether there is everything that a replay names.
    fn know(&self, spec: &ReplaySpec) -> Result<(), EngineError> {
        spec.sinks.iter().try_for_each(|sink| self.know_sink(sink))?;
        let rules = self.rules();
        if let Some(rule) = &spec.rule
            && rules.sinks_of(rule).is_none()
        {
            let names = rules.names();
            let known = names.iter().map(String::as_str);
            let wrong = crate::names::unknown(format!("there is no rule \"{rule}\""), rule, known);
            return Err(EngineError(wrong));
        }
        Ok(())
    }

    /// Whether there is a sink. One whose worker does not run at this moment, in the middle of a reload, is one as well.
    fn know_sink(&self, sink: &str) -> Result<(), EngineError> {
        if lock(&self.inner.configured).contains(sink) {
            return Ok(());
        }
        self.worker(sink).map(drop)
    }

    /// Starts a planned replay; durable when this returns its id. Whoever starts it need not have had it planned here, so it is held
    /// to what a plan could be: it ends with the log, and goes to sinks and by a rule that there are.
    pub async fn replay_start(
        &self,
        spec: ReplaySpec,
        mut planned: BTreeMap<String, u64>,
    ) -> Result<String, EngineError> {
        self.know(&spec)?;
        if spec.limit == Some(0) {
            planned.clear();
        }
        planned.keys().try_for_each(|sink| self.know_sink(sink))?;
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(failed)?;
        let id = format!("rp_{}", hex::encode(random));
        let begun = self.begin_replay(&id, spec, planned, Expected::Anything).await?;
        begun
            .map(|_| id)
            .ok_or_else(|| EngineError("another replay has the id that was made up for this one: try again".into()))
    }

    /// The same of one that is to be once, under this id, whichever node is first to start it; gives where it ends.
    pub async fn replay_start_once(
        &self,
        id: &str,
        spec: ReplaySpec,
        planned: BTreeMap<String, u64>,
    ) -> Result<Seq, EngineError> {
        if let Some(ends) = self.begin_replay(id, spec, planned, Expected::Nothing).await? {
            return Ok(ends);
        }
        if !self.inner.jobs.lock().contains_key(id) {
            self.follow_jobs().await;
        }
        let entry = self.inner.store.get(&format!("{JOBS}{id}")).await.map_err(failed)?;
        let entry = entry.ok_or_else(|| EngineError(format!("the replay {id} is gone, just after it was begun")))?;
        entry
            .json()
            .map(|record: JobRecord| record.spec.to)
            .map_err(EngineError)
    }

    /// Where it ends; `None`: it is expected to be new, and is not.
    async fn begin_replay(
        &self,
        id: &str,
        spec: ReplaySpec,
        planned: BTreeMap<String, u64>,
        expected: Expected,
    ) -> Result<Option<Seq>, EngineError> {
        let record = JobRecord {
            spec,
            planned,
            created_at: Timestamp::now(),
            running: true,
            forgotten: BTreeMap::new(),
        };
        let mut record = record.ending_by(*self.inner.log.head().borrow());
        // What was gone before it was asked for is nothing that it loses.
        record.spec.from = record.spec.from.max(self.inner.log.first());
        // Nobody carries it out before it is durable. It is known from now on: whether it is durable may not be known for a while.
        let job = Job::new(id, record.spec.clone(), false, self.inner.log.clone());
        let job = Arc::new(job.map_err(EngineError)?);
        match self.inner.jobs.lock().entry(id.to_owned()) {
            Entry::Occupied(_) => return Ok(None),
            Entry::Vacant(place) => {
                place.insert((job, record.clone()));
            }
        }
        // Also where whoever asked for it has gone meanwhile.
        let (engine, id) = (self.clone(), id.to_owned());
        let put = task::begin(async move { engine.put_begun(&id, record, expected).await });
        put.await.map_err(failed)?
    }

    /// Makes a replay durable that is to begin, and lets it go on; see [`Engine::begin_replay`].
    async fn put_begun(&self, id: &str, record: JobRecord, expected: Expected) -> Result<Option<Seq>, EngineError> {
        match self.put_job(id, &record, expected).await {
            Ok(()) => {}
            Err(StoreError::Conflict(_)) => {
                self.inner.jobs.lock().remove(id);
                return Ok(None);
            }
            Err(error) => {
                self.settle_begun(id, expected);
                return Err(EngineError(format!("the replay {id} could not be begun: {error}")));
            }
        }
        self.let_go_on(id).await;
        Ok(Some(record.spec.to))
    }

    /// Interrupts a replay or lets it go on; durable.
    pub async fn replay_set_running(&self, id: &str, running: bool) -> Result<(), EngineError> {
        let rules = self.rules();
        let (job, record) = {
            let jobs = self.inner.jobs.lock();
            let (job, record) = jobs.get(id).ok_or_else(|| {
                EngineError(format!(
                    "there is no replay {id}: `closehook replay list` shows those there are"
                ))
            })?;
            if let Some(rule) = record.spec.rule.as_deref().filter(|_| running)
                && rules.sinks_of(rule).is_none()
            {
                return Err(EngineError(format!(
                    "the replay {id} can't go on: there is no rule \"{rule}\" any more; it goes on where that is put back"
                )));
            }
            (job.clone(), record.clone())
        };
        if let Some(why) = self.inner.jobs.unclear(id) {
            return Err(EngineError(format!("the replay {id}: {why}")));
        }
        match self.change_job(id, |record| record.running = running).await {
            Ok(true) => {}
            Ok(false) => return Err(EngineError(format!("the replay {id} is gone"))),
            Err(error) => {
                // It may become durable later: what is so here is what is to be so there.
                self.settle_running(id);
                return Err(error);
            }
        }
        job.set_running(running);
        for sink in record.planned.keys() {
            // A sink that has left the configuration meanwhile gets nothing more.
            let _ = self.order(sink, Command::Replay(job.clone())).await;
        }
        Ok(())
    }

    /// Notes how far replays were at the sinks that are not configured any more.
    pub(super) async fn find_parted(&self) -> Result<(), EngineError> {
        let configured = lock(&self.inner.configured).clone();
        for key in self.record_keys().await? {
            let sink = key.trim_start_matches(RECORDS);
            if configured.contains(sink) {
                continue;
            }
            match self.whole_record(&key).await {
                Ok(Some((record, _))) => drop(lock(&self.inner.parted).insert(sink.to_owned(), record.replays)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(sink, %error, "how far replays were at a removed sink can't be read: they count as not made there");
                }
            }
        }
        Ok(())
    }

    /// A removed sink is about to be forgotten: what replays have still to send there is never sent. Durable before its position goes.
    pub(super) async fn part_for_good(&self, sink: &str) -> Result<(), EngineError> {
        let record = self.record(&record_key(sink)).await.map_err(EngineError)?;
        let mut had = record.map(|(record, _)| record.replays).unwrap_or_default();
        let concerned: Vec<String> = {
            let jobs = self.inner.jobs.lock();
            let concerned = jobs.iter().filter(|(_, (_, record))| record.is_for(sink));
            concerned.map(|(id, _)| id.clone()).collect()
        };
        for id in concerned {
            let part = had.remove(&id).unwrap_or_default();
            // What can't be stored is not so: the sink may still be put back.
            self.change_job(&id, |record| {
                drop(record.forgotten.insert(sink.to_owned(), part.clone()));
            })
            .await?;
        }
        lock(&self.inner.parted).remove(sink);
        Ok(())
    }
}

impl Engine {
    /// Forgets what is not kept any more when it is time, until the engine stops or is there no more.
    pub(super) fn forget_in_time(&self) {
        let (stop, inner) = (self.inner.stop.clone(), Arc::downgrade(&self.inner));
        task::begin(async move {
            while stop
                .run_until_cancelled(tokio::time::sleep(FORGET_EVERY))
                .await
                .is_some()
            {
                let Some(inner) = inner.upgrade() else { return };
                let engine = Engine { inner };
                match engine.inner.clock.at_least() {
                    Some(now) => engine.forget_what_is_old(now).await,
                    None => engine.note_mended().await,
                }
            }
        });
    }

    /// Forgets the positions of sinks that were removed too long ago, and replays.
    pub(super) async fn forget_what_is_old(&self, now: Timestamp) {
        self.note_mended().await;
        {
            // A reload may be about to bring one back.
            let _changing = self.inner.changing.lock().await;
            let configured = lock(&self.inner.configured).clone();
            self.forget_detached(now, &configured).await;
        }
        self.forget_old_replays(now).await;
    }

    /// Forgets replays that have come to their end, whatever that was, and were made too long ago. Sinks let go of them with their next
    /// save.
    pub(super) async fn forget_old_replays(&self, now: Timestamp) {
        let sinks = self.sinks_seen();
        let old: Vec<String> = {
            let jobs = self.inner.jobs.lock();
            let is_old = |(id, (_, record)): &(&String, &(Arc<Job>, JobRecord))| {
                now.duration_since(record.created_at) > KEPT && sinks.are_over(id, record)
            };
            jobs.iter().filter(is_old).map(|(id, _)| id.clone()).collect()
        };
        for id in old {
            let key = format!("{JOBS}{id}");
            let removed = match self.inner.mode {
                Mode::Follow => self.inner.store.remove(&key, Expected::Anything).await,
                // Nobody else writes.
                Mode::Jobs | Mode::Look | Mode::Outside => Ok(()),
            };
            match removed {
                Ok(()) => self.inner.jobs.drop_gone(&id),
                Err(error) => {
                    tracing::debug!(replay = id, %error, "an old replay can't be forgotten now; this is tried again");
                }
            }
        }
    }
}
