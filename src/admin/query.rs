//! Every question and order a command can have, answered in one place: by the daemon over its socket, or by the command
//! itself on the data directory when no daemon runs. Answers are streams of JSON values.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use super::close::CloseQuery;
use super::erase::Whose;
use crate::backup;
use crate::close::Account;
use crate::deliver::{DeadLetter, Engine, ReplaySpec};
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};
use crate::ingress::verify::Verifier;
use crate::listener::tls::Certificates;
use crate::log::{Appended, Incoming, Log, Narrow, Take};
use crate::retention::Retention;
use crate::rules::filter::Filter;
use crate::rules::selection::{EventPattern, Selection};

/// Which events are meant, as it travels.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pick {
    /// Event ids.
    pub ids: Vec<String>,
    /// Patterns.
    pub types: Vec<String>,
    /// A lead.
    pub lead: Option<String>,
    /// A filter as JSON text.
    pub filter: Option<String>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Only (or no) quarantined ones.
    pub quarantined: Option<bool>,
}

impl Pick {
    /// Checks and compiles it. An error is one sentence.
    pub fn compile(&self) -> Result<Selection, String> {
        let filter = self.filter.as_deref().map(Filter::parse).transpose();
        let filter = filter.map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("the filter is not valid: {}", faults.join("; "))
        })?;
        Ok(Selection {
            ids: self.ids.clone(),
            types: self
                .types
                .iter()
                .map(|text| EventPattern::parse(text))
                .collect::<Result<_, _>>()?,
            lead: self.lead.clone(),
            filter,
            since: self.since,
            until: self.until,
            quarantined: self.quarantined,
        })
    }
}

/// A question or an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are those of the commands")]
pub enum Query {
    Status,
    Sinks,
    Pause {
        sink: String,
        paused: bool,
    },
    Forget {
        sink: String,
    },
    /// Events in Seq order; with `last`, the newest `limit`; with `follow`, also those to come.
    Events {
        pick: Pick,
        limit: Option<u64>,
        last: bool,
        follow: bool,
        full: bool,
        from: Option<Seq>,
    },
    /// By event id (every revision) or Seq.
    Event {
        id: String,
    },
    Verify,
    ReplayPlan {
        spec: Box<ReplaySpec>,
    },
    ReplayStart {
        spec: Box<ReplaySpec>,
        planned: std::collections::BTreeMap<String, u64>,
    },
    ReplayWatch {
        id: String,
    },
    ReplaySet {
        id: String,
        running: bool,
    },
    Replays,
    DeadList {
        sink: Option<String>,
        pick: Pick,
        limit: u64,
    },
    DeadShow {
        sink: Option<String>,
        id: String,
    },
    DeadRetry {
        sink: Option<String>,
        pick: Pick,
    },
    DeadDrop {
        sink: Option<String>,
        pick: Pick,
    },
    /// Sign a body with the first live key, or with that of a subscription; an empty one only tells where deliveries go.
    Sign {
        body: String,
        #[serde(default)]
        subscription: Option<String>,
    },
    /// Take over what the configuration says now, as SIGHUP does, and say how it went.
    Reload,
    /// Lines as `events export` writes them.
    Import {
        lines: Vec<Value>,
        dispatch: bool,
    },
    /// The whole data directory, as `closehook backup` keeps it.
    Backup,
    Erase {
        lead: Option<String>,
        email: Option<String>,
        ids: Vec<String>,
    },
    /// About Close's side.
    Close(CloseQuery),
}

impl Query {
    /// To sign a body with the first live key.
    pub fn sign(body: impl Into<String>) -> Query {
        Query::Sign {
            body: body.into(),
            subscription: None,
        }
    }
}

/// How a reload went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read; `None`: there is none.
    pub file: Option<PathBuf>,
    /// Tables of the configuration that have changed since the start and take effect at the next one.
    pub restart: Vec<String>,
}

/// An order to the daemon to reload, with whoever waits for the outcome: what it has come to, or every fault.
pub type ReloadOrder = oneshot::Sender<Result<Reloaded, Vec<String>>>;

/// What queries are answered from.
#[derive(Debug)]
pub struct Facade {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The sinks.
    pub engine: Engine,
    /// The live keys.
    pub verifier: Arc<ArcSwap<Verifier>>,
    /// The certificate in force; `None` without TLS and without a daemon.
    pub tls: Option<Certificates>,
    /// Close's side.
    pub account: Arc<Account>,
    /// What decides how long the log keeps events; `None` without a daemon.
    pub retention: Option<Arc<Retention>>,
    /// The way to the daemon's main loop; `None` without a daemon.
    pub reload: Option<Sender<ReloadOrder>>,
    /// What does not change while it runs.
    pub facts: Facts,
}

/// Facts about the process that answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// Whether it is the daemon.
    pub running: bool,
    /// Its process id.
    pub pid: u32,
    /// closehook's version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Where deliveries go; `None` without a daemon.
    pub url: Option<String>,
    /// With what the `x-request-id` of its answers begins.
    #[serde(default)]
    pub request_ids: String,
    /// Metrics and health; `None` without a daemon.
    pub admin: Option<String>,
    /// The data directory.
    pub dir: PathBuf,
}

/// Where answers go; a closed one means that nobody listens any more.
pub type Answers = Sender<Value>;

/// Why a query was not answered, one sentence.
pub type Refusal = String;

/// Bytes of events that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// Events that are read at a time from the end of the log.
const STEP: u64 = 1024;

/// Nobody listens any more; not an error.
const GONE: &str = "";

pub(super) async fn say(out: &Answers, value: Value) -> Result<(), Refusal> {
    out.send(value).await.map_err(|_| GONE.to_owned())
}

pub(super) fn text(error: impl std::fmt::Display) -> Refusal {
    error.to_string()
}

impl Facade {
    /// Answers a query. An empty refusal means that the asker has gone.
    pub async fn answer(&self, query: Query, out: &Answers) -> Result<(), Refusal> {
        match query {
            Query::Status => say(out, self.status().await).await,
            Query::Sinks => {
                for sink in self.sinks() {
                    say(out, sink).await?;
                }
                Ok(())
            }
            Query::Pause { sink, paused } => self.engine.pause(&sink, paused).await.map_err(text),
            Query::Forget { sink } => {
                let dropped = self.engine.forget(&sink).await.map_err(text)?;
                say(out, json!({ "dropped": dropped })).await
            }
            Query::Events {
                pick,
                limit,
                last,
                follow,
                full,
                from,
            } => {
                let selection = pick.compile()?;
                let render = if full { exported } else { summary };
                if last && let Some(limit) = limit {
                    for event in self.newest(selection, limit).await? {
                        say(out, render(&event)).await?;
                    }
                    return Ok(());
                }
                let render = |event: &Event| {
                    // Of an erased event there is nothing to hand on.
                    (!full || event.kind != Kind::Erased).then(|| render(event))
                };
                self.events(selection, limit, follow, from, render, out).await
            }
            Query::Event { id } => self.event(&id, out).await,
            Query::Verify => self.verify(out).await,
            Query::ReplayPlan { spec } => self.replay_plan(*spec, out).await,
            Query::ReplayStart { spec, planned } => {
                let id = self.engine.replay_start(*spec, planned).await.map_err(text)?;
                say(out, json!({ "id": id })).await
            }
            Query::ReplayWatch { id } => self.replay_watch(&id, out).await,
            Query::ReplaySet { id, running } => self.engine.replay_set_running(&id, running).await.map_err(text),
            Query::Replays => {
                for replay in self.engine.replays() {
                    say(out, json!(replay)).await?;
                }
                Ok(())
            }
            Query::DeadList { sink, pick, limit } => {
                for letter in self.dead(sink.as_deref(), &pick, limit).await? {
                    say(out, json!(letter)).await?;
                }
                Ok(())
            }
            Query::DeadShow { sink, id } => self.dead_show(sink.as_deref(), &id, out).await,
            Query::DeadRetry { sink, pick } => self.dead_retry(sink.as_deref(), &pick, out).await,
            Query::DeadDrop { sink, pick } => self.dead_drop(sink.as_deref(), &pick, out).await,
            Query::Sign { body, subscription } => {
                let verifier = self.verifier.load_full();
                let mut keys = verifier.live();
                let key = match &subscription {
                    // A key without an id counts for every subscription.
                    Some(id) => keys
                        .clone()
                        .find(|key| key.subscription_id.as_ref() == Some(id))
                        .or_else(|| keys.find(|key| key.subscription_id.is_none())),
                    None => keys.next(),
                };
                let key =
                    key.ok_or("there is no signature key: `closehook subscription apply`, or [[close.subscriptions]]")?;
                let headers = key.sign(Timestamp::now(), body.as_bytes());
                let answer = json!({
                    "url": self.facts.url, "subscription_id": key.subscription_id,
                    "timestamp": headers.timestamp, "hash": headers.hash,
                });
                say(out, answer).await
            }
            Query::Reload => {
                let (done, outcome) = oneshot::channel();
                let daemon = self.reload.as_ref().ok_or("no daemon is running")?;
                daemon.send(done).await.map_err(|_| "the daemon is stopping")?;
                let reloaded = outcome.await.map_err(|_| "the daemon is stopping")?;
                say(out, json!(reloaded.map_err(|faults| faults.join("; "))?)).await
            }
            Query::Import { lines, dispatch } => self.import(lines, dispatch, out).await,
            Query::Backup => self.backup(out).await,
            Query::Erase { lead, email, ids } => self.erase(Whose { lead, email, ids }, out).await,
            Query::Close(query) => self.answer_close(query, out).await,
        }
    }

    /// Each sink, with the events that wait for their data before they can go there.
    fn sinks(&self) -> Vec<Value> {
        let held = self.account.held_by_sink();
        let with_held = |sink: crate::deliver::SinkStatus| {
            let held = held.get(&sink.name).copied().unwrap_or_default();
            let mut value = json!(sink);
            value["held"] = json!(held);
            value
        };
        self.engine.sinks().into_iter().map(with_held).collect()
    }

    async fn status(&self) -> Value {
        let ready = if self.facts.running {
            self.log.ready().map_err(|error| error.to_string())
        } else {
            Err("no daemon is running".to_owned())
        };
        // What can't be read is said where it is needed; the rest of the picture is worth having.
        let removed = self.engine.detached().await.unwrap_or_default();
        json!({
            "daemon": self.facts,
            "ready": ready.is_ok(),
            "not_ready_because": ready.err(),
            "keys": self.verifier.load().live().count(),
            "certificate": self.tls.as_ref().map(Certificates::status),
            "log": self.log.stats(),
            "retention": self.retention.as_ref().map(|retention| retention.standing()),
            "sinks": self.sinks(),
            "removed_sinks": removed,
            "rules": self.engine.rules().names(),
            "close": self.account.status(),
        })
    }

    /// Reads what may be among what is meant; whoever asks still looks at each event.
    async fn read(&self, from: Seq, max: usize, narrow: Option<&Narrow>) -> Result<crate::log::Batch, Refusal> {
        let take = Take {
            events: max,
            bytes: READ_BYTES,
            narrow,
        };
        self.log.read(from, take).await.map_err(text)
    }

    async fn first_of(&self, selection: &Selection, from: Option<Seq>) -> Result<Seq, Refusal> {
        let first = self.log.first().max(from.unwrap_or_default());
        let Some(since) = selection.since else { return Ok(first) };
        Ok(self.log.seq_at(since).await.map_err(text)?.max(first))
    }

    async fn events(
        &self,
        selection: Selection,
        limit: Option<u64>,
        follow: bool,
        from: Option<Seq>,
        render: impl Fn(&Event) -> Option<Value>,
        out: &Answers,
    ) -> Result<(), Refusal> {
        let mut head = self.log.head();
        let mut next = if follow && from.is_none() && selection.since.is_none() {
            head.borrow().next()
        } else {
            self.first_of(&selection, from).await?
        };
        let narrow = selection.narrow();
        let mut left = limit.unwrap_or(u64::MAX);
        loop {
            let batch = self.read(next, 512, Some(&narrow)).await?;
            for event in batch.events.iter().filter(|event| selection.selects(event)) {
                let Some(rendered) = render(event) else { continue };
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                say(out, rendered).await?;
            }
            if batch.next != next {
                next = batch.next;
                continue;
            }
            if !follow || left == 0 {
                return Ok(());
            }
            tokio::select! {
                changed = head.changed() => changed.map_err(text)?,
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// The newest events that are meant, in Seq order: found from the end, so that a long log costs nothing.
    async fn newest(&self, selection: Selection, limit: u64) -> Result<Vec<Arc<Event>>, Refusal> {
        let narrow = selection.narrow();
        let first = self.first_of(&selection, None).await?;
        let mut found = VecDeque::new();
        let mut upper = self.log.head().borrow().next();
        let mut step = STEP;
        while (found.len() as u64) < limit {
            // A restored log leaves out Seqs by the million.
            upper = self.log.last_before(upper).unwrap_or_default().next();
            if upper <= first {
                break;
            }
            let lower = Seq(upper.0.saturating_sub(step)).max(first);
            // No more of them than are still wanted, however many there are.
            let wanted = limit - found.len() as u64;
            let mut chunk = VecDeque::new();
            let mut next = lower;
            while next < upper {
                let most = (upper.0 - next.0).min(STEP) as usize;
                let batch = self.read(next, most, Some(&narrow)).await?;
                if batch.next == next {
                    break;
                }
                next = batch.next;
                let is_meant = |event: &Arc<Event>| event.seq < upper && selection.selects(event);
                for event in batch.events.into_iter().filter(is_meant) {
                    if chunk.len() as u64 == wanted {
                        chunk.pop_front();
                    }
                    chunk.push_back(event);
                }
            }
            for event in chunk.into_iter().rev() {
                found.push_front(event);
            }
            upper = lower;
            if !narrow.is_empty() {
                // What is rare is looked up, and each look goes through to the end of the log: there must not be many.
                step = step.saturating_mul(4);
            }
        }
        Ok(found.into())
    }

    async fn event(&self, id: &str, out: &Answers) -> Result<(), Refusal> {
        let seqs = match id.parse::<u64>() {
            Ok(seq) => vec![Seq(seq)],
            Err(_) => self.log.find(id).await.map_err(text)?,
        };
        let mut shown = false;
        for seq in &seqs {
            let Some(event) = self.log.get(*seq).await.map_err(text)? else {
                continue;
            };
            shown = true;
            let mut value = exported(&event);
            value["kind"] = json!(event.kind);
            value["signature"] = json!(self.signature(&event));
            value["sinks"] = json!(self.engine.event_states(&event).await);
            value["revisions"] = json!(seqs);
            say(out, value).await?;
        }
        match (shown, seqs.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => Err(format!("there is no event {id} in the log")),
            (false, false) if seqs.iter().all(|seq| *seq > *self.log.head().borrow()) => {
                Err(format!("there is no event {id} in the log"))
            }
            (false, false) => Err(format!("event {id} was stored once, but is not kept any more")),
        }
    }

    /// What can be said about an event's signature now.
    fn signature(&self, event: &Event) -> &'static str {
        match (&event.signature, event.source, event.kind) {
            (_, _, Kind::Erased) => "erased",
            (None, Source::Backfill, _) => "unsigned (backfill)",
            (None, Source::Webhook, _) => "missing",
            (Some(headers), ..) => {
                if self.verifier.load().signed(headers, &event.body) {
                    "valid"
                } else {
                    "no known key signed it"
                }
            }
        }
    }

    async fn verify(&self, out: &Answers) -> Result<(), Refusal> {
        let progress = |done, total| {
            // Progress may be dropped.
            let _ = out.try_send(json!({ "progress": { "segments": done, "of": total } }));
        };
        let mut faults = self.log.verify(&progress).await;
        let (mut checked, mut unsigned, mut erased) = (0_u64, 0_u64, 0_u64);
        let mut next = self.log.first();
        loop {
            let batch = self.read(next, 1024, None).await?;
            if batch.next == next {
                break;
            }
            next = batch.next;
            for event in &batch.events {
                checked += 1;
                match self.signature(event) {
                    "valid" => {}
                    "unsigned (backfill)" => unsigned += 1,
                    "erased" => erased += 1,
                    other => faults.push(format!("event {}: {other}", event.seq)),
                }
            }
            let _ = out.try_send(json!({ "progress": { "events": checked } }));
        }
        let gaps = self.log.stats().gaps;
        say(
            out,
            json!({ "checked": checked, "unsigned": unsigned, "erased": erased, "faults": faults, "gaps": gaps }),
        )
        .await
    }

    async fn replay_plan(&self, spec: ReplaySpec, out: &Answers) -> Result<(), Refusal> {
        let mut spec = spec;
        if let Some(since) = spec.since {
            spec.from = spec.from.max(self.log.seq_at(since).await.map_err(text)?);
        }
        let answers = out.clone();
        let mut progress = move |seq: Seq| {
            let _ = answers.try_send(json!({ "progress": { "seq": seq } }));
        };
        let planned = self.engine.replay_plan(spec, &mut progress).await;
        let (spec, planned) = planned.map_err(text)?;
        say(out, json!({ "spec": spec, "planned": planned })).await
    }

    async fn replay_watch(&self, id: &str, out: &Answers) -> Result<(), Refusal> {
        loop {
            let status = self.engine.replays().into_iter().find(|replay| replay.id == id);
            let status = status.ok_or_else(|| format!("there is no replay {id}"))?;
            let over = status.state != "running";
            say(out, json!(status)).await?;
            if over {
                return Ok(());
            }
            // Without a daemon nobody resumes a sink meanwhile: this would never end.
            if !self.facts.running
                && let Some(paused) = self.engine.replay_held_up(id)
            {
                self.engine.replay_set_running(id, false).await.map_err(text)?;
                let sinks = paused.join("\", \"");
                return Err(format!(
                    "sink \"{sinks}\" is paused: `closehook sinks resume {}`, then go on with `closehook replay --resume {id}`",
                    paused[0]
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Dead letters of one sink or all that are meant.
    async fn dead(&self, sink: Option<&str>, pick: &Pick, limit: u64) -> Result<Vec<DeadLetter>, Refusal> {
        let selection = pick.compile()?;
        let everything = pick_is_empty(pick);
        let most = if everything { limit as usize } else { usize::MAX };
        let (engine, sink) = (self.engine.clone(), sink.map(ToOwned::to_owned));
        let listed = tokio::task::spawn_blocking(move || engine.dead_list(sink.as_deref(), Seq::ZERO, most));
        let mut found = Vec::new();
        for letter in listed.await.map_err(text)?.map_err(text)? {
            if found.len() as u64 == limit {
                break;
            }
            let meant = everything || {
                let found = self.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)?;
                match found.and_then(|(_, event)| event) {
                    Some(event) if event.kind != Kind::Erased => selection.selects(&event),
                    // What the letter says itself is all that is left.
                    gone => letter_fits(&selection, &letter, gone.as_deref()),
                }
            };
            if meant {
                found.push(letter);
            }
        }
        Ok(found)
    }

    async fn dead_drop(&self, sink: Option<&str>, pick: &Pick, out: &Answers) -> Result<(), Refusal> {
        let mut dropped = 0;
        for (sink, seqs) in self.dead_by_sink(sink, pick).await? {
            let engine = self.engine.clone();
            let drop = tokio::task::spawn_blocking(move || engine.dead_drop(&sink, &seqs));
            dropped += drop.await.map_err(text)?.map_err(text)?;
        }
        say(out, json!({ "dropped": dropped })).await
    }

    async fn dead_by_sink(
        &self,
        sink: Option<&str>,
        pick: &Pick,
    ) -> Result<std::collections::BTreeMap<String, Vec<Seq>>, Refusal> {
        let mut by_sink = std::collections::BTreeMap::<String, Vec<Seq>>::new();
        for letter in self.dead(sink, pick, u64::MAX).await? {
            by_sink.entry(letter.sink).or_default().push(letter.seq);
        }
        Ok(by_sink)
    }

    async fn dead_show(&self, sink: Option<&str>, id: &str, out: &Answers) -> Result<(), Refusal> {
        let letters = self.dead(sink, &Pick::default(), u64::MAX).await?;
        let mut shown = false;
        for letter in letters
            .iter()
            .filter(|letter| letter.id == id || letter.seq.to_string() == id)
        {
            if let Some((letter, event)) = self.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)? {
                shown = true;
                let mut value = event.map_or_else(|| json!({}), |event| exported(&event));
                value["letter"] = json!(letter);
                say(out, value).await?;
            }
        }
        if shown {
            Ok(())
        } else {
            Err(format!(
                "there is no dead letter {id}: `closehook dead list` shows them"
            ))
        }
    }

    async fn dead_retry(&self, sink: Option<&str>, pick: &Pick, out: &Answers) -> Result<(), Refusal> {
        let mut running = Vec::new();
        for (sink, seqs) in self.dead_by_sink(sink, pick).await? {
            running.push(self.engine.dead_retry(&sink, seqs).await.map_err(text)?);
        }
        loop {
            let counts = running.iter().map(|progress| progress.counts());
            let (total, delivered, failed) = counts.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            let why = running.iter().find_map(|progress| progress.why());
            say(
                out,
                json!({ "total": total, "delivered": delivered, "failed": failed, "reason": why }),
            )
            .await?;
            if delivered + failed >= total {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }

    async fn import(&self, lines: Vec<Value>, dispatch: bool, out: &Answers) -> Result<(), Refusal> {
        let (mut stored, mut known) = (0_u64, 0_u64);
        let incoming: Vec<Incoming> = lines
            .into_iter()
            .map(|line| imported(&line, dispatch))
            .collect::<Result<_, _>>()?;
        let has_parts = incoming.iter().any(|incoming| incoming.partial);
        let from = self.log.head().borrow().next();
        if has_parts {
            self.account.expect_parts(from).await.map_err(text)?;
        }
        let appended = self.log.append_in_order(incoming).await;
        if has_parts {
            // They may have been counted before they were there.
            self.account.expect_parts(from).await.map_err(text)?;
        }
        for appended in appended {
            match appended.map_err(text)? {
                Appended::Stored(_) | Appended::Quarantined { repeated: false, .. } => stored += 1,
                Appended::Duplicate(_) | Appended::Quarantined { .. } => known += 1,
            }
        }
        say(out, json!({ "stored": stored, "known": known })).await
    }

    async fn backup(&self, out: &Answers) -> Result<(), Refusal> {
        let log = self.log.local().cloned();
        let log = log.ok_or("a backup is made where the log is kept on this machine's disk, and this one is not")?;
        say(out, json!({ "estimate": backup::estimate(&log) })).await?;
        // Letters, marks and events are one picture only while nothing goes.
        let _held = match &self.retention {
            Some(retention) => Some(retention.hold().await),
            None => None,
        };
        let (dir, engine) = (self.facts.dir.clone(), self.engine.clone());
        let pieces = std::io::BufWriter::with_capacity(BACKUP_PIECE, Pieces(out.clone()));
        let written = tokio::task::spawn_blocking(move || backup::write(&dir, &log, &engine, pieces));
        let summary = written.await.map_err(text)?.map_err(text)?;
        say(out, json!({ "summary": summary })).await
    }

    async fn erase(&self, whose: Whose, out: &Answers) -> Result<(), Refusal> {
        let mut letters = std::collections::BTreeMap::<String, Vec<Seq>>::new();
        for letter in self.dead(None, &Pick::default(), u64::MAX).await? {
            let found = self.engine.dead_get(&letter.sink, letter.seq).await.map_err(text)?;
            let event = found.and_then(|(_, event)| event);
            let is_theirs = event.is_some_and(|event| event.kind == Kind::Erased || whose.is_in(&event));
            if is_theirs || whose.is_named_in(&letter) {
                letters.entry(letter.sink).or_default().push(letter.seq);
            }
        }
        let place = whose.place();
        let doomed = Arc::new(move |event: &Event| whose.is_in(event));
        let erased = self.log.erase(place, doomed).await;
        // After the log, so that none is made or copied of what is still there; and whatever became of the log's part.
        let seqs = erased.as_ref().map(|erased| erased.seqs.clone()).unwrap_or_default();
        let (dropped, left_in_letters) = self.engine.dead_erase(letters, seqs).await;
        let erased = erased.map_err(text)?;
        let left: Vec<String> = erased.left.into_iter().chain(left_in_letters).collect();
        say(
            out,
            json!({ "erased": erased.seqs, "left": left, "dead_letters_dropped": dropped }),
        )
        .await
    }
}

/// Bytes of a backup in one answer; many answers may be on their way at a time.
const BACKUP_PIECE: usize = 48 << 10;

/// A backup's bytes on their way to whoever asked for it.
struct Pieces(Answers);

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // One large frame comes past the buffer in front.
        for piece in bytes.chunks(BACKUP_PIECE) {
            let sent = self.0.blocking_send(json!({ "data": STANDARD.encode(piece) }));
            sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn pick_is_empty(pick: &Pick) -> bool {
    pick.ids.is_empty()
        && pick.types.is_empty()
        && pick.lead.is_none()
        && pick.filter.is_none()
        && pick.since.is_none()
        && pick.until.is_none()
}

/// Whether a letter whose event is a tombstone, or is not kept any more, is meant.
fn letter_fits(selection: &Selection, letter: &DeadLetter, event: Option<&Event>) -> bool {
    let came = event.map(|event| event.received_at);
    selection.filter.is_none()
        && selection.quarantined.is_none()
        && selection
            .since
            .is_none_or(|since| came.is_some_and(|came| came >= since))
        && selection
            .until
            .is_none_or(|until| came.is_some_and(|came| came < until))
        && (selection.ids.is_empty() || selection.ids.contains(&letter.id))
        && (selection.lead.is_none() || selection.lead == letter.lead_id)
        && (selection.types.is_empty()
            || selection
                .types
                .iter()
                .any(|pattern| pattern.matches(letter.event_type.as_deref())))
}

/// An event in a line of `events list`.
fn summary(event: &Event) -> Value {
    let view = event.view();
    json!({
        "seq": event.seq,
        "received_at": format!("{:.6}", event.received_at),
        "source": event.source,
        "kind": event.kind,
        "type": view.and_then(crate::event::View::type_action),
        "id": view.map(|view| &view.id),
        "date_updated": view.map(|view| &view.date_updated),
        "lead_id": view.and_then(|view| view.lead_id.as_ref()),
    })
}

/// An event as `events export` writes it.
pub fn exported(event: &Event) -> Value {
    let headers = event
        .signature
        .as_ref()
        .map(|signature| json!({ "close-sig-timestamp": signature.timestamp, "close-sig-hash": signature.hash }));
    let mut value = json!({
        "seq": event.seq,
        "received_at": format!("{:.6}", event.received_at),
        "source": event.source,
        "headers": headers.unwrap_or_else(|| json!({})),
    });
    if event.kind == Kind::Partial {
        value["partial"] = json!(true);
    }
    match std::str::from_utf8(&event.body) {
        Ok(body) => value["body"] = json!(body),
        Err(_) => value["body_base64"] = json!(STANDARD.encode(&event.body)),
    }
    value
}

/// The body in what [`exported`] made, byte for byte.
pub fn exported_body(line: &Value) -> Result<Vec<u8>, Refusal> {
    let field = |name: &str| line.get(name).and_then(Value::as_str);
    match (field("body"), field("body_base64")) {
        (Some(body), _) => Ok(body.as_bytes().to_vec()),
        (None, Some(encoded)) => STANDARD
            .decode(encoded)
            .map_err(|_| "body_base64 is not base64".to_owned()),
        (None, None) => Err("a line has neither body nor body_base64: is it from `closehook events export`?".into()),
    }
}

fn imported(line: &Value, dispatch: bool) -> Result<Incoming, Refusal> {
    let field = |name: &str| line.get(name).and_then(Value::as_str);
    let body = exported_body(line)?;
    let received_at = field("received_at")
        .and_then(|at| at.parse().ok())
        .ok_or("a line has no received_at")?;
    let header = |name: &str| line.get("headers")?.get(name)?.as_str().map(ToOwned::to_owned);
    let signature = match (header("close-sig-timestamp"), header("close-sig-hash")) {
        (Some(timestamp), Some(hash)) => Some(SignatureHeaders { timestamp, hash }),
        _ => None,
    };
    let source = if field("source") == Some("backfill") {
        Source::Backfill
    } else {
        Source::Webhook
    };
    Ok(Incoming {
        held: !dispatch,
        partial: line["partial"] == true,
        ..Incoming::new(body.into(), received_at, source, signature)
    })
}
