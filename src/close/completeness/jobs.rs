//! Backfills that a person has asked for: begun, carried out by whoever is there, stopped and gone on with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::backfill::{self, Wanted};
use super::marks::{self, Ask, BackfillJob, Complete, Counts, JobState, Spec};
use super::walk::Walk;
use crate::close::account::Account;
use crate::close::api::client::Client;
use crate::close::api::error::Error;
use crate::event::Seq;

/// Set while it lives, however it ends.
struct AtWork<'f>(&'f AtomicBool);

impl<'f> AtWork<'f> {
    fn begin(flag: &'f AtomicBool) -> AtWork<'f> {
        flag.store(true, Ordering::Relaxed);
        AtWork(flag)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Account {
    /// What a backfill would store, step by step; nothing is stored. `progress` hears how much of the range is done.
    pub async fn rehearse(&self, ask: Ask, mut progress: impl FnMut(f64, Counts)) -> Result<(Spec, Counts), Error> {
        let (client, spec) = self.spec(ask).await?;
        let wanted = Wanted::asked(self.policy().scope.clone(), &spec)?;
        let job = BackfillJob::new(spec.clone(), Timestamp::now());
        let mut counts = Counts::default();
        let mut walk = Walk::new(&*client, wanted.queries(), backfill::rest(&job));
        while let Some(batch) = walk.next().await? {
            counts.add(backfill::rehearse(&*self.log, &wanted, batch.events, client.now()).await?);
            let done = BackfillJob {
                done_to: batch.done_to,
                ..job.clone()
            };
            progress(done.fraction(), counts);
        }
        Ok((spec, counts))
    }

    /// What was asked for, by Close's clock; asks Close, so a key that is not good is found out at once.
    async fn spec(&self, ask: Ask) -> Result<(Arc<Client>, Spec), Error> {
        let client = self.client()?;
        client.organization().await?;
        let spec = ask.at(client.now());
        if spec.since >= spec.until {
            return Err(Error::Missing(format!(
                "nothing lies between {} and {}: --since must be the earlier one",
                spec.since, spec.until
            )));
        }
        let wanted = Wanted::asked(self.policy().scope.clone(), &spec)?;
        if wanted.queries().is_empty() {
            return Err(Error::Missing(format!(
                "no rule wants events of type {}: see `events` in [[rules]]",
                spec.types.join(", ")
            )));
        }
        Ok((client, spec))
    }

    /// Begins a backfill; [`Account::run_job`] carries it out. An interrupted one is forgotten for it.
    pub async fn begin_job(&self, ask: Ask) -> Result<(), Error> {
        let (_, spec) = self.spec(ask).await?;
        // One that failed or was killed is in nobody's way: only what is at work, or about to be.
        let is_at_work = self.is_at_work.load(Ordering::Relaxed);
        let is_begun = |job: &BackfillJob| job.state == JobState::Running && job.trouble.is_none();
        if is_at_work || self.is_supervised.load(Ordering::Relaxed) && self.job().as_ref().is_some_and(is_begun) {
            return Err(Error::Missing(
                "a backfill is running already: watch it with `closehook backfill --resume`, or stop that with Ctrl-C"
                    .into(),
            ));
        }
        let job = BackfillJob::new(spec, Timestamp::now());
        self.store.change_marks(move |marks| marks.job = Some(job)).await?;
        self.job_changed.notify_waiters();
        Ok(())
    }

    /// Stops the backfill, or lets it go on.
    pub async fn set_job_running(&self, running: bool) -> Result<(), Error> {
        let job = self.job().filter(|job| job.state != JobState::Done);
        if job.is_none() {
            return Err(Error::Missing(
                "there is no unfinished backfill: begin one with `closehook backfill`".into(),
            ));
        }
        let state = if running {
            JobState::Running
        } else {
            JobState::Interrupted
        };
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.state = state;
                    job.trouble = None;
                }
            })
            .await?;
        self.job_changed.notify_waiters();
        Ok(())
    }

    /// The newest backfill.
    pub fn job(&self) -> Option<BackfillJob> {
        self.store.marks().job
    }

    /// Carries the backfill out from where it stands, until it is done, stopped or fails.
    pub async fn run_job(&self) -> Result<(), Error> {
        let Some(job) = self.job().filter(|job| job.state == JobState::Running) else {
            return Ok(());
        };
        let _at_work = AtWork::begin(&self.is_at_work);
        let client = self.client()?;
        let scope = self.policy().scope.clone();
        let wanted = Wanted::asked(scope.clone(), &job.spec)?;
        let mut walk = Walk::new(&*client, wanted.queries(), backfill::rest(&job));
        while let Some(batch) = walk.next().await? {
            let added = backfill::store(&*self.log, &wanted, batch.events, client.now(), Timestamp::MIN).await?;
            self.count_parts(added.parts).await?;
            if self.save_progress(batch.done_to, added.counts).await? {
                return Err(Error::Interrupted);
            }
        }
        // Whoever asks for more than Close keeps gets no claim for it.
        let kept_from = job.begun_at.saturating_sub(marks::KEPT).unwrap_or(job.begun_at);
        let kept_from = kept_from.saturating_add(client.clock_offset()).unwrap_or(kept_from);
        let unrestricted = job.spec.types.is_empty() && job.spec.lead.is_none();
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.state = JobState::Done;
                    job.trouble = None;
                }
                let joins = |complete: &Complete| complete.scope_id == scope.id() && job.spec.until >= complete.from;
                if unrestricted && let Some(complete) = marks.complete.as_mut().filter(|complete| joins(complete)) {
                    complete.from = complete.from.min(job.spec.since.max(kept_from));
                }
            })
            .await
    }

    async fn save_progress(&self, done_to: Timestamp, counts: Counts) -> Result<bool, Error> {
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.done_to = job.done_to.max(done_to);
                    job.counts.add(counts);
                    job.trouble = None;
                }
            })
            .await?;
        Ok(self.job().is_none_or(|job| job.state != JobState::Running))
    }

    /// Remembers where events without their data are, so that `partial = "dispatch"` can release them.
    pub(in crate::close) async fn count_parts(&self, parts: Option<(Seq, Seq)>) -> Result<(), Error> {
        let Some((first, last)) = parts else { return Ok(()) };
        self.store
            .change_marks(move |marks| {
                let (from, _) = marks.held.unwrap_or((first, last));
                marks.held = Some((from, last));
            })
            .await
    }

    /// Where events are that were held back for their missing data; `None` where there are none.
    pub fn held_parts(&self) -> Option<(Seq, Seq)> {
        self.store.marks().held
    }

    /// They are released.
    pub async fn forget_held_parts(&self) -> Result<(), Error> {
        self.store.change_marks(|marks| marks.held = None).await
    }
}
