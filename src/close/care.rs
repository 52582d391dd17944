//! Looking after Close's side: are the subscriptions there and active (`subscriptions::health`), and does the log have what Close's
//! log has (`completeness`)?
//!
//! Three loops run beside the daemon and never in its way. One looks at the subscriptions and compares the logs; another carries
//! out the backfill a person has asked for; where several nodes share a log, one of them does both. The third follows what custom fields
//! are called, on every node: whoever renders has to know. Whatever fails at Close is said once, and tried again later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_retry::strategy::jitter;
use tokio_util::sync::CancellationToken;

use super::account::{Account, Policy};
use super::api::error::Error;
use super::fields;
use super::files;
use super::seen::Sightings;
use super::shared::{Copied, Shared};

/// After a failure it is tried again within this, or at the next regular time if that is sooner.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Comparisons out of turn, at the most.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked what others have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A stop waits so long for a token that was asked for, and for one to be written. Less than systemd gives a service to stop (90 s).
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// To write one there is so long at least.
const KEPT_WITHIN: Duration = Duration::from_secs(3);

/// A stop waits no longer than this in all: by then it has said what became of tokens.
pub const SETTLED_WITHIN: Duration = SETTLES_WITHIN.saturating_add(KEPT_WITHIN);

/// A look at Close's side is due after so many intervals, and not before this has gone by.
const OVERDUE_INTERVALS: u32 = 3;
const OVERDUE_MIN: Duration = Duration::from_secs(600);

/// Looks after Close's side until `stop`.
pub async fn supervise(account: Arc<Account>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = account.configured() => {}
    }
    let _caring = Caring::begin(&account);
    tokio::join!(look_after(&account, &stop), run_jobs(&account, &stop));
}

/// While it is there, somebody here looks after Close's side. What was seen then says nothing of later: another node may look by now.
struct Caring<'a>(&'a Account);

impl<'a> Caring<'a> {
    fn begin(account: &'a Account) -> Caring<'a> {
        account.seen().got_on();
        account.is_supervised.store(true, Ordering::Relaxed);
        Caring(account)
    }
}

impl Drop for Caring<'_> {
    fn drop(&mut self) {
        self.0.is_supervised.store(false, Ordering::Relaxed);
        *self.0.seen() = Sightings::default();
    }
}

/// Follows what custom fields are called, until `stop`. `at_once`: for a daemon; else, for a command that delivers without one, nothing is
/// fetched before a template asks for it.
pub async fn follow_fields(account: Arc<Account>, stop: CancellationToken, at_once: bool) {
    fields::follow(&account, &stop, at_once).await;
}

/// Follows what other nodes change, until `stop`.
pub async fn follow_shared(account: Arc<Account>, shared: Arc<Shared>, stop: CancellationToken) {
    tokio::join!(follow_changes(&account, &shared, &stop), recall_token(&account, &stop));
}

async fn follow_changes(account: &Account, shared: &Shared, stop: &CancellationToken) {
    let mut was_well = true;
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let looked = shared.look().await;
        let followed = match looked {
            Ok(changed) => account.reread(&changed).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &followed
            && was_well
        {
            tracing::warn!(%error, "what other nodes know of Close's side can't be followed now; this is tried again");
        }
        was_well = followed.is_ok();
    }
}

/// Has the OAuth token shared that an earlier process could not share. Also where another node looks after Close: without it, that one has no
/// good token. What it takes may not answer, and holds nothing else up.
async fn recall_token(account: &Account, stop: &CancellationToken) {
    let mut pause = LOOK_EVERY;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        match stop.run_until_cancelled(account.recall_token()).await {
            Some(Err(error)) => {
                tracing::debug!(%error, "an OAuth refresh token that was left here can't be shared yet");
            }
            Some(Ok(())) | None => return,
        }
        pause = (pause * 2).min(RETRY_AFTER);
    }
}

/// When Close's side is looked at, and the logs are compared.
struct Schedule {
    check_at: Instant,
    reconcile_at: Instant,
    /// When it was looked at, and when the logs were compared, where the next time is a regular one.
    checked: Option<Instant>,
    compared: Option<Instant>,
}

impl Schedule {
    /// Both at once: after a start there may be anything.
    fn begin() -> Schedule {
        let now = Instant::now();
        Schedule {
            check_at: now,
            reconcile_at: now,
            checked: None,
            compared: None,
        }
    }

    fn next(&self) -> Instant {
        self.check_at.min(self.reconcile_at)
    }

    /// When Close is tried again, where it could not be used; `None`: the next look is a regular one.
    fn tried_again_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.checked.is_some() {
            return None;
        }
        let wait = self.check_at.saturating_duration_since(Instant::now());
        now.checked_add(wait).ok()
    }

    /// The logs are to be compared then, whatever the interval.
    fn compare_at(&mut self, at: Instant) {
        self.reconcile_at = at;
        self.compared = None;
    }

    /// A look has ended. `has_compared`: the logs are compared.
    fn ended(&mut self, policy: &Policy, is_well: bool, has_compared: bool) {
        let now = Instant::now();
        self.checked = is_well.then_some(now);
        let soon = jitter(RETRY_AFTER).max(RETRY_AFTER / 4);
        self.check_at = now
            + if is_well {
                policy.health_every
            } else {
                policy.health_every.min(soon)
            };
        if has_compared {
            self.reconcile_at = now + policy.reconcile_every;
            self.compared = Some(now);
        } else if !is_well {
            self.reconcile_at = self.reconcile_at.max(self.check_at);
        }
    }

    /// The intervals may be others: what was done by the old ones is next due by these, as if they had been in force then. What is to be tried
    /// again, or was asked for, stays where it is, or comes sooner.
    fn follow(&mut self, policy: &Policy) {
        let now = Instant::now();
        self.check_at = match self.checked {
            Some(at) => at + policy.health_every,
            None => self.check_at.min(now + policy.health_every),
        };
        self.reconcile_at = match self.compared {
            Some(at) if self.checked.is_some() => at + policy.reconcile_every,
            // Not before Close is tried again.
            Some(at) => (at + policy.reconcile_every).max(self.check_at),
            None => self.reconcile_at.min(now + policy.reconcile_every),
        };
    }
}

async fn look_after(account: &Account, stop: &CancellationToken) {
    let mut schedule = Schedule::begin();
    let mut looked_at: Option<Instant> = None;
    // After a start there may be a gap right up to now; while all is well, what is young comes by itself.
    let mut up_to_now = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(schedule.next()) => {}
            () = account.reconcile_now.notified() => {
                // Whatever asks for it again and again does not get it more often than this.
                schedule.compare_at(looked_at.map_or_else(Instant::now, |before| before + ASKED_EVERY));
                up_to_now = true;
                continue;
            }
            () = account.policy_changed.notified() => {
                schedule.follow(&account.policy());
                account.seen().tried_again_at = schedule.tried_again_at(account.now());
                continue;
            }
        }
        let now = Instant::now();
        looked_at = Some(now);
        account.begins_to_look();
        if account.store.check_marks().is_err() {
            // Nothing could be noted of it; which is said of the file, and is no fault of Close's side.
            schedule.compare_at(now + account.policy().reconcile_every);
        }
        let compare = (schedule.reconcile_at <= now).then_some(up_to_now);
        let (checked, compared) = tokio::select! {
            () = stop.cancelled() => return,
            result = account.look(compare) => result,
        };
        let has_compared = compared == Ok(true);
        let is_well = account.note(checked.and(compared.map(drop)));
        schedule.ended(&account.policy(), is_well, has_compared);
        account.seen().tried_again_at = schedule.tried_again_at(account.now());
        up_to_now &= !has_compared;
    }
}

async fn run_jobs(account: &Account, stop: &CancellationToken) {
    loop {
        let changed = account.job_changed.notified();
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = account.run_job() => result,
        };
        let again = match result {
            Ok(()) | Err(Error::Interrupted) => None,
            Err(error) => {
                account.note_job(&error).await;
                Some(jitter(RETRY_AFTER).max(RETRY_AFTER / 4))
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = async { tokio::time::sleep(again.unwrap_or_default()).await }, if again.is_some() => {}
        }
    }
}

impl Account {
    fn begins_to_look(&self) {
        let mut seen = self.seen();
        seen.got_on();
        seen.tried_again_at = None;
    }

    /// A look at the subscriptions and then, where `compare` says so, at the logs ([`Account::reconcile`]). What came of each;
    /// whether the logs were compared.
    async fn look(&self, compare: Option<bool>) -> (Result<(), Error>, Result<bool, Error>) {
        self.looks.of(Box::pin(self.look_now(compare))).await
    }

    async fn look_now(&self, compare: Option<bool>) -> (Result<(), Error>, Result<bool, Error>) {
        let checked = self.check().await;
        // Whoever may not see or change subscriptions may still read the event log.
        let is_there = checked.as_ref().err().is_none_or(|error| !error.is_transient());
        let compared = match compare.filter(|_| is_there) {
            Some(up_to_now) => self.reconcile(up_to_now).await.map(|()| true),
            None => Ok(false),
        };
        (checked, compared)
    }

    /// One look at Close's side, as the daemon takes it again and again. `up_to_now`: what is so young that it may still be
    /// delivered is fetched too.
    pub async fn look_once(&self, up_to_now: bool) -> Result<(), Error> {
        let (checked, compared) = self.look(Some(up_to_now)).await;
        let result = checked.and(compared.map(drop));
        self.note(result.clone());
        result
    }

    /// Says how it went where that is news. Whether it went well.
    fn note(&self, result: Result<(), Error>) -> bool {
        let trouble = result.err();
        let before = {
            let mut seen = self.seen();
            seen.got_on();
            std::mem::replace(&mut seen.trouble, trouble.clone())
        };
        match (&before, &trouble) {
            (before, Some(trouble)) if before.as_ref().is_none_or(|before| !before.is_like(trouble)) => {
                tracing::warn!("{trouble}; receiving and delivering go on, and it is tried again later");
            }
            (Some(_), None) => tracing::info!("Close's side is in order again"),
            _ => {}
        }
        trouble.is_none()
    }

    /// For how long a look has not got on, or none has begun, although this node looks after Close's side and Close lets it; `None`: all
    /// goes its way.
    pub(super) fn overdue(&self, seen: &Sightings) -> Option<Duration> {
        let is_ours = self.is_supervised.load(Ordering::Relaxed) && self.is_configured();
        let due = self
            .policy()
            .health_every
            .saturating_mul(OVERDUE_INTERVALS)
            .max(OVERDUE_MIN);
        let got_on_at = seen.got_on_at.filter(|_| is_ours)?;
        // A look that waits for Close's rate limit gets on when Close lets it; that a backfill waits for it is no excuse.
        if self.looks.waits() {
            return None;
        }
        let let_go_at = self.looks.let_go_at();
        let waits = let_go_at.map_or(got_on_at, |at| at.max(got_on_at)).elapsed();
        (waits > due).then_some(waits)
    }

    async fn note_job(&self, error: &Error) {
        let (trouble, now) = (error.to_string(), self.now());
        let before = self.job().and_then(|job| job.trouble);
        if before.as_ref() != Some(&trouble) {
            tracing::warn!("the backfill can't go on: {trouble}; it is tried again later");
        }
        let noted = self
            .store
            .change_marks(move |marks| {
                if let Some(job) = &mut marks.job {
                    (job.trouble, job.troubled_at) = (Some(trouble), Some(now));
                }
            })
            .await;
        match noted {
            Ok(()) => self.seen().job_troubled = true,
            Err(error) => tracing::debug!(%error, "the backfill's trouble can't be noted"),
        }
    }

    /// Has the OAuth token shared that an earlier process could not share, if there is one.
    async fn recall_token(&self) -> Result<(), Error> {
        let path = files::unsaved_path(&self.store.oauth_path());
        let looked = files::blocking(move || {
            let is_there = path.try_exists();
            is_there.map_err(|error| Error::Local(format!("{} can't be read: {error}", path.display())))
        });
        if !looked.await? {
            return Ok(());
        }
        let client = self.any_client().await?;
        let kept = tokio::time::timeout(SETTLES_WITHIN, client.keep_token()).await;
        kept.unwrap_or_else(|_| Err(Error::Local("it does not end".to_owned())))
    }

    /// Waits until no OAuth token is being refreshed: what such a request answers is the only token that is good, and must not go
    /// with the process. No other one begins. One that could not be written is tried a last time. It gives up after 20 s, or a little more, and
    /// says so.
    pub async fn settle(&self) {
        let refreshes = self.store.refreshes();
        refreshes.close();
        let until = Instant::now() + SETTLES_WITHIN;
        if tokio::time::timeout_at(until, refreshes.wait()).await.is_err() {
            tracing::error!(
                "Close has not answered to the refresh of its OAuth token within {} s: if the answer is lost, the app has to be authorized again",
                SETTLES_WITHIN.as_secs()
            );
        }
        let Some(client) = self.connection.client() else {
            return;
        };
        let until = until.max(Instant::now() + KEPT_WITHIN);
        let kept = tokio::time::timeout_at(until, client.keep_token()).await;
        if matches!(kept, Ok(Ok(()))) {
            return;
        }
        if self.store.unsaved().why().is_some() {
            tracing::error!(
                "the newest OAuth refresh token could not be written up to the stop: unless close/oauth.unsaved.json has it, the app has to be authorized again"
            );
        } else {
            tracing::warn!(
                "it is not known whether close/oauth.unsaved.json has an OAuth refresh token that the other nodes have not: if it has, it is shared with the next start"
            );
        }
    }

    /// Takes over what another node has changed up to now, where there are others.
    pub async fn catch_up(&self) -> Result<(), Error> {
        let Some(shared) = self.store.shared() else {
            return Ok(());
        };
        let changed = shared.look().await?;
        self.reread(&changed).await
    }

    /// Takes over files that another node has changed.
    async fn reread(&self, copied: &Copied) -> Result<(), Error> {
        let reread = self.store.reread(copied).await;
        // Keys that were taken over are not looked at again, whatever became of the other files.
        if copied.contains_key("keys.json") {
            self.refresh_verifier()?;
        }
        reread
    }
}

#[cfg(test)]
mod tests;
