//! Replays: durable jobs that send stored events again, beside what is new.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;

use super::feed::Rules;
use super::reading::within;
use super::schedule::{self, Throttle};
use super::{JobRecord, ReplaySpec};
use crate::config::Rate;
use crate::event::{Event, Kind};
use crate::log::{Log, Narrow, ReadError};
use crate::rules::RuleSet;
use crate::rules::selection::{Selection, Written};
use crate::sync::lock;

/// A replay as the workers carry it out.
#[derive(Debug)]
pub(super) struct Job {
    pub id: Arc<str>,
    pub spec: ReplaySpec,
    selection: Selection,
    /// What the log can look up of it.
    narrow: Narrow,
    running: AtomicBool,
    /// Its record was seen to be durable: where there is none any more, it is gone.
    stored: AtomicBool,
    /// It was taken back, or forgotten: nothing of it is kept.
    gone: AtomicBool,
    throttle: Option<Mutex<Throttle>>,
    /// Knows whether the full event has come.
    log: Arc<dyn Log>,
}

impl Job {
    /// Checks what was asked for. An error is one sentence.
    pub fn new(id: &str, spec: ReplaySpec, running: bool, log: Arc<dyn Log>) -> Result<Job, String> {
        let selection = selection_of(&spec)?;
        if spec.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err("the rate of a replay must be above 0 deliveries a second".into());
        }
        let throttle = spec
            .rate
            .map(|rate| Mutex::new(Throttle::new(Rate(rate), schedule::now())));
        Ok(Job {
            id: id.into(),
            narrow: narrow_of(&spec),
            spec,
            selection,
            running: AtomicBool::new(running),
            stored: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            throttle,
            log,
        })
    }

    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    pub fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Relaxed);
    }

    pub fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Relaxed)
    }

    pub fn set_stored(&self) {
        self.stored.store(true, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Nothing more of it is sent, whoever still has it.
    fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.set_running(false);
    }

    /// What the log may leave out for it.
    pub fn narrow(&self) -> Option<&Narrow> {
        Some(&self.narrow).filter(|narrow| !narrow.is_empty())
    }

    /// Whether the job sends the event to the sink, and by which rules.
    pub async fn route(&self, sink: &str, event: &Event, rules: &RuleSet) -> Option<Rules> {
        let is_meant = match event.kind {
            Kind::Partial => self.spec.releases || rules.dispatches(event),
            kind => kind == Kind::Event && !self.spec.only_partials,
        };
        if !is_meant || !self.selection.selects(event) {
            return None;
        }
        // In doubt it goes out: the receiver knows it by its key.
        if event.kind == Kind::Partial && is_superseded(&*self.log, event).await.unwrap_or(false) {
            return None;
        }
        let named = self.spec.sinks.iter().any(|name| name == sink);
        if let Some(rule) = &self.spec.rule {
            let to_this_sink = if self.spec.sinks.is_empty() {
                rules
                    .sinks_of(rule)
                    .is_some_and(|sinks| sinks.iter().any(|name| name == sink))
            } else {
                named
            };
            return (to_this_sink && rules.matches_again(rule, event)?).then(|| Rules::from([rule.as_str().into()]));
        }
        if self.spec.releases {
            return rules.route_released(sink, event);
        }
        if self.spec.sinks.is_empty() {
            return rules.route_again(sink, event);
        }
        named.then(|| rules.route_again(sink, event).unwrap_or_default())
    }

    /// Why nothing of it can go to a sink as the rules are now, in words that follow on the sink's name; `None`: it can.
    pub fn unruled(&self, sink: &str, rules: &RuleSet) -> Option<String> {
        unruled(&self.spec, sink, rules)
    }

    /// How many the job's own rate lets go now.
    pub fn take(&self, now: Timestamp, wanted: usize) -> usize {
        self.with_throttle(|throttle| throttle.take(now, wanted))
            .unwrap_or(wanted)
    }

    pub fn give_back(&self, count: usize) {
        self.with_throttle(|throttle| throttle.give_back(count));
    }

    /// How long until the rate lets one go; `None` without a rate.
    pub fn wait(&self) -> Option<Duration> {
        self.with_throttle(|throttle| throttle.wait())
    }

    fn with_throttle<T>(&self, work: impl FnOnce(&mut Throttle) -> T) -> Option<T> {
        let throttle = self.throttle.as_ref()?;
        Some(work(&mut lock(throttle)))
    }
}

type Listed = BTreeMap<String, (Arc<Job>, JobRecord)>;

/// Every durable replay, by id: the one list of them, which workers read whenever they begin or go back.
#[derive(Debug, Clone, Default)]
pub(super) struct Jobs {
    listed: Arc<Mutex<Listed>>,
    /// Of these it is not known what is durable, and why.
    unclear: Arc<Mutex<BTreeMap<String, &'static str>>>,
    /// Held while a record is changed.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Jobs {
    pub fn lock(&self) -> MutexGuard<'_, Listed> {
        lock(&self.listed)
    }

    /// There is no such replay any more. Whoever carries it out lets go of it with the next save.
    pub fn drop_gone(&self, id: &str) {
        if let Some((job, _)) = self.lock().remove(id) {
            job.set_gone();
        }
        self.set_clear(id);
    }

    /// Those whose records were seen to be durable, and of which nothing is being settled here.
    pub fn stored(&self) -> Vec<String> {
        let unclear = lock(&self.unclear).clone();
        let jobs = self.lock();
        let stored = jobs
            .iter()
            .filter(|(id, (job, _))| job.is_stored() && !unclear.contains_key(*id));
        stored.map(|(id, _)| id.clone()).collect()
    }

    /// Only one changes records while this is held.
    pub async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Why it is not known how a replay stands; `None`: it is.
    pub fn unclear(&self, id: &str) -> Option<String> {
        lock(&self.unclear).get(id).map(|why| (*why).to_owned())
    }

    pub fn set_unclear(&self, id: &str, why: &'static str) {
        lock(&self.unclear).insert(id.to_owned(), why);
    }

    pub fn set_clear(&self, id: &str) {
        lock(&self.unclear).remove(id);
    }

    /// Those that send anything to this sink.
    pub fn of(&self, sink: &str) -> Vec<Arc<Job>> {
        let jobs = self.lock();
        let meant = jobs.values().filter(|(_, record)| record.is_for(sink));
        meant.map(|(job, _)| job.clone()).collect()
    }
}

/// See [`Job::unruled`].
pub(super) fn unruled(spec: &ReplaySpec, sink: &str, rules: &RuleSet) -> Option<String> {
    let rule = spec.rule.as_ref()?;
    let back = "it goes on where the rule is put back";
    match rules.sinks_of(rule) {
        None => Some(format!(
            "gets no more of it, for there is no rule \"{rule}\" any more ({back})"
        )),
        Some(sinks) if spec.sinks.is_empty() && !sinks.iter().any(|name| name == sink) => Some(format!(
            "gets no more of it, for the rule \"{rule}\" does not name the sink any more ({back})"
        )),
        Some(_) => None,
    }
}

/// Whether the full event of one without its data is stored.
pub(super) async fn is_superseded(log: &dyn Log, event: &Event) -> Result<bool, ReadError> {
    let Some(view) = event.view() else { return Ok(false) };
    Ok(within(log.find_revision(&view.key())).await?.is_some())
}

fn narrow_of(spec: &ReplaySpec) -> Narrow {
    Narrow {
        ids: spec.ids.iter().cloned().collect(),
        leads: spec.lead.iter().cloned().collect(),
        types: spec.types.clone(),
        ..Narrow::default()
    }
}

/// The restrictions of a replay, parsed.
fn selection_of(spec: &ReplaySpec) -> Result<Selection, String> {
    let written = Written {
        ids: &spec.ids,
        types: &spec.types,
        lead: spec.lead.as_deref(),
        filter: spec.filter.as_deref(),
        since: spec.since,
        until: spec.until,
        quarantined: None,
        partial: None,
    };
    written.compile()
}
