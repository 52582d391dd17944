//! Our account at Close: one client, one memory of what was made there, and what people may ask about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::backfill::{self, Ask, Counts, Job, JobState, Spec, Wanted};
use super::client::{Auth, Client};
use super::error::Error;
use super::health::Resumed;
use super::heard::Heard;
use super::oauth::OAuth;
use super::plan::{Ours, Plan, Scope, Standing, plan};
use super::store::{self, Complete, Store};
use super::subscriptions::Subscription;
use super::walk::{Walk, eta};
use crate::config::{self, Config, Credentials};
use crate::event::Seq;
use crate::ingress::verify::Verifier;
use crate::log::Log;
use crate::rules::RuleSet;

/// What the configuration wants at Close; changes with a reload.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Which events.
    pub scope: Scope,
    /// Where they are to be delivered.
    pub url: Option<String>,
    /// The configured subscriptions' ids.
    pub configured: Vec<Option<String>>,
    /// Whether paused subscriptions are resumed.
    pub auto_resume: bool,
    /// How often subscriptions are looked at.
    pub health_every: Duration,
    /// How often logs are compared.
    pub reconcile_every: Duration,
    /// How much is compared again.
    pub overlap: SignedDuration,
}

impl Policy {
    /// What a configuration says.
    pub fn of(config: &Config, rules: &RuleSet) -> Policy {
        let close = &config.close;
        Policy {
            scope: Scope::of(rules, close.push_down),
            url: config.server.public_url.clone(),
            configured: close
                .subscriptions
                .iter()
                .map(|subscription| subscription.id.clone())
                .collect(),
            auto_resume: close.auto_resume,
            health_every: close.health.interval.0,
            reconcile_every: close.reconcile.interval.0,
            overlap: SignedDuration::try_from(close.reconcile.overlap.0).unwrap_or(SignedDuration::MAX),
        }
    }

    fn with_ours<T>(&self, store: &Store, work: impl FnOnce(&Ours<'_>) -> T) -> T {
        work(&Ours {
            keys: &store.keys(),
            configured: &self.configured,
            url: self.url.as_deref(),
        })
    }

    fn plan(&self, store: &Store, close_has: &[Subscription]) -> Result<Plan, Error> {
        self.with_ours(store, |ours| plan(&self.scope, ours, close_has))
    }
}

/// One of our subscriptions, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    pub id: String,
    /// Where it delivers; `None` where Close does not have it.
    pub url: Option<String>,
    pub state: Condition,
    /// Why Close has paused it, in its own word.
    pub pause_reason: Option<String>,
    /// What its deliveries fail of at Close.
    pub latest_error: Option<String>,
    /// What Close counts of it, in its own words.
    pub counters: Option<Value>,
    /// Whether Close checks the certificate of its URL.
    pub verify_ssl: Option<bool>,
    /// Why it can't be made active again.
    pub trouble: Option<String>,
}

impl Found {
    /// One that Close does not have.
    pub fn missing(id: String) -> Found {
        Found {
            id,
            url: None,
            state: Condition::Missing,
            pause_reason: None,
            latest_error: None,
            counters: None,
            verify_ssl: None,
            trouble: None,
        }
    }

    /// Whether it is the same news.
    pub fn is_like(&self, other: &Found) -> bool {
        let news = |one: &Found| (one.id.clone(), one.state, one.pause_reason.clone(), one.trouble.clone());
        news(self) == news(other)
    }
}

/// How a subscription does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Condition {
    Active,
    /// Close has paused it.
    Paused,
    /// Paused by a person, who knows why.
    PausedByHand,
    /// Close says that it has not paused it, and neither have we.
    PausedBySomebody,
    /// Paused for its successor, until that has delivered.
    BeingReplaced,
    /// Close does not have it.
    Missing,
    /// Delivers to another URL than the configuration names.
    Elsewhere,
    /// Delivers here, but its key is not known.
    Keyless,
}

/// Close delivers nothing although there is something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Silence {
    /// When the last delivery came.
    pub last_delivery: Option<Timestamp>,
    /// `date_updated` of the newest event that was not delivered.
    pub newest_event: Timestamp,
}

/// What the last looks at Close have shown.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub found: Vec<Found>,
    /// Every subscription that was ever among them: its metric must not stay at what it was last.
    pub ever: BTreeSet<String>,
    pub checked_at: Option<Timestamp>,
    pub reconciled_at: Option<Timestamp>,
    pub silence: Option<Silence>,
    /// Why Close can't be used just now.
    pub trouble: Option<Error>,
    /// When subscriptions were made active again.
    pub resumed: BTreeMap<String, Resumed>,
    /// Up to here the log was searched for a delivery of the new subscription of a rotation.
    pub searched_to: Seq,
}

/// How Close's side does, in a few numbers.
#[derive(Debug, Clone)]
pub struct Health {
    /// The last look went well.
    pub reachable: bool,
    /// See `status`.
    pub silent: bool,
    /// A backfill is under way.
    pub backfilling: bool,
    /// The completeness mark; `None` before the first comparison.
    pub complete_upto: Option<Timestamp>,
    /// Each of our subscriptions: whether it is active and points here.
    pub active: BTreeMap<String, bool>,
}

/// Our account at Close.
#[derive(Debug)]
pub struct Account {
    policy: ArcSwap<Policy>,
    settings: ArcSwap<config::Close>,
    /// Made when it is first needed, and anew when the credentials have changed.
    client: Mutex<Option<Arc<Client>>>,
    /// There may be credentials where there were none.
    credentials_changed: Notify,
    pub(super) store: Arc<Store>,
    pub(super) log: Arc<dyn Log>,
    pub(super) verifier: Arc<ArcSwap<Verifier>>,
    seen: Mutex<Seen>,
    heard: Arc<Heard>,
    /// One change of subscriptions at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// There may be something to fetch.
    pub(super) reconcile_now: Notify,
    /// The job has changed.
    pub(super) job_changed: Notify,
    pub(super) started_at: Timestamp,
    /// Somebody carries out whatever backfill is begun.
    pub(super) is_supervised: AtomicBool,
    /// A backfill is being carried out just now.
    is_at_work: AtomicBool,
}

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

/// Resolves the credentials; contacts nobody.
fn connect(settings: &config::Close, oauth_path: PathBuf) -> Result<Client, Error> {
    let auth = match settings.credentials.as_ref().ok_or(Error::NotConfigured)? {
        Credentials::ApiKey(secret) => Auth::ApiKey(secret.resolve().map_err(Error::Credential)?),
        Credentials::OAuth(oauth) => Auth::OAuth(OAuth::new(
            oauth.client_id.clone(),
            oauth.client_secret.resolve().map_err(Error::Credential)?,
            oauth.refresh_token.resolve().map_err(Error::Credential)?,
            oauth_path,
        )),
    };
    Client::new(settings.base_url.clone(), auth)
}

/// Asks Close who we are: for `check --probe`, which needs no data directory.
pub async fn probe(config: &Config) -> Result<String, Error> {
    let client = connect(&config.close, store::oauth_path(&config.log.dir))?;
    let organization = client.organization().await?;
    let offset = client.clock_offset();
    if offset.abs() > SignedDuration::from_secs(60) {
        return Ok(format!(
            "Close answers for {organization}; this machine's clock is {} s off Close's: set it right",
            -offset.as_secs()
        ));
    }
    Ok(format!("Close answers for {organization}"))
}

/// What `apply` would do under a configuration that no daemon runs with. Asks Close, changes nothing, and needs no log.
pub async fn preview(config: &Config) -> Result<Plan, Error> {
    let names: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    let rules = RuleSet::compile(&config.rules, &names).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Error::Missing(faults.join("; "))
    })?;
    let store = Store::open(&config.log.dir, true);
    store.check()?;
    let client = connect(&config.close, store.oauth_path())?;
    let close_has = client.subscriptions().await?;
    let policy = Policy::of(config, &rules);
    policy.plan(&store, &close_has)
}

impl Account {
    /// Reads what is kept about it; contacts nobody and needs no secret. `read_only`: writes nothing either.
    pub fn open(
        config: &Config,
        rules: &RuleSet,
        log: Arc<dyn Log>,
        verifier: Arc<ArcSwap<Verifier>>,
        read_only: bool,
    ) -> Account {
        Account {
            policy: ArcSwap::from_pointee(Policy::of(config, rules)),
            settings: ArcSwap::from_pointee(config.close.clone()),
            client: Mutex::default(),
            credentials_changed: Notify::new(),
            store: Arc::new(Store::open(&config.log.dir, read_only)),
            log,
            verifier,
            seen: Mutex::default(),
            heard: Arc::default(),
            changing: tokio::sync::Mutex::default(),
            reconcile_now: Notify::new(),
            job_changed: Notify::new(),
            started_at: Timestamp::now(),
            is_supervised: AtomicBool::new(false),
            is_at_work: AtomicBool::new(false),
        }
    }

    /// Whether there are credentials.
    pub fn is_configured(&self) -> bool {
        self.settings.load().credentials.is_some()
    }

    /// What is wanted at Close now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// The configuration was reloaded: what it wants and whose credentials it names count from the next request on. What is
    /// under way ends with the ones it began with.
    pub fn reconfigure(&self, config: &Config, rules: &RuleSet) {
        self.policy.store(Arc::new(Policy::of(config, rules)));
        self.settings.store(Arc::new(config.close.clone()));
        let mut client = self.client_cell();
        if client.as_ref().is_some_and(|client| !client.is_for(&config.close)) {
            *client = None;
            self.reconcile_now.notify_one();
        }
        self.credentials_changed.notify_one();
    }

    /// Waits until there are credentials.
    pub(super) async fn configured(&self) {
        while !self.is_configured() {
            self.credentials_changed.notified().await;
        }
    }

    fn client_cell(&self) -> MutexGuard<'_, Option<Arc<Client>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the listener says whose deliveries were duplicates.
    pub fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// The client; its secrets are resolved when it is first needed.
    pub(super) fn client(&self) -> Result<Arc<Client>, Error> {
        let mut cell = self.client_cell();
        if let Some(client) = &*cell {
            return Ok(client.clone());
        }
        let client = Arc::new(connect(&self.settings.load(), self.store.oauth_path())?);
        *cell = Some(client.clone());
        Ok(client)
    }

    /// What tells our subscriptions from others', handed to `work`.
    pub(super) fn with_ours<T>(&self, work: impl FnOnce(&Ours<'_>) -> T) -> T {
        self.policy().with_ours(&self.store, work)
    }

    /// Every subscription of the organization, and how it stands to us.
    pub async fn subscriptions(&self) -> Result<Vec<(Subscription, Standing)>, Error> {
        let subscriptions = self.client()?.subscriptions().await?;
        Ok(self.with_ours(|ours| {
            subscriptions
                .into_iter()
                .map(|subscription| {
                    let standing = ours.standing(&subscription);
                    (subscription, standing)
                })
                .collect()
        }))
    }

    /// One subscription, as Close shows it.
    pub async fn subscription(&self, id: &str) -> Result<Value, Error> {
        self.client()?.subscription(id).await
    }

    /// What `apply` would do.
    pub async fn plan(&self) -> Result<Plan, Error> {
        let close_has = self.client()?.subscriptions().await?;
        self.plan_for(&close_has)
    }

    pub(super) fn plan_for(&self, close_has: &[Subscription]) -> Result<Plan, Error> {
        self.store.check()?;
        self.policy().plan(&self.store, close_has)
    }

    /// What a backfill would store, step by step; nothing is stored. `progress` hears how much of the range is done.
    pub async fn rehearse(&self, ask: Ask, mut progress: impl FnMut(f64, Counts)) -> Result<(Spec, Counts), Error> {
        let (client, spec) = self.spec(ask).await?;
        let wanted = Wanted::asked(self.policy().scope.clone(), &spec)?;
        let job = Job::new(spec.clone(), Timestamp::now());
        let mut counts = Counts::default();
        let mut walk = Walk::new(&*client, wanted.queries(), backfill::rest(&job));
        while let Some(batch) = walk.next().await? {
            counts.add(backfill::rehearse(&*self.log, &wanted, batch.events, client.now()).await?);
            let done = Job {
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

    /// What a backfill is about, for people.
    pub fn scope(&self) -> String {
        self.policy().scope.describe()
    }

    /// Begins a backfill; [`Account::run_job`] carries it out. An interrupted one is forgotten for it.
    pub async fn begin_job(&self, ask: Ask) -> Result<(), Error> {
        let (_, spec) = self.spec(ask).await?;
        // One that failed or was killed is in nobody's way: only what is at work, or about to be.
        let is_at_work = self.is_at_work.load(Ordering::Relaxed);
        let is_begun = |job: &Job| job.state == JobState::Running && job.trouble.is_none();
        if is_at_work || self.is_supervised.load(Ordering::Relaxed) && self.job().as_ref().is_some_and(is_begun) {
            return Err(Error::Missing(
                "a backfill is running already: watch it with `closehook backfill --resume`, or stop that with Ctrl-C"
                    .into(),
            ));
        }
        let job = Job::new(spec, Timestamp::now());
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
    pub fn job(&self) -> Option<Job> {
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
        let kept_from = job.begun_at.saturating_sub(backfill::KEPT).unwrap_or(job.begun_at);
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
    pub(super) async fn count_parts(&self, parts: Option<(Seq, Seq)>) -> Result<(), Error> {
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

    /// The newest backfill with its pace, for people who watch it.
    pub fn job_status(&self) -> Option<Value> {
        let job = self.job()?;
        let elapsed = Duration::try_from(Timestamp::now().duration_since(job.begun_at)).unwrap_or_default();
        let left = (job.state == JobState::Running)
            .then(|| eta(elapsed, job.fraction()))
            .flatten();
        let mut value = json!(job);
        value["fraction"] = json!(job.fraction());
        value["eta_seconds"] = json!(left.map(|left| left.as_secs()));
        Some(value)
    }

    /// For `status` and metrics.
    pub fn status(&self) -> Value {
        let marks = self.store.marks();
        let keys = self.store.keys();
        let seen = self.seen();
        json!({
            "configured": self.is_configured(),
            "trouble": seen.trouble.as_ref().map(ToString::to_string),
            "checked_at": seen.checked_at,
            "reconciled_at": seen.reconciled_at,
            "subscriptions": seen.found,
            "silence": seen.silence,
            "complete": marks.complete,
            "backfill": marks.job.is_some_and(|job| job.state != JobState::Done).then(|| self.job_status()),
            "rotation": keys.rotation.map(|rotation| json!({ "old": rotation.old, "new": rotation.new, "begun_at": rotation.begun_at })),
        })
    }

    /// For metrics.
    pub fn health(&self) -> Health {
        let marks = self.store.marks();
        let seen = self.seen();
        let is_active = |id: &String| {
            seen.found
                .iter()
                .any(|found| found.id == *id && found.state == Condition::Active)
        };
        Health {
            reachable: seen.trouble.is_none() && seen.checked_at.is_some(),
            silent: seen.silence.is_some(),
            backfilling: marks.job.is_some_and(|job| job.state == JobState::Running),
            complete_upto: marks.complete.map(|complete| complete.upto),
            active: seen.ever.iter().map(|id| (id.clone(), is_active(id))).collect(),
        }
    }

    /// Close's clock minus ours in seconds, as its API last said; `None` where it was not asked.
    pub fn clock_offset_seconds(&self) -> Option<i64> {
        let asked = self.seen().checked_at.is_some();
        let client = self.client_cell().clone().filter(|_| asked);
        client.map(|client| client.clock_offset().as_secs())
    }

    /// Keys have changed on disk: whoever holds the verifier has them at once.
    pub(super) fn refresh_verifier(&self) -> Result<(), Error> {
        let (live, retired) = super::signature_keys(self.store.data_dir()).map_err(Error::Local)?;
        self.verifier.rcu(|current| Verifier {
            kept: live.clone(),
            retired: retired.clone(),
            ..Verifier::clone(current)
        });
        Ok(())
    }
}
