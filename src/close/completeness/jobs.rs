//! Backfills that a person has asked for: begun, carried out by whoever is there, stopped and gone on with.
//!
//! A backfill fetches what the rules want while it runs. Where they have come to want other events since it was begun, it begins
//! anew. What it can vouch for is kept with it ([`Covered`]), and belongs to the claim once it reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::backfill::{Intake, Wanted};
use super::marks::{Ask, BackfillJob, Counts, Covered, FetchedAt, JobState, Spec};
use super::walk::{Walk, Window};
use crate::close::account::{Account, Policy};
use crate::close::api::client::Client;
use crate::close::api::error::Error;

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

/// How a run over the range has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All of it is stored.
    Done,
    /// The rules want other events now.
    Superseded,
}

impl Account {
    /// What a backfill would store, step by step; nothing is stored. `progress` hears how much of the range is done.
    pub async fn rehearse(&self, ask: Ask, mut progress: impl FnMut(f64, Counts)) -> Result<(Spec, Counts), Error> {
        let (client, spec) = self.spec(ask).await?;
        let policy = self.policy();
        let wanted = Wanted::asked(policy.scope.clone(), &spec)?;
        let job = BackfillJob::new(spec.clone(), scope_of(&policy), self.now());
        let mut counts = Counts::default();
        let range = Window {
            from: spec.since,
            to: spec.until,
        };
        let completes = self.store.marks().withheld.is_some();
        let mut intake = Intake::new(&*self.log, &*client, &wanted, completes);
        let mut walk = Walk::new(&*client, wanted.queries(), range);
        while let Some(batch) = walk.next().await? {
            self.vouch_for(&batch.events)?;
            let taken = intake.take(batch.events).await?;
            counts.add(taken.rehearse(&*self.log).await?);
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
        let client = self.client_on_time().await?;
        let spec = ask.at(client.now());
        if spec.since >= spec.until {
            return Err(Error::Missing(format!(
                "nothing lies between {} and {}: since has to be the earlier one",
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

    /// What a backfill is about, for people.
    pub fn scope(&self) -> String {
        self.policy().scope.describe()
    }

    /// Begins a backfill; [`Account::run_job`] carries it out. An interrupted one is forgotten for it.
    pub async fn begin_job(&self, ask: Ask) -> Result<(), Error> {
        self.store.check_marks()?;
        let (_, spec) = self.spec(ask).await?;
        // One that failed or was killed is in nobody's way: only what is at work, or about to be.
        let is_at_work = self.is_at_work.load(Ordering::Relaxed);
        let is_begun = |job: &BackfillJob| job.state == JobState::Running && job.trouble.is_none();
        if is_at_work || self.is_supervised.load(Ordering::Relaxed) && self.job().as_ref().is_some_and(is_begun) {
            return Err(Error::Missing(
                "a backfill is running already: stop it first, or wait until it is over".into(),
            ));
        }
        let job = BackfillJob::new(spec, scope_of(&self.policy()), self.now());
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
                    job.gets_on();
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
        let is_running = |job: &BackfillJob| job.state == JobState::Running;
        let _at_work = AtWork::begin(&self.is_at_work);
        while let Some(job) = self.job().filter(is_running) {
            if self.run_through(job).await? == Ended::Done {
                break;
            }
        }
        self.count_withheld().await
    }

    async fn run_through(&self, job: BackfillJob) -> Result<Ended, Error> {
        let client = self.client_on_time().await?;
        let policy = self.policy();
        let job = self.take_up(job, &policy).await?;
        let wanted = Wanted::asked(policy.scope.clone(), &job.spec)?;
        let completes = self.store.marks().withheld.is_some();
        let mut intake = Intake::new(&*self.log, &*client, &wanted, completes);
        let begun = client.now();
        let range = Window {
            from: job.resumes_at(),
            to: job.spec.until,
        };
        let mut reached = range.from;
        let mut walk = Walk::new(&*client, wanted.queries(), range);
        while let Some(batch) = walk.next().await? {
            let added = self.take_in(&mut intake, batch.events, Timestamp::MIN).await?;
            let at = FetchedAt::new(begun, client.now(), policy.overlap);
            self.save_progress(reached, batch.done_to, at, added.counts).await?;
            reached = batch.done_to;
            if self.job().is_none_or(|job| job.state != JobState::Running) {
                return Err(Error::Interrupted);
            }
            if self.policy().scope.id() != job.scope_id {
                return Ok(Ended::Superseded);
            }
        }
        let now = self.now();
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.state = JobState::Done;
                    job.ended_at = Some(now);
                    job.gets_on();
                }
                marks.join_job();
            })
            .await?;
        Ok(Ended::Done)
    }

    /// Goes on with a backfill, or begins it anew where it was for other events than the rules want now.
    async fn take_up(&self, mut job: BackfillJob, policy: &Policy) -> Result<BackfillJob, Error> {
        let scope = scope_of(policy);
        if job.scope_id == scope.1 {
            return Ok(job);
        }
        if job.done_to > job.spec.since {
            tracing::warn!(
                before = job.scope,
                now = scope.0,
                "the rules want other events than when the backfill was begun: it begins anew"
            );
        }
        job.begin_anew(scope.clone());
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.begin_anew(scope);
                }
            })
            .await?;
        Ok(job)
    }

    async fn save_progress(&self, from: Timestamp, to: Timestamp, at: FetchedAt, counts: Counts) -> Result<(), Error> {
        self.store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    job.covered = Covered::with(job.covered, from, to, &at);
                    job.done_to = job.done_to.max(to);
                    job.counts.add(counts);
                    job.gets_on();
                }
            })
            .await
    }
}

/// A scope for people, and what tells it from others.
fn scope_of(policy: &Policy) -> (String, String) {
    (policy.scope.describe(), policy.scope.id())
}
