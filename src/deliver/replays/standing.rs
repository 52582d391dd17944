//! How replays stand: what their sinks have had of them, what they wait for, and why they are not whole.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::deliver::engine::Engine;
use crate::deliver::mark::{JobRecord, ReplayRecord};
use crate::deliver::replay::{Job, unruled};
use crate::deliver::types::ReplayStatus;
use crate::deliver::worker::{Handle, View};
use crate::event::Event;
use crate::rules::RuleSet;
use crate::sorted;
use crate::sync::lock;

impl Engine {
    /// Every replay of the last 7 days, and those of before that are not over, oldest first.
    pub fn replays(&self) -> Vec<ReplayStatus> {
        let sinks = self.sinks_seen();
        let jobs = self.inner.jobs.lock().clone();
        let stands = |(id, (job, record)): (&String, &(Arc<Job>, JobRecord))| {
            let mut status = status(id, record, &sinks);
            if let Some(why) = self.inner.jobs.unclear(id) {
                if !job.is_running() {
                    "interrupted".clone_into(&mut status.state);
                }
                status.waits_for = Some(why);
            }
            status
        };
        let mut replays: Vec<ReplayStatus> = jobs.iter().map(stands).collect();
        sorted::sort_by_key(&mut replays, |replay| replay.created_at);
        replays
    }

    pub(super) fn sinks_seen(&self) -> Sinks {
        let views: BTreeMap<String, View> = {
            let workers = self.workers();
            let view = |(sink, handle): (&String, &Handle)| (sink.clone(), lock(&handle.view).clone());
            sorted::map(workers.by_sink.iter().map(view))
        };
        let configured = lock(&self.inner.configured).clone();
        let parted = lock(&self.inner.parted).clone();
        Sinks {
            views,
            configured,
            parted,
            rules: self.rules(),
        }
    }

    /// The replays that are known and take an event in, each with the sinks that it sends it to as the rules are now; oldest first.
    pub async fn replays_of(&self, event: &Event) -> Vec<(ReplayStatus, Vec<String>)> {
        let rules = self.rules();
        let jobs: BTreeMap<String, (Arc<Job>, Vec<String>)> = {
            let jobs = self.inner.jobs.lock();
            let sinks = |record: &JobRecord| record.planned.keys().cloned().collect();
            let takes = jobs
                .iter()
                .filter(|(_, (job, _))| (job.spec.from..=job.spec.to).contains(&event.seq));
            sorted::map(takes.map(|(id, (job, record))| (id.clone(), (job.clone(), sinks(record)))))
        };
        let mut found = Vec::new();
        for status in self.replays() {
            let Some((job, sinks)) = jobs.get(&status.id) else {
                continue;
            };
            let mut takes = Vec::new();
            for sink in sinks {
                if job.route(sink, event, &rules).await.is_some() {
                    takes.push(sink.clone());
                }
            }
            if !takes.is_empty() {
                found.push((status, takes));
            }
        }
        found
    }

    /// The paused sinks of a replay that runs, if it can't go on before they are resumed.
    pub fn replay_held_up(&self, id: &str) -> Option<Vec<String>> {
        let planned: Vec<String> = {
            let jobs = self.inner.jobs.lock();
            let (_, record) = jobs.get(id)?;
            record.planned.keys().cloned().collect()
        };
        let workers = self.workers();
        let mut paused = Vec::new();
        for sink in planned {
            let Some(handle) = workers.by_sink.get(&sink) else {
                continue;
            };
            let view = lock(&handle.view);
            // One that has not looked at it yet will.
            match view.replays.get(id) {
                Some(part) if part.done => {}
                Some(_) if view.status.paused => paused.push(sink),
                _ => return None,
            }
        }
        (!paused.is_empty()).then_some(paused)
    }
}

/// What is known of sinks, to say how replays stand.
pub(super) struct Sinks {
    views: BTreeMap<String, View>,
    configured: BTreeSet<String>,
    /// How far replays were at sinks that are configured no more.
    parted: BTreeMap<String, BTreeMap<String, ReplayRecord>>,
    /// The rules of now.
    rules: Arc<RuleSet>,
}

/// How a replay stands at one of its sinks.
struct Part<'a> {
    /// `None`: it was not begun there.
    record: Option<&'a ReplayRecord>,
    /// Why nothing more will be sent there, with what to do.
    ended: Option<Cow<'static, str>>,
}

impl Part<'_> {
    fn is_done(&self) -> bool {
        self.record.is_some_and(|record| record.done)
    }
}

impl Sinks {
    /// Whether nothing goes on of a replay any more, whatever becomes of its sinks; for one that was made long ago, whose rule is not
    /// waited for any longer: what is not sent yet would keep the log for ever.
    pub fn are_over(&self, id: &str, record: &JobRecord) -> bool {
        let is_unruled =
            |sink: &String| self.views.contains_key(sink) && unruled(&record.spec, sink, &self.rules).is_some();
        let is_over = |sink: &String| !record.is_for(sink) || self.part(id, sink, record).is_done() || is_unruled(sink);
        record.planned.keys().all(is_over)
    }

    fn part<'a>(&'a self, id: &str, sink: &str, record: &'a JobRecord) -> Part<'a> {
        if let Some(forgotten) = record.forgotten.get(sink) {
            return Part {
                record: Some(forgotten),
                ended: Some("was forgotten".into()),
            };
        }
        if let Some(view) = self.views.get(sink) {
            return Part {
                record: view.replays.get(id),
                ended: unruled(&record.spec, sink, &self.rules).map(Cow::Owned),
            };
        }
        let is_configured = self.configured.contains(sink);
        Part {
            record: self.parted.get(sink).and_then(|replays| replays.get(id)),
            // In the middle of a reload it is about to go on.
            ended: (!is_configured).then_some(
                "is not configured any more (it goes on where the sink is put back within 7 days of its removal)"
                    .into(),
            ),
        }
    }
}

/// How a replay stands, as its sinks show it.
fn status(id: &str, record: &JobRecord, sinks: &Sinks) -> ReplayStatus {
    let (mut delivered, mut dead, mut skipped, mut lost, mut planned) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let (mut is_open, mut ended, mut waits) = (false, Vec::new(), Vec::new());
    for (sink, count) in &record.planned {
        planned = planned.saturating_add(*count);
        let part = sinks.part(id, sink, record);
        let had = part.record.map_or(0, |part| part.delivered + part.dead + part.skipped);
        delivered += part.record.map_or(0, |part| part.delivered);
        dead += part.record.map_or(0, |part| part.dead);
        skipped += part.record.map_or(0, |part| part.skipped);
        lost += part.record.map_or(0, |part| part.lost);
        if part.is_done() {
            continue;
        }
        if let Some(why) = part.ended {
            let missing = count.saturating_sub(had);
            ended.push(format!(
                "sink \"{sink}\" {why}: {missing} of {count} deliveries were not made there"
            ));
        } else {
            is_open = true;
            waits.extend(sinks.views.get(sink).and_then(|view| waits_at(sink, view)));
        }
    }
    let state = match (is_open, ended.is_empty(), record.running) {
        (true, _, true) => "running",
        (true, _, false) => "interrupted",
        (false, true, _) => "done",
        (false, false, _) => "incomplete",
    };
    // Among what it had to pass may be what it would not have sent.
    let had = delivered + dead + skipped;
    let unsent = planned.saturating_sub(had);
    let lost = lost.min(unsent);
    ReplayStatus {
        total: planned,
        done: had + lost,
        eta_seconds: (state == "running")
            .then(|| time_left(record, had + lost, planned))
            .flatten(),
        id: id.to_owned(),
        spec: record.spec.clone(),
        state: state.into(),
        planned: record.planned.clone(),
        delivered,
        dead,
        skipped,
        lost,
        created_at: record.created_at,
        waits_for: (state == "running" && !waits.is_empty()).then(|| waits.join("; ")),
        because: (state == "incomplete").then(|| ended.join("; ")),
    }
}

/// Seconds that are left at the pace since it was made, or at its rate if that is slower; `None` before there is a pace.
fn time_left(record: &JobRecord, done: u64, of: u64) -> Option<u64> {
    let gone = Timestamp::now().duration_since(record.created_at).as_secs_f64();
    if done == 0 || gone <= 0.0 {
        return None;
    }
    let pace = done as f64 / gone;
    let pace = record.spec.rate.map_or(pace, |rate| pace.min(rate));
    let left = std::time::Duration::try_from_secs_f64(of.saturating_sub(done) as f64 / pace).ok()?;
    Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))
}

/// What a replay waits for at a sink that has not got all of it.
fn waits_at(sink: &str, view: &View) -> Option<String> {
    let status = view.status_now();
    if status.paused {
        return Some(format!("sink \"{sink}\" is paused: `closehook sinks resume {sink}`"));
    }
    status.waits_for.map(|why| format!("sink \"{sink}\" waits: {why}"))
}
