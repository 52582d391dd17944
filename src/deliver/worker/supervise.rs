//! Opening the sink, and starting the worker again when it panics.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Command, Done, End, Handle, Kit, PAUSE_AFTER_FAILURE, Worker};
use crate::config::Start;
use crate::deliver::mark::{Record, record_key};
use crate::deliver::reading::{aside, at_length, within};
use crate::deliver::schedule;
use crate::deliver::setback;
use crate::sinks::{Context, Unavailable};
use crate::state::{Expected, Revision, StoreError, put_json};
use crate::sync::lock;
use crate::task;
use crate::telemetry;

/// A worker that panicked is started again after so long, and twice as long each time, up to the other.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Orders that wait for a worker at the most.
const COMMANDS_MAX: usize = 64;

/// What an earlier worker has begun has so long to end, each time before that is said.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Reading the record takes a moment, and then the worker obeys by itself; where it takes longer, orders are answered meanwhile.
const LOADED_WITHIN: Duration = Duration::from_secs(5);

/// What a sink waits for before there is a worker.
const BEING_READ: &str = "its record is being read";

/// Starts a sink's worker, and starts it again whenever it panics, from its durable mark.
pub(in crate::deliver) fn start(kit: Kit) -> Handle {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let handle = Handle {
        config: kit.config.clone(),
        lease: Some(kit.lease.clone()),
        commands: sender,
        view: kit.view.clone(),
        letters: kit.letters.clone(),
    };
    telemetry::sink_started(kit.name());
    task::begin(supervise(kit, commands));
    handle
}

async fn supervise(kit: Kit, mut commands: mpsc::Receiver<Command>) {
    let mut pause = PAUSE_AFTER_FAILURE;
    let mut rests = Rests::default();
    // The newest record that is known to have been durable.
    let mut known = kit.initial.clone();
    lock(&kit.view).idle(BEING_READ);
    loop {
        if !kit.lease.holds() {
            show(&kit, "this node has it no longer");
            return until_stopped(&kit, &mut commands).await;
        }
        let Some(loaded) = load_and_listen(&kit, &known, &mut commands).await else {
            return;
        };
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(Unloaded::Fenced(fence)) => {
                // Whatever is still believed here.
                kit.lease.end_below(fence);
                show(&kit, "another node has taken it over");
                return until_stopped(&kit, &mut commands).await;
            }
            Err(Unloaded::NotNow(error)) => {
                show(&kit, &error);
                if rest(&kit, PAUSE_AFTER_FAILURE, &mut commands).await {
                    return;
                }
                continue;
            }
        };
        let began = tokio::time::Instant::now();
        match work(&kit, loaded, &mut known, &mut commands).await {
            Ok(End::Stopped(waiting)) => {
                // Nobody may be waiting any more.
                for stopped in waiting {
                    let _ = stopped.send(());
                }
                return;
            }
            Ok(End::Outdated) => {
                tracing::warn!(
                    sink = kit.name(),
                    "the sink's position was changed by somebody else; it goes on from there"
                );
                lock(&kit.view).idle(BEING_READ);
                if rest(&kit, rests.next(began.elapsed()), &mut commands).await {
                    return;
                }
            }
            Err(_) => {
                telemetry::sink_restarted(kit.name(), "worker");
                let error =
                    "the sink's worker panicked and is started again; this is a defect of closehook, please report it";
                show(&kit, error);
                if began.elapsed() > PAUSE_MAX {
                    // It worked for a while: this is another one.
                    pause = PAUSE_AFTER_FAILURE;
                }
                if rest(&kit, pause, &mut commands).await {
                    return;
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Works from a record on until the worker ends, or panics, which is the error. `known` follows what is durable.
async fn work(
    kit: &Kit,
    (record, revision): (Record, Option<Revision>),
    known: &mut Record,
    commands: &mut mpsc::Receiver<Command>,
) -> std::thread::Result<End> {
    kit.see(&record);
    known.clone_from(&record);
    let work = async {
        let mut worker = Worker::new(kit, record, revision);
        let end = worker.run(commands).await;
        known.clone_from(&worker.durable);
        end
    };
    AssertUnwindSafe(work).catch_unwind().await
}

/// How long a worker rests whose record somebody else has changed, before it begins again: longer each time, up to a limit, unless it worked
/// for a while.
#[derive(Debug, Default)]
struct Rests {
    last: Option<Duration>,
}

impl Rests {
    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(10);

    fn next(&mut self, worked: Duration) -> Duration {
        let last = self.last.filter(|_| worked <= PAUSE_MAX);
        let next = last.map_or(Rests::FIRST, |last| (last * 2).min(Rests::MAX));
        self.last = Some(next);
        next
    }
}

/// Why a sink does not begin.
enum Unloaded {
    /// Another node has taken it over, under this fence as far as that is known.
    Fenced(u64),
    /// It is tried again.
    NotNow(String),
}

/// The record, and meanwhile answers to what is asked; `None`: it is to stop.
async fn load_and_listen(
    kit: &Kit,
    known: &Record,
    commands: &mut mpsc::Receiver<Command>,
) -> Option<Result<(Record, Option<Revision>), Unloaded>> {
    let mut loading = pin!(load(kit, known));
    if let Ok(loaded) = tokio::time::timeout(LOADED_WITHIN, &mut loading).await {
        return Some(loaded);
    }
    tokio::select! {
        loaded = &mut loading => Some(loaded),
        () = until_stopped(kit, commands) => None,
    }
}

/// The durable record, which says from now on that this node has the sink: who had it before can't change it any more. `known`: what it
/// was at last, for where it is not there any more.
async fn load(kit: &Kit, known: &Record) -> Result<(Record, Option<Revision>), Unloaded> {
    // What is just going to another sink would be delivered here as well.
    if tokio::time::timeout(ENDS_WITHIN, kit.letters.idle()).await.is_err() {
        let why = "what it has begun to do with its dead letters has not come to its end";
        return Err(Unloaded::NotNow(why.into()));
    }
    let (mut record, revision) = read(kit, known).await.map_err(Unloaded::NotNow)?;
    let fence = kit.lease.fence();
    if record.fence > fence && fence > 0 {
        return Err(Unloaded::Fenced(record.fence));
    }
    // Where nodes share it, the log or what is kept of the sink may have become another one without this node.
    let has_shared_log = fence > 0 && kit.follow && record.main.is_some();
    let is_changed = if has_shared_log {
        let fitted = setback::fit(&*kit.log, kit.name(), &mut record).await;
        fitted.map_err(Unloaded::NotNow)?
    } else {
        false
    };
    let is_gone = fence > 0 && revision.is_none();
    // A node that is alone has no fence; what several had before it stays, for receivers' marks may have it.
    if (record.fence == fence || fence == 0) && !is_changed && !is_gone {
        go_on_behind_seen(kit, &mut record).await?;
        take_letters_over(kit, fence).await?;
        return Ok((record, revision));
    }
    record.fence = fence;
    let expected = revision.map_or(Expected::Nothing, Expected::Revision);
    let put = put_json(&*kit.store, &record_key(kit.name()), &record, expected).await;
    match put {
        Ok(revision) => {
            go_on_behind_seen(kit, &mut record).await?;
            take_letters_over(kit, fence).await?;
            Ok((record, Some(revision)))
        }
        // The one before has saved once more: what it has saved is what counts.
        Err(StoreError::Conflict(_)) => Err(Unloaded::NotNow("its position is just being saved elsewhere".into())),
        Err(error) => Err(Unloaded::NotNow(error.to_string())),
    }
}

/// Has the log go on behind what the sink had seen of what it has lost. Not before the record that was taken back is durable: it would seem to
/// be right then. Nothing is delivered before it does: what comes at a Seq that was given out before would be taken for what was there.
async fn go_on_behind_seen(kit: &Kit, record: &mut Record) -> Result<(), Unloaded> {
    if let Some(seen) = record.unskipped
        && kit.lease.fence() > 0
        && kit.follow
    {
        let head = *kit.log.head().borrow();
        // An older closehook, or damage, may have noted one that there never was.
        if setback::is_possible(&*kit.log, head, seen) {
            let skipped = setback::skip_past(&*kit.log, seen).await;
            skipped.map_err(Unloaded::NotNow)?;
        }
        // A record that still says so has this asked once more.
        record.unskipped = None;
    }
    Ok(())
}

/// Whoever had the sink before makes and removes no letters any more. After the mark's, so that what they had made until then is known here.
async fn take_letters_over(kit: &Kit, fence: u64) -> Result<(), Unloaded> {
    let letters = kit.letters.clone();
    let taken = aside(move || letters.take_over(fence).map_err(|error| error.to_string())).await;
    match taken.flatten() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Unloaded::Fenced(kit.letters.last_fence())),
        Err(error) => Err(Unloaded::NotNow(format!(
            "its dead letters can't be taken over: {error}"
        ))),
    }
}

/// The durable record, or where the sink begins while there is none.
async fn read(kit: &Kit, known: &Record) -> Result<(Record, Option<Revision>), String> {
    // What is a dead letter is not delivered as well.
    let letters = kit.letters.clone();
    let read = aside(move || letters.read().map_err(|error| error.to_string())).await;
    read.flatten()
        .map_err(|error| format!("its dead letters can't be read: {error}"))?;
    let entry = kit.store.get(&record_key(kit.name())).await;
    let (record, revision): (Record, _) = match entry.map_err(|error| error.to_string())? {
        Some(entry) => (entry.json()?, Some(entry.revision)),
        None => (known.clone(), None),
    };
    let mut record = compare_letters(kit, record, revision.is_some()).await?;
    kit.letters.note_lost_upto(record.letters_lost_upto);
    kit.letters.damage_is_seen(record.letters_seen);
    // It is configured, whether or not that could be noted when it was again.
    record.detached_at = None;
    if kit.follow && record.main.is_none() {
        record.begin = kit.initial.begin;
        record.main.clone_from(&kit.initial.main);
        record.begun_anew = kit.initial.begun_anew;
        if record.main.is_none()
            && let Start::At(time) = kit.config.start
        {
            let found = within(kit.log.seq_at(time)).await;
            record.begin_at(found.map_err(|error| format!("the log does not say where the sink begins: {error}"))?);
        }
        if record.main.is_none() && kit.lease.fence() > 0 {
            // With "now" it would pass what it has not had.
            kit.outset.miss();
            return Err("it has no position in the state, where one has to be: it is looked for".into());
        }
    }
    Ok((record, revision))
}

/// A record with what damage may have taken of the letters. What the durable record says of it already needs not be found again.
async fn compare_letters(kit: &Kit, mut record: Record, is_durable: bool) -> Result<Record, String> {
    let letters = kit.letters.clone();
    let compare = move || {
        let is_news = record.compare_letters(&letters);
        (record, is_news)
    };
    let compared = aside(compare).await;
    let (record, is_news) =
        compared.map_err(|error| format!("its dead letters can't be compared with its position: {error}"))?;
    if !is_news && is_durable && kit.letters.is_damaged() {
        heal_letters(kit, record.letters_doubted).await;
    }
    Ok(record)
}

/// Leaves what is damaged out of the letters' file. That takes the longer the larger it is.
async fn heal_letters(kit: &Kit, noted: Option<u64>) {
    let letters = kit.letters.clone();
    let heal = move |turn: &dyn Fn()| {
        letters.damage_is_noted(noted);
        letters.heal(turn).map_err(|error| error.to_string())
    };
    if let Err(error) = at_length(heal).await.flatten() {
        tracing::warn!(
            sink = kit.name(),
            error,
            "what is damaged of the dead letters can't be left out of their file now; this is tried again"
        );
    }
}

fn show(kit: &Kit, error: &str) {
    tracing::error!(sink = kit.name(), error, "the sink does not run");
    let mut view = lock(&kit.view);
    view.status.last_error = Some(error.to_owned());
    view.status.last_error_at = Some(Timestamp::now());
    view.idle(error);
}

/// Refuses whatever is asked until it is to stop.
async fn until_stopped(kit: &Kit, commands: &mut mpsc::Receiver<Command>) {
    while !rest(kit, PAUSE_MAX, commands).await {}
}

/// Waits so long; `true`: it is to stop. What else is asked meanwhile is refused, with the reason where there is somebody to read it.
async fn rest(kit: &Kit, pause: Duration, commands: &mut mpsc::Receiver<Command>) -> bool {
    let until = tokio::time::Instant::now() + pause;
    let why = || {
        let waits_for = lock(&kit.view).status.waits_for.clone();
        waits_for.map_or_else(
            || "the sink does not run".to_owned(),
            |why| format!("the sink does not run: {why}"),
        )
    };
    loop {
        match tokio::time::timeout_at(until, commands.recv()).await {
            Err(_) => return false,
            Ok(None) => return true,
            Ok(Some(Command::Stop { quiet, stopped })) => {
                let _ = quiet.send(());
                let _ = stopped.send(());
                return true;
            }
            Ok(Some(Command::RetryDead(asked))) => {
                for (_, waiter) in asked {
                    waiter.settle(false, &why());
                }
            }
            Ok(Some(Command::Pause(_, done))) => drop(done.send(Err(why()))),
            Ok(Some(_)) => {}
        }
    }
}

impl Worker<'_> {
    /// Opens the sink where it has to be opened and may be. Without a log to follow only if there is something to do.
    pub(super) fn open_if_due(&mut self) {
        let wanted = self.kit.follow || self.lanes.any_work();
        let busy = self.sink.is_some() || self.opening || self.progress.saving || self.running > 0;
        if !wanted || busy || self.record.paused || self.not_before.is_some() {
            return;
        }
        if self.breaker.allows(schedule::now(), 1) == 0 {
            return;
        }
        if !self.may_cut() {
            return;
        }
        self.breaker.started();
        self.opening = true;
        let kind = self.kit.config.options.clone();
        let mut context = context(&self.kit.config, self.kit.log.id(), self.kit.log.epoch(), &self.record);
        if self.kit.log.absent().is_none() {
            context.kept = Some((self.kit.log.first(), *self.kit.log.head().borrow()));
        }
        context.renderer = Some(self.kit.rendering.renderer());
        let (limit, name) = (self.limit(), self.kit.name().to_owned());
        task::begin_among(&mut self.tasks, async move {
            let open = AssertUnwindSafe(tokio::time::timeout(limit, kind.open(context)));
            let opened = open.catch_unwind().await.unwrap_or_else(|_| {
                telemetry::sink_restarted(&name, "opening");
                let reason = "the sink panicked when it was opened; this is a defect of closehook, please report it";
                Ok(Err(Unavailable::new(reason)))
            });
            let late = |_| Err(Unavailable::new("opening the sink took too long"));
            Done::Opened(opened.unwrap_or_else(late))
        });
    }
}

fn context(config: &crate::config::SinkConfig, log_id: &str, epoch: &str, record: &Record) -> Context {
    Context {
        name: config.name.clone(),
        timeout: config.timeout.0,
        log_id: log_id.to_owned(),
        epoch: epoch.to_owned(),
        position: record.position.clone(),
        answers: None,
        renderer: None,
        is_strict: config.order == crate::config::Order::Strict,
        kept: None,
    }
}

/// Looks whether a configured sink could be opened and delivered to. Delivers and writes nothing.
pub(in crate::deliver) async fn probe(
    config: &crate::config::SinkConfig,
    log_id: &str,
    epoch: &str,
) -> Result<String, Unavailable> {
    let context = context(config, log_id, epoch, &Record::default());
    let limit = config.timeout.0 + super::GRACE;
    let probed = tokio::time::timeout(limit, Arc::clone(&config.options).probe(context)).await;
    probed.unwrap_or_else(|_| Err(Unavailable::new("it does not answer in time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_whose_record_is_changed_again_and_again_rests_longer_each_time_up_to_a_limit() {
        let mut rests = Rests::default();
        let short = Duration::from_secs(1);
        let all: Vec<Duration> = (0..12).map(|_| rests.next(short)).collect();
        assert_eq!(all[0], Rests::FIRST);
        assert!(
            all.windows(2).all(|pair| pair[1] == (pair[0] * 2).min(Rests::MAX)),
            "{all:?}"
        );
        assert_eq!(all[11], Rests::MAX);
        assert_eq!(rests.next(PAUSE_MAX + short), Rests::FIRST, "it worked for a while");
    }
}
