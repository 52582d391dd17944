//! Our account at Close: one client, one memory of what was made there, and what people may ask about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::Notify;

use super::api::client::Client;
use super::api::error::Error;
use super::api::identity::{Identity, Organization};
use super::api::patience::Patience;
use super::api::setbacks::Setbacks;
use super::api::subscriptions::Subscription;
use super::completeness::parts::{HoldState, Parts};
use super::connection::{Connection, connect};
use super::fields::{self, Fields};
use super::organization;
use super::seams::Seams;
use super::seen::Sightings;
use super::shared::Shared;
use super::store::CloseStore;
use super::subscriptions::ownership::{Ownership, Standing};
use super::subscriptions::plan::{SubscriptionPlan, plan};
use super::subscriptions::scope::Scope;
use crate::age::Age;
use crate::config::{self, Config, Partial};
use crate::ingress::heard::Heard;
use crate::ingress::verify::Verifier;
use crate::json;
use crate::log::Log;
use crate::rules::RuleSet;
use crate::rules::selection::EventPattern;
use crate::sorted;

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
    /// Whether events go out although their data is withheld.
    pub dispatches_parts: bool,
    /// What each sink may be sent, by the types in the rules; an empty list of patterns is every type.
    pub sinks: BTreeMap<String, Vec<Vec<EventPattern>>>,
}

/// Whether one of some rules is for events of this type.
pub(super) fn wants(rules: &[Vec<EventPattern>], type_action: &str) -> bool {
    let of_type = Some(type_action).filter(|name| !name.is_empty());
    let mut rules = rules.iter();
    rules.any(|patterns| patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(of_type)))
}

/// What each sink may be sent: everything where there are no rules.
fn sinks_of(config: &Config, rules: &RuleSet) -> BTreeMap<String, Vec<Vec<EventPattern>>> {
    let names = rules.names();
    let patterns: Vec<_> = rules.wants().map(|(patterns, _)| patterns.to_vec()).collect();
    let of_sink = |sink: &str| {
        if names.is_empty() {
            return vec![Vec::new()];
        }
        let sends = |name: &str| {
            rules
                .sinks_of(name)
                .is_some_and(|sinks| sinks.iter().any(|one| one == sink))
        };
        let rules = names.iter().zip(&patterns).filter(|(name, _)| sends(name));
        rules.map(|(_, patterns)| patterns.clone()).collect()
    };
    let sinks = config.sinks.iter();
    sorted::map(sinks.map(|sink| (sink.name.clone(), of_sink(&sink.name))))
}

impl Policy {
    /// With everything but the scope as tests like it.
    #[cfg(test)]
    pub(super) fn for_tests(scope: Scope) -> Policy {
        Policy {
            scope,
            url: Some("https://here/".into()),
            configured: Vec::new(),
            auto_resume: true,
            health_every: Duration::from_secs(300),
            reconcile_every: Duration::from_secs(900),
            dispatches_parts: false,
            sinks: BTreeMap::new(),
            overlap: SignedDuration::from_mins(10),
        }
    }

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
            dispatches_parts: close.partial == Partial::Dispatch,
            sinks: sinks_of(config, rules),
        }
    }

    /// What tells our subscriptions from others' by this policy, handed to `work`.
    pub(super) fn with_ours<T>(&self, store: &CloseStore, work: impl FnOnce(&Ownership<'_>) -> T) -> T {
        work(&Ownership {
            keys: &store.keys(),
            configured: &self.configured,
            url: self.url.as_deref(),
        })
    }

    fn plan(&self, store: &CloseStore, close_has: &[Subscription]) -> Result<SubscriptionPlan, Error> {
        self.with_ours(store, |ours| plan(&self.scope, ours, close_has))
    }
}

/// A question waits so long for a change of subscriptions that is under way, so that it is not answered from the middle of it.
const QUESTION_WAITS: Duration = Duration::from_secs(10);

/// Our account at Close.
#[derive(Debug)]
pub struct Account {
    policy: ArcSwap<Policy>,
    settings: ArcSwap<config::Close>,
    pub(super) connection: Connection,
    /// The intervals may be others.
    pub(super) policy_changed: Notify,
    /// There may be credentials where there were none.
    credentials_changed: Notify,
    pub(super) store: Arc<CloseStore>,
    pub(super) log: Arc<dyn Log>,
    pub(super) verifier: Arc<ArcSwap<Verifier>>,
    seen: Mutex<Sightings>,
    heard: Arc<Heard>,
    /// One change of subscriptions at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// How many were begun.
    changes: AtomicU64,
    /// There may be something to fetch.
    pub(super) reconcile_now: Notify,
    /// The job has changed.
    pub(super) job_changed: Notify,
    pub(super) started_at: Timestamp,
    /// Somebody carries out whatever backfill is begun.
    pub(super) is_supervised: AtomicBool,
    /// A backfill is being carried out just now.
    pub(super) is_at_work: AtomicBool,
    /// How looks at Close's side stand to its rate limit, whatever others wait for.
    pub(super) looks: Patience,
    hold_state: Mutex<HoldState>,
    /// What custom fields are called.
    pub(super) fields: Fields,
    pub(super) parts: tokio::sync::Mutex<Parts>,
    seams: Seams,
}

/// Asks Close who we are: for `init`, which needs no data directory.
pub async fn probe(config: &Config) -> Result<String, Error> {
    let probed = probe_as(config, None, false, &Setbacks::default()).await;
    let says = probed.who?;
    Ok(probed
        .clock
        .map_or_else(|| says.clone(), |clock| format!("{says}; {clock}")))
}

/// What Close says when it is asked for `check --probe`.
#[derive(Debug)]
pub struct Probed {
    /// Who the credentials are for.
    pub who: Result<String, Error>,
    /// One sentence where this machine's clock is not Close's, whatever else was answered.
    pub clock: Option<String>,
    /// Whether its schema of custom fields can be read; `None` where no template asks for it, or nothing else was answered.
    pub fields: Option<Result<String, Error>>,
}

/// Asks Close for everything that the configuration uses beside subscriptions. `shared`: where several nodes share what is known, the
/// OAuth token among it. `setbacks` hears what Close answers meanwhile.
pub async fn probe_all(config: &Config, shared: Option<Arc<Shared>>, setbacks: &Setbacks) -> Probed {
    probe_as(config, shared, fields::are_wanted(config), setbacks).await
}

async fn probe_as(config: &Config, shared: Option<Arc<Shared>>, with_fields: bool, setbacks: &Setbacks) -> Probed {
    let dir = &config.log.dir;
    let store = Arc::new(CloseStore::open_shared(dir, true, Seams::default(), shared));
    let client = match connect(&config.close, &store, Seams::default()) {
        Ok(client) => client.telling(setbacks.clone()),
        Err(error) => {
            return Probed {
                who: Err(error),
                clock: None,
                fields: None,
            };
        }
    };
    let identity = organization::prove(&client, &store).await;
    let clock = off(client.clock_offset(), Timestamp::now());
    let who = match identity {
        Ok(identity) => answers_for(&client, &store, &identity).await,
        Err(error) => Err(error),
    };
    let fields = match &who {
        Ok(_) if with_fields => Some(fields::probe(&client, &store).await),
        _ => None,
    };
    Probed { who, clock, fields }
}

/// Who the credentials are for, for people. Where that is not told, what they are for is asked: it alone says whether Close is there, and
/// whether they may do anything.
async fn answers_for(client: &Client, store: &CloseStore, identity: &Identity) -> Result<String, Error> {
    if let Some(somebody) = identity.describe() {
        return Ok(format!("Close answers for {somebody}"));
    }
    let subscriptions = client.subscriptions().await?;
    let mut ids = subscriptions.iter().filter_map(|one| one.organization_id.as_deref());
    let Some(id) = ids.next() else {
        return Ok("Close answers, and does not say for whom".into());
    };
    organization::vouch(store, Some(id))?;
    Ok(format!("Close answers for {id}"))
}

/// More than this between the clocks is worth a word.
const OFF_MAX: SignedDuration = SignedDuration::from_secs(60);

/// What is said of a clock that Close's is so far ahead of.
fn off(close_ahead: SignedDuration, now: Timestamp) -> Option<String> {
    if close_ahead.abs() <= OFF_MAX {
        return None;
    }
    let second = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let there = now.checked_add(close_ahead).ok()?;
    let by = crate::config::Span::secs(close_ahead.unsigned_abs().as_secs());
    let side = if close_ahead.is_positive() {
        "behind"
    } else {
        "ahead of"
    };
    Some(format!(
        "this machine's clock is {by} {side} Close's (here {}, at Close {}): set it right, or deliveries are refused as stale or early",
        second(now),
        second(there)
    ))
}

/// What `apply` would do under a configuration that no daemon runs with. Asks Close, changes nothing, and needs no log.
pub async fn preview(config: &Config) -> Result<SubscriptionPlan, Error> {
    let rules = RuleSet::of(config).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Error::Missing(faults.join("; "))
    })?;
    let store = Arc::new(CloseStore::open(&config.log.dir, true, Seams::default()));
    store.check()?;
    let client = connect(&config.close, &store, Seams::default())?;
    organization::prove(&client, &store).await?;
    let policy = Policy::of(config, &rules);
    let close_has = list(&client, &store, &policy).await?;
    policy.plan(&store, &close_has)
}

/// Every subscription there is, all of this directory's organization. One of ours that is not in the list is asked for by itself: a list of
/// several pages may have lost it on the way, and its key is retired for what is missing here.
async fn list(client: &Client, store: &CloseStore, policy: &Policy) -> Result<Vec<Subscription>, Error> {
    let mut subscriptions = client.subscriptions().await?;
    let configured = policy.configured.iter().flatten().cloned();
    let ours: BTreeSet<String> = store.keys().live_ids().into_iter().chain(configured).collect();
    for id in ours {
        if subscriptions.iter().all(|one| one.id != id) {
            subscriptions.extend(client.subscription_if_there(&id).await?);
        }
    }
    for subscription in &subscriptions {
        organization::vouch(store, subscription.organization_id.as_deref())?;
    }
    Ok(subscriptions)
}

impl Account {
    /// Close's clock minus ours in seconds, as its API last said; `None` where it was not asked.
    pub fn clock_offset_seconds(&self) -> Option<i64> {
        let asked = self.seen().checked_at.is_some();
        let client = self.connection.client().filter(|_| asked);
        client.map(|client| client.clock_offset().as_secs())
    }

    /// When the next request to Close goes, where its rate limit lets none go for long.
    pub(super) fn next_request_at(&self) -> Option<Timestamp> {
        self.connection.client()?.next_request_at()
    }

    /// Reads what is kept about it; contacts nobody and needs no secret. `read_only`: writes nothing either.
    pub fn open(
        config: &Config,
        rules: &RuleSet,
        log: Arc<dyn Log>,
        verifier: Arc<ArcSwap<Verifier>>,
        read_only: bool,
    ) -> Account {
        Account::open_with(config, rules, log, verifier, read_only, Seams::default())
    }

    /// The same where several nodes share what is known; what it is has been copied here (`Shared::look`). `age` is told of the time when Close says it.
    pub fn open_shared(
        config: &Config,
        rules: &RuleSet,
        log: Arc<dyn Log>,
        verifier: Arc<ArcSwap<Verifier>>,
        read_only: bool,
        age: Arc<Age>,
        shared: Option<Arc<Shared>>,
    ) -> Account {
        let seams = Seams {
            age,
            ..Seams::default()
        };
        Account::open_on(config, rules, log, verifier, read_only, seams, shared)
    }

    /// The same, with what a test puts into the seams.
    pub fn open_with(
        config: &Config,
        rules: &RuleSet,
        log: Arc<dyn Log>,
        verifier: Arc<ArcSwap<Verifier>>,
        read_only: bool,
        seams: Seams,
    ) -> Account {
        Account::open_on(config, rules, log, verifier, read_only, seams, None)
    }

    fn open_on(
        config: &Config,
        rules: &RuleSet,
        log: Arc<dyn Log>,
        verifier: Arc<ArcSwap<Verifier>>,
        read_only: bool,
        seams: Seams,
        shared: Option<Arc<Shared>>,
    ) -> Account {
        let store = Arc::new(CloseStore::open_shared(
            &config.log.dir,
            read_only,
            seams.clone(),
            shared,
        ));
        Account {
            fields: Fields::open(config, &store, read_only),
            policy: ArcSwap::from_pointee(Policy::of(config, rules)),
            settings: ArcSwap::from_pointee(config.close.clone()),
            connection: Connection::default(),
            policy_changed: Notify::new(),
            credentials_changed: Notify::new(),
            store,
            log,
            verifier,
            seen: Mutex::default(),
            heard: Arc::default(),
            changing: tokio::sync::Mutex::default(),
            changes: AtomicU64::new(0),
            reconcile_now: Notify::new(),
            job_changed: Notify::new(),
            started_at: seams.now(),
            is_supervised: AtomicBool::new(false),
            is_at_work: AtomicBool::new(false),
            looks: Patience::default(),
            hold_state: Mutex::default(),
            parts: tokio::sync::Mutex::default(),
            seams,
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
    pub async fn reconfigure(&self, config: &Config, rules: &RuleSet) {
        self.policy.store(Arc::new(Policy::of(config, rules)));
        self.policy_changed.notify_one();
        let settings = Arc::new(config.close.clone());
        self.settings.store(settings.clone());
        let is_other = self.connection.renew(settings).await;
        if is_other {
            self.hold_state().call_for_refill();
            self.reconcile_now.notify_one();
        }
        self.fields.reconfigure(config, is_other);
        self.credentials_changed.notify_one();
    }

    /// A configuration is about to be taken over, or is not after all (`None`): what custom fields are called is settled before any
    /// template of it is.
    pub fn expect(&self, config: Option<&Config>) {
        let are_coming = config.is_some_and(|config| config.close.credentials.is_some());
        self.fields.expect_credentials(are_coming || self.is_configured());
    }

    /// Waits until there are credentials.
    pub(super) async fn configured(&self) {
        while !self.is_configured() {
            self.credentials_changed.notified().await;
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Sightings> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the listener says whose deliveries were duplicates.
    pub fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// What is known of events whose data is withheld.
    pub(super) fn hold_state(&self) -> MutexGuard<'_, HoldState> {
        self.hold_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time by this machine's clock.
    pub(super) fn now(&self) -> Timestamp {
        self.seams.now()
    }

    /// The client, proved to be for the organization that everything here belongs to. Its secrets are resolved when it is first
    /// needed.
    pub(super) async fn client(&self) -> Result<Arc<Client>, Error> {
        let client = self.any_client().await?;
        if !client.is_proved() {
            organization::prove(&client, &self.store).await?;
        }
        Ok(client)
    }

    /// The same, and Close has told the time just now: this machine's clock may have been set since the last request.
    pub(super) async fn client_on_time(&self) -> Result<Arc<Client>, Error> {
        let client = self.any_client().await?;
        organization::prove(&client, &self.store).await?;
        Ok(client)
    }

    /// The client for a question: whose the credentials are is found out where it is not known, and nothing of it is kept.
    async fn client_to_look(&self) -> Result<Arc<Client>, Error> {
        let client = self.any_client().await?;
        if !client.is_proved() {
            organization::examine(&client, &self.store).await?;
        }
        Ok(client)
    }

    pub(super) async fn any_client(&self) -> Result<Arc<Client>, Error> {
        self.connection.open(&self.settings, &self.store, &self.seams).await
    }

    /// Every subscription there is, all of the right organization.
    pub(super) async fn list(&self, client: &Client) -> Result<Vec<Subscription>, Error> {
        let subscriptions = list(client, &self.store, &self.policy()).await?;
        let named = subscriptions.iter().find_map(|one| one.organization_id.clone());
        if let (None, Some(id)) = (self.store.organization()?, named) {
            let organization = Organization { id, name: None };
            self.store.remember_organization(organization).await?;
        }
        Ok(subscriptions)
    }

    /// What tells our subscriptions from others', handed to `work`.
    pub(super) fn with_ours<T>(&self, work: impl FnOnce(&Ownership<'_>) -> T) -> T {
        self.policy().with_ours(&self.store, work)
    }

    /// Begins a change of subscriptions, when no other one is under way.
    pub(super) async fn begin_change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let changing = self.changing.lock().await;
        self.changes.fetch_add(1, Ordering::Relaxed);
        changing
    }

    /// So many were begun; for whoever holds `changing`, and compares.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Keeps anybody here from changing subscriptions between Close's answer and a look at the keys. `None`: somebody has been at it
    /// for long, and a question need not wait for that.
    async fn unchanged(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        tokio::time::timeout(QUESTION_WAITS, self.changing.lock()).await.ok()
    }

    /// Every subscription of the organization, and how it stands to us. Writes nothing.
    pub async fn subscriptions(&self) -> Result<Vec<(Subscription, Standing)>, Error> {
        let client = self.client_to_look().await?;
        let _unchanged = self.unchanged().await;
        let subscriptions = list(&client, &self.store, &self.policy()).await?;
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

    /// One subscription, as Close shows it, and how it stands to us. Writes nothing.
    pub async fn subscription(&self, id: &str) -> Result<(Value, Standing), Error> {
        let shown = self.client_to_look().await?.subscription(id).await?;
        let garbled = |error: serde_json::Error| Error::Garbled(json::unfit(&error));
        let subscription: Subscription = serde_json::from_value(shown.clone()).map_err(garbled)?;
        Ok((shown, self.with_ours(|ours| ours.standing(&subscription))))
    }

    /// What `apply` would do. Writes nothing.
    pub async fn plan(&self) -> Result<SubscriptionPlan, Error> {
        let client = self.client_to_look().await?;
        let _unchanged = self.unchanged().await;
        let close_has = list(&client, &self.store, &self.policy()).await?;
        self.plan_for(&close_has)
    }

    pub(super) fn plan_for(&self, close_has: &[Subscription]) -> Result<SubscriptionPlan, Error> {
        self.store.check()?;
        self.policy().plan(&self.store, close_has)
    }

    /// Keys have changed: whoever holds the verifier has them at once.
    pub(super) fn refresh_verifier(&self) -> Result<(), Error> {
        let (live, retired) = self.store.signature_keys()?;
        self.verifier.rcu(|current| Verifier {
            kept: live.clone(),
            retired: retired.clone(),
            unkept: None,
            ..Verifier::clone(current)
        });
        Ok(())
    }
}
