//! Replays: durable jobs that send stored events again, beside what is new.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::ReplaySpec;
use super::feed::Rules;
use super::schedule::{self, Throttle};
use crate::config::Rate;
use crate::event::{Event, Kind};
use crate::log::LocalLog;
use crate::rules::RuleSet;
use crate::rules::filter::Filter;
use crate::rules::selection::{EventPattern, Selection};

/// A replay as the workers carry it out.
#[derive(Debug)]
pub(super) struct Job {
    pub id: String,
    pub spec: ReplaySpec,
    selection: Selection,
    running: AtomicBool,
    throttle: Option<Mutex<Throttle>>,
    /// Knows whether the full event has come.
    log: LocalLog,
}

impl Job {
    /// Checks what was asked for. An error is one sentence.
    pub fn new(id: String, spec: ReplaySpec, running: bool, log: LocalLog) -> Result<Job, String> {
        let selection = selection_of(&spec)?;
        let throttle = spec
            .rate
            .map(|rate| Mutex::new(Throttle::new(Rate(rate), schedule::now())));
        Ok(Job {
            id,
            spec,
            selection,
            running: AtomicBool::new(running),
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

    /// Whether the job sends the event to the sink, and by which rules.
    pub fn route(&self, sink: &str, event: &Event, rules: &RuleSet) -> Option<Rules> {
        let is_meant = match event.kind {
            Kind::Partial => rules.dispatches(event) && !self.is_superseded(event),
            kind => kind == Kind::Event && !self.spec.only_partials,
        };
        if !is_meant || !self.selection.selects(event) {
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
            return (to_this_sink && rules.matches(rule, event)?).then(|| Rules::from([rule.as_str().into()]));
        }
        if self.spec.sinks.is_empty() {
            return rules.route(sink, event);
        }
        named.then(|| rules.route(sink, event).unwrap_or_default())
    }

    /// Whether the full event of one without its data is stored.
    fn is_superseded(&self, event: &Event) -> bool {
        // In doubt it goes out: the receiver knows it by its key.
        event
            .view()
            .is_some_and(|view| self.log.find_revision(&view.key()).is_ok_and(|seq| seq.is_some()))
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
        Some(work(&mut throttle.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The restrictions of a replay, parsed.
fn selection_of(spec: &ReplaySpec) -> Result<Selection, String> {
    let filter = spec.filter.as_deref().map(Filter::parse).transpose();
    Ok(Selection {
        ids: spec.ids.clone(),
        types: spec
            .types
            .iter()
            .map(|text| EventPattern::parse(text))
            .collect::<Result<_, _>>()?,
        lead: spec.lead.clone(),
        filter: filter.map_err(|faults| {
            faults
                .first()
                .map(|fault| format!("the filter: {fault}"))
                .unwrap_or_default()
        })?,
        since: spec.since,
        until: spec.until,
        quarantined: None,
    })
}
